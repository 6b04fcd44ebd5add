"""Long-polling: the GETs and POSTs of a client that the tests play, against the session's end of the transport."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.abc import TaskGroup

from brightsocket_anyio.errors import ConnectionLost, ProtocolError
from brightsocket_anyio.protocol.engineio import BINARY, TEXT, Packet, PacketType
from brightsocket_anyio.protocol.handshake import RequestError
from brightsocket_anyio.settings import Settings
from brightsocket_anyio.transports.polling import PollingTransport

HELLO = Packet(PacketType.MESSAGE, "hello")
WORLD = Packet(PacketType.MESSAGE, "world")
BYTES = Packet(PacketType.MESSAGE, b"\x00\xff")


class Task:
    """A task whose outcome can be looked at."""

    def __init__(self, task_group: TaskGroup, function: Callable[[], Awaitable[Any]]) -> None:
        self.scope = anyio.CancelScope()
        self.done = anyio.Event()
        self.error: Exception | None = None
        self.value: Any = None
        self._function = function
        task_group.start_soon(self._run)

    async def _run(self) -> None:
        try:
            with self.scope:
                self.value = await self._function()
        except Exception as exc:
            self.error = exc
        finally:
            self.done.set()

    async def result(self) -> Any:
        await self.done.wait()
        if self.error is not None:
            raise self.error
        return self.value


class Peer:
    """A transport, and the requests of its client."""

    def __init__(self, task_group: TaskGroup, eio: Literal[3, 4] = 4, *, base64: bool = False, **settings: Any) -> None:
        self.task_group = task_group
        self.transport = PollingTransport(eio, Settings(**settings), base64=base64)

    async def _get(self) -> tuple[str, bytes]:
        with self.transport.poll() as poll:
            return await poll.wait()

    async def get(self) -> Task:
        """Begin a GET; what it does at once has been done when this returns."""
        return await self.do(self._get)

    async def post(self, body: bytes, content_type: str = TEXT) -> Task:
        return await self.do(lambda: self.transport.post(body, content_type))

    async def send(self, *packets: Packet) -> Task:
        return await self.do(lambda: self.transport.send(packets))

    async def do(self, function: Callable[[], Awaitable[Any]]) -> Task:
        task = Task(self.task_group, function)
        await wait_all_tasks_blocked()
        return task


async def refused(task: Task, code: int = 3) -> None:
    with pytest.raises(RequestError) as caught:
        await task.result()
    assert (caught.value.status, caught.value.code) == (400, code)


async def check_lost(transport: PollingTransport, reason: str) -> None:
    for operation in (transport.receive, lambda: transport.send([HELLO])):
        with pytest.raises(ConnectionLost, match=reason) as caught:
            await operation()
        assert caught.value.code == "transport error"


def test_name() -> None:
    assert PollingTransport(4, Settings()).name == "polling"


class TestSending:
    async def test_a_get_that_waits(self) -> None:
        async with anyio.create_task_group() as tg:
            peer = Peer(tg)
            get = await peer.get()
            await peer.transport.send([HELLO, BYTES])
            assert await get.result() == (TEXT, b"4hello\x1ebAP8=")

    async def test_send_waits_for_a_get(self) -> None:
        async with anyio.create_task_group() as tg:
            peer = Peer(tg)
            send = await peer.send(HELLO)
            assert not send.done.is_set()
            assert await (await peer.get()).result() == (TEXT, b"4hello")
            await send.result()

    async def test_one_batch_a_get(self) -> None:
        async with anyio.create_task_group() as tg:
            peer = Peer(tg)
            get = await peer.get()
            await peer.transport.send([HELLO])
            send = await peer.send(WORLD)
            assert not send.done.is_set()
            assert (await get.result())[1] == b"4hello"
            assert (await (await peer.get()).result())[1] == b"4world"

    async def test_a_cancelled_send_has_sent_nothing(self) -> None:
        async with anyio.create_task_group() as tg:
            peer = Peer(tg)
            send = await peer.send(HELLO)
            send.scope.cancel()
            await send.result()
            get = await peer.get()
            assert not get.done.is_set()
            with anyio.CancelScope() as scope:
                scope.cancel()
                await peer.transport.send([HELLO])
            assert scope.cancelled_caught
            await peer.transport.send([WORLD])
            assert (await get.result())[1] == b"4world"

    @pytest.mark.parametrize(
        ("base64", "expected"),
        [(False, (BINARY, b"\x00\x06\xff4hello\x01\x03\xff\x04\x00\xff")), (True, (TEXT, b"6:4hello6:b4AP8="))],
    )
    async def test_binary_in_engine_io_3(self, base64: bool, expected: tuple[str, bytes]) -> None:
        async with anyio.create_task_group() as tg:
            peer = Peer(tg, 3, base64=base64)
            get = await peer.get()
            await peer.transport.send([HELLO, BYTES])
            assert await get.result() == expected

    @pytest.mark.mock_clock
    async def test_nobody_polls(self) -> None:
        transport = PollingTransport(4, Settings(stall_timeout=7))
        start = anyio.current_time()
        with pytest.raises(ConnectionLost, match="did not poll for 7 seconds") as caught:
            await transport.send([HELLO])
        assert caught.value.code == "stalled"
        assert anyio.current_time() - start == pytest.approx(7)

    @pytest.mark.mock_clock
    async def test_the_patience_begins_anew_after_a_hold(self) -> None:
        async with anyio.create_task_group() as tg:
            peer = Peer(tg, stall_timeout=7)
            start = anyio.current_time()
            send = await peer.send(HELLO)
            await anyio.sleep(5)
            peer.transport.hold()
            await anyio.sleep(100)
            peer.transport.release()
            with pytest.raises(ConnectionLost):
                await send.result()
            assert anyio.current_time() - start == pytest.approx(112)


class TestReceiving:
    async def test_a_post_is_answered_when_its_packets_are_taken(self) -> None:
        async with anyio.create_task_group() as tg:
            peer = Peer(tg)
            post = await peer.post(b"4hello\x1e4world")
            assert not post.done.is_set()
            assert await peer.transport.receive() == [HELLO, WORLD]
            await post.result()

    async def test_receive_waits_for_a_post(self) -> None:
        async with anyio.create_task_group() as tg:
            peer = Peer(tg)
            receive = await peer.do(peer.transport.receive)
            await (await peer.post(b"4hello")).result()
            assert await receive.result() == [HELLO]

    async def test_a_cancelled_receive_loses_nothing(self) -> None:
        async with anyio.create_task_group() as tg:
            peer = Peer(tg)
            receive = await peer.do(peer.transport.receive)
            receive.scope.cancel()
            await receive.result()
            post = await peer.post(b"4hello")
            assert not post.done.is_set()
            assert await peer.transport.receive() == [HELLO]
            await post.result()

    @pytest.mark.parametrize("content_type", ["application/octet-stream", "Application/Octet-Stream; x=y"])
    async def test_a_binary_payload(self, content_type: str) -> None:
        async with anyio.create_task_group() as tg:
            peer = Peer(tg, 3)
            post = await peer.post(b"\x01\x03\xff\x04\x00\xff", content_type)
            assert await peer.transport.receive() == [BYTES]
            await post.result()

    @pytest.mark.parametrize(
        ("body", "content_type"),
        [
            (b"", TEXT),
            (b"x", TEXT),
            (b"\xff", TEXT),
            (b"4hello", BINARY),
            (b"6\x1e6\x1e6\x1e6", TEXT),
        ],
    )
    async def test_an_invalid_payload(self, body: bytes, content_type: str) -> None:
        async with anyio.create_task_group() as tg:
            peer = Peer(tg, max_packets=3)
            get = await peer.get()
            receive = await peer.do(peer.transport.receive)
            await refused(await peer.post(body, content_type))
            for _ in range(2):
                with pytest.raises(ProtocolError):
                    await receive.result()
                receive = await peer.do(peer.transport.receive)
            # the reason can still be sent
            await peer.transport.send([HELLO])
            assert (await get.result())[1] == b"4hello"


class TestOverlaps:
    async def test_a_second_get(self) -> None:
        async with anyio.create_task_group() as tg:
            peer = Peer(tg)
            first = await peer.get()
            await refused(await peer.get())
            assert (await first.result())[1] == b"1"
            await check_lost(peer.transport, "a GET came while another one was waiting")
            await refused(await peer.get())
            await refused(await peer.post(b"4hello"))
            await peer.transport.aclose()

    async def test_a_second_post(self) -> None:
        async with anyio.create_task_group() as tg:
            peer = Peer(tg)
            first = await peer.post(b"4hello")
            await refused(await peer.post(b"4world"))
            assert await peer.transport.receive() == [HELLO]
            await first.result()
            await check_lost(peer.transport, "a POST came while another one was waiting")


class TestLosses:
    async def test_a_get_that_waits(self) -> None:
        async with anyio.create_task_group() as tg:
            peer = Peer(tg)
            get = await peer.get()
            receive = await peer.do(peer.transport.receive)
            get.scope.cancel()
            with pytest.raises(ConnectionLost):
                await receive.result()
            await check_lost(peer.transport, "a GET was cut off")
            await refused(await peer.get())

    async def test_send_waits_when_a_request_is_lost(self) -> None:
        async with anyio.create_task_group() as tg:
            peer = Peer(tg)
            send = await peer.send(HELLO)
            post = await peer.post(b"4hello")
            post.scope.cancel()
            with pytest.raises(ConnectionLost, match="a POST was cut off"):
                await send.result()
            await check_lost(peer.transport, "a POST was cut off")

    async def test_an_answer_that_cannot_be_written(self) -> None:
        peer = PollingTransport(4, Settings())

        async def get() -> None:
            with peer.poll() as poll:
                await poll.wait()
                raise OSError("gone")

        async with anyio.create_task_group() as tg:
            task = Task(tg, get)
            await wait_all_tasks_blocked()
            await peer.send([HELLO])
            with pytest.raises(OSError, match="gone"):
                await task.result()
            await check_lost(peer, "a GET was cut off")

    async def test_a_noop_that_cannot_be_written_is_no_loss(self) -> None:
        async with anyio.create_task_group() as tg:
            peer = Peer(tg)
            peer.transport.hold()
            with pytest.raises(OSError, match="gone"), peer.transport.poll():
                raise OSError("gone")
            peer.transport.release()
            get = await peer.get()
            await peer.transport.send([HELLO])
            assert (await get.result())[1] == b"4hello"

    async def test_a_post_cancelled_after_its_packets_were_taken_is_no_loss(self) -> None:
        async with anyio.create_task_group() as tg:
            peer = Peer(tg)
            post = await peer.post(b"4hello")
            assert await peer.transport.receive() == [HELLO]
            post.scope.cancel()
            await post.result()
            get = await peer.get()
            await peer.transport.send([WORLD])
            assert (await get.result())[1] == b"4world"


class TestGoodbye:
    async def test_a_client_says_goodbye(self) -> None:
        async with anyio.create_task_group() as tg:
            peer = Peer(tg)
            get = await peer.get()
            post = await peer.post(b"4hello\x1e1")
            assert (await get.result())[1] == b"6"
            assert await peer.transport.receive() == [HELLO, Packet(PacketType.CLOSE)]
            await post.result()
            assert (await (await peer.get()).result())[1] == b"6"
            await refused(await peer.post(b"4hello"))
            with anyio.fail_after(4):
                await peer.transport.aclose()
            await refused(await peer.get(), 1)

    async def test_what_is_sent_to_a_client_that_has_left_waits_for_nobody(self) -> None:
        async with anyio.create_task_group() as tg:
            peer = Peer(tg, stall_timeout=math.inf, close_timeout=math.inf)
            send = await peer.send(HELLO)
            # a session that ends by the first packet never reads the second
            post = await peer.post(b"4hello\x1e1")
            await send.result()
            await peer.transport.receive()
            await peer.transport.send([HELLO])
            assert not post.done.is_set()
            await peer.transport.aclose()
            await post.result()


class TestUpgrade:
    async def test_hold_and_retire(self) -> None:
        async with anyio.create_task_group() as tg:
            peer = Peer(tg)
            get = await peer.get()
            receive = await peer.do(peer.transport.receive)
            peer.transport.hold()
            peer.transport.hold()
            assert (await get.result())[1] == b"6"
            send = await peer.send(HELLO)
            assert (await (await peer.get()).result())[1] == b"6"
            await (await peer.post(b"4world")).result()
            assert await receive.result() == [WORLD]
            assert not send.done.is_set()
            receive = await peer.do(peer.transport.receive)
            post = await peer.post(b"4a")
            await post.result()
            post = await peer.post(b"4b")
            peer.transport.retire()
            await refused(post)
            with pytest.raises(anyio.ClosedResourceError):
                await send.result()
            with pytest.raises(anyio.ClosedResourceError):
                await peer.transport.receive()
            await refused(await peer.get())
            await refused(await peer.post(b"4hello"))
            await peer.transport.aclose()

    async def test_retire_ends_a_get_that_waits(self) -> None:
        async with anyio.create_task_group() as tg:
            peer = Peer(tg)
            get = await peer.get()
            peer.transport.retire()
            assert (await get.result())[1] == b"6"

    async def test_hold_and_release(self) -> None:
        async with anyio.create_task_group() as tg:
            peer = Peer(tg)
            peer.transport.release()
            peer.transport.hold()
            send = await peer.send(HELLO)
            get = await peer.get()
            assert (await get.result())[1] == b"6"
            peer.transport.release()
            assert (await (await peer.get()).result())[1] == b"4hello"
            await send.result()


class TestClosing:
    async def test_a_get_that_waits(self) -> None:
        async with anyio.create_task_group() as tg:
            peer = Peer(tg, close_timeout=math.inf)
            get = await peer.get()
            await peer.transport.aclose(1001, "going away")
            assert (await get.result())[1] == b"1"
            await peer.transport.aclose()
            await refused(await peer.get(), 1)
            await refused(await peer.post(b"4hello"), 1)

    async def test_the_next_get(self) -> None:
        async with anyio.create_task_group() as tg:
            peer = Peer(tg, close_timeout=math.inf)
            send = await peer.send(HELLO)
            receive = await peer.do(peer.transport.receive)
            close = await peer.do(peer.transport.aclose)
            for task in (send, receive):
                with pytest.raises(anyio.ClosedResourceError):
                    await task.result()
            await refused(await peer.post(b"4hello"), 1)
            assert not close.done.is_set()
            assert (await (await peer.get()).result())[1] == b"1"
            await close.result()

    async def test_it_waits_until_the_answer_is_written(self) -> None:
        written = anyio.Event()

        async def get() -> None:
            with peer.transport.poll() as poll:
                await poll.wait()
                await written.wait()

        async with anyio.create_task_group() as tg:
            peer = Peer(tg, close_timeout=math.inf)
            await peer.do(get)
            close = await peer.do(peer.transport.aclose)
            assert not close.done.is_set()
            written.set()
            await close.result()

    async def test_it_does_not_wait_for_an_answer_that_is_lost(self) -> None:
        written = anyio.Event()

        async def get() -> None:
            with peer.transport.poll() as poll:
                await poll.wait()
                await written.wait()
                raise OSError("gone")

        async with anyio.create_task_group() as tg:
            peer = Peer(tg, close_timeout=math.inf)
            lost = await peer.do(get)
            close = await peer.do(peer.transport.aclose)
            written.set()
            await close.result()
            await lost.done.wait()

    async def test_a_post_that_waits(self) -> None:
        async with anyio.create_task_group() as tg:
            peer = Peer(tg)
            post = await peer.post(b"4hello")
            close = await peer.do(peer.transport.aclose)
            await refused(post, 1)
            close.scope.cancel()
            await close.result()
            await refused(await peer.get(), 1)

    @pytest.mark.mock_clock
    async def test_it_waits_no_longer_than_the_close_timeout(self) -> None:
        transport = PollingTransport(4, Settings(close_timeout=3))
        start = anyio.current_time()
        await transport.aclose()
        assert anyio.current_time() - start == pytest.approx(3)
        with pytest.raises(RequestError), transport.poll():
            pytest.fail("a GET was taken")

    async def test_a_transport_that_is_lost_is_closed_at_once(self) -> None:
        async with anyio.create_task_group() as tg:
            peer = Peer(tg, close_timeout=math.inf)
            get = await peer.get()
            get.scope.cancel()
            await get.result()
            await peer.transport.aclose()
            with pytest.raises(anyio.ClosedResourceError):
                await peer.transport.receive()
