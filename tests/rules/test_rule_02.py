"""Rule 2: ``connect`` cancels the old scope, waits until it is over, then opens the new one."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from brightsocket_anyio import Brightsocket, ChannelRefused, Client, Connection, HandshakeError, Refused, open_client

from ..support import PATIENCE, identified, joined, serve_in, serving, until


class Channels:
    """An API that notes who is on which of its channels, and lets each one out slowly."""

    def __init__(self) -> None:
        self.api = Brightsocket()
        self.log: list[str] = []
        self.on: list[str] = []
        for name in ("GUEST", "ADMIN", "THIRD"):
            self.api.connect(name, (), self._channel)
        self.api.connect("CLOSED", (), self._closed)

    async def _channel(self, connection: Connection) -> None:
        name = connection.channel
        assert not self.on, f"{name} opens while {self.on} is still open"
        self.on.append(name)
        self.log.append(f"+{name}")
        try:
            await connection.accept()
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                for _ in range(500):
                    await checkpoint()
            self.on.remove(name)
            self.log.append(f"-{name}")

    async def _closed(self, connection: Connection) -> None:
        raise Refused("not today")


TRANSPORTS = ["websocket", "polling", ("polling", "websocket")]


@pytest.mark.parametrize("eio", [3, 4])
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_old_channel_is_over_before_the_new_one_opens(transport: Any, eio: Any) -> None:
    channels = Channels()
    async with serving(channels.api) as bound, open_client(bound.url, transport=transport, eio=eio) as client:
        for name in ("GUEST", "ADMIN", "GUEST", "THIRD"):
            connection = await client.connect(name)
            assert client.connection is connection
            assert connection.channel == name
    assert channels.log == ["+GUEST", "-GUEST", "+ADMIN", "-ADMIN", "+GUEST", "-GUEST", "+THIRD", "-THIRD"]


@pytest.mark.parametrize("eio", [3, 4])
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_channel_is_over_when_disconnect_returns(transport: Any, eio: Any) -> None:
    channels = Channels()
    async with serving(channels.api) as bound, open_client(bound.url, transport=transport, eio=eio) as client:
        await client.connect("GUEST")
        await client.disconnect()
        assert channels.log == ["+GUEST", "-GUEST"]


async def test_the_clients_own_tasks_on_the_old_channel_are_over_before_connect_returns() -> None:
    channels = Channels()
    log: list[str] = []

    @channels.api.connect("WORK")
    async def work(connection: Connection) -> None:
        await connection.send("GO")

    async with serving(channels.api) as bound, open_client(bound.url) as client:
        old = await client.connect("WORK")

        @old.on("GO")
        async def go() -> None:
            log.append("running")
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    for _ in range(20):
                        await checkpoint()
                log.append("over")

        await until(lambda: log)
        await client.connect("GUEST")
        assert log == ["running", "over"]


@pytest.mark.parametrize("eio", [3, 4])
async def test_a_second_identify_on_a_session_switches_there_one_scope_after_the_other(eio: int) -> None:
    channels = Channels()
    async with serving(channels.api) as bound, identified(bound, "GUEST", eio=eio) as peer:
        for name in ("ADMIN", "THIRD"):
            await peer.identify(name)
            await peer.expect('42["BRIGHTSOCKET:IDENTIFIED"]')
            assert channels.on == [name]
        await peer.send("41")
        await until(lambda: not channels.on)
    assert channels.log == ["+GUEST", "-GUEST", "+ADMIN", "-ADMIN", "+THIRD", "-THIRD"]


async def test_after_a_switch_on_a_session_the_id_is_the_same_and_the_pool_has_one() -> None:
    api = Brightsocket()
    ids: list[str] = []

    async def channel(connection: Connection) -> None:
        ids.append(connection.id)

    api.connect("A", (), channel)
    api.connect("B", (), channel)
    async with serving(api) as bound, identified(bound, "A") as peer:
        assert len(api.pool) == 1
        await peer.identify("B")
        await peer.expect('42["BRIGHTSOCKET:IDENTIFIED"]')
        assert ids[0] == ids[1]
        assert len(api.pool) == 1
        assert await api.pool.send(ids[0], "HELLO")
        await peer.expect('42["HELLO"]')


async def test_a_burst_of_identifies_opens_the_last_one_and_never_two() -> None:
    channels = Channels()
    async with serving(channels.api) as bound, joined(bound) as peer:
        for name in ("GUEST", "ADMIN", "GUEST", "THIRD"):
            await peer.identify(name)
        await until(lambda: channels.on == ["THIRD"])
        await peer.send("41")
        await until(lambda: not channels.on)


async def test_actions_sent_before_a_switch_do_not_reach_the_channel_after_it() -> None:
    api = Brightsocket()
    seen: list[tuple[str, int]] = []

    async def channel(connection: Connection) -> None:
        @connection.on("MESSAGE")
        async def message(number: int) -> None:
            seen.append((connection.channel, number))

    async def deaf(connection: Connection) -> None:
        pass

    api.connect("DEAF", (), deaf)
    api.connect("HEARS", (), channel)
    async with serving(api) as bound, identified(bound, "DEAF") as peer:
        await peer.event("MESSAGE", 1)
        await peer.identify("HEARS")
        await peer.event("MESSAGE", 2)
        await until(lambda: seen)
        assert seen == [("HEARS", 2)]


async def test_handlers_of_the_client_survive_the_switch_and_may_make_it() -> None:
    """The original's flow: a LOGGED_IN handler connects to the channel that it is told."""
    api = Brightsocket()
    used = anyio.Event()

    @api.connect("GUEST")
    async def guest(connection: Connection, identity: dict[str, Any]) -> None:
        await connection.send("LOGGED_IN", {"userType": "ADMIN", "token": identity["name"] + "'s"})

    @api.connect("ADMIN")
    async def admin(connection: Connection, identity: dict[str, Any]) -> None:
        await connection.send("WELCOME", identity["token"])

    async with serving(api) as bound, open_client(bound.url) as client:
        welcomes: list[str] = []

        @client.on("LOGGED_IN")
        async def logged_in(login: dict[str, Any]) -> None:
            await client.connect(login["userType"], {"token": login["token"]})

        @client.on("WELCOME")
        async def welcome(token: str) -> None:
            welcomes.append(token)
            used.set()

        await client.connect("GUEST", {"name": "ada"})
        with anyio.fail_after(PATIENCE):
            await used.wait()
        assert welcomes == ["ada's"]
        assert client.connection is not None
        assert client.connection.channel == "ADMIN"


