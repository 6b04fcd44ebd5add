"""The sieve for short texts: with it and without it, a WebSocket hears the same."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import anyio
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.protocol import Side

from brightsocket_anyio.settings import Settings
from brightsocket_anyio.transports import sieve
from brightsocket_anyio.transports.core import Core
from brightsocket_anyio.transports.sieve import LONGEST, Sieve
from brightsocket_anyio.transports.websocket import WebSocket

from .streams import BINARY, CLOSE, CONT, PING, PONG, TEXT, Given, frame

SETTINGS = Settings(max_payload=2 * LONGEST, max_fragments=8)

payloads = st.one_of(
    st.text(max_size=40).map(str.encode),
    st.binary(max_size=40),
    st.sampled_from([0, 1, 125, 126, 127, LONGEST - 1, LONGEST, LONGEST + 1, 2 * LONGEST, 2 * LONGEST + 1]).map(
        lambda size: b"x" * size
    ),
)


@st.composite
def frames(draw: Any) -> bytes:
    usual = draw(st.integers(0, 9))
    if usual < 5:
        return frame(TEXT, draw(payloads))
    if usual == 9:
        # the beginning of one, or of something else
        beginning: bytes = draw(st.binary(max_size=12))
        return beginning
    return frame(
        draw(st.sampled_from([TEXT, CONT, BINARY, CLOSE, PING, PONG, 3, 11])),
        draw(payloads),
        fin=draw(st.booleans()),
        rsv=draw(st.sampled_from([0, 0, 0, 1, 4])),
        masked=draw(st.sampled_from([True, True, True, False])),
    )


def heard(data: bytes, cuts: list[int], longest: int) -> tuple[list[Any], str, bytes]:
    """What a server's WebSocket makes of bytes: the messages, the end, what it answers."""

    async def hear() -> tuple[list[Any], str, bytes]:
        edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
        stream = Given([data[start:end] for start, end in pairwise(edges)])
        websocket = WebSocket(stream, Core(Side.SERVER, (), SETTINGS), SETTINGS)
        messages: list[Any] = []
        while True:
            try:
                messages += await websocket.receive()
            except Exception as exc:
                return messages, repr(exc), stream.sent

    before, sieve.LONGEST = sieve.LONGEST, longest
    try:
        return anyio.run(hear, backend="trio")
    finally:
        sieve.LONGEST = before


@given(st.lists(frames(), max_size=8), st.lists(st.integers(0, 10_000), max_size=8))
@example([frame(TEXT, b"\xff")], [])
@example([frame(TEXT, b"a", fin=False), frame(TEXT, b"b"), frame(CONT, b"c")], [])
@example([frame(CLOSE, b"\x03\xe8"), frame(TEXT, b"late")], [])
@example([frame(TEXT, b"a", masked=False), frame(TEXT, b"late")], [1])
@example([b"\xff\xff\xff\xff"], [])
def test_a_websocket_hears_the_same_with_the_sieve_and_without(parts: list[bytes], cuts: list[int]) -> None:
    data = b"".join(parts)
    assert heard(data, cuts, LONGEST) == heard(data, cuts, -1)


@pytest.mark.parametrize("masked", [True, False])
def test_short_texts_never_reach_the_core(masked: bool) -> None:
    texts = ["", "2", "x" * 125, "y" * 126, "z" * LONGEST, "grün"]
    data = b"".join(frame(TEXT, text.encode(), masked=masked) for text in texts)
    assert list(Sieve(masked=masked, max_size=10_000).split(data)) == texts


def test_all_else_does() -> None:
    data = [
        frame(BINARY, b"x"),
        frame(PING, b"x"),
        frame(TEXT, bytes(LONGEST + 1)),
        frame(TEXT, b"\xff"),
        frame(TEXT, b"x", masked=False),
        frame(TEXT, b"x", rsv=4),
        frame(TEXT, b"x", fin=False),
    ]
    assert list(Sieve(masked=True, max_size=10_000).split(b"".join(data))) == data


def test_a_short_limit_is_the_cores_to_enforce() -> None:
    data = frame(TEXT, b"12345678901")
    assert list(Sieve(masked=True, max_size=10).split(data)) == [data]
