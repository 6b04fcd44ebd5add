"""The embedded server: what it makes of requests, good and bad, and what an ASGI application sees of them."""

from __future__ import annotations

import errno
import logging
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import httpx
import pytest
import trustme
from anyio.streams.stapled import MultiListener
from anyio.streams.tls import TLSListener

from brightsocket_anyio import listener as listener_module
from brightsocket_anyio import serving as serving_module
from brightsocket_anyio.errors import ConnectionLost
from brightsocket_anyio.listener import serve_listener
from brightsocket_anyio.serving import LINGER_TIMEOUT, Service
from brightsocket_anyio.settings import Settings
from brightsocket_anyio.transport import ASGIApp, Message, Receive, Scope, Send, WebSocketRequest
from brightsocket_anyio.transports.httpx_stream import connect_websocket

from .streams import CLOSE, TEXT, MemoryStream, frame, linked
from .support import PATIENCE
from .test_sockets import pair

SETTINGS = Settings()
HEAD = b"Host: x\r\n"
UPGRADE = (
    b"Host: x\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)


class Door:
    """An application, and WebSockets of our own below ``/ours``."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    def matches(self, scope: Scope) -> bool:
        return str(scope["path"]).startswith("/ours")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


class Host:
    """Echoes the packets of our WebSockets."""

    def __init__(self, handle: Callable[[WebSocketRequest], Awaitable[None]] | None = None) -> None:
        # its sessions end at once
        self.stopping = self.drained = anyio.Event()
        self.requests: list[WebSocketRequest] = []
        self._handle = handle

    async def handle_websocket(self, request: WebSocketRequest) -> None:
        self.requests.append(request)
        if self._handle is not None:
            await self._handle(request)
            return
        transport = await request.accept(4)
        try:
            while True:
                await transport.send(await transport.receive())
        except (anyio.EndOfStream, ConnectionLost):
            await transport.aclose()


class Peer:
    """The client's end of a connection: bytes out, responses in."""

    def __init__(self, stream: MemoryStream, host: Host) -> None:
        self.stream = stream
        self.host = host
        self._rest = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send(data)

    async def _more(self) -> None:
        self._rest += await self.stream.receive()

    async def until(self, data: bytes) -> bytes:
        """What comes before some data, which is taken too."""
        while data not in self._rest:
            await self._more()
        found, _, self._rest = self._rest.partition(data)
        return found

    async def head(self) -> tuple[int, dict[str, str]]:
        first, *lines = (await self.until(b"\r\n\r\n")).decode().split("\r\n")
        pairs = (line.split(": ", 1) for line in lines)
        return int(first.split()[1]), {name.lower(): value for name, value in pairs}

    async def response(self) -> tuple[int, dict[str, str], bytes]:
        """A response with a Content-Length, or one that is chunked."""
        status, headers = await self.head()
        if headers.get("transfer-encoding") == "chunked":
            return status, headers, await self.until(b"0\r\n\r\n")
        size = int(headers.get("content-length", 0))
        while len(self._rest) < size:
            await self._more()
        body, self._rest = self._rest[:size], self._rest[size:]
        return status, headers, body

    async def rest(self) -> bytes:
        """What comes until the server closes."""
        try:
            while True:
                await self._more()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return self._rest


@asynccontextmanager
async def serving(
    app: ASGIApp, host: Host | None = None, settings: Settings = SETTINGS, capacity: float = float("inf")
) -> AsyncIterator[Peer]:
    """One connection to a server, which is over when the block is left."""
    host = host or Host()
    service = Service(Door(app), host, settings)
    async with linked(capacity) as (here, there), anyio.create_task_group() as tg:
        tg.start_soon(service.serve, here)
        yield Peer(there, host)
        await there.aclose()


def answering(body: bytes = b"hello", status: int = 200, headers: Any = None) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        fields = [(b"content-length", b"%d" % len(body))] if headers is None else headers
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": body})

    return app


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the request's body, chunk by chunk."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        message = await receive()
        await send({"type": "http.response.body", "body": message["body"], "more_body": message["more_body"]})
        if not message["more_body"]:
            break


async def wait(receive: Receive) -> None:
    await receive()


async def collect(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the whole body, and answer with its length."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
        more = message["more_body"]
    await answering(str(size).encode())(scope, receive, send)


# -- HTTP as it should be


async def test_a_scope() -> None:
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await answering()(scope, receive, send)

    async with serving(app) as peer:
        await peer.send(b"GET /a%20b/%C3%BC?x=1&y=%20 HTTP/1.1\r\nHost: example\r\nX-Two: a\r\nx-two: b\r\n\r\n")
        status, headers, body = await peer.response()
        assert (status, body) == (200, b"hello")
        assert headers["server"] == "brightsocket"
        assert headers["date"].endswith(" GMT")
        await peer.send(b"GET http://example/z HTTP/1.1\r\nHost: example\r\n\r\n")
        await peer.response()
    scope, second = scopes
    assert scope == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/a b/ü",
        "raw_path": b"/a%20b/%C3%BC",
        "query_string": b"x=1&y=%20",
        "root_path": "",
        "headers": [(b"host", b"example"), (b"x-two", b"a"), (b"x-two", b"b")],
        "client": None,
        "server": None,
        "state": {},
        "extensions": {},
    }
    assert second["path"] == "/z"


async def test_requests_one_after_the_other_and_pipelined() -> None:
    async with serving(collect) as peer:
        post = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
        await peer.send(post)
        assert (await peer.response())[2] == b"3"
        await peer.send(post * 3 + b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert [(await peer.response())[2] for _ in range(3)] == [b"3"] * 3
        _, headers, body = await peer.response()
        assert (headers["connection"], body) == ("close", b"0")
        assert await peer.rest() == b""


async def test_chunks_both_ways() -> None:
    async with serving(echo) as peer:
        await peer.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        status, headers = await peer.head()
        assert (status, headers["transfer-encoding"]) == (200, "chunked")
        await peer.until(b"3\r\nabc\r\n")
        await peer.send(b"2\r\nde\r\n0\r\n\r\n")
        await peer.until(b"2\r\nde\r\n0\r\n\r\n")


async def test_an_old_client() -> None:
    async with serving(echo) as peer:
        await peer.send(b"POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc")
        status, headers = await peer.head()
        assert status == 200
        assert "transfer-encoding" not in headers
        assert await peer.rest() == b"abc"


async def test_continue_when_the_body_is_wanted() -> None:
    async with serving(collect) as peer:
        await peer.send(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert (await peer.head())[0] == 100
        await peer.send(b"abc")
        assert (await peer.response())[2] == b"3"
        await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await peer.response())[2] == b"0"


async def test_no_continue_when_it_is_not() -> None:
    async with serving(answering(b"too large", 413)) as peer:
        await peer.send(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert (await peer.response())[0] == 413
        await peer.stream.send_eof()
        assert await peer.rest() == b""


async def test_an_early_answer_is_followed_by_the_end() -> None:
    async with serving(answering(b"too large", 413)) as peer:
        await peer.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + bytes(1000))
        assert (await peer.response())[0] == 413
        await peer.send(bytes(100_000))  # thrown away, not answered by a reset
        await peer.stream.send_eof()
        assert await peer.rest() == b""


async def test_an_unread_body_that_is_there_does_not_end_the_connection() -> None:
    async with serving(answering()) as peer:
        for _ in range(2):
            await peer.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
            assert (await peer.response())[0] == 200


@pytest.mark.parametrize(("method", "status"), [(b"HEAD", 200), (b"GET", 204), (b"GET", 304)])
async def test_responses_without_a_body(method: bytes, status: int) -> None:
    async with serving(answering(b"hello", status, [])) as peer:
        for _ in range(2):
            await peer.send(method + b" / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await peer.head())[0] == status
        await peer.stream.send_eof()
        assert await peer.rest() == b""


async def test_a_head_goes_out_with_the_first_of_the_body_even_if_that_is_empty() -> None:
    go = anyio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 299})
        await send({"type": "http.response.body", "more_body": True})
        await go.wait()
        await send({"type": "http.response.body", "body": b"x"})

    async with serving(app) as peer:
        await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await peer.head())[0] == 299
        go.set()
        await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")


