"""What every test shares: the loops that it runs on, and how hard Hypothesis tries."""

from __future__ import annotations

from typing import Any

import pytest
import trio.testing
from hypothesis import HealthCheck, settings

from tests import leaks

LOOPS = ("asyncio", "asyncio+uvloop", "trio")
MOCK_CLOCK = "trio+mock_clock"

# A loaded machine must not fail a test: the time that an example takes proves nothing.
settings.register_profile("quick", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=2000)
settings.load_profile("quick")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--loop", choices=LOOPS, help="run on this event loop only; the default is all three")
    parser.addoption("--full", action="store_true", help="run the tests of load at their full size")
    parser.addoption("--seed", type=int, help="replay the stress run with this seed; the default is a new one")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(leaks, "leaks")


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("mock_clock"):
        # as a mark, since only a mark takes precedence over the parameters of the fixture itself
        metafunc.definition.add_marker(pytest.mark.parametrize("anyio_backend", [MOCK_CLOCK], indirect=True))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("--loop")
    if wanted is None:
        return
    loops = [wanted, MOCK_CLOCK] if wanted == "trio" else [wanted]
    others = [item for item in items if loop_of(item) not in (None, *loops)]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


def loop_of(item: pytest.Item) -> str | None:
    """The loop that an item runs on, ``None`` for a test that has no loop or has parametrized it itself."""
    callspec = getattr(item, "callspec", None)
    loop = callspec.params.get("anyio_backend") if callspec else None
    return loop if isinstance(loop, str) else None


@pytest.fixture(params=LOOPS, scope="module")
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Each asynchronous test runs on all three loops; one marked ``mock_clock`` only on Trio, where time is virtual."""
    match request.param:
        case "asyncio":
            return "asyncio", {"use_uvloop": False}
        case "asyncio+uvloop":
            return "asyncio", {"use_uvloop": True}
        case "trio":
            return "trio", {}
        case _:
            return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}
