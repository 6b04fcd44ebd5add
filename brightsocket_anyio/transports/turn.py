"""What is sent while the loop has several messages to handle, written when all of them have been.

To send in a row is cheaper than to send in between: the system's code for it stays in the processor's caches from one
message to the next, as the interpreter's did before that, a peer in the same machine is woken for many and not for
each, and all that goes to one peer goes in one write. It is what uvloop's own transports do. A message takes a tenth to
a sixth less time by this; ``docs/performance.md`` has the figures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Late(Protocol):
    """What has something to be written at the end of a turn."""

    def write_late(self) -> bool:
        """Write it, and never wait or raise; returns whether nothing is left of it."""
        ...


class Turn:
    """One turn of the loop after the other: those in which several sockets can be read.

    :ivar going_on: whether what is sent now is written at the end, which is soon: nobody waits for anything before it.
    """

    __slots__ = ("_late", "going_on")

    def __init__(self) -> None:
        self.going_on: bool = False
        self._late: list[tuple[Late, Callable[[], None]]] = []

    def begin(self) -> None:
        """:meth:`end` follows, once everybody has run whose socket can be read."""
        self.going_on = True

    def add(self, late: Late, stuck: Callable[[], None]) -> None:
        """Have something written at the end, in the order in which it was added.

        :param stuck: called if a part of it is left, which its owner has to send. It must not raise.
        """
        self._late.append((late, stuck))

    def end(self) -> None:
        """Write what there is. Idempotent."""
        self.going_on = False
        written, self._late = self._late, []
        for late, stuck in written:
            if not late.write_late():
                stuck()
