"""Workers: the tasks that a scope's handlers and filters share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from anyio.abc import TaskGroup

from .parking import Parking

Job = Callable[[], Awaitable[None]]


class Workers:
    """Runs jobs in the order they come, each at once: as many tasks as jobs block at a time, and one parked between
    them.

    A worker that takes a job while others wait first calls for a second worker. If its job does not block, it takes the
    next one itself before the second has even started, so jobs that never block share one task. That may be the scope's
    own, which has nothing else to do: :meth:`work`.

    :param task_group: the scope that owns the workers; what a job raises goes to it.
    :param enter: called at the start of each worker's task, whose context comes from whoever happened to start it.
    :param attended: :meth:`work` follows without a checkpoint.
    """

    def __init__(self, task_group: TaskGroup, enter: Callable[[], None], *, attended: bool = False) -> None:
        self._task_group = task_group
        self._enter = enter
        #: few at any time, mostly none
        self._jobs: list[Job] = []
        self._parking = Parking()
        #: whether somebody who has been called for is still to come
        self._coming = attended
        self._running = 0
        self._finishing = False
        self._stopped = False

    def submit(self, job: Job) -> None:
        """Have a job run soon."""
        if self._stopped:
            return
        self._jobs.append(job)
        self._call()

    async def work(self) -> None:
        """Be a worker, and the one that is parked between the jobs, until no job runs or waits after :meth:`finish`."""
        self._enter()
        while True:
            await self._run_jobs()
            # whoever has parked meanwhile sees that somebody else does, and goes
            self._parking.wake()
            if self._finishing and not self._running:
                return
            await self._parking.wait()

    @property
    def quiet(self) -> bool:
        """Whether no job runs, or waits."""
        return not self._running and not self._jobs

    def finish(self) -> None:
        """Let :meth:`work` return when the last job is done."""
        self._finishing = True
        self._parking.wake()

    def stop(self) -> None:
        """Like :meth:`finish`, and take no further job."""
        self._stopped = True
        self.finish()

    def _call(self) -> None:
        if self._coming:
            return
        self._coming = True
        if not self._parking.wake():
            self._task_group.start_soon(self._help, name="brightsocket worker")

    async def _help(self) -> None:
        self._enter()
        while True:
            await self._run_jobs()
            if self._finishing and not self._running:
                self._parking.wake()
                return
            if self._parking.taken:
                return
            await self._parking.wait()

    async def _run_jobs(self) -> None:
        self._coming = False
        while self._jobs:
            job = self._jobs.pop(0)
            if self._jobs:
                self._call()
            self._running += 1
            try:
                await job()
            finally:
                self._running -= 1
