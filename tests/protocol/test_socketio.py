"""Socket.IO packets. The tables marked so are what socket.io-parser itself wrote or read."""

from __future__ import annotations

import contextlib
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brightsocket_anyio.errors import ProtocolError
from brightsocket_anyio.protocol import engineio
from brightsocket_anyio.protocol.socketio import MAX_ID, RESERVED, Decoder, Packet, PacketType, encode

Protocol = Literal[4, 5]
CONNECT, DISCONNECT, EVENT, ACK, CONNECT_ERROR = list(PacketType)[:5]

PLACEHOLDER = '{"_placeholder":true,"num":%s}'
P0, P1 = PLACEHOLDER % 0, PLACEHOLDER % 1


def encoded(packet: Packet, protocol: Protocol = 5) -> list[str | bytes]:
    unit = encode(packet, protocol)
    assert all(part.type is engineio.PacketType.MESSAGE for part in unit)
    return [part.data for part in unit]


def decoded(parts: list[str | bytes], protocol: Protocol = 5, **options: Any) -> Packet:
    """Feed all parts, the last of which completes the packet."""
    decoder = Decoder(protocol, **options)
    for part in parts[:-1]:
        assert decoder.feed(part) is None
        assert decoder.pending
    packet = decoder.feed(parts[-1])
    assert packet is not None
    assert not decoder.pending
    return packet


# Encoded alike by socket.io-parser 3.4.5 (Socket.IO 2.x) and 4.2.7 (4.8); 2.3.1 (1.7) leaves out a comma at the end
BOTH_WAYS: list[tuple[Packet, list[str | bytes]]] = [
    (Packet(CONNECT), ["0"]),
    (Packet(CONNECT, "/chat"), ["0/chat,"]),
    (Packet(DISCONNECT), ["1"]),
    (Packet(DISCONNECT, "/chat"), ["1/chat,"]),
    (Packet(EVENT, "/", ["a", 1.5, None]), ['2["a",1.5,null]']),
    (Packet(EVENT, "/chat", ["a", {}], 12), ['2/chat,12["a",{}]']),
    (Packet(EVENT, "/", ["a", "\u007f\u001e"]), ['2["a","\x7f\\u001e"]']),
    (Packet(ACK, "/", [], 0), ["30[]"]),
    (
        Packet(EVENT, "/chat", ["a", {"x": [b"\x01\x02"]}, b""], 7),
        [f'52-/chat,7["a",{{"x":[{P0}]}},{P1}]', b"\x01\x02", b""],
    ),
    (Packet(ACK, "/", [b"\xff"], 3), [f"61-3[{P0}]", b"\xff"]),
    (Packet(ACK, "/chat", [], MAX_ID), ["3/chat,9007199254740991[]"]),
]


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize(("packet", "parts"), BOTH_WAYS)
def test_both_ways_in_both_protocols(packet: Packet, parts: list[str | bytes], protocol: Protocol) -> None:
    assert encoded(packet, protocol) == parts
    assert decoded(parts, protocol) == packet


@pytest.mark.parametrize(
    ("packet", "parts"),
    [
        (Packet(EVENT, "/ñ", ["é😀"]), ['2/ñ,["é😀"]']),
        (Packet(CONNECT, "/chat", {"token": "é"}), ['0/chat,{"token":"é"}']),
        (Packet(CONNECT, "/", {"sid": "x"}), ['0{"sid":"x"}']),
        (Packet(CONNECT, "/a?b"), ["0/a?b,"]),
        (Packet(CONNECT_ERROR, "/chat", {"message": "no"}), ['4/chat,{"message":"no"}']),
        (Packet(CONNECT_ERROR, "/", {"message": "no", "data": {"a": 1}}), ['4{"message":"no","data":{"a":1}}']),
    ],
)
def test_both_ways_in_protocol_5(packet: Packet, parts: list[str | bytes]) -> None:
    assert encoded(packet, 5) == parts
    assert decoded(parts, 5) == packet


