"""Peers that vanish without a word at any step, or fall silent: nothing of them is left."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
import websockets.sync.client
from anyio.lowlevel import checkpoint

from brightsocket_anyio import Bound, Brightsocket, Connection

from ..streams import TEXT, frame
from ..support import PATIENCE, census, identified, joined, raw, serving, serving_in_memory, until
from .poller import Poller, polling

each_eio = pytest.mark.parametrize("eio", [3, 4])
Step = Callable[[Bound, int], Awaitable[None]]

_GET = b"GET /socket.io/?EIO=%d&transport=polling&sid=%s HTTP/1.1\r\nHost: x\r\n\r\n"
_POST = b"POST /socket.io/?EIO=%d&transport=polling&sid=%s HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"
_PLACEHOLDER = '["A",{"_placeholder":true,"num":0}]'


async def _bytes(bound: Bound, data: bytes) -> None:
    """Send bytes on a connection of their own, and vanish once the server has had them."""
    async with await anyio.connect_tcp(str(bound.addresses[0][0]), bound.port) as stream:
        if data:
            await stream.send(data)
        await _settle()
        await anyio.aclose_forcefully(stream)


async def _settle() -> None:
    """Let the server take what was sent; where it does not get so far, the vanishing only comes earlier."""
    for _ in range(20):
        await checkpoint()


async def before_a_word(bound: Bound, eio: int) -> None:
    await _bytes(bound, b"")


async def in_the_request(bound: Bound, eio: int) -> None:
    await _bytes(bound, b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost:")


async def in_the_handshake(bound: Bound, eio: int) -> None:
    head = (
        b"GET /socket.io/?EIO=%d&transport=websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    await _bytes(bound, head % eio)


async def after_the_open_packet(bound: Bound, eio: int) -> None:
    async with raw(bound, eio=eio) as peer:
        await peer.vanish()


async def in_a_frame(bound: Bound, eio: int) -> None:
    async with joined(bound, eio=eio) as peer:
        await peer.stream.send(frame(TEXT, b"x" * 1000)[:500])
        await peer.vanish()


async def while_identifying(bound: Bound, eio: int) -> None:
    async with joined(bound, eio=eio) as peer:
        await peer.identify("SLOW")
        await peer.vanish()


async def in_a_binary_message(bound: Bound, eio: int) -> None:
    async with identified(bound, "WORK", eio=eio) as peer:
        await peer.send("451-" + _PLACEHOLDER)
        await _settle()
        await peer.vanish()


async def with_a_call_unanswered(bound: Bound, eio: int) -> None:
    async with identified(bound, "WORK", eio=eio) as peer:
        await peer.event("BLOCK", id=1)
        await _settle()
        await peer.vanish()


async def before_the_first_poll(bound: Bound, eio: int) -> None:
    async with polling(bound, eio) as peer:
        await peer.open()


async def with_a_poll_pending(bound: Bound, eio: int) -> None:
    async with polling(bound, eio) as peer:
        await peer.identify("WORK")
        await _bytes(bound, _GET % (eio, peer.sid.encode()))


async def in_a_post(bound: Bound, eio: int) -> None:
    async with polling(bound, eio) as peer:
        await peer.identify("WORK")
        await _bytes(bound, (_POST % (eio, peer.sid.encode())) + b"1:")


async def with_a_post_unanswered(bound: Bound, eio: int) -> None:
    async with polling(bound, eio) as peer:
        await peer.identify("WORK")
        await _bytes(bound, (_POST % (eio, peer.sid.encode())) + b"42[1]")


async def in_a_binary_message_by_polling(bound: Bound, eio: int) -> None:
    async with polling(bound, eio) as peer:
        await peer.identify("WORK")
        await peer.post("451-" + _PLACEHOLDER)


async def after_the_offer(bound: Bound, eio: int) -> None:
    async with polling(bound, eio) as peer:
        await peer.identify("WORK")
        async with peer.websocket() as road:
            await road.vanish()


async def after_the_probe(bound: Bound, eio: int) -> None:
    async with polling(bound, eio) as peer:
        await peer.identify("WORK")
        async with peer.probed() as road:
            await road.vanish()


async def right_after_the_change(bound: Bound, eio: int) -> None:
    async with polling(bound, eio) as peer:
        await peer.identify("WORK")
        async with peer.probed() as road:
            await road.send("5")
            await road.vanish()


async def with_the_change_cut_in_half(bound: Bound, eio: int) -> None:
    async with polling(bound, eio) as peer:
        await peer.identify("WORK")
        async with peer.probed() as road:
            await road.stream.send(frame(TEXT, b"5")[:-1])
            await road.vanish()


STEPS: list[Step] = [
    before_a_word,
    in_the_request,
    in_the_handshake,
    after_the_open_packet,
    in_a_frame,
    while_identifying,
    in_a_binary_message,
    with_a_call_unanswered,
    before_the_first_poll,
    with_a_poll_pending,
    in_a_post,
    with_a_post_unanswered,
    in_a_binary_message_by_polling,
    after_the_offer,
    after_the_probe,
    right_after_the_change,
    with_the_change_cut_in_half,
]


def make_api(**settings: Any) -> Brightsocket:
    api = Brightsocket(**settings)

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        connection.on("BLOCK")(_wait)
        connection.on("ECHO")(lambda value: value)
        async with connection.receive("NEVER") as never:
            await never.receive()

    @api.connect("SLOW")
    async def slow() -> None:
        await _wait()

    return api


async def _wait() -> None:
    """Wait for ever, without a timer: asyncio keeps cancelled ones, and their context, until many have gathered."""
    await anyio.Event().wait()


@each_eio
async def test_nothing_is_left_of_peers_that_vanish(eio: int) -> None:
    # where no connection tells that a peer is gone, these deadlines must; each step is over long before the first
    api = make_api(
        ping_interval=4,
        ping_timeout=1,
        upgrade_timeout=3,
        connect_timeout=4,
        stall_timeout=4,
        close_timeout=1,
    )
    async with serving(api) as bound:
        # the first one leaves behind what is made once and kept
        async with identified(bound, "WORK", eio=eio):
            pass
        await until(lambda: len(api.pool) == 0)
        before = await _at_rest(None)
        for step in STEPS:
            for _ in range(3):
                await step(bound, eio)
        await _at_rest(before)
        assert len(api.pool) == 0


async def _at_rest(before: Any) -> Any:
    """Wait until nothing is alive but what was before; the first time, until no session is."""
    left = census() - before if before is not None else census()
    with anyio.move_on_after(PATIENCE):
        while left if before is not None else left["Session"]:
            # a moment of the loop's own clock: counting is costly, and deadlines are being waited for
            await anyio.sleep(0.02)
            left = census() - before if before is not None else census()
    assert before is None or not left
    return left


@pytest.mark.mock_clock
@each_eio
@pytest.mark.parametrize("stage", ["no poll", "polling", "offered", "probed", "upgraded"])
async def test_a_half_open_connection_is_closed_by_the_heartbeats_deadline(stage: str, eio: int) -> None:
    """The connections stand, and the peer says no more."""
    api = make_api(ping_interval=25, ping_timeout=20, close_timeout=1)
    async with serving_in_memory(api) as bound, polling(bound, eio) as peer, anyio.create_task_group() as tg:
        await peer.identify("WORK")
        if stage == "polling":
            tg.start_soon(_poll_on, peer)
        elif stage != "no poll":
            tg.start_soon(_stay_silent, peer, stage)
        await anyio.wait_all_tasks_blocked()
        assert len(api.pool) == 1
        await anyio.sleep(40)
        assert len(api.pool) == 1
        await anyio.sleep(7)
        assert len(api.pool) == 0
        await anyio.sleep(5)
        assert census()["Session"] == 0
        tg.cancel_scope.cancel()


async def _poll_on(peer: Poller) -> None:
    """Takes what comes, and answers nothing."""
    while (response := await peer.request()).status_code == 200 and "1" not in response.text.split("\x1e"):
        pass


async def _stay_silent(peer: Poller, stage: str) -> None:
    async with peer.websocket() as road:
        road.patience = 1000
        if stage != "offered":
            await road.send("2probe")
            await road.expect("3probe")
        if stage == "upgraded":
            await road.send("5")
        await anyio.sleep_forever()


async def test_a_function_that_sends_while_its_session_ends_has_not_failed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The writer may find out first, before the connection has ended: that is no error of the function's."""
    api = Brightsocket()

    @api.connect("ECHO")
    async def echo(connection: Connection) -> None:
        async with connection.receive("TALK") as talks:
            async for _ in talks:
                await connection.send("HEARD")

    def visit(url: str) -> None:
        # in a thread, so that it leaves while the server is busy
        uri = f"ws{url.removeprefix('http')}/socket.io/?EIO=4&transport=websocket"
        with websockets.sync.client.connect(uri, max_queue=None) as peer:
            peer.send("40")
            peer.send('42["BRIGHTSOCKET:IDENTIFY",{"BRIGHTSOCKET:CHANNEL":"ECHO"}]')
            while peer.recv(PATIENCE) != '42["BRIGHTSOCKET:IDENTIFIED"]':
                pass
            for _ in range(100):
                peer.send('42["TALK"]')

    async with serving(api) as bound:
        for _ in range(20):
            await anyio.to_thread.run_sync(visit, bound.url)
        await until(lambda: len(api.pool) == 0)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
