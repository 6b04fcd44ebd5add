"""What is sent while several sockets' messages are handled: written when all have been, in order, whole, and by
whoever can."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from websockets.client import ClientProtocol
from websockets.protocol import Side, State
from websockets.uri import parse_uri

from brightsocket_anyio import Brightsocket, Connection
from brightsocket_anyio.errors import ConnectionLost
from brightsocket_anyio.settings import Settings
from brightsocket_anyio.transports.core import Core
from brightsocket_anyio.transports.sockets import SocketStream
from brightsocket_anyio.transports.turn import Turn
from brightsocket_anyio.transports.websocket import WebSocket

from .support import PATIENCE, Raw, echoing, identified, pairs, serving, until

SIZE = 50_000


def sent_by_a_client(text: str) -> bytes:
    client = ClientProtocol(parse_uri("ws://peer/"), state=State.OPEN)
    client.send_text(text.encode())
    return b"".join(client.data_to_send())


def frame(payload: bytes) -> bytes:
    assert 126 <= len(payload) < 65536
    return b"\x81\x7e" + len(payload).to_bytes(2, "big") + payload


class Peer:
    """A WebSocket, its peer's socket, and what that has read."""

    def __init__(self, stream: SocketStream, there: socket.socket) -> None:
        there.setblocking(False)
        self.websocket = WebSocket(stream, Core(Side.SERVER, (), Settings()), Settings())
        self.there = there
        self.got = b""
        self.stuck = 0

    def send(self, frames: bytes) -> bool:
        return self.websocket.send_nowait(frames, self.note_stuck)

    def note_stuck(self) -> None:
        self.stuck += 1

    def read(self) -> bytes:
        with suppress(BlockingIOError):
            while data := self.there.recv(65_536):
                self.got += data
        return self.got


@asynccontextmanager
async def peers(handle: Callable[[list[Peer], Peer], None], count: int = 2) -> AsyncIterator[list[Peer]]:
    """Peers whose messages are received, and handled as this says."""

    async def receive(peer: Peer) -> None:
        with suppress(ConnectionLost):
            while True:
                await peer.websocket.receive()
                handle(all_of_them, peer)

    async with pairs(count) as (_, both), anyio.create_task_group() as tg:
        all_of_them = [Peer(stream, there) for stream, there in both]
        for peer in all_of_them:
            tg.start_soon(receive, peer)
        await wait_all_tasks_blocked()
        yield all_of_them
        tg.cancel_scope.cancel()


def all_send(peers: list[Peer]) -> None:
    """So that all of them can be read in one turn."""
    for peer in peers:
        peer.there.send(sent_by_a_client("a message"))


async def test_what_answers_several_messages_is_written_when_all_have_been_handled() -> None:
    seen: list[list[bytes]] = []

    def handle(peers: list[Peer], peer: Peer) -> None:
        assert peer.send(frame(b"a" * 200))
        assert peer.send(frame(b"b" * 200))
        seen.append([each.read() for each in peers])

    async with peers(handle, 3) as all_of_them:
        all_send(all_of_them)
        await until(lambda: all(peer.read() for peer in all_of_them))
        assert seen == [[b"", b"", b""]] * 3
        assert [peer.got for peer in all_of_them] == [frame(b"a" * 200) + frame(b"b" * 200)] * 3
        assert [peer.stuck for peer in all_of_them] == [0, 0, 0]


async def test_what_answers_a_single_message_is_written_at_once() -> None:
    seen: list[bytes] = []

    def handle(peers: list[Peer], peer: Peer) -> None:
        assert peer.send(frame(b"a" * 200))
        seen.append(peer.read())

    async with peers(handle) as all_of_them:
        for _ in range(2):
            all_send(all_of_them[:1])
            await until(lambda: all_of_them[0].read())
            assert seen.pop() == frame(b"a" * 200)
            all_of_them[0].got = b""


async def test_what_somebody_else_sends_meanwhile_is_written_with_it() -> None:
    def handle(peers: list[Peer], peer: Peer) -> None:
        for each in peers:
            assert each.send(frame(b"%d" % peers.index(peer) * 200))

    async with peers(handle, 3) as all_of_them:
        idle = all_of_them[2]
        all_send(all_of_them[:2])
        await until(lambda: all(len(peer.read()) == 2 * 204 for peer in all_of_them))
        assert idle.got in (frame(b"0" * 200) + frame(b"1" * 200), frame(b"1" * 200) + frame(b"0" * 200))


