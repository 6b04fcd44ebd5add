"""What the embedded server does with a connection: HTTP/1.1, by h11, in front of an ASGI application.

Our own WebSockets go straight from the handshake to the stream transport; those of a wrapped application are bridged to
its ASGI ``websocket`` scope. One task serves a connection from its first request to its last.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Literal, Protocol
from urllib.parse import unquote

import anyio
import anyio.abc
import h11
from anyio.lowlevel import checkpoint
from anyio.streams.tls import TLSAttribute
from websockets.datastructures import Headers
from websockets.exceptions import InvalidHeader
from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import enable_server_permessage_deflate
from websockets.http11 import Request, Response
from websockets.protocol import Side
from websockets.server import ServerProtocol

from .asgi import BodyPatience
from .errors import ConnectionLost, ProtocolError
from .opening import Opening, answer_head, read_opening
from .settings import Settings
from .transport import Headers as HeaderList
from .transport import Message, Receive, Scope, Send, WebSocketRequest
from .transports.core import Core
from .transports.sockets import prompt_stream
from .transports.stream import StreamTransport
from .transports.websocket import READ_SIZE, STREAM_ERRORS, WebSocket, half_close, send_all

logger: logging.Logger = logging.getLogger(__name__)

#: seconds that we read on after an early answer, so that the connection is not reset before the peer has read it
LINGER_TIMEOUT = 2.0

_SERVER = b"brightsocket"
_UPGRADE_REFUSED: list[tuple[bytes, bytes]] = [(b"content-type", b"application/json")]


class Door(Protocol):
    """The ASGI application that answers HTTP, and says which WebSockets are ours."""

    def matches(self, scope: Scope) -> bool:
        """Whether a request is for the API, rather than for the application that it wraps."""
        ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


class Host(Protocol):
    """What serves our WebSockets: a :class:`~brightsocket_anyio.server.Server`."""

    @property
    def stopping(self) -> anyio.Event:
        """Set when the server begins to drain."""
        ...

    @property
    def drained(self) -> anyio.Event:
        """Set when the server's sessions are over. Until then, polling clients need their connections."""
        ...

    async def handle_websocket(self, request: WebSocketRequest) -> None: ...


class ClientGone(OSError):
    """Raised by ASGI's ``send`` where the client takes no more; an application may let it pass."""


class Service:
    """What the connections of a listener share."""

    def __init__(self, door: Door, host: Host, settings: Settings) -> None:
        self.door = door
        self.host = host
        self.settings = settings
        # one for all, since to make one takes as long as what it does
        self._negotiator = ServerProtocol(
            extensions=enable_server_permessage_deflate(None) if settings.compression else None
        )
        self._waiting: dict[anyio.CancelScope, anyio.Event] = {}

    @property
    def drained(self) -> bool:
        return self.host.drained.is_set()

    def negotiate(self, request: Request) -> tuple[Response, Sequence[Extension]]:
        """The answer to a WebSocket's handshake, and the extensions that were agreed on."""
        answer = self._negotiator.accept(request)
        # which would keep the frames of a failure
        self._negotiator.handshake_exc = None
        return answer, self._negotiator.extensions

    @contextlib.contextmanager
    def waiting(self, scope: anyio.CancelScope, end: anyio.Event) -> Iterator[None]:
        """What is done in here is a wait that an event of the host's ends, by cancelling the scope around it."""
        if end.is_set():
            scope.cancel()
        self._waiting[scope] = end
        try:
            yield
        finally:
            del self._waiting[scope]

    def wake_all(self) -> None:
        """End every wait whose event has come."""
        for scope, end in self._waiting.items():
            if end.is_set():
                scope.cancel()

    async def serve(self, stream: anyio.abc.ByteStream) -> None:
        """Serve one connection and close it. What fails in here fails alone."""
        try:
            upgrade = await _Connection(stream, self).run()
            if upgrade is not None:
                # a WebSocket outlives what has served its handshake, by which an idle one would be twice as large
                await upgrade.run()
        except Exception:
            logger.exception("a connection failed: this is a bug of the server's")


