"""The automaton of one session: open, upgrade, heartbeat, connect, identify, close.

It takes Engine.IO packets and the time, and it returns at most one event for a packet, the packets to answer with, and
the next deadline. It never awaits, logs or reads a clock.

Two tables say what may happen; a missing entry is the error. The rules behind them:

- A session has one *road* (:data:`ROADS`), of which both sides have the same table. On polling a second road may be
  offered, probed and changed to, once and in this order; a road that fails on the way leaves polling as it was. The
  client makes each of these steps, and the server follows.
- Each Socket.IO namespace of a session has one *stay* (:data:`STAYS`). The asking side moves it to CONNECTING, or to
  RECOVERING if it asks for what it has missed on a session before. The
  answering side admits it (the main namespace, which names its channel later, by IDENTIFY), accepts it (a namespace
  that is itself a channel) or refuses it.
- A second CONNECT, and anything but a CONNECT for a namespace that never was, are errors; what was in flight for a stay
  that has ended is ignored. IDENTIFY may come again: a switch.
- One side pings, the other answers: the server pings in Engine.IO 4, the client in Engine.IO 3. Whatever arrives proves
  that the peer is alive. A side that holds back reading sees no ping, so it answers unasked, once each interval.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, overload

from ..errors import ProtocolError
from ..prefetch import Piece, whole_lines
from ..settings import Settings
from . import engineio, socketio
from .engineio import Packet, PacketType

IDENTIFY: Final = "BRIGHTSOCKET:IDENTIFY"
IDENTIFIED: Final = "BRIGHTSOCKET:IDENTIFIED"
REFUSED: Final = "BRIGHTSOCKET:REFUSED"
CLOSED: Final = "BRIGHTSOCKET:CLOSED"
CHANNEL: Final = "BRIGHTSOCKET:CHANNEL"
PREFIX: Final = "BRIGHTSOCKET:"

#: what asks, on a road that is offered, whether it carries packets; and what says that it does
PROBE: Final = Packet(PacketType.PING, "probe")
PROBE_ANSWER: Final = Packet(PacketType.PONG, "probe")

#: one message: a header and its attachments, which nothing may come between
Unit = tuple[Packet, ...]


class Side(enum.Enum):
    SERVER = enum.auto()
    CLIENT = enum.auto()


class Road(enum.Enum):
    OPENING = enum.auto()
    POLLING = enum.auto()
    OFFERED = enum.auto()
    PROBED = enum.auto()
    WEBSOCKET = enum.auto()
    CLOSED = enum.auto()


class RoadInput(enum.Enum):
    OPEN_POLLING = enum.auto()
    OPEN_WEBSOCKET = enum.auto()
    OFFER = enum.auto()
    PROBE = enum.auto()
    UPGRADE = enum.auto()
    LOSE_OFFER = enum.auto()
    CLOSE = enum.auto()


class Stay(enum.Enum):
    ABSENT = enum.auto()
    CONNECTING = enum.auto()
    RECOVERING = enum.auto()
    CONNECTED = enum.auto()
    IDENTIFYING = enum.auto()
    ACTIVE = enum.auto()
    ENDED = enum.auto()


class StayInput(enum.Enum):
    """What moves a stay: the first group comes from the peer, the second is what this side does."""

    CONNECT = enum.auto()
    CONNECT_ERROR = enum.auto()
    DISCONNECT = enum.auto()
    EVENT = enum.auto()
    ACK = enum.auto()
    IDENTIFY = enum.auto()
    IDENTIFIED = enum.auto()
    REFUSED = enum.auto()

    ASK = enum.auto()
    ASK_AGAIN = enum.auto()
    ADMIT = enum.auto()
    ACCEPT = enum.auto()
    REFUSE = enum.auto()
    NAME = enum.auto()
    LEAVE = enum.auto()


class Timer(enum.Enum):
    #: the next ping is due (the side that pings)
    PING = enum.auto()
    #: the next unasked pong is due, while reading is held back (the side that answers)
    PONG = enum.auto()
    #: reading has been held back for too long
    STALL = enum.auto()
    #: the session has had no namespace for too long
    CONNECT = enum.auto()
    #: the road that was offered has not been taken in time
    UPGRADE = enum.auto()


for _each in (Side, Road, RoadInput, Stay, StayInput, Timer):
    # Enum's own is Python code, and every message is looked up by some of these
    _each.__hash__ = object.__hash__  # type: ignore[method-assign]


# on Python 3.11 a global is found in an eighth of the time that an enumeration's member takes
_MESSAGE, _EVENT, _ACTIVE = PacketType.MESSAGE, socketio.PacketType.EVENT, Stay.ACTIVE
_OPENING, _CLOSED = Road.OPENING, Road.CLOSED
_ABSENT, _CONNECTED, _ENDED_STAY, _IDENTIFY = Stay.ABSENT, Stay.CONNECTED, Stay.ENDED, StayInput.IDENTIFY
_SERVER, _CONNECT = Side.SERVER, Timer.CONNECT

_UNLIMITED: Final = math.inf
_NO_OFFSETS: Final[Mapping[str, bool]] = {}

_R, _RI, _S, _SI = Road, RoadInput, Stay, StayInput

ROADS: Final[Mapping[Road, Mapping[RoadInput, Road]]] = {
    _R.OPENING: {_RI.OPEN_POLLING: _R.POLLING, _RI.OPEN_WEBSOCKET: _R.WEBSOCKET, _RI.CLOSE: _R.CLOSED},
    _R.POLLING: {_RI.OFFER: _R.OFFERED, _RI.CLOSE: _R.CLOSED},
    _R.OFFERED: {_RI.PROBE: _R.PROBED, _RI.LOSE_OFFER: _R.POLLING, _RI.CLOSE: _R.CLOSED},
    _R.PROBED: {_RI.UPGRADE: _R.WEBSOCKET, _RI.LOSE_OFFER: _R.POLLING, _RI.CLOSE: _R.CLOSED},
    _R.WEBSOCKET: {_RI.CLOSE: _R.CLOSED},
    _R.CLOSED: {},
}

_ENDED: Final[Mapping[StayInput, Stay]] = {_SI.DISCONNECT: _S.ENDED, _SI.EVENT: _S.ENDED, _SI.ACK: _S.ENDED}

STAYS: Final[Mapping[Side, Mapping[Stay, Mapping[StayInput, Stay]]]] = {
    Side.SERVER: {
        _S.ABSENT: {_SI.CONNECT: _S.CONNECTING},
        # CONNECT is not answered yet: actions wait
        _S.CONNECTING: {
            _SI.EVENT: _S.CONNECTING,
            _SI.ACK: _S.CONNECTING,
            _SI.DISCONNECT: _S.ENDED,
            _SI.ADMIT: _S.CONNECTED,
            _SI.ACCEPT: _S.ACTIVE,
            _SI.REFUSE: _S.ENDED,
            _SI.LEAVE: _S.ENDED,
        },
        # on the main namespace, and no channel named yet: actions go unheard
        _S.CONNECTED: {
            _SI.EVENT: _S.CONNECTED,
            _SI.ACK: _S.CONNECTED,
            _SI.IDENTIFY: _S.IDENTIFYING,
            _SI.DISCONNECT: _S.ENDED,
            _SI.REFUSE: _S.ENDED,
            _SI.LEAVE: _S.ENDED,
        },
        # a channel is named and not entered yet: actions wait
        _S.IDENTIFYING: {
            _SI.EVENT: _S.IDENTIFYING,
            _SI.ACK: _S.IDENTIFYING,
            _SI.IDENTIFY: _S.IDENTIFYING,
            _SI.DISCONNECT: _S.ENDED,
            _SI.ACCEPT: _S.ACTIVE,
            _SI.REFUSE: _S.ENDED,
            _SI.LEAVE: _S.ENDED,
        },
        _S.ACTIVE: {
            _SI.EVENT: _S.ACTIVE,
            _SI.ACK: _S.ACTIVE,
            _SI.IDENTIFY: _S.IDENTIFYING,
            _SI.DISCONNECT: _S.ENDED,
            _SI.LEAVE: _S.ENDED,
        },
        _S.ENDED: {**_ENDED, _SI.IDENTIFY: _S.ENDED, _SI.CONNECT: _S.CONNECTING},
    },
    Side.CLIENT: {
        # the server of protocol 4 connects the main namespace unasked
        _S.ABSENT: {_SI.ASK: _S.CONNECTING, _SI.ASK_AGAIN: _S.RECOVERING, _SI.CONNECT: _S.CONNECTED},
        _S.CONNECTING: {
            _SI.CONNECT: _S.CONNECTED,
            _SI.CONNECT_ERROR: _S.ENDED,
            _SI.DISCONNECT: _S.ENDED,
            _SI.LEAVE: _S.ENDED,
        },
        # socket.io sends what was missed before it answers
        _S.RECOVERING: {
            _SI.EVENT: _S.RECOVERING,
            _SI.CONNECT: _S.CONNECTED,
            _SI.CONNECT_ERROR: _S.ENDED,
            _SI.DISCONNECT: _S.ENDED,
            _SI.LEAVE: _S.ENDED,
        },
        _S.CONNECTED: {
            _SI.EVENT: _S.CONNECTED,
            _SI.ACK: _S.CONNECTED,
            _SI.NAME: _S.IDENTIFYING,
            # it has named no channel in time
            _SI.REFUSED: _S.ENDED,
            _SI.DISCONNECT: _S.ENDED,
            # socket.io 1.x and 2.x turn a client away from its main namespace after they have let it in
            _SI.CONNECT_ERROR: _S.ENDED,
            _SI.LEAVE: _S.ENDED,
        },
        _S.IDENTIFYING: {
            _SI.EVENT: _S.IDENTIFYING,
            _SI.ACK: _S.IDENTIFYING,
            _SI.IDENTIFIED: _S.ACTIVE,
            _SI.REFUSED: _S.ENDED,
            _SI.DISCONNECT: _S.ENDED,
            _SI.CONNECT_ERROR: _S.ENDED,
            _SI.LEAVE: _S.ENDED,
        },
        _S.ACTIVE: {
            _SI.EVENT: _S.ACTIVE,
            _SI.ACK: _S.ACTIVE,
            # the original answers once for each callback of a channel
            _SI.IDENTIFIED: _S.ACTIVE,
            _SI.DISCONNECT: _S.ENDED,
            _SI.CONNECT_ERROR: _S.ENDED,
            _SI.LEAVE: _S.ENDED,
        },
        _S.ENDED: {
            **_ENDED,
            _SI.CONNECT: _S.ENDED,
            _SI.CONNECT_ERROR: _S.ENDED,
            _SI.IDENTIFIED: _S.ENDED,
            _SI.REFUSED: _S.ENDED,
            _SI.ASK: _S.CONNECTING,
            _SI.ASK_AGAIN: _S.RECOVERING,
        },
    },
}

_PACKET_INPUTS: Final = {
    socketio.PacketType.CONNECT: _SI.CONNECT,
    socketio.PacketType.CONNECT_ERROR: _SI.CONNECT_ERROR,
    socketio.PacketType.DISCONNECT: _SI.DISCONNECT,
    socketio.PacketType.EVENT: _SI.EVENT,
    socketio.PacketType.ACK: _SI.ACK,
}

_EVENT_INPUTS: Final = {
    Side.SERVER: {IDENTIFY: _SI.IDENTIFY},
    Side.CLIENT: {IDENTIFIED: _SI.IDENTIFIED, REFUSED: _SI.REFUSED},
}


# What comes out of the automaton. Not frozen: that would cost more to make than the rest of it.


@dataclass(slots=True)
class Opened:
    """Client: the server's open packet has come."""

    sid: str
    upgrades: tuple[str, ...]


