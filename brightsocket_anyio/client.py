"""The client: ``open_client`` and ``Client``, whose ``connect`` leaves the old channel before it opens the new one."""

from __future__ import annotations

import inspect
import itertools
import logging
import math
import random
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal, TypeVar, Unpack

import anyio
import httpx
from anyio.abc import ObjectReceiveStream, TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from .connection import Connection, ConnectionCore, enclosing
from .ends import End
from .errors import ChannelRefused, ConfigurationError, ConnectionLost, HandshakeError, sole
from .protocol.engineio import Packet
from .protocol.state import (
    Action,
    Answer,
    Automaton,
    Ended,
    Event,
    Explained,
    Identified,
    Joined,
    Left,
    Opened,
    Rejected,
    Side,
    Unit,
    encode_connect,
    encode_identify,
)
from .receivers import Handler
from .roads import RoadName, Roads, road_names
from .session import Session
from .settings import SettingKeywords, Settings
from .timer import Timer
from .transport import Transport
from .transports.httpx_polling import HttpxPollingTransport
from .workers import Workers

#: of the client's own connections: servers that close an idle one (uvicorn and Node.js after 5 seconds) must not do so
#: at the moment in which a POST goes out on it
_LIMITS = httpx.Limits(keepalive_expiry=3)

#: changes of state that a stream keeps for its reader; older ones are dropped
_MAX_STATES = 100

logger: logging.Logger = logging.getLogger("brightsocket_anyio")

Function = TypeVar("Function", bound=Callable[..., Any])

#: What a client hands over: a mapping, or a function, synchronous or asynchronous, that is asked for it each time.
Identity = Mapping[str, Any] | Callable[[], Mapping[str, Any] | Awaitable[Mapping[str, Any]]]

ClientState = Literal["disconnected", "connecting", "connected", "reconnecting"]


@asynccontextmanager
async def open_client(
    url: str,
    *,
    http: httpx.AsyncClient | None = None,
    transport: RoadName | Sequence[RoadName] = ("websocket", "polling"),
    eio: Literal[3, 4] = 4,
    ssl_context: ssl.SSLContext | None = None,
    **settings: Unpack[SettingKeywords],
) -> AsyncGenerator[Client]:
    """A client of a Brightsocket server, or of any Socket.IO server. Nothing is opened before :meth:`Client.connect`.

    It owns a task group, in which its connection and its handlers run; leaving it closes the connection, after what was
    accepted for sending has been sent, within the close timeout. One exception from inside comes out as itself; several
    come out as an exception group.

    :param url: the server, ``http:`` or ``https:`` (``ws:`` and ``wss:`` mean the same); the ``path`` setting is added
        to it.
    :param http: makes the requests: its proxies, TLS settings, cookies, headers and auth are used. It stays the
        caller's to close; without one, the client has its own. It needs two connections at a time for polling; its
        timeouts hold for what opens a session, not for polls.
    :param transport: what to go by: ``"websocket"``, ``"polling"`` (HTTP long-polling) or ``"trio-websocket"`` (a
        WebSocket by the package of this name, on Trio; ``http`` gives its cookies and headers only). Several are tried
        in this order, until one opens a session. A session that begins by polling moves on to the WebSocket that is
        named after ``"polling"``, if the server offers it. :attr:`Connection.transport` tells what it is on.
    :param eio: the Engine.IO version: 4 for Socket.IO 3 and newer, 3 for Socket.IO 1 and 2.
    :param ssl_context: for the client's own ``httpx.AsyncClient``, and for trio-websocket.
    :param settings: those of :class:`Settings` that concern a client.
    :raises ConfigurationError: a setting has an unusable value, the URL is none, a transport is unknown or impossible
        here, or an ``ssl_context`` would go unused beside ``http``.
    """
    checked = Settings(**settings)
    names = road_names(transport)
    if ssl_context is not None and http is not None and "trio-websocket" not in names:
        raise ConfigurationError("ssl_context goes unused beside http: give it to the httpx.AsyncClient, as verify")
    error: BaseException | None = None
    async with AsyncExitStack() as stack:
        if http is None:
            verify = True if ssl_context is None else ssl_context
            http = await stack.enter_async_context(httpx.AsyncClient(verify=verify, limits=_LIMITS))
        try:
            async with anyio.create_task_group() as task_group:
                roads = Roads(url, http, names, eio, checked, ssl_context, task_group)
                client = Client(roads, eio, checked, task_group)
                try:
                    yield client
                finally:
                    # shielded, or else a cancellation would take the place of what the body raised; it ends the
                    # connection's own tasks all the same
                    with anyio.CancelScope(shield=True):
                        await client.disconnect()
                    client._states.close()
                task_group.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            error = sole(group)
            if error is group:
                raise
    if error is not None:
        # raised here, and not where the group was caught, so that the group does not become its context
        raise error


