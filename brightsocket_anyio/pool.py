"""``Pool``: who is connected."""

from __future__ import annotations

import logging
from typing import Any

from anyio.lowlevel import checkpoint

from .connection import Connection, ConnectionCore
from .protocol.state import Unit, encode_action
from .settings import Settings

logger: logging.Logger = logging.getLogger("brightsocket_anyio")


class Pool:
    """The accepted connections of an API, and messages to them from outside.

    :ivar dropped: how many emitted messages have been dropped because a client was too slow.
    """

    def __init__(self, settings: Settings) -> None:
        self._max_attachments = settings.max_attachments
        self._members: dict[str, tuple[Connection, ConnectionCore]] = {}
        self.dropped: int = 0

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, id: object) -> bool:
        return id in self._members

    async def send(self, id: str, action: str, *payload: Any) -> bool:
        """Send an action to one connection; never waits for it.

        :param id: the connection's id.
        :returns: whether it was taken: there is such a connection, and it has room.
        :raises ValueError: the payload cannot be sent.
        """
        await checkpoint()
        member = self._members.get(id)
        if member is None:
            encode_action(5, "/", action, payload, None, self._max_attachments)
            return False
        core = member[1]
        return core.session.send_nowait(core.session.automaton.encode_action(core.namespace, action, payload))

    async def emit(self, action: str, *payload: Any) -> int:
        """Send an action to every connection, encoded once; never waits for a slow one.

        What happens to a client whose buffer is full is its channel's ``slow_consumer``: ``"disconnect"`` ends its
        session, ``"drop-oldest"`` drops what was emitted to it first (but this message, if that would not be enough),
        ``"drop-newest"`` this message. Each drop is counted.

        :returns: how many connections took it.
        :raises ValueError: the payload cannot be sent.
        """
        await checkpoint()
        units: dict[tuple[int, str], Unit] = {
            (5, "/"): encode_action(5, "/", action, payload, None, self._max_attachments)
        }
        taken = 0
        for _, core in list(self._members.values()):
            key = core.session.automaton.protocol, core.namespace
            unit = units.get(key)
            if unit is None:
                unit = units[key] = encode_action(*key, action, payload, None, self._max_attachments)
            taken += self._offer(core, unit)
        return taken

    def add(self, connection: Connection, core: ConnectionCore) -> None:
        """A connection has been accepted."""
        self._members[core.id] = connection, core

    def discard(self, core: ConnectionCore) -> None:
        """A connection is over."""
        member = self._members.get(core.id)
        if member is not None and member[1] is core:
            del self._members[core.id]

    def _offer(self, core: ConnectionCore, unit: Unit) -> bool:
        session = core.session
        if session.send_nowait(unit, core):
            return True
        if session.ending is not None:
            return False
        match core.settings.slow_consumer:
            case "disconnect":
                logger.warning("%r is too slow for what is emitted: disconnecting it", session)
                session.end("overloaded", "the client is too slow for what is emitted to it", flush=False)
            case "drop-oldest" if dropped := session.make_room(unit, core):
                self.dropped += dropped
                return session.send_nowait(unit, core)
        self.dropped += 1
        return False
