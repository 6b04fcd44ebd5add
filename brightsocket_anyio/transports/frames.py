"""Packets as WebSocket frames as a server sends them: unmasked, uncompressed, and made once for all who get them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from websockets.frames import Frame, Opcode

from ..protocol.engineio import Packet, PacketType, encode

#: bytes from which a message is compressed, on a WebSocket with permessage-deflate: below, little is gained
COMPRESSED_FROM = 1024

_KEYS = {3: "websocket frame 3", 4: "websocket frame 4"}
#: the longest payload whose length stands in a frame's second byte (RFC 6455, section 5.2)
_SHORT = 125
#: what comes before a short packet's text, by its type and size: FIN and the opcode, the length, the type's digit
_HEADS = [[bytes((0x80 | Opcode.TEXT, size)) + b"%d" % type for size in range(_SHORT + 1)] for type in PacketType]


def frames_of(packets: Sequence[Packet], eio: Literal[3, 4]) -> bytes:
    """Packets as frames, one for each, one behind the other."""
    if len(packets) == 1:
        packet = packets[0]
        size, data = packet.size, packet.data
        if size <= _SHORT and packet.forms is None and isinstance(data, str):
            # the usual case, at a third of the time
            return _HEADS[packet.type][size] + data.encode()
        return _frame_of(packet, eio)
    return b"".join([_frame_of(packet, eio) for packet in packets])


def _frame_of(packet: Packet, eio: Literal[3, 4]) -> bytes:
    forms = packet.forms
    if forms is None:
        return frame_of_message(encode(packet, eio))
    key = _KEYS[eio]
    frame: bytes | None = forms.get(key)
    if frame is None:
        frame = forms[key] = frame_of_message(encode(packet, eio))
    return frame


def frame_of_message(message: str | bytes) -> bytes:
    """A message as one frame."""
    if isinstance(message, str):
        return Frame(Opcode.TEXT, message.encode()).serialize(mask=False)
    return Frame(Opcode.BINARY, message).serialize(mask=False)
