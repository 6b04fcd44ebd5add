"""The client's side of HTTP long-polling, through an ``httpx.AsyncClient``.

Proxies, TLS, authentication and headers are those of the user's client. Its timeouts hold for the first request only,
and for the opening of connections; what a poll may take is for the session's heartbeat to say.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import json
import re
import secrets
from collections.abc import AsyncIterator, Generator, Sequence
from typing import Literal

import anyio
import httpx
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from ..errors import ConnectionLost, HandshakeError, ProtocolError, fresh
from ..protocol.engineio import (
    BINARY,
    Open,
    Packet,
    PacketType,
    decode_payload,
    encode_payload,
    length_of,
)
from ..settings import Settings
from .httpx_stream import excerpt_of, locate, reason_of, send_request

#: An answer may have as many times ``max_packets``: servers put all that they have sent meanwhile into one.
ANSWER_PACKETS_FACTOR = 10
#: packets that we put into one POST
POST_PACKETS = 1000
#: An answer may be longer than ``max_payload`` by this factor, and by 2 more for each attachment that a message may
#: have: it may hold several messages, and base64 makes bytes longer. What it may not hold is a longer message.
ANSWER_FACTOR = 4

#: seconds that a GET may last after the server has taken the CLOSE, upon which servers end it; python-socketio's do not
_GOODBYE = 0.25
_CLOSE = (Packet(PacketType.CLOSE),)
#: how the open packet of an Engine.IO 3 server begins, where polling is not answered in Engine.IO 4
_OPEN_OF_EIO_3 = re.compile(rb"[0-9]+:0\{")


async def connect_polling(
    http: httpx.AsyncClient,
    url: httpx.URL | str,
    *,
    eio: Literal[3, 4],
    settings: Settings,
    task_group: TaskGroup,
) -> HttpxPollingTransport:
    """Open a session by polling. What the server has answered, the open packet first, is there to be received.

    Cancelled, it leaves no request behind.

    :param http: makes the requests; it stays open, and must do so for as long as the transport.
    :param url: with the scheme ``http`` or ``https``, and with all that the query has but ``transport``, ``sid`` and
        ``t``.
    :param settings: for ``max_payload``, ``max_packets``, ``stall_timeout`` and ``close_timeout``.
    :param task_group: where the transport's GETs run, one at a time; :meth:`HttpxPollingTransport.aclose` ends them.
    :raises HandshakeError: there was no answer, or one that is not an Engine.IO server's.
    """
    requests = _Requests(http, httpx.URL(url).copy_set_param("transport", "polling"), settings)
    try:
        content_type, body = await requests.send("GET", http.timeout)
    except _Failure as exc:
        raise HandshakeError(str(exc), exc.status) from exc
    try:
        packets = _decode(content_type, body, eio, settings)
        opened = Open.from_packet(packets[0])
    except ProtocolError as exc:
        if eio == 4 and _OPEN_OF_EIO_3.match(body):
            raise HandshakeError(f"{requests.where} is a server of Socket.IO 1 or 2, which needs eio=3", 200) from exc
        answer = f"{requests.where} answered with {content_type or 'something'}{excerpt_of(body)}"
        raise HandshakeError(f"{answer}, which is no Engine.IO handshake: {exc}", 200) from exc
    requests.name(opened.sid)
    return HttpxPollingTransport(requests, eio, settings, opened, packets, task_group)


class _Failure(Exception):
    """A request had no answer, or one that is an error."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class _TooLong(_Failure):
    """An answer was longer than any that the settings allow."""


