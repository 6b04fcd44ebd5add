"""``brightsocket.js``, the client for browsers, as the front door serves it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Final

from .transport import Scope, Send

#: the file's name, which follows the path of the API
NAME: Final = "brightsocket.js"


async def serve_module(scope: Scope, send: Send, cors: list[tuple[bytes, bytes]]) -> None:
    """Answer an HTTP request for the module.

    A browser keeps it, and asks whether it is still the newest: its URL stays the same over releases.

    :param cors: the headers that let pages of other origins load it.
    """
    body, tag = _load()
    headers = [(b"x-content-type-options", b"nosniff"), *cors]
    if scope["method"] not in ("GET", "HEAD"):
        status, body = 405, b"Method not allowed"
        headers += [(b"allow", b"GET, HEAD"), (b"content-type", b"text/plain; charset=utf-8")]
    else:
        status = 200
        headers += [(b"etag", tag), (b"cache-control", b"no-cache")]
        if _is_known(scope, tag):
            status, body = 304, b""
        else:
            headers.append((b"content-type", b"text/javascript; charset=utf-8"))
    if status != 304:
        headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


@cache
def _load() -> tuple[bytes, bytes]:
    """The module's text and its entity tag."""
    body = files(__package__).joinpath("static", NAME).read_bytes()
    return body, b'"' + hashlib.sha256(body).hexdigest()[:32].encode() + b'"'


def _is_known(scope: Mapping[str, Any], tag: bytes) -> bool:
    """Whether the client has the module of this tag already; proxies that compress make the tag a weak one."""
    known = [
        each.strip().removeprefix(b"W/")
        for name, value in scope["headers"]
        if name.lower() == b"if-none-match"
        for each in value.split(b",")
    ]
    return tag in known or b"*" in known
