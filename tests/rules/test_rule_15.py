"""Rule 15: ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from anyio.abc import TaskStatus

from brightsocket_anyio import Brightsocket, Connection, ConnectionLost, Refused, open_client
from brightsocket_anyio.settings import ChannelKeywords

from ..support import PATIENCE, MemoryListener, identified, joined, serving, serving_in_memory, until


async def test_inside_a_connections_tasks_an_end_is_cancellation() -> None:
    api = Brightsocket()
    reasons: list[str] = []

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        connection.on("WAIT")(wait)
        async with connection.receive("NEVER") as stream:
            await wait(stream.receive)

    async def wait(waiting: Callable[[], Awaitable[Any]] | None = None) -> None:
        try:
            await (waiting or anyio.sleep_forever)()
        except anyio.get_cancelled_exc_class() as exc:
            reasons.append(str(exc))
            raise

    async with serving(api) as bound, identified(bound, "WORK") as peer:
        await peer.event("WAIT", id=1)
        await peer.send("41")
        await until(lambda: len(reasons) == 2)
    # the function, and the handler
    assert all("ended: the client left the channel" in reason for reason in reasons)


@pytest.mark.mock_clock
@pytest.mark.parametrize("whose", ["the API's", "the channel's"])
async def test_with_grace_streams_end_first_and_cancellation_comes_after(whose: str) -> None:
    api = Brightsocket(grace=3 if whose == "the API's" else 0)
    seen: list[Any] = []
    over = anyio.Event()

    @api.connect("WORK", **ChannelKeywords(grace=3) if whose == "the channel's" else ChannelKeywords())
    async def work(connection: Connection) -> None:
        async with connection.receive("NEVER") as stream:
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
        began = anyio.current_time()
        try:
            await anyio.sleep_forever()
        finally:
            seen.append(anyio.current_time() - began)
            over.set()

    async with serving_in_memory(api) as listener, identified(listener, "WORK") as peer:
        await peer.send("41")
        with anyio.fail_after(PATIENCE):
            await over.wait()
        assert seen == [3]


@pytest.mark.mock_clock
async def test_grace_ends_when_the_last_handler_is_done() -> None:
    api = Brightsocket(grace=30)
    connections: list[Connection] = []
    over: list[float] = []

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        connections.append(connection)

        @connection.on("SLEEP")
        async def sleep(seconds: float) -> None:
            await anyio.sleep(seconds)
            over.append(anyio.current_time() - began)

    async with serving_in_memory(api) as listener, identified(listener, "WORK") as peer:
        began = anyio.current_time()
        await peer.event("SLEEP", 3)
        await peer.event("SLEEP", 2)
        await anyio.sleep(1)
        await peer.send("41")
        with anyio.fail_after(PATIENCE):
            await connections[0].aclose()
        assert anyio.current_time() - began == 5
        assert over == [3, 5]


@pytest.mark.mock_clock
async def test_a_function_that_has_not_settled_gets_no_more_than_the_grace() -> None:
    api = Brightsocket(grace=3)
    seen: list[float] = []

    @api.connect("WORK")
    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            seen.append(anyio.current_time() - began)

    async with serving_in_memory(api) as listener, joined(listener) as peer:
        await peer.identify("WORK")
        await anyio.sleep(1)
        began = anyio.current_time()
        await peer.send("41")
        await anyio.sleep(4)
        assert seen == [3]


@pytest.mark.mock_clock
async def test_a_channels_grace_counts_when_serve_is_cancelled() -> None:
    """Longer than the API's own, and than what sessions without it get."""
    api = Brightsocket(close_timeout=1)
    seen: list[Any] = []

    @api.connect("WORK", grace=10)
    async def work(connection: Connection) -> None:
        async with connection.receive("NEVER") as stream:
            with pytest.raises(ConnectionLost, match="shutting down"):
                await stream.receive()
        await anyio.sleep(9)
        seen.append("has finished")

    listener, scope = MemoryListener(), anyio.CancelScope()

    async def serve(*, task_status: TaskStatus[Any]) -> None:
        with scope:
            await api.serve(listeners=[listener], task_status=task_status)

    async with anyio.create_task_group() as tg:
        await tg.start(serve)
        async with identified(listener, "WORK") as peer:
            began = anyio.current_time()
            scope.cancel()
            await peer.drain()
            assert anyio.current_time() - began == 9
    assert seen == ["has finished"]


