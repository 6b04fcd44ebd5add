"""WebSocket over ASGI: the transport and the request against an ASGI server that the tests play."""

from __future__ import annotations

from collections import deque
from copy import copy
from typing import Any, Literal

import anyio
import pytest
from anyio import wait_all_tasks_blocked

from brightsocket_anyio.errors import ConnectionLost, ProtocolError
from brightsocket_anyio.protocol.engineio import Packet, PacketType
from brightsocket_anyio.settings import Settings
from brightsocket_anyio.transports.asgi import ASGIWebSocketRequest, ASGIWebSocketTransport
from tests.support import PATIENCE

HELLO = Packet(PacketType.MESSAGE, "hello")
BYTES = Packet(PacketType.MESSAGE, b"\x00\xff")


class ServersOwnError(Exception):
    """Such as hypercorn's UnexpectedMessageError, which has no base in common with anyone else's."""


class FakeServer:
    """An ASGI server's two callables."""

    def __init__(self, *messages: Any) -> None:
        self.messages = deque[dict[str, Any] | Exception](messages)
        self.sent: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self.writable = anyio.Event()
        self.writable.set()

    async def receive(self) -> Any:
        await anyio.lowlevel.checkpoint()
        if not self.messages:
            await anyio.sleep_forever()
        message = self.messages.popleft()
        if isinstance(message, Exception):
            raise message
        return message

    async def send(self, message: Any) -> None:
        await self.writable.wait()
        await anyio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        self.sent.append(message)

    def transport(self, eio: Literal[3, 4] = 4, **settings: Any) -> ASGIWebSocketTransport:
        return ASGIWebSocketTransport(self.receive, self.send, eio, Settings(**settings))

    def request(self, extensions: dict[str, Any] | None = None) -> ASGIWebSocketRequest:
        scope = {"type": "websocket", "extensions": extensions}
        return ASGIWebSocketRequest(scope, self.receive, self.send, Settings())


def text(content: str) -> dict[str, Any]:
    return {"type": "websocket.receive", "text": content}


def binary(content: bytes) -> dict[str, Any]:
    return {"type": "websocket.receive", "bytes": content, "text": None}


def disconnect(**fields: Any) -> dict[str, Any]:
    return {"type": "websocket.disconnect", **fields}


CONNECT = {"type": "websocket.connect"}
ERRORS = [OSError("gone"), RuntimeError("Unexpected ASGI message"), ServersOwnError("closed")]


