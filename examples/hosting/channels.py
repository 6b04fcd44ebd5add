"""The API that all of them serve: a room that one gets into by a password."""

from __future__ import annotations

from typing import Any

import anyio

from brightsocket_anyio import Brightsocket, Connection, Refused


def add_channels(api: Brightsocket) -> None:
    @api.connect("GUEST")
    async def guest(connection: Connection, identity: dict[str, Any]) -> None:
        if identity.get("password") != "sesame":
            raise Refused("wrong password")
        await connection.send("LOGGED_IN", {"channel": "MEMBER", "name": identity["name"]})

    @api.connect("MEMBER")
    async def member(connection: Connection, identity: dict[str, Any]) -> None:
        @connection.on("SAY")
        async def say(text: Any) -> None:
            await api.pool.emit("SAID", identity["name"], text)

        @connection.on("ECHO")
        async def echo(*payload: Any) -> Any:
            return payload

        @connection.on("COUNT")
        async def count() -> int:
            return len(api.pool)

        @connection.on("LEAVE")
        async def leave() -> None:
            raise Refused("as you wish")

        await connection.accept()
        try:
            await api.pool.emit("JOINED", identity["name"])
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await api.pool.emit("LEFT", identity["name"])

    @api.connect("/news")
    async def news(connection: Connection, identity: dict[str, Any]) -> None:
        if "topic" not in identity:
            raise Refused("about what?", data={"topics": ["weather"]})
        await connection.send("HEADLINE", f"{identity['topic']}: nothing new")
