"""The API is put around what a Quart application is for an ASGI server; it runs on asyncio."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from quart import Quart, request, websocket

from brightsocket_anyio import Brightsocket

from .channels import add_channels

app = Quart(__name__)
api = Brightsocket(app.asgi_app)
app.asgi_app = api  # type: ignore[assignment, method-assign]
add_channels(api)


@app.while_serving
async def lifespan() -> AsyncGenerator[None]:
    app.config["GREETING"] = "hello"
    yield


@app.get("/")
async def hello() -> dict[str, str | None]:
    return {"greeting": app.config["GREETING"], "scheme": request.scheme, "client": request.remote_addr}


@app.websocket("/shout")
async def shout() -> None:
    await websocket.send((await websocket.receive()).upper())
