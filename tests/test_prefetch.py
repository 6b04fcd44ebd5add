"""A busy watch knows what the messages of a connection look at, and nothing else, and does not keep it for long."""

from __future__ import annotations

import os
import sys
import types
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from types import FrameType
from typing import Any

import anyio
import anyio.abc
import pytest
from anyio.abc import SocketAttribute

from brightsocket_anyio import Connection
from brightsocket_anyio.prefetch import Piece, pieces_of, whole_lines
from brightsocket_anyio.transports.sockets import SocketStream
from brightsocket_anyio.transports.watch import _BATCH, Readable, Watch, open_watch

from .support import Raw, each_call, echoing, identified, pairs, serving, until


@pytest.fixture
def watches(monkeypatch: pytest.MonkeyPatch) -> list[Watch]:
    """Those of the servers that run."""
    opened: list[Watch] = []

    @asynccontextmanager
    async def open_and_note() -> AsyncIterator[Watch | None]:
        async with open_watch() as watch:
            assert watch is not None
            opened.append(watch)
            yield watch

    monkeypatch.setattr("brightsocket_anyio.listener.open_watch", open_and_note)
    return opened


async def echo(peer: Raw) -> None:
    await peer.send('42["ECHO","hello"]')
    assert await peer.receive() == '42["ECHO","hello"]'


def known(watch: Watch) -> list[tuple[object, ...]]:
    return [reader.pieces for reader in watch._readers.values() if reader.pieces]


async def looks_of(action: Callable[[], Awaitable[None]]) -> dict[int, object]:
    """Whose methods run, when it is done for the second time."""
    looks: dict[int, object] = {}

    def note(frame: FrameType) -> None:
        if (owner := frame.f_locals.get("self")) is not None:
            looks[id(owner)] = owner

    await action()
    with each_call(note):
        await action()
    return looks


class Empty(Piece):
    __slots__ = ()


@pytest.mark.parametrize(
    ("base", "names"),
    [
        (Empty, ("one",)),
        (Empty, ("__weakref__", "one", "two")),
        (Empty, ("__dict__", *"abcdefghij")),
        (Readable, ("__weakref__",)),
        # which has a dictionary
        (anyio.abc.ByteStream, ("one",)),
        (anyio.abc.ByteStream, ()),
    ],
)
def test_objects_that_fill_whole_lines(base: type, names: tuple[str, ...]) -> None:
    slots = whole_lines((base,), *names)
    assert slots[: len(names)] == names
    assert len(slots) - len(names) < 8
    kind: Any = types.new_class("Kind", (base,), exec_body=lambda body: body.update(__slots__=slots))
    kind.__abstractmethods__ = frozenset()
    # with what CPython has in front of it
    assert sys.getsizeof(kind.__new__(kind)) % 64 == 0


async def test_whatever_each_message_of_a_connection_looks_at(watches: list[Watch]) -> None:
    """Whoever adds an object to the way of a message marks its class as a piece."""
    async with serving(echoing()) as bound, identified(bound, "WORK") as first, identified(bound, "WORK") as second:
        once = await looks_of(lambda: echo(first))
        again = await looks_of(lambda: echo(first))
        other = await looks_of(lambda: echo(second))
        of_the_first = {key: each for key, each in once.items() if key in again and key not in other}
        assert len(of_the_first) > 10
        await anyio.wait_all_tasks_blocked()
        found = [{id(each): each for each in pieces_of(reader.waiter)} for reader in watches[0]._readers.values()]
        [mine] = [pieces for pieces in found if of_the_first.keys() <= pieces.keys()]
        assert len(mine) < 50
        # but for the user's, whose fields are public
        ours = [each for each in mine.values() if isinstance(each, Piece) and not isinstance(each, Connection)]
        assert [type(each) for each in ours if sys.getsizeof(each) % 64] == []
        # neither the server's, nor another connection's
        for others in found:
            if others is not mine:
                assert [each for key, each in mine.items() if key in others and isinstance(each, Piece)] == []


async def test_a_busy_watch_knows_them_as_long_as_they_are_connected(watches: list[Watch]) -> None:
    count = _BATCH + 6
    async with serving(echoing()) as bound, AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(identified(bound, "WORK")) for _ in range(count)]
        [watch] = watches
        for peer in peers:
            await echo(peer)
        # nobody is busy yet
        assert not known(watch)

        async def echo_all() -> None:
            for peer in peers:
                peer.protocol.send_text(b'42["ECHO","hello"]')
                # at once, so that all of them are due in the same turn
                os.write(peer.stream.extra(SocketAttribute.raw_socket).fileno(), b"".join(peer.protocol.data_to_send()))
            for peer in peers:
                assert await peer.receive() == '42["ECHO","hello"]'

        for _ in range(20):
            await echo_all()
        # each turn looks at a few
        assert len(known(watch)) >= _BATCH
        whose = {piece for pieces in known(watch) for piece in pieces if isinstance(piece, Connection)}
        assert len(whose) == len(known(watch))

        # who leaves is let go of at once
        del whose
        released = [weakref.ref(piece) for piece in known(watch)[-1] if isinstance(piece, Connection)]
        for peer in peers:
            await peer.vanish()
        await until(lambda: not known(watch))
        [its_connection] = released
        await until(lambda: its_connection() is None)


async def test_what_a_busy_watch_knows_it_forgets_after_some_time() -> None:
    got = 0

    async def receive_all(stream: SocketStream) -> None:
        nonlocal got
        while True:
            data = await stream.receive()
            got += len(data)

    async with pairs(_BATCH) as (watch, both), anyio.create_task_group() as tg:
        for stream, _ in both:
            tg.start_soon(receive_all, stream)
        for turn in range(1, 21):
            for _, there in both:
                there.send(b"x")
            await until(partial(lambda wanted: got == wanted, turn * _BATCH))
        assert len(known(watch)) == _BATCH
        watch._stale = 0.0
        both[0][1].send(b"x")
        await until(lambda: not known(watch))
        tg.cancel_scope.cancel()
