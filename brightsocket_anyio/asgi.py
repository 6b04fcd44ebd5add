"""The front door of an API as an ASGI application: our requests, the wrapped application's, and the lifespan."""

from __future__ import annotations

import logging
import traceback
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Final, Literal, Self

import anyio
from anyio import AsyncContextManagerMixin
from sniffio import current_async_library, current_async_library_cvar

from . import browser
from .errors import BrightsocketError, ConnectionLost
from .protocol import handshake
from .protocol.handshake import RequestError
from .server import Server, reject_websocket
from .settings import Settings
from .transport import ASGIApp, Headers, Message, Receive, Scope, Send, WebSocketRequest
from .transports.asgi import ASGIWebSocketRequest
from .transports.polling import PollingTransport

logger: logging.Logger = logging.getLogger("brightsocket_anyio")

_Headers = list[tuple[bytes, bytes]]

_JSON: Final = "application/json"
_TEXT: Final = "text/plain; charset=utf-8"
_NOT_FOUND: Final = RequestError(404, None, "Not found")


class FrontDoor:
    """An ASGI application that serves an API, with ``brightsocket.js`` and ``health``, under its path, and a wrapped
    one everywhere else.

    :param app: the wrapped application.
    :param server: returns the server that runs now, ``None`` while there is none.
    :param running: runs the API, for a lifespan that reaches us.
    """

    def __init__(
        self,
        settings: Settings,
        app: ASGIApp | None,
        server: Callable[[], Server | None],
        running: Callable[[], AbstractAsyncContextManager[Any]],
    ) -> None:
        self._settings = settings
        self._app = app
        self._server = server
        self._running = running
        self._module = settings.path + browser.NAME
        self._health = settings.path + "health"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _tell_library()
        kind = scope["type"]
        ours = kind in ("http", "websocket") and self.matches(scope)
        if kind == "lifespan":
            await self._live(scope, receive, send)
        elif ours and kind == "http":
            await self._handle_http(scope, receive, send)
        elif ours:
            await self.handle_websocket(ASGIWebSocketRequest(scope, receive, send, self._settings))
        elif kind == "http" and _path_below_root(scope) == self._module:
            await browser.serve_module(scope, send, handshake.cors_headers(scope, self._settings))
        elif kind == "http" and _path_below_root(scope) == self._health:
            await self._tell_health(scope, send)
        elif self._app is not None:
            await self._app(scope, receive, send)
        elif kind == "http":
            await _Response(scope, send, []).give(404, _JSON, _NOT_FOUND.body)
        elif kind == "websocket":
            await self.handle_websocket(ASGIWebSocketRequest(scope, receive, send, self._settings))
        else:
            raise NotImplementedError(f"unknown ASGI scope type: {kind}")

    def matches(self, scope: Scope) -> bool:
        """Whether a request is for the API: its path, below where we are mounted, is that of the settings."""
        path = _path_below_root(scope)
        return path == self._settings.path or path + "/" == self._settings.path

    # -- WebSocket

    async def handle_websocket(self, request: WebSocketRequest) -> None:
        """Serve a WebSocket that is not the wrapped application's; returns when it is closed."""
        server = self._server()
        if not self.matches(request.scope):
            await reject_websocket(request, _NOT_FOUND)
        elif server is None:
            await reject_websocket(request, _not_running(request.scope))
        else:
            await server.handle_websocket(request)

    # -- HTTP: long-polling

    async def _handle_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = _Response(scope, send, handshake.cors_headers(scope, self._settings))
        try:
            handshake.check_origin(scope, self._settings)
            preflight = handshake.preflight_headers(scope)
            if preflight is not None:
                await response.give_preflight(preflight)
                return
            server = self._server()
            if server is None:
                raise _not_running(scope)
            await self._handle_polling(server, scope, receive, response)
        except RequestError as exc:
            if (running := self._server()) is not None:
                running.statistics.requests_refused += 1
            response.add(exc.headers)
            await response.give(exc.status, _JSON, exc.body)
        except (_PeerGone, ConnectionLost):
            logger.debug("a polling request was cut off")

    async def _handle_polling(self, server: Server, scope: Scope, receive: Receive, response: _Response) -> None:
        query = handshake.parse_query(scope)
        method = scope["method"]
        if query.transport != "polling":
            raise RequestError.of(3)
        if method not in ("GET", "POST") or (query.sid is None and method != "GET"):
            raise RequestError.of(2)
        if query.sid is None:
            admission = await server.admit(scope, partial(_wait_gone, receive))
            transport = PollingTransport(query.eio, self._settings, base64=query.base64)
            server.open(transport, query.eio, admission)
            response.add(admission.headers)
        else:
            transport = _find(server, query.sid, query.eio)
        if method == "GET":
            await _answer_poll(transport, receive, response)
        else:
            body = await self._read_body(scope, receive)
            await transport.post(body, _header(scope, b"content-type"))
            await response.give(200, _TEXT, b"ok")

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes:
        """Read a request's body, no further than is allowed, whatever length it claims to have.

        :raises RequestError: it is too large (413) or does not come in time (408).
        """
        limit = self._settings.max_payload
        length = _header(scope, b"content-length")
        if length.isdecimal() and length.isascii() and (len(length) > 20 or int(length) > limit):
            raise RequestError(413, None, "Payload too large")
        body = bytearray()
        patience = BodyPatience(self._settings)
        while True:
            start = anyio.current_time()
            message: Message | None = None
            with anyio.move_on_after(patience.seconds):
                message = await receive()
            if message is None:
                raise RequestError(408, None, "Request timeout")
            if message["type"] == "http.disconnect":
                raise _PeerGone
            more = message.get("body", b"")
            body += more
            if len(body) > limit:
                raise RequestError(413, None, "Payload too large")
            if not message.get("more_body", False):
                return bytes(body)
            patience.go_on(anyio.current_time() - start, len(more))

    # -- health

    async def _tell_health(self, scope: Scope, send: Send) -> None:
        """For what watches the process: whether new clients may be sent here."""
        server = self._server()
        state = "stopped" if server is None else "draining" if server.stopping.is_set() else "ready"
        status = 200 if state == "ready" else 503
        await _Response(scope, send, []).give(status, _JSON, b'{"status":"%s"}' % state.encode())

    # -- lifespan

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The server's lifespan: a wrapped application starts before the API runs, and ends after it has drained."""
        await receive()
        phase = "startup"
        try:
            async with Lifespan(self._app, self._settings, scope), self._running():
                await send({"type": "lifespan.startup.complete"})
                phase = "shutdown"
                await receive()
        except Exception as exc:
            message = str(exc) if isinstance(exc, LifespanError) else traceback.format_exc()
            await send({"type": f"lifespan.{phase}.failed", "message": message})
            raise
        await send({"type": "lifespan.shutdown.complete"})


