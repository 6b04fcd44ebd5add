"""Each deadline and each limit of the settings, where a peer meets it: what it hears, and that nothing of it is left.

What belongs to a connection of the embedded server (TLS, a request's head, how many there are) is tested with the
listener. Behind ASGI servers that is theirs.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from brightsocket_anyio import Brightsocket, Connection
from tests.doors import behind, every_road
from tests.faults.poller import Poller, polling
from tests.streams import CONT, TEXT, frame
from tests.support import MemoryListener, Raw, identified, joined, raw, serving_in_memory, until

Messages = list[str | bytes]

_PLACEHOLDER = '{"_placeholder":true,"num":0}'

#: past which limit a session in a channel goes, by which messages, the close code, and a pattern of the
#: reason in the Close frame
EXCESSES: dict[str, tuple[dict[str, Any], Messages, int, str]] = {
    "max_payload": (
        {"max_payload": 1000},
        ['42["X","' + "x" * 1000 + '"]'],
        1009,
        "message too big|frame with 1... bytes exceeds limit of 1000 bytes",
    ),
    "max_payload, of an attachment": (
        {"max_payload": 1000},
        [f'451-["X",{_PLACEHOLDER}]', bytes(1001)],
        1009,
        "message too big|frame with 1... bytes exceeds limit of 1000 bytes",
    ),
    "max_attachments": (
        {"max_attachments": 2},
        [f'453-["X",{_PLACEHOLDER}]'],
        1002,
        "3 attachments, where 1 to 2 are allowed",
    ),
    "max_namespaces": ({"max_namespaces": 3}, ["40/a", "40/b", "40/c"], 1002, "too many namespaces"),
    "action_rate": (
        {"action_rate": 0.001, "action_burst": 2},
        ['42["X"]'] * 3,
        1008,
        "the client sends more actions than it may in the time",
    ),
}

#: and what is not past it
ALLOWED: dict[str, tuple[dict[str, Any], Messages]] = {
    "max_payload": ({"max_payload": 1000}, ['42["X","' + "x" * (1000 - 10) + '"]']),
    "max_attachments": (
        {"max_attachments": 2},
        [f'452-["X",{_PLACEHOLDER},{{"_placeholder":true,"num":1}}]', b"", b""],
    ),
    "max_namespaces": ({"max_namespaces": 3}, ["40/a", "40/b"]),
    "action_rate": ({"action_rate": 0.001, "action_burst": 3}, ['42["X"]'] * 2),
}


def make_api(**settings: Any) -> Brightsocket:
    api = Brightsocket(**settings)

    @api.connect("CHANNEL")
    async def channel(connection: Connection) -> None:
        connection.on("X")(lambda: None)
        connection.on("PING")(lambda: "pong")
        connection.on("BLOCK")(anyio.Event().wait)

    return api


async def closed(peer: Raw) -> tuple[int | None, str]:
    """Wait for the end: the close code and the reason, ``None`` for a bare end of the bytes."""
    await peer.drain()
    close = peer.protocol.close_rcvd
    return (None, "") if close is None else (close.code, close.reason)


class TestTooMuch:
    @every_road("websocket")
    @pytest.mark.parametrize(("settings", "messages", "code", "reason"), EXCESSES.values(), ids=EXCESSES)
    async def test_over_websocket(
        self, door: str, transport: str, settings: dict[str, Any], messages: Messages, code: int, reason: str
    ) -> None:
        api = make_api(**settings)
        async with behind(door, api) as bound, identified(bound, "CHANNEL") as peer:
            await peer.send(*messages)
            received = await closed(peer)
            assert received[0] == code
            assert re.fullmatch(reason, received[1])
            await until(lambda: len(api.pool) == api.statistics().sessions_open == 0)

    @every_road("websocket")
    @pytest.mark.parametrize(("settings", "messages"), ALLOWED.values(), ids=ALLOWED)
    async def test_just_enough(self, door: str, transport: str, settings: dict[str, Any], messages: Messages) -> None:
        async with behind(door, make_api(**settings)) as bound, identified(bound, "CHANNEL") as peer:
            await peer.send(*messages)
            await peer.event("PING", id=1)
            while (message := await peer.receive()) != '431["pong"]':
                assert str(message).startswith("44")

    @every_road("websocket", doors=("embedded",))
    async def test_fragments(self, door: str, transport: str) -> None:
        async with behind(door, make_api(max_fragments=3)) as bound, identified(bound, "CHANNEL") as peer:
            pieces = [frame(TEXT, b"42", fin=False), *[frame(CONT, b"[", fin=False)] * 3]
            await peer.stream.send(b"".join(pieces))
            assert await closed(peer) == (1008, "too many fragments")

    @every_road("polling")
    @pytest.mark.parametrize(
        ("settings", "body", "status", "answer"),
        [
            ({"max_payload": 1000}, "4" * 1001, 413, '{"message":"Payload too large"}'),
            ({"max_packets": 3}, "\x1e".join("6666"), 400, '{"code":3,"message":"Bad request"}'),
        ],
        ids=["max_payload", "max_packets"],
    )
    async def test_in_a_post(
        self, door: str, transport: str, settings: dict[str, Any], body: str, status: int, answer: str
    ) -> None:
        api = make_api(close_timeout=0.1, **settings)
        async with behind(door, api) as bound, polling(bound) as peer:
            await peer.identify("CHANNEL")
            await peer.post("6", "6", "6")
            response = await peer.request(body)
            assert (response.status_code, response.text) == (status, answer)

    @every_road("polling")
    @pytest.mark.parametrize("name", ["max_attachments", "max_namespaces", "action_rate"])
    async def test_by_polling(self, door: str, transport: str, name: str) -> None:
        """A session without a WebSocket hears no code."""
        settings, messages, *_ = EXCESSES[name]
        api = make_api(**settings)
        async with behind(door, api) as bound, polling(bound) as peer:
            await peer.identify("CHANNEL")
            await peer.request("\x1e".join(str(message) for message in messages))
            await peer.get_until("1")
            await until(lambda: len(api.pool) == api.statistics().sessions_open == 0)


@asynccontextmanager
async def in_memory(door: str, api: Brightsocket) -> AsyncGenerator[MemoryListener]:
    """The API behind a front door, in virtual time."""
    async with serving_in_memory(api if door == "embedded" else Brightsocket(api, path="/outer/")) as listener:
        yield listener


@asynccontextmanager
async def lasting(seconds: float) -> AsyncGenerator[None]:
    start = anyio.current_time()
    yield
    assert anyio.current_time() - start == pytest.approx(seconds, abs=0.1)


@pytest.mark.mock_clock
@pytest.mark.parametrize("eio", [3, 4])
@pytest.mark.parametrize("door", ["embedded", "asgi"])
class TestTooSlow:
    async def test_connect(self, door: str, eio: int) -> None:
        """In protocol 4 every client is on the main namespace from the start: it may leave that."""
        api = make_api(connect_timeout=7)
        async with in_memory(door, api) as bound, raw(bound, eio=eio) as peer:
            if eio == 3:
                await peer.expect("40")
                await peer.send("41")
            async with lasting(7):
                assert await closed(peer) == (1000, "the session was on no namespace for the connect timeout")

    async def test_identify(self, door: str, eio: int) -> None:
        async with in_memory(door, make_api(identify_timeout=7)) as bound, joined(bound, eio=eio) as peer:
            async with lasting(7):
                await peer.expect_event("BRIGHTSOCKET:REFUSED", {"reason": "no channel was named in time"})
            await peer.expect("41")
            assert await closed(peer) == (1000, "the server has ended the last connection")

    async def test_upgrade(self, door: str, eio: int) -> None:
        async with in_memory(door, make_api(upgrade_timeout=7)) as bound, polling(bound, eio) as peer:
            await peer.identify("CHANNEL")
            async with peer.probed() as road, lasting(7):
                assert await closed(road) == (1002, "the upgrade failed")
            # polling goes on
            await peer.post('421["PING"]')
            await peer.get_until('431["pong"]')

    async def test_body(self, door: str, eio: int) -> None:
        async with in_memory(door, make_api(body_timeout=7)) as bound, polling(bound, eio) as peer:
            await peer.identify("CHANNEL")
            async with lasting(7):
                assert (await _post_slowly(peer, bound, [b"4"])).startswith(b"HTTP/1.1 408 ")

    async def test_a_body_that_comes_now_and_then(self, door: str, eio: int) -> None:
        async with in_memory(door, make_api(body_timeout=7)) as bound, polling(bound, eio) as peer:
            await peer.identify("CHANNEL")
            async with lasting(7):
                assert (await _post_slowly(peer, bound, [b"4"] * 9)).startswith(b"HTTP/1.1 408 ")

    async def test_a_body_that_keeps_to_the_rate(self, door: str, eio: int) -> None:
        async with in_memory(door, make_api(body_timeout=7, min_body_rate=100)) as bound, polling(bound, eio) as peer:
            await peer.identify("CHANNEL")
            packet = "42" + json.dumps(["X", "x" * 2000])
            body = (packet if eio == 4 else f"{len(packet)}:{packet}").encode()
            pieces = [body[start : start + 100] for start in range(0, len(body), 100)]
            assert (await _post_slowly(peer, bound, pieces)).startswith(b"HTTP/1.1 200 ")

    async def test_a_heartbeat(self, door: str, eio: int) -> None:
        """There is nobody any more to whom a reason could be given."""
        api = make_api(ping_interval=5, ping_timeout=7)
        async with in_memory(door, api) as bound, identified(bound, "CHANNEL", eio=eio) as peer, lasting(12):
            assert set(await peer.drain()) <= {"2"}
            assert peer.protocol.close_rcvd is None or door == "asgi"

    async def test_what_is_read(self, door: str, eio: int) -> None:
        api = make_api(max_buffered_messages=1, stall_timeout=7)
        async with in_memory(door, api) as bound, identified(bound, "CHANNEL", eio=eio) as peer, lasting(7):
            for _ in range(4):
                await peer.event("BLOCK")
            await peer.drain()


async def _post_slowly(peer: Poller, bound: MemoryListener, pieces: list[bytes]) -> bytes:
    """The answer to a POST whose pieces come a second after each other."""
    head = f"POST /socket.io/?EIO={peer.eio}&transport=polling&sid={peer.sid} HTTP/1.1\r\nHost: x\r\n"
    stream = bound.connect()

    async def send() -> None:
        await stream.send(f"{head}Content-Length: {max(sum(map(len, pieces)), 1000)}\r\n\r\n".encode())
        for piece in pieces:
            await stream.send(piece)
            await anyio.sleep(1)

    async with stream, anyio.create_task_group() as tg:
        tg.start_soon(send)
        answer = await stream.receive()
        tg.cancel_scope.cancel()
    return answer
