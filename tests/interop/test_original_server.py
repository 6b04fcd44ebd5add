"""Our client and the original's server, ``brightsocket.io`` 0.0.6, see what the original's two sides saw."""

from __future__ import annotations

import anyio
import pytest

from brightsocket_anyio import open_client
from tests.interop.peers import PATIENCE, SCENARIOS, expected, original_server, play


@pytest.mark.parametrize("generation", ["1", "2"], ids=["socket.io 1.7.4", "socket.io 2.5.0"])
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_scenario(scenario: str, generation: str) -> None:
    wanted = expected(generation, scenario)
    async with original_server(generation) as server:
        with anyio.fail_after(PATIENCE):
            async with open_client(server.url, eio=3) as client:
                lines = await play(client, scenario)
            assert lines == wanted["client"]
            assert await server.rest() == wanted["server"]


@pytest.mark.parametrize("generation", ["1", "2"], ids=["socket.io 1.7.4", "socket.io 2.5.0"])
async def test_payloads_that_javascript_takes_for_false(generation: str) -> None:
    """Ours on purpose: the original's client sends them without a payload."""
    async with original_server(generation) as server:
        with anyio.fail_after(PATIENCE):
            async with open_client(server.url, eio=3) as client:
                connection = await client.connect("ECHO")
                async with connection.receive("MESSAGE") as messages:
                    for payload in (0, "", False, None):
                        await connection.send("MESSAGE", payload)
                        echoed = await messages.receive()
                        assert (type(echoed), echoed) == (type(payload), payload)
