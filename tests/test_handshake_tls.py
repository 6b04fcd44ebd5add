"""TLS with a certificate authority of one's own, on every road, and handshakes that fail."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import struct
from typing import Any

import anyio
import httpx
import pytest
import trustme
from anyio.streams.tls import TLSListener

from brightsocket_anyio import Brightsocket, Connection, HandshakeError, open_client
from tests.conftest import LOOPS
from tests.support import PATIENCE, serving, until

ROADS = [(loop, road) for loop in LOOPS for road in ("websocket", "polling", ("polling", "websocket"))]
ROADS.append(("trio", "trio-websocket"))

every_transport = pytest.mark.parametrize(("anyio_backend", "transport"), ROADS, indirect=["anyio_backend"], ids=str)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def echoing() -> tuple[Brightsocket, list[Connection]]:
    api = Brightsocket()
    inside: list[Connection] = []

    @api.connect("ECHO")
    async def echo(connection: Connection) -> None:
        inside.append(connection)

        @connection.on("ECHO")
        async def answer(value: Any) -> Any:
            return value

    return api, inside


@every_transport
async def test_a_private_authority(transport: Any, authority: trustme.CA, server_tls: ssl.SSLContext) -> None:
    api, inside = echoing()
    with anyio.fail_after(PATIENCE):
        async with serving(api, ssl_context=server_tls) as bound:
            assert bound.url.startswith("https://")
            url = f"https://localhost:{bound.port}"
            async with open_client(url, transport=transport, ssl_context=trusting(authority)) as client:
                connection = await client.connect("ECHO")
                if isinstance(transport, tuple):
                    await until(lambda: connection.transport == "websocket")
                big = "x" * 200_000
                assert await connection.call("ECHO", big) == big
    request = inside[0].request
    assert request is not None
    assert request.scope["scheme"] == ("https" if request.scope["type"] == "http" else "wss")


async def test_the_users_own_client(authority: trustme.CA, server_tls: ssl.SSLContext) -> None:
    api, _ = echoing()
    with anyio.fail_after(PATIENCE):
        async with serving(api, ssl_context=server_tls) as bound:
            http = httpx.AsyncClient(verify=trusting(authority))
            async with http, open_client(f"https://localhost:{bound.port}", http=http) as client:
                connection = await client.connect("ECHO")
                assert connection.transport == "websocket"
                assert await connection.call("ECHO", 1) == 1


@every_transport
async def test_another_authority(transport: Any, server_tls: ssl.SSLContext, caplog: pytest.LogCaptureFixture) -> None:
    api, inside = echoing()
    caplog.set_level(logging.INFO, "brightsocket_anyio")
    with anyio.fail_after(PATIENCE):
        async with serving(api, ssl_context=server_tls) as bound:
            async with open_client(f"https://localhost:{bound.port}", transport=transport) as client:
                with pytest.raises(HandshakeError, match=r"(?i)certificate.verify.failed") as caught:
                    await client.connect("ECHO")
            assert caught.value.status is None
            await until(lambda: "TLS handshake" in caplog.text)
    assert inside == []
    records = [record for record in caplog.records if "TLS handshake" in record.message]
    assert all(record.levelno == logging.INFO and record.exc_info is None for record in records)
    assert "127.0.0.1" in records[0].message
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_a_peer_that_speaks_no_tls(server_tls: ssl.SSLContext, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "brightsocket_anyio")
    with anyio.fail_after(PATIENCE):
        async with serving(Brightsocket(), ssl_context=server_tls) as bound:
            async with await anyio.connect_tcp("127.0.0.1", bound.port) as stream:
                await stream.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: "TLS handshake" in caplog.text)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_a_peer_that_is_gone_right_after_its_part_of_the_handshake(
    authority: trustme.CA, server_tls: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    """As those who only look whether somebody is there."""
    context = trusting(authority)
    caplog.set_level(logging.INFO, "brightsocket_anyio")
    with anyio.fail_after(PATIENCE):
        async with serving(Brightsocket(), ssl_context=server_tls) as bound:
            for _ in range(10):
                async with await anyio.connect_tcp("127.0.0.1", bound.port) as stream:
                    come, go = ssl.MemoryBIO(), ssl.MemoryBIO()
                    tls = context.wrap_bio(come, go, server_hostname="localhost")
                    with pytest.raises(ssl.SSLWantReadError):
                        tls.do_handshake()
                    await stream.send(go.read())
                    while True:
                        come.write(await stream.receive())
                        with contextlib.suppress(ssl.SSLWantReadError):
                            tls.do_handshake()
                            break
                    raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    await stream.send(go.read())
                    await anyio.aclose_forcefully(stream)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_a_peer_that_says_nothing(server_tls: ssl.SSLContext, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "brightsocket_anyio")
    with anyio.fail_after(PATIENCE):
        async with serving(Brightsocket(tls_timeout=0.05), ssl_context=server_tls) as bound:
            async with await anyio.connect_tcp("127.0.0.1", bound.port) as stream:
                with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                    await stream.receive()
            await until(lambda: "it took too long" in caplog.text)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_a_listener_of_the_users_own_kind_keeps_its_ways(server_tls: ssl.SSLContext) -> None:
    failures: list[BaseException] = []

    class Noting(TLSListener):
        @staticmethod
        async def handle_handshake_error(exc: BaseException, stream: Any) -> None:
            failures.append(exc)
            await anyio.aclose_forcefully(stream)

    listener = Noting(await anyio.create_tcp_listener(local_host="127.0.0.1"), server_tls)
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tg:
            bound = await tg.start(
                lambda *, task_status: Brightsocket().serve(listeners=[listener], task_status=task_status)
            )
            async with await anyio.connect_tcp("127.0.0.1", bound.port) as stream:
                await stream.send(b"nonsense")
                await until(lambda: failures)
            tg.cancel_scope.cancel()
