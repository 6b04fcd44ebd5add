"""Packets as WebSocket frames as a server sends them: unmasked, uncompressed, and made once for all who get them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from websockets.frames import Frame, Opcode

from ..protocol.engineio import Packet, encode

#: bytes from which a message is compressed, on a WebSocket with permessage-deflate: below, little is gained
COMPRESSED_FROM = 1024

_KEYS = {3: "websocket frame 3", 4: "websocket frame 4"}
#: the head of an unmasked text by its length (RFC 6455, section 5.2: FIN, the opcode, the length)
_SHORT_TEXT = [bytes((0x80 | Opcode.TEXT, length)) for length in range(126)]


def frames_of(packets: Sequence[Packet], eio: Literal[3, 4]) -> list[bytes]:
    """Packets as frames, one for each."""
    # there is mostly one, for which a comprehension takes twice as long
    return [_frame_of(packets[0], eio)] if len(packets) == 1 else [_frame_of(packet, eio) for packet in packets]


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
        data = message.encode()
        if len(data) < len(_SHORT_TEXT):
            # the usual case, at a third of the time
            return _SHORT_TEXT[len(data)] + data
        return Frame(Opcode.TEXT, data).serialize(mask=False)
    return Frame(Opcode.BINARY, message).serialize(mask=False)
