"""Engine.IO packets and polling payloads. The tables marked so are what engine.io-parser itself wrote or read."""

from __future__ import annotations

import contextlib
import json
from functools import partial
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brightsocket_anyio.errors import ProtocolError
from brightsocket_anyio.protocol import engineio
from brightsocket_anyio.protocol.engineio import (
    BINARY,
    TEXT,
    Open,
    Packet,
    PacketType,
    decode,
    encode,
    encode_payload,
)

EIO = Literal[3, 4]
MAX_PACKETS = 1000
decode_payload = partial(engineio.decode_payload, max_packets=MAX_PACKETS)
OPEN, CLOSE, PING, PONG, MESSAGE, UPGRADE, NOOP = PacketType

GREETING = "héllo€😀"
FEW = [Packet(MESSAGE, GREETING), Packet(PING, "probe")]
MIXED = [*FEW, Packet(MESSAGE, b"\x01\x02\xff"), Packet(NOOP)]

eios = st.sampled_from((3, 4))
contents = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x1e"))
text_packets = st.builds(Packet, st.sampled_from(PacketType), contents)
packets = text_packets | st.builds(Packet, st.just(MESSAGE), st.binary())


# -- packets


def test_a_packet_is_its_type_and_data() -> None:
    packet = Packet(MESSAGE, "a")
    assert packet.forms is None
    packet.share()
    assert encode(packet, 4) is encode(packet, 4)
    assert packet.forms == {4: "4a"}
    assert packet == Packet(MESSAGE, "a")
    assert hash(packet) == hash(Packet(MESSAGE, "a"))
    assert packet != Packet(PING, "a")
    assert packet != Packet(MESSAGE, b"a")
    assert packet != "4a"
    assert repr(packet) == "Packet(MESSAGE, 'a')"


@pytest.mark.parametrize(
    ("packet", "size"),
    [(Packet(NOOP), 1), (Packet(MESSAGE, "abc"), 4), (Packet(MESSAGE, "é😀"), 7), (Packet(MESSAGE, b"abc"), 4)],
)
def test_size_is_in_bytes(packet: Packet, size: int) -> None:
    assert packet.size == size


@pytest.mark.parametrize(("type", "data"), [(PING, b"probe"), (MESSAGE, "\ud800")])
def test_a_packet_that_cannot_be_sent_cannot_be_made(type: PacketType, data: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"text only|surrogates"):
        Packet(type, data)


# -- WebSocket messages

MESSAGES = [
    (Packet(OPEN, "{}"), 4, "0{}"),
    (Packet(CLOSE), 4, "1"),
    (Packet(PING, "probe"), 4, "2probe"),
    (Packet(PONG), 3, "3"),
    (Packet(MESSAGE, GREETING), 3, "4" + GREETING),
    (Packet(MESSAGE, GREETING), 4, "4" + GREETING),
    (Packet(UPGRADE), 4, "5"),
    (Packet(NOOP), 4, "6"),
    (Packet(MESSAGE, b"\x01\x02\xff"), 3, b"\x04\x01\x02\xff"),
    (Packet(MESSAGE, b"\x01\x02\xff"), 4, b"\x01\x02\xff"),
    (Packet(MESSAGE, b""), 3, b"\x04"),
    (Packet(MESSAGE, b""), 4, b""),
]


@pytest.mark.parametrize(("packet", "eio", "message"), MESSAGES)
def test_messages_both_ways(packet: Packet, eio: EIO, message: str | bytes) -> None:
    assert encode(packet, eio) == message
    assert decode(message, eio) == packet


def test_text_is_not_decoded_twice_on_a_websocket() -> None:
    assert decode("4Ã©", 3) == Packet(MESSAGE, "Ã©")


@pytest.mark.parametrize(("eio", "message"), [(3, "b4AQL/"), (4, "bAQL/")])
def test_base64_is_read_on_a_websocket_too(eio: EIO, message: str) -> None:
    assert decode(message, eio) == Packet(MESSAGE, b"\x01\x02\xff")


@pytest.mark.parametrize(
    ("message", "eio"),
    [
        ("", 4),
        ("7", 4),
        ("x", 3),
        ("٤", 4),
        ("²", 4),
        ("4\ud800", 4),
        ("\ud800", 4),
        ("bA", 4),
        ("bé", 4),
        ("bAQL/AA==x", 4),
        ("bAQ_-", 4),
        ("b", 3),
        ("b3AQL/", 3),
        ("bAQL/", 3),
        (b"", 3),
        (b"\x02probe", 3),
        (b"4a", 3),
    ],
)
def test_what_is_no_packet(message: str | bytes, eio: EIO) -> None:
    with pytest.raises(ProtocolError):
        decode(message, eio)


