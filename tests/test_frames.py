"""Packets as finished frames: what is made in few steps is what the ``websockets`` package makes."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from brightsocket_anyio.protocol.engineio import Packet, PacketType, encode
from brightsocket_anyio.transports.frames import frames_of

MESSAGE = PacketType.MESSAGE

texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.sampled_from([0, 1, 123, 124, 125, 126, 65_534, 65_535]).map(lambda size: "x" * size),
    st.sampled_from([61, 62, 63]).map(lambda size: "\u00fc" * size),
)
packets = st.one_of(
    st.builds(Packet, st.sampled_from(PacketType), texts),
    st.builds(Packet, st.just(MESSAGE), st.binary(max_size=130)),
)


@pytest.mark.parametrize("eio", [3, 4])
@given(st.lists(packets, max_size=3), st.booleans())
@example([Packet(MESSAGE, "x" * 124)], False)
@example([Packet(MESSAGE, "x" * 125)], False)
@example([Packet(MESSAGE, "\u00fc" * 62)], False)
def test_frames_are_those_of_websockets(eio: Literal[3, 4], packets: list[Packet], shared: bool) -> None:
    expected = b""
    for packet in packets:
        message = encode(packet, eio)
        data = message.encode() if isinstance(message, str) else message
        opcode = Opcode.TEXT if isinstance(message, str) else Opcode.BINARY
        expected += Frame(opcode, data).serialize(mask=False)
        if shared:
            packet.share()
    for _ in range(2):
        assert frames_of(packets, eio) == expected
