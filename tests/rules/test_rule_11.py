"""Rule 11: plain exceptions, each with one meaning."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from brightsocket_anyio import Brightsocket, BrightsocketError, Connection, ConnectionLost, Refused, open_client

from ..support import PATIENCE, identified, serving, until


def _api() -> Brightsocket:
    api = Brightsocket()

    @api.connect("WORK")
    async def work(connection: Connection) -> None:
        @connection.on("CLOSE")
        async def close() -> None:
            await connection.aclose()

        @connection.on("REFUSE")
        async def refuse() -> None:
            raise Refused("no longer welcome")

        @connection.on("ECHO")
        def echo(value: Any) -> Any:
            return value

        @connection.on("NEVER")
        async def never() -> None:
            await anyio.sleep_forever()

        await connection.send("HELLO")

    return api


class TestOpenClient:
    async def test_an_exception_of_the_body_comes_out_as_itself(self) -> None:
        error = LookupError("mine")

        async def body(url: str) -> None:
            async with open_client(url) as client:
                await client.connect("WORK")
                raise error

        async with serving(_api()) as bound:
            with pytest.raises(LookupError) as caught:
                await body(bound.url)
        assert caught.value is error
        assert caught.value.__context__ is None
        assert caught.value.__cause__ is None

    @pytest.mark.parametrize("meanwhile", ["sleeps", "receives", "calls", "sends"])
    @pytest.mark.parametrize("where", ["client", "connection"])
    async def test_an_exception_of_a_handler_comes_out_as_itself(self, where: str, meanwhile: str) -> None:
        """And not together with what follows from it wherever the connection is in use."""
        error = LookupError("mine")

        async def use(connection: Connection) -> None:
            match meanwhile:
                case "sleeps":
                    await anyio.sleep_forever()
                case "receives":
                    async with connection.receive("NOTHING") as nothing:
                        await nothing.receive()
                case "calls":
                    await connection.call("NEVER")
                case "sends":
                    while True:
                        await connection.send("NEVER")

        async def body(url: str) -> None:
            async with open_client(url) as client:
                if where == "client":
                    client.on("HELLO")(_raiser(error))
                connection = await client.connect("WORK")
                if where == "connection":
                    connection.on("HELLO")(_raiser(error))
                await use(connection)

        async with serving(_api()) as bound:
            with pytest.raises(LookupError) as caught, anyio.fail_after(PATIENCE):
                await body(bound.url)
        assert caught.value is error
        assert not isinstance(caught.value.__context__, BaseExceptionGroup)

    async def test_an_exception_of_a_filter_comes_out_as_itself(self) -> None:
        error = LookupError("mine")

        async def body(url: str) -> None:
            async with open_client(url) as client:
                connection = await client.connect("WORK")
                connection.add_filter(_raiser(error))
                connection.on("HELLO")(_raiser(AssertionError("the filter has failed")))
                await anyio.sleep_forever()

        async with serving(_api()) as bound:
            with pytest.raises(LookupError) as caught, anyio.fail_after(PATIENCE):
                await body(bound.url)
        assert caught.value is error

    async def test_two_exceptions_come_out_as_a_group(self) -> None:
        async def body(url: str) -> None:
            async with open_client(url) as client:
                client.on("HELLO")(_raiser(LookupError("a handler's")))
                await client.connect("WORK")
                try:
                    await anyio.sleep_forever()
                finally:
                    raise ArithmeticError("the body's")

        async with serving(_api()) as bound:
            with pytest.raises(BaseExceptionGroup) as caught, anyio.fail_after(PATIENCE):
                await body(bound.url)
        leaves = caught.value
        assert leaves.subgroup(LookupError) is not None
        assert leaves.subgroup(ArithmeticError) is not None

    async def test_an_exception_of_the_caller_s_own_group_stays_a_group(self) -> None:
        """What the user's own task group has wrapped, the user expects to be wrapped."""
        async with serving(_api()) as bound:
            with pytest.raises(LookupError):
                async with open_client(bound.url):
                    raise LookupError
            with pytest.raises(BaseExceptionGroup):
                async with open_client(bound.url):
                    raise BaseExceptionGroup("two", [LookupError(), KeyError()])

    async def test_cancellation_passes_through(self) -> None:
        async with serving(_api()) as bound:
            with anyio.move_on_after(0.01) as scope:
                async with open_client(bound.url) as client:
                    await client.connect("WORK")
                    await anyio.sleep_forever()
            assert scope.cancelled_caught


def _raiser(error: Exception) -> Any:
    async def fail() -> None:
        raise error

    return fail


async def _uses(connection: Connection) -> list[type[BaseException]]:
    """What each use of a connection that has ended raises."""
    raised: list[type[BaseException]] = []

    async def register(what: Any, *args: Any) -> None:
        what(*args)

    for use in (
        connection.send("ECHO", 1),
        connection.call("ECHO", 1),
        connection.accept(),
        register(connection.receive, "NOTHING"),
        register(connection.on("HELLO"), _raiser(LookupError())),
        register(connection.add_filter, _raiser(LookupError())),
    ):
        try:
            with anyio.fail_after(PATIENCE):
                await use
        except Exception as exc:
            raised.append(type(exc))
    return raised


