"""Connection state recovery: whoever was lost a moment ago gets its id, its rooms and what it has missed, each once."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked

from brightsocket_anyio import Bound, Brightsocket, ChannelRefused, Connection, Refused, open_client
from brightsocket_anyio.protocol.engineio import Packet, PacketType
from brightsocket_anyio.recovery import Journal
from brightsocket_anyio.settings import Settings

from .proxy import Proxy, proxied
from .support import PATIENCE, MemoryListener, Raw, census_at_rest, raw, serving, serving_in_memory, until

pytestmark = pytest.mark.anyio

QUICK: dict[str, Any] = {"reconnection_delay": 0.01, "reconnection_delay_max": 0.05}
CHANNELS = pytest.mark.parametrize("channel", ["DESK", "/desk"])


class Desk:
    """An API whose clients join rooms once, when they are new, and get whatever is sent to them."""

    def __init__(self, **settings: Any) -> None:
        options = {"close_timeout": 0.1, "max_disconnection_duration": 60, **settings}
        self.api = Brightsocket(**options)
        self.visits: list[Connection] = []
        self.over: list[Connection] = []
        self.refusal: Refused | None = None
        self.opening = anyio.Event()
        self.opening.set()
        self.api.connect("DESK", self.desk)
        self.api.connect("OTHER", self.desk)
        self.api.connect("/desk", self.desk)

    async def desk(self, connection: Connection, identity: Any) -> None:
        self.visits.append(connection)
        try:
            await self.opening.wait()
            if self.refusal is not None:
                raise self.refusal
            if not connection.recovered:
                connection.join("readers")
            await connection.accept()
            await anyio.sleep_forever()
        finally:
            self.over.append(connection)

    @property
    def here(self) -> Connection:
        return self.visits[-1]


@asynccontextmanager
async def behind_proxy(desk: Desk) -> AsyncGenerator[Proxy]:
    async with serving(desk.api) as bound, proxied(bound) as proxy:
        yield proxy


class Peer:
    """A raw peer on a channel, which remembers what it was given to come back with."""

    def __init__(self, wire: Raw, namespace: str) -> None:
        self.wire = wire
        self.namespace = namespace
        self.answer: dict[str, Any] = {}
        self.offset: str | None = None

    async def news(self, count: int = 1) -> list[Any]:
        """The next messages' values, less their offsets."""
        values = []
        for _ in range(count):
            name, *args, self.offset = await self._event()
            assert name == "NEWS"
            values += args
        return values

    async def join(self, channel: str, auth: dict[str, Any] | None = None) -> None:
        prefix = "" if self.namespace == "/" else f"{self.namespace},"
        await self.wire.send(f"40{prefix}{json.dumps(auth) if auth else ''}")
        text = str(await self.wire.receive())
        assert text.startswith(f"40{prefix}"), text
        self.answer = json.loads(text.removeprefix(f"40{prefix}"))
        if channel != self.namespace:
            await self.wire.identify(channel)
            name, offset = await self._event()
            assert name == "BRIGHTSOCKET:IDENTIFIED"
            self.answer["offset"] = offset
        self.offset = self.answer["offset"]

    @property
    def ticket(self) -> dict[str, Any]:
        """What to come back with."""
        return {"pid": self.answer["pid"], "offset": self.offset}

    async def _event(self) -> list[Any]:
        text = str(await self.wire.receive())
        prefix = "42" if self.namespace == "/" else f"42{self.namespace},"
        assert text.startswith(prefix), text
        event: list[Any] = json.loads(text.removeprefix(prefix))
        return event


@asynccontextmanager
async def visitor(
    bound: Bound | MemoryListener, channel: str, ticket: dict[str, Any] | None = None
) -> AsyncGenerator[Peer]:
    async with raw(bound) as wire:
        peer = Peer(wire, channel if channel.startswith("/") else "/")
        await peer.join(channel, ticket)
        yield peer


async def lose(desk: Desk, peer: Peer) -> None:
    """Lose the peer's session, and wait until that is noticed."""
    over = len(desk.over)
    await peer.wire.vanish()
    await until(lambda: len(desk.over) > over)
    await until(lambda: desk.api.statistics().connections_absent == 1)


async def leave(desk: Desk, peer: Peer) -> None:
    """Have the peer end its connection."""
    await peer.wire.send("41")
    await until(lambda: len(desk.api.pool) == 0)


