"""Sockets of the embedded server that can be written to and read without a task switch, or else with fewer steps; and
what accepts them.

Most messages are small and find the system's buffer empty: to hand them over at once spares the writer's task, its lock
and its deadline, which are half of what an echo costs. :func:`prompt_stream` tells where that is possible; everywhere
else (TLS, other streams) messages go the usual way. ``receive_nowait`` is the same for what has arrived: a client that
connects has mostly sent its request by the time that somebody asks for it.

What :class:`AsyncioStream` saves: AnyIO's stream starts and stops reading around each ``receive`` (two system calls)
and has no way to write without waiting. What :class:`TrioStream` saves: AnyIO's tries to read before it waits, which is
mostly in vain, and makes five objects for each connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Protocol, cast

import anyio
import anyio.abc
import trio
from anyio.abc import SocketAttribute
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

#: bytes that may have been read and not been received before reading pauses
_READ_AHEAD = 65_536

#: what is raised by waiting for a socket that is closed meanwhile
WAIT_ERRORS = (trio.ClosedResourceError,)

#: takes as many bytes as it can at once, perhaps none, and returns how many; never waits, never raises
Write = Callable[[bytes], int]


def prompt_stream(stream: anyio.abc.ByteStream) -> TrioStream | AsyncioStream | None:
    """The stream, if it is just one of these, and of no class derived from them."""
    # not isinstance, which asks the classes' metaclass, in Python code
    return stream if type(stream) is TrioStream or type(stream) is AsyncioStream else None


class TrioStream(anyio.abc.ByteStream):
    """A connected socket on Trio, as AnyIO's byte stream: who made it closes it.

    One task may receive while another one sends.
    """

    __slots__ = (
        "_addresses",
        "_cause",
        "_closed",
        "_over",
        "_raw",
        "_reading",
        "_writing",
    )

    def __init__(self, connected: socket.socket, peer: Any) -> None:
        connected.setblocking(False)
        self._raw = connected
        # now, since there is none any more once the peer has reset the connection
        self._addresses = _own_address(connected), peer
        self._reading = self._writing = self._closed = False
        #: whether nothing can be received any more, as has been found out without waiting, and why
        self._over = False
        self._cause: OSError | None = None

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        if self._reading:
            raise anyio.BusyResourceError("reading from")
        if self._closed:
            await trio.lowlevel.checkpoint()
            raise anyio.ClosedResourceError
        if self._cause is not None:
            await trio.lowlevel.checkpoint()
            raise anyio.BrokenResourceError from self._cause
        self._reading = True
        try:
            while True:
                # first, since there is hardly ever something to read that soon
                await trio.lowlevel.wait_readable(self._raw)
                try:
                    data = self._raw.recv(max_bytes)
                except BlockingIOError:
                    continue
                break
        except (OSError, trio.ClosedResourceError) as exc:
            raise self._failure from exc
        finally:
            self._reading = False
        if not data:
            raise anyio.EndOfStream
        return data

    def wait_readable(self) -> Awaitable[Any] | None:
        """What to wait for until it is worth to call :meth:`receive_nowait`, while nobody else receives; ``None`` if
        that is now, or never, as ``receive`` tells. To wait for it raises one of :data:`WAIT_ERRORS` when the stream is
        closed meanwhile."""
        if self._closed or self._over:
            return None
        return trio.lowlevel.wait_readable(self._raw)  # noqa: ASYNC105, the caller awaits it

    def receive_nowait(self, max_bytes: int = 65_536) -> bytes:
        """What has arrived; nothing if that has to be waited for, or if no more comes, which ``receive`` tells."""
        try:
            data = self._raw.recv(max_bytes)
        except BlockingIOError:
            return b""
        except OSError as exc:
            # which the system says once
            self._cause = exc.with_traceback(None)
            data = b""
        if not data:
            self._over = True
        return data

    def send_nowait(self, data: bytes) -> int:
        """Send as much of the data as there is room for; returns how many bytes."""
        try:
            return self._raw.send(data)
        except OSError:
            # there is no room, or the stream is at its end, which the next one to use it hears
            return 0

    @property
    def flushed(self) -> bool:
        """Whether all that was taken has left the program."""
        return True

    async def send(self, item: bytes) -> None:
        if self._writing:
            raise anyio.BusyResourceError("writing to")
        self._writing = True
        try:
            await trio.lowlevel.checkpoint()
            rest = memoryview(item)
            while rest:
                try:
                    rest = rest[self._raw.send(rest) :]
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._raw)
        except (OSError, trio.ClosedResourceError) as exc:
            raise self._failure from exc
        finally:
            self._writing = False

    @property
    def _failure(self) -> Exception:
        return anyio.ClosedResourceError() if self._closed else anyio.BrokenResourceError()

    async def send_eof(self) -> None:
        self._raw.shutdown(socket.SHUT_WR)

    async def aclose(self) -> None:
        self.close_nowait()

    def close_nowait(self) -> None:
        """Close the socket. Idempotent."""
        if not self._closed:
            self._closed = True
            trio.lowlevel.notify_closing(self._raw)
            self._raw.close()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return _attributes(lambda: self._raw, self._addresses)


class Acceptor(Protocol):
    """What accepts a listener's connections, and closes it; an :class:`anyio.abc.SocketListener` is one."""

    async def accept(self) -> anyio.abc.ByteStream:
        """Wait for the next connection. Cancelled, one that has just come may be closed.

        :raises OSError: a connection could not be accepted, as by :exc:`anyio.BrokenResourceError`.
        :raises anyio.ClosedResourceError: the listener is closed.
        """
        ...

    async def aclose(self) -> None:
        """Close the listener."""
        ...


