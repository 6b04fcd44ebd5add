"""A channel's function that waits at its stream: the message is read in its task, and whatever else may come of that
wait comes as it would otherwise."""

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any

import anyio
import pytest
import sniffio
from anyio import wait_all_tasks_blocked
from anyio.abc import ObjectReceiveStream
from anyio.lowlevel import checkpoint

from brightsocket_anyio import Brightsocket, Connection
from brightsocket_anyio.protocol.engineio import Packet
from brightsocket_anyio.session import Session

from .support import PATIENCE, Raw, behind_uvicorn, each_call, here, identified, serving, until


@asynccontextmanager
async def peer_of(work: Callable[[Connection], Awaitable[None]], **settings: Any) -> AsyncGenerator[Raw]:
    """A peer on a channel with that function."""
    api = Brightsocket(**settings)
    api.connect("WORK")(work)
    async with serving(api) as bound, identified(bound, "WORK") as peer:
        yield peer


async def echo(connection: Connection, values: ObjectReceiveStream[Any]) -> None:
    async for value in values:
        await connection.send("ECHO", value)


async def exchange(peer: Raw, numbers: Iterable[int] = range(3)) -> None:
    """Each by itself, so that the function waits before the next one comes."""
    for number in numbers:
        await peer.event("ECHO", number)
        await peer.expect_event("ECHO", number)
        await wait_all_tasks_blocked()


async def readers(peer: Raw) -> tuple[set[int], int]:
    """The tasks in which some messages are read, and how many times one of them was lent that and gave it back."""
    tasks: set[int] = set()
    returned = 0

    def note(frame: FrameType) -> None:
        nonlocal returned
        if frame.f_code.co_qualname == "Session.take":
            tasks.add(here())
        returned += frame.f_code.co_qualname == "Session.take_back"

    await exchange(peer)
    with each_call(note):
        await exchange(peer)
    return tasks, returned


async def test_a_message_is_read_in_the_task_of_the_function_that_waits_for_it() -> None:
    tasks: set[int] = set()

    async def work(connection: Connection) -> None:
        tasks.add(here())
        async with connection.receive("ECHO") as values:
            await echo(connection, values)

    async with peer_of(work) as peer:
        assert await readers(peer) == (tasks, 0)


async def test_a_function_that_waits_for_something_else_lets_others_read() -> None:
    async def work(connection: Connection) -> None:
        release = anyio.Event()
        connection.on("RELEASE")(lambda: release.set())

        @connection.on("ASK")
        async def ask() -> None:
            await connection.send("TOLD")

        async with connection.receive("ECHO") as values:
            async for value in values:
                await release.wait()
                release = anyio.Event()
                await connection.send("ECHO", value)

    async with peer_of(work) as peer:
        for number in range(3):
            await peer.event("ECHO", number)
            await peer.event("ASK")
            await peer.expect_event("TOLD")
            await peer.event("RELEASE")
            await peer.expect_event("ECHO", number)


async def test_a_function_that_always_waits_for_something_else_next_is_not_asked_to_read() -> None:
    """To lend it the reading would only cost two switches more."""

    async def work(connection: Connection) -> None:
        tasks.add(here())
        async with connection.receive("ECHO") as values:
            async for value in values:
                await checkpoint()
                await connection.send("ECHO", value)

    tasks: set[int] = set()
    async with peer_of(work) as peer:
        reading, returned = await readers(peer)
        assert not tasks & reading
        assert not returned


@pytest.mark.parametrize("anyio_backend", ["asyncio", "asyncio+uvloop"], indirect=True)
async def test_nor_is_one_where_the_socket_is_somebody_else_s() -> None:
    """What an ASGI server's ``receive`` does is not for whatever scope the function has opened."""
    tasks: set[int] = set()
    api = Brightsocket()

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        tasks.add(here())
        async with connection.receive("ECHO") as values:
            await echo(connection, values)

    async with behind_uvicorn(api) as bound, identified(bound, "WORK") as peer:
        reading, returned = await readers(peer)
        assert not tasks & reading
        assert not returned


