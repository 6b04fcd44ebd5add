"""Rule 8: backpressure both ways, and never for ever."""

from __future__ import annotations

import gc
import logging
import tracemalloc
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from brightsocket_anyio import Brightsocket, Connection, ConnectionLost, open_client

from ..faults.poller import polling
from ..support import (
    PATIENCE,
    Raw,
    identified,
    joined,
    serving,
    serving_in_memory,
    until,
)

#: actions in a flood at a slow receiver; `pytest --full` makes floods of 100,000 elsewhere
FLOOD = 5000


class Meter:
    """How much memory Python has taken since."""

    def __init__(self) -> None:
        gc.collect()
        tracemalloc.start()
        self._start, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()

    def stop(self) -> int:
        """The most at any one time, in bytes."""
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak - self._start


async def flood(peer: Raw, action: str, payload: str, count: int) -> None:
    for number in range(count):
        await peer.event(action, number, payload)


# -- in


@pytest.mark.parametrize("eio", [3, 4])
async def test_a_flood_at_a_slow_receiver_takes_little_memory_and_loses_nothing(eio: int) -> None:
    api = Brightsocket()
    received = 0

    @api.connect("A")
    async def channel(connection: Connection) -> None:
        nonlocal received
        async with connection.receive("FLOOD") as stream:
            await connection.accept()
            async for number, _ in stream:
                assert number == received
                received += 1
                for _ in range(3):
                    await anyio.lowlevel.checkpoint()

    async with serving(api) as bound, identified(bound, "A", eio=eio) as peer:
        meter = Meter()
        with anyio.fail_after(110):
            await flood(peer, "FLOOD", "x" * 1000, FLOOD)
            while received < FLOOD:
                await anyio.lowlevel.checkpoint()
        assert meter.stop() < 5_000_000


async def test_a_flood_at_a_handler_that_never_returns_is_held_back_within_bounds() -> None:
    api = Brightsocket(stall_timeout=1000)
    connections: list[Connection] = []

    @api.connect("A")
    async def channel(connection: Connection) -> None:
        connections.append(connection)
        connection.on("FLOOD")(anyio.Event().wait)

    async with serving(api) as bound, identified(bound, "A") as peer:
        meter = Meter()
        sent = 0

        async def send() -> None:
            nonlocal sent
            while True:
                await peer.event("FLOOD", "x" * 1000)
                sent += 1

        async with anyio.create_task_group() as tg:
            tg.start_soon(send)
            await until(lambda: connections[0]._core.inbox.full)
            last = -1
            while last != sent:
                last = sent
                for _ in range(200):
                    await anyio.lowlevel.checkpoint()
            tg.cancel_scope.cancel()
        assert meter.stop() < 5_000_000 + sent * 10, "what the kernel holds is not Python's"


async def test_a_full_receiver_stops_all_namespaces_of_its_session_and_no_other_session() -> None:
    api = Brightsocket(max_buffered_messages=2, stall_timeout=1000)
    release = anyio.Event()

    async def channel(connection: Connection) -> None:
        @connection.on("BLOCK")
        async def block() -> None:
            await release.wait()

        connection.on("ECHO")(lambda value: value)

    api.connect("A", (), channel)
    api.connect("/other", (), channel)
    async with serving(api) as bound, identified(bound, "A") as peer, identified(bound, "A") as neighbour:
        await peer.send("40/other,")
        assert str(await peer.receive()).startswith("40/other,")
        for _ in range(6):
            await peer.event("BLOCK")
        await peer.event("ECHO", 1, id=1)
        await peer.event("ECHO", 2, id=2, namespace="/other")
        await neighbour.event("ECHO", 3, id=3)
        await neighbour.expect("433[3]")
        await anyio.wait_all_tasks_blocked()
        assert not peer.messages
        with anyio.move_on_after(0):
            await peer._read()
        assert not peer.messages
        release.set()
        assert {await peer.receive(), await peer.receive()} == {"431[1]", "43/other,2[2]"}


