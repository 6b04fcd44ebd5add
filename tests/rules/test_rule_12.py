"""Rule 12: a filter sees an action once, in the worker that will run the handlers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from brightsocket_anyio import Brightsocket, Connection, open_client

from ..support import PATIENCE, identified, serving, until

Forward = Callable[..., Awaitable[None]]


async def test_once_however_many_receivers_there_are() -> None:
    api = Brightsocket()
    filtered: list[Any] = []
    handled: list[Any] = []

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        @connection.add_filter
        async def check(action: str, payload: Any, forward: Forward) -> None:
            filtered.append((action, payload))
            await forward()

        for number in range(3):
            connection.on("ACTION")(lambda value, number=number: handled.append((number, value)))
        async with connection.receive("ACTION") as first, connection.receive("ACTION") as second:
            async for value in first:
                assert await second.receive() == value
                await connection.send("SEEN", value)

    async with serving(api) as bound, identified(bound, "WORK") as peer:
        for value in range(3):
            await peer.event("ACTION", value)
            await peer.expect_event("SEEN", value)
        await until(lambda: len(handled) == 9)
    assert filtered == [("ACTION", 0), ("ACTION", 1), ("ACTION", 2)]
    assert sorted(handled) == [(number, value) for number in range(3) for value in range(3)]


async def test_filters_run_in_the_order_they_were_added_in_every_channel_that_is_extended() -> None:
    api = Brightsocket()
    seen: list[str] = []

    def define(name: str, extends: list[str]) -> None:
        @api.connect(name, extends)
        async def function(connection: Connection) -> None:
            for number in (1, 2):
                connection.add_filter(noting(f"{name}{number}"))

    def noting(mark: str) -> Callable[[str, Any, Forward], Awaitable[None]]:
        async def note(action: str, payload: Any, forward: Forward) -> None:
            seen.append(f"+{mark}")
            await forward()
            seen.append(f"-{mark}")

        return note

    define("BASE", [])
    define("MIDDLE", ["BASE"])

    @api.connect("TOP", ["MIDDLE"])
    async def top(connection: Connection) -> None:
        connection.on("ACTION")(lambda: seen.append("handler"))

    async with serving(api) as bound, identified(bound, "TOP") as peer:
        await peer.event("ACTION", id=0)
        await peer.expect("430[null]")
        await until(lambda: len(seen) == 9)
    marks = ["BASE1", "BASE2", "MIDDLE1", "MIDDLE2"]
    assert [each for each in seen if each != "handler"] == [
        *[f"+{mark}" for mark in marks],
        *[f"-{mark}" for mark in reversed(marks)],
    ]


async def test_not_forwarded_nobody_sees_it() -> None:
    api = Brightsocket()
    handled: list[Any] = []

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        @connection.add_filter
        async def check(action: str, payload: Any, forward: Forward) -> None:
            if payload != "bad":
                await forward()
            else:
                await connection.send("UNAUTHORIZED")

        connection.on("ACTION")(handled.append)

        @connection.on("OTHER")
        async def other() -> None: ...

        async with connection.receive("ACTION") as stream:
            async for value in stream:
                await connection.send("SEEN", value)

    async with serving(api) as bound, identified(bound, "WORK") as peer:
        await peer.event("ACTION", "bad", id=0)
        await peer.expect_event("UNAUTHORIZED")
        await peer.event("ACTION", "good")
        await peer.expect_event("SEEN", "good")
        await until(lambda: handled)
    assert handled == ["good"]


async def test_what_is_filtered_out_leaves_nothing_in_the_inbox() -> None:
    api = Brightsocket()

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        @connection.add_filter
        async def check(action: str, payload: Any, forward: Forward) -> None:
            if (action == "LATE" and payload == 2) or action == "GO":
                await forward()

        async with connection.receive("LATE"), connection.receive("GO") as go:
            await go.receive()
        async with connection.receive("LATE") as late:
            await connection.send("LATE", await late.receive())

    async with serving(api) as bound, identified(bound, "WORK") as peer:
        for number in (1, 2):
            await peer.event("LATE", number)
        await peer.event("GO")
        await peer.expect_event("LATE", 2)


async def test_forward_another_payload() -> None:
    api = Brightsocket()
    seen: list[Any] = []

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        @connection.add_filter
        async def one(action: str, payload: Any, forward: Forward) -> None:
            seen.append(payload)
            await forward(payload + 1)

        @connection.add_filter
        async def two(action: str, payload: Any, forward: Forward) -> None:
            seen.append(payload)
            await forward(payload, "second")

        @connection.on("ACTION")
        def action(*values: Any) -> Any:
            return values

    async with serving(api) as bound, identified(bound, "WORK") as peer:
        await peer.event("ACTION", 1, id=0)
        await peer.expect('430[2,"second"]')
    assert seen == [1, 2]


async def test_a_filter_sees_what_the_wire_brought() -> None:
    api = Brightsocket()
    seen: list[Any] = []

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        @connection.add_filter
        async def check(action: str, payload: Any, forward: Forward) -> None:
            seen.append((action, payload))
            await forward()

        connection.on("ACTION")(lambda: None)

    async with serving(api) as bound, identified(bound, "WORK") as peer:
        values: list[tuple[Any, ...]] = [(), (0,), (None,), (False,), ([],), (1, 2), ({"BRIGHTSOCKET:CHANNEL": "x"},)]
        for args in values:
            await peer.event("ACTION", *args, id=1)
            await peer.expect("431[null]")
    assert [payload for _, payload in seen] == [None, 0, None, False, [], (1, 2), {"BRIGHTSOCKET:CHANNEL": "x"}]


async def test_forward_at_most_once() -> None:
    api = Brightsocket()
    handled: list[Any] = []
    errors: list[str] = []

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        @connection.add_filter
        async def twice(action: str, payload: Any, forward: Forward) -> None:
            await forward()
            with pytest.raises(RuntimeError) as caught:
                await forward()
            errors.append(str(caught.value))

        connection.on("ACTION")(handled.append)

    async with serving(api) as bound, identified(bound, "WORK") as peer:
        await peer.event("ACTION", 1, id=0)
        await peer.expect("430[null]")
        await until(lambda: errors)
    assert handled == [1]
    assert "once" in errors[0]


async def test_a_filter_may_send_and_call() -> None:
    api = Brightsocket()
    handled: list[Any] = []

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        @connection.add_filter
        async def ask(action: str, payload: Any, forward: Forward) -> None:
            await connection.send("ASKING", action)
            await forward(await connection.call("ASK", payload))

        connection.on("ACTION")(handled.append)

    async with serving(api) as bound, open_client(bound.url) as client:
        asking: list[str] = []
        client.on("ASKING")(asking.append)
        client.on("ASK")(lambda value: value * 2)
        connection = await client.connect("WORK")
        with anyio.fail_after(PATIENCE):
            assert await connection.call("ACTION", 21) is None
        assert handled == [42]
        assert asking == ["ACTION"]


async def test_forward_returns_when_the_receivers_hold_it() -> None:
    """With a receiver that is full, forward() waits, and so the action after it is not filtered yet."""
    api = Brightsocket(max_buffered_messages=2)
    begun: list[Any] = []
    forwarded: list[Any] = []

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        @connection.add_filter
        async def check(action: str, payload: Any, forward: Forward) -> None:
            begun.append(payload)
            await forward()
            forwarded.append(payload)

        async with connection.receive("ACTION") as stream:
            await connection.accept()
            await until(lambda: len(begun) == 3)
            assert forwarded == [0, 1]
            assert await stream.receive() == 0
            await until(lambda: len(begun) == 4)
            assert forwarded == [0, 1, 2]
            assert [await stream.receive() for _ in range(3)] == [1, 2, 3]
            await connection.send("DONE")

    async with serving(api) as bound, identified(bound, "WORK") as peer:
        for number in range(4):
            await peer.event("ACTION", number)
        await peer.expect_event("DONE")


async def test_filters_of_different_actions_do_not_wait_for_each_other() -> None:
    api = Brightsocket()

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        @connection.add_filter
        async def check(action: str, payload: Any, forward: Forward) -> None:
            if action == "STUCK":
                await anyio.sleep_forever()
            await forward()

        connection.on("STUCK")(lambda: None)
        connection.on("ECHO")(lambda value: value)

    async with serving(api) as bound, identified(bound, "WORK") as peer:
        await peer.event("STUCK")
        await peer.event("ECHO", 5, id=3)
        await peer.expect("433[5]")


async def test_the_order_of_an_action_survives_its_filters() -> None:
    api = Brightsocket()
    handled: list[int] = []

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        @connection.add_filter
        async def uneven(action: str, payload: int, forward: Forward) -> None:
            for _ in range(payload % 3):
                await anyio.lowlevel.checkpoint()
            await forward()

        connection.on("NUMBER")(handled.append)

    async with serving(api) as bound, identified(bound, "WORK") as peer:
        for number in range(50):
            await peer.event("NUMBER", number)
        await until(lambda: len(handled) == 50)
    assert handled == list(range(50))


async def test_filters_of_two_actions_wait_for_room_at_the_same_time() -> None:
    api = Brightsocket(max_buffered_messages=2)
    room = anyio.Event()
    forwarding: list[str] = []
    handled: list[tuple[str, int]] = []

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        @connection.add_filter
        async def pass_on(action: str, payload: int, forward: Forward) -> None:
            forwarding.append(action)
            await forward()

        for name in ("ONE", "TWO"):

            @connection.on(name)
            async def handle(number: int, name: str = name) -> None:
                await room.wait()
                handled.append((name, number))

    async with serving(api) as bound, identified(bound, "WORK") as peer:
        for number in range(4):
            await peer.event("ONE", number)
            await peer.event("TWO", number)
        # one is handled, two wait for that, and the filters hold the next
        await until(lambda: len(forwarding) == 8)
        room.set()
        await until(lambda: len(handled) == 8)
    for name in ("ONE", "TWO"):
        assert [number for each, number in handled if each == name] == list(range(4))


async def test_on_the_client_too() -> None:
    api = Brightsocket()

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        await connection.accept()
        answers = [await connection.call("ECHO", value) for value in (1, 2)]
        await connection.send("ANSWERS", answers)

    seen: list[Any] = []
    async with serving(api) as bound, open_client(bound.url) as client:
        client.on("UNRELATED")(lambda: None)
        connection = await client.connect("WORK")

        @connection.add_filter
        async def double(action: str, payload: Any, forward: Forward) -> None:
            seen.append(action)
            await forward(payload * 2) if action == "ECHO" else await forward()

        connection.on("ECHO")(lambda value: value)
        async with connection.receive("ANSWERS") as answers:
            with anyio.fail_after(PATIENCE):
                assert await answers.receive() == [2, 4]
    assert seen == ["ECHO", "ECHO", "ANSWERS"]
