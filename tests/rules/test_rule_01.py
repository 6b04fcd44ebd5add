"""Rule 1: everything is in a scope, and nothing outlives it."""

from __future__ import annotations

import base64
import hashlib
import os
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.abc import TaskStatus
from anyio.lowlevel import checkpoint

from brightsocket_anyio import Brightsocket, Connection, ConnectionLost, Refused, open_client
from brightsocket_anyio.protocol.state import Action, Ended, Event
from brightsocket_anyio.server import _Peer
from brightsocket_anyio.session import Session

from ..support import (
    PATIENCE,
    MemoryListener,
    Raw,
    census,
    census_at_rest,
    identified,
    joined,
    raw,
    serve_in,
    serving,
    serving_in_memory,
    until,
)

#: connects and abrupt losses on each loop; the design's promise is for 10,000
LOSSES = int(os.environ.get("BRIGHTSOCKET_LOSSES", "200"))


class Workload:
    """An API with a channel that has a task of each kind, every one of which takes its time to end."""

    def __init__(self, **settings: Any) -> None:
        self.api = Brightsocket(**settings)
        self.running: Counter[str] = Counter()
        self.connections: list[Connection] = []
        self.api.connect("WORK", self._channel)

    async def _linger(self, what: str) -> None:
        self.running[what] += 1
        try:
            # asyncio's timers hold the context of a cancelled sleep_forever() for a while, and with it the connection
            await anyio.Event().wait()
        finally:
            with anyio.CancelScope(shield=True):
                for _ in range(10):
                    await checkpoint()
            self.running[what] -= 1

    async def _channel(self, connection: Connection) -> None:
        self.connections.append(connection)

        @connection.on("HANDLE")
        async def handle() -> None:
            await self._linger("handler")

        @connection.on("FAIL")
        async def fail() -> None:
            raise LookupError("on purpose")

        @connection.on("REFUSE")
        async def refuse() -> None:
            raise Refused("not you")

        @connection.on("CLOSE")
        async def close() -> None:
            await connection.aclose()

        @connection.add_filter
        async def check(action: str, payload: Any, forward: Callable[[], Awaitable[None]]) -> None:
            if action == "FILTER":
                await self._linger("filter")
            await forward()

        @connection.on("FILTER")
        def filtered() -> None:
            raise AssertionError("the filter does not forward it")

        async with anyio.create_task_group() as tg:
            tg.start_soon(self._linger, "child")
            async with connection.receive("MESSAGE") as messages:
                await connection.accept()
                self.running["function"] += 1
                try:
                    async for _ in messages:
                        raise AssertionError("nobody sends it")
                finally:
                    with anyio.CancelScope(shield=True):
                        await checkpoint()
                    self.running["function"] -= 1

    @property
    def busy(self) -> bool:
        return self.running == {"handler": 1, "filter": 1, "child": 1, "function": 1}

    @property
    def over(self) -> bool:
        return not any(self.running.values())


@asynccontextmanager
async def at_work(work: Workload, bound: Any, *, eio: int = 4) -> AsyncGenerator[Raw]:
    """A raw peer on the workload's channel, all of whose tasks run."""
    async with identified(bound, "WORK", eio=eio) as peer:
        await peer.event("HANDLE")
        await peer.event("FILTER")
        await until(lambda: work.busy)
        yield peer


async def _leave(peer: Raw) -> None:
    await peer.send("41")


async def _close_session(peer: Raw) -> None:
    await peer.send("1")


async def _close_websocket(peer: Raw) -> None:
    peer.protocol.send_close(1000)
    await peer.send()


async def _vanish(peer: Raw) -> None:
    await peer.vanish()


async def _vanish_mid_binary(peer: Raw) -> None:
    await peer.send('451-["MESSAGE",{"_placeholder":true,"num":0}]')
    await peer.vanish()


async def _break_protocol(peer: Raw) -> None:
    await peer.send("4nonsense")


async def _break_framing(peer: Raw) -> None:
    await peer.stream.send(b"\xff\xff\xff\xff")


