"""WebSocket over a trio-websocket connection, for Trio programs that accept or open their WebSockets by that library.

trio-websocket has its own limits: give :func:`trio_websocket.serve_websocket` a ``max_message_size`` of at least the
``max_payload`` setting. It writes a message in one piece, which must be taken within the stall timeout, and it has no
permessage-deflate.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import ssl
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import unquote

import anyio
import httpx
import trio
import trio_websocket
from anyio.abc import TaskGroup, TaskStatus
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from ..errors import ConfigurationError, ConnectionLost, HandshakeError, ProtocolError, fresh
from ..protocol.engineio import Packet, decode, encode
from ..settings import Settings
from ..transport import Headers, Scope

#: bytes that a Close frame has room for, beside its code
_MAX_REASON = 123
#: bytes of one read
_READ_SIZE = 65_536
#: characters of a refusal's body that a :exc:`HandshakeError` quotes
_EXCERPT_SIZE = 200
#: headers that are the handshake's own
_OWN_HEADERS = {b"host", b"connection", b"upgrade", b"content-length", b"transfer-encoding"}
_STREAM_ERRORS = (trio.BrokenResourceError, trio.ClosedResourceError)

_logger = logging.getLogger(__name__)

_Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


async def open_trio_websocket(
    url: httpx.URL,
    *,
    headers: Mapping[str, str],
    eio: Literal[3, 4],
    settings: Settings,
    ssl_context: ssl.SSLContext | None,
    task_group: TaskGroup,
) -> TrioWebSocketTransport:
    """Open a WebSocket by trio-websocket. There is no timeout: the caller's scope bounds it.

    Cancelled, it leaves nothing open.

    :param url: with the scheme ``http``, ``https``, ``ws`` or ``wss``; a user and password in it are sent.
    :param headers: those of the request, beside the handshake's own; a ``Host`` among them counts.
    :param ssl_context: for ``https`` and ``wss``; without one, certificates are checked as httpx does.
    :param task_group: runs the connection until :meth:`~TrioWebSocketTransport.aclose`, or until its own cancellation.
    :raises ConfigurationError: this is not Trio.
    :raises HandshakeError: there was no answer, or one that is no WebSocket's.
    """
    if not trio.lowlevel.in_trio_run():
        raise ConfigurationError('transport="trio-websocket" needs Trio; on asyncio, "websocket" does the same')
    started: Any = await task_group.start(_live, url, httpx.Headers(headers), eio, settings, ssl_context)
    transport: TrioWebSocketTransport = started
    return transport


async def _connect(url: httpx.URL, ssl_context: ssl.SSLContext | None) -> _Stream:
    if url.scheme not in ("https", "wss"):
        return await trio.open_tcp_stream(url.host, url.port or 80)
    stream = await trio.open_ssl_over_tcp_stream(
        url.host, url.port or 443, https_compatible=True, ssl_context=ssl_context or httpx.create_ssl_context()
    )
    try:
        # here, and not in trio-websocket's first write, which would not say what is wrong with a certificate
        await stream.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream


async def _live(
    url: httpx.URL,
    headers: httpx.Headers,
    eio: Literal[3, 4],
    settings: Settings,
    ssl_context: ssl.SSLContext | None,
    *,
    task_status: TaskStatus[TrioWebSocketTransport],
) -> None:
    """Connect, make the handshake, and run trio-websocket's reader until its end."""
    # without what may be secret: a password, the query
    where = f"{url.scheme}://{url.netloc.decode()}{url.path}"
    try:
        stream = await _connect(url, ssl_context)
    except (OSError, trio.BrokenResourceError) as exc:
        raise HandshakeError(f"cannot connect to {where}: {exc.__cause__ or exc}") from exc
    begun = anyio.Event()
    opened = False

    async def open_in(readers: trio.Nursery) -> None:
        nonlocal opened
        begun.set()
        connection = await trio_websocket.wrap_client_stream(
            readers,
            stream,
            headers.get("host", url.netloc.decode()),
            url.raw_path.decode(),
            subprotocols=settings.subprotocols,
            extra_headers=_extra_headers(url, headers),
            max_message_size=settings.max_payload,
            receive_buffer_size=_READ_SIZE,
        )
        opened = True
        task_status.started(TrioWebSocketTransport(connection, eio, settings))

    failure: BaseExceptionGroup[Exception] | None = None
    try:
        # When the peer goes away during the handshake, trio-websocket's reader ends, and its handshake waits for ever:
        # the reader has a nursery of its own, whose end is the end of the handshake too.
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as readers:
                nursery.start_soon(open_in, readers)
                await begun.wait()
            nursery.cancel_scope.cancel()
        if opened:
            # with input unread, closing would reset the connection, and the peer might never see a last Close frame
            with anyio.move_on_after(settings.close_timeout), contextlib.suppress(*_STREAM_ERRORS):
                while await stream.receive_some(_READ_SIZE):
                    pass
    except* Exception as group:
        failure = group
    finally:
        await trio.aclose_forcefully(stream)
    if not opened:
        raise _handshake_error(where, failure)
    if failure is not None:
        # the reader is at its end, and with it the transport's input
        _logger.info("trio-websocket's reader failed", exc_info=failure)


