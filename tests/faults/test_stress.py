"""Everything at once, by a seed that replays it: no gap, no duplicate, nothing left. And thousands of losses."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from brightsocket_anyio import Bound, Brightsocket, Connection, open_client

from ..support import PATIENCE, Raw, census, identified, serving, until
from .poller import Poller, polling
from .process import Running, running
from .test_flood import controlled, state_where


class Sequence:
    """Numbers that have to come one after the other."""

    def __init__(self, name: str, errors: list[str], start: int | None = 0) -> None:
        self.name = name
        self.next = start
        self._errors = errors

    def take(self, number: int) -> None:
        if self.next is not None and number != self.next:
            self._errors.append(f"{self.name}: {number} instead of {self.next}")
        self.next = number + 1


class Stress:
    """A server, and peers that do what their own random numbers say."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        # nobody here is too slow: every message must arrive
        self.api = Brightsocket(close_timeout=1, ping_interval=2, ping_timeout=2, max_buffered_messages=10_000)
        self.errors: list[str] = []
        self.counts: Counter[str] = Counter()
        self.emitted = 0
        self._emitting = anyio.Lock()
        self.api.connect("A", self._channel)
        self.api.connect("B", ["A"], lambda: None)

    async def _channel(self, connection: Connection) -> None:
        ups = Sequence(f"{connection!r}: up", self.errors)
        downs = 0

        @connection.add_filter
        async def pass_on(action: str, payload: Any, forward: Callable[[], Awaitable[None]]) -> None:
            await forward()

        @connection.on("UP")
        async def up(number: int) -> None:
            await checkpoint()
            ups.take(number)
            self.counts["up"] += 1

        @connection.on("COUNT")
        def count() -> int | None:
            return ups.next

        @connection.on("DOWN")
        async def down(count: int) -> None:
            nonlocal downs
            for _ in range(count):
                await connection.send("DOWN", downs)
                downs += 1

    async def _emit(self) -> None:
        async with self._emitting:
            await self.api.pool.emit("NEWS", self.emitted)
            self.emitted += 1

    async def client(self, bound: Bound, chance: random.Random) -> None:
        """A program with our client: it switches, calls, sends, receives, and may be cancelled anywhere."""
        name = f"client {chance.random()}"
        with anyio.CancelScope() as scope:
            async with open_client(bound.url, close_timeout=1) as client:
                for _ in range(chance.randint(1, 3)):
                    connection = await client.connect(chance.choice("AB"))
                    self.counts["connects"] += 1
                    await self._stay(connection, name, chance)
                    match chance.choice(["switch", "aclose", "disconnect", "vanish"]):
                        case "aclose":
                            await connection.aclose()
                        case "disconnect":
                            await client.disconnect()
                        case "vanish":
                            self.counts["losses"] += 1
                            scope.cancel()
                            await checkpoint()
                        case _:
                            self.counts["switches"] += 1

    async def _stay(self, connection: Connection, name: str, chance: random.Random) -> None:
        news = Sequence(f"{name}: news", self.errors, None)
        downs = Sequence(f"{name}: down", self.errors)
        connection.on("NEWS")(news.take)
        sent = 0
        async with connection.receive("DOWN") as stream:
            for _ in range(chance.randint(0, 10)):
                await self._emit()
                match chance.choice(["up", "down", "count"]):
                    case "up":
                        for _ in range(chance.randint(1, 30)):
                            await connection.send("UP", sent)
                            sent += 1
                    case "down":
                        count = chance.randint(1, 30)
                        await connection.send("DOWN", count)
                        for _ in range(count):
                            downs.take(await stream.receive())
                            self.counts["down"] += 1
                    case _:
                        await self._all_arrived(connection, sent)
            await self._all_arrived(connection, sent)

    async def _all_arrived(self, connection: Connection, sent: int) -> None:
        with anyio.fail_after(PATIENCE):
            while (count := await connection.call("COUNT")) != sent:
                assert count < sent

    async def websocket(self, bound: Bound, chance: random.Random) -> None:
        """A stock client over WebSocket, of either version, that vanishes or says goodbye."""
        eio = chance.choice([3, 4])
        async with identified(bound, chance.choice("AB"), eio=eio) as peer:
            self.counts["connects"] += 1
            await self._converse(peer, Heard(self, f"websocket {chance.random()}"), 0, chance)

    async def polling(self, bound: Bound, chance: random.Random) -> None:
        """A stock client that polls, and may change to WebSocket, of either version."""
        async with polling(bound, chance.choice([3, 4])) as peer:
            heard = Heard(self, f"polling {chance.random()}")
            heard.take(await peer.identify(chance.choice("AB")))
            self.counts["connects"] += 1
            sent = await self._poll(peer, heard, chance)
            match chance.choice(["upgrade", "upgrade", "close", "vanish"]):
                case "upgrade":
                    async with peer.probed() as road:
                        # as stock clients do: the poll that is pending ends first
                        heard.take(await peer.get())
                        await road.send("5")
                        self.counts["upgrades"] += 1
                        await self._converse(road, heard, sent, chance)
                case "close":
                    await peer.post("1")
                case _:
                    self.counts["losses"] += 1

    async def _poll(self, peer: Poller, heard: Heard, chance: random.Random) -> int:
        sent = 0
        for _ in range(chance.randint(0, 5)):
            await self._emit()
            count = chance.randint(1, 20)
            await peer.post(*(f'42["UP",{number}]' for number in range(sent, sent + count)), '42["DOWN",10]')
            sent += count
            wanted = heard.downs.next or 0
            while (heard.downs.next or 0) < wanted + 10:
                heard.take(await peer.get())
        return sent

    async def _converse(self, peer: Raw, heard: Heard, sent: int, chance: random.Random) -> None:
        for _ in range(chance.randint(0, 8)):
            await self._emit()
            for _ in range(chance.randint(1, 20)):
                await peer.event("UP", sent)
                sent += 1
            wanted = (heard.downs.next or 0) + 10
            await peer.event("DOWN", 10)
            while (heard.downs.next or 0) < wanted:
                message = str(await peer.receive())
                if message == "2":
                    await peer.send("3")
                heard.take([message])
        if chance.random() < 0.5:
            await peer.send("41")
        else:
            self.counts["losses"] += 1
            await peer.vanish()

    async def run(self, bound: Bound, peers: int) -> None:
        chances = [random.Random(f"{self.seed} {number}") for number in range(peers)]
        async with anyio.create_task_group() as tg:
            for chance in chances:
                tg.start_soon(chance.choice([self.client, self.websocket, self.polling]), bound, chance)