# -- payloads

# engine.io-parser 1.3.2 (Socket.IO 1.7), 2.2.1 (2.x), 5.2.3 (4.8), as they encode and as they decode what we encode
WRITTEN_BY_JAVASCRIPT = [
    ("1.3.2", 3, False, "31343a3468c383c2a96c6c6fc3a2c282c2acc3b0c29fc298c280363a3270726f6265", FEW),
    ("1.3.2", 3, True, "000104ff3468c3a96c6c6fe282acf09f98800006ff3270726f6265", FEW),
    (
        "1.3.2",
        3,
        False,
        "31343a3468c383c2a96c6c6fc3a2c282c2acc3b0c29fc298c280363a3270726f6265363a623441514c2f313a36",
        MIXED,
    ),
    ("2.2.1", 3, False, "393a3468c3a96c6c6fe282acf09f9880363a3270726f6265", FEW),
    ("2.2.1", 3, False, "393a3468c3a96c6c6fe282acf09f9880363a3270726f6265363a623441514c2f313a36", MIXED),
    ("2.2.1", 3, True, "000104ff3468c3a96c6c6fe282acf09f98800006ff3270726f62650104ff040102ff0001ff36", MIXED),
    ("5.2.3", 4, False, "3468c3a96c6c6fe282acf09f98801e3270726f62651e6241514c2f1e36", MIXED),
]


@pytest.mark.parametrize(("version", "eio", "binary", "body", "expected"), WRITTEN_BY_JAVASCRIPT)
def test_payloads_of_javascript(version: str, eio: EIO, binary: bool, body: str, expected: list[Packet]) -> None:
    assert decode_payload(bytes.fromhex(body), eio, binary=binary) == expected
    if version != "1.3.2":
        content_type = BINARY if binary else TEXT
        assert encode_payload(expected, eio, base64=not binary) == (content_type, bytes.fromhex(body))


def test_binary_payloads_only_where_there_is_binary() -> None:
    assert encode_payload(FEW, 3, base64=False)[0] == TEXT
    assert encode_payload(MIXED, 4, base64=False) == encode_payload(MIXED, 4, base64=True)


def test_lengths_are_those_of_javascript() -> None:
    assert encode_payload([Packet(MESSAGE, "é"), Packet(MESSAGE, "😀")], 3, base64=False) == (
        TEXT,
        "2:4é3:4😀".encode(),
    )


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ("Ã©", "é"),
        # not UTF-8 when read as bytes, or not bytes at all: encoded once only
        ("é", "é"),
        ("Ã©€", "Ã©€"),
    ],
)
def test_a_second_utf8_is_undone(sent: str, meant: str) -> None:
    body = f"{len(sent) + 1}:4{sent}".encode()
    assert decode_payload(body, 3, binary=False) == [Packet(MESSAGE, meant)]


@pytest.mark.parametrize(
    ("body", "eio", "binary"),
    [
        (b"", 4, False),
        (b"\x1e", 4, False),
        (b"4a\x1e", 4, False),
        (b"4a\x1e\x1e4b", 4, False),
        (b"4\xff", 4, False),
        (b"4\xed\xa0\x80", 4, False),
        (b"4a", 4, True),
        (b"", 3, False),
        (b"0:", 3, False),
        (b"4a", 3, False),
        (b"2:4", 3, False),
        (b"-1:4", 3, False),
        (b"1e1:4aaaaaaaaa", 3, False),
        (b" 2:4a", 3, False),
        (b"2:4a1", 3, False),
        (b"9999999999:4", 3, False),
        (b"9" * 5000 + b":4", 3, False),
        ("٢:4a".encode(), 3, False),
        ("2:4😀".encode(), 3, False),
        ("4:4😀".encode(), 3, False),
        (b"2:4\xff", 3, False),
        (b"", 3, True),
        (b"\x00", 3, True),
        (b"\x00\xff", 3, True),
        (b"\x00\x01\xff", 3, True),
        (b"\x00\x02\xff4", 3, True),
        (b"\x02\x01\xff4", 3, True),
        (b"\x00\x0a\xff4", 3, True),
        (b"\x00" + b"\x09" * 400 + b"\xff4", 3, True),
        (b"\x00\x02\xff4\xff", 3, True),
        (b"\x01\x02\xff\x02a", 3, True),
        (b"\x01\x00\xff", 3, True),
    ],
)
def test_what_is_no_payload(body: bytes, eio: EIO, binary: bool) -> None:
    with pytest.raises(ProtocolError):
        decode_payload(body, eio, binary=binary)


