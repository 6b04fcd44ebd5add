"""``Pool``: who is connected, and who of them is in which room."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from anyio.lowlevel import checkpoint

from .connection import Connection, ConnectionCore
from .protocol.state import Unit, encode_action
from .recovery import Absent
from .settings import Settings
from .signature import Adapted
from .statistics import Statistics

#: names of rooms, which the ids of connections are too: one, or several
Rooms = str | Iterable[str]

#: somebody who is connected
_Member = tuple[Connection, ConnectionCore]


class _Message:
    """A message for whoever is there, encoded once for each protocol and namespace.

    :raises ValueError: from the first method that is called: it cannot be sent.
    """

    __slots__ = ("_args", "_max_attachments", "_units", "action", "offset")

    def __init__(self, pool: Pool, action: str, args: tuple[Any, ...], max_attachments: int) -> None:
        self.action = action
        self.offset: str | None = None if pool.offsets is None else str(next(pool.offsets))
        self._args = args
        self._max_attachments = max_attachments
        self._units: dict[tuple[Literal[4, 5], str], Unit] = {}

    def unit(self, core: ConnectionCore) -> Unit:
        """As it goes to a connection."""
        return self._encode(core.session.automaton.protocol, core.namespace)

    def keep(self, absent: Absent) -> None:
        """Keep it for a client that may come back."""
        assert self.offset is not None
        absent.journal.add(self.offset, self._encode(5, absent.namespace))

    def check(self) -> None:
        """Find out whether it can be sent, should it be for nobody."""
        if not self._units:
            self._encode(5, "/")

    def _encode(self, protocol: Literal[4, 5], namespace: str) -> Unit:
        unit = self._units.get((protocol, namespace))
        if unit is None:
            args = self._args if self.offset is None or protocol == 4 else (*self._args, self.offset)
            unit = encode_action(protocol, namespace, self.action, args, None, self._max_attachments)
            for packet in unit:
                packet.share()
            self._units[protocol, namespace] = unit
        return unit


class Pool:
    """The accepted connections of an API, and messages to them from outside.

    Each connection is in the room that is called as its id, and in those that it has joined
    (:meth:`Connection.join <brightsocket_anyio.Connection.join>`). A room is there as long as somebody is in it.

    With the ``max_disconnection_duration`` setting, what is sent to one that was lost a moment ago waits for its
    client, though it is none of the pool's connections any more.
    """

    def __init__(
        self,
        settings: Settings,
        overloaded: Callable[..., Any] | None = None,
        statistics: Statistics | None = None,
    ) -> None:
        self._max_attachments = settings.max_attachments
        self._overloaded = None if overloaded is None else Adapted(overloaded, "overloaded")
        self._members: dict[str, _Member] = {}
        self._absent: dict[str, Absent] = {}
        self._rooms: dict[str, dict[str, _Member | Absent]] = {}
        #: of the messages, for those that may be missed; ``None`` if nothing is kept for anybody
        self.offsets: Iterator[int] | None = None if settings.max_disconnection_duration is None else itertools.count()
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
        return frozenset(self._rooms.get(room, ())) - self._absent.keys()

    async def send(self, id: str, action: str, *payload: Any) -> bool:
        """Send an action to one connection; never waits for it.

        :param id: the connection's id.
        :returns: whether it was taken: there is such a connection, and it has room; or it waits for its client.
        :raises ValueError: the payload cannot be sent.
        """
        await checkpoint()
        message = _Message(self, action, payload, self._max_attachments)
        if (member := self._members.get(id)) is not None:
            return member[1].send_nowait(message.unit(member[1]), None, message.offset)
        if (absent := self._absent.get(id)) is not None:
            message.keep(absent)
            return True
        message.check()
        return False

    async def emit(self, action: str, *payload: Any, to: Rooms | None = None, skip: Rooms = ()) -> int:
        """Send an action to every connection, or to those in some rooms, encoded once; never waits for a slow one.

        What happens to a client whose buffer is full is its channel's ``slow_consumer``: ``"disconnect"`` ends its
        session, ``"drop-oldest"`` drops what was emitted to it first (but this message, if that would not be enough),
        ``"latest-per-action"`` does so with what was emitted to it of the same action, ``"drop-newest"`` drops this
        message. Each is counted, and the API's ``overloaded`` hook hears of it.

        :param to: a room or several: who is in any of them gets it, once. ``None`` is everybody.
        :param skip: a room or several: who is in any of them does not get it.
        :returns: how many connections took it, with those for whose clients it waits.
        :raises ValueError: the payload cannot be sent.
        """
        await checkpoint()
        message = _Message(self, action, payload, self._max_attachments)
        taken = 0
        for found in self._find(to, skip):
            if isinstance(found, Absent):
                message.keep(found)
                taken += 1
            else:
                taken += self._offer(*found, message)
        message.check()
        return taken

    def add(self, connection: Connection, core: ConnectionCore) -> None:
        """A connection has been accepted."""
        member = self._members[core.id] = connection, core
        self._statistics.connections_open += 1
        for room in core.rooms:
            self._enter(room, core.id, member)
        core.moved = lambda room, inside: self._enter(room, core.id, member) if inside else self._leave(room, core.id)

    def discard(self, core: ConnectionCore) -> None:
        """A connection is over."""
        member = self._members.get(core.id)
        if member is not None and member[1] is core:
            del self._members[core.id]
            self._statistics.connections_open -= 1
            for room in core.rooms:
                self._leave(room, core.id)
        core.moved = None

    def keep(self, absent: Absent) -> None:
        """A connection is over whose client may come back to it: what is for it is added to its journal."""
        self._absent[absent.id] = absent
        self._statistics.connections_absent += 1
        for room in absent.rooms:
            self._enter(room, absent.id, absent)
        absent.forget = lambda: self._forget(absent)

    def _forget(self, absent: Absent) -> None:
        if self._absent.get(absent.id) is absent:
            del self._absent[absent.id]
            self._statistics.connections_absent -= 1
            for room in absent.rooms:
                self._leave(room, absent.id)

    def _enter(self, room: str, id: str, who: _Member | Absent) -> None:
        self._rooms.setdefault(room, {})[id] = who

    def _leave(self, room: str, id: str) -> None:
        inside = self._rooms[room]
        del inside[id]
        if not inside:
            del self._rooms[room]

    def _in(self, rooms: Rooms) -> dict[str, _Member | Absent]:
        found: dict[str, _Member | Absent] = {}
        for room in (rooms,) if isinstance(rooms, str) else rooms:
            found |= self._rooms.get(room, {})
            if (who := self._members.get(room) or self._absent.get(room)) is not None:
                found[room] = who
        return found

    def _find(self, to: Rooms | None, skip: Rooms) -> list[_Member | Absent]:
        found: dict[str, _Member | Absent] = {**self._members, **self._absent} if to is None else self._in(to)
        if not skip:
            return list(found.values())
        skipped = self._in(skip)
        return [who for id, who in found.items() if id not in skipped]

    def _offer(self, connection: Connection, core: ConnectionCore, message: _Message) -> bool:
        session = core.session
        unit, offset = message.unit(core), message.offset
        sender = core, message.action
        if core.send_nowait(unit, sender, offset):
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
        # where the session has been ended, it waits for the client
        taken = (dropped > 0 or session.ending is not None) and core.send_nowait(unit, sender, offset)
        self._statistics.emits_dropped += dropped + (not taken)
        if self._overloaded is not None:
            try:
                self._overloaded.begin((connection, message.action, policy))
            except Exception:
                core.log().exception("the overloaded hook has failed")
        return taken
