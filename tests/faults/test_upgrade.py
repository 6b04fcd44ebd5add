"""From polling to WebSocket: in order, none lost, none twice; and whatever goes wrong on the way, polling lives on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from websockets.exceptions import InvalidStatus

from brightsocket_anyio import Brightsocket, Connection, Refused

from ..support import Raw, serving, serving_in_memory, until
from .poller import Poller, polling, unpack

each_eio = pytest.mark.parametrize("eio", [3, 4])
#: what the server sends in all
DOWN = 2000


class Stream:
    """An API whose channel sends numbers without a pause, and keeps those that come."""

    def __init__(self, **settings: Any) -> None:
        self.api = Brightsocket(**settings)
        self.up: list[int] = []
        self.api.connect("STREAM", self._stream)
        self.api.connect("ECHO", self._echo)

    async def _stream(self, connection: Connection) -> None:
        connection.on("UP")(self.up.append)
        await connection.accept()
        for number in range(DOWN):
            await connection.send("DOWN", number)

    async def _echo(self, connection: Connection) -> None:
        @connection.on("ECHO")
        async def echo(value: Any) -> Any:
            await connection.send("ECHO", value)


def down(number: int) -> str:
    return f'42["DOWN",{number}]'


class Traffic:
    """What a client does all the while: it polls, and it posts numbers."""

    def __init__(self, peer: Poller, got: list[str]) -> None:
        self.peer = peer
        self.got = got
        self.sent = 0
        self.pausing = False
        self.polls_over = anyio.Event()
        self.posts_over = anyio.Event()

    async def poll(self) -> None:
        while not self.pausing:
            response = await self.peer.request()
            if response.status_code != 200:
                # the road has changed under this request
                assert response.status_code == 400
                break
            packets = unpack(self.peer.eio, response.text)
            self.got += [packet for packet in packets if packet not in ("6", "2")]
        self.polls_over.set()

    async def post(self) -> None:
        while not self.pausing:
            await self.peer.event("UP", self.sent)
            self.sent += 1
        self.posts_over.set()


async def test_what_could_not_be_taken_before_the_upgrade_is_taken_after_it() -> None:
    """A POST is answered once its packets have been taken over, which a full receiver has yet to take."""
    server = Brightsocket(max_buffered_messages=10)
    numbers: list[int] = []
    release = anyio.Event()

    @server.connect("UP")
    async def up(connection: Connection) -> None:
        async with connection.receive("UP") as stream:
            await connection.accept()
            await release.wait()
            while True:
                numbers.append(await stream.receive())

    async with serving(server) as bound, polling(bound, 4) as peer:
        await peer.identify("UP")
        await peer.post(*[f'42["UP",{number}]' for number in range(60)])
        async with peer.probed() as road:
            await road.send("5")
            await until(lambda: server.statistics().upgrades == 1)
            await road.send(*[f'42["UP",{number}]' for number in range(60, 70)])
            release.set()
            await until(lambda: len(numbers) >= 70 or 69 in numbers)
    assert numbers == list(range(70))


@each_eio
@pytest.mark.parametrize("moment", [1, 300, 1000])
@pytest.mark.parametrize("polite", [True, False], ids=["polls-paused", "polls-going-on"])
async def test_streams_in_both_directions_across_the_upgrade(eio: int, moment: int, polite: bool) -> None:
    """Stock clients pause polling before they change. One that goes on polling loses nothing either."""
    stream = Stream()
    async with serving(stream.api) as bound, polling(bound, eio) as peer:
        traffic = Traffic(peer, await peer.identify("STREAM"))
        async with anyio.create_task_group() as tg:
            tg.start_soon(traffic.poll)
            tg.start_soon(traffic.post)
            await until(lambda: len(traffic.got) >= moment)
            async with peer.probed() as road:
                if polite:
                    traffic.pausing = True
                    await traffic.polls_over.wait()
                    await traffic.posts_over.wait()
                    await road.send("5")
                else:
                    # posts end first, since one that comes after the change is lost, with a 400
                    traffic.pausing = True
                    await traffic.posts_over.wait()
                    traffic.pausing = False
                    traffic.polls_over = anyio.Event()
                    tg.start_soon(traffic.poll)
                    await road.send("5")
                async with anyio.create_task_group() as sending:
                    sending.start_soon(_send_up, road, traffic)
                    on_websocket: list[str] = []
                    if not polite:
                        await traffic.polls_over.wait()
                    while len(traffic.got) + len(on_websocket) < DOWN:
                        message = str(await road.receive())
                        if message == "2":
                            await road.send("3")
                        else:
                            on_websocket.append(message)
                await until(lambda: len(stream.up) == traffic.sent)
                tg.cancel_scope.cancel()
        assert traffic.got + on_websocket == [down(number) for number in range(DOWN)]
        assert stream.up == list(range(traffic.sent))


async def _send_up(road: Raw, traffic: Traffic) -> None:
    for _ in range(100):
        await road.event("UP", traffic.sent)
        traffic.sent += 1


async def speaks(peer: Poller, value: object) -> None:
    """The session works, by polling."""
    await peer.event("ECHO", value)
    await peer.get_until(f'42["ECHO",{value}]')


async def changes(peer: Poller) -> None:
    """The session can change its road, and works there."""
    async with peer.probed() as road:
        await road.send("5")
        await road.event("ECHO", 1)
        await road.expect('42["ECHO",1]')


@each_eio
@pytest.mark.parametrize(
    "messages",
    [
        ["2wrong"],
        ["2"],
        ["5"],
        ['42["ECHO",1]'],
        ["3probe"],
        ["1"],
        ["6"],
        [b"\x04x"],
        ["9"],
        [""],
        ["2probe", "2probe"],
        ["2probe", '42["ECHO",1]'],
    ],
    ids=repr,
)
async def test_a_bad_probe_closes_the_websocket_only(eio: int, messages: list[str | bytes]) -> None:
    stream = Stream()
    async with serving(stream.api) as bound, polling(bound, eio) as peer:
        await peer.identify("ECHO")
        async with peer.websocket() as road:
            await road.send(*messages)
            heard = await road.drain()
            assert heard in ([], ["3probe"])
        await speaks(peer, 1)
        await changes(peer)


@each_eio
@pytest.mark.parametrize("probed", [False, True])
async def test_a_websocket_that_is_lost_before_the_change(eio: int, probed: bool) -> None:
    stream = Stream()
    async with serving(stream.api) as bound, polling(bound, eio) as peer:
        await peer.identify("ECHO")
        async with peer.websocket() as road:
            if probed:
                await road.send("2probe")
                await road.expect("3probe")
                assert await peer.get() == ["6"]
            await road.vanish()
        await speaks(peer, 1)
        await changes(peer)


@each_eio
async def test_a_second_websocket_is_closed_and_the_first_goes_on(eio: int) -> None:
    stream = Stream()
    async with serving(stream.api) as bound, polling(bound, eio) as peer:
        await peer.identify("ECHO")
        async with peer.websocket() as road:
            await _is_turned_away(peer)
            await road.send("2probe")
            await road.expect("3probe")
            await _is_turned_away(peer)
            assert await peer.get() == ["6"]
            await road.send("5")
            await road.event("ECHO", 1)
            await road.expect('42["ECHO",1]')
            await _is_turned_away(peer)
            await road.event("ECHO", 2)
            await road.expect('42["ECHO",2]')


async def _is_turned_away(peer: Poller) -> None:
    async with peer.websocket() as second:
        assert await second.expect_end() == 1002


@each_eio
async def test_requests_after_the_upgrade_get_a_400(eio: int) -> None:
    stream = Stream()
    async with serving(stream.api) as bound, polling(bound, eio) as peer:
        await peer.identify("ECHO")
        async with peer.probed() as road:
            await road.send("5")
            await road.event("ECHO", 1)
            await road.expect('42["ECHO",1]')
            for body in (None, '42["ECHO",3]'):
                response = await peer.request(body)
                assert (response.status_code, response.json()["code"]) == (400, 3)
            await road.event("ECHO", 2)
            await road.expect('42["ECHO",2]')


@each_eio
async def test_a_websocket_of_the_other_version_is_refused(eio: int) -> None:
    stream = Stream(close_timeout=0.5)
    async with serving(stream.api) as bound, polling(bound, eio) as peer:
        await peer.identify("ECHO")
        with pytest.raises(InvalidStatus) as caught:
            async with peer.websocket(7 - eio):
                raise AssertionError("it was let in")
        assert caught.value.response.status_code == 400
        await speaks(peer, 1)


@each_eio
async def test_a_pending_poll_ends_with_a_noop(eio: int) -> None:
    stream = Stream()
    async with serving(stream.api) as bound, polling(bound, eio) as peer, anyio.create_task_group() as tg:
        await peer.identify("ECHO")
        polled: list[list[str]] = []

        async def poll() -> None:
            polled.append(await peer.get())

        tg.start_soon(poll)
        async with peer.probed() as road:
            await until(lambda: polled)
            assert polled == [["6"]]
            await road.send("5")
            await road.event("ECHO", 1)
            await road.expect('42["ECHO",1]')


@each_eio
@pytest.mark.parametrize("probed", [False, True])
@pytest.mark.mock_clock
async def test_an_upgrade_that_is_not_finished_in_time_is_dropped(eio: int, probed: bool) -> None:
    stream = Stream(upgrade_timeout=10)
    async with serving_in_memory(stream.api) as bound, polling(bound, eio) as peer:
        await peer.identify("ECHO")
        async with peer.websocket() as road:
            road.patience = 100
            start = anyio.current_time()
            if probed:
                await road.send("2probe")
                await road.expect("3probe")
            assert await road.drain() == []
            assert anyio.current_time() - start == pytest.approx(10, abs=0.1)
        await speaks(peer, 1)
        await changes(peer)


def _by_polling(peer: Poller) -> Any:
    return peer.post("1")


def _by_invalid_input(peer: Poller) -> Any:
    return peer.request("x")


@each_eio
@pytest.mark.parametrize("end", [_by_polling, _by_invalid_input])
@pytest.mark.parametrize("probed", [False, True])
async def test_a_session_that_ends_on_the_way_takes_the_websocket_with_it(
    eio: int, end: Callable[[Poller], Any], probed: bool
) -> None:
    stream = Stream(close_timeout=0.5)
    async with serving(stream.api) as bound, polling(bound, eio) as peer:
        await peer.identify("ECHO")
        async with peer.websocket() as road:
            if probed:
                await road.send("2probe")
                await road.expect("3probe")
            await end(peer)
            await until(lambda: len(stream.api.pool) == 0)
            assert await road.drain() == []


@each_eio
async def test_a_session_that_ends_once_the_probe_is_answered_says_so_on_the_new_road(eio: int) -> None:
    """The peer does not poll any more: whatever is left to say, a refusal above all, is heard there or nowhere."""
    api = Brightsocket()

    @api.connect("REFUSER")
    def refuser() -> None:
        raise Refused("not you")

    async with serving(api) as bound, polling(bound, eio) as peer:
        await peer.join()
        async with peer.probed() as road:
            await peer.event("BRIGHTSOCKET:IDENTIFY", {"BRIGHTSOCKET:CHANNEL": "REFUSER"})
            await road.send("5")
            assert await road.drain() == ['42["BRIGHTSOCKET:REFUSED",{"reason":"not you"}]', "41"]
