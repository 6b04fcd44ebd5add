"""The wall clock is set: nobody notices, since deadlines are on the loop's own clock."""

from __future__ import annotations

import time

import pytest

from brightsocket_anyio import Brightsocket, Connection, open_client

from ..support import identified, serving

YEAR = 365 * 24 * 3600


@pytest.mark.parametrize("jump", [YEAR, -YEAR])
async def test_the_wall_clock_jumps(jump: float, monkeypatch: pytest.MonkeyPatch) -> None:
    api = Brightsocket(ping_interval=0.05)

    @api.connect("CHANNEL")
    async def channel(connection: Connection) -> None:
        connection.on("ECHO")(lambda value: value)

    true = time.time
    async with serving(api) as bound, open_client(bound.url) as client, identified(bound, "CHANNEL") as peer:
        connection = await client.connect("CHANNEL")
        for _ in range(2):
            await peer.expect("2")
            await peer.send("3")
        monkeypatch.setattr(time, "time", lambda: true() + jump)
        assert await connection.call("ECHO", 1) == 1
        for _ in range(4):
            await peer.expect("2")
            await peer.send("3")
        assert await connection.call("ECHO", 2) == 2
        assert len(api.pool) == 2
        assert client.connection is connection
