"""What is counted, what OpenTelemetry makes of it, what `health` says, and what the log's records have."""

from __future__ import annotations

from typing import Any

import anyio
import httpx
import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from brightsocket_anyio import Brightsocket, ChannelRefused, Connection, Refused, Statistics, open_client

from .support import PATIENCE, identified, serving, until

pytestmark = pytest.mark.anyio

READER = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([READER]))


def counting() -> Brightsocket:
    api = Brightsocket()

    @api.connect("OPEN")
    async def opened(connection: Connection) -> None:
        @connection.on("FAIL")
        async def fail() -> None:
            raise RuntimeError("on purpose")

    @api.connect("CLOSED")
    async def closed() -> None:
        raise Refused

    return api


async def test_what_is_counted() -> None:
    api = counting()
    assert api.statistics() == Statistics()
    async with serving(api) as bound, httpx.AsyncClient(base_url=bound.url) as http:
        async with open_client(bound.url, transport=("polling", "websocket")) as client:
            await client.connect("OPEN")
            await until(lambda: api.statistics().upgrades)
            now = api.statistics()
            assert (now.sessions_open, now.connections_open) == (1, 1)
            assert (now.sessions_opened, now.connections_accepted) == (1, 1)
            # CONNECT and IDENTIFY in; open, CONNECT and IDENTIFIED out; NOOP and the probe do not count
            assert now.packets_received >= 2
            assert now.packets_sent >= 3
        async with open_client(bound.url) as client:
            with pytest.raises(ChannelRefused):
                await client.connect("CLOSED")
        assert (await http.get("/socket.io/?EIO=4&transport=polling&sid=nobody")).status_code == 400
        assert (await http.get("/socket.io/?EIO=9&transport=websocket")).status_code == 400
        async with identified(bound, "OPEN") as peer:
            for _ in range(260):
                await peer.event("NOBODY'S")
            await peer.event("FAIL")
            await peer.drain()
        await until(lambda: api.statistics().sessions_open == 0)
        now = api.statistics()
        assert now.connections_open == 0
        assert (now.sessions_opened, now.connections_accepted) == (3, 2)
        assert (now.connections_refused, now.connections_failed) == (1, 1)
        assert now.requests_refused == 2
        assert now.actions_dropped == 260 - 256
        assert (now.emits_dropped, now.slow_disconnected) == (0, 0)


def metric(name: str) -> tuple[Any, str]:
    """A metric's value, and what it is called in words."""
    data = READER.get_metrics_data()
    assert data is not None
    [found] = [
        each
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for each in scope.metrics
        if each.name == f"brightsocket.{name}"
    ]
    [point] = found.data.data_points
    value: Any = getattr(point, "value")  # noqa: B009
    return value, found.description or ""


async def test_opentelemetry_has_the_sum_over_all_apis() -> None:
    one, other = counting(), counting()
    async with serving(one) as first, serving(other) as second:
        before, text = metric("sessions_opened")
        assert text == "Engine.IO sessions that have been opened"
        open_before, _ = metric("connections_open")
        async with identified(first, "OPEN"), identified(second, "OPEN"):
            assert metric("sessions_opened")[0] == before + 2
            assert metric("connections_open")[0] == open_before + 2
        await until(lambda: not len(one.pool) and not len(other.pool))
        assert metric("connections_open")[0] == open_before
        assert metric("sessions_opened")[0] == before + 2


async def test_health() -> None:
    api = Brightsocket(close_timeout=1000)
    leaving = anyio.Event()

    @api.connect("STAY")
    async def stay(connection: Connection) -> None:
        try:
            await connection.accept()
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await leaving.wait()

    async def ask() -> tuple[int, Any]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://x") as http:
            response = await http.get("/socket.io/health")
        return response.status_code, response.json()

    assert await ask() == (503, {"status": "stopped"})
    with anyio.fail_after(PATIENCE):
        # the outer one runs the API by its lifespan
        async with serving(Brightsocket(api, path="/outer/")) as bound, identified(bound, "STAY"):
            assert await ask() == (200, {"status": "ready"})
            async with anyio.create_task_group() as tg:
                tg.start_soon(api.drain)
                await anyio.wait_all_tasks_blocked()
                assert await ask() == (503, {"status": "draining"})
                leaving.set()
    assert await ask() == (503, {"status": "stopped"})


async def test_records_say_whose_they_are(caplog: pytest.LogCaptureFixture) -> None:
    api = counting()
    caplog.set_level("DEBUG", "brightsocket_anyio")
    async with serving(api) as bound, identified(bound, "OPEN") as peer:
        sid = peer.sid
        await peer.event("FAIL", "a payload that is nobody's business")
        await peer.drain()
    records = {record.getMessage(): vars(record) for record in caplog.records}
    failed = next(record for message, record in records.items() if "has failed" in message)
    assert (failed["session"], failed["channel"]) == (f"{sid[:4]}…", "OPEN")
    ended = next(record for message, record in records.items() if "ended:" in message)
    assert (ended["session"], ended["channel"]) == (f"{sid[:4]}…", None)
    assert sid not in caplog.text
    assert all("business" not in record.getMessage() for record in caplog.records if record.levelname != "DEBUG")
