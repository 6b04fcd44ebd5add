"""Everything at once, for minutes or hours, by a seed that replays it: ``python -m tests.stress --minutes 2``.

Many clients and raw peers talk to one server behind proxies, which cut, freeze, delay and chop what passes; the server
restarts now and then. Every message has a number, so that gaps and duplicates show; after each round nothing may be
left. Prints what happened; the exit status is 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import random
import resource
import sys
import time
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Generator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx
from anyio.abc import TaskGroup, TaskStatus
from anyio.lowlevel import checkpoint
from websockets.exceptions import InvalidHandshake

from brightsocket_anyio import (
    Bound,
    Brightsocket,
    ChannelRefused,
    Client,
    Connection,
    ConnectionLost,
    HandshakeError,
    open_client,
)

from .faults.poller import Poller, polling
from .proxy import Proxy, address_of, proxied
from .support import Raw, census, identified, joined, raw

LOOPS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "asyncio+uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}
#: seconds after which what must come has not come
PATIENCE = 60
#: bytes by which the process may grow after its first round: allocators keep some of what a busier moment needed
MAX_GROWTH = 24_000_000
#: failures of which the text is kept
MAX_TEXTS = 20

_ENDS = (anyio.ClosedResourceError, anyio.EndOfStream, anyio.BrokenResourceError)
_ROOMS = ("red", "green", "blue")
#: the numbers of an epoch's messages begin at a multiple of this
EPOCH = 10**9


class Findings:
    """What was counted, and what was wrong."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.texts: list[str] = []

    def fail(self, kind: str, text: str, events: Journal | None = None) -> None:
        """Something is wrong.

        :param kind: ``gaps``, ``duplicates``, ``disorder``, ``leaks`` or ``errors``.
        """
        self.failures[kind] += 1
        if len(self.texts) < MAX_TEXTS:
            self.texts.append(f"{kind}: {text}" + (f"\n{events}" if events is not None else ""))


