"""WebSocket over a byte stream: both sides linked, and peers that send hand-made frames."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.lowlevel import checkpoint
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import (
    enable_client_permessage_deflate,
    enable_server_permessage_deflate,
)
from websockets.protocol import Protocol, Side
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from brightsocket_anyio.errors import ConnectionLost, ProtocolError
from brightsocket_anyio.settings import Settings
from brightsocket_anyio.transports.core import Core
from brightsocket_anyio.transports.frames import frame_of_message
from brightsocket_anyio.transports.websocket import MAX_EMPTY_FRAGMENTS, READ_SIZE, WRITE_SIZE, WebSocket

from .streams import BINARY, CLOSE, CONT, PING, PONG, TEXT, Given, MemoryStream, frame, linked

SMALL = Settings(max_payload=1000)


def websocket(stream: MemoryStream, side: Side, settings: Settings | None = None) -> WebSocket:
    settings = settings or Settings()
    return WebSocket(stream, Core(side, (), settings), settings)


@asynccontextmanager
async def both(settings: Settings | None = None) -> AsyncIterator[tuple[WebSocket, WebSocket]]:
    async with linked() as (here, there):
        yield websocket(here, Side.SERVER, settings), websocket(there, Side.CLIENT, settings)


@asynccontextmanager
async def with_raw_peer(settings: Settings | None = None) -> AsyncIterator[tuple[WebSocket, MemoryStream]]:
    """A server's WebSocket, and a peer that writes and reads bytes."""
    async with linked() as (here, there):
        yield websocket(here, Side.SERVER, settings), there


def compressing() -> tuple[Protocol, Protocol]:
    """A server's and a client's core that have agreed on permessage-deflate."""
    client = ClientProtocol(parse_uri("ws://x/"), extensions=enable_client_permessage_deflate(None))
    server = ServerProtocol(extensions=enable_server_permessage_deflate(None))
    client.process_response(server.accept(client.connect()))
    return server, client


# -- messages


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 200_000])
async def test_messages_of_each_size_both_ways(size: int) -> None:
    async with both() as (server, client):
        for sender, receiver in (server, client), (client, server):
            messages: list[str | bytes] = ["x" * size, bytes(size)]
            await sender.send(messages)
            received: list[str | bytes] = []
            while len(received) < 2:
                received += await receiver.receive()
            assert received == messages
            assert [type(message) for message in received] == [str, bytes]


async def test_one_read_brings_all_messages_of_one_write() -> None:
    async with both() as (server, client):
        await server.send([str(n) for n in range(500)])
        assert await client.receive() == [str(n) for n in range(500)]


async def test_a_batch_is_few_writes_of_bounded_size() -> None:
    async with linked() as (here, _):
        server = websocket(here, Side.SERVER)
        await server.send([bytes(1000)] * 200)
        assert here.writes == 4
        assert here.largest == WRITE_SIZE


async def test_bytes_one_by_one() -> None:
    async with with_raw_peer() as (server, peer):
        data = frame(TEXT, "grün".encode()) + frame(BINARY, b"\x00", fin=False) + frame(CONT, bytes(200))
        for position in range(len(data)):
            await peer.send(data[position : position + 1])
        assert await server.receive() == ["grün"]
        assert await server.receive() == [bytes(201)]


async def test_the_answer_to_the_handshake_goes_out_with_the_first_message() -> None:
    async with linked() as (here, there):
        server = WebSocket(here, Core(Side.SERVER, (), SMALL), SMALL, head=b"HEAD")
        await server.send(["a"])
        assert await there.receive() == b"HEAD" + frame(TEXT, b"a", masked=False)
        await server.send(["b"])
        assert await there.receive() == frame(TEXT, b"b", masked=False)


@pytest.mark.parametrize("what", ["flush", "receive", "aclose"])
async def test_the_answer_to_the_handshake_goes_out_before_anything_is_waited_for(what: str) -> None:
    async with linked() as (here, there), anyio.create_task_group() as tg:
        server = WebSocket(here, Core(Side.SERVER, (), SMALL), SMALL, head=b"HEAD")
        tg.start_soon(getattr(server, what))
        assert (await there.receive()).startswith(b"HEAD")
        tg.cancel_scope.cancel()


async def test_bytes_that_came_with_the_handshake() -> None:
    async with linked() as (here, there):
        data = frame(TEXT, b"a") + frame(TEXT, b"b")
        server = WebSocket(here, Core(Side.SERVER, (), SMALL), SMALL, leading=data[:9])
        await there.send(data[9:])
        assert await server.receive() == ["a"]
        assert await server.receive() == ["b"]


