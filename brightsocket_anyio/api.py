"""``Brightsocket``: the face of the server side."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar, Unpack, overload

import anyio
import trio_websocket
from anyio.abc import Listener, SocketAttribute, SocketStream, TaskStatus
from anyio.streams.stapled import MultiListener
from anyio.streams.tls import TLSListener

from .asgi import FrontDoor, Lifespan
from .listener import serve_listener
from .pool import Pool
from .request import Request
from .server import Channels, Server
from .settings import ChannelKeywords, SettingKeywords, Settings
from .signature import Adapted
from .statistics import Statistics, offer_metrics
from .transport import ASGIApp, Receive, Scope, Send
from .transports.trio_websocket import TrioWebSocketRequest

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Bound:
    """Where an embedded server is bound: what ``await tg.start(api.serve)`` returns.

    :ivar addresses: a ``(host, port)`` for each TCP socket, a path for each UNIX socket.
    :ivar url: the URL of the first TCP socket; empty where there is none.
    """

    addresses: tuple[tuple[str, int] | str, ...]
    url: str

    @property
    def port(self) -> int:
        """The port of the first TCP socket.

        :raises LookupError: there is none.
        """
        for address in self.addresses:
            if not isinstance(address, str):
                return address[1]
        raise LookupError("the server is bound to no TCP socket")


class Brightsocket:
    """An API of channels, and an ASGI application.

    It holds no state of an event loop: :meth:`serve`, an ASGI lifespan and :meth:`running` each run it, one after the
    other or at the same time.

    :param app: an ASGI application to wrap: it gets every request that is not ours, under :meth:`serve` as under any
        ASGI server.
    :param authorize: a function, synchronous or not, that is called with the :class:`Request` of each new session,
        before anything is accepted: before the answer to a WebSocket's handshake, before there is a polling session;
        not for further polls, nor for an upgrade. To turn the client away it raises :exc:`Refused`, whose reason is in
        the answer (HTTP 403, with Engine.IO's code 4), or returns ``False``; any other exception is a 403 without a
        reason, and is logged. One that takes longer than ``connect_timeout`` is cancelled, and answered by 503; so is
        one whose server drains. It is cancelled when the client goes away meanwhile, where the server can tell
        (trio-websocket cannot).
    :param overloaded: a plain function that is called with the :class:`Connection`, the action and the policy (as many
        of them as it takes) whenever :meth:`Pool.emit` has dropped a message or disconnected a client because it was
        too slow. It must not wait; what it raises is logged.
    :param settings: see :class:`Settings`.
    :raises ConfigurationError: a setting has an unusable value, or ``authorize`` or ``overloaded`` is no function
        of so many values.
    :ivar pool: everyone connected.
    """

    def __init__(
        self,
        app: ASGIApp | None = None,
        *,
        authorize: Callable[[Request], Any] | None = None,
        overloaded: Callable[..., Any] | None = None,
        **settings: Unpack[SettingKeywords],
    ) -> None:
        self._settings = Settings(**settings)
        self._app = app
        self._authorize = None if authorize is None else Adapted(authorize, "authorize")
        self._statistics = Statistics()
        self.pool: Pool = Pool(self._settings, overloaded, self._statistics)
        self._channels = Channels(self._settings)
        #: every run, and of these the ones that requests come to by ASGI
        self._servers: list[Server] = []
        self._running: list[Server] = []
        self._front_door = FrontDoor(
            self._settings, app, lambda: self._running[-1] if self._running else None, self.running
        )

    @overload
    def connect(
        self, name: str, extends: Sequence[str] = (), function: None = None, **settings: Unpack[ChannelKeywords]
    ) -> Callable[[Function], Function]: ...

    @overload
    def connect(
        self, name: str, extends: Sequence[str], function: Function, **settings: Unpack[ChannelKeywords]
    ) -> Function: ...

    @overload
    def connect(self, name: str, extends: Function, **settings: Unpack[ChannelKeywords]) -> Function: ...

    def connect(
        self,
        name: str,
        extends: Any = (),
        function: Callable[..., Any] | None = None,
        **settings: Unpack[ChannelKeywords],
    ) -> Any:
        """Define a channel: a decorator, or a plain call with the function as the last argument.

        The function is called with the :class:`Connection`, the identity and the webserver (as many of them as it
        takes) when a client names the channel, after the functions of the channels that it extends. The client is let
        in when all of them have *settled*: returned, sent something, begun to wait for an action or an answer, or
        called :meth:`Connection.accept`. Until then nothing is delivered to any receiver. A function that returns
        leaves the connection open. One that raises :exc:`Refused` turns the client away; any other exception ends the
        connection and is logged.

        :param name: the channel's name; one that begins with ``/`` is a Socket.IO namespace.
        :param extends: the channels that this one extends, defined earlier or later.
        :param settings: those in which the channel differs from the API: ``grace``, ``max_buffered_messages``,
            ``max_buffered_bytes``, ``max_calls``, ``slow_consumer``.
        :raises ConfigurationError: a setting or the function cannot be used. Whether the channels fit together is
            checked when the API is run.
        """
        if callable(extends) and function is None:
            extends, function = (), extends
        if function is not None:
            self._channels.define(name, extends, function, settings)
            return function

        def decorate(function: Function) -> Function:
            self._channels.define(name, extends, function, settings)
            return function

        return decorate

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Run the API for requests that come through ASGI, where the host's lifespan does not reach it.

        An application that is the outermost one needs no such thing: its ASGI lifespan does it. One that is mounted in
        another does ``async with api.running()`` in that one's lifespan. Leaving it drains, as :meth:`drain` does, then
        ends what is left.

        :raises ConfigurationError: a channel is defined twice, a base is unknown, or channels extend each other in a
            circle.
        """
        async with self._server() as server:
            self._running.append(server)
            try:
                yield
            finally:
                self._running.remove(server)

    @asynccontextmanager
    async def _server(self) -> AsyncGenerator[Server]:
        offer_metrics(self._statistics)
        run = Server(self._channels, self._settings, self.pool, self._app, self._authorize, self._statistics)
        self._servers.append(run)
        try:
            async with run as server:
                yield server
        finally:
            self._servers.remove(run)

    def statistics(self) -> Statistics:
        """What the API has done so far, and what there is now: a snapshot.

        OpenTelemetry's metrics ``brightsocket.sessions_open`` and so on are the same, if that package is installed.
        """
        return replace(self._statistics)

    async def drain(self) -> None:
        """Take no new session, tell every client that the server goes away, and end the sessions. For a host to call.

        Clients get a bare close, after which they come back. Returns when every session has ended. An ASGI server that
        waits for its connections before it ends the lifespan (hypercorn, from Python 3.12 on) needs this to stop;
        :meth:`serve` accepts no more connections, and goes on until it is cancelled. Cancelled, the drain that has
        begun goes on.
        """
        for server in list(self._servers):
            await server.drain()

    async def serve(
        self,
        *,
        host: str | None = "127.0.0.1",
        port: int = 8000,
        uds: str | os.PathLike[str] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        listeners: Sequence[Listener[Any]] = (),
        task_status: TaskStatus[Bound] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve the API, and the wrapped application, with the embedded server. Runs until it is cancelled.

        The wrapped application's ASGI lifespan is run around it. Cancelled, it drains: it stops accepting, tells every
        client, lets replies in flight go out, and ends, all within the sum of the longest channel's ``grace`` and
        ``close_timeout``, once for the sessions and once for the wrapped application.

        ``await tg.start(api.serve)`` returns a :class:`Bound` once requests are accepted.

        :param host: the address or name to bind to, ``None`` for all interfaces.
        :param port: the TCP port, 0 for any free one.
        :param uds: the path of a UNIX socket to bind to instead.
        :param ssl_context: serve TLS.
        :param listeners: AnyIO listeners of byte streams to serve instead of binding; they are closed at the end.
        :raises ConfigurationError: as :meth:`running`.
        :raises OSError: the address cannot be bound.
        """
        bound = [*listeners] or [await _bind(host, port, uds, ssl_context, self._settings.tls_timeout)]
        try:
            async with (
                Lifespan(self._app, self._settings) as lifespan,
                self._server() as server,
            ):
                app = None if self._app is None else _sharing(self._app, lifespan.state)
                door = FrontDoor(self._settings, app, lambda: server, self.running)
                for listener in bound:
                    server.task_group.start_soon(serve_listener, listener, door, server, self._settings)
                task_status.started(_describe(bound))
                await anyio.sleep_forever()
        finally:
            for listener in bound:
                with anyio.CancelScope(shield=True):
                    await listener.aclose()

    async def handle_trio_websocket(self, request: trio_websocket.WebSocketRequest) -> None:
        """Serve one WebSocket of a Trio program: this is what to give to :func:`trio_websocket.serve_websocket`.

        Returns when the WebSocket is closed. The API must be running (``async with api.running()``). trio-websocket
        hides the request's ``Host``, so the origins of pages must be among the ``allowed_origins``; its
        ``max_message_size`` should be at least the ``max_payload`` setting.
        """
        await self._front_door.handle_websocket(TrioWebSocketRequest(request, self._settings))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        await self._front_door(scope, receive, send)


def _sharing(app: ASGIApp, state: dict[str, Any]) -> ASGIApp:
    """The application, each of whose requests gets a copy of the state that its lifespan has set up."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": state.copy()}, receive, send)

    return call


