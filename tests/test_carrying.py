"""Whatever is a payload arrives as it was sent, by every road: each size, each character, each number, each depth."""

from __future__ import annotations

import itertools
import json
import math
import random
import sys
import tracemalloc
import zlib
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

import anyio
import pytest
from anyio.abc import ByteStream
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Opcode
from websockets.uri import parse_uri

from brightsocket_anyio import Bound, Brightsocket, Connection, open_client
from brightsocket_anyio.protocol.jsontext import MAX_DEPTH
from brightsocket_anyio.transports.stream import READ_SIZE, WRITE_SIZE

from .conftest import LOOPS
from .doors import Recorder, behind
from .streams import BINARY, CONT, TEXT, frame
from .support import Raw, identified, raw, serving

pytestmark = pytest.mark.anyio

LIMIT = 200_000

#: the door, the client's transport, the Engine.IO version
_ROADS: list[tuple[str, Any, int]] = [
    ("embedded", "websocket", 4),
    ("embedded", "websocket", 3),
    ("embedded", "polling", 4),
    ("embedded", "polling", 3),
    ("embedded", ("polling", "websocket"), 4),
    ("asgi", "websocket", 4),
    ("asgi", "polling", 3),
]
_ROADS_OF_TRIO: list[tuple[str, Any, int]] = [
    ("trio-websocket", "websocket", 4),
    ("embedded", "trio-websocket", 3),
]


def by_every_road(function: Any) -> Any:
    cases = [
        pytest.param(loop, (door, transport, eio), id=f"{loop}-{door}-{transport}-{eio}")
        for loop in LOOPS
        for door, transport, eio in (_ROADS + _ROADS_OF_TRIO if loop == "trio" else _ROADS)
    ]
    return pytest.mark.parametrize(("anyio_backend", "road"), cases, indirect=["anyio_backend"])(function)


def echoing(**settings: Any) -> Brightsocket:
    api = Brightsocket(**settings)

    @api.connect("ECHO")
    async def channel(connection: Connection) -> None:
        @connection.on("ECHO")
        async def echo(*args: Any) -> tuple[Any, ...]:
            return args

    return api


@asynccontextmanager
async def echo_by(road: tuple[str, Any, Literal[3, 4]], **settings: Any) -> AsyncGenerator[Connection]:
    """A connection by a road, on whose ECHO channel every call is answered with its values."""
    door, transport, eio = road
    settings = {"max_payload": LIMIT, **settings}
    async with (
        behind(door, echoing(**settings)) as bound,
        open_client(bound.url, transport=transport, eio=eio, **settings) as client,
    ):
        yield await client.connect("ECHO")


#: around each size at which a frame's header, a read or a write changes
SIZES = sorted(
    {
        *range(10),
        *range(122, 132),
        *range(65_530, 65_540),
        *(size + beside for size in (READ_SIZE, 2 * READ_SIZE, WRITE_SIZE) for beside in (-14, -8, -4, -1, 0, 1)),
    }
)


