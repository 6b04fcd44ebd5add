"""Each test of the contract runs on every road, and each road on the loops that it is for."""

from __future__ import annotations

import pytest

from tests.conftest import LOOPS

from .roads import ROADS


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "limiting_road" in metafunc.fixturenames:
        name, roads = "limiting_road", [road for road in ROADS if road.limits]
    elif "road" in metafunc.fixturenames:
        name, roads = "road", ROADS
    else:
        return
    if metafunc.definition.get_closest_marker("mock_clock"):
        mark = pytest.mark.parametrize(name, roads, ids=str)
    else:
        pairs = [(road, loop) for road in roads for loop in LOOPS if loop == "trio" or not road.trio_only]
        mark = pytest.mark.parametrize((name, "anyio_backend"), pairs, ids=str, indirect=["anyio_backend"])
    metafunc.definition.add_marker(mark)
