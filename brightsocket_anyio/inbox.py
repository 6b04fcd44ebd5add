"""The inbox of a connection: what has arrived and not been received, action by action. Nothing in here waits.

Each action name has a *lane*: what has arrived for it, in order, and its receivers. A lane without receivers keeps what
has arrived, within the inbox's bound: the oldest of all such lanes is dropped for what comes later. A lane with
receivers hands on as long as every one of them has room; then it fills up, and once it is full the session must not
read on. Filters, where there are any, come between: they take one item of a lane at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final

from .prefetch import Piece, whole_lines


@dataclass(slots=True, eq=False)
class Item:
    """One action that has arrived. ``question``: the peer waits for an answer, which ``answerer`` gives. ``filtered``:
    all filters have let it pass."""

    args: tuple[Any, ...]
    question: Any
    size: int
    order: int
    filtered: bool = False
    answerer: Receiver | None = None


_NO_ITEMS: Final[deque[Item]] = deque(maxlen=0)


class Buffer(Piece):
    """A bounded queue of items that counts them and their bytes; one that is larger than the bound goes in alone.

    It has no deque of its own before the first item: an idle connection has two buffers for each of its handlers, and
    an empty deque takes 600 bytes.
    """

    __slots__ = ("items", "max_items", "max_size", "size")

    def __init__(self, max_items: int, max_size: int) -> None:
        self.items: deque[Item] = _NO_ITEMS
        self.size: int = 0
        self.max_items: int = max_items
        self.max_size: int = max_size

    def has_room(self, size: int, times: float = 1) -> bool:
        """Whether an item of ``size`` bytes fits in, the bounds taken ``times`` over."""
        if not self.items:
            return True
        return len(self.items) < times * self.max_items and self.size + size <= times * self.max_size

    def push(self, item: Item) -> None:
        if self.items is _NO_ITEMS:
            self.items = deque()
        self.items.append(item)
        self.size += item.size

    def push_back(self, item: Item) -> None:
        if self.items is _NO_ITEMS:
            self.items = deque()
        self.items.appendleft(item)
        self.size += item.size

    def insert(self, item: Item) -> None:
        """Put an item in its place by its order."""
        if self.items is _NO_ITEMS:
            self.items = deque()
        self.items.insert(sum(other.order < item.order for other in self.items), item)
        self.size += item.size

    def pop(self) -> Item:
        item = self.items.popleft()
        self.size -= item.size
        return item


class Receiver(Buffer, ABC):
    """What takes an action's items, a stream or a handler, with the buffer of those that it has not come to yet.

    :ivar answers: whether its result answers the peer's call.
    """

    __slots__ = ("action", "inbox")

    answers: bool = False

    def __init__(self, max_items: int, max_size: int) -> None:
        # not by super(), which takes as long as all of it
        Buffer.__init__(self, max_items, max_size)
        self.inbox: Inbox | None = None
        self.action: str = ""

    @abstractmethod
    def put(self, item: Item) -> None:
        """Take an item, for which there is room. If the peer made a call, and this receiver is the item's answerer, it
        is this one's to answer."""

    def freed(self) -> None:
        """To be called when room has come free in the buffer."""
        if self.inbox is not None:
            self.inbox.freed(self.action)


class Lane(Buffer):
    """What has arrived for one action and waits, and the action's receivers.

    :ivar sole: the only one of the receivers, if there is just one.
    :ivar busy: whether filters are at work on one of its items.
    """

    __slots__ = whole_lines((Buffer,), "action", "busy", "receivers", "sole")

    def __init__(self, action: str, max_items: int, max_size: int) -> None:
        Buffer.__init__(self, max_items, max_size)
        self.action: str = action
        self.receivers: tuple[Receiver, ...] = ()
        self.sole: Receiver | None = None
        self.busy: bool = False

    def have(self, receivers: tuple[Receiver, ...]) -> None:
        """Have other receivers from now on."""
        self.receivers = receivers
        self.sole = receivers[0] if len(receivers) == 1 else None


class _InboxFields(Piece):
    """What each message looks at: see ``_SessionFields``."""

    __slots__ = (
        "_latest",
        "_order",
        "filtering",
        "full",
        "open",
    )


