"""WebSocket over ASGI's ``receive`` and ``send``: frames, pings and the closing handshake are the ASGI server's.

Servers differ in what they raise from ``send`` when the peer is gone: :exc:`OSError` (the specification, uvicorn),
:exc:`RuntimeError` (uvicorn, granian), exceptions of their own (hypercorn). All of them are translated here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

import anyio
from anyio.lowlevel import checkpoint

from ..errors import ConnectionLost, ProtocolError, fresh
from ..protocol.engineio import Packet, decode, encode
from ..settings import Settings
from ..transport import RUN, Headers, Message, Receive, Scope, Send
from .frames import frames_of
from .uvicorn import writer_of

#: bytes that a Close frame has room for, beside its code
_MAX_REASON = 123


class ASGIWebSocketTransport:
    """The :class:`~brightsocket_anyio.transport.Transport` over a WebSocket that an ASGI server carries.

    :param settings: for ``max_payload``, ``stall_timeout`` and ``close_timeout``.
    """

    __slots__ = (
        "__weakref__",
        "_asgi_receive",
        "_asgi_send",
        "_closed",
        "_eio",
        "_end",
        "_limit",
        "_lock",
        "_run",
        "_sending",
        "_settings",
        "_write_nowait",
    )

    def __init__(self, receive: Receive, send: Send, eio: Literal[3, 4], settings: Settings) -> None:
        self._asgi_receive = receive
        self._asgi_send = send
        self._eio = eio
        self._settings = settings
        self._lock = anyio.Lock(fast_acquire=True)
        self._limit = settings.max_payload
        #: how a frame can be sent at once; ``None`` when nothing can be sent any more, too
        self._write_nowait = writer_of(send)
        self._sending = anyio.CancelScope()
        self._closed = False
        self._end: Exception | None = None
        #: how many messages have been waited for since others had their turn for sure
        self._run = 0

    @property
    def name(self) -> Literal["websocket"]:
        return "websocket"

    async def send(self, packets: Sequence[Packet]) -> None:
        async with self._lock:
            for packet in packets:
                if self._closed:
                    raise anyio.ClosedResourceError
                if isinstance(self._end, ConnectionLost):
                    raise fresh(self._end)
                if isinstance(self._end, anyio.EndOfStream):
                    raise ConnectionLost("transport close", "the peer has closed the WebSocket")
                message = encode(packet, self._eio)
                key = "text" if isinstance(message, str) else "bytes"
                await self._send({"type": "websocket.send", key: message})

    def send_nowait(self, packets: Sequence[Packet], stuck: Callable[[], None]) -> bool:
        write = self._write_nowait
        return write is not None and not self._lock.locked() and write(frames_of(packets, self._eio))

    @property
    def flushed(self) -> bool:
        return True

    async def receive(self) -> list[Packet]:
        arrival = self.arrival()
        try:
            message = await arrival
        except Exception as exc:
            raise self.failure(exc) from exc
        return self.read(message)

    def arrival(self) -> Awaitable[Any]:
        if self._closed:
            raise anyio.ClosedResourceError
        if self._end is not None:
            raise fresh(self._end)
        self._run += 1
        if self._run > RUN:
            # uvicorn's receive does not wait while it has something
            self._run = 0
            return self._receive_later()
        return self._asgi_receive()

    @property
    def watched(self) -> bool:
        return False

    def readable(self) -> None:
        return None

    def nudge(self) -> bool:
        return False

    async def _receive_later(self) -> Message:
        await checkpoint()
        return await self._asgi_receive()

    def read(self, arrived: Any) -> list[Packet]:
        return [self._packet_of(arrived)]

    def failure(self, raised: Exception) -> Exception:
        if self._closed:
            return anyio.ClosedResourceError()
        if self._end is None:
            self._finish(ConnectionLost("transport error", f"{type(raised).__name__}: {raised}"))
        assert self._end is not None
        return fresh(self._end)

    def take_arrived(self) -> list[Packet]:
        return []

    def _packet_of(self, message: Message) -> Packet:
        if self._closed:
            raise anyio.ClosedResourceError
        if message["type"] != "websocket.receive":
            raise self._finish(_end(message.get("code", 1005), message.get("reason") or ""))
        content: str | bytes | None = message.get("text")
        if content is None:
            content = message["bytes"]
        try:
            if 4 * len(content) > self._limit and _is_longer(content, self._limit):
                raise _TooBig("message too big")
            return decode(content, self._eio)
        except ProtocolError as exc:
            self._finish(fresh(exc))
            raise

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close the WebSocket. Idempotent.

        The ASGI server does the closing handshake, and ends by itself what the request's task leaves unfinished.
        """
        if self.close_nowait():
            await checkpoint()
            return
        self._closed = True
        self._write_nowait = None
        if isinstance(self._end, _TooBig):
            code, reason = 1009, str(self._end)
        reason = reason.encode()[:_MAX_REASON].decode(errors="ignore")
        try:
            with anyio.move_on_after(self._settings.close_timeout):
                async with self._lock:
                    # whatever a server raises here, it means that the WebSocket is closed already
                    with contextlib.suppress(Exception):
                        await self._asgi_send({"type": "websocket.close", "code": code, "reason": reason})
        finally:
            self._sending.cancel()

    def close_nowait(self) -> bool:
        over = self._closed or (self._end is not None and not isinstance(self._end, ProtocolError))
        if over and not self._closed:
            self._closed = True
            self._sending.cancel()
        return over

    async def _send(self, message: Message) -> None:
        """The one place that sends; the caller holds the lock. However it fails, nothing can be sent afterwards."""
        patience = self._settings.stall
        sent = False
        try:
            with anyio.move_on_after(patience) as self._sending:
                await self._asgi_send(message)
                sent = True
        except Exception as exc:
            raise self._finish(ConnectionLost("transport error", f"{type(exc).__name__}: {exc}")) from exc
        except anyio.get_cancelled_exc_class():
            self._finish(ConnectionLost("transport error", "a message was cancelled half way"))
            raise
        if not sent:
            if self._closed:
                raise anyio.ClosedResourceError
            raise self._finish(ConnectionLost("stalled", f"the peer took no bytes for {patience:g} seconds"))

    def _finish(self, end: Exception) -> Exception:
        """Nothing can be sent or received any more; returns what says so."""
        self._end = end
        self._write_nowait = None
        return fresh(end)


