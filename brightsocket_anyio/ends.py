"""How a connection ended, and what code that still holds it gets."""

from __future__ import annotations

from dataclasses import dataclass

import anyio

from .errors import ConnectionLost


@dataclass(frozen=True, slots=True)
class End:
    """How a connection ended.

    ``code`` is ``"closed"`` where this side closed it, ``"ended"`` where the peer did; any other code is a loss.
    """

    code: str
    reason: str

    def exception(self) -> Exception:
        """What code that still holds the connection gets."""
        match self.code:
            case "closed":
                return anyio.ClosedResourceError(self.reason)
            case "ended":
                return anyio.EndOfStream(self.reason)
        return ConnectionLost(self.code, self.reason)