async def test_more_than_is_kept_is_written_before_the_turn_is_over() -> None:
    def handle(peers: list[Peer], peer: Peer) -> None:
        for number in range(3):
            assert peer.send(frame(b"%d" % number * SIZE))

    async with peers(handle) as all_of_them:
        all_send(all_of_them)
        whole = b"".join(frame(b"%d" % number * SIZE) for number in range(3))
        await until(lambda: all(len(peer.read()) >= len(whole) for peer in all_of_them))
        assert [peer.got for peer in all_of_them] == [whole, whole]


async def test_what_a_peer_has_no_room_for_is_sent_by_who_hears_of_it() -> None:
    def handle(peers: list[Peer], peer: Peer) -> None:
        taken = 0
        while peer.send(frame(b"%d" % taken * SIZE)):
            taken += 1
        counts.append(taken)

    counts: list[int] = []
    async with peers(handle) as all_of_them:
        for peer in all_of_them:
            peer.there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        all_send(all_of_them)
        await until(lambda: len(counts) == 2)
        await wait_all_tasks_blocked()
        for peer, count in zip(all_of_them, counts, strict=True):
            whole = b"".join(frame(b"%d" % number * SIZE) for number in range(count)) + frame(b"!" * 200)
            assert peer.stuck == 1
            assert not peer.websocket.flushed
            assert not peer.send(frame(b"?" * 200))
            async with anyio.create_task_group() as tg:
                tg.start_soon(peer.websocket.send_frames, frame(b"!" * 200))
                await until(partial(lambda peer, size: len(peer.read()) >= size, peer, len(whole)))
            assert peer.got == whole
            assert peer.websocket.flushed


async def test_who_is_stuck_at_the_end_of_a_turn_hears_of_it_then() -> None:
    def handle(peers: list[Peer], peer: Peer) -> None:
        peer.there.close()
        assert peer.send(frame(b"a" * 200))
        assert peer.stuck == 0

    async with peers(handle) as all_of_them:
        all_send(all_of_them)
        await until(lambda: all(peer.stuck for peer in all_of_them))
        await wait_all_tasks_blocked()
        assert [peer.stuck for peer in all_of_them] == [1, 1]


async def test_a_pong_and_what_was_sent_before_it() -> None:
    ping, pong = b"\x89\x81\0\0\0\0p", b"\x8a\x01p"

    def handle(peers: list[Peer], peer: Peer) -> None:
        assert peers[1].send(frame(b"a" * 200))

    async with peers(handle) as [first, second]:
        for _ in range(10):
            all_send([first])
            second.there.send(ping)
            await until(lambda: len(second.read()) == 204 + 3)
            # whichever of the two had its turn first
            assert second.got in (frame(b"a" * 200) + pong, pong + frame(b"a" * 200))
            second.got = b""


@pytest.mark.parametrize("late", [False, True])
async def test_a_pong_for_which_there_is_no_room(late: bool) -> None:
    """It goes out as soon as there is, behind what was taken before, whoever sends that."""
    async with pairs(1) as (watch, [(stream, there)]), anyio.create_task_group() as tg:
        peer = Peer(stream, there)
        filled = 0
        while count := stream.send_nowait(b"x" * 1000):
            filled += count
        answer = b""
        if late:
            watch.turn.begin()
            answer = frame(b"a" * 200)
            assert peer.send(answer)
        there.send(b"\x89\x81\0\0\0\0p")
        assert peer.websocket.read() == []
        watch.turn.end()
        assert peer.stuck == late
        # it is not enough to wait for the socket
        assert peer.websocket.readable() is None
        tg.start_soon(peer.websocket.receive)
        if late:
            tg.start_soon(peer.websocket.send_frames, b"")
        whole = filled + len(answer) + 3
        await until(lambda: len(peer.read()) == whole)
        assert peer.got[filled:] == answer + b"\x8a\x01p"
        assert peer.websocket.flushed
        tg.cancel_scope.cancel()