async def _provoke(action: str, peer: Raw) -> None:
    await peer.event(action)


ENDINGS: dict[str, Callable[[Raw], Awaitable[None]]] = {
    "leaves the namespace": _leave,
    "closes the session": _close_session,
    "closes the websocket": _close_websocket,
    "vanishes": _vanish,
    "vanishes mid-binary": _vanish_mid_binary,
    "breaks the protocol": _break_protocol,
    "breaks the framing": _break_framing,
    "handler fails": lambda peer: _provoke("FAIL", peer),
    "handler refuses": lambda peer: _provoke("REFUSE", peer),
    "handler closes": lambda peer: _provoke("CLOSE", peer),
    "switches to an unknown channel": lambda peer: peer.identify("NOWHERE"),
}


@pytest.mark.parametrize("eio", [3, 4])
@pytest.mark.parametrize("ending", ENDINGS)
async def test_however_a_connection_ends_its_tasks_have_finished_before_the_pool_lets_it_go(
    ending: str, eio: int
) -> None:
    work = Workload()
    async with serving(work.api) as bound, at_work(work, bound, eio=eio) as peer:
        [connection] = work.connections
        assert connection.id in work.api.pool
        await ENDINGS[ending](peer)
        while not work.over:
            assert connection.id in work.api.pool, f"gone while {work.running} still ran"
            await checkpoint()
        await until(lambda: connection.id not in work.api.pool)
        with pytest.raises((anyio.ClosedResourceError, anyio.EndOfStream, anyio.BrokenResourceError)):
            await connection.send("MESSAGE")


@pytest.mark.parametrize("ending", ["handler fails", "handler refuses", "handler closes"])
async def test_the_peer_hears_of_the_end_when_the_tasks_have_finished(ending: str) -> None:
    work = Workload()
    async with serving(work.api) as bound, at_work(work, bound) as peer:
        await ENDINGS[ending](peer)
        closed, left = await peer.receive(), await peer.receive()
        assert str(closed).startswith('42["BRIGHTSOCKET:CLOSED"')
        assert left == "41"
        assert work.over
        assert await peer.expect_end() == 1000


async def test_aclose_from_outside_returns_when_everything_has_finished() -> None:
    work = Workload()
    async with serving(work.api) as bound, at_work(work, bound):
        [connection] = work.connections
        with anyio.fail_after(PATIENCE):
            await connection.aclose()
        assert work.over
        assert len(work.api.pool) == 0
        await connection.aclose()


async def test_two_who_close_both_wait() -> None:
    work = Workload()
    seen: list[bool] = []

    async def close() -> None:
        await work.connections[0].aclose()
        seen.append(work.over)

    async with serving(work.api) as bound, at_work(work, bound):
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tg:
                tg.start_soon(close)
                tg.start_soon(close)
    assert seen == [True, True]


async def test_serve_owns_everything_that_it_serves() -> None:
    work = Workload(close_timeout=0.1)
    async with serving(work.api) as bound:
        await _lose(work, bound, 4)
    before = census()
    async with AsyncExitStack() as stack:
        async with anyio.create_task_group() as tg:
            bound = await tg.start(_serve, work.api)
            for _ in range(3):
                await stack.enter_async_context(identified(bound, "WORK"))
            waiting = await stack.enter_async_context(joined(bound))
            silent = await stack.enter_async_context(raw(bound))
            tg.cancel_scope.cancel()
        assert work.over, "serve has returned"
        assert len(work.api.pool) == 0
        assert await silent.expect_end() == 1001
        assert str(await waiting.receive()).startswith('42["BRIGHTSOCKET:CLOSED"')
        assert await waiting.expect_end() == 1001
    await _back_to(before, work)


async def _serve(api: Brightsocket, *, task_status: TaskStatus[Any]) -> None:
    await api.serve(port=0, task_status=task_status)