@CHANNELS
@pytest.mark.parametrize("transport", ["websocket", "polling", ("polling", "websocket")], ids=str)
async def test_our_client_misses_nothing(transport: Any, channel: str) -> None:
    """Whatever is sent to it, in whatever way, before and after its loss is noticed."""
    desk = Desk()
    numbers = itertools.count()
    got: list[Any] = []
    async with behind_proxy(desk) as proxy, open_client(proxy.url, transport=transport, **QUICK) as client:
        connection = await client.connect(channel, {"name": "ada"})
        first_id = connection.id
        assert not connection.recovered
        assert not desk.here.recovered
        async with connection.receive("NEWS") as news:
            for _ in range(3):
                # some get through, some are under way, some are sent to nobody
                for _ in range(3):
                    await desk.here.send("NEWS", next(numbers))
                got.append(await news.receive())
                await desk.here.send("NEWS", b"x" * 100, {"number": next(numbers)})
                before = desk.here
                proxy.refusing = True
                proxy.cut()
                await until(lambda: client.state == "reconnecting")
                if transport == "websocket":
                    await until(lambda over=before: over in desk.over)  # type: ignore[misc]
                    await until(lambda: desk.api.statistics().connections_absent == 1)
                # a server of polling does not notice, until the heartbeat stays away or the client is back
                assert await desk.api.pool.emit("NEWS", next(numbers)) == 1
                assert await desk.api.pool.emit("NEWS", next(numbers), to="readers") == 1
                assert await desk.api.pool.emit("NEWS", "not for it", to="writers") == 0
                assert await desk.api.pool.emit("NEWS", "not for it", skip="readers") == 0
                assert await desk.api.pool.send(first_id, "NEWS", next(numbers))
                proxy.refusing = False
                await until(lambda: client.state == "connected")
                assert connection.recovered
                assert desk.here.recovered
                assert desk.here.rooms == {"readers"}
                assert desk.here.id == connection.id == first_id
                assert dict(desk.here.identity) == {"name": "ada"}
                assert await desk.api.pool.emit("NEWS", next(numbers), to="readers") == 1
            last = next(numbers)
            await desk.here.send("NEWS", last)
            while got[-1] != last:
                got.append(await news.receive())
    for index, value in enumerate(got):
        if isinstance(value, tuple):
            got[index] = value[1]["number"]
            assert value[0] == b"x" * 100
    assert got == list(range(last + 1))
    assert desk.api.statistics().connections_recovered == 3
    assert desk.api.statistics().connections_absent == 0


@CHANNELS
async def test_what_was_not_received_comes_again_and_nothing_twice(channel: str) -> None:
    desk = Desk()
    async with serving(desk.api) as bound:
        async with visitor(bound, channel) as peer:
            for number in range(5):
                await desk.here.send("NEWS", number)
            assert await peer.news(3) == [0, 1, 2]
            await lose(desk, peer)
        await desk.api.pool.emit("NEWS", 5)
        async with visitor(bound, channel, peer.ticket) as again:
            assert again.answer == {**peer.answer, "offset": peer.offset}
            assert await again.news(2) == [3, 4]
            # lost again before it has received the rest
            await lose(desk, again)
        await desk.api.pool.emit("NEWS", 6)
        async with visitor(bound, channel, again.ticket) as third:
            await desk.here.send("NEWS", 7)
            assert await third.news(3) == [5, 6, 7]
            assert desk.here.id == peer.answer["sid"]


@CHANNELS
async def test_a_client_that_got_nothing_at_all(channel: str) -> None:
    """Socket.IO's clients have no offset to say then."""
    desk = Desk()
    async with serving(desk.api) as bound:
        async with visitor(bound, channel) as peer:
            await lose(desk, peer)
        await desk.api.pool.emit("NEWS", 1)
        async with visitor(bound, channel, {"pid": peer.answer["pid"]}) as again:
            assert again.answer["pid"] == peer.answer["pid"]
            assert await again.news() == [1]


@CHANNELS
async def test_a_client_that_is_back_before_its_loss_was_noticed(channel: str) -> None:
    desk = Desk()
    async with serving(desk.api) as bound, visitor(bound, channel) as half_open:
        await desk.here.send("NEWS", 0)
        first = desk.here
        async with visitor(bound, channel, half_open.ticket) as again:
            assert desk.over == [first]
            assert desk.here.recovered
            assert again.answer == half_open.answer
            assert await again.news() == [0]
            assert len(desk.api.pool) == 1


