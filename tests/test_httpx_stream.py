"""The WebSocket handshake through httpx, against servers on the loopback that answer by hand."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import httpcore
import httpx
import pytest
import trustme
from anyio.streams.tls import TLSListener
from websockets.extensions.permessage_deflate import enable_server_permessage_deflate
from websockets.protocol import Side, State
from websockets.server import ServerProtocol

from brightsocket_anyio.errors import ConnectionLost, HandshakeError
from brightsocket_anyio.settings import Settings
from brightsocket_anyio.transports.core import Core
from brightsocket_anyio.transports.httpx_stream import HttpxStream, connect_websocket
from brightsocket_anyio.transports.websocket import WebSocket

Serve = Callable[[anyio.abc.ByteStream], Awaitable[None]]
SETTINGS = Settings()


@asynccontextmanager
async def serving(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server that gives each connection to a function; its URL."""
    listener: anyio.abc.Listener[anyio.abc.SocketStream] = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tg:
        if tls is None:
            tg.start_soon(listener.serve, serve)
        else:
            tg.start_soon(TLSListener(listener, tls, standard_compatible=False).serve, serve)
        yield f"{'http' if tls is None else 'https'}://localhost:{port}/socket.io/?x=1"
        tg.cancel_scope.cancel()


async def head_of(stream: anyio.abc.ByteStream) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        head += await stream.receive()
    return head


def answering(answer: bytes) -> Serve:
    async def serve(stream: anyio.abc.ByteStream) -> None:
        async with stream:
            await head_of(stream)
            await stream.send(answer)

    return serve


async def accept(stream: anyio.abc.ByteStream, settings: Settings = SETTINGS, extra: bytes = b"") -> WebSocket:
    """The server's side of a handshake.

    :param extra: bytes that go out in one write with the answer.
    """
    core = ServerProtocol(extensions=enable_server_permessage_deflate(None) if settings.compression else None)
    core.receive_data(await head_of(stream))
    (request,) = core.events_received()
    core.send_response(core.accept(request))  # type: ignore[arg-type]
    assert core.state is State.OPEN
    await stream.send(b"".join(core.data_to_send()) + extra)
    return WebSocket(stream, Core(Side.SERVER, core.extensions, settings), settings)


async def echo(stream: anyio.abc.ByteStream, settings: Settings = SETTINGS) -> None:
    async with stream:
        websocket = await accept(stream, settings)
        try:
            while True:
                await websocket.send(await websocket.receive())
        except (anyio.EndOfStream, ConnectionLost):
            await websocket.aclose()


async def test_messages_both_ways_and_the_pool_is_free_afterwards() -> None:
    limits = httpx.Limits(max_connections=1)
    async with serving(echo) as url, httpx.AsyncClient(limits=limits, timeout=httpx.Timeout(5, pool=0.001)) as http:
        for _ in range(3):
            websocket = await connect_websocket(http, url, settings=SETTINGS)
            with pytest.raises(HandshakeError, match="PoolTimeout"):
                await connect_websocket(http, url, settings=SETTINGS)
            messages: list[str | bytes] = ["x" * 100_000, b"\x00" * 100_000, ""]
            await websocket.send(messages)
            received: list[str | bytes] = []
            while len(received) < 3:
                received += await websocket.receive()
            assert received == messages
            await websocket.aclose()
            with pytest.raises(anyio.ClosedResourceError):
                await websocket.receive()


async def test_the_pool_is_free_after_a_cancelled_close() -> None:
    limits = httpx.Limits(max_connections=1)
    async with serving(echo) as url, httpx.AsyncClient(limits=limits) as http:
        for _ in range(2):
            websocket = await connect_websocket(http, url, settings=SETTINGS)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await websocket.aclose()


async def test_compression_when_both_want_it() -> None:
    settings = Settings(compression=True)

    async def serve(stream: anyio.abc.ByteStream) -> None:
        await echo(stream, settings)

    async with serving(serve) as url, httpx.AsyncClient() as http:
        for mine in settings, SETTINGS:
            websocket = await connect_websocket(http, url, settings=mine)
            await websocket.send(["x" * 10_000])
            assert await websocket.receive() == ["x" * 10_000]
            await websocket.aclose()


