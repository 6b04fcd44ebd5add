"""The floors: what a carrier or a loop takes for itself. ``python -m benchmarks.servers.carriers tcp-trio``."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from functools import partial
from typing import Any, cast

import anyio
import anyio.abc
import trio
import uvicorn
import uvloop
import websockets.asyncio.server
import websockets.exceptions
from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket

from . import listening


async def tcp_anyio() -> None:
    """A TCP echo over AnyIO."""

    async def echo(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            # at the end the generator is gone without a word
            with contextlib.suppress(anyio.BrokenResourceError):
                async for data in stream:
                    await stream.send(data)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", backlog=1024)
    async with listener:
        print(listener.extra(anyio.abc.SocketAttribute.local_port), flush=True)
        await listener.serve(echo)


async def tcp_trio() -> None:
    """A TCP echo over Trio's own streams."""

    async def echo(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async for data in stream:
                await stream.send_all(data)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=1024)
    print(listeners[0].socket.getsockname()[1], flush=True)
    await trio.serve_listeners(echo, listeners)


class _Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


async def tcp_protocol() -> None:
    """A TCP echo as an asyncio protocol."""
    server = await asyncio.get_running_loop().create_server(_Echo, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def websockets_echo() -> None:
    """The server of ``websockets``, as its documentation has it."""

    async def echo(connection: websockets.asyncio.server.ServerConnection) -> None:
        with contextlib.suppress(websockets.exceptions.ConnectionClosed):
            async for message in connection:
                await connection.send(message)

    async with websockets.asyncio.server.serve(echo, "127.0.0.1", 0, compression=None, backlog=1024) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


async def _application(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] != "websocket.disconnect":
        await send({"type": "websocket.send", "text": message["text"]})


def asgi_echo() -> None:
    """An ASGI application on uvicorn."""
    listener = listening()
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(_application, loop="uvloop", ws="websockets-sansio", lifespan="off", log_level="warning")
    asyncio.Runner(loop_factory=config.get_loop_factory()).run(uvicorn.Server(config).serve(sockets=[listener]))


async def trio_websocket_echo() -> None:
    """The server of ``trio-websocket``, as its documentation has it."""

    async def echo(request: WebSocketRequest) -> None:
        connection = await request.accept()
        try:
            while True:
                await connection.send_message(await connection.get_message())
        except ConnectionClosed:
            pass

    async with trio.open_nursery() as nursery:
        server: Any = await nursery.start(partial(serve_websocket, echo, "127.0.0.1", 0, ssl_context=None))
        print(server.port, flush=True)


CARRIERS = {
    "tcp-trio": lambda: trio.run(tcp_trio),
    "tcp-anyio-uvloop": lambda: anyio.run(tcp_anyio, backend_options={"use_uvloop": True}),
    "tcp-protocol-uvloop": lambda: uvloop.run(tcp_protocol()),
    "websockets": lambda: asyncio.run(websockets_echo()),
    "websockets-uvloop": lambda: uvloop.run(websockets_echo()),
    "trio-websocket": lambda: trio.run(trio_websocket_echo),
    "asgi-uvicorn": asgi_echo,
}


if __name__ == "__main__":
    CARRIERS[sys.argv[1]]()