async def _bind(
    host: str | None,
    port: int,
    uds: str | os.PathLike[str] | None,
    ssl_context: ssl.SSLContext | None,
    tls_timeout: float,
) -> Listener[Any]:
    listener: Listener[SocketStream]
    if uds is not None:
        listener = await anyio.create_unix_listener(uds)
    else:
        listener = await anyio.create_tcp_listener(local_host=host, local_port=port)
    if ssl_context is None:
        return listener
    return TLSListener(listener, ssl_context, standard_compatible=False, handshake_timeout=tls_timeout)


def _describe(listeners: Sequence[Listener[Any]]) -> Bound:
    addresses: list[tuple[str, int] | str] = []
    url = ""
    for listener, tls in _sockets(listeners, False):
        address = listener.extra(SocketAttribute.local_address, None)  # noqa: S610 (Django's is another)
        if isinstance(address, tuple):
            host, port = address[0], address[1]
            addresses.append((host, port))
            url = url or f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
        elif address is not None:
            addresses.append(str(address))
    return Bound(tuple(addresses), url)


def _sockets(listeners: Sequence[Listener[Any]], tls: bool) -> Iterator[tuple[Listener[Any], bool]]:
    """The sockets' own listeners below these, and whether they are served by TLS."""
    for listener in listeners:
        if isinstance(listener, MultiListener):
            yield from _sockets(listener.listeners, tls)
        elif isinstance(listener, TLSListener):
            yield from _sockets([listener.listener], True)
        else:
            yield listener, tls
