"""A session's outgoing buffer."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest

from brightsocket_anyio.outbox import Outbox
from brightsocket_anyio.protocol.engineio import Packet, PacketType
from brightsocket_anyio.protocol.state import Unit

from .support import PATIENCE


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
