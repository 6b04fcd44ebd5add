"""The request by which a client opened its session, as the ``authorize`` hook and the connections see it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import httpx

from .protocol.handshake import choose_subprotocol, parse_cookies
from .settings import TOKEN, Settings
from .transport import Scope

_HEADER_VALUE = re.compile(r"[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?|")
_COOKIE_VALUE = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")
_COOKIE_ATTRIBUTE = re.compile(r"[\x20-\x3a\x3c-\x7e]+")
#: headers that belong to the answer itself, or to a setting
_RESERVED = re.compile(
    r"connection|content-(?:encoding|length|type)|keep-alive|te|trailer|transfer-encoding|upgrade"
    r"|sec-websocket-.*|access-control-.*"
)


class Request:
    """The request that opened a session: a WebSocket's handshake, or the first GET of HTTP long-polling.

    All connections of a session have the same one, and the ``authorize`` hook has had it before them. It stays that of
    the handshake when the session moves on to a WebSocket.

    :ivar subprotocol: the WebSocket subprotocol that was chosen: the first of the client's that is among the
        ``subprotocols`` setting; else ``None``.
    :ivar scope: the ASGI scope of the request, not to be changed.
    """

    __slots__ = ("_added", "_answered", "_cookies", "_headers", "_query", "_state", "scope", "subprotocol")

    def __init__(self, scope: Scope, subprotocol: str | None = None) -> None:
        self.scope: Scope = scope
        self.subprotocol: str | None = subprotocol
        # most are never asked for, and an idle connection keeps its request
        self._headers: httpx.Headers | None = None
        self._cookies: Mapping[str, str] | None = None
        self._query: httpx.QueryParams | None = None
        self._state: dict[str, Any] | None = None
        self._added: Sequence[tuple[bytes, bytes]] = ()
        self._answered = False

    @property
    def headers(self) -> httpx.Headers:
        """The request's headers."""
        if self._headers is None:
            self._headers = httpx.Headers(list(self.scope["headers"]))
        return self._headers

    @property
    def cookies(self) -> Mapping[str, str]:
        """The request's cookies by their names, as they were sent; malformed ones are left out, and of several with one
        name, the first counts, as it has the closest path."""
        if self._cookies is None:
            self._cookies = parse_cookies(self.headers.get_list("cookie"))
        return self._cookies

    @property
    def query(self) -> httpx.QueryParams:
        """The query, Engine.IO's own parameters (``EIO``, ``transport``) included."""
        if self._query is None:
            self._query = httpx.QueryParams(self.scope.get("query_string", b"").decode(errors="replace"))
        return self._query

    @property
    def client(self) -> tuple[str, int] | None:
        """The client's address and port: a proxy's, unless the ASGI server was told to trust that; ``None`` where there
        is none, as on a UNIX socket."""
        client = self.scope.get("client")
        return None if client is None else (str(client[0]), int(client[1] or 0))

    @property
    def path(self) -> str:
        """The path that was asked for, decoded."""
        path: str = self.scope["path"]
        return path

    @property
    def state(self) -> dict[str, Any]:
        """For whatever the ``authorize`` hook has to tell to the channels."""
        if self._state is None:
            self._state = {}
        return self._state

    def __repr__(self) -> str:
        # the rest may be secret
        return f"<Request {self.path} from {self.client}>"

    @property
    def response_headers(self) -> httpx.Headers:
        """A copy of the headers that have been added to the answer."""
        return httpx.Headers(list(self._added))

    def add_header(self, name: str, value: str) -> None:
        """Add a header to the answer to the handshake, be it an acceptance or a refusal. For the ``authorize`` hook.

        A name may be added several times. What a client makes of it is up to its road: browsers do not show the headers
        of a WebSocket's handshake to the page, but do take its cookies.

        :raises ValueError: the name or the value cannot be sent (a value is one line of Latin-1), or the header belongs
            to the answer itself or to the CORS settings.
        :raises RuntimeError: the handshake has been answered.
        """
        if not TOKEN.fullmatch(name):
            raise ValueError(f"no header can have the name {name!r}")
        if _RESERVED.fullmatch(name.lower()):
            raise ValueError(f"the header {name} is not for the authorize hook to set")
        if not _HEADER_VALUE.fullmatch(value):
            raise ValueError(f"the header {name} cannot have the value {value!r}")
        if self._answered:
            raise RuntimeError("the handshake has been answered: headers are for the authorize hook to add")
        self._added = (*self._added, (name.lower().encode(), value.encode("latin-1")))

    def set_cookie(
        self,
        name: str,
        value: str,
        *,
        max_age: int | None = None,
        path: str = "/",
        domain: str | None = None,
        secure: bool = False,
        httponly: bool = True,
        samesite: Literal["lax", "strict", "none"] = "lax",
    ) -> None:
        """Add a cookie to the answer to the handshake. For the ``authorize`` hook.

        :param value: printable ASCII without spaces, quotes, commas, semicolons and backslashes: anything else has to
            be encoded, for instance by :func:`urllib.parse.quote`.
        :param max_age: seconds; without it, the cookie lasts until the browser is closed.
        :param samesite: ``"none"``, for pages of other sites, needs ``secure``, and the ``credentials`` setting.
        :raises ValueError: a part of the cookie cannot be sent.
        :raises RuntimeError: the handshake has been answered.
        """
        if not TOKEN.fullmatch(name):
            raise ValueError(f"no cookie can have the name {name!r}")
        if not _COOKIE_VALUE.fullmatch(value):
            raise ValueError(f"the cookie {name} cannot have the value {value!r}")
        for attribute in (path, domain):
            if attribute is not None and not _COOKIE_ATTRIBUTE.fullmatch(attribute):
                raise ValueError(f"the cookie {name} cannot have the path or domain {attribute!r}")
        if samesite not in ("lax", "strict", "none"):
            raise ValueError(f"samesite is lax, strict or none, not {samesite!r}")
        if samesite == "none" and not secure:
            raise ValueError('a cookie with samesite="none" needs secure=True')
        parts = [f"{name}={value}", f"Path={path}"]
        if domain is not None:
            parts.append(f"Domain={domain}")
        if max_age is not None:
            parts.append(f"Max-Age={int(max_age)}")
        if secure:
            parts.append("Secure")
        if httponly:
            parts.append("HttpOnly")
        self.add_header("Set-Cookie", "; ".join([*parts, f"SameSite={samesite.capitalize()}"]))


def read_request(scope: Scope, settings: Settings) -> Request:
    """The request that a scope describes. Whatever is malformed in it is left out."""
    return Request(scope, choose_subprotocol(scope, settings))


def answer_headers(request: Request) -> list[tuple[bytes, bytes]]:
    """What has been added to the answer, which goes out now: nothing can be added any more."""
    request._answered = True
    return [*request._added]