def acceptor_of(listener: anyio.abc.SocketListener) -> Acceptor:
    """The acceptor of AnyIO's own listeners that gives prompt streams; any other listener is one itself."""
    match type(listener).__module__:
        case "anyio._backends._asyncio" if _can_watch(listener):
            return AsyncioAcceptor(listener)
        case "anyio._backends._trio":
            return TrioAcceptor(listener)
    return listener


class TrioAcceptor:
    """The :class:`Acceptor` on Trio."""

    def __init__(self, listener: anyio.abc.SocketListener) -> None:
        self._listener = listener
        self._raw = raw_socket_of(listener)

    async def accept(self) -> TrioStream:
        if self._raw.fileno() < 0:
            raise anyio.ClosedResourceError
        try:
            while True:
                await trio.lowlevel.wait_readable(self._raw)
                try:
                    connected, peer = self._raw.accept()
                except BlockingIOError:
                    continue
                _send_without_delay(connected)
                return TrioStream(connected, peer)
        except (OSError, ValueError, trio.ClosedResourceError) as exc:
            if self._raw.fileno() < 0:
                raise anyio.ClosedResourceError from exc
            raise

    async def aclose(self) -> None:
        await self._listener.aclose()


class AsyncioAcceptor:
    """The :class:`Acceptor` on asyncio.

    The loop watches the socket all the time: uvloop's ``sock_accept`` has it watched for each connection anew, which is
    a sixth of the system calls of a client who connects, identifies and leaves.
    """

    def __init__(self, listener: anyio.abc.SocketListener) -> None:
        self._listener = listener
        self._raw = raw_socket_of(listener)
        self._loop = asyncio.get_running_loop()
        self._watched = self._ready = self._closed = False
        self._waiting: asyncio.Future[None] | None = None

    async def accept(self) -> AsyncioStream:
        if self._waiting is not None:
            raise anyio.BusyResourceError("accepting connections from")
        while True:
            if self._closed or self._raw.fileno() < 0:
                raise anyio.ClosedResourceError
            if self._watched and not self._ready:
                await self._wait()
                continue
            self._ready = False
            try:
                connected, peer = self._raw.accept()
            except BlockingIOError:
                self._watch()
                continue
            _send_without_delay(connected)
            make = partial(AsyncioStream, connected, peer)
            _, stream = await self._loop.connect_accepted_socket(make, connected)
            return stream

    async def _wait(self) -> None:
        self._waiting = self._loop.create_future()
        try:
            await self._waiting
        finally:
            self._waiting = None

    def _note_ready(self) -> None:
        if self._ready:
            # nobody takes it for now: the loop would go on calling
            self._stop_watching()
        self._ready = True
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _watch(self) -> None:
        if not self._watched:
            self._loop.add_reader(self._raw, self._note_ready)
            self._watched = True

    def _stop_watching(self) -> None:
        if self._watched:
            self._watched = False
            # somebody else may have closed it
            with contextlib.suppress(ValueError):
                self._loop.remove_reader(self._raw)

    async def aclose(self) -> None:
        self._closed = True
        self._stop_watching()
        self._wake()
        try:
            # uvloop lets go of the socket in its next turn only
            await checkpoint()
        finally:
            await self._listener.aclose()


def _can_watch(listener: anyio.abc.SocketListener) -> bool:
    """Whether the loop can: the one that Windows has by default cannot, and says so to whoever asks it to stop."""
    try:
        asyncio.get_running_loop().remove_reader(raw_socket_of(listener))
    except NotImplementedError:
        return False
    return True


def raw_socket_of(listener: anyio.abc.SocketListener) -> socket.socket:
    """The system's socket."""
    return listener.extra(SocketAttribute.raw_socket)  # noqa: S610 (it is Django's ``extra`` that this warns of)