async def test_fragments_are_joined_around_a_ping() -> None:
    async with with_raw_peer() as (server, peer):
        # the two bytes of one character come in different fragments
        await peer.send(frame(TEXT, b"\xc3", fin=False) + frame(PING, b"p") + frame(CONT, b"\xa4", fin=False))
        await peer.send(frame(CONT))
        assert await server.receive() == ["ä"]
        assert await peer.frame() == (PONG, b"p")


async def test_an_unasked_pong_is_ignored() -> None:
    async with with_raw_peer() as (server, peer):
        await peer.send(frame(PONG) + frame(TEXT, b"x"))
        assert await server.receive() == ["x"]


async def test_a_second_receiver_is_refused() -> None:
    async with both() as (server, _), anyio.create_task_group() as tg:
        tg.start_soon(server.receive)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await server.receive()
        tg.cancel_scope.cancel()


async def test_finished_frames() -> None:
    async with both() as (server, client):
        assert server.prepared
        assert not client.prepared
        await server.send_frames(frame_of_message("a") + frame_of_message(b"b"))
        assert await client.receive() == ["a", b"b"]


# -- bad input

BAD_FRAMES = {
    "RSV1 without an extension": (frame(TEXT, b"x", rsv=4), 1002),
    "RSV2": (frame(TEXT, b"x", rsv=2), 1002),
    "RSV3 on a ping": (frame(PING, b"x", rsv=1), 1002),
    "opcode 3": (frame(3), 1002),
    "opcode 11": (frame(11), 1002),
    "unmasked": (frame(TEXT, b"x", masked=False), 1002),
    "oversize ping": (frame(PING, bytes(126)), 1002),
    "fragmented ping": (frame(PING, b"", fin=False), 1002),
    "continuation of nothing": (frame(CONT, b"x"), 1002),
    "message within a message": (frame(TEXT, b"x", fin=False) + frame(TEXT, b"y"), 1002),
    "close within a message": (frame(TEXT, b"x", fin=False) + frame(CLOSE, b"\x03\xe8"), 1002),
    "close code of one byte": (frame(CLOSE, b"\x03"), 1002),
    "close code 999": (frame(CLOSE, (999).to_bytes(2, "big")), 1002),
    "close code 1005": (frame(CLOSE, (1005).to_bytes(2, "big")), 1002),
    "close code 5000": (frame(CLOSE, (5000).to_bytes(2, "big")), 1002),
    "close reason not UTF-8": (frame(CLOSE, b"\x03\xe8\xff"), 1007),
    "text not UTF-8": (frame(TEXT, b"\xff"), 1007),
    "text with a surrogate": (frame(TEXT, b"\xed\xa0\x80"), 1007),
    "fragmented text not UTF-8": (frame(TEXT, b"\xc3", fin=False) + frame(CONT, b"x"), 1007),
    "too big": (frame(BINARY, bytes(1001)), 1009),
    "too big, as announced": (frame(BINARY, bytes(70_000))[:14], 1009),
    "too big in fragments": (frame(BINARY, bytes(600), fin=False) + frame(CONT, bytes(401)), 1009),
    "many fragments": (frame(TEXT, b"", fin=False) + frame(CONT, b"", fin=False) * 20 + frame(CONT, b"x"), 1008),
}


@pytest.mark.parametrize(("data", "code"), BAD_FRAMES.values(), ids=BAD_FRAMES)
async def test_bad_frames_get_their_close_code(data: bytes, code: int) -> None:
    async with with_raw_peer(SMALL) as (server, peer):
        await peer.send(frame(TEXT, b"before") + data + frame(TEXT, b"after"))
        assert await server.receive() == ["before"]
        with pytest.raises(ProtocolError):
            await server.receive()
        assert await peer.close_code() == code
        with pytest.raises(ProtocolError):
            await server.receive()
        with pytest.raises(ConnectionLost):
            await server.send(["too late"])
        await peer.send_eof()
        await server.aclose()
        with pytest.raises(anyio.EndOfStream):
            await peer.receive()


async def test_the_end_of_a_failed_websocket_comes_after_the_close_frame() -> None:
    async with with_raw_peer(SMALL) as (server, peer), anyio.create_task_group() as tg:
        await peer.send(frame(3))
        with pytest.raises(ProtocolError):
            await server.receive()
        tg.start_soon(server.aclose)
        await anyio.wait_all_tasks_blocked()
        await peer.send(bytes(100_000))  # is read and thrown away: unread, it would reset a TCP connection
        assert await peer.close_code() == 1002
        with pytest.raises(anyio.EndOfStream):
            await peer.receive()
        await peer.aclose()