class _BadRequest(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Connection:
    """One connection: reads requests, one after the other, and has them answered."""

    __slots__ = (
        "_bodiless",
        "_client",
        "_first",
        "_http",
        "_opening",
        "_pipelined",
        "_secure",
        "_server",
        "_writing",
        "eof",
        "lost",
        "service",
        "stream",
    )

    def __init__(self, stream: anyio.abc.ByteStream, service: Service) -> None:
        self.stream = stream
        self.service = service
        #: what was read before there was an h11 connection
        self._first = b""
        self._opening: Opening | None = None
        self._http: h11.Connection | None = None
        #: the peer sends no more; it may still read
        self.eof = False
        #: nothing more can be written
        self.lost = False
        self._writing: anyio.Lock | None = None
        self._bodiless = False
        self._pipelined = 0
        # once, since AnyIO asks the system for all of them each time
        attributes = stream.extra_attributes
        remote = attribute_of(attributes, anyio.abc.SocketAttribute.remote_address)
        local = attribute_of(attributes, anyio.abc.SocketAttribute.local_address)
        self._secure = attribute_of(attributes, TLSAttribute.ssl_object) is not None
        self._client = (remote[0], remote[1]) if isinstance(remote, tuple) else None
        self._server = (local[0], local[1]) if isinstance(local, tuple) else (str(local), None) if local else None

    async def run(self) -> _Upgrade | None:
        """Answer requests, until the connection is closed or one asks for a WebSocket, which is returned."""
        linger = False
        upgrade: _Upgrade | None = None
        try:
            self._first = await self._begin()
            if not self._first:
                return None
            self._opening = read_opening(self._first, self.service.settings)
            if self._opening is not None:
                upgrade = self._open(self._opening)
                return upgrade
            while (request := await self._next_request()) is not None:
                headers = [(bytes(name), bytes(value)) for name, value in request.headers]
                self._check(request, headers)
                if _wants_websocket(request, headers):
                    upgrade = await self._upgrade(request, headers)
                    break
                if not await self._answer(request, headers):
                    linger = self.http.their_state in (h11.SEND_BODY, h11.ERROR)
                    break
        except _BadRequest as exc:
            linger = True
            await self.reply(exc.status, [], f"{exc}\n".encode())
        except ConnectionLost as exc:
            logger.debug("connection lost: %s", exc)
        finally:
            if upgrade is None:
                await self.close(linger=linger)
        return upgrade

    # -- input and output

    @property
    def http(self) -> h11.Connection:
        """Made where it is needed, which it mostly is not; then it has seen what has been read."""
        if self._http is None:
            self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=self.service.settings.max_head_size)
            self._http.receive_data(self._first)
            self._first = b""
            if self._opening is not None:
                while not isinstance(self._http.next_event(), h11.EndOfMessage):
                    pass
        return self._http

    @property
    def leading(self) -> bytes:
        """What has come after the request."""
        if self._http is None and self._opening is not None:
            return self._opening.leading
        return self.http.trailing_data[0]

    async def read(self) -> bytes:
        """Read once, into h11's buffer too; empty when the peer sends no more."""
        data = await self._receive()
        self.http.receive_data(data)
        return data

    async def _receive(self) -> bytes:
        try:
            return await self.stream.receive(READ_SIZE)
        except STREAM_ERRORS:
            self.eof = True
            return b""

    async def wait_gone(self) -> None:
        """Wait until the peer sends no more; what it sends meanwhile is kept, as far as that is little."""
        while not self.eof:
            if self._pipelined > READ_SIZE:
                await anyio.sleep_forever()
            self._pipelined += len(await self.read())

    async def write(self, data: bytes) -> None:
        """:raises ConnectionLost: the peer is gone, or takes nothing for the stall timeout."""
        # an application that sends and sends to a peer that takes it all would keep everybody else waiting
        await checkpoint()
        if self._writing is None:
            self._writing = anyio.Lock(fast_acquire=True)
        async with self._writing:
            if self.lost:
                raise ConnectionLost("transport error", "the connection was lost earlier")
            self.lost = True
            await send_all(self.stream, data, self.service.settings.stall)
            self.lost = False

    async def reply(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        """Answer for the application, if nothing has been answered yet; the connection ends with it."""
        if self.http.our_state not in (h11.IDLE, h11.SEND_RESPONSE) or self.lost:
            return
        headers = [*(headers or [(b"content-type", b"text/plain; charset=utf-8")]), (b"connection", b"close")]
        head = _head(status, [*headers, (b"content-length", b"%d" % len(body))])
        data = self.http.send(head)
        if not self._bodiless:
            data += self.http.send(h11.Data(body))
        await self.write(data + self.http.send(h11.EndOfMessage()))

    async def close(self, *, linger: bool = False) -> None:
        """Close the connection. :param linger: read on for a while, so that the peer gets to read the answer."""
        linger = linger and not self.lost and not self.eof
        closed = False
        try:
            with anyio.move_on_after(self.service.settings.close_timeout):
                if linger:
                    await self._linger()
                if not self.lost:
                    await self.stream.aclose()
                    closed = True
        except STREAM_ERRORS:
            pass
        finally:
            if not closed:
                with contextlib.suppress(*STREAM_ERRORS):
                    await anyio.aclose_forcefully(self.stream)

    async def _linger(self) -> None:
        await half_close(self.stream)
        with anyio.move_on_after(LINGER_TIMEOUT):
            while True:
                await self.stream.receive(READ_SIZE)

    # -- requests

    async def _begin(self) -> bytes:
        """The first bytes; empty when none come."""
        # whoever connects has mostly sent them by now
        prompt = None if self.service.drained else prompt_stream(self.stream)
        data = b"" if prompt is None else prompt.receive_nowait(READ_SIZE)
        return data or await self._wait(self.service.settings.head_timeout)

    async def _wait(self, patience: float) -> bytes:
        """Wait for a request to begin: its first bytes; empty when none come."""
        with anyio.CancelScope() as scope, self.service.waiting(scope, self.service.host.drained):
            scope.deadline = anyio.current_time() + patience
            return await self._receive()
        return b""

    async def _next_request(self) -> h11.Request | None:
        """Wait for a request: ``None`` when there will be none."""
        self._bodiless = False
        self._pipelined = len(self.http.trailing_data[0])
        settings = self.service.settings
        if not self._pipelined:
            data = await self._wait(settings.keep_alive_timeout)
            if not data:
                return None
            self.http.receive_data(data)
        event = self._next_event()
        if event is h11.NEED_DATA:
            with anyio.move_on_after(settings.head_timeout):
                while event is h11.NEED_DATA and await self.read():
                    event = self._next_event()
        if event is h11.NEED_DATA and not self.eof:
            raise _BadRequest(408, "the request's headers took too long")
        return event if isinstance(event, h11.Request) else None

    def _next_event(self) -> Any:
        try:
            return self.http.next_event()
        except h11.RemoteProtocolError as exc:
            if exc.error_status_hint == 431 and b"\n" not in self.http.trailing_data[0]:
                raise _BadRequest(414, "the request's first line is too long") from exc
            raise _BadRequest(exc.error_status_hint, str(exc)) from exc

    def _check(self, request: h11.Request, headers: HeaderList) -> None:
        self._bodiless = request.method == b"HEAD"
        if request.method == b"CONNECT":
            raise _BadRequest(405, "this is no proxy")
        if {b"content-length", b"transfer-encoding"} <= {name for name, _ in headers}:
            # RFC 9112, section 6.1: somebody on the way may have seen another request here
            raise _BadRequest(400, "Content-Length and Transfer-Encoding exclude each other")

    async def _answer(self, request: h11.Request, headers: HeaderList) -> bool:
        """Have a request answered; returns whether another one may follow."""
        exchange = _Exchange(self, request.method)
        scope = self._scope(request.target, headers, request.http_version)
        scope["type"] = "http"
        scope["method"] = request.method.decode("latin-1").upper()
        scope["scheme"] = "https" if self._secure else "http"
        scope["extensions"] = {}
        await exchange.run(scope)
        return exchange.finish()

    def _scope(self, target: bytes, headers: HeaderList, version: bytes = b"1.1") -> Scope:
        """What the scopes of HTTP and of WebSockets have in common."""
        if target.startswith((b"http://", b"https://")):  # as proxies ask
            target = b"/" + target.partition(b"://")[2].partition(b"/")[2]
        path, _, query = target.partition(b"?")
        return {
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": version.decode(),
            "path": unquote(path.decode("latin-1")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": headers,
            "client": self._client,
            "server": self._server,
            "state": {},
        }

    def _open(self, opening: Opening) -> _Upgrade:
        """Begin a WebSocket handshake that was understood at sight."""
        scope = self._websocket_scope(opening.target, opening.headers, [])
        return _Upgrade(self, scope, (), answer_head(opening.accept, _date()))

    def _websocket_scope(self, target: bytes, headers: HeaderList, subprotocols: list[str]) -> Scope:
        scope = self._scope(target, headers)
        scope["type"] = "websocket"
        scope["scheme"] = "wss" if self._secure else "ws"
        scope["subprotocols"] = subprotocols
        scope["extensions"] = {"websocket.http.response": {}}
        return scope

    async def _upgrade(self, request: h11.Request, headers: HeaderList) -> _Upgrade | None:
        """Begin a WebSocket handshake, or turn it down."""
        try:
            decoded = Headers([(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers])
        except InvalidHeader as exc:  # websockets is stricter than h11
            raise _BadRequest(400, f"a header has characters that none may have: {exc.name}") from exc
        version = f"HTTP/{request.http_version.decode()}"
        answer, extensions = self.service.negotiate(Request(request.target.decode("latin-1"), decoded, "GET", version))
        if answer.status_code != 101:
            wanted = [(name.encode(), value.encode()) for name, value in answer.headers.raw_items()]
            hop = (b"connection", b"content-length", b"date")
            own = [(name, value) for name, value in wanted if name.lower() not in hop]
            await self.reply(answer.status_code, own, bytes(answer.body))
            return None
        if not isinstance(self._next_event(), h11.EndOfMessage):
            raise _BadRequest(400, "a WebSocket handshake has no body")
        subprotocols = [
            word.strip()
            for value in decoded.get_all("Sec-WebSocket-Protocol")
            for word in value.split(",")
            if word.strip()
        ]
        scope = self._websocket_scope(request.target, headers, subprotocols)
        return _Upgrade(self, scope, extensions, answer.serialize().removesuffix(b"\r\n"))


class _Upgrade:
    """A WebSocket handshake that waits for its answer; a :class:`~brightsocket_anyio.transport.WebSocketRequest`."""

    __slots__ = (
        "_pending",
        "_service",
        "_stream",
        "_websocket",
        "answered",
        "scope",
    )

    at_home: bool = True

    def __init__(self, connection: _Connection, scope: Scope, extensions: Sequence[Extension], answer: bytes) -> None:
        self.scope = scope
        self.answered = False
        self._stream = connection.stream
        self._service = connection.service
        #: until there is a WebSocket
        self._pending: tuple[_Connection, Sequence[Extension], bytes] | None = (connection, extensions, answer)
        self._websocket: WebSocket | None = None

    async def run(self) -> None:
        """Have the request answered, and the WebSocket served; close the connection."""
        try:
            try:
                if self._service.door.matches(self.scope):
                    await self._service.host.handle_websocket(self)
                else:
                    await _Bridge(self._connection, self).run()
            except Exception:
                logger.exception("a WebSocket request failed: %s", self.scope["path"])
            if not self.answered and not self._connection.eof:
                with contextlib.suppress(ConnectionLost):
                    await self._connection.reply(500, [], b"Internal Server Error\n")
        finally:
            if self._pending is not None:
                await self._connection.close()
            elif self._websocket is None or not self._websocket.closed:
                with contextlib.suppress(*STREAM_ERRORS):
                    await anyio.aclose_forcefully(self._stream)

    @property
    def _connection(self) -> _Connection:
        assert self._pending is not None
        return self._pending[0]

    def open(self, headers: Sequence[tuple[bytes, bytes]] = (), subprotocol: str | None = None) -> WebSocket:
        """Accept, with further headers in the answer, which is the WebSocket's to send."""
        assert self._pending is not None
        connection, extensions, answer = self._pending
        if any(character in value for _, value in headers for character in b"\r\n"):
            raise RuntimeError("a header's value is one line")
        head = b"%bServer: %b\r\n%b" % (answer, _SERVER, _further(headers, subprotocol))
        self.answered = True
        leading = connection.leading
        self._pending = None
        settings = self._service.settings
        core = Core(Side.SERVER, extensions, settings)
        self._websocket = WebSocket(self._stream, core, settings, leading=leading, head=head)
        return self._websocket

    async def wait_gone(self) -> None:
        await self._connection.wait_gone()

    async def accept(
        self, eio: Literal[3, 4], headers: HeaderList = (), subprotocol: str | None = None
    ) -> StreamTransport:
        return StreamTransport(self.open(headers, subprotocol), eio)

    async def reject(self, status: int, body: bytes, headers: HeaderList = ()) -> None:
        self.answered = True
        # a peer that is gone needs no answer
        with contextlib.suppress(ConnectionLost):
            await self._connection.reply(status, [*_UPGRADE_REFUSED, *headers], body)


class _Exchange:
    """One HTTP request and its response, as ASGI's ``receive`` and ``send``."""

    def __init__(self, connection: _Connection, method: bytes) -> None:
        self._connection = connection
        self._http = connection.http
        self._method = method
        self._start: h11.Response | None = None
        self._bodiless = method == b"HEAD"
        self._started = False
        #: the response is complete, or is not going to be
        self._over = False
        self._body_read = False
        self._patience = BodyPatience(connection.service.settings)
        self._receiving = anyio.Lock(fast_acquire=True)
        self._reading: anyio.CancelScope | None = None

    async def run(self, scope: Scope) -> None:
        """Have the application answer, and answer for it where it does not."""
        try:
            await self._connection.service.door(scope, self.receive, self.send)
        except ClientGone as exc:
            logger.debug("client gone: %s", exc)
        except Exception:
            logger.exception("the application failed: %s %s", scope["method"], scope["path"])
            await self._fail()
        else:
            if not self._over and self._connection.eof:
                self._connection.lost = True
            elif not self._over:
                logger.error("the application sent no complete response: %s %s", scope["method"], scope["path"])
                await self._fail()

    def finish(self) -> bool:
        """Whether the connection can take another request."""
        http = self._http
        if self._connection.lost:
            return False
        with contextlib.suppress(h11.RemoteProtocolError):
            while http.their_state is h11.SEND_BODY and http.next_event() is not h11.NEED_DATA:
                pass
        if http.our_state is not h11.DONE or http.their_state is not h11.DONE or self._connection.service.drained:
            return False
        http.start_next_cycle()
        return True

    async def _fail(self) -> None:
        self._finish()
        if self._started:
            self._connection.lost = True
            return
        with contextlib.suppress(ConnectionLost):
            await self._connection.reply(500, [], b"Internal Server Error\n")

    def _finish(self) -> None:
        self._over = True
        if self._reading is not None:
            self._reading.cancel()

    # -- the request's body, and the peer's going away

    async def receive(self) -> Message:
        async with self._receiving:
            message: Message | None = None
            with anyio.CancelScope() as self._reading:
                if not self._over and not self._body_read:
                    message = await self._receive_body()
                if message is None and not self._over:
                    await self._connection.wait_gone()
            return message or {"type": "http.disconnect"}

    async def _receive_body(self) -> Message | None:
        body = bytearray()
        while len(body) < READ_SIZE:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as exc:
                await self._refuse(exc.error_status_hint, str(exc))
                return None
            if isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                self._body_read = True
                return {"type": "http.request", "body": bytes(body), "more_body": False}
            elif event is not h11.NEED_DATA:
                return None
            elif body:
                break
            elif not await self._read_body():
                return None
        return {"type": "http.request", "body": bytes(body), "more_body": True}

    async def _read_body(self) -> bool:
        if self._http.they_are_waiting_for_100_continue and not self._started:
            await self._write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])))
        start = anyio.current_time()
        data: bytes | None = None
        with anyio.move_on_after(self._patience.seconds):
            data = await self._connection.read()
        if data is None:
            await self._refuse(408, "the request's body took too long")
            return False
        self._patience.go_on(anyio.current_time() - start, len(data))
        return bool(data)

    async def _refuse(self, status: int, message: str) -> None:
        """Answer for the application: the request is no good."""
        self._over = True
        if not self._connection.eof and not self._started:
            with contextlib.suppress(ConnectionLost):
                await self._connection.reply(status, [], f"{message}\n".encode())

    # -- the response

    async def send(self, message: Message) -> None:
        if self._connection.lost or (self._over and self._http.our_state is not h11.DONE):
            raise ClientGone("the response cannot be sent any more")
        match message["type"]:
            case "http.response.start":
                if self._start is not None or self._started:
                    raise RuntimeError("http.response.start was sent twice")
                self._start = self._response(message)
            case "http.response.body":
                if self._over or (self._start is None and not self._started):
                    raise RuntimeError("http.response.body was sent outside of a response")
                await self._send_body(message.get("body", b""), message.get("more_body", False))
            case kind:
                raise RuntimeError(f"unexpected ASGI message: {kind}")

    def _response(self, message: Message) -> h11.Response:
        headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
        if self._connection.service.drained:
            headers = [(name, value) for name, value in headers if name.lower() != b"connection"]
            headers.append((b"connection", b"close"))
        self._bodiless = self._bodiless or message["status"] in (204, 304)
        return _head(message["status"], headers)

    async def _send_body(self, body: bytes, more: bool) -> None:
        data = b""
        if self._start is not None:
            # the head waits for the first of the body: most responses are one write
            data = self._http.send(self._start)
            self._start = None
            self._started = True
        if body and not self._bodiless:
            data += self._http.send(h11.Data(body))
        if not more:
            data += self._http.send(h11.EndOfMessage())
        try:
            if data:
                await self._write(data)
        finally:
            if not more:
                self._finish()

    async def _write(self, data: bytes) -> None:
        try:
            await self._connection.write(data)
        except ConnectionLost as exc:
            raise ClientGone(str(exc)) from exc


