"""HTTP long-polling: what an Engine.IO session sends goes out as answers to GETs, what it receives comes in as POSTs.

The requests belong to the front door: a GET's task holds :meth:`PollingTransport.poll`, a POST's task calls
:meth:`PollingTransport.post`. The transport only brings them together with the session's reader and writer.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import anyio
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from ..errors import ConnectionLost, ProtocolError, fresh
from ..protocol.engineio import Packet, PacketType, decode_payload, encode_payload
from ..protocol.handshake import RequestError
from ..settings import Settings

_NOOP = (Packet(PacketType.NOOP),)
_CLOSE = (Packet(PacketType.CLOSE),)


class _State(enum.Enum):
    """How a GET fares, and whether packets can be sent and posted."""

    #: a GET waits for packets
    OPEN = enum.auto()
    #: the peer is changing to another road: a GET ends at once with NOOP, sending waits
    HELD = enum.auto()
    #: the peer has said goodbye: a GET ends with NOOP, a POST is refused
    LEFT = enum.auto()
    #: a request was cut off, or came where it must not: packets may be missing, so the session has to end
    LOST = enum.auto()
    #: closed by us: a GET ends with CLOSE, if one comes in time
    CLOSING = enum.auto()
    CLOSED = enum.auto()
    #: the session has changed to another road
    RETIRED = enum.auto()


#: the error code of a GET or POST that comes in a state in which it must not
_REFUSALS = {_State.LEFT: 3, _State.LOST: 3, _State.RETIRED: 3, _State.CLOSING: 1, _State.CLOSED: 1}


class Poll:
    """One GET."""

    def __init__(self, eio: Literal[3, 4], base64: bool) -> None:
        self._eio = eio
        self._base64 = base64
        self._answered = anyio.Event()
        self._content: tuple[str, bytes] = ("", b"")
        self.packets: Sequence[Packet] | None = None

    async def wait(self) -> tuple[str, bytes]:
        """Wait for the answer: its content type and its body."""
        await self._answered.wait()
        return self._content

    def answer(self, packets: Sequence[Packet]) -> None:
        """Give the answer. Synchronous: from now on the packets are the GET's."""
        self._content = encode_payload(packets, self._eio, base64=self._base64)
        self.packets = packets
        self._answered.set()


@dataclass(slots=True, eq=False)
class _Post:
    packets: list[Packet]
    over: anyio.Event = field(default_factory=anyio.Event)
    taken: bool = False


