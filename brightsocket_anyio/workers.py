"""Workers: the tasks that a scope's handlers and filters share."""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Protocol

from .parking import Parking, Tasks
from .prefetch import Piece, whole_lines
from .stand import Stand

Job = Callable[[], Coroutine[Any, Any, None]]


class Reading(Protocol):
    """The reading of a session, which a worker may do that has nothing else to do."""

    def arrival(self) -> Awaitable[Any]:
        """What to await, once and at once, for what comes next. Cancelled, nothing is lost.

        :raises Exception: there is nothing more to wait for.
        """
        ...

    def readable(self) -> Awaitable[Any] | None:
        """The same, if it is nothing but to wait for the peer, in whatever scope, and ends early at a :meth:`nudge`."""
        ...

    def nudge(self) -> bool:
        """Have what :meth:`readable` has given come to its end, perhaps with nothing; returns whether somebody has
        waited for it."""
        ...

    def read(self, arrived: Any, /) -> list[Any]:
        """What has come; nothing, if that was nothing whole.

        :param arrived: what awaiting the :meth:`arrival` has returned; ``None`` for what is :meth:`readable`.
        :raises Exception: there is nothing more to wait for.
        """
        ...

    def lose(self, failure: Exception, /) -> None:
        """One of these has failed; raises what is a bug."""
        ...

    def take(self, received: list[Any], /) -> bool:
        """Submit what it asks for; returns whether to go on."""
        ...

    def take_back(self) -> None:
        """The worker reads no more: whoever has lent it has to."""
        ...


