"""The timer that all sessions share."""

from __future__ import annotations

import gc
import random
import weakref

import anyio
import pytest

from brightsocket_anyio import Brightsocket
from brightsocket_anyio.timer import Alarm, Timer

from .support import identified, serving_in_memory

pytestmark = [pytest.mark.anyio, pytest.mark.mock_clock]


async def test_each_alarm_rings_at_its_own_time() -> None:
    timer = Timer()
    rung: list[tuple[float, int]] = []
    start = anyio.current_time()
    source = random.Random(0)
    times = [source.uniform(0, 100) for _ in range(200)]
    async with anyio.create_task_group() as tg:
        tg.start_soon(timer.run)
        alarms = [
            Alarm(timer, lambda number=number: rung.append((anyio.current_time() - start, number)))  # type: ignore[misc]
            for number in range(len(times))
        ]
        for alarm, time in zip(alarms, times, strict=True):
            alarm.set(start + time)
        await anyio.sleep(101)
        tg.cancel_scope.cancel()
    assert [number for _, number in rung] == sorted(range(len(times)), key=times.__getitem__)
    assert [time for time, _ in rung] == pytest.approx(sorted(times))


async def test_a_time_that_is_changed_counts() -> None:
    timer = Timer()
    rung: list[float] = []
    start = anyio.current_time()
    async with anyio.create_task_group() as tg:
        tg.start_soon(timer.run)
        alarm = Alarm(timer, lambda: rung.append(anyio.current_time() - start))
        for time in (50, 10, 70, 30, 90, 40):
            alarm.set(start + time)
        await anyio.sleep(35)
        assert rung == []
        await anyio.sleep(20)
        assert rung == [40]
        alarm.set(start + 60)
        await anyio.sleep(2)
        alarm.set(start + 80)
        await anyio.sleep(30)
        assert rung == [40, 80]
        alarm.set(start + 100)
        alarm.cancel()
        await anyio.sleep(50)
        assert rung == [40, 80]
        tg.cancel_scope.cancel()


async def test_an_alarm_that_is_set_again_and_again_takes_one_place() -> None:
    timer = Timer()
    alarm = Alarm(timer, lambda: None)
    for time in range(1000):
        alarm.set(1000 + time)
    assert len(timer._entries) == 1


async def test_one_that_fails_does_not_keep_the_others_from_ringing(caplog: pytest.LogCaptureFixture) -> None:
    timer = Timer()
    rung = anyio.Event()

    def fail() -> None:
        raise LookupError("on purpose")

    async with anyio.create_task_group() as tg:
        tg.start_soon(timer.run)
        Alarm(timer, fail).set(anyio.current_time())
        Alarm(timer, rung.set).set(anyio.current_time() + 1)
        await rung.wait()
        tg.cancel_scope.cancel()
    assert "on purpose" in caplog.text


async def test_a_cancelled_alarm_keeps_nothing_alive() -> None:
    class Owner:
        def call(self) -> None: ...

    timer, owner = Timer(), Owner()
    alarm = Alarm(timer, owner.call)
    alarm.set(anyio.current_time() + 1000)
    alarm.cancel()
    reference = weakref.ref(owner)
    del owner
    gc.collect()
    assert reference() is None


async def test_all_sessions_share_one_timer() -> None:
    """Each has a reader and a writer."""
    api = Brightsocket()
    api.connect("A", (), lambda: None)
    async with serving_in_memory(api) as listener:
        names: list[str] = []
        async with identified(listener, "A"), identified(listener, "A"), identified(listener, "A"):
            names = [task.name or "" for task in anyio.get_running_tasks()]
        assert names.count("timer") == 1
        assert names.count("writer") == 3
