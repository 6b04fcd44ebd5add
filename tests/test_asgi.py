"""The ASGI front door: against an ASGI server that the tests play, and a stand-in for the server behind it."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Literal, cast

import anyio
import pytest
from anyio import wait_all_tasks_blocked

from brightsocket_anyio.api import Brightsocket
from brightsocket_anyio.asgi import FrontDoor, Lifespan, LifespanError
from brightsocket_anyio.errors import ConfigurationError, ConnectionLost
from brightsocket_anyio.protocol.engineio import Packet, PacketType
from brightsocket_anyio.protocol.handshake import RequestError
from brightsocket_anyio.request import read_request
from brightsocket_anyio.server import Admission, Server
from brightsocket_anyio.settings import Settings
from brightsocket_anyio.statistics import Statistics
from brightsocket_anyio.transport import ASGIApp, Transport, WebSocketRequest
from brightsocket_anyio.transports.polling import PollingTransport

HELLO = Packet(PacketType.MESSAGE, "hello")
POLLING = b"EIO=4&transport=polling"


class StubSession:
    def __init__(self, transport: Transport, eio: Literal[3, 4]) -> None:
        self.transport = transport
        self.eio = eio


class StubServer:
    """What the front door asks of a server."""

    def __init__(self) -> None:
        self.sessions: dict[str, StubSession] = {}
        self.requests: list[WebSocketRequest] = []
        self.statistics = Statistics()
        self.stopping = False

    async def admit(self, scope: Any, wait_gone: Any) -> Admission:
        if self.stopping:
            raise RequestError(503, None, "Server shutting down")
        return Admission(read_request(scope, Settings()), "", [])

    find: Any = Server.find

    def open(self, transport: Transport, eio: Literal[3, 4], admission: Admission) -> StubSession:
        session = self.sessions[f"sid{len(self.sessions)}"] = StubSession(transport, eio)
        return session

    async def handle_websocket(self, request: WebSocketRequest) -> None:
        self.requests.append(request)

    @property
    def polling(self) -> PollingTransport:
        (session,) = self.sessions.values()
        assert isinstance(session.transport, PollingTransport)
        return session.transport


class Exchange:
    """One HTTP request and its answer, as an ASGI server carries them."""

    def __init__(self, scope: dict[str, Any], body: Iterable[bytes] = (b"",)) -> None:
        self.scope = scope
        chunks = list(body)
        self.messages = deque[dict[str, Any]](
            {"type": "http.request", "body": chunk, "more_body": more} for more, chunk in _with_more(chunks)
        )
        self.more = anyio.Event()
        self.sent: list[dict[str, Any]] = []
        self.done = anyio.Event()

    async def receive(self) -> Any:
        while not self.messages:
            await self.more.wait()
        return self.messages.popleft()

    async def send(self, message: Any) -> None:
        await anyio.lowlevel.checkpoint()
        self.sent.append(message)
        if message["type"] == "http.response.body":
            # as servers do
            self.disconnect()

    def disconnect(self) -> None:
        self.messages.append({"type": "http.disconnect"})
        self.more.set()

    async def run(self, app: ASGIApp) -> None:
        await app(self.scope, self.receive, self.send)
        self.done.set()

    @property
    def status(self) -> int:
        return cast("int", self.sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])

    def check(self, status: int, code: int | None, message: str) -> None:
        assert self.status == status
        assert self.headers["content-type"] == "application/json"
        assert json.loads(self.body) == ({} if code is None else {"code": code}) | {"message": message}


def _with_more(chunks: list[bytes]) -> Iterable[tuple[bool, bytes]]:
    return ((index < len(chunks), chunk) for index, chunk in enumerate(chunks, 1))


class Door:
    """A front door, and its server."""

    def __init__(self, app: ASGIApp | None = None, *, runs: bool = True, **settings: Any) -> None:
        self.server = StubServer()
        self.events: list[str] = []
        self.error: Exception | None = None
        self.door = FrontDoor(
            Settings(**settings), app, lambda: cast("Server", self.server) if runs else None, self.running
        )

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        if self.error is not None:
            raise self.error
        self.events.append("running")
        try:
            yield
        finally:
            self.events.append("drained")

    def scope(self, query: bytes, method: str, path: str, root_path: str, headers: dict[str, str]) -> dict[str, Any]:
        return {
            "type": "http",
            "method": method,
            "path": path,
            "root_path": root_path,
            "query_string": query,
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
        }

    async def ask(
        self,
        query: bytes = b"",
        method: str = "GET",
        path: str = "/socket.io/",
        *,
        root_path: str = "",
        body: Iterable[bytes] = (b"",),
        **headers: str,
    ) -> Exchange:
        exchange = Exchange(self.scope(query, method, path, root_path, headers), body)
        await exchange.run(self.door)
        return exchange

    async def begin(self, tg: anyio.abc.TaskGroup, query: bytes, *, method: str = "GET", **more: Any) -> Exchange:
        """Begin a request and let it come to where it waits."""
        exchange = Exchange(self.scope(query, method, "/socket.io/", "", {}), **more)
        tg.start_soon(exchange.run, self.door)
        await wait_all_tasks_blocked()
        return exchange

    def add(self, eio: Literal[3, 4] = 4) -> PollingTransport:
        transport = PollingTransport(eio, Settings())
        self.server.sessions["S"] = StubSession(transport, eio)
        return transport


class TestPolling:
    async def test_a_new_session(self) -> None:
        door = Door()
        async with anyio.create_task_group() as tg:
            get = await door.begin(tg, POLLING)
            await door.server.polling.send([Packet(PacketType.OPEN, "{}")])
        assert (get.status, get.body) == (200, b"0{}")
        assert get.headers == {
            "content-type": "text/plain; charset=UTF-8",
            "content-length": "3",
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
            "vary": "Origin",
        }

    async def test_engine_io_3_without_binary(self) -> None:
        door = Door()
        async with anyio.create_task_group() as tg:
            get = await door.begin(tg, b"EIO=3&transport=polling&b64=1")
            await door.server.polling.send([Packet(PacketType.MESSAGE, b"\x00\xff")])
        assert get.body == b"6:b4AP8="

    async def test_get_and_post(self) -> None:
        door = Door()
        transport = door.add()
        async with anyio.create_task_group() as tg:
            get = await door.begin(tg, POLLING + b"&sid=S")
            post = await door.begin(tg, POLLING + b"&sid=S", method="POST", body=[b"4he", b"", b"llo"])
            assert not post.sent
            assert await transport.receive() == [HELLO]
            await post.done.wait()
            assert not get.sent
            await transport.send([HELLO])
        assert (post.status, post.body) == (200, b"ok")
        assert (get.status, get.body) == (200, b"4hello")

    async def test_a_client_that_vanishes_while_it_polls(self) -> None:
        door = Door()
        transport = door.add()
        async with anyio.create_task_group() as tg:
            get = await door.begin(tg, POLLING + b"&sid=S")
            get.disconnect()
            await get.done.wait()
            assert not get.sent
            with pytest.raises(ConnectionLost, match="a GET was cut off"):
                await transport.receive()

    async def test_a_client_that_vanishes_just_when_it_gets_its_answer(self) -> None:
        door = Door()
        transport = door.add()
        async with anyio.create_task_group() as tg:
            get = await door.begin(tg, POLLING + b"&sid=S")
            get.disconnect()
            await transport.send([HELLO])
            await get.done.wait()
            assert not get.sent
            with pytest.raises(ConnectionLost, match="a GET was cut off"):
                await transport.receive()

    async def test_a_client_that_vanishes_while_it_posts(self) -> None:
        door = Door()
        door.add()
        exchange = Exchange(door.scope(POLLING + b"&sid=S", "POST", "/socket.io/", "", {}), [])
        exchange.messages.append({"type": "http.request", "body": b"4he", "more_body": True})
        exchange.disconnect()
        await exchange.run(door.door)
        assert not exchange.sent

    @pytest.mark.parametrize(
        ("query", "method", "code"),
        [
            (b"", "GET", 0),
            (b"transport=__proto__", "GET", 0),
            (b"EIO=5&transport=polling", "GET", 5),
            (b"EIO=4&transport=websocket", "GET", 3),
            (POLLING + b"&sid=unknown", "GET", 1),
            (POLLING + b"&sid=unknown", "POST", 1),
            (POLLING + b"&sid=__proto__", "GET", 1),
            (POLLING + b"&sid=", "GET", 1),
            (POLLING, "POST", 2),
            (POLLING, "PUT", 2),
            (POLLING, "OPTIONS", 2),
            (POLLING + b"&sid=S", "DELETE", 2),
            (b"EIO=3&transport=polling&sid=S", "GET", 3),
            (b"EIO=3&transport=polling&sid=S", "POST", 3),
        ],
    )
    async def test_bad_requests(self, query: bytes, method: str, code: int) -> None:
        door = Door()
        door.add()
        messages = {
            0: "Transport unknown",
            1: "Session ID unknown",
            2: "Bad handshake method",
            3: "Bad request",
            5: "Unsupported protocol version",
        }
        (await door.ask(query, method)).check(400, code, messages[code])

    async def test_head(self) -> None:
        exchange = await Door().ask(POLLING, "HEAD")
        assert (exchange.status, exchange.body) == (400, b"")
        assert exchange.headers["content-length"] == str(len(b'{"code":2,"message":"Bad handshake method"}'))

    async def test_a_poll_after_the_upgrade(self) -> None:
        door = Door()
        door.server.sessions["S"] = StubSession(cast("Transport", object()), 4)
        for method in ("GET", "POST"):
            (await door.ask(POLLING + b"&sid=S", method)).check(400, 3, "Bad request")

    async def test_a_second_get(self) -> None:
        door = Door()
        door.add()
        async with anyio.create_task_group() as tg:
            first = await door.begin(tg, POLLING + b"&sid=S")
            (await door.ask(POLLING + b"&sid=S")).check(400, 3, "Bad request")
        assert (first.status, first.body) == (200, b"1")

    async def test_an_invalid_payload(self) -> None:
        door = Door()
        door.add()
        (await door.ask(POLLING + b"&sid=S", "POST", body=[b"nonsense"])).check(400, 3, "Bad request")

    async def test_a_binary_payload_in_engine_io_4(self) -> None:
        door = Door()
        door.add()
        exchange = await door.ask(POLLING + b"&sid=S", "POST", body=[b"4a"], content_type="application/octet-stream")
        exchange.check(400, 3, "Bad request")

    async def test_draining(self) -> None:
        door = Door()
        door.server.stopping = True
        (await door.ask(POLLING)).check(503, None, "Server shutting down")


class TestBodies:
    @pytest.mark.parametrize("length", ["11", "9" * 21, "9" * 5000])
    async def test_too_long_as_it_says(self, length: str) -> None:
        door = Door(max_payload=10)
        door.add()
        exchange = await door.ask(POLLING + b"&sid=S", "POST", content_length=length)
        exchange.check(413, None, "Payload too large")

    @pytest.mark.parametrize("headers", [{}, {"content_length": "3"}, {"content_length": "x"}, {"content_length": "²"}])
    async def test_too_long_while_it_is_read(self, headers: dict[str, str]) -> None:
        door = Door(max_payload=10)
        door.add()
        exchange = await door.ask(POLLING + b"&sid=S", "POST", body=[b"4hello", b"world", b"unread"], **headers)
        exchange.check(413, None, "Payload too large")
        assert exchange.messages[0]["body"] == b"unread"

    async def test_as_long_as_it_may_be(self) -> None:
        door = Door(max_payload=10)
        transport = door.add()
        async with anyio.create_task_group() as tg:
            post = await door.begin(tg, POLLING + b"&sid=S", method="POST", body=[b"4hello", b"1234"])
            assert await transport.receive() == [Packet(PacketType.MESSAGE, "hello1234")]
        assert post.status == 200

    @pytest.mark.mock_clock
    async def test_too_slow(self) -> None:
        door = Door(body_timeout=7)
        door.add()
        exchange = Exchange(door.scope(POLLING + b"&sid=S", "POST", "/socket.io/", "", {}), [])
        start = anyio.current_time()
        await exchange.run(door.door)
        exchange.check(408, None, "Request timeout")
        assert anyio.current_time() - start == pytest.approx(7)


class TestOrigins:
    async def test_a_foreign_page(self) -> None:
        exchange = await Door().ask(POLLING, origin="https://there.example", host="here.example")
        exchange.check(403, 4, "Forbidden")
        assert "access-control-allow-origin" not in exchange.headers

    async def test_an_allowed_page_may_read_errors(self) -> None:
        exchange = await Door(allowed_origins=["https://page.example"]).ask(origin="https://page.example")
        exchange.check(400, 0, "Transport unknown")
        assert exchange.headers["access-control-allow-origin"] == "https://page.example"

    async def test_preflight(self) -> None:
        exchange = await Door(allowed_origins=["https://page.example"], credentials=True).ask(
            POLLING,
            "OPTIONS",
            origin="https://page.example",
            access_control_request_method="POST",
            access_control_request_headers="x-mine",
        )
        assert (exchange.status, exchange.body) == (204, b"")
        assert exchange.headers == {
            "access-control-allow-methods": "GET, POST",
            "access-control-max-age": "600",
            "access-control-allow-headers": "x-mine",
            "vary": "Origin",
            "access-control-allow-origin": "https://page.example",
            "access-control-allow-credentials": "true",
        }

    async def test_preflight_of_a_foreign_page(self) -> None:
        exchange = await Door().ask(
            POLLING, "OPTIONS", origin="https://there.example", access_control_request_method="POST"
        )
        exchange.check(403, 4, "Forbidden")


class TestRouting:
    @pytest.mark.parametrize(
        ("path", "root_path", "settings"),
        [
            ("/socket.io/", "", {}),
            ("/socket.io", "", {}),
            ("/api/socket.io/", "/api", {}),
            ("/socket.io/", "/api", {}),
            ("/api/", "/api", {"path": "/"}),
            ("/api", "/api", {"path": "/"}),
            ("/mine/", "", {"path": "/mine/"}),
        ],
    )
    async def test_ours(self, path: str, root_path: str, settings: dict[str, Any]) -> None:
        exchange = await Door(_wrapped, **settings).ask(path=path, root_path=root_path)
        exchange.check(400, 0, "Transport unknown")

    @pytest.mark.parametrize(
        ("path", "root_path"),
        [("/", ""), ("/socket.io/x", ""), ("/socket.iox", ""), ("/socket.io//", ""), ("/apisocket.io/", "/api")],
    )
    async def test_not_ours(self, path: str, root_path: str) -> None:
        exchange = await Door().ask(path=path, root_path=root_path)
        exchange.check(404, None, "Not found")
        exchange = await Door(_wrapped).ask(path=path, root_path=root_path)
        assert (exchange.status, exchange.body) == (299, path.encode())

    async def test_an_unknown_kind_of_scope(self) -> None:
        with pytest.raises(NotImplementedError, match="grpc"):
            await Exchange({"type": "grpc"}).run(Door().door)
        exchange = Exchange({"type": "grpc", "path": "/"})
        await exchange.run(Door(_wrapped).door)
        assert exchange.status == 299


async def _wrapped(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 299, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


class WebSocketExchange:
    """A WebSocket handshake as an ASGI server carries it."""

    def __init__(self, path: str = "/socket.io/", **scope: Any) -> None:
        self.scope = {
            "type": "websocket",
            "path": path,
            "query_string": b"",
            "headers": [],
            "extensions": {"websocket.http.response": {}},
            **scope,
        }
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> Any:
        return {"type": "websocket.connect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def run(self, app: ASGIApp) -> None:
        await app(self.scope, self.receive, self.send)


class TestWebSockets:
    async def test_ours(self) -> None:
        door = Door(_wrapped)
        exchange = WebSocketExchange()
        await exchange.run(door.door)
        (request,) = door.server.requests
        assert request.scope is exchange.scope

    @pytest.mark.parametrize("query", [b"EIO=4&transport=websocket", b"EIO=5&transport=websocket"])
    async def test_one_whose_peer_is_gone_before_its_answer(self, query: bytes) -> None:
        """Neither the acceptance nor the refusal can be sent, and the application does not fail by it."""

        async def send(message: Any) -> None:
            raise OSError("gone")

        api = Brightsocket()
        exchange = WebSocketExchange(query_string=query)
        async with api.running():
            await api(exchange.scope, exchange.receive, send)

    async def test_the_wrapped_application_s(self) -> None:
        exchange = WebSocketExchange("/chat")
        await exchange.run(Door(_wrapped).door)
        assert exchange.sent[0]["status"] == 299

    async def test_nobody_s(self) -> None:
        exchange = WebSocketExchange("/chat")
        await exchange.run(Door().door)
        assert exchange.sent[0]["status"] == 404

    async def test_nobody_s_and_gone(self) -> None:
        async def receive() -> Any:
            return {"type": "websocket.disconnect"}

        exchange = WebSocketExchange("/chat")
        await Door().door(exchange.scope, receive, exchange.send)
        assert exchange.sent == []


class TestNotRunning:
    @pytest.mark.parametrize("more", [{}, {"app": object()}])
    async def test_a_websocket(self, more: dict[str, Any]) -> None:
        exchange = WebSocketExchange(**more)
        await exchange.run(Door(runs=False).door)
        assert exchange.sent[0]["status"] == 500
        assert b"async with api.running()" in exchange.sent[1]["body"]
        assert (b"--lifespan on" in exchange.sent[1]["body"]) is not bool(more)

    async def test_http(self) -> None:
        door = Door(_wrapped, runs=False)
        exchange = await door.ask(POLLING)
        assert exchange.status == 500
        assert "--lifespan on" in json.loads(exchange.body)["message"]
        assert (await door.ask(path="/")).status == 299


class Application:
    """A wrapped application, of which only the lifespan counts."""

    def __init__(self, events: list[str], *, fail: str = "", raise_: str = "", deaf: bool = False) -> None:
        self.events = events
        self.fail = fail
        self.raise_ = raise_
        self.deaf = deaf

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.deaf:
            if self.raise_:
                raise AssertionError("only http")
            return
        for phase in ("startup", "shutdown"):
            assert (await receive())["type"] == f"lifespan.{phase}"
            self.events.append(phase)
            scope["state"][phase] = True
            if self.fail == phase:
                await send({"type": f"lifespan.{phase}.failed", "message": f"no {phase}"})
            else:
                await send({"type": f"lifespan.{phase}.complete"})
            if self.raise_ == "service":
                await wait_all_tasks_blocked()
                raise LookupError("in service")
            if self.raise_ == phase:
                raise LookupError(f"in {phase}")
            if self.fail == phase:
                return


class Life:
    """An ASGI server's lifespan."""

    def __init__(self) -> None:
        self.scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        self.sent: list[dict[str, Any]] = []
        self.started = anyio.Event()
        self.stopping = anyio.Event()
        self._asked = False

    async def receive(self) -> Any:
        if not self._asked:
            self._asked = True
            return {"type": "lifespan.startup"}
        await self.stopping.wait()
        return {"type": "lifespan.shutdown"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        self.started.set()

    async def run(self, door: Door) -> None:
        """From startup to shutdown."""
        async with anyio.create_task_group() as tg:
            tg.start_soon(door.door, self.scope, self.receive, self.send)
            await self.started.wait()
            door.events.append("served")
            self.stopping.set()

    @property
    def types(self) -> list[str]:
        return [message["type"].removeprefix("lifespan.") for message in self.sent]


class TestLifespan:
    async def test_alone(self) -> None:
        door, life = Door(), Life()
        await life.run(door)
        assert life.types == ["startup.complete", "shutdown.complete"]
        assert door.events == ["running", "served", "drained"]

    async def test_around_an_application(self) -> None:
        events: list[str] = []
        door, life = Door(Application(events)), Life()
        door.events = events
        await life.run(door)
        assert life.types == ["startup.complete", "shutdown.complete"]
        assert events == ["startup", "running", "served", "drained", "shutdown"]
        assert life.scope["state"] == {"startup": True, "shutdown": True}

    @pytest.mark.parametrize("raise_", ["", "at once"])
    async def test_around_an_application_without_one(self, raise_: str) -> None:
        door, life = Door(Application([], deaf=True, raise_=raise_)), Life()
        await life.run(door)
        assert life.types == ["startup.complete", "shutdown.complete"]
        assert door.events == ["running", "served", "drained"]

    @pytest.mark.parametrize("raise_", ["", "startup"])
    async def test_the_application_cannot_start(self, raise_: str) -> None:
        door, life = Door(Application([], fail="startup", raise_=raise_)), Life()
        with pytest.raises(LifespanError, match="no startup") as caught:
            await door.door(life.scope, life.receive, life.send)
        assert life.sent == [{"type": "lifespan.startup.failed", "message": "no startup"}]
        assert isinstance(caught.value.__cause__, LookupError) is bool(raise_)
        assert door.events == []

    async def test_we_cannot_start(self) -> None:
        events: list[str] = []
        door, life = Door(Application(events)), Life()
        door.error = ConfigurationError("channel X is defined twice")
        with pytest.raises(ConfigurationError):
            await door.door(life.scope, life.receive, life.send)
        assert life.types == ["startup.failed"]
        assert "channel X is defined twice" in life.sent[0]["message"]
        assert events == ["startup", "shutdown"]

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"fail": "shutdown"}, LifespanError),
            ({"raise_": "shutdown"}, LookupError),
            ({"raise_": "service"}, LookupError),
        ],
    )
    async def test_the_application_fails_later(self, options: dict[str, Any], error: type[Exception]) -> None:
        door, life = Door(Application([], **options)), Life()
        life.stopping.set()
        with pytest.raises(error):
            await door.door(life.scope, life.receive, life.send)
        assert life.types == ["startup.complete", "shutdown.failed"]
        assert door.events == ["running", "drained"]

    async def test_an_application_that_speaks_nonsense(self) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start"})

        door, life = Door(app), Life()
        await life.run(door)
        assert life.types == ["startup.complete", "shutdown.complete"]

    async def test_cancelled_it_still_ends_the_application(self) -> None:
        events: list[str] = []
        door, life = Door(Application(events)), Life()
        async with anyio.create_task_group() as tg:
            tg.start_soon(door.door, life.scope, life.receive, life.send)
            await life.started.wait()
            tg.cancel_scope.cancel()
        assert events == ["startup", "shutdown"]

    @pytest.mark.mock_clock
    async def test_cancelled_it_does_not_wait_for_ever(self) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await anyio.sleep_forever()

        start = anyio.current_time()
        with anyio.CancelScope() as scope:
            async with Lifespan(app, Settings(grace=2, close_timeout=5)) as lifespan:
                assert lifespan.state == {}
                scope.cancel()
        assert anyio.current_time() - start == pytest.approx(7)

    async def test_cancelled_while_the_application_starts(self) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            assert (await receive())["type"] == "lifespan.startup"
            await receive()
            events.append("shutdown")

        events: list[str] = []
        door, life = Door(app), Life()
        async with anyio.create_task_group() as tg:
            tg.start_soon(door.door, life.scope, life.receive, life.send)
            await wait_all_tasks_blocked()
            tg.cancel_scope.cancel()
        assert events == ["shutdown"]
        assert life.sent == []

    async def test_an_error_inside_comes_out_as_itself(self) -> None:
        events: list[str] = []
        with pytest.raises(KeyError):
            async with Lifespan(Application(events), Settings()):
                raise KeyError("x")
        assert events == ["startup", "shutdown"]
