"""Thousands of abrupt losses, after which everything is back where it began."""

from __future__ import annotations

import anyio
import pytest

from brightsocket_anyio import Connection

from ..support import PATIENCE, identified
from .process import Running, running
from .test_flood import controlled, state_where


@pytest.mark.parametrize("loop", ["asyncio", "asyncio+uvloop", "trio"])
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.timeout(600)
async def test_connects_and_abrupt_losses(loop: str, anyio_backend: str, request: pytest.FixtureRequest) -> None:
    """In a process of its own: its memory, sockets and objects return to where they were."""
    losses = 10_000 if request.config.getoption("--full") else 400
    async with running(loop) as program, controlled(program) as control:
        # what is made once, and what the allocators keep
        await _lose(program, control, 600)
        before = await control.call("CENSUS")
        program.reset_peak()
        memory = program.memory()
        await _lose(program, control, losses)
        after = await control.call("CENSUS")
        growth = program.memory() - memory
        print(f"{loop}: {losses} losses, grown by {growth / 1e6:.2f} MB, {after}")
        assert after == before
        assert growth < 2_000_000


async def _lose(program: Running, control: Connection, count: int) -> None:
    async def lose_one(number: int) -> None:
        async with identified(program.bound, "LISTEN", eio=3 + number % 2) as peer:
            await peer.event("NOISE", number)
            await peer.vanish()

    for start in range(0, count, 40):
        async with anyio.create_task_group() as tg:
            for number in range(start, start + 40):
                tg.start_soon(lose_one, number)
    await state_where(control, members=1)
    with anyio.fail_after(PATIENCE):
        while (await control.call("CENSUS"))["Session"] > 1:
            pass