async def test_handlers_of_a_connection_end_with_it() -> None:
    api = Brightsocket()

    async def channel(connection: Connection) -> None:
        await connection.send("NEWS", connection.channel)

    api.connect("A", (), channel)
    api.connect("B", (), channel)
    async with serving(api) as bound, open_client(bound.url) as client:
        theirs: list[str] = []
        mine: list[str] = []

        @client.on("NEWS")
        async def note(channel: str) -> None:
            theirs.append(channel)

        first = await client.connect("A")

        @first.on("NEWS")
        async def note_first(channel: str) -> None:
            mine.append(channel)

        await client.connect("B")
        await until(lambda: theirs[-1:] == ["B"])
        assert mine in ([], ["A"])


@pytest.mark.parametrize("method", ["connect", "disconnect"])
@pytest.mark.parametrize("where", ["handler", "filter", "child"])
async def test_connect_from_inside_the_scope_that_it_would_cancel_says_where_to_put_the_handler(
    where: str, method: str
) -> None:
    api = Brightsocket()
    errors: list[str] = []

    @api.connect("A")
    async def channel(connection: Connection) -> None:
        await connection.send("GO")

    async with serving(api) as bound, open_client(bound.url) as client:
        connection = await client.connect("A")

        async def switch() -> None:
            try:
                await (client.connect("B") if method == "connect" else client.disconnect())
            except RuntimeError as exc:
                errors.append(str(exc))

        if where == "filter":

            @connection.add_filter
            async def before(action: str, payload: Any, forward: Any) -> None:
                await switch()

        @connection.on("GO")
        async def go() -> None:
            if where == "child":
                async with anyio.create_task_group() as tg:
                    tg.start_soon(switch)
            else:
                await switch()

        await until(lambda: errors)
        assert "client.on" in errors[0]
        assert client.connection is connection, "and nothing has happened to it"
        await connection.send("STILL")


