"""The embedded server's way in: whom it accepts on AnyIO listeners, and how many at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import anyio
import anyio.abc
from anyio.streams.stapled import MultiListener
from anyio.streams.tls import TLSListener

from .parking import open_tasks
from .serving import Door, Host, Service, attribute_of
from .settings import Settings
from .transports.sockets import acceptor_of, raw_socket_of
from .transports.watch import Watch, open_watch
from .transports.websocket import describe

logger: logging.Logger = logging.getLogger(__name__)

#: bytes that the system may hold of what a connection has sent and nobody takes (it takes the double, for its own
#: needs): left to itself, Linux holds 6 MB
_RECEIVE_BUFFER = 262_144
#: seconds to wait when the system has no more sockets
_ACCEPT_PAUSE = 0.1

_ALLOWED = contextlib.nullcontext(True)


async def serve_listener(listener: anyio.abc.Listener[Any], door: Door, host: Host, settings: Settings) -> None:
    """Serve the connections of a listener, which is closed when the host begins to drain.

    Then replies in flight go out, idle connections are closed when the host has drained, and this returns when the last
    one has ended. There is no time limit on that: the caller cancels.

    :param listener: of byte streams; ``settings.max_connections`` and ``settings.max_connections_per_address`` hold for
        AnyIO's own ones, with TLS or without
    """
    service = Service(door, host, settings)
    slots = _Slots(settings)
    # in this order: AnyIO's checks whether a task is cancelled look at each scope around it
    async with open_watch() as watch, open_tasks() as tasks, anyio.create_task_group() as connections:
        gated = listener
        try:
            gated = _gated(listener, partial(_Gate, slots=slots, start=tasks.start_soon, watch=watch))
            async with anyio.create_task_group() as accepting:
                accepting.start_soon(gated.serve, service.serve, connections)
                await host.stopping.wait()
                accepting.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await gated.aclose()
        service.wake_all()
        await host.drained.wait()
        service.wake_all()


class _Slots:
    """Room for connections, in all and by address."""

    def __init__(self, settings: Settings) -> None:
        self.all = anyio.Semaphore(settings.max_connections, fast_acquire=True)
        self._each = settings.max_connections_per_address
        self._by_address: Counter[str] = Counter()

    def taken(self, stream: anyio.abc.ByteStream) -> AbstractContextManager[bool]:
        """Hold a place for a connection's address; says whether there was one. UNIX sockets have none."""
        if self._each is None:
            return _ALLOWED
        peer = attribute_of(stream.extra_attributes, anyio.abc.SocketAttribute.remote_address)
        return self._counted(peer[0], self._each) if isinstance(peer, tuple) else _ALLOWED

    @contextlib.contextmanager
    def _counted(self, host: str, most: int) -> Iterator[bool]:
        self._by_address[host] += 1
        try:
            yield self._by_address[host] <= most
        finally:
            self._by_address[host] -= 1
            if not self._by_address[host]:
                del self._by_address[host]


def _gated(
    listener: anyio.abc.Listener[Any], gate: Callable[[anyio.abc.SocketListener], _Gate]
) -> anyio.abc.Listener[Any]:
    """The same listener, with AnyIO's own ones behind gates."""
    if isinstance(listener, MultiListener):
        return MultiListener([_gated(each, gate) for each in listener.listeners])
    if isinstance(listener, TLSListener):
        inner = _gated(listener.listener, gate)
        if type(listener) is not TLSListener:
            return dataclasses.replace(listener, listener=inner)
        return _TLSListener(inner, listener.ssl_context, listener.standard_compatible, listener.handshake_timeout)
    if isinstance(listener, anyio.abc.SocketListener):
        return gate(listener)
    return listener


class _TLSListener(TLSListener):
    """AnyIO's, but a handshake that fails is the peer's affair: scanners and mistaken clients come by all the time."""

    @staticmethod
    async def handle_handshake_error(exc: BaseException, stream: Any) -> None:
        peer = attribute_of(stream.extra_attributes, anyio.abc.SocketAttribute.remote_address)
        await anyio.aclose_forcefully(stream)
        if not isinstance(exc, Exception):
            raise exc
        what = "it took too long" if isinstance(exc, TimeoutError) else describe(exc)
        logger.info("a TLS handshake with %s failed: %s", peer, what)


class _Gate(anyio.abc.Listener[anyio.abc.ByteStream]):
    """Accepts no more connections at a time than there are slots.

    :param start: starts the task of each.
    :param watch: runs until the last one has ended.
    """

    def __init__(
        self, listener: anyio.abc.SocketListener, slots: _Slots, start: Callable[..., Any], watch: Watch | None
    ) -> None:
        self._acceptor = acceptor_of(listener, watch)
        self._slots = slots
        self._start = start
        # the connections that it accepts have it from there
        raw_socket_of(listener).setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)

    async def serve(self, handler: Any, task_group: anyio.abc.TaskGroup | None = None) -> None:
        while True:
            try:
                self._slots.all.acquire_nowait()
            except anyio.WouldBlock:
                await self._slots.all.acquire()
            stream = await self._accept()
            self._start(self._serve_one, handler, stream, name="connection")
            # which would otherwise live on with its errors, and with their frames, until the next one comes
            del stream

    async def _accept(self) -> anyio.abc.ByteStream:
        while True:
            try:
                return await self._acceptor.accept()
            except (anyio.BrokenResourceError, OSError) as exc:
                error = exc.__cause__ if isinstance(exc, anyio.BrokenResourceError) else exc
                if getattr(error, "errno", None) == errno.ECONNABORTED:
                    continue
                logger.error("cannot accept connections: %s", error)
                await anyio.sleep(_ACCEPT_PAUSE)

    async def _serve_one(self, handler: Any, stream: anyio.abc.ByteStream) -> None:
        try:
            with self._slots.taken(stream) as allowed:
                if allowed:
                    await handler(stream)
                else:
                    await anyio.aclose_forcefully(stream)
        finally:
            self._slots.all.release()

    async def aclose(self) -> None:
        await self._acceptor.aclose()
