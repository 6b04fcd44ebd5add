"""Rule 6: an action is never lost between setup steps."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from brightsocket_anyio import Brightsocket, Connection, open_client

from ..support import PATIENCE, Raw, identified, serving, until


@asynccontextmanager
async def connected(**settings: Any) -> AsyncGenerator[tuple[Connection, Raw]]:
    """A server's connection, on a channel whose function has returned, and its raw peer."""
    api = Brightsocket(**settings)
    connections: list[Connection] = []
    api.connect("A", (), connections.append)
    async with serving(api) as bound, identified(bound, "A") as peer:
        yield connections[0], peer


async def arrived(peer: Raw, connection: Connection) -> None:
    """Everything that the peer has sent so far has arrived: an action after it has been handled."""
    stream = connection.receive("LAST OF ALL")
    await peer.event("LAST OF ALL")
    with anyio.fail_after(PATIENCE):
        await stream.receive()
    await stream.aclose()


async def take(connection: Connection, action: str, count: int) -> list[Any]:
    async with connection.receive(action) as stream:
        with anyio.fail_after(PATIENCE):
            return [await stream.receive() for _ in range(count)]


async def test_an_action_that_no_receiver_takes_waits_for_one() -> None:
    async with connected() as (connection, peer):
        for number in range(3):
            await peer.event("A", number)
            await peer.event("B", -number)
        await arrived(peer, connection)
        assert await take(connection, "B", 3) == [0, -1, -2]
        handled: list[int] = []
        connection.on("A")(handled.append)
        await until(lambda: handled == [0, 1, 2])


async def test_the_oldest_is_dropped_counted_and_logged_on_overflow(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "brightsocket_anyio"):
        async with connected(max_buffered_messages=5) as (connection, peer):
            for number in range(8):
                await peer.event("A", number)
            await arrived(peer, connection)
            assert connection.dropped == 3
            assert await take(connection, "A", 5) == [3, 4, 5, 6, 7]
            assert len([record for record in caplog.records if "dropped" in record.getMessage()]) == 3
            assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


async def test_the_inbox_is_bounded_in_bytes_over_all_actions() -> None:
    async with connected(max_buffered_bytes=10_000) as (connection, peer):
        for number in range(20):
            await peer.event(f"ACTION {number}", "x" * 1000)
        await arrived(peer, connection)
        assert 10 <= connection.dropped <= 12
        assert len(await take(connection, "ACTION 19", 1)) == 1


async def test_what_the_last_receiver_leaves_unread_goes_back_in_order() -> None:
    async with connected() as (connection, peer):
        stream = connection.receive("A")
        for number in range(6):
            await peer.event("A", number)
        await arrived(peer, connection)
        assert [await stream.receive() for _ in range(2)] == [0, 1]
        await stream.aclose()
        await peer.event("A", 6)
        await arrived(peer, connection)
        assert await take(connection, "A", 5) == [2, 3, 4, 5, 6]


async def test_one_by_one_through_a_stream_each_none_is_lost_or_seen_twice() -> None:
    async with connected() as (connection, peer):
        for number in range(20):
            await peer.event("A", number)
        assert [(await take(connection, "A", 1))[0] for _ in range(20)] == list(range(20))


async def test_what_a_cancelled_receiver_had_not_taken_is_not_lost() -> None:
    async with connected() as (connection, peer):
        received: list[int] = []

        async def receive(scope: anyio.CancelScope) -> None:
            with scope:
                async with connection.receive("A") as stream:
                    received.append(await stream.receive())

        for number in range(40):
            await peer.event("A", number)
        await arrived(peer, connection)
        for steps in range(100):
            scope = anyio.CancelScope()
            async with anyio.create_task_group() as tg:
                tg.start_soon(receive, scope)
                for _ in range(steps % 5):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()
            if len(received) == 40:
                break
        else:
            received += await take(connection, "A", 40 - len(received))
        assert received == list(range(40))


