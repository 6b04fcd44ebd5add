"""What a message costs, in calls of the package's functions: the same on every machine, unlike time.

The bounds are a tenth above what was counted when they were set. Who makes a message cheaper lowers them; who has to
raise one says in the commit what it is good for. Times, and how they compare with others', are the benchmark's.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import CodeType, CoroutineType, FrameType
from typing import Any

import anyio
import pytest
from sniffio import current_async_library_cvar

from brightsocket_anyio import Bound, Brightsocket, Connection

from .support import PACKAGE, Raw, behind_uvicorn, each_call, identified, serving, until

MESSAGES = 200


class Calls:
    """The calls of the package's functions."""

    def __init__(self) -> None:
        self.count = 0
        self.by_function: Counter[str] = Counter()

    def note(self, frame: FrameType) -> None:
        self.count += 1
        self.by_function[f"{frame.f_code.co_filename[len(PACKAGE) :]} {frame.f_code.co_qualname}"] += 1


def api() -> Brightsocket:
    api = Brightsocket()

    @api.connect("BY HANDLER")
    def by_handler(connection: Connection) -> None:
        @connection.on("ECHO")
        async def echo(text: str) -> None:
            await connection.send("ECHO", text)

        connection.on("LEAVE")(connection.aclose)

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
        calls = Calls()
        with each_call(calls.note):
            await echo(MESSAGES)
    return calls


@pytest.mark.parametrize(("channel", "bound"), [("BY HANDLER", 52), ("BY STREAM", 64)])
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


def pieces() -> Counter[str]:
    """The package's objects and coroutines, and the dictionaries, lists and sets that they hold."""
    gc.collect()
    found: dict[int, str] = {}
    for each in gc.get_objects():
        if isinstance(each, CoroutineType):
            own, name = each.cr_code.co_filename.startswith(PACKAGE), each.__qualname__
        else:
            own, name = str(type(each).__module__).startswith("brightsocket_anyio"), type(each).__qualname__
        if own:
            found[id(each)] = name
            for held in gc.get_referents(each):
                if type(held) in (dict, list, set):
                    found.setdefault(id(held), f"{type(held).__name__} of {name}")
    return Counter(found.values())


async def test_the_pieces_of_an_idle_connection() -> None:
    """Among a thousand connections what a message takes is how many of them it comes through: each is a miss of the
    processor's caches."""
    async with serving(api()) as bound, AsyncExitStack() as stack:
        await anyio.wait_all_tasks_blocked()
        before = pieces()
        for _ in range(20):
            await stack.enter_async_context(identified(bound, "BY HANDLER"))
        await anyio.wait_all_tasks_blocked()
        more = pieces() - before
        assert more.total() / 20 <= 73, more


@pytest.mark.parametrize("anyio_backend", ["asyncio", "asyncio+uvloop"], indirect=True)
async def test_an_echo_under_uvicorn() -> None:
    """Whose socket is written to at once: to wait for its ``send`` would cost a switch to another task."""
    calls = await cost_of_an_echo("BY HANDLER", behind_uvicorn)
    assert calls.count / MESSAGES <= 41, calls.by_function.most_common(60)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "asyncio+uvloop"], indirect=True)
async def test_anyio_need_not_find_out_which_loop_runs_under_uvicorn() -> None:
    known: list[str | None] = []
    server = Brightsocket()

    @server.connect("WORK")
    def work(connection: Connection) -> None:
        known.append(current_async_library_cvar.get())
        connection.on("ACTION")(lambda: known.append(current_async_library_cvar.get()))

    token = current_async_library_cvar.set(None)
    try:
        async with behind_uvicorn(server) as bound, identified(bound, "WORK") as peer:
            await peer.event("ACTION")
            await until(lambda: len(known) == 2)
    finally:
        current_async_library_cvar.reset(token)
    assert known == ["asyncio", "asyncio"]


async def test_nothing_of_a_message_is_kept_until_the_next_one_comes() -> None:
    """Among a thousand connections the garbage collector would look at it, which takes a fifth of a message's time."""
    assert await kept_of_an_echo(serving) == {}


@pytest.mark.parametrize("anyio_backend", ["asyncio", "asyncio+uvloop"], indirect=True)
async def test_nothing_of_a_message_under_uvicorn_is_either() -> None:
    assert await kept_of_an_echo(behind_uvicorn) == {}


