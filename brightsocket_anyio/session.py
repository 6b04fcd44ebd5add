"""One Engine.IO session over whichever transport: reading, writing, heartbeat, upgrade, the end."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, Protocol, cast

import anyio
from anyio.lowlevel import checkpoint

from .errors import ConnectionLost, HandshakeError, ProtocolError
from .outbox import Outbox
from .parking import Latch, Parking, Tasks, open_tasks
from .prefetch import Piece, whole_lines
from .protocol.engineio import Packet, PacketType
from .protocol.state import PROBE, Action, Answer, Automaton, Ended, Event, OfferExpired, Unit
from .settings import Settings
from .statistics import Statistics
from .timer import Alarm, Timer
from .transport import RUN, PromptTransport, Transport
from .workers import Workers

logger: logging.Logger = logging.getLogger("brightsocket_anyio")

#: packets handed to the transport at a time: enough to fill its writes, little enough to see progress
BATCH_BYTES = 256 * 1024
#: packets of one polling body: python-socketio's servers and clients end a session that puts more into one
POLLING_PACKETS = 16


class PollingRoad(Transport, Protocol):
    """What a server's session asks of a transport that it may leave for another, beyond sending and receiving."""

    def hold(self) -> None:
        """Answer every GET with a NOOP at once and take nothing to send: the peer is about to change its road."""
        ...

    def release(self) -> None:
        """Go on as before: the other road failed."""
        ...

    def retire(self) -> None:
        """Be done: the session has changed to the other road."""
        ...


class ClientPollingRoad(Transport, Protocol):
    """The same for a client's session."""

    async def pause(self) -> list[Packet]:
        """Begin no request, and wait until those under way are over; returns what has come and was not received.

        :raises ConnectionLost: the peer is gone.
        :raises ProtocolError: the peer sent something invalid.
        """
        ...

    def release(self) -> None:
        """Go on as before: the other road failed."""
        ...

    def retire(self) -> None:
        """Be done: the session has changed to the other road."""
        ...


class Sink(Protocol):
    """Where a session's events go."""

    @property
    def full(self) -> bool:
        """Whether a receiver is full, so that the session must not read on."""
        ...

    @property
    def calling(self) -> bool:
        """Whether a call awaits its answer, so that the session must read on for it."""
        ...

    @property
    def workers(self) -> Workers | None:
        """Whose worker may read for the session, since nearly all that comes is for it."""
        ...

    def handle(self, event: Event) -> None:
        """Take one event; never waits. Actions may come in a worker's task.

        :raises ProtocolError: the event is not allowed here.
        """
        ...

    async def end(self, cause: Ended) -> None:
        """The session is over: end what lives on it, and return when all of it has finished."""
        ...

    def expose(self) -> None:
        """The session is over, perhaps since it is cancelled or has failed: what lives on it and is shielded from that,
        is no longer."""
        ...


def _prompt(transport: Transport) -> PromptTransport | None:
    # isinstance with a protocol would take longer than all else that begins a session
    return cast("PromptTransport", transport) if hasattr(transport, "send_nowait") else None


class _SessionFields(Piece):
    """What each message looks at, apart from the rest: CPython lays out fields class by class, and by name in each.

    Among a thousand connections the objects that a message comes through are out of the processor's caches, and are
    fetched by lines of 64 bytes. By this it is two of them and not four, here; and in all classes that have such a base
    a tenth of those of a message. ``docs/performance.md`` says what a line costs.
    """

    __slots__ = (
        "_cause",
        "_direct",
        "_prompt",
        "_run",
        "_sink",
        "_unhandled",
        "_waiting",
        "_writing",
        "automaton",
        "now",
        "statistics",
    )


