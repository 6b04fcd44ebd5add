"""What is fuzzed: functions that take any bytes, and raise only if there is a bug; with examples to begin from."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Literal

import anyio
import trio.testing

from brightsocket_anyio import Brightsocket, Connection, ProtocolError
from brightsocket_anyio.protocol import engineio, jsontext, socketio
from brightsocket_anyio.protocol.engineio import PacketType
from brightsocket_anyio.protocol.state import (
    Automaton,
    Ended,
    Expired,
    Identifying,
    Joining,
    Road,
    Side,
    Stay,
)
from brightsocket_anyio.settings import Settings

from ..streams import TEXT, frame
from ..support import MemoryListener, serving_in_memory

EIO = Literal[3, 4]
Target = Callable[[bytes], None]

_SETTINGS = Settings(max_payload=10_000)
_VERSIONS: tuple[EIO, ...] = (3, 4)
#: seconds of virtual time, in which every deadline of a server's has passed
_LONG = 10_000


def packets(data: bytes) -> None:
    """A WebSocket message, and what it says when it is sent again."""
    for eio in _VERSIONS:
        for message in (data, data.decode(errors="surrogateescape")):
            try:
                packet = engineio.decode(message, eio)
            except ProtocolError:
                continue
            assert engineio.decode(engineio.encode(packet, eio), eio) == packet
            if packet.type is PacketType.OPEN:
                _may_be_wrong(engineio.Open.from_packet, packet)


def payloads(data: bytes) -> None:
    """A polling request's body."""
    for eio in _VERSIONS:
        for binary in (False, True):
            try:
                found = engineio.decode_payload(data, eio, binary=binary, max_packets=50)
            except ProtocolError:
                continue
            assert 1 <= len(found) <= 50
            kind, body = engineio.encode_payload(found, eio, base64=False)
            again = engineio.decode_payload(body, eio, binary=kind == engineio.BINARY, max_packets=50)
            assert [packet.type for packet in again] == [packet.type for packet in found]


def json_text(data: bytes) -> None:
    """What is let in can be sent, and is the same when it comes back."""
    try:
        value = jsontext.loads(data.decode(errors="surrogateescape"))
    except ProtocolError:
        return
    for ascii in (False, True):
        text, attachments = jsontext.dumps(value, ascii=ascii)
        assert not attachments
        assert jsontext.loads(text) == value


def socketio_packets(data: bytes) -> None:
    """Messages, one a line; those that begin with ``b`` are attachments."""
    protocols: tuple[Literal[4, 5], ...] = (4, 5)
    for protocol in protocols:
        decoder = socketio.Decoder(protocol, max_attachments=3)
        try:
            for line in data.split(b"\n"):
                packet = decoder.feed(line[1:] if line[:1] == b"b" else line.decode(errors="surrogateescape"))
                assert packet is None or not decoder.pending
        except ProtocolError:
            continue


def sessions(data: bytes) -> None:
    """Packets, one a line; a line that begins with ``t`` lets as many seconds go by as its next byte says."""
    lines = data.split(b"\n")
    for side in Side:
        for eio in _VERSIONS:
            _live(Automaton(side, eio, _SETTINGS, sid="sid", now=0), lines)


def _live(automaton: Automaton, lines: Sequence[bytes]) -> None:
    now = 0.0
    if automaton.side is Side.SERVER:
        automaton.open(now, polling=False)
    for line in lines:
        if line[:1] == b"t":
            now += line[1] if len(line) > 1 else 0
            # each of its timers may ring, for each of its namespaces
            for _ in range(_SETTINGS.max_namespaces + 10):
                came_due = automaton.expire(now)
                if came_due is None or isinstance(came_due, Ended):
                    break
                if isinstance(came_due, Expired):
                    automaton.refuse(came_due.namespace, now, "late")
            else:
                raise AssertionError("its deadlines have no end")
            if isinstance(came_due, Ended):
                return
        else:
            message = line[1:] if line[:1] == b"b" else line.decode(errors="surrogateescape")
            try:
                event = automaton.receive(engineio.decode(message, automaton.eio), now)
            except ProtocolError:
                return
            if isinstance(event, Ended):
                return
            if isinstance(event, Joining) and event.namespace == "/":
                automaton.admit(now, "id")
            elif isinstance(event, Joining):
                automaton.refuse(event.namespace, now, "no")
            elif isinstance(event, Identifying) and automaton.stay("/") is Stay.IDENTIFYING:
                automaton.accept("/", now, "id")
        assert all(reply.type in (PacketType.PING, PacketType.PONG) for reply in automaton.take_replies())
        assert len(automaton._stays) <= _SETTINGS.max_namespaces
        assert automaton.road is Road.CLOSED or automaton.deadline < float("inf")


def http(data: bytes) -> None:
    """What comes on a connection of the embedded server's."""
    _run(_converse, data)


def websocket(data: bytes) -> None:
    """What comes on a WebSocket, after its handshake."""
    _run(_converse, UPGRADE + data)


def polling(data: bytes) -> None:
    """The body of a POST, in a session of each version."""
    _run(_post, data)


