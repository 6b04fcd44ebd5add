"""``Connection``: one client on one channel, the same class on both sides; and the core that its owner drives."""

from __future__ import annotations

import contextvars
import logging
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

import anyio
from anyio.abc import ObjectReceiveStream
from anyio.lowlevel import checkpoint_if_cancelled

from .ends import End
from .errors import ConnectionLost
from .inbox import Inbox, Item, Lane
from .parking import Latch, Tasks, current_deadline, open_tasks
from .prefetch import Piece, whole_lines
from .protocol.state import Action, Unit
from .receivers import Handler, Stream, unpack
from .recovery import RECOVERABLE, Journal
from .request import Request
from .session import Session
from .settings import Settings
from .settling import settle, settling, unsettled
from .signature import Adapted
from .stand import Stand
from .workers import Job, Workers

Function = TypeVar("Function", bound=Callable[..., Any])

#: marks of the connections in whose tasks the current code runs, the innermost last; marks, since a loop's timers may
#: keep a context, and so whatever it refers to, for long after its task
_inside: contextvars.ContextVar[tuple[object, ...]] = contextvars.ContextVar("inside", default=())


def enclosing(*further: object) -> Callable[[], None]:
    """What marks a later task as being inside the same connections as the current one, and inside further ones.

    :param further: marks.
    """
    within = (*_inside.get(), *further)

    def enter() -> None:
        _inside.set(within)
        settling.set(None)

    return enter


def _is_end(exc: BaseException) -> bool:
    if isinstance(exc, BaseExceptionGroup):
        return all(_is_end(each) for each in exc.exceptions)
    return isinstance(exc, (anyio.ClosedResourceError, anyio.EndOfStream, anyio.BrokenResourceError))


@dataclass(slots=True, eq=False)
class _Call:
    """A call of ours. It is over when it has its answer (``args``), or when the session that carried it is lost."""

    over: anyio.Event
    args: tuple[Any, ...] | None = None
    loss: End | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A call of the peer's, which can be answered on the session that brought it only."""

    core: ConnectionCore
    session: Session
    id: int


class Owner(Protocol):
    """Whose connection it is."""

    async def prepare(self) -> None:
        """What comes before the scope, and may end the connection: then there is none."""
        ...

    def begin(self) -> None:
        """Functions can be started in the scope."""
        ...

    def finish(self) -> None:
        """However it has ended, everything in the scope has finished."""
        ...


class _ConnectionCoreFields(Piece):
    """What each message looks at: see ``_SessionFields``."""

    __slots__ = (
        "accepted",
        "ended",
        "inbox",
        "journal",
        "namespace",
        "session",
    )


