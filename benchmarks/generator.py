"""The load: many clients in one process, as cheap as Python allows, so that the server is what is measured.

Frames are made and masked once and sent as they are; answers are looked at no further than to count them. It sleeps
until something comes, or stays awake (:class:`Vigil`): a server that sends to a process that sleeps has to wake it,
which on virtual processors is 2 to 5 µs of a message, and would not be with a peer in another machine.

A process of its own: ``python -m benchmarks.generator '{"work": "echo", …}'`` prints one line of JSON; with a list of
such loads, one for each of several servers, it is an echo by turns.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import uvloop

from .processes import memory_of, peak_of, processor_time_of, reset_peak

#: seconds in which each client has to be ready, and each thing that is asked for has to come
PATIENCE = 120


@dataclass
class Load:
    """What to do.

    :ivar dialect: ``socketio``; or ``websocket`` and ``tcp``, for a carrier that echoes what comes.
    :ivar identify: whether clients name a channel after they have joined the namespace.
    :ivar work: ``echo``, ``polling``, ``broadcast``, ``connect``, ``idle`` or ``flood``.
    :ivar pid: the server's process.
    :ivar size: of the text in an action, in characters.
    :ivar amount: of actions in a flood.
    :ivar turns: how many it has, if several have them one after the other.
    :ivar awake: whether the generator never sleeps.
    """

    port: int
    pid: int
    work: str
    dialect: str = "socketio"
    identify: bool = False
    connections: int = 1
    in_flight: int = 1
    size: int = 60
    seconds: float = 2
    warm_up: float = 0.5
    turns: int = 0
    amount: int = 0
    awake: bool = False


def frame(payload: bytes, opcode: int = 1) -> bytes:
    """A masked WebSocket frame (RFC 6455, section 5)."""
    size = len(payload)
    key = secrets.token_bytes(4)
    if size < 126:
        head = bytes([0x80 | opcode, 0x80 | size])
    elif size < 0x10000:
        head = bytes([0x80 | opcode, 0x80 | 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([0x80 | opcode, 0x80 | 127]) + size.to_bytes(8, "big")
    mask = (key * (size // 4 + 1))[:size]
    masked = (int.from_bytes(payload, "big") ^ int.from_bytes(mask, "big")).to_bytes(size, "big")
    return head + key + masked


def action(name: str, *payload: Any) -> bytes:
    """An EVENT in the main namespace."""
    return b"42" + json.dumps([name, *payload], separators=(",", ":")).encode()


JOIN = b"40"
IDENTIFY = action("BRIGHTSOCKET:IDENTIFY", {"BRIGHTSOCKET:CHANNEL": "BENCH", "name": "somebody"})
IDENTIFIED = b'42["BRIGHTSOCKET:IDENTIFIED"'
PONG_FRAME = frame(b"3")
LEAVE_FRAMES = frame(b"41") + frame((1000).to_bytes(2, "big"), 8)


class Vigil:
    """Keeps the event loop looking for what comes, and knows how long it has looked in vain.

    :ivar events: how many times something has come, as each protocol counts.
    :ivar idle: seconds between two looks that nothing came between.
    """

    events = 0
    idle = 0.0

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events = 0
        self._looked = time.perf_counter()

    def look(self) -> None:
        """Look again, and for ever."""
        now = time.perf_counter()
        if Vigil.events == self._events:
            Vigil.idle += now - self._looked
        self._events, self._looked = Vigil.events, now
        self._loop.call_soon(self.look)


class Client(asyncio.Protocol):
    """One client: it opens, joins, identifies itself, and counts what it is sent.

    :ivar ready: done when it may begin.
    :ivar count: messages that have come since.
    :ivar heard: called with the number of messages of each read.
    """

    transport: asyncio.Transport

    def __init__(self, load: Load) -> None:
        self.load = load
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.heard: Callable[[int], None] = lambda count: None
        self.writable = asyncio.Event()
        self.writable.set()
        self._rest = b""
        self._upgraded = False
        self._size = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        Vigil.events += 1
        self.transport = cast("asyncio.Transport", transport)
        if self.load.dialect == "tcp":
            self._begin()
            return
        path = "/socket.io/?EIO=4&transport=websocket" if self.load.dialect == "socketio" else "/"
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        self.transport.write(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.load.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    def connection_lost(self, exc: Exception | None) -> None:
        Vigil.events += 1
        if not self.ready.done():
            self.ready.set_exception(exc or ConnectionResetError("the server has hung up"))
        if not self.lost.done():
            self.lost.set_result(None)
        self.writable.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        Vigil.events += 1
        if self.load.dialect == "tcp":
            self._size += len(data)
            count, self._size = divmod(self._size, self.load.size)
            if count:
                self.heard(count)
            return
        if self._rest:
            data = self._rest + data
        if not self._upgraded:
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self._rest = head
                return
            assert head.startswith(b"HTTP/1.1 101 "), head
            self._upgraded = True
            if self.load.dialect == "websocket":
                self._begin()
        position, end_of_data, count = 0, len(data), 0
        while end_of_data - position >= 2:
            size = data[position + 1]
            start = position + 2
            if size == 126:
                size = int.from_bytes(data[start : start + 2], "big")
                start += 2
            elif size == 127:
                size = int.from_bytes(data[start : start + 8], "big")
                start += 8
            if end_of_data < start + size:
                break
            # a frame from a server is not masked, and these come whole
            if data[position] != 0x81:
                self._control(data[position])
            elif data.startswith(b"42", start):
                if data.startswith(IDENTIFIED, start):
                    self._begin()
                else:
                    count += 1
            else:
                self._answer(data[start : start + 2])
            position = start + size
        self._rest = data[position:]
        if count:
            self.heard(count)

    def _begin(self) -> None:
        # at the end of the run nobody waits any more
        if not self.ready.done():
            self.ready.set_result(None)

    def _control(self, first: int) -> None:
        if first == 0x88:
            self.transport.close()

    def _answer(self, kind: bytes) -> None:
        match kind[:1], kind:
            case b"0", _:
                self.transport.write(frame(JOIN))
            case b"2", _:
                self.transport.write(PONG_FRAME)
            case _, b"40":
                if self.load.identify:
                    self.transport.write(frame(IDENTIFY))
                else:
                    self._begin()


class HttpClient(asyncio.Protocol):
    """One connection of a polling client: a request, its answer, the next."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._rest = b""
        self._answered: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        Vigil.events += 1
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        Vigil.events += 1
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(exc or ConnectionResetError("the server has hung up"))

    def data_received(self, data: bytes) -> None:
        Vigil.events += 1
        data = self._rest + data
        self._rest = b""
        head, end, body = data.partition(b"\r\n\r\n")
        lowered = head.lower()
        whole = False
        if end and b"transfer-encoding: chunked" in lowered:
            whole = body.endswith(b"0\r\n\r\n")
            # one chunk is all that these answers have
            body = body.partition(b"\r\n")[2].partition(b"\r\n")[0]
        elif end:
            size = int(lowered.partition(b"content-length:")[2].partition(b"\r\n")[0])
            whole = len(body) >= size
        if not whole:
            self._rest = data
            return
        assert head.startswith(b"HTTP/1.1 200 "), data
        answered, self._answered = self._answered, None
        assert answered is not None
        # at the end of the run nobody waits any more
        if not answered.done():
            answered.set_result(body)

    def request(self, request: bytes) -> asyncio.Future[bytes]:
        self._answered = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._answered