class Session(_SessionFields):
    """One Engine.IO session. :meth:`run` owns its transport and its tasks.

    :param timer: runs, for as long as the session does.
    :param received: what has been received on the transport already.
    :ivar statistics: where the session counts.
    :ivar now: the time, on the event loop's clock.
    :ivar sid: the session's id. It is a secret: whoever knows it can take the session over.
    :ivar task_group: where what lives on the session runs; everything in it has finished when :meth:`run` returns.
    """

    __slots__ = whole_lines(
        (_SessionFields,),
        "__weakref__",
        "_alarm",
        "_changing",
        "_cut",
        "_filled",
        "_flush",
        "_leaving",
        "_may_change",
        "_offer",
        "_outbox",
        "_over",
        "_pushed_back",
        "_reading",
        "_receiving",
        "_resumed",
        "_returned",
        "_sending",
        "closed",
        "settings",
        "task_group",
        "transport",
    )

    task_group: Tasks

    def __init__(
        self,
        automaton: Automaton,
        transport: Transport,
        settings: Settings,
        timer: Timer,
        *,
        received: Sequence[Packet] = (),
        statistics: Statistics | None = None,
    ) -> None:
        self.automaton: Automaton = automaton
        self.transport: Transport = transport
        self._prompt = _prompt(transport)
        #: the same, as long as anything is sent
        self._direct = self._prompt
        #: whether the session may leave its transport for another
        self._may_change = transport.name == "polling"
        #: whether somebody sends what is in the outgoing buffer: its task, or :meth:`run`, which has not begun
        self._writing = True
        #: where that task waits while it does not; there is none before it is needed for the first time
        self._filled: Parking | None = None
        #: how many times it was written to at once since it was last read from, or its task had its turn
        self._run = 0
        self.settings: Settings = settings
        self.closed: bool = False
        self.statistics: Statistics = Statistics() if statistics is None else statistics
        self._sink: Sink
        self._outbox = Outbox(settings.max_buffered_messages, settings.max_buffered_bytes)
        self._cause: Ended | None = None
        self._flush = False
        #: whether it ends since nothing could be sent any more, which says nothing of what has come before
        self._cut = False
        self._reading = anyio.CancelScope()
        #: whether it waits for something to read; else it will see by itself that the session is to end
        self._waiting = True
        #: whether there is, or was, a task that leaves polling
        self._leaving = False
        self._receiving: anyio.CancelScope | None = None
        self._sending: anyio.CancelScope | None = None
        self._offer: anyio.CancelScope | None = None
        #: from the answer to a peer's probe until it has changed its road or failed to
        self._changing: anyio.Event | None = None
        self._pushed_back: list[Packet] = list(received)
        #: what has come and is not handled yet, since only the session's own task may
        self._unhandled: Event | None = None
        #: where that task waits while a worker reads; there is none before the first time
        self._returned: Parking | None = None
        self._over = Latch()
        self._resumed = Parking()
        self.now: Callable[[], float] = timer.now
        self._alarm = Alarm(timer, self._keep_time)

    def __repr__(self) -> str:
        return f"<Session {self.sid[:4]}… EIO={self.eio} {self.transport.name}>"

    def log(self, channel: str | None = None) -> logging.LoggerAdapter[logging.Logger]:
        """The logger, with the fields ``session`` (the beginning of the id, which is a secret) and ``channel``."""
        return logging.LoggerAdapter(logger, {"session": f"{self.sid[:4]}…", "channel": channel})

    @property
    def sid(self) -> str:
        return self.automaton.sid

    @property
    def eio(self) -> Literal[3, 4]:
        return self.automaton.eio

    @property
    def ending(self) -> Ended | None:
        """Why the session is over or about to be, if it is."""
        return self._cause

    async def run(self, sink: Sink, begin: Callable[[], None] | None = None) -> Ended:
        """Live: returns why the session ended when everything on it has finished and its transport is closed.

        :param begin: called once the session's tasks can be started.
        """
        self._sink = sink
        cause = Ended("server shutting down", "the session was cancelled")
        # cancelled, it has no time for a farewell
        deadline = float("-inf")
        try:
            async with open_tasks() as self.task_group:
                try:
                    self._writing = False
                    if not self._outbox.empty:
                        self._post()
                    with self._reading:
                        if begin is not None:
                            begin()
                        self.reschedule()
                        await self._read()
                    cause = self._cause or cause
                    if self._cut:
                        self._take_rest()
                    self.automaton.close()
                    await sink.end(cause)
                    if cause.by_peer or cause.code not in _DEAD:
                        deadline = self.now() + self.settings.close_timeout
                    if self._flush:
                        with anyio.CancelScope(deadline=deadline):
                            await self.flush()
                    if self._writing or self._leaving:
                        # nothing else is left in there
                        self.task_group.cancel_scope.cancel()
                finally:
                    sink.expose()
                    # here, since no writer can be started once the task group waits for its last tasks
                    self._close_outbox()
                    if self._filled is not None:
                        # whoever waits there ends by itself: to cancel it would take longer, and leave garbage
                        self._filled.wake()
        finally:
            self._cause = cause
            self.automaton.close()
            self.closed = True
            self._alarm.cancel()
            if self._offer is not None:
                self._offer.cancel()
            if self._prompt is None or not self._prompt.close_nowait():
                with anyio.CancelScope(deadline=deadline, shield=True):
                    await self.transport.aclose(_CLOSE_CODES.get(cause.code, 1000), cause.reason)
            self._over.set()
            # else the two of them would be left for the garbage collector
            del self._sink
        return cause

    # -- sending

    async def send(self, unit: Unit, sender: object | None = None, placed: Callable[[], None] | None = None) -> None:
        """Put a unit into the outgoing buffer, waiting for room; a checkpoint only if it has to. Cancelled, it is sent
        whole or not at all.

        :param sender: as for :meth:`send_nowait`.
        :param placed: called at the moment at which the unit has its place in the order of what is sent.
        :raises anyio.ClosedResourceError: the session is over.
        """
        if self.send_at_once(unit):
            if placed is not None:
                placed()
            return
        await self._outbox.put(unit, sender, placed)
        self._post()

    def send_nowait(self, unit: Unit, sender: object | None = None) -> bool:
        """Put a unit into the outgoing buffer if there is room; returns whether there was.

        :param sender: whose unit it is: one that :meth:`make_room` may take out again, and that is among the
            :attr:`unsent` if the session ends before.
        """
        if self.send_at_once(unit):
            return True
        taken = self._outbox.offer(unit, sender)
        if taken:
            self._post()
        elif self._cause is not None:
            # it is about to end: there may be room again before that, but what comes then would follow a gap
            self._shut_outbox()
        return taken

    def make_room(self, unit: Unit, may_go: Callable[[object], bool]) -> int:
        """Take the oldest units whose sender may go out of the buffer again, as many as have to for a new one; none if
        that would not be enough. Returns how many."""
        return self._outbox.make_room(unit, may_go)

    def push(self, unit: Unit, sender: object | None = None) -> None:
        """Send one of the session's own packets, or what was accepted before; the bounds do not hold it back.

        Whoever has moved the automaton for it calls :meth:`reschedule`, if a deadline may have come nearer by that and
        the session goes on; after an event has been handled that is done anyway.

        :param sender: as for :meth:`send_nowait`.
        """
        if not self.send_at_once(unit):
            self._outbox.push(unit, sender)
            self._post()

    def send_at_once(self, unit: Unit) -> bool:
        """Send a unit past the outgoing buffer, if nothing is in that, and nothing has to be waited for; returns
        whether it was sent."""
        direct = self._direct
        if direct is None or self._writing or self._run >= RUN or not direct.send_nowait(unit, self._post):
            return False
        self._run += 1
        self.statistics.packets_sent += len(unit)
        return True

    def _shut_outbox(self) -> None:
        """Take nothing more to send; what is in the buffer may still be sent."""
        self._direct = None
        self._outbox.shut()

    def _close_outbox(self) -> None:
        """Send nothing more."""
        self._direct = None
        self._outbox.close()

    def _post(self) -> None:
        """There is something to be sent: have it sent."""
        if self._writing or self._outbox.closed:
            return
        self._writing = True
        if self._filled is None:
            self._filled = Parking()
            self.task_group.start_soon(self._write, name="writer")
        else:
            self._filled.wake()

    def _reply(self) -> None:
        for reply in self.automaton.take_replies():
            if not self.send_at_once((reply,)):
                self._outbox.push((reply,))
                self._post()

    @property
    def unsent(self) -> list[Unit]:
        """Once the session is over: what has a sender and of which nothing has been sent."""
        return self._outbox.unsent

    async def flush(self) -> None:
        """Wait until everything that was accepted has been sent, or the session has ended."""
        if self._changing is not None:
            # the peer does not poll any more: it hears the rest, and the end, where it changes to
            await self._changing.wait()
        while self._writing:
            await self._outbox.wait_emptied()

    # -- the end

    def end(self, code: str, reason: str, *, flush: bool = True) -> None:
        """End the session; the first reason counts. :param flush: send what was accepted, for a bounded time."""
        self._end(Ended(code, reason), flush=flush)

    def _end(self, cause: Ended, *, flush: bool) -> None:
        if self._cause is None:
            self._cause = cause
            self._flush = flush
            if not flush:
                # something was not taken, or is lost: what is sent after that must not arrive
                self._shut_outbox()
            if self._waiting and (self._returned is None or not self._returned.wake()):
                self._reading.cancel()
            if self._offer is not None and not (flush and self._changing is not None):
                # what is still to be sent goes by the road in use
                self._offer.cancel()

    # -- backpressure

    def wake(self) -> None:
        """Something has changed about whether to read on: a receiver has room, or a call has begun."""
        self._resumed.wake()

    def reschedule(self) -> None:
        """Something has been done to the automaton by which its next deadline may have come nearer."""
        deadline = self.automaton.deadline
        if deadline < self._alarm.time:
            self._alarm.set(deadline)

    def _must_hold(self) -> bool:
        return (self._sink.full and not self._sink.calling) or (self._writing and self._outbox.overfull)

    async def _hold(self) -> None:
        self.automaton.hold(self.now())
        self.reschedule()
        while self._must_hold():
            if self._outbox.overfull:
                await self._outbox.wait_emptied()
            else:
                await self._resumed.wait()
        self.automaton.resume(self.now())

    # -- reading, which a worker of the only connection may do: see Workers

    async def _read(self) -> None:
        while self._cause is None:
            self._waiting = True
            # what came with another road is first
            packets, self._pushed_back = self._pushed_back, []
            if not packets and (workers := self._willing_workers) is not None:
                if self._returned is None:
                    self._returned = Parking()
                workers.lend(self)
                await self._returned.wait()
                await self._pause()
                continue
            try:
                if not packets:
                    packets = await self._receive() if self._may_change else self.read(await self.arrival())
            except Exception as exc:
                self.lose(exc)
                continue
            more = self.take(packets)
            # nothing is kept while it waits
            del packets
            if not more:
                await self._pause()

    @property
    def _willing_workers(self) -> Workers | None:
        """Who may read for the session."""
        if self._may_change or (workers := self._sink.workers) is None:
            return None
        if workers.willing or (workers.standing_by and self._prompt is not None and self._prompt.watched):
            return workers
        return None

    def arrival(self) -> Awaitable[Any]:
        """As :meth:`PromptTransport.arrival <brightsocket_anyio.transport.PromptTransport.arrival>`, on a road that is
        not left any more."""
        return self.transport.receive() if (prompt := self._prompt) is None else prompt.arrival()

    def readable(self) -> Awaitable[Any] | None:
        """As :meth:`PromptTransport.readable <brightsocket_anyio.transport.PromptTransport.readable>`."""
        return None if (prompt := self._prompt) is None else prompt.readable()

    def nudge(self) -> bool:
        """As :meth:`PromptTransport.nudge <brightsocket_anyio.transport.PromptTransport.nudge>`."""
        return self._prompt is not None and self._prompt.nudge()

    def read(self, arrived: Any, /) -> list[Packet]:
        """As :meth:`PromptTransport.read <brightsocket_anyio.transport.PromptTransport.read>`."""
        if (prompt := self._prompt) is not None:
            return prompt.read(arrived)
        packets: list[Packet] = arrived
        return packets

    def lose(self, failure: Exception, /) -> None:
        """The transport is at its end, and the session with it."""
        self._waiting = False
        self._end_by(failure if self._prompt is None else self._prompt.failure(failure))

    def take(self, packets: list[Packet], /) -> bool:
        """Take packets that have come, but for those behind one that is the session's own task's affair; returns
        whether to go on reading."""
        self._waiting = False
        self._run = 0
        self.statistics.packets_received += len(packets)
        if self.ending is not None:
            return False
        automaton, sink = self.automaton, self._sink
        time = self.now()
        try:
            for index, packet in enumerate(packets, 1):
                event = automaton.receive(packet, time)
                if automaton.replies:
                    self._reply()
                if type(event) is Action or type(event) is Answer:
                    sink.handle(event)
                else:
                    self._unhandled = event
                if (
                    sink.full
                    or self._unhandled is not None
                    or self._cause is not None
                    or (self._writing and self._outbox.overfull)
                    or index == RUN
                ):
                    self._pushed_back = packets[index:]
                    self.statistics.packets_received -= len(self._pushed_back)
                    return False
        except ProtocolError as exc:
            self._end_by(exc)
            return False
        # from here on somebody waits for more, whom the session's end has to wake
        self._waiting = True
        return True

    def take_back(self) -> None:
        """The worker that has read reads no more: it is the session's own task's turn."""
        if self._returned is not None:
            self._returned.wake()

    async def _pause(self) -> None:
        """What comes between two packets and is for the session's own task: an event that is no action, or to wait."""
        handled = self._handle_unhandled()
        if self._cause is not None:
            return
        self._waiting = True
        if self._must_hold():
            await self._hold()
        elif not handled and self._pushed_back:
            await checkpoint()

    def _handle_unhandled(self) -> bool:
        event, self._unhandled = self._unhandled, None
        if event is None:
            return False
        try:
            self._handle(event)
        except ProtocolError as exc:
            self._end_by(exc)
        return True

    def _take_rest(self) -> None:
        """Take what has come and had its turn still before it: a server's last word, perhaps."""
        pushed_back, self._pushed_back = self._pushed_back, []
        try:
            for packet in pushed_back:
                self._take_last(packet)
            if self._prompt is not None:
                for packet in self._prompt.take_arrived():
                    self._take_last(packet)
        except ProtocolError as exc:
            self.log().debug("%r: invalid input at the end: %s", self, exc)

    def _take_last(self, packet: Packet) -> None:
        self.statistics.packets_received += 1
        event = self.automaton.receive(packet, self.now())
        if event is not None:
            self._handle(event)

    def _end_by(self, failure: Exception) -> None:
        """End the session by what the transport has raised."""
        match failure:
            case anyio.EndOfStream():
                reason = "the peer closed the transport" + (f": {failure}" if str(failure) else "")
                self._end(Ended("transport close", reason, by_peer=True), flush=False)
            case ConnectionLost(code=code, reason=reason):
                self.end(code, reason, flush=False)
            case ProtocolError():
                self.log().info("%r: invalid input: %s", self, failure)
                self.end("parse error", str(failure))
            case anyio.ClosedResourceError():
                self.end("transport error", "the transport was closed", flush=False)
            case _:
                raise failure

    async def _receive(self) -> list[Packet]:
        """Receive on a road that may be left meanwhile: nothing then, and the next one is by the other road."""
        transport = self.transport
        packets: list[Packet] = []
        with anyio.CancelScope() as self._receiving:
            try:
                packets = await transport.receive()
            except anyio.ClosedResourceError:
                # left at the moment at which this task was woken on it, it is no end
                if transport is self.transport:
                    raise
        self._receiving = None
        return packets

    def _handle(self, event: Event) -> None:
        match event:
            case Ended():
                # a peer that says goodbye does not read what is left; a deadline that has passed leaves nobody to read
                # it
                self._end(event, flush=False)
            case OfferExpired():
                if self._offer is not None:
                    self._offer.cancel()
            case _:
                self._sink.handle(event)
        self.reschedule()

    async def _write(self) -> None:
        try:
            while True:
                polling = self.transport.name == "polling"
                packets, count = self._outbox.peek(BATCH_BYTES, POLLING_PACKETS if polling else math.inf)
                if not packets and (self._prompt is None or self._prompt.flushed):
                    # others may write at once, for a bounded time
                    self._run = 0
                    self._writing = False
                    self._outbox.note_emptied()
                    assert self._filled is not None
                    await self._filled.wait()
                    if self._outbox.closed:
                        return
                    continue
                if self._may_change:
                    sent = await self._send(packets)
                else:
                    await self.transport.send(packets)
                    sent = True
                if sent:
                    self.statistics.packets_sent += len(packets)
                    self._outbox.commit(count)
        except (anyio.ClosedResourceError, ConnectionLost) as exc:
            self._cut = self._cause is None
            self._end_by(exc)
        finally:
            self._close_outbox()
            self._writing = False

    async def _send(self, packets: list[Packet]) -> bool:
        """Send on a road that may be left meanwhile; returns whether it has been sent: the rest goes by the other."""
        transport = self.transport
        sent = False
        with anyio.CancelScope() as self._sending:
            try:
                await transport.send(packets)
                sent = True
            except anyio.ClosedResourceError:
                if transport is self.transport:
                    raise
        self._sending = None
        return sent

    def _keep_time(self) -> None:
        event: Event | None = None
        while (event := self.automaton.expire(self.now())) is not None:
            self._handle(event)
        self._reply()
        self._alarm.set(self.automaton.deadline)

    # -- the upgrade

    async def upgrade(self, road: Transport, polling: PollingRoad) -> None:
        """Take a second road that has come for this session; returns when that road is closed.

        If the peer does not change to it in an orderly way and in time, that road is closed and the session stays where
        it is.
        """
        changed = False
        rest: list[Packet] = []
        try:
            self.automaton.offer(self.now())
            try:
                with anyio.CancelScope() as self._offer:
                    self.reschedule()
                    rest = await self._probe(road, polling)
                    changed = True
            finally:
                self._offer = None
                if self._changing is not None:
                    self._changing.set()
                    self._changing = None
                if not changed:
                    self.automaton.lose_offer()
                    polling.release()
        except (ProtocolError, ConnectionLost, anyio.EndOfStream, anyio.ClosedResourceError) as exc:
            self.log().info("%r: upgrade failed: %s", self, exc)
        finally:
            if not changed:
                with anyio.CancelScope(shield=True), anyio.move_on_after(self.settings.close_timeout):
                    await road.aclose(1002, "the upgrade failed")
        if changed:
            self._change_road(road, rest)
            polling.retire()
            await self.wait_closed()

    def change_road(self, polling: ClientPollingRoad, dial: Callable[[], Awaitable[Transport]]) -> None:
        """Client: begin to leave polling for the road that ``dial`` opens.

        If the server does not take it in time, that road is closed and the session stays where it is.

        :param dial: raises HandshakeError or ConnectionLost where it fails.
        """
        self._leaving = True
        self.task_group.start_soon(self._leave_polling, polling, dial, name="upgrade")

    async def _leave_polling(self, polling: ClientPollingRoad, dial: Callable[[], Awaitable[Transport]]) -> None:
        road: Transport | None = None
        failure = "it took longer than the upgrade timeout"
        changed = False
        try:
            self.automaton.offer(self.now())
            agreed: tuple[Transport, Packet, list[Packet]] | None = None
            with anyio.CancelScope() as self._offer:
                self.reschedule()
                road = await dial()
                await road.send([PROBE])
                for packet in await road.receive():
                    self.automaton.receive_probe_answer(packet, self.now())
                rest = await polling.pause()
                agreed = road, self.automaton.upgrade(), rest
            self._offer = None
            if agreed is not None:
                road, upgrade, rest = agreed
                # Whether or not this arrives, the server may have changed its road: there is no way back.
                try:
                    await road.send([upgrade])
                except ConnectionLost as exc:
                    self.end(exc.code, exc.reason, flush=False)
                    raise
                self._change_road(road, rest)
                polling.retire()
                changed = True
        except (HandshakeError, ProtocolError, ConnectionLost, anyio.EndOfStream) as exc:
            failure = str(exc) or type(exc).__name__
        finally:
            self._offer = None
            if not changed:
                self.automaton.lose_offer()
                polling.release()
                if road is not None:
                    with anyio.CancelScope(shield=True), anyio.move_on_after(self.settings.close_timeout):
                        await road.aclose(1002, "the upgrade failed")
        if not changed and self._cause is None:
            self.log().info("%r stays on polling: %s", self, failure)

    async def wait_closed(self) -> None:
        """Wait until the session is over. Cancelled, it ends the session: its road belongs to the task that waits."""
        try:
            await self._over.wait()
        finally:
            self.end("transport error", "the request that carried the session was cancelled", flush=False)

    async def _probe(self, road: Transport, polling: PollingRoad) -> list[Packet]:
        """Answer the probe and wait for the change; returns the packets that came with it."""
        while True:
            packets = await road.receive()
            for index, packet in enumerate(packets):
                if self._cause is not None and packet.type is PacketType.UPGRADE:
                    return []  # a session that ends, whose automaton is closed, reads no more
                answer = self.automaton.receive_offer(packet, self.now())
                if answer is None:
                    return packets[index + 1 :]
                polling.hold()
                self._changing = anyio.Event()
                await road.send([answer])

    def _change_road(self, road: Transport, rest: list[Packet]) -> None:
        self.transport = road
        self._prompt = _prompt(road)
        if not self._outbox.closed:
            self._direct = self._prompt
        self._may_change = False
        self.statistics.upgrades += 1
        # behind what came by the road before, and could not be taken yet
        self._pushed_back += rest
        for scope in (self._receiving, self._sending):
            if scope is not None:
                scope.cancel()


#: WebSocket close codes (RFC 6455, section 7.4.1) for ends that have one of their own
_CLOSE_CODES: dict[str, int] = {"server shutting down": 1001, "parse error": 1002, "too many actions": 1008}

#: ends after which the peer takes no part in a closing handshake
_DEAD = frozenset({"ping timeout", "stalled", "transport error", "transport close"})
