"""Our client with stock Socket.IO servers, of four generations on Node and python-socketio's, by each transport."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from functools import cache
from itertools import count
from typing import Any, Literal, cast

import anyio
import pytest

from brightsocket_anyio import ChannelRefused, Client, Connection, open_client
from tests.interop.peers import HERE, environment
from tests.leaks import of_a_wider_scope
from tests.support import PATIENCE

COMMANDS = {
    **{f"socket.io-{generation}": ["node", str(HERE / "stock_server.js")] for generation in "1234"},
    "python-socketio": [sys.executable, str(HERE / "python_server.py")],
}
ROADS: dict[str, tuple[Literal["websocket", "polling"], ...]] = {
    "websocket": ("websocket",),
    "polling": ("polling",),
    "upgrade": ("polling", "websocket"),
}
VALUES = [0, "", False, None, [], {}, -1.5, 'Grüße ÿþ 𝒳 🚀 \u2028 \0 "', {"ÿ": ["🚀"]}]

# Under xdist the tests of a server go to the same worker, which starts it once.
servers = pytest.mark.parametrize(
    "peer", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in COMMANDS]
)
node_4_and_python = pytest.mark.parametrize(
    "peer", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in ("socket.io-4", "python-socketio")]
)
roads = pytest.mark.parametrize("road", ROADS)
_numbers = count()


@pytest.fixture(scope="session")
def start() -> Iterator[Callable[[str], str]]:
    """Start a server, unless that has been done; returns its URL."""
    with ExitStack() as stack:

        @cache
        def start(peer: str) -> str:
            with of_a_wider_scope():
                process = subprocess.Popen(
                    COMMANDS[peer],
                    env=environment(peer[-1]),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            stack.enter_context(process)
            stack.callback(process.kill)
            assert process.stdout is not None
            return f"http://127.0.0.1:{int(process.stdout.readline())}"

        yield start


@pytest.fixture
def url(start: Callable[[str], str], peer: str) -> str:
    return start(peer)


def eio_of(peer: str) -> Literal[3, 4]:
    return 3 if peer in ("socket.io-1", "socket.io-2") else 4


@asynccontextmanager
async def client_of(peer: str, url: str, road: str) -> AsyncGenerator[Client]:
    with anyio.fail_after(PATIENCE):
        # no goodbye may depend on the close timeout
        async with open_client(url, transport=ROADS[road], eio=eio_of(peer), close_timeout=2 * PATIENCE) as client:
            yield client


async def why_left(client: Client, name: str) -> str:
    """What a server says of the end of a connection; asked on a new one, which waits for that end."""
    connection = await client.connect("/open")
    return cast("str", await connection.call("WHY_LEFT", name))


@servers
@roads
async def test_namespaces_one_after_the_other(peer: str, url: str, road: str) -> None:
    async with client_of(peer, url, road) as client:
        for namespace in ("/", "/open", "/chat"):
            connection = await client.connect(namespace, {"token": "good"} if namespace == "/chat" else None)
            assert await connection.call("ADD", 1, 2) == 3
            assert connection.channel == namespace


@servers
async def test_auth(peer: str, url: str) -> None:
    async with client_of(peer, url, "websocket") as client:
        connection = await client.connect("/chat", {"token": "good", "name": "Zoë & 🚀 = 1"})
        auth = await connection.call("AUTH")
        # in the older generations it is the query, to which Engine.IO adds its own
        assert auth["token"] == "good"
        assert auth["name"] == "Zoë & 🚀 = 1"


@servers
@roads
async def test_refusals(peer: str, url: str, road: str) -> None:
    async with client_of(peer, url, road) as client:
        with pytest.raises(ChannelRefused) as refused:
            await client.connect("/chat", {"token": "bad"})
        assert refused.value.channel == "/chat"
        assert refused.value.data == {"tries": 2}
        if eio_of(peer) == 4:  # the older protocol's ERROR is the data alone
            assert refused.value.reason == "bad token"
        with pytest.raises(ChannelRefused) as refused:
            await client.connect("/chat")
        assert (refused.value.reason, refused.value.data) == ("no token", None)
        with pytest.raises(ChannelRefused) as refused:
            await client.connect("/unknown")
        assert refused.value.reason == ("Unable to connect" if peer == "python-socketio" else "Invalid namespace")
        assert client.connection is None
        assert await (await client.connect("/chat", {"token": "good"})).call("ADD", 1, 2) == 3


@servers
@roads
async def test_acknowledgements(peer: str, url: str, road: str) -> None:
    async with client_of(peer, url, road) as client:
        connection = await client.connect("/open")
        assert await connection.call("ADD", 1, 2) == 3
        assert await connection.call("SILENT") is None
        assert await connection.call("ECHO", *VALUES) == tuple(VALUES)
        for value in VALUES:
            answer = await connection.call("ECHO", value)
            assert (answer, type(answer)) == (value, type(value))
        nested = {"deep": [b"\x01\x02", {"er": b"\x03"}], "n": 1}
        assert await connection.call("ECHO", nested, b"") == (nested, b"")
        for size in (0, 1, 124, 125, 126, 127, 65534, 65535, 65536, 200_000):
            sent = bytes([size % 251]) * size
            assert await connection.call("ECHO", sent) == sent

        # many at once: each gets its own answer
        answers: dict[int, int] = {}

        async def add(number: int) -> None:
            answers[number] = await connection.call("ADD", number, 1)

        async with anyio.create_task_group() as task_group:
            for number in range(50):
                task_group.start_soon(add, number)
        assert answers == {number: number + 1 for number in range(50)}


@servers
@roads
async def test_the_server_calls(peer: str, url: str, road: str) -> None:
    async with client_of(peer, url, road) as client:
        connection = await client.connect("/open")
        answers: list[Any] = [None, 0, "", [1], ("several", b"values", {"nested": b"\x00"}), ()]

        @connection.on("ASK")
        async def ask(*question: Any) -> Any:
            return answers[question[0]]

        async with connection.receive("TOLD") as told:
            for number, answer in enumerate(answers):
                await connection.send("ASK_ME", number, {"some": b"bytes"})
                assert await told.receive() == (None if answer == () else answer)


@node_4_and_python
@roads
async def test_the_server_calls_with_a_timeout(peer: str, url: str, road: str) -> None:
    async with client_of(peer, url, road) as client:
        connection = await client.connect("/open")
        answering = anyio.Event()

        @connection.on("ASK")
        async def ask(question: str) -> str:
            await answering.wait()
            return f"{question} yes"

        async with connection.receive("TOLD") as told:
            await connection.send("ASK_ME_IN_TIME", 20)
            assert await told.receive() == ("operation has timed out", None)
            # the answer comes too late, and is ignored
            answering.set()
            await connection.send("ASK_ME_IN_TIME", 60_000)
            assert await told.receive() == (None, "in time? yes")
            if peer == "socket.io-4":
                await connection.send("ASK_ME_WITH_A_PROMISE")
                assert await told.receive() == ("promise? yes", "again? yes")


@servers
@roads
async def test_messages_are_in_order_both_ways_across_an_upgrade(peer: str, url: str, road: str) -> None:
    async with client_of(peer, url, road) as client:
        connection = await client.connect("/open")
        final = ROADS[road][-1]
        sent = 0

        async def send() -> None:
            nonlocal sent
            # bytes are several packets
            await connection.send("NUMBER", sent, "ÿ🚀" if sent % 10 else bytes([sent % 256]))
            sent += 1

        async with connection.receive("NUMBER") as numbers, connection.receive("DISORDER") as disorder:
            for _ in range(20):
                await send()
            # a hundred, and as many as it takes until the session has moved on, and some more
            received, last = 0, 100
            while received < sent:
                number, extra = await numbers.receive()
                assert (number, extra) == (received, "ÿ🚀" if received % 10 else bytes([received % 256]))
                received += 1
                if connection.transport != final:
                    last = max(100, received + 50)
                if sent < last:
                    await send()
            assert await connection.call("TRANSPORT") == connection.transport == final
            await connection.send("END_ME")
            with pytest.raises(anyio.EndOfStream):
                await disorder.receive()


@servers
@roads
async def test_a_burst(peer: str, url: str, road: str) -> None:
    """As much as the buffer takes, at once: python-socketio's servers take 16 packets in a polling body, no more."""
    async with client_of(peer, url, road) as client:
        connection = await client.connect("/open")
        async with connection.receive("BACK") as back:
            for number in range(60):
                await connection.send("EMIT_BACK", number, b"x")
            assert [await back.receive() for _ in range(60)] == [(number, b"x") for number in range(60)]


