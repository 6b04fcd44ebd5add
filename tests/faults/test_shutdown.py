"""SIGTERM and SIGINT to a server process: peers are told, replies go out, and it is done within its grace time."""

from __future__ import annotations

import signal

import anyio
import httpx
import pytest
from anyio.abc import TaskGroup, TaskStatus
from websockets.exceptions import InvalidState

from brightsocket_anyio import ConnectionLost, HandshakeError, open_client

from ..support import PATIENCE, Raw, identified
from .process import Running, running
from .test_flood import polling_on

#: more than what the server's end may take at all: grace and close_timeout
CLOSE_TIMEOUT = 5
#: what a loaded machine takes on top of it
SLACK = 20
#: fewer than a buffer holds, so that nobody is too slow for them
NEWS = 200


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["asyncio", "asyncio+uvloop", "trio"])
def loop(request: pytest.FixtureRequest) -> str:
    loop: str = request.param
    return loop


class Load:
    """Peers of each kind, all of them busy, and what they have seen at the end."""

    def __init__(self, program: Running) -> None:
        self.program = program
        self.ends: dict[str, list[object]] = {}

    async def caller(self, number: int, *, task_status: TaskStatus[None]) -> None:
        """Calls, one call after the other, until the server is lost."""
        async with open_client(self.program.bound.url, reconnection=False) as client:
            connection = await client.connect("CONTROL")
            count = 0
            try:
                while True:
                    assert await connection.call("ECHO", count) == count
                    count += 1
                    if count == 5:
                        task_status.started()
            except ConnectionLost as exc:
                self.ends[f"caller {number}"] = [exc.code]

    async def sender(self, number: int, *, task_status: TaskStatus[None]) -> None:
        """Sends what nobody answers, and reads what comes."""
        async with identified(self.program.bound, "LISTEN") as peer:
            # nothing comes until all of the load has begun, which a busy machine takes its time for
            peer.patience = PATIENCE
            task_status.started()
            async with anyio.create_task_group() as tg:
                tg.start_soon(self._send, peer)
                messages = await peer.drain()
                tg.cancel_scope.cancel()
            close = peer.protocol.close_rcvd
            self.ends[f"sender {number}"] = [*messages, close.code if close else None]

    async def _send(self, peer: Raw) -> None:
        try:
            while True:
                await peer.event("NOISE", "x" * 100)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, InvalidState):
            return

    async def poller(self, number: int, *, task_status: TaskStatus[None]) -> None:
        """Polls, and posts at the same time."""
        async with httpx.AsyncClient(base_url=self.program.bound.url, timeout=PATIENCE) as http:
            query = await polling_on(http, "LISTEN")
            task_status.started()
            async with anyio.create_task_group() as tg:
                tg.start_soon(self._post, http, query)
                packets: list[object] = []
                while "1" not in packets:
                    response = await http.get("/socket.io/", params=query)
                    assert response.status_code == 200, response.text
                    packets += response.text.split("\x1e")
                self.ends[f"poller {number}"] = packets
                tg.cancel_scope.cancel()

    async def _post(self, http: httpx.AsyncClient, query: dict[str, str]) -> None:
        try:
            while (await http.post("/socket.io/", params=query, content='42["NOISE"]')).status_code == 200:
                pass
        except httpx.TransportError:
            return

    async def reader(self, *, task_status: TaskStatus[None]) -> None:
        """Has a reply of the wrapped application in flight."""
        async with (
            httpx.AsyncClient(base_url=self.program.bound.url, timeout=PATIENCE) as http,
            http.stream("GET", "/page") as response,
        ):
            task_status.started()
            self.ends["reader"] = [len(await response.aread())]

    async def start(self, tg: TaskGroup) -> None:
        for number in range(4):
            await tg.start(self.caller, number)
            await tg.start(self.sender, number)
            await tg.start(self.poller, number)
        await tg.start(self.reader)


async def _answered(peer: Raw) -> None:
    while not str(await peer.receive()).startswith("430["):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_under_load(loop: str, number: signal.Signals) -> None:
    async with running(loop, close_timeout=CLOSE_TIMEOUT) as program, identified(program.bound, "CONTROL") as control:
        load = Load(program)
        with anyio.fail_after(100):
            async with anyio.create_task_group() as tg:
                await load.start(tg)
                await control.event("EMIT", NEWS, 10, id=0)
                await _answered(control)
                tg.start_soon(control.drain)
                program.process.send_signal(number)
                with anyio.fail_after(CLOSE_TIMEOUT + SLACK):
                    assert await program.process.wait() == 0
        closed = '42["BRIGHTSOCKET:CLOSED",{"code":"server shutting down","reason":"the server is shutting down"}]'
        news = [f'42["NEWS",{count},"{"x" * 10}"]' for count in range(NEWS)]
        for name, end in load.ends.items():
            match name.split()[0]:
                case "caller":
                    assert end == ["server shutting down"], name
                case "sender":
                    # a bare close, after which stock clients come back: no DISCONNECT before it
                    assert end == [*news, closed, 1001], name
                case "poller":
                    assert end == [*news, closed, "1"], name
                case "reader":
                    assert end == [3000]
        assert len(load.ends) == 13
        # nothing listens there any more
        async with httpx.AsyncClient() as http:
            with pytest.raises(httpx.ConnectError):
                await http.get(program.bound.url)


async def test_a_reply_in_flight_goes_out_when_there_is_no_session(loop: str) -> None:
    async with running(loop) as program:
        load = Load(program)
        async with anyio.create_task_group() as tg:
            await tg.start(load.reader)
            program.process.terminate()
        assert load.ends == {"reader": [3000]}
        with anyio.fail_after(PATIENCE):
            assert await program.process.wait() == 0


async def test_peers_that_take_no_part_do_not_hold_it_up(loop: str) -> None:
    """A peer that reads nothing, half a request, a connection without any, a poll that never comes."""
    async with (
        running(loop, close_timeout=1) as program,
        identified(program.bound, "LISTEN") as deaf,
        identified(program.bound, "CONTROL") as control,
        httpx.AsyncClient(base_url=program.bound.url) as http,
        await anyio.connect_tcp(*program.bound.addresses[0]) as half,
        await anyio.connect_tcp(*program.bound.addresses[0]),
    ):
        await polling_on(http, "LISTEN_OLDEST")
        await half.send(b"GET /page HTTP/1.1\r\nHost:")
        await control.event("EMIT", 80, 10_000, id=0)
        await _answered(control)
        assert deaf.messages == []
        program.process.terminate()
        with anyio.fail_after(PATIENCE):
            assert await program.process.wait() == 0


async def test_a_client_that_comes_too_late_hears_it(loop: str) -> None:
    """While the server drains, nobody new is let in."""
    async with running(loop, grace=0.5) as program, open_client(program.bound.url) as client:
        await client.connect("CONTROL")
        program.process.terminate()
        with anyio.fail_after(PATIENCE):
            assert await program.process.wait() == 0
        with pytest.raises(HandshakeError):
            await client.connect("CONTROL")
        assert client.connection is None
