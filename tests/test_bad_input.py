"""Bad input ends its session, with nothing left of it, and nobody else notices: over WebSocket, and over polling."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest

from brightsocket_anyio import Brightsocket, Connection, open_client
from tests.support import PATIENCE, Raw, identified, joined, raw, serving, until

Message = str | bytes

#: after the main namespace has been joined and a channel named
BAD: dict[str, list[Message]] = {
    "an unknown Engine.IO type": ["9"],
    "no Engine.IO type": [""],
    "an open packet from a client": ['0{"sid":"x"}'],
    "a ping in the wrong direction": ["2"],
    "an upgrade that nobody probed": ["5"],
    "a message without content": ["4"],
    "an unknown Socket.IO type": ["47"],
    "a second CONNECT": ["40"],
    "a client's CONNECT_ERROR": ['44{"message":"no"}'],
    "an event on a namespace that was never joined": ['42/never,["X"]'],
    "an event that is no array": ['42{"a":1}'],
    "an event without a name": ["42[]"],
    "an event's name that is an object": ['42[{"a":1}]'],
    "an event's name that is a number": ["42[1]"],
    "a reserved name": ['42["disconnect"]'],
    "broken JSON": ['42["X",'],
    "NaN": ['42["X",NaN]'],
    "Infinity": ['42["X",Infinity]'],
    "an integer of 5,000 digits": ['42["X",' + "9" * 5000 + "]"],
    "JSON nested 100,000 deep": ['42["X",' + "[" * 100_000 + "]" * 100_000 + "]"],
    "a lone surrogate": ['42["X","\\ud800"]'],
    "a superscript ack id": ['42²["X"]'],
    "an Arabic ack id": ['42٣["X"]'],
    "a huge ack id": ['42100000000000000000000["X"]'],
    "an ack id with spaces": ['42 1["X"]'],
    "an acknowledgement without an id": ["43[]"],
    "too many attachments": ['4511-["X",{"_placeholder":true,"num":0}]'],
    "no attachments in a binary event": ['450-["X"]'],
    "a placeholder below 0": ['451-["X",{"_placeholder":true,"num":-1}]'],
    "a placeholder beyond the end": ['452-["X",{"_placeholder":true,"num":9},{"_placeholder":true,"num":0}]'],
    "a placeholder that is no integer": ['451-["X",{"_placeholder":true,"num":1.5}]'],
    "a placeholder twice": ['452-["X",{"_placeholder":true,"num":0},{"_placeholder":true,"num":0}]'],
    "bytes that nothing announced": [b"\x01\x02"],
    "a text where an attachment is due": ['451-["X",{"_placeholder":true,"num":0}]', '42["Y"]'],
}


def neighbourly() -> tuple[Brightsocket, list[Any]]:
    api = Brightsocket(close_timeout=1)
    heard: list[Any] = []

    @api.connect("CHANNEL")
    async def channel(connection: Connection) -> None:
        @connection.on("X")
        async def x(*values: Any) -> None:
            heard.append(values)

        @connection.on("PING")
        async def ping() -> str:
            return "pong"

    return api, heard


@asynccontextmanager
async def neighbour_undisturbed(api: Brightsocket, url: str) -> AsyncGenerator[None]:
    """A client that is there before and after, and alone then."""
    async with open_client(url) as client:
        connection = await client.connect("CHANNEL")
        yield
        with anyio.fail_after(PATIENCE):
            assert await connection.call("PING") == "pong"
        await until(lambda: len(api.pool) == 1)


@pytest.mark.parametrize("messages", BAD.values(), ids=BAD.keys())
async def test_over_websocket(messages: list[Message]) -> None:
    api, heard = neighbourly()
    async with serving(api) as bound, neighbour_undisturbed(api, bound.url), identified(bound, "CHANNEL") as peer:
        await peer.send(*messages)
        await peer.drain()
        assert peer.protocol.close_rcvd is not None
        assert peer.protocol.close_rcvd.code == 1002
    assert heard == []


class Polling:
    """A client that polls, by hand."""

    def __init__(self, http: httpx.AsyncClient, url: str) -> None:
        self._http = http
        self._url = f"{url}/socket.io/?EIO=4&transport=polling"

    async def get(self) -> httpx.Response:
        return await self._http.get(self._url)

    async def post(self, body: str) -> httpx.Response:
        return await self._http.post(self._url, content=body.encode())

    async def open(self) -> None:
        packet = (await self.get()).text
        self._url += f"&sid={json.loads(packet[1:])['sid']}"
        assert (await self.post("40")).text == "ok"
        assert (await self.get()).text.startswith("40")
        assert (await self.post('42["BRIGHTSOCKET:IDENTIFY",{"BRIGHTSOCKET:CHANNEL":"CHANNEL"}]')).text == "ok"
        assert (await self.get()).text == '42["BRIGHTSOCKET:IDENTIFIED"]'


@pytest.mark.parametrize("messages", BAD.values(), ids=BAD.keys())
async def test_over_polling(messages: list[Message]) -> None:
    """The session is over: its polls are answered with its end, and then by 400."""
    api, heard = neighbourly()
    body = "\x1e".join(
        message if isinstance(message, str) else "b" + base64.b64encode(message).decode() for message in messages
    )
    async with serving(api) as bound, neighbour_undisturbed(api, bound.url), httpx.AsyncClient() as http:
        peer = Polling(http, bound.url)
        with anyio.fail_after(PATIENCE):
            await peer.open()
            posted = await peer.post(body)
            assert posted.status_code in (200, 400)
            while (answer := await peer.get()).status_code == 200:
                assert "X" not in answer.text
            assert answer.status_code == 400
    assert heard == []


async def test_300_000_tiny_packets_in_one_payload() -> None:
    api, _ = neighbourly()
    async with serving(api) as bound, neighbour_undisturbed(api, bound.url), httpx.AsyncClient() as http:
        peer = Polling(http, bound.url)
        with anyio.fail_after(PATIENCE):
            await peer.open()
            assert (await peer.post("\x1e".join("6" * 300_000))).status_code == 400


@pytest.mark.parametrize(
    "messages", [['42["X"]'], ['451-["X",{"_placeholder":true,"num":0}]', b"x"], ["41"], ["430[]"]]
)
async def test_anything_before_any_connect(messages: list[Message]) -> None:
    api, heard = neighbourly()
    async with serving(api) as bound, neighbour_undisturbed(api, bound.url), raw(bound) as peer:
        await peer.send(*messages)
        await _expect_close(peer, 1002)
    assert heard == []


async def test_the_ids_of_sessions_cannot_be_guessed() -> None:
    """The secret id of a session is not the public one of its connection, and no other session's."""
    api, _ = neighbourly()
    ids: list[str] = []
    async with serving(api) as bound:
        for _ in range(30):
            async with identified(bound, "CHANNEL") as peer:
                ids += [peer.sid, *api.pool._members]
            await until(lambda: len(api.pool) == 0)
    assert len(set(ids)) == 60
    # of so many bits that nobody guesses one
    assert all(len(base64.urlsafe_b64decode(id)) == 15 for id in ids)
    assert len({byte for id in ids for byte in base64.urlsafe_b64decode(id)}) > 200


