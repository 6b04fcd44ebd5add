"""A peer that polls: HTTP requests written by the test, and Engine.IO payloads packed by hand."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx

from brightsocket_anyio import Bound

from ..support import PATIENCE, MemoryListener, Raw, raw


def pack(eio: int, *packets: str) -> str:
    """A payload of text packets (of ASCII)."""
    if eio == 4:
        return "\x1e".join(packets)
    return "".join(f"{len(packet)}:{packet}" for packet in packets)


def unpack(eio: int, payload: str) -> list[str]:
    if eio == 4:
        return payload.split("\x1e")
    packets = []
    while payload:
        length, _, payload = payload.partition(":")
        packets.append(payload[: int(length)])
        payload = payload[int(length) :]
    return packets


class Poller:
    """One session by polling."""

    def __init__(self, bound: Bound | MemoryListener, http: httpx.AsyncClient, eio: int) -> None:
        self.bound = bound
        self.http = http
        self.eio = eio
        self.query = {"EIO": str(eio), "transport": "polling"}

    @property
    def sid(self) -> str:
        return self.query["sid"]

    async def request(self, body: str | None = None) -> httpx.Response:
        """A GET, or a POST where there is a body."""
        method = "GET" if body is None else "POST"
        with anyio.fail_after(1000 if isinstance(self.bound, MemoryListener) else PATIENCE):
            return await self.http.request(method, "/socket.io/", params=self.query, content=body)

    async def get(self) -> list[str]:
        response = await self.request()
        assert response.status_code == 200, response.text
        return unpack(self.eio, response.text)

    async def get_until(self, last: str) -> list[str]:
        """Poll until a packet has come, which is the last of its payload."""
        packets: list[str] = []
        while not packets or packets[-1] != last:
            packets += await self.get()
        return packets

    async def post(self, *packets: str) -> None:
        response = await self.request(pack(self.eio, *packets))
        assert (response.status_code, response.text) == (200, "ok")

    async def event(self, name: str, *args: Any) -> None:
        await self.post(f"42{json.dumps([name, *args])}")

    async def open(self) -> None:
        opened, *rest = await self.get()
        self.query["sid"] = json.loads(opened[1:])["sid"]
        if self.eio == 3 and not rest:
            rest = await self.get()
        assert rest == (["40"] if self.eio == 3 else [])

    async def join(self) -> None:
        await self.open()
        if self.eio == 4:
            await self.post("40")
            answers = [each for each in await self.get() if each != "2"] or await self.get()
            assert len(answers) == 1, answers
            assert answers[0].startswith("40")

    async def identify(self, channel: str, **identity: Any) -> list[str]:
        """Enter a channel; returns what came together with the answer."""
        await self.join()
        await self.event("BRIGHTSOCKET:IDENTIFY", {"BRIGHTSOCKET:CHANNEL": channel, **identity})
        packets = await self.get()
        while packets[0] == "2":
            await self.post("3")
            packets = packets[1:] or await self.get()
        answer, *rest = packets
        assert answer.startswith("42"), answer
        assert json.loads(answer[2:])[0] == "BRIGHTSOCKET:IDENTIFIED"
        return rest

    @asynccontextmanager
    async def websocket(self, eio: int | None = None) -> AsyncGenerator[Raw]:
        """A WebSocket for this session."""
        query = f"EIO={eio or self.eio}&transport=websocket&sid={self.sid}"
        async with raw(self.bound, query=query) as road:
            yield road

    @asynccontextmanager
    async def probed(self) -> AsyncGenerator[Raw]:
        """A WebSocket for this session, whose probe has been answered."""
        async with self.websocket() as road:
            await road.send("2probe")
            await road.expect("3probe")
            yield road


@asynccontextmanager
async def polling(bound: Bound | MemoryListener, eio: int = 4) -> AsyncGenerator[Poller]:
    """A peer that has not sent a request yet."""
    if isinstance(bound, MemoryListener):
        http = bound.http()
        http.base_url = httpx.URL("http://memory")
    else:
        http = httpx.AsyncClient(base_url=bound.url)
    http.timeout = httpx.Timeout(None)
    async with http:
        yield Poller(bound, http, eio)
