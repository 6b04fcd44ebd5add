"""Which of the channels' functions run and have not settled yet: a client is let in when all of its channel's have."""

from __future__ import annotations

import contextvars
from typing import Protocol


class Settling(Protocol):
    """A channel's function that runs and has not settled yet."""

    def settle(self) -> None: ...


#: the channel's function that the current task belongs to
settling: contextvars.ContextVar[Settling | None] = contextvars.ContextVar("settling", default=None)
#: all that run and have not settled, mostly none: then nobody needs to look for the current one, which would take each
#: message through three more lines of the processor's cache
unsettled: set[Settling] = set()


def settle() -> None:
    """The current task waits for the peer or sends to it: its channel's function has settled."""
    if unsettled and (function := settling.get()) is not None:
        settling.set(None)
        unsettled.discard(function)
        function.settle()
