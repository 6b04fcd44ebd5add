"""``Brightsocket``'s face: the ways to define a channel, and the embedded server's front door."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import trustme
from anyio.lowlevel import checkpoint
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from brightsocket_anyio import (
    Bound,
    Brightsocket,
    ChannelRefused,
    ConfigurationError,
    Connection,
    HandshakeError,
    Refused,
    open_client,
)
from tests.support import PATIENCE, raw, serving


def echo_api(app: Any = None) -> Brightsocket:
    api = Brightsocket(app)

    @api.connect("ECHO")
    async def echo(connection: Connection) -> None:
        @connection.on("SAY")
        async def say(text: str) -> str:
            return text

    return api


async def says(bound_url: str, **options: Any) -> Any:
    with anyio.fail_after(PATIENCE):
        async with open_client(bound_url, **options) as client:
            connection = await client.connect("ECHO")
            return await connection.call("SAY", "hello")


class TestConnect:
    async def channels(self, api: Brightsocket) -> list[str]:
        """What the functions say, in order, when a client enters CHANNEL."""
        async with serving(api) as bound, open_client(bound.url) as client:
            with anyio.fail_after(PATIENCE):
                connection = await client.connect("CHANNEL")
                async with connection.receive("I_AM") as names:
                    return [await names.receive(), await names.receive()]

    async def test_decorator(self) -> None:
        api = Brightsocket()

        @api.connect("BASE")
        async def base(connection: Connection) -> None:
            await connection.send("I_AM", "base")

        @api.connect("CHANNEL", extends=["BASE"])
        async def channel(connection: Connection) -> None:
            await connection.send("I_AM", "channel")

        assert await self.channels(api) == ["base", "channel"]
        assert channel.__name__ == "channel"

    async def test_plain_calls(self) -> None:
        api = Brightsocket()

        async def base(connection: Connection) -> None:
            await connection.send("I_AM", "base")

        async def channel(connection: Connection) -> None:
            await connection.send("I_AM", "channel")

        # a base may be defined after what extends it
        assert api.connect("CHANNEL", ["BASE"], channel) is channel
        assert api.connect("BASE", base) is base
        assert await self.channels(api) == ["base", "channel"]

    def test_unusable(self) -> None:
        api = Brightsocket()
        with pytest.raises(ConfigurationError, match="not one string"):
            api.connect("A", "BASE", lambda: None)
        with pytest.raises(ConfigurationError, match="ping_interval"):
            api.connect("A", [], lambda: None, ping_interval=1)  # type: ignore[call-overload]
        with pytest.raises(ConfigurationError, match="function"):
            api.connect("A", [], "function")  # type: ignore[call-overload]


class TestServe:
    async def test_a_free_port(self) -> None:
        async with serving(echo_api()) as bound:
            assert bound.port > 0
            assert bound.addresses == (("127.0.0.1", bound.port),)
            assert bound.url == f"http://127.0.0.1:{bound.port}"
            assert await says(bound.url) == "hello"

    async def test_ipv6(self) -> None:
        async with serving(echo_api(), host="::1") as bound:
            assert bound.url == f"http://[::1]:{bound.port}"
            assert await says(bound.url) == "hello"

    async def test_tls(self) -> None:
        authority = trustme.CA()
        server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
        authority.issue_cert("127.0.0.1").configure_cert(server)
        authority.configure_trust(client)
        async with serving(echo_api(), ssl_context=server) as bound:
            assert bound.url.startswith("https://")
            async with httpx.AsyncClient(verify=client) as http:
                assert await says(bound.url, http=http) == "hello"
            with pytest.raises(HandshakeError, match=r"(?i)certificate"):
                await says(bound.url)

    async def test_unix_socket(self, tmp_path: Path) -> None:
        path = str(tmp_path / "socket")
        async with serving(echo_api(), uds=path) as bound:
            assert bound == Bound((path,), "")
            with pytest.raises(LookupError):
                _ = bound.port
            transport = httpx.AsyncHTTPTransport(uds=path)
            async with httpx.AsyncClient(transport=transport) as http:
                assert await says("http://anywhere", http=http) == "hello"

    async def test_listeners_of_the_caller(self) -> None:
        first = await anyio.create_tcp_listener(local_host="127.0.0.1")
        second = await anyio.create_tcp_listener(local_host="127.0.0.1")
        async with serving(echo_api(), listeners=[first, second]) as bound:
            assert len(bound.addresses) == 2
            for address in bound.addresses:
                assert await says(f"http://127.0.0.1:{address[1]}") == "hello"

    async def test_an_address_that_is_taken(self) -> None:
        async with serving(echo_api()) as bound:
            with pytest.raises(OSError, match="in use"):
                await echo_api().serve(port=bound.port)

    async def test_two_runs_of_one_api(self) -> None:
        api = echo_api()
        async with serving(api) as first, serving(api) as second:
            assert await says(first.url) == await says(second.url) == "hello"


class TestWrappedApplication:
    """``Brightsocket(app)`` serves the application's HTTP too, with its lifespan."""

    async def test_pages_lifespan_and_webserver(self) -> None:
        life: list[str] = []

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncGenerator[dict[str, str]]:
            life.append("started")
            yield {"greeting": "welcome"}
            life.append("ended")

        async def page(request: Request) -> PlainTextResponse:
            return PlainTextResponse(f"{request.state.greeting}, {request.url.path}")

        app = Starlette(routes=[Route("/{page:path}", page)], lifespan=lifespan)
        api = echo_api(app)
        webservers = []

        @api.connect("WHAT")
        async def what(connection: Connection, identity: Any, webserver: Any) -> None:
            webservers.extend([webserver, connection.webserver])

        async with serving(api) as bound, httpx.AsyncClient() as http:
            assert life == ["started"]
            assert (await http.get(f"{bound.url}/home")).text == "welcome, /home"
            assert await says(bound.url) == "hello"
            async with open_client(bound.url) as client:
                await client.connect("WHAT")
        assert webservers == [app, app]
        assert life == ["started", "ended"]

    @pytest.mark.parametrize("kind", ["http", "websocket"])
    async def test_sends_and_sends_and_others_have_their_turn(self, kind: str) -> None:
        turns = 0
        passed: list[int] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                return
            more: dict[str, Any] = {"type": "http.response.body", "body": b"x", "more_body": True}
            if scope["type"] == "http":
                await send({"type": "http.response.start", "status": 200})
            else:
                await receive()
                await send({"type": "websocket.accept"})
                more = {"type": "websocket.send", "text": "x"}
            before = turns
            for _ in range(100):
                await send(more)
            passed.append(turns - before)
            await send({"type": "http.response.body"} if kind == "http" else {"type": "websocket.close"})

        async def take_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await checkpoint()

        async with serving(echo_api(app)) as bound, anyio.create_task_group() as tg:
            tg.start_soon(take_turns)
            if kind == "http":
                async with httpx.AsyncClient() as http:
                    assert (await http.get(bound.url)).text == "x" * 100
            else:
                async with raw(bound, path="/", query="sid=none") as peer:
                    assert await peer.drain() == ["x"] * 100
            tg.cancel_scope.cancel()
        # who has the first turn of each round is open
        assert passed[0] >= 99

    async def test_without_one_other_requests_are_not_found(self) -> None:
        async with serving(echo_api()) as bound, httpx.AsyncClient() as http:
            assert (await http.get(f"{bound.url}/home")).status_code == 404

    async def test_mounted_in_an_application_its_webserver_is_that(self) -> None:
        """The same under a mount: the host's application is the webserver, and the host's lifespan runs the API."""
        api = echo_api()
        webservers = []

        @api.connect("WHAT")
        async def what(connection: Connection) -> None:
            webservers.append(connection.webserver)

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncGenerator[None]:
            async with api.running():
                yield

        host = Starlette(routes=[Mount("/api", app=api)], lifespan=lifespan)
        # a second Brightsocket is the server here, whose own path the host's requests do not have
        outer = Brightsocket(host, path="/elsewhere/")
        async with serving(outer) as bound, open_client(f"{bound.url}/api") as client:
            with anyio.fail_after(PATIENCE):
                await client.connect("WHAT")
        assert webservers == [host]