async def test_two_that_come_with_the_same_secret() -> None:
    """One of them is let in as the other ends: never two with one id."""
    desk = Desk()
    async with serving(desk.api) as bound:
        async with visitor(bound, "DESK") as peer:
            await lose(desk, peer)
        await desk.api.pool.emit("NEWS", 0)
        async with visitor(bound, "DESK", peer.ticket) as one, visitor(bound, "DESK", peer.ticket) as other:
            assert await other.news() == [0]
            await one.wire.drain()
            assert desk.api.pool.members("readers") == {peer.answer["sid"]}
            assert len(desk.api.pool) == 1


@CHANNELS
async def test_messages_while_the_channel_still_decides(channel: str) -> None:
    """From the loss to the acceptance there is no moment at which a message is for nobody."""
    desk = Desk()
    async with serving(desk.api) as bound:
        async with visitor(bound, channel) as peer:
            await lose(desk, peer)
        desk.opening = anyio.Event()
        async with anyio.create_task_group() as tg, raw(bound) as wire:
            again = Peer(wire, peer.namespace)
            tg.start_soon(again.join, channel, peer.ticket)
            await until(lambda: len(desk.visits) == 2)
            assert await desk.api.pool.emit("NEWS", 1, to="readers") == 1
            assert await desk.api.pool.send(peer.answer["sid"], "NEWS", 2)
            desk.opening.set()
            await until(lambda: again.offset is not None)
            assert await again.news(2) == [1, 2]


@CHANNELS
async def test_one_that_is_lost_again_while_the_channel_decides(channel: str) -> None:
    desk = Desk()
    async with serving(desk.api) as bound:
        async with visitor(bound, channel) as peer:
            await lose(desk, peer)
        desk.opening = anyio.Event()
        async with anyio.create_task_group() as tg, raw(bound) as wire:
            tg.start_soon(_never_let_in, Peer(wire, peer.namespace), channel, peer.ticket)
            await until(lambda: len(desk.visits) == 2)
            await desk.api.pool.emit("NEWS", 1)
            await wire.vanish()
            await until(lambda: len(desk.over) == 2)
            tg.cancel_scope.cancel()
        await desk.api.pool.emit("NEWS", 2)
        desk.opening.set()
        async with visitor(bound, channel, peer.ticket) as again:
            assert await again.news(2) == [1, 2]
            assert desk.here.id == peer.answer["sid"]


async def _never_let_in(peer: Peer, channel: str, ticket: dict[str, Any]) -> None:
    with pytest.raises(anyio.EndOfStream):
        await peer.join(channel, ticket)


@CHANNELS
async def test_a_refusal_is_the_end_of_it(channel: str) -> None:
    """The channel's function decides each time, and what it has refused is not kept."""
    desk = Desk()
    async with behind_proxy(desk) as proxy, open_client(proxy.url, **QUICK) as client:
        connection = await client.connect(channel)
        desk.refusal = Refused("the token has expired")
        proxy.cut()
        await until(lambda: client.state == "disconnected")
        with pytest.raises(anyio.BrokenResourceError, match="the token has expired"):
            await connection.send("X")
        await until(lambda: desk.api.statistics().connections_absent == 0)
        assert await desk.api.pool.emit("NEWS") == 0
        with pytest.raises(ChannelRefused):
            await client.connect(channel)


async def _not_recovered(bound: Bound | MemoryListener, channel: str, peer: Peer, ticket: dict[str, Any]) -> None:
    async with visitor(bound, channel, ticket) as again:
        assert again.answer["pid"] != peer.answer["pid"]
        assert again.answer["sid"] != peer.answer["sid"]


@CHANNELS
@pytest.mark.parametrize(
    "ticket", [{"pid": "guessed"}, {"offset": "none of ours"}, {"offset": "-1"}, {"offset": ""}], ids=str
)
async def test_who_cannot_say_what_it_had_starts_anew(channel: str, ticket: dict[str, Any]) -> None:
    desk = Desk()
    async with serving(desk.api) as bound:
        async with visitor(bound, channel) as peer:
            await lose(desk, peer)
        await _not_recovered(bound, channel, peer, {**peer.ticket, **ticket})
        assert not desk.here.recovered
        assert desk.here.id != peer.answer["sid"]
        # it has not got anybody else's either
        assert desk.here.rooms == {"readers"}


