"""Rule 5: ``extends`` is transitive, bases first, each once; what does not fit together is an error at the start."""

from __future__ import annotations

from typing import Any

import pytest

from brightsocket_anyio import Brightsocket, ConfigurationError, Connection

from ..support import identified, serving


def note(api: Brightsocket, log: list[str], name: str, extends: list[str]) -> None:
    api.connect(name, extends, lambda: log.append(name))


async def entered(api: Brightsocket, channel: str) -> None:
    async with serving(api) as bound, identified(bound, channel):
        pass


@pytest.mark.parametrize(
    ("channels", "order"),
    [
        ({"A": []}, "A"),
        ({"BASE": [], "A": ["BASE"]}, "BASE A"),
        ({"A": ["BASE"], "BASE": []}, "BASE A"),
        ({"ROOT": [], "BASE": ["ROOT"], "A": ["BASE"]}, "ROOT BASE A"),
        ({"X": [], "Y": [], "A": ["Y", "X"]}, "Y X A"),
        ({"ROOT": [], "X": ["ROOT"], "Y": ["ROOT"], "A": ["X", "Y"]}, "ROOT X Y A"),
        ({"ROOT": [], "X": ["ROOT"], "A": ["X", "ROOT", "X"]}, "ROOT X A"),
    ],
    ids=["none", "one", "defined later", "transitive", "two", "diamond", "repeated"],
)
async def test_bases_run_first_and_each_once(channels: dict[str, list[str]], order: str) -> None:
    api = Brightsocket()
    log: list[str] = []
    for name, extends in channels.items():
        note(api, log, name, extends)
    await entered(api, "A")
    assert log == order.split()


async def test_all_of_them_have_the_same_connection() -> None:
    api = Brightsocket()
    seen: list[Connection] = []
    api.connect("BASE", (), seen.append)
    api.connect("A", ["BASE"], seen.append)
    await entered(api, "A")
    assert len(seen) == 2
    assert seen[0] is seen[1]
    assert seen[0].channel == "A"


async def test_a_base_may_be_entered_by_itself() -> None:
    api = Brightsocket()
    log: list[str] = []
    note(api, log, "BASE", [])
    note(api, log, "A", ["BASE"])
    await entered(api, "BASE")
    assert log == ["BASE"]


async def test_a_namespace_may_extend_channels() -> None:
    api = Brightsocket()
    log: list[str] = []
    note(api, log, "BASE", [])
    note(api, log, "/chat", ["BASE"])
    async with serving(api) as bound, identified(bound, "BASE") as peer:
        await peer.send("40/chat,")
        assert str(await peer.receive()).startswith("40/chat,")
    assert log == ["BASE", "BASE", "/chat"]


async def test_settings_are_those_of_the_bases_the_later_ones_counting() -> None:
    api = Brightsocket(max_calls=1)
    seen: list[Any] = []
    api.connect("BASE", (), lambda: None, max_calls=2, grace=0.5)
    api.connect("A", ["BASE"], lambda connection: seen.append(connection._core.settings), max_calls=3)
    await entered(api, "A")
    assert (seen[0].max_calls, seen[0].grace) == (3, 0.5)


def define_twice(api: Brightsocket) -> None:
    api.connect("A", (), lambda: None)
    api.connect("A", (), lambda: None)


def define_unknown_base(api: Brightsocket) -> None:
    api.connect("A", ["NOWHERE"], lambda: None)


def define_self(api: Brightsocket) -> None:
    api.connect("A", ["A"], lambda: None)


def define_cycle(api: Brightsocket) -> None:
    api.connect("A", ["B"], lambda: None)
    api.connect("B", ["C"], lambda: None)
    api.connect("C", ["A"], lambda: None)


def define_cycle_below(api: Brightsocket) -> None:
    api.connect("A", ["B"], lambda: None)
    api.connect("B", ["C"], lambda: None)
    api.connect("C", ["B"], lambda: None)


ERRORS = [
    (define_twice, "A is defined twice"),
    (define_unknown_base, "A extends NOWHERE, which is not defined"),
    (define_self, "A → A"),
    (define_cycle, "A → B → C → A"),
    (define_cycle_below, "B → C → B"),
]


@pytest.mark.parametrize(("define", "message"), ERRORS)
async def test_what_does_not_fit_together_is_an_error_when_the_server_starts(define: Any, message: str) -> None:
    api = Brightsocket()
    define(api)
    with pytest.raises(ConfigurationError, match=message):
        await api.serve(port=0)


@pytest.mark.parametrize(("define", "message"), ERRORS)
async def test_it_is_an_error_when_the_api_runs_under_a_host(define: Any, message: str) -> None:
    api = Brightsocket()
    define(api)
    with pytest.raises(ConfigurationError, match=message):
        async with api.running():
            raise AssertionError("it runs")


async def test_a_long_chain_of_bases_is_no_problem() -> None:
    api = Brightsocket()
    log: list[str] = []
    for number in range(200):
        note(api, log, f"C{number}", [f"C{number - 1}"] if number else [])
    await entered(api, "C199")
    assert log == [f"C{number}" for number in range(200)]


@pytest.mark.parametrize(
    "define",
    [
        lambda api: api.connect("A", "BASE", lambda: None),
        lambda api: api.connect("A", (), "no function"),
        lambda api: api.connect("A", (), lambda *, wanted: None),
        lambda api: api.connect("A", (), lambda: None, ping_interval=3),
        lambda api: api.connect("A", (), lambda: None, max_calls=0),
    ],
)
def test_what_is_wrong_by_itself_is_an_error_at_once(define: Any) -> None:
    with pytest.raises(ConfigurationError):
        define(Brightsocket())