class _Requests:
    """What the requests of one session have in common, and what each of them has of its own.

    :ivar where: the server without what may be secret, for messages.
    :ivar cookies: what the server has set in this session. The user's client has them too, but may be shared with
        other sessions, each of which has to find its own server again.
    """

    def __init__(self, http: httpx.AsyncClient, url: httpx.URL, settings: Settings) -> None:
        self._http = http
        self._url = url
        self._max_size = (ANSWER_FACTOR + 2 * settings.max_attachments) * settings.max_payload
        # caches must not answer; the same mark again is what they would look for
        self._marks = (f"{secrets.token_hex(4)}.{count:x}" for count in itertools.count())
        self.where: str = locate(url)
        self.cookies: httpx.Cookies = httpx.Cookies()
        self.polling_timeout: httpx.Timeout = httpx.Timeout(None, connect=http.timeout.connect, pool=http.timeout.pool)

    def name(self, sid: str) -> None:
        """From now on the requests are this session's."""
        self._url = self._url.copy_set_param("sid", sid)

    async def send(
        self,
        method: Literal["GET", "POST"],
        timeout: httpx.Timeout,
        content_type: str = "",
        content: bytes | None = None,
    ) -> tuple[str, bytes]:
        """Send a request and read its answer: the content type and the body. Cancelled, it leaves nothing behind.

        :raises _Failure: there was none, or none with the status 200.
        """
        # what is compressed could be longer than it looks
        headers = {"accept": "*/*", "accept-encoding": "identity"}
        if content is not None:
            headers["content-type"] = content_type
        request = self._http.build_request(
            method,
            self._url.copy_set_param("t", next(self._marks)),
            headers=headers,
            content=content,
            cookies=self.cookies,
            timeout=timeout,
        )
        if content is not None:
            request.stream = _Body(content)
        try:
            response = await send_request(self._http, request, follow_redirects=False)
            try:
                body = await self._read(response)
            finally:
                with anyio.CancelScope(shield=True):
                    await response.aclose()
        except httpx.HTTPStatusError as exc:  # a hook of the user's client
            raise _Failure(f"{self.where}: {exc}", exc.response.status_code) from exc
        except httpx.HTTPError as exc:
            raise _Failure(f"cannot reach {self.where}: {reason_of(exc)}") from exc
        self.cookies.extract_cookies(response)
        if response.status_code != 200:
            raise _Failure(_describe(self.where, response, body), response.status_code)
        return response.headers.get("content-type", ""), body

    async def _read(self, response: httpx.Response) -> bytes:
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise _Failure(f"{self.where} has compressed its answer, unasked", response.status_code)
        body = bytearray()
        # what ends too long an answer is a cancellation, since httpx's generators must not be left halfway
        with anyio.CancelScope() as scope:
            async for chunk in response.aiter_raw():
                if len(body) + len(chunk) > self._max_size:
                    scope.cancel()
                else:
                    body += chunk
        if scope.cancel_called:
            raise _TooLong(f"{self.where} has sent more than {self._max_size} bytes", response.status_code)
        return bytes(body)


