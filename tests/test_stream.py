"""Engine.IO packets over a WebSocket of our own."""

from __future__ import annotations

from typing import Literal

import anyio
import pytest
from websockets.protocol import Side

from brightsocket_anyio.errors import ProtocolError
from brightsocket_anyio.protocol.engineio import Packet, PacketType
from brightsocket_anyio.transports.stream import StreamTransport

from .streams import CLOSE, TEXT, frame, linked
from .test_websocket import both, websocket

PACKETS = [
    Packet(PacketType.PING, "probe"),
    Packet(PacketType.MESSAGE, "grün"),
    Packet(PacketType.MESSAGE, b"\x00\x01"),
    Packet(PacketType.MESSAGE, b""),
    Packet(PacketType.NOOP),
]


@pytest.mark.parametrize("eio", [3, 4])
async def test_packets_both_ways(eio: Literal[3, 4]) -> None:
    async with both() as ends:
        server, client = (StreamTransport(end, eio) for end in ends)
        for sender, receiver in (server, client), (client, server):
            await sender.send(PACKETS)
            assert await receiver.receive() == PACKETS
        assert server.name == "websocket"
        async with anyio.create_task_group() as tg:
            tg.start_soon(client.aclose)
            with pytest.raises(anyio.EndOfStream):
                await server.receive()
            await server.aclose()


async def test_a_broadcast_is_framed_once() -> None:
    packet = Packet(PacketType.MESSAGE, "x")
    packet.share()
    async with both() as (one, other), both() as (old, _):
        await StreamTransport(one, 4).send([packet])
        frames = dict(packet.forms or ())
        assert len(frames) >= 1
        await StreamTransport(other, 4).send([packet])
        await StreamTransport(old, 3).send([packet])
        assert all((packet.forms or {})[key] is value for key, value in frames.items())
        assert b"\x81\x024x" in frames.values()


async def test_a_bad_packet_does_not_hide_the_good_ones_before_it() -> None:
    async with both() as (server, client):
        transport = StreamTransport(server, 4)
        await client.send(["4x", "nonsense", "4y"])
        assert await transport.receive() == [Packet(PacketType.MESSAGE, "x")]
        for _ in range(2):
            with pytest.raises(ProtocolError):
                await transport.receive()
        await client.send(["nonsense"])


async def test_a_bad_packet_alone() -> None:
    async with both() as (server, client):
        await client.send(["nonsense"])
        with pytest.raises(ProtocolError):
            await StreamTransport(server, 4).receive()


async def test_messages_before_a_close_whose_answer_has_to_wait_are_at_hand() -> None:
    """Whoever sends meanwhile learns that this is the end, and the session may read no more."""
    async with linked(0) as (here, there), anyio.create_task_group() as tg:
        server = StreamTransport(websocket(here, Side.SERVER), 4)
        tg.start_soon(server.receive)
        await there.send(frame(TEXT, b"4" + b"x" * 2000) + frame(CLOSE))
        await anyio.wait_all_tasks_blocked()
        # nobody has read the answer yet
        tg.cancel_scope.cancel()
    assert server.take_arrived() == [Packet(PacketType.MESSAGE, "x" * 2000)]
    assert server.take_arrived() == []
