"""What a session does with a transport that the test drives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from brightsocket_anyio import Brightsocket, Connection, ConnectionLost
from brightsocket_anyio.protocol.engineio import Open, Packet, PacketType
from brightsocket_anyio.protocol.state import Action, Automaton, Ended, Event, Joined, Opened, Side
from brightsocket_anyio.session import Session
from brightsocket_anyio.settings import Settings
from brightsocket_anyio.timer import Timer
from brightsocket_anyio.transport import Transport

from .support import PATIENCE, identified, serving_in_memory
from .test_outbox import unit


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