@pytest.mark.parametrize("how", ["switch", "disconnect", "aclose"])
async def test_code_outside_that_holds_the_old_connection_gets_closed_resource_error(how: str) -> None:
    api = Brightsocket()
    for name in "AB":
        api.connect(name, (), lambda connection: None)
    async with serving(api) as bound, open_client(bound.url) as client:
        old = await client.connect("A")
        stream = old.receive("MESSAGE")
        waiting = anyio.Event()
        ended: list[type[BaseException]] = []

        async def wait(what: Any) -> None:
            try:
                await what()
            except (anyio.ClosedResourceError, anyio.EndOfStream) as exc:
                ended.append(type(exc))
            if len(ended) == 2:
                waiting.set()

        async with anyio.create_task_group() as tg:
            tg.start_soon(wait, stream.receive)
            tg.start_soon(wait, lambda: old.call("QUESTION"))
            await anyio.wait_all_tasks_blocked()
            if how == "switch":
                await client.connect("B")
            elif how == "disconnect":
                await client.disconnect()
            else:
                await old.aclose()
            with anyio.fail_after(PATIENCE):
                await waiting.wait()
        assert ended == [anyio.ClosedResourceError] * 2
        for use in (
            lambda: old.send("X"),
            lambda: old.call("X"),
            stream.receive,
            old.accept,
        ):
            with pytest.raises(anyio.ClosedResourceError):
                await use()
        with pytest.raises(anyio.ClosedResourceError):
            old.receive("X")
        with pytest.raises(anyio.ClosedResourceError):
            old.on("X")(lambda: None)
        with pytest.raises(anyio.ClosedResourceError):
            old.add_filter(lambda *args: None)
        await stream.aclose()
        await old.aclose()


async def test_a_client_that_is_refused_is_on_no_channel_and_says_so() -> None:
    channels = Channels()
    async with serving(channels.api) as bound, open_client(bound.url) as client:
        old = await client.connect("GUEST")
        with pytest.raises(ChannelRefused, match="not today"):
            await client.connect("CLOSED")
        assert client.connection is None
        assert "None" in repr(client)
        assert channels.on == []
        with pytest.raises(anyio.ClosedResourceError):
            await old.send("X")
        await client.connect("ADMIN")
        assert channels.on == ["ADMIN"]


async def test_a_client_whose_server_has_gone_is_on_no_channel() -> None:
    channels = Channels()
    async with anyio.create_task_group() as tg:
        serving_scope = anyio.CancelScope()
        bound = await tg.start(serve_in, channels.api, serving_scope)
        async with open_client(bound.url) as client:
            await client.connect("GUEST")
            serving_scope.cancel()
            with anyio.fail_after(PATIENCE), pytest.raises(HandshakeError):
                await client.connect("ADMIN")
            assert client.connection is None


async def test_of_two_connects_at_once_the_later_wins_and_the_earlier_raises() -> None:
    channels = Channels()
    outcomes: dict[str, str] = {}

    async def connect(client: Client, name: str) -> None:
        try:
            connection = await client.connect(name)
            outcomes[name] = connection.channel
        except anyio.ClosedResourceError:
            outcomes[name] = "superseded"

    async with serving(channels.api) as bound, open_client(bound.url) as client:
        await client.connect("THIRD")
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tg:
                tg.start_soon(connect, client, "GUEST")
                await checkpoint()
                tg.start_soon(connect, client, "ADMIN")
        assert sorted(outcomes.values()) in (["ADMIN", "superseded"], ["GUEST", "superseded"])
        [winner] = (name for name, outcome in outcomes.items() if outcome != "superseded")
        assert client.connection is not None
        assert client.connection.channel == winner
        assert channels.on == [winner]


async def test_an_earlier_connect_raises_at_whichever_step_a_later_one_overtakes_it() -> None:
    """A connect is overtaken after each number of checkpoints in turn, until it is through."""
    channels = Channels()
    early: list[str] = []

    async def first(client: Client, started: anyio.Event) -> None:
        started.set()
        try:
            await client.connect("GUEST")
            early.append("connected")
        except anyio.ClosedResourceError:
            early.append("superseded")

    async with serving(channels.api) as bound, open_client(bound.url) as client:
        for steps in range(0, 120, 3):
            early.clear()
            with anyio.fail_after(PATIENCE):
                async with anyio.create_task_group() as tg:
                    started = anyio.Event()
                    tg.start_soon(first, client, started)
                    await started.wait()
                    for _ in range(steps):
                        await checkpoint()
                    connection = await client.connect("ADMIN")
                assert early in (["connected"], ["superseded"])
                assert client.connection is connection
                assert channels.on == ["ADMIN"]
                await client.disconnect()
                await until(lambda: not channels.on)