@pytest.mark.parametrize("eio", [3, 4])
async def test_a_client_that_is_full_holds_back_its_server(eio: Any) -> None:
    api = Brightsocket(stall_timeout=1000)
    sent = 0

    @api.connect("A")
    async def channel(connection: Connection) -> None:
        nonlocal sent
        await connection.accept()
        while True:
            await connection.send("FLOOD", sent, "x" * 10_000)
            sent += 1

    async with serving(api) as bound, open_client(bound.url, eio=eio, stall_timeout=1000) as client:
        connection = await client.connect("A")
        async with connection.receive("FLOOD") as stream:
            await until(lambda: connection._core.inbox.full)
            last = -1
            while last != sent:
                last = sent
                for _ in range(500):
                    await anyio.lowlevel.checkpoint()
            assert sent < 5000
            with anyio.fail_after(PATIENCE):
                for number in range(sent + 100):
                    assert (await stream.receive())[0] == number


@pytest.mark.parametrize("size", [1, 5_000, 20_000])
async def test_a_message_larger_than_a_receivers_bound_arrives(size: int) -> None:
    """Found: it ended the session as overflown, although nothing was full."""
    api = Brightsocket(max_buffered_bytes=1000, max_buffered_messages=4)

    @api.connect("A")
    async def channel(connection: Connection) -> None:
        @connection.on("BIG")
        async def big(number: int, payload: str) -> int:
            await anyio.lowlevel.checkpoint()
            assert len(payload) == size
            return number

    async with serving(api) as bound, identified(bound, "A") as peer:
        for number in range(20):
            await peer.event("BIG", number, "x" * size, id=number)
            if number % 3 == 0:
                await peer.event("BIG", number, "x" * size)
        for number in range(20):
            await peer.expect(f"43{number}[{number}]")


# -- proofs of life and stalls


@pytest.mark.mock_clock
@pytest.mark.parametrize("eio", [3, 4])
async def test_a_server_that_holds_back_reading_goes_on_with_the_heartbeat(eio: int) -> None:
    api = Brightsocket(max_buffered_messages=1, stall_timeout=1000, ping_interval=25, ping_timeout=20)
    release = anyio.Event()

    @api.connect("A")
    async def channel(connection: Connection) -> None:
        @connection.on("BLOCK")
        async def block() -> None:
            await release.wait()

        connection.on("ECHO")(lambda value: value)

    async with serving_in_memory(api) as bound, identified(bound, "A", eio=eio) as peer:
        peer.patience = 1000
        for _ in range(4):
            await peer.event("BLOCK")
        await peer.event("ECHO", 1, id=1)
        start = anyio.current_time()
        # of pings; or of pongs that nobody has asked for, twice in a ping timeout
        beat = 25 if eio == 4 else 10
        for number in range(1, 11):
            # nothing that the peer sends is read, and yet the session lives, far beyond every heartbeat's deadline
            await peer.expect("2" if eio == 4 else "3")
            assert anyio.current_time() - start == pytest.approx(beat * number, abs=1)
        release.set()
        await peer.expect("431[1]")
        assert len(api.pool) == 1


@pytest.mark.mock_clock
@pytest.mark.parametrize("eio", [3, 4])
async def test_a_polling_peer_that_is_held_back_is_told_that_the_server_is_alive(eio: int) -> None:
    """Its POST is not answered, and so it can say nothing."""
    api = Brightsocket(max_buffered_messages=1, stall_timeout=1000, ping_interval=25, ping_timeout=20)
    release = anyio.Event()

    @api.connect("A")
    async def channel(connection: Connection) -> None:
        connection.on("BLOCK")(release.wait)
        connection.on("ECHO")(lambda value: value)

    async with serving_in_memory(api) as bound, polling(bound, eio) as peer, anyio.create_task_group() as tg:
        await peer.identify("A")
        start = anyio.current_time()
        tg.start_soon(peer.post, *['42["BLOCK"]'] * 4)
        await anyio.wait_all_tasks_blocked()
        beat = 25 if eio == 4 else 10
        tg.start_soon(_answer_after, release, 10.4 * beat)
        for number in range(1, 11):
            assert await peer.get() == ["2" if eio == 4 else "3"]
            assert anyio.current_time() - start == pytest.approx(beat * number, abs=1)
        await release.wait()
        await anyio.wait_all_tasks_blocked()
        await peer.post('421["ECHO",1]')
        assert await peer.get() == ["431[1]"]