async def _converse(listener: MemoryListener, data: bytes) -> None:
    async with listener.connect() as stream:
        await stream.send(data)
        await stream.send_eof()
        with anyio.fail_after(_LONG):
            while True:
                try:
                    await stream.receive()
                except anyio.EndOfStream:
                    return


async def _post(listener: MemoryListener, data: bytes) -> None:
    async with listener.http() as http:
        for eio in _VERSIONS:
            for kind in (engineio.TEXT, engineio.BINARY):
                url = f"http://memory/socket.io/?EIO={eio}&transport=polling"
                answer = await http.get(url)
                sid = json.loads(answer.text[answer.text.index("{") : answer.text.index("}") + 1])["sid"]
                answered = await http.post(f"{url}&sid={sid}", content=data, headers={"content-type": kind})
                assert answered.status_code in (200, 400, 413), answered.status_code


def _run(talk: Callable[[MemoryListener, bytes], Awaitable[None]], data: bytes) -> None:
    async def main() -> None:
        with _no_errors_logged():
            async with _serving() as (api, listener):
                await talk(listener, data)
            assert len(api.pool) == 0

    # every deadline comes at once, so whatever waits for ever is an error that says so
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@asynccontextmanager
async def _serving() -> AsyncGenerator[tuple[Brightsocket, MemoryListener]]:
    api = Brightsocket(max_payload=_SETTINGS.max_payload)

    @api.connect("/")
    @api.connect("X")
    async def channel(connection: Connection) -> None:
        @connection.on("ECHO")
        def echo(*values: object) -> object:
            return values

    async with serving_in_memory(api) as listener:
        yield api, listener


class _Noting(logging.Handler):
    """Keeps what a server logs as an error, which no peer may bring about."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())


@contextmanager
def _no_errors_logged() -> Generator[None]:
    handler = _Noting()
    logger = logging.getLogger("brightsocket_anyio")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    assert not handler.found


def _may_be_wrong(function: Callable[[engineio.Packet], object], packet: engineio.Packet) -> None:
    try:
        function(packet)
    except ProtocolError:
        return


#: the handshake that comes before the frames
UPGRADE = b"\r\n".join(
    [
        b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1",
        b"Host: memory",
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        b"\r\n",
    ]
)

_MESSAGES = [
    b"40", b'40{"token":1}', b"41", b'42["X",1,null]', b'4217["X"]', b'42/chat,["X"]', b"430[]", b'44{"message":"no"}',
    b'42["BRIGHTSOCKET:IDENTIFY",{"BRIGHTSOCKET:CHANNEL":"X"}]', b'42["BRIGHTSOCKET:IDENTIFIED"]', b"2", b"3",
    b"2probe", b"5", b"6", b"1", b'451-["X",{"_placeholder":true,"num":0}]\nbdata',
]  # fmt: skip
_OPEN = b'0{"sid":"x","upgrades":["websocket"],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1000000}'
_JSON = [b'[1,-2.5e3,"\\u00e9",true,null,{"a":[]}]', b"9007199254740993", b"[[[[]]]]", b'"\\ud800"', b"NaN", b"1e999"]

#: each target, with examples of what it takes
TARGETS: dict[str, tuple[Target, list[bytes]]] = {
    "packets": (packets, [*_MESSAGES, _OPEN, b"bAAEC", b"b4AAEC", b"\x04data"]),
    "payloads": (
        payloads,
        [
            b"40\x1e2\x1ebAAEC", b"2:406:4\xc3\xa9bcde", b"5:b4AAE", b"\x00\x02\xff40\x01\x05\xff\x04data",
            "3:4é\U0001f600".encode(),
        ],
    ),
    "json_text": (json_text, _JSON),
    "socketio_packets": (
        socketio_packets,
        [
            *(message[1:] for message in _MESSAGES if message[:1] == b"4"), b"0/chat?token=1,",
            b'52-/chat,7["X",{"_placeholder":true,"num":1},[{"_placeholder":true,"num":0}]]\nbone\nbtwo',
        ],
    ),
    "sessions": (
        sessions,
        [b"\n".join(_MESSAGES[:1] + _MESSAGES[3:9]), b"\n".join([_OPEN, *_MESSAGES]), b"40\nt\x14\n3\nt\xff"],
    ),
    "http": (
        http,
        [
            UPGRADE + frame(TEXT, b"40"),
            b"GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: memory\r\n\r\n",
            b"POST /socket.io/?EIO=3&transport=polling&sid=x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n1:2\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
            b"GET /socket.io/health HTTP/1.0\r\n\r\n",
        ],
    ),
    "websocket": (
        websocket,
        [
            b"".join(frame(TEXT, message) for message in [b"40", *_MESSAGES[3:7]]),
            frame(TEXT, b"4", fin=False) + frame(0, b"0") + frame(9, b"x") + frame(8, b"\x03\xe8bye"),
            frame(2, b"data") + frame(TEXT, b"x" * 200, rsv=4),
        ],
    ),
    "polling": (polling, [b"40\x1e42[\"X\"]", b"2:407:42[\"X\"]", b"\x00\x02\xff40", b"1", b"1:1", b"2:407:1:12:4]"]),
}  # fmt: skip