class _Body(httpx.AsyncByteStream):
    """A request's body in one piece. httpx's own is an asynchronous generator, which a request that is cancelled leaves
    halfway: Trio warns of that."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Pieces([self._content])


class _Pieces:
    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._pieces:
            raise StopAsyncIteration
        return self._pieces.pop()


def _describe(where: str, response: httpx.Response, body: bytes) -> str:
    answer = f"{where} answered {response.status_code} {response.reason_phrase}".rstrip()
    if response.has_redirect_location:
        return f"{answer}, a redirection to {locate(response.url.join(response.headers['location']))}"
    try:
        message = json.loads(body)["message"]
    except (ValueError, LookupError, TypeError):
        return answer + excerpt_of(body)
    return f"{answer}: {message}"


def _decode(content_type: str, body: bytes, eio: Literal[3, 4], settings: Settings) -> list[Packet]:
    binary = content_type.partition(";")[0].strip().lower() == BINARY
    packets = decode_payload(body, eio, binary=binary, max_packets=ANSWER_PACKETS_FACTOR * settings.max_packets)
    if any(packet.size > settings.max_payload + 1 for packet in packets):
        raise ProtocolError("message too big")
    return packets


class _State(enum.Enum):
    """Whether requests may begin."""

    OPEN = enum.auto()
    #: the session is changing to another road: none begins
    PAUSED = enum.auto()
    CLOSED = enum.auto()


class HttpxPollingTransport:
    """The :class:`~brightsocket_anyio.transport.Transport` over GETs and POSTs that this side makes.

    One GET at a time is under way, in a task of its own, so that a ``receive`` that is cancelled loses nothing; it is
    begun by ``receive``, so that who does not receive holds the server back. POSTs are made by ``send``, one after the
    other.

    Made by :func:`connect_polling`.
    """

    def __init__(
        self,
        requests: _Requests,
        eio: Literal[3, 4],
        settings: Settings,
        opened: Open,
        received: list[Packet],
        task_group: TaskGroup,
    ) -> None:
        self._requests = requests
        self._eio = eio
        self._settings = settings
        self._max_payload = min(opened.max_payload or settings.max_payload, settings.max_payload)
        self._received = received
        self._task_group = task_group
        self._state = _State.OPEN
        self._get: anyio.CancelScope | None = None
        self._posting = False
        self._post_scope = anyio.CancelScope()
        #: what made it useless, if anything did
        self._end: ConnectionLost | ProtocolError | None = None
        self._changed = anyio.Event()

    @property
    def name(self) -> Literal["polling"]:
        return "polling"

    @property
    def cookies(self) -> httpx.Cookies:
        """What the server has set in this session: an upgrade's request needs it, too."""
        return self._requests.cookies

    # -- sending

    async def send(self, packets: Sequence[Packet]) -> None:
        """Send a batch of packets, by as many POSTs as the server's ``maxPayload`` asks for.

        Cancelled while it waits it has sent nothing; later, a POST has been cut off, and the transport is good for
        :meth:`aclose` only.

        :raises anyio.ClosedResourceError: this side has closed the transport.
        :raises ConnectionLost: the peer is gone or has ended the session, or does not answer a POST within the stall
            timeout (code ``"stalled"``).
        """
        await checkpoint_if_cancelled()
        while self._state is _State.PAUSED or self._posting:
            self._check_usable()
            await self._changed.wait()
        self._check_usable()
        self._posting = True
        try:
            for batch in self._batches(packets):
                self._check_usable()
                await self._post(batch)
        finally:
            self._posting = False
            self._change()

    async def _post(self, packets: Sequence[Packet]) -> None:
        content_type, content = encode_payload(packets, self._eio, base64=False)
        stall = self._settings.stall
        answered = False
        try:
            with anyio.move_on_after(stall) as self._post_scope:
                await self._requests.send("POST", self._requests.polling_timeout, content_type, content)
                answered = True
        except _Failure as exc:
            raise self._lose("transport error", str(exc)) from exc
        except anyio.get_cancelled_exc_class():
            self._lose("transport error", "a POST was cut off")
            raise
        if not answered:
            if self._state is _State.CLOSED:
                raise anyio.ClosedResourceError
            raise self._lose("stalled", f"a POST was not answered within {stall:g} seconds")

    def _batches(self, packets: Sequence[Packet]) -> Generator[Sequence[Packet]]:
        batch: list[Packet] = []
        size = 0
        for packet in packets:
            # with the separator
            length = length_of(packet, self._eio, polling=True) + 1
            if batch and (size + length > self._max_payload or len(batch) == POST_PACKETS):
                yield batch
                batch, size = [], 0
            batch.append(packet)
            size += length
        if batch:
            yield batch

    # -- receiving

    async def receive(self) -> list[Packet]:
        """Wait for the next packets: those of one GET. Safe to cancel: nothing is lost.

        :raises anyio.ClosedResourceError: this side has closed the transport.
        :raises ConnectionLost: the peer is gone or has ended the session.
        :raises ProtocolError: the peer sent something invalid.
        """
        while self._state is _State.CLOSED or not self._received:
            self._check_usable()
            if self._get is None and self._state is _State.OPEN:
                self._get = anyio.CancelScope()
                self._task_group.start_soon(self._poll, self._get, name="long poll")
            await self._changed.wait()
        return self._take()

    def _take(self) -> list[Packet]:
        received, self._received = self._received, []
        return received

    async def _poll(self, scope: anyio.CancelScope) -> None:
        try:
            with scope:
                content_type, body = await self._requests.send("GET", self._requests.polling_timeout)
                self._received = _decode(content_type, body, self._eio, self._settings)
        except (ProtocolError, _TooLong) as exc:
            self._end = ProtocolError(str(exc))
        except _Failure as exc:
            self._lose("transport error", str(exc))
        finally:
            self._get = None
            self._change()

    # -- leaving it for another road

    async def pause(self) -> list[Packet]:
        """Begin no request, and wait until those under way are over; returns what has come and was not received.

        :raises ConnectionLost: the peer is gone or has ended the session.
        :raises ProtocolError: the peer sent something invalid.
        """
        self._state = _State.PAUSED
        while self._get is not None or self._posting:
            await self._changed.wait()
        self._check_usable()
        return self._take()

    def release(self) -> None:
        """Go on as before: the other road failed."""
        if self._state is _State.PAUSED:
            self._state = _State.OPEN
            self._change()

    def retire(self) -> None:
        """Be done, without a word to the server: the session has changed to the other road."""
        self._state = _State.CLOSED
        self._change()

    # -- the end

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close the session by a POST, upon which the server ends the GET, or else it is broken off. Idempotent.

        Waits for the close timeout at most; cancelled, it breaks off the GET at once.

        :param code: polling has no place for it.
        :param reason: nor for this.
        """
        if self._state is _State.CLOSED:
            await checkpoint()
            return
        self._state = _State.CLOSED
        left = any(packet.type is PacketType.CLOSE for packet in self._received)
        self._change()
        try:
            if left or isinstance(self._end, ConnectionLost):
                await checkpoint()
            else:
                with anyio.move_on_after(self._settings.close_timeout):
                    await self._say_goodbye()
        finally:
            if self._get is not None:
                self._get.cancel()
            self._post_scope.cancel()
            with anyio.CancelScope(shield=True):
                while self._get is not None:
                    await self._changed.wait()

    async def _say_goodbye(self) -> None:
        while self._posting:
            await self._changed.wait()
        with contextlib.suppress(ConnectionLost, anyio.ClosedResourceError):
            await self._post(_CLOSE)
        with anyio.move_on_after(_GOODBYE):
            while self._get is not None:
                await self._changed.wait()

    # -- inside

    def _check_usable(self) -> None:
        if self._state is _State.CLOSED:
            raise anyio.ClosedResourceError
        if self._end is not None:
            raise fresh(self._end)

    def _lose(self, code: str, reason: str) -> ConnectionLost:
        """A request has failed, and packets may be missing: the session has to end."""
        lost = ConnectionLost(code, reason)
        if not isinstance(self._end, ConnectionLost):
            self._end = fresh(lost)
        self._change()
        return lost

    def _change(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
