"""Where a job of :class:`~brightsocket_anyio.workers.Workers` waits for what its connection's session may bring."""

from __future__ import annotations

import types
from collections.abc import Generator
from typing import Any, Final, Protocol

import anyio
import trio

from .parking import Parking
from .prefetch import Piece


class Host(Protocol):
    """Who runs jobs.

    :ivar stand: the latest at which somebody has begun to wait.
    """

    stand: Stand | None


class Attendant(Protocol):
    """What the host waits for while its job waits at a stand."""

    def nudge(self) -> None:
        """Have that wait come to its end."""
        ...


class Stand(Piece, Parking):
    """A parking whose task may do something else meanwhile, if the host runs it by hand and finds it waiting here:
    read what the session has for it, which takes no switch to another task then.

    To whoever else sees what :meth:`wait` yields, it is what the event loop needs to see.

    :param host: may be missing; then it is a parking like others.
    :ivar token: what the wait yields.
    :ivar attendant: for the host: what it waits for instead, as long as it does.
    """

    __slots__ = ("_host", "_steps", "attendant", "token")

    def __init__(self, host: Host | None = None) -> None:
        super().__init__()
        self._host = host
        #: the loop's own wait, which has begun, and serves until it has really been waited for
        self._steps: Generator[Any, Any, Any] | None = None
        self.token: Any = _NEVER
        self.attendant: Attendant | None = None

    @types.coroutine
    def wait(self) -> Generator[Any, Any, None]:
        """Wait for :meth:`wake`; may return without it. Safe to cancel.

        :raises anyio.BusyResourceError: another task waits.
        """
        if self._task is not None or self._future is not None:
            raise anyio.BusyResourceError("receiving from")
        if (steps := self._steps) is None:
            steps = self._steps = Parking.wait(self).__await__()
            self.token = next(steps)
        elif self._loop is None:
            self._task = trio.lowlevel.current_task()
        else:
            self._future = self.token
        if self._host is not None:
            self._host.stand = self
        attended = False
        try:
            value = yield self.token
            attended = value is ATTENDED
            if not attended:
                # by which it is over
                steps.send(value)
        except StopIteration:
            pass
        finally:
            # Trio's is an outcome, which may have an exception that refers to this frame
            value = None
            if not attended:
                self.leave()
                self.let_go()

    def wake(self) -> bool:
        if self.attendant is not None:
            self.attendant.nudge()
            return True
        return (self._task is not None or self._future is not None) and super().wake()

    def leave(self) -> None:
        """For the host: its job waits no more, and gets :data:`ATTENDED`, or an exception."""
        self.attendant = self._task = self._future = None

    def let_go(self) -> None:
        """Nobody waits, and perhaps nobody will again. What is kept for the next time refers to itself."""
        self._steps, self.token = None, _NEVER
        if self._host is not None and self._host.stand is self:
            self._host.stand = None


#: what nobody yields; asyncio's ``sleep(0)`` yields ``None``
_NEVER: Final = object()
#: what a job gets that has waited at a stand while its host has done something else
ATTENDED: Final = object()
