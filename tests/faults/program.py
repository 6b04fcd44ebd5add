"""A server as a process of its own, for tests of its memory and of its end.

``python -m tests.faults.program LOOP DOOR SETTINGS`` prints the URL that it serves; the signals TERM and INT end it.
The door is ``embedded`` or ``asgi``, which is uvicorn, and on Trio hypercorn.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
from typing import Any

import anyio
import hypercorn.config
import hypercorn.trio
import uvicorn
from anyio.lowlevel import checkpoint

from brightsocket_anyio import Bound, Brightsocket, Connection

from ..support import census


class Program:
    """The API, and what its channels count."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.api = Brightsocket(_hello, **settings)
        self.flooded: Connection | None = None
        self.gate = anyio.Event()
        self.handled = 0
        self.gaps = 0
        self.emitted = 0
        self.api.connect("FLOODED", self._flooded)
        self.api.connect("CONTROL", self._control)
        self.api.connect("LISTEN", lambda: None)
        self.api.connect("LISTEN_OLDEST", (), lambda: None, slow_consumer="drop-oldest")
        self.api.connect("LISTEN_NEWEST", (), lambda: None, slow_consumer="drop-newest")

    async def _flooded(self, connection: Connection) -> None:
        self.flooded = connection
        self.gate = anyio.Event()
        self.handled = self.gaps = 0

        @connection.on("WORK")
        async def work(number: int, text: str) -> None:
            await self.gate.wait()
            await checkpoint()
            self.gaps += number != self.handled
            self.handled += 1

    async def _control(self, connection: Connection) -> None:
        @connection.on("ECHO")
        def echo(value: Any) -> Any:
            return value

        @connection.on("STATE")
        def state() -> dict[str, Any]:
            return {
                "full": self.flooded is not None and self.flooded._core.inbox.full,
                "handled": self.handled,
                "gaps": self.gaps,
                "members": len(self.api.pool),
                "dropped": self.api.pool.dropped,
            }

        @connection.on("CENSUS")
        def count() -> dict[str, int]:
            return dict(census())

        @connection.on("OPEN_GATE")
        def open_gate() -> None:
            self.gate.set()

        @connection.on("EMIT")
        async def emit(count: int, size: int) -> None:
            for _ in range(count):
                await self.api.pool.emit("NEWS", self.emitted, "x" * size)
                self.emitted += 1

    async def run(self) -> None:
        """Serve until a signal says to end."""
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with anyio.create_task_group() as tg:
                bound: Bound = await tg.start(lambda *, task_status: self.api.serve(port=0, task_status=task_status))
                print(bound.url, flush=True)
                async for _ in signals:
                    tg.cancel_scope.cancel()
                    break

    async def run_asgi(self, loop: str) -> None:
        """Serve behind an ASGI server until it gets a signal."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
            if loop == "trio":
                config = hypercorn.config.Config()
                config.bind = [f"fd://{listening.fileno()}"]
                config.accesslog = config.errorlog = None
                await hypercorn.trio.serve(self.api, config)  # type: ignore[arg-type]
            else:
                server = uvicorn.Server(uvicorn.Config(self.api, lifespan="on", log_level="warning"))
                await server.serve([listening])


async def _hello(scope: Any, receive: Any, send: Any) -> None:
    """The wrapped application: its answers take long enough to be in flight."""
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3000")]})
    for _ in range(3):
        await anyio.sleep(0.1)
        await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
    await send({"type": "http.response.body"})


def main() -> None:
    loop, door, settings = sys.argv[1:]
    backend, _, uvloop = loop.partition("+")
    options = {"use_uvloop": bool(uvloop)} if backend == "asyncio" else {}
    program = Program(json.loads(settings))
    if door == "embedded":
        anyio.run(program.run, backend=backend, backend_options=options)
    else:
        anyio.run(program.run_asgi, loop, backend=backend, backend_options=options)


if __name__ == "__main__":
    main()
