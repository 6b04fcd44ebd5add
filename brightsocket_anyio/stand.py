"""Where a job of :class:`~brightsocket_anyio.workers.Workers` waits for what its connection's session may bring."""

from __future__ import annotations

import types
from collections.abc import Generator
from typing import Any, Final, Protocol

import anyio
import trio

from .parking import Parking
from .prefetch import Piece, whole_lines


class Host(Protocol):
    """Who runs jobs.

    :ivar stand: the latest at which somebody has begun to wait.
    """

    stand: Stand | None


class Attendant(Protocol):
    """What the host waits for while its job waits at a stand."""

    def nudge(self) -> bool:
        """Have that wait come to its end; returns whether it was still going on."""
        ...


class Stand(Piece, Parking):
    """A parking whose task may do something else meanwhile, if the host runs it by hand and finds it waiting here:
    read what the session has for it, which takes no switch to another task then.

    To whoever else sees what :meth:`wait` yields, it is what the event loop needs to see.

    :param host: may be missing; then it is a parking like others.
    :ivar token: what the latest wait has yielded.
    :ivar attendant: for the host: what it waits for instead, as long as it does.
    """

    __slots__ = whole_lines((Piece, Parking), "_attended", "_host", "_spare", "attendant", "token")

    def __init__(self, host: Host | None = None) -> None:
        super().__init__()
        self._host = host
        #: a wait of the loop's own, and what it has yielded, that has begun and was not needed
        self._spare: tuple[Generator[Any, Any, Any], Any] | None = None
        self.token: Any = _NEVER
        self.attendant: Attendant | None = None
        #: whether the wait is over because the host says so
        self._attended = False

    @types.coroutine
    def wait(self) -> Generator[Any, Any, None]:
        """Wait for :meth:`wake`; may return without it. Safe to cancel.

        :raises anyio.BusyResourceError: another task waits.
        """
        if self._task is not None or self._future is not None:
            if self.taken if self.attendant is None else self.attendant.nudge():
                raise anyio.BusyResourceError("receiving from")
            # whoever waited has been cancelled or woken, and has not run since
            self._vacate()
        if self._spare is None:
            steps = Parking.wait(self).__await__()
            token = next(steps)
        else:
            (steps, token), self._spare = self._spare, None
            if self._loop is None:
                self._task = trio.lowlevel.current_task()
            else:
                self._future = token
        self.token = token
        if self._host is not None:
            self._host.stand = self
        attended = False
        try:
            value = yield token
            attended, self._attended = self._attended, False
            if not attended:
                # by which it is over
                steps.send(value)
        except StopIteration:
            pass
        finally:
            # Trio's is an outcome, which may have an exception that refers to this frame
            value = None
            # else somebody else has begun to wait
            if self.token is token:
                if attended and self._host is not None:
                    self._spare = steps, token
                else:
                    self._vacate()
                    self._forget()

    def wake(self) -> bool:
        if self.attendant is not None:
            return self.attendant.nudge()
        return (self._task is not None or self._future is not None) and super().wake()

    def resume(self, attendant: Attendant) -> None:
        """For the host: it goes on with its job, since the attendant's wait is over, in the same step."""
        if self.attendant is attendant:
            self._vacate()
        self._attended = True

    def close(self) -> None:
        """Wake the task that waits, if one does. Whoever waits later, waits as at other parkings. Idempotent."""
        self.wake()
        self._forget()
        self._host = None

    def _vacate(self) -> None:
        self.attendant = self._task = self._future = None

    def _forget(self) -> None:
        """Keep nothing for the next time: it refers to itself."""
        self._spare, self.token = None, _NEVER
        if self._host is not None and self._host.stand is self:
            self._host.stand = None


#: what nobody yields; asyncio's ``sleep(0)`` yields ``None``
_NEVER: Final = object()
