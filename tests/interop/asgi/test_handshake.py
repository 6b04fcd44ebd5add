"""Each ASGI server carries the handshake, in and out: what the hook and the channels see, what the answer says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import httpx
import pytest

from brightsocket_anyio import HandshakeError, open_client
from tests.doors import Recorder
from tests.support import PATIENCE

from .conftest import SERVERS
from .processes import Served, serving


@pytest.fixture(scope="module", params=SERVERS)
def guarded(request: pytest.FixtureRequest) -> Iterator[tuple[str, Served]]:
    with serving(SERVERS[request.param], "tests.interop.asgi.guarded:api", "/socket.io/") as served:
        yield request.param, served


def test_the_handshake(guarded: tuple[str, Served]) -> None:
    server, served = guarded
    for transport in ("websocket", "polling"):
        # granian leaves out the headers of a WebSocket's acceptance
        silent = server == "granian" and transport == "websocket"
        anyio.run(_visit, served, transport, not silent)
        anyio.run(_fail, served, transport)
    assert not served.process.trouble


async def _visit(served: Served, transport: Any, with_headers: bool) -> None:
    http = Recorder(headers={"X-Mine": "mine", "Origin": "https://page.example"}, cookies={"ticket": "t-1"})
    options: Any = {"http": http, "transport": transport, "subprotocols": ["v0", "v1"]}
    with anyio.fail_after(PATIENCE):
        async with http, open_client(f"{served.url}/?room=7", **options) as client:
            connection = await client.connect("MIRROR")
            async with connection.receive("SEEN") as stream:
                seen = await stream.receive()
    assert seen == {
        "name": "Ada",
        "mine": "mine",
        "room": "7",
        "path": "/socket.io/",
        "client": "127.0.0.1",
        "subprotocol": "v1" if transport == "websocket" else None,
    }
    answer = http.answers[0]
    if transport == "polling":
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
    else:
        assert answer.headers["sec-websocket-protocol"] == "v1"
    if with_headers:
        assert answer.headers["x-room"] == "7"
        assert [each.partition("=")[0] for each in answer.headers.get_list("set-cookie")] == ["seen", "sticky"]


async def _fail(served: Served, transport: Any) -> None:
    for headers, reason in (
        ({}, "no such ticket"),
        ({"Origin": "https://elsewhere.example", "Cookie": "ticket=t-1"}, "Forbidden"),
    ):
        with anyio.fail_after(PATIENCE):
            async with (
                httpx.AsyncClient(headers=headers) as http,
                served.open(http=http, transport=transport) as client,
            ):
                with pytest.raises(HandshakeError, match=reason) as caught:
                    await client.connect("MIRROR")
        assert caught.value.status == 403
