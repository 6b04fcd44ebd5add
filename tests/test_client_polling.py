"""The client by long-polling, its change to a WebSocket, and what it does where one of them cannot be had."""

from __future__ import annotations

import gc
import gzip
import logging
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, MutableMapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Literal

import anyio
import anyio.abc
import anyio.lowlevel
import httpx
import pytest
import trustme

from brightsocket_anyio import (
    Brightsocket,
    ChannelRefused,
    Client,
    ConfigurationError,
    Connection,
    ConnectionLost,
    HandshakeError,
    open_client,
)
from brightsocket_anyio.protocol.engineio import Packet, PacketType
from brightsocket_anyio.roads import RoadName
from brightsocket_anyio.settings import Settings
from brightsocket_anyio.transports.httpx_polling import connect_polling

from .support import PATIENCE, census, census_at_rest, serve_in, serving, serving_in_memory, until

EIO = Literal[3, 4]
Scope = MutableMapping[str, Any]
each_eio = pytest.mark.parametrize("eio", [3, 4])

#: every character that there is in the basic plane, and the ends of each further one
UNICODE = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x10000)]))
UNICODE += "".join(chr(plane << 16 | last) for plane in range(1, 17) for last in (0, 1, 0xFFFE, 0xFFFF))


class Place:
    """An API, and what it has seen."""

    def __init__(self, **settings: Any) -> None:
        self.api = Brightsocket(**settings)
        self.connections: list[Connection] = []
        self.up: list[Any] = []
        self.flooding = True
        self.sent = 0
        self.stopped = anyio.Event()
        self.api.connect("ECHO", self._echo)
        self.api.connect("FLOOD", self._flood)

    async def _echo(self, connection: Connection) -> None:
        self.connections.append(connection)
        connection.on("UP")(self.up.append)

        @connection.on("ECHO")
        async def echo(*values: Any) -> Any:
            await connection.send("ECHOED", *values)
            return values

    async def _flood(self, connection: Connection) -> None:
        """Send numbers without a pause, until told to stop."""
        await self._echo(connection)

        @connection.on("STOP")
        def stop() -> None:
            self.flooding = False

        while self.flooding:
            await connection.send("DOWN", self.sent)
            self.sent += 1
        self.stopped.set()

    async def echoes(self, connection: Connection, *values: Any) -> None:
        """Values arrive at the server, and come back both ways, as they were."""
        async with connection.receive("ECHOED") as echoed:
            with anyio.fail_after(PATIENCE):
                answer = await connection.call("ECHO", *values)
                event = await echoed.receive()
        wanted = values[0] if len(values) == 1 else list(values)
        assert answer == wanted or list(answer) == wanted
        assert event == wanted or list(event) == wanted


async def upgraded(connection: Connection) -> None:
    await until(lambda: connection.transport == "websocket")


class Detour(httpx.AsyncHTTPTransport):
    """Real HTTP, but for the requests for a WebSocket, which something on the way treats in its own manner.

    :ivar requests: all of them.
    """

    def __init__(self, treat: Callable[[httpx.Request], Awaitable[httpx.Response | None]]) -> None:
        super().__init__()
        self._treat = treat
        self.requests: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if "upgrade" in request.headers:
            response = await self._treat(request)
            if response is not None:
                return response
        return await super().handle_async_request(request)


def answering(status: int, content: str = "") -> Detour:
    """A proxy that answers to every WebSocket's handshake by itself."""

    async def treat(request: httpx.Request) -> httpx.Response:
        await anyio.lowlevel.checkpoint()
        headers = {"content-length": str(len(content))}
        return httpx.Response(status, headers=headers, stream=httpx.ByteStream(content.encode()))

    return Detour(treat)


class Wire:
    """An ASGI application that speaks Engine.IO by hand, with what the test says.

    :ivar requests: the requests so far: method, query, headers.
    :ivar bodies: those of the POSTs.
    """

    def __init__(self, respond: Callable[[Wire, Scope, Any], Awaitable[None]]) -> None:
        self.respond = respond
        self.requests: list[tuple[str, dict[str, str], dict[str, str]]] = []
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close"})
            return
        query = dict(httpx.QueryParams(scope["query_string"].decode()).items())
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.requests.append((scope.get("method", ""), query, headers))
        if scope.get("method") == "POST":
            body = b""
            more = True
            while more:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
            self.bodies.append(body)

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            tg.cancel_scope.cancel()

        async with anyio.create_task_group() as tg:
            tg.start_soon(watch)
            await self.respond(self, scope, send)
            tg.cancel_scope.cancel()


async def answer(send: Any, body: bytes, status: int = 200, **headers: str) -> None:
    head = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


OPEN = '0{"sid":"abc","upgrades":[],"pingInterval":%d,"pingTimeout":%d%s}'


def a_server(more: str = "", interval: int = 25000, timeout: int = 20000) -> Wire:
    """An Engine.IO 4 server that opens sessions, takes everything, and never sends a thing."""

    async def respond(wire: Wire, scope: Scope, send: Any) -> None:
        method, query, _ = wire.requests[-1]
        if method == "POST":
            await answer(send, b"ok")
        elif "sid" not in query:
            await answer(send, (OPEN % (interval, timeout, more)).encode())
        else:
            await anyio.sleep_forever()

    return Wire(respond)