async def test_fragments_are_counted() -> None:
    most = 100
    async with with_raw_peer(Settings(max_fragments=most)) as (server, peer):
        await peer.send(frame(BINARY, b"x", fin=False) + frame(CONT, b"y", fin=False) * (most - 2))
        await peer.send(frame(CONT, b"z") + frame(BINARY, b"x", fin=False))
        assert len((await server.receive())[0]) == most
        await peer.send(frame(CONT, b"y", fin=False) * most)
        with pytest.raises(ProtocolError, match="fragments"):
            await server.receive()


async def test_empty_fragments_are_counted_for_each_message() -> None:
    async with with_raw_peer() as (server, peer):
        for _ in range(3):
            await peer.send(frame(TEXT, b"", fin=False) + frame(CONT, b"", fin=False) * (MAX_EMPTY_FRAGMENTS - 1))
            await peer.send(frame(CONT, b"x"))
            assert await server.receive() == ["x"]


async def test_a_ping_flood_at_a_peer_that_takes_no_pongs_is_held_back() -> None:
    async with linked(0) as (here, there), anyio.create_task_group() as tg:
        server = websocket(here, Side.SERVER)
        writes = 0

        async def flood() -> None:
            nonlocal writes
            while True:
                await there.send(frame(PING, b"p" * 100) * 500)
                writes += 1

        tg.start_soon(flood)
        tg.start_soon(server.receive)
        await anyio.wait_all_tasks_blocked()
        assert writes == 1
        assert here.largest <= READ_SIZE
        tg.cancel_scope.cancel()


async def test_many_pings_are_each_answered() -> None:
    async with with_raw_peer() as (server, peer):
        await peer.send(frame(PING, b"p") * 50 + frame(TEXT, b"x"))
        assert await server.receive() == ["x"]
        assert [await peer.frame() for _ in range(50)] == [(PONG, b"p")] * 50


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-12)
    return (packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]


async def test_compression_both_ways() -> None:
    settings = Settings(compression=True)
    cores = compressing()
    async with linked() as (here, there):
        server = WebSocket(here, Core(Side.SERVER, cores[0].extensions, settings), settings)
        client = WebSocket(there, Core(Side.CLIENT, cores[1].extensions, settings), settings)
        assert not server.prepared
        for _ in range(2):
            await server.send(["x" * 100_000, b"\x00" * 100_000])
            await client.send(["y" * 100_000])
            assert await client.receive() == ["x" * 100_000, b"\x00" * 100_000]
            assert await server.receive() == ["y" * 100_000]
        assert here.largest < 2000