async def test_a_connect_cancelled_at_any_step_leaves_the_client_on_no_channel() -> None:
    channels = Channels()
    connected = 0
    async with serving(channels.api) as bound, open_client(bound.url) as client:
        for steps in range(0, 200, 3):
            with anyio.fail_after(PATIENCE):
                scope = anyio.CancelScope()
                async with anyio.create_task_group() as tg:

                    async def connect(scope: anyio.CancelScope = scope) -> None:
                        nonlocal connected
                        with scope:
                            await client.connect("GUEST")
                            connected += 1

                    tg.start_soon(connect)
                    for _ in range(steps + 1):
                        await checkpoint()
                    scope.cancel()
                if scope.cancelled_caught:
                    assert client.connection is None
                else:
                    await client.disconnect()
                # whatever had been opened is closed again, without anybody's doing
                await until(lambda: not channels.on and len(channels.api.pool) == 0)
                await client.connect("ADMIN")
                assert channels.on == ["ADMIN"]
                await client.disconnect()
                await until(lambda: not channels.on)
    assert connected < 67, "it was never cancelled"


async def test_a_disconnect_overtakes_a_connect() -> None:
    channels = Channels()

    @channels.api.connect("NEVER")
    async def never(connection: Connection) -> None:
        await anyio.sleep_forever()

    async with serving(channels.api) as bound, open_client(bound.url) as client:
        raised = anyio.Event()

        async def connect() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await client.connect("NEVER")
            raised.set()

        async with anyio.create_task_group() as tg:
            tg.start_soon(connect)
            await anyio.wait_all_tasks_blocked()
            with anyio.fail_after(PATIENCE):
                await client.disconnect()
                await raised.wait()
        assert client.connection is None


@pytest.mark.parametrize("how", ["beside", "after a cancelled one"])
async def test_a_connect_and_a_disconnect_wait_for_the_same_end(how: str) -> None:
    """A handler of the old connection takes its time to end: whatever comes next waits for it."""
    channels = Channels()
    log: list[str] = []
    async with serving(channels.api) as bound, open_client(bound.url) as client:
        guest = await client.connect("GUEST")
        cleaning, running = anyio.Event(), anyio.Event()

        @guest.on("RUN")
        async def run() -> None:
            running.set()
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await cleaning.wait()
                log.append("old over")

        await channels.api.pool.emit("RUN")
        await running.wait()

        async def leave(scope: anyio.CancelScope, name: str) -> None:
            with scope:
                await client.disconnect()
                log.append(name)

        async def enter() -> None:
            await client.connect("ADMIN")
            log.append("new")

        async with anyio.create_task_group() as tg:
            scope = anyio.CancelScope()
            tg.start_soon(leave, scope, "left")
            await anyio.wait_all_tasks_blocked()
            if how == "beside":
                tg.start_soon(leave, anyio.CancelScope(), "left")
                await anyio.wait_all_tasks_blocked()
            else:
                scope.cancel()
            tg.start_soon(enter)
            await anyio.wait_all_tasks_blocked()
            assert log == []
            cleaning.set()
        assert sorted(log) == sorted(["old over", "new", *["left"] * 2 * (how == "beside")])
        assert log[0] == "old over"
        assert client.connection is not None
        assert client.connection.channel == "ADMIN"
        assert client.state == "connected"


async def test_sends_accepted_before_a_switch_arrive() -> None:
    api = Brightsocket()
    received: list[int] = []

    @api.connect("A")
    async def channel(connection: Connection) -> None:
        @connection.on("NUMBER")
        async def number(value: int) -> None:
            received.append(value)

    api.connect("B", (), lambda connection: None)
    async with serving(api) as bound, open_client(bound.url) as client:
        connection = await client.connect("A")
        for value in range(50):
            await connection.send("NUMBER", value)
        await client.connect("B")
        assert received == list(range(50))
