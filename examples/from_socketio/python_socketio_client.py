# mypy: disable-error-code="import-untyped,untyped-decorator"
"""A visit to the chat with python-socketio."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import socketio


async def visit(url: str, word: str) -> None:
    sio = socketio.AsyncClient(reconnection=False)
    said: asyncio.Queue[str] = asyncio.Queue()
    errors: list[dict[str, Any]] = []

    @sio.on("said", namespace="/chat")
    async def on_said(name: str, text: str) -> None:
        await said.put(f"{name} said: {text}")

    @sio.on("connect_error", namespace="/chat")
    async def on_connect_error(error: dict[str, Any]) -> None:
        errors.append(error)

    try:
        await sio.connect(url, auth={"name": "Ada", "word": word}, namespaces=["/chat"])
    except socketio.exceptions.ConnectionError:
        [error] = errors
        print(f"{error['message']}, hint: {error['data']['hint']}")
        return
    try:
        await sio.call("say", "hello", namespace="/chat", timeout=60)
        print(await said.get())
        print(await sio.call("who", namespace="/chat"))
    finally:
        await sio.disconnect()


async def main(url: str) -> None:
    for word in ("simsim", "sesame"):
        await visit(url, word)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
