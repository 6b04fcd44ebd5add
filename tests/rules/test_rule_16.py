"""Rule 16: the public lifecycle under ASGI."""

from __future__ import annotations

from typing import Any

import anyio
import httpx

from brightsocket_anyio import Brightsocket, Connection

from ..support import identified, joined, serving, until


async def test_without_a_lifespan_requests_get_a_500_that_says_so() -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=Brightsocket()), base_url="http://host") as http:
        response = await http.get("/socket.io/?EIO=4&transport=polling")
    assert response.status_code == 500
    assert "running()" in response.text


async def test_running_in_the_hosts_lifespan() -> None:
    # a polling client that does not poll would keep the drain waiting
    api = Brightsocket(close_timeout=0.05)
    transport: Any = httpx.ASGITransport(app=api)
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as http:
        async with api.running():
            response = await http.get("/socket.io/?EIO=4&transport=polling")
            assert response.status_code == 200
            assert response.text.startswith("0{")
            await api.drain()
            assert (await http.get("/socket.io/?EIO=4&transport=polling")).status_code == 503
        assert (await http.get("/socket.io/?EIO=4&transport=polling")).status_code == 500
        # nothing of the first run is left on the API
        async with api.running():
            assert (await http.get("/socket.io/?EIO=4&transport=polling")).status_code == 200


async def test_the_path_is_matched_below_root_path() -> None:
    # a polling client that does not poll would keep the drain waiting
    api = Brightsocket(close_timeout=0.05)
    transport: Any = httpx.ASGITransport(app=api, root_path="/mounted")
    async with api.running(), httpx.AsyncClient(transport=transport, base_url="http://host") as http:
        assert (await http.get("/mounted/socket.io/?EIO=4&transport=polling")).status_code == 200
        assert (await http.get("/mounted/other/?EIO=4&transport=polling")).status_code == 404


def test_no_loop_bound_state() -> None:
    """One API, made outside of any loop, runs in one loop after another."""
    api = Brightsocket()
    api.connect("WORK", [], lambda: None)

    async def main() -> None:
        async with serving(api) as bound, identified(bound, "WORK"):
            assert len(api.pool) == 1
        assert len(api.pool) == 0

    for backend in ("asyncio", "trio", "asyncio"):
        anyio.run(main, backend=backend)


async def test_the_pool_holds_accepted_connections_only() -> None:
    api = Brightsocket()
    go = anyio.Event()
    entered = anyio.Event()

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        entered.set()
        assert connection.id not in api.pool
        await go.wait()

    async with serving(api) as bound, joined(bound) as peer:
        await peer.identify("WORK")
        await entered.wait()
        assert len(api.pool) == 0
        assert await api.pool.emit("NEWS") == 0
        go.set()
        await peer.expect('42["BRIGHTSOCKET:IDENTIFIED"]')
        assert await api.pool.emit("NEWS") == 1
        await peer.expect_event("NEWS")
        await peer.send("41")
        await until(lambda: not len(api.pool))


async def test_a_second_identify_is_a_switch_and_the_id_stays() -> None:
    api = Brightsocket()
    log: list[tuple[str, str]] = []

    async def channel(connection: Connection) -> None:
        log.append((f"+{connection.channel}", connection.id))
        try:
            await connection.accept()
            await anyio.sleep_forever()
        finally:
            log.append((f"-{connection.channel}", connection.id))

    api.connect("ONE", [], channel)
    api.connect("TWO", [], channel)
    async with serving(api) as bound, identified(bound, "ONE") as peer:
        await peer.identify("TWO")
        await peer.expect('42["BRIGHTSOCKET:IDENTIFIED"]')
        assert [what for what, _ in log] == ["+ONE", "-ONE", "+TWO"]
        assert len({id for _, id in log}) == 1
        assert len(api.pool) == 1