BOMBS = {
    "one frame": frame(BINARY, deflated(bytes(10_000_000)), rsv=4),
    "fragments": b"".join(
        [
            frame(BINARY, deflated(bytes(900)), rsv=4, fin=False),
            *[frame(CONT, b"\x00", fin=False)] * 3,
            frame(CONT, deflated(bytes(10_000_000))[1:]),
        ]
    ),
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
async def test_a_compression_bomb_is_not_inflated(data: bytes) -> None:
    core, _ = compressing()
    async with linked() as (here, there):
        server = WebSocket(here, Core(Side.SERVER, core.extensions, SMALL), SMALL)
        await there.send(data)
        with pytest.raises(ProtocolError):
            await server.receive()
        assert await there.close_code() in (1002, 1009)


# -- peers that take nothing, or little


@pytest.mark.mock_clock
async def test_a_peer_that_takes_no_bytes_has_stalled() -> None:
    async with linked(0) as (here, _):
        server = websocket(here, Side.SERVER, Settings(stall_timeout=7))
        start = anyio.current_time()
        with pytest.raises(ConnectionLost) as caught:
            await server.send(["x"])
        assert caught.value.code == "stalled"
        assert anyio.current_time() - start == 7
        with pytest.raises(ConnectionLost, match="stalled"):
            await server.send(["x"])
        with pytest.raises(ConnectionLost, match="stalled"):
            await server.receive()


@pytest.mark.mock_clock
async def test_a_slow_peer_has_not_stalled() -> None:
    async with linked(0) as (here, there), anyio.create_task_group() as tg:
        server = websocket(here, Side.SERVER, Settings(stall_timeout=7))

        async def take() -> None:
            while True:
                await anyio.sleep(6)
                await there.receive()

        tg.start_soon(take)
        start = anyio.current_time()
        await server.send([bytes(10 * WRITE_SIZE)])
        assert anyio.current_time() - start > 60
        tg.cancel_scope.cancel()


@pytest.mark.mock_clock
async def test_pongs_that_a_peer_does_not_take_stall_too_but_messages_come_first() -> None:
    async with linked(0) as (here, there), anyio.create_task_group() as tg:
        server = websocket(here, Side.SERVER, Settings(stall_timeout=7))
        tg.start_soon(there.send, frame(TEXT, b"x") + frame(PING))
        assert await server.receive() == ["x"]
        with pytest.raises(ConnectionLost, match="stalled"):
            await server.receive()


# -- cancellation


async def test_receive_cancelled_at_each_step_loses_nothing() -> None:
    data = frame(PING) + frame(TEXT, b"a", fin=False) + frame(PING) + frame(CONT, b"b") + frame(BINARY, b"c")
    for steps in range(12):
        async with with_raw_peer() as (server, peer):
            received: list[str | bytes] = []
            scope = anyio.CancelScope()

            async def receive(
                scope: anyio.CancelScope = scope, received: list[str | bytes] = received, server: WebSocket = server
            ) -> None:
                with scope:
                    while True:
                        received += await server.receive()

            async with anyio.create_task_group() as tg:
                tg.start_soon(receive)
                await peer.send(data[:11])
                for _ in range(steps):
                    await checkpoint()
                scope.cancel()
            await peer.send(data[11:])
            while len(received) < 2:
                received += await server.receive()
            assert received == ["ab", b"c"]


async def test_send_cancelled_half_way_leaves_a_dead_websocket() -> None:
    async with linked(0) as (here, there):
        server = websocket(here, Side.SERVER)
        async with anyio.create_task_group() as tg:
            tg.start_soon(server.send, [bytes(3 * WRITE_SIZE)])
            await there.receive()
            await anyio.wait_all_tasks_blocked()
            tg.cancel_scope.cancel()
        with pytest.raises(ConnectionLost, match="half way"):
            await server.send(["x"])
        async with anyio.create_task_group() as tg:
            tg.start_soon(server.aclose)
            with pytest.raises(anyio.EndOfStream):
                await there.receive()


async def test_send_cancelled_before_its_turn_has_sent_nothing() -> None:
    async with linked(0) as (here, there), anyio.create_task_group() as tg:
        server, client = websocket(here, Side.SERVER), websocket(there, Side.CLIENT)
        tg.start_soon(server.send, ["first"])
        await anyio.wait_all_tasks_blocked()
        async with anyio.create_task_group() as second:
            second.start_soon(server.send, ["second"])
            await anyio.wait_all_tasks_blocked()
            second.cancel_scope.cancel()
        assert await client.receive() == ["first"]
        tg.start_soon(server.send, ["third"])
        assert await client.receive() == ["third"]


async def test_pongs_do_not_interleave_with_a_batch() -> None:
    async with linked(0) as (here, there), anyio.create_task_group() as tg:
        server = websocket(here, Side.SERVER)
        tg.start_soon(server.send, [bytes(3 * WRITE_SIZE)])
        tg.start_soon(server.receive)
        await there.send(frame(PING, b"p"))
        assert await there.frame() == (BINARY, bytes(3 * WRITE_SIZE))
        assert await there.frame() == (PONG, b"p")
        tg.cancel_scope.cancel()


# -- ends


async def test_closing_handshake() -> None:
    async with both() as (server, client), anyio.create_task_group() as tg:
        tg.start_soon(server.aclose, 1001, "gone " * 100)
        with pytest.raises(anyio.EndOfStream, match=r"^1001 (gone )+"):
            await client.receive()
        assert client.close_code == 1001
        assert client.close_reason == ("gone " * 100)[:123]
        with pytest.raises(ConnectionLost):
            await client.send(["x"])
        await client.aclose()
        await client.aclose()
        await server.aclose()
        for end in client, server:
            with pytest.raises(anyio.ClosedResourceError):
                await end.receive()
            with pytest.raises(anyio.ClosedResourceError):
                await end.send(["x"])


async def test_client_closes() -> None:
    async with both() as (server, client):
        async with anyio.create_task_group() as tg:
            tg.start_soon(client.aclose, 4000, "done")
            with pytest.raises(anyio.EndOfStream, match="done"):
                await server.receive()
            assert server.close_code == 4000
            await server.aclose()
        assert client.close_code == 4000


async def test_messages_before_the_close_are_delivered() -> None:
    async with with_raw_peer() as (server, peer):
        await peer.send(frame(TEXT, b"x") + frame(CLOSE) + frame(TEXT, b"after"))
        assert await server.receive() == ["x"]
        assert await peer.frame() == (CLOSE, b"")
        with pytest.raises(anyio.EndOfStream):
            await server.receive()
        assert server.close_code == 1005
        await server.aclose()


async def test_closing_beside_a_receiver() -> None:
    async with both() as (server, client), anyio.create_task_group() as tg:

        async def receive() -> None:
            with pytest.raises(anyio.EndOfStream):
                await client.receive()

        tg.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        tg.start_soon(client.aclose)
        with pytest.raises(anyio.EndOfStream):
            await server.receive()
        await server.aclose()


@pytest.mark.mock_clock
async def test_closing_beside_a_receiver_who_has_had_enough() -> None:
    async with both() as (server, client), anyio.create_task_group() as tg:
        taken: list[str | bytes] = []

        async def take() -> None:
            taken.extend(await client.receive())

        tg.start_soon(take)
        await anyio.wait_all_tasks_blocked()
        start = anyio.current_time()
        tg.start_soon(client.aclose)
        await anyio.wait_all_tasks_blocked()
        await server.send(["x"])
        await anyio.wait_all_tasks_blocked()
        assert taken == ["x"]
        with pytest.raises(anyio.EndOfStream):
            await server.receive()
        await server.aclose()
        await anyio.wait_all_tasks_blocked()
        assert client.closed
        assert anyio.current_time() == start


@pytest.mark.mock_clock
async def test_a_peer_that_takes_no_part_in_closing() -> None:
    async with with_raw_peer(Settings(close_timeout=3)) as (server, peer), anyio.create_task_group() as tg:

        async def chatter() -> None:
            while True:
                await peer.send(frame(PING, bytes(100)) * 100 + frame(TEXT, b"x"))
                await anyio.sleep(0.1)

        tg.start_soon(chatter)
        start = anyio.current_time()
        await server.aclose(1000)
        assert anyio.current_time() - start == 3
        tg.cancel_scope.cancel()


async def test_closing_cancelled_closes_the_stream_at_once() -> None:
    async with with_raw_peer() as (server, peer):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await server.aclose()
        with pytest.raises(anyio.EndOfStream):
            await peer.receive()
        with pytest.raises(anyio.ClosedResourceError):
            await server.receive()


async def test_a_close_code_that_may_not_be_sent() -> None:
    async with both() as (server, client):
        with pytest.raises(ValueError, match="1005"):
            await server.aclose(1005)
        await server.send(["still open"])
        assert await client.receive() == ["still open"]


async def test_a_peer_that_vanishes() -> None:
    async with with_raw_peer() as (server, peer):
        await peer.send(frame(TEXT, b"x") + frame(TEXT, b"half")[:5])
        await peer.aclose()
        assert await server.receive() == ["x"]
        for _ in range(2):
            with pytest.raises(ConnectionLost) as caught:
                await server.receive()
            assert caught.value.code == "transport close"
        with pytest.raises(ConnectionLost) as caught:
            await server.send(["x"])
        assert caught.value.code == "transport error"
        await server.aclose()


@pytest.mark.parametrize("error", [anyio.BrokenResourceError(), OSError(104, "reset"), anyio.ClosedResourceError()])
async def test_errors_of_the_stream_become_ours(error: Exception) -> None:
    class Broken(MemoryStream):
        async def receive(self, max_bytes: int = 65536) -> bytes:
            raise error

        async def send(self, item: bytes) -> None:
            raise error

        async def aclose(self) -> None:
            await super().aclose()
            raise error

    async with linked() as (here, _):
        here.__class__ = Broken
        server = websocket(here, Side.SERVER)
        with pytest.raises(ConnectionLost, match="transport error"):
            await server.receive()
        with pytest.raises(ConnectionLost, match="transport error"):
            await server.send(["x"])
        await server.aclose()


async def test_a_cancellation_while_the_answer_to_close_waits_for_its_turn_does_not_lose_it() -> None:
    """The peer would wait for it for the close timeout."""

    class CancelsWhoReads(Given):
        async def receive(self, max_bytes: int = 65536) -> bytes:
            data = await super().receive(max_bytes)
            scope.cancel()
            return data

    stream = CancelsWhoReads([frame(CLOSE, b"\x03\xe8", masked=False)])
    websocket = WebSocket(stream, Core(Side.CLIENT, (), Settings()), Settings())
    with anyio.CancelScope() as scope:
        await websocket.receive()
    assert scope.cancelled_caught
    assert not stream.sent
    await websocket.aclose()
    assert stream.sent[:1] == b"\x88"
