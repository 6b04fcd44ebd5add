"""One suite for the API behind every ASGI server and in every framework, each server a process of its own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import anyio
import httpx
import pytest

from brightsocket_anyio import ChannelRefused, Client, Connection
from tests.support import PATIENCE, raw

from .conftest import Case
from .peers import join, polling, websocket
from .processes import Served

PASSWORD = {"password": "sesame"}
MAX_PAYLOAD = 1_000_000
PAYLOADS = [0, "", None, "Grüße 🚀", b"", b"\x00\xff" * 1000, {"deep": [{"bytes": b"\x01"}, [True, 1.5]]}]


async def log_in(client: Client, name: str) -> Connection:
    """Two channels, one after the other."""
    guest = await client.connect("GUEST", {"name": name, **PASSWORD})
    async with guest.receive("LOGGED_IN") as logins:
        login = await logins.receive()
    member = await client.connect(login["channel"], {"name": login["name"]})
    with pytest.raises(anyio.ClosedResourceError):
        await guest.send("SAY", "still a guest")
    return member


async def converse(member: Connection, name: str) -> None:
    """Send, receive and call, with text and binary."""
    async with member.receive("SAID") as said:
        for payload in PAYLOADS:
            await member.send("SAY", payload)
        for payload in PAYLOADS:
            assert await said.receive() == (name, payload)
    for payload in PAYLOADS:
        assert await member.call("ECHO", payload, b"beside it") == (payload, b"beside it")


async def test_login_and_conversation_over_websocket(served: Served) -> None:
    async with served.open(transport="websocket") as client:
        member = await log_in(client, "ada")
        await converse(member, "ada")
        assert member.transport == "websocket"


async def test_conversation_over_polling_and_its_upgrade(served: Served) -> None:
    async with served.open(transport=("polling", "websocket")) as client:
        member = await log_in(client, "bea")
        while member.transport == "polling":
            await converse(member, "bea")
        await converse(member, "bea")
    async with served.open(transport="polling") as client:
        member = await log_in(client, "bea")
        await converse(member, "bea")
        assert member.transport == "polling"


async def test_refusals(served: Served) -> None:
    async with served.open() as client:
        with pytest.raises(ChannelRefused, match="wrong password"):
            await client.connect("GUEST", {"name": "eve"})
        with pytest.raises(ChannelRefused):
            await client.connect("NOWHERE")
        with pytest.raises(ChannelRefused, match="about what") as refused:
            await client.connect("/news")
        assert refused.value.data == {"topics": ["weather"]}
        await converse(await log_in(client, "eve"), "eve")


async def test_a_namespace(served: Served) -> None:
    async with served.open() as client:
        connection = await client.connect("/news", {"topic": "weather"})
        async with connection.receive("HEADLINE") as headlines:
            assert await headlines.receive() == "weather: nothing new"


async def test_several_namespaces_over_one_session(served: Served) -> None:
    async with websocket(served) as peer:
        await join(peer, "bob")
        await peer.send('40/news,{"topic":"weather"}')
        assert str(await peer.receive()).startswith("40/news,")
        await peer.expect('42/news,["HEADLINE","weather: nothing new"]')
        await peer.send('427["ECHO",1]')
        await peer.expect("437[1]")
        await peer.send("41/news,", '428["ECHO",2]')
        await peer.expect("438[2]")


async def test_polling_and_an_upgrade_by_hand(served: Served) -> None:
    async with polling(served) as client:
        await client.join("carl")
        await client.post('421["ECHO",1]', '422["ECHO","😀"]')
        assert [await client.get(), await client.get()] == ["431[1]", '432["😀"]']

        query = f"EIO=4&transport=websocket&sid={client.sid}"
        async with raw(served.bound, path=served.path, query=query) as peer:
            async with anyio.create_task_group() as tg:
                answers: list[str] = []

                async def poll() -> None:
                    answers.append(await client.get())

                tg.start_soon(poll)
                await peer.send("2probe")
                await peer.expect("3probe")
            assert answers == ["6"]
            await peer.send("5", '423["ECHO","upgraded"]')
            await peer.expect('433["upgraded"]')
            refused = await client.http.get(client.url)
            assert (refused.status_code, refused.json()) == (400, {"code": 3, "message": "Bad request"})


async def test_the_application_s_own(served: Served, case: Case) -> None:
    async with httpx.AsyncClient(base_url=served.url) as http:
        page = await http.get("/")
        assert (await http.get("/elsewhere")).status_code == 404
        if case.app == "alone:api":
            assert page.status_code == 404
            return
        assert page.json() == {"greeting": "hello", "scheme": "http", "client": "127.0.0.1"}
    async with raw(served.bound, path="/shout", query="sid=none") as peer:
        await peer.send("hello")
        await peer.expect("HELLO")
        # granian sends no Close for an application that is receiving at that moment, as Quart always is
        if not (case.server == "granian" and case.app == "in_quart:app"):
            assert await peer.expect_end() == 1000


async def test_close_codes(served: Served) -> None:
    async with websocket(served) as peer:
        await peer.identify("GUEST")
        await peer.expect('42["BRIGHTSOCKET:REFUSED",{"reason":"wrong password"}]', "41")
        assert await peer.expect_end() == 1000
    async with websocket(served) as peer:
        await join(peer, "dora")
        await peer.event("LEAVE")
        *_, closed, disconnect = await peer.drain()
        assert closed == '42["BRIGHTSOCKET:CLOSED",{"code":"refused","reason":"as you wish"}]'
        assert disconnect == "41"
        assert peer.protocol.close_rcvd is not None
        assert peer.protocol.close_rcvd.code == 1000
    async with websocket(served) as peer:
        await peer.send("no packet")
        await peer.drain()
        assert peer.protocol.close_rcvd is not None
        assert peer.protocol.close_rcvd.code == 1002
    async with websocket(served) as peer:
        peer.protocol.send_close(1000)
        await peer.send()
        assert await peer.expect_end() == 1000


async def test_the_largest_payload_and_one_byte_more(served: Served) -> None:
    async with websocket(served) as peer:
        await join(peer, "emil")
        packet = '421["ECHO","{}"]'
        text = "x" * (MAX_PAYLOAD - len(packet) + 2 + len("4"))
        assert len(packet.format(text)) == MAX_PAYLOAD + 1
        text = text[1:]
        await peer.send(packet.format(text))
        await peer.expect(f'431["{text}"]')
        await peer.send(packet.format(text + "x"))
        await peer.drain()
        assert peer.protocol.close_rcvd is not None
        assert peer.protocol.close_rcvd.code == 1009


# httpx leaves the rest of a body to the garbage collector when the answer comes before it
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
async def test_a_body_over_the_limit(served: Served) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b"4" * 100_000

    async with polling(served) as client:
        await client.open()
        for content in (chunks(), b"4" * (MAX_PAYLOAD + 1)):
            # a server may cut the connection while the client still sends; hypercorn does
            with contextlib.suppress(httpx.TransportError):
                response = await client.http.post(client.url, content=content, headers={"connection": "close"})
                assert response.status_code == 413
        await client.post('40/news,{"topic":"limits"}')
        assert (await client.get()).startswith("40/news,")
        await client.post("1")


@pytest.mark.parametrize("road", ["websocket", "polling"])
async def test_a_peer_that_vanishes(served: Served, road: str) -> None:
    async with served.open() as client:
        witness = await log_in(client, "witness")
        # who is still leaving from another test would have the server write to the ghost, and not wait for it
        await be_alone(witness)
        async with witness.receive("LEFT") as left:
            if road == "websocket":
                async with websocket(served) as peer:
                    await join(peer, "ghost")
                    await peer.vanish()
            else:
                async with polling(served) as poller:
                    await poller.join("ghost")
                    await poller.leave_within_a_poll()
            with anyio.fail_after(PATIENCE):
                while await left.receive() != "ghost":
                    pass
        await be_alone(witness)


async def be_alone(member: Connection) -> None:
    with anyio.fail_after(PATIENCE):
        while await member.call("COUNT") > 1:
            pass


async def test_refused_websockets(served: Served) -> None:
    for query, origin, status, body in [
        ("EIO=9&transport=websocket", "", 400, {"code": 5, "message": "Unsupported protocol version"}),
        ("EIO=4&transport=websocket&sid=none", "", 400, {"code": 1, "message": "Session ID unknown"}),
        ("EIO=4&transport=websocket", "http://there.example", 403, {"code": 4, "message": "Forbidden"}),
    ]:
        headers = {
            "connection": "upgrade",
            "upgrade": "websocket",
            "sec-websocket-version": "13",
            "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
            **({"origin": origin} if origin else {}),
        }
        async with httpx.AsyncClient(base_url=served.url) as http:
            response = await http.get(f"{served.path}?{query}", headers=headers)
        assert (response.status_code, response.json()) == (status, body)