async def test_a_secret_of_another_namespace_or_of_the_same_session_is_none() -> None:
    desk = Desk()
    async with serving(desk.api) as bound:
        async with visitor(bound, "/desk") as peer:
            await lose(desk, peer)
        await _not_recovered(bound, "DESK", peer, peer.ticket)
        async with visitor(bound, "/desk") as peer:
            main = Peer(peer.wire, "/")
            await main.join("DESK", peer.ticket)
            assert main.answer["pid"] != peer.answer["pid"]
            assert len(desk.api.pool) == 2


async def test_another_channel_is_another_connection() -> None:
    """The id stays, as with any switch on a session; rooms and messages were the old channel's."""
    desk = Desk()
    async with serving(desk.api) as bound:
        async with visitor(bound, "DESK") as peer:
            desk.here.join("desks")
            await lose(desk, peer)
        await desk.api.pool.emit("NEWS", "for the desk")
        async with visitor(bound, "OTHER", peer.ticket) as other:
            assert not desk.here.recovered
            assert desk.here.id == peer.answer["sid"]
            assert desk.here.rooms == {"readers"}
            await desk.api.pool.emit("NEWS", "for all")
            assert await other.news() == ["for all"]
        assert desk.api.statistics().connections_recovered == 0


@pytest.mark.mock_clock
async def test_the_window() -> None:
    desk = Desk(max_disconnection_duration=5, ping_interval=1000)
    async with serving_in_memory(desk.api) as listener:
        for seconds, recovered in ((4.9, True), (5.1, False)):
            async with visitor(listener, "DESK") as peer:
                await lose(desk, peer)
            await anyio.sleep(seconds)
            assert desk.api.statistics().connections_absent == int(recovered)
            async with visitor(listener, "DESK", peer.ticket) as again:
                assert desk.here.recovered is recovered
                await leave(desk, again)


@pytest.mark.mock_clock
async def test_a_window_is_not_longer_for_one_that_is_lost_again_before_it_is_let_in() -> None:
    desk = Desk(max_disconnection_duration=5, ping_interval=1000)
    async with serving_in_memory(desk.api) as listener:
        async with visitor(listener, "DESK") as peer:
            await lose(desk, peer)
        await anyio.sleep(4)
        async with raw(listener) as wire:
            await wire.send("40" + json.dumps(peer.ticket))
            await wire.receive()
        await anyio.sleep(1.1)
        await _not_recovered(listener, "DESK", peer, peer.ticket)


async def test_how_many_may_be_away() -> None:
    desk = Desk(max_disconnected=2)
    async with serving(desk.api) as bound:
        tickets = []
        for _ in range(3):
            over = len(desk.over)
            async with visitor(bound, "DESK") as peer:
                tickets.append(peer.ticket)
            await until(lambda over=over: len(desk.over) > over)  # type: ignore[misc]
        assert desk.api.statistics().connections_absent == 2
        async with AsyncExitStack() as stack:
            for ticket, recovered in zip(tickets, (False, True, True), strict=True):
                await stack.enter_async_context(visitor(bound, "DESK", ticket))
                assert desk.here.recovered is recovered


@pytest.mark.parametrize(
    ("bound_", "message", "count"),
    [({"max_missed_messages": 5}, "x", 5), ({"max_missed_bytes": 5000}, "x" * 960, 5)],
    ids=["messages", "bytes"],
)
async def test_how_much_may_be_missed(bound_: dict[str, int], message: str, count: int) -> None:
    desk = Desk(**bound_)
    async with serving(desk.api) as bound:
        for missed in (count, count + 1):
            async with visitor(bound, "DESK") as peer:
                await desk.here.send("NEWS", "received")
                await peer.news()
                await lose(desk, peer)
            for _ in range(missed):
                await desk.api.pool.emit("NEWS", message)
            async with visitor(bound, "DESK", peer.ticket) as again:
                assert desk.here.recovered is (missed == count)
                if missed == count:
                    assert await again.news(count) == [message] * count
                await leave(desk, again)


