"""A client's roads to its server: which it takes, in which order it tries them, and how it leaves polling."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Literal, get_args

import anyio
import httpx
import trio
from anyio.abc import TaskGroup

from .errors import ConfigurationError, ConnectionLost, HandshakeError, ProtocolError
from .protocol.engineio import Open, Packet
from .protocol.state import Opened
from .settings import Settings
from .transport import Transport
from .transports.httpx_polling import HttpxPollingTransport, connect_polling
from .transports.httpx_stream import connect_websocket
from .transports.stream import StreamTransport
from .transports.trio_websocket import open_trio_websocket

logger: logging.Logger = logging.getLogger("brightsocket_anyio")

RoadName = Literal["websocket", "polling", "trio-websocket"]

#: what httpx puts into its own requests and does not belong into a WebSocket's handshake
_HEADERS_OF_HTTPX = ("host", "accept", "accept-encoding", "connection")


def road_names(transport: RoadName | Sequence[RoadName]) -> tuple[RoadName, ...]:
    """The transports that a client may take.

    :raises ConfigurationError: there is none, or one that is unknown, repeated or impossible here.
    """
    names = (transport,) if isinstance(transport, str) else tuple(transport)
    for name in names:
        if name not in get_args(RoadName):
            raise ConfigurationError(f"no transport is called {name!r}: there are {', '.join(get_args(RoadName))}")
    if not names or len(set(names)) < len(names):
        raise ConfigurationError(f"transport is one name, or several different ones, not {transport!r}")
    if "trio-websocket" in names and not trio.lowlevel.in_trio_run():
        raise ConfigurationError('transport="trio-websocket" needs Trio; on asyncio, "websocket" does the same')
    return names


class Roads:
    """The ways of one client to its server.

    :param url: the server, without the path and the query of Engine.IO.
    :param task_group: where the tasks of transports run, each until the transport is closed.
    :raises ConfigurationError: the URL is none.
    """

    def __init__(
        self,
        url: str,
        http: httpx.AsyncClient,
        names: tuple[RoadName, ...],
        eio: Literal[3, 4],
        settings: Settings,
        ssl_context: ssl.SSLContext | None,
        task_group: TaskGroup,
    ) -> None:
        self._url = _engine_url(url, settings.path, eio)
        self._http = http
        self._names = names
        self._eio: Literal[3, 4] = eio
        self._settings = settings
        self._ssl_context = ssl_context
        self._task_group = task_group

    async def open(self) -> tuple[Transport, list[Packet]]:
        """Open a session by the first road on which that is possible: its transport, and what came on it, the open
        packet first.

        Cancelled, it leaves nothing open.

        :raises HandshakeError: there is no such road.
        """
        failures: list[tuple[RoadName, HandshakeError]] = []
        for name in self._names:
            if failures:
                logger.info("%s failed: %s; trying %s", *failures[-1], name)
            try:
                return await self._open(name)
            except HandshakeError as exc:
                failures.append((name, exc))
                if isinstance(exc.__cause__, httpx.ConnectError | httpx.ConnectTimeout):
                    break  # nothing is there, whatever one asks it for
        _, last = failures[-1]
        if len(failures) == 1:
            raise last
        raise HandshakeError("; ".join(f"{name}: {exc}" for name, exc in failures), last.status) from last

    def beyond(self, transport: Transport, opened: Opened) -> Callable[[], Awaitable[Transport]] | None:
        """What opens the road that a session is to move on to, if it is on polling and the server offers another."""
        if not isinstance(transport, HttpxPollingTransport) or "websocket" not in opened.upgrades:
            return None
        after = self._names[self._names.index("polling") + 1 :]
        return partial(self._websocket, after[0], opened.sid, transport.cookies) if after else None

    async def _open(self, name: RoadName) -> tuple[Transport, list[Packet]]:
        transport: Transport
        if name == "polling":
            transport = await connect_polling(
                self._http, self._url, eio=self._eio, settings=self._settings, task_group=self._task_group
            )
        else:
            transport = await self._websocket(name)
        patience = self._settings.connect_timeout
        try:
            with anyio.fail_after(patience):
                packets = await transport.receive()
            Open.from_packet(packets[0])
        except BaseException as exc:
            with anyio.CancelScope(shield=True) as closing:
                closing.cancel()
                await transport.aclose()
            if isinstance(exc, TimeoutError):
                raise HandshakeError(f"the server has not opened the session within {patience:g} seconds") from exc
            if isinstance(exc, ConnectionLost | ProtocolError | anyio.EndOfStream):
                raise HandshakeError(f"the server has not opened the session: {exc}") from exc
            raise
        return transport, packets

    async def _websocket(
        self, name: RoadName, sid: str | None = None, cookies: httpx.Cookies | None = None
    ) -> Transport:
        url = self._url.copy_set_param("transport", "websocket")
        if sid is not None:
            url = url.copy_set_param("sid", sid)
        if name == "websocket":
            websocket = await connect_websocket(self._http, url, settings=self._settings, cookies=cookies)
            return StreamTransport(websocket, self._eio)
        request = self._http.build_request("GET", url, cookies=cookies)
        for header in _HEADERS_OF_HTTPX:
            request.headers.pop(header, None)
        return await open_trio_websocket(
            request.url,
            headers=request.headers,
            eio=self._eio,
            settings=self._settings,
            ssl_context=self._ssl_context,
            task_group=self._task_group,
        )


def _engine_url(url: str, path: str, eio: int) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as exc:
        raise ConfigurationError(f"{url!r} is no URL: {exc}") from exc
    scheme = {"ws": "http", "wss": "https"}.get(parsed.scheme, parsed.scheme)
    if scheme not in ("http", "https") or not parsed.host:
        raise ConfigurationError(f"the URL of a server begins with http:// or https://, unlike {url!r}")
    return parsed.copy_with(
        scheme=scheme, path=parsed.path.rstrip("/") + path, params=parsed.params.set("EIO", str(eio))
    )
