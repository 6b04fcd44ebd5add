"""The embedded server's own streams: they keep what AnyIO promises of a byte stream, and write without waiting."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, cast

import anyio
import anyio.abc
import pytest
import trio
from anyio.abc import SocketAttribute
from anyio.streams.stapled import MultiListener

from brightsocket_anyio import ConnectionLost
from brightsocket_anyio.transports.sockets import (
    AsyncioAcceptor,
    SocketStream,
    _address,
    acceptor_of,
    prompt_stream,
)
from brightsocket_anyio.transports.watch import open_watch
from brightsocket_anyio.transports.websocket import send_all

from .support import PATIENCE, until

MEGABYTE = b"x" * 1_000_000


@asynccontextmanager
async def pair(host: str = "127.0.0.1") -> AsyncIterator[tuple[Any, anyio.abc.SocketStream]]:
    """One of our streams, and AnyIO's at its other end."""
    multi: MultiListener[Any] = await anyio.create_tcp_listener(local_host=host)
    listener: Any = multi.listeners[0]
    streams: list[Any] = []

    async def take() -> None:
        streams.append(await acceptor_of(listener, watch).accept())

    async with multi, open_watch() as watch:
        async with anyio.create_task_group() as tg:
            tg.start_soon(take)
            there = await anyio.connect_tcp(host, listener.extra(SocketAttribute.local_port))
        async with streams[0] as here, there:
            yield here, there


async def send_for_ever(stream: anyio.abc.ByteStream) -> None:
    while True:
        await stream.send(MEGABYTE)


async def test_bytes_both_ways_until_the_end() -> None:
    async with pair() as (here, there):
        await here.send(b"hello")
        assert await there.receive() == b"hello"
        await there.send(b"goodbye")
        assert await here.receive(4) == b"good"
        assert await here.receive() == b"bye"
        await there.send_eof()
        with pytest.raises(anyio.EndOfStream):
            await here.receive()
        await here.send(b"after the end")
        await here.send_eof()
        assert await there.receive() == b"after the end"
        with pytest.raises(anyio.EndOfStream):
            await there.receive()


async def test_a_peer_that_does_not_read_holds_back_who_sends() -> None:
    async with pair() as (here, there):
        sent = received = 0

        async def send() -> None:
            nonlocal sent
            for _ in range(20):
                await here.send(MEGABYTE)
                sent += 1

        async with anyio.create_task_group() as tg:
            tg.start_soon(send)
            with anyio.move_on_after(0.2):
                await until(lambda: sent == 20)
            assert sent < 20
            while received < 20 * len(MEGABYTE):
                received += len(await there.receive())


async def test_who_does_not_receive_holds_back_the_peer() -> None:
    async with pair() as (here, there):
        sent = received = 0

        async def send() -> None:
            nonlocal sent
            for _ in range(20):
                await there.send(MEGABYTE)
                sent += 1

        async with anyio.create_task_group() as tg:
            tg.start_soon(send)
            with anyio.move_on_after(0.2):
                await until(lambda: sent == 20)
            assert sent < 20
            while received < 20 * len(MEGABYTE):
                received += len(await here.receive())


async def test_writing_without_waiting() -> None:
    async with pair() as (here, there):
        write = here.send_nowait
        assert write(b"hello") == 5
        assert await there.receive() == b"hello"
        written = 0
        while taken := write(MEGABYTE):
            written += taken
        # nothing has room: what follows waits, and comes after it
        received = b""
        async with anyio.create_task_group() as tg:
            tg.start_soon(here.send, b"!")
            while not received.endswith(b"!"):
                received += await there.receive()
        assert len(received) == written + 1


async def test_reading_without_waiting() -> None:
    async with pair() as (here, there):
        assert here.receive_nowait(100) == b""
        await there.send(b"hello")
        received = b""

        def complete() -> bool:
            nonlocal received
            received += bytes(here.receive_nowait(2))
            return received == b"hello"

        await until(complete)
        assert here.receive_nowait(100) == b""
        await there.send(b"rest")
        assert await here.receive() == b"rest"
        await there.send_eof()
        with pytest.raises(anyio.EndOfStream):
            await here.receive()
        assert here.receive_nowait(100) == b""
        await here.aclose()
        assert here.receive_nowait(100) == b""