async def test_a_peer_that_closes_meanwhile_is_answered_at_once() -> None:
    """Behind what was taken before, so that nothing has to be waited for."""
    async with pairs(1) as (watch, [(stream, there)]):
        peer = Peer(stream, there)
        watch.turn.begin()
        assert peer.send(frame(b"a" * 200))
        there.send(b"\x88\x82\0\0\0\0\x03\xe8")
        with pytest.raises(anyio.EndOfStream):
            peer.websocket.read()
        assert peer.read() == frame(b"a" * 200) + b"\x88\x02\x03\xe8"
        assert peer.websocket.close_nowait()
        watch.turn.end()
        assert peer.stuck == 0


async def test_a_close_frame_comes_behind_it() -> None:
    async def close(peer: Peer) -> None:
        await peer.websocket.aclose(1000)

    def handle(peers: list[Peer], peer: Peer) -> None:
        assert peer.send(frame(b"a" * 200))
        tg.start_soon(close, peer)

    async with anyio.create_task_group() as tg, peers(handle) as all_of_them:
        all_send(all_of_them)
        await until(lambda: all(len(peer.read()) == 204 + 4 for peer in all_of_them))
        assert [peer.got for peer in all_of_them] == [frame(b"a" * 200) + b"\x88\x02\x03\xe8"] * 2
        for peer in all_of_them:
            peer.there.close()


class Note:
    def __init__(self, notes: list[str], name: str, whole: bool) -> None:
        self.notes = notes
        self.name = name
        self.whole = whole

    def write_late(self) -> bool:
        self.notes.append(self.name)
        return self.whole


def test_a_turn_writes_in_order_and_once() -> None:
    notes: list[str] = []
    turn = Turn()
    assert not turn.going_on
    turn.end()
    for _ in range(2):
        turn.begin()
        assert turn.going_on
        turn.add(Note(notes, "first", True), lambda: notes.append("first is stuck"))
        turn.add(Note(notes, "second", False), lambda: notes.append("second is stuck"))
        turn.add(Note(notes, "third", True), lambda: notes.append("third is stuck"))
        turn.end()
        turn.end()
        assert not turn.going_on
        assert notes == ["first", "second", "second is stuck", "third"]
        notes.clear()


# -- with the server


async def all_at_once(peers: list[Raw], *texts: str) -> None:
    """Their messages are there when the server's loop has its next turn."""
    for peer in peers:
        for text in texts:
            peer.protocol.send_text(text.encode())
    async with anyio.create_task_group() as tg:
        for peer in peers:
            tg.start_soon(peer.send)


@asynccontextmanager
async def three(api: Brightsocket) -> AsyncIterator[list[Raw]]:
    async with (
        serving(api) as bound,
        identified(bound, "WORK") as first,
        identified(bound, "WORK") as second,
        identified(bound, "WORK") as third,
    ):
        await wait_all_tasks_blocked()
        yield [first, second, third]


async def test_peers_that_read_late_get_all_of_it_in_order() -> None:
    async with three(echoing()) as all_of_them:
        texts = [f'42["ECHO","{number:06}{"x" * 20_000}"]' for number in range(200)]
        async with anyio.create_task_group() as tg:
            tg.start_soon(all_at_once, all_of_them, *texts)
            # they write until there is no room, neither here nor there
            await wait_all_tasks_blocked()
            for peer in all_of_them:
                await peer.expect(*texts)


async def test_a_goodbye_comes_behind_what_was_sent_before() -> None:
    api = Brightsocket()

    @api.connect("WORK")
    def work(connection: Connection) -> None:
        @connection.on("LEAVE")
        async def leave() -> None:
            for number in range(3):
                await connection.send("NUMBER", number)
            await connection.aclose()

    async with three(api) as all_of_them:
        await all_at_once(all_of_them, '42["LEAVE"]')
        with anyio.fail_after(PATIENCE):
            for peer in all_of_them:
                messages = await peer.drain()
                assert messages[:3] == [f'42["NUMBER",{number}]' for number in range(3)]


@pytest.mark.parametrize("count", [1, 3])
async def test_a_handler_that_sends_to_all(count: int) -> None:
    api = Brightsocket()

    @api.connect("WORK")
    def work(connection: Connection) -> None:
        @connection.on("TELL")
        async def tell(text: str) -> None:
            await api.pool.emit("TOLD", text)

    async with three(api) as all_of_them:
        for turn in range(3):
            await all_at_once(all_of_them[:count], f'42["TELL","{turn}"]')
            for peer in all_of_them:
                await peer.expect(*[f'42["TOLD","{turn}"]'] * count)
