"""One watch for many sockets: it wakes who waits, in turns, and leaves alone who does not."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Literal

import anyio
import pytest
from anyio.abc import SocketAttribute
from anyio.lowlevel import checkpoint

from brightsocket_anyio import open_client
from brightsocket_anyio.transports.sockets import SocketStream
from brightsocket_anyio.transports.turn import Turn
from brightsocket_anyio.transports.watch import _BATCH, Readable, open_watch

from .support import PATIENCE, echoing, pairs, serving, until


async def test_everybody_is_told_however_many_there_are() -> None:
    count = 3 * _BATCH + 1
    got: list[bytes] = []

    async def receive(stream: SocketStream) -> None:
        while True:
            got.append(await stream.receive())

    def complete(size: int) -> bool:
        return b"".join(got) == b"x" * size

    async with pairs(count) as (_, both), anyio.create_task_group() as tg:
        for stream, _ in both:
            tg.start_soon(receive, stream)
        for turn in range(1, 6):
            for _, there in both:
                there.send(b"x")
            await until(partial(complete, turn * count))
        tg.cancel_scope.cancel()


async def test_nobody_waits_for_long_behind_those_who_always_have_something() -> None:
    count = 2 * _BATCH
    rounds = 0

    async def receive_for_ever(stream: SocketStream, there: socket.socket) -> None:
        nonlocal rounds
        while True:
            await stream.receive()
            rounds += 1
            there.send(b"x")

    async with pairs(count + 1) as (_, both), anyio.create_task_group() as tg:
        last, its_peer = both.pop()
        for stream, there in both:
            there.send(b"x")
            tg.start_soon(receive_for_ever, stream, there)
        await until(lambda: rounds > count)
        its_peer.send(b"x")
        before = rounds
        assert await last.receive() == b"x"
        assert rounds - before <= 2 * count
        tg.cancel_scope.cancel()
        its_peer.close()
        last.close_nowait()


async def test_who_does_not_wait_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the loop would spin for as long as something is there that nobody takes."""
    told = 0

    def note_readable(self: Readable) -> None:
        nonlocal told
        told += 1
        original(self)

    original = Readable.note_readable
    monkeypatch.setattr(Readable, "note_readable", note_readable)
    async with pairs(1) as (watch, [(stream, there)]):
        there.send(b"1")
        assert await stream.receive() == b"1"
        there.send(b"2")
        await until(lambda: not watch._readers)
        before = told
        for _ in range(100):
            await checkpoint()
        assert told == before
        assert await stream.receive() == b"2"


async def test_cancelled_at_the_moment_of_being_told() -> None:
    got: list[bytes] = []

    async def receive(stream: SocketStream) -> None:
        with scope:
            got.append(await stream.receive())

    scope = anyio.CancelScope()
    async with pairs(1) as (watch, [(stream, there)]), anyio.create_task_group() as tg:
        tg.start_soon(receive, stream)
        await anyio.wait_all_tasks_blocked()
        there.send(b"whole")
        watch.tell()
        scope.cancel()
        await anyio.wait_all_tasks_blocked()
        assert got == ([b"whole"] if not scope.cancelled_caught else [])
        if not got:
            got.append(await stream.receive())
    assert got == [b"whole"]


async def test_who_waits_when_the_watch_is_closed_hears_of_it() -> None:
    here, there = socket.socketpair()

    async def receive(stream: SocketStream) -> None:
        with pytest.raises(anyio.BrokenResourceError):
            await stream.receive()

    with there:
        async with anyio.create_task_group() as tg, open_watch() as watch:
            assert watch is not None
            stream = SocketStream(here, None, watch)
            tg.start_soon(receive, stream)
            await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BrokenResourceError):
            await stream.receive()
        stream.close_nowait()


async def test_a_system_that_watches_no_more_breaks_the_one_stream() -> None:
    class Full:
        turn = Turn()

        def add(self, fd: int, reader: Readable) -> None:
            raise OSError("no space left")

    here, there = socket.socketpair()
    with there:
        full: Any = Full()
        stream = SocketStream(here, None, full)
        for _ in range(2):
            with pytest.raises(anyio.BrokenResourceError) as caught:
                await stream.receive()
            assert "no space left" in str(caught.value.__cause__)
        stream.close_nowait()


async def test_systems_without_it_have_the_loop_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    async with open_watch() as watch:
        assert watch is None


async def test_a_server_without_it_serves_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """By AnyIO's own streams, as on other systems."""

    @asynccontextmanager
    async def open_none() -> AsyncIterator[None]:
        yield None

    monkeypatch.setattr("brightsocket_anyio.listener.open_watch", open_none)
    roads: list[Literal["websocket", "polling"]] = ["websocket", "polling"]
    async with serving(echoing()) as bound:
        for transport in roads:
            async with open_client(bound.url, transport=transport) as client:
                connection = await client.connect("WORK")
                async with connection.receive("ECHO") as echoes:
                    for size in (1, 100_000):
                        await connection.send("ECHO", "x" * size)
                        assert await echoes.receive() == "x" * size


async def test_who_is_shielded_goes_on_receiving_when_all_around_is_cancelled() -> None:
    here, there = socket.socketpair()
    got: list[bytes] = []
    with there:
        with anyio.CancelScope() as around:
            async with open_watch() as watch:
                assert watch is not None
                stream = SocketStream(here, None, watch)
                try:
                    around.cancel()
                    await checkpoint()
                finally:
                    with anyio.CancelScope(shield=True), anyio.fail_after(PATIENCE):
                        async with anyio.create_task_group() as tg:

                            async def receive() -> None:
                                got.append(await stream.receive())

                            tg.start_soon(receive)
                            await anyio.wait_all_tasks_blocked()
                            there.send(b"late")
        stream.close_nowait()
    assert around.cancelled_caught
    assert got == [b"late"]


async def test_a_socket_that_somebody_else_has_closed_is_forgotten() -> None:
    async with pairs(1) as (watch, [(stream, _)]), anyio.create_task_group() as tg:
        tg.start_soon(stream.receive)
        await anyio.wait_all_tasks_blocked()
        # with the same number for the next one
        stream.extra(SocketAttribute.raw_socket).close()
        here, other = socket.socketpair()
        with other:
            second = SocketStream(here, None, watch)
            other.send(b"second")
            assert await second.receive() == b"second"
            tg.cancel_scope.cancel()
            stream.close_nowait()
            other.send(b"again")
            with anyio.CancelScope(shield=True):
                assert await second.receive() == b"again"
            second.close_nowait()
        assert not watch._readers
