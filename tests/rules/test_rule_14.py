"""Rule 14: who answers a call."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from brightsocket_anyio import Brightsocket, Connection, open_client

from ..support import PATIENCE, identified, serving, until


async def test_the_first_handler_registered_answers() -> None:
    api = Brightsocket()

    @api.connect("BASE")
    async def base(connection: Connection) -> None:
        connection.on("ASK")(lambda: "base")

    @api.connect("WORK", ["BASE"])
    async def work(connection: Connection) -> None:
        connection.on("ASK")(lambda: "second")
        connection.on("OTHER")(lambda: "other")
        connection.on("OTHER")(lambda: "too late")

    async with serving(api) as bound, identified(bound, "WORK") as peer:
        await peer.event("ASK", id=0)
        await peer.expect('430["base"]')
        await peer.event("OTHER", id=1)
        await peer.expect('431["other"]')
        # one answer each: nothing else is on the wire
        await peer.event("ASK", id=2)
        await peer.expect('432["base"]')


async def test_a_handler_answers_though_a_stream_came_first() -> None:
    api = Brightsocket()

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        async with connection.receive("ASK") as stream:
            connection.on("ASK")(lambda: "handler")
            async for _ in stream:
                pass

    async with serving(api) as bound, identified(bound, "WORK") as peer:
        await peer.event("ASK", id=0)
        await peer.expect('430["handler"]')


async def test_an_empty_answer_if_only_streams_took_it() -> None:
    api = Brightsocket()

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        async with connection.receive("ASK") as one, connection.receive("ASK"):
            async for _ in one:
                pass

    async with serving(api) as bound, identified(bound, "WORK") as peer, open_client(bound.url) as client:
        await peer.event("ASK", id=0)
        await peer.expect("430[]")
        connection = await client.connect("WORK")
        with anyio.fail_after(PATIENCE):
            assert await connection.call("ASK") is None


async def test_no_answer_if_filtered_or_unclaimed() -> None:
    api = Brightsocket()

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        @connection.add_filter
        async def check(action: str, payload: Any, forward: Callable[[], Awaitable[None]]) -> None:
            if payload != "bad":
                await forward()

        connection.on("ASK")(lambda value: value)

    async with serving(api) as bound, identified(bound, "WORK") as peer:
        await peer.event("ASK", "bad", id=0)
        await peer.event("UNCLAIMED", "good", id=1)
        await peer.event("ASK", "good", id=2)
        await peer.expect('432["good"]')
        await anyio.wait_all_tasks_blocked()
        assert peer.messages == []


async def test_an_unclaimed_call_is_answered_by_a_later_receiver() -> None:
    api = Brightsocket()

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        async with connection.receive("GO") as go:
            await go.receive()
        connection.on("ASK")(lambda: "at last")

    async with serving(api) as bound, identified(bound, "WORK") as peer:
        await peer.event("ASK", id=0)
        await peer.event("GO")
        await peer.expect('430["at last"]')


@pytest.mark.parametrize(
    ("result", "answer"),
    [
        (None, "[null]"),
        ((), "[]"),
        ((1, 2), "[1,2]"),
        ([1, 2], "[[1,2]]"),
        (0, "[0]"),
        ("", '[""]'),
        (False, "[false]"),
    ],
)
async def test_the_answer_on_the_wire(result: Any, answer: str) -> None:
    api = Brightsocket()

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        connection.on("PLAIN")(lambda: result)

        @connection.on("ASYNC")
        async def handle() -> Any:
            return result

    async with serving(api) as bound, identified(bound, "WORK") as peer:
        await peer.event("PLAIN", id=0)
        await peer.expect(f"430{answer}")
        await peer.event("ASYNC", id=1)
        await peer.expect(f"431{answer}")


async def test_an_answer_with_bytes() -> None:
    api = Brightsocket()
    results: list[Any] = []

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        connection.on("ASK")(lambda: {"file": b"\x00\x01"})
        await connection.accept()
        results.append(await connection.call("ASK"))

    async with serving(api) as bound, identified(bound, "WORK") as peer:
        await peer.expect('420["ASK"]')
        await peer.send('461-0[{"_placeholder":true,"num":0}]', b"\x02\x03")
        await peer.event("ASK", id=9)
        await peer.expect('461-9[{"file":{"_placeholder":true,"num":0}}]', b"\x00\x01")
        assert results == [b"\x02\x03"]


async def test_answers_come_in_whatever_order() -> None:
    api = Brightsocket()
    results: dict[int, Any] = {}

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        async def ask(number: int) -> None:
            results[number] = await connection.call("ASK", number)

        async with anyio.create_task_group() as tg:
            for number in range(3):
                tg.start_soon(ask, number)

    async with serving(api) as bound, identified(bound, "WORK") as peer:
        asked = {}
        for _ in range(3):
            message = await peer.receive()
            assert isinstance(message, str)
            bracket = message.index("[")
            asked[json.loads(message[bracket:])[1]] = message[2:bracket]
        for number in (2, 0, 1):
            await peer.send(f"43{asked[number]}[{number * 10}]")
        await until(lambda: len(results) == 3)
    assert results == {0: 0, 1: 10, 2: 20}


async def test_ids_are_not_reused_within_a_session() -> None:
    """Not after an answer, nor after a cancelled call, nor by another channel or namespace of the session."""
    api = Brightsocket()

    async def work(connection: Connection) -> None:
        await connection.accept()
        for _ in range(3):
            await connection.call("ASK")
        async with anyio.create_task_group() as tg:
            tg.start_soon(connection.call, "ASK")
            async with connection.receive("CANCEL") as stream:
                await stream.receive()
            tg.cancel_scope.cancel()
        await connection.call("ASK")

    for name in ("ONE", "TWO", "/chat"):
        api.connect(name, [], work)
    ids: list[int] = []
    async with serving(api) as bound, identified(bound, "ONE") as peer:

        async def asked(prefix: str = "42") -> int:
            message = await peer.receive()
            assert isinstance(message, str)
            assert message.startswith(prefix), message
            ids.append(int(message.removeprefix(prefix).removesuffix('["ASK"]')))
            return ids[-1]

        for _ in range(3):
            await peer.send(f"43{await asked()}[]")
        await asked()
        await peer.event("CANCEL")
        await asked()
        await peer.identify("TWO")
        await peer.expect('42["BRIGHTSOCKET:IDENTIFIED"]')
        await asked()
        await peer.send("40/chat,")
        await peer.receive()
        await asked("42/chat,")
    assert len(set(ids)) == len(ids) == 7


async def test_an_answer_that_nobody_waits_for_is_ignored() -> None:
    api = Brightsocket()
    results: list[Any] = []

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        await connection.accept()
        results.append(await connection.call("ASK"))
        results.append(await connection.call("ASK"))

    async with serving(api) as bound, identified(bound, "WORK") as peer:
        await peer.expect('420["ASK"]')
        # unknown, right, repeated
        await peer.send("4399[9]", '430["first"]', '430["again"]')
        await peer.expect('421["ASK"]')
        await peer.send('430["again"]', '431["second"]')
        await until(lambda: len(results) == 2)
    assert results == ["first", "second"]


async def test_an_answer_does_not_reach_another_namespace_s_call() -> None:
    api = Brightsocket()
    results: list[Any] = []

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        await connection.accept()
        results.append(await connection.call("ASK"))

    @api.connect("/chat")
    async def chat() -> None: ...

    async with serving(api) as bound, identified(bound, "WORK") as peer:
        await peer.expect('420["ASK"]')
        await peer.send("40/chat,")
        await peer.receive()
        await peer.send('43/chat,0["wrong"]', '430["right"]')
        await until(lambda: results)
    assert results == ["right"]


async def test_outstanding_calls_are_bounded() -> None:
    api = Brightsocket(max_calls=2)
    results: list[Any] = []

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        async def ask() -> None:
            results.append(await connection.call("ASK"))

        async with anyio.create_task_group() as tg:
            for _ in range(5):
                tg.start_soon(ask)

    async with serving(api) as bound, identified(bound, "WORK") as peer:
        for number in (0, 1):
            await peer.expect(f'42{number}["ASK"]')
        await anyio.wait_all_tasks_blocked()
        assert peer.messages == []
        # each answer makes room for one more
        for number in range(5):
            await peer.send(f"43{number}[{number}]")
            if number + 2 < 5:
                await peer.expect(f'42{number + 2}["ASK"]')
        await until(lambda: len(results) == 5)


async def test_a_call_ends_with_its_caller() -> None:
    api = Brightsocket(max_calls=1)

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        @connection.on("ASK_BACK")
        async def ask_back() -> None:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tg:
                    tg.start_soon(connection.call, "FIRST")
                    async with connection.receive("CANCEL") as stream:
                        await stream.receive()
                    scope.cancel()
            # its place is free again
            await connection.call("SECOND")

    async with serving(api) as bound, identified(bound, "WORK") as peer:
        await peer.event("ASK_BACK")
        await peer.expect('420["FIRST"]')
        await peer.event("CANCEL")
        await peer.expect('421["SECOND"]')


async def test_both_sides_ask_each_other_at_once() -> None:
    api = Brightsocket()
    results: list[Any] = []

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        connection.on("NAME")(lambda: "server")

        @connection.on("ASK_BACK")
        async def ask_back() -> Any:
            return await connection.call("NAME")

        await connection.accept()
        results.append(await connection.call("ASK_BACK"))

    async with serving(api) as bound, open_client(bound.url) as client:
        client.on("NAME")(lambda: "client")

        @client.on("ASK_BACK")
        async def ask_back() -> Any:
            assert client.connection is not None
            return await client.connection.call("NAME")

        connection = await client.connect("WORK")
        with anyio.fail_after(PATIENCE):
            assert await connection.call("ASK_BACK") == "client"
        await until(lambda: results)
    assert results == ["server"]