class ConnectionCore(_ConnectionCoreFields):
    """What a connection does, for whoever owns it: its scope, its inbox, its outgoing messages, its end.

    :param ids: ack ids that the session has not used.
    :param failed: told of an exception of a handler or filter; returns how the connection ends by it.
    :ivar resumes: whether another session takes the place of one that is lost (:meth:`suspend`, then :meth:`resume`).
    :ivar journal: a server's, of what is sent, if the client may come back for what it has missed.
    :ivar recovered: whether this goes on from what was lost, nothing of what the server sent being missed.
    """

    __slots__ = whole_lines(
        (_ConnectionCoreFields,),
        "__weakref__",
        "_away",
        "_call_slots",
        "_calls",
        "_decided",
        "_failed",
        "_filters",
        "_held",
        "_held_size",
        "_ids",
        "_mark",
        "_room",
        "_streams",
        "_task_group",
        "_workers",
        "channel",
        "dropped",
        "enter",
        "id",
        "moved",
        "over",
        "recovered",
        "resumes",
        "rooms",
        "settings",
    )

    def __init__(
        self,
        session: Session,
        namespace: str,
        channel: str,
        settings: Settings,
        *,
        id: str,
        ids: Iterator[int],
        failed: Callable[[Exception], End],
    ) -> None:
        self.session: Session = session
        self.namespace: str = namespace
        self.channel: str = channel
        self.settings: Settings = settings
        self.id: str = id
        self.ended: End | None = None
        self.over: Latch = Latch()
        self.accepted: bool = False
        self.resumes: bool = False
        self.journal: Journal | None = None
        self.recovered: bool = False
        self.dropped: int = 0
        self.inbox: Inbox = Inbox(
            settings.max_buffered_messages,
            settings.max_buffered_bytes,
            filter=self._filter,
            answer=self._answer_nothing,
            dropped=self._note_dropped,
            changed=self._note_changed,
        )
        self._ids = ids
        self._failed: Callable[[Exception], End] | None = failed
        #: the rooms that a server's connection has joined, and who is told of further ones once it is accepted
        self.rooms: set[str] = set()
        self.moved: Callable[[str, bool], None] | None = None
        self._filters: list[Callable[..., Awaitable[Any]]] = []
        self._streams: list[Stream] = []
        self._calls: dict[int, _Call] = {}
        #: made at the first call, which most connections never make
        self._call_slots: anyio.Semaphore | None = None
        #: what is to be sent once the connection is accepted, with its sender, and its offset for the journal
        self._held: list[tuple[Unit, object | None, str | None]] = []
        self._held_size = 0
        #: how the session before was lost, until the connection is accepted again
        self._away: End | None = None
        self._decided = Latch()
        self._mark = object()
        #: marks the current task as one of the connection's
        self.enter: Callable[[], None] = enclosing(self._mark)
        self._task_group: Tasks | None = None
        self._workers: Workers
        self._room: anyio.Event | None = None

    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """The logger, with the fields ``session`` and ``channel``."""
        return self.session.log(self.channel)

    # -- the scope

    async def run(self, owner: Owner) -> None:
        """The connection's scope. Returns once it has ended and every task in it has finished.

        What its owner does before and after is called from here, and not around it, since each message would have to
        come through the owner's coroutine, too.
        """
        try:
            await owner.prepare()
            if self.ended is not None:
                return
            async with open_tasks() as self._task_group:
                self._workers = Workers(self._task_group, self.enter, attended=True)
                try:
                    owner.begin()
                    await self._workers.work()
                    if self.settings.grace:
                        self._task_group.cancel_scope.cancel()
                finally:
                    # here, since nothing can be started once the task group waits for its last tasks
                    self.end(End("closed", "the connection's scope was cancelled"))
        finally:
            self._task_group = None
            owner.finish()

    def start(self, function: Job) -> None:
        """Run a function in the connection's scope."""
        self._workers.submit(function)

    @property
    def workers(self) -> Workers | None:
        """The scope's workers, if one of them may read for the session: with a grace, what ends the connection would
        not end that."""
        return self._workers if self.accepted and self.ended is None and not self.settings.grace else None

    def shield(self, shielded: bool) -> None:
        """Keep the scope from being cancelled by what is around it, or no longer, for an owner who knows when that is.

        To find out whether a task is cancelled, as each ``send`` does, AnyIO looks at every scope on asyncio, up to one
        that is shielded: three fewer by this, each of which has its own three lines of the processor's cache.
        """
        if self._task_group is not None:
            self._task_group.cancel_scope.shield = shielded

    def has_ended(self) -> bool:
        """Whether the connection has ended, though its tasks may have some grace yet."""
        return self.ended is not None

    @property
    def is_inside(self) -> bool:
        """Whether the current task is one of the connection's."""
        return self._mark in _inside.get()

    def end(self, end: End) -> None:
        """End the connection; the first end counts. Its scope is cancelled, its streams and calls end."""
        if self.ended is not None:
            return
        self.ended = end
        # first, so that a task in the scope that waits on a stream is cancelled, and does not see the stream end
        self._begin_to_end()
        self.inbox.close(hand_on=end.code != "closed")
        for stream in self._streams:
            stream.end(end)
        for call in self._calls.values():
            call.over.set()
        self._decided.set()
        self.session.wake()

    def _begin_to_end(self) -> None:
        """Finish the scope: what runs in it is cancelled, after the grace where there is one."""
        if self._task_group is None:
            return
        if self.settings.grace:
            self.shield(False)
            self._workers.finish()
            self._task_group.start_soon(self._cancel_later, name="grace")
        elif self._workers.quiet:
            # there is nothing to cancel, which would take its time
            self._workers.stop()
        else:
            self._cancel()

    async def _cancel_later(self) -> None:
        with anyio.move_on_after(self.settings.grace):
            await anyio.sleep_forever()
        self._cancel()

    def _cancel(self) -> None:
        assert self.ended is not None
        assert self._task_group is not None
        self._task_group.cancel_scope.cancel(f"{self.ended.code}: {self.ended.reason}")

    def finish(self) -> None:
        """The connection is over, and everything in its scope has finished: wake who waits for that, and let go of
        whoever owns it, so that what is left is no work for the garbage collector."""
        self.over.set()
        self.inbox.let_go()
        self._failed = None

    def fail(self, exc: Exception) -> None:
        """A function of the connection's has failed. Having run into the connection's own end is no failure."""
        if (self.ended is not None or self.session.ending is not None) and _is_end(exc):
            return
        if self._failed is not None:
            self.end(self._failed(exc))

    def accept(self, units: list[Unit]) -> None:
        """The connection is accepted: send ``units``, then what was sent meanwhile; deliver what has arrived."""
        for unit in units:
            self.session.push(unit)
        for unit, sender, offset in self._held:
            self.session.push(unit, sender)
            if offset is not None:
                self._enter_journal(offset, unit)
        self._held.clear()
        self._held_size = 0
        self._away = None
        self.accepted = True
        self._decided.set()
        self.inbox.accept()

    def suspend(self, loss: End) -> None:
        """The session is lost, and another will take its place: calls under way fail, sends wait. Idempotent."""
        if self.accepted and self.ended is None:
            self.accepted = False
            self._decided = Latch()
            self._away = loss
            for call in self._calls.values():
                call.loss = loss
                call.over.set()

    def resume(self, session: Session) -> None:
        """The next session is there, on which :meth:`accept` follows. What was left unsent goes first then."""
        self._held[:0] = [(unit, self, None) for unit in self.session.unsent]
        self._held_size += sum(packet.size for unit in self.session.unsent for packet in unit)
        self.session = session

    # -- sending

    def check(self) -> None:
        """:raises: what :meth:`End.exception` gives, if the connection has ended."""
        if self.ended is not None:
            raise self.ended.exception()

    async def _check_later(self) -> None:
        """:meth:`check` after a wait: whoever is cancelled by the end is cancelled, and does not hear of it."""
        if self.ended is not None:
            await checkpoint_if_cancelled()
            self.check()

    def send_nowait(self, unit: Unit, sender: object | None = None, offset: str | None = None) -> bool:
        """Send a unit if there is room for it, now or when the client is back; returns whether there was.

        :param sender: as for :meth:`Session.send_nowait <brightsocket_anyio.session.Session.send_nowait>`.
        :param offset: the unit's, for the journal.
        """
        session = self.session
        taken = session.send_nowait(unit, sender)
        if self.journal is None or offset is None:
            return taken
        if taken or (session.ending is not None and session.ending.code in RECOVERABLE):
            self.journal.add(offset, unit)
            return True
        return False

    async def send(self, unit: Unit, call: _Call | None = None, offset: str | None = None) -> None:
        """Send a unit once the connection is accepted. Returns when a buffer has taken it.

        :param call: what the unit asks for; once that is over, nothing is sent.
        :param offset: the unit's, for the journal.
        """
        # what is sent of a call that has failed would be answered to nobody
        sender = self if self.resumes and call is None else None
        placed = None if offset is None else partial(self._enter_journal, offset, unit)
        while call is None or not call.over.is_set():
            if not self.accepted:
                if self._away is not None and self.settings.while_away == "fail":
                    raise self._away.exception()
                if self._hold(unit, sender, offset):
                    return
                await self.wait_accepted()
            session = self.session
            try:
                await session.send(unit, sender, placed)
            except anyio.ClosedResourceError:
                await self._check_later()
                ending = session.ending
                loss = End(ending.code if ending else "transport error", "the session is over")
                if not self.resumes:
                    raise loss.exception() from None
                if session is self.session:
                    self.suspend(loss)
            else:
                if self.ended is not None:
                    # it waited for room until after the end
                    await self._check_later()
                return

    def _enter_journal(self, offset: str, unit: Unit) -> None:
        assert self.journal is not None
        self.journal.add(offset, unit)

    def _hold(self, unit: Unit, sender: object | None, offset: str | None) -> bool:
        """Keep a unit until the connection is accepted, if there is room."""
        size = sum(packet.size for packet in unit)
        if self._held and (
            len(self._held) >= self.settings.max_buffered_messages
            or self._held_size + size > self.settings.max_buffered_bytes
        ):
            return False
        self._held.append((unit, sender, offset))
        self._held_size += size
        return True

    async def wait_accepted(self) -> None:
        """Wait until the connection is accepted."""
        settle()
        await self._decided.wait()
        self.check()

    async def wait_decided(self) -> None:
        """Wait until the connection is accepted, or has ended."""
        await self._decided.wait()

    async def call(self, action: str, args: tuple[Any, ...]) -> Any:
        if self._call_slots is None:
            self._call_slots = anyio.Semaphore(self.settings.max_calls, fast_acquire=True)
        async with self._call_slots:
            self.check()
            id = next(self._ids)
            unit = self.session.automaton.encode_action(self.namespace, action, args, id)
            self._calls[id] = call = _Call(anyio.Event())
            try:
                self.session.wake()
                await checkpoint_if_cancelled()
                settle()
                await self.send(unit, call)
                await call.over.wait()
            finally:
                del self._calls[id]
            if call.args is None:
                await self._check_later()
                assert call.loss is not None
                raise ConnectionLost(call.loss.code, f"the call was under way: {call.loss.reason}")
            return unpack(call.args)

    @property
    def calling(self) -> bool:
        """Whether a call awaits its answer."""
        return bool(self._calls)

    async def answer(self, question: Question, args: tuple[Any, ...]) -> None:
        """Answer a peer's call; without effect when the connection has ended, or the session that brought it.

        :raises ValueError: a value cannot be sent.
        """
        session = question.session
        unit = session.automaton.encode_answer(self.namespace, question.id, args)
        await checkpoint_if_cancelled()
        try:
            self.check()
            await session.send(unit)
        except (anyio.ClosedResourceError, anyio.EndOfStream, anyio.BrokenResourceError):
            self.log().debug("nobody waits for the answer any more")

    def _answer_nothing(self, item: Item) -> None:
        question: Question = item.question
        question.session.push(question.session.automaton.encode_answer(self.namespace, question.id, ()))

    # -- receiving

    def deliver(self, action: Action) -> bool:
        """Take an action that has arrived; returns False when even the overflow is full."""
        if self.ended is not None:
            return True
        question = None if action.id is None else Question(self, self.session, action.id)
        return self.inbox.add(action.name, action.args, question, action.size)

    def resolve(self, id: int, args: tuple[Any, ...]) -> None:
        """Take the answer to a call; one that nobody waits for is ignored."""
        call = self._calls.get(id)
        if call is not None and call.args is None:
            call.args = args
            call.over.set()

    def receive(self, action: str) -> ObjectReceiveStream[Any]:
        if self.ended is not None:
            rest = self.inbox.take_rest(action)
            if not rest:
                raise self.ended.exception()
            stream = Stream(self, Stand())
            for item in rest:
                stream.put(item)
            stream.end(self.ended)
            return stream
        stream = Stream(self, Stand(self._workers))
        self._streams.append(stream)
        self.inbox.attach(action, stream)
        return stream

    def move(self, rooms: tuple[str, ...], inside: bool) -> None:
        """Join rooms, or leave them."""
        self.check()
        for room in rooms:
            if (room in self.rooms) is not inside:
                (self.rooms.add if inside else self.rooms.discard)(room)
                if self.moved is not None:
                    self.moved(room, inside)

    def forget(self, stream: Stream) -> None:
        """A stream has closed."""
        if stream in self._streams:
            self._streams.remove(stream)
        self.inbox.detach(stream)

    def on(self, action: str, function: Callable[..., Any], limit: int) -> None:
        self.check()
        self.inbox.attach(action, Handler(function, limit, self.settings, self._workers, self.fail))

    def add_filter(self, function: Callable[..., Any]) -> None:
        self.check()
        self._filters.append(Adapted(function, "a filter"))
        self.inbox.filtering = True

    # -- filters

    def _filter(self, lane: Lane) -> None:
        async def work() -> None:
            item = self.inbox.take(lane)
            try:
                if item is not None:
                    await self._run_filters(tuple(self._filters), lane, item)
            except Exception as exc:
                self.fail(exc)
            finally:
                self.inbox.done(lane)

        self._workers.submit(work)

    async def _run_filters(self, filters: tuple[Callable[..., Awaitable[Any]], ...], lane: Lane, item: Item) -> None:
        if not filters:
            while self.ended is None and not self.inbox.ready(lane, item):
                if self._room is None:
                    # else it is what another action's filters wait for already
                    self._room = anyio.Event()
                    self.inbox.watched = True
                await self._room.wait()
            if self.ended is None:
                self.inbox.hand_on(lane, item)
            return
        forwarded = False

        async def forward(*payload: Any) -> None:
            nonlocal forwarded
            if forwarded:
                raise RuntimeError("a filter forwards an action at most once")
            forwarded = True
            if payload:
                item.args = payload
            await self._run_filters(filters[1:], lane, item)

        await filters[0](lane.action, unpack(item.args), forward)

    def _note_dropped(self, action: str) -> None:
        self.dropped += 1
        self.session.statistics.actions_dropped += 1
        if self.dropped == 1:
            self.log().warning("the inbox is full: dropped the oldest action, %.100r, which nothing receives", action)
        else:
            self.log().debug("the inbox is full: dropped %.100r, %d so far", action, self.dropped)

    def _note_changed(self) -> None:
        if self._room is not None:
            self._room.set()
            self._room = None
            self.inbox.watched = False
        self.session.wake()


