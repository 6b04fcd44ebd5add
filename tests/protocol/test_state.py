"""The automaton without I/O: its tables row by row, its timers, and whatever a peer may send."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from brightsocket_anyio import ProtocolError, Settings
from brightsocket_anyio.protocol import engineio
from brightsocket_anyio.protocol.engineio import Packet, PacketType
from brightsocket_anyio.protocol.state import (
    PROBE_ANSWER,
    ROADS,
    STAYS,
    Action,
    Answer,
    Automaton,
    Ended,
    Expired,
    Explained,
    Identified,
    Identifying,
    Joined,
    Joining,
    Left,
    OfferExpired,
    Opened,
    Rejected,
    Road,
    RoadInput,
    Side,
    Stay,
    StayInput,
    Unit,
    encode_connect,
    encode_identify,
)

EIO = Literal[3, 4]
S, I = Stay, StayInput  # noqa: E741
SETTINGS = Settings()


def server(eio: EIO = 4, *, polling: bool = False, now: float = 0, settings: Settings = SETTINGS) -> Automaton:
    automaton = Automaton(Side.SERVER, eio, settings, sid="sid", now=now)
    automaton.open(now, polling=polling)
    return automaton


def client(eio: EIO = 4, *, now: float = 0, settings: Settings = SETTINGS, polling: bool = False) -> Automaton:
    automaton = Automaton(Side.CLIENT, eio, settings, now=now, polling=polling)
    opened = engineio.Open(sid="sid", upgrades=(), ping_interval=25, ping_timeout=20, max_payload=None)
    assert automaton.receive(opened.to_packet(), now) == Opened("sid", ())
    return automaton


def message(text: str | bytes) -> Packet:
    return Packet(PacketType.MESSAGE, text)


def texts(unit: Unit) -> list[str | bytes]:
    return [packet.data for packet in unit]


def event(name: str, *args: Any, namespace: str = "/") -> Packet:
    return message(f"2{'' if namespace == '/' else namespace + ','}{json.dumps([name, *args])}")


#: how to bring a namespace where a row of the table begins
SERVER_WAYS: dict[Stay, list[Callable[[Automaton], object]]] = {
    S.ABSENT: [],
    S.CONNECTING: [lambda a: a.receive(message("0"), 0)],
    S.CONNECTED: [lambda a: a.receive(message("0"), 0), lambda a: a.admit(0, "id")],
    S.IDENTIFYING: [
        lambda a: a.receive(message("0"), 0),
        lambda a: a.admit(0, "id"),
        lambda a: a.receive(event("BRIGHTSOCKET:IDENTIFY", {"BRIGHTSOCKET:CHANNEL": "X"}), 0),
    ],
    S.ACTIVE: [lambda a: a.receive(message("0"), 0), lambda a: a.accept("/", 0, "id")],
    S.ENDED: [lambda a: a.receive(message("0"), 0), lambda a: a.receive(message("1"), 0)],
}
CLIENT_WAYS: dict[Stay, list[Callable[[Automaton], object]]] = {
    S.ABSENT: [],
    S.CONNECTING: [lambda a: a.ask("/", 0)],
    S.RECOVERING: [lambda a: a.ask("/", 0, recovers=True)],
    S.CONNECTED: [lambda a: a.ask("/", 0), lambda a: a.receive(message('0{"sid":"id"}'), 0)],
    S.IDENTIFYING: [
        lambda a: a.ask("/", 0),
        lambda a: a.receive(message('0{"sid":"id"}'), 0),
        lambda a: a.name(0),
    ],
    S.ACTIVE: [
        lambda a: a.ask("/", 0),
        lambda a: a.receive(message('0{"sid":"id"}'), 0),
        lambda a: a.name(0),
        lambda a: a.receive(event("BRIGHTSOCKET:IDENTIFIED"), 0),
    ],
    S.ENDED: [
        lambda a: a.ask("/", 0),
        lambda a: a.receive(message('0{"sid":"id"}'), 0),
        lambda a: a.receive(message("1"), 0),
    ],
}
WAYS = {Side.SERVER: SERVER_WAYS, Side.CLIENT: CLIENT_WAYS}


def _refuse(automaton: Automaton) -> object:
    return automaton.refuse("/", 0, "no")


SERVER_INPUTS: dict[StayInput, Callable[[Automaton], object]] = {
    I.CONNECT: lambda a: a.receive(message("0"), 0),
    I.CONNECT_ERROR: lambda a: a.receive(message('4{"message":"no"}'), 0),
    I.DISCONNECT: lambda a: a.receive(message("1"), 0),
    I.EVENT: lambda a: a.receive(event("X", 1), 0),
    I.ACK: lambda a: a.receive(message("37[1]"), 0),
    I.IDENTIFY: lambda a: a.receive(event("BRIGHTSOCKET:IDENTIFY", {"BRIGHTSOCKET:CHANNEL": "X", "a": 1}), 0),
    I.ADMIT: lambda a: a.admit(0, "id"),
    I.ACCEPT: lambda a: a.accept("/", 0, "id"),
    I.REFUSE: _refuse,
    I.LEAVE: lambda a: a.leave("/", 0),
}
CLIENT_INPUTS: dict[StayInput, Callable[[Automaton], object]] = {
    I.CONNECT: lambda a: a.receive(message('0{"sid":"id"}'), 0),
    I.CONNECT_ERROR: lambda a: a.receive(message('4{"message":"no","data":1}'), 0),
    I.DISCONNECT: lambda a: a.receive(message("1"), 0),
    I.EVENT: lambda a: a.receive(event("X", 1), 0),
    I.ACK: lambda a: a.receive(message("37[1]"), 0),
    I.IDENTIFIED: lambda a: a.receive(event("BRIGHTSOCKET:IDENTIFIED"), 0),
    I.REFUSED: lambda a: a.receive(event("BRIGHTSOCKET:REFUSED", {"reason": "no"}), 0),
    I.ASK: lambda a: a.ask("/", 0),
    I.ASK_AGAIN: lambda a: a.ask("/", 0, recovers=True),
    I.NAME: lambda a: a.name(0),
    I.LEAVE: lambda a: a.leave("/", 0),
}
INPUTS = {Side.SERVER: SERVER_INPUTS, Side.CLIENT: CLIENT_INPUTS}


def at(side: Side, stay: Stay) -> Automaton:
    automaton = server() if side is Side.SERVER else client()
    for step in WAYS[side][stay]:
        step(automaton)
    assert automaton.stay("/") is stay
    return automaton


@pytest.mark.parametrize(("side", "stay"), [(side, stay) for side in Side for stay in WAYS[side]])
def test_every_stay_and_every_input(side: Side, stay: Stay) -> None:
    """What the table has moves the stay; what it has not is a ProtocolError that leaves it where it is."""
    for given_, do in INPUTS[side].items():
        automaton = at(side, stay)
        after = STAYS[side][stay].get(given_)
        if after is None:
            with pytest.raises(ProtocolError):
                do(automaton)
            assert automaton.stay("/") is stay, given_
        else:
            do(automaton)
            assert automaton.stay("/") is after, given_
            assert automaton.live == ([] if after is S.ENDED else ["/"])


def test_the_tables_name_only_inputs_that_exist() -> None:
    for side in Side:
        # a server's client is never RECOVERING: it has asked, or is let in
        assert set(STAYS[side]) == set(WAYS[side]) == set(Stay) - ({S.RECOVERING} if side is Side.SERVER else set())
        for row in STAYS[side].values():
            assert set(row) <= set(INPUTS[side])
    assert set(ROADS) == set(Road)


def _events(side: Side, stay: Stay) -> dict[StayInput, Any]:
    peers = (I.CONNECT, I.CONNECT_ERROR, I.DISCONNECT, I.EVENT, I.ACK, I.IDENTIFY, I.IDENTIFIED, I.REFUSED)
    return {
        given_: do(at(side, stay))
        for given_, do in INPUTS[side].items()
        if given_ in peers and given_ in STAYS[side][stay]
    }


class TestEvents:
    """What each packet of the peer is, for whoever uses the automaton."""

    action = Action("/", "X", (1,), None, event("X", 1).size)
    answer = Answer("/", 7, (1,))
    identifying = Identifying("X", {"a": 1})

    def test_server(self) -> None:
        side = Side.SERVER
        assert _events(side, S.ABSENT) == {I.CONNECT: Joining("/", None)}
        common = {I.EVENT: self.action, I.ACK: self.answer, I.DISCONNECT: Left("/")}
        assert _events(side, S.CONNECTING) == common
        # no channel is named yet: nobody hears it
        assert _events(side, S.CONNECTED) == {**common, I.EVENT: None, I.IDENTIFY: self.identifying}
        assert _events(side, S.IDENTIFYING) == {**common, I.IDENTIFY: self.identifying}
        assert _events(side, S.ACTIVE) == {**common, I.IDENTIFY: self.identifying}
        ended = dict.fromkeys((I.EVENT, I.ACK, I.DISCONNECT, I.IDENTIFY))
        assert _events(side, S.ENDED) == {**ended, I.CONNECT: Joining("/", None)}

    def test_client(self) -> None:
        side = Side.CLIENT
        joined, rejected = Joined("/", "id"), Rejected("/", "no", 1)
        common = {I.EVENT: self.action, I.ACK: self.answer, I.DISCONNECT: Left("/"), I.CONNECT_ERROR: rejected}
        assert _events(side, S.ABSENT) == {I.CONNECT: joined}
        assert _events(side, S.CONNECTING) == {
            I.CONNECT: joined,
            I.CONNECT_ERROR: rejected,
            I.DISCONNECT: Left("/"),
        }
        assert _events(side, S.RECOVERING) == {**_events(side, S.CONNECTING), I.EVENT: self.action}
        assert _events(side, S.CONNECTED) == {**common, I.REFUSED: Rejected("/", "no")}
        assert _events(side, S.IDENTIFYING) == {
            **common,
            I.IDENTIFIED: Identified(),
            I.REFUSED: Rejected("/", "no"),
        }
        # the original answers IDENTIFY more than once
        assert _events(side, S.ACTIVE) == {**common, I.IDENTIFIED: None}
        ended = _events(side, S.ENDED)
        assert set(ended.values()) == {None}

    def test_what_a_server_gives_to_recover_with(self) -> None:
        """Ours says that each event has an offset; socket.io leaves it to a client to take the last text for one."""
        automaton = client()
        automaton.ask("/", 0)
        joined = automaton.receive(message('0{"sid":"id","pid":"secret","offset":"0"}'), 0)
        assert joined == Joined("/", "id", "secret", "0")
        packet = event("X", 1, "7")
        assert automaton.receive(packet, 0) == Action("/", "X", (1,), None, packet.size, "7")
        packet = event("X", "7")
        assert automaton.receive(packet, 0) == Action("/", "X", (), None, packet.size, "7")
        packet = message('21["X","text"]')
        assert automaton.receive(packet, 0) == Action("/", "X", ("text",), 1, packet.size)

    def test_what_socket_io_gives_to_recover_with(self) -> None:
        automaton = client()
        automaton.ask("/chat", 0)
        assert automaton.receive(message('0/chat,{"sid":"id","pid":"secret"}'), 0) == Joined("/chat", "id", "secret")
        packet = event("X", 1, "7", namespace="/chat")
        assert automaton.receive(packet, 0) == Action("/chat", "X", (1, "7"), None, packet.size, "7")
        packet = event("X", 1, namespace="/chat")
        assert automaton.receive(packet, 0) == Action("/chat", "X", (1,), None, packet.size)

    def test_the_offset_of_a_channel_that_is_named_later(self) -> None:
        automaton = client()
        automaton.ask("/", 0)
        automaton.receive(message('0{"sid":"id","pid":"secret"}'), 0)
        automaton.name(0)
        assert automaton.receive(event("BRIGHTSOCKET:IDENTIFIED", "5"), 0) == Identified("5")
        packet = event("X", "text", "6")
        assert automaton.receive(packet, 0) == Action("/", "X", ("text",), None, packet.size, "6")

    def test_without_anything_to_recover_with_the_last_text_is_a_value(self) -> None:
        automaton = client()
        automaton.ask("/", 0, recovers=True)
        packet = event("X", 1, "7")
        assert automaton.receive(packet, 0) == Action("/", "X", (1, "7"), None, packet.size, "7")
        automaton.receive(message('0{"sid":"id"}'), 0)
        assert automaton.receive(packet, 0) == Action("/", "X", (1, "7"), None, packet.size)

    @pytest.mark.parametrize(
        ("auth", "joining"),
        [
            ('{"pid":"p","offset":"o","name":"ada"}', Joining("/", {"name": "ada"}, "p", "o")),
            ('{"pid":"p"}', Joining("/", {}, "p")),
            ('{"pid":1,"offset":[]}', Joining("/", {})),
            ("", Joining("/", None)),
        ],
    )
    def test_what_a_client_asks_to_recover_is_no_part_of_its_identity(self, auth: str, joining: Joining) -> None:
        settings = Settings(max_disconnection_duration=1)
        assert server(settings=settings).receive(message(f"0{auth}"), 0) == joining
        # where nothing is kept for anybody, the words have no meaning
        plain = json.loads(auth) if auth else None
        assert server().receive(message(f"0{auth}"), 0) == Joining("/", plain)

    @pytest.mark.parametrize("payload", [[], [None], ["X"], [{}], [{"BRIGHTSOCKET:CHANNEL": 1}], [[1]]])
    def test_an_identity_that_names_no_channel(self, payload: list[Any]) -> None:
        assert at(Side.SERVER, S.CONNECTED).receive(event("BRIGHTSOCKET:IDENTIFY", *payload), 0) == Identifying(
            None, None
        )

    def test_our_own_keys_are_taken_out_of_an_identity(self) -> None:
        payload = {"BRIGHTSOCKET:CHANNEL": "X", "BRIGHTSOCKET:OTHER": 1, "kept": 2}
        event_ = at(Side.SERVER, S.CONNECTED).receive(event("BRIGHTSOCKET:IDENTIFY", payload), 0)
        assert event_ == Identifying("X", {"kept": 2})

    def test_an_explanation(self) -> None:
        automaton = at(Side.CLIENT, S.ACTIVE)
        told = automaton.receive(event("BRIGHTSOCKET:CLOSED", {"code": "failed", "reason": "internal error"}), 0)
        assert told == Explained("failed", "internal error")
        for nonsense in ([], [1], [{"code": 1, "reason": []}]):
            assert automaton.receive(event("BRIGHTSOCKET:CLOSED", *nonsense), 0) == Explained("closed", "")

    @pytest.mark.parametrize(
        ("eio", "text", "rejected"),
        [
            (4, '4{"message":"no"}', Rejected("/", "no")),
            (4, '4{"message":"no","data":[1]}', Rejected("/", "no", [1])),
            (4, '4{"message":1}', Rejected("/", "refused")),
            # protocol 4 has either a message or data
            (3, '4"no"', Rejected("/", "no")),
            (3, '4{"message":"no"}', Rejected("/", "no", {"message": "no"})),
            (3, "4[1]", Rejected("/", "refused", [1])),
        ],
    )
    def test_refusals_of_every_kind_of_server(self, eio: EIO, text: str, rejected: Rejected) -> None:
        automaton = client(eio)
        automaton.ask("/", 0)
        assert automaton.receive(message(text), 0) == rejected

    def test_reserved_events_of_the_main_namespace_are_actions_elsewhere(self) -> None:
        automaton = server()
        automaton.receive(message("0/chat,"), 0)
        automaton.accept("/chat", 0, "id")
        taken = automaton.receive(event("BRIGHTSOCKET:IDENTIFY", 1, namespace="/chat"), 0)
        assert isinstance(taken, Action)
        assert taken.name == "BRIGHTSOCKET:IDENTIFY"

    def test_attachments_count_for_an_action_s_size(self) -> None:
        automaton = at(Side.SERVER, S.ACTIVE)
        header = message('51-["X",{"_placeholder":true,"num":0}]')
        assert automaton.receive(header, 0) is None
        taken = automaton.receive(message(b"x" * 1000), 0)
        assert isinstance(taken, Action)
        assert taken.args == (b"x" * 1000,)
        assert taken.size >= 1000 + len(header.data)
        again = automaton.receive(event("X"), 0)
        assert isinstance(again, Action)
        assert again.size < 100


class TestServer:
    def test_the_open_packet(self) -> None:
        for polling, upgrades in ((True, ["websocket"]), (False, [])):
            automaton = Automaton(Side.SERVER, 4, SETTINGS, sid="sid", now=0)
            packet = automaton.open(0, polling=polling)
            assert packet.type is PacketType.OPEN
            assert json.loads(packet.data) == {
                "sid": "sid",
                "upgrades": upgrades,
                "pingInterval": 25000,
                "pingTimeout": 20000,
                "maxPayload": 1_000_000,
            }

    @pytest.mark.parametrize(("eio", "wanted"), [(4, '0{"sid":"id"}'), (3, "0")])
    def test_admission(self, eio: EIO, wanted: str) -> None:
        automaton = server(eio)
        if eio == 3:
            assert automaton.join_unasked(0) == Joining("/", None)
        else:
            automaton.receive(message("0"), 0)
        assert texts(automaton.admit(0, "id")) == [wanted]
        automaton.receive(event("BRIGHTSOCKET:IDENTIFY", {"BRIGHTSOCKET:CHANNEL": "X"}), 0)
        assert texts(automaton.accept("/", 0, "id")) == ['2["BRIGHTSOCKET:IDENTIFIED"]']

    def test_a_second_connect_of_protocol_4s_main_namespace(self) -> None:
        automaton = server(3)
        automaton.join_unasked(0)
        with pytest.raises(ProtocolError):
            automaton.receive(message("0"), 0)

    def test_refusals(self) -> None:
        automaton = at(Side.SERVER, S.CONNECTING)
        [unit] = automaton.refuse("/", 0, "no", {"a": 1})
        [text] = texts(unit)
        assert json.loads(str(text)[1:]) == {"message": "no", "data": {"a": 1}}
        automaton = at(Side.SERVER, S.IDENTIFYING)
        assert [texts(unit) for unit in automaton.refuse("/", 0, "no")] == [
            ['2["BRIGHTSOCKET:REFUSED",{"reason":"no"}]'],
            ["1"],
        ]

    def test_data_that_cannot_be_sent_leaves_the_stay_to_be_refused_again(self) -> None:
        automaton = at(Side.SERVER, S.CONNECTING)
        with pytest.raises(ValueError, match="sent"):
            automaton.refuse("/", 0, "no", object())
        assert automaton.stay("/") is S.CONNECTING
        automaton.refuse("/", 0, "no")

    def test_a_farewell(self) -> None:
        automaton = at(Side.SERVER, S.ACTIVE)
        assert texts(automaton.explain("/", "failed", "why")) == [
            '2["BRIGHTSOCKET:CLOSED",{"code":"failed","reason":"why"}]'
        ]
        assert texts(automaton.leave("/", 0)) == ["1"]

    def test_namespaces_are_bounded(self) -> None:
        automaton = server(settings=Settings(max_namespaces=20))
        for number in range(20):
            automaton.receive(message(f"0/{number},"), 0)
            automaton.receive(message(f"1/{number},"), 0)
        with pytest.raises(ProtocolError, match="too many"):
            automaton.receive(message("0/more,"), 0)
        assert automaton.receive(message("0/1,"), 0) == Joining("/1", None)


def let_in(settings: Settings) -> Automaton:
    automaton = server(settings=settings)
    for step in SERVER_WAYS[S.ACTIVE]:
        step(automaton)
    return automaton


class TestActionRate:
    def test_a_burst_and_then_a_rate(self) -> None:
        automaton = let_in(Settings(action_rate=2, action_burst=3))
        assert [type(automaton.receive(message('2["A"]'), 100)) for _ in range(3)] == [Action] * 3
        assert type(automaton.receive(message('2["A"]'), 100.5)) is Action
        assert type(automaton.receive(message('2["A"]'), 101.0)) is Action
        # acknowledgements, and what goes unheard, cost nothing or the same
        assert automaton.receive(message('31["A"]'), 101.0) == Answer("/", 1, ("A",))
        ended = automaton.receive(message('2["A"]'), 101.0)
        assert isinstance(ended, Ended)
        assert ended.code == "too many actions"
        assert automaton.road is Road.CLOSED

    def test_time_without_actions_gains_no_more_than_a_burst(self) -> None:
        automaton = let_in(Settings(action_rate=1000, action_burst=2))
        assert [type(automaton.receive(message('2["A"]'), 1000)) for _ in range(3)] == [Action, Action, Ended]

    def test_there_is_none_unless_it_is_asked_for(self) -> None:
        automaton = let_in(Settings())
        assert {type(automaton.receive(message('2["A"]'), 1)) for _ in range(10_000)} == {Action}


class TestClient:
    def test_protocol_5_asks_and_protocol_4_waits(self) -> None:
        assert client(4).ask("/", 0)
        assert not client(3).ask("/", 0)
        assert client(3).ask("/chat", 0)

    def test_the_id(self) -> None:
        automaton = client(3)
        automaton.ask("/", 0)
        assert automaton.receive(message("0"), 0) == Joined("/", "sid")
        automaton.ask("/chat", 0)
        assert automaton.receive(message("0/chat"), 0) == Joined("/chat", "/chat#sid")

    @pytest.mark.parametrize("answer", ["0", "0{}", '0{"sid":1}'])
    def test_an_answer_without_an_id_is_an_old_servers(self, answer: str) -> None:
        automaton = client()
        automaton.ask("/", 0)
        with pytest.raises(ProtocolError, match="eio=3"):
            automaton.receive(message(answer), 0)

    @pytest.mark.parametrize("packet", [Packet(PacketType.NOOP), message("0"), Packet(PacketType.OPEN, "{}")])
    def test_what_is_not_an_open_packet(self, packet: Packet) -> None:
        automaton = Automaton(Side.CLIENT, 4, SETTINGS, now=0)
        with pytest.raises(ProtocolError):
            automaton.receive(packet, 0)
        assert automaton.road is Road.OPENING

    def test_the_servers_times_count(self) -> None:
        automaton = Automaton(Side.CLIENT, 4, SETTINGS, now=0)
        opened = engineio.Open(sid="sid", upgrades=("websocket",), ping_interval=1, ping_timeout=2, max_payload=None)
        assert automaton.receive(opened.to_packet(), 10) == Opened("sid", ("websocket",))
        assert automaton.deadline == 13


class TestRoads:
    @pytest.mark.parametrize("side", Side)
    def test_every_road_and_every_offer(self, side: Side) -> None:
        for road in (Road.POLLING, Road.OFFERED, Road.PROBED, Road.WEBSOCKET, Road.CLOSED):
            for given_, do in (OFFERS if side is Side.SERVER else CLIENT_OFFERS).items():
                automaton = on_road(road, side=side)
                after = ROADS[road].get(given_)
                if given_ is RoadInput.LOSE_OFFER:
                    do(automaton)
                    assert automaton.road is (after or road)
                elif after is None:
                    with pytest.raises(ProtocolError):
                        do(automaton)
                    assert automaton.road is road
                else:
                    do(automaton)
                    assert automaton.road is after

    @pytest.mark.parametrize("road", [Road.OFFERED, Road.PROBED])
    @pytest.mark.parametrize(
        "packet", [message("0"), Packet(PacketType.PING), Packet(PacketType.PONG, "probe"), Packet(PacketType.NOOP)]
    )
    def test_anything_else_on_the_offered_road(self, road: Road, packet: Packet) -> None:
        automaton = on_road(road)
        with pytest.raises(ProtocolError):
            automaton.receive_offer(packet, 0)
        assert automaton.road is road

    @pytest.mark.parametrize(
        "packet", [message("0"), Packet(PacketType.PING, "probe"), Packet(PacketType.PONG), Packet(PacketType.CLOSE)]
    )
    def test_anything_else_in_answer_to_the_probe(self, packet: Packet) -> None:
        automaton = on_road(Road.OFFERED, side=Side.CLIENT)
        with pytest.raises(ProtocolError, match="in answer to the probe"):
            automaton.receive_probe_answer(packet, 0)
        assert automaton.road is Road.OFFERED

    @pytest.mark.parametrize("road", [Road.OFFERED, Road.PROBED])
    def test_polling_goes_on_meanwhile(self, road: Road) -> None:
        automaton = on_road(road)
        assert automaton.receive(message("0"), 0) == Joining("/", None)
        automaton = on_road(road, side=Side.CLIENT)
        automaton.ask("/", 0)
        assert automaton.receive(message('0{"sid":"id"}'), 0) == Joined("/", "id")
        assert automaton.receive(Packet(PacketType.NOOP), 0) is None

    @pytest.mark.parametrize("road", [Road.OFFERED, Road.PROBED])
    @pytest.mark.parametrize("side", Side)
    def test_an_offer_has_a_deadline(self, side: Side, road: Road) -> None:
        automaton = on_road(road, side=side)
        assert automaton.deadline == 10
        assert automaton.expire(9.9) is None
        assert automaton.expire(10) == OfferExpired()
        automaton.lose_offer()
        assert automaton.road is Road.POLLING
        automaton.offer(10)

    def test_a_change_ends_the_offers_deadline(self) -> None:
        automaton = on_road(Road.WEBSOCKET, upgraded=True)
        assert automaton.deadline == 25

    @pytest.mark.parametrize("eio", [3, 4])
    def test_a_client_that_changes_its_road(self, eio: EIO) -> None:
        automaton = client(eio, polling=True)
        automaton.offer(1)
        automaton.receive_probe_answer(PROBE_ANSWER, 2)
        assert automaton.upgrade() == Packet(PacketType.UPGRADE)
        assert automaton.road is Road.WEBSOCKET
        assert automaton.deadline == (25 if eio == 3 else 45), "the offer's deadline is gone"

    def test_the_answer_to_the_probe_proves_that_the_server_is_alive(self) -> None:
        automaton = client(4, polling=True)
        automaton.ask("/", 0)
        automaton.offer(44)
        automaton.receive_probe_answer(PROBE_ANSWER, 44.5)
        automaton.upgrade()
        assert automaton.deadline == 44.5 + 45

    def test_the_answer_to_the_probe(self) -> None:
        automaton = on_road(Road.OFFERED)
        assert automaton.receive_offer(Packet(PacketType.PING, "probe"), 0) == Packet(PacketType.PONG, "probe")
        assert automaton.receive_offer(Packet(PacketType.UPGRADE), 0) is None


OFFERS: dict[RoadInput, Callable[[Automaton], object]] = {
    RoadInput.OPEN_POLLING: lambda a: a.open(0, polling=True),
    RoadInput.OPEN_WEBSOCKET: lambda a: a.open(0, polling=False),
    RoadInput.OFFER: lambda a: a.offer(0),
    RoadInput.PROBE: lambda a: a.receive_offer(Packet(PacketType.PING, "probe"), 0),
    RoadInput.UPGRADE: lambda a: a.receive_offer(Packet(PacketType.UPGRADE), 0),
    RoadInput.LOSE_OFFER: lambda a: a.lose_offer(),
}


CLIENT_OFFERS: dict[RoadInput, Callable[[Automaton], object]] = {
    RoadInput.OFFER: lambda a: a.offer(0),
    RoadInput.PROBE: lambda a: a.receive_probe_answer(PROBE_ANSWER, 0),
    RoadInput.UPGRADE: lambda a: a.upgrade(),
    RoadInput.LOSE_OFFER: lambda a: a.lose_offer(),
}


def on_road(road: Road, *, upgraded: bool = False, side: Side = Side.SERVER) -> Automaton:
    polling = upgraded or road is not Road.WEBSOCKET
    if side is Side.CLIENT:
        automaton = client(polling=polling)
        if road in (Road.OFFERED, Road.PROBED):
            automaton.offer(0)
        if road is Road.PROBED:
            automaton.receive_probe_answer(PROBE_ANSWER, 0)
        if road is Road.CLOSED:
            automaton.close()
        assert automaton.road is road
        return automaton
    automaton = server(polling=polling)
    if road in (Road.OFFERED, Road.PROBED) or upgraded:
        automaton.offer(0)
    if road is Road.PROBED or upgraded:
        automaton.receive_offer(Packet(PacketType.PING, "probe"), 0)
    if upgraded:
        automaton.receive_offer(Packet(PacketType.UPGRADE), 0)
    if road is Road.CLOSED:
        automaton.close()
    assert automaton.road is road
    return automaton


def joined(side: Side, eio: EIO) -> Automaton:
    """A session on a namespace, so that its heartbeat alone is due."""
    if side is Side.SERVER:
        automaton = server(eio)
        if eio == 4:
            automaton.receive(message("0"), 0)
        else:
            automaton.join_unasked(0)
        automaton.accept("/", 0, "id")
    else:
        automaton = client(eio)
        automaton.ask("/", 0)
        automaton.receive(message('0{"sid":"id"}' if eio == 4 else "0"), 0)
    return automaton


PING, PONG = Packet(PacketType.PING), Packet(PacketType.PONG)
PINGING: list[tuple[Side, EIO]] = [(Side.SERVER, 4), (Side.CLIENT, 3)]
ANSWERING: list[tuple[Side, EIO]] = [(Side.CLIENT, 4), (Side.SERVER, 3)]


class TestHeartbeat:
    @pytest.mark.parametrize(("side", "eio"), PINGING)
    def test_the_side_that_pings(self, side: Side, eio: EIO) -> None:
        automaton = joined(side, eio)
        for now in (25, 50, 75):
            assert automaton.deadline == now
            assert automaton.expire(now) is None
            assert automaton.take_replies() == [PING]
            assert automaton.deadline == now + 20
            assert automaton.receive(PONG, now + 1) is None
            assert automaton.take_replies() == []

    @pytest.mark.parametrize(("side", "eio"), PINGING)
    def test_a_ping_without_an_answer(self, side: Side, eio: EIO) -> None:
        automaton = joined(side, eio)
        automaton.expire(25)
        assert automaton.expire(44.9) is None
        ended = automaton.expire(45)
        assert isinstance(ended, Ended)
        assert (ended.code, ended.by_peer) == ("ping timeout", False)
        assert automaton.deadline == float("inf")
        assert automaton.road is Road.CLOSED

    @pytest.mark.parametrize(("side", "eio"), PINGING)
    def test_whatever_arrives_proves_that_the_peer_is_alive(self, side: Side, eio: EIO) -> None:
        automaton = joined(side, eio)
        automaton.expire(25)
        automaton.receive(Packet(PacketType.NOOP), 44)
        assert automaton.deadline == 50

    @pytest.mark.parametrize(("side", "eio"), ANSWERING)
    def test_the_side_that_answers(self, side: Side, eio: EIO) -> None:
        automaton = joined(side, eio)
        for now in (30, 70, 110):
            assert automaton.expire(now) is None
            assert automaton.receive(PING, now) is None
            assert automaton.take_replies() == [PONG]
            assert automaton.deadline == now + 45
        ended = automaton.expire(155)
        assert isinstance(ended, Ended)
        assert ended.code == "ping timeout"

    def test_an_answer_echoes(self) -> None:
        automaton = joined(Side.SERVER, 3)
        automaton.receive(Packet(PacketType.PING, "probe"), 0)
        assert automaton.take_replies() == [Packet(PacketType.PONG, "probe")]

    @pytest.mark.parametrize(
        ("side", "eio", "packet"), [(*each, PING) for each in PINGING] + [(*each, PONG) for each in ANSWERING]
    )
    def test_the_wrong_direction(self, side: Side, eio: EIO, packet: Packet) -> None:
        with pytest.raises(ProtocolError):
            joined(side, eio).receive(packet, 0)

    @pytest.mark.parametrize("packet", [Packet(PacketType.OPEN, "{}"), Packet(PacketType.UPGRADE)])
    @pytest.mark.parametrize("side", Side)
    def test_what_only_begins_or_changes_a_road(self, side: Side, packet: Packet) -> None:
        with pytest.raises(ProtocolError):
            joined(side, 4).receive(packet, 0)

    @pytest.mark.parametrize(("side", "eio"), PINGING + ANSWERING)
    def test_no_more_timers_whatever_comes(self, side: Side, eio: EIO) -> None:
        automaton = joined(side, eio)
        timers = len(automaton._timers)
        packet = PONG if (side, eio) in PINGING else PING
        for _ in range(1000):
            automaton.receive(packet, 1)
        assert len(automaton._timers) == timers <= 1
        assert len(automaton.take_replies()) == (0 if packet is PONG else 1000)


class TestHolding:
    @pytest.mark.parametrize(("side", "eio"), ANSWERING)
    def test_it_answers_unasked(self, side: Side, eio: EIO) -> None:
        automaton = joined(side, eio)
        automaton.hold(10)
        automaton.hold(11)
        assert automaton.held
        assert automaton.deadline == 10
        assert automaton.expire(10) is None
        assert automaton.take_replies() == [PONG]
        assert automaton.deadline == 20
        automaton.resume(15)
        # reading again: silence counts from now on, and one more pong does no harm
        assert automaton.expire(20) is None
        assert automaton.take_replies() == [PONG]
        assert automaton.deadline == 60

    @pytest.mark.parametrize(("side", "eio"), ANSWERING)
    def test_whenever_the_peer_pings_it_hears_a_pong_in_time(self, side: Side, eio: EIO) -> None:
        for began in range(1, 30):
            automaton = joined(side, eio)
            automaton.hold(began)
            pongs: list[float] = []
            stalled = began + SETTINGS.ping_interval + SETTINGS.ping_timeout
            while automaton.deadline < stalled:
                pongs.append(automaton.deadline)
                assert automaton.expire(automaton.deadline) is None
                assert automaton.take_replies() == [PONG]
            for ping in range(began, int(stalled - SETTINGS.ping_timeout / 2)):
                # half of the ping timeout is for the way
                assert any(ping < pong <= ping + SETTINGS.ping_timeout / 2 for pong in pongs)

    @pytest.mark.parametrize(("side", "eio"), ANSWERING)
    def test_to_stop_and_go_for_ever_does_not_silence_it(self, side: Side, eio: EIO) -> None:
        automaton = joined(side, eio)
        pongs = 0
        for now in range(1, 250):
            automaton.hold(now)
            automaton.expire(now)
            pongs += len(automaton.take_replies())
            automaton.resume(now)
        assert 22 <= pongs <= 26

    @pytest.mark.parametrize(("side", "eio"), ANSWERING)
    def test_a_ping_that_is_read_puts_the_next_pong_off(self, side: Side, eio: EIO) -> None:
        automaton = joined(side, eio)
        automaton.hold(10)
        automaton.resume(11)
        automaton.receive(PING, 20)
        assert automaton.take_replies() == [PONG]
        assert automaton.expire(29) is None
        assert automaton.take_replies() == []

    @pytest.mark.parametrize(("side", "eio"), PINGING)
    def test_it_still_pings_and_expects_nothing(self, side: Side, eio: EIO) -> None:
        automaton = joined(side, eio)
        automaton.hold(10)
        assert automaton.expire(25) is None
        assert automaton.take_replies() == [PING]
        assert automaton.deadline == 50

    @pytest.mark.parametrize(("side", "eio"), PINGING + ANSWERING)
    def test_not_for_ever(self, side: Side, eio: EIO) -> None:
        automaton = joined(side, eio)
        automaton.hold(10)
        event_ = None
        while event_ is None:
            event_ = automaton.expire(automaton.deadline)
        assert isinstance(event_, Ended)
        assert event_.code == "stalled"
        assert automaton.road is Road.CLOSED

    @pytest.mark.parametrize(("side", "eio"), PINGING + ANSWERING)
    def test_packets_that_are_taken_out_of_a_batch_meanwhile(self, side: Side, eio: EIO) -> None:
        automaton = joined(side, eio)
        automaton.hold(10)
        before = dict(automaton._timers)
        automaton.receive(Packet(PacketType.NOOP), 12)
        assert automaton._timers == before

    def test_without_effect(self) -> None:
        automaton = Automaton(Side.CLIENT, 4, SETTINGS, now=0)
        automaton.hold(0)
        assert not automaton.held
        automaton = joined(Side.SERVER, 4)
        before = automaton.deadline
        automaton.resume(20)
        assert automaton.deadline == before
        automaton.close()
        automaton.hold(20)
        assert automaton.deadline == float("inf")


class TestDeadlines:
    def test_no_namespace(self) -> None:
        automaton = server(now=100)
        automaton.expire(125)
        automaton.receive(PONG, 125)
        ended = automaton.expire(145)
        assert isinstance(ended, Ended)
        assert ended.code == "connect timeout"

    def test_no_open_packet(self) -> None:
        automaton = Automaton(Side.CLIENT, 4, SETTINGS, now=0)
        assert isinstance(automaton.expire(45), Ended)

    def test_no_namespace_any_more(self) -> None:
        automaton = joined(Side.SERVER, 4)
        automaton.receive(message("1"), 10)
        automaton.expire(25)
        automaton.receive(PONG, 26)
        automaton.expire(50)
        automaton.receive(PONG, 51)
        ended = automaton.expire(55)
        assert isinstance(ended, Ended)
        assert ended.code == "connect timeout"

    def test_one_namespace_of_two_is_left(self) -> None:
        automaton = joined(Side.SERVER, 4)
        automaton.receive(message("0/chat,"), 1)
        automaton.receive(message("1"), 2)
        assert automaton.live == ["/chat"]
        assert automaton.deadline == 1 + 20, "that of the other namespace"

    def test_identification(self) -> None:
        automaton = server(now=0)
        automaton.receive(message("0"), 1)
        automaton.admit(2, "id")
        assert automaton.expire(20.9) is None
        assert automaton.expire(21) == Expired("/", False)

    def test_acceptance(self) -> None:
        automaton = server(now=0)
        automaton.receive(message("0"), 0)
        automaton.admit(0, "id")
        automaton.receive(event("BRIGHTSOCKET:IDENTIFY", {"BRIGHTSOCKET:CHANNEL": "X"}), 4)
        assert automaton.expire(23.9) is None
        assert automaton.expire(24) == Expired("/", True)

    def test_a_switch_has_its_own(self) -> None:
        automaton = joined(Side.SERVER, 4)
        automaton.receive(event("BRIGHTSOCKET:IDENTIFY", {"BRIGHTSOCKET:CHANNEL": "X"}), 4)
        assert automaton.deadline == 24
        automaton.accept("/", 5, "id")
        assert automaton.deadline == 25

    def test_a_client_has_none_of_these(self) -> None:
        automaton = client()
        automaton.ask("/", 0)
        assert automaton.deadline == 45

    def test_nothing_is_due_once_it_is_closed(self) -> None:
        automaton = joined(Side.SERVER, 4)
        automaton.close()
        automaton.close()
        assert automaton.expire(1e9) is None
        assert automaton.receive(message("nonsense"), 0) is None

    def test_the_peers_close(self) -> None:
        automaton = joined(Side.SERVER, 4)
        ended = automaton.receive(Packet(PacketType.CLOSE), 0)
        assert isinstance(ended, Ended)
        assert ended.by_peer
        assert automaton.deadline == float("inf")


class TestSending:
    def test_reserved_names(self) -> None:
        automaton = joined(Side.SERVER, 4)
        with pytest.raises(ValueError, match="reserved"):
            automaton.encode_action("/", "BRIGHTSOCKET:X", ())
        with pytest.raises(ValueError, match="disconnect"):
            automaton.encode_action("/", "disconnect", ())

    def test_attachments_are_bounded(self) -> None:
        automaton = joined(Side.SERVER, 4)
        assert len(automaton.encode_action("/", "X", (b"",) * 10)) == 11
        with pytest.raises(ValueError, match="11"):
            automaton.encode_action("/", "X", (b"",) * 11)
        assert len(automaton.encode_answer("/", 1, (b"",) * 10)) == 11
        with pytest.raises(ValueError, match="11"):
            automaton.encode_answer("/", 1, (b"",) * 11)

    def test_on_the_wire(self) -> None:
        automaton = joined(Side.SERVER, 4)
        assert texts(automaton.encode_action("/chat", "X", (1,), 7)) == ['2/chat,7["X",1]']
        assert texts(automaton.encode_answer("/", 7, ())) == ["37[]"]
        assert texts(encode_connect(5, "/chat", {"a": 1})) == ['0/chat,{"a":1}']
        named = encode_identify(5, "X", {"a": 1})
        assert texts(named) == ['2["BRIGHTSOCKET:IDENTIFY",{"a":1,"BRIGHTSOCKET:CHANNEL":"X"}]']


_text = st.sampled_from(
    [
        "", "0", "0{}", '0{"sid":"x"}', "0/chat,", "0/chat?token=1", "1", "1/chat,",
        '2["X"]', '2["X",1,null]', '27["X"]',
        '2/chat,["X"]', '2["BRIGHTSOCKET:IDENTIFY",{"BRIGHTSOCKET:CHANNEL":"X"}]', '2["BRIGHTSOCKET:IDENTIFIED"]',
        '2["BRIGHTSOCKET:REFUSED",{"reason":"x"}]', '2["BRIGHTSOCKET:CLOSED",{}]', "30[]", "3[]",
        '4{"message":"x"}', "4",
        '51-["X",{"_placeholder":true,"num":0}]', '50-["X"]', "2", "2{}", "2[]", "2[{}]", "9",
    ]
) | st.text(max_size=20)  # fmt: skip
_packets = st.one_of(
    st.builds(message, _text),
    st.builds(message, st.binary(max_size=5)),
    st.builds(
        Packet,
        st.sampled_from([each for each in PacketType if each is not PacketType.MESSAGE]),
        st.sampled_from(["", "probe"]) | st.text(max_size=5),
    ),
)


@given(side=st.sampled_from(Side), eio=st.sampled_from([3, 4]), packets=st.lists(_packets, max_size=30))
def test_any_packets_are_taken_or_are_a_protocol_error(side: Side, eio: EIO, packets: list[Packet]) -> None:
    automaton = Automaton(side, eio, SETTINGS, sid="sid", now=0)
    if side is Side.SERVER:
        automaton.open(0, polling=False)
    for now, packet in enumerate(packets):
        try:
            automaton.receive(packet, now)
        except ProtocolError:
            return
        for reply in automaton.take_replies():
            assert reply.type is PacketType.PONG


class Sessions(RuleBasedStateMachine):
    """A server's and a client's automaton, linked: whatever they do by the book, neither finds fault with the other."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.server = Automaton(Side.SERVER, 4, SETTINGS, sid="sid", now=0)
        self.client = Automaton(Side.CLIENT, 4, SETTINGS, now=0)
        self.to_client: list[Packet] = [self.server.open(0, polling=False)]
        self.to_server: list[Packet] = []

    @rule()
    def client_reads(self) -> None:
        for packet in self.to_client:
            self.client.receive(packet, self.now)
            self.to_server += self.client.take_replies()
        self.to_client.clear()

    @rule()
    def server_reads(self) -> None:
        for packet in self.to_server:
            taken = self.server.receive(packet, self.now)
            if isinstance(taken, Joining):
                self.to_client += self.server.admit(self.now, "id")
        self.to_server.clear()

    @precondition(lambda self: self.client.sid and self.client.stay("/") in (Stay.ABSENT, Stay.ENDED))
    @rule()
    def client_asks(self) -> None:
        if self.client.ask("/", self.now):
            self.to_server.append(message("0"))

    @precondition(lambda self: self.client.stay("/") is Stay.CONNECTED)
    @rule()
    def client_names(self) -> None:
        self.client.name(self.now)
        self.to_server.append(event("BRIGHTSOCKET:IDENTIFY", {"BRIGHTSOCKET:CHANNEL": "X"}))

    @precondition(lambda self: self.server.stay("/") is Stay.IDENTIFYING)
    @rule(accept=st.booleans())
    def server_decides(self, accept: bool) -> None:
        units = [self.server.accept("/", self.now, "id")] if accept else self.server.refuse("/", self.now, "no")
        for unit in units:
            self.to_client += unit

    @precondition(lambda self: self.server.stay("/") is Stay.ACTIVE)
    @rule(leave=st.booleans())
    def server_talks(self, leave: bool) -> None:
        self.to_client += self.server.leave("/", self.now) if leave else self.server.encode_action("/", "X", (1,))

    @precondition(lambda self: self.client.stay("/") is Stay.ACTIVE)
    @rule()
    def client_talks(self) -> None:
        self.to_server += self.client.encode_action("/", "X", (1,))

    @rule(seconds=st.floats(0, 12))
    def time_passes(self, seconds: float) -> None:
        self.client_reads()
        self.server_reads()
        self.client_reads()
        self.now += seconds
        for automaton in (self.server, self.client):
            while (taken := automaton.expire(self.now)) is not None:
                if isinstance(taken, Expired):
                    for unit in self.server.refuse("/", self.now, "late"):
                        self.to_client += unit
                assert not isinstance(taken, Ended) or taken.code == "connect timeout"
        self.to_client += self.server.take_replies()

    @invariant()
    def nothing_came_due_unnoticed(self) -> None:
        for automaton in (self.server, self.client):
            assert automaton.road is Road.CLOSED or automaton.deadline < float("inf")


TestSessions = Sessions.TestCase
