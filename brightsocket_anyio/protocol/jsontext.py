"""JSON as Socket.IO peers can hold it, with the bytes in it taken out as attachments.

What :func:`loads` lets in, :func:`dumps` can send: JavaScript's numbers, bounded nesting, no lone surrogates.
"""

from __future__ import annotations

import json
import re
from enum import Enum
from typing import Any, Final
from uuid import UUID

import orjson

from ..errors import ProtocolError

#: the integers up to here are exact in JavaScript, and so are some beyond
MAX_SAFE_INTEGER: Final = 2**53 - 1
#: objects and arrays within each other, the outermost included; orjson's own bound
MAX_DEPTH: Final = 254

_OPTIONS = orjson.OPT_STRICT_INTEGER | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
# Socket.IO 1 takes any true value for a placeholder's mark, later ones take true only.
_PLACEHOLDER = re.compile(rb'"_placeholder":(?!false|null)')
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")


def dumps(value: Any, ascii: bool) -> tuple[str, list[bytes]]:
    """Encode a value, which is left as it is.

    NaN and the infinities become null, as in JavaScript. Tuples are arrays. An integer goes through if a double holds
    it exactly.

    :param ascii: whether to escape whatever is not ASCII.
    :returns: the text, with placeholders for bytes, bytearrays and memoryviews, and these as bytes, in order.
    :raises ValueError: the value, or something in it, has no form in JSON or none that JavaScript can hold; or it holds
        bytes and also a dict that a peer could take for their placeholder.
    """
    attachments: list[bytes] = []

    def replace(item: Any) -> Any:
        if isinstance(item, (bytes, bytearray, memoryview)):
            attachments.append(bytes(item))
            # no Fragment, whose depth orjson would not count
            return {"_placeholder": True, "num": len(attachments) - 1}
        if isinstance(item, tuple):
            return list(item)
        raise TypeError

    try:
        encoded = orjson.dumps(value, replace, _OPTIONS)
    except orjson.JSONEncodeError:
        attachments.clear()
        tame = _tame(value, 1)
        try:
            encoded = orjson.dumps(tame, replace, _OPTIONS)
        except orjson.JSONEncodeError as exc:
            raise ValueError(f"a value cannot be sent: {exc.__cause__ or exc}") from exc
    if attachments and len(_PLACEHOLDER.findall(encoded)) != len(attachments):
        raise ValueError('a dict with the key "_placeholder" cannot be sent together with bytes')
    text = encoded.decode()
    if ascii and not text.isascii():
        text = _NOT_ASCII.sub(_escape, text)
    return text, attachments


def loads(text: str) -> Any:
    """Decode a value; its integers are those that JavaScript would hold.

    :raises ProtocolError: it is not JSON, or it could not be sent again.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise ProtocolError("invalid JSON") from None
    # To encode it for a try costs less than half of the decoding, and far less than a regex that looks for long digits.
    try:
        orjson.dumps(value, option=orjson.OPT_STRICT_INTEGER)
    except orjson.JSONEncodeError:
        value = _round(value)
        try:
            orjson.dumps(value)
        except orjson.JSONEncodeError:
            raise ProtocolError(f"JSON nested more than {MAX_DEPTH} deep") from None
    return value


def _tame(value: Any, depth: int) -> Any:
    """A copy of what orjson refused, in its plainest types, or a ValueError that says what is wrong with it."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str):
        # a lone surrogate is an UnicodeEncodeError, which is a ValueError
        value.encode()
        return value
    if value is None or isinstance(value, bool | UUID):
        return value
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int):
        return _tame_integer(value)
    if not isinstance(value, dict | list | tuple | bytes | bytearray | memoryview):
        raise ValueError(f"a value of the type {type(value).__qualname__} cannot be sent as JSON")
    if depth > MAX_DEPTH:
        raise ValueError(f"a value nested more than {MAX_DEPTH} deep, or within itself, cannot be sent")
    if isinstance(value, bytes | bytearray | memoryview):
        return value  # its placeholder is an object
    if not isinstance(value, dict):
        items = []
        for item in value:
            items.append(_tame(item, depth + 1))  # noqa: PERF401, a comprehension is one more frame for each level
        return items
    fields: dict[str, Any] = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise ValueError(f"a dict's key must be a str, not {type(key).__qualname__}")
        fields[_tame(key, depth).__str__()] = _tame(item, depth + 1)
    return fields


def _tame_integer(value: int) -> Any:
    if -MAX_SAFE_INTEGER <= value <= MAX_SAFE_INTEGER:
        return value
    try:
        exact = float(value) == value
    except OverflowError:
        exact = False
    if not exact:
        name = str(value) if value.bit_length() < 256 else f"of {value.bit_length()} bits"
        raise ValueError(f"the integer {name} cannot be sent: JSON peers hold numbers as doubles")
    return orjson.Fragment(str(int(value)).encode())


def _round(value: Any) -> Any:
    """Replace integers in place by those that doubles hold; beyond 64 bits orjson made them floats itself."""
    box = [value]
    containers: list[Any] = [box]
    while containers:
        container = containers.pop()
        for key, item in container.items() if isinstance(container, dict) else enumerate(container):
            if isinstance(item, dict | list):
                containers.append(item)
            elif isinstance(item, int):
                container[key] = item if abs(item) <= MAX_SAFE_INTEGER else int(float(item))
    return box[0]


def _escape(match: re.Match[str]) -> str:
    return json.dumps(match[0])[1:-1]
