"""hypercorn as a part of the program, which says goodbye to its clients before hypercorn waits for them to go."""

from __future__ import annotations

import signal
import sys

import anyio
import hypercorn.asyncio
import hypercorn.trio
from hypercorn.config import Config

from .in_starlette import api, app


async def wait_for_signal() -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        await anext(signals)
    await api.drain()


async def main(address: str, backend: str) -> None:
    config = Config()
    config.bind = [address]
    serve = hypercorn.trio.serve if backend == "trio" else hypercorn.asyncio.serve
    await serve(app, config, shutdown_trigger=wait_for_signal)  # type: ignore[arg-type]


if __name__ == "__main__":
    address, backend = sys.argv[1:]
    anyio.run(main, address, backend, backend=backend)
