"""The roads under the contract: for each, our transport at one end and, at the other, a peer that is not ours.

WebSocket's peers are the sans-I/O core that the transport itself does not use: wsproto's for the AnyIO stream, which
uses websockets', and websockets' for trio-websocket, which uses wsproto's. ASGI's peer is a server's side of the
interface. Polling's writes and reads the bodies of requests by hand. Engine.IO's packets are made by hand everywhere.
"""

from __future__ import annotations

import base64
import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import anyio
import anyio.lowlevel
import httpx
import pytest
import trio
import trio.testing
import trio_websocket
import wsproto.connection
import wsproto.events
from anyio.abc import ByteStream
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import Side
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

import brightsocket_anyio.transports.trio_websocket as our_trio_websocket
from brightsocket_anyio.protocol.engineio import PacketType
from brightsocket_anyio.protocol.handshake import RequestError
from brightsocket_anyio.settings import Settings
from brightsocket_anyio.transport import Message, Transport
from brightsocket_anyio.transports.asgi import ASGIWebSocketTransport
from brightsocket_anyio.transports.core import Core
from brightsocket_anyio.transports.httpx_polling import connect_polling
from brightsocket_anyio.transports.polling import PollingTransport
from brightsocket_anyio.transports.stream import StreamTransport
from brightsocket_anyio.transports.trio_websocket import TrioWebSocketRequest, open_trio_websocket
from brightsocket_anyio.transports.websocket import WebSocket
from tests.streams import linked
from tests.support import PATIENCE

EIO = Literal[3, 4]
_DEFAULTS = Settings()
_TEXT = "text/plain;charset=UTF-8"


class Peer(ABC):
    """The other end. What it sends and receives are the payloads of MESSAGE packets."""

    def __init__(self, eio: EIO) -> None:
        self.eio = eio
        #: what has arrived and was not received yet
        self.arrived: list[str | bytes] = []
        self.ended = False
        self.code: int | None = None

    @abstractmethod
    async def send(self, *payloads: str | bytes) -> None:
        """Send messages; returns without waiting for the transport to take them, where the road is wide enough."""

    @abstractmethod
    async def send_nonsense(self) -> None:
        """Send what is no Engine.IO packet."""

    @abstractmethod
    async def read(self) -> None:
        """Wait for more to arrive, or for the end."""

    @abstractmethod
    async def close(self, code: int, reason: str) -> None:
        """Begin an orderly end."""

    @abstractmethod
    async def vanish(self) -> None:
        """Be gone without a word."""

    def listen(self) -> None:  # noqa: B027
        """Take what comes from now on, whether or not somebody reads."""

    def our_side_is_done(self) -> None:  # noqa: B027
        """Hear of our side's end, where the transport of a dead connection is not the one to tell of it.

        An ASGI server sees that the application returns; polling's server gets no further requests.
        """

    async def receive(self) -> str | bytes:
        with anyio.fail_after(PATIENCE):
            while not self.arrived:
                if self.ended:
                    raise anyio.EndOfStream
                await self.read()
            return self.arrived.pop(0)

    async def end(self) -> int | None:
        """Wait for the end; returns the close code."""
        with anyio.fail_after(PATIENCE):
            while not self.ended:
                await self.read()
        return self.code


class _WebSocketPeer(Peer):
    """A peer whose messages are single packets."""

    async def send(self, *payloads: str | bytes) -> None:
        for payload in payloads:
            if isinstance(payload, str):
                await self.send_message(f"4{payload}")
            else:
                await self.send_message(payload if self.eio == 4 else b"\x04" + payload)

    async def send_nonsense(self) -> None:
        await self.send_message("nonsense")

    @abstractmethod
    async def send_message(self, message: str | bytes) -> None: ...

    def take(self, message: str | bytes) -> None:
        if isinstance(message, str):
            assert message[0] == "4"
            self.arrived.append(message[1:])
        else:
            assert self.eio == 4 or message[0] == 4
            self.arrived.append(message if self.eio == 4 else message[1:])


class _FramesPeer(_WebSocketPeer):
    """A WebSocket over a stream of bytes."""

    def __init__(self, eio: EIO, stream: ByteStream) -> None:
        super().__init__(eio)
        self.stream = stream

    async def read(self) -> None:
        try:
            data = await self.stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            self.ended = True
        else:
            await self.feed(data)

    @abstractmethod
    async def feed(self, data: bytes) -> None: ...

    async def vanish(self) -> None:
        await self.stream.aclose()


