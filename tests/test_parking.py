"""Where one task waits to be woken, or many for one thing; and how a task knows that it is cancelled."""

from __future__ import annotations

import math

import anyio
import pytest
from anyio.lowlevel import checkpoint

from brightsocket_anyio.parking import Latch, Parking, current_deadline
from brightsocket_anyio.stand import Stand

from .support import until


@pytest.fixture(params=[Parking, Stand])
def parking(request: pytest.FixtureRequest) -> Parking:
    place: Parking = request.param()
    return place


async def wait_at(parking: Parking) -> None:
    await parking.wait()


async def test_whoever_waits_is_woken_each_time(parking: Parking) -> None:
    woken = 0

    async def wait() -> None:
        nonlocal woken
        while True:
            await parking.wait()
            woken += 1

    async with anyio.create_task_group() as tg:
        tg.start_soon(wait)
        for number in range(3):
            await until(lambda: parking.taken)
            parking.wake()
            assert not parking.taken
            # once more is no more than once
            parking.wake()
            await until(lambda: parking.taken)
            assert woken == number + 1
        tg.cancel_scope.cancel()
    assert not parking.taken


async def test_a_call_before_anybody_waits_is_forgotten(parking: Parking) -> None:
    parking.wake()
    with anyio.move_on_after(0.01) as scope:
        await parking.wait()
    assert scope.cancelled_caught


async def test_whoever_is_cancelled_leaves_the_place(parking: Parking) -> None:
    async with anyio.create_task_group() as tg:
        tg.start_soon(wait_at, parking)
        await until(lambda: parking.taken)
        tg.cancel_scope.cancel()
    assert not parking.taken
    parking.wake()
    async with anyio.create_task_group() as tg:
        tg.start_soon(wait_at, parking)
        await until(lambda: parking.taken)
        parking.wake()


async def test_there_is_room_for_one(parking: Parking) -> None:
    async with anyio.create_task_group() as tg:
        tg.start_soon(wait_at, parking)
        await until(lambda: parking.taken)
        with pytest.raises(anyio.BusyResourceError):
            await parking.wait()
        parking.wake()


async def test_a_task_that_is_cancelled_as_it_is_woken_does_not_keep_the_place(parking: Parking) -> None:
    async with anyio.create_task_group() as tg:
        tg.start_soon(wait_at, parking)
        await until(lambda: parking.taken)
        parking.wake()
        tg.cancel_scope.cancel()
    await checkpoint()
    assert not parking.taken


async def test_a_latch_wakes_all_who_wait_now_and_later() -> None:
    latch = Latch()
    woken: list[int] = []

    async def wait(number: int) -> None:
        await latch.wait()
        assert latch.is_set()
        woken.append(number)

    async with anyio.create_task_group() as tg:
        for number in range(3):
            tg.start_soon(wait, number)
        await anyio.wait_all_tasks_blocked()
        assert not woken
        assert not latch.is_set()
        latch.set()
        latch.set()
        await until(lambda: len(woken) == 3)
        await wait(3)
    assert sorted(woken) == [0, 1, 2, 3]


async def test_who_no_longer_waits_for_a_latch_is_none_of_its_business() -> None:
    latch = Latch()
    with anyio.move_on_after(0):
        await latch.wait()
    async with anyio.create_task_group() as tg:
        tg.start_soon(latch.wait)
        await anyio.wait_all_tasks_blocked()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await latch.wait()
        assert scope.cancelled_caught
        latch.set()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await latch.wait()
    # a checkpoint, even where there is nothing to wait for
    assert scope.cancelled_caught


async def test_the_current_task_s_deadline_tells_whether_it_is_cancelled() -> None:
    deadline = current_deadline()
    assert deadline() == math.inf
    # nothing waits in these: it is only asked about
    with anyio.CancelScope() as outer, anyio.CancelScope(), anyio.CancelScope():  # noqa: ASYNC100 (see above)
        assert deadline() == math.inf
        outer.cancel()
        assert deadline() == -math.inf
        with anyio.CancelScope(shield=True):  # noqa: ASYNC100 (see above)
            assert deadline() == math.inf
    assert deadline() == math.inf