# -- a peer that goes away


async def test_an_application_that_waits_hears_that_the_peer_is_gone() -> None:
    seen: list[Message] = []
    ready, done = anyio.Event(), anyio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.request"
        ready.set()
        seen.append(await receive())
        done.set()

    async with serving(app) as peer:
        await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await ready.wait()
        await peer.stream.aclose()
        await done.wait()
    assert seen == [{"type": "http.disconnect"}]


async def test_waiting_for_that_loses_nothing_of_the_next_request() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()

        async def watch() -> None:
            assert (await receive())["type"] == "http.disconnect"

        async with anyio.create_task_group() as tg:
            tg.start_soon(watch)
            await anyio.wait_all_tasks_blocked()
            await answering(str(scope["path"]).encode())(scope, receive, send)  # this wakes the one that waits
        assert (await receive())["type"] == "http.disconnect"

    async with serving(app) as peer:
        await peer.send(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP")
        await peer.send(b"/1.1\r\nHost: x\r\n\r\n")
        assert [(await peer.response())[2] for _ in range(2)] == [b"/1", b"/2"]


async def test_what_is_read_while_waiting_is_bounded() -> None:
    enough = anyio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        async with anyio.create_task_group() as tg:
            tg.start_soon(wait, receive)
            await enough.wait()
            tg.cancel_scope.cancel()

    async with serving(app, capacity=0) as peer, anyio.create_task_group() as tg:
        sent = 0

        async def flood() -> None:
            nonlocal sent
            await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            while True:
                await peer.send(bytes(10_000))
                sent += 10_000

        tg.start_soon(flood)
        await anyio.wait_all_tasks_blocked()
        assert sent < 100_000
        enough.set()
        tg.cancel_scope.cancel()


async def test_a_response_to_a_peer_that_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    raised: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await receive()
        try:
            for _ in range(2):
                await answering()(scope, receive, send)
        except OSError as exc:
            raised.append(exc)
            raise

    with caplog.at_level(logging.INFO):
        async with serving(app) as peer:
            await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await peer.stream.aclose()
    assert [type(exc).__name__ for exc in raised] == ["ClientGone"]
    assert not caplog.records


@pytest.mark.mock_clock
async def test_a_peer_that_takes_nothing_of_a_response() -> None:
    over: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        start = anyio.current_time()
        try:
            await answering(bytes(1_000_000))(scope, receive, send)
        finally:
            over.append(anyio.current_time() - start)

    async with serving(app, settings=Settings(stall_timeout=9), capacity=0) as peer:
        await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await peer.stream.receive()
        await anyio.sleep(100)
    assert over == [9]


# -- applications that fail


async def test_an_application_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        raise ZeroDivisionError("secret")

    async with serving(app) as peer:
        await peer.send(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
        status, headers = await peer.head()
        assert (status, headers["connection"]) == (500, "close")
        assert await peer.rest() == b""
    assert "ZeroDivisionError" in caplog.text
    async with serving(app) as peer:
        await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        status, _, body = await peer.response()
        assert (status, body) == (500, b"Internal Server Error\n")


async def test_an_application_that_raises_in_the_middle() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"abc", "more_body": True})
        raise ZeroDivisionError

    async with serving(app) as peer:
        await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await peer.head()
        assert (await peer.rest()).strip() == b"3\r\nabc"  # without the last chunk: cut off, as the client sees


