"""The ``authorize`` hook: it decides before anything is accepted, behind every front door and on every road."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from anyio import wait_all_tasks_blocked

from brightsocket_anyio import (
    Bound,
    Brightsocket,
    ConfigurationError,
    Connection,
    HandshakeError,
    Refused,
    Request,
    open_client,
)
from tests.doors import Recorder, ask_websocket, behind, every_road
from tests.support import PATIENCE, serve_in, serving, until

POLLING = "/socket.io/?EIO=4&transport=polling"
TICKETS = {"t-1": "Ada"}


async def authorize(request: Request) -> None:
    name = TICKETS.get(request.cookies.get("ticket", ""))
    if name is None:
        raise Refused("no such ticket")
    request.state["name"] = name
    request.set_cookie("seen", "yes", max_age=3600)


async def test_the_example() -> None:
    api = Brightsocket(authorize=authorize)
    names: list[str] = []

    @api.connect("CHAT")
    async def chat(connection: Connection) -> None:
        assert connection.request is not None
        names.append(connection.request.state["name"])

    async with serving(api) as bound, httpx.AsyncClient(cookies={"ticket": "t-1"}) as http:
        async with open_client(bound.url, http=http) as client:
            await client.connect("CHAT")
        assert http.cookies["seen"] == "yes"
        async with open_client(bound.url) as client:
            with pytest.raises(HandshakeError, match="no such ticket"):
                await client.connect("CHAT")
    assert names == ["Ada"]


def watched(hook: Any, **settings: Any) -> tuple[Brightsocket, list[Connection]]:
    """An API with a hook, and the connections that got past it to the channel ``IN``."""
    api = Brightsocket(authorize=hook, **{"close_timeout": 0.1, **settings})
    inside: list[Connection] = []
    api.connect("IN", inside.append)
    return api, inside


@every_road()
@pytest.mark.parametrize("synchronous", [True, False])
async def test_a_refusal(door: str, transport: Any, synchronous: bool) -> None:
    def refuse(request: Request) -> None:
        request.add_header("X-Hint", "ask")
        raise Refused("nö ticket", data="not in the answer")

    async def refuse_later(request: Request) -> None:
        async with anyio.create_task_group():
            await anyio.lowlevel.checkpoint()
            refuse(request)

    api, inside = watched(refuse if synchronous else refuse_later)
    with anyio.fail_after(PATIENCE):
        async with behind(door, api) as bound, Recorder() as http:
            async with open_client(bound.url, http=http, transport=transport) as client:
                with pytest.raises(HandshakeError, match="nö ticket") as caught:
                    await client.connect("IN")
            assert caught.value.status == 403
            if transport != "trio-websocket":
                assert http.answers[0].headers["x-hint"] == "ask"
            answer = await (http.get(bound.url + POLLING) if transport == "polling" else ask_websocket(http, bound.url))
            assert answer.status_code == 403
            assert answer.json() == {"code": 4, "message": "nö ticket"}
    assert inside == []


@every_road()
async def test_an_answer_of_false(door: str, transport: Any) -> None:
    api, inside = watched(lambda request: "let-me" in request.headers)
    with anyio.fail_after(PATIENCE):
        async with behind(door, api) as bound:
            async with open_client(bound.url, transport=transport) as client:
                with pytest.raises(HandshakeError, match="Forbidden") as caught:
                    await client.connect("IN")
            assert caught.value.status == 403
            async with (
                httpx.AsyncClient(headers={"let-me": "in"}) as http,
                open_client(bound.url, http=http, transport=transport) as client,
            ):
                await client.connect("IN")
    assert len(inside) == 1


@every_road()
async def test_a_failure_is_logged_and_disturbs_nobody(
    door: str, transport: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(request: Request) -> None:
        if "fail" in request.headers:
            raise ZeroDivisionError("secret")

    api, inside = watched(fail)
    with anyio.fail_after(PATIENCE):
        async with (
            behind(door, api) as bound,
            httpx.AsyncClient(headers={"fail": "please"}) as http,
            open_client(bound.url, transport=transport) as other,
        ):
            connection = await other.connect("IN")
            async with open_client(bound.url, http=http, transport=transport) as client:
                with pytest.raises(HandshakeError, match="Forbidden") as caught:
                    await client.connect("IN")
            assert caught.value.status == 403
            assert "secret" not in str(caught.value)
            await connection.send("STILL-THERE")
            async with inside[0].receive("STILL-THERE") as stream:
                assert await stream.receive() is None
    (record,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)


async def test_once_for_a_session_and_not_for_its_polls_and_its_upgrade() -> None:
    asked: list[Request] = []
    api, inside = watched(asked.append)
    with anyio.fail_after(PATIENCE):
        async with serving(api) as bound:
            async with open_client(bound.url, transport=("polling", "websocket")) as client:
                connection = await client.connect("IN")
                await until(lambda: connection.transport == "websocket")
                async with inside[0].receive("HELLO") as stream:
                    await connection.send("HELLO")
                    await stream.receive()
            assert len(asked) == 1
            async with open_client(bound.url, transport="polling") as client:
                for _ in range(2):
                    await client.connect("IN")
            assert len(asked) == 3
    assert inside[0].request is asked[0]


async def test_bad_requests_and_foreign_pages_do_not_come_to_it() -> None:
    asked: list[Request] = []
    api, _ = watched(asked.append)
    async with serving(api) as bound, httpx.AsyncClient() as http:
        foreign = {"Origin": "https://elsewhere.example"}
        assert (await http.get(bound.url + POLLING, headers=foreign)).status_code == 403
        assert (await ask_websocket(http, bound.url, foreign)).status_code == 403
        assert (await http.get(f"{bound.url}/socket.io/?EIO=9&transport=polling")).status_code == 400
        assert (await http.get(f"{bound.url}/socket.io/?EIO=4&transport=websocket")).status_code == 400
        assert (await http.post(bound.url + POLLING)).status_code == 400
        assert (await http.get(f"{bound.url}{POLLING}&sid=unknown")).status_code == 400
    assert asked == []


class Hesitation:
    """A hook that never decides."""

    def __init__(self) -> None:
        self.begun = anyio.Event()
        self.cancelled = anyio.Event()

    async def __call__(self, request: Request) -> None:
        self.begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            self.cancelled.set()


@every_road()
async def test_it_is_bounded_in_time(door: str, transport: Any, caplog: pytest.LogCaptureFixture) -> None:
    hook = Hesitation()
    api, inside = watched(hook, connect_timeout=0.05)
    with anyio.fail_after(PATIENCE):
        async with behind(door, api) as bound, open_client(bound.url, transport=transport) as client:
            with pytest.raises(HandshakeError, match="could not decide in time") as caught:
                await client.connect("IN")
            assert caught.value.status == 503
            assert hook.cancelled.is_set()
    assert "authorize has not decided" in caplog.text
    assert inside == []


@every_road("websocket", "polling", doors=("embedded", "asgi"))
async def test_it_is_cancelled_when_the_client_goes_away(door: str, transport: str) -> None:
    hook = Hesitation()
    api, _ = watched(hook)
    head = f"GET /socket.io/?EIO=4&transport={transport} HTTP/1.1\r\nHost: x\r\n"
    if transport == "websocket":
        head += "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        head += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    with anyio.fail_after(PATIENCE):
        async with behind(door, api) as bound:
            stream = await anyio.connect_tcp("127.0.0.1", bound.port)
            await stream.send(head.encode() + b"\r\n")
            await hook.begun.wait()
            await stream.aclose()
            await hook.cancelled.wait()


async def test_frames_that_come_while_it_decides_are_kept() -> None:
    """A client may send at once, without waiting for the answer, and our watch for its end reads along."""
    decide = anyio.Event()
    begun = anyio.Event()

    async def hook(request: Request) -> None:
        begun.set()
        await decide.wait()

    api, inside = watched(hook)
    with anyio.fail_after(PATIENCE):
        async with serving(api) as bound, await anyio.connect_tcp("127.0.0.1", bound.port) as stream:
            await stream.send(
                b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
                b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            await begun.wait()
            for text in (b"40", b'42["BRIGHTSOCKET:IDENTIFY",{"BRIGHTSOCKET:CHANNEL":"IN"}]'):
                await stream.send(bytes([0x81, 0x80 | len(text)]) + bytes(4) + text)
            await wait_all_tasks_blocked()
            decide.set()
            await until(lambda: inside)


@every_road("websocket", "polling")
async def test_draining_ends_it(door: str, transport: str) -> None:
    hook = Hesitation()
    api, inside = watched(hook, close_timeout=PATIENCE)
    errors: list[HandshakeError] = []
    stop = anyio.CancelScope()

    @asynccontextmanager
    async def served() -> AsyncGenerator[Bound]:
        if door == "embedded":
            async with anyio.create_task_group() as tg:
                yield await tg.start(serve_in, api, stop)
        else:
            async with behind(door, api) as bound:
                yield bound

    with anyio.fail_after(PATIENCE):
        async with served() as bound, anyio.create_task_group() as tg:

            async def visit() -> None:
                options: Any = {"transport": transport}
                async with open_client(bound.url, **options) as client:
                    with pytest.raises(HandshakeError, match="Server shutting down") as caught:
                        await client.connect("IN")
                    errors.append(caught.value)

            tg.start_soon(visit)
            await hook.begun.wait()
            stop.cancel()
            await api.drain()
            await hook.cancelled.wait()
    assert [error.status for error in errors] == [503]
    assert inside == []


async def test_a_server_that_drains_refuses_before_it_is_asked() -> None:
    asked: list[Request] = []
    api, _ = watched(asked.append)
    async with api.running(), httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://x") as http:
        assert (await http.get(POLLING)).status_code == 200
        assert len(asked) == 1
        async with anyio.create_task_group() as tg:
            tg.start_soon(api.drain)
            await wait_all_tasks_blocked()
            answer = await http.get(POLLING)
            assert (answer.status_code, answer.json()) == (503, {"message": "Server shutting down"})
            tg.cancel_scope.cancel()
    assert len(asked) == 1


@every_road()
async def test_cookies_and_headers_of_an_acceptance(door: str, transport: Any) -> None:
    def greet(request: Request) -> None:
        request.add_header("X-Room", "7")
        request.set_cookie("one", "1")
        request.set_cookie("two", "2")

    api, inside = watched(greet, cookie="sticky")
    with anyio.fail_after(PATIENCE):
        async with behind(door, api) as bound, Recorder() as http:
            async with open_client(bound.url, transport=transport) as client:
                await client.connect("IN")
            if transport == "polling":
                answer = await http.get(bound.url + POLLING)
                sid = json.loads(answer.text[1:])["sid"]
                assert answer.cookies["sticky"] == sid
                later = await http.post(f"{bound.url}{POLLING}&sid={sid}", content="1")
                assert "set-cookie" not in later.headers
            else:
                answer = await ask_websocket(http, bound.url)
                assert answer.status_code == 101
    assert answer.headers["x-room"] == "7"
    one, two, sticky = answer.headers.get_list("set-cookie")
    assert one == "one=1; Path=/; HttpOnly; SameSite=Lax"
    assert two == "two=2; Path=/; HttpOnly; SameSite=Lax"
    name, _, rest = sticky.partition("=")
    sid, _, attributes = rest.partition("; ")
    assert (name, attributes) == ("sticky", "Path=/; HttpOnly; SameSite=Lax")
    assert len(sid) == 20
    request = inside[0].request
    assert request is not None
    assert request.response_headers.get_list("set-cookie") == [one, two]
    with pytest.raises(RuntimeError, match="answered"):
        request.set_cookie("late", "1")


async def test_the_cookie_of_a_websocket_is_the_sessions_id() -> None:
    api = Brightsocket(cookie="sticky")
    opened: list[str] = []
    async with serving(api) as bound, Recorder() as http, anyio.create_task_group() as tg:
        async with http.stream(
            "GET",
            f"{bound.url}/socket.io/?EIO=4&transport=websocket",
            headers={
                "connection": "Upgrade",
                "upgrade": "websocket",
                "sec-websocket-version": "13",
                "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
            },
        ) as response:
            stream = response.extensions["network_stream"]
            frame = await stream.read(65536, timeout=PATIENCE)
            opened.append(json.loads(frame[frame.index(b"{") :])["sid"])
        tg.cancel_scope.cancel()
    assert response.cookies["sticky"] == opened[0]


@pytest.mark.parametrize("hook", ["no function", 1])
def test_what_is_no_function(hook: Any) -> None:
    with pytest.raises(ConfigurationError, match="authorize"):
        Brightsocket(authorize=hook)
