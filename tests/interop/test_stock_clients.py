"""Stock Socket.IO clients of three generations on our namespaces and on the main one, over each kind of transport."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from brightsocket_anyio import Brightsocket, Connection, Refused
from tests.interop.peers import Lines, run_node
from tests.support import serving, until


def api_and_lines() -> tuple[Brightsocket, Lines]:
    api = Brightsocket()
    lines: Lines = []

    @api.connect("/chat")
    async def chat(connection: Connection, identity: dict[str, Any]) -> None:
        lines.append(["/chat", identity])

        @connection.on("ADD")
        async def add(a: int, b: int) -> int:
            return a + b

        @connection.on("SILENT")
        async def silent() -> tuple[()]:
            return ()

        @connection.on("ASK_ME")
        async def ask_me() -> None:
            await connection.send("TOLD", await connection.call("ASK", "the answer"))

        @connection.on("REVERSE")
        async def reverse(first: dict[str, bytes], second: bytes) -> tuple[dict[str, bytes], bytes]:
            lines.append(["bytes", first["bytes"].hex(), second.hex()])
            return {"bytes": first["bytes"][::-1]}, second[::-1]

        await connection.accept()
        try:
            await anyio.sleep_forever()
        finally:
            lines.append(["/chat left"])

    @api.connect("/news")
    async def news(connection: Connection) -> None:
        @connection.on("HELLO")
        async def hello() -> None:
            await connection.send("HEADLINE", "all is well")

        @connection.on("PING")
        async def ping() -> str:
            return "pong"

        @connection.on("END_ME")
        async def end_me() -> None:
            await connection.aclose()

    @api.connect("/secret")
    async def secret(connection: Connection, identity: dict[str, Any]) -> None:
        if identity.get("password") != "swordfish":
            raise Refused("wrong password", {"tries": 2})

    @api.connect("/")
    async def plain(connection: Connection) -> None:
        @connection.on("ECHO")
        async def echo(text: str) -> str:
            return text

        await connection.send("WELCOME", "to the main namespace")

    return api, lines


@pytest.mark.parametrize("transports", ["polling,websocket", "websocket", "polling"])
@pytest.mark.parametrize("generation", ["1", "2", "4"])
async def test_stock_client(generation: str, transports: str) -> None:
    api, lines = api_and_lines()
    async with serving(api) as bound:
        seen = await run_node("stock.js", bound.url, generation=generation, transports=transports)
        await until(lambda: len(api.pool) == 0)
    refusal = ["refused", "wrong password", {"tries": 2}]
    if generation != "4":
        # protocol 4's ERROR carries one value: the data where there is some
        refusal = ["refused", {"tries": 2}]
    assert [[part for part in line if part is not None] for line in seen] == [
        ["connected to /chat"],
        ["answer", 3],
        ["empty answer"],
        ["told", ["the answer", "is", 42]],
        ["bytes", "030201", "0504"],
        ["transport", transports.split(",")[-1]],
        ["bytes", "0706"],
        ["news", "all is well"],
        refusal,
        ["refused", "Invalid namespace"],
        ["still there", "pong"],
        ["ended", "io server disconnect"],
        ["plain", "to the main namespace"],
        ["plain answer", "Zürich 🚀"],
    ]
    assert lines == [["/chat", {"name": "Ada"}], ["bytes", "010203", "0405"], ["bytes", "0607", ""], ["/chat left"]]
