"""JSON that JavaScript peers can hold, and the bytes in it."""

from __future__ import annotations

import contextlib
import copy
import enum
import math
import uuid
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brightsocket_anyio.errors import ProtocolError
from brightsocket_anyio.protocol.jsontext import MAX_DEPTH, MAX_SAFE_INTEGER, dumps, loads

Pair = namedtuple("Pair", "a b")  # noqa: PYI024, what matters is that it is a subclass of tuple
Name = enum.StrEnum("Name", {"A": "a"})
ID = uuid.UUID(int=0)


class Float(float):
    """Such as numpy's."""


@dataclass
class Point:
    x: int = 0


def nested(depth: int, *innermost: Any) -> list[Any]:
    value: list[Any] = [*innermost]
    for _ in range(depth - 1):
        value = [value]
    return value


texts = st.text(st.characters(exclude_categories=["Cs"]))
integers = st.integers(-MAX_SAFE_INTEGER, MAX_SAFE_INTEGER)
floats = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | integers | floats | texts
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner))


@given(values, st.booleans())
def test_every_json_value_survives(value: Any, ascii: bool) -> None:
    text, attachments = dumps(value, ascii=ascii)
    assert loads(text) == value
    assert not attachments
    assert text.isascii() or not ascii


def test_ascii() -> None:
    assert dumps(["é€", "a😀b\\", {"ñ": '"'}], ascii=True)[0] == (
        r'["\u00e9\u20ac","a\ud83d\ude00b\\",{"\u00f1":"\""}]'
    )


def test_the_plain_forms_of_python_types() -> None:
    value = [(1, Pair(2, ())), OrderedDict(a=True), math.nan, math.inf, -math.inf, Name.A, ID]
    expected = f'[[1,[2,[]]],{{"a":true}},null,null,null,"a","{ID}"]'
    assert dumps(value, ascii=False)[0] == expected


def test_the_plain_forms_of_python_types_beside_what_takes_the_longer_way() -> None:
    value = [2**60, (1, Pair(2, ())), OrderedDict(a=True), math.nan, Float(1.5), Name.A, ID, {Name.A: "é"}, None]
    expected = f'[{2**60},[1,[2,[]]],{{"a":true}},null,1.5,"a","{ID}",{{"a":"é"}},null]'
    assert dumps(value, ascii=False)[0] == expected


def test_bytes_become_placeholders_in_one_pass_and_the_payload_stays_as_it_is() -> None:
    value = {"a": [b"1", (bytearray(b"2"),)], "b": memoryview(b"3456")[::2], "c": b""}
    before = copy.copy(value)
    text, attachments = dumps(value, ascii=False)
    assert text == (
        '{"a":[{"_placeholder":true,"num":0},[{"_placeholder":true,"num":1}]],'
        '"b":{"_placeholder":true,"num":2},"c":{"_placeholder":true,"num":3}}'
    )
    assert attachments == [b"1", b"2", b"35", b""]
    assert [type(attachment) for attachment in attachments] == [bytes] * 4
    assert value == before


@pytest.mark.parametrize("number", [2**53, -(2**53), 2**60, 2**64, 2**70, 10**20, 2**1023])
def test_integers_that_a_double_holds_go_through(number: int) -> None:
    value = [b"1", {"n": number}]
    text, attachments = dumps(value, ascii=False)
    assert text == f'[{{"_placeholder":true,"num":0}},{{"n":{number}}}]'
    assert attachments == [b"1"]
    assert value == [b"1", {"n": number}]
    assert loads(text)[1]["n"] == number