async def _raise(exc: Exception) -> None:
    raise exc


class Client:
    """A client that is on one channel at a time. Made by :func:`open_client`."""

    def __init__(self, roads: Roads, eio: Literal[3, 4], settings: Settings, task_group: TaskGroup) -> None:
        self._roads = roads
        self._eio: Literal[3, 4] = eio
        self._settings = settings
        self._task_group = task_group
        self._workers = Workers(task_group, enclosing())
        self._handlers: list[tuple[str, Handler]] = []
        #: the current stay, if it is not over
        self._stay: _Stay | None = None
        #: with those before it that are not over yet
        self._stays: list[_Stay] = []
        self._states = _States()
        self._timer = Timer()
        task_group.start_soon(self._timer.run, name="timer")

    def __repr__(self) -> str:
        return f"<Client {self.state} {self.connection!r}>"

    @property
    def connection(self) -> Connection | None:
        """The current connection; ``None`` while the client is on no channel."""
        stay = self._stay
        return stay.connection if stay is not None and stay.core is not None and stay.core.ended is None else None

    @property
    def state(self) -> ClientState:
        """Where the client stands: ``"disconnected"`` (on no channel), ``"connecting"`` (it has asked for one),
        ``"connected"``, or ``"reconnecting"`` (its session was lost, and it is about to come back).
        """
        return self._states.current

    def states(self) -> ObjectReceiveStream[ClientState]:
        """The changes of :attr:`state` from now on, as a stream: ``async with client.states() as states: async for …``.

        It keeps the last hundred for a reader that is slow, and ends with the client. Close it to stop.
        """
        return self._states.listen()

    def on(self, action: str, *, limit: int = 1) -> Callable[[Function], Function]:
        """Handle an action on whichever channel the client is: as :meth:`Connection.on`, but for the client's whole
        life.

        The function runs in the client's scope, so it may :meth:`connect` to another channel. What it raises comes out
        of
        :func:`open_client`.
        """

        def decorate(function: Function) -> Function:
            handler = Handler(function, limit, self._settings, self._workers)
            self._handlers.append((action, handler))
            if self._stay is not None and self._stay.core is not None and self._stay.core.ended is None:
                self._stay.core.inbox.attach(action, handler)
            return function

        return decorate

    async def connect(self, channel: str, identity: Identity | None = None) -> Connection:
        """Leave the current channel, if any, and then open another; returns when the server has let the client in.

        The old connection's scope is over before the new session opens. There is no timeout: use
        :func:`anyio.fail_after`. Cancelled, the client is on no channel.

        Once it is let in, the client comes back by itself whenever its session is lost, and hands over its identity
        again; the ``reconnection`` settings say how often, and whether at all. Its handlers and streams go on over the
        gap, and :attr:`state` tells of it. Calls that are under way fail; what is sent meanwhile waits, or fails, as
        the ``while_away`` setting says. What was being sent when the session was lost may have arrived or not; nothing
        is sent twice. The connection ends when the server ends it or refuses the client, or when the attempts are used
        up.

        :param channel: a channel's name, or a Socket.IO namespace (it begins with ``/``).
        :param identity: what the server's channel gets; for a namespace, CONNECT's auth payload (Socket.IO 1 and 2: the
            query). A function, synchronous or asynchronous, is called for it each time it is handed over; what it
            raises comes out of this call, and later out of :func:`open_client`.
        :raises ChannelRefused: the server turned the client away; the client is on no channel.
        :raises HandshakeError: no session could be opened.
        :raises ConnectionLost: the session was lost before the server answered.
        :raises anyio.ClosedResourceError: a later call of :meth:`connect` or :meth:`disconnect` took this one's place.
        :raises RuntimeError: called from inside the connection that it would end: put the handler on the client
            instead.
        :raises ValueError: the identity cannot be sent.
        """
        self._check_outside("connect")
        old = self._stay
        stay = _Stay(self, channel, {} if identity is None else identity)
        self._stay = stay
        self._stays.append(stay)
        self._states.change("connecting")
        if old is not None:
            old.leave("the client has switched to another channel")
        self._task_group.start_soon(stay.run, old, name=f"stay on {channel}")
        try:
            await stay.decided.wait()
        except BaseException:
            stay.leave("connect was cancelled")
            raise
        if stay.error is not None:
            raise stay.error
        assert stay.connection is not None
        return stay.connection

    async def disconnect(self) -> None:
        """Leave the current channel, if any: what was accepted for sending is sent, and the channel's functions have
        finished, within the close timeout. Idempotent.

        :raises RuntimeError: called from inside the connection that it would end.
        """
        self._check_outside("disconnect")
        stay = self._stay
        if stay is not None:
            stay.leave("the client has disconnected")
            await stay.over.wait()

    def _fail(self, exc: Exception) -> None:
        """Have an error come out of :func:`open_client`, before anybody sees what follows from it."""
        self._task_group.start_soon(_raise, exc)
        self._task_group.cancel_scope.cancel()

    def _forget(self, stay: _Stay) -> None:
        """A stay is over."""
        self._stays.remove(stay)
        if self._stay is stay:
            self._stay = None

    def _check_outside(self, what: str) -> None:
        if any(stay.core is not None and stay.core.is_inside for stay in self._stays):
            raise RuntimeError(
                f"{what}() would cancel the connection that this code runs in: "
                "put the handler on the client (client.on), whose scope survives the switch"
            )


