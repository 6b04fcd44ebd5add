"""The frame machine that is made when it is needed: it answers as the one of ``websockets`` does that was there all
the time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.frames import Close, Frame
from websockets.protocol import Protocol, Side, State
from websockets.utils import apply_mask

from brightsocket_anyio.settings import Settings
from brightsocket_anyio.transports import core as core_module
from brightsocket_anyio.transports.core import Core

from .streams import BINARY, CLOSE, CONT, PING, PONG, TEXT, frame

SETTINGS = Settings(max_payload=200)

codes = st.one_of(st.sampled_from([999, 1000, 1001, 1004, 1005, 1006, 1011, 2999, 3000, 4999]), st.integers(0, 65_535))
closes = st.one_of(
    st.binary(max_size=130),
    st.builds(lambda code, reason: code.to_bytes(2, "big") + reason.encode(), codes, st.text(max_size=42)),
)
frames = st.builds(
    frame,
    st.sampled_from([TEXT, CONT, BINARY, PING, PONG, 3]),
    st.binary(max_size=20),
    fin=st.booleans(),
)
close_frames = st.builds(
    frame,
    st.just(CLOSE),
    closes,
    fin=st.sampled_from([True, True, True, False]),
    rsv=st.sampled_from([0, 0, 0, 4]),
    masked=st.sampled_from([True, True, True, False]),
)


@st.composite
def steps(draw: Any) -> list[tuple[Any, ...]]:
    """What is done with a core: what it is given, whole or in pieces, and what its own side does."""
    done: list[tuple[Any, ...]] = []
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["close", "close", "frame", "pieces", "text", "own close", "fail"]))
        if kind == "text":
            done.append(("send_text", b"own"))
        elif kind == "own close":
            done.append(("send_close", 1001, "leaving"))
        elif kind == "fail":
            done.append(("fail", 1008, "had enough"))
        elif kind == "frame":
            done.append(("receive", draw(frames)))
        else:
            data = draw(close_frames)
            cut = draw(st.integers(0, len(data))) if kind == "pieces" else 0
            done += [("receive", part) for part in (data[:cut], data[cut:]) if part]
    return done


def outcome(frames: list[Any], writes: list[bytes], open: bool, rest: tuple[Any, ...]) -> tuple[Any, ...]:
    sent = b"".join(plain(write) for write in writes)
    return [(each.opcode, bytes(each.data), each.fin) for each in frames], sent, open, *map(repr, rest)


def plain(write: bytes) -> bytes:
    """A short frame without its mask, which is a random one; what is none is left as it is."""
    if len(write) < 6 or not write[1] & 0x80:
        return write
    return write[:2] + apply_mask(write[6:], write[2:6])


@pytest.mark.parametrize("side", Side)
@given(steps())
@example([("receive", frame(CLOSE, b""))])
@example([("receive", frame(CLOSE, b"\x03\xe8")), ("receive", frame(TEXT, b"late"))])
@example([("receive", frame(CLOSE, b"\x03"))])
@example([("receive", frame(CLOSE, b"\x03\xe8\xff"))])
@example([("receive", frame(CLOSE, b"\x03\xe8" + b"x" * 123))])
@example([("receive", frame(CLOSE, b"\x03\xe8", masked=False))])
@example([("send_close", 1001, "leaving"), ("receive", frame(CLOSE, b"\x03\xe9"))])
@example([("receive", frame(TEXT, b"a", fin=False)), ("receive", frame(CLOSE, b"\x03\xe8"))])
def test_a_core_does_what_the_machine_does(side: Side, steps: list[tuple[Any, ...]]) -> None:
    core = Core(side, (), SETTINGS)
    machine = Protocol(side, state=State.OPEN, max_size=SETTINGS.max_payload)
    for name, *args in steps:
        if name.startswith("send") and machine.state is not State.OPEN:
            continue
        if name == "fail" and machine.close_rcvd is not None:
            continue
        received: list[Frame] = []
        expected: list[Any] = []
        if name == "receive":
            received = core.receive(*args)
            machine.receive_data(*args)
            expected = list(machine.events_received())
            if core.close_rcvd is not None:
                # which tells more than its own attributes do
                expected = [each for each in expected if each.opcode != CLOSE]
                received = [each for each in received if each.opcode != CLOSE]
        else:
            getattr(core, name)(*args)
            getattr(machine, name)(*args)
        assert outcome(
            received, core.data_to_send(), core.open, (core.close_rcvd, core.close_sent, core.failure)
        ) == outcome(
            expected,
            machine.data_to_send(),
            machine.state is State.OPEN,
            (machine.close_rcvd, machine.close_sent, machine.parser_exc),
        )


def test_a_client_that_leaves_needs_no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(core_module, "Protocol")
    core = Core(Side.SERVER, (), SETTINGS)
    assert core.receive(frame(CLOSE, b"\x03\xe9bye")) == []
    assert core.data_to_send() == [frame(CLOSE, b"\x03\xe9bye", masked=False)]
    assert core.close_rcvd == core.close_sent == Close(1001, "bye")
    assert not core.open
    assert core.receive(frame(TEXT, b"late")) == []


def test_what_waits_to_be_sent_stays_in_order() -> None:
    core = Core(Side.SERVER, (), SETTINGS)
    core.receive(frame(PING, b"1"))
    core.send_text(b"2")
    core.receive(frame(CLOSE, b""))
    assert b"".join(core.data_to_send()) == b"".join(
        frame(opcode, data, masked=False) for opcode, data in [(PONG, b"1"), (TEXT, b"2"), (CLOSE, b"")]
    )
    assert core.data_to_send() == []