class PollingTransport:
    """The :class:`~brightsocket_anyio.transport.Transport` over a client's GETs and POSTs.

    :param settings: for ``max_packets``, ``stall_timeout`` and ``close_timeout``.
    :param base64: the client cannot read binary payloads (Engine.IO 3 only).
    """

    __slots__ = (
        "__weakref__",
        "_base64",
        "_eio",
        "_error",
        "_farewell",
        "_finished",
        "_lost",
        "_pending",
        "_post",
        "_receive_changed",
        "_send_changed",
        "_settings",
        "_state",
    )

    def __init__(self, eio: Literal[3, 4], settings: Settings, *, base64: bool = False) -> None:
        self._eio = eio
        self._settings = settings
        self._base64 = base64
        self._state = _State.OPEN
        self._pending: Poll | None = None
        self._post: _Post | None = None
        self._lost = ConnectionLost("transport error")
        self._error: ProtocolError | None = None
        #: the writer waits for a GET, the reader for a POST, aclose for the farewell
        self._send_changed = anyio.Event()
        self._receive_changed = anyio.Event()
        self._farewell = anyio.Event()
        #: the session is over, or has changed its road
        self._finished = anyio.Event()

    @property
    def name(self) -> Literal["polling"]:
        return "polling"

    # -- for the session

    async def send(self, packets: Sequence[Packet]) -> None:
        await checkpoint_if_cancelled()
        while self._pending is None:
            self._check_usable()
            if self._state is _State.LEFT:
                # it has said goodbye, as the session is about to read: nobody hears this
                return
            self._send_changed = anyio.Event()
            patience = math.inf if self._state is _State.HELD else self._settings.stall
            with anyio.move_on_after(patience) as waiting:
                await self._send_changed.wait()
            if waiting.cancelled_caught and self._pending is None:
                raise ConnectionLost("stalled", f"the peer did not poll for {patience:g} seconds")
        # Last, and synchronous: whoever is cancelled before it has sent nothing.
        self._answer(packets)

    async def receive(self) -> list[Packet]:
        while True:
            if self._post is not None:
                post, self._post = self._post, None
                post.taken = True
                post.over.set()
                return post.packets
            if self._error is not None:
                raise fresh(self._error)
            self._check_usable()
            self._receive_changed = anyio.Event()
            await self._receive_changed.wait()

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close the transport: a GET that waits, or the next one, ends with a CLOSE packet.

        Waits for that GET, and for its answer to be written, for the close timeout at most. Idempotent.

        :param code: polling has no place for it.
        :param reason: nor for this.
        """
        if self._state in (_State.CLOSING, _State.CLOSED, _State.RETIRED):
            await checkpoint()
            return
        peer_listens = self._state in (_State.OPEN, _State.HELD)
        self._finish(_State.CLOSING, _CLOSE)
        try:
            if peer_listens:
                with anyio.move_on_after(self._settings.close_timeout):
                    await self._farewell.wait()
            else:
                await checkpoint()
        finally:
            self._state = _State.CLOSED

    def hold(self) -> None:
        """Answer every GET with a NOOP at once and take nothing to send: the peer is about to change its road."""
        if self._state is _State.OPEN:
            self._state = _State.HELD
            self._answer(_NOOP)
            self._send_changed.set()

    def release(self) -> None:
        """Go on as before: the other road failed."""
        if self._state is _State.HELD:
            self._state = _State.OPEN
            self._send_changed.set()

    def retire(self) -> None:
        """Be done: the session has changed its road. A GET that waits ends with a NOOP, later requests are refused."""
        self._finish(_State.RETIRED, _NOOP)

    # -- for the front door

    @contextmanager
    def poll(self) -> Generator[Poll]:
        """Take a GET: inside, :meth:`Poll.wait` for the answer and write it to the peer.

        Left by an exception, the GET is lost, and with it the session, since the peer may miss packets.

        :raises RequestError: no GET may come now. One that comes while another waits ends the session, and the other
            GET with CLOSE.
        """
        poll = self._begin_poll()
        try:
            yield poll
        except BaseException:
            if poll is self._pending:
                self._pending = None
            if poll.packets is not _NOOP:
                self._lose("a GET was cut off")
            raise
        if poll.packets is _CLOSE:
            self._farewell.set()

    async def post(self, body: bytes, content_type: str) -> None:
        """Take a POST. Returns when the session has taken its packets: a receiver that is full holds the peer back. One
        that says goodbye is answered when all that lived on the session has finished, as a WebSocket's close is, or
        after the close timeout.

        Cancelled before that, it ends the session: the peer cannot know what has arrived.

        :raises RequestError: no POST may come now, or the body is no valid payload. Of the latter, and of a POST that
            comes while another waits, the session ends.
        """
        if self._state in _REFUSALS:
            raise RequestError.of(_REFUSALS[self._state])
        if self._post is not None:
            self._lose("a POST came while another one was waiting")
            raise RequestError.of(3)
        binary = content_type.partition(";")[0].strip().lower() == "application/octet-stream"
        try:
            packets = decode_payload(body, self._eio, binary=binary, max_packets=self._settings.max_packets)
        except ProtocolError as exc:
            self._error = fresh(exc)
            self._receive_changed.set()
            raise RequestError.of(3) from exc
        leaves = any(packet.type is PacketType.CLOSE for packet in packets)
        if leaves:
            self._state = _State.LEFT
            self._answer(_NOOP)
            self._send_changed.set()
        post = self._post = _Post(packets)
        self._receive_changed.set()
        try:
            await post.over.wait()
        except BaseException:
            if post is self._post:
                self._post = None
                self._lose("a POST was cut off")
            raise
        if not post.taken:
            raise RequestError.of(_REFUSALS[self._state])
        if leaves:
            with anyio.move_on_after(self._settings.close_timeout):
                await self._finished.wait()

    # -- inside

    def _begin_poll(self) -> Poll:
        poll = Poll(self._eio, self._base64)
        match self._state:
            case _State.OPEN if self._pending is None:
                self._pending = poll
                self._send_changed.set()
            case _State.OPEN:
                self._answer(_CLOSE)
                self._lose("a GET came while another one was waiting")
                raise RequestError.of(3)
            case _State.HELD | _State.LEFT:
                poll.answer(_NOOP)
            case _State.CLOSING:
                poll.answer(_CLOSE)
            case state:
                raise RequestError.of(_REFUSALS[state])
        return poll

    def _answer(self, packets: Sequence[Packet]) -> None:
        """Answer the GET that waits, if there is one."""
        if self._pending is not None:
            poll, self._pending = self._pending, None
            poll.answer(packets)

    def _check_usable(self) -> None:
        if self._state is _State.LOST:
            raise ConnectionLost(self._lost.code, self._lost.reason)
        if self._state in (_State.CLOSING, _State.CLOSED, _State.RETIRED):
            raise anyio.ClosedResourceError

    def _lose(self, reason: str) -> None:
        if self._state in (_State.OPEN, _State.HELD):
            self._state = _State.LOST
            self._lost = ConnectionLost("transport error", reason)
            self._send_changed.set()
            self._receive_changed.set()
        self._farewell.set()

    def _finish(self, state: _State, last: Sequence[Packet]) -> None:
        """This side is done: end what waits."""
        self._state = state
        self._answer(last)
        if self._post is not None:
            post, self._post = self._post, None
            post.over.set()
        self._send_changed.set()
        self._receive_changed.set()
        self._finished.set()