@asynccontextmanager
async def serving_wire(wire: Any) -> AsyncGenerator[str]:
    """An ASGI application behind the embedded server; its URL."""
    async with serving(Brightsocket(wire, path="/unused/")) as bound:
        yield bound.url


async def asking(client: Client, wire: Wire) -> None:
    """Let a client connect until it has sent its first POST, and then give it up."""
    async with anyio.create_task_group() as tg:
        tg.start_soon(client.connect, "ANY")
        await until(lambda: wire.bodies)
        tg.cancel_scope.cancel()


# -- by polling alone


@each_eio
async def test_everything_by_polling_alone(eio: EIO) -> None:
    place = Place()
    async with serving(place.api) as bound, open_client(bound.url, transport="polling", eio=eio) as client:
        connection = await client.connect("ECHO")
        await place.echoes(connection, "text")
        await place.echoes(connection, b"")
        await place.echoes(connection, bytes(range(256)) * 300)
        await place.echoes(connection, {"deep": [b"\x00\x1e", "\x1e", {"x": b"\xff" * 5}]}, 0, None, False, "")
        assert (connection.transport, place.connections[0].transport) == ("polling", "polling")
        await client.disconnect()
        await until(lambda: not place.api.pool)
        # and again, on a session of its own
        await place.echoes(await client.connect("ECHO"), 1)


@each_eio
async def test_all_of_unicode(eio: EIO) -> None:
    place = Place()
    async with serving(place.api) as bound, open_client(bound.url, transport="polling", eio=eio) as client:
        await place.echoes(await client.connect("ECHO"), UNICODE)


@each_eio
async def test_a_refusal(eio: EIO) -> None:
    async with (
        serving(Brightsocket()) as bound,
        open_client(bound.url, transport="polling", eio=eio) as client,
    ):
        with pytest.raises(ChannelRefused, match="unknown channel"):
            await client.connect("NOWHERE")
        assert client.connection is None


@each_eio
async def test_a_flood_in_both_directions_by_polling(eio: EIO) -> None:
    place = Place()
    async with serving(place.api) as bound, open_client(bound.url, transport="polling", eio=eio) as client:
        await stream(place, await client.connect("FLOOD"), enough=lambda got, sent: got > 500 and sent > 200)


async def stream(place: Place, connection: Connection, enough: Callable[[int, int], bool]) -> None:
    """Send and receive numbers until it is enough; each has arrived once and in order, on both sides."""
    sent = 0
    got: list[int] = []
    with anyio.fail_after(PATIENCE):
        async with connection.receive("DOWN") as numbers, anyio.create_task_group() as tg:

            async def up() -> None:
                nonlocal sent
                while not enough(len(got), sent):
                    await connection.send("UP", sent)
                    sent += 1
                    # sending does not yield while there is room, receiving does
                    await anyio.lowlevel.checkpoint()
                await connection.send("STOP")
                await place.stopped.wait()
                reading.cancel()

            async def down() -> None:
                while True:
                    got.append(await numbers.receive())

            tg.start_soon(up)
            with anyio.CancelScope() as reading:
                await down()
            while len(got) < place.sent:
                got.append(await numbers.receive())
        await place.echoes(connection, "the end")
    assert got == list(range(place.sent))
    assert place.up == list(range(sent))


# -- the change to a WebSocket


@each_eio
async def test_streams_across_the_upgrade(eio: EIO) -> None:
    """Both sides send without a pause, from the first moment to long after the change."""
    place = Place()
    after = 0

    async with (
        serving(place.api) as bound,
        open_client(bound.url, transport=("polling", "websocket"), eio=eio) as client,
    ):
        connection = await client.connect("FLOOD")

        def enough(got: int, sent: int) -> bool:
            nonlocal after
            after += connection.transport == "websocket"
            return after > 100 and got > 100

        await stream(place, connection, enough)
        assert (connection.transport, place.connections[0].transport) == ("websocket", "websocket")


@each_eio
@pytest.mark.parametrize("delay", [0, 3, 20])
async def test_calls_all_the_while(eio: EIO, delay: int) -> None:
    """One message at a time: the change comes between any two of them, on a quiet road."""
    place = Place()
    async with (
        serving(place.api) as bound,
        open_client(bound.url, transport=("polling", "websocket"), eio=eio) as client,
    ):
        connection = await client.connect("ECHO")
        number = 0
        with anyio.fail_after(PATIENCE):
            while number < 20 or connection.transport == "polling":
                assert await connection.call("ECHO", number) == number
                number += 1
                for _ in range(delay):
                    await anyio.lowlevel.checkpoint()


async def test_retired_it_is_closed_without_a_word() -> None:
    wire = a_server()
    async with serving_wire(wire) as url, httpx.AsyncClient() as http, anyio.create_task_group() as tg:
        transport = await connect_polling(http, f"{url}/?EIO=4", eio=4, settings=Settings(), task_group=tg)
        await transport.receive()
        assert await transport.pause() == []

        async def send() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await transport.send([Packet(PacketType.NOOP)])

        tg.start_soon(send)
        await anyio.wait_all_tasks_blocked()
        transport.retire()
        with pytest.raises(anyio.ClosedResourceError):
            await transport.receive()
        await transport.aclose()
    assert wire.bodies == []