class WsprotoPeer(_FramesPeer):
    """wsproto's frames, after the handshake."""

    def __init__(self, eio: EIO, stream: ByteStream, kind: wsproto.ConnectionType) -> None:
        super().__init__(eio, stream)
        self._core = wsproto.connection.Connection(kind)
        self._parts: list[str] | list[bytes] = []

    async def send_message(self, message: str | bytes) -> None:
        event: wsproto.events.Event = (
            wsproto.events.TextMessage(message) if isinstance(message, str) else wsproto.events.BytesMessage(message)
        )
        await self.stream.send(self._core.send(event))

    async def close(self, code: int, reason: str) -> None:
        await self.stream.send(self._core.send(wsproto.events.CloseConnection(code, reason)))

    async def feed(self, data: bytes) -> None:
        self._core.receive_data(data)
        for event in self._core.events():
            match event:
                case wsproto.events.TextMessage() | wsproto.events.BytesMessage():
                    self._parts.append(event.data)  # type: ignore[arg-type]
                    if event.message_finished:
                        parts, self._parts = self._parts, []
                        self.take(type(parts[0])().join(parts))  # type: ignore[arg-type]
                case wsproto.events.CloseConnection(code=code):
                    self.code = code
                    if self._core.state is wsproto.connection.ConnectionState.REMOTE_CLOSING:
                        await self.stream.send(self._core.send(event.response()))
                    if not self._core.client:
                        await self.stream.aclose()
                        self.ended = True
                        return


class WebsocketsPeer(_FramesPeer):
    """websockets' frames, the handshake included."""

    def __init__(self, eio: EIO, stream: ByteStream, core: ClientProtocol | ServerProtocol) -> None:
        super().__init__(eio, stream)
        self._core = core
        self._opcode = Opcode.TEXT
        self._message = bytearray()

    async def handshake(self) -> None:
        core = self._core
        if isinstance(core, ClientProtocol):
            core.send_request(core.connect())
            await self._flush()
            while core.state is core.state.CONNECTING:
                await self.read()
            return
        while True:
            core.receive_data(await self.stream.receive())
            for event in core.events_received():
                assert isinstance(event, Request)
                core.send_response(core.accept(event))
                await self._flush()
                return

    async def send_message(self, message: str | bytes) -> None:
        if isinstance(message, str):
            self._core.send_text(message.encode())
        else:
            self._core.send_binary(message)
        await self._flush()

    async def close(self, code: int, reason: str) -> None:
        self._core.send_close(code, reason)
        await self._flush()

    async def feed(self, data: bytes) -> None:
        self._core.receive_data(data)
        for event in self._core.events_received():
            if isinstance(event, Frame):
                await self._take_frame(event)
        await self._flush()
        if self._core.close_rcvd is not None:
            self.code = self._core.close_rcvd.code
            if self._core.side is Side.SERVER:
                await self.stream.aclose()
                self.ended = True

    async def _take_frame(self, frame: Frame) -> None:
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._opcode = frame.opcode
        elif frame.opcode is not Opcode.CONT:
            return
        self._message += frame.data
        if frame.fin:
            data, self._message = bytes(self._message), bytearray()
            self.take(data.decode() if self._opcode is Opcode.TEXT else data)

    async def _flush(self) -> None:
        for data in self._core.data_to_send():
            if data:
                await self.stream.send(data)


