"""The WebSocket handshake through an ``httpx.AsyncClient``, and the byte stream that is left of it.

Proxies, TLS, cookies, authentication and headers are those of the user's client; its timeouts hold for the
handshake only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import anyio
import anyio.abc
import httpcore
import httpx
from websockets.client import ClientProtocol
from websockets.datastructures import Headers
from websockets.exceptions import InvalidHandshake
from websockets.extensions.permessage_deflate import enable_client_permessage_deflate
from websockets.http11 import Response
from websockets.protocol import Side
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from ..errors import HandshakeError
from ..settings import Settings
from .core import Core
from .websocket import WebSocket

#: the longest answer that a :exc:`HandshakeError` quotes, in bytes, and how much of it, in characters
_BODY_SIZE = 65_536
_EXCERPT_SIZE = 200

_NEEDS_HTTP_1 = "a WebSocket needs HTTP/1.1, and this httpx client speaks HTTP/2 with the server: give it http2=False"


async def connect_websocket(
    http: httpx.AsyncClient,
    url: httpx.URL | str,
    *,
    settings: Settings,
    headers: Mapping[str, str] | None = None,
    cookies: httpx.Cookies | None = None,
) -> WebSocket:
    """Open a WebSocket. It occupies one connection of the client's pool until it is closed.

    Cancelled, it leaves nothing open.

    :param http: makes the request; it stays open, and must do so for as long as the WebSocket.
    :param url: with the scheme ``http``, ``https``, ``ws`` or ``wss``.
    :param headers: further ones, beside the client's own.
    :param cookies: the same.
    :raises httpx.InvalidURL: the URL is none.
    :raises HandshakeError: there was no answer, or one that is no WebSocket's.
    """
    url = httpx.URL(url)
    url = url.copy_with(scheme={"ws": "http", "wss": "https"}.get(url.scheme, url.scheme))
    where = locate(url)
    handshake = ClientProtocol(
        # the request goes out by httpx: of this object, only the key and the negotiation count
        parse_uri("ws://localhost/"),
        extensions=enable_client_permessage_deflate(None) if settings.compression else None,
        subprotocols=[Subprotocol(name) for name in settings.subprotocols] or None,
    )
    wanted = {name: value for name, value in handshake.connect().headers.raw_items() if name.lower() != "host"}
    try:
        request = http.build_request("GET", url, headers={**(headers or {}), **wanted}, cookies=cookies)
        response = await send_request(http, request)
    except httpx.HTTPStatusError as exc:  # a hook of the user's client
        raise HandshakeError(f"{where}: {exc}", exc.response.status_code) from exc
    except httpx.LocalProtocolError as exc:
        # what HTTP/2 makes of the handshake's headers
        raise HandshakeError(f"{where}: {_NEEDS_HTTP_1} ({exc})") from exc
    except httpx.HTTPError as exc:
        raise HandshakeError(f"cannot connect to {where}: {reason_of(exc)}") from exc
    try:
        network = await _check(response, handshake, where)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await response.aclose()
        raise
    return WebSocket(HttpxStream(response, network), Core(Side.CLIENT, handshake.extensions, settings), settings)


def locate(url: httpx.URL) -> str:
    """A URL without what may be secret: a password, the query."""
    return f"{url.scheme}://{url.netloc.decode()}{url.path}"


async def send_request(http: httpx.AsyncClient, request: httpx.Request, **options: Any) -> httpx.Response:
    """Send a request; the body of its answer is yet to be read, and the answer to be closed.

    :raises httpx.HTTPError: there is none.
    """
    try:
        return await http.send(request, stream=True, **options)
    except AttributeError as exc:
        # what AnyIO's sockets raise on uvloop where the peer has closed one as it was opened
        if "getpeername" not in str(exc):
            raise
        raise httpx.ConnectError("the connection was closed as it was opened", request=request) from exc


def reason_of(exc: BaseException) -> str:
    """What went wrong, in the words of the first exception on the way down to the cause that has any."""
    below: BaseException | None = exc
    while isinstance(below, Exception) and not isinstance(below, TimeoutError | httpx.TimeoutException):
        if text := str(below):
            return text
        below = below.__cause__ or below.__context__
    return type(exc).__name__


async def _check(response: httpx.Response, handshake: ClientProtocol, where: str) -> httpcore.AsyncNetworkStream:
    """The stream below an answer that accepts the handshake."""
    status = response.status_code
    if response.extensions.get("http_version") == b"HTTP/2":
        raise HandshakeError(f"{where}: {_NEEDS_HTTP_1}", status)
    if status != 101:
        body = await _excerpt(response)
        raise HandshakeError(f"{where} answered {status} {response.reason_phrase}".rstrip() + body, status)
    answer = Response(status, response.reason_phrase, Headers(response.headers.multi_items()))
    try:
        handshake.process_response(answer)
    except InvalidHandshake as exc:
        raise HandshakeError(f"{where}: the answer is no WebSocket handshake: {exc}", status) from exc
    network = response.extensions.get("network_stream")
    if network is None:
        raise HandshakeError(f"{where}: this httpx client's transport gives no access to its network stream", status)
    return network  # type: ignore[no-any-return]


async def _excerpt(response: httpx.Response) -> str:
    length = response.headers.get("Content-Length", "")
    # what is read is read to its end: httpx's generators cannot be left halfway without a warning from Trio
    if not length.isdecimal() or int(length) > _BODY_SIZE or "Content-Encoding" in response.headers:
        return ""
    body = b""
    with contextlib.suppress(httpx.HTTPError):
        async for chunk in response.aiter_raw():
            body += chunk
    return excerpt_of(body)


def excerpt_of(body: bytes) -> str:
    """The beginning of an answer's body, as the tail of a message."""
    text = " ".join(body[:_BODY_SIZE].decode(errors="replace").split())
    return f": {text[:_EXCERPT_SIZE]}" if text else ""


class HttpxStream(anyio.abc.ByteStream):
    """The bytes that follow an answer with status 101; closing it closes the answer and frees the pool's connection."""

    def __init__(self, response: httpx.Response, network: httpcore.AsyncNetworkStream) -> None:
        self._response = response
        self._network = network

    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            data = await self._network.read(max_bytes, timeout=None)
        except (httpcore.NetworkError, httpcore.TimeoutException) as exc:
            raise self._translate(exc) from exc
        if not data:
            raise anyio.EndOfStream
        return data

    async def send(self, item: bytes) -> None:
        try:
            await self._network.write(item, timeout=None)
        except (httpcore.NetworkError, httpcore.TimeoutException) as exc:
            raise self._translate(exc) from exc

    def _translate(self, exc: Exception) -> Exception:
        return anyio.ClosedResourceError() if self._response.is_closed else anyio.BrokenResourceError(str(exc))

    async def send_eof(self) -> None:
        raise NotImplementedError("httpcore's network streams cannot be half-closed")

    async def aclose(self) -> None:
        await self._response.aclose()
