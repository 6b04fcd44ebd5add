"""The client: ``open_client`` and ``Client``, whose ``connect`` leaves the old channel before it opens the new one."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal, TypeVar, Unpack

import anyio
import httpx
from anyio.abc import TaskGroup

from .connection import Connection, ConnectionCore, End, Handler, enclosing
from .errors import ChannelRefused, ConfigurationError, ConnectionLost, HandshakeError
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
from .roads import RoadName, Roads, road_names
from .session import Session
from .settings import SettingKeywords, Settings
from .transport import Transport
from .transports.httpx_polling import HttpxPollingTransport
from .workers import Workers

#: of the client's own connections: servers that close an idle one (uvicorn and Node.js after 5 seconds) must not do so
#: at the moment in which a POST goes out on it
_LIMITS = httpx.Limits(keepalive_expiry=3)

Function = TypeVar("Function", bound=Callable[..., Any])


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
                task_group.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            error = _sole(group)
            if error is None:
                raise
    if error is not None:
        # raised here, and not where the group was caught, so that the group does not become its context
        raise error


def _sole(group: BaseExceptionGroup[Any]) -> BaseException | None:
    if len(group.exceptions) != 1:
        return None
    only = group.exceptions[0]
    return _sole(only) if isinstance(only, BaseExceptionGroup) else only


class Client:
    """A client that is on one channel at a time. Made by :func:`open_client`."""

    def __init__(self, roads: Roads, eio: Literal[3, 4], settings: Settings, task_group: TaskGroup) -> None:
        self._roads = roads
        self._eio: Literal[3, 4] = eio
        self._settings = settings
        self._task_group = task_group
        self._workers = Workers(task_group, enclosing())
        self._handlers: list[tuple[str, Handler]] = []
        self._stay: _Stay | None = None

    def __repr__(self) -> str:
        return f"<Client {self.connection!r}>"

    @property
    def connection(self) -> Connection | None:
        """The current connection; ``None`` while the client is on no channel."""
        stay = self._stay
        return stay.connection if stay is not None and stay.core is not None and stay.core.ended is None else None

    def on(self, action: str, *, limit: int = 1) -> Callable[[Function], Function]:
        """Handle an action on whichever channel the client is: as :meth:`Connection.on`, but for the client's whole
        life.

        The function runs in the client's scope, so it may :meth:`connect` to another channel. What it raises comes out
        of
        :func:`open_client`.
        """

        def decorate(function: Function) -> Function:
            handler = Handler(function, limit, self._settings, lambda: self._workers)
            self._handlers.append((action, handler))
            if self._stay is not None and self._stay.core is not None and self._stay.core.ended is None:
                self._stay.core.attach(action, handler)
            return function

        return decorate

    async def connect(self, channel: str, identity: Mapping[str, Any] | None = None) -> Connection:
        """Leave the current channel, if any, and then open another; returns when the server has let the client in.

        The old connection's scope is over before the new session opens. There is no timeout: use
        :func:`anyio.fail_after`. Cancelled, the client is on no channel.

        :param channel: a channel's name, or a Socket.IO namespace (it begins with ``/``).
        :param identity: what the server's channel gets; for a namespace, CONNECT's auth payload (Socket.IO 1 and 2: the
            query).
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
        stay = self._stay = _Stay(self._roads, self._settings, self._eio, channel, identity or {}, self._handlers)
        if old is not None:
            old.leave("the client has switched to another channel")
        self._task_group.start_soon(stay.run, old, name=f"connection on {channel}")
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
        """Leave the current channel, if any: what was accepted for sending is sent, within the close timeout.
        Idempotent.

        :raises RuntimeError: called from inside the connection that it would end.
        """
        self._check_outside("disconnect")
        stay, self._stay = self._stay, None
        if stay is not None:
            stay.leave("the client has disconnected")
            await stay.over.wait()

    def _check_outside(self, what: str) -> None:
        if self._stay is not None and self._stay.core is not None and self._stay.core.is_inside:
            raise RuntimeError(
                f"{what}() would cancel the connection that this code runs in: "
                "put the handler on the client (client.on), whose scope survives the switch"
            )


