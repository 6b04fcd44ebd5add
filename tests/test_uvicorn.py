"""What goes past uvicorn's ``send`` arrives as what goes through it: a real uvicorn, and the core of ``websockets``."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anyio
import pytest
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.server import ServerProtocol

from brightsocket_anyio import Brightsocket, Connection
from brightsocket_anyio.transport import RUN
from brightsocket_anyio.transports.frames import COMPRESSED_FROM
from brightsocket_anyio.transports.uvicorn import writer_of

from .support import behind_uvicorn, identified, joined, until

pytestmark = pytest.mark.parametrize("anyio_backend", ["asyncio", "asyncio+uvloop"], indirect=True)

#: around each length at which a frame, or what becomes of it, is another
LENGTHS = [0, 90, 100, 110, 120, 130, COMPRESSED_FROM - 20, COMPRESSED_FROM, 65_500, 65_536, 100_000]


def api() -> Brightsocket:
    api = Brightsocket()

    @api.connect("WORK")
    def work(connection: Connection) -> None:
        @connection.on("ECHO")
        async def echo(value: Any) -> None:
            await connection.send("ECHO", value)

        @connection.on("FLOOD")
        async def flood(count: int, size: int) -> None:
            for number in range(count):
                await connection.send("DROP", number, "x" * size)

        connection.on("LEAVE")(connection.aclose)

    return api


@pytest.mark.parametrize("compressing", [False, True])
async def test_messages_of_every_length_and_kind(compressing: bool) -> None:
    extensions = [ClientPerMessageDeflateFactory()] if compressing else []
    async with behind_uvicorn(api()) as bound, joined(bound, extensions=extensions) as peer:
        assert len(peer.protocol.extensions) == compressing
        await peer.identify("WORK")
        await peer.expect_identified()
        for length in LENGTHS:
            for text in ("x" * length, "ü" * length):
                await peer.event("ECHO", text)
                await peer.expect(f'42["ECHO","{text}"]')
            # a header and its attachment
            await peer.send('451-["ECHO",{"_placeholder":true,"num":0}]', bytes(length))
            await peer.expect('451-["ECHO",{"_placeholder":true,"num":0}]', bytes(length))


async def test_a_peer_that_does_not_read_for_a_while_gets_all_of_it_in_order() -> None:
    async with behind_uvicorn(api()) as bound, identified(bound, "WORK") as peer:
        await peer.event("FLOOD", 300, 50_000)
        await anyio.wait_all_tasks_blocked()
        for number in range(300):
            message = json.loads(str(await peer.receive())[2:])
            assert message[:2] == ["DROP", number]
            assert len(message[2]) == 50_000


async def test_however_much_comes_at_once_others_have_their_turn() -> None:
    server = Brightsocket()
    count, most = 0, 0

    @server.connect("WORK")
    def work(connection: Connection) -> None:
        @connection.on("ACTION")
        def act() -> None:
            nonlocal count
            count += 1

    async def watch() -> None:
        nonlocal most
        while True:
            before = count
            await anyio.lowlevel.checkpoint()
            most = max(most, count - before)

    async with behind_uvicorn(server) as bound, identified(bound, "WORK") as peer, anyio.create_task_group() as tg:
        tg.start_soon(watch)
        await peer.send(*['42["ACTION"]'] * 3000)
        await until(lambda: count == 3000)
        tg.cancel_scope.cancel()
    # the first one may be read by the session itself, the others by the worker
    assert 0 < most <= RUN + 1


async def test_what_was_sent_before_the_end_comes_before_it() -> None:
    server = api()
    async with behind_uvicorn(server) as bound, identified(bound, "WORK") as peer:
        await peer.event("ECHO", "last")
        await peer.event("LEAVE")
        received = await peer.drain()
        assert received[0] == '42["ECHO","last"]'
        await until(lambda: server.statistics().sessions_open == 0)


async def test_a_peer_that_has_vanished_is_noticed() -> None:
    server = api()
    async with behind_uvicorn(server) as bound, identified(bound, "WORK") as peer:
        await peer.event("FLOOD", 300, 50_000)
        await peer.vanish()
        await until(lambda: server.statistics().sessions_open == 0)


async def test_any_other_send_is_left_alone() -> None:
    class Unknown:
        conn: Any = None
        writable: Any = None
        transport: Any = None

        async def send(self, message: Any) -> None:
            raise AssertionError("nobody sends by it")

    assert writer_of(Unknown().send) is None
    # a uvicorn that has changed
    Unknown.__module__ = "uvicorn.protocols.websockets.websockets_sansio_impl"
    assert writer_of(Unknown().send) is None
    Unknown.conn = ServerProtocol()
    assert writer_of(Unknown().send) is None
    Unknown.writable = asyncio.Event()
    assert writer_of(Unknown().send) is None