async def test_what_a_client_runs_is_over_when_open_client_is() -> None:
    api = Brightsocket()
    running: Counter[str] = Counter()

    async def linger(what: str) -> None:
        running[what] += 1
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                for _ in range(10):
                    await checkpoint()
            running[what] -= 1

    @api.connect("A")
    async def channel(connection: Any) -> None:
        await connection.send("MINE")
        await connection.send("CLIENTS")

    async with serving(api) as bound:
        # once for what is opened when it is first needed
        async with open_client(bound.url) as client:
            await client.connect("A")
        await until(lambda: len(api.pool) == 0)
        before = await census_at_rest()
        async with open_client(bound.url) as client:

            @client.on("CLIENTS")
            async def clients() -> None:
                await linger("client's handler")

            connection = await client.connect("A")

            @connection.on("MINE")
            async def mine() -> None:
                await linger("connection's handler")

            await until(lambda: sum(running.values()) == 2)
        assert running == {"client's handler": 0, "connection's handler": 0}
        assert client.connection is None
        await until(lambda: len(api.pool) == 0)
        del connection, client, clients, mine
        await _back_to(before)


@pytest.mark.parametrize("blocked", [False, True])
async def test_what_comes_while_a_scope_is_being_cancelled_starts_nothing_in_it(blocked: bool) -> None:
    """A scope that waits for its last tasks takes no new ones, which is nothing for its session to fail by."""

    async def cancel(scope: anyio.CancelScope) -> None:
        scope.cancel()

    api = Brightsocket()
    api.connect("X", lambda: None)
    async with serving(api) as bound:
        for _ in range(20):
            async with anyio.create_task_group() as outside:
                with anyio.CancelScope() as scope:
                    async with open_client(bound.url) as client:
                        connection = await client.connect("X")

                        @connection.on("ACTION", limit=100)
                        async def act() -> None:
                            if blocked:
                                await anyio.sleep_forever()

                        async def go_on(core: Any = connection._core) -> None:
                            """As the session's reader does, if its turn comes just then."""
                            try:
                                await anyio.sleep_forever()
                            finally:
                                core.deliver(Action("/", "ACTION", (), None, 1))

                        async with anyio.create_task_group() as inside:
                            for task_group in (inside, client._task_group):
                                task_group.start_soon(go_on)
                            await anyio.wait_all_tasks_blocked()
                            outside.start_soon(cancel, scope)


async def test_a_clients_aclose_returns_when_its_tasks_have_finished() -> None:
    api = Brightsocket()
    running = 0

    @api.connect("A")
    async def channel(connection: Any) -> None:
        await connection.send("GO")

    async with serving(api) as bound, open_client(bound.url) as client:
        connection = await client.connect("A")

        @connection.on("GO")
        async def go() -> None:
            nonlocal running
            running += 1
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await checkpoint()
                running -= 1

        await until(lambda: running == 1)
        with anyio.fail_after(PATIENCE):
            await connection.aclose()
        assert running == 0
        assert client.connection is None


async def test_a_lost_clients_connection_ends_with_its_tasks() -> None:
    """The server goes away; the client's streams end and its handlers are cancelled, and the client itself goes on."""
    api = Brightsocket()
    events: list[str] = []

    @api.connect("A")
    async def channel(connection: Any) -> None:
        await connection.send("GO")

    async with anyio.create_task_group() as tg:
        serving_scope = anyio.CancelScope()
        bound = await tg.start(serve_in, api, serving_scope)
        async with open_client(bound.url, reconnection=False) as client:
            connection = await client.connect("A")

            @connection.on("GO")
            async def go() -> None:
                events.append("running")
                try:
                    await anyio.Event().wait()
                finally:
                    events.append("cancelled")

            await until(lambda: events == ["running"])
            async with connection.receive("MESSAGE") as messages:
                serving_scope.cancel()
                with anyio.fail_after(PATIENCE), pytest.raises(ConnectionLost) as caught:
                    await messages.receive()
                assert caught.value.code == "server shutting down"
                with anyio.fail_after(PATIENCE):
                    await connection.aclose()
            assert events == ["running", "cancelled"]


