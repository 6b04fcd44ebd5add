"""WebSocket over an AnyIO byte stream: the frames are those of the ``websockets`` package's sans-I/O core.

Every exception of the byte stream, of TLS and of the core becomes one of ours here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
import anyio.abc
import anyio.lowlevel
from websockets.exceptions import ProtocolError as CoreProtocolError
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import Side

from ..errors import ConnectionLost, ProtocolError, fresh
from ..prefetch import Piece, whole_lines
from ..settings import Settings
from .core import Core
from .sieve import Sieve
from .sockets import SocketStream, prompt_stream

#: bytes of one read. It bounds what a peer makes the core build at once: frames, and the pongs that the core adds by
#: itself, which are all written before the next read.
READ_SIZE = 65_536
#: bytes of one write, each of which has the stall timeout of its own: a slow peer takes them one by one
WRITE_SIZE = 65_536
#: empty fragments of one message; senders that end a message with one, or begin it with one, need two
MAX_EMPTY_FRAGMENTS = 16

#: what a byte stream raises when it, or its peer, is gone; errors of TLS are OSErrors
STREAM_ERRORS = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError)


async def send_all(stream: anyio.abc.ByteStream, data: bytes, stall: float) -> None:
    """Write to a peer that may be slow, but must not stand still. A checkpoint only if that has to be waited for.
    Cancelled, it may have written a part.

    :param stall: seconds that each :data:`WRITE_SIZE` bytes may take.
    :raises ConnectionLost: the peer is gone, or has taken no bytes in that time (code ``"stalled"``).
    """
    if not data:
        return
    if len(data) <= WRITE_SIZE and (prompt := prompt_stream(stream)) is not None:
        # mostly there is room, which spares a deadline
        data = data[prompt.send_nowait(data) :]
    for start in range(0, len(data), WRITE_SIZE):
        chunk = data if len(data) <= WRITE_SIZE else data[start : start + WRITE_SIZE]
        sent = False
        try:
            with anyio.move_on_after(stall):
                await stream.send(chunk)
                sent = True
        except STREAM_ERRORS as exc:
            raise ConnectionLost("transport error", describe(exc)) from exc
        if not sent:
            raise ConnectionLost("stalled", f"the peer took no bytes for {stall:g} seconds")


async def half_close(stream: anyio.abc.ByteStream) -> None:
    """Tell the peer that nothing more comes, while it may go on sending. TLS has no such thing (AnyIO's stream raises
    :exc:`NotImplementedError`): there the peer is not told before the end.

    :raises: what the stream does.
    """
    with contextlib.suppress(NotImplementedError):
        await stream.send_eof()


#: an idle WebSocket has no list of its own
_NO_MESSAGES: Final[list[str | bytes]] = []


@dataclass(slots=True, eq=False)
class _Fragments:
    """The beginning of a message."""

    opcode: Opcode
    data: bytearray = field(default_factory=bytearray)
    count: int = 0
    empty: int = 0


class _WebSocketFields(Piece):
    """What each message looks at: see ``_SessionFields``."""

    __slots__ = (
        "_closed",
        "_core",
        "_end",
        "_head",
        "_late",
        "_leading",
        "_lock",
        "_lost",
        "_prompt",
        "_received",
        "_sieve",
        "_tail",
        "prepared",
    )


class WebSocket(_WebSocketFields):
    """A WebSocket after its handshake: whole messages over an AnyIO byte stream, which it owns and closes.

    One task may receive while others send; sends are kept apart by a lock.

    :param stream: carries the bytes.
    :param core: of the side that this is.
    :param settings: for ``max_payload``, ``max_fragments``, ``stall_timeout`` and ``close_timeout``.
    :param leading: bytes that were read together with the handshake.
    :param head: the answer to the handshake, which goes out with the first message, or before anything is waited for:
        a write of its own is what takes longest about it.
    :ivar prepared: whether :meth:`send_frames` may be used: frames that are neither masked nor compressed suit every
        peer.
    """

    __slots__ = whole_lines(
        (_WebSocketFields,),
        "_ended",
        "_eof",
        "_fragments",
        "_receiving",
        "_settings",
        "_stream",
    )

    def __init__(
        self,
        stream: anyio.abc.ByteStream,
        core: Core,
        settings: Settings,
        *,
        leading: bytes = b"",
        head: bytes = b"",
    ) -> None:
        self._stream = stream
        self._core = core
        self.prepared: bool = core.side is Side.SERVER and not core.extensions
        self._settings = settings
        #: held by whoever writes; most WebSockets never have to wait for that, and have none
        self._lock: anyio.Lock | None = None
        self._prompt = prompt_stream(stream)
        self._head = head
        #: what was taken to be sent and is not written yet, before anything else
        self._tail = b""
        #: whether that is for the end of the turn; else somebody has to wait until there is room for it
        self._late = False
        self._receiving = False
        #: what wakes :meth:`aclose` when nothing more will be received, or when nobody does any more
        self._ended: anyio.Event | None = None
        self._leading = leading
        self._received = _NO_MESSAGES
        self._end: Exception | None = None
        self._eof = False
        self._lost: ConnectionLost | None = None
        self._closed = False
        #: what has come of a message of which there is more to come
        self._fragments: _Fragments | None = None
        #: takes out what needs no more than a look; an extension would have to see it
        self._sieve = None if core.extensions else Sieve(masked=core.side is Side.SERVER, max_size=settings.max_payload)

    @property
    def close_code(self) -> int | None:
        """The code of the peer's Close frame; 1005 if that had none, ``None`` if none came."""
        return self._core.close_rcvd.code if self._core.close_rcvd is not None else None

    @property
    def close_reason(self) -> str:
        """The reason in the peer's Close frame."""
        return self._core.close_rcvd.reason if self._core.close_rcvd is not None else ""

    @property
    def closed(self) -> bool:
        """Whether :meth:`aclose` has been called, and is done or under way."""
        return self._closed

    # -- sending

    async def send(self, messages: Sequence[str | bytes]) -> None:
        """Send whole messages in order, with as few writes as their size allows.

        Cancelled while it waits for another sender it has sent nothing; later, the WebSocket is good for :meth:`aclose`
        only.

        :raises anyio.ClosedResourceError: this side has closed the WebSocket.
        :raises ConnectionLost: the peer has closed it or is gone, or takes no bytes for the stall timeout (code
            ``"stalled"``).
        """
        async with self._locked():
            self._check_open()
            for message in messages:
                self._core.send(message)
            await self._write(self._core.data_to_send())

    async def send_frames(self, frames: bytes) -> None:
        """Send finished frames, where :attr:`prepared` is true; otherwise like :meth:`send`."""
        async with self._locked():
            self._check_open()
            await self._write([*self._core.data_to_send(), frames])

    def send_nowait(self, frames: bytes, stuck: Callable[[], None]) -> bool:
        """Take finished frames, where :attr:`prepared` is true, if nothing has to be waited for; returns whether they
        were taken. They are written at the end of the turn (:mod:`~.turn`), if one goes on, else at once.

        :param stuck: called if a part of them could not be written: the next ``send_frames`` sends that first.
        """
        if self._core.writes or not self._core.open or self._closed or self._end is not None:
            return False
        if (prompt := self._free_to_write()) is None:
            return False
        turn = prompt.turn
        if turn.going_on and len(self._tail) + len(frames) <= WRITE_SIZE:
            if not self._late:
                self._late = True
                turn.add(self, stuck)
            self._tail += frames
            return True
        data = b"".join([self._head, self._tail, frames]) if self._head or self._tail else frames
        written = prompt.send_nowait(data)
        if written:
            self._late = False
            self._head, self._tail = b"", data[written:]
            if self._tail:
                stuck()
        return written > 0

    def write_late(self) -> bool:
        """For the turn, which is over: write what was taken in it; returns whether nothing is left that somebody has to
        send."""
        if self._late:
            assert self._prompt is not None
            self._late = False
            data = self._head + self._tail if self._head else self._tail
            self._head, self._tail = b"", data[self._prompt.send_nowait(data) :]
            return not self._tail
        # it has been written before that, with something else
        return True

    @property
    def flushed(self) -> bool:
        """Whether nothing is left that somebody has to send."""
        return not self._tail or self._late

    async def flush(self) -> None:
        """Send the answer to the handshake, if that has not been sent.

        :raises: as :meth:`send`.
        """
        if self._head:
            await self.send_frames(b"")

    def _locked(self) -> anyio.Lock:
        if self._lock is None:
            self._lock = anyio.Lock(fast_acquire=True)
        return self._lock

    def _check_open(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError
        if self._lost is not None:
            raise fresh(self._lost)
        if isinstance(self._end, ProtocolError):
            raise ConnectionLost("transport error", str(self._end))
        if not self._core.open:
            raise ConnectionLost("transport close", "the peer has closed the WebSocket")

    def _free_to_write(self) -> SocketStream | None:
        """The stream, if it can be written to without waiting, and nobody else writes, or waits to."""
        if (
            (self._tail and not self._late)
            or self._lost is not None
            or (self._lock is not None and self._lock.locked())
        ):
            return None
        return self._prompt

    async def _write(self, frames: Sequence[bytes]) -> None:
        """The one place that writes where that may have to be waited for; the caller holds the lock.

        The core's mark for half-closing is an empty frame, which adds nothing.
        """
        data = b"".join([self._head, self._tail, *frames])
        self._head = self._tail = b""
        self._late = False
        try:
            await send_all(self._stream, data, self._settings.stall)
        except ConnectionLost as exc:
            if self._closed:
                raise anyio.ClosedResourceError from exc
            self._lost = fresh(exc)
            raise
        except anyio.get_cancelled_exc_class():
            self._lost = ConnectionLost("transport error", "a write was cancelled half way")
            raise

    # -- receiving

    async def receive(self) -> list[str | bytes]:
        """Wait for messages: all whole ones that one read has brought, at least one.

        Pings are answered, and Close frames too, before more is read. Safe to cancel: nothing is lost.

        :raises anyio.EndOfStream: the peer has closed the WebSocket with a Close frame.
        :raises anyio.ClosedResourceError: this side has closed it.
        :raises anyio.BusyResourceError: another task is receiving.
        :raises ConnectionLost: the peer is gone.
        :raises ProtocolError: the peer sent something invalid and was sent the close code for it.
        """
        sieve = self._sieve
        self._begin_to_receive()
        try:
            while True:
                if self._closed:
                    raise anyio.ClosedResourceError
                if self._core.writes or self._head:
                    await self._answer()
                if self._received:
                    return self.take_received()
                if self._end is not None:
                    raise fresh(self._end)
                if self._lost is not None:
                    raise fresh(self._lost)
                if self._leading:
                    data, self._leading = self._leading[:READ_SIZE], self._leading[READ_SIZE:]
                    self._digest(data)
                    continue
                try:
                    data = await self._stream.receive(READ_SIZE)
                except STREAM_ERRORS as exc:
                    self._note_end(exc)
                else:
                    if sieve is not None and (text := sieve.take(data)) is not None:
                        return [text]
                    self._digest(data)
        finally:
            self._receiving = False
            self._wake_closer()

    @property
    def watched(self) -> bool:
        """Whether it is one whose stream is watched, so that it can be waited for like that: :meth:`readable`."""
        return self._prompt is not None

    def readable(self) -> Awaitable[Any] | None:
        """What to await, once and at once, until there are perhaps messages to :meth:`read`, or :meth:`nudge` is
        called; ``None`` if :meth:`receive` has something to give, to do or to say. Safe to cancel: nothing is lost."""
        if (
            (prompt := self._prompt) is None
            or self._closed
            or self._core.writes
            or self._head
            or self._received
            or self._end is not None
            or self._lost is not None
            or self._leading
        ):
            return None
        return prompt.wait_readable()

    def nudge(self) -> bool:
        """Wake the task that waits for it to be readable; returns whether one did."""
        return self._prompt is not None and self._prompt.wake()

    def read(self) -> list[str | bytes]:
        """The messages that have arrived, once it is :meth:`readable`; none, if that was no whole one.

        :raises: as :meth:`receive`.
        """
        assert self._prompt is not None
        data = self._prompt.receive_nowait(READ_SIZE)
        if self._sieve is not None and (text := self._sieve.take(data)) is not None:
            return [text]
        if not data:
            return []
        self._digest(data)
        if (self._core.writes or self._head) and not self._answer_nowait():
            # `receive` waits until that is written
            return []
        if not self._received and self._end is not None:
            raise fresh(self._end)
        return self.take_received()

    def take_received(self) -> list[str | bytes]:
        """What has come and was not received, since an answer of the WebSocket's own had to be waited for."""
        received, self._received = self._received, _NO_MESSAGES
        return received

    def _begin_to_receive(self) -> None:
        if self._receiving:
            raise anyio.BusyResourceError("receiving from")
        self._receiving = True

    def _note_end(self, exc: Exception) -> None:
        """The stream has nothing more to read."""
        if self._closed and isinstance(exc, anyio.ClosedResourceError):
            raise exc
        self._eof = True
        if isinstance(exc, anyio.EndOfStream):
            self._finish(ConnectionLost("transport close", "the peer is gone without closing the WebSocket"))
        else:
            self._finish(ConnectionLost("transport error", describe(exc)))

    def _digest(self, data: bytes) -> None:
        """Take what was read; afterwards there are messages, answers to write, the end, or none of them yet."""
        if self._sieve is None:
            self._feed(data)
            return
        for part in self._sieve.split(data):
            if isinstance(part, str):
                self._deliver(part)
            elif not self._feed(part):
                return
            else:
                self._sieve.closed = self._fragments is not None

    def _feed(self, data: bytes) -> bool:
        """Let the core have a part of what was read; returns whether what follows is worth looking at."""
        core = self._core
        for frame in core.receive(data):
            if not self._take(frame):
                break
        if core.failure is not None:
            self._finish(ProtocolError(f"invalid WebSocket frame: {core.failure}"))
        elif core.close_rcvd is not None:
            self._finish(anyio.EndOfStream(f"{core.close_rcvd.code} {core.close_rcvd.reason}".rstrip()))
        return self._end is None

    def _take(self, frame: Frame) -> bool:
        """Add a frame to the messages; returns whether the next one may be looked at."""
        opcode = frame.opcode
        if opcode is Opcode.TEXT or opcode is Opcode.BINARY:
            if frame.fin:
                return self._complete(opcode, frame.data)
            self._fragments = _Fragments(opcode)
        elif opcode is not Opcode.CONT or self._fragments is None:
            return True
        fragments = self._fragments
        fragments.data += frame.data
        fragments.count += 1
        fragments.empty += not frame.data
        if fragments.count > self._settings.max_fragments or fragments.empty > MAX_EMPTY_FRAGMENTS:
            return self._fail(1008, "too many fragments")
        if len(fragments.data) > self._settings.max_payload:
            return self._fail(1009, "message too big")
        if frame.fin:
            self._fragments = None
            return self._complete(fragments.opcode, fragments.data)
        return True

    def _complete(self, opcode: Opcode, data: bytes | bytearray | memoryview) -> bool:
        if len(data) > self._settings.max_payload:
            return self._fail(1009, "message too big")
        if opcode is Opcode.BINARY:
            self._deliver(bytes(data))
            return True
        try:
            self._deliver(str(data, "utf-8"))
        except UnicodeDecodeError:
            return self._fail(1007, "text is not UTF-8")
        return True

    def _deliver(self, message: str | bytes) -> None:
        if self._received is _NO_MESSAGES:
            self._received = []
        self._received.append(message)

    def _fail(self, code: int, reason: str) -> bool:
        if self._core.failure is None and self._core.close_rcvd is None:
            self._core.fail(code, reason)
        self._finish(ProtocolError(reason))
        return False

    def _finish(self, end: Exception) -> None:
        if self._end is None:
            self._end = end
            self._fragments = None
            self._wake_closer()

    def _wake_closer(self) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended.set()

    async def _answer(self) -> None:
        """Write the core's own frames: pongs and Close. A failure waits until the messages are delivered."""
        if self._answer_nowait():
            return
        try:
            async with self._locked():
                if self._lost is None:
                    # not before: whoever is cancelled here has not taken it
                    await self._write(self._core.data_to_send())
        except ConnectionLost as exc:
            self._finish(fresh(exc))
        finally:
            if self._lost is not None:
                self._core.data_to_send()

    def _answer_nowait(self) -> bool:
        """Write as much of them as there is room for; returns whether that was all."""
        if (prompt := self._free_to_write()) is None:
            return False
        own = b"".join(self._core.data_to_send())
        data = b"".join([self._head, self._tail, own])
        rest = data[prompt.send_nowait(data) :]
        late = len(rest) - len(own) if self._late else 0
        self._head = b""
        self._late = late > 0
        self._tail, rest = (rest[:late], own) if self._late else (b"", rest)
        if rest:
            self._core.writes = [rest]
        return not rest

    # -- the end

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close the WebSocket, then the stream. Idempotent.

        Waits for the peer's part of the closing handshake for the close timeout at most; cancelled, it closes the hard
        way.

        :param code: a close code that may be sent: 1000 to 1003, 1007 to 1014, 3000 to 4999.
        :param reason: a text, cut to the 123 bytes that a Close frame has room for.
        """
        if self._closed:
            await anyio.lowlevel.checkpoint()
            return
        reason = reason.encode()[:123].decode(errors="ignore")
        try:
            Close(code, reason).check()
        except CoreProtocolError:
            raise ValueError(f"a Close frame cannot carry the code {code}") from None
        if self.close_nowait():
            await anyio.lowlevel.checkpoint()
            return
        closed = False
        try:
            with anyio.move_on_after(self._settings.close_timeout):
                await self._shake_hands(code, reason)
                self._closed = True
                await self._stream.aclose()
                closed = True
        except STREAM_ERRORS:
            pass
        finally:
            self._closed = True
            self._finish(anyio.ClosedResourceError())
            if not closed:
                await self._close_hard()

    def close_nowait(self) -> bool:
        """Close the WebSocket and the stream, if neither side has anything to say any more and that needs no waiting;
        returns whether they are closed."""
        if self._closed:
            return True
        if (prompt := prompt_stream(self._stream)) is None or not self._is_done:
            return False
        self._closed = True
        self._finish(anyio.ClosedResourceError())
        prompt.close_nowait()
        return True

    async def _shake_hands(self, code: int, reason: str) -> None:
        core = self._core
        async with self._locked():
            if self._eof or self._lost is not None:
                return
            if core.open:
                core.send_close(code, reason)
            await self._write(core.data_to_send())
        if core.side is Side.SERVER and isinstance(self._end, ProtocolError):
            # with input unread, closing would reset the connection, and the peer might never see the Close frame
            await half_close(self._stream)
        while self._receiving:
            if self._end is None:
                self._ended = ended = self._ended or anyio.Event()
                await ended.wait()
            if self._end is not None:
                return
        self._begin_to_receive()
        try:
            while not self._over:
                try:
                    data = self._leading or await self._stream.receive(READ_SIZE)
                except STREAM_ERRORS as exc:
                    self._note_end(exc)
                    break
                self._leading = b""
                self._digest(data)
                self._received = _NO_MESSAGES
                core.data_to_send()
        finally:
            self._receiving = False

    @property
    def _is_done(self) -> bool:
        """Whether neither side has anything to say any more."""
        if self._lock is not None and self._lock.locked():
            return False
        if self._eof or self._lost is not None:
            return True
        return self._over and self._core.close_sent is not None and not self._core.writes and not self._tail

    @property
    def _over(self) -> bool:
        """Whether the stream may be closed: a server is the first to do so once the peer's Close is there."""
        return self._eof or (self._core.side is Side.SERVER and self._core.close_rcvd is not None)

    async def _close_hard(self) -> None:
        with contextlib.suppress(*STREAM_ERRORS):
            await anyio.aclose_forcefully(self._stream)


def describe(exc: Exception) -> str:
    """An exception as a few words for a log."""
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
