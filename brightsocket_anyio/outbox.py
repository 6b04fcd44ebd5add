"""The bounded buffer of what a session is to send."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import anyio

from .protocol.engineio import Packet
from .protocol.state import Unit


@dataclass(slots=True, eq=False)
class _Waiting:
    unit: Unit
    size: int
    sender: object | None
    placed: Callable[[], None] | None
    over: anyio.Event
    taken: bool = False


class Outbox:
    """The bounded buffer of what is to be sent, in order. Counts messages and bytes; a message too large for it goes in
    alone.

    :ivar closed: whether it takes nothing more.
    """

    __slots__ = (
        "_emptied",
        "_max_bytes",
        "_max_messages",
        "_size",
        "_units",
        "_waiting",
        "closed",
        "unsent",
    )

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._units: list[tuple[Unit, int, object | None]] = []
        self._size = 0
        self._waiting: list[_Waiting] = []
        self._emptied: anyio.Event | None = None
        self.closed: bool = False
        #: once it is closed: the units with a sender that nobody has begun to send
        self.unsent: list[Unit] = []

    @property
    def empty(self) -> bool:
        return not self._units and not self._waiting

    @property
    def overfull(self) -> bool:
        """Whether answers that were pushed have doubled the bounds: whoever provokes them must not be read."""
        return len(self._units) >= 2 * self._max_messages or self._size >= 2 * self._max_bytes

    def push(self, unit: Unit, sender: object | None = None) -> None:
        """Add what must go out whatever the bounds: the session's own packets, and what was accepted before."""
        if not self.closed:
            self._append(unit, _size(unit), sender)

    def offer(self, unit: Unit, sender: object | None = None) -> bool:
        """Add a unit if there is room for it; one with a ``sender`` may be dropped by :meth:`make_room`."""
        size = _size(unit)
        if self.closed or self._waiting or not self._has_room(size):
            return False
        self._append(unit, size, sender)
        return True

    async def put(self, unit: Unit, sender: object | None = None, placed: Callable[[], None] | None = None) -> None:
        """Add a unit, waiting for room behind those that wait already. Cancelled, it is in or it is not.

        :param placed: called at the moment at which it gets in.
        :raises anyio.ClosedResourceError: nothing is sent any more.
        """
        if self.closed:
            raise anyio.ClosedResourceError
        if self.offer(unit, sender):
            if placed is not None:
                placed()
            return
        waiting = _Waiting(unit, _size(unit), sender, placed, anyio.Event())
        self._waiting.append(waiting)
        try:
            await waiting.over.wait()
        except BaseException:
            if not waiting.over.is_set():
                self._waiting.remove(waiting)
                self._admit()
            raise
        if not waiting.taken:
            raise anyio.ClosedResourceError

    def make_room(self, unit: Unit, may_go: Callable[[object], bool]) -> int:
        """Drop the oldest units whose sender may go and that nobody has begun to send, as many as have to for a new
        one; none if that would not be enough. Returns how many.
        """
        if self.closed or self._waiting:
            return 0
        count, size = len(self._units), self._size + _size(unit)
        dropped: list[int] = []
        for index, (_, each, whose) in enumerate(self._units):
            if count < self._max_messages and size <= self._max_bytes:
                break
            if whose is not None and may_go(whose):
                dropped.append(index)
                count, size = count - 1, size - each
        if count and not (count < self._max_messages and size <= self._max_bytes):
            return 0
        for index in reversed(dropped):
            self._size -= self._units[index][1]
            del self._units[index]
        return len(dropped)

    def peek(self, max_bytes: int, max_packets: float = math.inf) -> tuple[list[Packet], int]:
        """The next packets to send, and how many units they are: one unit at least, then as many as the bounds allow.
        They can no longer be dropped.
        """
        packets: list[Packet] = []
        total = 0
        count = 0
        for unit, size, sender in self._units:
            if count and (total + size > max_bytes or len(packets) + len(unit) > max_packets):
                break
            if sender is not None:
                self._units[count] = (unit, size, None)
            packets += unit
            total += size
            count += 1
        return packets, count

    def commit(self, count: int) -> None:
        """The first ``count`` units have been sent."""
        units = self._units
        if count == len(units) == 1:
            self._size = 0
            units.clear()
        else:
            self._size -= sum(size for _, size, _ in units[:count])
            del units[:count]
        if self._waiting:
            self._admit()
        self.note_emptied()

    def shut(self) -> None:
        """Take nothing more; whoever waits for room hears it. What is in may still be sent."""
        self.closed = True
        while self._waiting:
            self._waiting.pop(0).over.set()

    def close(self) -> None:
        """Nothing is sent any more."""
        self.shut()
        self.unsent += [unit for unit, _, sender in self._units if sender is not None]
        self._units.clear()
        self._size = 0
        self.note_emptied()

    async def wait_emptied(self) -> None:
        """Wait until some units have been sent, or none is any more, or all that has been sent is on its way."""
        if self._emptied is None:
            self._emptied = anyio.Event()
        await self._emptied.wait()

    def note_emptied(self) -> None:
        """Wake those who wait for that."""
        if self._emptied is not None:
            self._emptied.set()
            self._emptied = None

    def _has_room(self, size: int) -> bool:
        if not self._units:
            return True
        return len(self._units) < self._max_messages and self._size + size <= self._max_bytes

    def _append(self, unit: Unit, size: int, sender: object | None) -> None:
        self._units.append((unit, size, sender))
        self._size += size

    def _admit(self) -> None:
        while self._waiting and self._has_room(self._waiting[0].size):
            waiting = self._waiting.pop(0)
            self._append(waiting.unit, waiting.size, waiting.sender)
            waiting.taken = True
            if waiting.placed is not None:
                waiting.placed()
            waiting.over.set()


def _size(unit: Unit) -> int:
    return unit[0].size if len(unit) == 1 else sum(packet.size for packet in unit)
