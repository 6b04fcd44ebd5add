"""A stock client of python-socketio 5: what stock.js does, as far as this client can.

TRANSPORTS=polling,websocket python python_client.py URL
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import socketio  # type: ignore[import-untyped]

NAMESPACES = ["/chat", "/news", "/fragile", "/"]
VALUES = [0, "", False, None, [], {}, -1.5, 'Grüße ÿþ 𝒳 🚀 \u2028 \0 "', {"ÿ": ["🚀"]}]
QUESTIONS: list[tuple[Any, ...]] = [
    (),
    (0,),
    (None,),
    ("",),
    ("the answer", "is", 42),
    ({"some": b"\x09\x08"}, "bytes"),
]


def readable(value: Any) -> Any:
    match value:
        case bytes():
            return {"bytes": value.hex()}
        case list() | tuple():
            return [readable(each) for each in value]
        case dict():
            return {key: readable(each) for key, each in value.items()}
    return value


def see(*what: Any) -> None:
    print(json.dumps(readable(what)), flush=True)


class Events:
    """The events of one namespace, to be waited for."""

    def __init__(self, client: socketio.AsyncClient, namespace: str) -> None:
        self._client = client
        self._namespace = namespace

    def next(self, name: str) -> asyncio.Future[tuple[Any, ...]]:
        future: asyncio.Future[tuple[Any, ...]] = asyncio.get_running_loop().create_future()

        async def received(*args: Any) -> None:
            if not future.done():
                future.set_result(args)

        self._client.on(name, received, namespace=self._namespace)
        return future

    async def call(self, name: str, *args: Any) -> tuple[Any, ...]:
        answer = await self._client.call(name, args, namespace=self._namespace)
        return answer if isinstance(answer, tuple) else (answer,)

    async def emit(self, name: str, *args: Any) -> None:
        await self._client.emit(name, args, namespace=self._namespace)


async def count(client: socketio.AsyncClient, chat: Events) -> None:
    """Send a hundred numbers, some with bytes, and get each back."""
    back: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()

    async def number(*args: Any) -> None:
        back.put_nowait(args)

    client.on("NUMBER", number, namespace="/chat")
    for sent in range(100):
        await chat.emit("NUMBER", sent, "ÿ🚀" if sent % 10 else bytes([sent]))
    for sent in range(100):
        received = await back.get()
        if received != (sent, "ÿ🚀" if sent % 10 else bytes([sent])):
            see("not in order", sent, received)


async def acknowledgements(chat: Events) -> None:
    see("one value", *(await chat.call("ADD", 1, 2)))
    see("no value", *(await chat.call("SILENT")))
    see("nothing", *(await chat.call("NOTHING")))
    see("several values", *(await chat.call("ECHO", *VALUES)))
    for value in VALUES[:5]:
        see("falsy value", *(await chat.call("ECHO", value)))
    see("bytes", *(await chat.call("ECHO", {"deep": [b"\x01\x02", {"er": b"\x03"}], "n": 1}, b"")))
    for size in (0, 1, 124, 125, 126, 127, 65534, 65535, 65536, 200_000):
        if await chat.call("ECHO", bytes([size % 251]) * size) != (bytes([size % 251]) * size,):
            see("other bytes", size)
    for question in QUESTIONS:
        told = chat.next("TOLD")
        await chat.emit("ASK_ME", *question)
        see("told", *(await told))


async def main(url: str) -> None:
    transports = os.environ["TRANSPORTS"].split(",")
    client = socketio.AsyncClient(reconnection=False)
    chat, news, fragile, plain = (Events(client, namespace) for namespace in NAMESPACES)

    async def ask(*args: Any) -> tuple[Any, ...]:
        return args

    client.on("ASK", ask, "/chat")

    welcome = plain.next("WELCOME")
    await client.connect(url, {"Name": "Ada"}, {"name": "Ada"}, transports=transports, namespaces=NAMESPACES)
    see("connected to /chat")
    await count(client, chat)
    see("transport", client.transport())
    await acknowledgements(chat)
    try:
        await client.call("NEVER", namespace="/chat", timeout=0.02)
    except socketio.exceptions.TimeoutError:
        see("too late")

    headline = news.next("HEADLINE")
    await news.emit("HELLO")
    see("news", *(await headline))

    see("main", *(await welcome))
    for channel in ("GUEST", "MEMBER"):
        identified = plain.next("BRIGHTSOCKET:IDENTIFIED")
        await plain.emit("BRIGHTSOCKET:IDENTIFY", {"BRIGHTSOCKET:CHANNEL": channel, "name": "Ada"})
        await identified
        see("main", *(await plain.call("WHERE")))

    why, gone = fragile.next("BRIGHTSOCKET:CLOSED"), fragile.next("disconnect")
    await fragile.emit("CRASH")
    see("failed", *(await why), *(await gone))
    see("still there", *(await chat.call("ADD", 5, 6)), *(await news.call("PING")))

    ended = news.next("disconnect")
    await news.emit("END_ME")
    see("ended", *(await ended))
    see("still there", *(await plain.call("WHERE")))
    await client.disconnect()

    for namespace in ("/secret", "/unknown"):
        client = socketio.AsyncClient(reconnection=False)
        refused = Events(client, namespace).next("connect_error")
        try:
            await client.connect(url, auth={"password": "guess"}, transports=transports, namespaces=[namespace])
        except socketio.exceptions.ConnectionError:
            see("refused", *(await refused))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
