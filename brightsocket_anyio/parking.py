"""What tasks wait at and start in, where AnyIO's own would take more time or room."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import trio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint, current_token

#: what :func:`open_tasks` opens
Tasks = TaskGroup | trio.Nursery


def open_tasks() -> AbstractAsyncContextManager[Tasks]:
    """A task group for many tasks that nobody asks for a result: on Trio, the handle that AnyIO makes for each is a
    twentieth of what a client costs."""
    return trio.open_nursery() if trio.lowlevel.in_trio_task() else anyio.create_task_group()


def current_deadline() -> Callable[[], float]:
    """What tells the current task's effective deadline, which is negative infinity when it is cancelled.

    AnyIO's own finds out each time whose loop it is, by which it takes twice as long on Trio, and half as long again on
    asyncio; and so does its ``checkpoint_if_cancelled``.
    """
    if trio.lowlevel.in_trio_task():
        return trio.current_effective_deadline
    return current_token().backend_class.current_effective_deadline


class Parking:
    """Like an :class:`anyio.Event`, for one task that waits often: an event is for once, and each wait needs a new one,
    which costs as much as the wait itself.

    Nothing is remembered: to wake without somebody who waits has no effect.
    """

    __slots__ = ("_future", "_loop", "_task")

    def __init__(self) -> None:
        #: asyncio's, once somebody has waited on it: to find out each time would be a third of what a wait costs
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: trio.lowlevel.Task | None = None
        self._future: asyncio.Future[None] | None = None

    @property
    def taken(self) -> bool:
        """Whether a task waits that has not been woken."""
        # a future that is done is one whose task was cancelled
        return self._task is not None or (self._future is not None and not self._future.done())

    def wait(self) -> Awaitable[Any]:
        """What to await, once and at once, for :meth:`wake`. Safe to cancel.

        No coroutine of its own, through which each message would have to come.

        :raises anyio.BusyResourceError: another task waits.
        """
        if self.taken:
            raise anyio.BusyResourceError("waiting at")
        if self._loop is None:
            if trio.lowlevel.in_trio_task():
                self._task = trio.lowlevel.current_task()
                return trio.lowlevel.wait_task_rescheduled(self._abort)  # noqa: ASYNC105, the caller awaits it
            self._loop = asyncio.get_running_loop()
        future = self._future = self._loop.create_future()
        return future

    def wake(self) -> bool:
        """Wake the task that waits, if one does; returns whether one did."""
        if self._task is not None:
            task, self._task = self._task, None
            trio.lowlevel.reschedule(task)
            return True
        if self._future is not None:
            future, self._future = self._future, None
            if not future.done():
                future.set_result(None)
                return True
        return False

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED


class Latch:
    """Like an :class:`anyio.Event`, which takes up to 800 bytes and as long to make as to wait for, but there is
    nothing before somebody waits."""

    __slots__ = ("_set", "_waiting")

    def __init__(self) -> None:
        self._set = False
        self._waiting: list[Parking] | None = None

    def set(self) -> None:
        """Wake all who wait, now and later."""
        self._set = True
        if self._waiting is not None:
            for parking in self._waiting:
                parking.wake()
            self._waiting = None

    def is_set(self) -> bool:
        return self._set

    async def wait(self) -> None:
        """Wait for :meth:`set`; a checkpoint at least. Safe to cancel."""
        if self._set:
            await checkpoint()
            return
        if self._waiting is None:
            self._waiting = []
        parking = Parking()
        self._waiting.append(parking)
        try:
            await parking.wait()
        finally:
            if self._waiting is not None:
                self._waiting.remove(parking)
