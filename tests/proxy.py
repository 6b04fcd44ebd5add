"""A TCP proxy between a client and a server, which does to their bytes what a bad network does."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import anyio.abc
from anyio.streams.stapled import MultiListener

from brightsocket_anyio import Bound

_GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError)


class Proxy:
    """Passes on what comes to :attr:`url`, as long as it is told nothing else. Made by :func:`proxied`.

    :ivar url: where clients connect to.
    :ivar target: the server's host and port; it may change.
    :ivar refusing: whether new connections are cut at once.
    :ivar accepted: how many connections have come, with those that were refused.
    :ivar chunk: how many bytes are passed on at a time.
    :ivar delay: seconds that each chunk takes.
    """

    def __init__(self, target: tuple[str, int], port: int) -> None:
        self.url: str = f"http://127.0.0.1:{port}"
        self.target = target
        self.refusing: bool = False
        self.accepted: int = 0
        self.chunk: int = 65536
        self.delay: float = 0
        self._flowing = anyio.Event()
        self._flowing.set()
        self._scopes: set[anyio.CancelScope] = set()

    def cut(self) -> None:
        """Close all connections, both ways, in the middle of whatever they carry."""
        for scope in self._scopes:
            scope.cancel()

    def freeze(self) -> None:
        """Pass nothing on, and say nothing of it: every connection is half-open."""
        self._flowing = anyio.Event()

    def thaw(self) -> None:
        """Pass on again."""
        self._flowing.set()

    async def handle(self, client: anyio.abc.ByteStream) -> None:
        self.accepted += 1
        with anyio.CancelScope() as scope, contextlib.suppress(*_GONE):
            async with client:
                if self.refusing:
                    return
                self._scopes.add(scope)
                try:
                    async with await anyio.connect_tcp(*self.target) as server, anyio.create_task_group() as tg:
                        tg.start_soon(self._pass_on, client, server, tg.cancel_scope)
                        tg.start_soon(self._pass_on, server, client, tg.cancel_scope)
                finally:
                    self._scopes.discard(scope)

    async def _pass_on(self, source: anyio.abc.ByteStream, sink: anyio.abc.ByteStream, both: anyio.CancelScope) -> None:
        with contextlib.suppress(*_GONE):
            async for data in source:
                while data:
                    await self._flowing.wait()
                    if self.delay:
                        await anyio.sleep(self.delay)
                    # what it is now: it may have changed in the middle of what one read has brought
                    chunk, data = data[: self.chunk], data[self.chunk :]
                    await sink.send(chunk)
        both.cancel()


def address_of(bound: Bound) -> tuple[str, int]:
    """The host and port of a server."""
    address = bound.addresses[0]
    return str(address[0]), int(address[1])


@asynccontextmanager
async def proxied(server: Bound | tuple[str, int]) -> AsyncGenerator[Proxy]:
    """A proxy in front of a server, or of an address."""
    listener: MultiListener[anyio.abc.SocketStream] = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    proxy = Proxy(address_of(server) if isinstance(server, Bound) else server, port)
    async with listener, anyio.create_task_group() as tg:
        tg.start_soon(listener.serve, proxy.handle)
        yield proxy
        tg.cancel_scope.cancel()