class ASGIPeer(_WebSocketPeer):
    """What an ASGI server does around an application's ``receive`` and ``send``."""

    def __init__(self, eio: EIO, capacity: float) -> None:
        super().__init__(eio)
        self._outgoing, self._incoming = anyio.create_memory_object_stream[Message](math.inf)
        self._taking, self._taken = anyio.create_memory_object_stream[Message](capacity)

    def close_streams(self) -> None:
        for stream in self._outgoing, self._incoming, self._taking, self._taken:
            stream.close()

    async def asgi_receive(self) -> Message:
        return await self._incoming.receive()

    async def asgi_send(self, message: Message) -> None:
        if message["type"] == "websocket.close":
            self._outgoing.send_nowait({"type": "websocket.disconnect", "code": message["code"]})
        try:
            await self._taking.send(message)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as exc:
            raise OSError("the client is gone") from exc

    async def send_message(self, message: str | bytes) -> None:
        key = "text" if isinstance(message, str) else "bytes"
        await self._outgoing.send({"type": "websocket.receive", key: message})

    async def read(self) -> None:
        try:
            message = await self._taken.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            self.ended = True
            return
        if message["type"] == "websocket.close":
            self.code = message["code"]
            self.ended = True
            assert len(message["reason"].encode()) <= 123
        else:
            content: str | bytes | None = message.get("text")
            self.take(message["bytes"] if content is None else content)

    async def close(self, code: int, reason: str) -> None:
        await self._outgoing.send({"type": "websocket.disconnect", "code": code, "reason": reason})

    def our_side_is_done(self) -> None:
        self._taking.close()

    async def vanish(self) -> None:
        self._taken.close()
        await self._outgoing.send({"type": "websocket.disconnect", "code": 1006})


class PollingPeer(Peer):
    """A client whose GETs and POSTs reach the transport as a front door hands them over.

    :param polls: whether there is always a GET.
    """

    def __init__(self, eio: EIO, transport: PollingTransport, *, polls: bool) -> None:
        super().__init__(eio)
        self._transport = transport
        self._left = False
        self._polls = anyio.Event()
        if polls:
            self._polls.set()
        self._bodies, self._waiting = anyio.create_memory_object_stream[tuple[str, bytes]](math.inf)
        self._changed = anyio.Event()
        self._scope = anyio.CancelScope()

    async def run(self) -> None:
        async with anyio.create_task_group() as tg, self._bodies, self._waiting:
            self._scope = tg.cancel_scope
            tg.start_soon(self._post)
            tg.start_soon(self._poll)
            await anyio.sleep_forever()

    def listen(self) -> None:
        self._polls.set()

    async def send(self, *payloads: str | bytes) -> None:
        await self._bodies.send(_payload(payloads, self.eio))

    async def send_nonsense(self) -> None:
        await self._bodies.send((_TEXT, b"nonsense"))

    async def read(self) -> None:
        await self._changed.wait()

    async def close(self, code: int, reason: str) -> None:
        self._left = True
        await self._bodies.send((_TEXT, b"1" if self.eio == 4 else b"1:1"))

    async def vanish(self) -> None:
        """Polling is gone when a request is cut off."""
        if self._polls.is_set():
            self._scope.cancel()
            return
        with contextlib.suppress(OSError), self._transport.poll():
            raise OSError("cut off")

    async def _post(self) -> None:
        async for content_type, body in self._waiting:
            try:
                await self._transport.post(body, content_type)
            except RequestError:
                return

    async def _poll(self) -> None:
        await self._polls.wait()
        while not (self.ended or self._left):
            with self._transport.poll() as poll:
                content_type, body = await poll.wait()
            self._take(content_type, body)
            self._changed.set()
            self._changed = anyio.Event()

    def _take(self, content_type: str, body: bytes) -> None:
        for packet in _packets(content_type, body, self.eio):
            if packet[:1] in (b"4", b"\x04"):
                self.arrived.append(packet[1:].decode() if packet[:1] == b"4" else packet[1:])
            elif packet[:1] == b"1":
                self.ended = True
            else:
                assert packet[:1] == b"6"


