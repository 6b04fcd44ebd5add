"""permessage-deflate, end to end: who gets it, what it carries, and how little a bomb costs."""

from __future__ import annotations

import random
import tracemalloc
import zlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Unpack

import anyio
import pytest
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from brightsocket_anyio import Bound, Brightsocket, Connection, open_client
from brightsocket_anyio.settings import SettingKeywords
from tests.doors import Recorder
from tests.streams import BINARY, CONT, TEXT, frame
from tests.support import PATIENCE, Raw, identified, joined, serving, until

#: of no use to a compressor but where it comes again
NOISE = random.Random(0).randbytes(1500).hex()


def echoing(**settings: Unpack[SettingKeywords]) -> Brightsocket:
    api = Brightsocket(**settings)

    @api.connect("ECHO")
    async def channel(connection: Connection) -> None:
        @connection.on("ECHO")
        async def echo(*args: Any) -> tuple[Any, ...]:
            return args

    return api


@asynccontextmanager
async def offering(bound: Bound, channel: str, *, eio: int = 4, **offer: Any) -> AsyncGenerator[Raw]:
    """A raw peer that offers permessage-deflate, with parameters, and has been let into a channel."""
    async with joined(bound, eio=eio, extensions=[ClientPerMessageDeflateFactory(**offer)]) as peer:
        await peer.identify(channel)
        await peer.expect('42["BRIGHTSOCKET:IDENTIFIED"]')
        yield peer


class Meter:
    """What a raw peer gets on the wire, by the message: whether it is compressed, and its size there."""

    def __init__(self, peer: Raw) -> None:
        self._peer = peer
        self.messages: list[tuple[bool, int]] = []
        for extension in peer.protocol.extensions:
            extension.decode = self._measure(extension.decode)  # type: ignore[method-assign]

    def _measure(self, decode: Any) -> Any:
        def measure(frame: Any, *, max_size: int | None = None) -> Any:
            self.messages.append((frame.rsv1, len(frame.data)))
            return decode(frame, max_size=max_size)

        return measure


@pytest.mark.parametrize("server", [False, True])
@pytest.mark.parametrize("client", [False, True])
async def test_it_is_used_where_both_want_it(server: bool, client: bool) -> None:
    values = ["x" * 100_000, NOISE, bytes(50_000), random.Random(1).randbytes(5000), "", b""]
    # neither has it without asking for it
    ours: SettingKeywords = {"compression": True} if server else {}
    theirs: SettingKeywords = {"compression": True} if client else {}
    async with (
        serving(echoing(**ours)) as bound,
        Recorder() as http,
        open_client(bound.url, http=http, transport="websocket", **theirs) as visitor,
    ):
        connection = await visitor.connect("ECHO")
        (answer,) = http.answers
        negotiated = answer.headers.get("sec-websocket-extensions", "")
        assert negotiated.startswith("permessage-deflate") == (server and client)
        with anyio.fail_after(PATIENCE):
            for _ in range(20):
                assert await connection.call("ECHO", *values) == tuple(values)


async def test_a_session_that_moves_on_to_a_websocket() -> None:
    async with (
        serving(echoing(compression=True)) as bound,
        Recorder() as http,
        open_client(bound.url, http=http, transport=("polling", "websocket"), compression=True) as client,
    ):
        with anyio.fail_after(PATIENCE):
            connection = await client.connect("ECHO")
            while connection.transport == "polling":
                assert await connection.call("ECHO", NOISE) == NOISE
            assert await connection.call("ECHO", NOISE) == NOISE
        assert any("sec-websocket-extensions" in answer.headers for answer in http.answers)


OFFERS: list[dict[str, Any]] = [
    {},
    {"client_max_window_bits": None},
    {"client_max_window_bits": 9},
    {"client_max_window_bits": 15},
    {"server_max_window_bits": 9},
    {"server_max_window_bits": 15},
    {"client_no_context_takeover": True},
    {"server_no_context_takeover": True},
    {"server_no_context_takeover": True, "client_no_context_takeover": True, "server_max_window_bits": 10},
]


@pytest.mark.parametrize("offer", OFFERS, ids=str)
async def test_what_a_client_may_offer(offer: dict[str, Any]) -> None:
    async with serving(echoing(compression=True)) as bound, offering(bound, "ECHO", **offer) as peer:
        assert [extension.name for extension in peer.protocol.extensions] == ["permessage-deflate"]
        meter = Meter(peer)
        for number in range(30):
            await peer.event("ECHO", NOISE, id=number)
            await peer.expect(f'43{number}["{NOISE}"]')
        assert all(compressed for compressed, _ in meter.messages)
        sizes = [size for _, size in meter.messages]
        remembers = not offer.get("server_no_context_takeover") and offer.get("server_max_window_bits") != 9
        # the first message holds the noise, at half its size; with a window that has room for it, no other does
        assert sizes[0] < 2000
        assert all((size < 100) == remembers for size in sizes[1:])