async def _answer_after(release: anyio.Event, seconds: float) -> None:
    await anyio.sleep(seconds)
    release.set()


@pytest.mark.mock_clock
@pytest.mark.parametrize("eio", [3, 4])
async def test_a_client_that_holds_back_reading_goes_on_with_the_heartbeat(eio: Any) -> None:
    """Both ends are ours: the server would end the session if it heard nothing from the client."""
    api = Brightsocket(ping_interval=25, ping_timeout=20, stall_timeout=10_000)

    @api.connect("A")
    async def channel(connection: Connection) -> None:
        @connection.on("COUNT")
        async def count() -> None:
            for number in range(20):
                await connection.send("NUMBER", number)

    settings = {"max_buffered_messages": 2, "stall_timeout": 10_000}
    async with (
        serving_in_memory(api) as bound,
        bound.http() as http,
        open_client("http://memory", http=http, eio=eio, **settings) as client,  # type: ignore[arg-type]
    ):
        connection = await client.connect("A")
        async with connection.receive("NUMBER") as numbers:
            await connection.send("COUNT")
            await anyio.sleep(500)
            assert connection._core.inbox.full
            assert len(api.pool) == 1
            assert [await numbers.receive() for _ in range(20)] == list(range(20))
        assert client.connection is connection


@pytest.mark.mock_clock
@pytest.mark.parametrize("eio", [3, 4])
@pytest.mark.parametrize("stall_timeout", [None, 70])
async def test_no_reading_for_the_stall_timeout_ends_the_session(stall_timeout: float | None, eio: int) -> None:
    api = Brightsocket(max_buffered_messages=1, stall_timeout=stall_timeout, ping_interval=25, ping_timeout=20)
    cancelled = anyio.Event()

    @api.connect("A")
    async def channel(connection: Connection) -> None:
        @connection.on("BLOCK")
        async def block() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                cancelled.set()

    async with serving_in_memory(api) as bound, identified(bound, "A", eio=eio) as peer:
        peer.patience = 1000
        start = anyio.current_time()
        for _ in range(4):
            await peer.event("BLOCK")
        await peer.drain()
        assert anyio.current_time() - start == pytest.approx(stall_timeout or 45, abs=1)
        assert cancelled.is_set()
        assert len(api.pool) == 0


@pytest.mark.mock_clock
async def test_a_client_whose_receiver_is_full_for_ever_loses_its_connection_as_stalled() -> None:
    api = Brightsocket()

    @api.connect("A")
    async def channel(connection: Connection) -> None:
        @connection.on("COUNT")
        async def count() -> None:
            for number in range(20):
                await connection.send("NUMBER", number)

    async with (
        serving_in_memory(api) as bound,
        bound.http() as http,
        open_client(
            "http://memory", http=http, max_buffered_messages=2, stall_timeout=33, reconnection=False
        ) as client,
    ):
        connection = await client.connect("A")
        start = anyio.current_time()
        async with connection.receive("NUMBER") as numbers:
            await connection.send("COUNT")
            await connection._core.over.wait()
            with pytest.raises(ConnectionLost) as caught:
                await connection.send("X")
            assert caught.value.code == "stalled"
            assert anyio.current_time() - start == pytest.approx(33, abs=1)
            for number in range(4):
                assert await numbers.receive() == number
            with pytest.raises(ConnectionLost):
                await numbers.receive()


@pytest.mark.mock_clock
@pytest.mark.parametrize("eio", [3, 4])
async def test_no_bytes_taken_by_the_peer_for_the_stall_timeout_end_the_session(eio: int) -> None:
    api = Brightsocket(ping_interval=1000, ping_timeout=1000, stall_timeout=30)
    connections: list[Connection] = []
    api.connect("A", (), connections.append)
    async with serving_in_memory(api, capacity=5) as bound, identified(bound, "A", eio=eio):
        [connection] = connections
        start = anyio.current_time()

        async def send_for_ever() -> None:
            while True:
                await connection.send("DATA", "x" * 10_000)

        with pytest.raises(ConnectionLost) as caught:
            await send_for_ever()
        assert caught.value.code == "stalled"
        assert anyio.current_time() - start == pytest.approx(30, abs=1)
        await until(lambda: len(api.pool) == 0)