@dataclass
class Window:
    """The time in which things are counted."""

    pid: int
    began: float = field(default_factory=time.perf_counter)
    server: float = field(init=False)
    own: float = field(default_factory=lambda: time.process_time() - Vigil.idle)

    def __post_init__(self) -> None:
        self.server = processor_time_of(self.pid)

    def close(self, count: int) -> dict[str, float]:
        """How much of what was done per second, and what one of it took the server."""
        seconds = time.perf_counter() - self.began
        cpu = processor_time_of(self.pid) - self.server
        return {
            "count": count,
            "seconds": seconds,
            "per_second": count / seconds,
            "cpu_us": cpu / count * 1e6 if count else float("nan"),
            "server_load": cpu / seconds,
            "generator_load": (time.process_time() - Vigil.idle - self.own) / seconds,
        }


async def _client(load: Load) -> Client:
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(lambda: Client(load), "127.0.0.1", load.port)
    # not wait_for, which on Python 3.11 may swallow the cancellation at the end of the run
    async with asyncio.timeout(PATIENCE):
        await client.ready
    return client


async def _clients(load: Load, count: int) -> list[Client]:
    """So many clients, made a few at a time: a server's backlog is no part of what is measured."""
    clients: list[Client] = []
    while len(clients) < count:
        some = min(20, count - len(clients))
        clients += await asyncio.gather(*(_client(load) for _ in range(some)))
    return clients