def _send_without_delay(connected: socket.socket) -> None:
    # UNIX sockets have no delay, and who is gone needs no more
    with contextlib.suppress(OSError):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class AsyncioStream(asyncio.Protocol, anyio.abc.ByteStream):
    """A connected socket on asyncio, as AnyIO's byte stream: who made it closes it.

    Reading goes on until 64 KiB wait to be received. One task may receive while another one sends.
    """

    __slots__ = (
        "_addresses",
        "_cause",
        "_chunks",
        "_closed",
        "_eof",
        "_full",
        "_loop",
        "_lost",
        "_paused",
        "_readable",
        "_size",
        "_transport",
        "_writable",
    )

    _transport: asyncio.Transport

    def __init__(self, connected: socket.socket, peer: Any) -> None:
        # now, since the socket is the loop's, which closes it when the connection is lost
        self._addresses = _own_address(connected), peer
        self._loop = asyncio.get_running_loop()
        #: few at any time, mostly none
        self._chunks: list[bytes] = []
        self._size = 0
        self._paused = False
        self._eof = False
        self._closed = False
        #: whether the loop has given the socket up, and why
        self._lost = False
        self._cause: Exception | None = None
        self._readable: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._full = False

    # -- for the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # so that what has been sent has left the program, as with AnyIO's
        self._transport.set_write_buffer_limits(0)

    def data_received(self, data: bytes) -> None:
        self._chunks.append(data)
        self._size += len(data)
        if self._size >= _READ_AHEAD and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._wake_reader()

    def eof_received(self) -> bool:
        self._eof = True
        self._wake_reader()
        return True

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._wake_writer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        # the traceback would keep alive who was writing
        self._cause = exc and exc.with_traceback(None)
        self._wake_reader()
        self._wake_writer()

    # -- for the stream's user

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        if self._readable is not None and not self._readable.done():
            raise anyio.BusyResourceError("reading from")
        if (readable := self.wait_readable()) is None:
            await checkpoint()
        while readable is not None:
            await readable
            readable = self.wait_readable()
        if self._closed:
            raise anyio.ClosedResourceError
        if not self._chunks:
            if self._cause is not None:
                raise anyio.BrokenResourceError from self._cause
            raise anyio.EndOfStream
        return self._take(max_bytes)

    def wait_readable(self) -> Awaitable[Any] | None:
        """As :meth:`TrioStream.wait_readable`."""
        if self._chunks or self._eof or self._lost or self._closed:
            return None
        self._readable = self._loop.create_future()
        return self._readable

    def receive_nowait(self, max_bytes: int = 65_536) -> bytes:
        """What has arrived; nothing if that has to be waited for, or if no more comes, which ``receive`` tells."""
        return self._take(max_bytes) if self._chunks and not self._closed else b""

    def _take(self, max_bytes: int) -> bytes:
        chunk = self._chunks.pop(0)
        if len(chunk) > max_bytes:
            self._chunks.insert(0, chunk[max_bytes:])
            chunk = chunk[:max_bytes]
        self._size -= len(chunk)
        if self._paused and self._size < _READ_AHEAD:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()
        return chunk

    def send_nowait(self, data: bytes) -> int:
        """Send all of the data at once, if nothing has to be waited for; returns how much was taken: all or nothing."""
        if self._full or self._closed or self._lost or self._writable is not None or self._transport.is_closing():
            return 0
        self._transport.write(data)
        return len(data)

    @property
    def flushed(self) -> bool:
        """Whether all that was taken has left the program."""
        return not self._full

    async def send(self, item: bytes) -> None:
        if self._writable is not None:
            raise anyio.BusyResourceError("writing to")
        await checkpoint_if_cancelled()
        await self._wait_writable()
        self._transport.write(item)
        if self._full:
            await self._wait_writable()
        else:
            with anyio.CancelScope(shield=True):
                await checkpoint()

    async def _wait_writable(self) -> None:
        self._check()
        if self._full:
            self._writable = self._loop.create_future()
            try:
                await self._writable
            finally:
                self._writable = None
            self._check()

    def _check(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError
        if self._lost or self._transport.is_closing():
            raise anyio.BrokenResourceError from self._cause

    async def send_eof(self) -> None:
        with contextlib.suppress(OSError):
            self._transport.write_eof()

    async def aclose(self) -> None:
        """Close the socket; what was sent has left the program, but for what a ``send`` that was cancelled left."""
        self.close_nowait()
        await checkpoint()

    def close_nowait(self) -> None:
        """Have the loop close the socket in its next turn. Idempotent."""
        self._closed = True
        self._transport.abort()
        self._wake_reader()
        self._wake_writer()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return _attributes(partial(self._transport.get_extra_info, "socket"), self._addresses)

    def _wake_reader(self) -> None:
        if self._readable is not None and not self._readable.done():
            self._readable.set_result(None)

    def _wake_writer(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)


def _own_address(connected: socket.socket) -> Any:
    """``None`` where the system has forgotten it, since the peer is gone."""
    try:
        return connected.getsockname()
    except OSError:
        return None


def _attributes(raw: Callable[[], Any], addresses: tuple[Any, Any]) -> Mapping[Any, Callable[[], Any]]:
    local, peer = addresses
    attributes: dict[Any, Callable[[], Any]] = {SocketAttribute.raw_socket: raw}
    if local is not None:
        attributes[SocketAttribute.local_address] = lambda: _address(local)
    # the clients of UNIX sockets mostly have none
    if peer:
        attributes[SocketAttribute.remote_address] = lambda: _address(peer)
    return attributes


def _address(address: Any) -> Any:
    """As AnyIO gives it: of IPv6's four values two, the scope being part of the address."""
    if not isinstance(address, tuple) or len(address) != 4:
        return address
    host, port, _, scope = address
    return (f"{host}%{scope}" if scope else host), port
