"""Raw peers that come to an application wherever the API is in it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import httpx

from tests.support import PATIENCE, Raw, raw

from .processes import Served


@asynccontextmanager
async def websocket(served: Served) -> AsyncGenerator[Raw]:
    """A raw peer on the main namespace."""
    async with raw(served.bound, path=served.path) as peer:
        await peer.send("40")
        assert str(await peer.receive()).startswith("40")
        yield peer


class Polling:
    """A raw client that polls."""

    def __init__(self, http: httpx.AsyncClient, path: str) -> None:
        self.http = http
        self.url = f"{path}?EIO=4&transport=polling"
        self.sid = ""
        self.packets: list[str] = []

    async def get(self) -> str:
        """The next packet."""
        if not self.packets:
            response = await self.http.get(self.url)
            assert response.status_code == 200, response.text
            self.packets = response.text.split("\x1e")
        return self.packets.pop(0)

    async def post(self, *packets: str) -> None:
        response = await self.http.post(self.url, content="\x1e".join(packets))
        assert (response.status_code, response.text) == (200, "ok")

    async def open(self) -> None:
        opened = await self.get()
        assert opened[0] == "0"
        self.sid = json.loads(opened[1:])["sid"]
        self.url += f"&sid={self.sid}"
        await self.post("40")
        assert (await self.get()).startswith("40")

    async def join(self, name: str) -> None:
        await self.open()
        await self.post(f'42["BRIGHTSOCKET:IDENTIFY",{{"BRIGHTSOCKET:CHANNEL":"MEMBER","name":"{name}"}}]')
        assert await self.get() == '42["BRIGHTSOCKET:IDENTIFIED"]'
        assert await self.get() == f'42["JOINED","{name}"]'

    async def leave_within_a_poll(self) -> None:
        """Ask for packets, and cut the connection once the question has gone out."""
        asked = anyio.Event()

        async def trace(event: str, info: Any) -> None:
            if event == "http11.send_request_body.complete":
                asked.set()

        async with anyio.create_task_group() as tg:
            tg.start_soon(partial(self.http.get, self.url, extensions={"trace": trace}))
            await asked.wait()
            tg.cancel_scope.cancel()


@asynccontextmanager
async def polling(served: Served) -> AsyncGenerator[Polling]:
    async with httpx.AsyncClient(base_url=served.url, timeout=PATIENCE) as http:
        yield Polling(http, served.path)


async def join(peer: Raw, name: str) -> None:
    await peer.identify("MEMBER", name=name)
    await peer.expect('42["BRIGHTSOCKET:IDENTIFIED"]')
    await peer.expect_event("JOINED", name)