async def test_frames_that_come_with_the_answer() -> None:
    async def serve(stream: anyio.abc.ByteStream) -> None:
        async with stream:
            websocket = await accept(stream, extra=b"\x81\x01x\x81\x01y")
            with pytest.raises(anyio.EndOfStream):
                await websocket.receive()
            await websocket.aclose()

    async with serving(serve) as url, httpx.AsyncClient() as http:
        websocket = await connect_websocket(http, url.replace("http", "ws", 1), settings=SETTINGS)
        received: list[str | bytes] = []
        while len(received) < 2:
            received += await websocket.receive()
        assert received == ["x", "y"]
        await websocket.aclose()


async def test_what_the_users_client_brings() -> None:
    heads: list[bytes] = []

    async def serve(stream: anyio.abc.ByteStream) -> None:
        async with stream:
            heads.append(await head_of(stream))
            await stream.send(b"HTTP/1.1 403 Forbidden\r\nSet-Cookie: new=2\r\nContent-Length: 0\r\n\r\n")

    async with serving(serve) as url:
        client = httpx.AsyncClient(auth=("user", "secret"), cookies={"sticky": "1"}, headers={"X-Own": "a"})
        async with client as http:
            with pytest.raises(HandshakeError) as caught:
                await connect_websocket(http, url, settings=SETTINGS, headers={"X-More": "b"})
            assert http.cookies["new"] == "2"
    assert caught.value.status == 403
    assert "x=1" not in str(caught.value)
    head = heads[0].lower()
    assert head.startswith(b"get /socket.io/?x=1 http/1.1\r\nhost: localhost:")
    for line in (b"authorization: basic ", b"cookie: sticky=1", b"x-own: a", b"x-more: b", b"connection: upgrade\r\n"):
        assert b"\r\n" + line in head
    assert b"upgrade: websocket\r\nconnection" in head or b"connection: upgrade\r\n" in head
    assert b"sec-websocket-extensions" not in head


async def test_tls_by_the_users_client() -> None:
    ca = trustme.CA()
    server_tls, client_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    ca.issue_cert("localhost").configure_cert(server_tls)
    ca.configure_trust(client_tls)
    async with serving(echo, server_tls) as url, httpx.AsyncClient(verify=client_tls) as http:
        websocket = await connect_websocket(http, url, settings=SETTINGS)
        await websocket.send(["x"])
        assert await websocket.receive() == ["x"]
        await websocket.aclose()


