"""What a message of one connection comes through, brought into the processor's caches together.

Among a thousand connections the objects of one have left the caches since its last message. A message finds them one
after the other, each by a reference in the one before, so that the processor waits for memory again and again. To touch
all of them first, by their reference counts, which do not depend on each other, is to wait about once: a message among
a thousand takes 1 to 2 µs of 28 less by this. ``docs/performance.md`` has the figures.
"""

from __future__ import annotations

import gc
import socket
from collections.abc import Awaitable
from functools import lru_cache
from types import BuiltinMethodType, CellType, FunctionType, GeneratorType

#: more are not worth it
_MOST = 64


class Piece:
    """Marks a class whose objects belong to one session, or to one connection on it, and are looked at by each of its
    messages."""

    __slots__ = ()


class Calling(Piece):
    """Marks a class whose objects refer to a user's function, which is looked at as well, with what it encloses."""

    __slots__ = ()


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
