"""Calling a user's function with as many values as it takes: missing ones are ``None``, surplus ones are left out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

from .errors import ConfigurationError


def adapt(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    """Wrap a function, whose signature is read once, now, so that any number of positional arguments suits it.

    A plain function's result and a coroutine function's are both awaited for by the wrapper, which is a coroutine
    function.

    :param what: what the function is, for the error.
    :raises ConfigurationError: it is not callable, or it cannot be called with positional arguments only.
    """
    trim = fit(function, what)
    if _is_coroutine_function(function):
        # whose result need not be looked at

        async def call_coroutine_function(*args: Any) -> Any:
            return await function(*trim(args))

        return call_coroutine_function

    async def call(*args: Any) -> Any:
        result = function(*trim(args))
        return await result if inspect.isawaitable(result) else result

    return call


def fit(function: Callable[..., Any], what: str) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """What makes positional arguments as many as a function takes; its signature is read once, now.

    :raises ConfigurationError: as :func:`adapt`.
    """
    least, most = _arity(function, what)
    return lambda args: args[:most] + (None,) * (least - len(args))


def _arity(function: Callable[..., Any], what: str) -> tuple[int, int | None]:
    """How many positional arguments a function needs, and how many it takes; ``None`` for any number."""
    if not callable(function):
        raise ConfigurationError(f"{what} must be a function, not {function!r}")
    if type(function) is FunctionType and not function.__dict__:
        # a connection's handlers are read for each connection anew: this is a twentieth of inspect's time
        code = function.__code__
        if code.co_kwonlyargcount == len(function.__kwdefaults__ or ()):
            least = code.co_argcount - len(function.__defaults__ or ())
            return least, None if code.co_flags & inspect.CO_VARARGS else code.co_argcount
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


def _is_coroutine_function(function: Callable[..., Any]) -> bool:
    if type(function) is FunctionType and not function.__dict__:
        return bool(function.__code__.co_flags & inspect.CO_COROUTINE)
    return inspect.iscoroutinefunction(function)
