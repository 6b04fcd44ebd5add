"""The API behind real ASGI servers, in each arrangement with an application of Starlette's or FastAPI's."""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import anyio
import fastapi
import httpx
import hypercorn.asyncio
import hypercorn.config
import hypercorn.trio
import pytest
import sniffio
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from brightsocket_anyio import Bound, Brightsocket, Connection, Refused
from brightsocket_anyio.transport import ASGIApp

from .support import PATIENCE, Raw, raw, until

Serve = Callable[[ASGIApp, socket.socket, anyio.Event], Coroutine[Any, Any, None]]


async def serve_uvicorn(app: ASGIApp, sock: socket.socket, stop: anyio.Event, *, ws: str = "websockets-sansio") -> None:
    config = uvicorn.Config(app, ws=ws, lifespan="on", log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    async with anyio.create_task_group() as tg:
        tg.start_soon(partial(server.serve, sockets=[sock]))
        await stop.wait()
        server.should_exit = True


async def serve_hypercorn(app: ASGIApp, sock: socket.socket, stop: anyio.Event) -> None:
    config = hypercorn.config.Config()
    config.bind = [f"fd://{os.dup(sock.fileno())}"]
    config.graceful_timeout = 0.5
    backend = hypercorn.trio if sniffio.current_async_library() == "trio" else hypercorn.asyncio
    await backend.serve(app, config, shutdown_trigger=stop.wait)


SERVERS = [
    pytest.param("asyncio", serve_uvicorn, id="uvicorn-asyncio"),
    pytest.param("asyncio+uvloop", serve_uvicorn, id="uvicorn-uvloop"),
    pytest.param("asyncio", partial(serve_uvicorn, ws="wsproto"), id="uvicorn-wsproto"),
    pytest.param(
        "asyncio",
        partial(serve_uvicorn, ws="websockets"),
        id="uvicorn-websockets",
        # uvicorn's, of what it imports, and of importing it
        marks=pytest.mark.filterwarnings("ignore"),
    ),
    pytest.param("asyncio", serve_hypercorn, id="hypercorn-asyncio"),
    pytest.param("asyncio+uvloop", serve_hypercorn, id="hypercorn-uvloop"),
    pytest.param("trio", serve_hypercorn, id="hypercorn-trio"),
]
each_server = pytest.mark.parametrize(("anyio_backend", "serve"), SERVERS, indirect=["anyio_backend"])


def make_api(app: ASGIApp | None = None, **settings: Any) -> Brightsocket:
    api = Brightsocket(app, **settings)

    @api.connect("ECHO")
    async def echo(connection: Connection, identity: dict[str, Any]) -> None:
        if identity.get("password") != "open":
            raise Refused("wrong password")

        @connection.on("ECHO")
        async def handle(payload: Any) -> None:
            await connection.send("ECHO", payload)

    return api


async def page(request: Any) -> PlainTextResponse:
    return PlainTextResponse(f"page {request.app.state.life}")


async def chat(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())
    await websocket.close()


ROUTES = [Route("/", page), WebSocketRoute("/chat", chat)]


@asynccontextmanager
async def living(app: Starlette) -> AsyncIterator[None]:
    app.state.life = "began"
    yield


def alone() -> tuple[ASGIApp, Brightsocket, str]:
    api = make_api()
    return api, api, "/socket.io/"


def wrapping() -> tuple[ASGIApp, Brightsocket, str]:
    api = make_api(Starlette(routes=ROUTES, lifespan=living))
    return api, api, "/socket.io/"


def mounted() -> tuple[ASGIApp, Brightsocket, str]:
    api = make_api()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with living(app), api.running():
            yield

    return Starlette(routes=[*ROUTES, Mount("/api", api)], lifespan=lifespan), api, "/api/socket.io/"


def mounted_in_fastapi() -> tuple[ASGIApp, Brightsocket, str]:
    api = make_api(path="/")

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        async with living(app), api.running():
            yield

    app = fastapi.FastAPI(lifespan=lifespan, routes=ROUTES)
    app.mount("/live", api)
    return app, api, "/live/"


ARRANGEMENTS = [alone, wrapping, mounted, mounted_in_fastapi]


@asynccontextmanager
async def running(serve: Serve, app: ASGIApp) -> AsyncGenerator[Bound]:
    """An application behind an ASGI server, which is stopped in its own orderly way at the end."""
    stop = anyio.Event()
    with anyio.fail_after(3 * PATIENCE), socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        host, port = sock.getsockname()
        async with anyio.create_task_group() as tg:
            tg.start_soon(serve, app, sock, stop)
            try:
                yield Bound(((host, port),), f"http://{host}:{port}")
            finally:
                stop.set()


class Polling:
    """A raw client that polls."""

    def __init__(self, http: httpx.AsyncClient, path: str) -> None:
        self.http = http
        self.url = f"{path}?EIO=4&transport=polling"
        self.sid = ""

    async def get(self) -> str:
        response = await self.http.get(self.url)
        assert response.status_code == 200, response.text
        return response.text

    async def post(self, payload: str) -> None:
        response = await self.http.post(self.url, content=payload)
        assert (response.status_code, response.text) == (200, "ok")

    async def open(self) -> None:
        opened = await self.get()
        assert opened[0] == "0"
        self.sid = json.loads(opened[1:])["sid"]
        self.url += f"&sid={self.sid}"

    async def identify(self) -> None:
        await self.open()
        await self.post("40")
        assert (await self.get()).startswith("40")
        await self.post('42["BRIGHTSOCKET:IDENTIFY",{"BRIGHTSOCKET:CHANNEL":"ECHO","password":"open"}]')
        assert await self.get() == '42["BRIGHTSOCKET:IDENTIFIED"]'


@asynccontextmanager
async def polling(bound: Bound, path: str) -> AsyncGenerator[Polling]:
    async with httpx.AsyncClient(base_url=bound.url, timeout=PATIENCE) as http:
        yield Polling(http, path)


async def echo(peer: Raw, payload: str) -> None:
    await peer.event("ECHO", payload)
    await peer.expect_event("ECHO", payload)


@each_server
@pytest.mark.parametrize("arrange", ARRANGEMENTS)
async def test_every_road(serve: Serve, arrange: Callable[[], tuple[ASGIApp, Brightsocket, str]]) -> None:
    app, api, path = arrange()
    async with running(serve, app) as bound:
        async with polling(bound, path) as client:
            await client.identify()
            await client.post('42["ECHO",1]\x1e42["ECHO","😀"]')
            received = await client.get()
            while received.count("ECHO") < 2:
                received += "\x1e" + await client.get()
            assert received == '42["ECHO",1]\x1e42["ECHO","😀"]'

            assert client.sid
            query = f"EIO=4&transport=websocket&sid={client.sid}"
            async with raw(bound, path=path, query=query) as peer, anyio.create_task_group() as tg:
                answers: list[str] = []

                async def poll() -> None:
                    answers.append(await client.get())

                tg.start_soon(poll)
                await peer.send("2probe")
                await peer.expect("3probe")
                await until(lambda: answers)
                assert answers == ["6"]
                await peer.send("5")
                await echo(peer, "upgraded")
                refused = await client.http.get(client.url)
                assert (refused.status_code, refused.json()) == (400, {"code": 3, "message": "Bad request"})

        async with raw(bound, path=path) as peer:
            await peer.send("40")
            await peer.receive()
            await peer.identify("ECHO", password="closed")
            await peer.expect('42["BRIGHTSOCKET:REFUSED",{"reason":"wrong password"}]', "41")
            assert await peer.expect_end() == 1000
        async with raw(bound, path=path) as peer:
            await peer.send("40")
            await peer.receive()
            await peer.identify("ECHO", password="open")
            await peer.expect('42["BRIGHTSOCKET:IDENTIFIED"]')
            await echo(peer, "a" * 100_000)
            await until(lambda: len(api.pool) == 1)
        await until(lambda: len(api.pool) == 0)


@each_server
@pytest.mark.parametrize("arrange", [wrapping, mounted, mounted_in_fastapi])
async def test_the_application_s_own(serve: Serve, arrange: Callable[[], tuple[ASGIApp, Brightsocket, str]]) -> None:
    app, _, _ = arrange()
    async with running(serve, app) as bound:
        async with httpx.AsyncClient(base_url=bound.url) as http:
            assert (await http.get("/")).text == "page began"
            assert (await http.get("/elsewhere")).status_code == 404
        async with raw(bound, path="/chat", query="sid=none") as peer:
            await peer.send("hello")
            await peer.expect("hello")
            assert await peer.expect_end() == 1000


@each_server
async def test_refused_websockets(serve: Serve) -> None:
    async with running(serve, make_api()) as bound:
        for query, origin, status, body in [
            ("EIO=9&transport=websocket", "", 400, {"code": 5, "message": "Unsupported protocol version"}),
            ("EIO=4&transport=websocket&sid=none", "", 400, {"code": 1, "message": "Session ID unknown"}),
            ("EIO=4&transport=websocket", "http://there.example", 403, {"code": 4, "message": "Forbidden"}),
        ]:
            headers = {
                "connection": "upgrade",
                "upgrade": "websocket",
                "sec-websocket-version": "13",
                "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
            }
            if origin:
                headers["origin"] = origin
            async with httpx.AsyncClient() as http:
                response = await http.get(f"{bound.url}/socket.io/?{query}", headers=headers)
            assert (response.status_code, response.json()) == (status, body)


@each_server
async def test_a_body_over_the_limit(serve: Serve) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"4" * 100

    async with (
        running(serve, make_api(max_payload=500, close_timeout=0.5)) as bound,
        polling(bound, "/socket.io/") as client,
    ):
        await client.open()
        for content in (chunks(), b"4" * 501):
            # a server may cut the connection while the client still sends; hypercorn does
            with contextlib.suppress(httpx.TransportError):
                response = await client.http.post(client.url, content=content)
                assert response.status_code == 413
        await client.post("40")
        assert (await client.get()).startswith("40")


@each_server
async def test_a_client_that_vanishes(serve: Serve) -> None:
    api = make_api()
    requests = 0
    arrived = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal requests
        requests += scope["type"] == "http"
        if requests == before + 1:
            arrived.set()
        await api(scope, receive, send)

    before = math.inf
    async with running(serve, app) as bound:
        async with polling(bound, "/socket.io/") as client:
            await client.identify()
            before = requests
            async with anyio.create_task_group() as tg:
                tg.start_soon(client.get)
                await arrived.wait()
                assert len(api.pool) == 1
                tg.cancel_scope.cancel()
            await until(lambda: len(api.pool) == 0)
        async with raw(bound) as peer:
            await peer.send("40")
            await peer.receive()
            await peer.identify("ECHO", password="open")
            await peer.expect('42["BRIGHTSOCKET:IDENTIFIED"]')
            assert len(api.pool) == 1
            await peer.vanish()
        await until(lambda: len(api.pool) == 0)


@each_server
async def test_shutdown_with_sessions_open(serve: Serve) -> None:
    api = make_api(close_timeout=0.5)
    async with AsyncExitStack() as stack:
        async with running(serve, api) as bound:
            client = await stack.enter_async_context(polling(bound, "/socket.io/"))
            await client.identify()
            peer = await stack.enter_async_context(raw(bound))
            await peer.send("40")
            await peer.receive()
            await peer.identify("ECHO", password="open")
            await peer.expect('42["BRIGHTSOCKET:IDENTIFIED"]')
            assert len(api.pool) == 2
            if serve is serve_hypercorn:
                # on Python 3.12 and newer it waits for its connections before it tells the application that it stops
                await api.drain()
        assert len(api.pool) == 0
        await peer.drain()
        close = peer.protocol.close_rcvd
        assert close is None or close.code in (1001, 1006, 1011, 1012)


@each_server
async def test_drain(serve: Serve) -> None:
    api = make_api(close_timeout=0.5)
    async with running(serve, api) as bound, polling(bound, "/socket.io/") as client, raw(bound) as peer:
        await client.identify()
        answers: list[str] = []
        codes: list[int | None] = []

        async def poll() -> None:
            while not answers or not answers[-1].endswith("1"):
                answers.append(await client.get())

        async def listen() -> None:
            codes.append(await peer.expect_end())

        async with anyio.create_task_group() as tg:
            tg.start_soon(poll)
            tg.start_soon(listen)
            await anyio.wait_all_tasks_blocked()
            await api.drain()
        assert codes == [1001]
        response = await client.http.get("/socket.io/?EIO=4&transport=polling")
        assert response.status_code == 503


@each_server
async def test_a_host_that_does_not_run_the_api(serve: Serve) -> None:
    app = Starlette(routes=[*ROUTES, Mount("/api", make_api())], lifespan=living)
    async with running(serve, app) as bound, httpx.AsyncClient(base_url=bound.url) as http:
        response = await http.get("/api/socket.io/?EIO=4&transport=polling")
        assert response.status_code == 500
        assert "async with api.running()" in response.json()["message"]
        assert (await http.get("/")).text == "page began"
