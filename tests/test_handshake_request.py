"""``connection.request``: what a channel sees of the handshake, behind every front door and on every road."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import httpx
import pytest

from brightsocket_anyio import Brightsocket, ConfigurationError, Connection, Request, Settings, open_client
from brightsocket_anyio.request import answer_headers, read_request
from tests.doors import Recorder, ask_websocket, behind, every_road
from tests.support import PATIENCE, raw, serving, until


def spying(**options: Any) -> tuple[Brightsocket, list[Request]]:
    """An API, and the requests that its channel ``SPY`` and its namespaces ``/one`` and ``/two`` have seen."""
    api = Brightsocket(**options)
    seen: list[Request] = []

    async def spy(connection: Connection) -> None:
        assert connection.request is not None
        seen.append(connection.request)

    for name in ("SPY", "/one", "/two"):
        api.connect(name, spy)
    return api, seen


@every_road()
async def test_what_a_channel_sees(door: str, transport: Any) -> None:
    api, seen = spying()
    http = httpx.AsyncClient(headers={"X-Mine": "mine", "User-Agent": "test"}, cookies={"a": "1", "b": "2"})
    with anyio.fail_after(PATIENCE):
        async with (
            behind(door, api) as bound,
            http,
            open_client(f"{bound.url}/?room=7&room=8", http=http, transport=transport) as client,
        ):
            connection = await client.connect("SPY")
            assert connection.request is None
    (request,) = seen
    assert request.headers["x-mine"] == "mine"
    assert request.headers["user-agent"] == "test"
    assert dict(request.cookies) == {"a": "1", "b": "2"}
    assert request.query.get_list("room") == ["7", "8"]
    assert request.query["EIO"] == "4"
    assert request.query["transport"] == transport.removeprefix("trio-")
    assert request.client is not None
    assert request.client[0] == "127.0.0.1"
    assert request.path == "/socket.io/"
    assert request.subprotocol is None
    assert request.state == {}
    assert request.scope["type"] == ("http" if transport == "polling" else "websocket")
    assert list(request.response_headers) == []
    assert "mine" not in repr(request)


async def test_the_namespaces_of_a_session_share_it() -> None:
    api, seen = spying()
    async with serving(api) as bound, raw(bound) as peer:
        await peer.send("40/one,", "40/two,")
        for _ in range(2):
            assert str(await peer.receive()).startswith("40/")
    assert len(seen) == 2
    assert seen[0] is seen[1]


async def test_an_upgrade_does_not_change_it() -> None:
    api, _ = spying(subprotocols=["chat"])
    connections: list[Connection] = []
    api.connect("KEEP", connections.append)
    with anyio.fail_after(PATIENCE):
        async with serving(api) as bound, Recorder() as http:
            options: Any = {"transport": ("polling", "websocket"), "http": http, "subprotocols": ["chat"]}
            async with open_client(bound.url, **options) as client:
                await client.connect("KEEP")
                await until(lambda: connections[0].transport == "websocket")
    request = connections[0].request
    assert request is not None
    assert request.query["transport"] == "polling"
    assert request.subprotocol is None
    (upgrade,) = [answer for answer in http.answers if answer.status_code == 101]
    assert upgrade.headers["sec-websocket-protocol"] == "chat"
    assert "set-cookie" not in upgrade.headers


@every_road("websocket", "trio-websocket")
@pytest.mark.parametrize(
    ("known", "offered", "chosen"),
    [(["v2", "v1"], ["v1", "v2"], "v1"), (["v2"], ["v1", "v2"], "v2"), (["v2"], ["v1"], None), ([], ["v1"], None)],
)
async def test_a_subprotocol(
    door: str, transport: Any, known: list[str], offered: list[str], chosen: str | None
) -> None:
    api, seen = spying(subprotocols=known)
    with anyio.fail_after(PATIENCE):
        async with behind(door, api) as bound:
            async with open_client(bound.url, transport=transport, subprotocols=offered) as client:
                await client.connect("SPY")
            async with httpx.AsyncClient() as http:
                answer = await ask_websocket(http, bound.url, subprotocols=offered)
    assert seen[0].subprotocol == chosen
    assert answer.status_code == 101
    assert answer.headers.get("sec-websocket-protocol") == chosen


@every_road("websocket", "polling")
async def test_malformed_cookies_and_headers_are_left_out(door: str, transport: str) -> None:
    api, seen = spying(close_timeout=0.1)
    sent = 'Cookie: nonsense; =1; a b=2; ok=3; ok=4; é=5; q="6"\r\nCookie: last=7;\r\nX-Odd: \xe9\xff\r\n'
    head = f"GET /socket.io/?EIO=3&transport={transport}&x=%ff%zz HTTP/1.1\r\nHost: x\r\n{sent}"
    if transport == "websocket":
        head += "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        head += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    api.connect("/", lambda connection: seen.append(connection.request))
    with anyio.fail_after(PATIENCE):
        async with behind(door, api) as bound, await anyio.connect_tcp("127.0.0.1", bound.port) as stream:
            await stream.send(head.encode("latin-1") + b"\r\n")
            assert (await stream.receive()).startswith((b"HTTP/1.1 101", b"HTTP/1.1 200"))
            await until(lambda: seen)
    (request,) = seen
    assert dict(request.cookies) == {"ok": "3", "q": "6", "last": "7"}
    assert request.headers["x-odd"] == "\xe9\xff"
    assert request.query["x"] == "\ufffd%zz"


@every_road("websocket", "polling")
@pytest.mark.parametrize("slash", ["", "/"])
async def test_another_path(door: str, transport: str, slash: str) -> None:
    api, seen = spying(path="/live/chat/", close_timeout=0.1)
    with anyio.fail_after(PATIENCE):
        async with behind(door, api) as bound, httpx.AsyncClient() as http:
            options: Any = {"transport": transport, "path": "/live/chat/"}
            async with open_client(bound.url, **options) as client:
                await client.connect("SPY")
            if transport == "polling":
                url = f"{bound.url}/live/chat{slash}?EIO=4&transport=polling"
                assert (await http.get(url)).content.startswith(b"0{")
                assert (await http.get(f"{bound.url}/socket.io/?EIO=4&transport=polling")).status_code == 404
            assert (await ask_websocket(http, bound.url, path=f"/live/chat{slash}")).status_code == 101
            assert (await ask_websocket(http, bound.url)).status_code == 404
    assert seen[0].path == "/live/chat/"


def some_request() -> Request:
    return read_request({"type": "http", "path": "/", "headers": []}, Settings())


def test_a_scope_with_nothing_in_it() -> None:
    request = some_request()
    assert (request.client, request.subprotocol, dict(request.cookies)) == (None, None, {})
    assert str(request.query) == ""


def test_a_client_without_a_port() -> None:
    scope: Any = {"type": "http", "path": "/", "headers": [], "client": ["", None], "query_string": b"a=\xff"}
    request = read_request(scope, Settings())
    assert request.client == ("", 0)
    assert request.query["a"] == "\ufffd"


def test_headers_of_the_answer() -> None:
    request = some_request()
    request.add_header("X-A", "")
    request.add_header("X-A", "\xe9 \t b")
    request.set_cookie("a", "1")
    request.set_cookie("b", "", max_age=60, path="/x", domain="example.com", secure=True, samesite="none")
    request.set_cookie("c", "!~", httponly=False, samesite="strict")
    assert request.response_headers.get_list("x-a") == ["", "\xe9 \t b"]
    assert answer_headers(request)[2:] == [
        (b"set-cookie", b"a=1; Path=/; HttpOnly; SameSite=Lax"),
        (b"set-cookie", b"b=; Path=/x; Domain=example.com; Max-Age=60; Secure; HttpOnly; SameSite=None"),
        (b"set-cookie", b"c=!~; Path=/; SameSite=Strict"),
    ]
    with pytest.raises(RuntimeError, match="answered"):
        request.add_header("X-A", "1")
    with pytest.raises(RuntimeError, match="answered"):
        request.set_cookie("a", "1")


@pytest.mark.parametrize(
    "add",
    [
        lambda r: r.add_header("X-A", "a\r\nX-B: b"),
        lambda r: r.add_header("X-A", "a\nb"),
        lambda r: r.add_header("X-A", "a\0"),
        lambda r: r.add_header("X-A", " a"),
        lambda r: r.add_header("X-A", "\u20ac"),
        lambda r: r.add_header("X A", "a"),
        lambda r: r.add_header("X-A\n", "a"),
        lambda r: r.add_header("", "a"),
        lambda r: r.add_header("Content-Length", "1"),
        lambda r: r.add_header("Upgrade", "h2c"),
        lambda r: r.add_header("Sec-WebSocket-Protocol", "a"),
        lambda r: r.add_header("Access-Control-Allow-Origin", "*"),
        lambda r: r.set_cookie("a b", "1"),
        lambda r: r.set_cookie("a", "1; Domain=x"),
        lambda r: r.set_cookie("a", "1\r\n"),
        lambda r: r.set_cookie("a", "1 2"),
        lambda r: r.set_cookie("a", "\xe9"),
        lambda r: r.set_cookie("a", "1", path="/; Secure"),
        lambda r: r.set_cookie("a", "1", path=""),
        lambda r: r.set_cookie("a", "1", domain="x\n"),
        lambda r: r.set_cookie("a", "1", samesite="Laxest"),
        lambda r: r.set_cookie("a", "1", samesite="none"),
    ],
)
def test_what_cannot_be_sent_raises_at_the_call(add: Callable[[Request], None]) -> None:
    request = some_request()
    with pytest.raises(ValueError, match=r"."):
        add(request)
    assert answer_headers(request) == []


@pytest.mark.parametrize(
    "settings", [{"subprotocols": "chat"}, {"subprotocols": ["a b"]}, {"subprotocols": ["a", "a"]}, {"cookie": "a;b"}]
)
def test_settings_that_cannot_work(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Settings(**settings)
