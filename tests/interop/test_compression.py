"""permessage-deflate with the WebSockets of Node."""

from __future__ import annotations

from subprocess import PIPE
from typing import Any

import anyio
import pytest
from anyio.streams.text import TextReceiveStream

from brightsocket_anyio import Brightsocket, Connection, open_client
from tests.interop.peers import HERE, PATIENCE, environment, run_node
from tests.support import serving

generations = pytest.mark.parametrize("generation", ["2", "4"])


@generations
@pytest.mark.parametrize("compression", [False, True])
async def test_a_stock_client(generation: str, compression: bool) -> None:
    api = Brightsocket(compression=compression)

    @api.connect("/echo")
    async def echo(connection: Connection) -> None:
        @connection.on("ECHO")
        async def answer(*args: Any) -> tuple[Any, ...]:
            return args

    async with serving(api) as bound:
        seen = await run_node("deflate.js", bound.url, generation=generation)
    assert seen == [["extensions", "permessage-deflate" if compression else ""], ["all came back"]]


@generations
@pytest.mark.parametrize("compression", [False, True])
async def test_a_stock_server(generation: str, compression: bool) -> None:
    command = ["node", str(HERE / "deflate.js")]
    async with await anyio.open_process(command, env=environment(generation), stdin=PIPE, stderr=None) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        with anyio.fail_after(PATIENCE):
            port = int(await TextReceiveStream(process.stdout).receive())
            async with open_client(
                f"http://127.0.0.1:{port}",
                transport="websocket",
                eio=3 if generation == "2" else 4,
                compression=compression,
            ) as client:
                connection = await client.connect("/")
                assert await connection.call("EXTENSIONS") == (["permessage-deflate"] if compression else [])
                for size in range(0, 50_000, 1000):
                    values = ("x" * size, bytes(size))
                    assert await connection.call("ECHO", *values) == values
            await process.stdin.aclose()
            await process.wait()