class Inbox(_InboxFields):
    """The lanes of one connection.

    :param filter: asked to filter a lane's next item; ``None`` while there are no filters.
    :param answer: answers a peer's call with nothing.
    :param dropped: told the action of each item that is dropped.
    :param changed: called whenever :attr:`full` may have become false, or an item may have been taken.
    :ivar full: whether a lane that has receivers is full.
    :ivar watched: whether somebody outside waits for room, so that each change has to be told.
    """

    __slots__ = whole_lines(
        (_InboxFields,),
        "_answer",
        "_changed",
        "_dropped",
        "_filter",
        "_full",
        "_lanes",
        "_max_items",
        "_max_size",
        "_unclaimed",
        "_unclaimed_size",
        "watched",
    )

    def __init__(
        self,
        max_items: int,
        max_size: int,
        *,
        filter: Callable[[Lane], None],
        answer: Callable[[Item], None],
        dropped: Callable[[str], None],
        changed: Callable[[], None],
    ) -> None:
        self._max_items = max_items
        self._max_size = max_size
        self._filter = filter
        self._answer = answer
        self._dropped = dropped
        self._changed = changed
        self._lanes: dict[str, Lane] = {}
        #: the lane of the latest action, mostly that of the next one, too
        self._latest: Lane | None = None
        self._unclaimed = 0
        self._unclaimed_size = 0
        self._full: dict[str, None] = {}
        self.full: bool = False
        self._order = 0
        self.filtering: bool = False
        self.open: bool = False
        self.watched: bool = False

    def add(self, action: str, args: tuple[Any, ...], question: Any, size: int) -> bool:
        """Take what has arrived; returns False, and takes nothing, when even the overflow is full."""
        lane = self._latest
        if lane is None or lane.action != action:
            lane = self._lanes.get(action)
            if lane is None:
                lane = self._lanes[action] = self._new_lane(action)
            self._latest = lane
        if self.full and action in self._full and not lane.has_room(size, 2):
            return False
        self._order += 1
        item = Item(args, question, size, self._order)
        if (
            (receiver := lane.sole) is not None
            and question is None
            and self.open
            and not (lane.items or lane.busy or self.filtering)
            and (not receiver.items or receiver.has_room(size))
        ):
            # the usual case: nothing waits, and nothing has to
            item.filtered = True
            receiver.put(item)
            return True
        lane.push(item)
        if lane.receivers:
            self._pump(lane)
        else:
            self._count(1, size)
            self._drop_overflow()
        return True

    def attach(self, action: str, receiver: Receiver) -> None:
        """Add a receiver to an action; it gets what waits for the action first."""
        receiver.inbox, receiver.action = self, action
        lane = self._lanes.get(action)
        if lane is None:
            lane = self._lanes[action] = self._new_lane(action)
        if lane.items and not lane.receivers:
            self._count(-len(lane.items), -lane.size)
        lane.have((*lane.receivers, receiver))
        if lane.items:
            self._pump(lane)

    def detach(self, receiver: Receiver) -> None:
        """Remove a receiver. What the last one leaves unread waits again, in its order."""
        if receiver.inbox is not self:
            return
        receiver.inbox = None
        lane = self._lanes[receiver.action]
        lane.have(tuple(each for each in lane.receivers if each is not receiver))
        if lane.receivers:
            self._pump(lane)
            return
        while receiver.items:
            item = receiver.items.pop()
            receiver.size -= item.size
            lane.push_back(item)
        self._count(len(lane.items), lane.size)
        self._mark(lane)
        self._drop_overflow()
        self._tidy(lane)
        self._changed()

    def accept(self) -> None:
        """The connection is accepted: whatever has receivers goes to them, in the order in which it arrived."""
        self.open = True
        lanes = [lane for lane in self._lanes.values() if lane.items and lane.receivers]
        for lane in sorted(lanes, key=lambda lane: lane.items[0].order):
            self._pump(lane)

    def close(self, *, hand_on: bool = False) -> None:
        """The connection is over: nothing is handed on any more.

        :param hand_on: what had arrived goes to its receivers first, beyond their bounds by as much as a lane holds;
            what has none stays for :meth:`take_rest`.
        """
        rest: dict[str, Lane] = {}
        if hand_on and self.open:
            for lane in self._lanes.values():
                while lane.receivers and lane.items and self._has_passed(lane.items[0]):
                    self.hand_on(lane, lane.pop())
                if not lane.receivers:
                    rest[lane.action] = lane
        self.open = False
        for lane in self._lanes.values():
            for receiver in lane.receivers:
                receiver.inbox = None
        self._lanes = rest
        self._latest = None
        self._full.clear()
        self.full = False

    def let_go(self) -> None:
        """The connection has finished: nobody is told of anything any more, or kept."""
        self._filter = self._answer = self._dropped = self._changed = _ignore

    def take_rest(self, action: str) -> list[Item]:
        """When the inbox is closed: what had arrived for an action without receivers. Only filters that are gone could
        let the rest of it pass."""
        lane = self._lanes.pop(action, None)
        return [] if lane is None else list(takewhile(self._has_passed, lane.items))

    def freed(self, action: str) -> None:
        """One of an action's receivers has room again: hand on what it waited for."""
        lane = self._lanes.get(action)
        if lane is not None and (lane.items or self.full or self.watched):
            self._pump(lane)

    def ready(self, lane: Lane, item: Item) -> bool:
        """Whether an item that the filters hold may be handed on: what came before it has been, and there is room."""
        while lane.receivers and lane.items and lane.items[0].order < item.order:
            if not self._has_room(lane, lane.items[0]):
                return False
            self.hand_on(lane, lane.pop())
        return self._has_room(lane, item)

    def hand_on(self, lane: Lane, item: Item) -> None:
        """Give an item to every receiver of its lane; where there is none left, it waits again, in its place."""
        item.filtered = True
        if not lane.receivers:
            lane.insert(item)
            self._count(1, item.size)
            self._drop_overflow()
            return
        answerer = next((receiver for receiver in lane.receivers if receiver.answers), None)
        item.answerer = answerer
        for receiver in lane.receivers:
            receiver.put(item)
        if answerer is None and item.question is not None:
            self._answer(item)

    def take(self, lane: Lane) -> Item | None:
        """Take a lane's next item for the filters, if it still has one and a receiver; :meth:`done` follows."""
        if not lane.receivers or not lane.items:
            return None
        item = lane.pop()
        self._mark(lane)
        self._changed()
        return item

    def done(self, lane: Lane) -> None:
        """The filters have done with a lane's item."""
        lane.busy = False
        self._pump(lane)
        self._tidy(lane)

    def _has_passed(self, item: Item) -> bool:
        return item.filtered or not self.filtering

    def _new_lane(self, action: str) -> Lane:
        return Lane(action, self._max_items, self._max_size)

    def _pump(self, lane: Lane) -> None:
        while self.open and lane.items and lane.receivers and not lane.busy:
            item = lane.items[0]
            if not self._has_passed(item):
                lane.busy = True
                self._filter(lane)
            elif self._has_room(lane, item):
                lane.pop()
                self.hand_on(lane, item)
            else:
                break
        self._mark(lane)
        self._changed()

    def _has_room(self, lane: Lane, item: Item) -> bool:
        return all(receiver.has_room(item.size) for receiver in lane.receivers)

    def _mark(self, lane: Lane) -> None:
        # once full, a lane stays so until it is half empty: the session does not stop and go for each message
        if lane.receivers and not lane.has_room(1, 0.5 if lane.action in self._full else 1):
            self._full[lane.action] = None
        else:
            self._full.pop(lane.action, None)
        self.full = bool(self._full)

    def _count(self, items: int, size: int) -> None:
        self._unclaimed += items
        self._unclaimed_size += size

    def _drop_overflow(self) -> None:
        while self._unclaimed > self._max_items or (self._unclaimed > 1 and self._unclaimed_size > self._max_size):
            lanes = [lane for lane in self._lanes.values() if lane.items and not lane.receivers]
            oldest = min(lanes, key=lambda lane: lane.items[0].order)
            item = oldest.pop()
            self._count(-1, -item.size)
            self._dropped(oldest.action)
            self._tidy(oldest)

    def _tidy(self, lane: Lane) -> None:
        if not lane.receivers and not lane.items and not lane.busy:
            self._lanes.pop(lane.action, None)
            self._latest = None


def _ignore(_: object = None) -> None:
    pass
