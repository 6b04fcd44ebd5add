"""A user's function is called with as many values as it takes."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from brightsocket_anyio import ConfigurationError
from brightsocket_anyio.signature import Adapted


def none() -> Any:
    return ()


def one(a: Any) -> Any:
    return (a,)


def two(a: Any, b: Any, /) -> Any:
    return a, b


def default(a: Any, b: Any = "default") -> Any:
    return a, b


def every(*args: Any) -> Any:
    return args


def first_and_rest(a: Any, b: Any, *rest: Any) -> Any:
    return a, b, *rest


def keyword(a: Any, *, b: Any = "default", **more: Any) -> Any:
    return a, b, more


class Methods:
    def method(self, a: Any) -> Any:
        return (a,)

    @classmethod
    def class_method(cls, a: Any) -> Any:
        return (a,)

    @staticmethod
    def static_method(a: Any) -> Any:
        return (a,)

    def __call__(self, a: Any, b: Any) -> Any:
        return a, b


@pytest.mark.parametrize(
    ("function", "results"),
    [
        (none, [(), (), (), ()]),
        (one, [(None,), (1,), (1,), (1,)]),
        (two, [(None, None), (1, None), (1, 2), (1, 2)]),
        (default, [(None, "default"), (1, "default"), (1, 2), (1, 2)]),
        (every, [(), (1,), (1, 2), (1, 2, 3)]),
        (first_and_rest, [(None, None), (1, None), (1, 2), (1, 2, 3)]),
        (keyword, [(None, "default", {}), (1, "default", {}), (1, "default", {}), (1, "default", {})]),
        (Methods().method, [(None,), (1,), (1,), (1,)]),
        (Methods.class_method, [(None,), (1,), (1,), (1,)]),
        (Methods.static_method, [(None,), (1,), (1,), (1,)]),
        (Methods(), [(None, None), (1, None), (1, 2), (1, 2)]),
        (functools.partial(two, 0), [(0, None), (0, 1), (0, 1), (0, 1)]),
    ],
)
async def test_missing_values_are_none_and_surplus_ones_left_out(function: Any, results: list[Any]) -> None:
    adapted = Adapted(function, "it")
    assert [await adapted(*args) for args in ((), (1,), (1, 2), (1, 2, 3))] == results


async def test_a_coroutine_function_s_result_is_awaited() -> None:
    async def function(a: Any) -> Any:
        return a

    assert await Adapted(function, "it")("value") == "value"
    assert await Adapted(lambda a: function(a), "it")("value") == "value"


async def test_the_signature_is_read_once() -> None:
    class Counting:
        reads = 0

        @property
        def __signature__(self) -> Any:
            type(self).reads += 1
            raise ValueError("no signature")

        def __call__(self, *args: Any) -> Any:
            return args

    adapted = Adapted(Counting(), "it")
    reads = Counting.reads
    assert await adapted(1, 2) == (1, 2)
    assert Counting.reads == reads


async def test_a_built_in_without_a_signature_gets_what_there_is() -> None:
    assert await Adapted(max, "it")(1, 3, 2) == 3
    values: list[int] = []
    await Adapted(values.append, "it")(1, 2)
    assert values == [1]


@pytest.mark.parametrize("function", [None, "name", 3])
async def test_it_must_be_callable(function: Any) -> None:
    with pytest.raises(ConfigurationError, match="a handler must be a function"):
        Adapted(function, "a handler")


async def test_a_keyword_that_is_required_can_never_be_given() -> None:
    def function(a: Any, *, b: Any) -> None: ...

    with pytest.raises(ConfigurationError, match="'b'"):
        Adapted(function, "a filter")