class Connection(Piece):
    """One client on one channel. Both sides have one, and both use it the same way.

    It is a scope: its handlers, filters and (on the server) its channel's functions are tasks in it. However it ends,
    its streams end, its tasks are cancelled and have finished before anyone hears that it is over. It is made by the
    server, or by :meth:`Client.connect`, and closed by whoever made it; :meth:`aclose` ends it earlier.

    :ivar id: its id, which :meth:`Pool.send` takes: the Socket.IO id of the client.
    :ivar channel: the name of the channel.
    :ivar identity: what the client handed over.
    :ivar webserver: what the application is mounted on or wrapped around: the wrapped ASGI application, or the host's
        ASGI ``scope["app"]``; ``None`` where there is neither, and on the client.
    :ivar request: the request that opened the client's session; ``None`` on the client.
    """

    # and a dictionary, for what a channel's function may want to keep here
    __slots__ = ("__dict__", "__weakref__", "_core", "_deadline", "channel", "identity", "request", "webserver")

    def __init__(
        self,
        core: ConnectionCore,
        channel: str,
        identity: Mapping[str, Any],
        webserver: Any = None,
        request: Request | None = None,
    ) -> None:
        self._core = core
        #: tells the current task's effective one
        self._deadline: Callable[[], float] = current_deadline()
        self.channel: str = channel
        self.identity: Mapping[str, Any] = identity
        self.webserver: Any = webserver
        self.request: Request | None = request

    def __repr__(self) -> str:
        state = "open" if self._core.ended is None else self._core.ended.code
        return f"<Connection {self.channel} {state}>"

    @property
    def id(self) -> str:
        return self._core.id

    @property
    def transport(self) -> Literal["websocket", "polling"]:
        """What carries the connection at the moment: a session that begins by polling may move on to a WebSocket."""
        return self._core.session.transport.name

    @property
    def recovered(self) -> bool:
        """Whether this goes on from a session that was lost, with its id and its rooms, and whatever the server sent
        meanwhile comes first, in order and once (Socket.IO's connection state recovery).

        A server's connection is a new one then, whose channel's functions run as for any other; a client's says it of
        its last return. ``False`` where nothing was lost, and where the server could not, or was not set to
        (``max_disconnection_duration``).
        """
        return self._core.recovered

    @property
    def dropped(self) -> int:
        """How many actions that nothing received have been dropped because the inbox was full."""
        return self._core.dropped

    async def send(self, action: str, *payload: Any) -> None:
        """Send an action, with no value, one or several.

        Returns when a bounded buffer has taken it; waits while that is full. Cancelled, the whole message is sent or
        nothing.

        :param payload: JSON values, in which there may be :class:`bytes`; NaN and the infinities become null.
        :raises ValueError: the payload cannot be sent, the name is one of Socket.IO's or Brightsocket's own, or the
            message is longer than this client's server takes.
        :raises anyio.ClosedResourceError: this side has closed the connection.
        :raises anyio.EndOfStream: the peer has ended the connection.
        :raises ConnectionLost: the connection was lost.
        """
        # in one coroutine: another one for each message is a hundredth of an echo
        core = self._core
        if core.ended is not None:
            core.check()
        offset = None
        if core.journal is not None:
            offset = core.journal.mint()
            payload = (*payload, offset)
        session = core.session
        unit = session.automaton.encode_action(core.namespace, action, payload)
        if self._deadline() == -math.inf:
            await checkpoint_if_cancelled()
        if unsettled:
            settle()
        if offset is not None or not core.accepted or session is not core.session or not session.send_at_once(unit):
            await core.send(unit, offset=offset)

    async def call(self, action: str, *payload: Any) -> Any:
        """Send an action and wait for the peer's answer (a Socket.IO acknowledgement).

        There is no timeout: use :func:`anyio.move_on_after` or :func:`anyio.fail_after`. Cancelled, the answer is
        ignored when it comes. While a call waits, the session reads on even if receivers are full, within a bound past
        which it ends.

        :returns: ``None`` for an empty answer, the value for one, a tuple for several.
        :raises: as :meth:`send`; also when the connection ends before the answer.
        """
        core = self._core
        core.check()
        return await core.call(action, payload)

    def receive(self, action: str) -> ObjectReceiveStream[Any]:
        """Receive an action's payloads as a stream: ``None`` for none, the value for one, a tuple for several.

        It receives from this moment on, what the inbox holds for the action first; close it (``async with``) to stop.
        Every receiver of an action gets every payload. A full stream holds back the reading of its session. What had
        arrived before the peer ended the connection, or it was lost, can be received after that, too.

        :raises: as :meth:`send`, when the connection has ended and nothing of the action is left.
        """
        return self._core.receive(action)

    def on(self, action: str, *, limit: int = 1) -> Callable[[Function], Function]:
        """Handle an action: a decorator for a function of the payload's values.

        The function runs in the connection's scope, for one payload after the other (or ``limit`` at a time). Missing
        values are ``None``, surplus ones are left out. What the first handler of an action returns answers a peer's
        :meth:`call`: a tuple is several values. If it raises, a server's connection ends and the peer is told; a
        client's exception comes out of ``open_client``.

        :param limit: how many payloads are handled at the same time.
        :raises ConfigurationError: the function cannot be called with positional arguments, or ``limit`` is below 1.
        :raises: as :meth:`send`, when the connection has ended.
        """

        def decorate(function: Function) -> Function:
            self._core.on(action, function, limit)
            return function

        return decorate

    def add_filter(self, function: Function) -> Function:
        """Put a function before all receivers: ``await function(action, payload, forward)``. Usable as a decorator.

        Filters run in the order they were added, once for each action. ``await forward()`` lets the action pass,
        ``await forward(payload)`` with another payload; it returns when the receivers hold it, and may be called once.
        If it is not called, nobody sees the action.

        :raises ConfigurationError: the function cannot be called with positional arguments.
        :raises: as :meth:`send`, when the connection has ended.
        """
        self._core.add_filter(function)
        return function

    def join(self, *rooms: str) -> None:
        """On a server: join rooms, to whose connections :meth:`Pool.emit` sends what is for one ``to`` them.

        The connection leaves them when it ends. Joining a room twice is joining it once. Without effect on a client,
        whose server decides about rooms.

        :raises: as :meth:`send`, when the connection has ended.
        """
        self._core.move(rooms, True)

    def leave(self, *rooms: str) -> None:
        """On a server: leave rooms; those that the connection is not in do no harm.

        :raises: as :meth:`send`, when the connection has ended.
        """
        self._core.move(rooms, False)

    @property
    def rooms(self) -> frozenset[str]:
        """The rooms that the connection has joined."""
        return frozenset(self._core.rooms)

    async def accept(self) -> None:
        """In a channel's function: it has checked what it had to. Returns when the connection is accepted.

        A function that sends, waits for an action or returns has said so without this. Without effect on the client.

        :raises: as :meth:`send`, when the connection ends instead.
        """
        await self._core.wait_accepted()

    async def aclose(self) -> None:
        """End the connection: what was accepted for sending is sent, within the close timeout. Idempotent.

        Returns when everything in the connection's scope has finished. From inside that scope it does not wait: the
        current task is cancelled at its next checkpoint, as the others are.
        """
        core = self._core
        core.end(End("closed", "this side closed the connection"))
        if core.is_inside:
            return
        await core.over.wait()
