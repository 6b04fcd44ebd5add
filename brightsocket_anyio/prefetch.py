"""What a message of one connection comes through, brought into the processor's caches together.

Among a thousand connections the objects of one have left the caches since its last message. A message finds them one
after the other, each by a reference in the one before, so that the processor waits for memory again and again. To touch
all of them first, by their reference counts, which do not depend on each other, is to wait about once: a message among
a thousand takes 1 to 2 µs of 24 to 28 less by this. ``docs/performance.md`` has the figures.
"""

from __future__ import annotations

import gc
import socket
from collections.abc import Awaitable
from functools import lru_cache
from types import BuiltinMethodType, CellType, FunctionType, GeneratorType, new_class

#: more are not worth it
_MOST = 64


class Piece:
    """Marks a class whose objects belong to one session, or to one connection on it, and are looked at by each of its
    messages."""

    __slots__ = ()


class Calling(Piece):
    """Marks a class whose objects refer to a user's function, which is looked at as well, with what it encloses."""

    __slots__ = ()


#: bytes of a line of the processor's caches, and of a field
_LINE, _FIELD = 64, 8
#: bytes in front of an object: the garbage collector's, and further ones if it has a dictionary or, since 3.12, can be
#: referred to weakly (``Py_TPFLAGS_MANAGED_DICT``, ``Py_TPFLAGS_MANAGED_WEAKREF``)
_COLLECTED, _MANAGED, _MANAGED_FLAGS = 16, 16, 1 << 4 | 1 << 3


def whole_lines(bases: tuple[type, ...], *names: str) -> tuple[str, ...]:
    """The ``__slots__`` of a class whose objects fill whole lines of the processor's caches.

    CPython packs objects of one size, so that they begin anywhere in a line; those whose size is of whole lines begin
    with one, or 16 bytes behind its beginning, and to touch them fetches their first fields, too. A message among a
    thousand connections takes some 0.4 of 24 µs less by this.

    :param bases: the class's.
    :param names: its own fields. CPython lays them out by name; behind them come some that fill the last line.
    """
    trial = new_class("trial", bases, exec_body=lambda body: body.update(__slots__=names))
    size = _COLLECTED + (_MANAGED if trial.__flags__ & _MANAGED_FLAGS else 0) + trial.__basicsize__
    return (*names, *(f"zz_filler_{number}" for number in range(-size % _LINE // _FIELD)))


#: what leads to them from a task that waits, by way of its coroutines
_LINKS = (Piece, Awaitable, GeneratorType, BuiltinMethodType, CellType, socket.socket)


def pieces_of(waiter: object) -> tuple[object, ...]:
    """The objects that the next message will look at, as far as that can be told.

    :param waiter: the future that a task waits for, or the task.
    """
    found: dict[int, object] = {id(waiter): waiter}
    ahead = gc.get_referents(waiter)
    while ahead and len(found) < _MOST:
        each = ahead.pop()
        # mypy takes the instances' __hash__ for the type's
        if id(each) in found or not _leads_on(type(each)):  # type: ignore[arg-type]
            continue
        referents = gc.get_referents(each)
        ahead += referents
        if isinstance(each, BuiltinMethodType):
            # made for each wait
            continue
        found[id(each)] = each
        if isinstance(each, Calling):
            for function in referents:
                if isinstance(function, FunctionType):
                    closure = function.__closure__ or ()
                    found |= {id(function): function, id(closure): closure}
                    ahead += closure
    return tuple(found.values())


def prefetch(pieces: tuple[object, ...]) -> None:
    """Touch them."""
    list(pieces)


@lru_cache
def _leads_on(kind: type) -> bool:
    return issubclass(kind, _LINKS)
