"""WebSocket over a trio-websocket connection, for Trio programs that accept or open their WebSockets by that library.

trio-websocket has its own limits: give :func:`trio_websocket.serve_websocket` a ``max_message_size`` of at least the
``max_payload`` setting. It writes a message in one piece, which must be taken within the stall timeout.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Literal
from urllib.parse import unquote

import anyio
import trio_websocket
from anyio.lowlevel import checkpoint

from ..errors import ConnectionLost, ProtocolError
from ..protocol.engineio import Packet, decode, encode
from ..settings import Settings
from ..transport import Scope

#: bytes that a Close frame has room for, beside its code
_MAX_REASON = 123
_MESSAGE_KEYS = {3: "trio message 3", 4: "trio message 4"}


class TrioWebSocketTransport:
    """The :class:`~brightsocket_anyio.transport.Transport` over a connection of trio-websocket, of either side.

    The tasks of the connection belong to whoever opened it; :meth:`aclose` closes it.

    :param settings: for ``max_payload``, ``stall_timeout`` and ``close_timeout``.
    """

    def __init__(self, connection: trio_websocket.WebSocketConnection, eio: Literal[3, 4], settings: Settings) -> None:
        self._connection = connection
        self._eio = eio
        self._key = _MESSAGE_KEYS[eio]
        self._settings = settings
        self._closed = False
        self._too_big = False
        self._lost: ConnectionLost | None = None

    @property
    def name(self) -> Literal["websocket"]:
        return "websocket"

    async def send(self, packets: Sequence[Packet]) -> None:
        for packet in packets:
            if self._closed:
                raise anyio.ClosedResourceError
            if self._lost is not None:
                raise ConnectionLost(self._lost.code, self._lost.reason)
            message: str | bytes | None = packet.frames.get(self._key)
            if message is None:
                message = packet.frames[self._key] = encode(packet, self._eio)
            await self._send(message)

    async def _send(self, message: str | bytes) -> None:
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
            raise self._lost from exc
        except anyio.get_cancelled_exc_class():
            self._lost = ConnectionLost("transport error", "a write was cancelled half way")
            raise
        if not sent:
            self._lost = ConnectionLost("stalled", f"the peer did not take a message within {stall:g} seconds")
            raise self._lost

    async def receive(self) -> list[Packet]:
        if self._closed:
            raise anyio.ClosedResourceError
        if self._too_big:
            raise ProtocolError("message too big")
        try:
            message = await self._connection.get_message()
        except trio_websocket.ConnectionClosed as exc:
            if self._closed:
                raise anyio.ClosedResourceError from None
            if exc.reason is None or exc.reason.code == 1006:
                raise ConnectionLost("transport close", _explain(exc.reason)) from exc
            raise anyio.EndOfStream(_explain(exc.reason)) from exc
        if len(message if isinstance(message, bytes) else message.encode()) > self._settings.max_payload:
            self._too_big = True
            raise ProtocolError("message too big")
        return [decode(message, self._eio)]

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        if self._closed:
            await checkpoint()
            return
        self._closed = True
        if self._too_big:
            code, reason = 1009, "message too big"
        with anyio.CancelScope() as scope:
            if self._lost is not None:
                # nothing can follow half a frame; cancelled, trio-websocket closes the stream
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

    @property
    def scope(self) -> Scope:
        return self._scope

    async def accept(self, eio: Literal[3, 4]) -> TrioWebSocketTransport:
        stall = self._settings.stall
        try:
            with anyio.fail_after(stall):
                connection = await self._request.accept()
        except trio_websocket.ConnectionClosed as exc:
            raise ConnectionLost("transport close", _explain(exc.reason)) from exc
        except TimeoutError:
            raise ConnectionLost("stalled", f"the peer did not take the handshake within {stall:g} seconds") from None
        return TrioWebSocketTransport(connection, eio, self._settings)

    async def reject(self, status: int, body: bytes) -> None:
        headers = [(b"content-type", b"application/json")]
        # a peer that is gone needs no answer
        with contextlib.suppress(trio_websocket.ConnectionClosed), anyio.move_on_after(self._settings.stall):
            await self._request.reject(status, extra_headers=headers, body=body)


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
