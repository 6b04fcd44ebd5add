"""The inbox: lanes, receivers, bounds. Nothing in it waits, so these tests have no loop."""

from __future__ import annotations

from typing import Any

import pytest

from brightsocket_anyio.inbox import Inbox, Item, Lane, Receiver


class Taker(Receiver):
    """A receiver that keeps what it is given until the test takes it."""

    def __init__(self, max_items: int = 2, max_size: int = 100, *, answers: bool = False) -> None:
        super().__init__(max_items, max_size)
        self.answers = answers
        self.to_answer: list[Any] = []

    def put(self, item: Item) -> None:
        self.push(item)
        if item.question is not None and item.answerer is self:
            self.to_answer.append(item.args[0])

    @property
    def values(self) -> list[Any]:
        return [item.args[0] for item in self.items]

    def take(self) -> Any:
        item = self.pop()
        self.freed()
        return item.args[0]


class Box:
    """An inbox, and what it has told its owner."""

    def __init__(self, max_items: int = 3, max_size: int = 1000) -> None:
        self.filtering: list[Lane] = []
        self.answered: list[Any] = []
        self.dropped: list[str] = []
        self.changes = 0
        self.inbox = Inbox(
            max_items,
            max_size,
            filter=self.filtering.append,
            answer=lambda item: self.answered.append(item.args[0]),
            dropped=self.dropped.append,
            changed=self._change,
        )
        self.inbox.accept()

    def _change(self) -> None:
        self.changes += 1

    def add(self, action: str, *values: Any, id: int | None = None, size: int = 1) -> bool:
        taken = [self.inbox.add(action, (value,), id, size) for value in values]
        return all(taken)

    def attach(self, action: str, receiver: Taker | None = None) -> Taker:
        receiver = receiver or Taker()
        self.inbox.attach(action, receiver)
        return receiver

    def waiting(self, action: str) -> list[Any]:
        """What a new receiver with all the room it may want would be given."""
        receiver = self.attach(action, Taker(1000, 1_000_000))
        values = receiver.values
        self.inbox.detach(receiver)
        return values


@pytest.fixture
def box() -> Box:
    return Box()


def test_what_nobody_receives_waits_and_goes_to_the_first_receiver_in_order(box: Box) -> None:
    box.add("A", 1, 2)
    assert box.attach("A").values == [1, 2]


def test_every_receiver_gets_every_item(box: Box) -> None:
    receivers = [box.attach("A") for _ in range(3)]
    box.add("A", 1, 2)
    assert [receiver.values for receiver in receivers] == [[1, 2]] * 3


def test_what_waited_is_for_the_first_receiver_only(box: Box) -> None:
    box.add("A", 1)
    first, second = box.attach("A"), box.attach("A")
    assert (first.values, second.values) == ([1], [])


def test_actions_do_not_touch_each_other(box: Box) -> None:
    slow, quick = box.attach("SLOW"), box.attach("QUICK")
    box.add("SLOW", *range(5))
    box.add("QUICK", 1)
    assert (slow.values, quick.values) == ([0, 1], [1])


def test_the_slowest_receiver_of_an_action_holds_back_the_others(box: Box) -> None:
    quick, slow = box.attach("A", Taker(100)), box.attach("A", Taker(1))
    box.add("A", 1, 2)
    assert (quick.values, slow.values) == ([1], [1])
    slow.take()
    assert (quick.values, slow.values) == ([1, 2], [2])


def test_a_full_receiver_fills_its_lane_and_then_the_inbox_is_full_until_it_is_half_empty(box: Box) -> None:
    receiver = box.attach("A")
    box.add("A", 1, 2, 3, 4)
    assert not box.inbox.full
    box.add("A", 5)
    assert box.inbox.full
    receiver.take()
    assert box.inbox.full
    receiver.take()
    assert not box.inbox.full


