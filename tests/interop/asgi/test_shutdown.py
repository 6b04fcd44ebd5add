"""SIGTERM while sessions are open: every server ends in an orderly way, and its clients hear of it."""

from __future__ import annotations

from contextlib import AsyncExitStack, suppress

import anyio
import anyio.to_thread
import httpx
import pytest

from .conftest import APPS, SERVERS, exit_status
from .peers import Polling, join, polling, websocket
from .processes import Server, serving

RUN_HYPERCORN = "python -m chat.run_hypercorn"
#: the close code that a WebSocket ends with; granian sends none
CODES = {"uvicorn": 1012, "granian": None, "hypercorn": 1001}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize(
    ("server", "app", "polls"),
    [
        ("uvicorn-websockets", "in_starlette:app", False),
        ("uvicorn-websockets-sansio", "in_starlette:app", False),
        ("uvicorn-wsproto", "around:api", False),
        ("uvicorn-websockets-sansio", "around:api", True),
        ("granian", "in_starlette:app", False),
        ("granian", "around:api", True),
    ],
)
async def test_a_server_s_own_command(server: str, app: str, polls: bool) -> None:
    await terminate(SERVERS[server], app, CODES[server.partition("-")[0]], exit_status(server), polls=polls)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_hypercorn_in_a_program_that_drains(backend: str) -> None:
    await terminate(Server(f"{RUN_HYPERCORN} 127.0.0.1:8000 {backend}"), "in_starlette:app", 1001, 0, polls=True)


async def terminate(server: Server, app: str, code: int | None, status: int, *, polls: bool) -> None:
    async with AsyncExitStack() as stack:
        served = stack.enter_context(serving(server, f"examples.hosting.{app}", APPS[app]))
        peer = await stack.enter_async_context(websocket(served))
        await join(peer, "ada")
        async with anyio.create_task_group() as tg:
            if polls:
                poller = await stack.enter_async_context(polling(served))
                await poller.join("bob")
                await peer.expect_event("JOINED", "bob")
                tg.start_soon(poll_to_the_end, poller)
            served.process.terminate()
            await peer.drain()
        close = peer.protocol.close_rcvd
        assert (close and close.code) == code
        assert await anyio.to_thread.run_sync(served.process.wait) == status
        assert not served.process.trouble


async def poll_to_the_end(poller: Polling) -> None:
    """Until the session is said to be closed, or nobody answers any more."""
    with suppress(httpx.TransportError):
        while await poller.get() != "1":
            pass
