"""Which sockets can be read: one watch for all connections of a listener, on Linux, the same on every event loop.

A loop that watches them by itself tells of all that can be read, and then has all their tasks run: with a thousand
connections, what telling has brought into the processor's caches is gone again by the time that the tasks want it. Here
it is a few at a time. Trio's loop arms its epoll anew for each wait, too, and uvloop keeps a handle, a callback and a
context for each socket. A message of one connection among a thousand takes a tenth (uvloop) to a quarter (Trio) less
time by this; where one comes at a time, it takes a tenth to a fifth more. ``docs/performance.md`` has the figures.

Where one turn has not room for all who are due, the watch also has the memory of those whom it tells fetched beforehand
(:mod:`~brightsocket_anyio.prefetch`); and where more than one is due, what they send is written when all have had their
turn (:mod:`~.turn`).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import select
import socket
import sys
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import trio

from ..prefetch import Piece, pieces_of, prefetch
from .turn import Turn

#: sockets that are told of in one turn of the loop: what a message touches, in the system and in here, is ten
#: kilobytes, and the processor's own cache has room for a megabyte
_BATCH = 64
#: of those whose pieces are not known yet, so many are looked at in one turn: each takes as long as two
#: messages
_LOOKS = 8
#: seconds after which pieces are forgotten: there may be others by then, and what is over is not to be kept for long
_KEPT = 10.0


class Watch:
    """Tells readers when their sockets can be read. :func:`open_watch` makes one.

    :ivar turn: the turn in which those who were told have their way.
    """

    __slots__ = ("_epoll", "_readers", "_stale", "turn")

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._readers: dict[int, Readable] = {}
        #: when the readers' pieces are forgotten, if any are known
        self._stale = math.inf
        self.turn: Turn = Turn()

    def add(self, fd: int, reader: Readable) -> None:
        """Watch a socket until it is removed.

        :raises OSError: the system watches no more of them, or this is closed.
        """
        try:
            self._epoll.register(fd, select.EPOLLIN)
        except ValueError as exc:
            raise OSError("nobody watches any more") from exc
        self._readers[fd] = reader

    def remove(self, fd: int, reader: Readable) -> None:
        """Watch a socket no longer; before it is closed."""
        if self._readers.get(fd) is reader:
            del self._readers[fd]
            reader.pieces = ()
            # unless somebody else has closed it
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def tell(self) -> bool:
        """Tell those who are due; returns whether a turn has begun by that, which is to be ended when they have run."""
        readers = self._readers
        due = [readers[fd] for fd, _ in self._epoll.poll(0, _BATCH)]
        if self._stale < math.inf and time.monotonic() >= self._stale:
            self._forget()
        if len(due) == _BATCH:
            self._prefetch(due)
        for reader in due:
            reader.note_readable()
        if len(due) > 1:
            self.turn.begin()
        return self.turn.going_on

    def _prefetch(self, due: list[Readable]) -> None:
        """Touch what those who are due will look at: they are so many that it has left the caches."""
        unknown: list[Readable] = []
        for reader in due:
            if pieces := reader.pieces:
                prefetch(pieces)
            else:
                unknown.append(reader)
        for reader in unknown[:_LOOKS]:
            if reader.waiter is not None:
                reader.pieces = pieces_of(reader.waiter)
        if unknown:
            self._stale = min(self._stale, time.monotonic() + _KEPT)

    def _forget(self) -> None:
        self._stale = math.inf
        for reader in self._readers.values():
            reader.pieces = ()

    async def tell_for_ever(self, scope: trio.CancelScope) -> None:
        """On Trio, the task that does it, until the scope is cancelled."""
        with scope:
            while True:
                await trio.lowlevel.wait_readable(self._epoll)
                begun = self.tell()
                # whoever was told has its turn first, and has read what there was
                await trio.lowlevel.cancel_shielded_checkpoint()
                if begun:
                    # this task may have been the first to run, and then is behind all of them now
                    await trio.lowlevel.cancel_shielded_checkpoint()
                    self.turn.end()

    def tell_in(self, loop: asyncio.AbstractEventLoop) -> None:
        """On asyncio, what the loop calls to have it done."""
        if self.tell():
            # behind those who were told
            loop.call_soon(self.turn.end)

    def fileno(self) -> int:
        """Of what can be read whenever there is somebody to :meth:`tell`."""
        return self._epoll.fileno()

    def close(self) -> None:
        """Wake everybody: who waits any longer hears that nobody watches."""
        self.turn.end()
        self._epoll.close()
        self._forget()
        readers, self._readers = self._readers, {}
        for reader in readers.values():
            reader.stop_watching()
            reader.wake()


class Readable(Piece):
    """A socket that one task at a time waits for, until it can be read. :meth:`stop_watching` before it is closed."""

    __slots__ = ("_abort", "_loop", "_raw", "_watch", "_watched", "pieces", "waiter")

    #: the number of the socket while it is watched, which it may have lost since
    _watched: int | None

    def __init__(self, raw: socket.socket, watch: Watch) -> None:
        self._raw = raw
        self._watch = watch
        self._watched = None
        #: asyncio's
        self._loop = None if trio.lowlevel.in_trio_task() else asyncio.get_running_loop()
        #: the future that somebody waits for, or Trio's task that does
        self.waiter: Any = None
        #: the watch's: what this reader looks at, while it is known
        self.pieces: tuple[object, ...] = ()
        #: Trio's, while it is watched: one made for each wait would be kept until the next one
        self._abort: Any = None

    def readable(self) -> Awaitable[Any]:
        """What to await, once and at once, until the socket can perhaps be read, or :meth:`wake` is called.

        :raises OSError: as :meth:`Watch.add`.
        """
        if self._watched is None:
            number = self._raw.fileno()
            self._watch.add(number, self)
            self._watched = number
            self._abort = self._forget if self._loop is None else None
        if self._loop is not None:
            future = self.waiter = self._loop.create_future()
            return future
        self.waiter = trio.lowlevel.current_task()
        return trio.lowlevel.wait_task_rescheduled(self._abort)  # noqa: ASYNC105, the caller awaits it

    def note_readable(self) -> None:
        """For the watch: the socket can be read, now and as long as the watch tells of it."""
        if not self.wake():
            # nobody waits for it, and the watch would go on telling
            self.stop_watching()

    def wake(self) -> bool:
        """Wake the task that waits; returns whether one did."""
        waiter, self.waiter = self.waiter, None
        if waiter is None:
            return False
        if self._loop is None:
            trio.lowlevel.reschedule(waiter)
        elif waiter.done():
            # its task was cancelled
            return False
        else:
            waiter.set_result(None)
        return True

    def stop_watching(self) -> None:
        """Have the watch forget it until somebody waits again. Idempotent."""
        if self._watched is not None:
            self._watch.remove(self._watched, self)
            self._watched = self._abort = None

    def _forget(self, _: object) -> trio.lowlevel.Abort:
        self.waiter = None
        return trio.lowlevel.Abort.SUCCEEDED


@asynccontextmanager
async def open_watch() -> AsyncGenerator[Watch | None]:
    """A watch that runs inside of the context, which is left when its readers are done; ``None`` where the system has
    no epoll, and the loops have to watch."""
    if sys.platform != "linux":
        yield None
        return
    watch = Watch()
    with contextlib.closing(watch):
        if trio.lowlevel.in_trio_task():
            async with trio.open_nursery() as nursery:
                # who is shielded from a cancellation that comes from around this may go on waiting
                running = trio.CancelScope(shield=True)
                nursery.start_soon(watch.tell_for_ever, running, name="watch")
                try:
                    yield watch
                finally:
                    running.cancel()
            return
        loop = asyncio.get_running_loop()
        loop.add_reader(watch.fileno(), watch.tell_in, loop)
        try:
            yield watch
        finally:
            loop.remove_reader(watch.fileno())