BAD_MESSAGES: dict[str, list[Message]] = {
    "nothing": [],
    "no body": [{"type": "http.response.start", "status": 200}],
    "two starts": [{"type": "http.response.start", "status": 200}] * 2,
    "body first": [{"type": "http.response.body"}],
    "unknown": [{"type": "http.response.zen"}],
    "a header of two lines": [{"type": "http.response.start", "status": 200, "headers": [(b"x", b"a\r\nb: c")]}],
    "an informational status": [{"type": "http.response.start", "status": 101}],
}


@pytest.mark.parametrize("messages", BAD_MESSAGES.values(), ids=BAD_MESSAGES)
async def test_applications_that_break_asgi(messages: list[Message], caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    async with serving(app) as peer:
        await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await peer.response())[0] == 500
        assert await peer.rest() == b""
    assert caplog.records


async def test_a_body_after_the_end(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answering()(scope, receive, send)
        await send({"type": "http.response.body", "body": b"more"})

    async with serving(app) as peer:
        await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await peer.response())[2] == b"hello"
        assert await peer.rest() == b""
    assert "outside of a response" in caplog.text


# -- bad requests

BAD_REQUESTS = {
    "not HTTP": (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two lengths": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "an unknown coding": (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: x\r\n\r\n", 501),
    "a space in a name": (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
    "a flood of headers": (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * SETTINGS.max_head_size, 431),
    "an endless header": (b"GET / HTTP/1.1\r\nx: " + b"y" * (SETTINGS.max_head_size + 1), 431),
    "an endless line": (b"GET /" + b"y" * (SETTINGS.max_head_size + 1), 414),
    "a tunnel": (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    "a length and chunks": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "a length that is none": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
    "a control character in a handshake": (
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: \x1f\r\n\r\n",
        400,
    ),
    "a chunk that is none": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n", 400),
}


@pytest.mark.parametrize(("data", "status"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
async def test_bad_requests(data: bytes, status: int) -> None:
    async with serving(collect) as peer:
        await peer.send(data)
        answer, headers, _ = await peer.response()
        assert (answer, headers["connection"]) == (status, "close")
        await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await peer.stream.send_eof()
        assert await peer.rest() == b""


@pytest.mark.parametrize("data", [b"G", b"GET /", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc"])
async def test_peers_that_leave_early(data: bytes) -> None:
    async with serving(collect) as peer:
        await peer.send(data)
        await peer.stream.send_eof()
        assert await peer.rest() == b""


SLOW = {
    "silent": (b"", 0, b"", SETTINGS.head_timeout),
    "half a line": (b"GET ", 408, b"", SETTINGS.head_timeout + LINGER_TIMEOUT),
    "a header now and then": (b"GET / HTTP/1.1\r\n", 408, b"x: y\r\n", SETTINGS.head_timeout + LINGER_TIMEOUT),
    "no body": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n",
        408,
        b"",
        SETTINGS.body_timeout + LINGER_TIMEOUT,
    ),
    "a byte of the body now and then": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n",
        408,
        b"x",
        SETTINGS.body_timeout + LINGER_TIMEOUT + 1,
    ),
}


@pytest.mark.mock_clock
@pytest.mark.parametrize(("data", "status", "now_and_then", "seconds"), SLOW.values(), ids=SLOW)
async def test_slow_requests(data: bytes, status: int, now_and_then: bytes, seconds: float) -> None:
    async with serving(collect, settings=Settings(stall_timeout=900)) as peer, anyio.create_task_group() as tg:

        async def drip() -> None:
            try:
                while now_and_then:
                    await anyio.sleep(3)
                    await peer.send(now_and_then)
            except anyio.BrokenResourceError:
                pass

        start = anyio.current_time()
        await peer.send(data) if data else None
        tg.start_soon(drip)
        answer = await peer.rest()
        assert answer.startswith(b"HTTP/1.1 %d" % status if status else b"")
        assert (answer == b"") == (status == 0)
        assert anyio.current_time() - start <= seconds


@pytest.mark.mock_clock
async def test_a_slow_body_that_goes_on_is_served() -> None:
    async with serving(collect) as peer:
        await peer.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n")
        for _ in range(20):
            await anyio.sleep(15)
            await peer.send(bytes(10_000))
        assert (await peer.response())[2] == b"200000"


@pytest.mark.mock_clock
async def test_an_idle_connection_is_closed_without_a_word() -> None:
    async with serving(answering()) as peer:
        await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await peer.response()
        start = anyio.current_time()
        assert await peer.rest() == b""
        assert anyio.current_time() - start == SETTINGS.keep_alive_timeout


# -- our WebSockets


async def test_our_websocket() -> None:
    async with serving(answering()) as peer:
        await peer.send(b"GET /ours/?a=b HTTP/1.1\r\n" + UPGRADE + b"\r\n" + frame(TEXT, b"4early"))
        status, headers = await peer.head()
        assert status == 101
        assert headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert headers["server"] == "brightsocket"
        await peer.send(frame(TEXT, b"4late"))
        assert await peer.until(b"late") == b"\x81\x064early\x81\x054"
        await peer.send(frame(CLOSE, b"\x03\xe8"))
        assert await peer.rest() == b"\x88\x02\x03\xe8"
    (request,) = peer.host.requests
    assert request.scope["type"] == "websocket"
    assert request.scope["scheme"] == "ws"
    assert request.scope["query_string"] == b"a=b"
    assert request.scope["subprotocols"] == []
    assert "method" not in request.scope


async def test_our_websocket_refused() -> None:
    async def handle(request: WebSocketRequest) -> None:
        await request.reject(403, b'{"code":4}')

    async with serving(answering(), Host(handle)) as peer:
        await peer.send(b"GET /ours HTTP/1.1\r\n" + UPGRADE + b"\r\n")
        status, headers, body = await peer.response()
        assert (status, headers["content-type"], body) == (403, "application/json", b'{"code":4}')
        assert await peer.rest() == b""


@pytest.mark.parametrize("error", [None, ZeroDivisionError()])
async def test_our_websocket_left_without_an_answer(error: Exception | None) -> None:
    async def handle(request: WebSocketRequest) -> None:
        if error is not None:
            raise error

    async with serving(answering(), Host(handle)) as peer:
        await peer.send(b"GET /ours HTTP/1.1\r\n" + UPGRADE + b"\r\n")
        assert (await peer.response())[0] == 500
        assert await peer.rest() == b""


BAD_HANDSHAKES = {
    "no key": (UPGRADE.replace(b"Sec-WebSocket-Key", b"X"), 400),
    "a short key": (UPGRADE.replace(b"dGhl", b""), 400),
    "an old version": (UPGRADE.replace(b"Version: 13", b"Version: 8"), 400),
    "two upgrades": (UPGRADE.replace(b"Upgrade: websocket", b"Upgrade: websocket, h2c"), 426),
    "a body": (UPGRADE + b"Content-Length: 3\r\n", 400),
}


@pytest.mark.parametrize(("headers", "status"), BAD_HANDSHAKES.values(), ids=BAD_HANDSHAKES)
@pytest.mark.parametrize("path", [b"/ours", b"/app"])
async def test_bad_handshakes(headers: bytes, status: int, path: bytes) -> None:
    async with serving(answering()) as peer:
        await peer.send(b"GET " + path + b" HTTP/1.1\r\n" + headers + b"\r\n")
        assert (await peer.response())[0] == status
        await peer.stream.send_eof()
        assert await peer.rest() == b""
        assert not peer.host.requests


async def test_another_upgrade_is_plain_http() -> None:
    async with serving(answering()) as peer:
        for _ in range(2):
            await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n")
            assert (await peer.response())[0] == 200


async def test_a_websocket_whose_peer_is_gone_in_the_handshake() -> None:
    lost = anyio.Event()

    async def handle(request: WebSocketRequest) -> None:
        await peer.stream.aclose()
        transport = await request.accept(4)
        with pytest.raises(ConnectionLost):
            await transport.receive()
        lost.set()

    async with serving(answering(), Host(handle)) as peer:
        await peer.send(b"GET /ours HTTP/1.1\r\n" + UPGRADE + b"\r\n")
        await lost.wait()


async def test_what_comes_while_it_is_decided_about_our_websocket_is_not_lost() -> None:
    async def handle(request: WebSocketRequest) -> None:
        async with anyio.create_task_group() as tg:
            tg.start_soon(request.wait_gone)
            await anyio.wait_all_tasks_blocked()
            tg.cancel_scope.cancel()
        transport = await request.accept(4, [(b"set-cookie", b"a=b")], "chat")
        for _ in range(2):
            await transport.send(await transport.receive())

    async with serving(answering(), Host(handle)) as peer:
        await peer.send(b"GET /ours HTTP/1.1\r\n" + UPGRADE + b"\r\n" + frame(TEXT, b"4early"))
        await peer.send(frame(TEXT, b"4late"))
        _, headers = await peer.head()
        assert list(headers)[-3:] == ["server", "sec-websocket-protocol", "set-cookie"]
        assert await peer.until(b"late") == b"\x81\x064early\x81\x054"


async def test_our_websocket_after_a_page() -> None:
    async with serving(answering()) as peer:
        await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await peer.response())[0] == 200
        await peer.send(b"GET /ours HTTP/1.1\r\n" + UPGRADE + b"\r\n" + frame(TEXT, b"4early"))
        assert (await peer.head())[0] == 101
        await peer.until(b"\x81\x064early")


async def test_a_plain_handshake_needs_no_h11(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_module, "h11", None)
    async with serving(answering()) as peer:
        await peer.send(b"GET /ours HTTP/1.1\r\n" + UPGRADE + b"\r\n" + frame(TEXT, b"4early"))
        assert (await peer.head())[0] == 101
        await peer.until(b"\x81\x064early")


# -- the wrapped application's WebSockets


@asynccontextmanager
async def bridged(app: ASGIApp, headers: bytes = b"", settings: Settings = SETTINGS) -> AsyncIterator[Peer]:
    async with serving(app, settings=settings) as peer:
        await peer.send(b"GET /app HTTP/1.1\r\n" + UPGRADE + headers + b"\r\n")
        yield peer


async def test_a_bridged_websocket() -> None:
    seen: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "websocket"
        assert scope["subprotocols"] == ["a", "b", "c"]
        assert await receive() == {"type": "websocket.connect"}
        await send({"type": "websocket.accept", "subprotocol": "b", "headers": [(b"x-own", b"1")]})
        seen.extend([await receive(), await receive(), await receive()])
        await send({"type": "websocket.send", "text": "t"})
        await send({"type": "websocket.send", "bytes": b"b"})
        await send({"type": "websocket.close", "code": 4001, "reason": "done"})
        seen.append(await receive())

    async with bridged(app, b"Sec-WebSocket-Protocol: a, b\r\nSec-WebSocket-Protocol: c\r\n") as peer:
        status, headers = await peer.head()
        assert (status, headers["sec-websocket-protocol"], headers["x-own"]) == (101, "b", "1")
        await peer.send(frame(TEXT, b"1") + frame(TEXT, b"2"))
        await peer.send(frame(2, b"3"))
        stream = peer.stream
        assert [await stream.frame() for _ in range(2)] == [(1, b"t"), (2, b"b")]
        assert await stream.frame() == (8, (4001).to_bytes(2, "big") + b"done")
        await peer.send(frame(CLOSE, (4001).to_bytes(2, "big")))
        assert await peer.rest() == b""
    assert seen[:3] == [
        {"type": "websocket.receive", "text": "1"},
        {"type": "websocket.receive", "text": "2"},
        {"type": "websocket.receive", "bytes": b"3"},
    ]
    assert seen[3]["type"] == "websocket.disconnect"


ENDS = {
    "a close": (frame(CLOSE, (4002).to_bytes(2, "big") + b"bye"), 4002, "bye"),
    "a bare close": (frame(CLOSE), 1005, ""),
    "a bad frame": (frame(3), 1002, "invalid WebSocket frame: invalid opcode"),
    "nothing": (b"", 1006, "transport close: the peer is gone without closing the WebSocket"),
}


@pytest.mark.parametrize(("data", "code", "reason"), ENDS.values(), ids=ENDS)
async def test_ends_of_a_bridged_websocket(data: bytes, code: int, reason: str) -> None:
    seen: list[Message] = []
    done = anyio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        seen.extend([await receive(), await receive()])
        with pytest.raises(OSError, match=r"."):
            await send({"type": "websocket.send", "text": "t"})
        done.set()

    async with bridged(app) as peer:
        await peer.head()
        if data:
            await peer.send(data)
        else:
            await peer.stream.aclose()
        with anyio.fail_after(PATIENCE):
            await done.wait()
        if data:
            await peer.stream.send_eof()
            await peer.rest()
    assert seen == [{"type": "websocket.disconnect", "code": code, "reason": reason}] * 2


async def test_a_bridged_websocket_that_is_refused() -> None:
    seen: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.close"})
        seen.append(await receive())

    async with bridged(app) as peer:
        assert (await peer.response())[0] == 403
        assert await peer.rest() == b""
    assert seen[0]["type"] == "websocket.disconnect"


async def test_a_bridged_websocket_that_is_refused_with_a_response() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert "websocket.http.response" in scope["extensions"]
        await receive()
        headers = [(b"content-length", b"4")]
        await send({"type": "websocket.http.response.start", "status": 418, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": b"te", "more_body": True})
        await send({"type": "websocket.http.response.body", "body": b"a!"})

    async with bridged(app) as peer:
        status, _, body = await peer.response()
        assert (status, body) == (418, b"tea!")
        assert await peer.rest() == b""


async def test_an_application_that_never_accepts_hears_that_the_peer_is_gone() -> None:
    seen: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend([await receive(), await receive()])

    async with bridged(app) as peer:
        await anyio.wait_all_tasks_blocked()
        await peer.stream.aclose()
    assert seen[1] == {"type": "websocket.disconnect", "code": 1006, "reason": ""}


@pytest.mark.parametrize("accepted", [True, False])
async def test_a_bridged_application_that_raises(accepted: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        if accepted:
            await send({"type": "websocket.accept"})
        raise ZeroDivisionError

    async with bridged(app) as peer:
        status, _ = await peer.head()
        if accepted:
            assert status == 101
            assert await peer.stream.close_code() == 1011
        else:
            assert status == 500
    assert "ZeroDivisionError" in caplog.text


BAD_BRIDGES: dict[str, list[Message]] = {
    "send first": [{"type": "websocket.send", "text": ""}],
    "two lines": [{"type": "websocket.accept", "headers": [(b"x", b"a\r\nb: c")]}],
    "a control character": [{"type": "websocket.accept", "headers": [(b"x", b"\0")]}],
    "HTTP": [{"type": "http.response.start", "status": 200}],
}


@pytest.mark.parametrize("messages", BAD_BRIDGES.values(), ids=BAD_BRIDGES)
async def test_bridged_applications_that_break_asgi(messages: list[Message], caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    async with bridged(app) as peer:
        assert (await peer.response())[0] == 500
    assert re.search("RuntimeError|InvalidHeaderValue", caplog.text)


async def test_a_bridged_application_that_accepts_twice(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.accept"})

    async with bridged(app) as peer:
        assert (await peer.head())[0] == 101
        assert await peer.stream.close_code() == 1011
    assert "unexpected ASGI message" in caplog.text


# -- draining


async def test_draining_ends_what_is_idle_and_lets_replies_go_out() -> None:
    go = anyio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/slow":
            await go.wait()
        await answering(b"late", headers=[(b"connection", b"keep-alive")])(scope, receive, send)

    host = Host()
    service = Service(Door(app), host, SETTINGS)
    async with linked() as (here, idle), linked() as (there, busy), anyio.create_task_group() as tg:
        tg.start_soon(service.serve, here)
        tg.start_soon(service.serve, there)
        await busy.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        await anyio.wait_all_tasks_blocked()
        host.stopping.set()
        service.wake_all()
        with pytest.raises(anyio.EndOfStream):
            await idle.receive()
        go.set()
        _, headers, _ = await Peer(busy, host).response()
        assert headers["connection"] == "close"
        with pytest.raises(anyio.EndOfStream):
            await busy.receive()


async def test_who_comes_after_draining_is_not_served() -> None:
    host = Host()
    host.drained.set()
    async with pair() as (here, there):
        await there.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await anyio.wait_all_tasks_blocked()
        await Service(Door(answering()), host, SETTINGS).serve(here)
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await there.receive()


async def test_draining_tells_bridged_websockets() -> None:
    seen: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        seen.append(await receive())

    host = Host()
    service = Service(Door(app), host, SETTINGS)
    async with linked() as (here, there), anyio.create_task_group() as tg:
        tg.start_soon(service.serve, here)
        peer = Peer(there, host)
        await peer.send(b"GET /app HTTP/1.1\r\n" + UPGRADE + b"\r\n")
        await peer.head()
        host.stopping.set()
        service.wake_all()
        assert await there.close_code() == 1001
        await peer.send(frame(CLOSE, (1001).to_bytes(2, "big")))
        assert await peer.rest() == b""
    assert seen == [{"type": "websocket.disconnect", "code": 1001, "reason": ""}]


# -- listeners


@asynccontextmanager
async def listening(
    listener: anyio.abc.Listener[Any], app: ASGIApp, settings: Settings = SETTINGS, host: Host | None = None
) -> AsyncIterator[Host]:
    host = host or Host()
    async with anyio.create_task_group() as tg:
        tg.start_soon(serve_listener, listener, Door(app), host, settings)
        yield host
        host.stopping.set()


async def scheme(scope: Scope, receive: Receive, send: Send) -> None:
    body = f"{scope['scheme']} {scope['client']} {scope['server']}".encode()
    await answering(body)(scope, receive, send)


async def test_tcp_with_a_real_client_and_websockets() -> None:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listening(listener, scheme), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        text = (await http.get("/")).text
        assert text.startswith("http ('127.0.0.1', ")
        assert text.endswith(f" ('127.0.0.1', {port})")
        websocket = await connect_websocket(http, f"http://127.0.0.1:{port}/ours", settings=SETTINGS)
        await websocket.send(["4" + "x" * 500_000])
        assert await websocket.receive() == ["4" + "x" * 500_000]
        await websocket.aclose()
    with pytest.raises(OSError, match=r"."):
        await anyio.connect_tcp("127.0.0.1", port)


PIECES: dict[str, list[bytes]] = {
    "all at once": [b"GET /ours HTTP/1.1\r\n" + UPGRADE + b"\r\n" + frame(TEXT, b"4early")],
    "a head in two": [b"GET /ours HTTP/1.1\r\n" + UPGRADE, b"\r\n" + frame(TEXT, b"4early")],
    "a frame in two": [b"GET /ours HTTP/1.1\r\n" + UPGRADE + b"\r\n\x81\x86\0\0", b"\0\x004early"],
    "late": [b"", b"GET /ours HTTP/1.1\r\n" + UPGRADE + b"\r\n" + frame(TEXT, b"4early")],
    "unusual": [b"GET http://x/ours HTTP/1.1\r\n" + UPGRADE + b"\r\n" + frame(TEXT, b"4early")],
}


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
async def test_handshakes_in_pieces(pieces: list[bytes]) -> None:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listening(listener, answering()) as host, await anyio.connect_tcp("127.0.0.1", port) as stream:
        for piece in pieces:
            await stream.send(piece)
            await anyio.wait_all_tasks_blocked()
        received = b""
        with anyio.fail_after(PATIENCE):
            while not received.endswith(b"\x81\x064early"):
                received += await stream.receive()
        assert received.startswith(b"HTTP/1.1 101 Switching Protocols\r\nDate: ")
    assert host.requests[0].scope["path"] == "/ours"


async def test_tls() -> None:
    ca = trustme.CA()
    server_tls, client_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    ca.issue_cert("localhost").configure_cert(server_tls)
    ca.configure_trust(client_tls)
    tcp = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = tcp.extra(anyio.abc.SocketAttribute.local_port)
    listener = TLSListener(tcp, server_tls, standard_compatible=False)
    async with listening(listener, scheme) as host, httpx.AsyncClient(verify=client_tls) as http:
        assert (await http.get(f"https://localhost:{port}/")).text.startswith("https ")
        websocket = await connect_websocket(http, f"https://localhost:{port}/ours", settings=SETTINGS)
        await websocket.send(["4x"])
        assert await websocket.receive() == ["4x"]
        await websocket.aclose()
    assert host.requests[0].scope["scheme"] == "wss"


async def test_a_unix_socket(tmp_path: Path) -> None:
    listener = await anyio.create_unix_listener(tmp_path / "s")
    async with listening(listener, scheme):
        transport = httpx.AsyncHTTPTransport(uds=str(tmp_path / "s"))
        async with httpx.AsyncClient(transport=transport) as http:
            assert (await http.get("http://x/")).text == f"http None ('{tmp_path / 's'}', None)"


async def test_no_more_connections_than_allowed() -> None:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listening(listener, answering(), Settings(max_connections=2)):
        request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        streams = [await anyio.connect_tcp("127.0.0.1", port) for _ in range(3)]
        for stream in streams[:2]:
            await stream.send(request)
            assert (await stream.receive()).startswith(b"HTTP/1.1 200")
        await streams[2].send(request)
        with anyio.move_on_after(0.05) as waiting:
            await streams[2].receive()
        assert waiting.cancelled_caught
        await streams[0].aclose()
        assert (await streams[2].receive()).startswith(b"HTTP/1.1 200")
        for stream in streams[1:]:
            await stream.aclose()


async def test_no_more_connections_from_one_address_than_allowed() -> None:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"

    async def ask(address: str) -> anyio.abc.SocketStream:
        raw = socket.socket()
        raw.bind((address, 0))
        raw.connect(("127.0.0.1", port))
        stream = await anyio.abc.SocketStream.from_socket(raw)
        await stream.send(request)
        return stream

    async def is_served(stream: anyio.abc.SocketStream) -> bool:
        try:
            return (await stream.receive()).startswith(b"HTTP/1.1 200")
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return False

    async with (
        listening(listener, answering(), Settings(max_connections_per_address=2)),
        await ask("127.0.0.1") as first,
        await ask("127.0.0.2") as other,
    ):
        assert await is_served(first)
        assert await is_served(other)
        async with await ask("127.0.0.1") as second, await ask("127.0.0.1") as third:
            assert await is_served(second)
            assert not await is_served(third)
        served = False
        with anyio.fail_after(PATIENCE):
            # once the server has noticed that one has gone
            while not served:
                async with await ask("127.0.0.1") as again:
                    served = await is_served(again)


class FailingListener(anyio.abc.SocketListener):
    """Accepts nothing, in several ways, and then a stream."""

    def __init__(self, outcomes: Iterator[Any]) -> None:
        self._outcomes = outcomes
        self._socket = socket.socket()

    @property
    def _raw_socket(self) -> socket.socket:
        return self._socket

    async def accept(self) -> Any:
        await anyio.lowlevel.checkpoint()
        outcome = next(self._outcomes, None)
        if outcome is None:
            await anyio.sleep_forever()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def aclose(self) -> None:
        self._socket.close()
        await anyio.lowlevel.checkpoint()


async def test_a_failing_accept_does_not_end_the_server(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listener_module, "_ACCEPT_PAUSE", 0)
    broken = anyio.BrokenResourceError()
    broken.__cause__ = OSError(errno.EMFILE, "too many open files")
    async with linked() as (here, there):
        outcomes = [OSError(errno.ECONNABORTED, "aborted"), OSError(errno.ENFILE, "no files"), broken, here]
        listener = MultiListener([FailingListener(iter(outcomes))])
        async with listening(listener, answering()):
            await there.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert (await there.receive()).startswith(b"HTTP/1.1 200")
    assert [record.getMessage().rpartition(" ")[2] for record in caplog.records] == ["files", "files"]


async def test_any_other_listener() -> None:
    class Other(anyio.abc.Listener[MemoryStream]):
        async def serve(self, handler: Any, task_group: Any = None) -> None:
            task_group.start_soon(handler, here)

        async def aclose(self) -> None:
            await anyio.lowlevel.checkpoint()

    async with linked() as (here, there), listening(Other(), answering()):
        await there.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await there.receive()).startswith(b"HTTP/1.1 200")


async def test_a_bug_in_one_connection_is_not_the_end_of_the_others(caplog: pytest.LogCaptureFixture) -> None:
    class Strange(MemoryStream):
        async def receive(self, max_bytes: int = 65536) -> bytes:
            raise ZeroDivisionError

    async with linked() as (here, _):
        here.__class__ = Strange
        await Service(Door(answering()), Host(), SETTINGS).serve(here)
    assert "this is a bug" in caplog.text