class LifespanError(BrightsocketError):
    """A wrapped application has reported that it could not start, or not end, in the words of the message."""


class Lifespan(AsyncContextManagerMixin):
    """The lifespan of an application that we serve: started inside, ended when this is left.

    An application that does not know the lifespan protocol (it raises or returns before it has started) is none the
    worse for it. Cancelled, the application has the grace and close timeouts together to end.

    :param app: ``None``: nothing is to be done.
    :param scope: the ``lifespan`` scope that we were given, if we were.
    :ivar state: what the application shares with its requests; each one's scope gets a copy.
    :raises LifespanError: on entry or on exit, the application reports a failure. What it raises itself once it has
        started comes out on exit.
    """

    def __init__(self, app: ASGIApp | None, settings: Settings, scope: Scope | None = None) -> None:
        self._app = app
        self._patience = settings.grace + settings.close_timeout
        self._scope: Scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, **(scope or {})}
        self.state: dict[str, Any] = self._scope.setdefault("state", {})
        self._life = anyio.CancelScope(shield=True)
        self._asked = False
        self._complete = False
        self._failure: Exception | None = None
        #: the application has started, or will not; has ended; is to end
        self._started = anyio.Event()
        self._ended = anyio.Event()
        self._ending = anyio.Event()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        if self._app is None:
            yield self
            return
        failure: Exception | None = None
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(self._run, self._app, name="lifespan of the wrapped application")
            try:
                await self._started.wait()
                if self._failure is None:
                    try:
                        yield self
                    except Exception as exc:
                        # kept, so that it comes out as itself and not in an exception group
                        failure = exc
                    self._ending.set()
                    await self._ended.wait()
            finally:
                self._ending.set()
                with anyio.move_on_after(self._patience, shield=True):
                    await self._ended.wait()
                self._life.cancel()
        if failure is not None:
            raise failure
        if self._failure is not None:
            raise self._failure

    async def _run(self, app: ASGIApp) -> None:
        with self._life:
            try:
                await app(self._scope, self._receive, self._send)
            except Exception as exc:
                if self._failure is not None:
                    self._failure.__cause__ = exc
                elif self._complete:
                    self._failure = exc
                else:
                    logger.info("the wrapped application does not support the lifespan protocol: %r", exc)
            finally:
                self._started.set()
                self._ended.set()

    async def _receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "lifespan.startup"}
        await self._ending.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        match message["type"].split("."):
            case ["lifespan", "startup", "complete"]:
                self._complete = True
                self._started.set()
            case ["lifespan", "startup", "failed"]:
                self._failure = LifespanError(message.get("message", ""))
                self._started.set()
            case ["lifespan", "shutdown", "complete"]:
                self._ended.set()
            case ["lifespan", "shutdown", "failed"]:
                self._failure = LifespanError(message.get("message", ""))
                self._ended.set()
            case _:
                raise RuntimeError(f"{message['type']} has no place in the lifespan protocol")