class TestMeanings:
    async def test_we_closed_it(self) -> None:
        async with serving(_api()) as bound, open_client(bound.url) as client:
            connection = await client.connect("WORK")
            stream = connection.receive("NOTHING")
            await connection.aclose()
            assert await _uses(connection) == [anyio.ClosedResourceError] * 6
            with pytest.raises(anyio.ClosedResourceError):
                await stream.receive()

    async def test_we_closed_it_by_a_switch(self) -> None:
        async with serving(_api()) as bound, open_client(bound.url) as client:
            connection = await client.connect("WORK")
            stream = connection.receive("NOTHING")
            await client.connect("WORK")
            assert await _uses(connection) == [anyio.ClosedResourceError] * 6
            with pytest.raises(anyio.ClosedResourceError):
                await stream.receive()

    async def test_the_peer_ended_it(self) -> None:
        async with serving(_api()) as bound, open_client(bound.url) as client:
            connection = await client.connect("WORK")
            stream = connection.receive("NOTHING")
            await connection.send("CLOSE")
            with anyio.fail_after(PATIENCE), pytest.raises(anyio.EndOfStream):
                await stream.receive()
            assert await _uses(connection) == [anyio.EndOfStream] * 6

    async def test_the_peer_ended_it_and_what_had_arrived_is_received_first(self) -> None:
        async with serving(_api()) as bound, open_client(bound.url) as client:
            connection = await client.connect("WORK")
            stream = connection.receive("HELLO")
            await connection.send("CLOSE")
            await until(lambda: client.connection is None)
            assert await stream.receive() is None
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()

    async def test_it_was_lost(self) -> None:
        async with serving(_api()) as bound, open_client(bound.url) as client:
            connection = await client.connect("WORK")
            stream = connection.receive("NOTHING")
            await connection.send("REFUSE")
            with anyio.fail_after(PATIENCE), pytest.raises(anyio.BrokenResourceError) as caught:
                await stream.receive()
            assert isinstance(caught.value, ConnectionLost)
            assert (caught.value.code, caught.value.reason) == ("refused", "no longer welcome")
            assert await _uses(connection) == [ConnectionLost] * 6

    async def test_a_call_ends_with_its_connection(self) -> None:
        async with serving(_api()) as bound, open_client(bound.url) as client:
            for action, wanted in (("CLOSE", anyio.EndOfStream), ("REFUSE", ConnectionLost)):
                connection = await client.connect("WORK")
                with anyio.fail_after(PATIENCE):
                    async with anyio.create_task_group() as tg:
                        tg.start_soon(connection.send, action)
                        with pytest.raises(wanted):
                            await connection.call("NEVER")

    async def test_on_the_server_the_code_that_still_holds_a_connection(self) -> None:
        api = _api()
        held: list[Connection] = []

        @api.connect("HELD")
        def hold(connection: Connection) -> None:
            held.append(connection)

        async with serving(api) as bound:
            async with identified(bound, "HELD") as peer:
                await peer.send("41")
                await until(lambda: not len(api.pool))
                assert await _uses(held[0]) == [anyio.EndOfStream] * 6
            async with identified(bound, "HELD") as peer:
                await peer.vanish()
                await until(lambda: not len(api.pool))
                assert await _uses(held[1]) == [ConnectionLost] * 6
            async with identified(bound, "HELD"):
                await held[2].aclose()
                assert await _uses(held[2]) == [anyio.ClosedResourceError] * 6
                assert not len(api.pool)

    async def test_two_readers(self) -> None:
        async with serving(_api()) as bound, open_client(bound.url) as client:
            connection = await client.connect("WORK")
            async with connection.receive("NOTHING") as stream, anyio.create_task_group() as tg:
                tg.start_soon(stream.receive)
                await anyio.wait_all_tasks_blocked()
                with pytest.raises(anyio.BusyResourceError):
                    await stream.receive()
                tg.cancel_scope.cancel()

    async def test_a_closed_stream(self) -> None:
        async with serving(_api()) as bound, open_client(bound.url) as client:
            connection = await client.connect("WORK")
            stream = connection.receive("NOTHING")
            async with anyio.create_task_group() as tg:

                async def receive() -> None:
                    with pytest.raises(anyio.ClosedResourceError):
                        await stream.receive()

                tg.start_soon(receive)
                await anyio.wait_all_tasks_blocked()
                await stream.aclose()
            await stream.aclose()
            await connection.send("ECHO")

    async def test_one_root(self) -> None:
        lost = ConnectionLost("stalled", "no bytes taken")
        assert isinstance(lost, BrightsocketError)
        assert isinstance(lost, anyio.BrokenResourceError)
        assert str(lost) == "stalled: no bytes taken"
        assert str(ConnectionLost("stalled")) == ConnectionLost("stalled").reason == "stalled"
