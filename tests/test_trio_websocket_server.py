"""A Trio program that accepts its WebSockets by trio-websocket hands them to the API."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from trio_websocket import serve_websocket

from brightsocket_anyio import Bound, Brightsocket, Connection, HandshakeError, open_client

from .support import PATIENCE, identified

pytestmark = pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)


@asynccontextmanager
async def trio_program(api: Brightsocket) -> AsyncGenerator[Bound]:
    async with trio.open_nursery() as nursery:
        server: Any = await nursery.start(
            partial(serve_websocket, api.handle_trio_websocket, "127.0.0.1", 0, ssl_context=None)
        )
        yield Bound((("127.0.0.1", server.port),), f"http://127.0.0.1:{server.port}")
        nursery.cancel_scope.cancel()


async def test_a_client_is_served() -> None:
    api = Brightsocket()

    @api.connect("ECHO")
    async def echo(connection: Connection, identity: dict[str, Any]) -> None:
        @connection.on("ADD")
        async def add(a: int, b: int) -> int:
            return a + b

    with trio.fail_after(PATIENCE):
        async with api.running(), trio_program(api) as bound:
            async with open_client(bound.url) as client:
                connection = await client.connect("ECHO")
                assert await connection.call("ADD", 1, 2) == 3
                assert len(api.pool) == 1
            async with identified(bound, "ECHO", eio=3) as peer:
                await peer.send('420["ADD",3,4]')
                await peer.expect("430[7]")


async def test_another_path_and_an_api_that_does_not_run_are_refused() -> None:
    api = Brightsocket()
    with trio.fail_after(PATIENCE):
        async with trio_program(api) as bound:
            async with open_client(bound.url, transport="websocket") as client:
                with pytest.raises(HandshakeError, match="running") as caught:
                    await client.connect("ECHO")
                assert caught.value.status == 500
            async with api.running(), open_client(f"{bound.url}/elsewhere", transport="websocket") as client:
                with pytest.raises(HandshakeError) as caught:
                    await client.connect("ECHO")
                assert caught.value.status == 404
