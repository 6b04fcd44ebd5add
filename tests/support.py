"""A server for a test, and a peer that speaks the wire by hand: no code of ours between the test and the bytes."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Self

import anyio
from anyio.abc import ByteStream
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

from brightsocket_anyio import Bound, Brightsocket

#: seconds after which a test that waits for something has failed
PATIENCE = 10


@asynccontextmanager
async def serving(api: Brightsocket, **options: Any) -> AsyncGenerator[Bound]:
    """The API behind the embedded server, on a free port."""
    async with anyio.create_task_group() as tg:
        bound: Bound = await tg.start(lambda *, task_status: api.serve(port=0, task_status=task_status, **options))
        yield bound
        tg.cancel_scope.cancel()


class Raw:
    """A WebSocket whose messages the test writes and reads itself. Every wait ends with an error after ``PATIENCE``."""

    def __init__(self, stream: ByteStream, protocol: ClientProtocol) -> None:
        self.stream = stream
        self.protocol = protocol
        self.messages: list[str | bytes] = []
        self.sid = ""

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
        with anyio.fail_after(PATIENCE):
            while not self.messages:
                await self._read()
            return self.messages.pop(0)

    async def expect(self, *wanted: str | bytes) -> None:
        """The next messages are just these."""
        for each in wanted:
            received = await self.receive()
            assert received == each, f"{received!r}, not {each!r}"

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
        for data in self.protocol.data_to_send():
            if data:
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
async def raw(bound: Bound, *, eio: int = 4, path: str = "/socket.io/", query: str = "") -> AsyncGenerator[Raw]:
    """A raw peer whose WebSocket is open and whose open packet has been read (``sid``), unless ``query`` is given."""
    host, port = bound.addresses[0]
    query = query or f"EIO={eio}&transport=websocket"
    stream = await anyio.connect_tcp(str(host), int(port))
    async with stream:
        protocol = ClientProtocol(parse_uri(f"ws://{host}:{port}{path}?{query}"), max_size=None)
        peer = await Raw(stream, protocol).handshake()
        if "sid=" not in query:
            opened = await peer.receive()
            assert isinstance(opened, str)
            peer.sid = json.loads(opened[1:])["sid"]
        yield peer


@asynccontextmanager
async def joined(bound: Bound, *, eio: int = 4) -> AsyncGenerator[Raw]:
    """A raw peer on the main namespace."""
    async with raw(bound, eio=eio) as peer:
        if eio == 4:
            await peer.send("40")
        message = await peer.receive()
        assert isinstance(message, str)
        assert message.startswith("40")
        yield peer


@asynccontextmanager
async def identified(bound: Bound, channel: str, *, eio: int = 4, **identity: Any) -> AsyncGenerator[Raw]:
    """A raw peer that has been let into a channel."""
    async with joined(bound, eio=eio) as peer:
        await peer.identify(channel, **identity)
        await peer.expect('42["BRIGHTSOCKET:IDENTIFIED"]')
        yield peer
