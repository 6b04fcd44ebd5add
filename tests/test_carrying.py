"""What a message can carry, end to end, by each front door and transport and with both Engine.IO versions.

How bytes are cut into reads and frames, one by one, is in ``test_websocket.py``.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

import anyio
import pytest

from brightsocket_anyio import Brightsocket, Client, Connection, ConnectionLost, open_client
from brightsocket_anyio.protocol.jsontext import MAX_DEPTH
from brightsocket_anyio.roads import RoadName
from brightsocket_anyio.transports.websocket import READ_SIZE, WRITE_SIZE
from tests.doors import behind, every_road
from tests.streams import CONT, TEXT, frame
from tests.support import PATIENCE, identified, serving, until

EIO = Literal[3, 4]
each_eio = pytest.mark.parametrize("eio", [3, 4])

#: the ``max_payload`` of both sides
LIMIT = 200_000


class Place:
    """An API whose ECHO asks its client for an echo, so that a call crosses twice as an event and twice as an answer.

    :ivar up: what has come by UP.
    """

    def __init__(self, **settings: Any) -> None:
        self.api = Brightsocket(**{"max_payload": LIMIT, **settings})
        self.up: list[Any] = []
        self.api.connect("ECHO", self.channel)

    async def channel(self, connection: Connection) -> None:
        @connection.on("ECHO")
        async def echo(*args: Any) -> Any:
            return await connection.call("ECHO", *args)

        @connection.on("DOWN")
        async def down(size: int) -> None:
            await connection.send("DOWN", "x" * size)

        connection.on("UP")(self.up.append)


@asynccontextmanager
async def on_echo(
    url: str, transport: RoadName | tuple[RoadName, ...], eio: EIO, **settings: Any
) -> AsyncGenerator[Connection]:
    """A client of a :class:`Place`."""
    async with open_client(url, transport=transport, eio=eio, **{"max_payload": LIMIT, **settings}) as client:
        yield await enter(client)


async def enter(client: Client) -> Connection:
    @client.on("ECHO")
    async def echo(*args: Any) -> tuple[Any, ...]:
        return args

    with anyio.fail_after(PATIENCE):
        return await client.connect("ECHO")


async def check(connection: Connection, *args: Any, back: Any = ...) -> None:
    """An echo brings back what was sent, with its types and signs.

    :param back: what it brings instead.
    """
    with anyio.fail_after(PATIENCE):
        answer = await connection.call("ECHO", *args)
    if back is ...:
        back = None if not args else args[0] if len(args) == 1 else args
    # by their representations, which tell 1 from 1.0 and from True, 0.0 from -0.0, and bytes from a bytearray
    assert answer == back
    assert repr(answer) == repr(back)


def nested(depth: int, innermost: Any = None) -> Any:
    """Lists and dicts within each other, in turn."""
    value = innermost
    for level in range(depth):
        value = {"k": value} if level % 2 else [value]
    return value


# -- JSON

SHAPES: list[Any] = [None, True, False, "", b"", [], {}, [[]], [{}], {"": {}}, {"": None}, [None], {"a": [], "b": ""}]
NUMBERS: list[Any] = [
    *[0, -1, 2**31, 2**32, 2**53 - 1, 2**53, -(2**53), 2**53 + 2, 2**60, -(2**63), 2**63],
    *[0.0, -0.0, 0.1, -1.5, 1e15, 1e16, 1e21, 1e22, 2.0**53, 2.0**70],
    *[sys.float_info.max, -sys.float_info.max, sys.float_info.min, sys.float_info.epsilon],
    *[math.ulp(0.0), -math.ulp(0.0), math.nextafter(sys.float_info.min, 0.0), math.nextafter(1.0, 2.0)],
]


@every_road()
@each_eio
async def test_json(door: str, transport: RoadName, eio: EIO) -> None:
    async with behind(door, Place().api) as bound, on_echo(bound.url, transport, eio) as connection:
        await check(connection)
        for shape in SHAPES:
            await check(connection, shape)
        await check(connection, *SHAPES)
        await check(connection, NUMBERS, dict(zip(map(repr, NUMBERS), NUMBERS, strict=True)))
        await check(connection, [math.nan, math.inf, -math.inf], back=[None, None, None])
        await check(connection, ((1, (2,)), ()), back=[[1, [2]], []])
        await check(connection, *range(1000))
        # the list of an event's or answer's values is one level more
        deepest = MAX_DEPTH - 1
        for value in nested(deepest), {"k": nested(deepest - 1)}, nested(deepest - 1, b"\x00"):
            await check(connection, value)


# -- texts

#: characters that a JSON text, JavaScript, a frame or a polling body could take for something of their own
SPECIAL = '\0\x01\x08\t\n\r\x1e\x1f"\\/\x7f\x80\x9f\xa0\xad\u0301\u200b\u200d\u2028\u2029\ufdd0\ufeff\ufffd\ufffe\uffff'
TEXTS = [
    *SPECIAL,
    SPECIAL,
    SPECIAL[::-1],
    "\ud7ff\ue000\U00010000\U0010ffff",
    "e\u0301\u0327 \u1e69 \U0001f468\u200d\U0001f469\u200d\U0001f467 Grüße ÿþ",
    "\ufeffbyte order mark",
    # as engine.io-client 1.x would encode it
    "Grüße".encode().decode("latin-1"),
    *['42["X"]', "b4AAAA", "4", "1:2", '{"_placeholder":true,"num":0}', "\\ud800", "&amp;%00+"],
]


@every_road()
@each_eio
async def test_texts(door: str, transport: RoadName, eio: EIO) -> None:
    async with behind(door, Place().api) as bound, on_echo(bound.url, transport, eio) as connection:
        await check(connection, TEXTS, {text: text for text in TEXTS})
        for text in TEXTS[len(SPECIAL) :]:
            await check(connection, text)


@every_road()
@each_eio
async def test_all_of_unicode(door: str, transport: RoadName, eio: EIO) -> None:
    characters = "".join(map(chr, itertools.chain(range(0xD800), range(0xE000, sys.maxunicode + 1))))
    assert len(characters) == 0x110000 - 0x800
    async with (
        behind(door, Place(max_payload=1_000_000).api) as bound,
        on_echo(bound.url, transport, eio, max_payload=1_000_000) as connection,
    ):
        for start in range(0, len(characters), 60_000):
            text = characters[start : start + 60_000]
            with anyio.fail_after(PATIENCE):
                assert await connection.call("ECHO", text) == text
        # as keys, those of the first alphabets one by one
        await check(connection, dict.fromkeys(characters[:12288]))


# -- bytes


def sizes_of(largest: int) -> list[int]:
    """Sizes around those at which a frame, a read or a write changes its form, up to the largest.

    A frame's header has 2 to 10 bytes, and 4 more for its mask.
    """
    edges = [0, 126, 65536, READ_SIZE, 2 * READ_SIZE, WRITE_SIZE, 2 * WRITE_SIZE]
    sizes = {edge + shift for edge in edges for shift in (-14, -10, -8, -6, -4, *range(-2, 3))}
    return sorted(size for size in {*sizes, largest - 1, largest} if 0 <= size <= largest)


def largest_of(transport: str, eio: EIO) -> int:
    """Bytes of the largest attachment that a client can send."""
    if transport != "polling":
        return LIMIT - 1 if eio == 3 else LIMIT
    # a body: \x01, the length's digits, \xff, the packet's type; or b and the base64
    return LIMIT - 9 if eio == 3 else (LIMIT - 1) // 4 * 3


@every_road()
@each_eio
async def test_bytes(door: str, transport: RoadName, eio: EIO) -> None:
    source = random.Random(0)
    values = [source.randbytes(size) for size in sizes_of(largest_of(transport, eio))]
    settings: dict[str, Any] = {"max_buffered_bytes": 10 * LIMIT}
    async with (
        behind(door, Place(**settings).api) as bound,
        on_echo(bound.url, transport, eio, **settings) as connection,
    ):
        for start in range(0, len(values), 10):
            await check(connection, *values[start : start + 10])
        every = bytes(range(256))
        await check(connection, bytearray(every), memoryview(every)[::2], back=(every, every[::2]))
        await check(connection, {"same": every, "again": [every]}, every)
        await check(connection, *([b"x"] * 10))
        await check(connection, nested(100, {"deep": [b"", {"er": every}]}), "between", b"\x00")


# -- what cannot be sent

UNSENDABLE: list[tuple[Any, str]] = [
    ("\ud800", "surrogates"),
    ("x\udfffx", "surrogates"),
    (["\ude80\ud83d"], "surrogates"),
    ({"\udc00": 1}, "surrogates"),
    ([b"x", {"k": "\ud800"}], "surrogates"),
    (2**53 + 1, "9007199254740993"),
    ([-(2**53) - 1], "9007199254740993"),
    (2**1024, "bits"),
    (nested(MAX_DEPTH), "254 deep"),
    ([nested(MAX_DEPTH - 1), b""], "254 deep"),
    (nested(MAX_DEPTH - 1, b""), "254 deep"),
    ([b"x"] * 11, "11 binary attachments"),
    ([b"x", {"_placeholder": True, "num": 0}], "_placeholder"),
    (object(), "object"),
    ({1: 2}, "key"),
]


@every_road("websocket", "polling", doors=("embedded",))
@each_eio
async def test_what_cannot_be_sent(door: str, transport: RoadName, eio: EIO) -> None:
    place = Place()
    async with behind(door, place.api) as bound, on_echo(bound.url, transport, eio) as connection:
        for value, problem in UNSENDABLE:
            with pytest.raises(ValueError, match=problem):
                await connection.send("UP", value)
            with pytest.raises(ValueError, match=problem):
                await connection.call("ECHO", value)
        await connection.send("UP", "only this")
        await check(connection, "still good")
        assert place.up == ["only this"]


@each_eio
async def test_a_peer_that_nests_too_deep(eio: EIO) -> None:
    place = Place()
    async with serving(place.api) as bound, identified(bound, "ECHO", eio=eio) as peer:
        for depth in MAX_DEPTH - 1, MAX_DEPTH:
            await peer.send(f'42["UP",{"[" * depth}{"]" * depth}]')
        await peer.drain()
        assert peer.protocol.close_rcvd is not None
        assert peer.protocol.close_rcvd.code == 1002
        assert place.up == [nested_lists(MAX_DEPTH - 1)]


def nested_lists(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


# -- the limit


def text_of(message_size: int) -> str:
    """What makes an UP of a given size, as a message and as the whole body of a POST."""
    return "x" * (message_size - len('42["UP",""]'))


def longest(fits: Callable[[int], bool]) -> int:
    """The largest number that still fits."""
    low, high = 0, 2 * LIMIT
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@every_road()
@each_eio
@pytest.mark.parametrize("unit", ["x", "é", b"\x00"], ids=["ascii", "text", "bytes"])
async def test_what_the_server_takes_arrives_and_what_it_does_not_is_the_senders_error(
    door: str, transport: RoadName, eio: EIO, unit: Any
) -> None:
    place = Place()
    async with behind(door, place.api) as bound, on_echo(bound.url, transport, eio) as connection:

        def fits(count: int) -> bool:
            try:
                connection._core.session.automaton.encode_action("/", "UP", (unit * count,))
            except ValueError:
                return False
            return True

        count = longest(fits)
        each = len(unit) if isinstance(unit, bytes) else len(unit.encode()) if eio == 4 else len(json.dumps(unit)) - 2
        by_base64 = transport == "polling" and isinstance(unit, bytes) and eio == 4
        assert LIMIT - 40 < count * each * (4 / 3 if by_base64 else 1) <= LIMIT
        await connection.send("UP", unit * count)
        await until(lambda: place.up)
        assert place.up.pop() == unit * count
        for send in (connection.send, connection.call):
            with pytest.raises(ValueError, match=f"where the server takes {LIMIT} at most"):
                await send("UP", unit * 2 * count)
        await check(connection, "still good")
        assert not place.up


@pytest.mark.parametrize("over", [0, 1])
async def test_a_message_of_just_the_limit_and_one_byte_more(over: int) -> None:
    place = Place()
    async with serving(place.api) as bound, identified(bound, "ECHO") as peer:
        text = text_of(LIMIT + over)
        await peer.send(f'42["UP","{text}"]')
        if over:
            assert await peer.expect_end() == 1009
        else:
            await until(lambda: place.up)
        assert place.up == [text] * (1 - over)


@every_road()
async def test_a_message_as_large_as_the_client_takes(door: str, transport: RoadName) -> None:
    settings: dict[str, Any] = {"max_payload": 10_000, "reconnection": False}
    async with behind(door, Place().api) as bound, on_echo(bound.url, transport, 4, **settings) as connection:
        largest = 10_000 - len('42["DOWN",""]')
        async with connection.receive("DOWN") as down:
            await connection.send("DOWN", largest)
            with anyio.fail_after(PATIENCE):
                assert await down.receive() == "x" * largest
        # a packet of polling is let in up to the size that its bytes would have as a message
        await connection.send("DOWN", largest + (2 if transport == "polling" else 1))
        await expect_end(connection, r"parse error.*(limit of 10000 bytes|message too big)")


async def expect_end(connection: Connection, problem: str) -> None:
    with anyio.fail_after(PATIENCE), pytest.raises((ConnectionLost, anyio.EndOfStream), match=problem):
        async with connection.receive("NOTHING") as nothing:
            await nothing.receive()


# -- fragments, and the change of the road


@each_eio
async def test_fragments_cut_at_each_byte(eio: EIO) -> None:
    place = Place()
    message = '42["UP","é🚀"]'.encode()
    async with serving(place.api) as bound, identified(bound, "ECHO", eio=eio) as peer:
        for cut in range(len(message) + 1):
            await peer.stream.send(frame(TEXT, message[:cut], fin=False) + frame(CONT, message[cut:]))
        single = [frame(CONT, message[at : at + 1], fin=False) for at in range(len(message))]
        await peer.stream.send(frame(TEXT, b"", fin=False) + b"".join(single) + frame(CONT))
        await until(lambda: len(place.up) == len(message) + 2)
        assert set(place.up) == {"é🚀"}


@pytest.mark.parametrize("door", ["embedded", "asgi"])
@each_eio
async def test_across_the_upgrade(door: str, eio: EIO) -> None:
    values = [random.Random(0).randbytes(size) for size in sizes_of(READ_SIZE)]
    async with (
        behind(door, Place().api) as bound,
        on_echo(bound.url, ("polling", "websocket"), eio) as connection,
    ):
        with anyio.fail_after(PATIENCE):
            while connection.transport == "polling":
                await check(connection, *values[:10], "Grüße 🚀")
        await check(connection, *values[10:20], "Grüße 🚀")