def _extra_headers(url: httpx.URL, headers: httpx.Headers) -> list[tuple[bytes, bytes]]:
    extra = [
        (name, value)
        for name, value in headers.raw
        if name.lower() not in _OWN_HEADERS and not name.lower().startswith(b"sec-websocket-")
    ]
    if url.userinfo and "authorization" not in headers:
        extra.append((b"Authorization", b"Basic " + base64.b64encode(f"{url.username}:{url.password}".encode())))
    return extra


def _handshake_error(where: str, failure: BaseException | None) -> HandshakeError:
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    if isinstance(failure, trio_websocket.ConnectionRejected):
        return HandshakeError(f"{where} answered {failure.status_code}{_excerpt(failure.body)}", failure.status_code)
    if failure is not None:
        return HandshakeError(f"{where}: {type(failure).__name__}: {failure}")
    return HandshakeError(f"{where} closed the connection, or its answer is no WebSocket handshake")


def _excerpt(body: bytes | None) -> str:
    text = " ".join((body or b"").decode(errors="replace").split())
    return f": {text[:_EXCERPT_SIZE]}" if text else ""


class TrioWebSocketTransport:
    """The :class:`~brightsocket_anyio.transport.Transport` over a connection of trio-websocket, of either side.

    The tasks of the connection belong to whoever opened it (:func:`open_trio_websocket`'s to the task group that it was
    given); :meth:`aclose` closes it.

    :param settings: for ``max_payload``, ``stall_timeout`` and ``close_timeout``.
    """

    def __init__(self, connection: trio_websocket.WebSocketConnection, eio: Literal[3, 4], settings: Settings) -> None:
        self._connection = connection
        self._eio = eio
        self._settings = settings
        self._closed = False
        self._too_big = False
        #: trio-websocket has failed the connection by itself
        self._failed = False
        self._error: ProtocolError | None = None
        self._lost: ConnectionLost | None = None

    @property
    def name(self) -> Literal["websocket"]:
        return "websocket"

    async def send(self, packets: Sequence[Packet]) -> None:
        for packet in packets:
            if self._closed:
                raise anyio.ClosedResourceError
            if self._lost is not None:
                raise fresh(self._lost)
            await self._send(encode(packet, self._eio))

    async def _send(self, message: str | bytes) -> None:
        # before anything of it is sent: the connection can still be closed in an orderly way
        await checkpoint_if_cancelled()
        stall = self._settings.stall
        sent = False
        try:
            with anyio.move_on_after(stall):
                await self._connection.send_message(message)
                sent = True
        except trio_websocket.ConnectionClosed as exc:
            if self._closed:
                raise anyio.ClosedResourceError from None
            self._lost = ConnectionLost("transport close", _explain(exc.reason))
            raise fresh(self._lost) from exc
        except anyio.get_cancelled_exc_class():
            self._lost = ConnectionLost("transport error", "a write was cancelled half way")
            raise
        if not sent:
            self._lost = ConnectionLost("stalled", f"the peer did not take a message within {stall:g} seconds")
            raise fresh(self._lost)

    async def receive(self) -> list[Packet]:
        if self._closed:
            raise anyio.ClosedResourceError
        if self._error is not None:
            raise fresh(self._error)
        try:
            message = await self._connection.get_message()
        except trio_websocket.ConnectionClosed as exc:
            if self._closed:
                raise anyio.ClosedResourceError from None
            # trio-websocket ends by itself, having told the peer why, without a reason for frames that are invalid, and
            # for a message over its limit with its receiving end closed
            if exc.reason is None:
                self._failed = True
                self._error = ProtocolError("invalid WebSocket frame")
                raise fresh(self._error) from exc
            if exc.reason.code == 1009 and isinstance(exc.__context__, trio.ClosedResourceError):
                self._error = ProtocolError("message too big")
                raise fresh(self._error) from exc
            if exc.reason.code == 1006:
                raise ConnectionLost("transport close", _explain(exc.reason)) from exc
            raise anyio.EndOfStream(_explain(exc.reason)) from exc
        if len(message if isinstance(message, bytes) else message.encode()) > self._settings.max_payload:
            self._too_big = True
            self._error = ProtocolError("message too big")
            raise fresh(self._error)
        try:
            return [decode(message, self._eio)]
        except ProtocolError as exc:
            self._error = fresh(exc)
            raise

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        if self._closed:
            await checkpoint()
            return
        self._closed = True
        if self._too_big:
            code, reason = 1009, "message too big"
        with anyio.CancelScope() as scope:
            if self._lost is not None or self._failed:
                # nothing can follow half a frame, or trio-websocket's own Close; cancelled, it closes the stream
                scope.cancel()
            else:
                scope.deadline = anyio.current_time() + self._settings.close_timeout
            await self._connection.aclose(code, reason.encode()[:_MAX_REASON].decode(errors="ignore") or None)