async def test_aclose_flushes_what_was_accepted_and_disconnects() -> None:
    api = Brightsocket()

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        await connection.accept()
        for number in range(100):
            await connection.send("NUMBER", number)
        await connection.aclose()
        await anyio.sleep_forever()

    async with serving(api) as bound, identified(bound, "WORK") as peer:
        for number in range(100):
            await peer.expect_event("NUMBER", number)
        message = await peer.receive()
        assert "BRIGHTSOCKET:CLOSED" in str(message)
        await peer.expect("41")
        assert await peer.expect_end() == 1000


@pytest.mark.parametrize("how", ["aclose", "switch", "disconnect", "exit"])
async def test_every_end_of_the_clients_flushes(how: str) -> None:
    api = Brightsocket(max_buffered_messages=1000)
    received: list[int] = []

    @api.connect("WORK")
    def work(connection: Connection) -> None:
        connection.on("NUMBER")(received.append)

    api.connect("OTHER", [], lambda: None)
    async with serving(api) as bound:
        async with open_client(bound.url) as client:
            connection = await client.connect("WORK")
            for number in range(200):
                await connection.send("NUMBER", number)
            if how == "aclose":
                await connection.aclose()
            elif how == "switch":
                await client.connect("OTHER")
            elif how == "disconnect":
                await client.disconnect()
        await until(lambda: len(received) == 200)
    assert received == list(range(200))


@pytest.mark.parametrize("end", ["unknown", "refused", "failed"])
async def test_final_ends_send_disconnect_before_the_close(end: str) -> None:
    api = Brightsocket()

    @api.connect("refused")
    def refused() -> None:
        raise Refused("no")

    @api.connect("failed")
    async def failed(connection: Connection) -> None:
        await connection.accept()
        raise LookupError

    async with serving(api) as bound, joined(bound) as peer:
        await peer.identify(end)
        assert (await peer.drain())[-1] == "41"


@pytest.mark.mock_clock
async def test_an_identify_timeout_is_final() -> None:
    async with serving_in_memory(Brightsocket(identify_timeout=3)) as listener, joined(listener) as peer:
        began = anyio.current_time()
        assert (await peer.drain())[-1] == "41"
        assert anyio.current_time() - began == 3


async def test_a_drain_closes_bare() -> None:
    api = Brightsocket()
    api.connect("WORK", [], lambda: None)
    async with anyio.create_task_group() as tg:
        bound = await tg.start(lambda *, task_status: api.serve(port=0, task_status=task_status))
        with anyio.CancelScope(shield=True):
            async with identified(bound, "WORK") as peer:
                tg.cancel_scope.cancel()
                assert "41" not in await peer.drain()


async def test_a_client_on_the_main_namespace_hears_why_it_is_turned_away() -> None:
    """It has named no channel, where the server wants one."""
    async with serving(Brightsocket(identify_timeout=0.05)) as bound, open_client(bound.url) as client:
        connection = await client.connect("/")
        with anyio.fail_after(PATIENCE):
            async with connection.receive("NEVER") as stream:
                with pytest.raises(anyio.BrokenResourceError) as caught:
                    await stream.receive()
        assert getattr(caught.value, "code", "") == "refused"


@pytest.mark.parametrize("eio", [3, 4])
async def test_a_function_that_sends_and_closes_at_once_has_its_sends_flushed(eio: int) -> None:
    """It had settled, so the client was let in, and hears everything in order."""
    api = Brightsocket()

    @api.connect("BRIEF")
    async def brief(connection: Connection) -> None:
        await connection.send("HELLO")
        await connection.send("BYE", 1)
        await connection.aclose()

    async with serving(api) as bound, joined(bound, eio=eio) as peer:
        await peer.identify("BRIEF")
        await peer.expect('42["BRIGHTSOCKET:IDENTIFIED"]', '42["HELLO"]', '42["BYE",1]')
        await peer.expect_event("BRIGHTSOCKET:CLOSED", {"code": "closed", "reason": "this side closed the connection"})
        await peer.expect("41")
        assert await peer.expect_end() == 1000
        assert len(api.pool) == 0
