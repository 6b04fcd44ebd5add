"""Rule 7: order, and how many handlers run."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from brightsocket_anyio import Brightsocket, ConfigurationError, Connection, open_client

from ..support import PATIENCE, Raw, identified, serving, until


@asynccontextmanager
async def connected(*, eio: int = 4, **settings: Any) -> AsyncGenerator[tuple[Connection, Raw]]:
    """A server's connection, on a channel whose function has returned, and its raw peer."""
    api = Brightsocket(**settings)
    connections: list[Connection] = []
    api.connect("A", (), connections.append)
    async with serving(api) as bound, identified(bound, "A", eio=eio) as peer:
        yield connections[0], peer


def workers() -> int:
    """The connection's own task works, too."""
    names = ("brightsocket worker", "connection on A")
    return sum(task.name in names for task in anyio.get_running_tasks())


@pytest.mark.parametrize("eio", [3, 4])
async def test_receivers_see_payloads_in_the_order_sent(eio: int) -> None:
    async with connected(eio=eio) as (connection, peer):
        handled: list[int] = []
        slowly: list[int] = []
        streamed: list[int] = []
        dice = random.Random(7)

        connection.on("A")(handled.append)

        @connection.on("A")
        async def slow(value: int) -> None:
            for _ in range(dice.randrange(5)):
                await anyio.lowlevel.checkpoint()
            slowly.append(value)

        async with connection.receive("A") as stream:
            for number in range(200):
                await peer.event("A", number)
            with anyio.fail_after(PATIENCE):
                while len(streamed) < 200:
                    streamed.append(await stream.receive())
        await until(lambda: len(slowly) == 200)
        assert handled == slowly == streamed == list(range(200))


async def test_binary_and_text_keep_their_order() -> None:
    async with connected() as (connection, peer):
        got: list[Any] = []
        connection.on("A")(got.append)
        for number in range(50):
            if number % 2:
                await peer.send('451-["A",{"_placeholder":true,"num":0}]', bytes([number]))
            else:
                await peer.event("A", number)
        await until(lambda: len(got) == 50)
        assert got == [bytes([number]) if number % 2 else number for number in range(50)]


@pytest.mark.parametrize("eio", [3, 4])
async def test_a_client_sees_payloads_in_the_order_sent(eio: Any) -> None:
    api = Brightsocket()

    @api.connect("A")
    async def channel(connection: Connection) -> None:
        await connection.accept()
        for number in range(1000):
            await connection.send("NUMBER", number)

    async with serving(api) as bound, open_client(bound.url, eio=eio) as client:
        handled: list[int] = []
        client.on("NUMBER")(handled.append)
        await client.connect("A")
        await until(lambda: len(handled) == 1000)
        assert handled == list(range(1000))


async def test_every_receiver_of_an_action_gets_it() -> None:
    async with connected() as (connection, peer):
        got: dict[str, list[int]] = {"first": [], "second": []}
        for name in got:
            connection.on("A")(got[name].append)
        async with connection.receive("A") as one, connection.receive("A") as two:
            for number in range(5):
                await peer.event("A", number)
            for stream in (one, two):
                with anyio.fail_after(PATIENCE):
                    assert [await stream.receive() for _ in range(5)] == list(range(5))
        await until(lambda: got == {"first": list(range(5)), "second": list(range(5))})


async def test_actions_are_independent_while_no_buffer_is_full() -> None:
    async with connected() as (connection, peer):
        connection.on("BLOCKED")(anyio.Event().wait)
        connection.on("ECHO")(lambda value: value)
        for number in range(50):
            await peer.event("BLOCKED")
            await peer.event("ECHO", number, id=number)
            await peer.expect(f"43{number}[{number}]")


async def test_a_blocked_filter_of_one_action_does_not_hold_back_another() -> None:
    async with connected() as (connection, peer):

        @connection.add_filter
        async def block(action: str, payload: Any, forward: Callable[[], Awaitable[None]]) -> None:
            if action == "BLOCKED":
                await anyio.Event().wait()
            await forward()

        connection.on("BLOCKED")(lambda: None)
        connection.on("ECHO")(lambda value: value)
        for number in range(50):
            await peer.event("BLOCKED")
            await peer.event("ECHO", number, id=number)
            await peer.expect(f"43{number}[{number}]")


async def test_a_handler_takes_one_payload_at_a_time_by_default() -> None:
    async with connected() as (connection, peer):
        at_once = most = handled = 0

        @connection.on("A")
        async def handle() -> None:
            nonlocal at_once, most, handled
            at_once += 1
            most = max(most, at_once)
            await anyio.lowlevel.checkpoint()
            at_once -= 1
            handled += 1

        for _ in range(50):
            await peer.event("A")
        await until(lambda: handled == 50)
        assert most == 1


@pytest.mark.parametrize("limit", [1, 2, 7])
async def test_limit_asks_for_concurrency_within_one_action(limit: int) -> None:
    async with connected() as (connection, peer):
        started: list[int] = []
        release = anyio.Event()

        @connection.on("A", limit=limit)
        async def handle(value: int) -> None:
            started.append(value)
            await release.wait()

        for number in range(20):
            await peer.event("A", number)
        await until(lambda: len(started) == limit)
        await anyio.wait_all_tasks_blocked()
        assert started == list(range(limit))
        release.set()
        await until(lambda: len(started) == 20)
        assert started == list(range(20))


@pytest.mark.parametrize("limit", [0, -1])
async def test_a_limit_is_at_least_one(limit: int) -> None:
    async with connected() as (connection, _):
        with pytest.raises(ConfigurationError, match="limit"):
            connection.on("A", limit=limit)(lambda: None)


async def test_no_worker_is_parked_for_each_handler() -> None:
    async with connected() as (connection, peer):
        for number in range(100):
            connection.on(f"ACTION {number}")(lambda value: value)
        for number in range(100):
            await peer.event(f"ACTION {number}", number, id=number)
            await peer.expect(f"43{number}[{number}]")
        await anyio.wait_all_tasks_blocked()
        assert workers() == 1


async def test_there_are_more_workers_only_while_handlers_block() -> None:
    async with connected() as (connection, peer):
        started = 0
        release = anyio.Event()

        def define(number: int) -> None:
            @connection.on(f"ACTION {number}")
            async def block() -> None:
                nonlocal started
                started += 1
                await release.wait()

        for number in range(10):
            define(number)
            await peer.event(f"ACTION {number}")
        await until(lambda: started == 10)
        await anyio.wait_all_tasks_blocked()
        assert workers() in (10, 11)
        release.set()
        await anyio.wait_all_tasks_blocked()
        assert workers() == 1


async def test_handlers_of_one_action_run_beside_each_other() -> None:
    async with connected() as (connection, peer):
        seen: list[str] = []
        met = anyio.Event()

        @connection.on("A")
        async def first() -> None:
            seen.append("first")
            await met.wait()

        @connection.on("A")
        async def second() -> None:
            seen.append("second")
            met.set()

        await peer.event("A")
        await until(lambda: seen == ["first", "second"])
        with anyio.fail_after(PATIENCE):
            await met.wait()


async def test_a_handler_added_by_a_handler_gets_what_comes_after() -> None:
    async with connected() as (connection, peer):
        later: list[int] = []

        @connection.on("A")
        async def first(value: int) -> None:
            if value == 0:
                connection.on("A")(later.append)

        await peer.event("A", 0)
        await until(lambda: connection._core.inbox._lanes["A"].receivers[1:])
        await peer.event("A", 1)
        await until(lambda: later == [1])