@dataclass(slots=True)
class Joining:
    """Server: the client asks for a namespace, with CONNECT's auth payload (protocol 4: the query, a dict of texts).

    ``pid`` is there if it wants to go on from a connection that it has lost, ``offset`` if it got something there.
    """

    namespace: str
    auth: Any
    pid: str | None = None
    offset: str | None = None


@dataclass(slots=True)
class Joined:
    """Client: the server let it into a namespace.

    ``pid`` is what to ask with for the same again, after a loss, and ``offset`` what to say if nothing comes.
    """

    namespace: str
    sid: str
    pid: str | None = None
    offset: str | None = None


@dataclass(slots=True)
class Identifying:
    """Server: the client names a channel on the main namespace.

    ``channel`` and ``identity`` are ``None`` where the client's payload is no object or names no channel.
    """

    channel: str | None
    identity: dict[str, Any] | None


@dataclass(slots=True)
class Identified:
    """Client: the server let it into the channel that it named; ``offset`` as for :class:`Joined`."""

    offset: str | None = None


@dataclass(slots=True)
class Rejected:
    """Client: the server turned it away, from a namespace or from the channel that it named."""

    namespace: str
    reason: str
    data: Any = None


@dataclass(slots=True)
class Action:
    """A named action with its values; ``id`` where the peer waits for an answer; ``size`` in bytes, for the buffers;
    ``offset`` where the server could send what follows again."""

    namespace: str
    name: str
    args: tuple[Any, ...]
    id: int | None
    size: int
    offset: str | None = None