class TestTransport:
    @pytest.mark.parametrize(("eio", "bytes_"), [(3, b"\x04\x00\xff"), (4, b"\x00\xff")])
    async def test_packets(self, eio: Literal[3, 4], bytes_: bytes) -> None:
        server = FakeServer(text("4hello"), binary(bytes_), text("2"))
        transport = server.transport(eio)
        assert transport.name == "websocket"
        assert [await transport.receive() for _ in range(3)] == [[HELLO], [BYTES], [Packet(PacketType.PING)]]
        await transport.send([HELLO, BYTES])
        await transport.send([HELLO])
        assert server.sent == [
            {"type": "websocket.send", "text": "4hello"},
            {"type": "websocket.send", "bytes": bytes_},
            {"type": "websocket.send", "text": "4hello"},
        ]

    async def test_a_packet_is_encoded_once(self) -> None:
        one, other = FakeServer(), FakeServer()
        hello = Packet(PacketType.MESSAGE, "hello")
        hello.share()
        await one.transport().send([hello])
        await other.transport().send([hello])
        assert one.sent[0]["text"] is other.sent[0]["text"]

    @pytest.mark.parametrize(
        "message", [text("4" + "a" * 10), text("4" + "ä" * 5), text("4" + "😀" * 3), binary(bytes(11))]
    )
    async def test_a_message_that_is_too_big(self, message: dict[str, Any]) -> None:
        server = FakeServer(message)
        transport = server.transport(max_payload=10)
        for _ in range(2):
            with pytest.raises(ProtocolError, match="too big"):
                await transport.receive()
        await transport.send([HELLO])
        await transport.aclose(1002, "parse error")
        assert server.sent[1] == {"type": "websocket.close", "code": 1009, "reason": "message too big"}

    @pytest.mark.parametrize("message", [text("4" + "a" * 9), text("4" + "ä" * 4), binary(bytes(10))])
    async def test_a_message_as_big_as_it_may_be(self, message: dict[str, Any]) -> None:
        await FakeServer(message).transport(max_payload=10).receive()

    @pytest.mark.parametrize("content", ["", "x", "9"])
    async def test_a_message_that_is_no_packet(self, content: str) -> None:
        server = FakeServer(text(content))
        transport = server.transport()
        with pytest.raises(ProtocolError):
            await transport.receive()
        await transport.aclose(1002, "parse error")
        assert server.sent == [{"type": "websocket.close", "code": 1002, "reason": "parse error"}]

    @pytest.mark.parametrize(
        "fields", [{}, {"code": 1000}, {"code": 1001, "reason": "bye"}, {"code": 1005, "reason": None}]
    )
    async def test_the_peer_closes(self, fields: dict[str, Any]) -> None:
        server = FakeServer(disconnect(**fields))
        transport = server.transport()
        for _ in range(2):
            with pytest.raises(anyio.EndOfStream):
                await transport.receive()
        with pytest.raises(ConnectionLost) as caught:
            await transport.send([HELLO])
        assert caught.value.code == "transport close"
        await transport.aclose()
        assert server.sent == []

    async def test_the_peer_vanishes(self) -> None:
        server = FakeServer(disconnect(code=1006))
        transport = server.transport()
        for operation in (transport.receive, lambda: transport.send([HELLO])):
            with pytest.raises(ConnectionLost) as caught:
                await operation()
            assert caught.value.code == "transport close"

    @pytest.mark.parametrize("error", ERRORS)
    async def test_a_send_that_fails(self, error: Exception) -> None:
        server = FakeServer()
        # one of its own, whose traceback ends with the test
        server.error = copy(error)
        transport = server.transport()
        for operation in (lambda: transport.send([HELLO]), lambda: transport.send([HELLO]), transport.receive):
            with pytest.raises(ConnectionLost, match=str(error)) as caught:
                await operation()
            assert caught.value.code == "transport error"
        await transport.aclose()

    async def test_a_receive_that_fails(self) -> None:
        server = FakeServer()
        server.messages.append(RuntimeError("after disconnect"))
        transport = server.transport()
        with pytest.raises(ConnectionLost, match="after disconnect"):
            await transport.receive()

    @pytest.mark.mock_clock
    async def test_a_peer_that_takes_nothing(self) -> None:
        server = FakeServer()
        server.writable = anyio.Event()
        transport = server.transport(stall_timeout=7, close_timeout=3)
        start = anyio.current_time()
        with pytest.raises(ConnectionLost, match="no bytes for 7 seconds") as caught:
            await transport.send([HELLO])
        assert caught.value.code == "stalled"
        assert anyio.current_time() - start == pytest.approx(7)

    async def test_a_cancelled_send_leaves_it_for_closing_only(self) -> None:
        server = FakeServer()
        server.writable = anyio.Event()
        transport = server.transport()
        async with anyio.create_task_group() as tg:
            tg.start_soon(transport.send, [HELLO])
            await wait_all_tasks_blocked()
            tg.cancel_scope.cancel()
        with pytest.raises(ConnectionLost):
            await transport.send([HELLO])
        await transport.aclose()

    async def test_sends_do_not_mix(self) -> None:
        server = FakeServer()
        server.writable = anyio.Event()
        transport = server.transport()
        async with anyio.create_task_group() as tg:
            tg.start_soon(transport.send, [HELLO, HELLO])
            await wait_all_tasks_blocked()
            tg.start_soon(transport.send, [BYTES])
            await wait_all_tasks_blocked()
            server.writable.set()
        assert ["text" in message for message in server.sent] == [True, True, False]

    async def test_a_cancelled_receive_loses_nothing(self) -> None:
        server = FakeServer()
        transport = server.transport()
        with anyio.move_on_after(0):
            await transport.receive()
        server.messages.append(text("4hello"))
        assert await transport.receive() == [HELLO]

    async def test_close(self) -> None:
        server = FakeServer(text("4hello"))
        transport = server.transport()
        await transport.aclose(1001, "ä" * 100)
        await transport.aclose()
        assert server.sent == [{"type": "websocket.close", "code": 1001, "reason": "ä" * 61}]
        for operation in (transport.receive, lambda: transport.send([HELLO])):
            with pytest.raises(anyio.ClosedResourceError):
                await operation()

    async def test_close_while_receiving(self) -> None:
        server = FakeServer()
        closed = anyio.Event()

        async def receive() -> Any:
            await closed.wait()
            return disconnect(code=1000)

        transport = ASGIWebSocketTransport(receive, server.send, 4, Settings())

        async def read() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await transport.receive()

        async with anyio.create_task_group() as tg:
            tg.start_soon(read)
            await wait_all_tasks_blocked()
            await transport.aclose()
            closed.set()

    @pytest.mark.parametrize("error", ERRORS)
    async def test_close_when_the_server_has_closed_it(self, error: Exception) -> None:
        server = FakeServer()
        # one of its own, whose traceback ends with the test
        server.error = copy(error)
        await server.transport().aclose()

    @pytest.mark.mock_clock
    async def test_close_is_bounded(self) -> None:
        server = FakeServer()
        server.writable = anyio.Event()
        start = anyio.current_time()
        await server.transport(close_timeout=3).aclose()
        assert anyio.current_time() - start == pytest.approx(3)


