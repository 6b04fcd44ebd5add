"""Calling a user's function with as many values as it takes: missing ones are ``None``, surplus ones are left out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

from .errors import ConfigurationError
from .prefetch import Calling, whole_lines

_COROUTINE, _VARARGS = inspect.CO_COROUTINE, inspect.CO_VARARGS


class Adapted(Calling):
    """A function that any number of positional arguments suits; its signature is read once, now.

    Awaiting the call awaits the result of a coroutine function, and passes on that of a plain one.

    :param what: what the function is, for the error.
    :ivar waits: whether what :meth:`begin` returns has to be awaited, for sure.
    :raises ConfigurationError: it is not callable, or it cannot be called with positional arguments only.
    """

    __slots__ = whole_lines((Calling,), "_function", "_least", "_most", "waits")

    def __init__(self, function: Callable[..., Any], what: str) -> None:
        self._function = function
        if type(function) is FunctionType and not function.__dict__:
            # a connection's handlers are read for each connection anew: this is a fiftieth of inspect's time
            code, flags = function.__code__, function.__code__.co_flags
            self.waits: bool = flags & _COROUTINE != 0
            if not code.co_kwonlyargcount or code.co_kwonlyargcount == len(function.__kwdefaults__ or ()):
                self._least: int = code.co_argcount
                self._most: int | None = code.co_argcount
                if flags & _VARARGS:
                    self._most = None
                if defaults := function.__defaults__:
                    self._least -= len(defaults)
                return
        else:
            self.waits = inspect.iscoroutinefunction(function)
        self._least, self._most = _arity(function, what)

    def begin(self, args: tuple[Any, ...]) -> Any:
        """Call the function; returns whatever it does."""
        count = len(args)
        # the usual case is that nothing has to be done
        if count != self._least:
            if count < self._least:
                args += (None,) * (self._least - count)
            elif self._most is not None and count > self._most:
                args = args[: self._most]
        return self._function(*args)

    async def __call__(self, *args: Any) -> Any:
        result = self.begin(args)
        return await result if self.waits or inspect.isawaitable(result) else result


def _arity(function: Callable[..., Any], what: str) -> tuple[int, int | None]:
    """How many positional arguments a function needs, and how many it takes; ``None`` for any number."""
    if not callable(function):
        raise ConfigurationError(f"{what} must be a function, not {function!r}")
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        # some built-in functions have no signature to read: they get what there is
        return 0, None
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            raise ConfigurationError(f"{what} {function!r} requires the keyword argument {parameter.name!r}")
    least = sum(p.default is p.empty for p in positional)
    return least, None if any(p.kind is p.VAR_POSITIONAL for p in parameters) else len(positional)