async def test_handlers_go_on_while_the_function_waits() -> None:
    async def work(connection: Connection) -> None:
        release = anyio.Event()

        @connection.on("BLOCK")
        async def block() -> None:
            await release.wait()
            await connection.send("RELEASED")

        @connection.on("RELEASE")
        def free() -> None:
            nonlocal release
            release.set()
            release = anyio.Event()

        @connection.on("ASK")
        async def ask() -> None:
            await connection.send("TOLD")

        async with connection.receive("ECHO") as values:
            await echo(connection, values)

    async with peer_of(work) as peer:
        await exchange(peer)
        for _ in range(3):
            await peer.event("ASK")
            await peer.expect_event("TOLD")
            await exchange(peer)
            # a task for them stays
            assert [task.name for task in anyio.get_running_tasks()].count("brightsocket worker") == 1
        for _ in range(3):
            await peer.event("BLOCK")
            await exchange(peer)
            await peer.event("RELEASE")
            await peer.expect_event("RELEASED")


async def test_what_a_filter_lets_pass_later_wakes_it() -> None:
    async def work(connection: Connection) -> None:
        @connection.add_filter
        async def wait(action: str, payload: Any, forward: Callable[[], Awaitable[None]]) -> None:
            # until all are blocked, the function among them
            await wait_all_tasks_blocked()
            await forward()

        async with connection.receive("ECHO") as values:
            await echo(connection, values)

    async with peer_of(work) as peer:
        await exchange(peer, range(5))


async def test_a_receiver_that_was_in_its_way_wakes_it() -> None:
    """Every receiver gets each item, when all have room."""

    async def work(connection: Connection) -> None:
        others.append(connection.receive("ECHO"))
        async with connection.receive("ECHO") as values:
            await echo(connection, values)

    others: list[ObjectReceiveStream[Any]] = []
    async with peer_of(work, max_buffered_messages=1) as peer:
        await exchange(peer, range(1))
        for number in range(5):
            await peer.event("ECHO", number + 1)
            await wait_all_tasks_blocked()
            assert await others[0].receive() == number
            await peer.expect_event("ECHO", number + 1)
            await wait_all_tasks_blocked()


async def test_another_task_that_closes_the_stream_wakes_it() -> None:
    async def work(connection: Connection) -> None:
        values = connection.receive("ECHO")
        connection.on("CLOSE")(values.aclose)
        with pytest.raises(anyio.ClosedResourceError):
            await echo(connection, values)
        await connection.send("CLOSED")

    async with peer_of(work) as peer:
        await exchange(peer)
        await peer.event("CLOSE")
        await peer.expect_event("CLOSED")


async def test_a_scope_that_is_cancelled_around_the_wait_loses_nothing() -> None:
    async def work(connection: Connection) -> None:
        scope = anyio.CancelScope()
        connection.on("STOP")(lambda: scope.cancel())
        async with connection.receive("ECHO") as values:
            while True:
                with scope:
                    await echo(connection, values)
                scope = anyio.CancelScope()
                await connection.send("STOPPED")

    async with peer_of(work) as peer:
        for _ in range(3):
            await exchange(peer)
            await peer.event("STOP")
            await peer.expect_event("STOPPED")
        # with what is to be cancelled, and what comes after that, in one read
        for text in ("STOP", "ECHO", "STOP", "ECHO"):
            peer.protocol.send_text(f'42["{text}"]'.encode())
        await peer.send()
        answers: list[str | bytes] = []
        while answers.count('42["ECHO",null]') < 2:
            answers.append(await peer.receive())


@pytest.mark.mock_clock
async def test_a_deadline_around_the_wait() -> None:
    async def work(connection: Connection) -> None:
        async with connection.receive("ECHO") as values:
            while True:
                with anyio.move_on_after(5):
                    await echo(connection, values)
                await connection.send("LATE")

    async with peer_of(work, ping_interval=100) as peer:
        for _ in range(3):
            await exchange(peer)
            began = anyio.current_time()
            await peer.expect_event("LATE")
            assert anyio.current_time() - began <= 5
            await wait_all_tasks_blocked()


