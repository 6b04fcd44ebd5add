"""Engine.IO packets over a WebSocket of our own: the embedded server's, and the client's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

from ..errors import ProtocolError, fresh
from ..prefetch import Piece, whole_lines
from ..protocol.engineio import Packet, decode, encode
from .frames import frames_of
from .websocket import WebSocket


class StreamTransport(Piece):
    """The :class:`~brightsocket_anyio.transport.Transport` over a :class:`WebSocket`, which it owns and closes."""

    __slots__ = whole_lines(
        (Piece,),
        "__weakref__",
        "_eio",
        "_error",
        "_websocket",
    )

    def __init__(self, websocket: WebSocket, eio: Literal[3, 4]) -> None:
        self._websocket = websocket
        self._eio = eio
        self._error: ProtocolError | None = None

    @property
    def name(self) -> Literal["websocket"]:
        return "websocket"

    async def send(self, packets: Sequence[Packet]) -> None:
        if self._websocket.prepared:
            await self._websocket.send_frames(frames_of(packets, self._eio))
        else:
            await self._websocket.send([encode(packet, self._eio) for packet in packets])

    def send_nowait(self, packets: Sequence[Packet], stuck: Callable[[], None]) -> bool:
        return self._websocket.prepared and self._websocket.send_nowait(frames_of(packets, self._eio), stuck)

    @property
    def flushed(self) -> bool:
        return self._websocket.flushed

    async def receive(self) -> list[Packet]:
        if self._error is not None:
            raise fresh(self._error)
        return self._decode(await self._websocket.receive())

    def arrival(self) -> Awaitable[Any]:
        if self._error is not None:
            raise fresh(self._error)
        websocket = self._websocket
        readable = websocket.readable()
        return websocket.receive() if readable is None else readable

    @property
    def watched(self) -> bool:
        return self._websocket.watched

    def readable(self) -> Awaitable[Any] | None:
        return None if self._error is not None else self._websocket.readable()

    def nudge(self) -> bool:
        return self._websocket.nudge()

    def read(self, arrived: Any) -> list[Packet]:
        # what is readable brings nothing by itself
        return self._decode(self._websocket.read() if arrived is None else arrived)

    def failure(self, raised: Exception) -> Exception:
        return raised

    def take_arrived(self) -> list[Packet]:
        return self._decode(self._websocket.take_received())

    def _decode(self, messages: list[str | bytes]) -> list[Packet]:
        eio = self._eio
        packets: list[Packet] = []
        try:
            for message in messages:
                # not by a generator: there is mostly one, and what came before a bad one counts
                packets.append(decode(message, eio))  # noqa: PERF401
        except ProtocolError as exc:
            self._error = fresh(exc)
            if not packets:
                raise
        return packets

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        await self._websocket.aclose(code, reason)

    def close_nowait(self) -> bool:
        return self._websocket.close_nowait()