@pytest.mark.parametrize(
    ("packet", "parts"),
    [
        (Packet(EVENT, "/ñ", ["é😀"]), [r'2/ñ,["\u00e9\ud83d\ude00"]']),
        (Packet(CONNECT, "/", {"token": "1"}), ["0/?token=1,"]),
        (Packet(CONNECT, "/chat", {"a b": "é,&=+?", "c": ""}), ["0/chat?a%20b=%C3%A9%2C%26%3D%2B%3F&c=,"]),
        (Packet(CONNECT_ERROR, "/chat", {"message": "no"}), ['4/chat,"no"']),
        (Packet(CONNECT_ERROR, "/", {"message": ""}), ['4""']),
        (Packet(CONNECT_ERROR, "/", {"message": "no", "data": {"message": "no", "a": 1}}), ['4{"message":"no","a":1}']),
        (Packet(CONNECT_ERROR, "/", {"message": "refused", "data": [0]}), ["4[0]"]),
    ],
)
def test_both_ways_in_protocol_4(packet: Packet, parts: list[str | bytes]) -> None:
    assert encoded(packet, 4) == parts
    assert decoded(parts, 4) == packet


# what socket.io-parser reads and nothing of ours writes
@pytest.mark.parametrize(
    ("protocol", "parts", "packet"),
    [
        (5, ["0/chat"], Packet(CONNECT, "/chat")),
        (4, ["0/chat"], Packet(CONNECT, "/chat")),
        (4, ["0/chat?"], Packet(CONNECT, "/chat")),
        (4, ["0/chat?a=1&a=2&b&=c&d=%FF+%20"], Packet(CONNECT, "/chat", {"a": "2", "b": "", "": "c", "d": "\ufffd  "})),
        (4, ['2/chat?a=1,["a"]'], Packet(EVENT, "/chat", ["a"])),
        (4, ["1/chat"], Packet(DISCONNECT, "/chat")),
        (5, ['2/,["a"]'], Packet(EVENT, "/", ["a"])),
        (5, ['2007["a"]'], Packet(EVENT, "/", ["a"], 7)),
        (5, ['4"no"'], Packet(CONNECT_ERROR, "/", {"message": "no"})),
        (5, ["4"], Packet(CONNECT_ERROR, "/", {"message": ""})),
        (4, ["4"], Packet(CONNECT_ERROR, "/", {"message": ""})),
        (4, ['4{"message":1}'], Packet(CONNECT_ERROR, "/", {"message": "refused", "data": {"message": 1}})),
        (5, [f'52-/c,7["a",{P1},{P0}]', b"x", b"y"], Packet(EVENT, "/c", ["a", b"y", b"x"], 7)),
        (5, [f'2["a",{P0}]'], Packet(EVENT, "/", ["a", {"_placeholder": True, "num": 0}])),
        (
            5,
            ['51-["a",{"_placeholder":false,"num":0},{"_placeholder":true,"num":0,"x":1}]', b"x"],
            Packet(EVENT, "/", ["a", {"_placeholder": False, "num": 0}, b"x"]),
        ),
        (
            5,
            ['2["a",9007199254740993,12345678901234567890]'],
            Packet(EVENT, "/", ["a", 9007199254740992, 12345678901234567168]),
        ),
    ],
)
def test_further_forms_are_read(protocol: Protocol, parts: list[str | bytes], packet: Packet) -> None:
    assert decoded(parts, protocol) == packet


def test_one_decoder_reads_packet_after_packet() -> None:
    decoder = Decoder(5)
    units: list[list[str | bytes]] = [[f'51-["a",{P0}]', b"x"], ['2["b"]'], [f"62-1[{P0},{P1}]", b"y", b"z"]]
    for parts in units:
        got = [decoder.feed(part) for part in parts]
        assert got[:-1] == [None] * (len(parts) - 1)
        assert got[-1] == decoded(parts)


