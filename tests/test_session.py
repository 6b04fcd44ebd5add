"""A session's outgoing buffer, and what a session does with a transport that the test drives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from brightsocket_anyio import Brightsocket, Connection, ConnectionLost
from brightsocket_anyio.protocol.engineio import Open, Packet, PacketType
from brightsocket_anyio.protocol.state import Action, Automaton, Ended, Event, Joined, Opened, Side, Unit
from brightsocket_anyio.session import Outbox, Session
from brightsocket_anyio.settings import Settings
from brightsocket_anyio.timer import Timer
from brightsocket_anyio.transport import Transport

from .support import PATIENCE, identified, serving_in_memory


def unit(text: str) -> Unit:
    return (Packet(PacketType.MESSAGE, text),)


def texts(outbox: Outbox) -> list[Any]:
    return [packet.data for packet in outbox.peek(1_000_000)[0]]


def test_an_offer_is_taken_while_there_is_room_in_messages() -> None:
    outbox = Outbox(2, 1000)
    assert [outbox.offer(unit(text)) for text in "abc"] == [True, True, False]
    outbox.commit(1)
    assert outbox.offer(unit("d"))
    assert texts(outbox) == ["b", "d"]


def test_an_offer_is_taken_while_there_is_room_in_bytes_and_a_larger_one_alone() -> None:
    outbox = Outbox(100, 10)
    assert outbox.offer(unit("x" * 500))
    assert not outbox.offer(unit("y"))
    outbox.commit(1)
    assert outbox.offer(unit("y"))
    assert not outbox.offer(unit("x" * 500))


def test_what_is_pushed_goes_in_whatever_the_bounds_which_shows() -> None:
    outbox = Outbox(2, 1000)
    for text in "abcd":
        assert not outbox.overfull
        outbox.push(unit(text))
    assert outbox.overfull
    assert texts(outbox) == ["a", "b", "c", "d"]


def test_a_header_and_its_attachments_are_one_unit() -> None:
    outbox = Outbox(100, 1_000_000)
    outbox.push((*unit("header"), Packet(PacketType.MESSAGE, b"x" * 100)))
    outbox.push(unit("after"))
    packets, count = outbox.peek(10)
    assert ([packet.data for packet in packets], count) == (["header", b"x" * 100], 1)


def test_a_batch_has_a_number_of_packets_which_a_unit_alone_may_exceed() -> None:
    outbox = Outbox(100, 1_000_000)
    for text in "abc":
        outbox.push(unit(text) * 2)
    packets, count = outbox.peek(1_000_000, 5)
    assert ([packet.data for packet in packets], count) == (list("aabb"), 2)
    assert outbox.peek(1_000_000, 1)[1] == 1


def test_only_a_senders_own_units_that_have_not_been_begun_are_dropped() -> None:
    outbox = Outbox(100, 1_000_000)
    mine, theirs = object(), object()
    outbox.offer(unit("begun"), mine)
    outbox.peek(1)
    outbox.offer(unit("nobody's"))
    outbox.offer(unit("mine"), mine)
    assert outbox.make_room(unit("x" * 1_000_000), lambda whose: whose is mine) == 0
    full = Outbox(4, 1_000_000)
    full.offer(unit("begun"), mine)
    full.peek(1)
    full.offer(unit("theirs"), theirs)
    full.offer(unit("mine"), mine)
    full.offer(unit("later"), mine)
    assert full.make_room(unit("new"), lambda whose: whose is mine) == 1
    assert full.offer(unit("new"), mine)
    assert texts(full) == ["begun", "theirs", "later", "new"]


def test_units_are_dropped_only_if_that_makes_room() -> None:
    emitted = object()
    outbox = Outbox(100, 100)
    outbox.offer(unit("x" * 59))
    for text in "abcd":
        outbox.offer(unit(text * 9), emitted)
    assert outbox.make_room(unit("y" * 49), lambda whose: whose is emitted) == 0
    assert outbox.make_room(unit("y" * 19), lambda whose: whose is emitted) == 2
    assert outbox.offer(unit("y" * 19), emitted)
    assert texts(outbox) == ["x" * 59, "c" * 9, "d" * 9, "y" * 19]


async def test_who_waits_for_room_is_not_overtaken_by_dropping() -> None:
    emitted = object()
    outbox = Outbox(1, 1000)
    outbox.offer(unit("emitted"), emitted)
    async with anyio.create_task_group() as tg:
        tg.start_soon(outbox.put, unit("waits"))
        await anyio.wait_all_tasks_blocked()
        assert outbox.make_room(unit("new"), lambda whose: whose is emitted) == 0
        tg.cancel_scope.cancel()


async def test_who_waits_for_room_gets_it_in_order_and_nobody_overtakes() -> None:
    outbox = Outbox(1, 1000)
    outbox.push(unit("first"))
    sent: list[Any] = []
    async with anyio.create_task_group() as tg:
        for text in "abc":
            tg.start_soon(outbox.put, unit(text))
            await anyio.wait_all_tasks_blocked()
        assert not outbox.offer(unit("overtakes"))
        while not outbox.empty:
            sent += texts(outbox)[:1]
            outbox.commit(1)
            await anyio.lowlevel.checkpoint()
    assert sent == ["first", "a", "b", "c"]


async def test_who_waits_and_is_cancelled_has_sent_nothing_and_makes_room_for_who_comes_next() -> None:
    outbox = Outbox(10, 20)
    outbox.push(unit("x" * 10))
    outcomes: list[str] = []

    async def put(text: str, scope: anyio.CancelScope) -> None:
        with scope:
            await outbox.put(unit(text))
            outcomes.append(text)

    async with anyio.create_task_group() as tg:
        large, small = anyio.CancelScope(), anyio.CancelScope()
        tg.start_soon(put, "y" * 15, large)
        await anyio.wait_all_tasks_blocked()
        tg.start_soon(put, "z", small)
        await anyio.wait_all_tasks_blocked()
        assert outcomes == []
        large.cancel()
    assert outcomes == ["z"]
    assert texts(outbox) == ["x" * 10, "z"]


async def test_an_outbox_that_is_shut_takes_nothing_and_still_sends_what_it_has() -> None:
    outbox = Outbox(1, 1000)
    outbox.push(unit("in"))
    refused = anyio.Event()

    async def put() -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await outbox.put(unit("waits"))
        refused.set()

    async with anyio.create_task_group() as tg:
        tg.start_soon(put)
        await anyio.wait_all_tasks_blocked()
        outbox.shut()
        await refused.wait()
    assert texts(outbox) == ["in"]
    outbox.commit(1)
    outbox.push(unit("later"))
    assert not outbox.offer(unit("later"))
    assert outbox.empty


async def test_closing_ends_the_waiting() -> None:
    outbox = Outbox(1, 1000)
    outbox.push(unit("first"))

    async def put() -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await outbox.put(unit("never"))

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tg:
            tg.start_soon(put)
            await anyio.wait_all_tasks_blocked()
            outbox.close()
    with pytest.raises(anyio.ClosedResourceError):
        await outbox.put(unit("never"))
    assert not outbox.offer(unit("never"))
    assert texts(outbox) == []


async def test_a_send_cancelled_at_any_step_is_on_the_wire_whole_or_not_at_all() -> None:
    """Binary messages, to a peer that reads slowly; each is cancelled after another number of checkpoints."""
    api = Brightsocket(max_buffered_messages=2, stall_timeout=1000)
    connections: list[Connection] = []
    api.connect("A", (), connections.append)
    returned: set[int] = set()
    async with serving_in_memory(api, capacity=1) as bound, identified(bound, "A") as peer:
        [connection] = connections

        async def send(number: int, scope: anyio.CancelScope) -> None:
            with scope:
                await connection.send("DATA", number, bytes([number]) * 100, b"second")
                returned.add(number)

        seen: list[int] = []

        async def read() -> bool:
            header = str(await peer.receive())
            if header == '42["LAST"]':
                return False
            number = int(header.split(",")[1])
            placeholders = '{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}'
            assert header == f'452-["DATA",{number},{placeholders}]'
            await peer.expect(bytes([number]) * 100, b"second")
            seen.append(number)
            return True

        async with anyio.create_task_group() as tg:
            for number in range(60):
                scope = anyio.CancelScope()
                tg.start_soon(send, number, scope)
                for _ in range(number % 12):
                    await anyio.lowlevel.checkpoint()
                if number % 3 == 0:
                    assert await read()
                scope.cancel()
            await anyio.wait_all_tasks_blocked()
            tg.start_soon(connection.send, "LAST")
            while await read():
                pass
    assert seen == sorted(set(seen)), "in order, none twice"
    assert returned <= set(seen), "what was accepted has been sent"


async def test_one_read_that_brings_thousands_of_packets_lets_the_others_run() -> None:
    api = Brightsocket()
    connections: list[Connection] = []
    api.connect("X", connections.append)
    count = 2000
    async with serving_in_memory(api) as listener, identified(listener, "X") as peer:
        [connection] = connections
        for _ in range(count):
            peer.protocol.send_text(b'42["NOISE"]')
        await peer._flush()
        turns = 0
        with anyio.fail_after(PATIENCE):
            while connection.dropped < count - 256:
                await anyio.lowlevel.checkpoint()
                turns += bool(connection.dropped)
        assert turns > 40


class QuietSink:
    """What a session asks of its sink, where that holds nothing back and has nothing of its own."""

    full = calling = False
    workers = None

    def expose(self) -> None: ...


class Road:
    """A client's road whose waiting tasks are woken just as the session leaves it."""

    name: Any

    def __init__(self, name: str, woken: anyio.Event, left: str) -> None:
        self.name = name
        self.sent: list[Packet] = []
        self.arriving: list[Packet] = []
        self._woken = woken
        self._left = left
        self._retired = False

    async def send(self, packets: Sequence[Packet]) -> None:
        if self._left == "sending" and packets[0].type is PacketType.MESSAGE:
            await self._woken.wait()
            if self._retired:
                raise anyio.ClosedResourceError
        self.sent += packets
        if packets[0].type is PacketType.UPGRADE:
            # nothing comes between this and the change of roads
            self._woken.set()

    async def receive(self) -> list[Packet]:
        if self.arriving:
            return [self.arriving.pop(0)]
        if self._left != "receiving":
            await anyio.sleep_forever()
        await self._woken.wait()
        raise anyio.ClosedResourceError

    async def aclose(self, code: int = 1000, reason: str = "") -> None: ...

    async def pause(self) -> list[Packet]:
        return []

    def release(self) -> None:
        raise AssertionError("the upgrade has failed")

    def retire(self) -> None:
        self._retired = True