class TrioWebSocketRequest:
    """The :class:`~brightsocket_anyio.transport.WebSocketRequest` of a ``trio_websocket.WebSocketRequest``.

    trio-websocket does not hand over the ``Host`` header, so that a page of the server's own host cannot be told from
    others: browsers need ``allowed_origins``.
    """

    def __init__(self, request: trio_websocket.WebSocketRequest, settings: Settings) -> None:
        self._request = request
        self._settings = settings
        self._scope = _scope_of(request)

    at_home: bool = False

    @property
    def scope(self) -> Scope:
        return self._scope

    async def wait_gone(self) -> None:
        """Wait for ever: trio-websocket does not tell before it accepts."""
        await anyio.sleep_forever()

    async def accept(
        self, eio: Literal[3, 4], headers: Headers = (), subprotocol: str | None = None
    ) -> TrioWebSocketTransport:
        stall = self._settings.stall
        try:
            with anyio.fail_after(stall):
                connection = await self._request.accept(subprotocol=subprotocol, extra_headers=list(headers))
        except trio_websocket.ConnectionClosed as exc:
            raise ConnectionLost("transport close", _explain(exc.reason)) from exc
        except TimeoutError:
            raise ConnectionLost("stalled", f"the peer did not take the handshake within {stall:g} seconds") from None
        return TrioWebSocketTransport(connection, eio, self._settings)

    async def reject(self, status: int, body: bytes, headers: Headers = ()) -> None:
        # trio-websocket answers no further request on this connection
        extra = [(b"content-type", b"application/json"), (b"connection", b"close"), *headers]
        # a peer that is gone needs no answer
        with contextlib.suppress(trio_websocket.ConnectionClosed), anyio.move_on_after(self._settings.stall):
            await self._request.reject(status, extra_headers=extra, body=body)


def _scope_of(request: trio_websocket.WebSocketRequest) -> Scope:
    path, _, query = request.path.partition("?")
    client, server, secure = None, None, False
    try:
        remote, local = request.remote, request.local
    except (OSError, ValueError):
        remote = local = ""  # a UNIX socket, or a peer that is gone
    if isinstance(remote, trio_websocket.Endpoint):
        client = (str(remote.address), remote.port)
    if isinstance(local, trio_websocket.Endpoint):
        server, secure = (str(local.address), local.port), local.is_ssl
    return {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "wss" if secure else "ws",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(bytes(name).lower(), bytes(value)) for name, value in request.headers],
        "client": client,
        "server": server,
        "subprotocols": list(request.proposed_subprotocols),
        "state": {},
        "extensions": {},
    }


def _explain(reason: trio_websocket.CloseReason | None) -> str:
    if reason is None or reason.code == 1006:
        return "the peer is gone without closing the WebSocket"
    return f"{reason.code} {reason.reason or ''}".rstrip()