@pytest.mark.parametrize("eio", [3, 4])
async def test_after_many_connects_and_abrupt_losses_the_counts_are_where_they_began(eio: int) -> None:
    work = Workload()
    async with serving(work.api) as bound:
        await _lose(work, bound, eio)
        before = await census_at_rest()
        for _ in range(LOSSES):
            await _lose(work, bound, eio)
        await _back_to(before)
    assert work.over


async def _lose(work: Workload, bound: Any, eio: int) -> None:
    async with at_work(work, bound, eio=eio) as peer:
        await peer.vanish()
    await until(lambda: work.over and len(work.api.pool) == 0)
    work.connections.clear()


async def test_losses_at_each_step_of_a_session_leave_nothing() -> None:
    work = Workload()
    api = work.api

    @api.connect("STUCK")
    async def stuck() -> None:
        await work._linger("stuck")

    async with serving(api) as bound:
        await _lose(work, bound, 4)
        before = await census_at_rest()
        for step in ("tcp", "request", "open", "joined", "identifying", "stuck", "binary"):
            async with await anyio.connect_tcp(*bound.addresses[0]) as stream:
                if step == "request":
                    await stream.send(b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: x\r\n")
            if step in ("open", "joined", "identifying", "stuck", "binary"):
                async with raw(bound) as peer:
                    if step != "open":
                        await peer.send("40")
                    if step == "identifying":
                        await peer.identify("WORK")
                    if step == "stuck":
                        await peer.identify("STUCK")
                        await peer.receive()
                    if step == "binary":
                        await peer.identify("WORK")
                        await peer.send('451-["MESSAGE",{"_placeholder":true,"num":0}]')
                    await peer.vanish()
            await until(lambda: work.over)
            await _back_to(before, work)


async def _back_to(before: Counter[str], work: Workload | None = None) -> None:
    left = before.copy()
    with anyio.move_on_after(PATIENCE):
        while left:
            if work is not None:
                work.connections.clear()
            await checkpoint()
            left = census() - before
    assert not left


@pytest.mark.mock_clock
@pytest.mark.parametrize("eio", [3, 4])
async def test_a_half_open_connection_is_closed_by_the_heartbeats_deadline_with_everything_in_it(eio: int) -> None:
    work = Workload(ping_interval=25, ping_timeout=20)
    async with serving_in_memory(work.api) as bound:
        async with identified(bound, "WORK", eio=eio) as peer:
            peer.patience = 1000
            await peer.event("HANDLE")
            await anyio.wait_all_tasks_blocked()
            assert not work.over
            start = anyio.current_time()
            messages = await peer.drain()
            assert anyio.current_time() - start == pytest.approx(45, abs=1)
        assert messages == (["2"] if eio == 4 else [])
        await anyio.wait_all_tasks_blocked()
        assert work.over
        assert len(work.api.pool) == 0


@pytest.mark.mock_clock
@pytest.mark.parametrize("eio", [3, 4])
async def test_a_peer_that_answers_the_heartbeat_stays(eio: int) -> None:
    work = Workload(ping_interval=25, ping_timeout=20)
    async with serving_in_memory(work.api) as bound, identified(bound, "WORK", eio=eio) as peer:
        peer.patience = 1000
        for _ in range(20):
            if eio == 4:
                await peer.expect("2")
                await peer.send("3")
            else:
                await anyio.sleep(25)
                await peer.send("2")
                await peer.expect("3")
        assert anyio.current_time() > 400
        assert len(work.api.pool) == 1


@pytest.mark.mock_clock
@pytest.mark.parametrize("eio", [3, 4])
async def test_a_client_notices_that_its_server_is_half_open(eio: Any) -> None:
    """The connection stands and nothing comes: the client's heartbeat ends it, and its tasks."""
    listener = MemoryListener()
    cancelled = anyio.Event()

    async def serve_one(stream: Any) -> None:
        async with stream:
            await half_open(stream)

    async def half_open(stream: Any) -> None:
        head = await stream.receive()
        key = head.split(b"Sec-WebSocket-Key: ", 1)[1].split(b"\r\n", 1)[0]
        await stream.send(_switching(key))
        await stream.send(_text('0{"sid":"x","upgrades":[],"pingInterval":25000,"pingTimeout":20000}'))
        await stream.send(_text('40{"sid":"y"}' if eio == 4 else "40"))
        await stream.send(_text('42["BRIGHTSOCKET:IDENTIFIED"]'))
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tg:
        tg.start_soon(listener.serve, serve_one)
        async with (
            listener.http() as http,
            open_client("http://memory", http=http, eio=eio, reconnection=False) as client,
        ):
            start = anyio.current_time()
            connection = await client.connect("A")

            async def hold() -> None:
                try:
                    await anyio.sleep_forever()
                finally:
                    cancelled.set()

            connection._core.start(hold)
            async with connection.receive("MESSAGE") as messages:
                with pytest.raises(ConnectionLost) as caught:
                    await messages.receive()
            assert caught.value.code == "ping timeout"
            assert 25 <= anyio.current_time() - start <= 46
            with anyio.fail_after(1):
                await cancelled.wait()
        tg.cancel_scope.cancel()
    await listener.aclose()


@pytest.mark.parametrize("grace", [0, PATIENCE])
@pytest.mark.parametrize("around", ["it has failed", "it is cancelled", "it is cancelled while the client switches"])
async def test_what_runs_in_a_connection_ends_with_its_session(
    around: str, grace: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scope is shielded from its session's as long as that is well: a failure, or a cancellation, comes through."""
    api = Brightsocket()
    running = cancelled = 0

    @api.connect("WORK", grace=grace)
    async def work(connection: Connection) -> None:
        @connection.on("BLOCK", limit=2)
        async def block() -> None:
            nonlocal running, cancelled
            running += 1
            try:
                await anyio.sleep_forever()
            finally:
                cancelled += 1

        await connection.accept()
        await connection.send("READY")
        await connection.receive("NEVER").receive()

    def fail(self: Session, event: Event) -> None:
        if self is sessions[0]:
            raise RuntimeError("a bug")
        handle(self, event)

    sessions: list[Session] = []
    original, handle = Session.run, Session._handle

    async def run(self: Session, *args: Any) -> Ended:
        sessions.append(self)
        return await original(self, *args)

    monkeypatch.setattr(Session, "run", run)
    async with serving(api) as bound, identified(bound, "WORK") as peer:
        await peer.expect_event("READY")
        await peer.event("BLOCK")
        await peer.event("BLOCK")
        await until(lambda: running == 2)
        [session] = sessions
        if "switches" in around:
            # with a grace, the connection goes on for now though it has ended
            await peer.identify("WORK")
            await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(PATIENCE / 2):
            if "failed" in around:
                monkeypatch.setattr(Session, "_handle", fail)
                # for the session's own task
                await peer.send("41")
            else:
                session.task_group.cancel_scope.cancel()
            await peer.drain()
            await until(lambda: session.closed and cancelled == 2)
        # nobody else has noticed
        async with identified(bound, "WORK") as other:
            await other.expect_event("READY")


async def test_a_connection_that_begins_as_its_session_is_cancelled_is_cancelled_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    api = Brightsocket()
    ran: list[str] = []

    @api.connect("/work")
    async def work(connection: Connection) -> None:
        ran.append("begun")
        try:
            await anyio.sleep_forever()
        finally:
            ran.append("over")

    begin = _Peer._begin_visit

    def begin_and_cancel(self: _Peer, *args: Any) -> None:
        begin(self, *args)
        self.session.task_group.cancel_scope.cancel()

    monkeypatch.setattr(_Peer, "_begin_visit", begin_and_cancel)
    with anyio.fail_after(PATIENCE):
        # on Trio, which of the two tasks is first is chance
        for _ in range(10):
            async with serving(api) as bound, raw(bound) as peer:
                await peer.send("40/work,")
                await peer.drain()
    assert ran.count("begun") == ran.count("over")


def _switching(key: bytes) -> bytes:
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


def _text(message: str) -> bytes:
    assert len(message) < 126
    return bytes([0x81, len(message)]) + message.encode()
