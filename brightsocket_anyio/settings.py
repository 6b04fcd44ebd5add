"""The settings of a server or a client, under Socket.IO's names, times in seconds and sizes in bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict, get_args

from .errors import ConfigurationError

#: what HTTP calls a token: the name of a header, a cookie or a subprotocol
TOKEN: re.Pattern[str] = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")

SlowConsumer = Literal["disconnect", "drop-oldest", "drop-newest", "latest-per-action"]


class SettingKeywords(TypedDict, total=False):
    """The keywords of :class:`Settings`."""

    path: str
    ping_interval: float
    ping_timeout: float
    connect_timeout: float
    identify_timeout: float
    upgrade_timeout: float
    stall_timeout: float | None
    close_timeout: float
    grace: float
    tls_timeout: float
    head_timeout: float
    body_timeout: float
    min_body_rate: float
    keep_alive_timeout: float
    max_payload: int
    max_attachments: int
    max_packets: int
    max_fragments: int
    max_namespaces: int
    max_head_size: int
    max_buffered_messages: int
    max_buffered_bytes: int
    max_calls: int
    allowed_origins: Literal["*"] | Sequence[str]
    credentials: bool
    subprotocols: Sequence[str]
    cookie: str | None
    slow_consumer: SlowConsumer
    compression: bool
    max_connections: int
    max_connections_per_address: int | None
    action_rate: float | None
    action_burst: int
    reconnection: bool
    reconnection_attempts: int | None
    reconnection_delay: float
    reconnection_delay_max: float
    while_away: Literal["wait", "fail"]
    max_disconnection_duration: float | None
    max_disconnected: int
    max_missed_messages: int
    max_missed_bytes: int


class ChannelKeywords(TypedDict, total=False):
    """The settings that a channel can differ in; a channel has those of its bases, the later ones counting."""

    grace: float
    max_buffered_messages: int
    max_buffered_bytes: int
    max_calls: int
    slow_consumer: SlowConsumer


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What :class:`~brightsocket_anyio.Brightsocket` and :func:`~brightsocket_anyio.open_client` take as keywords.

    :raises ConfigurationError: from the constructor, for a value that cannot work.
    """

    path: str = "/socket.io/"
    #: seconds between two heartbeats
    ping_interval: float = 25
    #: seconds that an answer to a heartbeat may take
    ping_timeout: float = 20
    #: seconds that a session may be without a namespace, at its start and later
    connect_timeout: float = 45
    #: seconds from a namespace's CONNECT to IDENTIFY, and from naming a channel to its acceptance
    identify_timeout: float = 20
    #: seconds that an upgrade to WebSocket may take
    upgrade_timeout: float = 10
    #: seconds without progress in either direction after which a session has stalled; default ping_interval +
    #: ping_timeout
    stall_timeout: float | None = None
    #: seconds that an orderly end may take: flushing what was sent, the peer's closing handshake
    close_timeout: float = 5
    #: seconds that a connection's tasks get, their streams ended, before they are cancelled
    grace: float = 0
    #: seconds that a TLS handshake may take, where the embedded server makes the listener
    tls_timeout: float = 20
    #: seconds from a request's first byte to the end of its headers, and those that a new connection may be silent, at
    #: the embedded server
    head_timeout: float = 20
    #: seconds that a request's body may keep us waiting, and the bytes per second that make up for it: without such a
    #: rate, a byte now and then would hold a connection for ever
    body_timeout: float = 20
    min_body_rate: float = 500
    #: seconds that a connection to the embedded server may be idle between two requests; more than the minute that
    #: proxies keep theirs
    keep_alive_timeout: float = 75
    #: bytes of one message, or of one polling request's body
    max_payload: int = 1_000_000
    #: binary attachments of one message
    max_attachments: int = 10
    #: packets of one polling request's body: stock clients put all that they have emitted meanwhile into one. A client
    #: takes ten times as many in an answer, since servers do the same.
    max_packets: int = 10_000
    #: fragments of one WebSocket message, 16 of which may be empty; the default carries the default max_payload in
    #: pieces of 244 bytes. An ASGI server and trio-websocket have limits of their own.
    max_fragments: int = 4096
    #: namespaces that a session may ever ask for, each of which is remembered
    max_namespaces: int = 100
    #: bytes of a request's line and headers, at the embedded server; the default is twice what Apache takes in one
    #: header, for large cookies
    max_head_size: int = 32_768
    #: messages, and bytes, that each buffer holds: a receiver's, the inbox, a session's outgoing one
    max_buffered_messages: int = 256
    max_buffered_bytes: int = 1_000_000
    #: calls that may wait for an answer at the same time, per connection; further ones wait for their turn
    max_calls: int = 1024
    #: origins that a browser's page may come from, besides the server's own host; ``"*"`` for any
    allowed_origins: Literal["*"] | Sequence[str] = ()
    #: whether pages of other origins may send cookies
    credentials: bool = False
    #: WebSocket subprotocols: those that a client offers; of the client's, a server chooses the first that is among its
    #: own, and none if there is no such
    subprotocols: Sequence[str] = ()
    #: name of a cookie with the session's id (path ``/``, HttpOnly, SameSite=Lax) on the answer to each handshake, for
    #: balancers that keep a session at one server by it; ``None`` for no cookie
    cookie: str | None = None
    #: what :meth:`Pool.emit` does with a client whose buffer is full
    slow_consumer: SlowConsumer = "disconnect"
    #: permessage-deflate on WebSockets whose peer wants it too, for messages from 1 KB on, at about 50 KB more per
    #: connection. It is the embedded server's and the client's: an ASGI server decides for itself, and trio-websocket
    #: has none.
    compression: bool = False
    #: the embedded server's open TCP connections; further ones wait to be accepted
    max_connections: int = 100_000
    #: those of one client's address, ``None`` for any number; further ones are closed at once. Behind a proxy, all
    #: clients have the proxy's address.
    max_connections_per_address: int | None = None
    #: actions per second that a session may send to a server in the long run, ``None`` for any number, and at once; one
    #: that sends more is ended, with the close code 1008
    action_rate: float | None = None
    action_burst: int = 100
    #: whether a client comes back to its channel by itself when its session is lost
    reconnection: bool = True
    #: attempts in a row to come back, ``None`` for any number; a client that has stayed for reconnection_delay_max has
    #: come back
    reconnection_attempts: int | None = None
    #: seconds before an attempt to come back: a random number up to this one, which doubles with each attempt in a row,
    #: up to the maximum
    reconnection_delay: float = 1
    reconnection_delay_max: float = 5
    #: whether what a client sends while it is away waits, within the bounds of a buffer, or fails
    while_away: Literal["wait", "fail"] = "wait"
    #: seconds in which a client whose session was lost may come back to its connection's id and rooms, and to what it
    #: has missed (Socket.IO's connection state recovery); ``None`` for never
    max_disconnection_duration: float | None = None
    #: connections that wait for their clients in this way; the one that was lost first goes first
    max_disconnected: int = 10_000
    #: messages, and bytes, that are kept for one client, connected or not, should it miss them; one that has missed
    #: more cannot recover
    max_missed_messages: int = 1000
    max_missed_bytes: int = 1_000_000
    _stall_timeout: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in (
            "ping_interval",
            "ping_timeout",
            "connect_timeout",
            "identify_timeout",
            "upgrade_timeout",
            "close_timeout",
            "tls_timeout",
            "head_timeout",
            "body_timeout",
            "min_body_rate",
            "keep_alive_timeout",
            "max_payload",
            "max_packets",
            "max_fragments",
            "max_namespaces",
            "max_head_size",
            "max_buffered_messages",
            "max_buffered_bytes",
            "max_calls",
            "max_connections",
            "action_burst",
            "reconnection_delay",
            "reconnection_delay_max",
            "max_disconnected",
            "max_missed_messages",
            "max_missed_bytes",
        ):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"{name} must be greater than 0, not {getattr(self, name)!r}")
        if self.stall_timeout is not None and not self.stall_timeout > 0:
            raise ConfigurationError(f"stall_timeout must be greater than 0, not {self.stall_timeout!r}")
        for name in ("grace", "max_attachments"):
            if not getattr(self, name) >= 0:
                raise ConfigurationError(f"{name} must not be negative: {getattr(self, name)!r}")
        if not (self.path.startswith("/") and self.path.endswith("/")):
            raise ConfigurationError(f"path must begin and end with a slash, not {self.path!r}")
        if isinstance(self.allowed_origins, str) and self.allowed_origins != "*":
            raise ConfigurationError('allowed_origins is "*" or a sequence of origins, not one string')
        if self.allowed_origins == "*" and self.credentials:
            raise ConfigurationError(
                'allowed_origins="*" together with credentials would hand every site the user\'s cookies'
            )
        if isinstance(self.subprotocols, str):
            raise ConfigurationError(f"subprotocols is a sequence of names, not one string: {self.subprotocols!r}")
        for name in (*self.subprotocols, *(() if self.cookie is None else (self.cookie,))):
            if not TOKEN.fullmatch(name):
                raise ConfigurationError(f"no subprotocol or cookie can have the name {name!r}")
        if len(set(self.subprotocols)) < len(self.subprotocols):
            raise ConfigurationError(f"a subprotocol is named twice: {self.subprotocols!r}")
        if self.slow_consumer not in get_args(SlowConsumer):
            raise ConfigurationError(f"slow_consumer is no policy: {self.slow_consumer!r}")
        for name in (
            "max_connections_per_address",
            "action_rate",
            "reconnection_attempts",
            "max_disconnection_duration",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigurationError(f"{name} must be greater than 0, or None, not {value!r}")
        if self.while_away not in ("wait", "fail"):
            raise ConfigurationError(f'while_away is "wait" or "fail", not {self.while_away!r}')
        stall = self.stall_timeout
        object.__setattr__(self, "_stall_timeout", self.ping_interval + self.ping_timeout if stall is None else stall)

    @property
    def stall(self) -> float:
        """The stall timeout in force, in seconds."""
        return self._stall_timeout
