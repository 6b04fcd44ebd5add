"""Rooms: who is in one gets what is emitted to it, once, and nobody is in one after the end."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest

from brightsocket_anyio import Brightsocket, Connection, ConnectionLost, open_client

from .support import PATIENCE, Raw, identified, serving, serving_in_memory, until

pytestmark = pytest.mark.anyio


def house(**settings: Any) -> tuple[Brightsocket, dict[str, Connection]]:
    """An API whose clients say by their identity what they are called and which rooms they join."""
    api = Brightsocket(**settings)
    here: dict[str, Connection] = {}

    @api.connect("HOUSE")
    @api.connect("/house")
    async def enter(connection: Connection, identity: Any) -> None:
        here[identity["name"]] = connection
        connection.join(*identity.get("rooms", ()))

        @connection.on("JOIN")
        async def join(*rooms: str) -> None:
            connection.join(*rooms)

        @connection.on("LEAVE")
        async def leave(*rooms: str) -> None:
            connection.leave(*rooms)

    return api, here


async def heard(peer: Raw) -> list[str]:
    """What the peer has been sent, up to the action END."""
    actions: list[str] = []
    while (message := str(await peer.receive())) != '42["END"]':
        actions.append(message.removeprefix('42["').removesuffix('"]'))
    return actions


async def test_who_hears_what() -> None:
    api, here = house()
    async with (
        serving(api) as bound,
        identified(bound, "HOUSE", name="ada", rooms=["red", "blue"]) as ada,
        identified(bound, "HOUSE", name="bob", rooms=["red"], eio=3) as bob,
        identified(bound, "HOUSE", name="cyd") as cyd,
    ):
        emit = api.pool.emit
        assert await emit("ALL") == 3
        assert await emit("RED", to="red") == 2
        assert await emit("BLUE", to="blue") == 1
        assert await emit("ANY", to=["red", "blue", "nobody"]) == 2
        assert await emit("NONE", to="nobody") == 0
        assert await emit("NO ONE", to=()) == 0
        assert await emit("BY ID", to=here["cyd"].id) == 1
        assert await emit("BOTH", to=["blue", here["cyd"].id, here["ada"].id]) == 2
        assert await emit("OTHERS", skip=here["ada"].id) == 2
        assert await emit("NOT BLUE", to="red", skip="blue") == 1
        assert await emit("NOT THESE", skip=["blue", here["bob"].id]) == 1
        with pytest.raises(ValueError, match="reserved"):
            await emit("connect", to="nobody")
        assert await emit("END") == 3
        assert await heard(ada) == ["ALL", "RED", "BLUE", "ANY", "BOTH"]
        assert await heard(bob) == ["ALL", "RED", "ANY", "OTHERS", "NOT BLUE"]
        assert await heard(cyd) == ["ALL", "BY ID", "BOTH", "OTHERS", "NOT THESE"]


async def test_joining_and_leaving() -> None:
    api, here = house()
    async with serving(api) as bound, open_client(bound.url) as client:
        connection = await client.connect("/house", {"name": "ada"})
        ada = here["ada"]
        assert ada.rooms == frozenset()
        assert api.pool.members(ada.id) == {ada.id}
        await connection.call("JOIN", "red", "blue", "red")
        await connection.call("JOIN", "red")
        assert ada.rooms == {"red", "blue"}
        assert api.pool.members("red") == api.pool.members("blue") == {ada.id}
        await connection.call("LEAVE", "red", "green")
        assert ada.rooms == {"blue"}
        assert api.pool.members("red") == frozenset()
        await client.disconnect()
        await until(lambda: not len(api.pool))
        assert api.pool.members("blue") == frozenset()
        assert not api.pool._rooms
        with pytest.raises(anyio.EndOfStream):
            ada.join("red")


async def test_nobody_is_in_a_room_before_acceptance() -> None:
    api = Brightsocket()
    joined, letting_in = anyio.Event(), anyio.Event()

    @api.connect("DOOR")
    async def door(connection: Connection) -> None:
        connection.join("red", "blue")
        connection.leave("blue")
        joined.set()
        await letting_in.wait()

    async with serving(api) as bound, open_client(bound.url) as client, anyio.create_task_group() as tg:
        tg.start_soon(client.connect, "DOOR")
        await joined.wait()
        assert api.pool.members("red") == frozenset()
        assert await api.pool.emit("EARLY", to="red") == 0
        letting_in.set()
        await until(lambda: api.pool.members("red"))
        assert api.pool.members("blue") == frozenset()


async def test_a_switch_on_one_session_leaves_the_rooms_of_the_channel_before() -> None:
    api, here = house()
    async with serving(api) as bound, identified(bound, "HOUSE", name="ada", rooms=["red"]) as peer:
        before = here["ada"]
        assert api.pool.members("red") == {before.id}
        await peer.identify("HOUSE", name="ada", rooms=["blue"])
        await peer.expect('42["BRIGHTSOCKET:IDENTIFIED"]')
        assert here["ada"].id == before.id
        assert api.pool.members("red") == frozenset()
        assert api.pool.members("blue") == {before.id}


async def test_joins_leaves_emits_and_ends_all_at_once() -> None:
    api, here = house()
    async with serving(api) as bound:

        async def come_and_go(number: int) -> None:
            for round in range(4):
                async with open_client(bound.url, reconnection=False) as client:
                    connection = await client.connect("HOUSE", {"name": number, "rooms": [f"room {number % 3}"]})
                    async with anyio.create_task_group() as tg:
                        tg.start_soon(connection.send, "JOIN", "all", f"room {round % 3}")
                        tg.start_soon(connection.send, "LEAVE", f"room {number % 3}")
                        tg.start_soon(emit, f"room {round % 3}")
                    if number % 2:
                        await connection.call("JOIN", "late")

        async def emit(room: str) -> None:
            for _ in range(10):
                await api.pool.emit("NEWS", to=[room, "all"], skip="late")

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tg:
                for number in range(12):
                    tg.start_soon(come_and_go, number)
        await until(lambda: not len(api.pool))
        assert not api.pool._rooms
        assert not any(api.pool.members(connection.id) for connection in here.values())


async def test_the_latest_of_each_action_is_what_a_slow_client_gets() -> None:
    overloads: list[tuple[str, str]] = []
    api = Brightsocket(
        slow_consumer="latest-per-action",
        max_buffered_messages=10,
        stall_timeout=1000,
        overloaded=lambda connection, action, policy: overloads.append((action, policy)),
    )
    api.connect("A", (), lambda: None)
    total = 40
    async with serving_in_memory(api, capacity=2) as bound, identified(bound, "A") as peer:
        for number in range(total):
            for action in ("PRICE", "WEATHER"):
                await api.pool.emit(action, number)
                await anyio.wait_all_tasks_blocked()
        numbers: dict[str, list[int]] = {"PRICE": [], "WEATHER": []}
        while not all(total - 1 in each for each in numbers.values()):
            name, _, number_ = str(await peer.receive()).removeprefix('42["').removesuffix("]").partition('",')
            numbers[name].append(int(number_))
        for each in numbers.values():
            assert each == sorted(set(each))
        assert sum(map(len, numbers.values())) + api.pool.dropped == 2 * total
    assert len(overloads) == api.pool.dropped > 0
    assert {policy for _, policy in overloads} == {"latest-per-action"}
    assert api.pool.disconnected == 0


async def test_one_actions_flood_does_not_take_anothers_latest_with_it() -> None:
    api = Brightsocket(slow_consumer="latest-per-action", max_buffered_messages=10, stall_timeout=1000)
    api.connect("A", (), lambda: None)
    async with serving_in_memory(api, capacity=2) as bound, identified(bound, "A") as peer:
        for number in range(5):
            await api.pool.emit("FILL", number)
            await anyio.wait_all_tasks_blocked()
        await api.pool.emit("RARE")
        for number in range(50):
            await api.pool.emit("FLOOD", number)
        messages = []
        while (message := str(await peer.receive())) != '42["FLOOD",49]':
            messages.append(message)
        assert '42["RARE"]' in messages


@pytest.mark.mock_clock
async def test_nothing_comes_after_what_a_client_was_too_slow_for() -> None:
    """Though its session lives on while the connection's tasks have some grace, and there is room again: that would be
    a gap."""
    api = Brightsocket(max_buffered_messages=5, grace=10, ping_interval=1000)

    @api.connect("A")
    async def leisurely(connection: Connection) -> None:
        @connection.on("WORK")
        async def work() -> None:
            await anyio.sleep(5)
            with pytest.raises(ConnectionLost):
                await connection.send("DONE")

    async with serving_in_memory(api, capacity=2) as bound, identified(bound, "A") as peer:
        await peer.event("WORK")
        await anyio.wait_all_tasks_blocked()
        sent = 0
        while not api.pool.disconnected:
            await api.pool.emit("N", sent)
            sent += 1
        peer_stops = anyio.current_time() + 4
        received = [await peer.receive()]
        while anyio.current_time() < peer_stops:
            await anyio.sleep(0.1)
            assert await api.pool.emit("N", "later") == 0
        received += await peer.drain()
        assert received == [f'42["N",{number}]' for number in range(len(received))]
        assert len(received) < sent


@pytest.mark.mock_clock
async def test_nothing_comes_after_it_when_the_server_is_about_to_go_either() -> None:
    api = Brightsocket(max_buffered_messages=5, grace=10, close_timeout=10, ping_interval=1000)

    @api.connect("A")
    async def leisurely(connection: Connection) -> None:
        @connection.on("WORK")
        async def work() -> None:
            await anyio.sleep(5)

    async with (
        serving_in_memory(api, capacity=2) as bound,
        identified(bound, "A") as peer,
        anyio.create_task_group() as tg,
    ):
        await peer.event("WORK")
        await anyio.wait_all_tasks_blocked()
        tg.start_soon(api.drain)
        await anyio.wait_all_tasks_blocked()
        sent = 0
        while await api.pool.emit("N", sent):
            sent += 1
        peer_stops = anyio.current_time() + 4
        received = [await peer.receive()]
        while anyio.current_time() < peer_stops:
            await anyio.sleep(0.1)
            assert await api.pool.emit("N", "later") == 0
        received += [message for message in await peer.drain() if str(message).startswith('42["N"')]
        assert received == [f'42["N",{number}]' for number in range(sent)]


async def test_a_disconnect_is_counted_and_heard_of(caplog: pytest.LogCaptureFixture) -> None:
    heard_of: list[tuple[Connection, str]] = []

    def overloaded(connection: Connection, action: str) -> None:
        heard_of.append((connection, action))
        raise RuntimeError("a bug of the hook's")

    api = Brightsocket(max_buffered_messages=5, stall_timeout=1000, overloaded=overloaded)
    connections: list[Connection] = []
    api.connect("A", (), connections.append)
    async with serving_in_memory(api, capacity=2) as bound, identified(bound, "A"):
        with anyio.fail_after(PATIENCE):
            while not api.pool.disconnected:
                await api.pool.emit("N")
                await anyio.lowlevel.checkpoint()
        await until(lambda: not len(api.pool))
        with pytest.raises(ConnectionLost) as caught:
            await connections[0].send("X")
        assert caught.value.code == "overloaded"
    assert api.pool.disconnected == api.pool.dropped == 1
    assert heard_of == [(connections[0], "N")]
    assert "the overloaded hook has failed" in caplog.text
