"""What a request must look like before a session hears of it: its query, its origin; and what goes into the answer:
CORS headers, a subprotocol, the session's cookie.

Requests, HTTP or WebSocket, are ASGI scopes. Whatever is wrong with one becomes a :exc:`RequestError`, which knows
the answer to give.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import parse_qs

from ..errors import BrightsocketError
from ..settings import TOKEN, Settings

#: Engine.IO's error codes, with the messages and HTTP status codes that its clients know
MESSAGES: Final[Mapping[int, str]] = {
    0: "Transport unknown",
    1: "Session ID unknown",
    2: "Bad handshake method",
    3: "Bad request",
    4: "Forbidden",
    5: "Unsupported protocol version",
}
#: parameters of one query; a client's own ones are among them
MAX_PARAMETERS: Final = 1000
#: seconds that a browser may remember the answer to a preflight request
PREFLIGHT_MAX_AGE: Final = 600

_TRANSPORTS: Final[Mapping[str, Literal["polling", "websocket"]]] = {"polling": "polling", "websocket": "websocket"}
_VERSIONS: Final[Mapping[str, Literal[3, 4]]] = {"3": 3, "4": 4}
_DEFAULT_PORTS: Final[Mapping[str, str]] = {"http": ":80", "https": ":443"}


class RequestError(BrightsocketError):
    """A request that is answered with an HTTP error.

    :ivar status: the HTTP status code.
    :ivar code: Engine.IO's code, ``None`` where it has none.
    :ivar message: a sentence for the peer.
    :ivar headers: further headers of the answer.
    """

    def __init__(
        self, status: int, code: int | None, message: str, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers

    @classmethod
    def of(cls, code: int) -> RequestError:
        """The error with one of Engine.IO's own codes."""
        return cls(403 if code == 4 else 400, code, MESSAGES[code])

    @property
    def body(self) -> bytes:
        """The answer's body, JSON."""
        content = {"message": self.message} if self.code is None else {"code": self.code, "message": self.message}
        return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")


@dataclass(frozen=True, slots=True)
class Query:
    """What the query of an Engine.IO request says.

    :ivar sid: the session's id; ``None`` asks for a new session.
    :ivar base64: the client cannot read binary polling payloads (Engine.IO 3 only).
    """

    transport: Literal["polling", "websocket"]
    eio: Literal[3, 4]
    sid: str | None
    base64: bool


#: what clients ask with that begin by a WebSocket: to look it up takes a thirtieth of the time that it takes to read it
_USUAL: Final[Mapping[bytes, Query]] = {
    b"EIO=4&transport=websocket": Query("websocket", 4, None, False),
    b"EIO=3&transport=websocket": Query("websocket", 3, None, False),
}


def parse_query(scope: Mapping[str, Any]) -> Query:
    """Read a request's query.

    :raises RequestError: a parameter is missing, repeated, empty or unknown: codes 0 (``transport``), 5 (``EIO``) and 1
        (``sid``); or the request is for JSONP, or has too many parameters (code 3).
    """
    query_string: bytes = scope.get("query_string", b"")
    if (usual := _USUAL.get(query_string)) is not None:
        return usual
    try:
        values = parse_qs(query_string.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_PARAMETERS)
    except ValueError:
        raise RequestError.of(3) from None
    transport = _TRANSPORTS.get(_sole(values.get("transport")))
    if transport is None:
        raise RequestError.of(0)
    eio = _VERSIONS.get(_sole(values.get("EIO")))
    if eio is None:
        raise RequestError.of(5)
    sid = _sole(values["sid"]) if "sid" in values else None
    if sid == "":
        raise RequestError.of(1)
    if "j" in values:
        raise RequestError.of(3)
    return Query(transport, eio, sid, any(values.get("b64", ())))


def check_origin(scope: Mapping[str, Any], settings: Settings) -> None:
    """Let pass what comes from no web page, from a page of this very host, or from one of the allowed origins.

    :raises RequestError: the request comes from a page of another origin (403, code 4).
    """
    if not _may_pass(scope, settings):
        raise RequestError.of(4)