class _States:
    """A client's state, and who hears of its changes."""

    def __init__(self) -> None:
        self.current: ClientState = "disconnected"
        self._streams: list[tuple[MemoryObjectSendStream[ClientState], MemoryObjectReceiveStream[ClientState]]] = []
        self._closed = False

    def change(self, state: ClientState) -> None:
        if state == self.current:
            return
        self.current = state
        for pair in list(self._streams):
            send, receive = pair
            try:
                if send.statistics().current_buffer_used == _MAX_STATES:
                    receive.receive_nowait()
                send.send_nowait(state)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                send.close()
                self._streams.remove(pair)

    def listen(self) -> MemoryObjectReceiveStream[ClientState]:
        send, receive = anyio.create_memory_object_stream[ClientState](_MAX_STATES)
        if self._closed:
            send.close()
        else:
            self._streams.append((send, receive))
        return receive

    def close(self) -> None:
        self._closed = True
        for send, _ in self._streams:
            send.close()
        self._streams.clear()


#: answers to a handshake that say no to this client, whenever it comes
_REFUSALS = (401, 403)


class _Stay:
    """The client's stay on one channel: the connection, and the sessions beneath it, one after the other."""

    session: Session

    def __init__(self, client: Client, channel: str, identity: Identity) -> None:
        self.core: ConnectionCore | None = None
        self.connection: Connection | None = None
        self.error: Exception | None = None
        self.decided: anyio.Event = anyio.Event()
        self.over: anyio.Event = anyio.Event()
        self._client = client
        self._settings = client._settings
        self._channel = channel
        self._namespace = channel if channel.startswith("/") else "/"
        self._ask: Callable[[], Any] | None = None
        if callable(identity):
            self._ask = identity
        else:
            self._introduce(identity)
        self._left = False
        self._dialling = anyio.CancelScope()
        self._waiting = anyio.CancelScope()
        self._explained: Explained | None = None
        #: how the last session was lost
        self._loss = End("closed", "")
        self._let_in_at = math.inf
        self._finished = anyio.Event()
        #: what to recover the connection with, if the server has said so, and from where on
        self._pid: str | None = None
        self._offset: str | None = None

    def _introduce(self, identity: Mapping[str, Any]) -> None:
        """From now on the client is this one.

        :raises ValueError: the identity cannot be sent.
        """
        protocol: Literal[4, 5] = 5 if self._client._eio == 4 else 4
        names_channel = self._namespace != self._channel
        self._auth: Mapping[str, Any] | None = None if names_channel else identity or None
        # now, so that it is found out whether that can be sent
        self._connect: Unit = encode_connect(protocol, self._namespace, self._auth)
        self._identify: Unit | None = encode_identify(protocol, self._channel, identity) if names_channel else None
        self._identity = identity

    async def run(self, previous: _Stay | None) -> None:
        """Wait until the stay before is over, open a session, and live on it and its successors until the end."""
        try:
            if previous is not None:
                await previous.over.wait()
            try:
                opened = await self._open(math.inf)
            except Exception as exc:
                self._fail(exc)
                return
            if opened:
                await self._live()
        finally:
            if self.core is not None:
                self.core.finish()
            self._fail(ConnectionLost("closed", "the client was closed"))
            self.over.set()
            self._note("disconnected")
            self._client._forget(self)

    async def _live(self) -> None:
        """The connection's scope, and what carries it beside."""
        core = self.core = ConnectionCore(
            self.session,
            self._namespace,
            self._channel,
            self._settings,
            id="",
            ids=itertools.count(),
            failed=self._failed,
        )
        core.resumes = self._settings.reconnection
        for action, handler in self._client._handlers:
            core.inbox.attach(action, handler)
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(self._try_to_carry, core, name=f"sessions of {self._channel}")
            await core.run(self)

    # -- for its connection

    async def prepare(self) -> None:
        """Nothing: the connection has been made for what is there."""

    def begin(self) -> None:
        """Nothing: what runs in the scope comes from the application."""

    def finish(self) -> None:
        """Everything in the connection's scope has finished: so does what carries it."""
        self._finished.set()
        self._left = True
        self._dialling.cancel()
        automaton = self.session.automaton
        if self.session.ending is None and self._namespace in automaton.live:
            self.session.push(automaton.leave(self._namespace, anyio.current_time()))
        self.session.end("io client disconnect", "the client has closed the connection")

    def _failed(self, exc: Exception) -> End:
        """The application's code has failed: the client is at its end."""
        self._client._fail(exc)
        return End("closed", "the client has failed")

    def leave(self, reason: str) -> None:
        """End the stay, wherever it stands."""
        self._fail(anyio.ClosedResourceError(reason))
        self._left = True
        self._dialling.cancel()
        if self.core is not None:
            self.core.end(End("closed", reason))

    def _fail(self, error: Exception) -> None:
        """If it is not decided yet, the stay has not come about."""
        if not self.decided.is_set():
            self.error = error
            self.decided.set()

    def _note(self, state: ClientState) -> None:
        if self._client._stay is self:
            self._client._states.change(state)

    # -- the sessions

    async def _try_to_carry(self, core: ConnectionCore) -> None:
        try:
            await self._carry(core)
        except Exception as exc:
            core.end(self._failed(exc))

    async def _carry(self, core: ConnectionCore) -> None:
        """Run the session, and when it is lost the next one, until the connection has ended."""
        settings = self._settings
        attempts = 0
        while True:
            self._let_in_at = math.inf
            await self.session.run(self, self._begin)
            if core.has_ended():
                return
            if anyio.current_time() - self._let_in_at >= settings.reconnection_delay_max:
                attempts = 0
            opened = False
            while not opened:
                if attempts == settings.reconnection_attempts:
                    reason = f"{self._loss.reason}; the client has tried {attempts} times to come back"
                    core.end(End(self._loss.code, reason))
                    return
                await self._pause(attempts)
                attempts += 1
                if core.has_ended():
                    return
                try:
                    opened = await self._open(settings.connect_timeout)
                except HandshakeError as exc:
                    logger.info("attempt %d to come back has failed: %s", attempts, exc)
                    if exc.status in _REFUSALS:
                        core.end(End("refused", str(exc)))
                        return
                if self._left:
                    return
            core.resume(self.session)
            if core.has_ended():
                self.session.end("io client disconnect", "the client has closed the connection")

    async def _pause(self, attempts: int) -> None:
        """Wait before an attempt: exponential backoff with full jitter, since a server that has gone has lost all its
        clients at once."""
        settings = self._settings
        longest = min(settings.reconnection_delay * 2.0 ** min(attempts, 64), settings.reconnection_delay_max)
        with anyio.CancelScope() as self._dialling:
            if not self._left:
                await anyio.sleep(random.uniform(0, longest))  # noqa: S311

    async def _open(self, patience: float) -> bool:
        """Open a session, to be run; returns False if the stay was left meanwhile.

        :param patience: seconds that it may take.
        :raises HandshakeError: no session could be opened.
        """
        road: tuple[Transport, list[Packet]] | None = None
        with anyio.move_on_after(patience) as self._dialling:
            if not self._left:
                if self._ask is not None:
                    identity = self._ask()
                    self._introduce(await identity if inspect.isawaitable(identity) else identity)
                road = await self._client._roads.open()
        if self._left:
            if road is not None:
                # at the very moment at which the session was open
                with anyio.CancelScope(shield=True):
                    await road[0].aclose()
            return False
        if road is None:
            raise HandshakeError(f"no session could be opened within {patience:g} seconds")
        transport, received = road
        polling = transport.name == "polling"
        now = anyio.current_time()
        automaton = Automaton(Side.CLIENT, self._client._eio, self._settings, now=now, polling=polling)
        self.session = Session(automaton, transport, self._settings, self._client._timer, received=received)
        return True

    def _begin(self) -> None:
        self._explained = None
        if self.connection is not None:
            self.session.task_group.start_soon(self._await_admission)

    async def _await_admission(self) -> None:
        """Nobody else waits for a session after the first to be let in."""
        assert self.core is not None
        patience = self._settings.connect_timeout
        with anyio.CancelScope() as self._waiting:
            with anyio.move_on_after(patience):
                await self.core.wait_decided()
                return
            self.session.end("connect timeout", f"the server has not let the client in within {patience:g} seconds")

    # -- the session's sink

    @property
    def full(self) -> bool:
        # before it is let in, a client that comes back must read on to be let in: its tasks may wait for that
        return self.core is not None and self.core.accepted and self.core.inbox.full

    @property
    def workers(self) -> Workers | None:
        return self.core.workers if self.core is not None else None

    @property
    def calling(self) -> bool:
        return self.core is not None and self.core.calling

    def handle(self, event: Event) -> None:
        core, automaton = self.core, self.session.automaton
        assert core is not None
        match event:
            case Opened():
                transport = self.session.transport
                dial = self._client._roads.beyond(transport, event)
                if dial is not None and isinstance(transport, HttpxPollingTransport):
                    self.session.change_road(transport, dial)
                recovers = self._pid is not None
                if automaton.ask(self._namespace, anyio.current_time(), recovers=recovers):
                    connect = self._connect
                    if recovers:
                        connect = encode_connect(
                            automaton.protocol, self._namespace, self._auth, self._pid, self._offset
                        )
                    self.session.push(connect)
            case Joined(namespace, sid, pid, offset) if namespace == self._namespace:
                core.id = sid
                core.recovered = pid is not None and pid == self._pid
                self._pid = pid
                if offset is not None or not core.recovered:
                    self._offset = offset
                if self._identify is None:
                    self._accept()
                else:
                    automaton.name(anyio.current_time())
                    self.session.push(self._identify)
            case Identified(offset):
                self._offset = offset or self._offset
                self._accept()
            case Rejected(namespace, reason, data) if namespace == self._namespace:
                self._fail(ChannelRefused(self._channel, reason, data))
                self._end("refused", reason)
            case Action(namespace, offset=offset) if namespace == self._namespace:
                self._offset = offset or self._offset
                if not core.deliver(event):
                    self._end("overflow", "too much arrived for full receivers while a call awaited its answer")
            case Answer(namespace, id, args) if namespace == self._namespace:
                core.resolve(id, args)
            case Explained():
                self._explained = event
            case Left(namespace) if namespace == self._namespace:
                self._fail(ChannelRefused(self._channel, "the server ended the connection"))
                self._end("ended", "the server has ended the connection")

    def expose(self) -> None:
        """Nothing that lives in the session's task group is shielded."""

    async def end(self, cause: Ended) -> None:
        core = self.core
        assert core is not None
        self._waiting.cancel()
        if self.connection is not None and core.resumes and core.ended is None:
            explained = self._explained
            self._loss = End(explained.code, explained.reason) if explained else End(cause.code, cause.reason)
            core.suspend(self._loss)
            self._note("reconnecting")
            return
        self._fail(ConnectionLost(cause.code, cause.reason))
        self._end("ended" if cause.by_peer else cause.code, cause.reason)
        await self._finished.wait()

    def _end(self, code: str, reason: str) -> None:
        assert self.core is not None
        if self._explained is not None:
            code, reason = self._explained.code, self._explained.reason
            code = "ended" if code == "closed" else code
        self.core.end(End(code, reason))

    def _accept(self) -> None:
        assert self.core is not None
        if self.connection is None:
            self.connection = Connection(self.core, self._channel, self._identity)
        self.connection.identity = self._identity
        self._let_in_at = anyio.current_time()
        self.core.accept([])
        self._note("connected")
        self.decided.set()