class _Response:
    """The answer to one HTTP request of ours."""

    def __init__(self, scope: Scope, send: Send, headers: _Headers) -> None:
        self._is_head = scope["method"] == "HEAD"
        self._send = send
        self._headers = headers

    def add(self, headers: Headers) -> None:
        self._headers.extend(headers)

    async def give(self, status: int, content_type: str, body: bytes) -> None:
        headers = [
            (b"content-type", content_type.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
            *self._headers,
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": b"" if self._is_head else body})

    async def give_preflight(self, headers: _Headers) -> None:
        await self._send({"type": "http.response.start", "status": 204, "headers": [*headers, *self._headers]})
        await self._send({"type": "http.response.body", "body": b""})


class BodyPatience:
    """For how much longer a request's body may keep us waiting.

    :ivar seconds: from now on.
    """

    def __init__(self, settings: Settings) -> None:
        self._most = settings.body_timeout
        self._rate = settings.min_body_rate
        self.seconds: float = settings.body_timeout

    def go_on(self, waited: float, received: int) -> None:
        """Some of the body has come, after so many seconds of waiting: its bytes make up for them."""
        self.seconds = min(self.seconds - waited + received / self._rate, self._most)


class _PeerGone(Exception):
    """The ASGI server says that the request's connection is lost."""


async def _answer_poll(transport: PollingTransport, receive: Receive, response: _Response) -> None:
    with transport.poll() as poll:
        content: tuple[str, bytes] | None = None
        gone = anyio.Event()
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(_watch, receive, gone, task_group.cancel_scope)
            content = await poll.wait()
            # Over before the answer is written: servers report a disconnect after it, too.
            task_group.cancel_scope.cancel()
        if content is None or gone.is_set():
            raise _PeerGone
        await response.give(200, *content)


async def _wait_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _watch(receive: Receive, gone: anyio.Event, waiting: anyio.CancelScope) -> None:
    await _wait_gone(receive)
    gone.set()
    waiting.cancel()


def _tell_library() -> None:
    """Note for AnyIO which loop this is, as :func:`anyio.run` does: under an ASGI server it would find that out each
    time that it is asked for anything, which takes a microsecond."""
    if current_async_library_cvar.get() is None:
        current_async_library_cvar.set(current_async_library())


def _find(server: Server, sid: str, eio: Literal[3, 4]) -> PollingTransport:
    transport = server.find(sid, eio).transport
    if not isinstance(transport, PollingTransport):
        raise RequestError.of(3)
    return transport


def _header(scope: Scope, name: bytes) -> str:
    values = handshake.header_values(scope, name)
    return values[0].decode("latin-1") if values else ""


def _path_below_root(scope: Scope) -> str:
    """A request's path below the place where we are mounted; some servers and frameworks leave that in, some do not."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    below = path.removeprefix(root)
    return below if below.startswith("/") or not below else path


def _not_running(scope: Scope) -> RequestError:
    if "app" in scope:
        message = (
            "Brightsocket is not running: the application that it is mounted in must do "
            "`async with api.running()` in its lifespan"
        )
    else:
        message = (
            "Brightsocket is not running: the ASGI server sent it no lifespan (uvicorn needs `--lifespan on`); "
            "where it is mounted in another application, that one must do `async with api.running()` in its lifespan"
        )
    logger.error(message)
    return RequestError(500, None, message)
