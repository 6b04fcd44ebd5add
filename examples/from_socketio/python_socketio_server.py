# mypy: disable-error-code="import-untyped,untyped-decorator"
"""The chat on python-socketio."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import socketio
import uvicorn

sio = socketio.AsyncServer(async_mode="asgi")
app = socketio.ASGIApp(sio)
history: list[str] = []
present: dict[str, str] = {}


@sio.on("connect", namespace="/chat")
async def connect(sid: str, environ: dict[str, Any], auth: dict[str, str]) -> None:
    if auth["word"] != "sesame":
        raise socketio.exceptions.ConnectionRefusedError("wrong word", {"hint": "a seed"})
    present[sid] = auth["name"]


@sio.on("say", namespace="/chat")
async def say(sid: str, text: str) -> int:
    history.append(text)
    await sio.emit("said", (present[sid], text), namespace="/chat")
    return len(history)


@sio.on("who", namespace="/chat")
async def who(sid: str) -> list[str]:
    return list(present.values())


@sio.on("disconnect", namespace="/chat")
async def disconnect(sid: str, reason: str) -> None:
    del present[sid]


async def main(port: int) -> None:
    with socket.create_server(("127.0.0.1", port)) as listener:
        print(listener.getsockname()[1], flush=True)
        await uvicorn.Server(uvicorn.Config(app, log_level="warning")).serve(sockets=[listener])


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
