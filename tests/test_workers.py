"""Workers: jobs start in order, none waits for another that blocks, and few tasks do it all."""

from __future__ import annotations

from contextvars import ContextVar
from functools import partial

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

from brightsocket_anyio.workers import Workers

from .support import PATIENCE, here


async def test_jobs_that_do_not_block_share_one_task() -> None:
    tasks: list[int] = []
    order: list[int] = []
    async with anyio.create_task_group() as tg:
        workers = Workers(tg, lambda: None)

        def job(number: int) -> None:
            async def run() -> None:
                tasks.append(here())
                order.append(number)

            workers.submit(run)

        for number in range(100):
            job(number)
        await wait_all_tasks_blocked()
        for number in range(100, 200):
            job(number)
            await wait_all_tasks_blocked()
        tg.cancel_scope.cancel()
    assert order == list(range(200))
    # the second worker that the first job calls for finds nothing to do, but it may be the one that stays
    assert len(set(tasks)) <= 2


async def test_a_job_that_blocks_does_not_hold_back_the_next() -> None:
    started: list[int] = []
    release = anyio.Event()
    async with anyio.create_task_group() as tg:
        workers = Workers(tg, lambda: None)

        def job(number: int) -> None:
            async def run() -> None:
                started.append(number)
                await release.wait()

            workers.submit(run)

        for number in range(20):
            job(number)
        await wait_all_tasks_blocked()
        assert started == list(range(20))
        tg.cancel_scope.cancel()


async def test_one_task_is_parked_when_all_is_quiet() -> None:
    tasks: set[int] = set()
    release = anyio.Event()

    async def block() -> None:
        tasks.add(here())
        await release.wait()

    async def pass_by() -> None:
        tasks.add(here())

    async with anyio.create_task_group() as tg:
        workers = Workers(tg, lambda: None)
        for _ in range(20):
            workers.submit(block)
        await wait_all_tasks_blocked()
        assert len(tasks) == 20
        release.set()
        await wait_all_tasks_blocked()
        alive = [task for task in anyio.get_running_tasks() if task.name == "brightsocket worker"]
        assert len(alive) == 1
        tasks.clear()
        for _ in range(5):
            workers.submit(pass_by)
            await wait_all_tasks_blocked()
        assert tasks == {alive[0].id}
        tg.cancel_scope.cancel()


async def test_a_burst_calls_for_no_more_than_one_task_beyond_those_that_block() -> None:
    release = anyio.Event()

    async def block() -> None:
        await release.wait()

    async def pass_by() -> None:
        pass

    async with anyio.create_task_group() as tg:
        workers = Workers(tg, lambda: None)
        for _ in range(3):
            workers.submit(block)
        for _ in range(1000):
            workers.submit(pass_by)
        await wait_all_tasks_blocked()
        alive = [task for task in anyio.get_running_tasks() if task.name == "brightsocket worker"]
        assert len(alive) <= 4
        tg.cancel_scope.cancel()


async def test_the_scope_s_own_task_works_and_is_the_one_that_stays() -> None:
    tasks: list[int] = []

    async def pass_by() -> None:
        tasks.append(here())

    async def block() -> None:
        tasks.append(here())
        await release.wait()

    async def be_one() -> None:
        tasks.append(here())
        await workers.work()

    release = anyio.Event()
    async with anyio.create_task_group() as tg:
        workers = Workers(tg, lambda: None)
        # before it comes, others do its work; one of them has parked
        workers.submit(pass_by)
        await wait_all_tasks_blocked()
        tg.start_soon(be_one)
        await wait_all_tasks_blocked()
        own = tasks.pop()
        tasks.clear()
        for _ in range(3):
            workers.submit(pass_by)
            await wait_all_tasks_blocked()
        assert tasks == [own] * 3
        tasks.clear()
        # blocked, it is no hindrance; nor is it the one that goes
        for job in (block, pass_by, block, pass_by):
            workers.submit(job)
            await wait_all_tasks_blocked()
        assert tasks[0] == own
        assert own not in tasks[1:]
        release.set()
        await wait_all_tasks_blocked()
        assert "brightsocket worker" not in [task.name for task in anyio.get_running_tasks()]
        tasks.clear()
        workers.submit(pass_by)
        await wait_all_tasks_blocked()
        assert tasks == [own]
        tg.cancel_scope.cancel()