async def silent(send: Any) -> None:
    await anyio.sleep_forever()


async def wrong(send: Any) -> None:
    await send({"type": "websocket.send", "text": "3wrong"})
    await anyio.sleep_forever()


async def closing(send: Any) -> None:
    await send({"type": "websocket.close", "code": 1011})


@pytest.mark.parametrize("behave", [silent, wrong, closing])
async def test_a_probe_that_fails_leaves_polling_as_it_was(
    behave: Callable[[Any], Coroutine[Any, Any, None]], caplog: pytest.LogCaptureFixture
) -> None:
    closed = anyio.Event()

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            await Wire(a_server().respond)(scope, receive, send)
            return
        await receive()
        await send({"type": "websocket.accept"})
        async with anyio.create_task_group() as tg:
            tg.start_soon(behave, send)
            while (await receive())["type"] != "websocket.disconnect":
                pass
            closed.set()
            tg.cancel_scope.cancel()

    place = Place()
    async with serving(place.api) as bound, serving_wire(app) as elsewhere:

        async def treat(request: httpx.Request) -> None:
            request.url = httpx.URL(elsewhere).join(request.url.raw_path.decode())

        caplog.set_level(logging.INFO, "brightsocket_anyio")
        async with (
            httpx.AsyncClient(transport=Detour(treat)) as http,
            open_client(
                bound.url, http=http, transport=("polling", "websocket"), upgrade_timeout=0.2, close_timeout=1
            ) as client,
        ):
            connection = await client.connect("ECHO")
            await place.echoes(connection, "meanwhile")
            with anyio.fail_after(PATIENCE):
                await closed.wait()
            await until(lambda: "stays on polling" in caplog.text)
            await place.echoes(connection, "afterwards")
            assert connection.transport == "polling"


