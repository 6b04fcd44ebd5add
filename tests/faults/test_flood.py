"""Peers that send faster than a handler works, or take nothing: memory is bounded, and nobody else notices."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from statistics import median
from typing import Any

import anyio
import httpx
import pytest

from brightsocket_anyio import Connection, open_client

from ..streams import TEXT, frame
from ..support import PATIENCE, Raw, identified
from .process import Running, running

LOOPS = ("asyncio", "asyncio+uvloop", "trio")
each_door = pytest.mark.parametrize("door", ["embedded", "asgi"])
#: by which the server's memory may grow, whatever is thrown at it
GROWTH = 5_000_000
#: messages of 10 kB that a session's outgoing buffer holds
BUFFERED = 1_000_000 // 10_100


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> str:
    """The loop of the server's process; the test's own is of no importance."""
    loop: str = request.param
    return loop


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def flood_size(request: pytest.FixtureRequest) -> int:
    return 100_000 if request.config.getoption("--full") else 15_000


@pytest.fixture
def emits(request: pytest.FixtureRequest) -> int:
    return 20_000 if request.config.getoption("--full") else 2_000


@asynccontextmanager
async def controlled(program: Running) -> AsyncGenerator[Connection]:
    async with open_client(program.bound.url) as client:
        yield await client.connect("CONTROL")


async def state_where(control: Connection, **wanted: Any) -> dict[str, Any]:
    """Ask the program for its state until it is as wanted."""
    with anyio.fail_after(90):
        while True:
            state: dict[str, Any] = await control.call("STATE")
            if all(state[name] == value for name, value in wanted.items()):
                return state


def work(number: int) -> str:
    """An action of 1 KB, as an Engine.IO 4 message."""
    head = f'42["WORK",{number},"'
    return head + "x" * (1000 - len(head) - 2) + '"]'


@pytest.mark.timeout(300)
@each_door
async def test_a_flood_at_a_slow_handler_over_websocket(loop: str, door: str, flood_size: int) -> None:
    async with (
        running(loop, door) as program,
        controlled(program) as control,
        identified(program.bound, "FLOODED") as peer,
    ):
        # the first round warms the process up: what it costs once is no growth
        await _flood_websocket(peer, control, 0, 1000)
        program.reset_peak()
        before = program.memory()
        await _flood_websocket(peer, control, 1000, 1000 + flood_size)
        growth = program.peak_memory() - before
        state = await control.call("STATE")
        print(f"{loop}, {door}: {flood_size} actions, grown by {growth / 1e6:.2f} MB")
        assert state["gaps"] == 0
        assert growth < GROWTH


async def _flood_websocket(peer: Raw, control: Connection, first: int, end: int) -> None:
    async def send() -> None:
        for start in range(first, end, 50):
            numbers = range(start, min(start + 50, end))
            await peer.stream.send(b"".join(frame(TEXT, work(number).encode()) for number in numbers))

    async with anyio.create_task_group() as tg:
        tg.start_soon(send)
        if first:
            # the gate is open by now: the handler works, one action after the other, slower than we send
            await state_where(control, handled=end)
        else:
            # the handler blocks, and so the server stops reading
            await state_where(control, full=True)
            await control.call("OPEN_GATE")
            await state_where(control, handled=end)


@pytest.mark.timeout(300)
@each_door
async def test_a_flood_at_a_blocked_handler_over_websocket(loop: str, door: str, flood_size: int) -> None:
    """The handler does nothing at all while the peer pours in what it can; then everything arrives, in order."""
    async with running(loop, door) as program, controlled(program) as control:
        async with identified(program.bound, "FLOODED") as peer:
            await _flood_websocket(peer, control, 0, 1000)
        await state_where(control, members=1)
        async with identified(program.bound, "FLOODED") as peer:
            program.reset_peak()
            before = program.memory()
            await _flood_websocket(peer, control, 0, flood_size)
            growth = program.peak_memory() - before
            state = await control.call("STATE")
            print(f"{loop}, {door}: {flood_size} actions at a blocked handler, grown by {growth / 1e6:.2f} MB")
            assert state["gaps"] == 0
            assert growth < GROWTH


@pytest.mark.timeout(300)
@each_door
async def test_a_flood_at_a_slow_handler_over_polling(loop: str, door: str, flood_size: int) -> None:
    async with (
        running(loop, door) as program,
        controlled(program) as control,
        httpx.AsyncClient(base_url=program.bound.url, timeout=90) as http,
    ):
        query = await polling_on(http, "FLOODED")
        await control.call("OPEN_GATE")
        await _flood_polling(http, query, control, 0, 1000)
        program.reset_peak()
        before = program.memory()
        await _flood_polling(http, query, control, 1000, 1000 + flood_size)
        growth = program.peak_memory() - before
        state = await control.call("STATE")
        print(f"{loop}, {door}: {flood_size} actions by polling, grown by {growth / 1e6:.2f} MB")
        assert state["gaps"] == 0
        assert growth < GROWTH


async def polling_on(http: httpx.AsyncClient, channel: str) -> dict[str, str]:
    """Join a channel by polling; returns the query of further requests."""
    query = {"EIO": "4", "transport": "polling"}
    opened = (await http.get("/socket.io/", params=query)).text
    query["sid"] = httpx.Response(200, text=opened[1:]).json()["sid"]
    identify = f'40\x1e42["BRIGHTSOCKET:IDENTIFY",{{"BRIGHTSOCKET:CHANNEL":"{channel}"}}]'
    assert (await http.post("/socket.io/", params=query, content=identify)).text == "ok"
    answers = ""
    while "IDENTIFIED" not in answers:
        answers += (await http.get("/socket.io/", params=query)).text
    return query


async def _flood_polling(
    http: httpx.AsyncClient, query: dict[str, str], control: Connection, first: int, end: int
) -> None:
    for start in range(first, end, 200):
        body = "\x1e".join(work(number) for number in range(start, min(start + 200, end)))
        assert (await http.post("/socket.io/", params=query, content=body)).text == "ok"
    await state_where(control, handled=end)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("channel", "policy"),
    [("LISTEN", "disconnect"), ("LISTEN_OLDEST", "drop-oldest"), ("LISTEN_NEWEST", "drop-newest")],
)
@each_door
async def test_a_peer_that_never_reads(loop: str, door: str, channel: str, policy: str, emits: int) -> None:
    """Everyone else gets every message, at once; what happens to that peer is the policy's outcome."""
    burst = 50
    async with (
        running(loop, door) as program,
        controlled(program) as control,
        identified(program.bound, "LISTEN") as neighbour,
        identified(program.bound, channel) as idle,
        control.receive("NEWS") as news,
    ):
        numbers: list[int] = []
        neighbours: list[int] = []
        # warm up, with everyone reading
        await control.call("EMIT", burst, 10_000)
        for peer in (neighbour, idle):
            await _numbers(peer, burst)
        numbers += [(await news.receive())[0] for _ in range(burst)]
        usual = [await _latency(control) for _ in range(20)]
        latencies: list[float] = []
        program.reset_peak()
        before = program.memory()
        for _ in range(emits // burst):
            async with anyio.create_task_group() as tg:
                tg.start_soon(_collect, neighbour, burst, neighbours)
                await control.call("EMIT", burst, 10_000)
                numbers += [(await news.receive())[0] for _ in range(burst)]
            latencies.append(await _latency(control))
        # nobody waits for that peer; what a loaded machine makes of it is another matter
        assert median(latencies) < 10 * median(usual) + 0.05
        growth = program.peak_memory() - before
        total = burst + emits
        assert numbers == list(range(total))
        assert neighbours == list(range(burst, total))
        state = await control.call("STATE")
        print(f"{loop}, {door}, {policy}: {emits} emits, {state['dropped']} dropped, grown by {growth / 1e6:.2f} MB")
        assert growth < GROWTH
        assert state["dropped"] > 0
        if policy == "disconnect":
            assert state["members"] == 2
            assert state["dropped"] == 1
            left = await _to_the_end(idle)
            assert left == list(range(burst, burst + len(left)))
            return
        assert state["members"] == 3
        got = await _numbers(idle, emits - state["dropped"])
        assert got == sorted(set(got))
        if policy == "drop-oldest":
            assert got[-1] == total - 1
        else:
            # what came first was kept: as much as the session's buffer holds at least; later the system may take more
            assert got[:BUFFERED] == list(range(burst, burst + BUFFERED))


async def _latency(control: Connection) -> float:
    start = anyio.current_time()
    assert await control.call("ECHO", 1) == 1
    return anyio.current_time() - start


@pytest.mark.timeout(300)
async def test_a_peer_that_does_not_poll(loop: str, emits: int) -> None:
    async with (
        running(loop) as program,
        controlled(program) as control,
        httpx.AsyncClient(base_url=program.bound.url, timeout=90) as http,
        control.receive("NEWS") as news,
    ):
        before = 0
        for number in range(emits // 50):
            if number == 1:
                # the first round has warmed the process up
                await polling_on(http, "LISTEN")
                program.reset_peak()
                before = program.memory()
            await control.call("EMIT", 50, 10_000)
            assert [(await news.receive())[0] for _ in range(50)] == list(range(50 * number, 50 * (number + 1)))
        assert program.peak_memory() - before < GROWTH
        state = await control.call("STATE")
        assert (state["members"], state["dropped"]) == (1, 1)


async def _numbers(peer: Raw, count: int) -> list[int]:
    numbers: list[int] = []
    await _collect(peer, count, numbers)
    return numbers


async def _collect(peer: Raw, count: int, numbers: list[int]) -> None:
    for _ in range(count):
        message = await peer.receive()
        while message == "2":
            await peer.send("3")
            message = await peer.receive()
        numbers.append(_number(message))


async def _to_the_end(peer: Raw) -> list[int]:
    with anyio.fail_after(PATIENCE):
        return [_number(message) for message in await peer.drain() if str(message).startswith('42["NEWS"')]


def _number(message: str | bytes) -> int:
    assert isinstance(message, str)
    head = '42["NEWS",'
    assert message.startswith(head), message[:100]
    return int(message[len(head) : message.index(",", len(head))])