async def test_one_that_was_too_slow_gets_what_it_missed() -> None:
    desk = Desk(max_buffered_messages=10)
    async with serving_in_memory(desk.api, capacity=1) as listener:
        async with visitor(listener, "DESK") as peer:
            sent = 0
            while len(desk.over) == 0:
                await desk.api.pool.emit("NEWS", sent)
                sent += 1
            assert desk.api.pool.disconnected == 1
            await peer.wire.vanish()
        await until(lambda: desk.api.statistics().connections_absent == 1)
        listener._capacity = float("inf")
        async with visitor(listener, "DESK", peer.ticket) as again:
            assert await again.news(sent) == list(range(sent))


@pytest.mark.parametrize("how", ["leave", "close", "fail", "parse error"])
async def test_an_end_that_was_meant_keeps_nothing(how: str) -> None:
    desk = Desk()

    @desk.api.connect("FAILING")
    async def failing(connection: Connection) -> None:
        @connection.on("FAIL")
        async def fail() -> None:
            raise Refused("enough")

    async with serving(desk.api) as bound:
        async with visitor(bound, "FAILING" if how == "fail" else "DESK") as peer:
            match how:
                case "leave":
                    await leave(desk, peer)
                case "close":
                    await desk.here.aclose()
                case "fail":
                    await peer.wire.event("FAIL")
                case _:
                    await peer.wire.send("nonsense")
            await until(lambda: len(desk.api.pool) == 0)
        await until(lambda: desk.api.statistics().sessions_open == 0)
        assert desk.api.statistics().connections_absent == 0
        assert not await desk.api.pool.send(peer.answer["sid"], "NEWS")


async def test_nothing_is_left_when_the_server_ends() -> None:
    desk = Desk()
    counts = []
    for _ in range(3):
        async with serving(desk.api) as bound:
            for _ in range(5):
                async with visitor(bound, "DESK"):
                    pass
            await until(lambda: desk.api.statistics().connections_absent == 5)
        assert desk.api.statistics().connections_absent == 0
        assert await desk.api.pool.emit("NEWS") == 0
        desk.visits.clear()
        desk.over.clear()
        counts.append(await census_at_rest())
    # a loop's first server may leave it something of its own
    assert counts[1] == counts[2]
    assert counts[0]["Session"] == counts[0]["ConnectionCore"] == 0


async def test_a_restarted_server_knows_nobody() -> None:
    desk = Desk()
    async with serving(desk.api) as bound, visitor(bound, "DESK") as peer:
        pass
    async with serving(desk.api) as bound:
        await _not_recovered(bound, "DESK", peer, peer.ticket)


async def test_clients_of_socket_io_1_and_2_get_no_offsets() -> None:
    desk = Desk()
    async with serving(desk.api) as bound, open_client(bound.url, eio=3, **QUICK) as client:
        for channel in ("DESK", "/desk"):
            connection = await client.connect(channel)
            async with connection.receive("NEWS") as news:
                await desk.here.send("NEWS", "text")
                assert await news.receive() == "text"
                await desk.api.pool.emit("NEWS", "text")
                assert await news.receive() == "text"


async def test_off_nobody_gets_anything_to_come_back_with() -> None:
    desk = Desk(max_disconnection_duration=None)
    async with serving(desk.api) as bound, raw(bound) as wire:
        await wire.send('40/desk,{"pid":"mine","offset":"own"}')
        text = str(await wire.receive())
        assert set(json.loads(text.removeprefix("40/desk,"))) == {"sid"}
        assert desk.here.identity == {"pid": "mine", "offset": "own"}
        await desk.here.send("NEWS", "text")
        await wire.expect('42/desk,["NEWS","text"]')


async def test_calls_and_answers_have_no_offset() -> None:
    desk = Desk()
    async with serving(desk.api) as bound, open_client(bound.url) as client:
        connection = await client.connect("DESK")
        desk.here.on("ECHO")(lambda *values: values)
        connection.on("ECHO")(lambda *values: values)
        assert await connection.call("ECHO", "text", "more") == ("text", "more")
        assert await desk.here.call("ECHO", "text") == "text"