async def _measured(load: Load, done: Callable[[], int]) -> dict[str, float]:
    await asyncio.sleep(load.warm_up)
    before = done()
    window = Window(load.pid)
    await asyncio.sleep(load.seconds)
    while done() == before:  # noqa: ASYNC110 (an event would cost something for each message)
        await asyncio.sleep(0.01)
    return window.close(done() - before)


class Echo:
    """Each client has some messages under way, and sends another for each that comes back, while this goes on."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self._total = 0
        self._message = frame(action("ECHO", "x" * load.size))
        # a carrier sends back what comes, byte by byte
        load.size = len(self._message)
        self._clients: list[Client] = []
        self._under_way = 0
        #: done when nothing is under way any more; while there is none, it goes on
        self._quiet: asyncio.Future[None] | None = None

    async def open(self) -> None:
        self._clients = await _clients(self.load, self.load.connections)
        for client in self._clients:
            client.heard = self._answerer(client)

    def _answerer(self, client: Client) -> Callable[[int], None]:
        write, message = client.transport.write, self._message

        def heard(count: int) -> None:
            self._total += count
            if self._quiet is None:
                write(message if count == 1 else message * count)
            else:
                self._under_way -= count
                if not self._under_way:
                    self._quiet.set_result(None)

        return heard

    def total(self) -> int:
        """How many messages have come back."""
        return self._total

    def start(self) -> None:
        self._quiet = None
        self._under_way = len(self._clients) * self.load.in_flight
        for client in self._clients:
            client.transport.write(self._message * self.load.in_flight)

    async def stop(self) -> None:
        """Wait until nothing is under way any more."""
        self._quiet = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(PATIENCE):
            await self._quiet


async def echo(load: Load) -> dict[str, float]:
    """Messages that come back, for some time."""
    each = Echo(load)
    await each.open()
    each.start()
    return await _measured(load, each.total)


async def alternate(loads: list[Load]) -> list[list[float]]:
    """The same for several servers, which have their turns one after the other, again and again: whatever makes one
    turn dearer than the next one of the same server, makes that of the others dearer, too.

    :returns: for each of them, the microseconds that a message takes it in each turn.
    """
    echoes = [Echo(load) for load in loads]
    for each in echoes:
        await each.open()
    figures: list[list[float]] = [[] for _ in echoes]
    for _ in range(loads[0].turns):
        for each, taken in zip(echoes, figures, strict=True):
            each.start()
            taken.append((await _measured(each.load, each.total))["cpu_us"])
            await each.stop()
    return figures


async def polling(load: Load) -> dict[str, float]:
    """The same by long-polling: a GET waits while a POST brings the message."""
    loop = asyncio.get_running_loop()
    total = 0

    def get(sid: str) -> bytes:
        query = f"EIO=4&transport=polling{sid}"
        return f"GET /socket.io/?{query} HTTP/1.1\r\nHost: 127.0.0.1:{load.port}\r\n\r\n".encode()

    def post(sid: str, body: bytes) -> bytes:
        head = (
            f"POST /socket.io/?EIO=4&transport=polling{sid} HTTP/1.1\r\nHost: 127.0.0.1:{load.port}\r\n"
            f"Content-Type: text/plain;charset=UTF-8\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    async def live() -> None:
        nonlocal total
        _, getter = await loop.create_connection(HttpClient, "127.0.0.1", load.port)
        _, poster = await loop.create_connection(HttpClient, "127.0.0.1", load.port)
        sid = "&sid=" + json.loads((await getter.request(get("")))[1:])["sid"]
        await poster.request(post(sid, JOIN))
        while b"40" not in await getter.request(get(sid)):
            pass
        if load.identify:
            await poster.request(post(sid, IDENTIFY))
            while IDENTIFIED not in await getter.request(get(sid)):
                pass
        waiting, message = get(sid), post(sid, action("ECHO", "x" * load.size))
        while True:
            answer = getter.request(waiting)
            await poster.request(message)
            body = await answer
            while not body.startswith(b"42"):
                if body.startswith(b"2"):
                    await poster.request(post(sid, b"3"))
                body = await getter.request(waiting)
            total += 1

    async with asyncio.TaskGroup() as tg:
        tasks = [tg.create_task(live()) for _ in range(load.connections)]
        result = await _measured(load, lambda: total)
        for task in tasks:
            task.cancel()
    return result


async def broadcast(load: Load) -> dict[str, float]:
    """One asks, all are told; when all have heard it, again."""
    ask = frame(action("SHOUT", "x" * load.size))
    clients = await _clients(load, load.connections)
    shouter = clients[0]
    total = missing = 0

    def heard(count: int) -> None:
        nonlocal total, missing
        total += count
        missing -= count
        if not missing:
            missing = load.connections
            shouter.transport.write(ask)

    for client in clients:
        client.heard = heard
    missing = load.connections
    shouter.transport.write(ask)
    return await _measured(load, lambda: total)


async def connect(load: Load) -> dict[str, float]:
    """Open, join, identify, leave; a few at a time."""
    total = 0

    async def come_and_go() -> None:
        nonlocal total
        while True:
            client = await _client(load)
            client.transport.write(LEAVE_FRAMES)
            await client.lost
            total += 1

    async with asyncio.TaskGroup() as tg:
        tasks = [tg.create_task(come_and_go()) for _ in range(load.connections)]
        result = await _measured(load, lambda: total)
        for task in tasks:
            task.cancel()
    return result


async def idle(load: Load) -> dict[str, float]:
    """How much memory the server needs for clients that do nothing."""
    # what the first ones need once for all
    for client in await _clients(load, 100):
        client.transport.write(LEAVE_FRAMES)
        await client.lost
    await asyncio.sleep(load.warm_up)
    before = memory_of(load.pid)
    window = Window(load.pid)
    clients = await _clients(load, load.connections)
    result = window.close(len(clients))
    await asyncio.sleep(load.warm_up)
    result["bytes_each"] = (memory_of(load.pid) - before) / len(clients)
    return result


async def flood(load: Load) -> dict[str, float]:
    """More actions than a slow handler can take; the server says when it has had all of them."""
    message = frame(action("FLOOD", "x" * load.size))
    client = await _client(load)
    over = asyncio.get_running_loop().create_future()
    client.heard = over.set_result
    await asyncio.sleep(load.warm_up)
    reset_peak(load.pid)
    before = peak_of(load.pid)
    window = Window(load.pid)
    client.transport.write(frame(action("EXPECT", load.amount)))
    for _ in range(load.amount // 10):
        client.transport.write(message * 10)
        await client.writable.wait()
    done, _ = await asyncio.wait([over, client.lost], return_when=asyncio.FIRST_COMPLETED)
    result = window.close(load.amount)
    result["survived"] = float(over in done)
    result["growth"] = peak_of(load.pid) - before
    return result


WORKS = {each.__name__: each for each in (echo, polling, broadcast, connect, idle, flood)}


async def _work(given: dict[str, Any] | list[dict[str, Any]]) -> Any:
    loads = [Load(**each) for each in (given if isinstance(given, list) else [given])]
    if loads[0].awake:
        Vigil().look()
    return await (alternate(loads) if isinstance(given, list) else WORKS[loads[0].work](loads[0]))


def main() -> None:
    """Do what the argument says, and print what came out."""
    result = uvloop.run(asyncio.wait_for(_work(json.loads(sys.argv[1])), 10 * PATIENCE))
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
