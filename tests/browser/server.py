"""The API that the pages of these tests speak to, and two other origins with pages: a friend's and a foreign one.

    python -m tests.browser.server asyncio

prints one line, a JSON object of the three origins, and serves until SIGINT.
"""

from __future__ import annotations

import json
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from brightsocket_anyio import Brightsocket, Connection, Refused

PAGE = """<!doctype html>
<title>test</title>
<link rel="icon" href="data:,">
<script src="/stock/socket.io.min.js"></script>
"""
STOCK = Path(__file__).parent / "node_modules" / "socket.io-client" / "dist"


def make_pages() -> Starlette:
    """A page with the stock client, ready for a test's own code."""
    return Starlette(
        routes=[Route("/", lambda request: HTMLResponse(PAGE)), Mount("/stock", StaticFiles(directory=STOCK))]
    )


def make_api(friend: str) -> Brightsocket:
    api = Brightsocket(make_pages(), allowed_origins=[friend], credentials=True, max_disconnection_duration=60)
    history: list[str] = []

    def answer(connection: Connection) -> None:
        @connection.on("ECHO")
        async def echo(*values: Any) -> None:
            await connection.send("ECHOED", *values)

        @connection.on("ASK")
        def ask(*values: Any) -> tuple[Any, ...]:
            return values

        @connection.on("ASK_ME")
        async def ask_me(*question: Any) -> None:
            await connection.send("ANSWERED", await connection.call("QUESTION", *question))

        @connection.on("COOKIES")
        def cookies() -> dict[str, str]:
            assert connection.request is not None
            return dict(connection.request.cookies)

    @api.connect("BASE")
    def base(connection: Connection) -> None:
        answer(connection)

        @connection.on("THROW_OUT")
        def throw_out() -> None:
            raise Refused("no such noise in here")

    @api.connect("GUEST", extends=["BASE"])
    async def guest(connection: Connection, identity: dict[str, Any]) -> None:
        await connection.send("WELCOME", identity)

    for name in ("ONE", "TWO"):

        @api.connect(name, extends=["BASE"])
        async def one_of_two(connection: Connection, identity: Any, webserver: Any, name: str = name) -> None:
            history.append(f"{name} opened")
            try:
                await connection.send("HISTORY", history)
                async with connection.receive("TALK") as talks:
                    async for _ in talks:
                        await connection.send("HEARD", name)
            finally:
                history.append(f"{name} over")

    @api.connect("REFUSER")
    def refuser() -> None:
        raise Refused("not you")

    @api.connect("/chat")
    def chat(connection: Connection, auth: dict[str, Any]) -> None:
        if auth.get("token") != "good":
            raise Refused("bad token", data={"tries": 1})
        answer(connection)

    return api


async def serve() -> None:
    async with anyio.create_task_group() as tasks:
        start = partial(tasks.start, name="server")
        friend, foreign = [await start(partial(Brightsocket(make_pages()).serve, port=0)) for _ in range(2)]
        with anyio.open_signal_receiver(signal.SIGINT) as signals:
            home = await start(partial(make_api(friend.url).serve, port=0))
            print(json.dumps({"home": home.url, "friend": friend.url, "foreign": foreign.url}), flush=True)
            await anext(signals)
            tasks.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(serve, backend=sys.argv[1])
