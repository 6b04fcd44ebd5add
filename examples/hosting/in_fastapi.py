"""The API is mounted in a FastAPI application, which runs it in its lifespan."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, WebSocket

from brightsocket_anyio import Brightsocket

from .channels import add_channels

api = Brightsocket(path="/")
add_channels(api)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    app.state.greeting = "hello"
    async with api.running():
        yield


app = FastAPI(lifespan=lifespan)
app.mount("/live", api)


@app.get("/")
async def hello(request: Request) -> dict[str, str | None]:
    client = request.client.host if request.client else None
    return {"greeting": app.state.greeting, "scheme": request.url.scheme, "client": client}


@app.websocket("/shout")
async def shout(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text((await websocket.receive_text()).upper())
    await websocket.close()