@dataclass(slots=True)
class Answer:
    """The answer to a call."""

    namespace: str
    id: int
    args: tuple[Any, ...]


@dataclass(slots=True)
class Explained:
    """Client: the server says why it is about to end the connection."""

    code: str
    reason: str


@dataclass(slots=True)
class Left:
    """The peer left a namespace."""

    namespace: str


@dataclass(slots=True)
class Expired:
    """Server: a namespace's client was not accepted in time; ``named`` tells whether it had named a channel."""

    namespace: str
    named: bool


@dataclass(slots=True)
class OfferExpired:
    """The road that was offered has not been taken in time."""


@dataclass(slots=True)
class Ended:
    """The session is over, by the peer's close, a deadline of its own, or this side's decision.

    ``by_peer``: the peer closed it in an orderly way, so nothing was lost.
    """

    code: str
    reason: str
    by_peer: bool = False


Event = (
    Opened
    | Joining
    | Joined
    | Identifying
    | Identified
    | Rejected
    | Action
    | Answer
    | Explained
    | Left
    | Expired
    | OfferExpired
    | Ended
)


class _AutomatonFields(Piece):
    """What each message looks at: see ``_SessionFields``."""

    __slots__ = (
        "_active",
        "_decoding_size",
        "_offsets",
        "_pings",
        "_settings",
        "_silence",
        "protocol",
        "replies",
        "road",
    )


