"""The stress program, for a moment on each loop; and that it would see what is wrong."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

import pytest

from .conftest import LOOPS
from .stress import Findings, Flow, Journal, Plan, run, watching

#: replayed each time, so that a failure that comes and goes is the machine's order of things, not the numbers'
FIXED = 20_260_101


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    given: int | None = request.config.getoption("--seed")
    return random.SystemRandom().randrange(2**32) if given is None else given


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("fixed", [True, False])
def test_everything_at_once(loop: str, fixed: bool, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    # the records that pytest keeps would keep the sessions that they name
    caplog.set_level(logging.ERROR, "brightsocket_anyio")
    seed = FIXED if fixed else seed
    print(f"replay with --seed={seed}")
    findings = run(Plan(seed, rounds=1, steps=2, seconds=2, workers=8, heartbeat=0.4, patience=20), loop)
    assert not findings.failures, "\n".join(findings.texts)
    assert findings.counts["messages"] > 100
    assert findings.counts["stays"]


def flow(findings: Findings) -> Flow:
    return Flow("client UP", findings, Journal("client"))


def kinds(findings: Findings) -> dict[str, int]:
    return dict(findings.failures)


@pytest.mark.parametrize(
    ("numbers", "wrong"),
    [
        ([0, 1, 2, 3], {}),
        ([0, 1, 3], {"gaps": 1}),
        ([0, 1, 1, 2], {"duplicates": 1}),
        ([0, 2, 1], {"gaps": 1, "disorder": 1}),
    ],
)
def test_what_one_connection_brings(numbers: list[int], wrong: dict[str, int]) -> None:
    findings = Findings()
    stream = flow(findings)
    for number in numbers:
        stream.take(number, "only one")
    assert kinds(findings) == wrong
    assert all("client UP" in text for text in findings.texts)


def test_a_loss_may_lose_one_run_and_repeats_nothing() -> None:
    findings = Findings()
    stream = flow(findings)
    stream.next = 7
    for number, connection in ((0, 0), (1, 0), (4, 1), (5, 1), (6, 1)):
        stream.take(number, connection)
    stream.finish(losses=1)
    assert kinds(findings) == {}
    assert findings.counts["lost in losses"] == 2
    stream.finish(losses=0)
    assert kinds(findings) == {"gaps": 1}
    stream.take(1, 2)
    assert kinds(findings) == {"gaps": 1, "duplicates": 1}


def test_what_never_comes_is_a_gap() -> None:
    findings = Findings()
    stream = flow(findings)
    stream.next = 3
    stream.take(0)
    stream.take(1)
    stream.finish(losses=0)
    assert kinds(findings) == {"gaps": 1}


def test_what_may_not_have_been_sent_is_none() -> None:
    findings = Findings()
    stream = flow(findings)
    stream.next = 4
    stream.unsure = {1, 3}
    stream.take(0, "one")
    stream.take(2, "one")
    stream.finish(losses=0)
    assert kinds(findings) == {}


def log_an_error() -> None:
    logging.getLogger("brightsocket_anyio").error("this is a bug")


def lose_an_exception() -> None:
    class Broken:
        def __del__(self) -> None:
            raise ValueError("nobody catches this")

    Broken()


@pytest.mark.parametrize("what", [log_an_error, lose_an_exception])
def test_an_error_that_nobody_catches_is_a_failure(what: Callable[[], None]) -> None:
    findings = Findings()
    with watching(findings):
        what()
    assert kinds(findings) == {"errors": 1}


def test_the_last_events_are_in_what_is_said_of_a_failure() -> None:
    findings = Findings()
    journal = Journal("client 7")
    journal.note("sent 5 of them")
    stream = Flow("client 7 UP", findings, journal)
    stream.next = 1
    stream.finish(losses=0)
    assert "client 7 UP" in findings.texts[0]
    assert "sent 5 of them" in findings.texts[0]
