"""The targets of fuzzing, on their examples and on bytes near them, so that they do not rot between two long runs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .targets import TARGETS

#: those that run a server for each input
_SLOW = {"http", "websocket", "polling"}


@pytest.mark.parametrize("name", TARGETS)
def test_examples(name: str) -> None:
    target, examples = TARGETS[name]
    for example in [b"", *examples]:
        target(example)


@pytest.mark.parametrize("name", TARGETS)
def test_near_the_examples(name: str) -> None:
    target, examples = TARGETS[name]

    @settings(max_examples=20 if name in _SLOW else 300)
    @given(st.sampled_from(examples), st.data())
    def check(example: bytes, data: st.DataObject) -> None:
        for _ in range(data.draw(st.integers(1, 4))):
            start = data.draw(st.integers(0, len(example)))
            end = data.draw(st.integers(start, min(start + 8, len(example))))
            example = example[:start] + data.draw(st.binary(max_size=8)) + example[end:]
        target(example)

    check()


def test_nonsense_behind_a_head_request_is_a_bad_request() -> None:
    """What was meant for the answer to HEAD, to have no body, held for the answer to the next request."""
    TARGETS["http"][0](b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n\x8a1\r\n\r\n")