class Automaton(_AutomatonFields):
    """One session's state.

    :param side: which side this is.
    :param eio: the Engine.IO protocol's version.
    :param sid: the session's id (a server's; a client learns it).
    :param now: the time, in seconds on any monotonic clock; every other time is on the same clock.
    :param polling: whether a client begins by polling (a server says it to :meth:`open`).
    :ivar replies: the packets that answer what was received or what came due.
    """

    __slots__ = whole_lines(
        (_AutomatonFields,),
        "_allowance",
        "_allowed_at",
        "_decoder",
        "_interval",
        "_max_payload",
        "_opening",
        "_patience",
        "_pong_sent",
        "_stays",
        "_table",
        "_timers",
        "eio",
        "held",
        "sid",
        "side",
    )

    def __init__(
        self,
        side: Side,
        eio: Literal[3, 4],
        settings: Settings,
        *,
        sid: str = "",
        now: float,
        polling: bool = False,
    ) -> None:
        self.side: Side = side
        self.eio: Literal[3, 4] = eio
        self.protocol: Literal[4, 5] = 5 if eio == 4 else 4
        self.sid: str = sid
        self.road: Road = Road.OPENING
        self.held: bool = False
        self._settings = settings
        self._opening = RoadInput.OPEN_POLLING if polling else RoadInput.OPEN_WEBSOCKET
        self._pings = (side is Side.SERVER) == (eio == 4)
        #: bytes of one message that a client's server takes
        self._max_payload: float = _UNLIMITED
        self._interval: float = settings.ping_interval
        self._patience: float = settings.ping_timeout
        self._table = STAYS[side]
        self._stays: dict[str, Stay] = {}
        #: the namespace that has become active last, if it still is: mostly the only one, and what packets are for
        self._active: str | None = None
        #: a client's namespaces whose server can send again what was missed; whether it is one that says which of an
        #: event's values is the offset: the last one of each. Of others' it is one if it is a text, and stays a value.
        self._offsets: Mapping[str, bool] = _NO_OFFSETS
        self._decoder = socketio.Decoder(self.protocol, max_attachments=settings.max_attachments)
        self._decoding_size = 0
        self._timers: dict[Timer | str, float] = {Timer.CONNECT: now + settings.connect_timeout}
        #: when the peer's silence ends the session; no entry of the timers, since each packet that comes looks at it
        self._silence: float = _UNLIMITED
        self.replies: tuple[Packet, ...] = ()
        self._pong_sent = now
        # a token bucket: how many actions may come at once, and when that was so
        self._allowance = float(settings.action_burst)
        self._allowed_at = now

    # -- what is to be done

    @property
    def deadline(self) -> float:
        """When :meth:`expire` is to be called next."""
        return min((self._silence, *self._timers.values()))

    def take_replies(self) -> list[Packet]:
        """Take the :attr:`replies`."""
        replies, self.replies = self.replies, ()
        return list(replies)

    # -- the engine

    def open(self, now: float, *, polling: bool) -> Packet:
        """Server: the session begins; returns the open packet."""
        self._take(RoadInput.OPEN_POLLING if polling else RoadInput.OPEN_WEBSOCKET)
        self._start_heartbeat(now)
        return engineio.Open(
            sid=self.sid,
            upgrades=("websocket",) if polling else (),
            ping_interval=self._interval,
            ping_timeout=self._patience,
            max_payload=self._settings.max_payload,
        ).to_packet()

    def receive(self, packet: Packet, now: float) -> Event | None:
        """Take one packet from the road in use.

        :raises ProtocolError: the packet is not allowed here; the session is good for :meth:`close` only.
        """
        if self.road is _CLOSED:
            return None
        if self.road is _OPENING:
            return self._receive_open(packet, now)
        if not self._pings or self._silence != _UNLIMITED:
            # else nobody has doubted it: the usual case, which spares the call
            self._prove_alive(now)
        if packet.type is _MESSAGE:
            return self._receive_message(packet, now)
        match packet.type:
            case PacketType.PING if not self._pings:
                self.replies += (Packet(PacketType.PONG, packet.data),)
                self._pong_sent = now
                if Timer.PONG in self._timers:
                    self._timers[Timer.PONG] = now + self._pace
            case PacketType.PONG if self._pings:
                pass
            case PacketType.NOOP:
                pass
            case PacketType.CLOSE:
                self.close()
                return Ended("transport close", "the peer closed the session", by_peer=True)
            case _:
                raise ProtocolError(f"{packet.type.name} is not for the {self.side.name.lower()} to receive here")
        return None

    def offer(self, now: float) -> None:
        """A second road has come for this session (a server's), or is about to be opened (a client's).

        :raises ProtocolError: the session cannot change its road, or is about to.
        """
        self._take(RoadInput.OFFER)
        self._timers[Timer.UPGRADE] = now + self._settings.upgrade_timeout

    def receive_offer(self, packet: Packet, now: float) -> Packet | None:
        """Server: take one packet from the road that is offered.

        Returns the answer to the probe, or ``None``: the session changes to the offered road.

        :raises ProtocolError: the packet is no probe, or the change comes without one; only the offered road ends.
        """
        if packet == PROBE:
            self._take(RoadInput.PROBE)
            return PROBE_ANSWER
        if packet.type is PacketType.UPGRADE:
            self._take(RoadInput.UPGRADE)
            self._timers.pop(Timer.UPGRADE, None)
            self._prove_alive(now)
            return None
        raise ProtocolError(f"{packet.type.name} on a road that is not in use")

    def receive_probe_answer(self, packet: Packet, now: float) -> None:
        """Client: take the answer to the :data:`PROBE` that was sent on the offered road.

        :raises ProtocolError: it is none; only the offered road ends.
        """
        if packet != PROBE_ANSWER:
            raise ProtocolError(f"{packet.type.name} in answer to the probe")
        self._take(RoadInput.PROBE)
        self._prove_alive(now)

    def upgrade(self) -> Packet:
        """Client: change to the offered road; returns the packet to send there before any other.

        :raises ProtocolError: the road has not been probed.
        """
        self._take(RoadInput.UPGRADE)
        self._timers.pop(Timer.UPGRADE, None)
        return Packet(PacketType.UPGRADE)

    def lose_offer(self) -> None:
        """The road that was offered is gone; the session stays where it is."""
        self._timers.pop(Timer.UPGRADE, None)
        if RoadInput.LOSE_OFFER in ROADS[self.road]:
            self._take(RoadInput.LOSE_OFFER)

    def close(self) -> None:
        """The session is over; nothing comes due any more. Idempotent."""
        self.road = Road.CLOSED
        self._timers.clear()
        self._silence = _UNLIMITED

    def hold(self, now: float) -> None:
        """This side stops reading: the peer's silence proves nothing from here on."""
        if self.held or self.road in (Road.OPENING, Road.CLOSED):
            return
        self.held = True
        self._silence = _UNLIMITED
        self._timers[Timer.STALL] = now + self._settings.stall
        if not self._pings:
            self._timers.setdefault(Timer.PONG, max(now, self._pong_sent + self._pace))

    def resume(self, now: float) -> None:
        """This side reads again."""
        if not self.held:
            return
        self.held = False
        self._timers.pop(Timer.STALL, None)
        self._prove_alive(now)

    def expire(self, now: float) -> Event | None:
        """Do one thing that has come due; to be called until it returns ``None`` and :attr:`deadline` lies ahead."""
        due = [timer for timer, time in self._timers.items() if time <= now]
        if not due:
            if self._silence <= now:
                self.close()
                return Ended("ping timeout", "the peer did not prove that it is alive")
            return None
        timer = due[0]
        del self._timers[timer]
        match timer:
            case Timer.PING:
                self.replies += (Packet(PacketType.PING),)
                self._timers[Timer.PING] = now + self._interval
                if not self.held and self._silence == _UNLIMITED:
                    self._silence = now + self._patience
            case Timer.PONG:
                self.replies += (Packet(PacketType.PONG),)
                self._pong_sent = now
                if self.held:
                    self._timers[Timer.PONG] = now + self._pace
            case Timer.STALL:
                self.close()
                return Ended("stalled", "what the peer sent was not taken for the stall timeout")
            case Timer.CONNECT:
                self.close()
                return Ended("connect timeout", "the session was on no namespace for the connect timeout")
            case Timer.UPGRADE:
                return OfferExpired()
            case namespace:
                return Expired(namespace, self._stays[namespace] is not Stay.CONNECTED)
        return self.expire(now)

    def _take(self, given: RoadInput) -> None:
        try:
            self.road = ROADS[self.road][given]
        except KeyError:
            raise ProtocolError(f"{given.name} is not possible when {self.road.name}") from None

    def _receive_open(self, packet: Packet, now: float) -> Opened:
        handshake = engineio.Open.from_packet(packet)
        self._take(self._opening)
        self.sid = handshake.sid
        self._interval, self._patience = handshake.ping_interval, handshake.ping_timeout
        if handshake.max_payload is not None:
            self._max_payload = handshake.max_payload
        self._start_heartbeat(now)
        return Opened(handshake.sid, handshake.upgrades)

    @property
    def _pace(self) -> float:
        """Seconds between answers to pings that are not read: whenever the peer has sent one, it hears us in time."""
        return self._patience / 2

    def _start_heartbeat(self, now: float) -> None:
        self._pong_sent = now
        if self._pings:
            self._timers[Timer.PING] = now + self._interval
        else:
            self._silence = now + self._interval + self._patience

    def _prove_alive(self, now: float) -> None:
        if self.held:
            return
        if self._pings:
            self._silence = _UNLIMITED
        else:
            self._silence = now + self._interval + self._patience

    # -- the namespaces

    def stay(self, namespace: str) -> Stay:
        """Where a namespace of this session stands."""
        return self._stays.get(namespace, Stay.ABSENT)

    @property
    def live(self) -> list[str]:
        """The namespaces that have begun and not ended."""
        return [namespace for namespace, stay in self._stays.items() if stay is not Stay.ENDED]

    def ask(self, namespace: str, now: float, *, recovers: bool = False) -> bool:
        """Client: ask for a namespace; returns whether to send a CONNECT (protocol 4's main one comes by itself).

        :param recovers: whether it asks for what it has missed, too.
        """
        self._move(namespace, StayInput.ASK_AGAIN if recovers else StayInput.ASK, now)
        if recovers:
            self._offsets = {**self._offsets, namespace: False}
        return self.protocol == 5 or namespace != "/"

    def join_unasked(self, now: float) -> Joining:
        """Server of protocol 4: every client is on the main namespace from the start."""
        self._move("/", StayInput.CONNECT, now)
        return Joining("/", None)

    def name(self, now: float) -> None:
        """Client: name a channel on the main namespace."""
        self._move("/", StayInput.NAME, now)

    def admit(self, now: float, sid: str, pid: str | None = None) -> Unit:
        """Server: let a client into the main namespace, where it has yet to name its channel."""
        self._move("/", StayInput.ADMIT, now)
        return self._connect_answer("/", sid, pid)

    def accept(self, namespace: str, now: float, sid: str, pid: str | None = None, offset: str | None = None) -> Unit:
        """Server: let a client into the channel that it named.

        :param pid: what it can recover the connection with; each event without an id has an offset then, as its last
            value.
        :param offset: that of nothing sent yet.
        """
        named = self.stay(namespace) is Stay.IDENTIFYING
        self._move(namespace, StayInput.ACCEPT, now)
        if named:
            return self._encode(
                socketio.PacketType.EVENT, "/", [IDENTIFIED] if offset is None else [IDENTIFIED, offset]
            )
        return self._connect_answer(namespace, sid, pid, offset)

    def _connect_answer(self, namespace: str, sid: str, pid: str | None, offset: str | None = None) -> Unit:
        if self.protocol == 4:
            return self._encode(socketio.PacketType.CONNECT, namespace)
        data = {"sid": sid, "pid": pid, "offset": offset}
        return self._encode(
            socketio.PacketType.CONNECT, namespace, {key: value for key, value in data.items() if value is not None}
        )

    def refuse(self, namespace: str, now: float, reason: str, data: Any = None) -> list[Unit]:
        """Server: turn a client away, from a namespace that it asked for or from the channel that it named.

        :raises ValueError: ``data`` cannot be sent.
        """
        if self.stay(namespace) is Stay.CONNECTING:
            error = {"message": reason} if data is None else {"message": reason, "data": data}
            units = [self._encode(socketio.PacketType.CONNECT_ERROR, namespace, error)]
        else:
            units = [
                self._encode(socketio.PacketType.EVENT, namespace, [REFUSED, {"reason": reason}]),
                self._encode(socketio.PacketType.DISCONNECT, namespace),
            ]
        self._move(namespace, StayInput.REFUSE, now)
        return units

    def explain(self, namespace: str, code: str, reason: str) -> Unit:
        """Server: tell a client why its connection is about to end."""
        return self._encode(socketio.PacketType.EVENT, namespace, [CLOSED, {"code": code, "reason": reason}])

    def leave(self, namespace: str, now: float) -> Unit:
        """Leave a namespace."""
        self._move(namespace, StayInput.LEAVE, now)
        return self._encode(socketio.PacketType.DISCONNECT, namespace)

    def encode_action(self, namespace: str, name: str, args: tuple[Any, ...], id: int | None = None) -> Unit:
        """Encode an action.

        :raises ValueError: as :func:`encode_action`, or the server does not take so much in one message.
        """
        unit = encode_action(self.protocol, namespace, name, args, id, self._settings.max_attachments)
        return unit if self._max_payload == _UNLIMITED else self._short(unit)

    def encode_answer(self, namespace: str, id: int, args: tuple[Any, ...]) -> Unit:
        """Encode the answer to a call.

        :raises ValueError: a value cannot be sent, it has too many attachments, or the server does not take so much in
            one message.
        """
        unit = socketio.encode(socketio.Packet(socketio.PacketType.ACK, namespace, list(args), id), self.protocol)
        return self._short(_bounded(unit, self._settings.max_attachments))

    def _short(self, unit: Unit) -> Unit:
        """A server ends the session at a message that is too long for it."""
        polling = self.road is not Road.WEBSOCKET
        for packet in unit:
            if (length := engineio.length_of(packet, self.eio, polling=polling)) > self._max_payload:
                raise ValueError(f"a message of {length} bytes, where the server takes {self._max_payload} at most")
        return unit

    def _encode(self, type: socketio.PacketType, namespace: str, data: Any = None) -> Unit:
        return socketio.encode(socketio.Packet(type, namespace, data), self.protocol)

    def _move(self, namespace: str, given: StayInput, now: float) -> Stay:
        stays, timers = self._stays, self._timers
        before = stays.get(namespace, _ABSENT)
        after = self._table[before].get(given)
        if after is None:
            raise ProtocolError(f"{given.name} is not possible when {before.name}")
        if after is before and given is not _IDENTIFY:
            return before
        if before is _ABSENT and len(stays) >= self._settings.max_namespaces:
            raise ProtocolError("too many namespaces")
        stays[namespace] = after
        if after is _ACTIVE:
            self._active = namespace
        elif self._active == namespace:
            self._active = None
        if self.side is _SERVER:
            if after is _ACTIVE or after is _ENDED_STAY:
                timers.pop(namespace, None)
            elif after is not _CONNECTED:
                timers[namespace] = now + self._settings.identify_timeout
        if after is not _ENDED_STAY:
            timers.pop(_CONNECT, None)
        elif not self.live:
            timers[_CONNECT] = now + self._settings.connect_timeout
        return before

    def _allows(self, now: float) -> bool:
        """Take one action out of the allowance; returns whether it had one."""
        settings = self._settings
        if settings.action_rate is None:
            return True
        gained = (now - self._allowed_at) * settings.action_rate
        self._allowance = min(self._allowance + gained, settings.action_burst) - 1
        self._allowed_at = now
        return self._allowance >= 0

    def _joining(self, namespace: str, auth: Any) -> Joining:
        """What a client asks for; with recovery, ``pid`` and ``offset`` are no part of its identity."""
        if self._settings.max_disconnection_duration is None or self.protocol == 4 or not isinstance(auth, dict):
            return Joining(namespace, auth)
        rest = {key: value for key, value in auth.items() if key not in ("pid", "offset")}
        return Joining(namespace, rest, _text([auth], "pid", None), _text([auth], "offset", None))

    def _joined(self, namespace: str, data: Any) -> Joined:
        """What the answer to CONNECT gives this client."""
        if self.protocol == 4:
            # nobody says the id: both sides work it out
            return Joined(namespace, self.sid if namespace == "/" else f"{namespace}#{self.sid}")
        sid = data.get("sid") if isinstance(data, dict) else None
        if not isinstance(sid, str):
            raise ProtocolError("CONNECT's answer has no sid: a server of Socket.IO 1 or 2 needs eio=3")
        pid, offset = _text([data], "pid", None), _text([data], "offset", None)
        if pid is None:
            self._offsets = {key: value for key, value in self._offsets.items() if key != namespace}
        else:
            self._offsets = {**self._offsets, namespace: offset is not None}
        return Joined(namespace, sid, pid, offset)

    def _identified(self, data: list[Any]) -> Identified:
        if "/" not in self._offsets or len(data) < 2 or not isinstance(data[1], str):
            return Identified()
        self._offsets = {**self._offsets, "/": True}
        return Identified(data[1])

    def _take_offset(self, namespace: str, data: list[Any]) -> str | None:
        """The offset of an event that wants no answer."""
        if namespace not in self._offsets or len(data) < 2 or not isinstance(data[-1], str):
            return None
        offset: str = data.pop() if self._offsets[namespace] else data[-1]
        return offset

    def _receive_message(self, packet: Packet, now: float) -> Event | None:
        text = packet.data
        data: Any
        if isinstance(text, str) and text.startswith("2[") and not self._decoding_size:
            kind, namespace, data, id, size = _EVENT, "/", socketio.decode_event(text), None, packet.size
        else:
            self._decoding_size += packet.size
            message = self._decoder.feed(text)
            if message is None:
                return None
            kind, namespace, data, id = message.type, message.namespace, message.data, message.id
            size, self._decoding_size = self._decoding_size, 0
        if (
            kind is _EVENT
            and (namespace == self._active or self._stays.get(namespace) is _ACTIVE)
            and not data[0].startswith(PREFIX)
            and self._settings.action_rate is None
        ):
            # the usual case: an action, by which nothing changes
            offset = self._take_offset(namespace, data) if self._offsets and id is None else None
            return Action(namespace, data[0], tuple(data[1:]), id, size, offset)
        given = _PACKET_INPUTS[kind]
        if given is StayInput.EVENT and namespace == "/":
            given = _EVENT_INPUTS[self.side].get(data[0], given)
        before = self._move(namespace, given, now)
        if before is Stay.ENDED and given is not StayInput.CONNECT:
            return None
        match given:
            case StayInput.EVENT:
                if self.side is Side.CLIENT and data[0] == CLOSED:
                    return _explained(data)
                if self.side is Side.SERVER and not self._allows(now):
                    self.close()
                    return Ended("too many actions", "the client sends more actions than it may in the time")
                if self.side is Side.SERVER and before is Stay.CONNECTED:
                    return None
                offset = None if id is not None else self._take_offset(namespace, data)
                return Action(namespace, data[0], tuple(data[1:]), id, size, offset)
            case StayInput.ACK:
                assert id is not None
                return Answer(namespace, id, tuple(data))
            case StayInput.DISCONNECT:
                return Left(namespace)
            case StayInput.CONNECT if self.side is Side.SERVER:
                return self._joining(namespace, data)
            case StayInput.CONNECT if before is not Stay.ENDED:
                return self._joined(namespace, data)
            case StayInput.IDENTIFY:
                return _identifying(data)
            case StayInput.IDENTIFIED if before is Stay.IDENTIFYING:
                return self._identified(data)
            case StayInput.REFUSED:
                return Rejected(namespace, _text(data[1:], "reason", "refused"))
            case StayInput.CONNECT_ERROR:
                return Rejected(namespace, _text([data], "message", "refused"), data.get("data"))
        return None


