"""The frame machine that is made when it is needed: it answers as the one of ``websockets`` does that was there all
the time."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import PerMessageDeflate
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


def deflate() -> PerMessageDeflate:
    return PerMessageDeflate(
        remote_no_context_takeover=False,
        local_no_context_takeover=False,
        remote_max_window_bits=15,
        local_max_window_bits=15,
    )


@pytest.mark.parametrize("extensions", [0, 1])
@pytest.mark.parametrize("side", Side)
@given(steps(), st.booleans())
@example([("receive", frame(CLOSE, b""))], True)
@example([("receive", frame(CLOSE, b"\x03\xe8")), ("receive", frame(TEXT, b"late"))], True)
@example([("receive", frame(CLOSE, b"\x03"))], True)
@example([("receive", frame(CLOSE, b"\x03\xe8\xff"))], True)
@example([("receive", frame(CLOSE, b"\x03\xe8" + b"x" * 123))], True)
@example([("receive", frame(CLOSE, b"\x03\xe8", masked=False))], True)
@example([("send_close", 1001, "leaving"), ("receive", frame(CLOSE, b"\x03\xe9"))], True)
@example([("receive", frame(TEXT, b"a", fin=False)), ("receive", frame(CLOSE, b"\x03\xe8"))], True)
def test_a_core_does_what_the_machine_does(
    extensions: int, side: Side, steps: list[tuple[Any, ...]], often: bool
) -> None:
    """:param often: whether what is to be sent is taken after each step."""
    core = Core(side, [deflate() for _ in range(extensions)], SETTINGS)
    max_size = SETTINGS.max_payload
    machine = Protocol(side, state=State.OPEN, max_size=max_size + extensions * (max_size // 16 + 64))
    machine.extensions = [deflate() for _ in range(extensions)]
    for name, *args in steps:
        if name.startswith("send") and machine.state is not State.OPEN:
            continue
        if name == "send_text" and extensions:
            # a core leaves short messages uncompressed
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
            getattr(machine, name)(*args)
            if name == "send_text":
                core.send(args[0].decode())
            else:
                getattr(core, name)(*args)
        assert outcome(
            received,
            core.data_to_send() if often else [],
            core.open,
            (core.close_rcvd, core.close_sent, core.failure),
        ) == outcome(
            expected,
            machine.data_to_send() if often else [],
            machine.state is State.OPEN,
            (machine.close_rcvd, machine.close_sent, machine.parser_exc),
        )
    assert [plain(write) for write in core.data_to_send() if write] == [
        plain(write) for write in machine.data_to_send() if write
    ]


def test_a_client_that_leaves_needs_no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(core_module, "Protocol")
    core = Core(Side.SERVER, (), SETTINGS)
    assert core.receive(frame(CLOSE, b"\x03\xe9bye")) == []
    assert core.data_to_send() == [frame(CLOSE, b"\x03\xe9bye", masked=False)]
    assert core.close_rcvd == core.close_sent == Close(1001, "bye")
    assert not core.open
    assert core.receive(frame(TEXT, b"late")) == []


def test_a_log_of_all_frames_has_the_close_frame(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "brightsocket_anyio")
    Core(Side.SERVER, (), SETTINGS).receive(frame(CLOSE, b"\x03\xe9bye"))
    assert "CLOSE 1001 (going away) bye" in caplog.text


def test_what_waits_to_be_sent_stays_in_order() -> None:
    core = Core(Side.SERVER, (), SETTINGS)
    core.receive(frame(PING, b"1"))
    core.send("2")
    core.send(b"3")
    core.receive(frame(CLOSE, b""))
    assert b"".join(core.data_to_send()) == b"".join(
        frame(opcode, data, masked=False) for opcode, data in [(PONG, b"1"), (TEXT, b"2"), (BINARY, b"3"), (CLOSE, b"")]
    )
    assert core.data_to_send() == []
