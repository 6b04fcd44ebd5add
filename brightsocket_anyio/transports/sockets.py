"""Sockets of the embedded server that can be written to and read without a task switch, or else with fewer steps; and
what accepts them.

Most messages are small and find the system's buffer empty: to hand them over at once spares the writer's task, its lock
and its deadline, which are half of what an echo costs. :func:`prompt_stream` tells where that is possible; everywhere
else (TLS, other streams, systems without a :class:`~.watch.Watch`) messages go the usual way. ``receive_nowait`` is the
same for what has arrived: a client that connects has mostly sent its request by the time that somebody asks for it.

What :class:`SocketStream` saves: on asyncio, AnyIO's stream starts and stops reading around each ``receive`` (two
system calls), has no way to write without waiting, and has the loop read long before the task that wants it runs. On
Trio, AnyIO's tries to read before it waits, which is mostly in vain, and makes five objects for each connection.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import anyio
import anyio.abc
import trio
from anyio.abc import SocketAttribute
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from ..prefetch import whole_lines
from .turn import Turn
from .watch import Readable, Watch


def prompt_stream(stream: anyio.abc.ByteStream) -> SocketStream | None:
    """The stream, if it is just one of these, and of no class derived from it."""
    # not isinstance, which asks the class's metaclass, in Python code
    return stream if type(stream) is SocketStream else None


class SocketStream(Readable, anyio.abc.ByteStream):
    """A connected socket, as AnyIO's byte stream: who made it closes it.

    One task may receive while another one sends.

    :ivar turn: at whose end may be written what is sent while it goes on; that is the sender's affair.
    """

    __slots__ = whole_lines(
        (Readable, anyio.abc.ByteStream),
        "_addresses",
        "_cause",
        "_closed",
        "_over",
        "_reading",
        "_writing",
        "turn",
    )

    def __init__(self, connected: socket.socket, peer: Any, watch: Watch) -> None:
        Readable.__init__(self, connected, watch)
        self.turn: Turn = watch.turn
        connected.setblocking(False)
        # now, since there is none any more once the peer has reset the connection
        self._addresses = _own_address(connected), peer
        self._reading = self._writing = self._closed = False
        #: whether nothing can be received any more, as has been found out without waiting, and why
        self._over = False
        self._cause: OSError | None = None

    # -- receiving

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        if self._reading:
            raise anyio.BusyResourceError("reading from")
        self._reading = True
        try:
            # on asyncio, what has arrived would else be in time before the cancellation is told
            await checkpoint_if_cancelled()
            # first, since there is hardly ever something to read that soon
            while (readable := self.wait_readable()) is not None:
                await readable
                if data := self.receive_nowait(max_bytes):
                    return data
        finally:
            self._reading = False
        await checkpoint()
        if self._closed:
            raise anyio.ClosedResourceError
        if self._cause is not None:
            raise anyio.BrokenResourceError from self._cause
        raise anyio.EndOfStream

    def wait_readable(self) -> Awaitable[Any] | None:
        """What to wait for, once and at once, until it is worth to call :meth:`receive_nowait`, while nobody else
        receives; ``None`` if nothing comes any more, as ``receive`` tells. It comes to its end when the stream is
        closed meanwhile, too."""
        if self._closed or self._over:
            return None
        try:
            return self.readable()
        except OSError as exc:
            self._break(exc)
            return None

    def receive_nowait(self, max_bytes: int = 65_536) -> bytes:
        """What has arrived; nothing if that has to be waited for, or if no more comes, which ``receive`` tells."""
        if self._closed:
            return b""
        try:
            data = self._raw.recv(max_bytes)
        except BlockingIOError:
            return b""
        except OSError as exc:
            # which the system says once
            self._break(exc)
            return b""
        if not data:
            self._over = True
        return data

    def _break(self, cause: OSError) -> None:
        self._over = True
        self._cause = cause.with_traceback(None)

    # -- sending

    def send_nowait(self, data: bytes) -> int:
        """Send as much of the data as there is room for; returns how many bytes."""
        try:
            return self._raw.send(data)
        except OSError:
            # there is no room, or the stream is at its end, which the next one to use it hears
            return 0

    async def send(self, item: bytes) -> None:
        if self._writing:
            raise anyio.BusyResourceError("writing to")
        self._writing = True
        try:
            await checkpoint()
            rest = memoryview(item)
            while rest:
                try:
                    rest = rest[self._raw.send(rest) :]
                except BlockingIOError:
                    await anyio.wait_writable(self._raw)
        except (OSError, anyio.ClosedResourceError) as exc:
            raise (anyio.ClosedResourceError if self._closed else anyio.BrokenResourceError) from exc
        finally:
            self._writing = False

    async def send_eof(self) -> None:
        # a peer that is gone needs no more
        with contextlib.suppress(OSError):
            self._raw.shutdown(socket.SHUT_WR)

    # -- the end

    async def aclose(self) -> None:
        self.close_nowait()
        await checkpoint()

    def close_nowait(self) -> None:
        """Close the socket. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self.stop_watching()
        if self._writing:
            anyio.notify_closing(self._raw)
        self._raw.close()
        self.wake()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        local, peer = self._addresses
        attributes: dict[Any, Callable[[], Any]] = {SocketAttribute.raw_socket: lambda: self._raw}
        if local is not None:
            attributes[SocketAttribute.local_address] = lambda: _address(local)
        # the clients of UNIX sockets mostly have none
        if peer:
            attributes[SocketAttribute.remote_address] = lambda: _address(peer)
        return attributes


