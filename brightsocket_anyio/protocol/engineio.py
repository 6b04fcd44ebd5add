"""Engine.IO packets, protocols 3 and 4: as WebSocket messages and as the bodies of long-polling requests.

Whatever a peer sends is decoded or is a :exc:`~brightsocket_anyio.errors.ProtocolError`, never anything else.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, Literal

import orjson

from ..errors import ProtocolError

TEXT: Final = "text/plain; charset=UTF-8"
BINARY: Final = "application/octet-stream"

_SEPARATOR = "\x1e"
_MESSAGE_BYTE = b"\x04"
_LENGTH = re.compile(r"([0-9]{1,10}):")
_BINARY_LENGTH = re.compile(rb"([\x00\x01])([\x00-\x09]{1,10})\xff")


class PacketType(IntEnum):
    """What an Engine.IO packet is for; the value is the digit on the wire."""

    OPEN = 0
    CLOSE = 1
    PING = 2
    PONG = 3
    MESSAGE = 4
    UPGRADE = 5
    NOOP = 6


# Enum's own is Python code, and every message is looked up by its type
PacketType.__hash__ = int.__hash__  # type: ignore[method-assign]

_DIGITS = tuple(str(type.value) for type in PacketType)
_TYPES = {str(type.value): type for type in PacketType}


class Packet:
    """An Engine.IO packet. Not to be changed once made: a broadcast shares one packet among all sessions.

    :param type: what it is for.
    :param data: its content; bytes for a MESSAGE only.
    :raises ValueError: other packets have no bytes, and lone surrogates have no form on the wire.
    :ivar size: bytes on the wire, but for framing; every buffer counts it.
    :ivar forms: of a packet that is sent more than once: what has been made of it for that, each under a key of its
        own; ``None`` for any other packet.
    """

    __slots__ = ("data", "forms", "size", "type")

    def __init__(self, type: PacketType, data: str | bytes = "") -> None:
        if isinstance(data, str):
            self.size: int = 1 + (len(data) if data.isascii() else len(data.encode()))
        elif type is PacketType.MESSAGE:
            self.size = 1 + len(data)
        else:
            raise ValueError(f"{type.name} carries text only")
        self.type: PacketType = type
        self.data: str | bytes = data
        self.forms: dict[Any, Any] | None = None

    def share(self) -> None:
        """It is about to be sent more than once."""
        self.forms = {}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Packet):
            return NotImplemented
        return self.type is other.type and self.data == other.data

    def __hash__(self) -> int:
        return hash((self.type, self.data))

    def __repr__(self) -> str:
        return f"Packet({self.type.name}, {self.data!r})"


@dataclass(frozen=True, slots=True)
class Open:
    """What the open packet says.

    :param sid: the session's id.
    :param upgrades: the transports that the session may move to.
    :param ping_interval: seconds between two heartbeats.
    :param ping_timeout: seconds that an answer to a heartbeat may take.
    :param max_payload: bytes that a polling request's body may have; ``None`` where the server does not say.
    """

    sid: str
    upgrades: tuple[str, ...]
    ping_interval: float
    ping_timeout: float
    max_payload: int | None = None

    def to_packet(self) -> Packet:
        """The packet that says this; its times are in whole milliseconds."""
        fields: dict[str, Any] = {
            "sid": self.sid,
            "upgrades": self.upgrades,
            "pingInterval": round(self.ping_interval * 1000),
            "pingTimeout": round(self.ping_timeout * 1000),
        }
        if self.max_payload is not None:
            fields["maxPayload"] = self.max_payload
        return Packet(PacketType.OPEN, orjson.dumps(fields).decode())

    @classmethod
    def from_packet(cls, packet: Packet) -> Open:
        """Read an open packet; keys that are not known here are passed over.

        :raises ProtocolError: it is no open packet, or not a valid one.
        """
        if packet.type is not PacketType.OPEN:
            raise ProtocolError(f"{packet.type.name} where the open packet was due")
        try:
            fields = orjson.loads(packet.data)
        except orjson.JSONDecodeError:
            raise ProtocolError("the open packet is not JSON") from None
        if not isinstance(fields, dict):
            raise ProtocolError("the open packet is not a JSON object")
        sid, upgrades, max_payload = fields.get("sid"), fields.get("upgrades", []), fields.get("maxPayload")
        if not isinstance(sid, str) or not sid:
            raise ProtocolError("the open packet has no sid")
        if not isinstance(upgrades, list) or not all(isinstance(name, str) for name in upgrades):
            raise ProtocolError("the open packet's upgrades are no list of names")
        if max_payload is not None and (type(max_payload) is not int or max_payload <= 0):
            raise ProtocolError("the open packet's maxPayload is no size")
        return cls(sid, tuple(upgrades), _seconds(fields, "pingInterval"), _seconds(fields, "pingTimeout"), max_payload)


def _seconds(fields: dict[str, Any], key: str) -> float:
    milliseconds = fields.get(key)
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float) or milliseconds <= 0:
        raise ProtocolError(f"the open packet's {key} is no time")
    return milliseconds / 1000


def length_of(packet: Packet, eio: Literal[3, 4], *, polling: bool) -> int:
    """The bytes of a packet as a WebSocket message, or as a polling payload of its own: in Engine.IO 3, at most."""
    binary = isinstance(packet.data, bytes)
    if not polling:
        return packet.size - (binary and eio == 4)
    if eio == 3:
        return packet.size + len(str(packet.size)) + 2
    return (packet.size + 1) // 3 * 4 + 1 if binary else packet.size


def encode(packet: Packet, eio: Literal[3, 4]) -> str | bytes:
    """A packet as one WebSocket message."""
    forms = packet.forms
    if forms is None:
        return _encode(packet, eio)
    message: str | bytes | None = forms.get(eio)
    if message is None:
        message = forms[eio] = _encode(packet, eio)
    return message


def _encode(packet: Packet, eio: Literal[3, 4]) -> str | bytes:
    data = packet.data
    if isinstance(data, str):
        return _DIGITS[packet.type] + data
    return _MESSAGE_BYTE + data if eio == 3 else data


def decode(message: str | bytes, eio: Literal[3, 4]) -> Packet:
    """Read one WebSocket message, or one packet of a polling payload.

    :raises ProtocolError: it is no packet.
    """
    if not isinstance(message, str):
        if eio == 4:
            return Packet(PacketType.MESSAGE, message)
        if message[:1] != _MESSAGE_BYTE:
            raise ProtocolError("a binary packet that is no message")
        return Packet(PacketType.MESSAGE, message[1:])
    kind = _TYPES.get(message[:1])
    if kind is None:
        return Packet(PacketType.MESSAGE, _decode_base64(message, "b4" if eio == 3 else "b"))
    try:
        return Packet(kind, message[1:])
    except UnicodeEncodeError:
        raise ProtocolError("a packet with a lone surrogate") from None


def encode_payload(packets: Sequence[Packet], eio: Literal[3, 4], *, base64: bool) -> tuple[str, bytes]:
    """Packets as the body of a polling request or answer.

    :param packets: at least one.
    :param base64: whether the client asked for text only (``b64=1``); in protocol 4 binary is base64 always.
    :returns: the content type and the body.
    """
    if eio == 3 and not base64 and any(isinstance(packet.data, bytes) for packet in packets):
        return BINARY, b"".join(_encode_binary(packet) for packet in packets)
    texts = [_encode_text(packet, eio) for packet in packets]
    if eio == 4:
        return TEXT, _SEPARATOR.join(texts).encode()
    return TEXT, "".join(f"{_utf16_length(text)}:{text}" for text in texts).encode()


def decode_payload(body: bytes, eio: Literal[3, 4], *, binary: bool, max_packets: int) -> list[Packet]:
    """Read the body of a polling request or answer: at least one packet.

    :param binary: whether the content type is ``application/octet-stream``.
    :param max_packets: the most packets that the body may have.
    :raises ProtocolError: it is no payload, or has too many packets.
    """
    if binary:
        if eio == 4:
            raise ProtocolError("Engine.IO 4 has no binary payloads")
        return _decode_binary_payload(body, max_packets)
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise ProtocolError("the payload is not UTF-8") from None
    if eio == 3:
        return _decode_counted_payload(text, max_packets)
    if text.count(_SEPARATOR) >= max_packets:
        raise _too_many(max_packets)
    return [decode(packet, 4) for packet in text.split(_SEPARATOR)]


def _decode_counted_payload(text: str, max_packets: int) -> list[Packet]:
    packets: list[Packet] = []
    simple = text.isascii()
    position = 0
    while position < len(text) or not packets:
        if len(packets) == max_packets:
            raise _too_many(max_packets)
        match = _LENGTH.match(text, position)
        if match is None:
            raise ProtocolError("a packet without its length")
        length, start = int(match[1]), match.end()
        packet = text[start : start + length]
        if not simple:
            packet = _first_utf16_units(packet, length)
        if _utf16_length(packet) != length:
            raise ProtocolError("a packet shorter than its length")
        packets.append(decode(packet if simple else _undo_second_utf8(packet), 3))
        position = start + len(packet)
    return packets


def _decode_binary_payload(body: bytes, max_packets: int) -> list[Packet]:
    packets: list[Packet] = []
    position = 0
    while position < len(body) or not packets:
        if len(packets) == max_packets:
            raise _too_many(max_packets)
        match = _BINARY_LENGTH.match(body, position)
        if match is None:
            raise ProtocolError("a packet without its length")
        length = int("".join(map(str, match[2])))
        position = match.end() + length
        packet = body[match.end() : position]
        if len(packet) != length:
            raise ProtocolError("a packet shorter than its length")
        if match[1] == b"\x01":
            packets.append(decode(packet, 3))
            continue
        try:
            packets.append(decode(packet.decode(), 3))
        except UnicodeDecodeError:
            raise ProtocolError("a packet that is not UTF-8") from None
    return packets


def _encode_text(packet: Packet, eio: Literal[3, 4]) -> str:
    data = packet.data
    if isinstance(data, str):
        return _DIGITS[packet.type] + data
    return ("b4" if eio == 3 else "b") + binascii.b2a_base64(data, newline=False).decode()


def _encode_binary(packet: Packet) -> bytes:
    message = encode(packet, 3)
    mark, content = (b"\x00", message.encode()) if isinstance(message, str) else (b"\x01", message)
    return mark + bytes(map(int, str(len(content)))) + b"\xff" + content


def _decode_base64(message: str, prefix: str) -> bytes:
    if not message.startswith(prefix):
        raise ProtocolError("a packet of an unknown type")
    try:
        return binascii.a2b_base64(message[len(prefix) :], strict_mode=True)
    except ValueError:
        raise ProtocolError("a packet that is not base64") from None


def _utf16_length(text: str) -> int:
    """The length that JavaScript gives a text."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2


def _first_utf16_units(text: str, count: int) -> str:
    try:
        return text.encode("utf-16-le")[: 2 * count].decode("utf-16-le")
    except UnicodeDecodeError:
        raise ProtocolError("a packet's length ends inside a character") from None


def _undo_second_utf8(text: str) -> str:
    """engine.io-client 1.x encodes texts as UTF-8 before they are encoded as UTF-8 on their way out; 2.x does not."""
    try:
        return text.encode("latin-1").decode()
    except UnicodeError:
        return text


def _too_many(max_packets: int) -> ProtocolError:
    return ProtocolError(f"more than {max_packets} packets in a payload")