async def test_a_binary_header_and_then_a_disconnect() -> None:
    """The partial packet is gone with its session."""
    api, heard = neighbourly()
    async with serving(api) as bound, neighbour_undisturbed(api, bound.url), identified(bound, "CHANNEL") as peer:
        await peer.send('451-["X",{"_placeholder":true,"num":0}]', "41")
        await peer.drain()
    assert heard == []


@pytest.mark.parametrize("message", ["43999[]", "430[1]"])
async def test_an_acknowledgement_that_nobody_waits_for_is_ignored(message: str) -> None:
    api, _ = neighbourly()
    async with serving(api) as bound, identified(bound, "CHANNEL") as peer:
        await peer.send(message, '421["PING"]')
        await peer.expect('431["pong"]')


async def test_what_was_in_flight_for_a_namespace_that_has_ended_is_ignored() -> None:
    api, heard = neighbourly()

    @api.connect("/side")
    async def side(connection: Connection) -> None: ...

    async with serving(api) as bound, identified(bound, "CHANNEL") as peer:
        await peer.send("40/side")
        assert str(await peer.receive()).startswith("40/side,")
        await peer.send("41/side", '42/side,["X"]', "43/side,7[]", "41/side", '421["PING"]')
        await peer.expect('431["pong"]')
    assert heard == []


async def test_too_many_namespaces() -> None:
    api, _ = neighbourly()
    async with serving(api) as bound, joined(bound) as peer:
        await peer.send(*[f"40/n{number}" for number in range(200)])
        refusals = [message for message in await peer.drain() if str(message).startswith("44")]
        assert len(refusals) < 200


async def test_a_message_above_the_limit() -> None:
    api = Brightsocket(max_payload=1000)

    @api.connect("CHANNEL")
    async def channel(connection: Connection) -> None: ...

    async with serving(api) as bound, identified(bound, "CHANNEL") as peer:
        await peer.send('42["X","' + "x" * 2000 + '"]')
        await _expect_close(peer, 1009)


async def test_more_actions_than_a_session_may_send() -> None:
    api = Brightsocket(action_rate=0.001, action_burst=5)
    heard: list[int] = []

    @api.connect("CHANNEL")
    async def channel(connection: Connection) -> None:
        connection.on("X")(heard.append)

    async with serving(api) as bound, identified(bound, "CHANNEL") as peer, identified(bound, "CHANNEL") as other:
        for number in range(7):
            await peer.event("X", number)
        await _expect_close(peer, 1008)
        await until(lambda: heard)
        assert heard == list(range(len(heard)))
        assert len(heard) <= 5
        await other.event("X", 100)
        await until(lambda: 100 in heard)


@pytest.mark.parametrize("payload", ["null", "5", '"CHANNEL"', "[]", "{}", '{"BRIGHTSOCKET:CHANNEL":5}'])
async def test_an_identity_that_names_no_channel_is_refused(payload: str) -> None:
    api, _ = neighbourly()
    async with serving(api) as bound, joined(bound) as peer:
        await peer.send(f'42["BRIGHTSOCKET:IDENTIFY",{payload}]')
        await peer.expect_event("BRIGHTSOCKET:REFUSED", {"reason": "the identity names no channel"})
        await peer.expect("41")
        assert await peer.expect_end() == 1000


async def _expect_close(peer: Raw, code: int) -> None:
    await peer.drain()
    assert peer.protocol.close_rcvd is not None
    assert peer.protocol.close_rcvd.code == code
