"""``brightsocket.js`` at its URL: served by every front door, whatever the state of the API."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from brightsocket_anyio import Brightsocket

from .support import serving

MODULE = files("brightsocket_anyio").joinpath("static", "brightsocket.js").read_bytes()
URL = "/socket.io/brightsocket.js"
PAGE = {"Origin": "https://page.example"}


def over_asgi(app: Any) -> httpx.AsyncClient:
    """A client of an ASGI application whose lifespan nobody runs, as in one that is mounted and not started."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://api.example")


async def test_the_embedded_server_serves_the_module() -> None:
    async with serving(Brightsocket()) as bound, httpx.AsyncClient(base_url=bound.url) as http:
        response = await http.get(URL)
        assert response.status_code == 200
        assert response.content == MODULE
        assert response.headers["content-type"] == "text/javascript; charset=utf-8"
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-content-type-options"] == "nosniff"

        head = await http.head(URL)
        assert head.content == b""
        for name in ("content-length", "content-type", "etag", "cache-control"):
            assert head.headers[name] == response.headers[name]

        known = await http.get(URL, headers={"If-None-Match": response.headers["etag"]})
        assert (known.status_code, known.content) == (304, b"")
        assert known.headers["etag"] == response.headers["etag"]
        assert (await http.get(URL)).content == MODULE  # on the same connection: the 304 had no body


@pytest.mark.parametrize(
    ("condition", "status"),
    [("{}", 304), ("W/{}", 304), ('"other", {}', 304), ("*", 304), ('"other"', 200), ("", 200)],
)
async def test_a_browser_that_has_it_is_told_so(condition: str, status: int) -> None:
    async with over_asgi(Brightsocket()) as http:
        tag = (await http.get(URL)).headers["etag"]
        response = await http.get(URL, headers={"If-None-Match": condition.format(tag)})
        assert response.status_code == status


async def test_it_is_there_before_the_api_runs_and_while_it_drains() -> None:
    api = Brightsocket()
    async with over_asgi(api) as http:
        assert (await http.get(URL)).content == MODULE
        async with api.running():
            await api.drain()
            assert (await http.get(URL)).content == MODULE


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_other_methods_are_none_of_its(method: str) -> None:
    async with over_asgi(Brightsocket()) as http:
        response = await http.request(method, URL)
        assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD")


async def test_it_is_at_the_path_of_the_api_and_nowhere_else() -> None:
    pages = Starlette(routes=[Route("/{path:path}", lambda request: PlainTextResponse("a page"))])
    api = Brightsocket(pages, path="/live/")
    async with over_asgi(api) as http:
        assert (await http.get("/live/brightsocket.js")).content == MODULE
        for path in (URL, "/brightsocket.js", "/live/brightsocket.js/", "/live/other.js"):
            assert (await http.get(path)).text == "a page"
    async with over_asgi(Starlette(routes=[Mount("/below", Brightsocket())])) as http:
        assert (await http.get("/below" + URL)).content == MODULE
        assert (await http.get(URL)).status_code == 404


@pytest.mark.parametrize(
    ("settings", "allowed", "credentials"),
    [
        ({}, None, None),
        ({"allowed_origins": ["https://page.example"]}, "https://page.example", None),
        ({"allowed_origins": ["https://page.example"], "credentials": True}, "https://page.example", "true"),
        ({"allowed_origins": ["https://another.example"]}, None, None),
        ({"allowed_origins": "*"}, "*", None),
    ],
)
async def test_pages_of_allowed_origins_can_load_it(
    settings: Any, allowed: str | None, credentials: str | None
) -> None:
    async with over_asgi(Brightsocket(**settings)) as http:
        response = await http.get(URL, headers=PAGE)
        known = await http.get(URL, headers={**PAGE, "If-None-Match": response.headers["etag"]})
        for each in (response, known):
            assert each.headers.get("access-control-allow-origin") == allowed
            assert each.headers.get("access-control-allow-credentials") == credentials
            assert each.headers.get("vary") == (None if allowed == "*" else "Origin")


async def test_many_at_once_get_the_whole_of_it() -> None:
    async with serving(Brightsocket()) as bound, httpx.AsyncClient(base_url=bound.url) as http:

        async def load() -> None:
            assert (await http.get(URL)).content == MODULE

        async with anyio.create_task_group() as task_group:
            for _ in range(20):
                task_group.start_soon(load)
