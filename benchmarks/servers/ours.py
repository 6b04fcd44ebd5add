"""This package: ``python -m benchmarks.servers.ours --loop trio --by stream``."""

from __future__ import annotations

import argparse
import asyncio
from functools import partial
from typing import Any

import anyio
import uvicorn

from brightsocket_anyio import Brightsocket, Connection

from . import listening

LOOPS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}


def make(by: str, handlers: int) -> Brightsocket:
    api = Brightsocket()

    @api.connect("BENCH")
    async def bench(connection: Connection) -> None:
        expected = handled = 0

        async def shout(text: str) -> None:
            await api.pool.emit("NEWS", text)

        async def flood(text: str) -> None:
            nonlocal handled
            await anyio.sleep(0.001)
            handled += 1
            if handled == expected:
                await connection.send("DONE")

        def expect(amount: int) -> None:
            nonlocal expected
            expected = amount

        async def echo(text: str) -> None:
            await connection.send("ECHO", text)

        if by == "on":
            connection.on("ECHO")(echo)
        if handlers > 1:
            connection.on("SHOUT")(shout)
            connection.on("FLOOD")(flood)
            connection.on("EXPECT")(expect)
        for number in range(4, handlers):
            connection.on(f"ACTION{number}")(echo)
        if by == "stream":
            async with connection.receive("ECHO") as texts:
                async for text in texts:
                    await connection.send("ECHO", text)

    return api


async def embedded(api: Brightsocket) -> None:
    async with anyio.create_task_group() as tg:
        bound = await tg.start(partial(api.serve, port=0))
        print(bound.port, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--loop", choices=LOOPS, default="uvloop")
    parser.add_argument("--by", choices=["on", "stream"], default="on")
    parser.add_argument("--handlers", type=int, default=4)
    parser.add_argument("--uvicorn", action="store_true")
    options = parser.parse_args()
    api = make(options.by, options.handlers)
    if options.uvicorn:
        listener = listening()
        print(listener.getsockname()[1], flush=True)
        config = uvicorn.Config(api, loop=options.loop, ws="websockets-sansio", log_level="warning")
        asyncio.Runner(loop_factory=config.get_loop_factory()).run(uvicorn.Server(config).serve(sockets=[listener]))
    else:
        backend, backend_options = LOOPS[options.loop]
        anyio.run(embedded, api, backend=backend, backend_options=backend_options)


if __name__ == "__main__":
    main()