# -- calls among full receivers


@asynccontextmanager
async def calling(**settings: Any) -> AsyncGenerator[tuple[Connection, Raw, list[Any]]]:
    """A connection whose handler of FLOOD blocks in a call, whose answer it appends to a list."""
    api = Brightsocket(max_buffered_messages=4, stall_timeout=1000, **settings)
    connections: list[Connection] = []
    answers: list[Any] = []

    @api.connect("A")
    async def channel(connection: Connection) -> None:
        connections.append(connection)

        @connection.on("FLOOD")
        async def handle(number: int) -> None:
            answers.append(await connection.call("QUESTION", number))

    async with serving(api) as bound, identified(bound, "A") as peer:
        yield connections[0], peer, answers


async def test_the_answer_to_a_call_arrives_although_the_receivers_are_full() -> None:
    async with calling() as (_, peer, answers):
        # the handler's own buffer and its lane are full, and the answer comes after all that
        for number in range(9):
            await peer.event("FLOOD", number)
        await peer.expect('420["QUESTION",0]')
        await peer.event("FLOOD", 9)
        await peer.send('430["ANSWER 0"]')
        for number in range(1, 10):
            await peer.expect(f'42{number}["QUESTION",{number}]')
            await peer.send(f'43{number}["ANSWER {number}"]')
        await until(lambda: answers == [f"ANSWER {number}" for number in range(10)])


async def test_a_call_that_begins_while_reading_is_held_back_has_its_answer() -> None:
    async with calling() as (connection, peer, _):
        stream = connection.receive("STREAM")
        # its buffer and its lane hold eight, and the overflow as much again as the lane
        for number in range(11):
            await peer.event("STREAM", number)
        await until(lambda: connection._core.inbox.full)
        result: list[Any] = []

        async def call() -> None:
            result.append(await connection.call("QUESTION"))

        async with anyio.create_task_group() as tg:
            tg.start_soon(call)
            await peer.expect('420["QUESTION"]')
            await peer.send('430["yes"]')
        with anyio.fail_after(PATIENCE):
            assert [await stream.receive() for _ in range(11)] == list(range(11))
        assert result == ["yes"]


async def test_a_call_against_a_flood_without_end_ends_the_session_with_that_reason() -> None:
    async with calling() as (connection, peer, answers):
        for number in range(100):
            await peer.event("FLOOD", number)
        with anyio.fail_after(PATIENCE):
            await connection._core.over.wait()
        assert answers == []
        with pytest.raises(ConnectionLost) as caught:
            await connection.send("X")
        assert caught.value.code == "overflow"
        assert "call" in caught.value.reason


async def test_after_its_answer_the_session_holds_back_again() -> None:
    async with calling() as (connection, peer, _):

        @connection.on("BLOCK")
        async def block() -> None:
            await connection.call("ONCE")
            await anyio.Event().wait()

        for _ in range(9):
            await peer.event("BLOCK")
        await peer.expect('420["ONCE"]')
        await peer.send("430[]")
        for _ in range(30):
            await peer.event("BLOCK")
        await anyio.wait_all_tasks_blocked()
        for _ in range(300):
            await anyio.lowlevel.checkpoint()
        assert connection._core.ended is None, "nobody calls, so the flood is held back, and does not overflow"


# -- out


async def test_send_returns_when_the_buffer_has_taken_the_message_and_waits_while_it_is_full() -> None:
    listener_api = Brightsocket(max_buffered_messages=8, stall_timeout=1000)
    connections: list[Connection] = []
    listener_api.connect("A", (), connections.append)
    async with serving_in_memory(listener_api, capacity=3) as bound, identified(bound, "A") as peer:
        [connection] = connections
        taken = 0

        async def send() -> None:
            nonlocal taken
            for number in range(100):
                await connection.send("N", number)
                taken = number + 1

        async with anyio.create_task_group() as tg:
            tg.start_soon(send)
            await anyio.wait_all_tasks_blocked()
            assert 8 <= taken < 40
            for number in range(100):
                await peer.expect(f'42["N",{number}]')
        assert taken == 100