def cors_headers(scope: Mapping[str, Any], settings: Settings) -> list[tuple[bytes, bytes]]:
    """The response headers that let a page of an allowed origin read the answer; such a page alone."""
    if settings.allowed_origins == "*":
        return [(b"access-control-allow-origin", b"*")]
    headers = [(b"vary", b"Origin")]
    origins = header_values(scope, b"origin")
    if origins and _may_pass(scope, settings):
        headers.append((b"access-control-allow-origin", origins[0]))
        if settings.credentials:
            headers.append((b"access-control-allow-credentials", b"true"))
    return headers


def preflight_headers(scope: Mapping[str, Any]) -> list[tuple[bytes, bytes]] | None:
    """The response headers, beside those of :func:`cors_headers`, for a browser that asks what a page may send.

    :return: ``None`` if the request is no such question.
    """
    if scope["method"] != "OPTIONS" or not header_values(scope, b"access-control-request-method"):
        return None
    headers = [
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-max-age", str(PREFLIGHT_MAX_AGE).encode()),
        (b"vary", b"Access-Control-Request-Headers"),
    ]
    asked = header_values(scope, b"access-control-request-headers")
    if asked:
        headers.append((b"access-control-allow-headers", b", ".join(asked)))
    return headers


def parse_cookies(values: Iterable[str]) -> dict[str, str]:
    """The cookies of ``Cookie`` headers, as they were sent, but without the quotes around a value.

    What is malformed is left out. Of several cookies of one name the first counts.
    """
    cookies: dict[str, str] = {}
    for pair in (each for value in values for each in value.split(";")):
        name, equals, content = pair.partition("=")
        name, content = name.strip(" \t"), content.strip(" \t")
        if not equals or not TOKEN.fullmatch(name) or not content.replace("\t", "").isprintable():
            continue
        if len(content) > 1 and content[0] == content[-1] == '"':
            content = content[1:-1]
        cookies.setdefault(name, content)
    return cookies


def choose_subprotocol(scope: Mapping[str, Any], settings: Settings) -> str | None:
    """The first of the subprotocols that a WebSocket's client offers that is among our own, if there is one."""
    return next((each for each in scope.get("subprotocols") or () if each in settings.subprotocols), None)


def session_cookie(name: str, sid: str) -> tuple[bytes, bytes]:
    """The header that sets a cookie with a session's id."""
    return b"set-cookie", f"{name}={sid}; Path=/; HttpOnly; SameSite=Lax".encode()


def _sole(values: list[str] | None) -> str:
    return values[0] if values is not None and len(values) == 1 else ""


def header_values(scope: Mapping[str, Any], name: bytes) -> list[bytes]:
    """All values that a request has for a header.

    :param name: in lower case.
    """
    return [value for key, value in scope["headers"] if key.lower() == name]


def _may_pass(scope: Mapping[str, Any], settings: Settings) -> bool:
    origins = header_values(scope, b"origin")
    if not origins or settings.allowed_origins == "*":
        return True
    if len(origins) > 1:
        return False
    scheme, authority = _split_origin(origins[0].decode("latin-1"))
    if any((scheme, authority) == _split_origin(allowed) for allowed in settings.allowed_origins):
        return True
    hosts = header_values(scope, b"host")
    if len(hosts) != 1 or not authority or scheme not in _DEFAULT_PORTS:
        return False
    # Host has no port where the page's scheme implies it; behind a proxy that ends TLS only Origin knows the scheme
    return authority == hosts[0].decode("latin-1").lower().removesuffix(_DEFAULT_PORTS[scheme])


def _split_origin(origin: str) -> tuple[str, str]:
    """An origin's scheme and authority, without a default port. ``null`` has no authority."""
    scheme, _, authority = origin.lower().removesuffix("/").partition("://")
    return scheme, authority.removesuffix(_DEFAULT_PORTS.get(scheme, "/"))