class ASGIWebSocketRequest:
    """The :class:`~brightsocket_anyio.transport.WebSocketRequest` of an ASGI ``websocket`` scope."""

    __slots__ = (
        "_connecting",
        "_receive",
        "_scope",
        "_send",
        "_settings",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, settings: Settings) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._settings = settings
        self._connecting = True

    at_home: bool = False

    @property
    def scope(self) -> Scope:
        return self._scope

    async def wait_gone(self) -> None:
        """Wait for the server's word that the peer is gone; for ever where a server cannot say so yet."""
        with contextlib.suppress(ConnectionLost):
            await self._await_connect()
            with contextlib.suppress(Exception):
                while (await self._receive())["type"] != "websocket.disconnect":
                    pass
                return
            await anyio.sleep_forever()

    async def accept(
        self, eio: Literal[3, 4], headers: Headers = (), subprotocol: str | None = None
    ) -> ASGIWebSocketTransport:
        await self._await_connect()
        message: Message = {"type": "websocket.accept"}
        if headers:
            message["headers"] = list(headers)
        if subprotocol is not None:
            message["subprotocol"] = subprotocol
        try:
            await self._send(message)
        except Exception as exc:
            raise ConnectionLost("transport error", f"{type(exc).__name__}: {exc}") from exc
        return ASGIWebSocketTransport(self._receive, self._send, eio, self._settings)

    async def reject(self, status: int, body: bytes, headers: Headers = ()) -> None:
        """Answer with an HTTP error, where the server can; else it answers 403 by itself."""
        own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        messages: list[dict[str, Any]] = [{"type": "websocket.close"}]
        if "websocket.http.response" in (self._scope.get("extensions") or {}):
            messages = [
                {"type": "websocket.http.response.start", "status": status, "headers": [*own, *headers]},
                {"type": "websocket.http.response.body", "body": body},
            ]
        await self._await_connect()
        try:
            for message in messages:
                await self._send(message)
        except Exception as exc:
            raise ConnectionLost("transport error", f"{type(exc).__name__}: {exc}") from exc

    async def _await_connect(self) -> None:
        if self._connecting:
            message = await self._receive()
            if message["type"] != "websocket.connect":
                raise ConnectionLost("transport close", "the peer is gone before its WebSocket was accepted")
            self._connecting = False


class _TooBig(ProtocolError):
    """A message over ``max_payload``: it has a close code of its own."""


def _is_longer(content: str | bytes, limit: int) -> bool:
    size = len(content)
    if isinstance(content, str) and size <= limit < 4 * size:
        size = len(content.encode(errors="surrogatepass"))
    return size > limit


def _end(code: int, reason: str) -> Exception:
    if code == 1006:
        return ConnectionLost("transport close", "the peer is gone without closing the WebSocket")
    return anyio.EndOfStream(f"{code} {reason}".rstrip())