@pytest.mark.parametrize("own", ["first", "second"])
async def test_work_returns_when_it_is_to_finish_and_the_last_job_is_done(own: str) -> None:
    """Whichever job the scope's own task has, and whether or not a worker is parked beside it."""
    releases = {"first": anyio.Event(), "second": anyio.Event()}
    other = {"first": "second", "second": "first"}[own]
    done: list[str] = []

    async def run(name: str) -> None:
        await releases[name].wait()
        done.append(name)

    async def be_one() -> None:
        await workers.work()
        done.append("quiet")

    async with anyio.create_task_group() as tg:
        workers = Workers(tg, lambda: None)
        tg.start_soon(be_one)
        await wait_all_tasks_blocked()
        for name in (own, other):
            workers.submit(partial(run, name))
            await wait_all_tasks_blocked()
        releases["first"].set()
        await wait_all_tasks_blocked()
        workers.finish()
        await wait_all_tasks_blocked()
        assert done == ["first"]
        releases["second"].set()
        await wait_all_tasks_blocked()
        assert done == ["first", "second", "quiet"]
        tg.cancel_scope.cancel()


async def test_finishing_waits_for_what_runs_and_what_waits() -> None:
    release = anyio.Event()
    done: list[str] = []

    async def block() -> None:
        await release.wait()
        done.append("first")
        workers.submit(late)

    async def late() -> None:
        await checkpoint()
        done.append("late")

    async def watch() -> None:
        await workers.work()
        done.append("quiet")

    async with anyio.create_task_group() as tg:
        workers = Workers(tg, lambda: None)
        workers.submit(block)
        tg.start_soon(watch)
        await wait_all_tasks_blocked()
        workers.finish()
        await wait_all_tasks_blocked()
        assert done == []
        release.set()
        await wait_all_tasks_blocked()
        assert done == ["first", "late", "quiet"]
        tg.cancel_scope.cancel()


async def test_work_returns_at_once_when_nothing_was_ever_submitted() -> None:
    async with anyio.create_task_group() as tg:
        workers = Workers(tg, lambda: None)
        workers.finish()
        with anyio.fail_after(PATIENCE):
            await workers.work()


async def test_no_job_is_taken_after_stop() -> None:
    seen: list[str] = []
    release = anyio.Event()

    async def block() -> None:
        await release.wait()
        seen.append("blocked")

    async def note() -> None:
        seen.append("begun")

    async with anyio.create_task_group() as tg:
        workers = Workers(tg, lambda: None)
        assert workers.quiet
        workers.submit(block)
        assert not workers.quiet
        await wait_all_tasks_blocked()
        assert not workers.quiet
        workers.stop()
        workers.submit(note)
        release.set()
        with anyio.fail_after(PATIENCE):
            await workers.work()
        assert workers.quiet
    assert seen == ["blocked"]


async def test_what_a_job_raises_goes_to_the_scope() -> None:
    async def fail() -> None:
        raise LookupError("mine")

    with pytest.raises(ExceptionGroup) as caught:
        async with anyio.create_task_group() as tg:
            Workers(tg, lambda: None).submit(fail)
    assert [str(exc) for exc in caught.value.exceptions] == ["mine"]


async def test_a_worker_enters_its_own_context_whoever_started_it() -> None:
    whose: ContextVar[str] = ContextVar("whose", default="nobody's")
    seen: list[str] = []
    release = anyio.Event()

    async def look() -> None:
        seen.append(whose.get())
        await release.wait()

    async def submit_as(name: str) -> None:
        whose.set(name)
        workers.submit(look)

    async with anyio.create_task_group() as tg:
        workers = Workers(tg, lambda: whose.set("the workers'") and None)
        tg.start_soon(submit_as, "first")
        tg.start_soon(submit_as, "second")
        await wait_all_tasks_blocked()
        release.set()
        await wait_all_tasks_blocked()
        tg.cancel_scope.cancel()
    assert seen == ["the workers'"] * 2


async def test_cancelling_the_scope_ends_every_worker() -> None:
    ended: list[int] = []

    async def block() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(1)

    async with anyio.create_task_group() as tg:
        workers = Workers(tg, lambda: None)
        for _ in range(5):
            workers.submit(block)
        await wait_all_tasks_blocked()
        tg.cancel_scope.cancel()
    assert len(ended) == 5