HARMFUL_IN_5 = [
    "",
    "7",
    "x",
    "٢[]",
    # an event without its list, or without a name
    "2",
    "2/chat",
    '2/chat["a"]',
    "2{}",
    "2[]",
    "2[1]",
    "2[{}]",
    "2[null]",
    '2[["a"]]',
    '2["a"',
    '2["a"]x',
    *(f'2["{name}"]' for name in sorted(RESERVED)),
    # ack ids
    '2²["a"]',
    '2٣["a"]',
    '2 1["a"]',
    '21 ["a"]',
    '2-1["a"]',
    '21.0["a"]',
    '21e3["a"]',
    f'2{10**20}["a"]',
    f'2{2**53}["a"]',
    "2" + "1" * 5000 + '["a"]',
    "3[]",
    "3",
    "31",
    "31{}",
    "3 1[]",
    # JSON that could not be sent again
    '2["a",NaN]',
    '2["a",1e400]',
    r'2["a","\ud800"]',
    '2["a","\ud800"]',
    '2["a",' + "1" * 5000 + "]",
    "2" + "[" * 100_000,
    '2["a",' + "[" * 100_000 + "]" * 100_001,
    '2["a",' + "[" * 300 + "]" * 301,
    # attachments
    "5",
    "50-",
    '50-["a"]',
    '5["a"]',
    '5-["a"]',
    f'5²-["a",{P0}]',
    f'51.0-["a",{P0}]',
    f'5 1-["a",{P0}]',
    f'5-1-["a",{P0}]',
    '511-["a"]',
    f'51000000000-["a",{P0}]',
    "5" + "1" * 5000 + '-["a"]',
    '51-["a"]',
    f'51-["a",{P0},{P0}]',
    f'51-["a",{P0},{P1}]',
    f'52-["a",{P0},{P0}]',
    f'52-["a",{PLACEHOLDER % 9},{P0}]',
    f'51-["a",{PLACEHOLDER % -1}]',
    f'51-["a",{PLACEHOLDER % 1.5}]',
    f'51-["a",{PLACEHOLDER % "0.0"}]',
    f'51-["a",{PLACEHOLDER % "true"}]',
    f"""51-["a",{PLACEHOLDER % '"0"'}]""",
    '51-["a",{"_placeholder":true}]',
    f"51-[{P0}]",
    f"61-[{P0}]",
    # CONNECT, DISCONNECT, CONNECT_ERROR
    "0[]",
    '0"a"',
    "01",
    "0{",
    "1{}",
    "1/chat,1",
    "44",
    "4[]",
    "4null",
    "4{",
    # namespaces
    "0/\x1e,",
    "0/a\x00b,",
    "0/\ud800,",
    f"0/{'a' * 600},",
]
HARMFUL_IN_4 = [
    '0{"sid":"x"}',
    "0/chat,{}",
    "0/a\x00b,",
    "0/\ud800,",
    "0/a?b=\ud800,",
    "0/a?b=\x00,",
    f"0/a?{'b' * 9000},",
    f"0/a?{'b&' * 1000},",
    f"0/{'a' * 600},",
    "4{",
]
HARMFUL_SEQUENCES: list[list[str | bytes]] = [
    [b"x"],
    [f'51-["a",{P0}]', '2["a"]'],
    [f'51-["a",{P0}]', "41"],
    [f'51-["a",{P0}]', b"x", b"y"],
]


@pytest.mark.parametrize("text", HARMFUL_IN_5, ids=lambda text: ascii(text)[:40])
def test_what_protocol_5_does_not_let_in(text: str) -> None:
    with pytest.raises(ProtocolError):
        Decoder(5).feed(text)


@pytest.mark.parametrize("text", HARMFUL_IN_4, ids=lambda text: ascii(text)[:40])
def test_what_protocol_4_does_not_let_in(text: str) -> None:
    with pytest.raises(ProtocolError):
        Decoder(4).feed(text)


@pytest.mark.parametrize("parts", HARMFUL_SEQUENCES)
def test_attachments_come_when_they_are_due(parts: list[str | bytes]) -> None:
    decoder = Decoder(5)
    for part in parts[:-1]:
        decoder.feed(part)
    with pytest.raises(ProtocolError):
        decoder.feed(parts[-1])


def test_attachments_are_bounded() -> None:
    names = ",".join(PLACEHOLDER % number for number in range(10))
    parts: list[str | bytes] = [f'510-["a",{names}]', *[b"x"] * 10]
    assert decoded(parts).data == ["a", *[b"x"] * 10]
    for most in (0, 9):
        with pytest.raises(ProtocolError, match="10 attachments"):
            Decoder(5, max_attachments=most).feed(parts[0])