def test_bytes_fill_a_lane_as_messages_do() -> None:
    box = Box(max_items=1000, max_size=10)
    receiver = box.attach("A", Taker(1000, 10))
    box.add("A", 1, 2, size=5)
    assert not box.inbox.full
    box.add("A", 3, 4, size=5)
    assert box.inbox.full
    assert receiver.values == [1, 2]


def test_an_item_larger_than_every_bound_goes_in_alone() -> None:
    box = Box(max_items=10, max_size=10)
    receiver = box.attach("A", Taker(10, 10))
    assert box.add("A", 1, size=1)
    assert box.add("A", 2, size=500)
    assert receiver.values == [1]
    assert receiver.take() == 1
    assert receiver.values == [2]


def test_an_item_larger_than_the_overflow_is_taken_while_the_lane_has_room() -> None:
    """Found: it ended the session as overflown though nothing was full and no call was waiting."""
    box = Box(max_items=10, max_size=10)
    receiver = box.attach("A", Taker(1, 10))
    box.add("A", 1, 2)
    assert not box.inbox.full
    assert box.add("A", 3, size=500)
    assert box.inbox.full
    assert [receiver.take() for _ in range(3)] == [1, 2, 3]


def test_a_full_lane_takes_as_much_again_and_no_more(box: Box) -> None:
    box.attach("A")
    assert box.add("A", *range(2 + 3 + 3))
    assert not box.add("A", 8)
    assert box.add("B", 1)


def test_a_lane_that_nobody_receives_does_not_make_the_inbox_full(box: Box) -> None:
    box.add("A", *range(100))
    assert not box.inbox.full


def test_the_oldest_unclaimed_item_of_all_actions_is_dropped_and_told(box: Box) -> None:
    box.add("A", 1)
    box.add("B", 2)
    box.add("A", 3)
    box.add("B", 4)
    box.add("C", 5)
    assert box.dropped == ["A", "B"]
    assert [box.waiting(action) for action in "ABC"] == [[3], [4], [5]]


def test_unclaimed_bytes_are_bounded_too() -> None:
    box = Box(max_items=100, max_size=10)
    box.add("A", 1, 2, 3, size=4)
    assert (box.dropped, box.waiting("A")) == (["A"], [2, 3])
    box.add("A", 4, size=500)
    assert box.waiting("A") == [4]


def test_what_is_claimed_no_longer_counts_as_unclaimed(box: Box) -> None:
    box.add("A", 1, 2, 3)
    box.attach("A", Taker(1))
    box.add("B", 1, 2, 3)
    assert box.dropped == []


def test_what_the_last_receiver_leaves_unread_goes_back_in_order(box: Box) -> None:
    receiver = box.attach("A")
    box.add("A", 1, 2, 3, 4, 5)
    assert receiver.take() == 1
    box.inbox.detach(receiver)
    assert box.dropped == ["A"], "the inbox holds three of the four that were left"
    assert box.waiting("A") == [3, 4, 5]


def test_a_receiver_that_leaves_others_behind_takes_its_unread_items_with_it(box: Box) -> None:
    leaving, staying = box.attach("A"), box.attach("A")
    box.add("A", 1)
    box.inbox.detach(leaving)
    assert staying.values == [1]
    box.inbox.detach(staying)
    assert box.waiting("A") == [1]


def test_a_full_receiver_that_leaves_lets_the_others_go_on(box: Box) -> None:
    full, other = box.attach("A", Taker(1)), box.attach("A", Taker(10))
    box.add("A", 1, 2, 3)
    box.inbox.detach(full)
    assert other.values == [1, 2, 3]


def test_a_detached_receiver_stays_detached(box: Box) -> None:
    receiver = box.attach("A")
    box.inbox.detach(receiver)
    box.inbox.detach(receiver)
    receiver.freed()
    box.add("A", 1)
    assert receiver.values == []


