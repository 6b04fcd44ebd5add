"""python-socketio, as its documentation has it, on uvicorn with uvloop."""

from __future__ import annotations

import asyncio
from typing import Any

import socketio
import uvicorn

from . import listening

sio = socketio.AsyncServer(async_mode="asgi", cors_allowed_origins="*")
expected: dict[str, int] = {}


@sio.event
async def connect(sid: str, environ: Any, auth: Any) -> None:
    pass


@sio.on("ECHO")
async def echo(sid: str, text: str) -> None:
    await sio.emit("ECHO", text, to=sid)


@sio.on("SHOUT")
async def shout(sid: str, text: str) -> None:
    await sio.emit("NEWS", text)


@sio.on("EXPECT")
async def expect(sid: str, amount: int) -> None:
    expected[sid] = amount


@sio.on("FLOOD")
async def flood(sid: str, text: str) -> None:
    await asyncio.sleep(0.001)
    expected[sid] -= 1
    if not expected[sid]:
        await sio.emit("DONE", to=sid)


def main() -> None:
    listener = listening()
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(socketio.ASGIApp(sio), loop="uvloop", ws="websockets-sansio", log_level="warning")
    asyncio.Runner(loop_factory=config.get_loop_factory()).run(uvicorn.Server(config).serve(sockets=[listener]))


if __name__ == "__main__":
    main()