@pytest.mark.parametrize("left", ["sending", "receiving"])
async def test_a_task_that_is_woken_just_as_the_session_changes_its_road_goes_on_by_the_other(left: str) -> None:
    """It sees the old road closed: that is no end of the session, and what was not sent goes by the new one."""
    settings = Settings()
    woken, joined = anyio.Event(), anyio.Event()
    polling, websocket = Road("polling", woken, left), Road("websocket", woken, "")
    automaton = Automaton(Side.CLIENT, 4, settings, now=anyio.current_time(), polling=True)
    opened = Open("sid", ("websocket",), 25, 20).to_packet()
    session = Session(automaton, polling, settings, Timer(), received=[opened])

    async def dial() -> Transport:
        await anyio.wait_all_tasks_blocked()
        websocket.arriving += [Packet(PacketType.PONG, "probe"), Packet(PacketType.MESSAGE, '0{"sid":"id"}')]
        return websocket

    class Sink(QuietSink):
        def handle(self, event: Event) -> None:
            if isinstance(event, Opened):
                automaton.ask("/", anyio.current_time())
                session.push(unit("0"))
                session.change_road(polling, dial)
            else:
                assert event == Joined("/", "id")
                joined.set()

        async def end(self, cause: Ended) -> None: ...

    async with anyio.create_task_group() as tg:
        tg.start_soon(session.run, Sink())
        with anyio.fail_after(PATIENCE):
            await joined.wait()
        await anyio.wait_all_tasks_blocked()
        assert session.ending is None
        assert session.transport is websocket
        assert unit("0")[0] in (polling if left == "receiving" else websocket).sent
        tg.cancel_scope.cancel()