ANSWERS = {
    "not found": (b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nno\r\nsuch\n", 404, "404 Not Found: no such"),
    "a page": (b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n" + b"x" * 9000, 200, "200 OK: x{200}$"),
    "a huge page": (b"HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\n" + b"x" * 9000, 200, "200 OK$"),
    "an endless page": (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 9000, 200, "200 OK$"),
    "a short body": (b"HTTP/1.1 500 \r\nContent-Length: 9\r\n\r\nx", 500, "answered 500: x$"),
    "a redirect": (b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", 302, "302 Found$"),
    "no upgrade": (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", 101, "handshake: missing Connection"),
    "another key": (
        b"HTTP/1.1 101 \r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9k=\r\n\r\n",
        101,
        "Sec-WebSocket-Accept",
    ),
    "not HTTP": (b"220 mail.example ESMTP\r\n\r\n", None, "cannot connect to http://localhost:"),
    "nothing": (b"", None, "cannot connect to http://localhost:"),
}


@pytest.mark.parametrize(("answer", "status", "message"), ANSWERS.values(), ids=ANSWERS)
async def test_answers_that_are_no_websocket(answer: bytes, status: int | None, message: str) -> None:
    limits = httpx.Limits(max_connections=1)
    async with serving(answering(answer)) as url, httpx.AsyncClient(limits=limits) as http:
        for _ in range(2):
            with pytest.raises(HandshakeError, match=message) as caught:
                await connect_websocket(http, url, settings=SETTINGS)
            assert caught.value.status == status


async def test_nobody_listens() -> None:
    async with serving(echo) as url:
        pass
    async with httpx.AsyncClient() as http:
        with pytest.raises(HandshakeError, match="cannot connect") as caught:
            await connect_websocket(http, url, settings=SETTINGS)
    assert caught.value.status is None


async def test_a_hook_that_raises_for_the_status() -> None:
    async def check(response: httpx.Response) -> None:
        response.raise_for_status()

    http = httpx.AsyncClient(event_hooks={"response": [check]})
    async with serving(answering(ANSWERS["not found"][0])) as url, http:
        with pytest.raises(HandshakeError, match="404") as caught:
            await connect_websocket(http, url, settings=SETTINGS)
    assert caught.value.status == 404


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(400, extensions={"http_version": b"HTTP/2"}),
        httpx.LocalProtocolError("Connection-specific header field present: b'connection'."),
    ],
)
async def test_http_2_has_no_websocket_for_us(answer: httpx.Response | httpx.HTTPError) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        if isinstance(answer, httpx.HTTPError):
            raise answer
        return answer

    async with httpx.AsyncClient(transport=httpx.MockTransport(handle)) as http:
        with pytest.raises(HandshakeError, match=r"needs HTTP/1\.1"):
            await connect_websocket(http, "https://x/", settings=SETTINGS)


async def test_a_transport_without_a_network_stream() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        server = ServerProtocol()
        lines = [f"{name}: {value}" for name, value in request.headers.items()]
        server.receive_data("\r\n".join(["GET / HTTP/1.1", *lines, "", ""]).encode())
        (event,) = server.events_received()
        answer = server.accept(event)  # type: ignore[arg-type]
        return httpx.Response(101, headers=list(answer.headers.raw_items()))

    async with httpx.AsyncClient(transport=httpx.MockTransport(handle)) as http:
        with pytest.raises(HandshakeError, match="network stream"):
            await connect_websocket(http, "http://x/", settings=SETTINGS)


async def test_cancelled_in_the_handshake_the_pool_is_free() -> None:
    waiting = anyio.Event()

    async def serve(stream: anyio.abc.ByteStream) -> None:
        async with stream:
            await head_of(stream)
            waiting.set()
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await stream.receive()

    limits = httpx.Limits(max_connections=1)
    async with serving(serve) as url, httpx.AsyncClient(limits=limits) as http:
        for _ in range(2):
            waiting = anyio.Event()
            async with anyio.create_task_group() as tg:

                async def connect() -> None:
                    await connect_websocket(http, url, settings=SETTINGS)

                tg.start_soon(connect)
                await waiting.wait()
                tg.cancel_scope.cancel()


class Network(httpcore.AsyncNetworkStream):
    """A network stream that answers from a list, and notes the timeouts that it was given."""

    def __init__(self, answers: list[bytes | Exception]) -> None:
        self.answers = answers
        self.timeouts: list[float | None] = []

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self.timeouts.append(timeout)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self.read(len(buffer), timeout)


async def test_the_timeouts_of_httpx_do_not_reach_the_open_websocket() -> None:
    network = Network([b"x", b"", b"", httpcore.ReadError("gone"), httpcore.WriteError("gone")])
    response = httpx.Response(101, request=httpx.Request("GET", "http://x/"))
    response.is_closed = False
    stream = HttpxStream(response, network)
    assert await stream.receive(1) == b"x"
    with pytest.raises(anyio.EndOfStream):
        await stream.receive()
    await stream.send(b"x")
    with pytest.raises(anyio.BrokenResourceError, match="gone"):
        await stream.receive()
    with pytest.raises(anyio.BrokenResourceError, match="gone"):
        await stream.send(b"x")
    assert network.timeouts == [None] * 5
    with pytest.raises(NotImplementedError):
        await stream.send_eof()
    response.is_closed = True
    network.answers = [httpcore.ReadError(), httpcore.WriteError()]
    with pytest.raises(anyio.ClosedResourceError):
        await stream.receive()
    with pytest.raises(anyio.ClosedResourceError):
        await stream.send(b"x")


async def test_a_server_that_goes_away() -> None:
    async def serve(stream: anyio.abc.ByteStream) -> None:
        await accept(stream)
        await anyio.aclose_forcefully(stream)

    async with serving(serve) as url, httpx.AsyncClient() as http:
        websocket = await connect_websocket(http, url, settings=SETTINGS)
        with pytest.raises(ConnectionLost):
            await websocket.receive()
        await websocket.aclose()