class _Bridge:
    """A WebSocket of the wrapped application, as ASGI's ``receive`` and ``send``."""

    def __init__(self, connection: _Connection, upgrade: _Upgrade) -> None:
        self._connection = connection
        self._service = connection.service
        self._upgrade = upgrade
        self._websocket: WebSocket | None = None
        self._denial: _Exchange | None = None
        self._connected = False
        self._decided = False
        self._deciding: anyio.CancelScope | None = None
        self._received: list[str | bytes] = []
        self._closed: Message | None = None

    async def run(self) -> None:
        scope = self._upgrade.scope
        code = 1000
        try:
            await self._service.door(scope, self.receive, self.send)
        except ClientGone as exc:
            logger.debug("client gone: %s", exc)
        except Exception:
            code = 1011
            logger.exception("the application failed: WebSocket %s", scope["path"])
        finally:
            if self._websocket is not None:
                await self._websocket.aclose(code)

    async def receive(self) -> Message:
        if not self._connected:
            self._connected = True
            return {"type": "websocket.connect"}
        if not self._decided:
            with anyio.CancelScope() as self._deciding:
                await self._connection.wait_gone()
        if self._websocket is None:
            return {"type": "websocket.disconnect", "code": 1006, "reason": ""}
        if not self._received and self._closed is None:
            await self._fetch(self._websocket)
        if not self._received:
            assert self._closed is not None
            return dict(self._closed)
        message = self._received.pop(0)
        if isinstance(message, str):
            return {"type": "websocket.receive", "text": message}
        return {"type": "websocket.receive", "bytes": message}

    async def _fetch(self, websocket: WebSocket) -> None:
        code, reason = 1006, ""
        try:
            with anyio.CancelScope() as scope, self._service.waiting(scope, self._service.host.stopping):
                self._received = await websocket.receive()
                return
            code = 1001
            await websocket.aclose(code, "server shutting down")
        except anyio.EndOfStream:
            code, reason = websocket.close_code or 1005, websocket.close_reason
        except ProtocolError as exc:
            code, reason = 1002, str(exc)
        except (ConnectionLost, anyio.ClosedResourceError) as exc:
            reason = str(exc)
        self._closed = {"type": "websocket.disconnect", "code": code, "reason": reason}

    async def send(self, message: Message) -> None:
        kind = message["type"]
        try:
            if self._websocket is not None:
                await self._send_open(self._websocket, message)
            elif kind == "websocket.accept" and not self._upgrade.answered:
                self._websocket = self._upgrade.open(message.get("headers", ()), message.get("subprotocol"))
                await self._websocket.flush()
                self._decide()
            elif kind == "websocket.close" and not self._upgrade.answered:
                await self._upgrade.reject(403, b"{}")
                self._decide()
            elif kind.startswith("websocket.http.response.") and (self._denial or not self._upgrade.answered):
                if self._denial is None:
                    self._upgrade.answered = True
                    self._denial = _Exchange(self._connection, b"GET")
                await self._denial.send({**message, "type": kind.removeprefix("websocket.")})
                self._decide()
            else:
                raise RuntimeError(f"unexpected ASGI message: {kind}")
        except (ConnectionLost, anyio.ClosedResourceError) as exc:
            self._decide()
            raise ClientGone(str(exc)) from exc

    def _decide(self) -> None:
        self._decided = True
        if self._deciding is not None:
            self._deciding.cancel()

    async def _send_open(self, websocket: WebSocket, message: Message) -> None:
        match message["type"]:
            case "websocket.send":
                text = message.get("text")
                # as for HTTP
                await checkpoint()
                await websocket.send([message["bytes"] if text is None else text])
            case "websocket.close":
                await websocket.aclose(message.get("code", 1000), message.get("reason") or "")
            case kind:
                raise RuntimeError(f"unexpected ASGI message: {kind}")


