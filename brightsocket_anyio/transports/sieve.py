"""Short text messages, taken out of a WebSocket's bytes before the ``websockets`` core sees them.

Nearly everything that a Socket.IO peer sends is a text of one short frame. To look at its two bytes of head and unmask
it takes 2 µs, where the core's state machine takes 20. Whatever is anything else goes through that: other frames,
fragments, invalid ones, long ones. ``tests/test_sieve.py`` holds both ways against each other.
"""

from __future__ import annotations

from collections.abc import Iterator

try:
    from websockets.speedups import apply_mask
except ImportError:  # pragma: no cover (where websockets was built without it)
    from websockets.utils import apply_mask

#: bytes of the longest text that is taken; where it comes in pieces, they are put together anew for each of them
LONGEST = 1024

_TEXT = 0x81  # FIN, no extension's bits, opcode 1 (RFC 6455, section 5.2)


class Sieve:
    """Splits what a WebSocket brings into short texts and the rest.

    :param masked: whether the peer has to mask its frames, as clients have to.
    :param max_size: bytes that a message may have.
    :ivar closed: everything is the core's: the message that it is at has more fragments to come.
    """

    __slots__ = ("_longest", "_mask", "_owed", "_rest", "closed")

    def __init__(self, *, masked: bool, max_size: int) -> None:
        self._mask = 0x80 if masked else 0
        self._longest = min(LONGEST, max_size)
        #: the beginning of a frame that is not all there
        self._rest = b""
        #: bytes to come of a frame that is the core's
        self._owed = 0
        self.closed: bool = False

    def split(self, data: bytes) -> Iterator[str | bytes]:
        """Take what was read: a text is a whole message, bytes are whole frames, or parts of one, for the core.

        The beginning of a frame may be kept until more of it comes.
        """
        if self._rest:
            data, self._rest = self._rest + data, b""
        position, end = 0, len(data)
        while position < end:
            if self._owed:
                taken = min(self._owed, end - position)
                self._owed -= taken
                yield data[position : position + taken]
                position += taken
                continue
            if end - position < 2:
                break
            second = data[position + 1]
            size, start = second & 0x7F, position + 2
            if size == 126:
                start += 2
                size = int.from_bytes(data[position + 2 : start], "big")
            elif size == 127:
                start += 8
                size = int.from_bytes(data[position + 2 : start], "big")
            if end < start:
                break
            masked = second & 0x80
            body = start + 4 if masked else start
            if data[position] == _TEXT and masked == self._mask and size <= self._longest and not self.closed:
                if end < body + size:
                    break
                payload = data[body : body + size]
                if masked:
                    payload = apply_mask(payload, data[start:body])
                try:
                    text = str(payload, "utf-8")
                except UnicodeDecodeError:
                    pass  # the core's to refuse
                else:
                    position = body + size
                    yield text
                    continue
            self._owed = body + size - position
        self._rest = data[position:]
