"""The floor of connecting: the handshakes of HTTP, WebSocket and Socket.IO, the last answered by rote.

``python -m benchmarks.servers.replies trio``. What these servers leave out is what a server is for: sessions, channels
and their functions, scopes, deadlines, limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import anyio.abc
import h11
import uvicorn
from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import Protocol, Side, State
from websockets.server import ServerProtocol

from . import listening

OPEN = '0{"sid":"aaaaaaaaaaaaaaaaaaaa","upgrades":[],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1000000}'
JOINED = '40{"sid":"aaaaaaaaaaaaaaaaaaaa"}'
IDENTIFIED = '42["BRIGHTSOCKET:IDENTIFIED"]'


def reply(message: str) -> str | None:
    if message == "40":
        return JOINED
    return IDENTIFIED if message.startswith('42["BRIGHTSOCKET:IDENTIFY"') else None


async def converse(stream: anyio.abc.SocketStream) -> None:
    """By the parts that the embedded server is made of: h11 and ``websockets`` over AnyIO."""
    # a client that is gone at the end of a run is no failure
    with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
        async with stream:
            await answer(stream)


async def answer(stream: anyio.abc.SocketStream) -> None:
    http = h11.Connection(h11.SERVER)
    while (request := http.next_event()) is h11.NEED_DATA:
        http.receive_data(await stream.receive())
    assert isinstance(request, h11.Request)
    http.next_event()
    headers = Headers([(name.decode(), value.decode()) for name, value in request.headers])
    agreed = ServerProtocol().accept(Request(request.target.decode(), headers, "GET", "HTTP/1.1"))
    core = Protocol(Side.SERVER, state=State.OPEN)
    core.send_text(OPEN.encode())
    await stream.send(agreed.serialize() + b"".join(core.data_to_send()))
    while not core.close_rcvd:
        core.receive_data(await stream.receive())
        for frame in core.events_received():
            if isinstance(frame, Frame) and frame.opcode is Opcode.TEXT:
                answered = reply(bytes(frame.data).decode())
                if answered is not None:
                    core.send_text(answered.encode())
        if data := b"".join(core.data_to_send()):
            await stream.send(data)


async def embedded() -> None:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", backlog=1024)
    async with listener:
        print(listener.extra(anyio.abc.SocketAttribute.local_port), flush=True)
        await listener.serve(converse)


async def application(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": OPEN})
    while (message := await receive())["type"] != "websocket.disconnect":
        answered = reply(message["text"])
        if answered is not None:
            await send({"type": "websocket.send", "text": answered})


def behind_uvicorn() -> None:
    listener = listening()
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(application, loop="uvloop", ws="websockets-sansio", lifespan="off", log_level="warning")
    asyncio.Runner(loop_factory=config.get_loop_factory()).run(uvicorn.Server(config).serve(sockets=[listener]))


SERVERS: dict[str, Callable[[], object]] = {
    "trio": partial(anyio.run, embedded, backend="trio"),
    "uvloop": partial(anyio.run, embedded, backend_options={"use_uvloop": True}),
    "uvicorn": behind_uvicorn,
}


if __name__ == "__main__":
    SERVERS[sys.argv[1]]()
