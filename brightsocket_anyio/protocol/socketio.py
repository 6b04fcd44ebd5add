"""Socket.IO packets, protocols 4 (Socket.IO 1 and 2) and 5 (3 and 4), with their binary attachments.

Both generations have one form in here: CONNECT carries protocol 5's auth object or protocol 4's query as ``data``,
CONNECT_ERROR carries ``{"message": …, "data": …}``, and an EVENT or ACK has its bytes where they belong.
Whatever a peer sends is decoded or is a :exc:`~brightsocket_anyio.errors.ProtocolError`, never anything else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, quote, urlencode

from ..errors import ProtocolError
from . import engineio
from .jsontext import MAX_SAFE_INTEGER, dumps, loads

#: event names that stock peers use for themselves
RESERVED: Final = frozenset(
    {"connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"}
)
#: the greatest ack id
MAX_ID: Final = MAX_SAFE_INTEGER
#: parameters of a protocol 4 CONNECT's query
MAX_QUERY_FIELDS: Final = 100

_MESSAGE = engineio.PacketType.MESSAGE
_ATTACHMENTS = re.compile(r"([0-9]{1,9})-")
_ID = re.compile(r"([0-9]{1,16})\[")
_NAMESPACE = re.compile(r"/[^\x00-\x1f,\ud800-\udfff]{0,511}")
_NAMESPACE_WITH_QUERY = re.compile(r"(/[^\x00-\x1f,?\ud800-\udfff]{0,511})(?:\?([^\x00-\x1f,\ud800-\udfff]{0,8191}))?")


class PacketType(IntEnum):
    """What a Socket.IO packet is for; the value is the digit on the wire."""

    CONNECT = 0
    DISCONNECT = 1
    EVENT = 2
    ACK = 3
    CONNECT_ERROR = 4
    BINARY_EVENT = 5
    BINARY_ACK = 6


# Enum's own is Python code, and every message is looked up by its type
PacketType.__hash__ = int.__hash__  # type: ignore[method-assign]

_TYPES = {str(type.value): type for type in PacketType}
_BINARY = {PacketType.BINARY_EVENT: PacketType.EVENT, PacketType.BINARY_ACK: PacketType.ACK}


# not frozen: that would cost more to make than the rest of it
@dataclass(slots=True)
class Packet:
    """A Socket.IO packet.

    :param type: what it is for; never BINARY_EVENT or BINARY_ACK, which are an EVENT or ACK with bytes in its data.
    :param namespace: begins with a slash.
    :param data: EVENT: a list that begins with the event's name. ACK: a list. CONNECT: a dict or ``None``; in
        protocol 4 the query, whose values are texts. CONNECT_ERROR: a dict with ``"message"`` and perhaps ``"data"``.
        DISCONNECT: ``None``.
    :param id: the ack id: an ACK's always, an EVENT's where the sender waits for an answer.
    """

    type: PacketType
    namespace: str = "/"
    data: Any = None
    id: int | None = None


def encode(packet: Packet, protocol: Literal[4, 5]) -> tuple[engineio.Packet, ...]:
    """Encode a packet: its text and its attachments, one unit that nothing may come between.

    In protocol 4 the JSON is ASCII: engine.io-client 1.x would decode anything else twice when polling.

    :raises ValueError: the packet cannot be sent: its data has no form in JSON, its event's name is reserved…
    """
    kind, namespace, data = packet.type, packet.namespace, packet.data
    if kind is PacketType.EVENT or kind is PacketType.ACK:
        if not isinstance(data, (list, tuple)):
            raise ValueError(f"the data of {kind.name} must be a list, not {type(data).__qualname__}")
        if kind is PacketType.EVENT:
            return encode_event(data, protocol, namespace, packet.id)
        if packet.id is None:
            raise ValueError("ACK must have an id")
        return _encode_values("3", "6", data, protocol, namespace, packet.id)
    if packet.id is not None:
        raise ValueError(f"{kind.name} has no ack id")
    prefix = "" if namespace == "/" else _encode_namespace(namespace, protocol)
    if kind is PacketType.CONNECT:
        text = "0" + _encode_connect(namespace, prefix, data, protocol)
    elif kind is PacketType.CONNECT_ERROR:
        text = "4" + prefix + _encode_error(data, protocol)
    elif kind is PacketType.DISCONNECT:
        if data is not None:
            raise ValueError("DISCONNECT carries no data")
        text = "1" + prefix
    else:
        raise ValueError(f"{kind.name} is a form on the wire: send EVENT or ACK")
    return (engineio.Packet(_MESSAGE, text),)


def encode_event(
    values: Sequence[Any], protocol: Literal[4, 5], namespace: str = "/", id: int | None = None
) -> tuple[engineio.Packet, ...]:
    """Encode an EVENT, which nearly every packet is: as :func:`encode` does, without a packet.

    :param values: the event's name, and what goes with it.
    :raises ValueError: as :func:`encode`.
    """
    if not values or not isinstance(values[0], str) or values[0] in RESERVED:
        raise ValueError(_event_problem(values))
    return _encode_values("2", "5", values, protocol, namespace, id)


def _encode_values(
    digit: str, binary_digit: str, values: Sequence[Any], protocol: Literal[4, 5], namespace: str, id: int | None
) -> tuple[engineio.Packet, ...]:
    """Encode a list of values as the packet that one digit stands for, or with attachments the other one."""
    prefix = "" if namespace == "/" else _encode_namespace(namespace, protocol)
    if id is not None:
        if not 0 <= id <= MAX_ID:
            raise ValueError(f"the ack id {id} is out of bounds")
        prefix += str(id)
    text, attachments = dumps(values, protocol == 4)
    if not attachments:
        return (engineio.Packet(_MESSAGE, digit + prefix + text),)
    return (
        engineio.Packet(_MESSAGE, f"{binary_digit}{len(attachments)}-{prefix}{text}"),
        *[engineio.Packet(_MESSAGE, attachment) for attachment in attachments],
    )


class Decoder:
    """Puts the packets of one session together from its Engine.IO messages.

    :param max_attachments: binary attachments that one packet may have.
    """

    __slots__ = ("_attached", "_header", "_max_attachments", "_protocol", "_slots")

    def __init__(self, protocol: Literal[4, 5], *, max_attachments: int = 10) -> None:
        self._protocol = protocol
        self._max_attachments = max_attachments
        self._header: Packet | None = None
        self._slots: list[tuple[Any, Any]] = []
        self._attached = 0

    @property
    def pending(self) -> bool:
        """Whether a packet waits for its attachments."""
        return self._header is not None

    def feed(self, data: str | bytes) -> Packet | None:
        """Take the data of one Engine.IO message; returns the packet that it completes, if it does.

        :raises ProtocolError: it is no packet, or none that may come here; the decoder is of no further use.
        """
        header = self._header
        if isinstance(data, str):
            if header is not None:
                raise ProtocolError("a text where an attachment was due")
            return self._feed_text(data)
        if header is None:
            raise ProtocolError("an attachment that no packet announced")
        container, key = self._slots[self._attached]
        container[key] = data
        self._attached += 1
        if self._attached < len(self._slots):
            return None
        self._header, self._slots, self._attached = None, [], 0
        return header

    def _feed_text(self, text: str) -> Packet | None:
        kind = _TYPES.get(text[:1])
        if kind is None:
            raise ProtocolError("a packet of an unknown type")
        position, count = 1, 0
        if kind in _BINARY:
            kind = _BINARY[kind]
            position, count = self._decode_count(text)
        namespace, query = "/", None
        if text.startswith("/", position):
            end = text.find(",", position)
            if end < 0:
                end = len(text)
            namespace, query = _decode_namespace(text[position:end], self._protocol)
            position = end + 1
        if kind is not PacketType.EVENT and kind is not PacketType.ACK:
            return Packet(kind, namespace, _decode_other(kind, text[position:], query, self._protocol))
        id = None
        if not text.startswith("[", position):
            match = _ID.match(text, position)
            if match is None:
                raise ProtocolError(f"{kind.name} without a list, or with a bad ack id")
            id, position = int(match[1]), match.end(1)
            if id > MAX_ID:
                raise ProtocolError("an ack id out of bounds")
        elif kind is PacketType.ACK:
            raise ProtocolError("ACK without an id")
        data = loads(text[position:])
        if kind is PacketType.EVENT and (problem := _event_problem(data)):
            raise ProtocolError(problem)
        packet = Packet(kind, namespace, data, id)
        if not count:
            return packet
        self._slots = _find_slots(data, count)
        self._header = packet
        return None

    def _decode_count(self, text: str) -> tuple[int, int]:
        match = _ATTACHMENTS.match(text, 1)
        if match is None:
            raise ProtocolError("a binary packet without the number of its attachments")
        count = int(match[1])
        if not 1 <= count <= self._max_attachments:
            raise ProtocolError(f"{count} attachments, where 1 to {self._max_attachments} are allowed")
        return match.end(), count


def decode_event(text: str) -> list[Any]:
    """Read the text of the usual packet, which begins with ``2[``: an EVENT in the main namespace that wants no answer.

    :returns: a list that begins with the event's name.
    :raises ProtocolError: as :meth:`Decoder.feed`.
    """
    data: list[Any] = loads(text[1:])
    if not data or not isinstance(data[0], str) or data[0] in RESERVED:
        raise ProtocolError(_event_problem(data))
    return data


def _event_problem(data: Sequence[Any]) -> str | None:
    if not data or not isinstance(data[0], str):
        return "an event's name must be a text"
    if data[0] in RESERVED:
        return f"the event name {data[0]!r} is reserved"
    return None


def _encode_namespace(namespace: str, protocol: Literal[4, 5]) -> str:
    if not _NAMESPACE.fullmatch(namespace):
        raise ValueError(f"no valid namespace: {namespace!r}")
    if protocol == 4 and "?" in namespace:
        raise ValueError(f"a namespace of protocol 4 cannot have a question mark: {namespace!r}")
    return namespace + ","


def _decode_namespace(text: str, protocol: Literal[4, 5]) -> tuple[str, str | None]:
    match = _NAMESPACE.fullmatch(text) if protocol == 5 else _NAMESPACE_WITH_QUERY.fullmatch(text)
    if match is None:
        raise ProtocolError("no valid namespace")
    return (text, None) if protocol == 5 else (match[1], match[2])


def _encode_connect(namespace: str, prefix: str, data: Any, protocol: Literal[4, 5]) -> str:
    if data is None:
        return prefix
    if not isinstance(data, dict):
        raise ValueError(f"what CONNECT carries must be a dict, not {type(data).__qualname__}")
    if protocol == 5:
        return prefix + _encode_plain(data, protocol)
    for value in (*data.keys(), *data.values()):
        if not isinstance(value, str):
            raise ValueError(f"what CONNECT carries in protocol 4 must be texts, not {type(value).__qualname__}")
    return f"{namespace}?{urlencode(data, quote_via=quote)}," if data else prefix


def _encode_error(data: Any, protocol: Literal[4, 5]) -> str:
    if not isinstance(data, dict) or not isinstance(data.get("message"), str):
        raise ValueError("what CONNECT_ERROR carries must be a dict with a message")
    if protocol == 5:
        return _encode_plain(data, protocol)
    return _encode_plain(data["message"] if data.get("data") is None else data["data"], protocol)


def _encode_plain(data: Any, protocol: Literal[4, 5]) -> str:
    text, attachments = dumps(data, ascii=protocol == 4)
    if attachments:
        raise ValueError("only events and acknowledgements can carry bytes")
    return text


def _decode_other(kind: PacketType, text: str, query: str | None, protocol: Literal[4, 5]) -> Any:
    """The data of a packet that is neither EVENT nor ACK."""
    if kind is PacketType.CONNECT_ERROR:
        # a middleware of socket.io 2.x that fails with something that is no Error sends nothing
        error = loads(text) if text else ""
        if isinstance(error, str):
            return {"message": error}
        if protocol == 5 and not isinstance(error, dict):
            raise ProtocolError("CONNECT_ERROR without an object")
        return error if protocol == 5 else {"message": _message_of(error), "data": error}
    if kind is PacketType.CONNECT and protocol == 5 and text:
        auth = loads(text)
        if not isinstance(auth, dict):
            raise ProtocolError("CONNECT with something other than an object")
        return auth
    if text:
        raise ProtocolError(f"{kind.name} with data")
    if kind is PacketType.CONNECT and query:
        return _decode_query(query)
    return None


def _message_of(error: Any) -> str:
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else "refused"


def _decode_query(query: str) -> dict[str, str]:
    try:
        return dict(parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS))
    except ValueError:
        raise ProtocolError("a query with too many fields") from None


def _find_slots(data: list[Any], count: int) -> list[tuple[Any, Any]]:
    """Where the attachments go: for each its container, and the key or index in it."""
    slots: dict[int, tuple[Any, Any]] = {}
    containers: list[Any] = [data]
    while containers:
        container = containers.pop()
        for key, item in container.items() if isinstance(container, dict) else enumerate(container):
            if isinstance(item, dict) and item.get("_placeholder") is True:
                number = item.get("num")
                if type(number) is not int or not 0 <= number < count or number in slots:
                    raise ProtocolError("a placeholder with a bad number")
                slots[number] = (container, key)
            elif isinstance(item, (dict, list)):
                containers.append(item)
    if len(slots) != count:
        raise ProtocolError("an attachment without a placeholder")
    return [slots[number] for number in range(count)]
