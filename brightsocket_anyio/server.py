"""The server: channels and what they extend, acceptance, the life of a session."""

from __future__ import annotations

import itertools
import logging
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Self

import anyio
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskGroup, TaskStatus

from .connection import Connection, ConnectionCore
from .ends import End
from .errors import ConfigurationError, ConnectionLost, Refused, sole
from .pool import Pool
from .prefetch import Piece, whole_lines
from .protocol import handshake
from .protocol.state import (
    Action,
    Answer,
    Automaton,
    Ended,
    Event,
    Expired,
    Identifying,
    Joining,
    Left,
    Side,
    Stay,
    Unit,
)
from .recovery import RECOVERABLE, Absent, Journal, MemoryStore, Store
from .request import Request, answer_headers, read_request
from .session import Session
from .settings import ChannelKeywords, Settings
from .settling import settling, unsettled
from .signature import Adapted
from .statistics import Statistics
from .timer import Timer
from .transport import Headers, Scope, Transport, WebSocketRequest
from .workers import Workers

logger: logging.Logger = logging.getLogger("brightsocket_anyio")


@dataclass(frozen=True, slots=True)
class Channel:
    """One channel as it was defined; ``function`` is adapted to any number of arguments."""

    name: str
    extends: tuple[str, ...]
    function: Callable[..., Awaitable[Any]]
    label: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """What entering a channel takes: its functions, bases first, and its settings."""

    channel: str
    steps: tuple[Channel, ...]
    settings: Settings


