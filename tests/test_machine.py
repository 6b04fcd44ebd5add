"""A stateful machine over real clients, servers and sockets, whose invariant is the first rule: a client is on one
channel at a time, and one's functions are over before the next one's begin."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, ClassVar

import anyio
import anyio.abc
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from anyio.lowlevel import checkpoint
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from brightsocket_anyio import (
    Bound,
    Brightsocket,
    ChannelRefused,
    Client,
    Connection,
    ConnectionLost,
    Refused,
    open_client,
)
from brightsocket_anyio.transports.polling import PollingTransport

from .conftest import LOOPS
from .faults.poller import polling
from .proxy import Proxy, address_of, proxied
from .stress import LOOPS as BACKENDS
from .support import PATIENCE, identified, joined, raw, serving, until

TRANSPORTS = ["websocket", "polling", ("polling", "websocket")]
CHANNELS = ["ONE", "TWO", "/three"]


class Actor:
    """A client, as the test knows it.

    :ivar channel: where it should be.
    :ivar inside: the channels whose functions run for it at the server.
    :ivar cut: whether it may have lost a session, which the server notices when it does: it may be back before that.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.client: Client
        self.channel: str | None = None
        self.inside: list[str] = []
        self.cut = False
        self.told = 0
        self.heard = 0
        self.leaving = anyio.Event()
        self.gone = anyio.Event()
        self.scope = anyio.CancelScope()

    def hear(self, number: int, *_: Any) -> None:
        self.heard += 1


