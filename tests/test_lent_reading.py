"""A session's reading while a worker does it: a message is read and handled in one task, and nothing has to wait for
that task which had not before."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked

from brightsocket_anyio import Bound, Brightsocket, Connection, open_client
from brightsocket_anyio.workers import Workers

from .support import PATIENCE, Raw, here, identified, serving, until

# -- the workers


class Given:
    """What a worker reads: jobs, one at a time.

    :ivar lent: whether it is the worker's to read.
    :ivar readers: the tasks that have read.
    """

    def __init__(self, workers: Workers) -> None:
        self.lent = True
        self.readers: list[int] = []
        self._workers = workers
        self._give, self._given = anyio.create_memory_object_stream[Any](100)
        workers.lend(self)

    def give(self, job: Any) -> None:
        self._give.send_nowait(job)

    def arrival(self) -> Awaitable[Any]:
        self.readers.append(here())
        return self._given.receive()

    def readable(self) -> None:
        return None

    def nudge(self) -> bool:
        return False

    def read(self, arrived: Any, /) -> list[Any]:
        return [arrived]

    def take(self, received: list[Any], /) -> bool:
        for job in received:
            self._workers.submit(job)
        return True

    def lose(self, failure: Exception, /) -> None:
        raise failure

    def take_back(self) -> None:
        self.lent = False

    def close(self) -> None:
        self._give.close()
        self._given.close()


@asynccontextmanager
async def reading_workers() -> AsyncGenerator[tuple[Workers, Given]]:
    async with anyio.create_task_group() as tg:
        workers = Workers(tg, lambda: None, attended=True)
        given = Given(workers)
        try:
            tg.start_soon(workers.work)
            await wait_all_tasks_blocked()
            yield workers, given
            tg.cancel_scope.cancel()
        finally:
            given.close()


async def test_what_a_worker_reads_it_does_itself() -> None:
    async with reading_workers() as (_, given):
        tasks: list[int] = []

        async def note() -> None:
            tasks.append(here())

        for _ in range(3):
            given.give(note)
            await wait_all_tasks_blocked()
        assert given.lent
        assert set(tasks) == set(given.readers)
        assert len(set(tasks)) == 1
    assert not given.lent


async def test_the_reading_goes_back_when_a_job_blocks_and_others_do_the_rest() -> None:
    async with reading_workers() as (workers, given):
        release = anyio.Event()
        done: list[str] = []

        async def block() -> None:
            assert given.lent
            await release.wait()
            done.append("blocked")

        async def pass_by() -> None:
            done.append("passed by")

        given.give(block)
        await wait_all_tasks_blocked()
        assert not given.lent
        assert not workers.willing
        workers.submit(pass_by)
        await wait_all_tasks_blocked()
        assert done == ["passed by"]
        release.set()
        await wait_all_tasks_blocked()
        assert done == ["passed by", "blocked"]


async def test_what_others_submit_while_a_worker_reads_is_done_at_once_and_may_block() -> None:
    async with reading_workers() as (workers, given):
        started: list[int] = []

        async def block() -> None:
            started.append(here())
            await anyio.sleep_forever()

        for count in (1, 2):
            workers.submit(block)
            await wait_all_tasks_blocked()
            assert len(started) == count
        # it was not the reader that blocked
        assert given.lent
        assert not {*started} & {*given.readers}


async def test_a_job_that_waits_gets_what_it_waits_for_and_what_is_thrown_at_it() -> None:
    """Its first step is taken by hand, the others too: results and exceptions go through."""
    async with reading_workers() as (_, given):
        outcome: list[object] = []

        async def work() -> None:
            send, receive = anyio.create_memory_object_stream[str]()
            async with send, receive, anyio.create_task_group() as tg:
                tg.start_soon(send.send, "an item")
                outcome.append(await receive.receive())
            with anyio.CancelScope() as scope:
                scope.cancel()
                await anyio.sleep_forever()
            outcome.append(scope.cancelled_caught)
            try:
                with anyio.fail_after(0):
                    await anyio.sleep_forever()
            except TimeoutError as exc:
                outcome.append(type(exc))

        given.give(work)
        await wait_all_tasks_blocked()
        assert outcome == ["an item", True, TimeoutError]


async def test_what_a_job_raises_after_a_wait_comes_out_of_the_scope() -> None:
    async def fail() -> None:
        await anyio.lowlevel.checkpoint()
        raise ValueError("no good")

    async def have_it_fail() -> None:
        async with reading_workers() as (_, given):
            given.give(fail)
            await anyio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        await have_it_fail()
    assert caught.group_contains(ValueError, match="no good")


# -- sessions


def api_by(way: str, **settings: Any) -> Brightsocket:
    """Whose ``ECHO`` is received by a handler (``on``), or by the channel's function itself from a stream
    (``receive``)."""
    api = Brightsocket(**settings)

    @api.connect("WORK")
    @api.connect("/work")
    async def work(connection: Connection) -> None:
        release = anyio.Event()

        @connection.on("BLOCK")
        async def block() -> None:
            nonlocal release
            await release.wait()
            release = anyio.Event()
            await connection.send("RELEASED")

        @connection.on("RELEASE")
        def free() -> None:
            release.set()

        @connection.on("ASK")
        async def ask() -> None:
            await connection.send("TOLD", await connection.call("WHAT"))

        @connection.on("FAIL")
        def fail() -> None:
            raise ValueError("on purpose")

        connection.on("LEAVE")(connection.aclose)

        async def echo(value: Any) -> None:
            await connection.send("ECHO", value)

        if way == "on":
            connection.on("ECHO")(echo)
            return
        async with connection.receive("ECHO") as values:
            async for value in values:
                await echo(value)

    return api


@pytest.fixture(params=["on", "receive"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def api(way: str) -> Brightsocket:
    return api_by(way)


@asynccontextmanager
async def peer_whose_worker_reads(server: Brightsocket) -> AsyncGenerator[tuple[Raw, Bound]]:
    async with serving(server) as bound, identified(bound, "WORK") as peer:
        for number in range(3):
            await peer.event("ECHO", number)
            await peer.expect_event("ECHO", number)
        await wait_all_tasks_blocked()
        yield peer, bound


async def test_a_handler_that_blocks_holds_nothing_back(api: Brightsocket) -> None:
    async with peer_whose_worker_reads(api) as (peer, _):
        for number in range(3):
            await peer.event("BLOCK")
            await peer.event("ECHO", number)
            await peer.expect_event("ECHO", number)
            await peer.event("RELEASE")
            await peer.expect_event("RELEASED")
            await peer.event("ECHO", number)
            await peer.expect_event("ECHO", number)


async def test_a_message_of_several_kinds_in_one_read(api: Brightsocket) -> None:
    async with peer_whose_worker_reads(api) as (peer, _):
        texts = ['42["ECHO",1]', '42["BLOCK"]', '42["ECHO",2]', "40/work,", '42["RELEASE"]', '42["ECHO",3]']
        for text in texts:
            peer.protocol.send_text(text.encode())
        await peer.send()
        received = [await peer.receive() for _ in range(5)]
        assert [each for each in received if '"ECHO"' in str(each)] == [f'42["ECHO",{n}]' for n in (1, 2, 3)]
        assert '42["RELEASED"]' in received
        assert any(str(each).startswith("40/work,") for each in received)
        # two connections: the session's own task reads for both
        for number in range(3):
            await peer.event("ECHO", number, namespace="/work")
            await peer.expect(f'42/work,["ECHO",{number}]')
            await peer.event("ECHO", number)
            await peer.expect(f'42["ECHO",{number}]')


async def test_more_actions_in_one_read_than_are_taken_in_one_go(api: Brightsocket) -> None:
    async with peer_whose_worker_reads(api) as (peer, _):
        for number in range(500):
            peer.protocol.send_text(f'42["ECHO",{number}]'.encode())
        await peer.send()
        for number in range(500):
            await peer.expect_event("ECHO", number)


async def test_a_handler_that_calls_gets_its_answer(api: Brightsocket) -> None:
    async with peer_whose_worker_reads(api) as (peer, _):
        for number in range(3):
            await peer.event("ASK")
            assert await peer.receive() == f'42{number}["WHAT"]'
            await peer.send(f"43{number}[{number}]")
            await peer.expect_event("TOLD", number)
            await peer.event("ECHO", number)
            await peer.expect_event("ECHO", number)


async def test_another_channel_on_the_same_session(api: Brightsocket) -> None:
    async with peer_whose_worker_reads(api) as (peer, _):
        for number in range(3):
            await peer.identify("WORK")
            await peer.expect_identified()
            await peer.event("ECHO", number)
            await peer.expect_event("ECHO", number)


async def leave(server: Brightsocket, peer: Raw) -> None:
    await peer.send("41")


async def be_left(server: Brightsocket, peer: Raw) -> None:
    await peer.event("LEAVE")


async def fail(server: Brightsocket, peer: Raw) -> None:
    await peer.event("FAIL")


async def send_nonsense(server: Brightsocket, peer: Raw) -> None:
    await peer.send('42{"this is":"no list"}')


async def close(server: Brightsocket, peer: Raw) -> None:
    peer.protocol.send_close(1000)
    await peer.send()


async def be_sent_away(server: Brightsocket, peer: Raw) -> None:
    for connection, _ in [*server.pool._members.values()]:
        await connection.aclose()


async def drain(server: Brightsocket, peer: Raw) -> None:
    async with anyio.create_task_group() as tg:
        tg.start_soon(server.drain)
        await peer.drain()


@pytest.mark.parametrize("end", [leave, be_left, fail, send_nonsense, close, be_sent_away, drain])
async def test_each_end_ends_it(api: Brightsocket, end: Callable[[Brightsocket, Raw], Awaitable[None]]) -> None:
    async with peer_whose_worker_reads(api) as (peer, _):
        with anyio.fail_after(PATIENCE):
            await end(api, peer)
            if end is leave:
                # a session without a namespace goes on for a while
                await until(lambda: len(api.pool) == 0)
                return
            await peer.drain()
            await until(lambda: api.statistics().sessions_open == 0)


@pytest.mark.mock_clock
async def test_a_peer_that_falls_silent_is_noticed_while_a_worker_reads(way: str) -> None:
    async with peer_whose_worker_reads(api_by(way, ping_interval=5, ping_timeout=2)) as (peer, _):
        began = anyio.current_time()
        peer.patience = 60
        await peer.expect("2")
        assert anyio.current_time() - began == pytest.approx(5, abs=0.1)
        await peer.send("3")
        await peer.expect("2")
        assert await peer.drain() == []
        assert anyio.current_time() - began == pytest.approx(12, abs=0.1)


async def test_a_client_s_handlers_too(api: Brightsocket) -> None:
    async with serving(api) as bound, open_client(bound.url) as client:
        connection = await client.connect("WORK")
        tasks: set[int] = set()
        echoed: list[int] = []

        @connection.on("ECHO")
        async def echo(number: int) -> None:
            tasks.add(here())
            echoed.append(number)
            if number < 100:
                await connection.send("ECHO", number + 1)

        await connection.send("ECHO", 0)
        await until(lambda: len(echoed) == 101)
        assert echoed == list(range(101))
        assert len(tasks) == 1
        await client.disconnect()
