"""Rule 13: every JSON value is a payload."""

from __future__ import annotations

import json
import math
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brightsocket_anyio import Brightsocket, Connection, open_client

from ..support import PATIENCE, identified, serving

VALUES: list[Any] = [
    0, 1, -1, 0.5, -0.0, 1e300, 2**53 - 1, -(2**53) + 1, True, False, None, "", "text", "ü\u2028\U0001f600\x00",
    [], [[]], {},
    {"": None}, [0, False, "", None, []], {"a": {"b": [1, {"c": ""}]}}, b"", b"\x00\xff", [b"a", {"b": b"b"}],
    {"_placeholder": True, "num": 0}, ["BRIGHTSOCKET:IDENTIFY"],
]  # fmt: skip


def _api() -> Brightsocket:
    api = Brightsocket()

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        connection.on("ECHO")(lambda *values: values)

        @connection.on("BACK")
        async def back(*values: Any) -> None:
            await connection.send("BACK", *values)

        async with connection.receive("STREAM") as stream:
            async for value in stream:
                await connection.send("STREAM", value)

    return api


def _same(a: Any, b: Any) -> bool:
    return repr(a) == repr(b)


@pytest.mark.parametrize("eio", [3, 4])
async def test_it_arrives_as_it_was_sent(eio: Any) -> None:
    async with serving(_api()) as bound, open_client(bound.url, eio=eio) as client:
        connection = await client.connect("WORK")
        async with connection.receive("STREAM") as stream, connection.receive("BACK") as back:
            for value in VALUES:
                with anyio.fail_after(PATIENCE):
                    if not _is_placeholder(value):
                        assert _same(await connection.call("ECHO", value), value)
                        await connection.send("STREAM", value)
                        assert _same(await stream.receive(), value)
                        await connection.send("BACK", value)
                        assert _same(await back.receive(), value)


def _is_placeholder(value: Any) -> bool:
    return isinstance(value, dict) and "_placeholder" in value


@pytest.mark.parametrize("args", [(), (None,), (0, ""), (None, None), ([],), ((),), (1, b"x", None)])
async def test_none_one_or_several(args: tuple[Any, ...]) -> None:
    wanted = None if not args else args[0] if len(args) == 1 else args
    wanted = [] if wanted == () else wanted
    async with serving(_api()) as bound, open_client(bound.url) as client:
        connection = await client.connect("WORK")
        async with connection.receive("BACK") as back:
            with anyio.fail_after(PATIENCE):
                assert await connection.call("ECHO", *args) == wanted
                await connection.send("BACK", *args)
                assert await back.receive() == wanted


@pytest.mark.parametrize("value", [value for value in VALUES if "b'" not in repr(value) and not _is_placeholder(value)])
async def test_on_the_wire(value: Any) -> None:
    async with serving(_api()) as bound, identified(bound, "WORK") as peer:
        await peer.event("BACK", value)
        message = await peer.receive()
        assert isinstance(message, str)
        assert _same(json.loads(message[2:]), ["BACK", value])


async def test_falsy_identities_arrive_too() -> None:
    api = Brightsocket()
    seen: list[Any] = []
    api.connect("WORK", [], lambda connection, identity: seen.append(identity))
    async with serving(api) as bound, open_client(bound.url) as client:
        identity = {"zero": 0, "false": False, "empty": "", "list": [], "null": None, "bytes": b"\x00"}
        await client.connect("WORK", identity)
        assert seen == [identity]


class TestWhatJSONPeersCannotHold:
    async def test_nan_becomes_null(self) -> None:
        async with serving(_api()) as bound, open_client(bound.url) as client:
            connection = await client.connect("WORK")
            with anyio.fail_after(PATIENCE):
                for value in (math.nan, math.inf, -math.inf):
                    assert await connection.call("ECHO", value) is None
                assert await connection.call("ECHO", [math.nan, {"x": math.inf}]) == [None, {"x": None}]

    @pytest.mark.parametrize(
        "value",
        [
            2**53 + 1,
            -(2**53) - 1,
            2**63 + 1,
            2**64 - 1,
            10**400,
            [2**53 + 1],
            {"x": {"y": 2**60 + 1}},
            object(),
            {1, 2},
            "\ud800",
        ],
    )
    async def test_a_value_that_cannot_be_sent_is_a_value_error_at_send(self, value: Any) -> None:
        api = _api()
        raised: list[str] = []

        @api.connect("SEND")
        async def send(connection: Connection) -> None:
            for attempt in (
                connection.send("ACTION", value),
                connection.call("ACTION", value),
                api.pool.emit("ACTION", value),
                api.pool.send(connection.id, "ACTION", value),
                api.pool.send("nobody", "ACTION", value),
            ):
                with pytest.raises(ValueError):  # noqa: PT011 (whatever the codec says)
                    await attempt
                raised.append(type(value).__name__)

        async with serving(api) as bound, open_client(bound.url) as client:
            connection = await client.connect("WORK")
            with pytest.raises(ValueError):  # noqa: PT011
                await connection.send("ECHO", value)
            with pytest.raises(ValueError):  # noqa: PT011
                await connection.call("ECHO", value)
            # nothing of it was sent, and the connection is none the worse
            with anyio.fail_after(PATIENCE):
                assert await connection.call("ECHO", 1) == 1
            with pytest.raises(ValueError):  # noqa: PT011
                await client.connect("WORK", {"x": value})
            # an identity that cannot be sent has not made it leave
            assert client.connection is connection
            await client.connect("SEND")
        assert len(raised) == 5

    async def test_a_large_integer_that_a_double_holds_goes_through(self) -> None:
        async with serving(_api()) as bound, open_client(bound.url) as client:
            connection = await client.connect("WORK")
            with anyio.fail_after(PATIENCE):
                for value in (2**53, -(2**53), 2**60, 2**64):
                    assert await connection.call("ECHO", value) == value

    async def test_an_action_needs_a_name_that_peers_can_hear(self) -> None:
        async with serving(_api()) as bound, open_client(bound.url) as client:
            connection = await client.connect("WORK")
            for name in ("connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"):
                with pytest.raises(ValueError, match=name):
                    await connection.send(name)
            for name in ("BRIGHTSOCKET:IDENTIFY", "BRIGHTSOCKET:ANYTHING"):
                with pytest.raises(ValueError, match="BRIGHTSOCKET"):
                    await connection.send(name)


_text = st.text(st.characters(exclude_categories=["Cs"]))
_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _text
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_text, inner, max_size=4),
    max_leaves=9,
)


@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(st.lists(_json, max_size=2), min_size=1, max_size=30))
async def test_any_value_comes_back(anyio_backend: Any, values: list[list[Any]]) -> None:
    async with serving(_api()) as bound, open_client(bound.url) as client:
        connection = await client.connect("WORK")
        for args in values:
            if "_placeholder" in repr(args):
                continue
            with anyio.fail_after(PATIENCE):
                result = await connection.call("ECHO", *args)
            wanted = None if not args else args[0] if len(args) == 1 else tuple(args)
            assert result == wanted