async def test_the_outgoing_buffer_counts_bytes() -> None:
    api = Brightsocket(max_buffered_bytes=50_000, stall_timeout=1000)
    connections: list[Connection] = []
    api.connect("A", (), connections.append)
    async with serving_in_memory(api, capacity=1) as bound, identified(bound, "A") as peer:
        [connection] = connections
        taken = 0

        async def send() -> None:
            nonlocal taken
            for number in range(30):
                await connection.send("N", number, "x" * 10_000)
                taken += 1

        async with anyio.create_task_group() as tg:
            tg.start_soon(send)
            await anyio.wait_all_tasks_blocked()
            assert 4 <= taken <= 20
            for _ in range(30):
                await peer.receive()
        assert taken == 30


async def test_senders_that_wait_are_served_in_the_order_they_came() -> None:
    api = Brightsocket(max_buffered_messages=2, stall_timeout=1000)
    connections: list[Connection] = []
    api.connect("A", (), connections.append)
    async with serving_in_memory(api, capacity=1) as bound, identified(bound, "A") as peer:
        [connection] = connections
        async with anyio.create_task_group() as tg:
            for number in range(30):
                tg.start_soon(connection.send, "N", number)
                await anyio.wait_all_tasks_blocked()
            for number in range(30):
                await peer.expect(f'42["N",{number}]')


async def test_emit_disconnects_a_peer_that_never_reads_and_the_neighbours_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    api = Brightsocket(stall_timeout=1000, close_timeout=1)
    cancelled: list[str] = []

    @api.connect("A")
    async def channel(connection: Connection, identity: dict[str, Any]) -> None:
        connection.on("ECHO")(lambda value: value)
        try:
            await connection.accept()
            await anyio.Event().wait()
        finally:
            cancelled.append(identity["name"])

    async with (
        serving(api) as bound,
        identified(bound, "A", name="deaf"),
        identified(bound, "A", name="neighbour") as neighbour,
    ):
        meter = Meter()
        reader = 0
        with anyio.fail_after(110):
            for number in range(20_000):
                taken = await api.pool.emit("NEWS", number, "x" * 10_000)
                message = str(await neighbour.receive())
                assert message.startswith(f'42["NEWS",{number},')
                reader += 1
                if cancelled:
                    break
            else:
                raise AssertionError("the policy has not been applied")
        assert meter.stop() < 12_000_000
        assert api.pool.dropped == 1
        assert cancelled == ["deaf"]
        await until(lambda: len(api.pool) == 1)
        assert taken == 1
        assert await api.pool.emit("NEWS") == 1
        await neighbour.expect('42["NEWS"]')
    assert [record for record in caplog.records if record.levelno == logging.WARNING]


async def deaf_and_emit(policy: Any, count: int) -> tuple[Brightsocket, list[int]]:
    """Emit at a peer that does not read, and then read what it gets."""
    api = Brightsocket(slow_consumer=policy, max_buffered_messages=10, stall_timeout=1000)
    api.connect("A", (), lambda: None)
    numbers: list[int] = []
    async with serving_in_memory(api, capacity=2) as bound, identified(bound, "A") as peer:
        for number in range(count):
            await api.pool.emit("N", number)
            await anyio.wait_all_tasks_blocked()
        while count - 1 not in numbers and len(numbers) + api.pool.dropped < count:
            numbers.append(int(str(await peer.receive()).removeprefix('42["N",').removesuffix("]")))
        assert len(api.pool) == 1
    return api, numbers


async def test_drop_oldest_keeps_the_latest() -> None:
    api, numbers = await deaf_and_emit("drop-oldest", 50)
    assert numbers == sorted(set(numbers)), "in order, none twice"
    assert numbers[-9:] == list(range(41, 50))
    assert len(numbers) + api.pool.dropped == 50


async def test_drop_newest_keeps_the_first() -> None:
    api, numbers = await deaf_and_emit("drop-newest", 50)
    assert numbers == list(range(len(numbers)))
    assert len(numbers) + api.pool.dropped == 50


