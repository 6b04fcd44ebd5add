"""The API is wrapped around an application, and hands over to it whatever is not its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.applications import Starlette

from brightsocket_anyio import Brightsocket

from .channels import add_channels
from .pages import routes


@asynccontextmanager
async def lifespan(pages: Starlette) -> AsyncGenerator[None]:
    pages.state.greeting = "hello"
    yield


pages = Starlette(routes=routes, lifespan=lifespan)
api = Brightsocket(pages)
add_channels(api)