class World:
    """A server, its clients, and what must be true of them; lives in a task of its own."""

    def __init__(self) -> None:
        self.actors: dict[str, Actor] = {}
        self.strangers: dict[str, Actor] = {}
        self.wrong: list[str] = []
        self.api = Brightsocket(close_timeout=1, max_disconnection_duration=60)
        self.api.connect("ONE", self._channel)
        self.api.connect("TWO", ["ONE"], lambda: None)
        self.api.connect("/three", self._channel)
        self.api.connect("NO", self._refuse)
        self._task_group: anyio.abc.TaskGroup
        self._proxy: Proxy
        self._bound: Bound
        self._stopping: anyio.Event
        self._stopped: anyio.Event
        self._ended = anyio.Event()

    async def _channel(self, connection: Connection, identity: dict[str, Any]) -> None:
        name = identity["name"]
        actor = self.actors.get(name) or self.strangers.get(name) or Actor("nobody")
        if actor.inside and not actor.cut:
            self.wrong.append(f"{actor.name} enters {connection.channel} and is in {actor.inside}")
        actor.inside.append(connection.channel)
        try:
            connection.join("everybody", connection.channel)
            connection.on("ECHO")(lambda value: value)
            await connection.accept()
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                # what a function has to put in order takes its time
                for _ in range(50):
                    await checkpoint()
            actor.inside.remove(connection.channel)

    def _refuse(self) -> None:
        raise Refused("nobody is wanted here")

    # -- its life

    async def run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with anyio.create_task_group() as self._task_group:
            await self._task_group.start(self._serve)
            async with proxied(self._bound) as self._proxy:
                task_status.started()
                await self._ended.wait()
                for actor in self.actors.values():
                    actor.leaving.set()
                await until(lambda: all(actor.gone.is_set() for actor in self.actors.values()))
            self._stopping.set()

    async def _serve(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        self._stopping, self._stopped = anyio.Event(), anyio.Event()
        async with serving(self.api) as self._bound:
            task_status.started()
            await self._stopping.wait()
        self._stopped.set()

    async def end(self) -> None:
        self._ended.set()

    async def restart(self) -> None:
        """The server goes, and comes again elsewhere."""
        self._stopping.set()
        await self._stopped.wait()
        await self._task_group.start(self._serve)
        self._proxy.target = address_of(self._bound)

    # -- what clients do

    async def open(self, name: str, transport: Any, eio: Any) -> None:
        actor = self.actors[name] = Actor(name)
        await self._task_group.start(partial(self._live, actor, transport, eio))

    async def _live(self, actor: Actor, transport: Any, eio: Any, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        quick: Any = {"reconnection_delay": 0.001, "reconnection_delay_max": 0.01}
        try:
            with actor.scope:
                async with open_client(
                    self._proxy.url, transport=transport, eio=eio, close_timeout=1, **quick
                ) as client:
                    actor.client = client
                    client.on("NEWS")(actor.hear)
                    task_status.started()
                    await actor.leaving.wait()
        finally:
            actor.gone.set()

    async def connect(self, name: str, channel: str) -> None:
        actor = self.actors[name]
        connection = await actor.client.connect(channel, {"name": name})
        actor.channel = channel
        if actor.inside != [channel] and not actor.cut:
            self.wrong.append(f"{name} has connected to {channel} and is in {actor.inside}")
        if await connection.call("ECHO", name) != name:
            self.wrong.append(f"{name} hears no echo")

    async def connect_in_vain(self, name: str) -> None:
        actor = self.actors[name]
        actor.channel = None
        with pytest.raises(ChannelRefused, match="nobody is wanted"):
            await actor.client.connect("NO", {"name": name})

    async def give_up(self, name: str, channel: str, steps: int) -> None:
        """Connect, and be cancelled so many steps later."""
        actor = self.actors[name]
        actor.channel = None
        async with anyio.create_task_group() as tg:

            async def connect() -> None:
                await actor.client.connect(channel, {"name": name})
                actor.channel = channel

            tg.start_soon(connect)
            for _ in range(steps):
                await checkpoint()
            tg.cancel_scope.cancel()

    async def disconnect(self, name: str) -> None:
        actor = self.actors[name]
        await actor.client.disconnect()
        actor.channel = None
        if actor.inside and not actor.cut:
            self.wrong.append(f"{name} has disconnected and is in {actor.inside}")

    async def turn_out(self, name: str) -> None:
        """The server closes its connection."""
        actor = self.actors[name]
        if (connection := actor.client.connection) is not None:
            member = self.api.pool._members[connection.id][0]
            await member.aclose()
            actor.channel = None

    async def cut(self) -> None:
        """Every client loses its session, and comes back."""
        await self._polls()
        for actor in self.actors.values():
            actor.cut = True
        self._proxy.cut()
        for actor in self.actors.values():
            connection = actor.client.connection
            while connection is not None:
                # an echo is heard on a session that is alive only
                with contextlib.suppress(ConnectionLost):
                    await connection.call("ECHO")
                    break

    async def _polls(self) -> None:
        """Wait until every client that polls has a GET at the server, without which the server does not notice before
        the ping timeout that a client has gone."""
        sessions = [core.session for _, core in self.api.pool._members.values()]
        await until(
            lambda: all(
                session.transport._pending is not None
                for session in sessions
                if isinstance(session.transport, PollingTransport) and not session.closed
            )
        )

    async def leave(self, name: str, orderly: bool) -> None:
        actor = self.actors[name]
        if orderly:
            actor.leaving.set()
        else:
            await self._polls()
            actor.scope.cancel()
        actor.channel = None
        await actor.gone.wait()

    # -- what others do

    async def come_and_vanish(self, eio: int, stage: str) -> None:
        match stage:
            case "opened":
                async with raw(self._bound, eio=eio) as peer:
                    await peer.vanish()
            case "joined":
                async with joined(self._bound, eio=eio) as peer:
                    await peer.vanish()
            case "identified":
                async with identified(self._bound, "ONE", eio=eio, name="nobody") as peer:
                    await peer.vanish()
            case "upgrading":
                async with polling(self._bound, eio) as poller:
                    await poller.identify("TWO", name="nobody")
                    async with poller.probed() as peer:
                        await peer.vanish()
                    await poller.post("1")

    async def switch_and_vanish(self, eio: int, channels: list[str]) -> None:
        """A stock client goes from channel to channel on one session, sometimes without waiting to be let in."""
        # each of them another one: what one has sent before it vanished may take effect after it has left
        name = f"stranger {len(self.strangers)}"
        actor = self.strangers[name] = Actor(name)
        async with joined(self._bound, eio=eio) as peer:
            for channel in channels:
                await peer.identify(channel, name=actor.name)
            for channel in channels:
                await peer.identify(channel, name=actor.name)
                while json.loads(str(await peer.receive())[2:])[0] != "BRIGHTSOCKET:IDENTIFIED":
                    pass
            await until(lambda: actor.inside == [channels[-1]])
            await peer.vanish()
        await until(lambda: not actor.inside)

    async def emit(self, room: str) -> None:
        """Whoever is in a room hears it, and nobody else."""
        await self.check()
        whole = [actor for actor in self.actors.values() if not actor.cut]
        there = [actor for actor in whole if actor.channel and room in ("everybody", actor.channel)]
        taken = await self.api.pool.emit("NEWS", 1, to=room)
        for actor in there:
            actor.told += 1
        if taken < len(there):
            self.wrong.append(f"{taken} have taken what {len(there)} should have")
        await until(lambda: all(actor.heard >= actor.told for actor in there))
        for actor in whole:
            if actor.heard != actor.told:
                self.wrong.append(f"{actor.name} was told {actor.told} times, and has heard {actor.heard}")

    # -- what is true of all of them

    def _still(self) -> bool:
        """Whether everybody is where they should be, or has heard why not."""
        return all(
            actor.gone.is_set() or (actor.client.state == ("connected" if actor.channel else "disconnected"))
            for actor in self.actors.values()
        ) and all(actor.inside == ([actor.channel] if actor.channel else []) for actor in self.actors.values())

    async def check(self) -> None:
        here = {actor.name: actor for actor in self.actors.values() if actor.channel}
        try:
            await until(lambda: self._still() and len(self.api.pool) == len(here))
        except TimeoutError:
            told = {actor.name: (actor.channel, actor.inside, actor.client.state) for actor in self.actors.values()}
            self.wrong.append(f"not as it should be: {told}, {len(self.api.pool)} in the pool")
        ids = {actor.client.connection.id for actor in here.values() if actor.client.connection}
        if self.api.pool.members("everybody") != ids:
            self.wrong.append("the room has other members than the pool")
        statistics = self.api.statistics()
        if statistics.connections_open != len(here):
            self.wrong.append(f"{statistics.connections_open} connections are counted, where {len(here)} are")
        assert not self.wrong, self.wrong


class Machine(RuleBasedStateMachine):
    """Steps of clients and servers, each followed by a look at all of them."""

    clients = Bundle("clients")

    #: the event loop, and its options
    backend: ClassVar[tuple[str, dict[str, Any]]]

    def __init__(self) -> None:
        super().__init__()
        self._portals = start_blocking_portal(*self.backend)
        self._portal: BlockingPortal = self._portals.__enter__()
        self._names = 0

    def do(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        async def bounded() -> Any:
            with anyio.fail_after(PATIENCE):
                return await function(*args)

        return self._portal.call(bounded)

    @initialize()
    def begin(self) -> None:
        async def make() -> World:
            return World()

        self.world: World = self._portal.call(make)
        self._life, _ = self._portal.start_task(self.world.run)

    @rule(target=clients, transport=st.sampled_from(TRANSPORTS), eio=st.sampled_from([3, 4]))
    def open(self, transport: Any, eio: Any) -> Any:
        if self._names == 4:
            return multiple()
        self._names += 1
        name = f"client {self._names}"
        self.do(self.world.open, name, transport, eio)
        return name

    @rule(client=clients, channel=st.sampled_from(CHANNELS))
    def connect(self, client: str, channel: str) -> None:
        self.do(self.world.connect, client, channel)

    @rule(client=clients)
    def connect_in_vain(self, client: str) -> None:
        self.do(self.world.connect_in_vain, client)

    @rule(client=clients, channel=st.sampled_from(CHANNELS), steps=st.integers(0, 80))
    def give_up(self, client: str, channel: str, steps: int) -> None:
        self.do(self.world.give_up, client, channel, steps)

    @rule(client=clients)
    def disconnect(self, client: str) -> None:
        self.do(self.world.disconnect, client)

    @rule(client=clients)
    def turn_out(self, client: str) -> None:
        self.do(self.world.turn_out, client)

    @rule(client=consumes(clients), orderly=st.booleans())
    def leave(self, client: str, orderly: bool) -> None:
        self.do(self.world.leave, client, orderly)

    @rule()
    def cut(self) -> None:
        self.do(self.world.cut)

    @rule()
    def restart(self) -> None:
        self.do(self.world.restart)

    @rule(eio=st.sampled_from([3, 4]), stage=st.sampled_from(["opened", "joined", "identified", "upgrading"]))
    def come_and_vanish(self, eio: int, stage: str) -> None:
        self.do(self.world.come_and_vanish, eio, stage)

    @rule(
        eio=st.sampled_from([3, 4]),
        channels=st.lists(st.sampled_from([each for each in CHANNELS if each[0] != "/"]), min_size=1, max_size=4),
    )
    def switch_and_vanish(self, eio: int, channels: list[str]) -> None:
        self.do(self.world.switch_and_vanish, eio, channels)

    @rule(room=st.sampled_from(["everybody", *CHANNELS]))
    def emit(self, room: str) -> None:
        self.do(self.world.emit, room)

    @invariant()
    def everybody_is_where_they_should_be(self) -> None:
        if hasattr(self, "world"):
            self.do(self.world.check)

    def teardown(self) -> None:
        try:
            if hasattr(self, "world"):
                self.do(self.world.end)
                self._life.result(PATIENCE)
                statistics = self.world.api.statistics()
                left = (statistics.sessions_open, statistics.connections_open, len(self.world.api.pool))
                assert left == (0, 0, 0)
        finally:
            self._portals.__exit__(*sys.exc_info())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_client_is_on_one_channel_at_a_time(loop: str) -> None:
    class OnLoop(Machine):
        backend = BACKENDS[loop]

    examples = getattr(settings.default, "max_examples", 100) // 4
    run_state_machine_as_test(OnLoop, settings=settings(max_examples=examples, stateful_step_count=15))