class Heard:
    """What a raw peer has heard."""

    def __init__(self, stress: Stress, name: str) -> None:
        self.downs = Sequence(f"{name}: down", stress.errors)
        self._news = Sequence(f"{name}: news", stress.errors, None)
        self._counts = stress.counts

    def take(self, messages: list[str]) -> None:
        for message in messages:
            if message in ("2", "3", "6"):
                continue
            assert message.startswith("42["), message
            name, number = json.loads(message[2:])
            {"DOWN": self.downs, "NEWS": self._news}[name].take(number)
            self._counts["down"] += 1


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    given: int | None = request.config.getoption("--seed")
    return random.SystemRandom().randrange(2**32) if given is None else given


@pytest.mark.timeout(1200)
async def test_everything_at_once(seed: int, request: pytest.FixtureRequest) -> None:
    rounds = 50 if request.config.getoption("--full") else 2
    print(f"replay with --seed={seed}")
    stress = Stress(seed)
    async with serving(stress.api) as bound:
        # the first peers leave behind what is made once and kept
        await stress.run(bound, 5)
        await until(lambda: len(stress.api.pool) == 0)
        before = await _at_rest(None)
        for number in range(rounds):
            stress.seed = seed + number
            with anyio.fail_after(60):
                await stress.run(bound, 20)
        assert stress.errors == []
        await until(lambda: len(stress.api.pool) == 0)
        await _at_rest(before)
    print(dict(stress.counts), "news:", stress.emitted)


async def _at_rest(before: Any) -> Any:
    """Wait until nothing is alive but what was before; the first time, until no session is."""
    with anyio.fail_after(PATIENCE):
        while True:
            counts = census()
            if not (counts - before if before is not None else counts["Session"]):
                return counts
            # counting is costly, and sessions whose peers have vanished wait for their heartbeat
            await anyio.sleep(0.05)


@pytest.mark.parametrize("loop", ["asyncio", "asyncio+uvloop", "trio"])
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.timeout(600)
async def test_connects_and_abrupt_losses(loop: str, anyio_backend: str, request: pytest.FixtureRequest) -> None:
    """In a process of its own: its memory, sockets and objects return to where they were."""
    losses = 10_000 if request.config.getoption("--full") else 400
    async with running(loop) as program, controlled(program) as control:
        # what is made once, and what the allocators keep
        await _lose(program, control, 600)
        before = await control.call("CENSUS")
        program.reset_peak()
        memory = program.memory()
        await _lose(program, control, losses)
        after = await control.call("CENSUS")
        growth = program.memory() - memory
        print(f"{loop}: {losses} losses, grown by {growth / 1e6:.2f} MB, {after}")
        assert after == before
        assert growth < 2_000_000


async def _lose(program: Running, control: Connection, count: int) -> None:
    async def lose_one(number: int) -> None:
        async with identified(program.bound, "LISTEN", eio=3 + number % 2) as peer:
            await peer.event("NOISE", number)
            await peer.vanish()

    for start in range(0, count, 40):
        async with anyio.create_task_group() as tg:
            for number in range(start, start + 40):
                tg.start_soon(lose_one, number)
    await state_where(control, members=1)
    with anyio.fail_after(PATIENCE):
        while (await control.call("CENSUS"))["Session"] > 1:
            pass