def attribute_of(attributes: Mapping[Any, Callable[[], Any]], attribute: Any) -> Any:
    """A stream's attribute; ``None`` where it has none of that kind."""
    return attributes[attribute]() if attribute in attributes else None


def _wants_websocket(request: h11.Request, headers: HeaderList) -> bool:
    upgrade = connection = b""
    for name, value in headers:
        if name == b"upgrade":
            upgrade += b"," + value.lower()
        elif name == b"connection":
            connection += b"," + value.lower()
    return request.method == b"GET" and b"websocket" in upgrade and b"upgrade" in connection


def _further(headers: HeaderList, subprotocol: str | None) -> bytes:
    """The end of the answer to a handshake: what it does not always have, and the empty line."""
    if not headers and subprotocol is None:
        return b"\r\n"
    fields = Headers()
    if subprotocol is not None:
        fields["Sec-WebSocket-Protocol"] = subprotocol
    for name, value in headers:
        fields[name.decode("latin-1")] = value.decode("latin-1")
    return fields.serialize()


def _head(status: int, headers: list[tuple[bytes, bytes]]) -> h11.Response:
    """A response's head, with the headers that every one has."""
    names = {name.lower() for name, _ in headers}
    if b"date" not in names:
        headers.append((b"date", _date()))
    if b"server" not in names:
        headers.append((b"server", _SERVER))
    try:
        phrase = HTTPStatus(status).phrase.encode()
    except ValueError:
        phrase = b""
    return h11.Response(status_code=status, headers=headers, reason=phrase)


_last_date = (0, b"")


def _date() -> bytes:
    global _last_date
    now = int(time.time())
    if _last_date[0] != now:
        _last_date = (now, formatdate(now, usegmt=True).encode())
    return _last_date[1]