async def test_what_is_small_is_sent_at_once() -> None:
    async with pair() as (here, _):
        assert here.extra(SocketAttribute.raw_socket).getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_who_waits_hears_that_the_stream_is_closed() -> None:
    async with pair() as (here, _):

        async def receive() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await here.receive()

        async def send() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await send_for_ever(here)

        async with anyio.create_task_group() as tg:
            tg.start_soon(receive)
            tg.start_soon(send)
            await anyio.wait_all_tasks_blocked()
            await here.aclose()
        write = here.send_nowait
        assert write(b"late") == 0
        with pytest.raises(anyio.ClosedResourceError):
            await here.receive()
        with pytest.raises(anyio.ClosedResourceError):
            await here.send(b"late")


async def test_a_peer_that_breaks_off() -> None:
    async with pair() as (here, there):
        raw = there.extra(SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        await anyio.aclose_forcefully(there)
        with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)):
            await here.receive()
        with pytest.raises(anyio.BrokenResourceError):
            await send_for_ever(here)
        write = here.send_nowait
        assert write(b"late") == 0
        # the loop has closed the socket by now
        assert here.extra(SocketAttribute.local_address)[0] == "127.0.0.1"


async def test_a_peer_that_breaks_off_is_not_one_that_ends_whoever_reads() -> None:
    async with pair() as (here, there):
        raw = there.extra(SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        await anyio.aclose_forcefully(there)
        if (readable := here.wait_readable()) is not None:
            await readable
        assert here.receive_nowait(100) == b""
        for _ in range(2):
            with pytest.raises(anyio.BrokenResourceError):
                await here.receive()


async def test_two_readers_are_one_too_many() -> None:
    async with pair() as (here, _), anyio.create_task_group() as tg:

        async def receive() -> None:
            await here.receive()

        tg.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await here.receive()
        tg.cancel_scope.cancel()


async def test_two_writers_are_one_too_many() -> None:
    async with pair() as (here, _), anyio.create_task_group() as tg:
        tg.start_soon(send_for_ever, here)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await here.send(b"x")
        tg.cancel_scope.cancel()


async def test_closing_twice() -> None:
    async with pair() as (here, there):
        await here.aclose()
        await here.aclose()
        with pytest.raises(anyio.EndOfStream):
            await there.receive()


class Hesitant:
    """A socket that has nothing the first time, although it was said to be readable."""

    def __init__(self, raw: socket.socket) -> None:
        self._raw = raw
        self._ready = False

    def __getattr__(self, name: str) -> Any:
        if name not in ("recv", "accept") or self._ready:
            return getattr(self._raw, name)
        self._ready = True
        raise BlockingIOError


async def test_readable_is_no_promise() -> None:
    multi: MultiListener[Any] = await anyio.create_tcp_listener(local_host="127.0.0.1")
    listener: Any = multi.listeners[0]
    address = listener.extra(SocketAttribute.local_address)
    async with multi, open_watch() as watch, await anyio.connect_tcp(*address) as there:
        acceptor: Any = acceptor_of(listener, watch)
        acceptor._raw = Hesitant(acceptor._raw)
        here: Any = await acceptor.accept()
        assert type(here) is SocketStream
        here._raw = cast("Any", Hesitant(here._raw))
        await there.send(b"hello")
        async with here:
            assert await here.receive() == b"hello"


@pytest.mark.parametrize("own", [True, False])
async def test_who_accepts_hears_that_the_listener_is_closed(own: bool) -> None:
    """Closed by the acceptor or, on Trio, which tells of it, beneath that."""
    multi: MultiListener[Any] = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with open_watch() as watch:
        acceptor = acceptor_of(cast("Any", multi.listeners[0]), watch)

        async def wait() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await acceptor.accept()

        async with anyio.create_task_group() as tg:
            tg.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            await (acceptor if own or type(acceptor) is AsyncioAcceptor else multi).aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await acceptor.accept()


@asynccontextmanager
async def accepting() -> AsyncIterator[tuple[Any, Callable[[], Awaitable[anyio.abc.ByteStream]]]]:
    """What accepts connections, and how to make one."""
    multi: MultiListener[Any] = await anyio.create_tcp_listener(local_host="127.0.0.1")
    listener: Any = multi.listeners[0]
    async with open_watch() as watch:
        acceptor = acceptor_of(listener, watch)
        try:
            yield acceptor, partial(anyio.connect_tcp, *listener.extra(SocketAttribute.local_address))
        finally:
            await acceptor.aclose()


async def test_a_listener_that_somebody_else_has_closed() -> None:
    multi: MultiListener[Any] = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with open_watch() as watch:
        acceptor = acceptor_of(cast("Any", multi.listeners[0]), watch)
        await multi.aclose()
        for _ in range(2):
            with pytest.raises(anyio.ClosedResourceError):
                await acceptor.accept()
        await acceptor.aclose()


async def test_two_who_accept_are_one_too_many() -> None:
    async with accepting() as (acceptor, connect), anyio.create_task_group() as tg:
        tg.start_soon(acceptor.accept)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises((anyio.BusyResourceError, trio.BusyResourceError)):
            await acceptor.accept()
        tg.cancel_scope.cancel()
    async with accepting() as (acceptor, connect), await connect(), await acceptor.accept():
        pass


async def test_connections_that_nobody_accepts_wait() -> None:
    async with accepting() as (acceptor, connect):
        for count in (1, 3, 1, 2):
            async with AsyncExitStack() as stack:
                for number in range(count):
                    there = await stack.enter_async_context(await connect())
                    await there.send(b"%d" % number)
                await anyio.wait_all_tasks_blocked()
                for number in range(count):
                    async with await acceptor.accept() as here:
                        assert await here.receive() == b"%d" % number


async def test_whoever_comes_at_the_moment_of_a_cancellation_is_accepted_now_or_later() -> None:
    scope = anyio.CancelScope()
    multi: MultiListener[Any] = await anyio.create_tcp_listener(local_host="127.0.0.1")
    listener: Any = multi.listeners[0]
    streams: list[anyio.abc.ByteStream] = []

    async def accept() -> None:
        with scope:
            streams.append(await acceptor.accept())

    async with open_watch() as watch, anyio.create_task_group() as tg:
        assert watch is not None
        acceptor = acceptor_of(listener, watch)
        tg.start_soon(accept)
        await anyio.wait_all_tasks_blocked()
        with socket.create_connection(listener.extra(SocketAttribute.local_address)) as there:
            there.send(b"1")
            watch.tell()
            scope.cancel()
            await anyio.wait_all_tasks_blocked()
            if scope.cancelled_caught:
                streams.append(await acceptor.accept())
            [here] = streams
            async with here:
                assert await here.receive() == b"1"
        await acceptor.aclose()


async def test_cancelled_receiving_loses_nothing() -> None:
    async with pair() as (here, there):
        for _ in range(20):
            with anyio.move_on_after(0.001):
                await here.receive()
        await there.send(b"whole")
        assert await here.receive() == b"whole"


async def test_who_is_cancelled_already_receives_nothing_even_if_it_is_there() -> None:
    async with pair() as (here, there):
        await there.send(b"there")
        await anyio.wait_all_tasks_blocked()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await here.receive()
        assert scope.cancelled_caught
        assert await here.receive() == b"there"


def test_an_address_with_a_scope() -> None:
    assert _address(("fe80::1", 80, 0, 2)) == ("fe80::1%2", 80)
    assert _address("/run/socket") == "/run/socket"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_addresses(host: str) -> None:
    async with pair(host) as (here, there):
        assert here.extra(SocketAttribute.remote_address) == there.extra(SocketAttribute.local_address)
        assert here.extra(SocketAttribute.local_address) == there.extra(SocketAttribute.remote_address)


async def test_other_streams_are_used_in_the_usual_way() -> None:
    async with pair() as (here, there):
        await here.send(b"hello")
        assert prompt_stream(there) is None
        assert await there.receive() == b"hello"


@pytest.mark.parametrize("size", [1, 50_000, 500_000])
async def test_what_was_sent_has_left_the_program_although_it_began_without_waiting(size: int) -> None:
    """Or who closes the stream next would take it back."""
    async with pair() as (here, there):
        # two of a kind: where the first fills the system's buffer, the second waits
        here.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        data = b"x" * size
        got = bytearray()

        async def read() -> None:
            async for chunk in there:
                got.extend(chunk)

        async with anyio.create_task_group() as tg:
            tg.start_soon(read)
            await send_all(here, data, PATIENCE)
            await send_all(here, data, PATIENCE)
            await here.aclose()
            await until(lambda: len(got) == 2 * size)
            tg.cancel_scope.cancel()


async def test_a_peer_that_takes_nothing_stalls() -> None:
    async with pair() as (here, _):

        async def send_for_ever() -> None:
            while True:
                await send_all(here, b"x" * 60_000, 0.2)

        with pytest.raises(ConnectionLost) as caught:
            await send_for_ever()
        assert caught.value.code == "stalled"