async def test_emits_that_are_dropped_do_not_take_others_messages_with_them() -> None:
    api = Brightsocket(slow_consumer="drop-oldest", max_buffered_messages=10, stall_timeout=1000)
    connections: list[Connection] = []
    api.connect("A", (), connections.append)
    async with serving_in_memory(api, capacity=2) as bound, identified(bound, "A") as peer:
        for _ in range(5):
            await api.pool.emit("N")
            await anyio.wait_all_tasks_blocked()
        for number in range(5):
            assert await api.pool.send(connections[0].id, "MINE", number)
        for _ in range(50):
            await api.pool.emit("N")
        mine = [message for message in [str(await peer.receive()) for _ in range(12)] if "MINE" in message]
        assert mine == [f'42["MINE",{number}]' for number in range(5)]


async def test_pool_send_returns_whether_it_was_taken_and_never_waits() -> None:
    api = Brightsocket(max_buffered_messages=5, stall_timeout=1000)
    connections: list[Connection] = []
    api.connect("A", (), connections.append)
    async with serving_in_memory(api, capacity=2) as bound, identified(bound, "A") as peer:
        id = connections[0].id
        outcomes = []
        with anyio.fail_after(PATIENCE):
            for number in range(40):
                outcomes.append(await api.pool.send(id, "N", number))
                await anyio.wait_all_tasks_blocked()
        assert outcomes[0] is True
        assert outcomes[-1] is False
        taken = [number for number, outcome in enumerate(outcomes) if outcome]
        for number in taken:
            await peer.expect(f'42["N",{number}]')
        assert not await api.pool.send("nobody", "N")


async def test_a_peer_that_provokes_answers_and_never_reads_them_is_not_read() -> None:
    """Answers go out whatever the bounds; so whoever asks for them must take them before more is heard of it."""
    api = Brightsocket(max_buffered_messages=8, stall_timeout=1000)
    handled = 0

    @api.connect("A")
    async def channel(connection: Connection) -> None:
        nonlocal handled
        stream = connection.receive("ASK")
        await connection.accept()
        async for _ in stream:
            handled += 1

    async with serving_in_memory(api, capacity=4) as bound, identified(bound, "A") as peer:

        async def ask() -> None:
            for number in range(500):
                await peer.event("ASK", id=number)

        async with anyio.create_task_group() as tg:
            tg.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            assert handled < 100
            for number in range(500):
                await peer.expect(f"43{number}[]")
        await until(lambda: handled == 500)


async def test_a_ping_flood_by_a_peer_that_never_reads_takes_bounded_memory() -> None:
    api = Brightsocket(max_buffered_messages=8, stall_timeout=1000)
    async with serving_in_memory(api, capacity=4) as bound, joined(bound, eio=3) as peer:
        sent = 0

        async def ping() -> None:
            nonlocal sent
            while True:
                await peer.send("2")
                sent += 1

        async with anyio.create_task_group() as tg:
            tg.start_soon(ping)
            await anyio.wait_all_tasks_blocked()
            assert sent < 200
            tg.cancel_scope.cancel()


# -- handlers that block for ever


@pytest.mark.mock_clock
@pytest.mark.parametrize("eio", [3, 4])
async def test_a_handler_that_blocks_for_ever_holds_up_neither_other_actions_nor_heartbeats(eio: int) -> None:
    api = Brightsocket(ping_interval=25, ping_timeout=20)

    @api.connect("A")
    async def channel(connection: Connection) -> None:
        connection.on("BLOCK")(anyio.sleep_forever)
        connection.on("ECHO")(lambda value: value)

        @connection.add_filter
        async def check(action: str, payload: Any, forward: Callable[[], Awaitable[None]]) -> None:
            await forward()

    async with serving_in_memory(api) as bound, identified(bound, "A", eio=eio) as peer:
        peer.patience = 100
        for number in range(20):
            await peer.event("BLOCK")
            await peer.event("ECHO", number, id=number)
            await peer.expect(f"43{number}[{number}]")
            if eio == 4:
                await peer.expect("2")
                await peer.send("3")
            else:
                await anyio.sleep(25)
                await peer.send("2")
                await peer.expect("3")
        assert len(api.pool) == 1
