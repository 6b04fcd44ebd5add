"""Byte streams without a network, and WebSocket frames made by hand."""

from __future__ import annotations

import math
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import anyio.lowlevel
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


class Given(anyio.abc.ByteStream):
    """Brings what it is given, and keeps what is sent."""

    def __init__(self, chunks: list[bytes]) -> None:
        self.chunks = chunks
        self.sent = b""

    async def receive(self, max_bytes: int = 65536) -> bytes:
        if not self.chunks:
            raise anyio.EndOfStream
        return self.chunks.pop(0)

    async def send(self, item: bytes) -> None:
        self.sent += item

    async def send_eof(self) -> None: ...

    async def aclose(self) -> None: ...


class MemoryStream(anyio.abc.ByteStream):
    """One end of :func:`linked`."""

    def __init__(self, outgoing: MemoryObjectSendStream[bytes], incoming: MemoryObjectReceiveStream[bytes]) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self._rest = b""
        self.writes = 0
        self.largest = 0

    async def send(self, item: bytes) -> None:
        self.writes += 1
        self.largest = max(self.largest, len(item))
        # like a socket: what is cancelled before it waits has sent nothing, and what was taken is not cancelled
        await anyio.lowlevel.checkpoint_if_cancelled()
        try:
            self._outgoing.send_nowait(item)
        except anyio.WouldBlock:
            await self._outgoing.send(item)
        else:
            await anyio.lowlevel.cancel_shielded_checkpoint()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        data = self._rest or await self._incoming.receive()
        self._rest = data[max_bytes:]
        return data[:max_bytes]

    async def send_eof(self) -> None:
        self._outgoing.close()

    async def aclose(self) -> None:
        self._outgoing.close()
        self._incoming.close()
        await anyio.lowlevel.checkpoint()

    async def exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += await self.receive(count - len(data))
        return data

    async def frame(self) -> tuple[int, bytes]:
        """Read one whole frame: its opcode and its unmasked payload."""
        head, length = await self.exactly(2)
        masked, length = length & 0x80, length & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", await self.exactly(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", await self.exactly(8))
        key = await self.exactly(4) if masked else bytes(4)
        data = await self.exactly(length)
        return head & 0x0F, bytes(byte ^ key[i % 4] for i, byte in enumerate(data)) if masked else data

    async def close_code(self) -> int:
        """Read up to a Close frame and return its code."""
        while True:
            opcode, data = await self.frame()
            if opcode == CLOSE:
                return int.from_bytes(data[:2], "big")


@asynccontextmanager
async def linked(capacity: float = math.inf) -> AsyncIterator[tuple[MemoryStream, MemoryStream]]:
    """Two ends of a byte stream.

    :param capacity: how many writes each direction holds; 0 for peers that must read before a write returns.
    """
    there_send, there_receive = anyio.create_memory_object_stream[bytes](capacity)
    back_send, back_receive = anyio.create_memory_object_stream[bytes](capacity)
    with there_send, there_receive, back_send, back_receive:
        yield MemoryStream(there_send, back_receive), MemoryStream(back_send, there_receive)


def frame(opcode: int, data: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True) -> bytes:
    """A frame as a client sends it, valid or not; the masking key is zero, so that the payload is in clear."""
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    mask = 0x80 if masked else 0
    if len(data) < 126:
        head += bytes([mask | len(data)])
    elif len(data) < 65536:
        head += struct.pack("!BH", mask | 126, len(data))
    else:
        head += struct.pack("!BQ", mask | 127, len(data))
    return head + (bytes(4) if masked else b"") + data
