"""Rule 10: cancellation is safe, and deadlines are the caller's."""

from __future__ import annotations

import inspect
import json
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from brightsocket_anyio import Brightsocket, Client, Connection, Pool, open_client

from ..support import PATIENCE, identified, serving, serving_in_memory, until


async def test_a_send_that_is_cancelled_puts_nothing_on_the_wire() -> None:
    api = Brightsocket()

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await connection.send("CANCELLED")
        await connection.accept()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await connection.send("CANCELLED")
        await connection.send("SENT")

        @connection.on("SEND")
        async def send() -> None:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await connection.send("CANCELLED")
            with anyio.move_on_after(0):
                await connection.send("CANCELLED")
            async with anyio.create_task_group() as tg:
                tg.cancel_scope.cancel()
                tg.start_soon(connection.send, "CANCELLED")
            await connection.send("SENT BY A HANDLER")

    async with serving(api) as bound, identified(bound, "WORK") as peer:
        await peer.expect_event("SENT")
        for _ in range(2):
            await peer.event("SEND")
            await peer.expect_event("SENT BY A HANDLER")


@pytest.mark.parametrize("binary", [False, True])
async def test_cancelled_at_any_moment_a_send_is_whole_or_nothing(binary: bool) -> None:
    """The peer's bytes stop and go, so that sends wait at every place where they can; each is cancelled after n
    checkpoints."""
    api = Brightsocket(max_buffered_messages=2, max_buffered_bytes=10_000)
    done: list[int] = []
    payload: Any = [b"a" * 500, b"b" * 500] if binary else "x" * 1000

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        await connection.accept()
        for number in range(60):
            async with anyio.create_task_group() as tg:
                tg.start_soon(send, connection, number)
                for _ in range(number % 7):
                    await checkpoint()
                tg.cancel_scope.cancel()
        await connection.send("END", done)

    async def send(connection: Connection, number: int) -> None:
        await connection.send("MESSAGE", number, payload)
        done.append(number)

    async with serving_in_memory(api, capacity=1) as listener, identified(listener, "WORK") as peer:
        received = []
        while True:
            message = await peer.receive()
            assert isinstance(message, str)
            if binary and message.startswith("452-"):
                assert [await peer.receive(), await peer.receive()] == payload
                name, number, value = json.loads(message.removeprefix("452-"))
                assert value == [{"_placeholder": True, "num": 0}, {"_placeholder": True, "num": 1}]
            else:
                name, number, *rest = json.loads(message.removeprefix("42"))
                if name == "END":
                    break
                assert rest == [payload]
            received.append(number)
    # in order, none twice, and none missing that was reported as sent
    assert received == sorted(set(received))
    assert set(done) <= set(received)
    assert len(received) >= 5


async def test_a_receive_that_is_cancelled_loses_nothing() -> None:
    api = Brightsocket()

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        received: list[int] = []
        async with connection.receive("NUMBER") as numbers:
            while len(received) < 100:
                with anyio.CancelScope() as scope:
                    if len(received) % 3:
                        scope.cancel()
                    received.append(await numbers.receive())
                if scope.cancelled_caught:
                    received.append(await numbers.receive())
        await connection.send("RECEIVED", received)

    async with serving(api) as bound, identified(bound, "WORK") as peer:
        for number in range(100):
            await peer.event("NUMBER", number)
        await peer.expect_event("RECEIVED", list(range(100)))


async def test_a_receive_that_is_cancelled_just_as_something_arrives_loses_nothing() -> None:
    api = Brightsocket()

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        received: list[int] = []
        async with connection.receive("NUMBER") as numbers:
            await connection.accept()
            for attempt in range(40):

                async def receive() -> None:
                    received.append(await numbers.receive())

                async with anyio.create_task_group() as tg:
                    tg.start_soon(receive)
                    await connection.send("GO")
                    for _ in range(attempt):
                        await checkpoint()
                    tg.cancel_scope.cancel()
            while len(received) < 40:
                received.append(await numbers.receive())
        await connection.send("RECEIVED", received)

    async with serving_in_memory(api) as listener, identified(listener, "WORK") as peer:
        for number in range(40):
            await peer.expect_event("GO")
            await peer.event("NUMBER", number)
        await peer.expect_event("RECEIVED", list(range(40)))


async def test_a_call_that_is_cancelled_leaves_nothing_behind() -> None:
    api = Brightsocket()
    results: list[Any] = []
    connections: list[Connection] = []

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        connections.append(connection)
        await connection.accept()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tg:
                tg.start_soon(connection.call, "LATE")
                async with connection.receive("CANCEL") as stream:
                    await stream.receive()
                scope.cancel()
        results.append(await connection.call("NEXT"))

    async with serving(api) as bound, identified(bound, "WORK") as peer:
        await peer.expect('420["LATE"]')
        await peer.event("CANCEL")
        await peer.expect('421["NEXT"]')
        # the answer that nobody awaits any more is ignored, and its id is not taken for another's
        await peer.send('430["late"]', '431["next"]')
        await until(lambda: results)
        assert results == ["next"]
        assert not connections[0]._core.calling


async def test_deadlines_are_the_callers() -> None:
    api = Brightsocket()

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        await connection.accept()

    async with serving(api) as bound, open_client(bound.url) as client:
        connection = await client.connect("WORK")
        with pytest.raises(TimeoutError):
            with anyio.fail_after(0):
                await connection.call("UNCLAIMED")
        with anyio.move_on_after(0) as scope:
            async with connection.receive("NEVER") as stream:
                await stream.receive()
        assert scope.cancelled_caught
        # none of it has hurt the connection
        assert client.connection is connection
        await connection.send("ANYTHING")


@pytest.mark.mock_clock
async def test_a_call_waits_as_long_as_its_caller_wants() -> None:
    api = Brightsocket()

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        @connection.on("SLOW")
        async def slow() -> str:
            await anyio.sleep(10_000)
            return "done"

    async with serving_in_memory(api) as listener, listener.http() as http:
        async with open_client("http://memory", http=http) as client:
            connection = await client.connect("WORK")
            with anyio.move_on_after(9_999) as scope:
                await connection.call("SLOW")
            assert scope.cancelled_caught
        async with open_client("http://memory", http=http) as client:
            connection = await client.connect("WORK")
            with anyio.fail_after(10_001):
                assert await connection.call("SLOW") == "done"


async def test_a_connect_that_is_cancelled_leaves_the_client_on_no_channel() -> None:
    api = Brightsocket(identify_timeout=PATIENCE)
    entered = anyio.Event()
    left = anyio.Event()

    @api.connect("SLOW")
    async def slow() -> None:
        entered.set()
        try:
            await anyio.sleep_forever()
        finally:
            left.set()

    api.connect("OTHER", [], lambda: None)
    async with serving(api) as bound, open_client(bound.url) as client:
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tg:
                tg.start_soon(client.connect, "SLOW")
                await entered.wait()
                tg.cancel_scope.cancel()
            assert client.connection is None
            await left.wait()
            assert (await client.connect("OTHER")).channel == "OTHER"


@pytest.mark.parametrize("owner", [Client, Connection, Pool, Brightsocket])
def test_nothing_takes_a_timeout(owner: type) -> None:
    for name, member in inspect.getmembers(owner, inspect.isfunction):
        if name.startswith("_"):
            continue
        names = inspect.signature(member).parameters
        assert not [each for each in names if "timeout" in each or "deadline" in each], name
