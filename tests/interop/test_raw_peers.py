"""Clients of ``websockets`` and ``wsproto`` that write Socket.IO by hand, whole, in fragments, and wrongly."""

from __future__ import annotations

import json
import re
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Self
from urllib.parse import urlsplit

import anyio
import pytest
import wsproto
import wsproto.events
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from brightsocket_anyio import Brightsocket, Connection
from tests.support import PATIENCE, serving, until


@pytest.fixture(scope="session", autouse=True)
def node() -> None:
    """No peer here runs on Node."""


class Closed(Exception):
    """The server has closed the WebSocket, with a code."""


class Peer(ABC):
    """A WebSocket of one of the libraries, as a blocking client."""

    @abstractmethod
    def send(self, *fragments: str | bytes) -> None:
        """Send a message, in so many fragments; behind each but the last, send a ping and wait for its pong."""

    @abstractmethod
    def receive(self) -> str | bytes:
        """:raises Closed: the server has closed the WebSocket."""

    @abstractmethod
    def send_raw(self, data: bytes) -> None:
        """Write bytes past the library."""

    @abstractmethod
    def close(self, code: int) -> None:
        """Close the WebSocket, and wait for the server to answer with the same code."""

    def drain(self) -> None:
        """Read until the end; raises what :meth:`receive` raises."""
        while True:
            self.receive()


class WebsocketsPeer(Peer):
    """That of ``websockets``, which reads in a thread of its own."""

    def __init__(self, websocket: ClientConnection) -> None:
        self._websocket = websocket

    @classmethod
    @contextmanager
    def open(cls, url: str) -> Iterator[Self]:
        with connect(url, compression=None, ping_interval=None, close_timeout=PATIENCE) as websocket:
            yield cls(websocket)

    def send(self, *fragments: str | bytes) -> None:
        if len(fragments) == 1:
            self._websocket.send(fragments[0])
        else:
            # this ends the message with an empty fragment
            self._websocket.send(self._with_pings(fragments))

    def _with_pings(self, fragments: tuple[str | bytes, ...]) -> Iterator[Any]:
        for fragment in fragments:
            yield fragment
            assert self._websocket.ping().wait(PATIENCE)

    def receive(self) -> str | bytes:
        try:
            return self._websocket.recv(PATIENCE)
        except ConnectionClosed as exc:
            raise Closed(exc.rcvd and exc.rcvd.code) from None

    def send_raw(self, data: bytes) -> None:
        self._websocket.socket.sendall(data)

    def close(self, code: int) -> None:
        self._websocket.close(code)
        assert self._websocket.close_code == code


class WsprotoPeer(Peer):
    """That of ``wsproto``, over a socket."""

    def __init__(self, connection: socket.socket, host: str, target: str) -> None:
        self._socket = connection
        self._core = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        self._messages: list[str | bytes] = []
        self._parts: list[Any] = []
        self._pongs = 0
        self._accepted = False
        self._write(wsproto.events.Request(host=host, target=target))
        while not self._accepted:
            self._read()

    @classmethod
    @contextmanager
    def open(cls, url: str) -> Iterator[Self]:
        parts = urlsplit(url)
        assert parts.hostname is not None
        with socket.create_connection((parts.hostname, parts.port or 80), PATIENCE) as connection:
            yield cls(connection, parts.netloc, f"{parts.path}?{parts.query}")

    def send(self, *fragments: str | bytes) -> None:
        for number, fragment in enumerate(fragments, 1):
            last = number == len(fragments)
            if isinstance(fragment, str):
                self._write(wsproto.events.TextMessage(data=fragment, message_finished=last))
            else:
                self._write(wsproto.events.BytesMessage(data=fragment, message_finished=last))
            if not last:
                pongs = self._pongs
                self._write(wsproto.events.Ping(b"still there?"))
                while self._pongs == pongs:
                    self._read()

    def receive(self) -> str | bytes:
        while not self._messages:
            self._read()
        return self._messages.pop(0)

    def send_raw(self, data: bytes) -> None:
        self._socket.sendall(data)

    def close(self, code: int) -> None:
        self._write(wsproto.events.CloseConnection(code))
        with pytest.raises(Closed, match=str(code)):
            self.drain()

    def _write(self, event: wsproto.events.Event) -> None:
        self._socket.sendall(self._core.send(event))

    def _read(self) -> None:
        self._core.receive_data(self._socket.recv(65536) or None)
        for event in self._core.events():
            match event:
                case wsproto.events.AcceptConnection():
                    self._accepted = True
                case wsproto.events.Message(data=data, message_finished=finished):
                    self._parts.append(data if isinstance(data, str) else bytes(data))
                    if finished:
                        self._messages.append(type(self._parts[0])().join(self._parts))
                        self._parts.clear()
                case wsproto.events.Pong():
                    self._pongs += 1
                case wsproto.events.CloseConnection():
                    if self._core.state is wsproto.connection.ConnectionState.REMOTE_CLOSING:
                        self._write(event.response())
                    raise Closed(event.code)


Library = Callable[[str], AbstractContextManager[Peer]]
Script = Callable[[Peer], None]
libraries = pytest.mark.parametrize("library", [WebsocketsPeer.open, WsprotoPeer.open], ids=["websockets", "wsproto"])


async def run(library: Library, script: Script, *, eio: int = 4, **settings: Any) -> None:
    """Run a peer's script in a thread; nothing of its session is left."""
    api = Brightsocket(**settings)
    ends = 0

    @api.connect("/raw")
    async def channel(connection: Connection) -> None:
        nonlocal ends

        @connection.on("ECHO")
        async def echo(*values: Any) -> tuple[Any, ...]:
            return values

        try:
            await connection.accept()
            await anyio.sleep_forever()
        finally:
            # a peer that hears of the acceptance may be gone again before this function does
            ends += 1

    def play(url: str) -> None:
        with library(url) as peer:
            script(peer)

    async with serving(api) as bound:
        url = f"{bound.url.replace('http', 'ws')}/socket.io/?EIO={eio}&transport=websocket"
        await anyio.to_thread.run_sync(partial(play, url))
        await until(lambda: ends == 1)


