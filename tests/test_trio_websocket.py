"""The transport over trio-websocket, both of its sides, over linked streams and over real sockets."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

import anyio
import pytest
import trio
import trio.testing
import trio_websocket
import trustme

from brightsocket_anyio.errors import ConnectionLost, ProtocolError
from brightsocket_anyio.protocol.engineio import Packet, PacketType
from brightsocket_anyio.settings import Settings
from brightsocket_anyio.transports.trio_websocket import TrioWebSocketRequest, TrioWebSocketTransport

on_trio = pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)
SETTINGS = Settings()
PACKETS = [
    Packet(PacketType.PING, "probe"),
    Packet(PacketType.MESSAGE, "grün"),
    Packet(PacketType.MESSAGE, b"\x00\x01"),
    Packet(PacketType.NOOP),
]

Handle = Callable[[TrioWebSocketRequest], Awaitable[None]]


@asynccontextmanager
async def both(
    eio: Literal[3, 4] = 4, settings: Settings = SETTINGS, *, lockstep: bool = False
) -> AsyncIterator[tuple[TrioWebSocketTransport, TrioWebSocketTransport]]:
    """A server's and a client's transport, linked; at the end what is left of them is cancelled."""
    make = trio.testing.lockstep_stream_pair if lockstep else trio.testing.memory_stream_pair
    here, there = make()
    async with trio.open_nursery() as nursery:
        connections: list[trio_websocket.WebSocketConnection] = []

        async def accept() -> None:
            request = await trio_websocket.wrap_server_stream(nursery, here)
            connections.append(await request.accept())

        async with trio.open_nursery() as handshake:
            handshake.start_soon(accept)
            stream: Any = there  # declared too narrowly there
            client = await trio_websocket.wrap_client_stream(nursery, stream, "x", "/")
        (server,) = connections
        yield TrioWebSocketTransport(server, eio, settings), TrioWebSocketTransport(client, eio, settings)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def serving(handle: Handle, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    async def serve(request: trio_websocket.WebSocketRequest) -> None:
        await handle(TrioWebSocketRequest(request, SETTINGS))

    async with trio.open_nursery() as nursery:
        server = await nursery.start(trio_websocket.serve_websocket, serve, "127.0.0.1", 0, tls)
        yield f"{'ws' if tls is None else 'wss'}://127.0.0.1:{server.port}/socket.io/?EIO=4&x=%20"
        nursery.cancel_scope.cancel()


async def echo(request: TrioWebSocketRequest) -> None:
    transport = await request.accept(4)
    try:
        while True:
            await transport.send(await transport.receive())
    except (anyio.EndOfStream, ConnectionLost):
        await transport.aclose()


@on_trio
@pytest.mark.parametrize("eio", [3, 4])
async def test_packets_both_ways(eio: Literal[3, 4]) -> None:
    async with both(eio) as (server, client):
        assert server.name == client.name == "websocket"
        for sender, receiver in (server, client), (client, server):
            await sender.send(PACKETS)
            received: list[Packet] = []
            while len(received) < len(PACKETS):
                received += await receiver.receive()
            assert received == PACKETS


@on_trio
async def test_closing() -> None:
    async with both() as (server, client):
        async with anyio.create_task_group() as tg:
            tg.start_soon(server.aclose, 4000, "gone " * 100)
            with pytest.raises(anyio.EndOfStream, match="4000 gone"):
                await client.receive()
        with pytest.raises(ConnectionLost):
            await client.send(PACKETS)
        await client.aclose()
        for transport in server, client:
            await transport.aclose()
            with pytest.raises(anyio.ClosedResourceError):
                await transport.receive()
            with pytest.raises(anyio.ClosedResourceError):
                await transport.send(PACKETS)


@on_trio
async def test_closing_beside_a_receiver_and_a_sender() -> None:
    async with both(lockstep=True) as (server, _), anyio.create_task_group() as tg:

        async def receive() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await server.receive()

        async def send() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await server.send([Packet(PacketType.MESSAGE, "x" * 100_000)] * 10)

        tg.start_soon(receive)
        tg.start_soon(send)
        await anyio.wait_all_tasks_blocked()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await server.aclose()


@pytest.mark.mock_clock
async def test_a_peer_that_takes_nothing() -> None:
    async with both(settings=Settings(stall_timeout=7, close_timeout=3), lockstep=True) as (server, client):
        client._connection._reader_running = False  # the peer's program hangs
        start = anyio.current_time()
        with pytest.raises(ConnectionLost) as caught:
            await server.send(PACKETS * 1000)
        assert caught.value.code == "stalled"
        assert anyio.current_time() - start == 7
        with pytest.raises(ConnectionLost):
            await server.send(PACKETS)
        await server.aclose()
        assert anyio.current_time() - start == 7


@pytest.mark.mock_clock
async def test_a_peer_that_takes_no_part_in_closing() -> None:
    async with both(settings=Settings(close_timeout=3)) as (server, client):
        client._connection._reader_running = False
        await server.send([PACKETS[0]])
        start = anyio.current_time()
        await server.aclose()
        assert anyio.current_time() - start in (0, 3)


@on_trio
async def test_a_send_that_is_cancelled() -> None:
    async with both(lockstep=True) as (server, _):
        async with anyio.create_task_group() as tg:
            tg.start_soon(server.send, PACKETS * 10)
            await anyio.wait_all_tasks_blocked()
            tg.cancel_scope.cancel()
        with pytest.raises(ConnectionLost, match="half way"):
            await server.send(PACKETS)
        await server.aclose()


@on_trio
async def test_a_send_that_is_cancelled_before_it_has_begun_has_sent_nothing() -> None:
    async with both() as (server, client):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await server.send(PACKETS)
        await server.send([PACKETS[1]])
        assert await client.receive() == [PACKETS[1]]


@on_trio
async def test_a_receive_that_is_cancelled_loses_nothing() -> None:
    async with both() as (server, client):
        async with anyio.create_task_group() as tg:
            tg.start_soon(server.receive)
            await anyio.wait_all_tasks_blocked()
            tg.cancel_scope.cancel()
        await client.send([PACKETS[1]])
        assert await server.receive() == [PACKETS[1]]


@on_trio
async def test_too_much_and_nonsense() -> None:
    async with both(settings=Settings(max_payload=10)) as (server, client), anyio.create_task_group() as tg:
        await client.send([Packet(PacketType.MESSAGE, "x" * 9)])
        assert await server.receive() == [Packet(PacketType.MESSAGE, "x" * 9)]
        await client.send([Packet(PacketType.MESSAGE, "ü" * 5)])
        for _ in range(2):
            with pytest.raises(ProtocolError, match="too big"):
                await server.receive()
        tg.start_soon(server.aclose)
        with pytest.raises(anyio.EndOfStream, match="1009"):
            await client.receive()
    async with both() as (server, client):
        await client._connection.send_message("nonsense")
        with pytest.raises(ProtocolError):
            await server.receive()


@on_trio
async def test_a_request_over_a_socket() -> None:
    scopes: list[dict[str, Any]] = []

    async def handle(request: TrioWebSocketRequest) -> None:
        scopes.append(dict(request.scope))
        await echo(request)

    async with (
        serving(handle) as url,
        trio_websocket.open_websocket_url(url, extra_headers=[(b"X-Own", b"1")]) as connection,
    ):
        transport = TrioWebSocketTransport(connection, 4, SETTINGS)
        await transport.send([PACKETS[1]])
        assert await transport.receive() == [PACKETS[1]]
        await transport.aclose()
    (scope,) = scopes
    assert scope["path"] == "/socket.io/"
    assert scope["query_string"] == b"EIO=4&x=%20"
    assert scope["scheme"] == "ws"
    assert scope["client"][0] == "127.0.0.1"
    assert f":{scope['server'][1]}/" in url
    assert (b"x-own", b"1") in scope["headers"]


@on_trio
async def test_a_request_over_tls() -> None:
    ca = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(tls)
    mine = ssl.create_default_context()
    ca.configure_trust(mine)
    seen: list[str] = []

    async def handle(request: TrioWebSocketRequest) -> None:
        seen.append(request.scope["scheme"])
        await echo(request)

    async with serving(handle, tls) as url, trio_websocket.open_websocket_url(url, mine) as connection:
        await connection.send_message("4x")
        assert await connection.get_message() == "4x"
    assert seen == ["wss"]


HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@on_trio
async def test_a_request_that_is_refused() -> None:
    here, there = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        await there.send_all(HANDSHAKE)
        request = TrioWebSocketRequest(await trio_websocket.wrap_server_stream(nursery, here), SETTINGS)
        await request.reject(403, b'{"code":4}')
        answer = b""
        while not answer.endswith(b'{"code":4}'):
            answer += await there.receive_some()
        assert answer.startswith(b"HTTP/1.1 403 ")
        nursery.cancel_scope.cancel()


@on_trio
async def test_a_peer_that_is_gone_in_the_handshake() -> None:
    for answer in "accept", "reject":
        here, there = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            await there.send_all(HANDSHAKE)
            request = TrioWebSocketRequest(await trio_websocket.wrap_server_stream(nursery, here), SETTINGS)
            assert request.scope["client"] is None
            await here.aclose()
            if answer == "accept":
                with pytest.raises(ConnectionLost):
                    await request.accept(4)
            else:
                await request.reject(400, b"{}")
            nursery.cancel_scope.cancel()


@pytest.mark.mock_clock
async def test_a_peer_that_does_not_take_the_handshake() -> None:
    here, there = trio.testing.lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(there.send_all, HANDSHAKE)
        request = TrioWebSocketRequest(await trio_websocket.wrap_server_stream(nursery, here), SETTINGS)
        with pytest.raises(ConnectionLost, match="stalled"):
            await request.accept(4)
        nursery.cancel_scope.cancel()


@on_trio
async def test_a_peer_that_vanishes() -> None:
    async with both() as (server, client):
        await client._connection._stream.aclose()
        with pytest.raises(ConnectionLost, match="transport close"):
            await server.receive()
        with pytest.raises(ConnectionLost, match="transport close"):
            await server.send(PACKETS)
        await server.aclose()
