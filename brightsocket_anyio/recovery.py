"""Socket.IO's connection state recovery: the journal of what a client was sent, and the clients that are away.

A client that is let in gets two things beside its id: a ``pid``, a secret that stands for its connection, and with each
event without an acknowledgement an *offset*, at the end of its values. When its session is lost, and it asks for the
namespace again, it hands over its pid and the last offset that it saw, and what was sent after that is sent again
(https://socket.io/docs/v4/connection-state-recovery).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import anyio

from .protocol.state import Unit
from .settings import Settings
from .timer import Alarm, Timer

#: ends of a session after which its client may come back to what it had
RECOVERABLE: frozenset[str] = frozenset(
    {"transport close", "transport error", "ping timeout", "stalled", "overloaded", "server shutting down"}
)


class Journal:
    """What was sent to one client, bounded by count, bytes and time: the oldest goes first.

    :param offsets: numbers none of which stands for two messages; shared by all that may be sent one message.
    :ivar offset: that of the last message which is not in the journal any more; at first one of no message.
    """

    __slots__ = ("_entries", "_offsets", "_pinned", "_settings", "_size", "_whole", "offset")

    def __init__(self, offsets: Iterator[int], settings: Settings) -> None:
        self._offsets = offsets
        self._settings = settings
        self._entries: deque[tuple[str, Unit, int, float]] = deque()
        self._size = 0
        #: whether nothing has gone yet
        self._whole = True
        self.offset: str = self.mint()
        #: the offset from which a client is about to go on
        self._pinned: str | None = None

    def mint(self) -> str:
        """A new offset."""
        return str(next(self._offsets))

    def add(self, offset: str, unit: Unit) -> None:
        """A message has taken its place in the order in which the client gets them."""
        settings = self._settings
        now = anyio.current_time()
        size = sum(packet.size for packet in unit)
        self._entries.append((offset, unit, size, now))
        self._size += size
        # a loss may be noticed only when the heartbeat stays away
        oldest = now - (settings.max_disconnection_duration or 0) - settings.ping_interval - settings.ping_timeout
        while self._entries and (
            len(self._entries) > settings.max_missed_messages
            or self._size > settings.max_missed_bytes
            or (self._pinned is None and self._entries[0][3] < oldest)
        ):
            self._drop()

    def rewind(self, offset: str | None) -> bool:
        """Forget what a client has got that says so, and let nothing grow too old until :meth:`release`.

        :param offset: that of the last message it got; ``None`` for none at all.
        :returns: whether everything that came after is still there.
        """
        if offset is None and not self._whole:
            return False
        if offset is not None:
            if offset != self.offset and all(offset != entry[0] for entry in self._entries):
                return False
            while self.offset != offset:
                self._drop()
        self._pinned = self.offset
        return True

    @property
    def intact(self) -> bool:
        """Whether all of it is still there that was there at the last :meth:`rewind`."""
        return self._pinned in (None, self.offset)

    def release(self) -> None:
        """The client has gone on, or will not yet."""
        self._pinned = None

    @property
    def units(self) -> list[Unit]:
        """The messages, in order."""
        return [entry[1] for entry in self._entries]

    def _drop(self) -> None:
        self.offset, _, size, _ = self._entries.popleft()
        self._size -= size
        self._whole = False


@dataclass(slots=True, eq=False)
class Absent:
    """A connection that has ended because its session was lost, and that its client may continue.

    :ivar pid: what the client knows it by. It is a secret, as a session's id is.
    :ivar lost_at: when it was lost, on the event loop's clock.
    :ivar forget: nothing more is to be kept for it. Idempotent.
    """

    pid: str
    id: str
    namespace: str
    channel: str
    rooms: frozenset[str]
    journal: Journal
    lost_at: float
    forget: Callable[[], None] = lambda: None


class Store(Protocol):
    """Where those who are away are found. One that several servers share has this interface."""

    def keep(self, absent: Absent) -> None:
        """Let its client claim it, until :attr:`~brightsocket_anyio.Settings.max_disconnection_duration` after its
        loss; then call its ``forget``. Never waits."""
        ...

    async def claim(self, pid: str) -> Absent | None:
        """Take one out for the client that has come back: nobody else gets it. ``None`` if there is no such one, or no
        longer. What is sent to it meanwhile goes on being added to its journal, until its ``forget`` is called.
        """
        ...

    def close(self) -> None:
        """The server ends: forget all. Idempotent."""
        ...


class MemoryStore(Store):
    """A server's own store, bounded by count; the one that was lost first goes first."""

    def __init__(self, settings: Settings, timer: Timer) -> None:
        self._window = settings.max_disconnection_duration or 0
        self._max = settings.max_disconnected
        self._absent: dict[str, Absent] = {}
        self._alarm = Alarm(timer, self._expire)

    def keep(self, absent: Absent) -> None:
        self._absent[absent.pid] = absent
        if len(self._absent) > self._max:
            self._forget(next(iter(self._absent)))
        self._expire()

    async def claim(self, pid: str) -> Absent | None:
        absent = self._absent.pop(pid, None)
        if absent is not None and anyio.current_time() >= absent.lost_at + self._window:
            absent.forget()
            return None
        return absent

    def close(self) -> None:
        self._alarm.cancel()
        for pid in list(self._absent):
            self._forget(pid)

    def _expire(self) -> None:
        # one that is put back after a claim stands behind some that were lost later, and so stays longer than it may
        # be claimed
        while self._absent:
            first = next(iter(self._absent.values()))
            due = first.lost_at + self._window
            if due > anyio.current_time():
                self._alarm.set(due)
                break
            self._forget(first.pid)

    def _forget(self, pid: str) -> None:
        self._absent.pop(pid).forget()
