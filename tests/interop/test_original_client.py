"""The client of the original, ``brightsocket.io-client`` 0.0.5, sees of our server what it saw of the original's."""

from __future__ import annotations

import anyio
import pytest

from tests.interop.peers import SCENARIOS, expected, run_node, scenario_api
from tests.support import serving, until

GENERATIONS = {"1": "socket.io-client 1.7.4", "2": "socket.io-client 2.5.0", "4": "socket.io-client 4.8.1"}


async def check(scenario: str, generation: str, transports: str = "") -> None:
    api, seen = scenario_api()
    wanted = expected(generation, scenario)
    async with serving(api) as bound:
        client = await run_node("client.js", bound.url, scenario, generation=generation, transports=transports)
        # everything that the client has sent has come, and each channel's function is over
        await until(lambda: len(api.pool) == 0)
    if scenario == "filter_of_two_receivers":
        # ours on purpose: the original runs the filters once for each receiver of an action, we once for the action
        assert len(wanted["server"]) == 2
        wanted["server"].pop()
    assert client == wanted["client"]
    assert seen == wanted["server"]


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_scenario(scenario: str, generation: str) -> None:
    """As the client does it unless told otherwise: polling first, then the upgrade."""
    await check(scenario, generation)


@pytest.mark.parametrize("generation", GENERATIONS)
async def test_messages_cross_the_upgrade(generation: str) -> None:
    """The scenarios may be over before their upgrade is; this one lasts until after it."""
    await check("upgrade", generation)


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("transports", ["websocket", "polling"])
async def test_all_scenarios_over_one_transport(transports: str, generation: str) -> None:
    async with anyio.create_task_group() as tg:
        for scenario in SCENARIOS:
            tg.start_soon(check, scenario, generation, transports)