class TestClient:
    async def test_the_user_s_own_http_client(self) -> None:
        """Its headers and cookies reach the server; it stays open."""
        api = echo_api()
        async with httpx.AsyncClient(headers={"X-Who": "ada"}, cookies={"c": "1"}) as http:
            async with serving(api) as bound:
                assert await says(bound.url, http=http) == "hello"
            assert not http.is_closed

    @pytest.mark.parametrize("url", ["ftp://host", "http://", "nonsense", "http://a\0b", 5])
    async def test_no_url(self, url: Any) -> None:
        with pytest.raises(ConfigurationError):
            async with open_client(url):
                pass

    async def test_the_schemes_of_websockets_do_too(self) -> None:
        async with serving(echo_api()) as bound:
            assert await says(bound.url.replace("http://", "ws://")) == "hello"

    async def test_nobody_listens(self) -> None:
        with pytest.raises(HandshakeError, match="cannot connect"):
            await says("http://127.0.0.1:1")

    async def test_a_server_of_something_else(self) -> None:
        async with serving(Brightsocket(path="/other/")) as bound:
            with pytest.raises(HandshakeError, match="404") as caught:
                await says(bound.url)
            assert caught.value.status == 404

    async def test_the_reason_of_a_refusal(self) -> None:
        api = Brightsocket()

        @api.connect("NO")
        async def no() -> None:
            raise Refused("not you")

        async with serving(api) as bound, open_client(bound.url) as client:
            with pytest.raises(ChannelRefused) as caught:
                await client.connect("NO")
            assert (caught.value.channel, caught.value.reason, caught.value.data) == ("NO", "not you", None)
            assert client.connection is None
