"""The public names: this list changes only on purpose, and each of them says what it does."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import brightsocket_anyio
from brightsocket_anyio import errors

PUBLIC = {
    "Bound", "Brightsocket", "BrightsocketError", "ChannelRefused", "Client", "ConfigurationError", "Connection",
    "ConnectionLost", "HandshakeError", "Pool", "ProtocolError", "Refused", "Request", "Settings", "Statistics",
    "open_client",
}  # fmt: skip

MEMBERS = {
    "Brightsocket": {"connect", "drain", "handle_trio_websocket", "pool", "running", "serve", "statistics"},
    "Client": {"connect", "connection", "disconnect", "on", "state", "states"},
    "Connection": {
        "accept", "aclose", "add_filter", "call", "channel", "dropped", "id", "identity", "join", "leave", "on",
        "receive", "recovered", "request", "rooms", "send", "transport", "webserver",
    },
    "Pool": {"disconnected", "dropped", "emit", "members", "send"},
    "Bound": {"addresses", "port", "url"},
}  # fmt: skip


def _names(owner: object) -> set[str]:
    return {name for name in vars(owner) if not name.startswith("_")}


def test_the_list() -> None:
    modules = {name for name, value in vars(brightsocket_anyio).items() if inspect.ismodule(value)}
    assert _names(brightsocket_anyio) - modules == PUBLIC


def test_every_exception_is_public() -> None:
    for name, each in vars(errors).items():
        if inspect.isclass(each) and each.__module__ == errors.__name__:
            assert getattr(brightsocket_anyio, name) is each
            assert issubclass(each, errors.BrightsocketError)


@pytest.mark.parametrize("owner", MEMBERS)
def test_the_members(owner: str) -> None:
    """No member of a class comes or goes unnoticed. (Some are attributes of the instances.)"""
    inner = {"Pool": {"add", "discard", "keep"}}.get(owner, set())
    assert _names(getattr(brightsocket_anyio, owner)) - inner <= MEMBERS[owner]
    for name in MEMBERS[owner]:
        assert hasattr(getattr(brightsocket_anyio, owner), name) or name in _source_attributes(owner), name


def _source_attributes(owner: str) -> set[str]:
    source = inspect.getsource(getattr(brightsocket_anyio, owner).__init__)
    return {line.split("self.")[1].split(" ")[0].rstrip(":") for line in source.splitlines() if "self." in line}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_each_is_documented(name: str) -> None:
    each = getattr(brightsocket_anyio, name)
    assert each.__doc__
    if inspect.isclass(each):
        for member, value in vars(each).items():
            if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                documented = value.__doc__ or f":ivar {member}:" in each.__doc__ or member == "id"
                assert documented, f"{name}.{member}"


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_each_is_in_the_reference(name: str) -> None:
    docs = Path(__file__).parent.parent / "docs"
    pages = "".join(page.read_text() for page in [*docs.rglob("*.md"), *docs.rglob("*.rst")])
    assert name in pages


def test_the_package_is_typed() -> None:
    assert (Path(brightsocket_anyio.__file__).parent / "py.typed").exists()