async def test_what_has_come_is_taken_though_nothing_can_be_sent_any_more() -> None:
    """More than is taken in one go: the writer fails while the rest waits for its turn."""
    settings = Settings()

    class Lost(Road):
        async def send(self, packets: Sequence[Packet]) -> None:
            raise ConnectionLost("transport close", "the peer has closed the WebSocket")

    numbers: list[int] = []

    class Sink(QuietSink):
        def handle(self, event: Event) -> None:
            if isinstance(event, Action):
                numbers.append(event.args[0])
            else:
                session.push(automaton.accept("/chat", anyio.current_time(), "id"))

        async def end(self, cause: Ended) -> None:
            numbers.append(-1)

    automaton = Automaton(Side.SERVER, 4, settings, sid="sid", now=anyio.current_time())
    automaton.open(anyio.current_time(), polling=False)
    arrived = [unit("0/chat,")[0], *(unit(f'2/chat,["ACTION",{number}]')[0] for number in range(100))]
    session = Session(automaton, Lost("websocket", anyio.Event(), ""), settings, Timer(), received=arrived)
    with anyio.fail_after(PATIENCE):
        cause = await session.run(Sink())
    assert cause.code == "transport close"
    assert numbers == [*range(100), -1]


@pytest.mark.mock_clock
async def test_a_session_that_is_ending_does_not_wait_for_a_road_that_is_lost_meanwhile() -> None:
    """What is pushed after that is sent to nobody."""
    settings = Settings(close_timeout=5)

    class Lost(Road):
        async def send(self, packets: Sequence[Packet]) -> None:
            await anyio.sleep(1)
            raise ConnectionLost("transport error", "the peer is gone")

    class Sink(QuietSink):
        def handle(self, event: Event) -> None: ...

        async def end(self, cause: Ended) -> None:
            await anyio.sleep(2)
            session.push(unit("a word to say goodbye"))

    automaton = Automaton(Side.SERVER, 4, settings, sid="sid", now=anyio.current_time())
    automaton.open(anyio.current_time(), polling=False)
    session = Session(automaton, Lost("websocket", anyio.Event(), ""), settings, Timer())

    def begin() -> None:
        session.push(unit("hello"))
        session.end("server shutting down", "the server is shutting down")

    began = anyio.current_time()
    with anyio.fail_after(PATIENCE):
        await session.run(Sink(), begin)
    assert anyio.current_time() - began == 2


async def test_what_is_sent_while_the_session_is_being_cancelled_goes_nowhere() -> None:
    """Its task group takes no writer any more once it is about to end, which nobody who sends is to fail by."""
    settings = Settings()

    class Sink(QuietSink):
        def handle(self, event: Event) -> None: ...

        async def end(self, cause: Ended) -> None: ...

    async def send_late(session: Session) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            session.push(unit("late"))
            session.send_nowait(unit("later"))

    for order in range(20):
        automaton = Automaton(Side.SERVER, 4, settings, sid="sid", now=anyio.current_time())
        automaton.open(anyio.current_time(), polling=False)
        road = Road("websocket", anyio.Event(), "")
        session = Session(automaton, road, settings, Timer())
        async with anyio.create_task_group() as tg:
            if order % 2:
                tg.start_soon(send_late, session)
            tg.start_soon(session.run, Sink())
            if not order % 2:
                tg.start_soon(send_late, session)
            await anyio.wait_all_tasks_blocked()
            tg.cancel_scope.cancel()
        assert not road.sent