def join(peer: Peer, *, eio: int = 4) -> None:
    opened = peer.receive()
    assert isinstance(opened, str)
    assert opened[0] == "0"
    assert json.loads(opened[1:]).keys() >= {"sid", "upgrades", "pingInterval", "pingTimeout"}
    if eio == 3:
        assert peer.receive() == "40"
    peer.send("40/raw,")
    joined = peer.receive()
    assert isinstance(joined, str)
    assert re.fullmatch(r"40/raw" if eio == 3 else r'40/raw,\{"sid":"[^"]+"\}', joined.rstrip(",")), joined


@libraries
async def test_fragments_and_pings_between_them(library: Library) -> None:
    def script(peer: Peer) -> None:
        join(peer)
        peer.send("4", "2/raw", ',0["ECHO","', "Grüße", " 🚀", '"]', "")
        assert peer.receive() == '43/raw,0["Grüße 🚀"]'
        peer.close(1000)

    await run(library, script)


@libraries
async def test_bytes_behind_their_header(library: Library) -> None:
    def script(peer: Peer) -> None:
        join(peer)
        one, two = '{"_placeholder":true,"num":0}', '{"_placeholder":true,"num":1}'
        peer.send("452-/raw,", f'0["ECHO",{two},', f"[{one}]]")
        peer.send(b"\x01\x02", b"", b"\x03")
        # what belongs to Engine.IO alone may be between them
        peer.send("3")
        peer.send(b"")
        # numbered anew, in the order in which they are in the answer
        assert peer.receive() == f"462-/raw,0[{one},[{two}]]"
        assert peer.receive() == b""
        assert peer.receive() == b"\x01\x02\x03"
        peer.close(3000)

    await run(library, script)


@libraries
async def test_bytes_of_the_older_protocol(library: Library) -> None:
    def script(peer: Peer) -> None:
        join(peer, eio=3)
        peer.send('451-/raw,0["ECHO",{"_placeholder":true,"num":0}]')
        peer.send(b"\x04", b"\x01\x02")
        assert peer.receive() == '461-/raw,0[{"_placeholder":true,"num":0}]'
        assert peer.receive() == b"\x04\x01\x02"
        peer.close(1000)

    await run(library, script, eio=3)


@libraries
async def test_the_server_pings(library: Library) -> None:
    def script(peer: Peer) -> None:
        join(peer)
        for _ in range(3):
            assert peer.receive() == "2"
            peer.send("3")
        peer.send("2")
        with pytest.raises(Closed, match="1002"):
            peer.drain()

    await run(library, script, ping_interval=0.05, ping_timeout=PATIENCE)


@libraries
async def test_the_client_pings_in_the_older_protocol(library: Library) -> None:
    def script(peer: Peer) -> None:
        join(peer, eio=3)
        peer.send("2")
        assert peer.receive() == "3"
        peer.send("2probe")
        assert peer.receive() == "3probe"
        peer.close(1000)

    await run(library, script, eio=3, ping_interval=0.05, ping_timeout=PATIENCE)


@libraries
async def test_the_client_says_goodbye(library: Library) -> None:
    def script(peer: Peer) -> None:
        join(peer)
        peer.send("41/raw,")
        peer.send("1")
        with pytest.raises(Closed, match="1000"):
            peer.receive()

    await run(library, script)


def frame(first: int, payload: bytes = b"", *, masked: bool = True) -> bytes:
    """One frame of up to 125 bytes, or 126 in a longer form; masked by zeros."""
    length = bytes([len(payload)]) if len(payload) < 126 else bytes([126]) + len(payload).to_bytes(2, "big")
    return bytes([first, length[0] | masked << 7]) + length[1:] + bytes(4 * masked) + payload


BAD_FRAMES = {
    "an RSV bit": (frame(0xC1, b"3"), 1002),
    "an unknown opcode": (frame(0x83, b"3"), 1002),
    "an unknown control opcode": (frame(0x8B), 1002),
    "no mask": (frame(0x81, b"3", masked=False), 1002),
    "a control frame of 126 bytes": (frame(0x89, b"x" * 126), 1002),
    "a ping in fragments": (frame(0x09, b"x"), 1002),
    "a continuation of nothing": (frame(0x80, b"3"), 1002),
    "a message inside another one": (frame(0x01, b"4") + frame(0x81, b"3"), 1002),
    "no UTF-8": (frame(0x81, b"4\xff"), 1007),
    "no UTF-8 across fragments": (frame(0x01, b"4\xc3") + frame(0x80, b"\x28"), 1007),
    "a message above the limit": (bytes([0x81, 0xFF]) + (2_000_000).to_bytes(8, "big") + bytes(4), 1009),
    "a close frame of one byte": (frame(0x88, b"\x03"), 1002),
    "a close code that is for no frame": (frame(0x88, (1005).to_bytes(2, "big")), 1002),
    "a close reason that is no UTF-8": (frame(0x88, (1000).to_bytes(2, "big") + b"\xff"), 1007),
}


@libraries
@pytest.mark.parametrize(("data", "code"), BAD_FRAMES.values(), ids=BAD_FRAMES.keys())
async def test_bad_frames(library: Library, data: bytes, code: int) -> None:
    def script(peer: Peer) -> None:
        join(peer)
        peer.send_raw(data)
        with pytest.raises(Closed, match=str(code)):
            peer.receive()

    await run(library, script)
