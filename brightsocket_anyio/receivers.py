"""What takes an action's items out of the inbox for the application: streams and handlers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import isawaitable
from typing import Any, Protocol

import anyio
from anyio.abc import ObjectReceiveStream
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from .ends import End
from .errors import ConfigurationError
from .inbox import Item, Receiver
from .prefetch import whole_lines
from .settings import Settings
from .settling import settle, unsettled
from .signature import Adapted
from .stand import Stand
from .transport import RUN
from .workers import Workers


def unpack(args: tuple[Any, ...]) -> Any:
    """A message's values as one: ``None`` for none, the value itself for one, a tuple for several."""
    match args:
        case ():
            return None
        case (value,):
            return value
    return args


class Owner(Protocol):
    """What a stream asks of its connection."""

    @property
    def settings(self) -> Settings: ...

    def forget(self, stream: Stream) -> None:
        """The stream has closed."""
        ...


class Stream(Receiver, ObjectReceiveStream[Any]):
    """The stream that :meth:`Connection.receive` returns.

    :param arrived: where to wait for more.
    """

    __slots__ = whole_lines(
        (Receiver, ObjectReceiveStream),
        "_arrived",
        "_closed",
        "_end",
        "_owner",
        "_run",
    )

    def __init__(self, owner: Owner, arrived: Stand) -> None:
        Receiver.__init__(self, owner.settings.max_buffered_messages, owner.settings.max_buffered_bytes)
        self._owner = owner
        self._arrived = arrived
        #: how many were received in a row without waiting
        self._run = 0
        self._closed = False
        self._end: End | None = None

    def put(self, item: Item) -> None:
        self.push(item)
        self._arrived.wake()

    def end(self, end: End) -> None:
        self._end = end
        self._arrived.close()

    async def receive(self) -> Any:
        """Wait for the action's next payload. Safe to cancel.

        :raises anyio.EndOfStream: the peer ended the connection, and everything that had arrived has been received.
        :raises ConnectionLost: the connection was lost, and everything that had arrived has been received.
        :raises anyio.ClosedResourceError: the stream or its connection was closed on this side.
        :raises anyio.BusyResourceError: another task receives from this stream.
        """
        if self.items and self._run < RUN:
            # what waits already is handed out without a trip through the loop, a few at a time
            self._run += 1
            await checkpoint_if_cancelled()
        elif self.items or self._closed or self._end is not None:
            self._run = 0
            await checkpoint()
        if unsettled:
            settle()
        while True:
            if self._closed or (self._end is not None and self._end.code == "closed"):
                await checkpoint_if_cancelled()
                raise anyio.ClosedResourceError
            if self.items:
                break
            if self._end is not None:
                await checkpoint_if_cancelled()
                raise self._end.exception()
            self._run = 0
            await self._arrived.wait()
        item = self.pop()
        self.freed()
        return unpack(item.args)

    async def aclose(self) -> None:
        """Stop receiving. What has arrived and was not received waits for the action's next receiver. Idempotent."""
        self._close()
        await checkpoint()

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            self._owner.forget(self)
            self._arrived.close()


class Handler(Receiver):
    """A function that takes an action's payloads, ``limit`` at a time.

    :param failed: told of what the function raises; where it is ``None``, that comes out of the workers' scope.
    """

    __slots__ = whole_lines((Receiver,), "_failed", "_function", "_limit", "_running", "_workers")

    answers = True

    def __init__(
        self,
        function: Callable[..., Any],
        limit: int,
        settings: Settings,
        workers: Workers,
        failed: Callable[[Exception], None] | None = None,
    ) -> None:
        if limit < 1:
            raise ConfigurationError(f"limit must be at least 1, not {limit!r}")
        Receiver.__init__(self, settings.max_buffered_messages, settings.max_buffered_bytes)
        self._function = Adapted(function, "a handler")
        self._limit = limit
        self._workers = workers
        self._failed = failed
        #: items that are handled, or that a worker has been called for
        self._running = 0

    def put(self, item: Item) -> None:
        if self._running < self._limit:
            self._running += 1
            self._workers.submit(partial(self._work, item))
        else:
            self.push(item)

    async def _work(self, item: Item) -> None:
        try:
            function = self._function
            result = function.begin(item.args)
            if function.waits or isawaitable(result):
                result = await result
            if item.question is not None and item.answerer is self:
                await item.question.core.answer(item.question, result if isinstance(result, tuple) else (result,))
        except Exception as exc:
            if self._failed is None:
                raise
            self._failed(exc)
        finally:
            if self.items:
                # behind those of other actions that wait for a worker already
                self._workers.submit(partial(self._work, self.pop()))
                self.freed()
            else:
                self._running -= 1
