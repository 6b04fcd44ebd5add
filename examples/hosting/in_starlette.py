"""The API is mounted in a Starlette application, which runs it in its lifespan."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.routing import Mount

from brightsocket_anyio import Brightsocket

from .channels import add_channels
from .pages import routes

api = Brightsocket()
add_channels(api)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncGenerator[None]:
    app.state.greeting = "hello"
    async with api.running():
        yield


app = Starlette(routes=[*routes, Mount("/live", api)], lifespan=lifespan)