async def test_a_stream_that_is_full_holds_nothing_back_once_it_is_closed() -> None:
    """Found: the session went on waiting for room in a stream that had been closed."""
    async with connected(max_buffered_messages=4, stall_timeout=1000) as (connection, peer):
        stream = connection.receive("A")
        for number in range(20):
            await peer.event("A", number)
        await until(lambda: connection._core.inbox.full)
        await stream.aclose()
        await arrived(peer, connection)
        assert connection.dropped == 16
        assert await take(connection, "A", 4) == [16, 17, 18, 19]


async def test_a_filter_sees_an_action_that_waited_when_it_goes_to_its_receiver() -> None:
    async with connected() as (connection, peer):
        filtered: list[Any] = []

        @connection.add_filter
        async def count(action: str, payload: Any, forward: Callable[[], Awaitable[None]]) -> None:
            filtered.append(payload)
            await forward()

        await peer.event("A", 1)
        await arrived(peer, connection)
        assert filtered == [None]
        assert await take(connection, "A", 1) == [1]
        assert filtered == [None, 1]


async def test_what_filters_let_pass_and_the_receiver_left_is_not_filtered_again() -> None:
    async with connected() as (connection, peer):
        filtered: list[Any] = []

        @connection.add_filter
        async def count(action: str, payload: Any, forward: Callable[[], Awaitable[None]]) -> None:
            filtered.append(payload)
            await forward()

        stream = connection.receive("A")
        for number in range(3):
            await peer.event("A", number)
        await until(lambda: filtered == [0, 1, 2])
        await stream.aclose()
        assert await take(connection, "A", 3) == [0, 1, 2]
        assert filtered == [0, 1, 2]


async def test_a_client_loses_nothing_that_the_server_sends_before_its_receivers_are_there() -> None:
    api = Brightsocket()

    @api.connect("A")
    async def channel(connection: Connection) -> None:
        for number in range(10):
            await connection.send("NUMBER", number)
            await connection.send("OTHER", number)

    async with serving(api) as bound, open_client(bound.url) as client:
        connection = await client.connect("A")
        assert await take(connection, "NUMBER", 10) == list(range(10))
        assert await take(connection, "OTHER", 10) == list(range(10))


@pytest.mark.parametrize("count", [10, 256, 300, 512])
async def test_what_has_arrived_is_received_after_the_server_has_ended_the_connection(count: int) -> None:
    """Found: what was beyond a stream's own buffer was lost."""
    api = Brightsocket()

    @api.connect("A")
    async def channel(connection: Connection) -> None:
        await connection.accept()
        for number in range(count):
            await connection.send("NUMBER", number)
        await connection.aclose()

    async with serving(api) as bound, open_client(bound.url) as client:
        connection = await client.connect("A")
        received = []
        async with connection.receive("NUMBER") as numbers:
            await until(lambda: client.connection is None or connection._core.inbox.full)
            with anyio.fail_after(PATIENCE):
                while True:
                    try:
                        received.append(await numbers.receive())
                    except anyio.EndOfStream:
                        break
        assert received == list(range(count))


async def test_what_has_arrived_is_received_by_who_comes_after_the_end() -> None:
    """Found: only handlers of the client could have what the server sent just before it ended the connection."""
    api = Brightsocket()

    @api.connect("A")
    async def channel(connection: Connection) -> None:
        await connection.send("LAST_WORDS", 1)
        await connection.send("LAST_WORDS", 2)
        await connection.aclose()

    async with serving(api) as bound, open_client(bound.url) as client:
        connection = await client.connect("A")
        await until(lambda: client.connection is None)
        assert await take(connection, "LAST_WORDS", 2) == [1, 2]
        with pytest.raises(anyio.EndOfStream):
            connection.receive("LAST_WORDS")
        with pytest.raises(anyio.EndOfStream):
            connection.receive("OTHER")


async def test_nothing_is_received_from_a_connection_that_this_side_has_closed() -> None:
    async with connected() as (connection, peer):
        await peer.event("A", 1)
        await arrived(peer, connection)
        await connection.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            connection.receive("A")