UNSENDABLE: list[tuple[Protocol, Packet, str]] = [
    (5, Packet(EVENT, "/", None), "must be a list, not NoneType"),
    (5, Packet(EVENT, "/", "ab"), "must be a list, not str"),
    (5, Packet(EVENT, "/", {"a": 1}), "must be a list, not dict"),
    (5, Packet(EVENT, "/", []), "name must be a text"),
    (5, Packet(EVENT, "/", [1]), "name must be a text"),
    (5, Packet(EVENT, "/", [b"a"]), "name must be a text"),
    *[(5, Packet(EVENT, "/", [name]), "reserved") for name in sorted(RESERVED)],
    (5, Packet(EVENT, "/", ["a", {1}]), "type set"),
    (5, Packet(EVENT, "/", ["a", b"x", {"_placeholder": True, "num": 0}]), "_placeholder"),
    (5, Packet(EVENT, "/", ["a"], -1), "ack id -1"),
    (5, Packet(EVENT, "/", ["a"], 2**53), "ack id 9007199254740992"),
    (5, Packet(ACK, "/", []), "must have an id"),
    (5, Packet(ACK, "/", None, 1), "must be a list"),
    (5, Packet(CONNECT, "/", {}, 1), "no ack id"),
    (5, Packet(CONNECT, "/", ["a"]), "must be a dict, not list"),
    (5, Packet(CONNECT, "/", {"a": b"x"}), "can carry bytes"),
    (4, Packet(CONNECT, "/", "a"), "must be a dict, not str"),
    (4, Packet(CONNECT, "/", {"a": 1}), "must be texts, not int"),
    (4, Packet(CONNECT, "/", {1: "a"}), "must be texts, not int"),
    (4, Packet(CONNECT, "/", {"a": "\ud800"}), "surrogates"),
    (5, Packet(CONNECT_ERROR), "a dict with a message"),
    (4, Packet(CONNECT_ERROR, "/", "no"), "a dict with a message"),
    (4, Packet(CONNECT_ERROR, "/", {"message": 1}), "a dict with a message"),
    (4, Packet(CONNECT_ERROR, "/", {"message": "no", "data": b"x"}), "can carry bytes"),
    (5, Packet(DISCONNECT, "/", {}), "no data"),
    (5, Packet(PacketType.BINARY_EVENT, "/", ["a"]), "send EVENT or ACK"),
    (5, Packet(CONNECT, "chat"), "no valid namespace"),
    (5, Packet(CONNECT, ""), "no valid namespace"),
    (5, Packet(CONNECT, "/a,b"), "no valid namespace"),
    (5, Packet(CONNECT, "/a\x1e"), "no valid namespace"),
    (5, Packet(CONNECT, "/\ud800"), "no valid namespace"),
    (4, Packet(CONNECT, "/a?b"), "question mark"),
]


@pytest.mark.parametrize(("protocol", "packet", "problem"), UNSENDABLE)
def test_what_cannot_be_sent(protocol: Protocol, packet: Packet, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        encode(packet, protocol)
    assert not isinstance(caught.value, ProtocolError)


def test_an_empty_query_is_none() -> None:
    assert encoded(Packet(CONNECT, "/chat", {}), 4) == ["0/chat,"]


# -- properties

texts = st.text(st.characters(exclude_categories=["Cs"]))
namespaces = st.just("/") | st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=",?"), max_size=20
).map("/".__add__)
scalars = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | texts | st.binary(max_size=8)
keys = texts.filter(lambda key: key != "_placeholder")
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(keys, inner), max_leaves=10)
ids = st.integers(0, MAX_ID)
protocols = st.sampled_from((4, 5))
events = st.builds(
    lambda namespace, name, args, id: Packet(EVENT, namespace, [name, *args], id),
    namespaces,
    texts.filter(lambda name: name not in RESERVED),
    st.lists(values, max_size=4),
    st.none() | ids,
)
acks = st.builds(Packet, st.just(ACK), namespaces, st.lists(values, max_size=4), ids)


@given(events | acks, protocols)
def test_every_event_and_answer_survives(packet: Packet, protocol: Protocol) -> None:
    assert decoded(encoded(packet, protocol), protocol, max_attachments=1000) == packet


@given(namespaces, st.dictionaries(texts, texts, max_size=5))
def test_every_query_survives(namespace: str, query: dict[str, str]) -> None:
    assert decoded(encoded(Packet(CONNECT, namespace, query), 4), 4) == Packet(CONNECT, namespace, query or None)


pieces = st.sampled_from(
    (*"0123456-/?&=,[]² ", "1-", "2-", "/a", "{}", '"a"', "null", "\ud800", "9" * 17, '{"message":"no"}')
) | st.sampled_from((P0, P1, '["a"]', f'["a",{P0}]', f"[{P0},{P1}]"))
messages = st.text(st.characters()) | st.lists(pieces).map("".join) | st.binary(max_size=3)


@given(st.lists(messages, max_size=4), protocols)
def test_anything_is_a_packet_that_can_be_sent_or_a_protocol_error(
    parts: list[str | bytes], protocol: Protocol
) -> None:
    decoder = Decoder(protocol)
    with contextlib.suppress(ProtocolError):
        for part in parts:
            packet = decoder.feed(part)
            assert decoder.pending is (packet is None)
            if packet is not None and packet.type is not CONNECT_ERROR:
                assert decoded(encoded(packet, protocol), protocol) == packet