@servers
@roads
async def test_the_server_ends_the_connection(peer: str, url: str, road: str) -> None:
    async with client_of(peer, url, road) as client:
        for namespace in ("/", "/open"):
            connection = await client.connect(namespace)
            async with connection.receive("LAST") as last:
                await connection.send("END_ME")
                # what had been sent before arrives
                assert await last.receive() == 1
                with pytest.raises(anyio.EndOfStream):
                    await last.receive()
            await ended(connection)
            assert client.connection is None


@pytest.mark.parametrize(
    "peer", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in COMMANDS if name != "python-socketio"]
)
@roads
async def test_the_server_ends_the_session(peer: str, url: str, road: str) -> None:
    async with client_of(peer, url, road) as client:
        connection = await client.connect("/open")
        async with connection.receive("LAST") as last:
            await connection.send("END_US")
            assert await last.receive() == 1
            with pytest.raises(anyio.EndOfStream):
                await last.receive()
        assert client.connection is None


async def ended(connection: Connection) -> None:
    with pytest.raises(anyio.EndOfStream):
        await connection.send("ADD")


@servers
@roads
async def test_the_client_ends_the_connection(peer: str, url: str, road: str) -> None:
    name = f"{os.getpid()} {next(_numbers)}"
    async with client_of(peer, url, road) as client:
        connection = await client.connect("/open")
        await connection.call("NAME", f"{name} leaves")
        await connection.aclose()
        assert await why_left(client, f"{name} leaves") in LEFT
        await connected_as(client, f"{name} switches")
        assert await why_left(client, f"{name} switches") in LEFT
        await connected_as(client, f"{name} disconnects")
        await client.disconnect()
        assert await why_left(client, f"{name} disconnects") in LEFT


#: what servers call a client that has said goodbye
LEFT = ("client namespace disconnect", "client disconnect")


async def connected_as(client: Client, name: str) -> None:
    connection = await client.connect("/chat", {"token": "good"})
    await connection.call("NAME", name)