@by_every_road
async def test_binary_of_every_size_at_each_frame_boundary(road: Any) -> None:
    async with echo_by(road) as connection:
        for size in SIZES:
            data = bytes(index % 251 for index in range(min(size, 500))) * (size // 500 + 1)
            data = data[:size]
            assert await connection.call("ECHO", data) == data


@by_every_road
async def test_text_of_every_size_at_each_frame_boundary(road: Any) -> None:
    async with echo_by(road) as connection:
        # the frame is longer by some twenty characters, and these are two or three bytes
        for size in (*range(8), *range(90, 135), 21_830, 32_750, 32_768, 65_500, 65_520):
            text = ("ä" + "x" * size)[:size]
            assert await connection.call("ECHO", text) == text


@by_every_road
async def test_no_value_one_or_many_and_bytes_among_them(road: Any) -> None:
    data = b"\x00\xff"
    async with echo_by(road) as connection:
        assert await connection.call("ECHO") is None
        deep = {"deep": [{"er": [data, b""]}]}
        values: list[Any] = ["", b"", [], {}, [[]], [{}], {"": None}, 0, False, None, [b""], deep]
        for value in values:
            answer = await connection.call("ECHO", value)
            assert answer == value
            assert type(answer) is type(value)
        assert await connection.call("ECHO", [(1, data), ()]) == [[1, data], []]
        many = tuple(range(500))
        assert await connection.call("ECHO", *many) == many
        ten = tuple(bytes([number]) * number for number in range(10))
        assert await connection.call("ECHO", *ten) == ten
        assert await connection.call("ECHO", data, [data, data]) == (data, [data, data])
        assert await connection.call("ECHO", bytearray(data), memoryview(data)) == (data, data)
        with pytest.raises(ValueError, match="11 binary attachments"):
            await connection.call("ECHO", *ten, data)
        assert await connection.call("ECHO", "still there") == "still there"


def longest(fits: Callable[[int], bool]) -> int:
    """The largest number that still fits."""
    low, high = 0, 2 * LIMIT
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@by_every_road
@pytest.mark.parametrize("unit", ["x", "ä", b"\x00"], ids=["ascii", "text", "bytes"])
async def test_what_fits_arrives_and_what_does_not_is_the_senders_error(road: Any, unit: Any) -> None:
    eio = road[2]
    async with echo_by(road) as connection:

        def fits(count: int) -> bool:
            try:
                connection._core.session.automaton.encode_action("/", "ECHO", (unit * count,), 1)
            except ValueError:
                return False
            return True

        count = longest(fits)
        each = len(unit) if isinstance(unit, bytes) else len(unit.encode()) if eio == 4 else len(json.dumps(unit)) - 2
        polls = connection.transport == "polling" and isinstance(unit, bytes) and eio == 4
        assert LIMIT - 40 < count * each * (4 / 3 if polls else 1) <= LIMIT
        assert await connection.call("ECHO", unit * count) == unit * count
        for send in (connection.call, connection.send):
            with pytest.raises(ValueError, match=rf"where the server takes {LIMIT} at most"):
                await send("ECHO", unit * (2 * count))
        assert await connection.call("ECHO", "still there") == "still there"


@pytest.mark.parametrize("over", [0, 1])
async def test_a_message_of_just_the_limit_and_one_byte_more(over: int) -> None:
    async with serving(echoing(max_payload=1000)) as bound, identified(bound, "ECHO") as peer:
        filling = "x" * (1000 + over - len('421["ECHO",""]'))
        await peer.send(f'421["ECHO","{filling}"]')
        if over:
            assert await peer.expect_end() == 1009
        else:
            await peer.expect(f'431["{filling}"]')


def nested(depth: int) -> Any:
    """Lists and dicts within each other, in turn."""
    value: Any = "core"
    for level in range(depth):
        value = [value, level] if level % 2 else {"inner": value}
    return value


@by_every_road
async def test_json_as_deep_as_it_may_be(road: Any) -> None:
    deepest = nested(MAX_DEPTH - 1)
    async with echo_by(road) as connection:
        assert await connection.call("ECHO", deepest) == deepest
        with pytest.raises(ValueError, match=f"nested more than {MAX_DEPTH} deep"):
            await connection.send("ECHO", [deepest])
        assert await connection.call("ECHO", "still there") == "still there"


@pytest.mark.parametrize("over", [0, 1])
async def test_json_that_a_peer_nests_too_deep(over: int) -> None:
    brackets = MAX_DEPTH - 1 + over
    async with serving(echoing()) as bound, identified(bound, "ECHO") as peer:
        await peer.send(f'421["ECHO",{"[" * brackets}{"]" * brackets}]')
        if over:
            assert "nested more than" in str(await peer.receive())
            assert await peer.expect_end() == 1002
        else:
            await peer.expect(f"431[{'[' * brackets}{']' * brackets}]")


def all_of_unicode(count: int) -> list[str]:
    """Every character that there may be, in texts of ``count``."""
    points = (point for point in range(sys.maxunicode + 1) if not 0xD800 <= point <= 0xDFFF)
    texts = []
    while text := "".join(map(chr, itertools.islice(points, count))):
        texts.append(text)
    return texts


@by_every_road
async def test_all_of_unicode(road: Any) -> None:
    texts = all_of_unicode(60_000)
    async with echo_by(road, max_payload=1_000_000) as connection:
        for text in texts:
            assert await connection.call("ECHO", text) == text
        # as keys: what is below U+3000, one by one, and a text of all kinds
        keys = {character: index for index, character in enumerate(texts[0][:0x3000])}
        assert await connection.call("ECHO", keys) == keys
        mixed = '\x00\ufeff\u2028\u2029e\u0301\u200d👩\u200d👩\u200d👧\U0010ffff"\\\x1e\ufffe'
        assert await connection.call("ECHO", {mixed: [mixed]}) == {mixed: [mixed]}
        for surrogate in ("\ud800", "a\udfff", "\udc00\ud800"):
            for payload in (surrogate, {surrogate: 1}, [[surrogate]]):
                with pytest.raises(ValueError, match="surrogates"):
                    await connection.send("ECHO", payload)
        assert await connection.call("ECHO", "still there") == "still there"


@by_every_road
async def test_numbers(road: Any) -> None:
    numbers = [
        0,
        -0.0,
        0.1 + 0.2,
        1e21,
        sys.float_info.max,
        -sys.float_info.max,
        sys.float_info.min,
        5e-324,
        2**53 - 1,
        -(2**53),
        2**60,
        1 / 3,
    ]
    async with echo_by(road) as connection:
        answer = await connection.call("ECHO", numbers)
        assert answer == numbers
        assert math.copysign(1, answer[1]) == -1
        assert await connection.call("ECHO", [math.nan, math.inf, -math.inf]) == [None, None, None]
        for integer in (2**53 + 1, -(2**53) - 1, 10**400):
            with pytest.raises(ValueError, match="cannot be sent"):
                await connection.send("ECHO", integer)
        assert await connection.call("ECHO", "still there") == "still there"


@pytest.mark.parametrize("eio", [3, 4])
async def test_messages_in_two_fragments_wherever_they_are_cut(eio: int) -> None:
    text, data = '451-1["ECHO",{"_placeholder":true,"num":0},"äöü"]'.encode(), bytes(range(100, 140))
    prefix = b"\x04" if eio == 3 else b""
    async with serving(echoing()) as bound, identified(bound, "ECHO", eio=eio) as peer:
        for opcode, message in ((TEXT, text), (BINARY, prefix + data)):
            whole = frame(opcode, message)
            before, after = (frame(TEXT, text), b"") if opcode == BINARY else (b"", frame(BINARY, prefix + data))
            for cut in range(len(message) + 1):
                pieces = frame(opcode, message[:cut], fin=False) + frame(CONT, message[cut:])
                await peer.stream.send(before + pieces + after)
                header = await peer.receive()
                assert str(header).startswith("461-1[")
                assert await peer.receive() == prefix + data
            # and in two segments of TCP
            for cut in range(len(whole)):
                await peer.stream.send(before + whole[:cut])
                await peer.stream.send(whole[cut:] + after)
                await peer.receive()
                assert await peer.receive() == prefix + data


# -- permessage-deflate


class Counting(ByteStream):
    """A stream that counts what it receives."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.received = 0

    async def receive(self, max_bytes: int = 65536) -> bytes:
        data = await self.stream.receive(max_bytes)
        self.received += len(data)
        return data

    async def send(self, item: bytes) -> None:
        await self.stream.send(item)

    async def send_eof(self) -> None:
        await self.stream.send_eof()

    async def aclose(self) -> None:
        await self.stream.aclose()


@asynccontextmanager
async def deflating(bound: Bound, **offer: Any) -> AsyncGenerator[tuple[Raw, Counting]]:
    """A raw peer on the ECHO channel that offers permessage-deflate."""
    host, port = str(bound.addresses[0][0]), int(bound.addresses[0][1])
    async with Counting(await anyio.connect_tcp(host, port)) as stream:
        uri = parse_uri(f"ws://{host}:{port}/socket.io/?EIO=4&transport=websocket")
        extensions = [ClientPerMessageDeflateFactory(**offer)]
        peer = await Raw(stream, ClientProtocol(uri, extensions=extensions, max_size=None)).handshake()
        await peer.receive()
        await peer.send("40")
        await peer.receive()
        await peer.identify("ECHO")
        await peer.expect('42["BRIGHTSOCKET:IDENTIFIED"]')
        yield peer, stream


@pytest.mark.parametrize("servers", [None, False, True])
@pytest.mark.parametrize("clients", [None, False, True])
async def test_compression_is_used_if_both_want_it(servers: bool | None, clients: bool | None) -> None:
    def wanting(wish: bool | None) -> dict[str, Any]:
        return {} if wish is None else {"compression": wish}

    async with (
        serving(echoing(**wanting(servers))) as bound,
        Recorder() as http,
        open_client(bound.url, http=http, **wanting(clients)) as client,
    ):
        connection = await client.connect("ECHO")
        agreed = "permessage-deflate" in http.answers[0].headers.get("sec-websocket-extensions", "")
        assert agreed == (servers is True and clients is True)
        for payload in ("", "x", "x" * 100_000, b"", b"\x00" * 100_000, {"a": [b"b", "c" * 1000]}):
            for _ in range(2):
                assert await connection.call("ECHO", payload) == payload


OFFERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "fresh contexts": {"server_no_context_takeover": True, "client_no_context_takeover": True},
    "small windows": {"server_max_window_bits": 9, "client_max_window_bits": 9},
}


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
async def test_a_peers_wishes_for_compression(offer: dict[str, Any]) -> None:
    # that a text is said again within a message is one gain, that it was said in the one before another
    noise = random.Random(1).randbytes(100).hex() * 8
    async with serving(echoing(compression=True)) as bound, deflating(bound, **offer) as (peer, stream):
        assert peer.protocol.extensions
        await peer.send(f'421["ECHO","{noise}"]')
        await peer.expect(f'431["{noise}"]')
        first = stream.received
        for number in range(20):
            await peer.send(f'421["ECHO","{noise}",{number}]')
            await peer.expect(f'431["{noise}",{number}]')
        each = (stream.received - first) / 20
        # what was said before need not be said again, unless each message has a context of its own
        assert (each > 50) if "server_no_context_takeover" in offer else (each < 50)


async def test_an_emit_reaches_clients_with_and_without_compression() -> None:
    api = echoing(compression=True)
    news = "news " * 1000
    async with (
        serving(api) as bound,
        deflating(bound) as (compressing, stream),
        identified(bound, "ECHO") as plain,
        raw(bound, eio=3) as old,
    ):
        await old.receive()
        await old.identify("ECHO")
        await old.expect('42["BRIGHTSOCKET:IDENTIFIED"]')
        before = stream.received
        for number in range(10):
            assert await api.pool.emit("NEWS", number, news) == 3
            for peer in (compressing, plain, old):
                await peer.expect(f'42["NEWS",{number},"{news}"]')
        assert stream.received - before < 1000


@pytest.mark.parametrize("pieces", [1, 5])
async def test_a_bomb_is_not_inflated(pieces: int) -> None:
    """200 MB of zeros in 200 KB: they end the session, and never are in memory."""
    limit = 100_000
    packer = zlib.compressobj(wbits=-12)
    bomb = b"".join(packer.compress(bytes(1_000_000)) for _ in range(200)) + packer.flush(zlib.Z_SYNC_FLUSH)
    step = len(bomb) // pieces + 1
    frames = [
        frame(
            CONT if start else BINARY, bomb[start : start + step], fin=start + step >= len(bomb), rsv=0 if start else 4
        )
        for start in range(0, len(bomb), step)
    ]
    async with (
        serving(echoing(compression=True, max_payload=limit)) as bound,
        deflating(bound) as (peer, _),
        identified(bound, "ECHO") as neighbour,
    ):
        tracemalloc.start()
        try:
            await peer.stream.send(b"".join(frames))
            assert await peer.expect_end() == 1009
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 20 * limit
        await neighbour.send('421["ECHO"]')
        await neighbour.expect("431[]")


async def test_what_compression_makes_longer_is_within_the_limit_too() -> None:
    settings: dict[str, Any] = {"compression": True, "max_payload": LIMIT}
    async with serving(echoing(**settings)) as bound, open_client(bound.url, **settings) as client:
        connection = await client.connect("ECHO")
        noise = random.Random(1).randbytes(LIMIT)
        assert await connection.call("ECHO", noise) == noise
        with pytest.raises(ValueError, match="at most"):
            await connection.call("ECHO", noise + b"x")


async def test_a_short_message_is_not_compressed() -> None:
    async with serving(echoing(compression=True)) as bound, deflating(bound) as (peer, stream):
        before = stream.received
        await peer.send(f'421["ECHO","{"x" * 900}"]')
        await peer.receive()
        assert stream.received - before > 900


async def test_a_compressed_frame_that_nobody_agreed_on() -> None:
    async with serving(echoing()) as bound, identified(bound, "ECHO") as peer:
        assert not peer.protocol.extensions
        await peer.stream.send(frame(Opcode.TEXT, b"42", rsv=4))
        await peer.drain()
        assert peer.protocol.close_rcvd is not None
        assert peer.protocol.close_rcvd.code == 1002