class Channels:
    """The registry of an API's channels."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._channels: list[Channel] = []

    def define(
        self, name: str, extends: Sequence[str], function: Callable[..., Any], settings: Mapping[str, Any]
    ) -> None:
        """Add a channel.

        :raises ConfigurationError: a setting is unknown or has an unusable value, or ``function`` is no function.
        """
        if isinstance(extends, str):
            raise ConfigurationError(f"extends is a sequence of channel names, not one string: {extends!r}")
        unknown = settings.keys() - CHANNEL_SETTINGS
        if unknown:
            raise ConfigurationError(f"a channel has no setting {', '.join(sorted(unknown))}")
        replace(self._settings, **settings)
        label = getattr(function, "__qualname__", repr(function))
        adapted = Adapted(function, "a channel's function")
        self._channels.append(Channel(name, tuple(extends), adapted, label, dict(settings)))

    def plan(self) -> dict[str, Plan]:
        """Work out what each channel extends.

        :raises ConfigurationError: a channel is defined twice, a base is unknown, or there is a cycle.
        """
        channels: dict[str, Channel] = {}
        for channel in self._channels:
            if channel.name in channels:
                raise ConfigurationError(f"channel {channel.name} is defined twice")
            channels[channel.name] = channel
        plans = {}
        for channel in self._channels:
            steps: list[Channel] = []
            _visit(channels, channel, steps, ())
            merged: dict[str, Any] = {}
            for step in steps:
                merged.update(step.settings)
            plans[channel.name] = Plan(channel.name, tuple(steps), replace(self._settings, **merged))
        return plans


#: the settings that a channel can differ in
CHANNEL_SETTINGS = frozenset(ChannelKeywords.__annotations__)


def _visit(channels: Mapping[str, Channel], channel: Channel, steps: list[Channel], path: tuple[str, ...]) -> None:
    if channel.name in path:
        cycle = " → ".join((*path[path.index(channel.name) :], channel.name))
        raise ConfigurationError(f"channels extend each other in a circle: {cycle}")
    if channel in steps:
        return
    for base in channel.extends:
        if base not in channels:
            raise ConfigurationError(f"channel {channel.name} extends {base}, which is not defined")
        _visit(channels, channels[base], steps, (*path, channel.name))
    steps.append(channel)


class _Step:
    """A channel's function that runs for one connection, the ``number``-th of its channel's."""

    __slots__ = ("_number", "_visit")

    def __init__(self, visit: _Visit, number: int) -> None:
        self._visit = visit
        self._number = number

    def settle(self) -> None:
        """It has returned, or waits for the client or sends to it: nothing more can keep the next one waiting."""
        self._visit.proceed(self._number + 1)


class _Visit:
    """One client's time on one channel: from naming it, over its acceptance, to its end.

    :param previous: the visit that it follows, which has been told to end.
    """

    __slots__ = (
        "_absent",
        "_peer",
        "_plan",
        "_previous",
        "_step",
        "connection",
        "core",
        "lost",
        "refusal",
    )

    def __init__(self, peer: _Peer, namespace: str, plan: Plan, identity: Any, previous: _Visit | None) -> None:
        self.core = ConnectionCore(
            peer.session,
            namespace,
            plan.channel,
            plan.settings,
            id=peer.id(namespace),
            ids=peer.ids,
            failed=self._failed,
        )
        self.core.journal = peer.journal()
        self.connection = Connection(self.core, plan.channel, identity, peer.webserver, peer.request)
        self.refusal: Refused | None = None
        #: whether it has ended because its session was lost, and may go on
        self.lost: bool = False
        #: what it goes on from, until it is accepted
        self._absent: Absent | None = None
        self._peer = peer
        self._plan = plan
        self._previous = previous
        #: which of the channel's functions is the latest that has begun
        self._step = -1

    # -- for its connection

    async def prepare(self) -> None:
        """Wait until the visit that this one follows is over, and look for what it may go on from."""
        if (previous := self._previous) is not None:
            self._previous = None
            await previous.core.over.wait()
            self._peer.entered()
        if (absent := await self._peer.recall(self)) is not None:
            self._recover(absent)

    def begin(self) -> None:
        """Enter the channel."""
        if not self._peer.exposed:
            self.core.shield(True)
        self.proceed(0)

    def finish(self) -> None:
        """Everything has finished."""
        self._peer.server.pool.discard(self.core)
        self._part()
        self._peer.leave(self)
        self.core.finish()

    def _recover(self, absent: Absent) -> None:
        """Go on from a connection that was lost."""
        self._absent = absent
        self.core.id = absent.id
        self.core.rooms = set(absent.rooms)
        self.core.journal = absent.journal
        self.core.recovered = True

    def _part(self) -> None:
        """The visit is over: if its session was lost, its client may come back to it."""
        absent, core = self._absent, self.core
        if absent is not None:
            # it was not let in again
            self._peer.server.put_back(absent, lost=self.lost)
        elif self.lost and core.accepted and core.journal is not None and (pid := self._peer.pid(core.namespace)):
            self._peer.server.keep(
                Absent(
                    pid,
                    core.id,
                    core.namespace,
                    core.channel,
                    frozenset(core.rooms),
                    core.journal,
                    anyio.current_time(),
                )
            )

    def answer(self) -> Unit:
        """What tells the client that it is let in."""
        core = self.core
        journal = core.journal
        pid, offset = (None, None) if journal is None else (self._peer.pid(core.namespace), journal.offset)
        return core.session.automaton.accept(core.namespace, core.session.now(), core.id, pid, offset)

    def accept(self) -> None:
        """Every function of the channel has settled: let the client in."""
        core, peer = self.core, self._peer
        journal = core.journal
        if journal is not None and not journal.intact:
            # its client, which has been told nothing yet, comes back as a new one
            core.session.end("overloaded", "more was missed than is kept, while the channel decided", flush=False)
            return
        units = [self.answer()]
        statistics = peer.server.statistics
        statistics.connections_accepted += 1
        if self._absent is not None and journal is not None:
            statistics.connections_recovered += 1
            self._absent.forget()
            self._absent = None
            units += journal.units
            journal.release()
        peer.server.pool.add(self.connection, core)
        core.accept(units)

    @property
    def settled(self) -> bool:
        """Whether every function of the channel has settled."""
        return self._step == len(self._plan.steps)

    def expire(self) -> None:
        """The channel has not let the client in within the identify timeout."""
        if 0 <= self._step < len(self._plan.steps):
            self.core.log().warning(
                "channel %s: %s has neither returned, nor sent or waited for anything, nor called "
                "`await connection.accept()`, within identify_timeout: the client is refused",
                self._plan.channel,
                self._plan.steps[self._step].label,
            )
        self.refuse(Refused("the channel did not answer in time"))

    def refuse(self, refusal: Refused) -> None:
        """Turn the client away, or end its connection, with a reason."""
        if self.core.ended is None:
            self.refusal = refusal
            self.core.end(End("refused", refusal.reason))

    def proceed(self, number: int) -> None:
        """Begin the channel's function of that number, if the one before is the latest; after the last one, let the
        client in."""
        if number != self._step + 1:
            return
        self._step = number
        if self.core.ended is not None:
            return
        if self.settled:
            self.accept()
        else:
            self.core.start(self._run_step)

    async def _run_step(self) -> None:
        number = self._step
        step = _Step(self, number)
        token = settling.set(step)
        unsettled.add(step)
        connection = self.connection
        try:
            await self._plan.steps[number].function(connection, connection.identity, connection.webserver)
        except Exception as exc:
            self.core.fail(exc)
        finally:
            settling.reset(token)
            unsettled.discard(step)
            self.proceed(number + 1)

    def _failed(self, exc: Exception) -> End:
        cause = sole(exc)
        if isinstance(cause, Refused):
            self.refusal = cause
            return End("refused", cause.reason)
        self._peer.server.statistics.connections_failed += 1
        self.core.log().error("channel %s: a connection has failed", self._plan.channel, exc_info=exc)
        self.refusal = Refused("internal error")
        return End("failed", "internal error")


class _PeerFields(Piece):
    """What each message looks at: see ``_SessionFields``."""

    __slots__ = ("_sole", "_switching")


class _Peer(_PeerFields):
    """The server's end of one session: its namespaces, and a visit on each."""

    __slots__ = whole_lines(
        (_PeerFields,),
        "_absent",
        "_asked",
        "_claims",
        "_ids",
        "_pids",
        "_visits",
        "exposed",
        "ids",
        "request",
        "server",
        "session",
        "webserver",
    )

    session: Session

    def __init__(self, server: Server, request: Request) -> None:
        self.server = server
        self.request = request
        self.webserver = server.webserver if server.webserver is not None else request.scope.get("app")
        #: ack ids: none is used twice on the session, whoever is on it
        self.ids: Iterator[int] = itertools.count()
        self._visits: dict[str, _Visit] = {}
        #: the connection of the only one of them, if there is just one: each packet that comes asks for it
        self._sole: ConnectionCore | None = None
        self._ids: dict[str, str] = {}
        #: what a client has to know to recover its connection to a namespace
        self._pids: dict[str, str] = {}
        #: what it knew, where it has asked for that; by namespace, with the offset
        self._asked: dict[str, tuple[str, str | None]] = {}
        #: what it got, until it has named the channel of it
        self._absent: dict[str, Absent] = {}
        self._claims: set[anyio.CancelScope] = set()
        self._switching = False
        #: whether what happens to the session comes through to the connections' scopes
        self.exposed: bool = False

    # -- the session's sink

    @property
    def full(self) -> bool:
        if self._sole is not None:
            return self._switching or self._sole.inbox.full
        return self._switching or any(visit.core.inbox.full for visit in self._visits.values())

    @property
    def workers(self) -> Workers | None:
        return None if self._sole is None else self._sole.workers

    @property
    def calling(self) -> bool:
        return not self._switching and any(visit.core.calling for visit in self._visits.values())

    def begin(self, packet: Any) -> None:
        """The session has begun: send its open packet."""
        self.session.push((packet,))
        if self.session.automaton.protocol == 4:
            self.handle(self.session.automaton.join_unasked(self.session.now()))

    def handle(self, event: Event) -> None:
        if type(event) is Action:
            core = self._sole
            if core is None or core.namespace != event.namespace:
                core = None if (visit := self._visits.get(event.namespace)) is None else visit.core
            if core is not None and not core.deliver(event):
                reason = "too much arrived for full receivers while a call awaited its answer"
                self.session.end("overflow", reason, flush=False)
            return
        match event:
            case Answer(namespace, id, args):
                if (visit := self._visits.get(namespace)) is not None:
                    visit.core.resolve(id, args)
            case Joining(namespace, auth, pid, offset):
                if pid is not None:
                    self._asked[namespace] = pid, offset
                self._join(namespace, auth)
            case Identifying(channel, identity):
                self._identify(channel, identity)
            case Left(namespace):
                if (visit := self._visits.get(namespace)) is not None:
                    visit.core.end(End("ended", "the client left the channel"))
            case Expired(namespace):
                if (visit := self._visits.get(namespace)) is not None:
                    visit.expire()
                else:
                    self._refuse(namespace, Refused("no channel was named in time"))

    async def end(self, cause: Ended) -> None:
        code = "ended" if cause.by_peer else cause.code
        lost = cause.code in RECOVERABLE
        visits = list(self._visits.values())
        for visit in visits:
            visit.lost = lost and visit.core.ended is None
            visit.core.end(End(code, cause.reason))
        for scope in self._claims:
            scope.cancel()
        for visit in visits:
            await visit.core.over.wait()
        for absent in self._absent.values():
            self.server.put_back(absent, lost=lost)
        for pid in self._pids.values():
            self.server.holders.pop(pid, None)
        for namespace in self.session.automaton.live:
            self.session.push(self.session.automaton.explain(namespace, cause.code, cause.reason))

    def expose(self) -> None:
        self.exposed = True
        for visit in self._visits.values():
            visit.core.shield(False)

    # -- the visits

    async def recall(self, visit: _Visit) -> Absent | None:
        """What a visit goes on from, if its client has asked for that and it is there.

        The client of a channel on the main namespace asks when it joins that, and names its channel later.
        """
        namespace = visit.core.namespace
        await self._claim(namespace, visit.core.channel)
        absent = self._absent.pop(namespace, None)
        if absent is not None and absent.channel != visit.core.channel:
            absent.forget()
            return None
        return absent

    async def _claim(self, namespace: str, channel: str | None) -> None:
        """Get what the client has asked for, if it has and it is there.

        :param channel: what it was on, if that is decided.
        """
        if (asked := self._asked.pop(namespace, None)) is None:
            return
        with anyio.CancelScope() as scope:
            self._claims.add(scope)
            absent = await self.server.claim(self.session, namespace, channel, *asked)
            if absent is not None and self.session.ending is not None:
                self.server.put_back(absent, lost=True)
            elif absent is not None:
                self._absent[namespace] = absent
                self._ids[namespace] = absent.id
                self._pids[namespace] = absent.pid
                self.server.holders[absent.pid] = self.session
        self._claims.discard(scope)

    async def _claim_and_admit(self) -> None:
        await self._claim("/", None)
        if self.session.ending is None and self.session.automaton.stay("/") is Stay.CONNECTING:
            self._admit()

    def _admit(self) -> None:
        """Let the client into the main namespace, where it has yet to name its channel."""
        self.session.push(self.session.automaton.admit(self.session.now(), self.id("/"), self.pid("/")))

    def entered(self) -> None:
        """The visit before has made room."""
        self._switching = False
        self.session.wake()

    def leave(self, visit: _Visit) -> None:
        """A visit is over: say goodbye, if that has not been said, and if nobody has taken its place."""
        namespace = visit.core.namespace
        if self._visits.get(namespace) is not visit:
            return
        del self._visits[namespace]
        self._note_sole()
        self.session.wake()
        automaton = self.session.automaton
        if self.session.ending is not None or automaton.stay(namespace) is Stay.ENDED:
            return
        if visit.refusal is not None and automaton.stay(namespace) is not Stay.ACTIVE:
            self._refuse(namespace, visit.refusal)
            return
        if visit.settled and not visit.core.accepted:
            # it was about to be let in when it closed the connection: what it sent before is sent
            visit.core.accept([visit.answer()])
        assert visit.core.ended is not None
        self.session.push(automaton.explain(namespace, visit.core.ended.code, visit.core.ended.reason))
        self.session.push(automaton.leave(namespace, self.session.now()))
        self._close_if_empty()

    def _join(self, namespace: str, auth: Any) -> None:
        plan = self.server.plans.get(namespace)
        if plan is not None:
            self._begin_visit(namespace, plan, {} if auth is None else auth)
        elif namespace == "/":
            if "/" in self._asked:
                self.session.task_group.start_soon(self._claim_and_admit)
            else:
                self._admit()
        else:
            self._refuse(namespace, Refused("Invalid namespace"))

    def _identify(self, channel: str | None, identity: dict[str, Any] | None) -> None:
        plan = None if channel is None or channel.startswith("/") else self.server.plans.get(channel)
        if plan is not None:
            self._begin_visit("/", plan, identity)
            return
        refusal = Refused("the identity names no channel" if channel is None else f"unknown channel: {channel}")
        visit = self._visits.get("/")
        if visit is None:
            self._refuse("/", refusal)
        else:
            visit.refuse(refusal)

    def _begin_visit(self, namespace: str, plan: Plan, identity: Any) -> None:
        previous = self._visits.get(namespace)
        visit = self._visits[namespace] = _Visit(self, namespace, plan, identity, previous)
        self._note_sole()
        if previous is not None:
            previous.core.end(End("closed", "the client has switched to another channel"))
            self._switching = True
        self.session.task_group.start_soon(visit.core.run, visit, name=f"connection on {plan.channel}")

    def _note_sole(self) -> None:
        self._sole = next(iter(self._visits.values())).core if len(self._visits) == 1 else None

    def _refuse(self, namespace: str, refusal: Refused) -> None:
        automaton = self.session.automaton
        final = automaton.stay(namespace) is not Stay.CONNECTING
        self.server.statistics.connections_refused += 1
        try:
            units = automaton.refuse(namespace, self.session.now(), refusal.reason, refusal.data)
        except ValueError:
            self.session.log().exception("the data of a refusal cannot be sent")
            units = automaton.refuse(namespace, self.session.now(), refusal.reason)
        for unit in units:
            self.session.push(unit)
        self.session.reschedule()
        if final:
            self._close_if_empty()

    def _close_if_empty(self) -> None:
        if not self.session.automaton.live:
            self.session.end("io server disconnect", "the server has ended the last connection")

    def id(self, namespace: str) -> str:
        """The id of the client's connection to a namespace."""
        if self.session.eio == 3:
            # what clients of Socket.IO 1 and 2 work out for themselves
            return self.session.sid if namespace == "/" else f"{namespace}#{self.session.sid}"
        if namespace not in self._ids:
            self._ids[namespace] = secrets.token_urlsafe(15)
        return self._ids[namespace]

    def pid(self, namespace: str) -> str | None:
        """What the client can recover its connection to a namespace with, if that is possible."""
        if self.server.pool.offsets is None or self.session.eio == 3:
            return None
        if namespace not in self._pids:
            pid = self._pids[namespace] = secrets.token_urlsafe(15)
            self.server.holders[pid] = self.session
        return self._pids[namespace]

    def journal(self) -> Journal | None:
        """A journal for a connection, if it can be recovered."""
        if self.server.pool.offsets is None or self.session.eio == 3:
            return None
        return Journal(self.server.pool.offsets, self.server.settings)


