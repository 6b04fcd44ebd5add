"""Which pages may connect: ``allowed_origins`` and CORS, behind every front door and on every road."""

from __future__ import annotations

import json
from typing import Any

import anyio
import httpx
import pytest

from brightsocket_anyio import Brightsocket, HandshakeError, Refused, Request, open_client
from tests.doors import ask_websocket, behind, every_road
from tests.support import PATIENCE

PAGE = "https://page.example"
FOREIGN = "https://elsewhere.example"
POLLING = "/socket.io/?EIO=4&transport=polling"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,x-mine"}

doors = pytest.mark.parametrize("door", ["embedded", "asgi"])


@every_road()
async def test_a_page(door: str, transport: Any) -> None:
    api = Brightsocket(allowed_origins=[PAGE])
    api.connect("IN", lambda: None)
    with anyio.fail_after(PATIENCE):
        async with behind(door, api) as bound:
            async with (
                httpx.AsyncClient(headers={"Origin": PAGE}) as http,
                open_client(bound.url, http=http, transport=transport) as client,
            ):
                await client.connect("IN")
            async with (
                httpx.AsyncClient(headers={"Origin": FOREIGN}) as http,
                open_client(bound.url, http=http, transport=transport) as client,
            ):
                with pytest.raises(HandshakeError, match="Forbidden") as caught:
                    await client.connect("IN")
            assert caught.value.status == 403


@every_road("websocket", "polling")
@pytest.mark.parametrize("origins", ["*", ()])
async def test_a_page_of_the_same_host_and_any_page(door: str, transport: str, origins: Any) -> None:
    api = Brightsocket(allowed_origins=origins, close_timeout=0.1)
    with anyio.fail_after(PATIENCE):
        async with behind(door, api) as bound, httpx.AsyncClient() as http:
            origin = {"Origin": FOREIGN if origins == "*" or door == "trio-websocket" else bound.url}
            # trio-websocket hides the Host header
            expected = 403 if door == "trio-websocket" and origins != "*" else 101
            assert (await ask_websocket(http, bound.url, origin)).status_code == expected
            if transport == "polling":
                answer = await http.get(bound.url + POLLING, headers=origin)
                assert answer.status_code == 200
                assert answer.headers["access-control-allow-origin"] == ("*" if origins == "*" else bound.url)
                assert "access-control-allow-credentials" not in answer.headers


@doors
@pytest.mark.parametrize("credentials", [True, False])
async def test_what_a_browser_needs_for_polling(door: str, credentials: bool) -> None:
    asked: list[Request] = []

    def authorize(request: Request) -> None:
        asked.append(request)
        if "x-refuse" in request.headers:
            raise Refused("no")

    api = Brightsocket(allowed_origins=[PAGE], credentials=credentials, authorize=authorize, close_timeout=0.1)

    def check(answer: httpx.Response, status: int) -> None:
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "Origin" in answer.headers.get_list("vary", split_commas=True)
        assert answer.headers.get("access-control-allow-credentials") == ("true" if credentials else None)
        assert len(answer.headers.get_list("access-control-allow-origin")) == 1

    with anyio.fail_after(PATIENCE):
        async with behind(door, api) as bound, httpx.AsyncClient(headers={"Origin": PAGE}) as http:
            url = bound.url + POLLING
            preflight = await http.options(url, headers=PREFLIGHT)
            check(preflight, 204)
            assert preflight.content == b""
            allowed = preflight.headers["access-control-allow-headers"].split(",")
            assert [name.strip() for name in allowed] == ["content-type", "x-mine"]
            assert preflight.headers["access-control-allow-methods"] == "GET, POST"
            assert "Access-Control-Request-Headers" in preflight.headers.get_list("vary", split_commas=True)
            assert asked == []
            opened = await http.get(url)
            check(opened, 200)
            session = f"{url}&sid={json.loads(opened.text[1:])['sid']}"
            check(await http.options(session, headers=PREFLIGHT), 204)
            check(await http.post(session, content="40"), 200)
            check(await http.get(session), 200)
            check(await http.post(session, content="nonsense"), 400)
            check(await http.get(f"{url}&sid=unknown"), 400)
            check(await http.get(f"{bound.url}/socket.io/"), 400)
            check(await http.put(url), 400)
            check(await http.get(url, headers={"x-refuse": "1"}), 403)


@doors
async def test_a_foreign_page_learns_nothing(door: str) -> None:
    api = Brightsocket(allowed_origins=[PAGE], credentials=True)
    with anyio.fail_after(PATIENCE):
        async with behind(door, api) as bound, httpx.AsyncClient(headers={"Origin": FOREIGN}) as http:
            url = bound.url + POLLING
            for answer in (await http.get(url), await http.options(url, headers=PREFLIGHT), await http.post(url)):
                assert answer.status_code == 403
                assert answer.json() == {"code": 4, "message": "Forbidden"}
                assert answer.headers["vary"] == "Origin"
                assert not [name for name in answer.headers if name.startswith("access-control-")]