async def test_several_tasks_that_wait_at_once() -> None:
    async def work(connection: Connection) -> None:
        async def answer(action: str) -> None:
            async with connection.receive(action) as values:
                async for value in values:
                    await connection.send(action, value)

        async with anyio.create_task_group() as tg:
            for action in ("FIRST", "SECOND"):
                tg.start_soon(answer, action)
            await answer("ECHO")

    async with peer_of(work) as peer:
        for number in range(5):
            for action in ("ECHO", "FIRST", "ECHO", "SECOND"):
                await peer.event(action, number)
                await peer.expect_event(action, number)
                await wait_all_tasks_blocked()


@pytest.mark.parametrize("attended", [False, True])
async def test_a_task_that_takes_the_stream_over_from_one_that_it_has_just_cancelled(attended: bool) -> None:
    """Before that one can see it."""

    async def work(connection: Connection) -> None:
        go = anyio.Event()
        connection.on("GO")(lambda: go.set())

        async def take_over() -> None:
            await go.wait()
            scope.cancel()
            for _ in range(2):
                await connection.send("SECOND", await values.receive())

        async with connection.receive("ECHO") as values, anyio.create_task_group() as tg:
            scope = anyio.CancelScope()
            tg.start_soon(take_over)
            with scope:
                await echo(connection, values)

    async with peer_of(work) as peer:
        if attended:
            await exchange(peer)
        await peer.event("GO")
        await wait_all_tasks_blocked()
        for number in range(2):
            await peer.event("ECHO", number)
            await peer.expect_event("SECOND", number)
            await wait_all_tasks_blocked()


async def test_two_tasks_that_receive_from_it_by_turns() -> None:
    """One of them asks for more while the other one has been woken, and has not run."""

    async def work(connection: Connection) -> None:
        async def receive() -> None:
            while True:
                with suppress(anyio.BusyResourceError):
                    numbers.append(await values.receive())
                await checkpoint()

        @connection.on("ECHO")
        async def once(value: int) -> None:
            with suppress(anyio.BusyResourceError):
                numbers.append(await values.receive())
                numbers.append(await values.receive())

        async with connection.receive("ECHO") as values, anyio.create_task_group() as tg:
            tg.start_soon(receive)
            await receive()

    numbers: list[int] = []

    def complete(count: int) -> bool:
        return len(numbers) >= count

    async with peer_of(work) as peer:
        for number in range(50):
            await peer.event("ECHO", number)
            await until(partial(complete, number + 1))
    assert sorted(numbers) == list(range(50))