@pytest.mark.parametrize("status", [400, 403, 502])
async def test_an_upgrade_that_is_refused_leaves_polling_as_it_was(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place()
    caplog.set_level(logging.INFO, "brightsocket_anyio")
    async with (
        serving(place.api) as bound,
        httpx.AsyncClient(transport=answering(status, "no WebSockets here")) as http,
        open_client(bound.url, http=http, transport=("polling", "websocket")) as client,
    ):
        connection = await client.connect("ECHO")
        await until(lambda: "no WebSockets here" in caplog.text)
        await place.echoes(connection, "afterwards")
        assert connection.transport == "polling"


async def test_a_server_that_offers_no_upgrade_is_asked_for_none() -> None:
    wire = a_server()
    async with (
        serving_wire(wire) as url,
        open_client(url, transport=("polling", "websocket"), close_timeout=0.2) as client,
    ):
        await asking(client, wire)
    assert {query["transport"] for _, query, _ in wire.requests} == {"polling"}


@each_eio
async def test_an_end_while_the_upgrade_is_under_way_loses_nothing(eio: EIO) -> None:
    """What was accepted for sending arrives, although the WebSocket's handshake never ends."""
    place = Place()
    begun = anyio.Event()

    async def treat(request: httpx.Request) -> None:
        begun.set()
        await anyio.sleep_forever()

    async with (
        serving(place.api) as bound,
        httpx.AsyncClient(transport=Detour(treat)) as http,
        open_client(bound.url, http=http, transport=("polling", "websocket"), eio=eio) as client,
    ):
        connection = await client.connect("ECHO")
        await begun.wait()
        for number in range(100):
            await connection.send("UP", number)
        with anyio.fail_after(PATIENCE):
            await client.disconnect()
        await until(lambda: not place.api.pool)
    assert place.up == list(range(100))


# -- the choice


async def refuse(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadError("no way", request=request)


@pytest.mark.parametrize(
    ("detour", "said"),
    [
        (partial(answering, 400), "answered 400"),
        (partial(answering, 502, "bad\ngateway"), "bad gateway"),
        (partial(answering, 200, "<html>"), "answered 200"),
        (partial(Detour, refuse), "no way"),
    ],
)
async def test_where_no_websocket_can_be_had_polling_it_is(
    detour: Callable[[], Detour], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place()
    caplog.set_level(logging.INFO, "brightsocket_anyio")
    async with (
        serving(place.api) as bound,
        httpx.AsyncClient(transport=detour()) as http,
        open_client(bound.url, http=http) as client,
    ):
        connection = await client.connect("ECHO")
        await place.echoes(connection, 1)
        assert connection.transport == "polling"
    [record] = [record for record in caplog.records if record.name == "brightsocket_anyio"]
    assert record.levelno == logging.INFO
    assert said in record.getMessage()
    assert "trying polling" in record.getMessage()


async def test_a_websocket_that_opens_no_session_counts_as_none() -> None:
    """A proxy may let the handshake pass and nothing else."""
    place = Place()

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close", "code": 1011})

    async with serving(place.api) as bound, serving_wire(app) as elsewhere:

        async def treat(request: httpx.Request) -> None:
            request.url = httpx.URL(elsewhere).join(request.url.raw_path.decode())

        async with httpx.AsyncClient(transport=Detour(treat)) as http, open_client(bound.url, http=http) as client:
            connection = await client.connect("ECHO")
            await place.echoes(connection, 1)
            assert connection.transport == "polling"


async def test_without_any_road_the_error_names_each() -> None:
    async with serving_wire(Wire(lambda wire, scope, send: answer(send, b"nothing", 404))) as url:
        async with open_client(url) as client:
            with pytest.raises(HandshakeError, match=r"websocket: .*403.*; polling: .*404.*nothing") as caught:
                await client.connect("ANY")
            assert caught.value.status == 404
        async with open_client(url, transport="polling") as client:
            with pytest.raises(HandshakeError, match=r"^http://\S+/socket.io/ answered 404 Not Found: nothing$"):
                await client.connect("ANY")


async def test_a_server_that_is_not_there() -> None:
    async with serving(Brightsocket()) as bound:
        url = bound.url
    async with open_client(url) as client:
        with pytest.raises(HandshakeError, match=r"^cannot connect to http://127.0.0.1:\d+/socket.io/: "):
            await client.connect("ANY")


async def test_a_session_that_has_begun_is_not_begun_again() -> None:
    """Only what opens no session is tried otherwise: a refusal is an answer."""
    detour = answering(200)
    async with (
        serving(Brightsocket()) as bound,
        httpx.AsyncClient(transport=detour) as http,
        open_client(bound.url, http=http, transport=("polling", "websocket")) as client,
    ):
        with pytest.raises(ChannelRefused):
            await client.connect("NOWHERE")
    assert len([request for request in detour.requests if "sid" not in request.url.params]) == 1


@pytest.mark.parametrize(
    ("transport", "wrong"),
    [("carrier pigeon", "carrier pigeon"), ((), "one name"), (("polling", "polling"), "one name")],
)
async def test_transports_that_do_not_exist(transport: Any, wrong: str) -> None:
    with pytest.raises(ConfigurationError, match=wrong):
        async with open_client("http://localhost", transport=transport):
            pytest.fail("opened")


@pytest.mark.parametrize("transport", ["polling", "websocket", ("polling", "websocket")])
async def test_an_ssl_context_beside_http_would_go_unused(transport: Any) -> None:
    async with httpx.AsyncClient() as http:
        with pytest.raises(ConfigurationError, match="ssl_context"):
            async with open_client(
                "https://localhost", http=http, transport=transport, ssl_context=ssl.create_default_context()
            ):
                pytest.fail("opened")


async def test_trio_websocket_is_for_trio(anyio_backend_name: str) -> None:
    place = Place()
    async with serving(place.api) as bound:
        if anyio_backend_name != "trio":
            with pytest.raises(ConfigurationError, match="needs Trio"):
                async with open_client(bound.url, transport=("websocket", "trio-websocket")):
                    pytest.fail("opened")
            return
        both: tuple[RoadName, ...] = ("polling", "trio-websocket")
        for transport in ("trio-websocket", both):
            async with open_client(bound.url, transport=transport) as client:
                connection = await client.connect("ECHO")
                await upgraded(connection)
                await place.echoes(connection, "text", b"bytes")


async def test_a_certificate_authority_of_ones_own(anyio_backend_name: str) -> None:
    authority = trustme.CA()
    theirs, ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    authority.configure_trust(ours)
    roads: list[Any] = ["polling", "websocket", ("polling", "websocket")]
    if anyio_backend_name == "trio":
        roads += ["trio-websocket", ("polling", "trio-websocket")]
    place = Place()
    async with serving(place.api, ssl_context=theirs) as bound:
        url = f"https://127.0.0.1:{bound.port}"
        for transport in roads:
            async with open_client(url, transport=transport, ssl_context=ours) as client:
                connection = await client.connect("ECHO")
                if transport != "polling":
                    await upgraded(connection)
                await place.echoes(connection, 1)
        async with open_client(url, transport="polling") as client:
            with pytest.raises(HandshakeError, match=r"(?i)certificate"):
                await client.connect("ECHO")


# -- cookies, headers, query


class Sticky:
    """In front of the API, what sends the requests of a session to where its cookie says.

    :ivar seen: for each session, the cookies of its requests after the first.
    """

    def __init__(self, api: Brightsocket) -> None:
        self._api = api
        self._count = 0
        self.seen: dict[str, list[str]] = {}
        self.headers: list[dict[str, str]] = []

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._api(scope, receive, send)
            return
        query = httpx.QueryParams(scope["query_string"].decode())
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.headers.append({**headers, "transport": query["transport"], "token": query.get("token", "")})
        if "sid" in query:
            self.seen.setdefault(query["sid"], []).append(headers.get("cookie", ""))
            await self._api(scope, receive, send)
            return
        self._count += 1
        cookie = f"node=n{self._count}; Path=/; HttpOnly"

        async def with_cookie(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"set-cookie", cookie.encode())]
            await send(message)

        await self._api(scope, receive, with_cookie)


@pytest.mark.parametrize("second", ["websocket", "trio-websocket"])
async def test_the_cookies_of_the_handshake_come_with_every_later_request(
    second: RoadName, anyio_backend_name: str
) -> None:
    if second == "trio-websocket" and anyio_backend_name != "trio":
        second = "websocket"
    place = Place()
    sticky = Sticky(place.api)
    async with (
        serving_wire(sticky) as url,
        httpx.AsyncClient(headers={"x-of-the-user": "yes"}, cookies={"mine": "1"}) as http,
        # two sessions share the user's client, in which the second one's cookie takes the place of the first one's
        open_client(f"{url}?token=t", http=http, transport="polling") as first,
        open_client(f"{url}?token=t", http=http, transport=("polling", second)) as other,
    ):
        staying, moving = await first.connect("ECHO"), await other.connect("ECHO")
        await upgraded(moving)
        for connection in (staying, moving, staying):
            await place.echoes(connection, 1)
    nodes = [{frozenset(cookie.split("; ")) for cookie in cookies} for cookies in sticky.seen.values()]
    assert nodes == [{frozenset({"mine=1", "node=n1"})}, {frozenset({"mine=1", "node=n2"})}]
    assert {headers.get("x-of-the-user") for headers in sticky.headers} == {"yes"}
    assert {headers["token"] for headers in sticky.headers} == {"t"}
    assert {headers["transport"] for headers in sticky.headers} == {"polling", "websocket"}


async def test_no_cache_can_answer() -> None:
    wire = a_server()
    async with serving_wire(wire) as url, open_client(url, transport="polling", close_timeout=0.2) as client:
        await asking(client, wire)
    marks = [query["t"] for _, query, _ in wire.requests]
    assert len(marks) > 2
    assert len(set(marks)) == len(marks)


# -- answers that are none


@pytest.mark.parametrize(
    ("response", "said", "status"),
    [
        ({"body": b'{"code":4,"message":"Forbidden"}', "status": 403}, "answered 403 Forbidden: Forbidden$", 403),
        ({"body": b"[]", "status": 400}, r"answered 400 Bad Request: \[\]$", 400),
        ({"body": b"", "status": 500}, "answered 500 Internal Server Error$", 500),
        ({"body": b"", "status": 302, "location": "/login?secret=1"}, r"302 Found, a redirection to \S+/login$", 302),
        ({"body": b"<html>Log in!", "content_type": "text/html"}, "text/html: <html>Log in!, which is no Eng", 200),
        ({"body": b""}, "no Engine.IO handshake", 200),
        ({"body": b'96:0{"sid":"x"}2:40'}, "Socket.IO 1 or 2, which needs eio=3", 200),
        ({"body": b'42["X"]'}, "where the open packet was due", 200),
        ({"body": b'0{"sid":""}'}, "no sid", 200),
        ({"body": gzip.compress(b"0{}"), "content_encoding": "gzip"}, "compressed its answer", 200),
        ({"body": b"x" * 40_001}, "more than 40000 bytes", 200),
        ({"body": b"x" * 10_000_000, "status": 404}, "more than 40000 bytes", 404),
    ],
)
async def test_an_answer_that_opens_no_session(response: dict[str, Any], said: str, status: int) -> None:
    async with serving_wire(Wire(lambda wire, scope, send: answer(send, **response))) as url:
        async with (
            httpx.AsyncClient(follow_redirects=True) as http,
            open_client(url, http=http, transport="polling", max_payload=10_000, max_attachments=0) as client,
        ):
            with pytest.raises(HandshakeError, match=said) as caught:
                await client.connect("ANY")
        assert caught.value.status == status


async def test_an_error_that_a_hook_of_the_users_client_raises() -> None:
    async def raise_for_status(response: httpx.Response) -> None:
        response.raise_for_status()

    async with serving_wire(Wire(lambda wire, scope, send: answer(send, b"", 403))) as url:
        async with (
            httpx.AsyncClient(event_hooks={"response": [raise_for_status]}) as http,
            open_client(url, http=http, transport="polling") as client,
        ):
            with pytest.raises(HandshakeError, match="403") as caught:
                await client.connect("ANY")
        assert caught.value.status == 403


@pytest.mark.parametrize(
    ("response", "code", "said"),
    [
        (
            {"body": b'{"code":1,"message":"Session ID unknown"}', "status": 400},
            "transport error",
            "Session ID unknown",
        ),
        ({"body": b"<html>"}, "parse error", "unknown type"),
        ({"body": b"4" + b"x" * 20_000}, "parse error", "too big"),
        ({"body": b"4" + b"x" * 50_000}, "parse error", "more than 40000 bytes"),
        ({"body": b"1"}, "ended", ""),
    ],
)
async def test_an_answer_that_ends_the_session(response: dict[str, Any], code: str, said: str) -> None:
    async def respond(wire: Wire, scope: Scope, send: Any) -> None:
        method, query, _ = wire.requests[-1]
        if method == "POST":
            await answer(send, b"ok")
        elif "sid" not in query:
            await answer(send, (OPEN % (25000, 20000, "") + '\x1e40{"sid":"x"}').encode())
        elif not identified.is_set():
            await until(lambda: b"IDENTIFY" in b"".join(wire.bodies))
            identified.set()
            await answer(send, b'42["BRIGHTSOCKET:IDENTIFIED"]')
        else:
            await until(lambda: b"GO" in b"".join(wire.bodies))
            await answer(send, **response)

    identified = anyio.Event()
    async with (
        serving_wire(Wire(respond)) as url,
        open_client(url, transport="polling", max_payload=10_000, max_attachments=0, reconnection=False) as client,
    ):
        with anyio.fail_after(PATIENCE):
            connection = await client.connect("ANY")
            await connection.send("GO")
            with pytest.raises((ConnectionLost, anyio.EndOfStream)) as caught:
                async with connection.receive("NOTHING") as nothing:
                    await nothing.receive()
        if isinstance(caught.value, ConnectionLost):
            assert caught.value.code == code
            assert said in caught.value.reason
        else:
            assert code == "ended"


async def test_a_post_that_is_refused_ends_the_session() -> None:
    """For one, because something on the way takes less than the server."""
    place = Place(max_payload=2000)

    async def proxy(scope: Scope, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", ()))
        if int(headers.get(b"content-length", 0)) > 1500:
            await answer(send, b"", status=413)
        else:
            await place.api(scope, receive, send)

    async with serving_wire(proxy) as url, open_client(url, transport="polling") as client:
        connection = await client.connect("ECHO")
        with anyio.fail_after(PATIENCE), pytest.raises(ConnectionLost, match="413"):
            await connection.call("ECHO", "x" * 1800)
        await place.echoes(await client.connect("ECHO"), "x" * 1000)


# -- sizes


@each_eio
async def test_posts_are_no_larger_than_the_server_takes(eio: EIO) -> None:
    place = Place(max_payload=2000)
    async with serving(place.api) as bound, open_client(bound.url, transport="polling", eio=eio) as client:
        connection = await client.connect("ECHO")
        for number in range(200):
            await connection.send("UP", {"number": number, "text": "é" * 100, "bytes": bytes(number)})
        await place.echoes(connection, b"x" * 700, b"y" * 700, b"z" * 700)
        await until(lambda: len(place.up) == 200)
        assert [each["number"] for each in place.up] == list(range(200))
        assert [each["bytes"] for each in place.up] == [bytes(number) for number in range(200)]


async def test_how_packets_are_divided() -> None:
    wire = a_server(',"maxPayload":3000')
    packets = [Packet(PacketType.MESSAGE, "x" * (number % 7)) for number in range(5000)]
    packets[100] = Packet(PacketType.MESSAGE, b"x" * 2200)  # 2937 bytes by base64
    packets[101] = Packet(PacketType.MESSAGE, "x" * 5000)  # larger than a POST may be: for the server to judge
    async with serving_wire(wire) as url, httpx.AsyncClient() as http, anyio.create_task_group() as tg:
        transport = await connect_polling(http, f"{url}/?EIO=4", eio=4, settings=Settings(), task_group=tg)
        assert (await transport.receive())[0].type is PacketType.OPEN
        await transport.send(packets)
        await transport.aclose()
    *bodies, last = wire.bodies
    assert last == b"1"
    sent = [body.split(b"\x1e") for body in bodies]
    assert sum(map(len, sent)) == 5000
    assert max(map(len, sent)) <= 1000
    assert [len(body) for body in bodies if len(body) > 3000] == [5001]
    assert len(bodies) < 20


# -- time


@pytest.mark.mock_clock
@each_eio
async def test_the_users_timeouts_do_not_cut_polls_off(eio: EIO) -> None:
    """httpx gives up reading after five seconds, unless it is told otherwise."""
    place = Place()
    async with (
        serving_in_memory(place.api) as listener,
        listener.http() as http,
        open_client("http://memory", http=http, transport="polling", eio=eio) as client,
    ):
        assert http.timeout.read == 5
        connection = await client.connect("ECHO")
        for _ in range(10):
            await anyio.sleep(20)
            await place.echoes(connection, 1)


@pytest.mark.mock_clock
async def test_a_server_that_falls_silent_is_given_up() -> None:
    wire = a_server()
    wire_api = Brightsocket(wire, path="/unused/")
    async with (
        serving_in_memory(wire_api) as listener,
        listener.http() as http,
        open_client("http://memory", http=http, transport="polling") as client,
    ):
        start = anyio.current_time()
        with pytest.raises(ConnectionLost) as caught:
            await client.connect("/")
        assert caught.value.code == "ping timeout"
        assert 44 < anyio.current_time() - start < 60


@pytest.mark.mock_clock
async def test_a_post_that_is_not_answered_is_given_up() -> None:
    async def respond(wire: Wire, scope: Scope, send: Any) -> None:
        if "sid" not in wire.requests[-1][1]:
            await answer(send, (OPEN % (250_000, 200_000, "")).encode())
        else:
            await anyio.sleep_forever()

    async with (
        serving_in_memory(Brightsocket(Wire(respond), path="/unused/")) as listener,
        listener.http() as http,
        open_client("http://memory", http=http, transport="polling", stall_timeout=7) as client,
    ):
        with pytest.raises(ConnectionLost, match="not answered within 7 seconds") as caught:
            await client.connect("/")
        assert caught.value.code == "stalled"


@pytest.mark.mock_clock
async def test_a_websocket_that_stays_silent_is_given_up_for_polling() -> None:
    place = Place()

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await anyio.sleep_forever()
        else:
            await place.api(scope, receive, send)

    async with (
        place.api.running(),
        serving_in_memory(Brightsocket(app, path="/unused/")) as listener,
        listener.http() as http,
        open_client("http://memory", http=http, connect_timeout=9) as client,
    ):
        start = anyio.current_time()
        connection = await client.connect("ECHO")
        assert connection.transport == "polling"
        assert 9 <= anyio.current_time() - start < 20


@each_eio
async def test_a_receiver_that_is_full_holds_the_server_back(eio: EIO) -> None:
    place = Place(max_buffered_messages=10)
    async with (
        serving(place.api) as bound,
        open_client(bound.url, transport="polling", eio=eio, max_buffered_messages=10) as client,
    ):
        connection = await client.connect("FLOOD")
        async with connection.receive("DOWN") as numbers:
            assert await numbers.receive() == 0
            held = -1
            while held != place.sent:
                held = place.sent
                await anyio.wait_all_tasks_blocked()
            assert held < 200
            with anyio.fail_after(PATIENCE):
                for number in range(1, 500):
                    assert await numbers.receive() == number


# -- the end, and what is left of it


async def test_what_was_accepted_for_sending_is_sent_although_a_get_is_pending() -> None:
    place = Place()
    async with serving(place.api) as bound:
        async with open_client(bound.url, transport="polling") as client:
            connection = await client.connect("ECHO")
            for number in range(200):
                await connection.send("UP", number)
        with anyio.fail_after(PATIENCE):
            await until(lambda: not place.api.pool)
    assert place.up == list(range(200))


async def test_the_servers_end() -> None:
    place = Place(close_timeout=1)
    stopping = anyio.CancelScope()
    async with anyio.create_task_group() as tg:
        bound = await tg.start(serve_in, place.api, stopping)
        async with open_client(bound.url, transport="polling", reconnection=False) as client:
            connection = await client.connect("ECHO")
            stopping.cancel()
            async with connection.receive("NOTHING") as nothing:
                with anyio.fail_after(PATIENCE), pytest.raises(ConnectionLost) as caught:
                    await nothing.receive()
            assert caught.value.code == "server shutting down"
            with pytest.raises(HandshakeError):
                await client.connect("ECHO")


@pytest.mark.parametrize(("transport", "eio"), [("polling", 3), (("polling", "websocket"), 4)])
async def test_nothing_is_left_of_many_connections(transport: Sequence[RoadName], eio: EIO) -> None:
    place = Place()
    before = None
    async with serving(place.api) as bound:
        for number in range(8):
            async with open_client(bound.url, transport=transport, eio=eio) as client:
                connection = await client.connect("ECHO")
                if number % 2:
                    await place.echoes(connection, number)
                if number % 4 == 3 and transport != "polling":
                    await upgraded(connection)
            await until(lambda: not place.api.pool)
            place.connections.clear()
            del client, connection
            if number == 3:
                before = await census_at_rest()
        assert before is not None
        await until(lambda: not census() - before)


@pytest.mark.parametrize("transport", ["polling", ("polling", "websocket")])
async def test_connect_cancelled_at_every_step(transport: Any) -> None:
    """From the first request on, through the session's beginning, to the connection that is there."""
    place = Place(close_timeout=1)

    async def act(steps: int) -> bool:
        async with open_client(bound.url, http=http, transport=transport, close_timeout=1) as client:
            done = await _connect_for(client, steps)
            with anyio.fail_after(PATIENCE):
                await place.echoes(client.connection or await client.connect("ECHO"), steps)
        await until(lambda: not place.api.pool)
        place.connections.clear()
        return done

    async with serving(place.api) as bound, httpx.AsyncClient() as http:
        steps = 0
        while not await act(steps):
            steps += 1 + steps // 2
        assert steps > 10
        counts = await census_at_rest()
        # The server may have begun a session of which the client has not heard: its heartbeat will end that.
        assert (counts["ConnectionCore"], counts["HttpxPollingTransport"]) == (0, 0)
        assert "long poll" not in {task.name for task in anyio.get_running_tasks()}


async def _connect_for(client: Client, steps: int) -> bool:
    """Connect, for so many turns of the loop; returns whether that was enough."""
    async with anyio.create_task_group() as tg:
        tg.start_soon(cancel_after, steps, tg.cancel_scope)
        await client.connect("ECHO")
        tg.cancel_scope.cancel()
        return True
    return False


def polled(connection: Connection) -> bool:
    """Whether a GET waits at the server."""
    transport: Any = connection._core.session.transport
    return transport._pending is not None


async def test_a_client_that_is_cancelled_leaves_no_request_behind() -> None:
    place = Place(close_timeout=1)

    async def act() -> None:
        async with httpx.AsyncClient() as http, open_client(bound.url, http=http, transport="polling") as client:
            await client.connect("ECHO")
            await until(lambda: polled(place.connections[0]))
            scope.cancel()
            await anyio.sleep_forever()

    before = None
    async with serving(place.api) as bound:
        for _ in range(2):
            with anyio.CancelScope() as scope:
                await act()
            # the GET was cut off, which the server sees at once
            await until(lambda: not place.api.pool)
            place.connections.clear()
            before = before or await census_at_rest()
        assert before is not None
        await until(lambda: not census() - before)


async def cancel_after(steps: int, scope: anyio.CancelScope) -> None:
    for _ in range(steps):
        await anyio.lowlevel.checkpoint()
    scope.cancel()


async def test_receive_may_be_cancelled_at_any_time() -> None:
    place = Place()
    async with serving(place.api) as bound, httpx.AsyncClient() as http, anyio.create_task_group() as tg:
        url = f"{bound.url}/socket.io/?EIO=4"
        transport = await connect_polling(http, url, eio=4, settings=Settings(), task_group=tg)
        packets = await transport.receive()
        await transport.send([Packet(PacketType.MESSAGE, "0")])
        identify = '2["BRIGHTSOCKET:IDENTIFY",{"BRIGHTSOCKET:CHANNEL":"ECHO"}]'
        await transport.send([Packet(PacketType.MESSAGE, identify)])
        for number in range(30):
            await transport.send([Packet(PacketType.MESSAGE, f'2["ECHO",{number}]')])
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as racing:
                    racing.start_soon(cancel_after, number, scope)
                    while True:
                        packets += await transport.receive()
        with anyio.fail_after(PATIENCE):
            while packets[-1].data != '2["ECHOED",29]':
                packets += await transport.receive()
            await transport.aclose()
        echoed = [packet.data for packet in packets if "ECHOED" in str(packet.data)]
        assert echoed == [f'2["ECHOED",{number}]' for number in range(30)]
        for use in (transport.receive, lambda: transport.send([Packet(PacketType.NOOP)])):
            with pytest.raises(anyio.ClosedResourceError):
                await use()
        await transport.aclose()


async def test_a_post_that_is_cancelled_costs_the_session() -> None:
    """Nobody can know whether it has arrived."""

    async def respond(wire: Wire, scope: Scope, send: Any) -> None:
        if "sid" not in wire.requests[-1][1]:
            await answer(send, (OPEN % (25000, 20000, "")).encode())
        else:
            await anyio.sleep_forever()

    wire = Wire(respond)
    async with serving_wire(wire) as url, httpx.AsyncClient() as http, anyio.create_task_group() as tg:
        transport = await connect_polling(http, f"{url}/?EIO=4", eio=4, settings=Settings(), task_group=tg)
        await transport.receive()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as racing:
                racing.start_soon(transport.send, [Packet(PacketType.MESSAGE, "2")])
                await until(lambda: wire.bodies)
                scope.cancel()
        for use in (transport.receive, lambda: transport.send([Packet(PacketType.NOOP)])):
            with pytest.raises(ConnectionLost, match="cut off"):
                await use()
        with anyio.fail_after(PATIENCE):
            await transport.aclose()


async def test_a_post_that_is_cancelled_in_its_body_leaves_nothing_half_done() -> None:
    """Trio warns of asynchronous generators that are collected halfway, as that of httpx's own bodies would be."""
    packet = (OPEN % (25000, 20000, "")).encode()
    taking = anyio.Event()

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            head = await stream.receive()
            if head.startswith(b"GET"):
                await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(packet), packet))
                head = await stream.receive()
            if head.startswith(b"POST"):
                taking.set()
                await anyio.sleep_forever()

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    url = f"http://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
    async with listener, httpx.AsyncClient() as http, anyio.create_task_group() as tg:
        tg.start_soon(listener.serve, serve)
        transport = await connect_polling(http, f"{url}/?EIO=4", eio=4, settings=Settings(), task_group=tg)
        await transport.receive()
        async with anyio.create_task_group() as posting:
            posting.start_soon(transport.send, [Packet(PacketType.MESSAGE, b"x" * 30_000_000)])
            with anyio.fail_after(PATIENCE):
                await taking.wait()
            posting.cancel_scope.cancel()
        gc.collect()
        with anyio.fail_after(PATIENCE):
            await transport.aclose()
        tg.cancel_scope.cancel()


class ClosedAtOnce(httpx.AsyncBaseTransport):
    """What AnyIO's sockets do on uvloop where the peer has closed one as it was opened."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise AttributeError("'NoneType' object has no attribute 'getpeername'")


@pytest.mark.parametrize("transport", ["polling", "websocket"])
async def test_a_connection_that_is_closed_as_it_is_opened(transport: Any) -> None:
    async with (
        httpx.AsyncClient(transport=ClosedAtOnce()) as http,
        open_client("http://server", http=http, transport=transport) as client,
    ):
        with pytest.raises(HandshakeError, match="closed as it was opened"):
            await client.connect("ECHO")