async def kept_of_an_echo(behind: Any) -> Counter[str]:
    """What some echoes have made that is still there: our objects, and what is called or goes on in our functions."""
    async with behind(api()) as bound, identified(bound, "BY HANDLER") as peer:

        async def echo(times: int) -> None:
            for _ in range(times):
                await peer.send('42["ECHO","hello"]')
                assert await peer.receive() == '42["ECHO","hello"]'
            await anyio.wait_all_tasks_blocked()

        await echo(10)
        gc.collect()
        gc.disable()
        try:
            await echo(5)
            kept = [_described(each) for each in gc.get_objects(generation=0)]
        finally:
            gc.enable()
    return Counter(each for each in kept if each is not None)


def _described(found: object) -> str | None:
    function = getattr(found, "__func__", found)
    code = getattr(function, "__code__", getattr(function, "cr_code", None))
    if isinstance(code, CodeType):
        return code.co_qualname if code.co_filename.startswith(PACKAGE) else None
    kind = type(found)
    return kind.__qualname__ if kind.__module__.startswith("brightsocket_anyio.") else None


async def test_connecting() -> None:
    """To open a session, join, be let into a channel, and leave."""
    async with serving(api()) as bound:

        async def come_and_go(times: int) -> None:
            for _ in range(times):
                async with identified(bound, "BY HANDLER") as peer:
                    await leave(peer)

        await come_and_go(2)
        calls = Calls()
        with each_call(calls.note):
            await come_and_go(20)
    assert calls.count / 20 <= 510, calls.by_function.most_common(80)


async def test_the_answer_to_a_handshake_is_no_write_of_its_own() -> None:
    async with serving(api()) as bound, await anyio.connect_tcp(*bound.addresses[0][:2]) as stream:
        await stream.send(
            b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        data = await stream.receive()
        assert data.startswith(b"HTTP/1.1 101 ")
        assert b"\r\n\r\n\x81" in data
        assert b'0{"sid":"' in data


async def leave(peer: Raw) -> None:
    """As clients do that have been told to: a DISCONNECT, and a Close frame with it."""
    peer.protocol.send_text(b"41")
    peer.protocol.send_close(1000)
    await peer.send()
    assert await peer.expect_end() == 1000


async def be_left(peer: Raw) -> None:
    await peer.send('42["LEAVE"]')
    await peer.drain()


async def fail(peer: Raw) -> None:
    await peer.send("what is this?")
    await peer.drain()


@pytest.mark.parametrize(
    ("end", "channel"),
    [
        *((end, "BY HANDLER") for end in (leave, be_left, fail, Raw.vanish)),
        # not by a handler: it has a task of its own there, and asyncio's refer to themselves when they are cancelled
        *((end, "BY STREAM") for end in (leave, fail, Raw.vanish)),
    ],
)
async def test_nothing_of_a_connection_is_left_to_the_garbage_collector(
    end: Callable[[Raw], Awaitable[None]], channel: str
) -> None:
    """Which would take a tenth of what it costs to connect."""
    server = api()
    async with serving(server) as bound:
        assert await garbage_of(server, bound, end, channel) == {}


@pytest.mark.parametrize("anyio_backend", ["asyncio", "asyncio+uvloop"], indirect=True)
@pytest.mark.parametrize("end", [leave, be_left, fail, Raw.vanish])
async def test_nothing_of_a_connection_under_uvicorn_is_either(end: Callable[[Raw], Awaitable[None]]) -> None:
    server = api()
    async with behind_uvicorn(server) as bound:
        assert await garbage_of(server, bound, end) == {}


async def garbage_of(
    server: Brightsocket, bound: Bound, end: Callable[[Raw], Awaitable[None]], channel: str = "BY HANDLER"
) -> Counter[str]:
    """What is left of some connections and refers to itself: our objects, by class."""
    kinds: list[type[Any]] = []
    for times in (1, 10):
        # the first one is for what is made once
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for _ in range(times):
                async with identified(bound, channel) as peer:
                    for _ in range(3):
                        await peer.send('42["ECHO","hello"]')
                        await peer.receive()
                    await end(peer)
                await until(lambda: server.statistics().sessions_open == 0)
            await anyio.wait_all_tasks_blocked()
            gc.collect()
            kinds = [type(each) for each in gc.garbage]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    return Counter(kind.__name__ for kind in kinds if kind.__module__.startswith("brightsocket_anyio."))


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
            calls = Calls()
            with each_call(calls.note):
                for _ in range(10):
                    await server.pool.emit("NEWS", "hello")
            counts.append(calls.count / 10)
            await server.pool.emit("LAST")
    assert (counts[1] - counts[0]) / 20 <= 14, counts
