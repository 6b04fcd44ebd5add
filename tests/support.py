"""A server for a test, and a peer that speaks the wire by hand: no code of ours between the test and the bytes."""

from __future__ import annotations

import gc
import json
import math
import os
import socket
import ssl
import sys
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Self

import anyio
import anyio.lowlevel
import httpcore
import httpx
import uvicorn
from anyio.abc import ByteStream, Listener, TaskGroup, TaskStatus
from websockets.client import ClientProtocol
from websockets.extensions import ClientExtensionFactory
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

import brightsocket_anyio
from brightsocket_anyio import Bound, Brightsocket, Connection
from brightsocket_anyio.connection import ConnectionCore
from brightsocket_anyio.server import Server
from brightsocket_anyio.session import Session
from brightsocket_anyio.transports.httpx_polling import HttpxPollingTransport
from brightsocket_anyio.transports.sockets import SocketStream
from brightsocket_anyio.transports.stream import StreamTransport
from brightsocket_anyio.transports.watch import Watch, open_watch

from .streams import MemoryStream

#: seconds after which a test that waits for something has failed
PATIENCE = 60
#: where the package's own code lies
PACKAGE = str(Path(brightsocket_anyio.__file__).parent)


def echoing() -> Brightsocket:
    """An API whose one channel, ``WORK``, sends back what it hears by ``ECHO``."""
    api = Brightsocket()

    @api.connect("WORK")
    def work(connection: Connection) -> None:
        @connection.on("ECHO")
        async def echo(text: str) -> None:
            await connection.send("ECHO", text)

    return api


@contextmanager
def each_call(note: Callable[[FrameType], None]) -> Generator[None]:
    """Has ``note`` told of each call of one of the package's functions; of a coroutine, each time that it goes on."""

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            note(frame)

    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(None)


@asynccontextmanager
async def serving(api: Brightsocket, **options: Any) -> AsyncGenerator[Bound]:
    """The API behind the embedded server, on a free port."""
    async with anyio.create_task_group() as tg:
        bound: Bound = await tg.start(lambda *, task_status: api.serve(port=0, task_status=task_status, **options))
        yield bound
        tg.cancel_scope.cancel()


async def serve_in(api: Brightsocket, scope: anyio.CancelScope, *, task_status: TaskStatus[Bound]) -> None:
    """Serve the API on a free port until a scope is cancelled."""
    with scope:
        await api.serve(port=0, task_status=task_status)


@asynccontextmanager
async def behind_uvicorn(api: Brightsocket) -> AsyncGenerator[Bound]:
    """The API behind uvicorn, on asyncio's loop, which runs already."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(api, ws="websockets-sansio", log_level="error"))
        async with anyio.create_task_group() as tg:
            tg.start_soon(server.serve, [listener])
            await until(lambda: server.started)
            port = listener.getsockname()[1]
            try:
                yield Bound((("127.0.0.1", port),), f"http://127.0.0.1:{port}")
            finally:
                server.should_exit = True


@asynccontextmanager
async def pairs(count: int) -> AsyncIterator[tuple[Watch, list[tuple[SocketStream, socket.socket]]]]:
    """A watch, and streams in its care with their other ends."""
    async with open_watch() as watch:
        assert watch is not None
        both: list[tuple[SocketStream, socket.socket]] = []
        try:
            for _ in range(count):
                here, there = socket.socketpair()
                both.append((SocketStream(here, None, watch), there))
            yield watch, both
        finally:
            for stream, there in both:
                stream.close_nowait()
                there.close()


class MemoryListener(Listener[ByteStream]):
    """A listener without a network, for virtual time and for peers that stop reading.

    :param capacity: how many writes each direction of a connection holds before the next one waits.
    """

    def __init__(self, capacity: float = math.inf) -> None:
        self._capacity = capacity
        self._arriving, self._arrived = anyio.create_memory_object_stream[MemoryStream](1000)

    async def serve(self, handler: Callable[[ByteStream], Any], task_group: TaskGroup | None = None) -> None:
        async with anyio.create_task_group() as own, self._arrived.clone() as arrived:
            async for stream in arrived:
                (task_group or own).start_soon(handler, stream)

    async def aclose(self) -> None:
        self._arriving.close()
        self._arrived.close()
        await anyio.lowlevel.checkpoint()

    def connect(self, capacity: float | None = None) -> MemoryStream:
        """The client's end of a new connection."""
        size = self._capacity if capacity is None else capacity
        there_send, there_receive = anyio.create_memory_object_stream[bytes](size)
        back_send, back_receive = anyio.create_memory_object_stream[bytes](size)
        self._arriving.send_nowait(MemoryStream(back_send, there_receive))
        return MemoryStream(there_send, back_receive)

    def http(self) -> httpx.AsyncClient:
        """What takes ``open_client`` here, whatever its URL."""
        transport = httpx.AsyncHTTPTransport()
        transport._pool = httpcore.AsyncConnectionPool(network_backend=_MemoryNetwork(self))
        return httpx.AsyncClient(transport=transport)