def test_the_inbox_is_no_longer_full_when_the_full_receiver_leaves(box: Box) -> None:
    receiver = box.attach("A")
    box.add("A", *range(5))
    assert box.inbox.full
    changes = box.changes
    box.inbox.detach(receiver)
    assert not box.inbox.full
    assert box.changes > changes, "the session that holds back reading must hear of it"


def test_nothing_is_handed_on_before_acceptance_and_then_everything_in_the_order_of_arrival() -> None:
    box = Box()
    box.inbox.open = False
    order: list[Any] = []

    class Noting(Taker):
        def put(self, item: Item) -> None:
            order.append(item.args[0])
            super().put(item)

    for action in "ABC":
        box.attach(action, Noting())
    box.add("C", 1)
    box.add("A", 2)
    box.add("B", 3)
    assert order == []
    box.inbox.accept()
    assert order == [1, 2, 3]


def test_the_first_receiver_that_answers_answers(box: Box) -> None:
    stream, first, second = box.attach("A"), box.attach("A", Taker(answers=True)), box.attach("A", Taker(answers=True))
    box.add("A", 1, id=7)
    assert (stream.to_answer, first.to_answer, second.to_answer, box.answered) == ([], [1], [], [])


def test_streams_alone_give_an_empty_answer_and_only_to_who_waits_for_one(box: Box) -> None:
    box.attach("A")
    box.add("A", 1, id=7)
    box.add("A", 2)
    assert box.answered == [1]


def test_an_unclaimed_call_is_not_answered_until_it_is_taken(box: Box) -> None:
    box.add("A", 1, id=7)
    assert box.answered == []
    box.attach("A")
    assert box.answered == [1]


def test_filters_take_one_item_of_a_lane_at_a_time(box: Box) -> None:
    box.inbox.filtering = True
    receiver = box.attach("A")
    box.add("A", 1, 2)
    [lane] = box.filtering
    item = box.inbox.take(lane)
    assert item is not None
    box.add("A", 3)
    assert len(box.filtering) == 1
    box.inbox.hand_on(lane, item)
    assert receiver.values == [1]
    box.inbox.done(lane)
    assert len(box.filtering) == 2


def test_a_filtered_item_is_not_filtered_again_when_it_comes_back(box: Box) -> None:
    box.inbox.filtering = True
    receiver = box.attach("A")
    box.add("A", 1)
    lane = box.filtering.pop()
    item = box.inbox.take(lane)
    assert item is not None
    box.inbox.hand_on(lane, item)
    box.inbox.done(lane)
    box.inbox.detach(receiver)
    assert box.attach("A").values == [1]
    assert box.filtering == []


def test_the_inbox_may_no_longer_be_full_when_filters_take_an_item() -> None:
    box = Box(max_items=1)
    box.inbox.filtering = True
    box.attach("A")
    box.add("A", 1)
    assert box.inbox.full
    changes = box.changes
    box.inbox.take(box.filtering.pop())
    assert not box.inbox.full
    assert box.changes > changes, "the session that holds back reading must hear of it"


def test_what_filters_hold_waits_for_room_in_every_receiver(box: Box) -> None:
    box.inbox.filtering = True
    receiver = box.attach("A", Taker(1))
    box.add("A", 1, 2)
    lane = box.filtering.pop()
    item = box.inbox.take(lane)
    assert item is not None
    assert box.inbox.ready(lane, item)
    box.inbox.hand_on(lane, item)
    box.inbox.done(lane)
    lane = box.filtering.pop()
    item = box.inbox.take(lane)
    assert item is not None
    assert not box.inbox.ready(lane, item)
    receiver.take()
    assert box.inbox.ready(lane, item)


def test_filters_have_nothing_to_take_when_the_receiver_has_gone(box: Box) -> None:
    box.inbox.filtering = True
    receiver = box.attach("A")
    box.add("A", 1)
    [lane] = box.filtering
    box.inbox.detach(receiver)
    assert box.inbox.take(lane) is None
    box.inbox.done(lane)
    box.inbox.filtering = False
    assert box.waiting("A") == [1]


