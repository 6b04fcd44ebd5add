"""The chat here."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import anyio

from brightsocket_anyio import Brightsocket, Connection, Refused

api = Brightsocket()
history: list[str] = []
present: dict[str, str] = {}


@api.connect("/chat")
async def chat(connection: Connection, auth: dict[str, Any]) -> None:
    if auth.get("word") != "sesame":
        raise Refused("wrong word", {"hint": "a seed"})

    @connection.on("say")
    async def say(text: str) -> int:
        history.append(text)
        await api.pool.emit("said", auth["name"], text)
        return len(history)

    @connection.on("who")
    async def who() -> list[str]:
        return list(present.values())

    await connection.accept()
    present[connection.id] = auth["name"]
    try:
        await anyio.sleep_forever()
    finally:
        del present[connection.id]


async def main(port: int) -> None:
    async with anyio.create_task_group() as tasks:
        bound = await tasks.start(partial(api.serve, port=port))
        print(bound.port, flush=True)


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]), backend="trio")
