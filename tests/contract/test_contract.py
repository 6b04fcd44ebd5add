"""What every transport promises its session, on either side: one suite for all roads."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Literal, cast

import anyio
import pytest
from anyio.lowlevel import checkpoint

from brightsocket_anyio.errors import ConnectionLost, ProtocolError
from brightsocket_anyio.protocol.engineio import Packet, PacketType
from brightsocket_anyio.settings import Settings
from brightsocket_anyio.transport import PromptTransport, Transport
from tests.support import PATIENCE

from .roads import Peer, Road

#: texts are JSON, as Socket.IO's are: Engine.IO 3's polling may write the same JSON in another way
MESSAGES: list[str | bytes] = [
    "",
    "0",
    b"",
    b"\x00",
    b"\x04",
    bytes(range(256)),
    json.dumps("\0 \t \x1e \x7f ÿ \u0100 \u2028 \ufeff e\u0301 \U0001f600 \U0010ffff", ensure_ascii=False),
    json.dumps("x" * 126),
    b"x" * 126,
    json.dumps("ü" * 40_000, ensure_ascii=False),
    bytes(65_536),
]
SMALL = Settings(max_payload=1000, close_timeout=0.1)


def message(payload: str | bytes) -> Packet:
    return Packet(PacketType.MESSAGE, payload)


def meaning(payload: object) -> object:
    return json.loads(payload) if isinstance(payload, str) and payload else payload


async def take(transport: Transport, count: int) -> list[str | bytes]:
    """Receive messages until there are so many."""
    received: list[str | bytes] = []
    with anyio.fail_after(PATIENCE):
        while len(received) < count:
            for packet in await transport.receive():
                assert packet.type is PacketType.MESSAGE
                received.append(packet.data)
    return received


@pytest.mark.parametrize("eio", [3, 4])
async def test_whole_messages_of_every_kind_both_ways(road: Road, eio: Literal[3, 4]) -> None:
    async with road.open(eio=eio) as (ours, peer):
        await peer.send(*MESSAGES)
        assert [meaning(each) for each in await take(ours, len(MESSAGES))] == [meaning(each) for each in MESSAGES]
        await ours.send([message(each) for each in MESSAGES])
        for each in MESSAGES:
            assert meaning(await peer.receive()) == meaning(each)


async def test_a_message_as_large_as_the_limit_both_ways(road: Road) -> None:
    settings = Settings(max_payload=1_000_000)
    # a text's limit counts its packet type
    messages: list[str | bytes] = ["x" * 999_999, "\N{SNOWMAN}" * 333_333, bytes(1_000_000)]
    async with road.open(settings=settings) as (ours, peer), anyio.create_task_group() as tg:
        for each in messages:
            tg.start_soon(peer.send, each)
            assert await take(ours, 1) == [each]
            tg.start_soon(ours.send, [message(each)])
            assert await peer.receive() == each


async def test_order(road: Road) -> None:
    messages = [str(n) if n % 3 else str(n).encode() for n in range(500)]
    async with road.open() as (ours, peer), anyio.create_task_group() as tg:

        async def send() -> None:
            for n in range(0, 500, 50):
                await peer.send(*messages[n : n + 50])

        async def answer() -> None:
            for n in range(0, 500, 25):
                await ours.send([message(each) for each in messages[n : n + 25]])

        tg.start_soon(send)
        tg.start_soon(answer)
        assert await take(ours, 500) == messages
        assert [await peer.receive() for _ in messages] == messages


async def feed(transport: Transport, take: Callable[[list[Packet]], bool]) -> None:
    """Receive as a session does, until that is enough."""
    more = True
    while more:
        if not hasattr(transport, "arrival"):
            packets = await transport.receive()
        else:
            prompt = cast("PromptTransport", transport)
            try:
                packets = prompt.read(await prompt.arrival())
            except Exception as exc:
                raise prompt.failure(exc) from None
        more = not packets or take(packets)


async def test_being_fed_until_one_has_enough_and_again(road: Road) -> None:
    async with road.open() as (ours, peer):
        for meal in (1, 2, 5):
            eaten: list[str | bytes] = []

            def take(packets: list[Packet], meal: int = meal, eaten: list[str | bytes] = eaten) -> bool:
                eaten.extend(packet.data for packet in packets)
                return len(eaten) < meal

            async with anyio.create_task_group() as tg:
                tg.start_soon(feed, ours, take)
                for number in range(meal):
                    await anyio.wait_all_tasks_blocked()
                    assert eaten == [str(each) for each in range(number)]
                    await peer.send(str(number))
        await peer.send("more")
        assert [packet.data for packet in await ours.receive()] == ["more"]


async def test_being_fed_what_is_no_packet_behind_good_ones(road: Road) -> None:
    async with road.open() as (ours, peer):
        eaten: list[str | bytes] = []

        def take(packets: list[Packet]) -> bool:
            eaten.extend(packet.data for packet in packets)
            return True

        await peer.send("good")
        await peer.send_nonsense()
        with anyio.fail_after(PATIENCE), pytest.raises(ProtocolError):
            await feed(ours, take)
        assert eaten == ["good"]
        with pytest.raises(ProtocolError):
            await feed(ours, take)


async def test_what_is_no_packet_is_an_error_and_hides_nothing_before_it(road: Road) -> None:
    async with road.open() as (ours, peer):
        await peer.send("before")
        await peer.send_nonsense()
        assert await take(ours, 1) == ["before"]
        for _ in range(2):
            with pytest.raises(ProtocolError):
                await ours.receive()


# -- the end


@pytest.mark.parametrize("code", [1000, 1001, 1011, 4999])
async def test_our_close_reaches_the_peer(road: Road, code: int) -> None:
    async with road.open() as (ours, peer), anyio.create_task_group() as tg:
        await ours.send([message("last")])
        tg.start_soon(ours.aclose, code, "grün " * 100)
        assert await peer.receive() == "last"
        assert await peer.end() == (code if road.codes else None)


@pytest.mark.parametrize("code", [1000, 1001, 3000])
async def test_the_peers_close_comes_after_its_messages(road: Road, code: int) -> None:
    async with road.open() as (ours, peer), anyio.create_task_group() as tg:
        await peer.send("last")
        await peer.close(code, "done")
        if road.codes:
            assert await take(ours, 1) == ["last"]
            tg.start_soon(peer.end)
            for _ in range(2):
                with pytest.raises(anyio.EndOfStream, match=f"{code}.*done"):
                    await ours.receive()
            with pytest.raises(ConnectionLost):
                await ours.send([message("x")])
        else:
            assert [packet.type for packet in await ours.receive()] == [PacketType.MESSAGE]
            assert [packet.type for packet in await ours.receive()] == [PacketType.CLOSE]
        await ours.aclose()
        tg.cancel_scope.cancel()


async def test_closed_is_closed(road: Road) -> None:
    async with road.open() as (ours, peer), anyio.create_task_group() as tg:
        tg.start_soon(peer.end)
        with anyio.fail_after(PATIENCE):
            await ours.aclose()
            await ours.aclose(1001, "again")
        for _ in range(2):
            with pytest.raises(anyio.ClosedResourceError):
                await ours.receive()
            with pytest.raises(anyio.ClosedResourceError):
                await ours.send([message("x")])
        tg.cancel_scope.cancel()


async def test_closing_ends_a_receiver(road: Road) -> None:
    async with road.open() as (ours, peer), anyio.create_task_group() as tg:
        ended = anyio.Event()

        async def receive() -> None:
            # a peer that answers the Close at once may end the stream first
            with pytest.raises((anyio.ClosedResourceError, anyio.EndOfStream)):
                await ours.receive()
            ended.set()

        tg.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        tg.start_soon(ours.aclose)
        await peer.end()
        with anyio.fail_after(PATIENCE):
            await ended.wait()


async def test_closing_ends_a_sender(road: Road) -> None:
    async with road.open(capacity=0) as (ours, _), anyio.create_task_group() as tg:

        async def send() -> None:
            with pytest.raises((anyio.ClosedResourceError, ConnectionLost)):
                await ours.send([message("x" * 100_000)] * 10)

        tg.start_soon(send)
        await anyio.wait_all_tasks_blocked()
        with anyio.move_on_after(0):
            await ours.aclose()


# -- peers that vanish, stand still or say too much


async def test_a_peer_that_vanishes_from_a_receiver(road: Road) -> None:
    async with road.open() as (ours, peer), anyio.create_task_group() as tg:
        ended = anyio.Event()

        async def receive() -> None:
            with pytest.raises(ConnectionLost):
                await ours.receive()
            ended.set()

        await peer.send("last")
        assert await take(ours, 1) == ["last"]
        tg.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        await peer.vanish()
        with anyio.fail_after(PATIENCE):
            await ended.wait()
        with pytest.raises(ConnectionLost):
            await ours.receive()
        with pytest.raises(ConnectionLost):
            await ours.send([message("x")])
        with anyio.fail_after(PATIENCE):
            await ours.aclose()


async def test_a_peer_that_vanishes_from_a_sender(road: Road) -> None:
    async with road.open(capacity=0) as (ours, peer), anyio.create_task_group() as tg:

        async def send() -> None:
            # a batch that was handed to a request that is then cut off fails with the next one
            with pytest.raises(ConnectionLost):  # noqa: PT012
                while True:
                    await ours.send([message("x" * 100_000)] * 10)

        tg.start_soon(send)
        await anyio.wait_all_tasks_blocked()
        await peer.vanish()
    with anyio.fail_after(PATIENCE):
        await ours.aclose()


@pytest.mark.mock_clock
async def test_a_peer_that_never_reads_has_stalled(road: Road) -> None:
    settings = Settings(stall_timeout=7, close_timeout=3)
    async with road.open(capacity=0, settings=settings) as (ours, _):
        start = anyio.current_time()
        with pytest.raises(ConnectionLost) as caught:
            await ours.send([message("x")])
        assert caught.value.code == "stalled"
        assert anyio.current_time() - start == 7
        await ours.aclose()
        assert anyio.current_time() - start <= 10


@pytest.mark.mock_clock
async def test_a_peer_that_takes_no_part_in_closing(road: Road) -> None:
    async with road.open(capacity=0, settings=Settings(close_timeout=3)) as (ours, _):
        start = anyio.current_time()
        await ours.aclose()
        assert anyio.current_time() - start == 3


@pytest.mark.parametrize("payload", ["x" * 1001, "ü" * 501, bytes(1002), "x" * 100_000], ids=len)
async def test_a_message_over_the_limit_is_not_delivered(limiting_road: Road, payload: str | bytes) -> None:
    async with limiting_road.open(settings=SMALL) as (ours, peer), anyio.create_task_group() as tg:
        await peer.send("x" * 999)
        tg.start_soon(peer.send, payload)
        assert await take(ours, 1) == ["x" * 999]
        for _ in range(2):
            with pytest.raises(ProtocolError):
                await ours.receive()
        tg.start_soon(ours.aclose)
        assert await peer.end() == (1009 if limiting_road.codes else None)


# -- cancellation


async def test_a_receive_that_is_cancelled_at_any_step_loses_nothing(road: Road) -> None:
    for steps in range(8):
        async with road.open() as (ours, peer):
            received: list[str | bytes] = []
            scope = anyio.CancelScope()
            async with anyio.create_task_group() as tg:
                tg.start_soon(_collect, ours, received, scope)
                tg.start_soon(peer.send, "a", b"b")
                for _ in range(steps):
                    await checkpoint()
                scope.cancel()
            await peer.send("c")
            received += await take(ours, 3 - len(received))
            assert received == ["a", b"b", "c"]


async def _collect(transport: Transport, received: list[str | bytes], scope: anyio.CancelScope) -> None:
    with scope:
        while True:
            received += [packet.data for packet in await transport.receive()]


@pytest.mark.parametrize("steps", range(6))
async def test_a_send_that_is_cancelled_has_sent_whole_messages_only(road: Road, steps: int) -> None:
    batch = [str(n) * 200 for n in range(5)]
    async with road.open(capacity=0) as (ours, peer):
        async with anyio.create_task_group() as tg:
            tg.start_soon(ours.send, [message(each) for each in batch])
            await anyio.wait_all_tasks_blocked()
            with anyio.move_on_after(0):
                for _ in range(steps):
                    await peer.read()
            tg.cancel_scope.cancel()
        peer.listen()
        await _expect_whole(ours, peer, batch)


async def _expect_whole(ours: Transport, peer: Peer, batch: list[str]) -> None:
    """The messages that arrive are whole, in order and no others, up to one that comes later or to the end."""
    arrived: list[str | bytes] = []
    async with anyio.create_task_group() as tg:
        ended = False
        with anyio.fail_after(PATIENCE):
            tg.start_soon(_send_or_close, ours, peer)
            while not ended and "later" not in arrived:
                try:
                    arrived.append(await peer.receive())
                except anyio.EndOfStream:
                    ended = True
    if not ended:
        assert arrived.pop() == "later"
    assert arrived == batch[: len(arrived)]


async def _send_or_close(transport: Transport, peer: Peer) -> None:
    try:
        await transport.send([message("later")])
    except ConnectionLost:
        await transport.aclose()
        peer.our_side_is_done()