def test_what_filters_hold_keeps_its_place_when_the_last_receiver_goes_meanwhile(box: Box) -> None:
    """Found: it came before what the receiver had left unread."""
    box.inbox.filtering = True
    receiver = box.attach("A")
    box.add("A", 1, 2)
    lane = box.filtering.pop()
    item = box.inbox.take(lane)
    assert item is not None
    box.inbox.hand_on(lane, item)
    box.inbox.done(lane)
    lane = box.filtering.pop()
    item = box.inbox.take(lane)
    assert item is not None
    box.add("A", 3)
    box.inbox.detach(receiver)
    box.inbox.hand_on(lane, item)
    box.inbox.done(lane)
    box.inbox.filtering = False
    assert box.waiting("A") == [1, 2, 3]


def test_what_filters_hold_keeps_its_place_when_another_receiver_comes_meanwhile(box: Box) -> None:
    """Found: it was handed on before what the receiver before had left unread."""
    box.inbox.filtering = True
    receiver = box.attach("A")
    box.add("A", 1, 2)
    lane = box.filtering.pop()
    item = box.inbox.take(lane)
    assert item is not None
    box.inbox.hand_on(lane, item)
    box.inbox.done(lane)
    lane = box.filtering.pop()
    item = box.inbox.take(lane)
    assert item is not None
    box.inbox.detach(receiver)
    later = box.attach("A")
    assert box.inbox.ready(lane, item)
    box.inbox.hand_on(lane, item)
    box.inbox.done(lane)
    assert later.values == [1, 2]


def test_a_lane_that_is_done_with_is_forgotten(box: Box) -> None:
    for number in range(1000):
        action = f"action {number}"
        receiver = box.attach(action)
        box.add(action, 1)
        receiver.take()
        box.inbox.detach(receiver)
    for number in range(1000):
        box.add(f"nobody {number}", 1)
    assert len(box.inbox._lanes) == 3


def test_a_closed_inbox_lets_everything_go(box: Box) -> None:
    receiver = box.attach("A")
    box.add("A", *range(5))
    box.inbox.close()
    assert not box.inbox.full
    assert receiver.inbox is None
    receiver.freed()


def test_a_closed_inbox_can_hand_on_what_had_arrived_first(box: Box) -> None:
    """Found: what a full stream had not taken yet was lost when the peer ended the connection."""
    receivers = [box.attach("A"), box.attach("A", Taker(100))]
    box.add("A", *range(5))
    box.inbox.close(hand_on=True)
    assert [receiver.values for receiver in receivers] == [[0, 1, 2, 3, 4]] * 2


def test_a_closed_inbox_hands_on_nothing_that_filters_have_not_seen(box: Box) -> None:
    box.inbox.filtering = True
    receiver = box.attach("A")
    box.add("A", 1, 2)
    box.inbox.close(hand_on=True)
    assert receiver.values == []


def test_a_closed_inbox_hands_on_nothing_that_was_not_accepted(box: Box) -> None:
    box.inbox.open = False
    receiver = box.attach("A")
    box.add("A", 1, 2)
    box.inbox.close(hand_on=True)
    assert receiver.values == []


def test_what_a_closed_inbox_has_without_receivers_can_be_taken_once(box: Box) -> None:
    box.attach("B")
    box.add("A", 1, 2)
    box.add("B", 3)
    box.inbox.close(hand_on=True)
    assert [item.args for item in box.inbox.take_rest("A")] == [(1,), (2,)]
    assert box.inbox.take_rest("A") == []
    assert box.inbox.take_rest("B") == []


def test_what_filters_have_not_seen_cannot_be_taken_from_a_closed_inbox(box: Box) -> None:
    box.inbox.filtering = True
    box.add("A", 1, 2)
    box.inbox.close(hand_on=True)
    assert box.inbox.take_rest("A") == []
