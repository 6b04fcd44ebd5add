"""Rule 3: nothing before identification, and acceptance has its moment."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from brightsocket_anyio import Brightsocket, ChannelRefused, Connection, ConnectionLost, Refused, open_client
from brightsocket_anyio.settling import unsettled

from ..support import PATIENCE, Raw, identified, joined, raw, serving, serving_in_memory, until

IDENTIFIED = '42["BRIGHTSOCKET:IDENTIFIED"]'


@pytest.mark.parametrize("eio", [3, 4])
async def test_no_action_is_heard_before_identify(eio: int) -> None:
    api = Brightsocket()
    heard: list[Any] = []

    @api.connect("A")
    async def channel(connection: Connection) -> None:
        @connection.on("ACTION")
        async def action(value: Any) -> None:
            heard.append(value)

    async with serving(api) as bound, joined(bound, eio=eio) as peer:
        await peer.event("ACTION", "too early")
        await peer.event("ACTION", "too early", id=1)
        await peer.identify("A")
        await peer.event("ACTION", "heard", id=2)
        await peer.expect(IDENTIFIED, "432[null]")
        assert heard == ["heard"]


async def test_an_action_before_connect_closes_the_session() -> None:
    api = Brightsocket()
    async with serving(api) as bound, raw(bound) as peer:
        await peer.event("ACTION")
        assert await peer.expect_end() == 1002


async def test_no_action_is_heard_in_a_namespace_before_its_connect() -> None:
    api = Brightsocket()
    heard: list[str] = []

    @api.connect("/chat")
    async def chat(connection: Connection) -> None:
        connection.on("ACTION")(lambda: heard.append("heard"))

    async with serving(api) as bound, joined(bound) as peer:
        await peer.event("ACTION", namespace="/chat")
        await peer.drain()
    assert heard == []


async def test_bases_run_first_each_started_when_the_one_before_it_has_settled() -> None:
    api = Brightsocket()
    log: list[str] = []
    go: dict[str, anyio.Event] = {name: anyio.Event() for name in ("FIRST", "SECOND", "LAST")}

    async def step(name: str) -> None:
        log.append(f"{name} begins")
        await go[name].wait()
        log.append(f"{name} returns")

    def began(name: str) -> bool:
        return log[-1:] == [f"{name} begins"]

    api.connect("FIRST", (), lambda: step("FIRST"))
    api.connect("SECOND", (), lambda: step("SECOND"))
    api.connect("LAST", ["FIRST", "SECOND"], lambda: step("LAST"))
    async with serving(api) as bound, joined(bound) as peer:
        await peer.identify("LAST")
        for number, name in enumerate(go):
            await until(partial(began, name))
            assert len(log) == 2 * number + 1
            assert not peer.messages
            go[name].set()
        await peer.expect(IDENTIFIED)
    assert log == [f"{name} {what}" for name in go for what in ("begins", "returns")]


async def _send(connection: Connection) -> None:
    await connection.send("HELLO")


async def _receive(connection: Connection) -> None:
    async with connection.receive("ACTION") as actions:
        await actions.receive()


async def _call(connection: Connection) -> None:
    await connection.call("QUESTION")


async def _accept(connection: Connection) -> None:
    await connection.accept()


async def _child_receives(connection: Connection) -> None:
    async with anyio.create_task_group() as tg:
        tg.start_soon(_receive, connection)


SETTLERS = {"sends": _send, "receives": _receive, "calls": _call, "accepts": _accept, "a child": _child_receives}


@pytest.mark.parametrize("how", SETTLERS)
async def test_a_function_that_goes_on_has_settled_when_it(how: str) -> None:
    api = Brightsocket()
    next_began = anyio.Event()

    @api.connect("BASE")
    async def base(connection: Connection) -> None:
        await SETTLERS[how](connection)
        await anyio.Event().wait()

    @api.connect("A", extends=["BASE"])
    async def channel() -> None:
        next_began.set()

    async with serving(api) as bound, joined(bound) as peer:
        await peer.identify("A")
        await peer.expect(IDENTIFIED)
        assert next_began.is_set()
        assert not unsettled


async def test_a_function_that_merely_waits_has_not_settled() -> None:
    api = Brightsocket()
    began: list[str] = []
    go = anyio.Event()

    @api.connect("BASE")
    async def base(connection: Connection) -> None:
        connection.on("X")(lambda: None)
        connection.receive("Y")
        began.append("base")
        await go.wait()

    @api.connect("A", extends=["BASE"])
    async def channel() -> None:
        began.append("channel")

    async with serving(api) as bound, joined(bound) as peer:
        await peer.identify("A")
        await until(lambda: began)
        await anyio.wait_all_tasks_blocked()
        assert began == ["base"]
        assert len(unsettled) == 1
        go.set()
        await peer.expect(IDENTIFIED)
        assert began == ["base", "channel"]
        assert not unsettled


async def test_a_function_that_is_cancelled_before_it_has_settled_is_forgotten() -> None:
    api = Brightsocket()
    began = anyio.Event()

    @api.connect("A")
    async def channel() -> None:
        began.set()
        await anyio.sleep_forever()

    async with serving(api) as bound, joined(bound) as peer:
        await peer.identify("A")
        await began.wait()
        assert len(unsettled) == 1
        await peer.vanish()
        await until(lambda: not unsettled)


async def test_a_function_settles_by_what_it_sends_on_another_connection() -> None:
    """Also while others have not."""
    api = Brightsocket()
    first: list[Connection] = []

    @api.connect("FIRST")
    async def keep(connection: Connection) -> None:
        first.append(connection)

    @api.connect("STUCK")
    async def stay() -> None:
        await anyio.sleep_forever()

    @api.connect("A")
    async def channel() -> None:
        await first[0].send("HELLO")
        await anyio.sleep_forever()

    async with (
        serving(api) as bound,
        identified(bound, "FIRST") as listener,
        joined(bound) as stuck,
        identified(bound, "A"),
    ):
        await listener.expect_event("HELLO")
        await stuck.identify("STUCK")
        await until(lambda: unsettled)
        async with identified(bound, "A"):
            await listener.expect_event("HELLO")


async def test_accept_returns_when_the_whole_channel_is_accepted() -> None:
    api = Brightsocket()
    log: list[str] = []
    go = anyio.Event()

    @api.connect("BASE")
    async def base(connection: Connection) -> None:
        await connection.accept()
        assert connection.id in api.pool
        log.append("base is accepted")

    @api.connect("A", extends=["BASE"])
    async def channel(connection: Connection) -> None:
        await go.wait()
        log.append("the channel settles")

    async with serving(api) as bound, joined(bound) as peer:
        await peer.identify("A")
        await anyio.wait_all_tasks_blocked()
        go.set()
        await peer.expect(IDENTIFIED)
        await until(lambda: len(log) == 2)
    assert log == ["the channel settles", "base is accepted"]


@pytest.mark.parametrize("eio", [3, 4])
async def test_identified_goes_out_first_then_what_was_sent_meanwhile_in_order(eio: int) -> None:
    api = Brightsocket()
    go = anyio.Event()

    @api.connect("BASE")
    async def base(connection: Connection) -> None:
        for number in range(3):
            await connection.send("BASE", number)

    @api.connect("A", extends=["BASE"])
    async def channel(connection: Connection) -> None:
        await go.wait()
        await connection.send("CHANNEL", b"binary")
        await connection.send("LAST")

    async with serving(api) as bound, joined(bound, eio=eio) as peer:
        await peer.identify("A")
        await anyio.wait_all_tasks_blocked()
        assert not peer.messages
        go.set()
        await peer.expect(IDENTIFIED, '42["BASE",0]', '42["BASE",1]', '42["BASE",2]')
        await peer.expect('451-["CHANNEL",{"_placeholder":true,"num":0}]')
        await peer.expect(b"binary" if eio == 4 else b"\x04binary")
        await peer.expect('42["LAST"]')


async def test_a_namespaces_connect_is_answered_first_then_what_was_sent_meanwhile() -> None:
    api = Brightsocket()
    go = anyio.Event()

    @api.connect("/chat")
    async def chat(connection: Connection) -> None:
        async with anyio.create_task_group() as tg:

            async def greet() -> None:
                await go.wait()
                await connection.send("HELLO")

            tg.start_soon(greet)

    async with serving(api) as bound, raw(bound) as peer:
        await peer.send("40/chat,")
        await anyio.wait_all_tasks_blocked()
        go.set()
        assert str(await peer.receive()).startswith('40/chat,{"sid":')
        await peer.expect('42/chat,["HELLO"]')


async def test_more_than_the_buffer_may_be_sent_before_acceptance_and_none_is_lost() -> None:
    api = Brightsocket(max_buffered_messages=4)

    @api.connect("BASE")
    async def base(connection: Connection) -> None:
        for number in range(50):
            await connection.send("NUMBER", number)

    go = anyio.Event()

    @api.connect("A", extends=["BASE"])
    async def channel() -> None:
        await go.wait()

    async with serving(api) as bound, joined(bound) as peer:
        await peer.identify("A")
        await anyio.wait_all_tasks_blocked()
        go.set()
        await peer.expect(IDENTIFIED, *(f'42["NUMBER",{number}]' for number in range(50)))


async def test_nothing_is_delivered_to_any_receiver_before_acceptance() -> None:
    """A base's handlers do not run ahead of the channel's own check."""
    api = Brightsocket()
    seen: list[Any] = []
    go = anyio.Event()
    began = anyio.Event()

    @api.connect("BASE")
    async def base(connection: Connection) -> None:
        @connection.on("ACTION")
        async def base_action(value: int) -> None:
            seen.append(("base", value))

        async with connection.receive("ACTION") as actions:
            async for value in actions:
                seen.append(("stream", value))  # noqa: PERF401

    @api.connect("A", extends=["BASE"])
    async def channel(connection: Connection) -> None:
        began.set()
        await go.wait()

        @connection.add_filter
        async def check(action: str, payload: Any, forward: Callable[[], Awaitable[None]]) -> None:
            seen.append(("filter", payload))
            await forward()

        @connection.on("ACTION")
        async def own_action(value: int) -> None:
            seen.append(("own", value))

    async with serving(api) as bound, joined(bound) as peer:
        await peer.identify("A")
        await peer.event("ACTION", 1)
        await peer.event("ACTION", 2)
        await began.wait()
        await anyio.wait_all_tasks_blocked()
        assert seen == []
        go.set()
        await until(lambda: len(seen) == 8)
    for number in (1, 2):
        mine = [who for who, value in seen if value == number]
        assert mine[0] == "filter"
        assert sorted(mine) == ["base", "filter", "own", "stream"]
    for who in ("base", "stream", "own", "filter"):
        assert [value for name, value in seen if name == who] == [1, 2]


async def test_what_waited_goes_to_receivers_registered_after_it_arrived() -> None:
    api = Brightsocket()
    seen: list[Any] = []
    go = anyio.Event()

    @api.connect("A")
    async def channel(connection: Connection) -> None:
        await go.wait()
        connection.on("ACTION")(seen.append)

    async with serving(api) as bound, joined(bound) as peer:
        await peer.identify("A")
        for number in range(5):
            await peer.event("ACTION", number)
        await anyio.wait_all_tasks_blocked()
        go.set()
        await until(lambda: seen == [0, 1, 2, 3, 4])


@pytest.mark.parametrize("when", ["at once", "after a wait", "in a base", "after a base has sent", "in a child"])
async def test_refused_before_acceptance_is_a_refusal_and_nothing_else_was_seen(when: str) -> None:
    api = Brightsocket()
    heard: list[Any] = []

    @api.connect("BASE")
    async def base(connection: Connection) -> None:
        connection.on("ACTION")(heard.append)
        if when == "in a base":
            raise Refused("bad token")
        if when == "after a base has sent":
            await connection.send("EARLY")

    @api.connect("A", extends=["BASE"])
    async def channel(connection: Connection) -> None:
        if when == "after a wait":
            await anyio.lowlevel.checkpoint()
        if when == "in a child":
            connection.on("OTHER")(heard.append)
        raise Refused("bad token")

    async with serving(api) as bound:
        async with joined(bound) as peer:
            await peer.identify("A")
            await peer.event("ACTION", 1)
            await peer.expect_event("BRIGHTSOCKET:REFUSED", {"reason": "bad token"})
            await peer.expect("41")
            assert await peer.expect_end() == 1000
        async with open_client(bound.url) as client:
            client.on("EARLY")(heard.append)
            with pytest.raises(ChannelRefused) as caught:
                await client.connect("A")
            assert caught.value.reason == "bad token"
        assert len(api.pool) == 0
    assert heard == []


async def test_connect_returns_only_once_the_server_has_let_the_client_in() -> None:
    api = Brightsocket()
    go = anyio.Event()
    returned = anyio.Event()

    @api.connect("A")
    async def channel(connection: Connection) -> None:
        await go.wait()

    async with serving(api) as bound, open_client(bound.url) as client:

        async def connect() -> None:
            await client.connect("A")
            returned.set()

        async with anyio.create_task_group() as tg:
            tg.start_soon(connect)
            for _ in range(500):
                await anyio.lowlevel.checkpoint()
            assert not returned.is_set()
            assert client.connection is None
            assert len(api.pool) == 0
            go.set()
            with anyio.fail_after(PATIENCE):
                await returned.wait()


async def test_any_other_exception_before_acceptance_is_a_generic_refusal_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    api = Brightsocket()

    @api.connect("A")
    async def channel(connection: Connection) -> None:
        raise LookupError("the database's password is hunter2")

    async with serving(api) as bound:
        async with joined(bound) as peer:
            await peer.identify("A")
            messages = await peer.drain()
        assert messages[-1] == "41"
        assert messages[0] == '42["BRIGHTSOCKET:REFUSED",{"reason":"internal error"}]'
        async with open_client(bound.url) as client:
            with pytest.raises(ChannelRefused, match="internal error"):
                await client.connect("A")
    assert "hunter2" not in str(messages)
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 2
    assert errors[0].exc_info is not None
    assert "hunter2" in str(errors[0].exc_info[1])


async def test_refused_later_ends_the_connection_with_its_reason() -> None:
    api = Brightsocket()

    @api.connect("A")
    async def channel(connection: Connection) -> None:
        await connection.accept()
        async with connection.receive("ACTION") as actions:
            await actions.receive()
        raise Refused("enough")

    async with serving(api) as bound:
        async with identified(bound, "A") as peer:
            await peer.event("ACTION")
            await peer.expect_event("BRIGHTSOCKET:CLOSED", {"code": "refused", "reason": "enough"})
            await peer.expect("41")
        async with open_client(bound.url) as client:
            connection = await client.connect("A")
            async with connection.receive("NEVER") as stream:
                await connection.send("ACTION")
                with anyio.fail_after(PATIENCE), pytest.raises(ConnectionLost) as caught:
                    await stream.receive()
            assert (caught.value.code, caught.value.reason) == ("refused", "enough")


@pytest.mark.mock_clock
@pytest.mark.parametrize("eio", [3, 4])
async def test_not_settled_in_time_is_refused_and_the_log_names_the_function(
    eio: int, caplog: pytest.LogCaptureFixture
) -> None:
    api = Brightsocket(identify_timeout=7)

    @api.connect("SLOW")
    async def slow_channel() -> None:
        await anyio.sleep_forever()

    async with serving_in_memory(api) as bound, joined(bound, eio=eio) as peer:
        start = anyio.current_time()
        await peer.identify("SLOW")
        refusal = await peer.receive()
        assert anyio.current_time() - start == pytest.approx(7, abs=0.5)
        assert "BRIGHTSOCKET:REFUSED" in str(refusal)
        await peer.expect("41")
        await peer.expect_end()
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "slow_channel" in warning
    assert "accept()" in warning


@pytest.mark.mock_clock
@pytest.mark.parametrize("eio", [3, 4])
async def test_no_identify_in_time_is_refused(eio: int) -> None:
    api = Brightsocket(identify_timeout=7)
    api.connect("A", (), lambda: None)
    async with serving_in_memory(api) as bound, joined(bound, eio=eio) as peer:
        start = anyio.current_time()
        await peer.event("ACTION")
        assert "BRIGHTSOCKET:REFUSED" in str(await peer.receive())
        assert anyio.current_time() - start == pytest.approx(7, abs=0.5)
        await peer.expect("41")
        await peer.expect_end()


@pytest.mark.mock_clock
async def test_no_connect_in_time_closes_the_session() -> None:
    api = Brightsocket(connect_timeout=9, ping_interval=100)
    async with serving_in_memory(api) as bound, raw(bound) as peer:
        peer.patience = 100
        start = anyio.current_time()
        await peer.expect_end()
        assert anyio.current_time() - start == pytest.approx(9, abs=0.5)


@pytest.mark.mock_clock
async def test_a_session_without_its_last_namespace_has_a_deadline() -> None:
    api = Brightsocket(connect_timeout=9, ping_interval=100)
    api.connect("A", (), lambda: None)
    async with serving_in_memory(api) as bound, identified(bound, "A") as peer:
        await anyio.sleep(50)
        peer.patience = 100
        await peer.send("41")
        start = anyio.current_time()
        await peer.expect_end()
        assert anyio.current_time() - start == pytest.approx(9, abs=0.5)


@pytest.mark.mock_clock
async def test_a_session_that_was_turned_away_later_has_a_deadline() -> None:
    api = Brightsocket(connect_timeout=9, ping_interval=100)

    @api.connect("/slow")
    async def slow(connection: Connection) -> None:
        await anyio.sleep(3)
        raise Refused("no")

    async with serving_in_memory(api) as bound, raw(bound) as peer:
        await peer.send("40/slow,")
        await peer.expect('44/slow,{"message":"no"}')
        peer.patience = 100
        start = anyio.current_time()
        await peer.expect_end()
        assert anyio.current_time() - start == pytest.approx(9, abs=0.5)


@pytest.mark.mock_clock
async def test_a_session_that_was_accepted_has_no_such_deadline() -> None:
    api = Brightsocket(identify_timeout=7, connect_timeout=9, ping_interval=1000)
    api.connect("A", (), lambda: None)
    async with serving_in_memory(api) as bound, identified(bound, "A") as peer:
        await anyio.sleep(500)
        assert len(api.pool) == 1
        await peer.send("41")


@pytest.mark.parametrize("eio", [3, 4])
async def test_a_function_that_returns_leaves_the_connection_open_and_its_handlers_go_on(eio: int) -> None:
    api = Brightsocket()

    @api.connect("A")
    async def channel(connection: Connection) -> None:
        connection.on("ECHO")(lambda value: value)

    async with serving(api) as bound, identified(bound, "A", eio=eio) as peer:
        for number in range(3):
            await peer.event("ECHO", number, id=number)
            await peer.expect(f"43{number}[{number}]")
        assert len(api.pool) == 1


async def test_the_pool_holds_accepted_connections_only() -> None:
    api = Brightsocket()
    go = anyio.Event()
    ids: list[str] = []

    @api.connect("A")
    async def channel(connection: Connection) -> None:
        ids.append(connection.id)
        await go.wait()

    async with serving(api) as bound, joined(bound) as peer:
        await peer.identify("A")
        await until(lambda: ids)
        assert ids[0] not in api.pool
        assert await api.pool.emit("NEWS") == 0
        assert not await api.pool.send(ids[0], "NEWS")
        go.set()
        await peer.expect(IDENTIFIED)
        assert ids[0] in api.pool
        assert await api.pool.emit("NEWS", 1) == 1
        await peer.expect('42["NEWS",1]')


async def test_the_function_is_called_with_as_much_as_it_takes() -> None:
    def page(scope: Any, receive: Any, send: Any) -> Any:
        raise AssertionError("nobody asks for it")

    api = Brightsocket(page)
    seen: list[Any] = []

    @api.connect("THREE")
    async def three(connection: Connection, identity: dict[str, Any], webserver: Any) -> None:
        seen.append((connection.channel, identity, webserver is page, connection.identity is identity))

    @api.connect("ONE", extends=["THREE"])
    def one(connection: Connection) -> None:
        seen.append(connection.channel)

    async with serving(api) as bound, identified(bound, "ONE", user="ada", **{"BRIGHTSOCKET:X": 1}) as peer:
        assert json.loads(json.dumps(seen)) == [["ONE", {"user": "ada"}, True, True], "ONE"]
        assert isinstance(peer, Raw)