def encode_connect(
    protocol: Literal[4, 5], namespace: str, auth: Any, pid: str | None = None, offset: str | None = None
) -> Unit:
    """Encode the packet that asks for a namespace.

    :param pid: of a connection that was lost, and is to be recovered from an ``offset`` on.
    :raises ValueError: the auth payload cannot be sent.
    """
    if pid is not None:
        # stock clients let what the application hands over come first, too
        auth = {"pid": pid, **({} if offset is None else {"offset": offset}), **(auth or {})}
    return socketio.encode(socketio.Packet(socketio.PacketType.CONNECT, namespace, auth), protocol)


def encode_identify(protocol: Literal[4, 5], channel: str, identity: Mapping[str, Any]) -> Unit:
    """Encode the event that names a channel.

    :raises ValueError: the identity cannot be sent.
    """
    payload = {**identity, CHANNEL: channel}
    return socketio.encode_event([IDENTIFY, payload], protocol)


def encode_action(
    protocol: Literal[4, 5], namespace: str, name: str, args: tuple[Any, ...], id: int | None, max_attachments: int
) -> Unit:
    """Encode an action for every session of one protocol and namespace.

    :raises ValueError: the name is reserved, a value cannot be sent, or there are more attachments than peers take.
    """
    if name.startswith(PREFIX):
        raise ValueError(f"action names that begin with {PREFIX} are reserved: {name!r}")
    unit = socketio.encode_event([name, *args], protocol, namespace, id)
    return unit if len(unit) == 1 else _bounded(unit, max_attachments)


def _bounded(unit: Unit, max_attachments: int) -> Unit:
    """Stock peers close the session at one attachment too many."""
    if len(unit) - 1 > max_attachments:
        raise ValueError(f"{len(unit) - 1} binary attachments in one message, where {max_attachments} are allowed")
    return unit


def _identifying(data: list[Any]) -> Identifying:
    payload = data[1] if len(data) > 1 else None
    if not isinstance(payload, dict) or not isinstance(payload.get(CHANNEL), str):
        return Identifying(None, None)
    identity = {key: value for key, value in payload.items() if not key.startswith(PREFIX)}
    return Identifying(payload[CHANNEL], identity)


def _explained(data: list[Any]) -> Explained:
    return Explained(_text(data[1:], "code", "closed"), _text(data[1:], "reason", ""))


@overload
def _text(values: list[Any], key: str, default: str) -> str: ...


@overload
def _text(values: list[Any], key: str, default: None) -> str | None: ...


def _text(values: list[Any], key: str, default: str | None) -> str | None:
    """The text under ``key`` of the first value, whatever a peer may have put there."""
    value = values[0].get(key) if values and isinstance(values[0], dict) else None
    return value if isinstance(value, str) else default