class Workers(Piece):
    """Runs jobs in the order they come, each at once: as many tasks as jobs block at a time, and one parked between
    them.

    A worker runs one job after the other as long as they do not block; at the moment at which one does, another worker
    is called for, if there are more. So jobs that never block share one task. That may be the scope's own, which has
    nothing else to do: :meth:`work`.

    Between the jobs that worker may read for its session, if that lends it the reading: what a message asks for is then
    done in the task that has read it, while all of it is in the processor's caches, where it would else take a switch
    to another task. So it may while its job waits at a :class:`~brightsocket_anyio.stand.Stand`. When a job waits for
    anything else, the reading goes back at that moment.

    :param task_group: the scope that owns the workers; what a job raises goes to it.
    :param enter: called at the start of each worker's task, whose context comes from whoever happened to start it.
    :param attended: :meth:`work` follows without a checkpoint.
    :ivar stand: the latest at which somebody has begun to wait.
    """

    __slots__ = whole_lines(
        (Piece,),
        "_coming",
        "_enter",
        "_finishing",
        "_helpers",
        "_jobs",
        "_occupied",
        "_parked_at",
        "_parking",
        "_reading",
        "_running",
        "_steady",
        "_stopped",
        "_swift",
        "_task_group",
        "stand",
    )

    def __init__(self, task_group: Tasks, enter: Callable[[], None], *, attended: bool = False) -> None:
        self._task_group = task_group
        self._enter = enter
        #: few at any time, mostly none
        self._jobs: tuple[Job, ...] = ()
        self._parking = Parking()
        #: whether somebody who has been called for is still to come
        self._coming = attended
        self._running = 0
        #: workers beside the one that is always there
        self._helpers = 0
        #: whether the latest job has not blocked
        self._swift = True
        self._reading: Reading | None = None
        self.stand: Stand | None = None
        #: whether the worker that is always there has a job that has blocked
        self._occupied = False
        #: the stand at which that job waits, or waited until it was woken, while this does not read
        self._parked_at: Stand | None = None
        #: whether it has come straight back to its stand the last time that it went on from one
        self._steady = False
        self._finishing = False
        self._stopped = False

    def submit(self, job: Job) -> None:
        """Have a job run soon."""
        if self._stopped:
            return
        self._jobs += (job,)
        if not self._coming:
            self._call()

    async def work(self) -> None:
        """Be a worker, and the one that is parked between the jobs, until no job runs or waits after :meth:`finish`."""
        # all of it in one coroutine, since each message comes through every one that waits for it
        self._enter()
        try:
            while True:
                while (begun := self._begin()) is not None:
                    await self._see_through(*begun, always_there=True)
                if self._helpers:
                    # whoever has parked meanwhile sees that somebody else does, and goes
                    self._parking.wake()
                if self._finishing and not self._running:
                    return
                if (reading := self._reading) is None:
                    await self._parking.wait()
                    continue
                try:
                    received = reading.read(await reading.arrival())
                except Exception as exc:
                    reading.lose(exc)
                    self._return_reading()
                    continue
                # whatever is submitted now has somebody
                self._coming = True
                if not reading.take(received):
                    self._return_reading()
                # nothing is kept while it waits
                del received
        finally:
            self._return_reading()

    @property
    def quiet(self) -> bool:
        """Whether no job runs, or waits, and nothing is read."""
        return not self._running and not self._jobs and self._reading is None

    @property
    def willing(self) -> bool:
        """Whether the worker that is always there has been called for, and is likely to be done at once."""
        return self._coming and self._swift and not self._running and not self._helpers and not self._finishing

    @property
    def standing_by(self) -> bool:
        """Whether the worker that is always there has a job whose stand has just been woken, and is likely to come
        straight back to it."""
        return (stand := self._parked_at) is not None and self._steady and not stand.taken and not self._finishing

    def lend(self, reading: Reading) -> None:
        """Have the worker that is always there, and is :attr:`willing` or :attr:`standing_by`, read from now on."""
        self._reading = reading

    def finish(self) -> None:
        """Let :meth:`work` return when the last job is done."""
        self._finishing = True
        self._parking.wake()

    def stop(self) -> None:
        """Like :meth:`finish`, and take no further job."""
        self._stopped = True
        self.finish()

    def _return_reading(self) -> None:
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.take_back()

    def _call(self) -> None:
        self._coming = True
        if not self._parking.wake():
            self._task_group.start_soon(self._help, name="brightsocket worker")

    async def _help(self) -> None:
        self._enter()
        self._helpers += 1
        try:
            while True:
                while (begun := self._begin()) is not None:
                    await self._see_through(*begun, always_there=False)
                if self._finishing and not self._running:
                    self._parking.wake()
                    return
                if self._parking.taken or (self._reading is not None and not self._occupied):
                    return
                await self._parking.wait()
        finally:
            self._helpers -= 1

    def _begin(self) -> _Begun | None:
        """Begin jobs, one after the other, until one blocks: that one."""
        while self._jobs:
            # whatever is submitted now has somebody, unless this job blocks
            self._coming = True
            job, self._jobs = self._jobs[0], self._jobs[1:]
            coroutine = job()
            self._running += 1
            try:
                waited_for = coroutine.send(None)
            except StopIteration:
                self._swift = True
                self._running -= 1
            except BaseException:
                self._running -= 1
                raise
            else:
                self._swift = self._coming = False
                return coroutine, waited_for
        self._coming = False
        return None

    @types.coroutine
    def _see_through(self, job: Coroutine[Any, Any, None], waited_for: Any, *, always_there: bool) -> Generator[Any]:
        """Await the rest of a job that has begun, and waits for something (PEP 380, "Formal semantics").

        :param always_there: this is the worker that may read while the job waits at a stand.
        """
        if self._jobs:
            self._call()
        if always_there:
            self._occupied = True
        stood = False
        try:
            while True:
                stand = self.stand if always_there else None
                if stand is not None and waited_for is not stand.token:
                    stand = None
                if always_there:
                    self._steady = stood and stand is not None
                stood = stand is not None
                step: Callable[[Any], Any] = job.send
                value: Any = None
                try:
                    if (
                        stand is not None
                        and (reading := self._reading) is not None
                        and (readable := reading.readable()) is not None
                    ):
                        stand.attendant = reading
                        yield from readable.__await__()
                        self._read(reading, stand)
                    else:
                        if always_there:
                            self._return_reading()
                            self._parked_at = stand
                        value = yield waited_for
                except BaseException as exc:
                    step, value = job.throw, exc
                if always_there:
                    self._parked_at = None
                try:
                    waited_for = step(value)
                except StopIteration:
                    return
                finally:
                    # an exception would refer to itself, by way of this frame
                    del step, value
        finally:
            if always_there:
                self._occupied = False
            self._running -= 1

    def _read(self, reading: Reading, stand: Stand) -> None:
        """Take what has come while a job waits at a stand, with which the job goes on next. What goes wrong is for the
        scope, and not for the job."""
        # first: what is taken is not to wake it
        stand.resume(reading)
        more = False
        try:
            try:
                more = reading.take(reading.read(None))
            except Exception as exc:
                reading.lose(exc)
        except Exception as exc:
            self._task_group.start_soon(_fail, exc, name="brightsocket failure")
        if not more:
            self._return_reading()


async def _fail(exc: Exception) -> None:
    raise exc


#: a coroutine that has begun, and what it waits for
_Begun = tuple[Coroutine[Any, Any, None], Any]
