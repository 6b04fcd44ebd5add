"""The frames of a WebSocket whose handshake is done: the sans-I/O machine of the ``websockets`` package, made when it
is needed.

Most of a server's WebSockets never need it: they bring short texts, which the sieve takes, and one Close frame, which
is read and answered here, as the machine would. To make it, and have it do that, takes a twentieth of what a client
costs who connects, identifies and leaves again, and a kilobyte or two of an idle connection. ``tests/test_core.py``
holds both ways against each other.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from websockets.exceptions import ProtocolError
from websockets.extensions import Extension
from websockets.frames import Close, Frame
from websockets.protocol import Protocol, Side, State

from ..prefetch import Piece, whole_lines
from ..settings import Settings
from .frames import COMPRESSED_FROM
from .sieve import apply_mask

#: where the machine logs: at the level DEBUG, all frames but short texts
_logger = logging.getLogger(f"{__name__}.frames")

#: most WebSockets never need a list of their own
_NOTHING: Final[list[bytes]] = []

_CLOSE = 0x88  # FIN, no extension's bits, opcode 8 (RFC 6455, section 5.2)


class _CoreFields(Piece):
    """What each message looks at: see ``_SessionFields``."""

    __slots__ = ("open", "writes")


class Core(_CoreFields):
    """What one side of a WebSocket may send and has been sent, frame by frame.

    :param extensions: that the handshake has agreed on.
    :ivar open: whether neither side has begun to close.
    :ivar writes: what is to be sent, in order.
    :ivar close_rcvd: the peer's Close frame, if it has come.
    :ivar close_sent: the one of this side, if it has been sent, or is to be.
    :ivar failure: what the peer has done wrong, if anything.
    """

    __slots__ = whole_lines(
        (_CoreFields,),
        "_machine",
        "_max_size",
        "close_rcvd",
        "close_sent",
        "extensions",
        "failure",
        "side",
    )

    def __init__(self, side: Side, extensions: Sequence[Extension], settings: Settings) -> None:
        self.side: Side = side
        self.extensions: Sequence[Extension] = extensions
        self.open: bool = True
        self.writes: list[bytes] = _NOTHING
        self.close_rcvd: Close | None = None
        self.close_sent: Close | None = None
        self.failure: Exception | None = None
        self._max_size = settings.max_payload
        self._machine: Protocol | None = None

    def receive(self, data: bytes) -> list[Frame]:
        """Take a part of what has come; returns the frames that end in it. Pings and Close frames are answered."""
        if self._machine is None and (self.close_rcvd is not None or self._take_close(data)):
            # what follows a Close frame counts for nothing (RFC 6455, section 1.4)
            return []
        machine = self._need_machine()
        machine.receive_data(data)
        self._note(machine)
        return [event for event in machine.events_received() if isinstance(event, Frame)]

    def send(self, message: str | bytes) -> None:
        """Send a whole message, while :attr:`open` is true."""
        machine = self._need_machine()
        if isinstance(message, str):
            machine.send_text(message.encode())
        else:
            machine.send_binary(message)
        self._note(machine)

    def send_close(self, code: int, reason: str) -> None:
        """Begin to close, while :attr:`open` is true."""
        machine = self._need_machine()
        machine.send_close(code, reason)
        self._note(machine)

    def fail(self, code: int, reason: str) -> None:
        """Close since the peer has done something that it must not, before its Close frame has come; what it sends from
        now on counts for nothing."""
        assert self.close_rcvd is None
        machine = self._need_machine()
        machine.fail(code, reason)
        self._note(machine)

    def data_to_send(self) -> list[bytes]:
        """Take what is to be sent, which is the caller's to send."""
        writes, self.writes = self.writes, _NOTHING
        return writes

    def _need_machine(self) -> Protocol:
        if self._machine is None:
            max_size = self._max_size
            if self.extensions:
                # what cannot be compressed gets longer by it; that the message itself is within its limit is seen to
                # later
                max_size += max_size // 16 + 64
            self._machine = Protocol(self.side, state=State.OPEN, max_size=max_size, logger=_logger)
            self._machine.extensions = [_Compression(extension) for extension in self.extensions]
        return self._machine

    def _note(self, machine: Protocol) -> None:
        self._write(machine.data_to_send())
        self.open = machine.state is State.OPEN
        self.close_rcvd = machine.close_rcvd
        self.close_sent = machine.close_sent
        self.failure = machine.parser_exc

    def _take_close(self, data: bytes) -> bool:
        """Read and answer what is nothing but a client's Close frame, and in order."""
        size = len(data) - 6
        if (
            self.side is not Side.SERVER
            or not 0 <= size <= 125
            or data[0] != _CLOSE
            or data[1] != 0x80 | size
            or _logger.isEnabledFor(logging.DEBUG)
        ):
            return False
        payload = apply_mask(data[6:], data[2:6])
        try:
            close = Close.parse(payload)
        except (ProtocolError, UnicodeDecodeError):
            return False
        self.open = False
        self.close_rcvd = self.close_sent = close
        self._write([b"%c%c%b" % (_CLOSE, size, payload)])
        return True

    def _write(self, data: list[bytes]) -> None:
        if self.writes is _NOTHING:
            self.writes = data
        else:
            self.writes += data


class _Compression(Extension):
    """permessage-deflate as it was negotiated, which leaves short messages as they are."""

    def __init__(self, negotiated: Extension) -> None:
        self.name = negotiated.name
        self._negotiated = negotiated

    def decode(self, frame: Frame, *, max_size: int | None = None) -> Frame:
        return self._negotiated.decode(frame, max_size=max_size)

    def encode(self, frame: Frame) -> Frame:
        return frame if len(frame.data) < COMPRESSED_FROM else self._negotiated.encode(frame)
