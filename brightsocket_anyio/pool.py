"""``Pool``: who is connected, and who of them is in which room."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from anyio.lowlevel import checkpoint

from .connection import Connection, ConnectionCore
from .protocol.state import Unit, encode_action
from .settings import Settings
from .signature import fit
from .statistics import Statistics

#: names of rooms, which the ids of connections are too: one, or several
Rooms = str | Iterable[str]

_Member = tuple[Connection, ConnectionCore]


class Pool:
    """The accepted connections of an API, and messages to them from outside.

    Each connection is in the room that is called as its id, and in those that it has joined
    (:meth:`Connection.join <brightsocket_anyio.Connection.join>`). A room is there as long as somebody is in it.
    """

    def __init__(
        self,
        settings: Settings,
        overloaded: Callable[..., Any] | None = None,
        statistics: Statistics | None = None,
    ) -> None:
        self._max_attachments = settings.max_attachments
        self._overloaded = overloaded
        self._fit = None if overloaded is None else fit(overloaded, "overloaded")
        self._members: dict[str, _Member] = {}
        self._rooms: dict[str, dict[str, _Member]] = {}
        self._statistics = Statistics() if statistics is None else statistics

    def __len__(self) -> int:
        return len(self._members)

    @property
    def dropped(self) -> int:
        """How many emitted messages have been dropped because a client was too slow."""
        return self._statistics.emits_dropped

    @property
    def disconnected(self) -> int:
        """How many sessions have been ended for that."""
        return self._statistics.slow_disconnected

    def __contains__(self, id: object) -> bool:
        return id in self._members

    def members(self, room: str) -> frozenset[str]:
        """The ids of the connections in a room."""
        if room in self._members:
            return frozenset((room,))
        return frozenset(self._rooms.get(room, ()))

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

    async def emit(self, action: str, *payload: Any, to: Rooms | None = None, skip: Rooms = ()) -> int:
        """Send an action to every connection, or to those in some rooms, encoded once; never waits for a slow one.

        What happens to a client whose buffer is full is its channel's ``slow_consumer``: ``"disconnect"`` ends its
        session, ``"drop-oldest"`` drops what was emitted to it first (but this message, if that would not be enough),
        ``"latest-per-action"`` does so with what was emitted to it of the same action, ``"drop-newest"`` drops this
        message. Each is counted, and the API's ``overloaded`` hook hears of it.

        :param to: a room or several: who is in any of them gets it, once. ``None`` is everybody.
        :param skip: a room or several: who is in any of them does not get it.
        :returns: how many connections took it.
        :raises ValueError: the payload cannot be sent.
        """
        await checkpoint()
        units: dict[tuple[int, str], Unit] = {
            (5, "/"): encode_action(5, "/", action, payload, None, self._max_attachments)
        }
        taken = 0
        for connection, core in self._find(to, skip):
            key = core.session.automaton.protocol, core.namespace
            unit = units.get(key)
            if unit is None:
                unit = units[key] = encode_action(*key, action, payload, None, self._max_attachments)
            taken += self._offer(connection, core, unit, action)
        return taken

    def add(self, connection: Connection, core: ConnectionCore) -> None:
        """A connection has been accepted."""
        self._members[core.id] = connection, core
        self._statistics.connections_open += 1
        for room in core.rooms:
            self._enter(room, connection, core)
        core.moved = lambda room, inside: (self._enter if inside else self._leave)(room, connection, core)

    def discard(self, core: ConnectionCore) -> None:
        """A connection is over."""
        member = self._members.get(core.id)
        if member is not None and member[1] is core:
            del self._members[core.id]
            self._statistics.connections_open -= 1
            for room in core.rooms:
                self._leave(room, *member)
        core.moved = None

    def _enter(self, room: str, connection: Connection, core: ConnectionCore) -> None:
        self._rooms.setdefault(room, {})[core.id] = connection, core

    def _leave(self, room: str, connection: Connection, core: ConnectionCore) -> None:
        inside = self._rooms[room]
        del inside[core.id]
        if not inside:
            del self._rooms[room]

    def _in(self, rooms: Rooms) -> dict[str, _Member]:
        found: dict[str, _Member] = {}
        for room in (rooms,) if isinstance(rooms, str) else rooms:
            found |= self._rooms.get(room, {})
            if room in self._members:
                found[room] = self._members[room]
        return found

    def _find(self, to: Rooms | None, skip: Rooms) -> list[_Member]:
        found = self._members if to is None else self._in(to)
        if not skip:
            return list(found.values())
        skipped = self._in(skip)
        return [member for id, member in found.items() if id not in skipped]

    def _offer(self, connection: Connection, core: ConnectionCore, unit: Unit, action: str) -> bool:
        session = core.session
        sender = core, action
        if session.send_nowait(unit, sender):
            return True
        if session.ending is not None:
            return False
        policy = core.settings.slow_consumer
        dropped = 0
        match policy:
            case "disconnect":
                core.log().warning("%r is too slow for what is emitted: disconnecting it", session)
                self._statistics.slow_disconnected += 1
                session.end("overloaded", "the client is too slow for what is emitted to it", flush=False)
            case "drop-oldest":
                dropped = session.make_room(unit, lambda whose: whose[0] is core)  # type: ignore[index]
            case "latest-per-action":
                dropped = session.make_room(unit, lambda whose: whose == sender)
        taken = dropped > 0 and session.send_nowait(unit, sender)
        self._statistics.emits_dropped += dropped + (not taken)
        if self._overloaded is not None and self._fit is not None:
            try:
                self._overloaded(*self._fit((connection, action, policy)))
            except Exception:
                core.log().exception("the overloaded hook has failed")
        return taken
