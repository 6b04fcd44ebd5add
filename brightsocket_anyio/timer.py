"""One timer for many: a task that calls back whoever's time has come."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
from collections.abc import Callable

import anyio
import trio

logger: logging.Logger = logging.getLogger("brightsocket_anyio")

_NEVER = float("inf")


class Timer:
    """Rings alarms, on the event loop's clock. :meth:`run` is the task that does it.

    :ivar now: the time on that clock: :func:`anyio.current_time` finds out each time whose loop it is, which takes half
        a microsecond.
    """

    def __init__(self) -> None:
        self.now: Callable[[], float] = _clock()
        #: the entry of an alarm may be earlier than the alarm, never later; one that is out of date is passed over
        self._entries: list[tuple[float, int, Alarm]] = []
        self._numbers = itertools.count()
        self._wakes_at = _NEVER
        self._earlier = anyio.Event()

    async def run(self) -> None:
        """Ring the alarms; runs until it is cancelled."""
        while True:
            self._wakes_at = self._entries[0][0] if self._entries else _NEVER
            self._earlier = anyio.Event()
            with anyio.CancelScope(deadline=self._wakes_at):
                await self._earlier.wait()
            self._wakes_at = -_NEVER
            now = self.now()
            while self._entries and self._entries[0][0] <= now:
                time, _, alarm = heapq.heappop(self._entries)
                if alarm.entered_at == time:
                    alarm.entered_at = _NEVER
                    if alarm.time <= now:
                        alarm.ring()
                    else:
                        self.enter(alarm)

    def enter(self, alarm: Alarm) -> None:
        """See to it that an alarm rings in time."""
        if alarm.time < alarm.entered_at:
            alarm.entered_at = alarm.time
            heapq.heappush(self._entries, (alarm.time, next(self._numbers), alarm))
            if alarm.time < self._wakes_at:
                self._earlier.set()


class Alarm:
    """What a timer calls back at its time, which may be changed as often as one likes.

    :param call: never waits; what it raises is logged.
    :ivar time: when it rings next, on the event loop's clock; infinite for never.
    """

    __slots__ = ("_call", "_timer", "entered_at", "time")

    def __init__(self, timer: Timer, call: Callable[[], None]) -> None:
        self._timer = timer
        self._call: Callable[[], None] | None = call
        self.time: float = _NEVER
        #: the time of its entry with the timer
        self.entered_at: float = _NEVER

    def set(self, time: float) -> None:
        """Ring at a time, and not at the one before."""
        self.time = time
        self._timer.enter(self)

    def cancel(self) -> None:
        """Never ring again; whatever would have been called is forgotten."""
        self.time = _NEVER
        self._call = None

    def ring(self) -> None:
        """The time has come."""
        self.time = _NEVER
        if self._call is not None:
            try:
                self._call()
            except Exception:
                logger.exception("an alarm has failed: this is a bug of ours")


def _clock() -> Callable[[], float]:
    """The event loop's clock."""
    if trio.lowlevel.in_trio_task():
        return trio.lowlevel.current_clock().current_time
    return asyncio.get_running_loop().time
