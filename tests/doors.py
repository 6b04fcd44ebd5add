"""The API behind each of its front doors, for tests of what a handshake carries in and out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import pytest
import trio
from trio_websocket import serve_websocket

from brightsocket_anyio import Bound, Brightsocket
from tests.conftest import LOOPS
from tests.support import serving

DOORS = ("embedded", "asgi", "trio-websocket")

#: a door, and a transport by which our client enters it
_EVERYWHERE = [("embedded", "websocket"), ("embedded", "polling"), ("asgi", "websocket"), ("asgi", "polling")]
_TRIO = [("trio-websocket", "websocket"), ("embedded", "trio-websocket"), ("trio-websocket", "trio-websocket")]


def every_road(*transports: str, doors: tuple[str, ...] = DOORS) -> pytest.MarkDecorator:
    """Parametrize a test by ``door`` and ``transport``, on every loop on which the two exist.

    :param transports: these ones only.
    :param doors: these ones only.
    """
    cases = [
        (loop, door, transport)
        for loop in LOOPS
        for door, transport in (_EVERYWHERE + _TRIO if loop == "trio" else _EVERYWHERE)
        if door in doors and (not transports or transport in transports)
    ]
    return pytest.mark.parametrize(("anyio_backend", "door", "transport"), cases, indirect=["anyio_backend"])


@asynccontextmanager
async def behind(door: str, api: Brightsocket) -> AsyncGenerator[Bound]:
    """The API behind a door: the embedded server, ASGI (as an application that another API wraps), trio-websocket."""
    match door:
        case "embedded":
            async with serving(api) as bound:
                yield bound
        case "asgi":
            async with serving(Brightsocket(api, path="/outer/")) as bound:
                yield bound
        case _:
            async with api.running(), trio.open_nursery() as nursery:
                serve = partial(serve_websocket, api.handle_trio_websocket, "127.0.0.1", 0, ssl_context=None)
                server: Any = await nursery.start(serve)
                yield Bound((("127.0.0.1", server.port),), f"http://127.0.0.1:{server.port}")
                nursery.cancel_scope.cancel()


class Recorder(httpx.AsyncClient):
    """An httpx client that keeps the answers that it got.

    :ivar answers: each with its status code and headers.
    """

    def __init__(self, **options: Any) -> None:
        self.answers: list[httpx.Response] = []
        super().__init__(event_hooks={"response": [self._record]}, **options)

    async def _record(self, response: httpx.Response) -> None:
        self.answers.append(response)


async def ask_websocket(
    http: httpx.AsyncClient,
    url: str,
    headers: dict[str, str] | None = None,
    *,
    subprotocols: Sequence[str] = (),
    path: str = "/socket.io/",
) -> httpx.Response:
    """The answer to a WebSocket's handshake, which goes no further."""
    own = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        **({"sec-websocket-protocol": ", ".join(subprotocols)} if subprotocols else {}),
        **(headers or {}),
    }
    request = http.build_request("GET", f"{url}{path}?EIO=4&transport=websocket", headers=own)
    response = await http.send(request, stream=True)
    try:
        if response.status_code != 101:
            await response.aread()
        return response
    finally:
        await response.aclose()
