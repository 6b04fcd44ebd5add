"""The client comes back: over cuts, restarts and half-open connections, with its handlers, streams and sends."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

from brightsocket_anyio import (
    Brightsocket,
    ChannelRefused,
    Client,
    Connection,
    ConnectionLost,
    Refused,
    open_client,
)

from .proxy import Proxy, address_of, proxied
from .support import PATIENCE, census, census_at_rest, serve_in, serving, serving_in_memory, until

pytestmark = pytest.mark.anyio

#: so that a test does not wait for what it is not about
QUICK: dict[str, Any] = {"reconnection_delay": 0.01, "reconnection_delay_max": 0.05}


class Desk:
    """An API with one channel, which notes who comes and what they say."""

    def __init__(self, **settings: Any) -> None:
        # at the end of a test, nobody polls any more for whom a session waits
        self.api = Brightsocket(close_timeout=0.1, **settings)
        self.visits: list[Connection] = []
        self.said: list[Any] = []
        self.refusal: Refused | None = None
        self.answering = anyio.Event()
        self.api.connect("DESK", self.desk)
        self.api.connect("/desk", self.desk)

    async def desk(self, connection: Connection, identity: Any) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.visits.append(connection)
        connection.on("SAY")(self.said.append)
        connection.on("ECHO")(lambda value: value)

        @connection.on("WAIT")
        async def wait() -> None:
            await self.answering.wait()


@asynccontextmanager
async def behind_proxy(desk: Desk) -> AsyncGenerator[Proxy]:
    async with serving(desk.api) as bound, proxied(bound) as proxy:
        yield proxy


async def cut_off(proxy: Proxy, client: Client) -> None:
    """Lose the session, and keep the client away."""
    proxy.refusing = True
    proxy.cut()
    await until(lambda: client.state == "reconnecting")


async def let_back(proxy: Proxy, client: Client) -> None:
    proxy.refusing = False
    await until(lambda: client.state == "connected")


@pytest.mark.parametrize("eio", [3, 4])
@pytest.mark.parametrize("channel", ["DESK", "/desk"])
@pytest.mark.parametrize("transport", ["websocket", "polling", ("polling", "websocket")], ids=str)
async def test_handlers_streams_and_sends_go_on_over_a_cut(transport: Any, channel: str, eio: Any) -> None:
    desk = Desk()
    heard: list[Any] = []
    async with (
        behind_proxy(desk) as proxy,
        open_client(proxy.url, transport=transport, eio=eio, **QUICK) as client,
    ):
        client.on("NEWS")(heard.append)
        connection = await client.connect(channel, {"name": "ada"})
        connection.on("NEWS")(heard.append)
        async with connection.receive("NEWS") as news:
            first_id = connection.id
            for round in range(3):
                await cut_off(proxy, client)
                await connection.send("SAY", f"away {round}")
                await let_back(proxy, client)
                await connection.send("SAY", f"back {round}")
                assert await connection.call("ECHO", round) == round
                await desk.api.pool.emit("NEWS", round)
                assert await news.receive() == round
                await until(lambda wanted=2 * (round + 1): len(heard) == wanted)  # type: ignore[misc]
        assert client.connection is connection
        assert connection.id == desk.visits[-1].id != first_id
    assert heard == [0, 0, 1, 1, 2, 2]
    assert desk.said == ["away 0", "back 0", "away 1", "back 1", "away 2", "back 2"]
    assert [dict(visit.identity) for visit in desk.visits] == [{"name": "ada"}] * 4


async def test_state_tells_what_becomes_of_the_client() -> None:
    desk = Desk()
    async with behind_proxy(desk) as proxy:
        async with open_client(proxy.url, **QUICK) as client:
            assert client.state == "disconnected"
            states = client.states()
            async with client.states():
                pass
            await client.connect("DESK")
            await cut_off(proxy, client)
            await let_back(proxy, client)
            await client.connect("/desk")
            await client.disconnect()
        async with states:
            heard = [state async for state in states]
    assert heard == [
        "connecting",
        "connected",
        "reconnecting",
        "connected",
        "connecting",
        "connected",
        "disconnected",
    ]
    async with client.states() as none:
        assert [state async for state in none] == []


async def test_a_reader_of_states_that_is_slow_misses_the_oldest() -> None:
    desk = Desk()
    async with serving(desk.api) as bound, open_client(bound.url) as client, client.states() as states:
        await client.connect("DESK")
        for _ in range(40):
            await client.connect("DESK")
            await client.disconnect()
        await client.connect("DESK")
        kept = [await states.receive() for _ in range(100)]
        assert kept[-4:] == ["connected", "disconnected", "connecting", "connected"]


async def test_a_server_that_restarts_has_its_clients_back() -> None:
    first, second = Desk(), Desk()
    async with anyio.create_task_group() as tg:
        scope = anyio.CancelScope()
        bound = await tg.start(serve_in, first.api, scope)
        async with proxied(bound) as proxy, open_client(proxy.url, **QUICK) as client:
            connection = await client.connect("DESK")
            await connection.send("SAY", "to the first")
            await until(lambda: first.said)
            async with connection.receive("NEVER"):
                scope.cancel()
                await until(lambda: client.state == "reconnecting")
                await connection.send("SAY", "to the second")
                async with serving(second.api) as successor:
                    proxy.target = address_of(successor)
                    await until(lambda: second.said)
                    await client.disconnect()
    assert (first.said, second.said) == (["to the first"], ["to the second"])


async def test_calls_under_way_fail_at_once_and_later_ones_are_answered() -> None:
    desk = Desk()
    async with behind_proxy(desk) as proxy, open_client(proxy.url, **QUICK) as client:
        connection = await client.connect("DESK")
        failures: list[ConnectionLost] = []

        async def ask() -> None:
            with pytest.raises(ConnectionLost, match="the call was under way") as caught:
                await connection.call("WAIT")
            failures.append(caught.value)

        async with anyio.create_task_group() as tg:
            for _ in range(3):
                tg.start_soon(ask)
            async with connection.receive("ECHO"):
                assert await connection.call("ECHO", "all are under way") == "all are under way"
            await cut_off(proxy, client)
        # every call has failed, and the client is away
        assert client.state == "reconnecting"
        assert {failure.code for failure in failures} <= {"transport close", "transport error"}
        answers: list[Any] = []

        async def ask_while_away() -> None:
            answers.append(await connection.call("ECHO", 1))

        async with anyio.create_task_group() as tg:
            tg.start_soon(ask_while_away)
            await anyio.lowlevel.checkpoint()
            await let_back(proxy, client)
        assert answers == [1]


async def test_sends_while_away_wait_in_a_bounded_buffer() -> None:
    desk = Desk()
    async with (
        behind_proxy(desk) as proxy,
        open_client(proxy.url, max_buffered_messages=3, **QUICK) as client,
    ):
        connection = await client.connect("DESK")
        await cut_off(proxy, client)
        for number in range(3):
            await connection.send("SAY", number)
        with anyio.move_on_after(0.05) as scope:
            await connection.send("SAY", "never sent")
        assert scope.cancelled_caught
        async with anyio.create_task_group() as tg:
            tg.start_soon(connection.send, "SAY", 3)
            await let_back(proxy, client)
        await connection.send("SAY", 4)
        await until(lambda: len(desk.said) == 5)
    assert desk.said == [0, 1, 2, 3, 4]


async def test_sends_and_calls_while_away_fail_if_so_chosen() -> None:
    desk = Desk()
    async with behind_proxy(desk) as proxy, open_client(proxy.url, while_away="fail", **QUICK) as client:
        connection = await client.connect("DESK")
        await cut_off(proxy, client)
        for use in (connection.send, connection.call):
            with pytest.raises(ConnectionLost):
                await use("SAY", "never said")
        await let_back(proxy, client)
        await connection.call("SAY", "said")
    assert desk.said == ["said"]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_the_identity_is_asked_for_each_time(asynchronous: bool) -> None:
    desk = Desk()
    numbers = itertools.count()

    def ask() -> dict[str, Any]:
        return {"number": next(numbers)}

    async def ask_slowly() -> dict[str, Any]:
        await anyio.lowlevel.checkpoint()
        return ask()

    async with behind_proxy(desk) as proxy, open_client(proxy.url, **QUICK) as client:
        connection = await client.connect("DESK", ask_slowly if asynchronous else ask)
        assert connection.identity == {"number": 0}
        for number in (1, 2):
            proxy.cut()
            await until(lambda wanted=number + 1: len(desk.visits) == wanted and client.state == "connected")  # type: ignore[misc]
            assert connection.identity == {"number": number}
    assert [dict(visit.identity) for visit in desk.visits] == [{"number": 0}, {"number": 1}, {"number": 2}]


class WrongPasswordError(Exception):
    pass


async def be_asked_twice(proxy: Proxy, ask: Callable[[], dict[str, Any]]) -> None:
    async with open_client(proxy.url, **QUICK) as client:
        connection = await client.connect("DESK", ask)
        proxy.cut()
        async with connection.receive("NEVER") as nothing:
            await nothing.receive()


async def test_an_identity_that_cannot_be_had_comes_out() -> None:
    desk = Desk()
    asked = itertools.count()

    def ask() -> dict[str, Any]:
        if next(asked) == 1:
            raise WrongPasswordError
        return {}

    def fail() -> dict[str, Any]:
        raise WrongPasswordError

    async with behind_proxy(desk) as proxy:
        async with open_client(proxy.url, **QUICK) as client:
            with pytest.raises(WrongPasswordError):
                await client.connect("DESK", fail)
            with pytest.raises(ValueError, match="surrogate"):
                await client.connect("DESK", lambda: {"name": "\ud800"})
            await client.connect("DESK")
        with pytest.raises(WrongPasswordError):
            await be_asked_twice(proxy, ask)


async def test_a_refusal_ends_the_coming_back() -> None:
    desk = Desk()
    async with behind_proxy(desk) as proxy, open_client(proxy.url, **QUICK) as client:
        connection = await client.connect("DESK")
        desk.refusal = Refused("you have been away for too long")
        async with connection.receive("NEVER") as nothing:
            proxy.cut()
            with pytest.raises(ConnectionLost, match="you have been away for too long") as caught:
                await nothing.receive()
        assert caught.value.code == "refused"
        assert client.connection is None
        await until(lambda: client.state == "disconnected")
        with pytest.raises(ChannelRefused):
            await client.connect("DESK")
        desk.refusal = None
        await client.connect("DESK")
        assert client.state == "connected"


async def test_a_handshake_that_is_forbidden_ends_it_too() -> None:
    welcome = True
    desk = Desk(authorize=lambda request: welcome)

    async with behind_proxy(desk) as proxy, open_client(proxy.url, **QUICK) as client:
        connection = await client.connect("DESK")
        welcome = False
        async with connection.receive("NEVER") as nothing:
            proxy.cut()
            with pytest.raises(ConnectionLost, match="403") as caught:
                await nothing.receive()
        assert caught.value.code == "refused"


async def test_what_the_server_ends_is_over() -> None:
    desk = Desk()
    async with behind_proxy(desk) as proxy, open_client(proxy.url, **QUICK) as client:
        connection = await client.connect("DESK")
        async with connection.receive("NEVER") as nothing:
            await desk.visits[0].aclose()
            with pytest.raises(anyio.EndOfStream):
                await nothing.receive()
        await until(lambda: client.state == "disconnected")
        assert proxy.accepted == 1


async def test_reconnection_can_be_turned_off() -> None:
    desk = Desk()
    async with behind_proxy(desk) as proxy, open_client(proxy.url, reconnection=False) as client:
        connection = await client.connect("DESK")
        async with connection.receive("NEVER") as nothing:
            proxy.cut()
            with pytest.raises(ConnectionLost):
                await nothing.receive()
        assert proxy.accepted == 1


async def test_attempts_can_be_counted() -> None:
    desk = Desk()
    async with (
        behind_proxy(desk) as proxy,
        open_client(proxy.url, transport="websocket", reconnection_attempts=3, **QUICK) as client,
    ):
        connection = await client.connect("DESK")
        async with connection.receive("NEVER") as nothing:
            proxy.refusing = True
            proxy.cut()
            with pytest.raises(ConnectionLost, match="tried 3 times to come back"):
                await nothing.receive()
        assert proxy.accepted == 4


async def test_a_first_connect_is_not_tried_again() -> None:
    desk = Desk()
    async with behind_proxy(desk) as proxy, open_client(proxy.url, transport="websocket", **QUICK) as client:
        proxy.refusing = True
        with pytest.raises(Exception, match="cannot connect"):
            await client.connect("DESK")
        assert proxy.accepted == 1
        await until(lambda: client.state == "disconnected")


async def census_between_clients(desk: Desk, proxy: Proxy) -> Counter[str]:
    """What is alive after a client has come and gone."""
    async with open_client(proxy.url) as client:
        await client.connect("DESK")
    proxy.accepted = 0
    del client
    counts = Counter[str]()

    def settled() -> bool:
        nonlocal counts
        desk.visits.clear()
        before, counts = counts, census()
        return before == counts and not len(desk.api.pool) and not counts["Session"]

    await until(settled)
    return counts


async def nothing_is_left(desk: Desk, before: Counter[str]) -> None:
    """All that is alive beyond what was is soon gone."""
    desk.visits.clear()
    await until(lambda: not census() - before)


@pytest.mark.parametrize("leave", ["disconnect", "connect", "aclose", "cancel", "exit"])
@pytest.mark.parametrize("stage", ["waiting", "dialling"])
async def test_leaving_while_away_stops_it_at_once(stage: str, leave: str) -> None:
    desk = Desk()
    delay = 1000 if stage == "waiting" else 0.01
    client: Client
    async with behind_proxy(desk) as proxy:
        before = await census_between_clients(desk, proxy)
        with anyio.fail_after(PATIENCE), anyio.CancelScope() as scope:
            async with open_client(
                proxy.url, reconnection_delay=delay, reconnection_delay_max=delay, connect_timeout=1000
            ) as client:
                connection = await client.connect("DESK")
                proxy.freeze()
                proxy.cut()
                await until(lambda: client.state == "reconnecting")
                if stage == "dialling":
                    await until(lambda: proxy.accepted == 2)
                match leave:
                    case "disconnect":
                        await client.disconnect()
                        assert client.state == "disconnected"
                    case "connect":
                        proxy.thaw()
                        assert (await client.connect("/desk")).channel == "/desk"
                    case "aclose":
                        await connection.aclose()
                        await until(lambda: client.state == "disconnected")
                    case "cancel":
                        scope.cancel()
        del connection
        proxy.cut()
        proxy.thaw()
        await nothing_is_left(desk, before)


@pytest.mark.mock_clock
async def test_attempts_are_spread_over_a_growing_time() -> None:
    """Exponential backoff with full jitter: uniformly anything up to a bound that doubles, up to the maximum."""
    desk = Desk()
    times: list[float] = []
    enough = anyio.Event()
    up = True

    async def note(request: httpx.Request) -> None:
        times.append(anyio.current_time())
        if len(times) == 305:
            enough.set()
        if not up:
            raise httpx.ConnectError("nobody there")

    async with serving_in_memory(desk.api) as bound, bound.http() as http:
        http.event_hooks = {"request": [note]}
        async with open_client("http://memory", http=http, reconnection_delay=2, reconnection_delay_max=30) as client:
            connection = await client.connect("DESK")
            up = False
            await connection._core.session.transport.aclose()
            await until(lambda: client.state == "reconnecting")
            times[0] = anyio.current_time()
            await enough.wait()
            await client.disconnect()
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    for wait, bound_ in zip(waits, (2, 4, 8, 16, *[30] * 1000), strict=False):
        assert 0 <= wait <= bound_
    late = sorted(waits[4:])
    # 300 numbers of which each is one of 0 to 30 with the same probability
    assert late[0] < 3
    assert 10 < late[len(late) // 2] < 20
    assert late[-1] > 27


@pytest.mark.mock_clock
async def test_a_server_that_lets_nobody_in_again_is_tried_again() -> None:
    """It opens the session and says nothing more: nobody else would end such an attempt."""
    hanging, visited_again = anyio.Event(), anyio.Event()
    hanging.set()
    visits = 0
    api = Brightsocket(identify_timeout=10_000)

    @api.connect("DESK")
    async def desk(connection: Connection) -> None:
        nonlocal visits
        visits += 1
        if visits == 4:
            visited_again.set()
        await hanging.wait()
        await connection.accept()

    async with (
        serving_in_memory(api) as bound,
        bound.http() as http,
        open_client("http://memory", http=http, connect_timeout=100) as client,
    ):
        connection = await client.connect("DESK")
        hanging = anyio.Event()
        start = anyio.current_time()
        await connection._core.session.transport.aclose()
        await visited_again.wait()
        assert 200 < anyio.current_time() - start < 220
        hanging.set()
        await until(lambda: client.state == "connected")


@pytest.mark.mock_clock
@pytest.mark.parametrize("stage", ["waiting", "dialling"])
async def test_a_connection_that_is_ending_does_not_come_back(stage: str) -> None:
    """Its handlers have time to finish, for which nobody needs a session."""
    desk = Desk()
    up, dialling = True, anyio.Event()
    requests = 0

    async def note(request: httpx.Request) -> None:
        nonlocal requests
        requests += 1
        if not up:
            raise httpx.ConnectError("nobody there")
        if requests > 1 and stage == "dialling":
            dialling.set()
            await anyio.sleep(10)

    async with serving_in_memory(desk.api) as bound, bound.http() as http:
        http.event_hooks = {"request": [note]}
        async with open_client("http://memory", http=http, grace=1000) as client:
            connection = await client.connect("DESK")
            running, finishing = anyio.Event(), anyio.Event()

            @connection.on("GO")
            async def go() -> None:
                running.set()
                await finishing.wait()

            await desk.api.pool.emit("GO")
            await running.wait()
            up = stage == "dialling"
            await connection._core.session.transport.aclose()
            await until(lambda: client.state == "reconnecting")
            if stage == "dialling":
                await dialling.wait()
            async with anyio.create_task_group() as tg:
                tg.start_soon(connection.aclose)
                await anyio.lowlevel.checkpoint()
                before = requests
                await anyio.sleep(500)
                assert requests == before
                assert len(desk.visits) == 1
                finishing.set()
            await until(lambda: client.state == "disconnected")


async def test_an_answer_does_not_go_to_a_session_that_did_not_ask() -> None:
    """Ack ids begin anew with a session: a late answer would be taken for that of another call."""
    desk = Desk()
    asked, answering = anyio.Event(), anyio.Event()
    async with behind_proxy(desk) as proxy, open_client(proxy.url, **QUICK) as client:
        connection = await client.connect("DESK")

        @connection.on("SLOWLY")
        async def slowly() -> str:
            asked.set()
            await answering.wait()
            return "too late"

        @connection.on("QUICKLY")
        async def quickly() -> str:
            await slow_is_answered.wait()
            return "in time"

        slow_is_answered = anyio.Event()
        async with anyio.create_task_group() as tg:

            async def ask_first() -> None:
                with pytest.raises(anyio.BrokenResourceError):
                    await desk.visits[0].call("SLOWLY")

            tg.start_soon(ask_first)
            await asked.wait()
            proxy.cut()
            await until(lambda: len(desk.visits) == 2 and client.state == "connected")
            answers: list[Any] = []

            async def ask_second() -> None:
                answers.append(await desk.visits[1].call("QUICKLY"))

            tg.start_soon(ask_second)
            await connection.call("ECHO", "the second question is on its way")
            answering.set()
            assert await connection.call("ECHO", "the first is answered") == "the first is answered"
            slow_is_answered.set()
        assert answers == ["in time"]


async def test_a_handler_of_the_clients_may_go_elsewhere_while_it_is_away() -> None:
    desk = Desk()
    long: dict[str, Any] = {"reconnection_delay": 10_000, "reconnection_delay_max": 10_000}
    async with behind_proxy(desk) as proxy, open_client(proxy.url, **long) as client:
        away, arrived = anyio.Event(), anyio.Event()

        @client.on("MOVE")
        async def move() -> None:
            await away.wait()
            await client.connect("/desk")
            arrived.set()

        old = await client.connect("DESK")
        await desk.api.pool.emit("MOVE")
        assert await old.call("ECHO", "it has come") == "it has come"
        proxy.cut()
        await until(lambda: client.state == "reconnecting")
        away.set()
        with anyio.fail_after(PATIENCE):
            await arrived.wait()
        assert client.connection is not None
        assert client.connection.channel == "/desk"
        with pytest.raises(anyio.ClosedResourceError):
            await old.send("SAY")


async def test_what_was_accepted_is_sent_once_or_was_under_way() -> None:
    """A stream of numbers over many cuts: each arrives once at most, in order, and few are missing."""
    desk = Desk()
    total = 600
    async with behind_proxy(desk) as proxy, open_client(proxy.url, **QUICK) as client:
        connection = await client.connect("DESK")
        for number in range(total):
            await connection.send("SAY", number)
            if number % 100 == 50:
                visits = len(desk.visits)
                proxy.cut()
                await until(lambda before=visits: len(desk.visits) > before)  # type: ignore[misc]
        await connection.call("ECHO", "after them all")
    assert desk.said == sorted(set(desk.said))
    assert len(desk.said) >= total - 6 * 256
    assert desk.said[-1] == total - 1


async def test_nothing_is_left_of_the_sessions_before() -> None:
    desk = Desk()
    async with behind_proxy(desk) as proxy, open_client(proxy.url, **QUICK) as client:
        connection = await client.connect("DESK")
        before: Counter[str] | None = None
        for number in range(20):
            proxy.cut()
            await until(lambda wanted=number + 2: proxy.accepted == wanted and client.state == "connected")  # type: ignore[misc]
            await connection.call("ECHO", number)
            await until(lambda: len(desk.api.pool) == 1)
            desk.visits.clear()
            if before is None:
                await until(lambda: census()["Session"] == 2)
                before = await census_at_rest()
        await nothing_is_left(desk, before or Counter())


@pytest.mark.parametrize("transport", ["websocket", "polling"])
@pytest.mark.parametrize("window", [None, 60])
async def test_full_receivers_do_not_keep_it_from_coming_back(transport: Any, window: float | None) -> None:
    """Who reads them may have something to send first, which waits until the client is let in again."""
    desk = Desk(max_disconnection_duration=window)
    options: Any = {**QUICK, "transport": transport, "max_buffered_messages": 2}
    async with serving(desk.api) as bound, open_client(bound.url, **options) as client:
        connection = await client.connect("DESK")
        async with connection.receive("NEWS") as news:
            for number in range(10):
                await desk.api.pool.emit("NEWS", number)
            await until(lambda: connection._core.inbox.full)
            # it does not read, so it would notice a cut at its next heartbeat only
            connection._core.session.end("transport error", "cut", flush=False)
            await until(lambda: client.state == "reconnecting")
            with anyio.fail_after(PATIENCE):
                for number in range(5):
                    await connection.send("SAY", number)
                await until(lambda: desk.said == list(range(5)))
                # what had come before the loss at least, and all of it where that is recovered
                got = [await news.receive() for _ in range(10 if window else 4)]
        assert got == list(range(len(got)))