async def test_a_coroutine_that_somebody_in_between_drives_by_hand() -> None:
    """And goes on with ``None``, by which asyncio's own futures end, or with what it has got, as Trio's."""

    @types.coroutine
    def drive(coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        value = None
        while True:
            try:
                waited_for = coroutine.send(value)
            except StopIteration as exc:
                return exc.value
            value = yield waited_for
            if sniffio.current_async_library() == "asyncio":
                value = None

    async def work(connection: Connection) -> None:
        async with connection.receive("ECHO") as values:
            while True:
                await connection.send("ECHO", await drive(values.receive()))

    async with peer_of(work) as peer:
        await exchange(peer, range(6))


@pytest.mark.parametrize("anyio_backend", ["asyncio", "asyncio+uvloop"], indirect=True)
async def test_asyncio_s_own_cancellations() -> None:
    async def work(connection: Connection) -> None:
        task = asyncio.current_task()
        assert task is not None
        connection.on("CANCEL")(lambda: task.cancel() and None)
        async with connection.receive("ECHO") as values:
            while True:
                try:
                    await echo(connection, values)
                except asyncio.CancelledError:
                    if not task.uncancel():
                        await connection.send("CANCELLED")
                        continue
                    raise

    async with peer_of(work) as peer:
        for _ in range(3):
            await exchange(peer)
            await peer.event("CANCEL")
            await peer.expect_event("CANCELLED")


async def test_a_bug_of_ours_is_none_of_the_function_s(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends the one session, as it does wherever else it comes up."""

    def take(self: Session, packets: list[Packet], /) -> bool:
        if here() in tasks:
            raise KeyError("a bug")
        return original(self, packets)

    async def work(connection: Connection) -> None:
        async with connection.receive("ECHO") as values:
            try:
                await connection.send("ECHO", await values.receive())
                await connection.send("ECHO", await values.receive())
                tasks.add(here())
                await values.receive()
            except Exception as exc:
                caught.append(exc)

    tasks: set[int] = set()
    caught: list[Exception] = []
    original = Session.take
    async with peer_of(work) as peer:
        await exchange(peer, range(2))
        monkeypatch.setattr(Session, "take", take)
        await peer.event("ECHO")
        await peer.drain()
    assert "a bug" in caplog.text
    assert not caught


async def test_who_is_shielded_hears_of_the_end() -> None:
    ends: list[Exception] = []

    async def work(connection: Connection) -> None:
        with anyio.CancelScope(shield=True):
            async with connection.receive("ECHO") as values:
                try:
                    while True:
                        await connection.send("ECHO", await values.receive())
                except (anyio.EndOfStream, anyio.BrokenResourceError) as exc:
                    ends.append(exc)

    async with peer_of(work) as peer:
        await exchange(peer)
        await peer.vanish()
        await until(lambda: ends)


async def test_more_than_there_is_room_for_comes_in_order() -> None:
    async def work(connection: Connection) -> None:
        async with connection.receive("NUMBER") as numbers:
            for wanted in range(2000):
                assert await numbers.receive() == wanted
                if wanted % 7 == 0:
                    await checkpoint()
        await connection.send("ALL")

    async with peer_of(work, max_buffered_messages=3) as peer:
        for number in range(2000):
            peer.protocol.send_text(f'42["NUMBER",{number}]'.encode())
        await peer.send()
        await peer.expect_event("ALL")


async def test_a_message_that_makes_no_sense_ends_the_session() -> None:
    async def work(connection: Connection) -> None:
        async with connection.receive("ECHO") as values:
            await echo(connection, values)

    async with peer_of(work) as peer:
        await exchange(peer)
        await peer.send('42{"this is":"no list"}')
        with anyio.fail_after(PATIENCE):
            await peer.drain()


async def test_the_worker_reads_on_when_the_function_has_returned() -> None:
    async def work(connection: Connection) -> None:
        async with connection.receive("ECHO") as values:
            for _ in range(6):
                await connection.send("ECHO", await values.receive())

        @connection.on("ECHO")
        async def once_more(value: Any) -> None:
            tasks.add(here())
            await connection.send("ECHO", value)

    tasks: set[int] = set()
    async with peer_of(work) as peer:
        await exchange(peer, range(6))
        assert await readers(peer) == (tasks, 0)


if sys.version_info >= (3, 12):

    @pytest.mark.parametrize("anyio_backend", ["asyncio", "asyncio+uvloop"], indirect=True)
    async def test_a_task_that_begins_to_wait_inside_of_the_function_s_step() -> None:
        """Asyncio's eager tasks do."""

        async def work(connection: Connection) -> None:
            async def second(values: ObjectReceiveStream[Any]) -> None:
                async for value in values:
                    await connection.send("SECOND", value)

            seconds = connection.receive("SECOND")
            async with connection.receive("ECHO") as values:
                await connection.send("ECHO", await values.receive())
                task = asyncio.eager_task_factory(asyncio.get_running_loop(), second(seconds))
                try:
                    await echo(connection, values)
                finally:
                    task.cancel()

        async with peer_of(work) as peer:
            for number in range(5):
                await exchange(peer)
                await peer.event("SECOND", number)
                await peer.expect_event("SECOND", number)
                await wait_all_tasks_blocked()
