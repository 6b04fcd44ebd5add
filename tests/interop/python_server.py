"""A stock server of python-socketio 5 under uvicorn: what stock_server.js does, as far as this server can.

Prints its port, and serves until its input ends.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
from collections import defaultdict
from typing import Any

import socketio  # type: ignore[import-untyped]
import uvicorn

departures: dict[str, asyncio.Future[str]] = defaultdict(lambda: asyncio.get_running_loop().create_future())


class Stock(socketio.AsyncNamespace):  # type: ignore[misc]
    """One namespace; its methods ``on_…`` are the handlers."""

    async def on_connect(self, sid: str, environ: dict[str, Any], auth: dict[str, Any] | None = None) -> None:
        if self.namespace == "/chat" and (auth or {}).get("token") != "good":
            if not auth:
                raise socketio.exceptions.ConnectionRefusedError("no token")
            raise socketio.exceptions.ConnectionRefusedError("bad token", {"tries": 2})
        await self.save_session(sid, {"auth": auth, "name": "", "numbers": 0})

    async def on_disconnect(self, sid: str, reason: str) -> None:
        departures[(await self.get_session(sid))["name"]].set_result(reason)

    async def on_name(self, sid: str, name: str) -> None:
        (await self.get_session(sid))["name"] = name

    async def on_why_left(self, sid: str, other: str) -> str:
        return await departures[other]

    async def on_add(self, sid: str, a: int, b: int) -> int:
        return a + b

    async def on_silent(self, sid: str) -> None: ...

    async def on_echo(self, sid: str, *args: Any) -> tuple[Any, ...]:
        return args

    async def on_emit_back(self, sid: str, *args: Any) -> None:
        await self.emit("BACK", args, to=sid)

    async def on_ask_me(self, sid: str, *question: Any) -> None:
        async def told(*answer: Any) -> None:
            await self.emit("TOLD", answer, to=sid)

        await self.emit("ASK", question, to=sid, callback=told)

    async def on_ask_me_in_time(self, sid: str, milliseconds: int) -> None:
        try:
            answer = await self.call("ASK", "in time?", to=sid, timeout=milliseconds / 1000)
        except socketio.exceptions.TimeoutError:
            await self.emit("TOLD", ("operation has timed out", None), to=sid)
        else:
            await self.emit("TOLD", (None, answer), to=sid)

    async def on_number(self, sid: str, number: int, extra: Any) -> None:
        session = await self.get_session(sid)
        if number != session["numbers"]:
            await self.emit("DISORDER", (number, session["numbers"]), to=sid)
        session["numbers"] += 1
        await self.emit("NUMBER", (number, extra), to=sid)

    async def on_auth(self, sid: str) -> Any:
        return (await self.get_session(sid))["auth"]

    async def on_transport(self, sid: str) -> str:
        transport: str = self.server.transport(sid, self.namespace)
        return transport

    async def on_end_me(self, sid: str) -> None:
        await self.emit("LAST", 1, to=sid)
        await self.disconnect(sid)

    async def trigger_event(self, event: str, *args: Any) -> Any:
        return await super().trigger_event(event.lower(), *args)


def end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


async def main() -> None:
    server = socketio.AsyncServer(async_mode="asgi")
    for namespace in ("/", "/open", "/chat"):
        server.register_namespace(Stock(namespace))
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    threading.Thread(target=end_with_input, daemon=True).start()
    config = uvicorn.Config(socketio.ASGIApp(server), log_level="warning")
    await uvicorn.Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    asyncio.run(main())
