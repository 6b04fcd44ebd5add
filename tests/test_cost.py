"""What a message costs, in calls of the package's functions: the same on every machine, unlike time.

The bounds are a tenth above what was counted when they were set. Who makes a message cheaper lowers them; who has to
raise one says in the commit what it is good for. Times, and how they compare with others', are the benchmark's.
"""

from __future__ import annotations

import socket
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Self

import anyio
import pytest
import uvicorn

import brightsocket_anyio
from brightsocket_anyio import Bound, Brightsocket, Connection

from .support import identified, serving, until

PACKAGE = str(Path(brightsocket_anyio.__file__).parent)
MESSAGES = 200


class Calls:
    """Counts the calls of the package's functions in a ``with`` block; a coroutine counts each time that it goes on."""

    def __init__(self) -> None:
        self.count = 0
        self.by_function: Counter[str] = Counter()

    def __enter__(self) -> Self:
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            self.count += 1
            self.by_function[f"{frame.f_code.co_filename[len(PACKAGE) :]} {frame.f_code.co_qualname}"] += 1


def api() -> Brightsocket:
    api = Brightsocket()

    @api.connect("BY HANDLER")
    def by_handler(connection: Connection) -> None:
        @connection.on("ECHO")
        async def echo(text: str) -> None:
            await connection.send("ECHO", text)

    @api.connect("BY STREAM")
    async def by_stream(connection: Connection) -> None:
        async with connection.receive("ECHO") as texts:
            async for text in texts:
                await connection.send("ECHO", text)

    return api


async def cost_of_an_echo(channel: str, behind: Any = serving) -> Calls:
    async with behind(api()) as bound, identified(bound, channel) as peer:

        async def echo(times: int) -> None:
            for _ in range(times):
                await peer.send('42["ECHO","hello"]')
                assert await peer.receive() == '42["ECHO","hello"]'

        await echo(10)
        with Calls() as calls:
            await echo(MESSAGES)
    return calls


@pytest.mark.parametrize(("channel", "bound"), [("BY HANDLER", 90), ("BY STREAM", 90)])
async def test_an_echo(channel: str, bound: float) -> None:
    calls = await cost_of_an_echo(channel)
    assert calls.count / MESSAGES <= bound, calls.by_function.most_common(60)


async def test_the_tasks_of_an_idle_connection() -> None:
    """Most of its memory: one reads, and one runs its functions."""
    async with serving(api()) as bound, AsyncExitStack() as stack:
        await anyio.wait_all_tasks_blocked()
        before = len(anyio.get_running_tasks())
        for channel in ("BY HANDLER", "BY STREAM"):
            for _ in range(10):
                await stack.enter_async_context(identified(bound, channel))
        await anyio.wait_all_tasks_blocked()
        assert len(anyio.get_running_tasks()) - before == 20 * 2


@asynccontextmanager
async def behind_uvicorn(api: Brightsocket) -> AsyncGenerator[Bound]:
    """The API behind uvicorn, on the loop that runs already."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(api, ws="websockets-sansio", log_level="error"))
        async with anyio.create_task_group() as tg:
            tg.start_soon(server.serve, [listener])
            await until(lambda: server.started)
            port = listener.getsockname()[1]
            yield Bound((("127.0.0.1", port),), f"http://127.0.0.1:{port}")
            server.should_exit = True


@pytest.mark.parametrize("anyio_backend", ["asyncio", "asyncio+uvloop"], indirect=True)
async def test_an_echo_under_uvicorn() -> None:
    """Whose ``send`` is not waited for, since it waits for nothing: it would cost a switch to another task."""
    calls = await cost_of_an_echo("BY HANDLER", behind_uvicorn)
    assert calls.count / MESSAGES <= 72, calls.by_function.most_common(60)


async def test_a_broadcast() -> None:
    """What one more connection adds to it."""
    counts = []
    for size in (5, 25):
        server = api()
        async with serving(server) as bound, anyio.create_task_group() as tg:

            async def listen(*, task_status: Any, bound: Any = bound) -> None:
                async with identified(bound, "BY HANDLER") as peer:
                    task_status.started()
                    while await peer.receive() != '42["LAST"]':
                        pass

            for _ in range(size):
                await tg.start(listen)
            await server.pool.emit("NEWS", "hello")
            with Calls() as calls:
                for _ in range(10):
                    await server.pool.emit("NEWS", "hello")
            counts.append(calls.count / 10)
            await server.pool.emit("LAST")
    assert (counts[1] - counts[0]) / 20 <= 14, counts
