"""Short text messages, taken out of a WebSocket's bytes before the ``websockets`` core sees them.

Nearly everything that a Socket.IO peer sends is a text of one short frame. To look at its two bytes of head and unmask
it takes 2 µs, where the core's state machine takes 20. Whatever is anything else goes through that: other frames,
fragments, invalid ones, long ones. ``tests/test_sieve.py`` holds both ways against each other.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..prefetch import Piece, whole_lines

# by both names, since core.py has it from here
try:
    from websockets.speedups import apply_mask as apply_mask
except ImportError:  # pragma: no cover (where websockets was built without it)
    from websockets.utils import apply_mask as apply_mask

#: bytes of the longest text that is taken; where it comes in pieces, they are put together anew for each of them
LONGEST = 1024

_TEXT = 0x81  # FIN, no extension's bits, opcode 1 (RFC 6455, section 5.2)


class _SieveFields(Piece):
    """What each message looks at: see ``_SessionFields``."""

    __slots__ = ("_mask", "_overhead", "_takes")


class Sieve(_SieveFields):
    """Splits what a WebSocket brings into short texts and the rest.

    :param masked: whether the peer has to mask its frames, as clients have to.
    :param max_size: bytes that a message may have.
    :ivar closed: everything is the core's: the message that it is at has more fragments to come.
    """

    __slots__ = whole_lines((_SieveFields,), "_head", "_longest", "_owed", "_rest", "_shortest", "closed")

    def __init__(self, *, masked: bool, max_size: int) -> None:
        self._mask = 0x80 if masked else 0
        self._longest = min(LONGEST, max_size)
        #: bytes of a text whose length stands in the second byte, and of what is before it
        self._shortest = min(125, self._longest)
        self._overhead = 6 if masked else 2
        #: bytes of the longest text that :meth:`take` takes: -1 while there is more to come of something else
        self._takes = self._shortest
        #: the beginning of a frame that is not all there
        self._rest = b""
        #: what the core has of a frame whose head is not all there
        self._head = b""
        #: bytes to come of a frame that is the core's
        self._owed = 0
        self.closed: bool = False

    def take(self, data: bytes) -> str | None:
        """What was read as one text, if it is just that, and nothing was before it that it belongs to; else it is for
        :meth:`split`. The usual case, at a third of the time."""
        size = len(data) - self._overhead
        if not 0 <= size <= self._takes or data[0] != _TEXT or data[1] != self._mask | size:
            return None
        payload = apply_mask(data[6:], data[2:6]) if self._mask else data[2:]
        try:
            return str(payload, "utf-8")
        except UnicodeDecodeError:
            return None

    def split(self, data: bytes) -> Iterator[str | bytes]:
        """Take what was read: a text is a whole message, bytes are whole frames, or parts of one, for the core.

        The beginning of a frame may be kept until more of it comes. All of the parts are to be taken before more is.
        """
        self._takes = -1
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
            if self._head:
                # byte by byte: the core refuses what it can before it has seen all of it
                byte = data[position : position + 1]
                position += 1
                self._head += byte
                if len(self._head) == _head_size(self._head):
                    self._owed, self._head = _body_size(self._head), b""
                yield byte
                continue
            head = data[position : position + 10]
            size = _head_size(head)
            mine = head[0] == _TEXT and not self.closed
            if len(head) > 1:
                mine = mine and head[1] & 0x80 == self._mask and size < 10
            if len(head) < size:
                if mine:
                    break
                self._head = head
                yield head
                return
            start = position + size
            total = _body_size(head)
            length = total - 4 if self._mask else total
            if mine and length <= self._longest:
                if end < start + total:
                    break
                payload = data[start + total - length : start + total]
                if self._mask:
                    payload = apply_mask(payload, data[start : start + 4])
                try:
                    text = str(payload, "utf-8")
                except UnicodeDecodeError:
                    pass  # the core's to refuse
                else:
                    position = start + total
                    yield text
                    continue
            self._owed = size + total
        self._rest = data[position:]
        if not (self._rest or self._head or self._owed or self.closed):
            self._takes = self._shortest


def _head_size(head: bytes) -> int:
    """How long a frame's head is, without the key, as far as its beginning tells."""
    if len(head) < 2:
        return 2
    match head[1] & 0x7F:
        case 126:
            return 4
        case 127:
            return 10
    return 2


def _body_size(head: bytes) -> int:
    """How much comes after a whole head: the key, where there is one, and the payload."""
    size = head[1] & 0x7F
    if size >= 126:
        size = int.from_bytes(head[2 : _head_size(head)], "big")
    return size + 4 if head[1] & 0x80 else size
