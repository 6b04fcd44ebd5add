"""The settings: their defaults, and what cannot work is refused when it is given."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from brightsocket_anyio import Brightsocket, ConfigurationError, Settings, open_client
from brightsocket_anyio.server import Channels
from brightsocket_anyio.settings import ChannelKeywords, SettingKeywords

NAMES = {each.name for each in dataclasses.fields(Settings) if each.init}


def test_the_defaults_are_socket_io_s() -> None:
    settings = Settings()
    assert settings.path == "/socket.io/"
    assert (settings.ping_interval, settings.ping_timeout) == (25, 20)
    assert (settings.connect_timeout, settings.upgrade_timeout) == (45, 10)
    assert settings.max_payload == 1_000_000
    assert settings.allowed_origins == ()
    assert settings.slow_consumer == "disconnect"
    assert not settings.compression


def test_a_session_stalls_after_a_heartbeat_s_time_unless_told_otherwise() -> None:
    assert Settings(ping_interval=3, ping_timeout=4).stall == 7
    assert Settings(ping_interval=3, ping_timeout=4, stall_timeout=5).stall == 5
    assert dataclasses.replace(Settings(), ping_interval=3, ping_timeout=4).stall == 7


def test_each_setting_is_a_keyword() -> None:
    assert set(SettingKeywords.__annotations__) == NAMES
    assert set(ChannelKeywords.__annotations__) <= NAMES


@pytest.mark.parametrize(
    "name",
    [
        "ping_interval", "ping_timeout", "connect_timeout", "identify_timeout", "upgrade_timeout", "stall_timeout",
        "close_timeout", "tls_timeout", "head_timeout", "body_timeout", "min_body_rate", "keep_alive_timeout",
        "max_payload", "max_packets", "max_fragments", "max_namespaces", "max_head_size", "max_buffered_messages",
        "max_buffered_bytes", "max_calls", "max_connections", "max_connections_per_address", "action_rate",
        "action_burst", "reconnection_attempts", "reconnection_delay", "reconnection_delay_max",
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_must_be_greater_than_zero(name: str, value: float) -> None:
    settings: dict[str, Any] = {name: value}
    with pytest.raises(ConfigurationError, match=name):
        Settings(**settings)


@pytest.mark.parametrize("name", ["grace", "max_attachments"])
def test_may_be_zero_but_not_less(name: str) -> None:
    settings: dict[str, Any] = {name: 0}
    assert getattr(Settings(**settings), name) == 0
    settings = {name: -1}
    with pytest.raises(ConfigurationError, match=name):
        Settings(**settings)


@pytest.mark.parametrize("path", ["", "socket.io/", "/socket.io", "socket.io"])
def test_the_path_begins_and_ends_with_a_slash(path: str) -> None:
    with pytest.raises(ConfigurationError, match="slash"):
        Settings(path=path)


def test_any_origin_together_with_credentials_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="credentials"):
        Settings(allowed_origins="*", credentials=True)
    Settings(allowed_origins="*")
    Settings(allowed_origins=["https://example.org"], credentials=True)


def test_one_origin_is_no_sequence() -> None:
    origins: Any = "https://example.org"
    with pytest.raises(ConfigurationError, match="sequence"):
        Settings(allowed_origins=origins)


def test_an_unknown_policy() -> None:
    policy: Any = "wait"
    with pytest.raises(ConfigurationError, match="slow_consumer"):
        Settings(slow_consumer=policy)


def test_they_cannot_be_changed() -> None:
    settings: Any = Settings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.path = "/other/"


async def test_they_are_keywords_of_the_server_and_the_client() -> None:
    with pytest.raises(ConfigurationError, match="ping_interval"):
        Brightsocket(ping_interval=0)
    client = open_client("http://localhost", ping_interval=0)
    with pytest.raises(ConfigurationError, match="ping_interval"):
        await client.__aenter__()


class TestChannels:
    def test_one_that_a_channel_cannot_differ_in(self) -> None:
        more: dict[str, Any] = {"ping_interval": 1}
        with pytest.raises(ConfigurationError, match="ping_interval"):
            Brightsocket().connect("NAME", [], lambda: None, **more)

    def test_an_unusable_value(self) -> None:
        with pytest.raises(ConfigurationError, match="max_calls"):
            Brightsocket().connect("NAME", [], lambda: None, max_calls=0)

    def test_a_channel_has_those_of_its_bases_the_later_ones_counting(self) -> None:
        channels = Channels(Settings(max_calls=1, grace=1))
        channels.define("A", [], print, {"max_calls": 2, "max_buffered_messages": 3})
        channels.define("B", [], print, {"max_calls": 4})
        channels.define("C", ["A", "B"], print, {"max_buffered_bytes": 5})
        settings = channels.plan()["C"].settings
        assert (settings.max_calls, settings.max_buffered_messages, settings.max_buffered_bytes) == (4, 3, 5)
        assert settings.grace == 1
        assert channels.plan()["A"].settings.max_calls == 2