class _Stay:
    """The client's stay on one channel: one session, and the connection on it."""

    session: Session

    def __init__(
        self,
        roads: Roads,
        settings: Settings,
        eio: Literal[3, 4],
        channel: str,
        identity: Mapping[str, Any],
        handlers: list[tuple[str, Handler]],
    ) -> None:
        self.core: ConnectionCore | None = None
        self.connection: Connection | None = None
        self.error: Exception | None = None
        self.decided = anyio.Event()
        self.over = anyio.Event()
        self._roads = roads
        self._settings = settings
        self._eio: Literal[3, 4] = eio
        self._channel = channel
        self._identity = identity
        self._handlers = handlers
        self._namespace = channel if channel.startswith("/") else "/"
        protocol: Literal[4, 5] = 5 if eio == 4 else 4
        names_channel = self._namespace != channel
        self._connect: Unit = encode_connect(protocol, self._namespace, None if names_channel else identity or None)
        self._identify: Unit | None = encode_identify(protocol, channel, identity) if names_channel else None
        self._explained: Explained | None = None
        self._finished = anyio.Event()
        self._dialling = anyio.CancelScope()

    async def run(self, previous: _Stay | None) -> None:
        """Wait until the stay before is over, open a session, and live on it until the end of either."""
        try:
            if previous is not None:
                await previous.over.wait()
            road: tuple[Transport, list[Packet]] | None = None
            with self._dialling:
                road = await self._roads.open()
            if road is None:
                return
            transport, received = road
            if self._dialling.cancel_called:
                # left at the very moment at which the session was open
                with anyio.CancelScope(shield=True):
                    await transport.aclose()
                return
            polling = transport.name == "polling"
            automaton = Automaton(Side.CLIENT, self._eio, self._settings, now=anyio.current_time(), polling=polling)
            session = self.session = Session(automaton, transport, self._settings, received=received)
            self.core = ConnectionCore(session, self._namespace, self._settings, id="")
            for action, handler in self._handlers:
                self.core.attach(action, handler)
            await session.run(self, self._begin)
        except (HandshakeError, ConnectionLost) as exc:
            self._fail(exc)
        finally:
            if self.core is not None:
                self.core.over.set()
            self._fail(ConnectionLost("closed", "the client was closed"))
            self.over.set()

    def leave(self, reason: str) -> None:
        """End the stay, wherever it stands."""
        self._fail(anyio.ClosedResourceError(reason))
        self._dialling.cancel()
        if self.core is not None:
            self.core.end(End("closed", reason))

    def _fail(self, error: Exception) -> None:
        """If it is not decided yet, the stay has not come about."""
        if not self.decided.is_set():
            self.error = error
            self.decided.set()

    def _begin(self) -> None:
        self.session.task_group.start_soon(self._live, name="connection")

    async def _live(self) -> None:
        assert self.core is not None
        try:
            await self.core.run()
        finally:
            self._finished.set()
            automaton = self.session.automaton
            if self.session.ending is None and self._namespace in automaton.live:
                self.session.push(automaton.leave(self._namespace, anyio.current_time()))
            self.session.end("io client disconnect", "the client has closed the connection")

    # -- the session's sink

    @property
    def full(self) -> bool:
        return self.core is not None and self.core.inbox.full

    @property
    def calling(self) -> bool:
        return self.core is not None and self.core.calling

    def handle(self, event: Event) -> None:
        core, automaton = self.core, self.session.automaton
        assert core is not None
        match event:
            case Opened():
                transport = self.session.transport
                dial = self._roads.beyond(transport, event)
                if dial is not None and isinstance(transport, HttpxPollingTransport):
                    self.session.change_road(transport, dial)
                if automaton.ask(self._namespace, anyio.current_time()):
                    self.session.push(self._connect)
            case Joined(namespace, sid) if namespace == self._namespace:
                core.id = sid
                if self._identify is None:
                    self._accept()
                else:
                    automaton.name(anyio.current_time())
                    self.session.push(self._identify)
            case Identified():
                self._accept()
            case Rejected(namespace, reason, data) if namespace == self._namespace:
                self._fail(ChannelRefused(self._channel, reason, data))
                self._end("refused", reason)
            case Action(namespace, name, args, id, size) if namespace == self._namespace:
                if not core.deliver(name, args, id, size):
                    self._end("overflow", "too much arrived for full receivers while a call awaited its answer")
            case Answer(namespace, id, args) if namespace == self._namespace:
                core.resolve(id, args)
            case Explained():
                self._explained = event
            case Left(namespace) if namespace == self._namespace:
                self._fail(ChannelRefused(self._channel, "the server ended the connection"))
                self._end("ended", "the server has ended the connection")

    async def end(self, cause: Ended) -> None:
        assert self.core is not None
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
        self.connection = Connection(self.core, self._channel, self._identity)
        self.core.accept([])
        self.decided.set()
