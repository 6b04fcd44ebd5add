"""The JavaScript peers as processes, and the scenarios' two sides in Python."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any

import anyio
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream

from brightsocket_anyio import Brightsocket, Client, Connection

HERE = Path(__file__).parent
PATIENCE = 60
SCENARIOS = (
    "identify",
    "identity",
    "send_and_receive",
    "filter",
    "filter_of_two_receivers",
    "extends",
    "login",
    "reidentify",
    "disconnect",
)
PAYLOADS = [{"a": 1}, "text", [1, [2]], 5, True, "Grüße 🚀", None, 0, ""]
TOKEN = "a token for ada"

Lines = list[list[Any]]


def expected(generation: str, scenario: str) -> dict[str, Lines]:
    """What the original's two sides printed when they talked to each other (record.js).

    The original's client for Socket.IO 4 has no server to be recorded with; it does what it did on 2.
    """
    recorded = json.loads((HERE / "expected" / f"{'1' if generation == '1' else '2'}.json").read_text())
    outcome: dict[str, Lines] = recorded[scenario]
    return outcome


def environment(generation: str, transports: str = "") -> dict[str, str]:
    return {**os.environ, "SOCKETIO": generation, "TRANSPORTS": transports}


async def run_node(file: str, *args: str, generation: str, transports: str = "") -> Lines:
    """Run a program to its end; returns the JSON lines that it printed."""
    return await _run(["node", str(HERE / file), *args], environment(generation, transports))


async def run_python(file: str, *args: str, transports: str) -> Lines:
    """As :func:`run_node`, for a program in this Python."""
    return await _run([sys.executable, str(HERE / file), *args], environment("", transports))


async def _run(command: list[str], env: dict[str, str]) -> Lines:
    with anyio.fail_after(PATIENCE):
        result = await anyio.run_process(command, env=env, stderr=None)
    # not splitlines(), for which more characters end a line than for JSON
    return [json.loads(line) for line in result.stdout.decode().split("\n") if line]


class OriginalServer:
    """server.js as a process."""

    def __init__(self, process: Process) -> None:
        assert process.stdout is not None
        self._process = process
        self._text = TextReceiveStream(process.stdout)
        self._buffer = ""
        self.url = ""

    async def line(self) -> Any:
        with anyio.fail_after(PATIENCE):
            while "\n" not in self._buffer:
                self._buffer += await self._text.receive()
        line, _, self._buffer = self._buffer.partition("\n")
        return json.loads(line)

    async def rest(self) -> Lines:
        """Have it end, once every client has left; returns the lines that have not been read."""
        assert self._process.stdin is not None
        await self._process.stdin.aclose()
        lines = []
        try:
            while True:
                lines.append(await self.line())
        except anyio.EndOfStream:
            return lines


@asynccontextmanager
async def original_server(generation: str) -> AsyncGenerator[OriginalServer]:
    command = ["node", str(HERE / "server.js")]
    process = await anyio.open_process(command, env=environment(generation), stdin=PIPE, stdout=PIPE, stderr=None)
    async with process:
        server = OriginalServer(process)
        try:
            server.url = f"http://127.0.0.1:{(await server.line())['port']}"
            yield server
        finally:
            if process.returncode is None:
                process.kill()


def scenario_api() -> tuple[Brightsocket, Lines]:
    """server.js in Python, and the lines that it sees."""
    api = Brightsocket()
    lines: Lines = []

    def see(*what: Any) -> None:
        lines.append(list(what))

    @api.connect("PLAIN")
    async def plain() -> None: ...

    @api.connect("IDENTITY")
    async def identity(connection: Connection, identity: dict[str, Any]) -> None:
        await connection.send("IDENTITY", identity)

    @api.connect("ECHO")
    async def echo(connection: Connection) -> None:
        @connection.on("MESSAGE")
        async def message(payload: Any) -> None:
            await connection.send("MESSAGE", payload)

    @api.connect("FILTERED")
    async def filtered(connection: Connection) -> None:
        @connection.add_filter
        async def only_allowed(action: str, payload: Any, forward: Any) -> None:
            see("filter", action, payload)
            if payload["allowed"]:
                await forward()
            else:
                await connection.send("BLOCKED", payload)

        @connection.on("MESSAGE")
        async def message(payload: Any) -> None:
            await connection.send("FORWARDED", payload)

    @api.connect("FILTERED_TWICE")
    async def filtered_twice(connection: Connection) -> None:
        @connection.add_filter
        async def count(action: str, payload: Any, forward: Any) -> None:
            see("filter", action, payload)
            await forward()

        @connection.on("MESSAGE")
        async def first() -> None:
            await connection.send("FIRST")

        @connection.on("MESSAGE")
        async def second() -> None:
            await connection.send("SECOND")

    @api.connect("BASE")
    async def base(connection: Connection) -> None:
        @connection.on("MESSAGE")
        async def message(payload: Any) -> None:
            await connection.send("FROM_BASE", payload)

    @api.connect("EXTENDED", extends=["BASE"])
    async def extended(connection: Connection) -> None:
        @connection.on("MESSAGE")
        async def message(payload: Any) -> None:
            await connection.send("FROM_EXTENDED", payload)

    @api.connect("GUEST")
    async def guest(connection: Connection, identity: dict[str, Any]) -> None:
        if identity == {"username": "ada", "password": "lovelace"}:
            await connection.send("LOGGED_IN", {"userType": "ADMIN", "token": TOKEN})
        else:
            await connection.send("UNAUTHORIZED")

    @api.connect("ADMIN")
    async def admin(connection: Connection, identity: dict[str, Any]) -> None:
        see("ADMIN", identity)

        @connection.on("WHO_AM_I")
        async def who_am_i() -> None:
            await connection.send("YOU_ARE", "ada" if identity["token"] == TOKEN else "nobody")

    @api.connect("USER1")
    async def user1(connection: Connection) -> None:
        see("USER1")

        @connection.on("MESSAGE")
        async def message() -> None:
            see("USER1 MESSAGE")

        await connection.send("NEEDS_REIDENTIFY", "USER2")

    @api.connect("USER2")
    async def user2(connection: Connection) -> None:
        see("USER2")

        @connection.on("MESSAGE")
        async def message() -> None:
            see("USER2 MESSAGE")
            await connection.send("REIDENTIFIED")

    @api.connect("LEAVING")
    async def leaving(connection: Connection) -> None:
        try:
            await connection.accept()
            await anyio.sleep_forever()
        finally:
            see("LEAVING left")

    return api, lines


async def play(client: Client, scenario: str) -> Lines:
    """client.js in Python: one scenario; returns the lines that it sees."""
    lines: Lines = []
    # what came right behind IDENTIFIED may be handled before the task that called connect goes on
    identified = anyio.Event()
    finished = anyio.Event()

    def see(*what: Any) -> None:
        lines.append(list(what))

    match scenario:
        case "identify":
            await client.connect("PLAIN")
            see("identified")
        case "identity":
            given = {"name": "Ada", "BRIGHTSOCKET:SECRET": 1, "nested": {"list": [1, "zwei", None, "Zürich 🚀"]}}
            connection = await client.connect("IDENTITY", given)
            async with connection.receive("IDENTITY") as identities:
                see("IDENTITY", await identities.receive())
        case "send_and_receive":
            connection = await client.connect("ECHO")
            async with connection.receive("MESSAGE") as messages:
                for payload in PAYLOADS:
                    # the original leaves out what JavaScript takes for false
                    await connection.send("MESSAGE", *([payload] if payload else []))
                for _ in PAYLOADS:
                    see("MESSAGE", await messages.receive())
        case "filter":
            connection = await client.connect("FILTERED")
            async with connection.receive("BLOCKED") as blocked, connection.receive("FORWARDED") as forwarded:
                await connection.send("MESSAGE", {"allowed": False})
                await connection.send("MESSAGE", {"allowed": True})
                see("BLOCKED", await blocked.receive())
                see("FORWARDED", await forwarded.receive())
        case "filter_of_two_receivers":
            connection = await client.connect("FILTERED_TWICE")
            async with connection.receive("FIRST") as first, connection.receive("SECOND") as second:
                await connection.send("MESSAGE", {"number": 1})
                see("FIRST", *_present(await first.receive()))
                see("SECOND", *_present(await second.receive()))
        case "extends":
            connection = await client.connect("EXTENDED")
            async with connection.receive("FROM_BASE") as base, connection.receive("FROM_EXTENDED") as extended:
                await connection.send("MESSAGE", "hello")
                see("FROM_BASE", await base.receive())
                see("FROM_EXTENDED", await extended.receive())
        case "login":

            @client.on("LOGGED_IN")
            async def logged_in(login: dict[str, str]) -> None:
                await identified.wait()
                see("LOGGED_IN", login)
                connection = await client.connect(login["userType"], {"token": login["token"]})
                see("identified", login["userType"])
                await connection.send("WHO_AM_I")

            @client.on("YOU_ARE")
            async def you_are(name: str) -> None:
                see("YOU_ARE", name)
                finished.set()

            await client.connect("GUEST", {"username": "ada", "password": "lovelace"})
            see("identified", "GUEST")
            identified.set()
            await finished.wait()
        case "reidentify":

            @client.on("NEEDS_REIDENTIFY")
            async def needs_reidentify(channel: str) -> None:
                await identified.wait()
                see("NEEDS_REIDENTIFY", channel)
                connection = await client.connect(channel)
                await connection.send("MESSAGE")

            @client.on("REIDENTIFIED")
            async def reidentified() -> None:
                see("REIDENTIFIED")
                finished.set()

            await client.connect("USER1")
            see("identified", "USER1")
            identified.set()
            await finished.wait()
        case "disconnect":
            await client.connect("LEAVING")
            see("identified")
    await client.disconnect()
    return lines


def _present(payload: Any) -> list[Any]:
    return [] if payload is None else [payload]