@pytest.mark.parametrize(
    ("eio", "binary", "packet", "separator"),
    [(4, False, b"4", b"\x1e"), (3, False, b"1:4", b""), (3, True, b"\0\1\xff4", b"")],
)
def test_the_packets_of_a_payload_are_bounded(eio: EIO, binary: bool, packet: bytes, separator: bytes) -> None:
    assert len(decode_payload(separator.join([packet] * MAX_PACKETS), eio, binary=binary)) == MAX_PACKETS
    for count, most in ((MAX_PACKETS + 1, MAX_PACKETS), (300_000, MAX_PACKETS), (3, 2)):
        with pytest.raises(ProtocolError, match=f"more than {most} packets"):
            decode_payload(separator.join([packet] * count), eio, binary=binary, max_packets=most)


@given(packets, eios)
def test_every_packet_survives_a_websocket(packet: Packet, eio: EIO) -> None:
    assert decode(encode(packet, eio), eio) == packet


@given(st.lists(packets, min_size=1), st.booleans())
def test_every_packet_survives_polling(sent: list[Packet], base64: bool) -> None:
    content_type, body = encode_payload(sent, 4, base64=base64)
    assert decode_payload(body, 4, binary=content_type == BINARY) == sent


@given(
    st.lists(
        st.builds(Packet, st.sampled_from(PacketType), st.text(st.characters(max_codepoint=0x7F)) | st.just(GREETING))
        | st.builds(Packet, st.just(MESSAGE), st.binary()),
        min_size=1,
    ),
    st.booleans(),
)
def test_every_packet_survives_the_older_polling(sent: list[Packet], base64: bool) -> None:
    content_type, body = encode_payload(sent, 3, base64=base64)
    assert decode_payload(body, 3, binary=content_type == BINARY) == sent


@given(st.text(st.characters()) | st.binary(), eios)
def test_any_message_is_a_packet_or_a_protocol_error(message: str | bytes, eio: EIO) -> None:
    with contextlib.suppress(ProtocolError):
        decode(message, eio)


lengths = st.sampled_from(
    [b"1:", b"2:4", b"10:", b"\0\1\xff", b"\1\2\xff\4", b"\x1e", b"4", b"b", b"b4", "😀é".encode()]
)


@given(st.binary() | st.lists(lengths | st.binary(max_size=3)).map(b"".join), eios, st.booleans())
def test_any_body_is_a_payload_or_a_protocol_error(body: bytes, eio: EIO, binary: bool) -> None:
    with contextlib.suppress(ProtocolError):
        assert decode_payload(body, eio, binary=binary)


# -- the open packet


def test_open_both_ways() -> None:
    handshake = Open("abc", ("websocket",), 25.0, 20.5, 1_000_000)
    packet = Packet(
        OPEN, '{"sid":"abc","upgrades":["websocket"],"pingInterval":25000,"pingTimeout":20500,"maxPayload":1000000}'
    )
    assert handshake.to_packet() == packet
    assert Open.from_packet(packet) == handshake


def test_open_of_older_servers() -> None:
    handshake = Open("abc", (), 25.0, 60.0)
    assert handshake.to_packet().data == '{"sid":"abc","upgrades":[],"pingInterval":25000,"pingTimeout":60000}'
    assert Open.from_packet(Packet(OPEN, '{"sid":"abc","pingInterval":25000,"pingTimeout":6e4,"x":1}')) == handshake


@pytest.mark.parametrize(
    "change",
    [
        {"sid": None},
        {"sid": 1},
        {"sid": ""},
        {"upgrades": None},
        {"upgrades": "websocket"},
        {"upgrades": [1]},
        {"pingInterval": None},
        {"pingInterval": 0},
        {"pingInterval": True},
        {"pingInterval": "25000"},
        {"pingTimeout": -1},
        {"maxPayload": 0},
        {"maxPayload": True},
        {"maxPayload": 1.5},
    ],
)
def test_an_open_packet_that_cannot_work(change: dict[str, Any]) -> None:
    fields = {"sid": "abc", "upgrades": [], "pingInterval": 25000, "pingTimeout": 20000, **change}
    with pytest.raises(ProtocolError):
        Open.from_packet(Packet(OPEN, json.dumps(fields)))


@pytest.mark.parametrize("data", ["", "[]", "null", "{", '{"pingInterval":1e400}', "[" * 100_000])
def test_an_open_packet_that_is_no_object(data: str) -> None:
    with pytest.raises(ProtocolError):
        Open.from_packet(Packet(OPEN, data))


def test_a_packet_that_is_not_open() -> None:
    with pytest.raises(ProtocolError, match="MESSAGE"):
        Open.from_packet(Packet(MESSAGE, "{}"))