@pytest.mark.mock_clock
async def test_whoever_waits_for_an_end_that_takes_its_time_does_not_outlive_its_own_session() -> None:
    desk = Desk(grace=PATIENCE)
    async with serving_in_memory(desk.api) as listener:
        async with visitor(listener, "DESK") as peer:
            pass
        async with raw(listener) as wire:
            await wire.send("40" + json.dumps(peer.ticket))
            await wait_all_tasks_blocked()
            assert desk.api.statistics().sessions_open == 2
        # the first one's function has some grace yet
        await wait_all_tasks_blocked()
        assert desk.api.statistics().sessions_open == 1
        assert not desk.over
        # one that waits on is let in, as a new one, before it is refused for being late
        start = anyio.current_time()
        async with visitor(listener, "DESK", peer.ticket) as again:
            assert anyio.current_time() < start + Settings().identify_timeout
            assert again.answer["pid"] != peer.answer["pid"]


class TestJournal:
    """Without a server; on a loop, whose clock it reads."""

    unit = (Packet(PacketType.MESSAGE, "x" * 100),)

    def journal(self, **settings: Any) -> Journal:
        return Journal(itertools.count(), Settings(max_disconnection_duration=10, **settings))

    async def test_from_each_offset_on(self) -> None:
        for received in range(6):
            journal = self.journal()
            offsets = [journal.offset]
            for _ in range(5):
                offsets.append(journal.mint())
                journal.add(offsets[-1], self.unit)
            assert len(set(offsets)) == 6
            assert journal.rewind(offsets[received])
            assert len(journal.units) == 5 - received
            assert journal.offset == offsets[received]
            # what it has got once it cannot have missed later
            assert [journal.rewind(offset) for offset in offsets] == [False] * received + [True] * (6 - received)

    async def test_without_an_offset_everything_must_be_there(self) -> None:
        journal = self.journal(max_missed_messages=2)
        assert journal.rewind(None)
        for _ in range(2):
            journal.add(journal.mint(), self.unit)
        assert journal.rewind(None)
        journal.add(journal.mint(), self.unit)
        assert not journal.rewind(None)
        assert len(journal.units) == 2

    async def test_one_message_that_is_too_long(self) -> None:
        journal = self.journal(max_missed_bytes=50)
        before = journal.offset
        offset = journal.mint()
        journal.add(offset, self.unit)
        assert not journal.units
        assert not journal.rewind(before)
        assert journal.rewind(offset)

    @pytest.mark.mock_clock
    async def test_what_is_too_old(self) -> None:
        journal = self.journal(ping_interval=2, ping_timeout=3.5)
        for _ in range(20):
            journal.add(journal.mint(), self.unit)
            await anyio.sleep(1)
        # ten seconds away, after the five and a half in which nobody noticed
        assert len(journal.units) == 16


@pytest.mark.mock_clock
async def test_what_grows_too_old_while_the_channel_decides_is_not_left_out() -> None:
    settings = Settings(max_disconnection_duration=10, ping_interval=1, ping_timeout=1)
    journal = Journal(itertools.count(), settings)
    first = journal.offset

    def add(text: str) -> None:
        journal.add(journal.mint(), (Packet(PacketType.MESSAGE, text),))

    add("missed")
    await anyio.sleep(9)
    assert journal.rewind(first)
    await anyio.sleep(9)
    add("later")
    assert journal.intact
    assert [unit[0].data for unit in journal.units] == ["missed", "later"]
    journal.release()
    add("and later")
    assert [unit[0].data for unit in journal.units] == ["later", "and later"]
    assert not journal.rewind(first)


async def test_more_than_is_kept_comes_while_the_channel_decides() -> None:
    """Then its client is a new one: it is never told that it has recovered what it has not."""
    desk = Desk(max_missed_messages=3)
    async with serving(desk.api) as bound, proxied(bound) as proxy, open_client(proxy.url, **QUICK) as client:
        connection = await client.connect("DESK")
        id = connection.id
        got: list[Any] = []
        connection.on("NEWS")(got.append)
        desk.opening = anyio.Event()
        proxy.cut()
        await until(lambda: len(desk.visits) == 2)
        assert desk.here.recovered
        for number in range(4):
            assert await desk.api.pool.emit("NEWS", number, to="readers") == 1
        desk.opening.set()
        await until(lambda: client.state == "connected" and len(desk.visits) == 3)
        assert not connection.recovered
        assert connection.id != id
        await desk.api.pool.emit("NEWS", "new")
        await until(lambda: got)
        assert got == ["new"]
    assert desk.api.statistics().connections_recovered == 0