class PollingServerPeer(Peer):
    """A server of long-polling: what answers the requests of an ``httpx.AsyncClient``.

    :param takes: whether POSTs are answered.
    """

    def __init__(self, eio: EIO, *, takes: bool) -> None:
        super().__init__(eio)
        self._answers: list[tuple[str, bytes]] = []
        self._takes = takes
        self._gone = False
        self._changed = anyio.Event()

    async def answer(self, request: httpx.Request) -> httpx.Response:
        if "sid" not in request.url.params:
            opened = b'0{"sid":"x","upgrades":[],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1000000}'
            return self._response(_TEXT, opened if self.eio == 4 else b"%d:%s" % (len(opened), opened))
        body = await request.aread()
        ready = self._may_answer if request.method == "GET" else self._may_take
        while not self._gone and not ready():
            await self._changed.wait()
        if self._gone:
            raise httpx.ReadError("the peer is gone")
        if request.method == "GET":
            return self._response(*(self._answers.pop(0) if self._answers else (_TEXT, self._packet(b"6"))))
        self._take(request.headers["content-type"], body)
        self._change()
        return self._response("text/html", b"ok")

    def _may_answer(self) -> bool:
        return bool(self._answers) or self.ended

    def _may_take(self) -> bool:
        return self._takes

    def _response(self, content_type: str, body: bytes) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": content_type}, stream=httpx.ByteStream(body))

    def _packet(self, packet: bytes) -> bytes:
        return packet if self.eio == 4 else b"%d:%s" % (len(packet), packet)

    def _take(self, content_type: str, body: bytes) -> None:
        for packet in _packets(content_type, body, self.eio):
            if packet[:1] == b"1":
                self.ended = True
            else:
                assert packet[:1] in (b"4", b"\x04")
                self.arrived.append(packet[1:].decode() if packet[:1] == b"4" else packet[1:])

    def _change(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def listen(self) -> None:
        self._takes = True
        self._change()

    async def send(self, *payloads: str | bytes) -> None:
        self._queue(*_payload(payloads, self.eio))
        await anyio.lowlevel.checkpoint()

    async def send_nonsense(self) -> None:
        self._queue(_TEXT, b"nonsense")
        await anyio.lowlevel.checkpoint()

    async def close(self, code: int, reason: str) -> None:
        self._queue(_TEXT, self._packet(b"1"))
        await anyio.lowlevel.checkpoint()

    def _queue(self, content_type: str, body: bytes) -> None:
        self._answers.append((content_type, body))
        self._change()

    def our_side_is_done(self) -> None:
        self.ended = True
        self._change()

    async def read(self) -> None:
        await self._changed.wait()

    async def vanish(self) -> None:
        self._gone = True
        self._change()
        await anyio.lowlevel.checkpoint()


def _payload(payloads: Sequence[str | bytes], eio: EIO) -> tuple[str, bytes]:
    """MESSAGE packets as a body: its content type and its bytes."""
    if eio == 4:
        packets = [
            b"4" + each.encode() if isinstance(each, str) else b"b" + base64.b64encode(each) for each in payloads
        ]
        return _TEXT, b"\x1e".join(packets)
    body = b""
    for each in payloads:
        packet = b"4" + each.encode() if isinstance(each, str) else b"\x04" + each
        digits = bytes(int(digit) for digit in str(len(packet)))
        body += bytes([isinstance(each, bytes)]) + digits + b"\xff" + packet
    return "application/octet-stream", body


def _packets(content_type: str, body: bytes, eio: EIO) -> list[bytes]:
    """The packets of a GET's body, binary ones with the byte 0x04 before them."""
    if eio == 4:
        return [
            b"\x04" + base64.b64decode(packet[1:]) if packet[:1] == b"b" else packet for packet in body.split(b"\x1e")
        ]
    packets = []
    while body:
        if content_type == "application/octet-stream":
            digits, _, body = body[1:].partition(b"\xff")
            length = int("".join(str(digit) for digit in digits))
        else:
            digits, _, body = body.partition(b":")
            length = int(digits)  # all of it is ASCII
        packets.append(body[:length])
        body = body[length:]
    return packets


class _Open(Protocol):
    def __call__(
        self, settings: Settings, eio: EIO, capacity: float
    ) -> AbstractAsyncContextManager[tuple[Transport, Peer]]: ...


@dataclass(frozen=True)
class Road:
    """One road, one side of it."""

    name: str
    opener: _Open
    trio_only: bool = False
    #: whether there are WebSocket close codes
    codes: bool = True
    #: whether the transport itself limits messages; polling's front door limits the bodies of requests
    limits: bool = True

    def __str__(self) -> str:
        return self.name

    @asynccontextmanager
    async def open(
        self, *, eio: EIO = 4, capacity: float = math.inf, settings: Settings = _DEFAULTS
    ) -> AsyncGenerator[tuple[Transport, Peer]]:
        """Our transport, and its peer.

        :param capacity: 0 for a peer that takes nothing unless it reads.
        """
        async with self.opener(settings, eio, capacity) as (transport, peer):
            yield transport, peer
            with anyio.move_on_after(0):
                await transport.aclose()


@asynccontextmanager
async def _stream(
    side: Side, settings: Settings, eio: EIO, capacity: float
) -> AsyncGenerator[tuple[StreamTransport, WsprotoPeer]]:
    kind = wsproto.ConnectionType.CLIENT if side is Side.SERVER else wsproto.ConnectionType.SERVER
    async with linked(capacity) as (here, there):
        websocket = WebSocket(here, Core(side, (), settings), settings)
        yield StreamTransport(websocket, eio), WsprotoPeer(eio, there, kind)


class _TrioBytes(ByteStream):
    """One end of a pair of Trio's memory streams, for a peer."""

    def __init__(self, stream: trio.StapledStream[Any, Any]) -> None:
        self._stream = stream

    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            data = await self._stream.receive_some(max_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise anyio.BrokenResourceError from exc
        if not data:
            raise anyio.EndOfStream
        return bytes(data)

    async def send(self, item: bytes) -> None:
        try:
            await self._stream.send_all(item)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise anyio.BrokenResourceError from exc

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


@asynccontextmanager
async def _trio_server(
    settings: Settings, eio: EIO, capacity: float
) -> AsyncGenerator[tuple[Transport, WebsocketsPeer]]:
    here, there = trio.testing.memory_stream_pair() if capacity else trio.testing.lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        peer = WebsocketsPeer(eio, _TrioBytes(there), ClientProtocol(parse_uri("ws://memory/"), max_size=None))
        nursery.start_soon(peer.handshake)
        request = await trio_websocket.wrap_server_stream(nursery, here)
        transport = await TrioWebSocketRequest(request, settings).accept(eio)
        await trio.testing.wait_all_tasks_blocked()
        yield transport, peer
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _trio_client(
    settings: Settings, eio: EIO, capacity: float
) -> AsyncGenerator[tuple[Transport, WebsocketsPeer]]:
    here, there = trio.testing.memory_stream_pair() if capacity else trio.testing.lockstep_stream_pair()

    async def connect(*_: object) -> object:
        await anyio.lowlevel.checkpoint()
        return here

    async with anyio.create_task_group() as tg:
        peer = WebsocketsPeer(eio, _TrioBytes(there), ServerProtocol(max_size=None))
        tg.start_soon(peer.handshake)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(our_trio_websocket, "_connect", connect)
            transport = await open_trio_websocket(
                httpx.URL("http://memory/"), headers={}, eio=eio, settings=settings, ssl_context=None, task_group=tg
            )
        yield transport, peer
        tg.cancel_scope.cancel()


@asynccontextmanager
async def _asgi(
    settings: Settings, eio: EIO, capacity: float
) -> AsyncGenerator[tuple[ASGIWebSocketTransport, ASGIPeer]]:
    peer = ASGIPeer(eio, capacity)
    try:
        yield ASGIWebSocketTransport(peer.asgi_receive, peer.asgi_send, eio, settings), peer
    finally:
        peer.close_streams()


@asynccontextmanager
async def _polling(settings: Settings, eio: EIO, capacity: float) -> AsyncGenerator[tuple[Transport, PollingPeer]]:
    transport = PollingTransport(eio, settings)
    async with anyio.create_task_group() as tg:
        peer = PollingPeer(eio, transport, polls=capacity > 0)
        tg.start_soon(peer.run)
        await anyio.wait_all_tasks_blocked()
        yield transport, peer
        tg.cancel_scope.cancel()


@asynccontextmanager
async def _polling_client(
    settings: Settings, eio: EIO, capacity: float
) -> AsyncGenerator[tuple[Transport, PollingServerPeer]]:
    peer = PollingServerPeer(eio, takes=capacity > 0)
    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(peer.answer)) as http,
        anyio.create_task_group() as tg,
    ):
        transport = await connect_polling(http, "http://memory/socket.io/", eio=eio, settings=settings, task_group=tg)
        assert [packet.type for packet in await transport.receive()] == [PacketType.OPEN]
        yield transport, peer
        tg.cancel_scope.cancel()


ROADS = [
    Road("stream-server", partial(_stream, Side.SERVER)),
    Road("stream-client", partial(_stream, Side.CLIENT)),
    Road("trio-websocket-server", _trio_server, trio_only=True),
    Road("trio-websocket-client", _trio_client, trio_only=True),
    Road("asgi", _asgi),
    Road("polling-server", _polling, codes=False, limits=False),
    Road("polling-client", _polling_client, codes=False),
]
