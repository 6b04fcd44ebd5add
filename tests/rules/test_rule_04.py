"""Rule 4: a refusal is an answer."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest

from brightsocket_anyio import Brightsocket, ChannelRefused, Connection, ConnectionLost, Refused, open_client

from ..support import PATIENCE, Raw, identified, joined, raw, serving


def refusing_api() -> Brightsocket:
    api = Brightsocket()

    @api.connect("CLOSED")
    async def closed(connection: Connection) -> None:
        raise Refused("not today", data={"until": "tomorrow"})

    @api.connect("/closed")
    async def closed_namespace(connection: Connection, auth: Any) -> None:
        raise Refused("not today", data={"until": "tomorrow"})

    @api.connect("/unsendable")
    async def unsendable(connection: Connection) -> None:
        raise Refused("not today", data=object())

    @api.connect("OPEN")
    async def opened(connection: Connection) -> None:
        pass

    return api


async def refusal(peer: Raw) -> str:
    """The peer is told why, then leaves the namespace, and the session is closed."""
    message = await peer.receive()
    assert isinstance(message, str)
    name, payload = json.loads(message.removeprefix("42"))
    assert name == "BRIGHTSOCKET:REFUSED"
    await peer.expect("41")
    assert await peer.expect_end() == 1000
    return str(payload["reason"])


@pytest.mark.parametrize("eio", [3, 4])
@pytest.mark.parametrize(
    ("channel", "reason"),
    [("CLOSED", "not today"), ("NOWHERE", "unknown channel: NOWHERE"), ("/closed", "unknown channel: /closed")],
)
async def test_a_plain_client_gets_an_event_with_the_reason(channel: str, reason: str, eio: int) -> None:
    async with serving(refusing_api()) as bound, joined(bound, eio=eio) as peer:
        await peer.identify(channel)
        assert await refusal(peer) == reason


@pytest.mark.parametrize("eio", [3, 4])
@pytest.mark.parametrize(
    "payload",
    [
        '42["BRIGHTSOCKET:IDENTIFY"]',
        '42["BRIGHTSOCKET:IDENTIFY",null]',
        '42["BRIGHTSOCKET:IDENTIFY",[]]',
        '42["BRIGHTSOCKET:IDENTIFY","OPEN"]',
        '42["BRIGHTSOCKET:IDENTIFY",{}]',
        '42["BRIGHTSOCKET:IDENTIFY",{"BRIGHTSOCKET:CHANNEL":7}]',
        '42["BRIGHTSOCKET:IDENTIFY",{"BRIGHTSOCKET:CHANNEL":null}]',
        '42["BRIGHTSOCKET:IDENTIFY",{"user":"ada"}]',
    ],
)
async def test_an_invalid_identity_is_refused(payload: str, eio: int) -> None:
    async with serving(refusing_api()) as bound, joined(bound, eio=eio) as peer:
        await peer.send(payload)
        assert "channel" in await refusal(peer)


async def test_a_namespace_turns_away_with_connect_error_and_data() -> None:
    async with serving(refusing_api()) as bound, raw(bound) as peer:
        await peer.send("40/closed,")
        message = str(await peer.receive())
        assert message.startswith("44/closed,")
        assert json.loads(message.removeprefix("44/closed,")) == {"message": "not today", "data": {"until": "tomorrow"}}
        await peer.send("40/nowhere,{}")
        await peer.expect('44/nowhere,{"message":"Invalid namespace"}')
        # and the session is as good as before
        await peer.send("40")
        assert str(await peer.receive()).startswith("40{")
        await peer.identify("OPEN")
        await peer.expect('42["BRIGHTSOCKET:IDENTIFIED"]')


async def test_a_namespace_of_protocol_4_turns_away_with_error() -> None:
    async with serving(refusing_api()) as bound, joined(bound, eio=3) as peer:
        await peer.send("40/nowhere?token=1,")
        assert str(await peer.receive()).startswith("44/nowhere,")


async def test_data_that_cannot_be_sent_does_not_take_the_refusal_with_it(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(refusing_api()) as bound, raw(bound) as peer:
        await peer.send("40/unsendable,")
        await peer.expect('44/unsendable,{"message":"not today"}')
    assert "data of a refusal" in caplog.text


@pytest.mark.parametrize(
    ("eio", "channel", "reason"),
    [
        (3, "CLOSED", "not today"),
        (4, "CLOSED", "not today"),
        (3, "NOWHERE", "unknown channel: NOWHERE"),
        (4, "NOWHERE", "unknown channel: NOWHERE"),
        # protocol 4 has room for the data or the reason
        (3, "/closed", "refused"),
        (4, "/closed", "not today"),
        (3, "/nowhere", "Invalid namespace"),
        (4, "/nowhere", "Invalid namespace"),
    ],
)
async def test_a_client_gets_an_exception_with_the_reason(channel: str, reason: str, eio: Any) -> None:
    async with serving(refusing_api()) as bound, open_client(bound.url, eio=eio) as client:
        with anyio.fail_after(PATIENCE), pytest.raises(ChannelRefused) as caught:
            await client.connect(channel)
        assert caught.value.reason == reason
        assert caught.value.channel == channel
        assert caught.value.data == ({"until": "tomorrow"} if channel == "/closed" else None)
        assert str(caught.value) == f"{channel}: {reason}"
        assert client.connection is None


@pytest.mark.parametrize("channel", ["CLOSED", "NOWHERE"])
@pytest.mark.parametrize("eio", [3, 4])
async def test_a_switch_on_a_session_that_is_refused_is_answered_too(channel: str, eio: int) -> None:
    """Found: a session on a channel that named an unknown one was told of an end, and not of the refusal."""
    async with serving(refusing_api()) as bound, identified(bound, "OPEN", eio=eio) as peer:
        await peer.identify(channel)
        assert await refusal(peer) in ("not today", "unknown channel: NOWHERE")


async def test_a_refusal_leaves_the_sessions_other_namespaces_alone() -> None:
    api = refusing_api()

    @api.connect("/open")
    async def opened(connection: Connection) -> None:
        connection.on("ECHO")(lambda value: value)

    async with serving(api) as bound, joined(bound) as peer:
        await peer.send("40/open,")
        assert str(await peer.receive()).startswith("40/open,")
        await peer.identify("CLOSED")
        await peer.expect('42["BRIGHTSOCKET:REFUSED",{"reason":"not today"}]', "41")
        await peer.event("ECHO", 1, namespace="/open", id=5)
        await peer.expect("43/open,5[1]")


async def test_a_refused_namespace_may_be_asked_for_again() -> None:
    api = Brightsocket()
    attempts: list[Any] = []

    @api.connect("/door")
    async def door(connection: Connection, auth: dict[str, Any]) -> None:
        attempts.append(auth)
        if auth.get("knock") != 3:
            raise Refused("knock again")

    async with serving(api) as bound, raw(bound) as peer:
        for knock in (1, 2):
            await peer.send(f'40/door,{{"knock":{knock}}}')
            await peer.expect('44/door,{"message":"knock again"}')
        await peer.send('40/door,{"knock":3}')
        assert str(await peer.receive()).startswith('40/door,{"sid":')
    assert attempts == [{"knock": 1}, {"knock": 2}, {"knock": 3}]


async def test_a_client_refused_by_a_base_is_refused() -> None:
    api = refusing_api()
    entered: list[str] = []
    api.connect("A", ["CLOSED"], lambda: entered.append("A"))
    async with serving(api) as bound, open_client(bound.url) as client:
        with pytest.raises(ChannelRefused, match="not today"):
            await client.connect("A")
    assert entered == []


async def test_a_refusal_that_comes_out_of_a_task_group_is_one() -> None:
    api = Brightsocket()

    @api.connect("CLOSED")
    async def closed(connection: Connection) -> None:
        async with anyio.create_task_group(), anyio.create_task_group():
            raise Refused("not today")

    @api.connect("OPEN")
    async def opened(connection: Connection) -> None:
        @connection.on("LEAVE")
        async def leave() -> None:
            async with anyio.create_task_group():
                raise Refused("no longer")

    async with serving(api) as bound, open_client(bound.url) as client:
        with pytest.raises(ChannelRefused, match="not today"):
            await client.connect("CLOSED")
        connection = await client.connect("OPEN")
        with pytest.raises(ConnectionLost, match="no longer"):
            await connection.call("LEAVE")
