"""Handshakes that are understood at sight: with that and without it, a client is told the same."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import anyio
import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from brightsocket_anyio import serving
from brightsocket_anyio.errors import ConnectionLost
from brightsocket_anyio.opening import read_opening
from brightsocket_anyio.settings import Settings
from brightsocket_anyio.transport import Receive, Scope, Send, WebSocketRequest

from .streams import CLOSE, TEXT, Given, frame

SETTINGS = Settings(max_head_size=1000)
COMPRESSING = Settings(max_head_size=1000, compression=True)
REQUEST = b"GET /ours/?EIO=4&transport=websocket HTTP/1.1"
USUAL = {
    b"Host": b"127.0.0.1:5000",
    b"Upgrade": b"websocket",
    b"Connection": b"Upgrade",
    b"Sec-WebSocket-Key": b"dGhlIHNhbXBsZSBub25jZQ==",
    b"Sec-WebSocket-Version": b"13",
}
BROWSERS = {
    b"Pragma": b"no-cache",
    b"Cache-Control": b"no-cache",
    b"User-Agent": b"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0",
    b"Origin": b"https://app.example.com",
    b"Accept-Encoding": b"gzip, deflate, br, zstd",
    b"Accept-Language": b"en-US,en;q=0.9,de;q=0.8",
    b"Cookie": b'session=eyJhIjoxfQ.Zx; theme="dark"; _ga=GA1.1.1234567890.1700000000',
    b"Sec-WebSocket-Extensions": b"permessage-deflate; client_max_window_bits",
}


def head(fields: dict[bytes, bytes], request: bytes = REQUEST) -> bytes:
    return b"\r\n".join([request, *(b"%b: %b" % field for field in fields.items()), b"", b""])


PLAIN = {
    "chrome": head(USUAL | BROWSERS),
    "firefox": head(USUAL | BROWSERS | {b"Connection": b"keep-alive, Upgrade", b"Sec-Fetch-Mode": b"websocket"}),
    "node, ws": head(
        {
            b"Sec-WebSocket-Version": b"13",
            b"Sec-WebSocket-Key": b"x3JJHMbDL1EzLkh9GBhXDw==",
            b"Connection": b"Upgrade",
            b"Upgrade": b"websocket",
            b"Sec-WebSocket-Extensions": b"permessage-deflate; client_max_window_bits",
            b"Host": b"localhost:5000",
        }
    ),
    "python, websockets": head(USUAL | {b"User-Agent": b"Python/3.11 websockets/17.4"}),
    "python, httpx": head(
        {b"Host": b"127.0.0.1", b"Accept": b"*/*", b"Accept-Encoding": b"gzip, deflate", b"User-Agent": b"httpx"}
        | {name: value for name, value in USUAL.items() if name != b"Host"}
    ),
    "python, trio-websocket": head(USUAL | {b"Upgrade": b"WebSocket"}),
    "behind a proxy": head(USUAL | {b"X-Forwarded-For": b"203.0.113.7, 10.0.0.1", b"X-Forwarded-Proto": b"https"}),
    "lower case": head({name.lower(): value for name, value in USUAL.items()}),
    "no space after the colon": head(USUAL).replace(b": ", b":"),
}


@pytest.mark.parametrize("data", PLAIN.values(), ids=PLAIN)
def test_plain_handshakes_are_understood_at_sight(data: bytes) -> None:
    opening = read_opening(data + b"leading", SETTINGS)
    assert opening is not None
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    request = connection.next_event()
    assert isinstance(request, h11.Request)
    assert (opening.target, opening.headers) == (request.target, list(request.headers))
    assert opening.leading == b"leading"


def other(**fields: bytes | None) -> bytes:
    """A head with a few headers that are others, or none."""
    changed = USUAL | {name.replace("_", "-").encode(): value for name, value in fields.items()}
    return head({name: value for name, value in changed.items() if value is not None})


UNUSUAL = {
    "nothing": b"",
    "no end": head(USUAL)[:-2],
    "no last byte": head(USUAL)[:-1],
    "no headers": REQUEST + b"\r\n\r\n",
    "another method": head(USUAL, b"POST / HTTP/1.1"),
    "a method in lower case": head(USUAL, b"get / HTTP/1.1"),
    "an old version": head(USUAL, b"GET / HTTP/1.0"),
    "a whole URL": head(USUAL, b"GET http://example/ HTTP/1.1"),
    "an asterisk": head(USUAL, b"GET * HTTP/1.1"),
    "a space in the target": head(USUAL, b"GET /a b HTTP/1.1"),
    "a target that is not ASCII": head(USUAL, b"GET /\xc3\xbc HTTP/1.1"),
    "an empty line first": b"\r\n" + head(USUAL),
    "no host": other(Host=None),
    "two hosts": other(X_Other=b"y\r\nhost: z"),
    "two of another": other(X_Other=b"y\r\nx-other: z"),
    "no upgrade": other(Upgrade=None),
    "another upgrade": other(Upgrade=b"h2c"),
    "two upgrades": other(Upgrade=b"websocket, h2c"),
    "no connection": other(Connection=None),
    "a connection that closes": other(Connection=b"Upgrade, close"),
    "no key": other(Sec_WebSocket_Key=None),
    "a short key": other(Sec_WebSocket_Key=b"bGhlIHNhbXBsZQ=="),
    "a long key": other(Sec_WebSocket_Key=b"dGhlIHNhbXBsZSBub25jZQAA"),
    "a key that is none": other(Sec_WebSocket_Key=b"dGhlIHNhbXBsZS!ub25jZQ=="),
    "a key with bits too many": other(Sec_WebSocket_Key=b"dGhlIHNhbXBsZSBub25jZR=="),
    "no version": other(Sec_WebSocket_Version=None),
    "a version of old": other(Sec_WebSocket_Version=b"8"),
    "a length": other(Content_Length=b"0"),
    "chunks": other(Transfer_Encoding=b"chunked"),
    "an expectation": other(Expect=b"100-continue"),
    "a subprotocol": other(Sec_WebSocket_Protocol=b"chat"),
    "a folded line": other(X_Other=b"y\r\n z"),
    "an empty value": other(X_Other=b""),
    "spaces before": other(X_Other=b"  y"),
    "spaces behind": other(X_Other=b"y "),
    "a tab": other(X_Other=b"y\tz"),
    "a control character": other(X_Other=b"y\x1fz"),
    "a NUL": other(X_Other=b"y\0z"),
    "a value that is not ASCII": other(X_Other=b"\xfc"),
    "a space in a name": head(USUAL).replace(b"Host:", b"Host :"),
    "a bare line feed": head(USUAL).replace(b"\r\nHost", b"\nHost"),
    "a bare carriage return": other(X_Other=b"y\rz"),
    "too large": other(X_Other=b"y" * SETTINGS.max_head_size),
}


@pytest.mark.parametrize("data", UNUSUAL.values(), ids=UNUSUAL)
def test_what_is_unusual_is_left_alone(data: bytes) -> None:
    assert read_opening(data, SETTINGS) is None


def test_extensions_are_left_alone_where_they_are_negotiated() -> None:
    data = head(USUAL | {b"Sec-WebSocket-Extensions": b"permessage-deflate"})
    assert read_opening(data, SETTINGS) is not None
    assert read_opening(data, COMPRESSING) is None


# -- both ways


class Told:
    """A door and a host that note what they are told of requests, and take them, refuse them or pass them on."""

    def __init__(self, verdict: str) -> None:
        self.stopping = self.drained = anyio.Event()
        self.scopes: list[Scope] = []
        self._verdict = verdict

    def matches(self, scope: Scope) -> bool:
        return self._verdict != "pass"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": b"a page"})
            return
        await send({"type": "websocket.accept", "subprotocol": "chat", "headers": [(b"x-own", b"1")]})
        await receive()
        await send({"type": "websocket.send", "text": str(await receive())})

    async def handle_websocket(self, request: WebSocketRequest) -> None:
        self.scopes.append(request.scope)
        if self._verdict == "refuse":
            await request.reject(403, b"{}", [(b"x-own", b"1")])
            return
        if self._verdict == "wait":
            await request.wait_gone()
        transport = await request.accept(4, [(b"set-cookie", b"a=b")] if self._verdict == "add" else [])
        try:
            while True:
                await transport.send(await transport.receive())
        except (anyio.EndOfStream, ConnectionLost):
            await transport.aclose()


def told(data: bytes, cuts: list[int], verdict: str, settings: Settings) -> tuple[list[Scope], bytes]:
    """What the server is told of a client that sends some bytes, and the client of the server."""

    async def serve() -> tuple[list[Scope], bytes]:
        edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
        stream = Given([data[start:end] for start, end in pairwise(edges)])
        notes = Told(verdict)
        await serving.Service(notes, notes, settings).serve(stream)
        return notes.scopes, re.sub(rb"(?i)\r\ndate: [^\r]* GMT\r\n", b"\r\nDate: x\r\n", stream.sent)

    return anyio.run(serve, backend="trio")


names = st.sampled_from([*USUAL, *BROWSERS, b"Expect", b"Content-Length", b"Sec-WebSocket-Protocol", b"X-Other"])
values = st.one_of(
    st.sampled_from([*USUAL.values(), *BROWSERS.values(), b"", b"8", b"0", b"keep-alive, Upgrade", b"close, Upgrade"]),
    st.sampled_from([b"a ", b" a", b"a\t", b"a\tb", b"a\x1fb", b"a\0b", b"\xfc", b"a\rb", b"a\r\n b"]),
    st.text(st.characters(max_codepoint=255), max_size=8).map(lambda text: text.encode("latin-1")),
)


@st.composite
def heads(draw: Any) -> bytes:
    fields = [*USUAL.items(), *draw(st.lists(st.sampled_from([*BROWSERS.items()]), max_size=4, unique=True))]
    place = draw(st.integers(0, len(fields) - 1))
    match draw(st.integers(0, 9)):
        case 0:
            del fields[place]
        case 1 | 2:
            fields[place] = (fields[place][0], draw(values))
        case 3:
            fields.append((draw(names), draw(values)))
        case 4:
            fields.append((b"X-Other", draw(values)))
    colon = draw(st.sampled_from([b": "] * 9 + [b":", b":  ", b" :"]))
    request = draw(st.sampled_from([REQUEST] * 6 + [b"GET /a%20b?c HTTP/1.1", b"GET / HTTP/1.0", b"POST / HTTP/1.1"]))
    lines = [request, *(name + colon + value for name, value in draw(st.permutations(fields)))]
    data: bytes = draw(st.sampled_from([b"\r\n"] * 9 + [b"\n"])).join([*lines, b"", b""])
    if draw(st.integers(0, 9)) == 0:
        start = draw(st.integers(0, len(data)))
        data = data[:start] + draw(st.binary(max_size=2)) + data[start + draw(st.integers(0, 2)) :]
    return data


@given(
    heads(),
    st.sampled_from([b"", frame(TEXT, b"4early"), frame(TEXT, b"4early") + frame(CLOSE, b"\x03\xe8"), b"\xff\r\n"]),
    st.one_of(st.just([]), st.lists(st.integers(0, 1000), max_size=3)),
    st.sampled_from(["take", "add", "refuse", "wait", "pass"]),
    st.sampled_from([SETTINGS, COMPRESSING]),
)
@example(head(USUAL), frame(TEXT, b"4early"), [], "take", SETTINGS)
@example(head(USUAL), frame(TEXT, b"4early"), [200], "wait", SETTINGS)
@example(head(USUAL | BROWSERS), frame(TEXT, b"4early"), [], "pass", COMPRESSING)
@example(head(USUAL), b"", [], "refuse", SETTINGS)
@example(PLAIN["no space after the colon"], b"", [], "add", SETTINGS)
def test_both_ways_come_to_the_same(
    data: bytes, leading: bytes, cuts: list[int], verdict: str, settings: Settings
) -> None:
    at_sight = told(data + leading, cuts, verdict, settings)
    with patch.object(serving, "read_opening", lambda data, settings: None):
        assert told(data + leading, cuts, verdict, settings) == at_sight