@dataclass(frozen=True, slots=True)
class Admission:
    """A client may have a session: its request, the session's id, and what the handshake's answer carries."""

    request: Request
    sid: str
    headers: Headers


async def reject_websocket(request: WebSocketRequest, error: handshake.RequestError) -> None:
    """Turn a WebSocket handshake down; a peer that is gone needs no answer."""
    try:
        await request.reject(error.status, error.body, error.headers)
    except ConnectionLost as exc:
        logger.info("a WebSocket was lost in its handshake: %s", exc)


class Server(AsyncContextManagerMixin):
    """One run of an API. As an async context manager it owns the task group in which every session runs.

    Leaving it, in whatever way, drains: that task group is shielded, for the longest grace and the close timeout, from
    the cancellation of the code around it, so that peers are told and what was accepted is sent.

    :ivar sessions: the sessions by their Engine.IO id.
    :ivar holders: the sessions by the secrets with which their clients can recover connections to their namespaces.
    :ivar task_group: for what must live as long as the sessions do.
    :ivar stopping: set when the server begins to drain.
    :ivar drained: set when it has, and no session is left.
    :raises ConfigurationError: from the constructor: the channels do not fit together.
    """

    task_group: TaskGroup

    def __init__(
        self,
        channels: Channels,
        settings: Settings,
        pool: Pool,
        webserver: Any = None,
        authorize: Callable[[Request], Awaitable[Any]] | None = None,
        statistics: Statistics | None = None,
    ) -> None:
        self.plans: dict[str, Plan] = channels.plan()
        self.settings = settings
        self.pool = pool
        self.webserver = webserver
        self._authorize = authorize
        self.statistics: Statistics = Statistics() if statistics is None else statistics
        self.sessions: dict[str, Session] = {}
        self.holders: dict[str, Session] = {}
        self.stopping: anyio.Event = anyio.Event()
        self.drained: anyio.Event = anyio.Event()
        self._empty = anyio.Event()
        self._timer = Timer()
        self._store: Store = MemoryStore(settings, self._timer)

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with anyio.create_task_group() as around:
            await around.start(self._host)
            try:
                yield self
            finally:
                self.stopping.set()

    async def _host(self, *, task_status: TaskStatus[None]) -> None:
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as around:
                around.start_soon(self._keep_time, name="timer")
                async with anyio.create_task_group() as self.task_group:
                    # again: AnyIO's checks whether a task is cancelled look no further
                    self.task_group.cancel_scope.shield = True
                    task_status.started()
                    await self.stopping.wait()
                    # for the sessions and for all else that runs here: a listener's replies in flight
                    grace = max([self.settings.grace, *(plan.settings.grace for plan in self.plans.values())])
                    patience = grace + self.settings.close_timeout
                    self.task_group.cancel_scope.deadline = anyio.current_time() + patience
                    await self.drain()
                self._store.close()
                around.cancel_scope.cancel()

    async def _keep_time(self) -> None:
        try:
            await self._timer.run()
        finally:
            # without it, no session may go on
            self.task_group.cancel_scope.cancel()

    async def drain(self) -> None:
        """Take no new session, tell the peers, and end every session, each within the grace and close timeouts."""
        self.stopping.set()
        for session in list(self.sessions.values()):
            session.end("server shutting down", "the server is shutting down")
        while self.sessions:
            # two may wait: the host's call of Brightsocket.drain, and the end of the run itself
            if self._empty.is_set():
                self._empty = anyio.Event()
            await self._empty.wait()
        self.drained.set()

    async def admit(self, scope: Scope, wait_gone: Callable[[], Awaitable[None]]) -> Admission:
        """Decide about a request for a new session.

        :param wait_gone: returns when the peer is gone.
        :raises brightsocket_anyio.protocol.handshake.RequestError: the client is refused (403, code 4), or the server
            is shutting down, or the ``authorize`` hook was not done within the connect timeout (503).
        :raises ConnectionLost: the peer went away meanwhile.
        """
        self.check_open()
        request = read_request(scope, self.settings)
        if self._authorize is not None:
            await self._ask(self._authorize, request, wait_gone)
            self.check_open()
        sid = secrets.token_urlsafe(15)
        headers = answer_headers(request)
        if self.settings.cookie is not None:
            headers.append(handshake.session_cookie(self.settings.cookie, sid))
        return Admission(request, sid, headers)

    async def _ask(
        self,
        authorize: Callable[[Request], Awaitable[Any]],
        request: Request,
        wait_gone: Callable[[], Awaitable[None]],
    ) -> None:
        verdict: Any = None
        error: Exception | None = None
        decided = gone = False
        async with anyio.create_task_group() as task_group:

            async def wait_end() -> None:
                nonlocal gone
                await wait_gone()
                gone = True
                task_group.cancel_scope.cancel()

            async def wait_stopping() -> None:
                await self.stopping.wait()
                task_group.cancel_scope.cancel()

            task_group.start_soon(wait_end)
            task_group.start_soon(wait_stopping)
            task_group.cancel_scope.deadline = anyio.current_time() + self.settings.connect_timeout
            try:
                verdict = await authorize(request)
                decided = True
            except Exception as exc:
                # kept, so that it does not end up in an exception group
                error = exc
                decided = True
            task_group.cancel_scope.cancel()
        if gone and not decided:
            raise ConnectionLost("transport close", "the peer is gone before it was decided about")
        headers = answer_headers(request)
        if error is not None and isinstance(refusal := sole(error), Refused):
            raise handshake.RequestError(403, 4, refusal.reason, headers)
        if error is not None:
            logger.error("authorize has failed: the client is refused", exc_info=error)
            raise handshake.RequestError.of(4)
        if not decided:
            self.check_open()
            logger.warning("authorize has not decided within connect_timeout: the client is refused")
            raise handshake.RequestError(503, None, "The server could not decide in time")
        if verdict is False:
            raise handshake.RequestError(403, 4, handshake.MESSAGES[4], headers)

    def open(self, transport: Transport, eio: Literal[3, 4], admission: Admission) -> Session:
        """Begin a session on a transport, which it owns from now on. It lives in a task of its own.

        :raises brightsocket_anyio.protocol.handshake.RequestError: the server is shutting down (503).
        """
        session, live = self._create(transport, eio, admission)
        self.task_group.start_soon(live, name="session")
        return session

    def _create(
        self, transport: Transport, eio: Literal[3, 4], admission: Admission
    ) -> tuple[Session, Callable[[], Coroutine[Any, Any, None]]]:
        self.check_open()
        now = self._timer.now()
        automaton = Automaton(Side.SERVER, eio, self.settings, sid=admission.sid, now=now)
        peer = _Peer(self, admission.request)
        session = peer.session = Session(automaton, transport, self.settings, self._timer, statistics=self.statistics)
        packet = automaton.open(now, polling=transport.name == "polling")
        self.sessions[session.sid] = session
        self.statistics.sessions_open += 1
        self.statistics.sessions_opened += 1
        return session, partial(self._live, session, peer, packet)

    def keep(self, absent: Absent) -> None:
        """A connection has been lost: its client may come back to it."""
        self.pool.keep(absent)
        self._store.keep(absent)

    def put_back(self, absent: Absent, *, lost: bool) -> None:
        """A client had claimed what it had lost, and was not let in again: because its session was ``lost`` too, or for
        good."""
        absent.journal.release()
        if lost:
            self._store.keep(absent)
        else:
            absent.forget()

    async def claim(
        self, session: Session, namespace: str, channel: str | None, pid: str, offset: str | None
    ) -> Absent | None:
        """Find what a session's client has lost, if it can go on from what it got last.

        If it is back before its loss was noticed, that session ends first. Cancelled, it stays to be claimed.

        :param channel: what it was on; ``None`` for any.
        """
        holder = self.holders.get(pid)
        if holder is session:
            return None
        if holder is not None:
            holder.end("transport close", "the client has come back on another session", flush=False)
            # as long as tasks that have some grace yet do not take all the time to be let in
            with anyio.move_on_after(self.settings.identify_timeout / 2):
                await holder.wait_closed()
        absent = await self._store.claim(pid)
        if absent is None:
            return None
        same = absent.namespace == namespace and absent.channel == (channel or absent.channel)
        if same and absent.journal.rewind(offset):
            return absent
        absent.forget()
        return None

    def check_open(self) -> None:
        """:raises brightsocket_anyio.protocol.handshake.RequestError: the server is shutting down (503)."""
        if self.stopping.is_set():
            raise handshake.RequestError(503, None, "Server shutting down")

    async def handle_websocket(self, request: WebSocketRequest) -> None:
        """The whole life of a WebSocket request, a new session or an upgrade: returns when the WebSocket is closed."""
        try:
            query = handshake.parse_query(request.scope)
            handshake.check_origin(request.scope, self.settings)
            if query.transport != "websocket":
                raise handshake.RequestError.of(3)
            if query.sid is None:
                admission = await self.admit(request.scope, request.wait_gone)
                transport = await request.accept(query.eio, admission.headers, admission.request.subprotocol)
                if self.stopping.is_set():
                    await transport.aclose(1001, "server shutting down")
                    return
                if request.at_home:
                    _, live = self._create(transport, query.eio, admission)
                    await live()
                else:
                    await self.open(transport, query.eio, admission).wait_closed()
            else:
                session = self.find(query.sid, query.eio)
                if session.closed:
                    raise handshake.RequestError.of(1)
                polling: Any = session.transport
                subprotocol = handshake.choose_subprotocol(request.scope, self.settings)
                road = await request.accept(query.eio, subprotocol=subprotocol)
                await session.upgrade(road, polling)
        except handshake.RequestError as exc:
            self.statistics.requests_refused += 1
            await reject_websocket(request, exc)
        except ConnectionLost as exc:
            logger.info("a WebSocket was lost in its handshake: %s", exc)

    def find(self, sid: str, eio: Literal[3, 4]) -> Session:
        """The session of a request; a closed one may have a farewell for its peer yet.

        :raises brightsocket_anyio.protocol.handshake.RequestError: there is none (code 1), or it is of another version
            (code 3).
        """
        session = self.sessions.get(sid)
        if session is None:
            raise handshake.RequestError.of(1)
        if session.eio != eio:
            raise handshake.RequestError.of(3)
        return session

    async def _live(self, session: Session, peer: _Peer, packet: Any) -> None:
        try:
            cause = await session.run(peer, partial(peer.begin, packet))
            if logger.isEnabledFor(logging.DEBUG):
                session.log().debug("%r ended: %s: %s", session, cause.code, cause.reason)
        except Exception:
            session.log().exception("%r failed: this is a bug of the server's", session)
        finally:
            del self.sessions[session.sid]
            self.statistics.sessions_open -= 1
            if not self.sessions:
                self._empty.set()