@pytest.mark.parametrize("server", [False, True])
async def test_an_offer_that_is_declined(server: bool) -> None:
    # zlib has no such window
    offer = {"server_max_window_bits": 8} if server else {}
    async with serving(echoing(compression=server)) as bound, offering(bound, "ECHO", **offer) as peer:
        assert not peer.protocol.extensions
        await peer.event("ECHO", NOISE, id=0)
        await peer.expect(f'430["{NOISE}"]')
        # a compressed frame is an error there
        await peer.stream.send(frame(TEXT, b"42", rsv=4))
        assert await closed(peer) == 1002


async def test_short_messages_stay_as_they_are() -> None:
    async with serving(echoing(compression=True)) as bound, offering(bound, "ECHO") as peer:
        meter = Meter(peer)
        for size, compressed in (1000, False), (1100, True), (0, False), (1100, True):
            await peer.event("ECHO", "x" * size, id=0)
            await peer.expect(f'430["{"x" * size}"]')
            assert meter.messages[-1][0] == compressed


async def test_a_broadcast_reaches_everyone_compressed_or_not() -> None:
    api = Brightsocket(compression=True)

    @api.connect("NEWS")
    async def channel() -> None: ...

    async with (
        serving(api) as bound,
        identified(bound, "NEWS") as plain,
        offering(bound, "NEWS") as compressed,
        offering(bound, "NEWS", eio=3) as older,
        open_client(bound.url, compression=True) as client,
    ):
        connection = await client.connect("NEWS")
        await until(lambda: len(api.pool) == 4)
        meter = Meter(compressed)
        async with connection.receive("NEWS") as news:
            for number in range(10):
                assert await api.pool.emit("NEWS", number, NOISE) == 4
                for peer in plain, compressed, older:
                    await peer.expect_event("NEWS", number, NOISE)
                with anyio.fail_after(PATIENCE):
                    assert await news.receive() == (number, NOISE)
        assert all(compressed for compressed, _ in meter.messages)


# -- the limit


async def closed(peer: Raw) -> int | None:
    await peer.drain()
    return None if peer.protocol.close_rcvd is None else int(peer.protocol.close_rcvd.code)


def zeros(megabytes: int) -> bytes:
    """So many of them, as one compressed message."""
    packer = zlib.compressobj(9, wbits=-12)
    million = bytes(1_000_000)
    first = packer.compress(million) + packer.flush(zlib.Z_FULL_FLUSH)
    # after a full flush, the same comes again
    again = packer.compress(million) + packer.flush(zlib.Z_FULL_FLUSH)
    return (first + again * (megabytes - 1))[:-4]


BOMB = zeros(900)
BOMBS: dict[str, Sequence[bytes]] = {
    "one frame": [frame(TEXT, BOMB, rsv=4)],
    "fragments": [
        frame(TEXT, BOMB[:500], rsv=4, fin=False),
        *[frame(CONT, BOMB[at : at + 100_000], fin=False) for at in range(500, len(BOMB), 100_000)],
        frame(CONT, b"\x00"),
    ],
    "one byte at a time": [
        frame(TEXT, BOMB[:1], rsv=4, fin=False),
        *[frame(CONT, BOMB[at : at + 1], fin=False) for at in range(1, 4000)],
    ],
}


@pytest.mark.parametrize("frames", BOMBS.values(), ids=BOMBS)
async def test_a_bomb_is_not_inflated(frames: Sequence[bytes]) -> None:
    assert len(BOMB) < 1_000_000
    data = b"".join(frames)
    async with (
        serving(echoing(compression=True)) as bound,
        offering(bound, "ECHO", client_max_window_bits=12) as peer,
        identified(bound, "ECHO") as other,
    ):
        tracemalloc.start()
        try:
            async with anyio.create_task_group() as tg:
                tg.start_soon(peer.stream.send, data)
                assert await closed(peer) == 1009
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # the payload limit, a few times: what was read, what was inflated, and its copy
        assert peak < 8_000_000
        await other.event("ECHO", "fine", id=1)
        await other.expect('431["fine"]')


@pytest.mark.parametrize("content", ["noise", "zeros"])
async def test_a_message_as_large_as_is_taken(content: str) -> None:
    """Noise, which is longer when compressed, may still be as long as anything else."""
    limit = 100_000
    got: list[bytes] = []
    api = Brightsocket(compression=True, max_payload=limit)

    @api.connect("UP")
    async def channel(connection: Connection) -> None:
        connection.on("UP")(got.append)

    data = random.Random(0).randbytes(limit) if content == "noise" else bytes(limit)
    async with serving(api) as bound:
        async with open_client(bound.url, compression=True) as client:
            connection = await client.connect("UP")
            await connection.send("UP", data)
            await until(lambda: got)
            assert got.pop() == data
            with pytest.raises(ValueError, match=f"takes {limit} at most"):
                await connection.send("UP", data + b"\x00")
        packer = zlib.compressobj(wbits=-12)
        longer = (packer.compress(data + b"\x00") + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]
        async with offering(bound, "UP", client_max_window_bits=12) as peer:
            await peer.stream.send(frame(BINARY, longer, rsv=4))
            assert await closed(peer) == 1009
        assert not got
