"""Thousands of abrupt losses, after which everything is back where it began."""

from __future__ import annotations

import anyio
import pytest

from brightsocket_anyio import Connection

from ..support import PATIENCE, identified
from .process import Running, running
from .test_flood import controlled, state_where

#: bytes that a loss may leave behind. A connection has some thirty thousand; what the allocators keep is not exact.
LEFT_BY_A_LOSS = 2_500


@pytest.mark.parametrize("loop", ["asyncio", "asyncio+uvloop", "trio"])
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.timeout(600)
async def test_connects_and_abrupt_losses(loop: str, anyio_backend: str, request: pytest.FixtureRequest) -> None:
    """In a process of its own: its memory, sockets and objects return to where they were."""
    round_of = 3_400 if request.config.getoption("--full") else 200
    async with running(loop) as program, controlled(program) as control:
        before = await control.call("CENSUS")
        # what the allocators keep
        await _lose(program, control, 600, before)
        grown = []
        for _ in range(3):
            program.reset_peak()
            memory = program.memory()
            await _lose(program, control, round_of, before)
            grown.append(program.memory() - memory)
        print(f"{loop}: {round_of} losses each, grown by {grown} bytes, {before}")
        # what leaks does so each time
        assert min(grown) < round_of * LEFT_BY_A_LOSS


async def _lose(program: Running, control: Connection, count: int, before: dict[str, int]) -> None:
    """Lose so many, and wait until there is just what was before."""

    async def lose_one(number: int) -> None:
        async with identified(program.bound, "LISTEN", eio=3 + number % 2) as peer:
            await peer.event("NOISE", number)
            await peer.vanish()

    for start in range(0, count, 40):
        async with anyio.create_task_group() as tg:
            for number in range(start, start + 40):
                tg.start_soon(lose_one, number)
    await state_where(control, members=1)
    # the last ones' tasks end a moment after their sessions
    after: dict[str, int] = {}
    with anyio.move_on_after(PATIENCE):
        while after != before:
            after = await control.call("CENSUS")
    assert after == before
