"""A visit to the chat from here."""

from __future__ import annotations

import sys

import anyio

from brightsocket_anyio import ChannelRefused, open_client


async def visit(url: str, word: str) -> None:
    async with open_client(url) as client:
        try:
            chat = await client.connect("/chat", {"name": "Ada", "word": word})
        except ChannelRefused as refused:
            print(f"{refused.reason}, hint: {refused.data['hint']}")
            return
        async with chat.receive("said") as said:
            with anyio.fail_after(60):
                await chat.call("say", "hello")
            name, text = await said.receive()
            print(f"{name} said: {text}")
        print(await chat.call("who"))


async def main(url: str) -> None:
    for word in ("simsim", "sesame"):
        await visit(url, word)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], backend="trio")