class TestRequest:
    async def test_accept(self) -> None:
        server = FakeServer(CONNECT, text("4hello"))
        request = server.request()
        assert request.scope["type"] == "websocket"
        transport = await request.accept(4)
        assert server.sent == [{"type": "websocket.accept"}]
        assert await transport.receive() == [HELLO]

    async def test_reject(self) -> None:
        server = FakeServer(CONNECT)
        await server.request({"websocket.http.response": {}}).reject(400, b"{}")
        assert server.sent == [
            {
                "type": "websocket.http.response.start",
                "status": 400,
                "headers": [(b"content-type", b"application/json"), (b"content-length", b"2")],
            },
            {"type": "websocket.http.response.body", "body": b"{}"},
        ]

    async def test_what_the_answers_carry(self) -> None:
        server, other = FakeServer(CONNECT), FakeServer(CONNECT)
        await server.request().accept(4, [(b"set-cookie", b"a=1")], "chat")
        assert server.sent == [
            {"type": "websocket.accept", "headers": [(b"set-cookie", b"a=1")], "subprotocol": "chat"}
        ]
        await other.request({"websocket.http.response": {}}).reject(403, b"{}", [(b"x-hint", b"ask")])
        assert other.sent[0]["headers"][-1] == (b"x-hint", b"ask")

    @pytest.mark.parametrize("messages", [[disconnect(code=1006)], [CONNECT, disconnect(code=1006)]])
    async def test_the_peer_goes_away_before_it_is_answered(self, messages: list[Any]) -> None:
        with anyio.fail_after(PATIENCE):
            await FakeServer(*messages).request().wait_gone()

    @pytest.mark.parametrize("messages", [[CONNECT], [CONNECT, RuntimeError("accept it first")]])
    async def test_nobody_knows_whether_the_peer_is_gone(self, messages: list[Any]) -> None:
        server = FakeServer(*messages)
        request = server.request()
        async with anyio.create_task_group() as tg:
            tg.start_soon(request.wait_gone)
            await wait_all_tasks_blocked()
            tg.cancel_scope.cancel()
        assert tg.cancel_scope.cancelled_caught
        server.messages.append(text("4hello"))
        assert await (await request.accept(4)).receive() == [HELLO]

    @pytest.mark.parametrize("extensions", [None, {}])
    async def test_reject_where_the_server_can_only_close(self, extensions: dict[str, Any] | None) -> None:
        server = FakeServer(CONNECT)
        await server.request(extensions).reject(400, b"{}")
        assert server.sent == [{"type": "websocket.close"}]

    @pytest.mark.parametrize("method", ["accept", "reject"])
    async def test_the_peer_is_gone(self, method: str) -> None:
        server = FakeServer(disconnect(code=1006))
        request = server.request()
        with pytest.raises(ConnectionLost):
            await (request.accept(4) if method == "accept" else request.reject(400, b""))
        assert server.sent == []

    @pytest.mark.parametrize("method", ["accept", "reject"])
    async def test_the_server_fails(self, method: str) -> None:
        server = FakeServer(CONNECT)
        server.error = OSError("gone")
        request = server.request()
        with pytest.raises(ConnectionLost, match="gone"):
            await (request.accept(4) if method == "accept" else request.reject(400, b""))
