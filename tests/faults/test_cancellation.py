"""Cancelled at each checkpoint in turn, an operation is done or it is not; nothing is left, and what follows works."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from types import coroutine
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from brightsocket_anyio import Brightsocket, Client, Connection, ConnectionLost, open_client

from ..support import PATIENCE, census, census_at_rest, serving_in_memory, until

#: more checkpoints than any operation here has
MANY = 300
TRANSPORTS = pytest.mark.parametrize("transport", ["websocket", "polling"])


class Cancelling:
    """Runs an operation in a cancel scope, which it cancels when the operation waits for the n-th time.

    :ivar waits: how often the operation has waited.
    """

    def __init__(self, at: int) -> None:
        self._at = at
        self.waits = 0
        self.result: Any = None
        self.completed = False

    async def run(self, operation: Callable[[], Awaitable[Any]]) -> None:
        with anyio.CancelScope() as scope:
            self.result = await self._drive(operation(), scope)
            self.completed = True

    @coroutine
    def _drive(self, awaitable: Awaitable[Any], scope: anyio.CancelScope) -> Generator[Any, Any, Any]:
        steps = awaitable.__await__()
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                wanted = steps.send(value) if error is None else steps.throw(error)
            except StopIteration as exc:
                return exc.value
            value = error = None
            self.waits += 1
            if self.waits == self._at:
                scope.cancel()
            try:
                value = yield wanted
            except BaseException as exc:
                error = exc


class Place:
    """A server, and what its channel has seen."""

    def __init__(self, transport: Any = "websocket", **settings: Any) -> None:
        self.api = Brightsocket(close_timeout=1, **settings)
        self.transport = transport
        self.seen: list[Any] = []
        self.api.connect("WORK", self._work)

    async def _work(self, connection: Connection) -> None:
        @connection.on("SEEN")
        def seen(*values: Any) -> None:
            self.seen.append(values)

        @connection.on("ECHO")
        async def echo(value: Any) -> Any:
            await checkpoint()
            return value

        @connection.on("TELL")
        async def tell(value: Any) -> None:
            await connection.send("TOLD", value)

    @asynccontextmanager
    async def client(self, **options: Any) -> AsyncGenerator[Client]:
        async with (
            serving_in_memory(self.api) as listener,
            listener.http() as http,
            open_client("http://memory", http=http, close_timeout=1, transport=self.transport, **options) as client,
        ):
            yield client

    async def works(self, client: Client) -> None:
        """The client can be used, on the channel that it is on or on a new one, and nobody else is connected."""
        with anyio.fail_after(PATIENCE):
            connection = client.connection or await client.connect("WORK")
            assert await connection.call("ECHO", "still") == "still"
            await until(lambda: len(self.api.pool) == 1)


async def at_each_checkpoint(act: Callable[[int], Awaitable[bool]]) -> None:
    """Act, with a cancellation at the first checkpoint, the second, and so on, until it completes without one.

    :param act: says whether the operation had fewer checkpoints than that.
    """
    before = None
    for at in range(1, MANY):
        through = await act(at)
        # the server's tasks end a moment after their sessions; the first round leaves what is made once and kept
        before = before or await census_at_rest()
        left = census() - before
        with anyio.move_on_after(PATIENCE):
            while left:
                await checkpoint()
                left = census() - before
        assert not left, f"left behind by a cancellation at checkpoint {at}"
        if through:
            return
    raise AssertionError("too many checkpoints")


@TRANSPORTS
async def test_connect(transport: str) -> None:
    place = Place(transport)

    async def act(at: int) -> bool:
        cancelling = Cancelling(at)
        async with place.client() as client:
            await cancelling.run(lambda: client.connect("WORK"))
            assert (client.connection is None) is not cancelling.completed
            await place.works(client)
        await until(lambda: len(place.api.pool) == 0)
        return cancelling.waits < at

    await at_each_checkpoint(act)


@TRANSPORTS
async def test_connect_as_a_switch(transport: str) -> None:
    place = Place(transport)

    async def act(at: int) -> bool:
        cancelling = Cancelling(at)
        async with place.client() as client:
            old = await client.connect("WORK")
            await cancelling.run(lambda: client.connect("WORK"))
            assert (client.connection is None) is not cancelling.completed
            with pytest.raises(anyio.ClosedResourceError):
                await old.send("SEEN")
            await place.works(client)
        await until(lambda: len(place.api.pool) == 0)
        return cancelling.waits < at

    await at_each_checkpoint(act)


@TRANSPORTS
@pytest.mark.parametrize("payload", [["text"], [b"one", {"and": b"another"}]], ids=["text", "binary"])
async def test_send(payload: list[Any], transport: str) -> None:
    """The message is seen whole, or not at all; the ones before and after it are not touched."""
    place = Place(transport)

    async def act(at: int) -> bool:
        cancelling = Cancelling(at)
        place.seen.clear()
        async with place.client() as client:
            connection = await client.connect("WORK")
            await connection.send("SEEN", "before")
            await cancelling.run(lambda: connection.send("SEEN", *payload))
            await connection.send("SEEN", "after")
            await until(lambda: place.seen[-1:] == [("after",)])
            middle = [tuple(payload)] if cancelling.completed else []
            assert place.seen in ([("before",), *middle, ("after",)], [("before",), tuple(payload), ("after",)])
            await place.works(client)
        return cancelling.waits < at

    await at_each_checkpoint(act)


@pytest.mark.mock_clock
async def test_send_while_the_buffer_is_full() -> None:
    """Cancelled at each of the moments of waiting for room, messages of several packets stay whole and in order."""
    api = Brightsocket(max_buffered_messages=1, stall_timeout=1000)
    seen: list[Any] = []
    gate = anyio.Event()

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        @connection.on("SEEN")
        async def note(number: int, data: bytes) -> None:
            await gate.wait()
            seen.append((number, data))

    async with (
        serving_in_memory(api, capacity=1) as listener,
        listener.http() as http,
        open_client("http://memory", http=http, max_buffered_messages=1) as client,
    ):
        connection = await client.connect("WORK")
        sent: list[int] = []
        for number in range(100):
            with anyio.move_on_after(0.001 * (number % 3)):
                await connection.send("SEEN", number, b"%d" % number)
                sent.append(number)
        # some were held back, and given up
        assert 1 < len(sent) < 100
        gate.set()
        await connection.send("SEEN", 100, b"100")
        await until(lambda: seen and seen[-1][0] == 100)
        assert seen == [(number, b"%d" % number) for number in [*sent, 100]]


@TRANSPORTS
async def test_call(transport: str) -> None:
    place = Place(transport)

    async def act(at: int) -> bool:
        cancelling = Cancelling(at)
        async with place.client() as client:
            connection = await client.connect("WORK")
            await cancelling.run(lambda: connection.call("ECHO", 1))
            if cancelling.completed:
                assert cancelling.result == 1
            # the next call gets its own answer, and no call is kept
            assert await connection.call("ECHO", 2) == 2
            assert not connection._core.calling
            await place.works(client)
        return cancelling.waits < at

    await at_each_checkpoint(act)


@pytest.mark.parametrize("waiting", [False, True], ids=["something-there", "nothing-there"])
async def test_receive(waiting: bool) -> None:
    """What a cancelled receive has not returned is still there, for the next one."""
    place = Place()

    async def act(at: int) -> bool:
        cancelling = Cancelling(at)
        async with place.client() as client:
            connection = await client.connect("WORK")
            async with connection.receive("TOLD") as told:
                await connection.send("TELL", 1)
                await connection.send("TELL", 2)
                if not waiting:
                    await connection.call("ECHO", 0)
                await cancelling.run(told.receive)
                received = [cancelling.result] if cancelling.completed else []
                with anyio.fail_after(PATIENCE):
                    while len(received) < 2:
                        received.append(await told.receive())
                assert received == [1, 2]
            await place.works(client)
        return cancelling.waits < at

    await at_each_checkpoint(act)


async def test_aclose_of_a_stream() -> None:
    """Cancelled or not, the stream is closed, and what it had not handed out waits for the next one."""
    place = Place()

    async def act(at: int) -> bool:
        cancelling = Cancelling(at)
        async with place.client() as client:
            connection = await client.connect("WORK")
            first = connection.receive("TOLD")
            await connection.call("TELL", 1)
            await cancelling.run(first.aclose)
            with pytest.raises(anyio.ClosedResourceError):
                await first.receive()
            async with connection.receive("TOLD") as second:
                with anyio.fail_after(PATIENCE):
                    assert await second.receive() == 1
            await place.works(client)
        return cancelling.waits < at

    await at_each_checkpoint(act)


async def _aclose(client: Client, connection: Connection) -> None:
    await connection.aclose()


async def _disconnect(client: Client, connection: Connection) -> None:
    await client.disconnect()


@pytest.mark.parametrize("leave", [_aclose, _disconnect])
async def test_leaving(leave: Callable[[Client, Connection], Awaitable[None]]) -> None:
    """A cancelled end is an end: what was sent before it arrives, and the client can go elsewhere."""
    place = Place()

    async def act(at: int) -> bool:
        cancelling = Cancelling(at)
        place.seen.clear()
        async with place.client() as client:
            connection = await client.connect("WORK")
            await connection.send("SEEN", "before")
            await cancelling.run(lambda: leave(client, connection))
            with pytest.raises(anyio.ClosedResourceError):
                await connection.send("SEEN", "after")
            assert client.connection is None
            await until(lambda: len(place.api.pool) == 0)
            assert place.seen == [("before",)]
            await place.works(client)
        return cancelling.waits < at

    await at_each_checkpoint(act)


async def test_open_client_itself() -> None:
    """Cancelled anywhere from its opening to its end, the client is gone, and the server knows."""
    place = Place()

    async def act(at: int) -> bool:
        cancelling = Cancelling(at)
        async with serving_in_memory(place.api) as listener, listener.http() as http:

            async def operation() -> None:
                async with open_client("http://memory", http=http) as client:
                    connection = await client.connect("WORK")
                    assert await connection.call("ECHO", 1) == 1

            await cancelling.run(operation)
            await until(lambda: len(place.api.pool) == 0)
        return cancelling.waits < at

    await at_each_checkpoint(act)


async def test_drain() -> None:
    """A cancelled drain has been begun, and goes on; who waits for it again sees its end."""
    place = Place()

    async def act(at: int) -> bool:
        cancelling = Cancelling(at)
        async with place.client(reconnection=False) as client:
            connection = await client.connect("WORK")
            await cancelling.run(place.api.drain)
            with anyio.fail_after(PATIENCE):
                await place.api.drain()
                with pytest.raises(ConnectionLost, match="shutting down"):
                    await connection.call("ECHO", 1)
        assert len(place.api.pool) == 0
        return cancelling.waits < at

    await at_each_checkpoint(act)


async def _leave_by_cancellation(client: Client, scope: anyio.CancelScope) -> None:
    scope.cancel()


async def _leave_by_disconnect(client: Client, scope: anyio.CancelScope) -> None:
    await client.disconnect()


async def _leave_by_switch(client: Client, scope: anyio.CancelScope) -> None:
    connection = await client.connect("WORK")
    assert await connection.call("ECHO", "there") == "there"


Leave = Callable[[Client, anyio.CancelScope], Awaitable[None]]
LEAVING = pytest.mark.parametrize("leave", [_leave_by_cancellation, _leave_by_disconnect, _leave_by_switch])


async def _leave_after(
    place: Place, steps: int, leave: Leave, begin: Callable[[Connection], None], **options: Any
) -> bool:
    """Connect, begin something that goes on by itself, and leave so many checkpoints later.

    :returns: whether the client had its session and transport for good by then.
    """
    done = False
    with anyio.CancelScope() as scope:
        async with place.client(**options) as client:
            connection = await client.connect("WORK")
            first = connection._core.session
            begin(connection)
            for _ in range(steps):
                await checkpoint()
            session = connection._core.session
            changed = session is not first if place.transport == "websocket" else connection.transport == "websocket"
            done = client.state == "connected" and changed
            with anyio.fail_after(PATIENCE):
                await leave(client, scope)
                await checkpoint()
    await until(lambda: len(place.api.pool) == 0)
    return done


def _cut(connection: Connection) -> None:
    connection._core.session.end("transport error", "cut", flush=False)


@LEAVING
@pytest.mark.parametrize("window", [None, 60], ids=["new", "recovering"])
async def test_leaving_while_the_client_comes_back(leave: Leave, window: float | None) -> None:
    """In its pause, while it dials, before it is let in again: it comes back no more, and the pool is empty."""
    place = Place(max_disconnection_duration=window)
    options = {"reconnection_delay": 0.0001, "reconnection_delay_max": 0.0001}

    async def act(at: int) -> bool:
        return await _leave_after(place, at, leave, _cut, **options)

    await at_each_checkpoint(act)


@LEAVING
async def test_leaving_while_the_transport_changes(leave: Leave) -> None:
    place = Place(("polling", "websocket"))

    async def act(at: int) -> bool:
        return await _leave_after(place, at, leave, lambda connection: None)

    await at_each_checkpoint(act)