class _MemoryNetwork(httpcore.AsyncNetworkBackend):
    def __init__(self, listener: MemoryListener) -> None:
        self._listener = listener

    async def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        await anyio.lowlevel.checkpoint()
        return _MemoryNetworkStream(self._listener.connect())


class _MemoryNetworkStream(httpcore.AsyncNetworkStream):
    def __init__(self, stream: MemoryStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            with anyio.fail_after(timeout):
                return await self._stream.receive(max_bytes)
        except anyio.EndOfStream:
            return b""
        except anyio.ClosedResourceError as exc:
            raise httpcore.ReadError from exc

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            with anyio.fail_after(timeout):
                if buffer:
                    await self._stream.send(buffer)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as exc:
            raise httpcore.WriteError from exc

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise NotImplementedError

    def get_extra_info(self, info: str) -> Any:
        return None


@asynccontextmanager
async def serving_in_memory(api: Brightsocket, capacity: float = math.inf) -> AsyncGenerator[MemoryListener]:
    """The API behind the embedded server, on a :class:`MemoryListener`, which stands for a ``bound`` below."""
    listener = MemoryListener(capacity)
    async with anyio.create_task_group() as tg:
        await tg.start(lambda *, task_status: api.serve(listeners=[listener], task_status=task_status))
        yield listener
        tg.cancel_scope.cancel()


def here() -> int:
    """The current task's identity, while it lives."""
    return anyio.get_current_task().id


async def until(condition: Callable[[], object]) -> None:
    """Let the other tasks run until a condition holds."""
    with anyio.fail_after(PATIENCE):
        while not condition():
            await anyio.lowlevel.checkpoint()


def census() -> Counter[str]:
    """What is alive and must not outlive its scope: our objects by class, file descriptors, the loop's tasks."""
    gc.collect()
    kinds = (Server, Session, ConnectionCore, Connection, StreamTransport, HttpxPollingTransport)
    counts = Counter(type(each).__name__ for each in gc.get_objects() if isinstance(each, kinds))
    counts["descriptors"] = len(os.listdir("/proc/self/fd"))
    counts["tasks"] = len(anyio.get_running_tasks())
    return counts


async def census_at_rest() -> Counter[str]:
    """The same, once what was about to end has ended: tasks do so a moment after the sessions that they served."""
    before, after = None, census()
    with anyio.fail_after(PATIENCE):
        while before != after:
            await anyio.wait_all_tasks_blocked()
            before, after = after, census()
    return after


class Raw:
    """A WebSocket whose messages the test writes and reads itself.

    :ivar patience: seconds after which every wait ends with an error.
    """

    def __init__(self, stream: ByteStream, protocol: ClientProtocol) -> None:
        self.stream = stream
        self.protocol = protocol
        self.messages: list[str | bytes] = []
        self.sid = ""
        self.patience: float = PATIENCE
        self._writing = anyio.Lock()

    async def send(self, *messages: str | bytes) -> None:
        for message in messages:
            if isinstance(message, str):
                self.protocol.send_text(message.encode())
            else:
                self.protocol.send_binary(message)
        await self._flush()

    async def event(self, name: str, *args: Any, namespace: str = "/", id: int | str = "") -> None:
        """Send a Socket.IO EVENT."""
        prefix = "" if namespace == "/" else f"{namespace},"
        await self.send(f"42{prefix}{id}{json.dumps([name, *args])}")

    async def identify(self, channel: str, **identity: Any) -> None:
        await self.event("BRIGHTSOCKET:IDENTIFY", {"BRIGHTSOCKET:CHANNEL": channel, **identity})

    async def receive(self) -> str | bytes:
        """The next message; raises :exc:`anyio.EndOfStream` at the end."""
        with anyio.fail_after(self.patience):
            while not self.messages:
                await self._read()
            return self.messages.pop(0)

    async def expect(self, *wanted: str | bytes) -> None:
        """The next messages are just these."""
        for each in wanted:
            received = await self.receive()
            assert received == each, f"{received!r}, not {each!r}"

    async def expect_identified(self) -> None:
        """The next message lets this peer in, whatever it says for a later recovery."""
        message = str(await self.receive())
        assert message.startswith("42"), message
        assert json.loads(message[2:])[0] == "BRIGHTSOCKET:IDENTIFIED"

    async def expect_event(self, name: str, *args: Any) -> None:
        """The next message is this EVENT on the main namespace."""
        message = await self.receive()
        assert isinstance(message, str)
        assert message.startswith("42"), message
        assert json.loads(message[2:]) == [name, *args]

    async def expect_end(self) -> int | None:
        """Nothing more comes but the end; returns the WebSocket's close code, ``None`` for a bare end of the bytes."""
        try:
            message = await self.receive()
        except anyio.EndOfStream:
            close = self.protocol.close_rcvd
            return None if close is None else int(close.code)
        raise AssertionError(f"the peer sent {message!r} instead of ending")

    async def drain(self) -> list[str | bytes]:
        """Everything up to the end."""
        messages = []
        while True:
            try:
                messages.append(await self.receive())
            except anyio.EndOfStream:
                return messages

    async def vanish(self) -> None:
        """Close the TCP connection without a word."""
        await anyio.aclose_forcefully(self.stream)

    async def _flush(self) -> None:
        # a reader that has nothing to write must not wait for a writer that waits for the peer
        if data := b"".join(self.protocol.data_to_send()):
            async with self._writing:
                await self.stream.send(data)

    async def _read(self) -> None:
        try:
            self.protocol.receive_data(await self.stream.receive())
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as exc:
            raise anyio.EndOfStream from exc
        for event in self.protocol.events_received():
            if isinstance(event, Frame) and event.opcode in (Opcode.TEXT, Opcode.BINARY):
                data = bytes(event.data)
                self.messages.append(data.decode() if event.opcode is Opcode.TEXT else data)
        await self._flush()

    async def handshake(self) -> Self:
        self.protocol.send_request(self.protocol.connect())
        await self._flush()
        with anyio.fail_after(PATIENCE):
            while self.protocol.state.name == "CONNECTING" and self.protocol.handshake_exc is None:
                await self._read()
        if self.protocol.handshake_exc is not None:
            raise self.protocol.handshake_exc
        return self


@asynccontextmanager
async def raw(
    bound: Bound | MemoryListener,
    *,
    eio: int = 4,
    path: str = "/socket.io/",
    query: str = "",
    extensions: Sequence[ClientExtensionFactory] = (),
) -> AsyncGenerator[Raw]:
    """A raw peer whose WebSocket is open and whose open packet has been read (``sid``), unless ``query`` is given."""
    query = query or f"EIO={eio}&transport=websocket"
    stream: ByteStream
    if isinstance(bound, MemoryListener):
        host, port = "memory", 80
        stream = bound.connect()
    else:
        address = bound.addresses[0]
        host, port = str(address[0]), int(address[1])
        stream = await anyio.connect_tcp(host, port)
    async with stream:
        uri = parse_uri(f"ws://{host}:{port}{path}?{query}")
        protocol = ClientProtocol(uri, extensions=extensions or None, max_size=None)
        peer = await Raw(stream, protocol).handshake()
        if "sid=" not in query:
            opened = await peer.receive()
            assert isinstance(opened, str)
            peer.sid = json.loads(opened[1:])["sid"]
        yield peer


@asynccontextmanager
async def joined(
    bound: Bound | MemoryListener, *, eio: int = 4, extensions: Sequence[ClientExtensionFactory] = ()
) -> AsyncGenerator[Raw]:
    """A raw peer on the main namespace."""
    async with raw(bound, eio=eio, extensions=extensions) as peer:
        if eio == 4:
            await peer.send("40")
        message = await peer.receive()
        assert isinstance(message, str)
        assert message.startswith("40")
        yield peer


@asynccontextmanager
async def identified(
    bound: Bound | MemoryListener, channel: str, *, eio: int = 4, **identity: Any
) -> AsyncGenerator[Raw]:
    """A raw peer that has been let into a channel."""
    async with joined(bound, eio=eio) as peer:
        await peer.identify(channel, **identity)
        await peer.expect_identified()
        yield peer
