"""Stock Socket.IO clients, of four generations on Node and python-socketio's, with our server by each transport."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from brightsocket_anyio import Brightsocket, Connection, Refused
from tests.interop.peers import Lines, run_node, run_python
from tests.support import serving, until

TRANSPORTS = ["polling,websocket", "websocket", "polling"]

#: what is answered by ECHO, or by ASK, as it was sent
VALUES = [0, "", False, None, [], {}, -1.5, 'Grüße ÿþ 𝒳 🚀 \u2028 \0 "', {"ÿ": ["🚀"]}]
ACKNOWLEDGEMENTS = [
    ["one value", 3],
    ["no value"],
    ["nothing", None],
    ["several values", *VALUES],
    *(["falsy value", value] for value in VALUES[:5]),
    ["bytes", {"deep": [{"bytes": "0102"}, {"er": {"bytes": "03"}}], "n": 1}, {"bytes": ""}],
    ["told", None],
    ["told", 0],
    ["told", None],
    ["told", ""],
    ["told", ["the answer", "is", 42]],
    ["told", [{"some": {"bytes": "0908"}}, "bytes"]],
]
FAILED = {"code": "failed", "reason": "internal error"}


class Stock:
    """An API for stock clients, and what it has seen."""

    def __init__(self) -> None:
        self.api = Brightsocket()
        self.lines: Lines = []
        self.requests: set[int] = set()
        self._chat_left = anyio.Event()
        for function, namespace in (
            (self.chat, "/chat"),
            (self.news, "/news"),
            (self.secret, "/secret"),
            (self.fragile, "/fragile"),
            (self.plain, "/"),
            (self.guest, "GUEST"),
            (self.guest, "MEMBER"),
        ):
            self.api.connect(namespace, function)

    async def chat(self, connection: Connection, identity: dict[str, Any]) -> None:
        self.lines.append(["/chat", identity])
        # one session has one request
        self.requests.add(id(connection.request))

        @connection.on("ADD")
        async def add(a: int, b: int) -> int:
            return a + b

        @connection.on("SILENT")
        async def silent() -> tuple[()]:
            return ()

        @connection.on("NOTHING")
        async def nothing() -> None: ...

        @connection.on("NEVER")
        async def never() -> None:
            await anyio.sleep_forever()

        @connection.on("ECHO")
        async def echo(*values: Any) -> tuple[Any, ...]:
            return values

        @connection.on("ASK_ME")
        async def ask_me(*question: Any) -> None:
            await connection.send("TOLD", await connection.call("ASK", *question))

        @connection.on("NUMBER")
        async def number(*values: Any) -> None:
            await connection.send("NUMBER", *values)

        try:
            await connection.accept()
            await anyio.sleep_forever()
        finally:
            self.lines.append(["/chat left"])
            self._chat_left.set()

    async def news(self, connection: Connection) -> None:
        self.requests.add(id(connection.request))

        @connection.on("HELLO")
        async def hello() -> None:
            await connection.send("HEADLINE", "all is well")

        @connection.on("PING")
        async def ping() -> str:
            return "pong"

        @connection.on("CHAT_IS_LEFT")
        async def chat_is_left() -> bool:
            await self._chat_left.wait()
            return True

        @connection.on("END_ME")
        async def end_me() -> None:
            await connection.aclose()

    async def secret(self, connection: Connection, identity: dict[str, Any]) -> None:
        if identity.get("password") != "swordfish":
            raise Refused("wrong password", {"tries": 2})

    async def fragile(self, connection: Connection) -> None:
        self.requests.add(id(connection.request))

        @connection.on("CRASH")
        async def crash() -> None:
            raise LookupError("a bug in the handler")

    async def plain(self, connection: Connection) -> None:
        self.requests.add(id(connection.request))
        await connection.send("WELCOME", "to the main namespace")
        try:
            await anyio.sleep_forever()
        finally:
            self.lines.append(["/ left"])

    async def guest(self, connection: Connection, identity: dict[str, Any]) -> None:
        self.lines.append([connection.channel, identity])
        self.requests.add(id(connection.request))

        @connection.on("WHERE")
        async def where() -> str:
            return connection.channel


@pytest.mark.parametrize("transports", TRANSPORTS)
@pytest.mark.parametrize("generation", ["1", "2", "3", "4"])
async def test_socket_io_client(generation: str, transports: str) -> None:
    stock = Stock()
    async with serving(stock.api) as bound:
        seen = await run_node("stock.js", bound.url, generation=generation, transports=transports)
        await until(lambda: len(stock.api.pool) == 0)
    # protocol 4's ERROR carries one value: the data where there is some
    refusal = [{"tries": 2}] if generation in "12" else ["wrong password", {"tries": 2}]
    timeouts = [
        ["in time", None, 5],
        ["too late", "operation has timed out"],
        ["promised", 7, 9],
        ["promised too late", "operation has timed out"],
    ]
    assert seen == [
        ["connected to /chat"],
        ["transport", transports.split(",")[-1]],
        *ACKNOWLEDGEMENTS,
        *(timeouts if generation == "4" else []),
        ["news", "all is well"],
        ["refused", *refusal],
        ["refused", "Invalid namespace"],
        ["main", "to the main namespace"],
        ["main", "GUEST"],
        ["main", "MEMBER"],
        ["failed", FAILED, "io server disconnect"],
        ["still there", 11, "pong"],
        ["still there", True, "MEMBER"],
        ["ended", "io server disconnect"],
        ["still there", "MEMBER"],
    ]
    assert stock.lines == [
        ["/chat", {"name": "Ada"}],
        ["/ left"],
        ["GUEST", {"name": "Ada"}],
        ["MEMBER", {"name": "Ada"}],
        ["/chat left"],
    ]
    assert len(stock.requests) == 1


@pytest.mark.parametrize("transports", TRANSPORTS)
async def test_python_socketio_client(transports: str) -> None:
    stock = Stock()
    async with serving(stock.api) as bound:
        seen = await run_python("python_client.py", bound.url, transports=transports)
        await until(lambda: len(stock.api.pool) == 0)
    assert seen == [
        ["connected to /chat"],
        ["transport", transports.split(",")[-1]],
        # this client makes a call's empty answer None
        *([*line, None] if line == ["no value"] else line for line in ACKNOWLEDGEMENTS),
        ["too late"],
        ["news", "all is well"],
        ["main", "to the main namespace"],
        ["main", "GUEST"],
        ["main", "MEMBER"],
        ["failed", FAILED, "server disconnect"],
        ["still there", 11, "pong"],
        ["ended", "server disconnect"],
        ["still there", "MEMBER"],
        ["refused", {"message": "wrong password", "data": {"tries": 2}}],
        ["refused", {"message": "Invalid namespace"}],
    ]
    assert stock.lines == [
        ["/chat", {"name": "Ada"}],
        ["/ left"],
        ["GUEST", {"name": "Ada"}],
        ["MEMBER", {"name": "Ada"}],
        ["/chat left"],
    ]
    assert len(stock.requests) == 1