@pytest.mark.parametrize(
    ("base", "exponent", "rest", "name"),
    [
        (2, 53, 1, "9007199254740993"),
        (-2, 61, -1, "-2305843009213693953"),
        (10, 30, 0, str(10**30)),
        (10, 400, 0, "of 1329 bits"),
        (10, 5000, 0, "of 16610 bits"),
    ],
)
def test_other_integers_are_named(base: int, exponent: int, rest: int, name: str) -> None:
    number = base**exponent + rest
    with pytest.raises(ValueError, match=f"the integer {name} cannot be sent"):
        dumps([{"n": (number,)}], ascii=False)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({1}, "type set"),
        (object(), "type object"),
        (range(3), "type range"),
        (1j, "type complex"),
        (Point(), "type Point"),
        (date(2020, 1, 1), "type date"),
        ({1: 2}, "must be a str, not int"),
        ({b"a": 2}, "must be a str, not bytes"),
        ({None: 2}, "must be a str, not NoneType"),
        ("\ud800", "surrogates not allowed"),
        ({"\ud800": 1}, "surrogates not allowed"),
    ],
)
def test_what_has_no_form_in_json(value: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        dumps(["a", [value]], ascii=False)
    assert not isinstance(caught.value, ProtocolError)


def test_a_memoryview_that_was_released() -> None:
    view = memoryview(b"1")
    view.release()
    with pytest.raises(ValueError, match="released"):
        dumps(["a", view], ascii=False)


def test_a_list_within_itself() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ValueError, match="within itself"):
        dumps(value, ascii=False)


@pytest.mark.parametrize("beside", [1, 2**60])
def test_depth_is_bounded_alike_in_both_directions(beside: int) -> None:
    deepest = [nested(MAX_DEPTH - 1), beside]
    text, _ = dumps(deepest, ascii=False)
    assert loads(text) == deepest
    with pytest.raises(ValueError, match="254 deep"):
        dumps([nested(MAX_DEPTH), beside], ascii=False)
    with pytest.raises(ProtocolError, match="254 deep"):
        loads(f"[{text},{beside}]")


@pytest.mark.parametrize("beside", [1, 2**60])
def test_the_placeholder_of_bytes_is_one_level_more(beside: int) -> None:
    text, attachments = dumps([nested(MAX_DEPTH - 2, b"x"), beside], ascii=False)
    assert attachments == [b"x"]
    loads(text)
    with pytest.raises(ValueError, match="254 deep"):
        dumps([nested(MAX_DEPTH - 1, b"x"), beside], ascii=False)


@pytest.mark.parametrize(
    "fake", [{"_placeholder": True, "num": 0}, {"_placeholder": 1}, {"x": [{"_placeholder": "a"}]}]
)
def test_a_dict_that_the_peer_would_take_for_a_placeholder(fake: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="_placeholder"):
        dumps([b"1", fake], ascii=False)
    # without bytes nobody looks for placeholders
    assert loads(dumps([fake], ascii=False)[0]) == [fake]


@pytest.mark.parametrize(
    "harmless", [{"_placeholder": False}, {"_placeholder": None}, '"_placeholder":true', "_placeholder"]
)
def test_what_nobody_would_take_for_a_placeholder(harmless: Any) -> None:
    assert dumps([b"1", harmless], ascii=False)[1] == [b"1"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("9007199254740993", 2**53),
        ("[-9007199254740993]", [-(2**53)]),
        # as JSON.parse reads them
        ('{"a":[12345678901234567890,1,true]}', {"a": [12345678901234567168, 1, True]}),
        ("[1152921504606846976]", [2**60]),
        ("[1e300,123456789012345678901234567890]", [1e300, 1.2345678901234568e29]),
    ],
)
def test_integers_are_read_as_javascript_reads_them(text: str, value: Any) -> None:
    assert loads(text) == value
    assert loads(dumps(value, ascii=False)[0]) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "[",
        "NaN",
        "[Infinity]",
        "[-Infinity]",
        "[1e400]",
        "[" + "1" * 5000 + "]",
        r'["\ud800"]',
        r'["\udc00\ud800"]',
        '["\ud800"]',
        '["\x1e"]',
        "['a']",
        "[1,]",
        "[٣]",
        "[" * 100_000,
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 1000 + "1" + "}" * 1000,
    ],
)
def test_what_is_not_let_in(text: str) -> None:
    with pytest.raises(ProtocolError):
        loads(text)


pieces = st.sampled_from(
    ["[", "]", "{", "}", '"', ":", ",", "null", "true", "1", "-", "e", "9" * 17, "\\ud800", "é", " "]
)


@given(st.text(st.characters()) | st.lists(pieces).map("".join))
def test_any_text_is_sendable_json_or_a_protocol_error(text: str) -> None:
    with contextlib.suppress(ProtocolError):
        assert loads(dumps(loads(text), ascii=True)[0]) == loads(text)
