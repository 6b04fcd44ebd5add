"""Connection state recovery between our server and a stock client, and between a stock server and our client."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Literal

import anyio
import pytest
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from brightsocket_anyio import Brightsocket, Connection, open_client
from tests.interop.peers import HERE, environment
from tests.proxy import Proxy, proxied
from tests.support import PATIENCE, serving, until

roads = pytest.mark.parametrize("road", ["websocket", "polling", "polling,websocket"])


class Lines:
    """What a process of Node's prints."""

    def __init__(self, process: Process) -> None:
        assert process.stdout is not None
        self._text = BufferedByteReceiveStream(process.stdout)

    async def next(self) -> Any:
        with anyio.fail_after(PATIENCE):
            return json.loads(await self._text.receive_until(b"\n", 100_000))


@asynccontextmanager
async def node(program: str, *args: str, **variables: str) -> AsyncGenerator[tuple[Process, Lines]]:
    command = ["node", str(HERE / program), *args]
    process = await anyio.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None, env=environment("4") | variables
    )
    async with process:
        try:
            yield process, Lines(process)
        finally:
            if process.returncode is None:
                process.kill()


@asynccontextmanager
async def away(api: Brightsocket, proxy: Proxy) -> AsyncGenerator[None]:
    """A client is lost; it finds its way back at the end."""
    proxy.refusing = True
    proxy.cut()
    await until(lambda: api.statistics().connections_absent == 1)
    yield
    proxy.refusing = False


@roads
async def test_a_stock_client_gets_what_it_has_missed(road: str) -> None:
    api = Brightsocket(
        max_disconnection_duration=2 * PATIENCE, max_missed_messages=10, ping_interval=0.5, ping_timeout=0.5
    )

    @api.connect("/")
    def greet(connection: Connection) -> None:
        if not connection.recovered:
            connection.join("readers")

    async def number(each: int) -> None:
        data = None if each % 2 else bytes([each])
        if each % 3:
            assert await api.pool.emit("NUMBER", each, data, to="readers") == 1
        else:
            await api.pool.send(str(id), "NUMBER", each, data)

    def numbers(*which: int) -> list[Any]:
        return [["number", each, None if each % 2 else bytes([each]).hex()] for each in which]

    async with (
        serving(api) as bound,
        proxied(bound) as proxy,
        node("recovery.js", proxy.url, TRANSPORTS=road) as (process, lines),
    ):
        connected, id, recovered = await lines.next()
        assert (connected, recovered) == ("connected", False)
        for each in range(3):
            await number(each)
        assert [await lines.next() for _ in range(3)] == numbers(0, 1, 2)

        async with away(api, proxy):
            for each in range(3, 9):
                await number(each)
        assert [await lines.next() for _ in range(2)] == [["lost"], ["connected", id, True]]
        # which had been sent when it was lost, and which after, makes no difference to it
        assert [await lines.next() for _ in range(6)] == numbers(*range(3, 9))
        await number(10)
        assert await lines.next() == numbers(10)[0]

        # more than is kept for it
        async with away(api, proxy):
            for each in range(11, 31):
                await api.pool.emit("NUMBER", each, None)
        assert await lines.next() == ["lost"]
        connected, other, recovered = await lines.next()
        assert (connected, recovered) == ("connected", False)
        assert other != id
        await api.pool.emit("NUMBER", 31, None)
        assert await lines.next() == ["number", 31, None]

        await api.pool.emit("END")
        assert await lines.next() == ["lost"]
        with anyio.fail_after(PATIENCE):
            assert await process.wait() == 0
    assert api.statistics().connections_recovered == 1


@pytest.mark.parametrize("transport", ["websocket", "polling", ("polling", "websocket")])
async def test_our_client_gets_what_it_has_missed_from_a_stock_server(
    transport: Literal["websocket", "polling"],
) -> None:
    got: list[tuple[Any, ...]] = []
    async with node("stock_server.js", RECOVERY="1") as (_, lines):
        address = "127.0.0.1", await lines.next()
        options: Any = {"reconnection_delay": 0.02, "reconnection_delay_max": 0.1}
        async with proxied(address) as proxy, open_client(proxy.url, transport=transport, **options) as client:
            connection = await client.connect("/open")
            connection.on("NUMBER")(lambda number, data, offset: got.append((number, data)))
            id = connection.id
            await connection.send("NUMBER_ME", 3)
            await until(lambda: len(got) == 3)
            for wanted in (6, 9):
                # from the moment at which the server has lost this socket on
                await connection.call("NUMBER_ME_WHEN_LOST", 3)
                proxy.refusing = True
                proxy.cut()
                assert await lines.next() == "lost"
                # whoever notices first
                await until(lambda: client.state == "reconnecting")
                proxy.refusing = False
                await until(lambda: client.state == "connected")
                assert connection.recovered
                assert connection.id == id
                await until(lambda wanted=wanted: len(got) >= wanted)  # type: ignore[misc]
            assert await connection.call("ADD", 1, 2) == 3
    assert got == [(each, b"\x01\x02" if each % 2 else None) for each in range(9)]
