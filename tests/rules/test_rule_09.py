"""Rule 9: a failing handler takes down its own connection only, and arity never fails a handler."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from brightsocket_anyio import Brightsocket, ConfigurationError, Connection, ConnectionLost, open_client

from ..support import PATIENCE, identified, raw, serving, until

FAILED = ("BRIGHTSOCKET:CLOSED", {"code": "failed", "reason": "internal error"})


def _failing() -> Brightsocket:
    api = Brightsocket()

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        @connection.on("HANDLER")
        async def handler() -> None:
            raise LookupError("deep secret")

        @connection.on("PLAIN")
        def plain() -> None:
            raise LookupError("deep secret")

        @connection.on("UNSENDABLE")
        async def unsendable() -> Any:
            return {1, 2}

        @connection.add_filter
        async def check(action: str, payload: Any, forward: Callable[[], Awaitable[None]]) -> None:
            if action == "FILTERED":
                raise LookupError("deep secret")
            await forward()

        @connection.on("FILTERED")
        def filtered() -> None:
            raise AssertionError("the filter has failed")

        @connection.on("ECHO")
        async def echo(value: Any) -> Any:
            return value

        async with connection.receive("FUNCTION") as stream:
            await stream.receive()
            raise LookupError("deep secret")

    api.connect("/chat", [], work)
    return api


WAYS = ["HANDLER", "PLAIN", "FILTERED", "FUNCTION"]


@pytest.mark.parametrize("action", WAYS)
async def test_the_peer_is_told_and_the_log_has_the_traceback(action: str, caplog: pytest.LogCaptureFixture) -> None:
    api = _failing()
    async with serving(api) as bound, identified(bound, "WORK") as peer:
        await peer.event(action)
        await peer.expect_event(*FAILED)
        await peer.expect("41")
        assert await peer.expect_end() == 1000
        await until(lambda: not len(api.pool))
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)
    assert record.exc_info[2] is not None
    assert "WORK" in record.getMessage()


async def test_an_answer_that_cannot_be_sent_is_the_handlers_failure(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(_failing()) as bound, identified(bound, "WORK") as peer:
        await peer.event("UNSENDABLE", id=0)
        await peer.expect_event(*FAILED)
        await peer.expect("41")
        await peer.expect_end()
    assert [record.exc_info is not None for record in caplog.records if record.levelno >= logging.ERROR] == [True]


@pytest.mark.parametrize("action", WAYS)
async def test_a_client_hears_of_a_loss_with_its_code_and_not_of_the_exception(action: str) -> None:
    async with serving(_failing()) as bound, open_client(bound.url) as client:
        connection = await client.connect("WORK")
        with anyio.fail_after(PATIENCE):
            async with connection.receive("NEVER") as stream:
                await connection.send(action)
                with pytest.raises(ConnectionLost) as caught:
                    await stream.receive()
        assert (caught.value.code, caught.value.reason) == ("failed", "internal error")
        assert client.connection is None
        with pytest.raises(ConnectionLost):
            await connection.send("ECHO", 1)


@pytest.mark.parametrize("action", WAYS)
async def test_everyone_else_is_undisturbed(action: str) -> None:
    async with (
        serving(_failing()) as bound,
        identified(bound, "WORK") as failing,
        identified(bound, "WORK") as neighbour,
        open_client(bound.url) as client,
    ):
        other = await client.connect("WORK")
        await failing.event(action)
        await failing.drain()
        await neighbour.event("ECHO", "still here", id=7)
        await neighbour.expect('437["still here"]')
        with anyio.fail_after(PATIENCE):
            assert await other.call("ECHO", 1) == 1


@pytest.mark.parametrize("action", WAYS)
async def test_the_sessions_other_namespaces_are_undisturbed(action: str) -> None:
    async with serving(_failing()) as bound, identified(bound, "WORK") as peer:
        await peer.send("40/chat,")
        joined = await peer.receive()
        assert isinstance(joined, str)
        assert joined.startswith("40/chat,")
        await peer.event(action, namespace="/chat")
        message = await peer.receive()
        assert isinstance(message, str)
        assert json.loads(message.removeprefix("42/chat,")) == list(FAILED)
        await peer.expect("41/chat,")
        await peer.event("ECHO", 1, id=1)
        await peer.expect("431[1]")
        # and the failed namespace may be joined again
        await peer.send("40/chat,")
        joined = await peer.receive()
        assert isinstance(joined, str)
        assert joined.startswith("40/chat,")
        await peer.event("ECHO", 2, namespace="/chat", id=2)
        await peer.expect("43/chat,2[2]")


@pytest.mark.parametrize("eio", [3, 4])
async def test_a_failure_before_acceptance_is_a_generic_refusal(eio: int, caplog: pytest.LogCaptureFixture) -> None:
    api = Brightsocket()

    @api.connect("WORK")
    async def work() -> None:
        raise LookupError("deep secret")

    async with serving(api) as bound, raw(bound, eio=eio) as peer:
        await peer.send(*(["40"] if eio == 4 else []))
        await peer.receive()
        await peer.identify("WORK")
        await peer.expect_event("BRIGHTSOCKET:REFUSED", {"reason": "internal error"})
        await peer.expect("41")
        await peer.expect_end()
    assert [record.exc_info is not None for record in caplog.records if record.levelno >= logging.ERROR] == [True]


async def test_two_failures_at_once_are_each_logged_or_end_with_the_connection() -> None:
    api = Brightsocket()
    go = anyio.Event()

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        @connection.on("A")
        @connection.on("B")
        async def fail() -> None:
            await go.wait()
            raise LookupError("twice")

    async with serving(api) as bound, identified(bound, "WORK") as peer, identified(bound, "WORK") as neighbour:
        await peer.event("A")
        await peer.event("B")
        await anyio.wait_all_tasks_blocked()
        go.set()
        await peer.expect_event(*FAILED)
        await peer.expect("41")
        await peer.expect_end()
        await neighbour.event("C", id=1)
        await until(lambda: len(api.pool) == 1)


class TestArity:
    async def test_missing_values_are_none_and_surplus_ones_dropped(self) -> None:
        api = Brightsocket()
        seen: list[Any] = []

        @api.connect("WORK")
        async def work(connection: Connection) -> None:
            @connection.on("NONE")
            async def none() -> None:
                seen.append(())

            @connection.on("ONE")
            async def one(value: Any) -> None:
                seen.append(value)

            @connection.on("TWO")
            async def two(first: Any, second: Any) -> None:
                seen.append((first, second))

            @connection.on("DEFAULT")
            async def default(first: Any, second: Any = "default") -> None:
                seen.append((first, second))

            @connection.on("ALL")
            async def every(*values: Any) -> None:
                seen.append(values)

            @connection.on("OVER")
            def over() -> str:
                return "over"

        async with serving(api) as bound, identified(bound, "WORK") as peer:
            for name in ("NONE", "ONE", "TWO", "DEFAULT", "ALL"):
                for args in ((), (0,), (1, 2), (1, 2, 3)):
                    await peer.event(name, *args, id=len(seen))
                    await peer.receive()
            await peer.event("OVER", id=1)
            await peer.expect('431["over"]')
        assert seen[0:4] == [()] * 4
        assert seen[4:8] == [None, 0, 1, 1]
        assert seen[8:12] == [(None, None), (0, None), (1, 2), (1, 2)]
        assert seen[12:16] == [(None, "default"), (0, "default"), (1, 2), (1, 2)]
        assert seen[16:20] == [(), (0,), (1, 2), (1, 2, 3)]

    async def test_on_the_client_too(self) -> None:
        api = Brightsocket()

        @api.connect("WORK")
        async def work(connection: Connection) -> None:
            await connection.send("GO")
            await connection.send("GO", 1, 2)

        seen: list[Any] = []
        async with serving(api) as bound, open_client(bound.url) as client:

            @client.on("GO")
            def go(value: Any) -> None:
                seen.append(value)

            await client.connect("WORK")
            await until(lambda: len(seen) == 2)
        assert seen == [None, 1]

    async def test_a_signature_that_can_never_do_fails_when_it_is_registered(self) -> None:
        api = Brightsocket()
        errors: list[Exception] = []

        @api.connect("WORK")
        async def work(connection: Connection) -> None:
            def keyword(*, needed: int) -> None: ...

            for register in (connection.on("A"), connection.add_filter):
                with pytest.raises(ConfigurationError) as caught:
                    register(keyword)
                errors.append(caught.value)

        async with serving(api) as bound, identified(bound, "WORK"):
            assert ["needed" in str(error) for error in errors] == [True, True]