class Acceptor(Protocol):
    """What accepts a listener's connections, and closes it; an :class:`anyio.abc.SocketListener` is one."""

    async def accept(self) -> anyio.abc.ByteStream:
        """Wait for the next connection. Cancelled, one that has just come waits for the next ``accept``; of AnyIO's own
        listeners it may be closed.

        :raises OSError: a connection could not be accepted, as by :exc:`anyio.BrokenResourceError`.
        :raises anyio.ClosedResourceError: the listener is closed.
        """
        ...

    async def aclose(self) -> None:
        """Close the listener."""
        ...


def acceptor_of(listener: anyio.abc.SocketListener, watch: Watch | None) -> Acceptor:
    """The acceptor of AnyIO's own listeners that gives prompt streams; any other listener is one itself.

    :param watch: runs for as long as the streams are open.
    """
    if watch is not None:
        match type(listener).__module__:
            case "anyio._backends._asyncio":
                return AsyncioAcceptor(listener, watch)
            case "anyio._backends._trio":
                return TrioAcceptor(listener, watch)
    return listener


class TrioAcceptor:
    """The :class:`Acceptor` on Trio."""

    def __init__(self, listener: anyio.abc.SocketListener, watch: Watch) -> None:
        self._listener = listener
        self._raw = raw_socket_of(listener)
        self._watch = watch

    async def accept(self) -> SocketStream:
        if self._raw.fileno() < 0:
            raise anyio.ClosedResourceError
        try:
            while True:
                await trio.lowlevel.wait_readable(self._raw)
                if (stream := _accept_nowait(self._raw, self._watch)) is not None:
                    return stream
        except (OSError, ValueError, trio.ClosedResourceError) as exc:
            if self._raw.fileno() < 0:
                raise anyio.ClosedResourceError from exc
            raise

    async def aclose(self) -> None:
        await self._listener.aclose()


class AsyncioAcceptor(Readable):
    """The :class:`Acceptor` on asyncio.

    The socket is watched for as long as somebody accepts: uvloop's ``sock_accept`` has it watched for each connection
    anew, which is a sixth of the system calls of a client who connects, identifies and leaves.
    """

    def __init__(self, listener: anyio.abc.SocketListener, watch: Watch) -> None:
        super().__init__(raw_socket_of(listener), watch)
        self._listener = listener
        self._accepting = self._closed = False

    async def accept(self) -> SocketStream:
        if self._accepting:
            raise anyio.BusyResourceError("accepting connections from")
        self._accepting = True
        try:
            while True:
                if self._closed or self._raw.fileno() < 0:
                    raise anyio.ClosedResourceError
                await self.readable()
                if (stream := _accept_nowait(self._raw, self._watch)) is not None:
                    return stream
        finally:
            self._accepting = False

    async def aclose(self) -> None:
        self._closed = True
        self.stop_watching()
        self.wake()
        await self._listener.aclose()


def raw_socket_of(listener: anyio.abc.SocketListener) -> socket.socket:
    """The system's socket."""
    return listener.extra(SocketAttribute.raw_socket)  # noqa: S610 (it is Django's ``extra`` that this warns of)


def _accept_nowait(listening: socket.socket, watch: Watch) -> SocketStream | None:
    """The next connection, if one has come."""
    try:
        connected, peer = listening.accept()
    except BlockingIOError:
        return None
    # UNIX sockets have no delay, and who is gone needs no more
    with contextlib.suppress(OSError):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return SocketStream(connected, peer, watch)


def _own_address(connected: socket.socket) -> Any:
    """``None`` where the system has forgotten it, since the peer is gone."""
    try:
        return connected.getsockname()
    except OSError:
        return None


def _address(address: Any) -> Any:
    """As AnyIO gives it: of IPv6's four values two, the scope being part of the address."""
    if not isinstance(address, tuple) or len(address) != 4:
        return address
    host, port, _, scope = address
    return (f"{host}%{scope}" if scope else host), port