class Journal:
    """The last things that happened to somebody."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._events: deque[tuple[float, str]] = deque(maxlen=40)

    def note(self, text: str) -> None:
        self._events.append((time.monotonic(), text))

    def __str__(self) -> str:
        lines = [f"    {moment:.3f} {text}" for moment, text in self._events]
        return "\n".join([f"  the last events of {self.name} (now {time.monotonic():.3f}):", *lines])


class Flow:
    """A stream of numbered messages of one sender, as whoever receives it sees it.

    A number comes once. What one connection brings of it has no gap; between two connections a loss lies, in which a
    run of numbers may be lost. For what a server sends, connections of which each has recovered what the one before had
    are one.

    :ivar next: the number of the sender's next message.
    :ivar unsure: numbers of which the sender does not know whether they went out.
    """

    def __init__(self, name: str, findings: Findings, journal: Journal) -> None:
        self.name = name
        self.next = 0
        self.unsure: set[int] = set()
        self.seen: set[int] = set()
        self._last: dict[object, int] = {}
        self._findings = findings
        self._journal = journal

    def begin(self, last: int, connection: object) -> None:
        """A connection brings what follows ``last``."""
        self._last[connection] = last

    def take(self, number: int, connection: object = None, *, strict: bool = True) -> None:
        """A message has come.

        :param connection: what brought it.
        :param strict: whether the connection's numbers follow each other; else they only grow.
        """
        self._findings.counts["messages"] += 1
        last = self._last.get(connection)
        if number in self.seen:
            self._fail("duplicates", f"{number} has come again, the last one was {last}")
        elif last is not None and number < last:
            self._fail("disorder", f"{number} has come after {last}")
        elif last is not None and strict:
            self._check_gap(last, number)
        self.seen.add(number)
        self._last[connection] = number

    def _check_gap(self, last: int, number: int) -> None:
        if missing := [each for each in range(last + 1, number) if each not in self.unsure]:
            self._fail("gaps", f"{missing} missing before {number}")

    def finish(self, losses: int, first: int = 0) -> None:
        """Everything from ``first`` to :attr:`next` that was not lost has come: each loss makes one hole at most."""
        missing = [
            number for number in range(first, self.next) if number not in self.seen and number not in self.unsure
        ]
        known = [number for number in range(first, self.next) if number not in self.unsure]
        holes = 0
        inside = False
        for number in known:
            if (number not in self.seen) and not inside:
                holes += 1
            inside = number not in self.seen
        if holes > losses:
            self._fail("gaps", f"{missing} missing in {holes} places, with {losses} losses")
        self._findings.counts["lost in losses"] += len(missing)

    def _fail(self, kind: str, text: str) -> None:
        self._findings.fail(kind, f"{self.name}: {text}", self._journal)


class Stay:
    """A stay of a client on a channel, as both sides know it.

    :ivar visits: how often the server has been asked for this stay; each time after the first, there was a loss.
    :ivar epochs: the visits that have not recovered what the one before had: what the server sends has no gap in one.
    :ivar sent: the numbers of messages that the server has sent in the last epoch, by action.
    """

    def __init__(self, name: str, findings: Findings) -> None:
        self.name = name
        self.journal = Journal(name)
        self.visits = 0
        self.epochs = 0
        self.sent: Counter[str] = Counter()
        self.findings = findings
        self.flows: dict[str, Flow] = {}

    def flow(self, action: str) -> Flow:
        """The stream of an action; made when it is first asked for."""
        if action not in self.flows:
            self.flows[action] = Flow(f"{self.name} {action}", self.findings, self.journal)
        return self.flows[action]


class _Over(Exception):
    """The stay is over before its time."""


@dataclass
class Plan:
    """How much to do.

    :ivar seconds: of each round, if there are no ``steps``.
    :ivar steps: things that each worker does in a round, instead.
    :ivar heartbeat: seconds of the server's ping interval and of its ping timeout.
    :ivar patience: seconds after which what must come has not come.
    """

    seed: int
    rounds: int = 4
    seconds: float = 30
    steps: int | None = None
    workers: int = 24
    heartbeat: float = 1
    patience: float = PATIENCE


class Stress:
    """A server behind proxies, and workers who use and abuse it as their own random numbers say."""

    def __init__(self, plan: Plan, findings: Findings) -> None:
        self.plan = plan
        self.findings = findings
        self.counts = findings.counts
        self.api = Brightsocket(
            overloaded=self._note_overload,
            close_timeout=1,
            ping_interval=plan.heartbeat,
            ping_timeout=plan.heartbeat,
            max_buffered_messages=400,
            max_disconnection_duration=6 * plan.heartbeat,
        )
        self.api.connect("A", self._channel)
        self.api.connect("B", ["A"], lambda: None)
        self.api.connect("/n", self._channel)
        for policy in ("drop-newest", "drop-oldest", "latest-per-action"):
            self.api.connect(policy, (), self._bulk, slow_consumer=policy, max_buffered_messages=8)
        self.bound: Bound
        self._restarts = 0
        self._restarting = False
        self._delays = 0
        self._names = 0
        self._stays: dict[str, Stay] = {}
        self._proxies: list[Proxy] = []
        self._dropped: Counter[str] = Counter()
        self._emitting = anyio.Lock()
        self._numbers: Counter[str] = Counter()
        self._worked = anyio.Event()
        self._serving = anyio.CancelScope()
        self._served = anyio.Event()

    # -- the server

    def _note_overload(self, connection: Connection, action: str, policy: str) -> None:
        self.counts[f"emits: {policy}"] += 1
        if action == "BULK":
            self._dropped[connection.id] += 1

    def _bulk(self, connection: Connection) -> None:
        connection.on("SYNC")(lambda: None)

    async def _channel(self, connection: Connection, identity: dict[str, Any]) -> None:
        # one that comes after its client has gone is nobody's any more
        stay = self._stays.get(identity["stay"]) or Stay("nobody", Findings())
        visit = stay.visits
        stay.visits += 1
        if connection.recovered:
            self.counts["connections recovered"] += 1
        else:
            stay.epochs += 1
            stay.sent.clear()
        epoch = stay.epochs
        stay.journal.note(f"server: visit {visit}, epoch {epoch}")
        self.counts["connections"] += 1
        if visit:
            self.counts["losses survived"] += 1

        @connection.add_filter
        async def pass_on(action: str, payload: Any, forward: Callable[[], Awaitable[None]]) -> None:
            await forward()

        def listen(talker: int) -> None:
            up, down = f"UP{talker}", f"DOWN{talker}"

            @connection.on(up)
            async def take(number: int, data: Any) -> None:
                await checkpoint()
                if isinstance(data, bytes) and data != _bytes_of(number):
                    stay.findings.fail("errors", f"{stay.name} {up} {number}: wrong bytes", stay.journal)
                stay.flow(up).take(number, visit)

            @connection.on(f"{up}?")
            def last() -> int:
                return visit

            @connection.on(down)
            async def send(count: int) -> None:
                flow = stay.flow(down)
                for _ in range(count):
                    number = epoch * EPOCH + stay.sent[down]
                    stay.sent[down] += 1
                    flow.unsure.add(number)
                    await connection.send(down, number)
                    flow.unsure.discard(number)

            @connection.on(f"{down}?")
            def sent() -> tuple[int, int]:
                return epoch, stay.sent[down]

        for talker in range(3):
            listen(talker)

        @connection.on("ECHO")
        def echo(value: Any) -> Any:
            return value

        @connection.on("JOIN")
        async def join(room: str) -> tuple[int, int]:
            async with self._emitting:
                connection.join(room)
                return epoch, self._numbers[room]

        @connection.on("LEAVE")
        async def leave(room: str) -> tuple[int, int]:
            async with self._emitting:
                connection.leave(room)
                return epoch, self._numbers[room]

    async def _serve(self, port: int, *, task_status: TaskStatus[Bound]) -> None:
        self._serving = anyio.CancelScope()
        self._served = anyio.Event()
        try:
            with self._serving:
                await self.api.serve(port=port, task_status=task_status)
        finally:
            self._served.set()

    async def _stop(self) -> None:
        self._serving.cancel()
        with anyio.move_on_after(self.plan.patience) as scope:
            await self._served.wait()
        if scope.cancelled_caught:
            self.findings.fail("errors", f"the server has not stopped within {self.plan.patience} seconds")

    # -- faults

    async def _restart(self, tg: TaskGroup, chance: random.Random) -> None:
        while True:
            await anyio.sleep(chance.uniform(4, 16) * self.plan.heartbeat)
            self.counts["faults: restarts"] += 1
            self._restarts += 1
            self._restarting = True
            with anyio.CancelScope(shield=True):
                await self._stop()
                await anyio.sleep(chance.uniform(0, 0.2))
                self.bound = await tg.start(self._serve, 0)
                for proxy in self._proxies:
                    proxy.target = address_of(self.bound)
            self._restarting = False

    def _expecting_restarts(self) -> Callable[[], bool]:
        """Tells later whether the server has been about to go, or has gone, since now; or this program has been so slow
        that a heartbeat may have come too late."""
        restarts, restarting, delays = self._restarts, self._restarting, self._delays
        return lambda: restarting or (restarts, delays) != (self._restarts, self._delays)

    async def _watch_time(self) -> None:
        """Count the delays of a loop that has too much to do, or too little of the machine."""
        beat = self.plan.heartbeat
        while True:
            before = anyio.current_time()
            await anyio.sleep(beat / 10)
            if anyio.current_time() - before > beat / 2:
                self._delays += 1
                self.counts["delays by half a heartbeat"] += 1

    async def _weather(self, proxy: Proxy, chance: random.Random) -> None:
        """What a proxy does to its connections, one thing after the other."""
        beat = self.plan.heartbeat
        try:
            while True:
                await anyio.sleep(chance.uniform(0.05, 2 * beat))
                fault = chance.choice(["cut", "cut", "freeze", "half-open", "slow", "chop", "refuse"])
                self.counts[f"faults: {fault}"] += 1
                match fault:
                    case "cut":
                        proxy.cut()
                    case "freeze":
                        proxy.freeze()
                        await anyio.sleep(chance.uniform(0, beat))
                        proxy.thaw()
                    case "half-open":
                        proxy.freeze()
                        await anyio.sleep(3 * beat)
                        if chance.random() < 0.5:
                            proxy.cut()
                        proxy.thaw()
                    case "slow":
                        proxy.delay = chance.uniform(0, 0.02)
                        await anyio.sleep(beat)
                    case "chop":
                        proxy.chunk = chance.randint(1, 200)
                        await anyio.sleep(beat / 2)
                    case "refuse":
                        proxy.refusing = True
                        proxy.cut()
                        await anyio.sleep(chance.uniform(0, beat))
                proxy.delay, proxy.chunk, proxy.refusing = 0, 65536, False
        finally:
            proxy.delay, proxy.chunk, proxy.refusing = 0, 65536, False
            proxy.thaw()

    # -- our client

    async def _client(self, chance: random.Random) -> None:
        """A program with our client: it stays, switches, comes back, and may be cancelled anywhere."""
        url = chance.choice(self._proxies).url
        transport: Any = chance.choice(["websocket", "websocket", "polling", ("polling", "websocket")])
        options: dict[str, Any] = {
            "transport": transport,
            "eio": chance.choice([3, 4]),
            "close_timeout": 1,
            "connect_timeout": 5 * self.plan.heartbeat,
            "reconnection_delay": 0.02,
            "reconnection_delay_max": 0.2,
            "max_buffered_messages": chance.choice([20, 400]),
            "while_away": chance.choice(["wait", "wait", "fail"]),
        }
        self._names += 1
        name = f"client {self._names} ({transport}, EIO {options['eio']})"
        with anyio.CancelScope() as scope:
            async with open_client(url, **options) as client:
                for number in range(chance.randint(1, 4)):
                    stay = Stay(f"{name} stay {number}", self.findings)
                    self._stays[stay.name] = stay
                    try:
                        await self._try_to_stay(client, stay, chance)
                    finally:
                        del self._stays[stay.name]
                    match end := chance.choice(["switch", "switch", "aclose", "disconnect", "vanish"]):
                        case "aclose":
                            if client.connection is not None:
                                await client.connection.aclose()
                        case "disconnect":
                            await client.disconnect()
                        case "vanish":
                            scope.cancel()
                            await checkpoint()
                    self.counts[f"stays ended: {end}"] += 1

    async def _try_to_stay(self, client: Client, stay: Stay, chance: random.Random) -> None:
        has_restarted = self._expecting_restarts()
        try:
            with anyio.move_on_after(self.plan.patience) as scope:
                connection = await client.connect(chance.choice(["A", "B", "/n"]), {"stay": stay.name})
        except (HandshakeError, ConnectionLost) as exc:
            stay.journal.note(f"client: {exc!r}")
            self.counts["connects failed"] += 1
            await anyio.sleep(0.05)
            return
        except ChannelRefused as exc:
            # a draining server refuses whoever has not been let in
            if not has_restarted():
                self.findings.fail("errors", f"{stay.name}: {exc!r}", stay.journal)
            self.counts["connects failed"] += 1
            return
        if scope.cancelled_caught:
            self.findings.fail("errors", f"{stay.name}: connect hangs", stay.journal)
            return
        self.counts["stays"] += 1
        stay.journal.note(f"client: let in as {connection.id}")
        news = stay.flow("NEWS")
        connection.on("NEWS")(lambda number: news.take(number, strict=False))
        rooms = {room: Flow(f"{stay.name} {room}", self.findings, stay.journal) for room in _ROOMS}
        connection.on("ROOM")(lambda room, number: rooms[room].take(number, strict=False))
        abandoned = chance.random() < 0.2
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tg:
                talkers = [_Talker(self, connection, stay, number) for number in range(chance.randint(1, 3))]
                if chance.random() < 0.5:
                    tg.start_soon(self._visit_room, connection, stay, rooms, random.Random(chance.random()))
                for talker in talkers:
                    tg.start_soon(talker.run, random.Random(chance.random()), not abandoned)
                if abandoned:
                    await anyio.sleep(chance.uniform(0, 1))
                    scope.cancel()
        if not abandoned and connection._core.ended is None and news.seen:
            # not those that were emitted before or after the stay
            news.next = max(news.seen) + 1
            news.finish(stay.epochs - 1, min(news.seen))

    async def _visit_room(
        self, connection: Connection, stay: Stay, rooms: dict[str, Flow], chance: random.Random
    ) -> None:
        room = chance.choice(_ROOMS)
        flow = rooms[room]
        with contextlib.suppress(*_ENDS):
            epoch, first = await connection.call("JOIN", room)
            for _ in range(chance.randint(1, 20)):
                await self._emit(room)
            left, end = await connection.call("LEAVE", room)
            if epoch == left:
                self.counts["visits of rooms"] += 1
                flow.next = end
                wanted = set(range(first, end))
                await self.patiently(lambda: wanted <= flow.seen or stay.epochs != epoch or gone(connection))
                if stay.epochs == epoch and not gone(connection):
                    flow.finish(0, first)

    async def _emit(self, room: str | None = None) -> None:
        async with self._emitting:
            number = self._numbers[room or ""]
            # cancelled, it has reached nobody
            if room is None:
                await self.api.pool.emit("NEWS", number)
            else:
                await self.api.pool.emit("ROOM", room, number, to=room)
            self._numbers[room or ""] += 1
            self.counts["emits"] += 1

    async def patiently(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds, or long enough."""
        with anyio.move_on_after(self.plan.patience):
            while not condition():  # noqa: ASYNC110 (it changes in a dozen places)
                await anyio.sleep(0.005)

    # -- raw peers

    async def _websocket(self, chance: random.Random) -> None:
        """A stock client over WebSocket, of either version, that vanishes or says goodbye."""
        eio = chance.choice([3, 4])
        self._names += 1
        with self._raw_stay(f"websocket {self._names} (EIO {eio})") as stay:
            async with identified(self.bound, chance.choice("AB"), eio=eio, stay=stay.name) as peer:
                await self._converse(peer, stay, chance)
                if chance.random() < 0.5:
                    await peer.send("41")
                else:
                    self.counts["faults: vanished"] += 1
                    await peer.vanish()

    async def _polling(self, chance: random.Random) -> None:
        """A stock client that polls, and may change to WebSocket, of either version."""
        eio = chance.choice([3, 4])
        self._names += 1
        with self._raw_stay(f"polling {self._names} (EIO {eio})") as stay:
            async with polling(self.bound, eio) as peer:
                hear(stay, await peer.identify(chance.choice("AB"), stay=stay.name))
                await self._poll(peer, stay, chance)
                match chance.choice(["upgrade", "upgrade", "close", "vanish"]):
                    case "upgrade":
                        async with peer.probed() as road:
                            # as stock clients do: the poll that is pending ends first
                            hear(stay, await peer.get())
                            await road.send("5")
                            self.counts["upgrades of raw peers"] += 1
                            await self._converse(road, stay, chance)
                    case "close":
                        await peer.post("1")
                    case _:
                        self.counts["faults: vanished"] += 1

    @contextmanager
    def _raw_stay(self, name: str) -> Generator[Stay]:
        """A peer without a proxy has no losses but a restart, or the end of a session that was too slow."""
        stay = Stay(name, self.findings)
        self._stays[name] = stay
        has_restarted = self._expecting_restarts()
        try:
            yield stay
        except (AssertionError, InvalidHandshake):
            # what a server says when it goes, or that has never heard of the session
            if not has_restarted():
                raise
        except TimeoutError as exc:
            self.findings.fail("errors", f"{name} waits in vain: {exc!r}\n{traceback.format_exc()}", stay.journal)
        except (*_ENDS, httpx.TransportError, OSError, AttributeError) as exc:
            _check_cut_off(exc)
            stay.journal.note(repr(exc))
            self.counts["raw peers cut off"] += 1
        finally:
            del self._stays[name]

    async def _poll(self, peer: Poller, stay: Stay, chance: random.Random) -> None:
        for _ in range(chance.randint(0, 5)):
            await self._emit()
            up, down = stay.flow("UP0"), stay.flow("DOWN0")
            count = chance.randint(1, 20)
            numbers = range(up.next, up.next + count)
            up.next += count
            await peer.post(*(f'42["UP0",{number}]' for number in numbers), '42["DOWN0",10]')
            down.next += 10
            while len(down.seen) < down.next:
                hear(stay, await peer.get())
                # it is alive, however long that takes
                await peer.post("2" if peer.eio == 3 else "3")

    async def _converse(self, peer: Raw, stay: Stay, chance: random.Random) -> None:
        up, down = stay.flow("UP0"), stay.flow("DOWN0")
        for _ in range(chance.randint(0, 8)):
            await self._emit()
            for _ in range(chance.randint(1, 20)):
                await peer.event("UP0", up.next)
                up.next += 1
            await peer.event("DOWN0", 10)
            down.next += 10
            while len(down.seen) < down.next:
                message = str(await peer.receive())
                if message == "2":
                    await peer.send("3")
                hear(stay, [message])
        await self.patiently(lambda: len(up.seen) == up.next)
        up.finish(0)

    async def _slow(self, chance: random.Random) -> None:
        """A peer that does not read while much is emitted to it: what it misses is what the policy has dropped."""
        policy = chance.choice(["drop-newest", "drop-newest", "drop-oldest", "latest-per-action"])
        self.counts["faults: slow readers"] += 1
        self._names += 1
        with self._raw_stay(f"slow {self._names} ({policy})") as stay:
            async with joined(self.bound) as peer:
                here = set(self.api.pool._members)
                await peer.identify(policy, stay=stay.name)
                await peer.expect_identified()
                new = [id for id in self.api.pool._members if id not in here]
                mine = [id for id in new if self.api.pool._members[id][0].channel == policy]
                if len(mine) != 1:
                    return
                flow = stay.flow("BULK")
                text = "x" * 100_000
                for _ in range(chance.randint(20, 120)):
                    await self.api.pool.emit("BULK", flow.next, text, to=mine[0])
                    flow.next += 1
                await peer.send('421["SYNC"]')
                while not (message := str(await peer.receive())).startswith("431"):
                    if message == "2":
                        await peer.send("3")
                    elif message.startswith('42["BULK"'):
                        flow.take(json.loads(message[2:])[1], strict=False)
                missing = flow.next - len(flow.seen)
                self.counts["emits missed by slow readers"] += missing
                dropped = self._dropped.pop(mine[0], 0)
                if (policy == "drop-newest" and missing != dropped) or missing < dropped:
                    self.findings.fail("gaps", f"{stay.name}: {missing} missed, {dropped} dropped", stay.journal)

    async def _abuse(self, chance: random.Random) -> None:
        """A peer that breaks off in the middle, or breaks the rules."""
        host, port = address_of(self.bound)
        abuse = chance.choice(["mid-handshake", "mid-binary", "mid-upgrade", "invalid", "invalid", "pings", "silent"])
        self.counts[f"faults: {abuse}"] += 1
        eio = chance.choice([3, 4])
        try:
            await self._abuse_by(abuse, eio, host, port, chance)
        except TimeoutError:
            self.findings.fail("errors", f"{abuse} (EIO {eio}) waits in vain:\n{traceback.format_exc()}")
        except (*_ENDS, OSError, AssertionError, InvalidHandshake, httpx.TransportError, AttributeError) as exc:
            _check_cut_off(exc)
            self.counts["raw peers cut off"] += 1

    async def _abuse_by(self, abuse: str, eio: int, host: str, port: int, chance: random.Random) -> None:
        match abuse:
            case "mid-handshake":
                async with await anyio.connect_tcp(host, port) as stream:
                    head = b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: x\r\nUpgrade: x\r\n\r\n"
                    await stream.send(head[: chance.randint(1, len(head))])
                    await anyio.aclose_forcefully(stream)
            case "mid-binary":
                async with identified(self.bound, "A", eio=eio, stay="") as peer:
                    await peer.send('451-["UP0",0,{"_placeholder":true,"num":0}]')
                    await peer.vanish()
            case "mid-upgrade":
                async with polling(self.bound, eio) as poller:
                    await poller.identify("A", stay="")
                    async with poller.probed() as peer:
                        await peer.vanish()
            case "invalid":
                async with identified(self.bound, "A", eio=eio, stay="") as peer:
                    bad: list[str | bytes] = [
                        '42["a"',
                        "9",
                        "42{}",
                        '42["connect"]',
                        "4",
                        "44",
                        '42²["a"]',
                        b"\x04",
                        '4510000-["a"]',
                        "x",
                    ]
                    await peer.send(chance.choice(bad))
                    await peer.drain()
            case "pings":
                async with identified(self.bound, "A", eio=eio, stay="") as peer:
                    await peer.send(*["2" if eio == 3 else "3"] * 200)
                    await peer.vanish()
            case _:
                async with raw(self.bound, eio=eio):
                    await anyio.sleep(chance.uniform(0, self.plan.heartbeat))

    # -- rounds

    async def run_round(self, number: int, workers: int, steps: int | None, seconds: float) -> None:
        """Start a server and proxies, let the workers do their work, end all of it.

        :param steps: things that each worker does; without it, they go on for so many seconds.
        """
        chance = random.Random(f"{self.plan.seed} {number}")
        self._dropped.clear()
        async with anyio.create_task_group() as tg:
            self.bound = await tg.start(self._serve, 0)
            self._restarting = False
            async with AsyncExitStack() as stack:
                self._proxies = [await stack.enter_async_context(proxied(self.bound)) for _ in range(5)]
                async with anyio.create_task_group() as faults:
                    faults.cancel_scope.deadline = anyio.current_time() + seconds
                    # one has fair weather only: it is where a server that has restarted is found again
                    for proxy in self._proxies[1:]:
                        faults.start_soon(self._weather, proxy, random.Random(chance.random()))
                    faults.start_soon(self._restart, tg, random.Random(chance.random()))
                    tg.start_soon(self._watch_time)
                    chances = [random.Random(chance.random()) for _ in range(workers)]
                    tg.start_soon(self._employ, chances, steps, seconds, faults.cancel_scope)
                await self._worked.wait()
            await self._stop()
            tg.cancel_scope.cancel()

    async def _employ(
        self, chances: list[random.Random], steps: int | None, seconds: float, faults: anyio.CancelScope
    ) -> None:
        end = anyio.current_time() + seconds
        async with anyio.create_task_group() as watching:
            watching.start_soon(self._cut_short, watching.cancel_scope, seconds + 2 * self.plan.patience)
            async with anyio.create_task_group() as working:
                for each in chances:
                    working.start_soon(self._work, each, steps, end)
            watching.cancel_scope.cancel()
        faults.cancel()
        self._worked.set()

    async def _cut_short(self, scope: anyio.CancelScope, seconds: float) -> None:
        await anyio.sleep(seconds)
        alive = "\n".join(str(stay.journal) for stay in self._stays.values())
        self.findings.fail("errors", f"workers hang:\n{alive}\n{stacks()}")
        scope.cancel()

    async def _work(self, chance: random.Random, steps: int | None, end: float) -> None:
        done = 0
        while done < steps if steps is not None else anyio.current_time() < end:
            done += 1
            work = chance.choices(
                [self._client, self._websocket, self._polling, self._slow, self._abuse], [12, 3, 3, 1, 4]
            )[0]
            try:
                await work(chance)
            except Exception:
                self.findings.fail("errors", f"{work.__name__}:\n{traceback.format_exc()}")
            self.counts["lives"] += 1

    async def at_rest(self, before: Counter[str] | None) -> Counter[str]:
        """Wait until nothing is alive but what was before; the first time, until no session is."""
        deadline = anyio.current_time() + self.plan.patience / 2
        while True:
            counts = census()
            left = counts - before if before is not None else Counter({"Session": counts["Session"]})
            if not +left:
                return counts
            if anyio.current_time() > deadline:
                self.findings.fail("leaks", f"{dict(left)} left")
                return counts
            await anyio.sleep(0.05)

    async def run(self, progress: Callable[[str], None]) -> None:
        """All rounds, after a small one that leaves behind what is made once and kept."""
        plan = self.plan
        await self.run_round(-1, 5, 2, 10)
        before = await self.at_rest(None)
        memory = [_memory()]
        for number in range(plan.rounds):
            self._worked = anyio.Event()
            await self.run_round(number, plan.workers, plan.steps, plan.seconds)
            await self.at_rest(before)
            statistics = self.api.statistics()
            if (left := (statistics.sessions_open, statistics.connections_open, len(self.api.pool))) != (0, 0, 0):
                self.findings.fail("leaks", f"the API counts {left} sessions, connections, members")
            memory.append(_memory())
            progress(f"round {number + 1} of {plan.rounds}: {memory[-1] / 1e6:.1f} MB, {summary(self.findings)}")
        names = ("at the start", "after the first round", "at the end")
        for name, size in zip(names, (memory[0], memory[1], memory[-1]), strict=True):
            self.counts[f"memory {name}, kB"] = size // 1000
        # allocators keep what the first rounds' highest loads took: a leak goes on growing after them
        if memory[-1] - max(memory[1 : 2 + plan.rounds // 2]) > MAX_GROWTH:
            self.findings.fail("leaks", f"memory has grown: {[size // 1000 for size in memory]} kB")


class _Talker:
    """A task of a client's that sends and asks for numbered messages, of actions of its own."""

    def __init__(self, stress: Stress, connection: Connection, stay: Stay, number: int) -> None:
        self._stress = stress
        self._connection = connection
        self._stay = stay
        self._up, self._down = f"UP{number}", f"DOWN{number}"
        self._ups, self._downs = stay.flow(self._up), stay.flow(self._down)
        #: how much has come of each epoch
        self._heard: Counter[int] = Counter()
        connection.on(self._down)(self._take)

    def _take(self, number: int) -> None:
        epoch = number // EPOCH
        if self._heard[epoch] == 0:
            # as if what is before the first one had come
            self._downs.begin(epoch * EPOCH - 1, epoch)
            if epoch < max(self._heard, default=0):
                text = f"{self._downs.name}: epoch {epoch} begins late"
                self._stress.findings.fail("disorder", text, self._stay.journal)
        self._downs.take(number, epoch)
        self._heard[epoch] = number % EPOCH + 1

    async def run(self, chance: random.Random, settle: bool) -> None:
        try:
            for _ in range(chance.randint(0, 12)):
                step = chance.choice(
                    ["ups", "ups", "downs", "echo", "binary", "cancelled", "flood", "slow", "emit", "pause"]
                )
                self._stay.journal.note(f"client: {step}")
                await self._step(step, chance)
            if settle:
                await self._settle()
                self._stress.counts["streams that arrived to the last message"] += 1
        except _Over as exc:
            self._stay.journal.note(f"client: the stay is over: {exc}")
            self._stress.counts[f"stays over early: {exc}"] += 1

    async def _step(self, step: str, chance: random.Random) -> None:
        match step:
            case "ups":
                for _ in range(chance.randint(1, 30)):
                    await self._send()
            case "downs":
                await self._ask(self._down, chance.randint(1, 30), answered=False)
            case "echo":
                value = chance.random()
                answer = await self._ask("ECHO", value)
                if answer is not None and answer != value:
                    self._stress.findings.fail("errors", f"{self._stay.name}: {answer} for {value}", self._stay.journal)
            case "binary":
                for _ in range(chance.randint(1, 5)):
                    await self._send(_bytes_of(self._ups.next))
            case "cancelled":
                for _ in range(chance.randint(1, 30)):
                    with anyio.move_on_after(chance.uniform(0, 0.001)):
                        await self._send()
            case "flood":
                self._stress.counts["faults: floods"] += 1
                for _ in range(500):
                    await self._send("x" * 500)
            case "slow":
                await self._read_slowly(chance)
            case "emit":
                await self._stress._emit()
            case _:
                await anyio.sleep(chance.uniform(0, 0.3))

    async def _send(self, data: Any = None) -> None:
        number = self._ups.next
        self._ups.next += 1
        # until it is known
        self._ups.unsure.add(number)
        try:
            await self._connection.send(self._up, number, data)
        except _ENDS as exc:
            await self._after(exc)
        else:
            self._ups.unsure.discard(number)

    async def _ask(self, action: str, *args: Any, answered: bool = True) -> Any:
        """Call or send; ``None`` where a loss came between."""
        try:
            if answered:
                return await self._connection.call(action, *args)
            await self._connection.send(action, *args)
        except _ENDS as exc:
            await self._after(exc)
        return None

    async def _after(self, exc: Exception) -> None:
        end = self._connection._core.ended
        self._stay.journal.note(f"client: {exc!r}, {end}")
        if end is not None:
            raise _Over(f"{end.code}: {end.reason}") from exc
        if not isinstance(exc, ConnectionLost):
            self._stress.findings.fail("errors", f"{self._stay.name}: {exc!r} without an end", self._stay.journal)
        await anyio.sleep(0.02)

    async def _read_slowly(self, chance: random.Random) -> None:
        self._stress.counts["faults: slow readers"] += 1
        try:
            async with self._connection.receive(self._down) as stream:
                await self._connection.send(self._down, 600)
                stream_of = Flow(f"{self._downs.name}, by stream", self._stress.findings, self._stay.journal)
                stream_of.unsure = self._downs.unsure
                for _ in range(chance.randint(0, 60)):
                    with anyio.move_on_after(0.5) as scope:
                        number = await stream.receive()
                    if scope.cancelled_caught:
                        break
                    stream_of.take(number, number // EPOCH)
                    await anyio.sleep(chance.uniform(0, 0.01))
        except _ENDS as exc:
            await self._after(exc)

    async def _settle(self) -> None:
        """Have everything arrive, both ways, on a session that lasts long enough."""
        stay = self._stay
        for _ in range(100):
            visits = stay.visits
            last = self._ups.next
            await self._send()
            visit = await self._ask(f"{self._up}?")
            if visit is None or last in self._ups.unsure:
                continue

            def decided(last: int = last, visits: int = visits) -> bool:
                return last in self._ups.seen or stay.visits != visits or gone(self._connection)

            await self._stress.patiently(decided)
            if last in self._ups.seen:
                break
            if stay.visits == visits and not gone(self._connection):
                break
        else:
            raise _Over("it never settled")
        if gone(self._connection):
            raise _Over("while it settled")
        # one that was lost with its session is a hole, and so is the end of what did not arrive for no reason
        self._ups.finish(stay.visits - 1)
        for _ in range(100):
            if (answer := await self._ask(f"{self._down}?")) is None:
                continue
            epoch, count = answer
            # the last ones may have been cut off before they were sent
            while count and epoch * EPOCH + count - 1 in self._downs.unsure:
                count -= 1

            def heard(epoch: int = epoch, count: int = count) -> bool:
                return self._heard[epoch] >= count or stay.epochs != epoch or gone(self._connection)

            await self._stress.patiently(heard)
            if self._heard[epoch] >= count:
                return
            if stay.epochs == epoch and not gone(self._connection):
                text = f"{self._downs.name}: {self._heard[epoch]} of {count} of epoch {epoch} have come"
                self._stress.findings.fail("gaps", text, stay.journal)
                return
        raise _Over("it never settled")


def _check_cut_off(exc: Exception) -> None:
    """Of attribute errors, AnyIO's on uvloop for a socket that is closed as it is opened is the only one."""
    if isinstance(exc, AttributeError) and "getpeername" not in str(exc):
        raise exc


def stacks() -> str:
    """Where each task of the loop waits."""
    lines = []
    for task in anyio.get_running_tasks():
        lines.append(f"  task {task.name}")
        awaited: Any = task.coro
        while awaited is not None and (frame := getattr(awaited, "cr_frame", getattr(awaited, "ag_frame", None))):
            lines.append(f"    {frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}")
            awaited = getattr(awaited, "cr_await", getattr(awaited, "ag_await", None))
    return "\n".join(lines)


def gone(connection: Connection) -> bool:
    """Whether a connection has ended."""
    return connection._core.ended is not None


def hear(stay: Stay, messages: list[str]) -> None:
    """Take what a raw peer has received."""
    for message in messages:
        if message in ("2", "3", "6"):
            continue
        if message == "1":
            # over WebSocket it is the Close frame that says so: too slow for what is emitted to it, for one
            raise anyio.EndOfStream("the server closed the session")
        assert message.startswith("42["), message
        name, number, *_ = json.loads(message[2:])
        if name == "BRIGHTSOCKET:CLOSED":
            raise anyio.EndOfStream(number)
        stay.flow(name).take(number)


def _bytes_of(number: int) -> bytes:
    return number.to_bytes(4, "big") * (1 + number % 500)


def _memory() -> int:
    """Bytes of memory that the process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


#: cancelled at the moment at which a connection comes, asyncio's own sock_accept loses its socket, and logs that
_LOST_BY_ASYNCIO = "connections lost by asyncio's accept"


class _Records(logging.Handler):
    """Errors that were logged are failures."""

    def __init__(self, findings: Findings) -> None:
        super().__init__(logging.ERROR)
        self._findings = findings
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        if "_sock_accept" in record.getMessage():
            self._findings.counts[_LOST_BY_ASYNCIO] += 1
            return
        self._findings.fail("errors", self._formatter.format(record))


@contextmanager
def watching(findings: Findings) -> Generator[None]:
    """What is logged as an error, or fails where nobody can catch it, is a failure."""

    sockets = 0

    def unraisable(args: Any) -> None:
        nonlocal sockets
        if isinstance(args.exc_value, ResourceWarning) and "unclosed <socket" in str(args.exc_value):
            sockets += 1
            if sockets <= findings.counts[_LOST_BY_ASYNCIO]:
                return
        text = "".join(traceback.format_exception(args.exc_value))
        findings.fail("errors", f"{args.err_msg}: {args.object!r}\n{text}")

    handler = _Records(findings)
    hook = sys.unraisablehook
    sys.unraisablehook = unraisable
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        sys.unraisablehook = hook


def summary(findings: Findings) -> str:
    """What matters most, in a line."""
    faults = sum(count for name, count in findings.counts.items() if name.startswith("faults: "))
    kinds = ("gaps", "duplicates", "disorder", "leaks", "errors")
    wrong = ", ".join(f"{findings.failures[kind]} {kind}" for kind in kinds)
    return f"{findings.counts['messages']} messages, {faults} faults, {wrong}"


def run(plan: Plan, loop: str, progress: Callable[[str], None] = lambda text: None) -> Findings:
    """Run it on a loop."""
    findings = Findings()
    backend, options = LOOPS[loop]

    async def main() -> None:
        await Stress(plan, findings).run(progress)

    with watching(findings):
        anyio.run(main, backend=backend, backend_options=options)
    return findings


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description="Everything at once, checking itself.")
    parser.add_argument("--minutes", type=float, default=2, help="how long it goes on, on each loop (default: 2)")
    parser.add_argument("--hours", type=float, help="the same in hours")
    parser.add_argument("--seed", type=int, help="do again what this seed stands for; the default is a new one")
    parser.add_argument("--loop", choices=[*LOOPS, "all"], default="all")
    parser.add_argument("--workers", type=int, default=24, help="how many peers there are at a time (default: 24)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts there, too")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    seconds = options.minutes * 60 if options.hours is None else options.hours * 3600
    print(f"replay with --seed={seed}", flush=True)
    rounds = max(2, round(seconds / 30))
    plan = Plan(seed, rounds=rounds, seconds=seconds / rounds, workers=options.workers)
    warnings.simplefilter("error", ResourceWarning)
    warnings.simplefilter("error", RuntimeWarning)
    results: dict[str, Any] = {"seed": seed}
    failed = False
    for loop in LOOPS if options.loop == "all" else [options.loop]:
        began = time.monotonic()
        spoken = began

        def progress(text: str, loop: str = loop) -> None:
            nonlocal spoken
            if time.monotonic() - spoken >= 55:
                spoken = time.monotonic()
                print(f"{loop}: {text}", file=sys.stderr, flush=True)

        findings = run(plan, loop, progress)
        failed = failed or bool(findings.failures)
        print(f"\n{loop}, {time.monotonic() - began:.0f} s: {summary(findings)}")
        for name, count in sorted(findings.counts.items()):
            print(f"{count:>12} {name}")
        for text in findings.texts:
            print(f"\n--seed={seed} --loop={loop}: {text}")
        results[loop] = {"failures": findings.failures, "counts": findings.counts, "texts": findings.texts}
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
