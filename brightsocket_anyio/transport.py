"""What a session needs of a road to its peer, and of a request for one. The roads themselves are in ``transports/``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Literal, Protocol

from .protocol.engineio import Packet

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
#: names in lower case, and values
Headers = Sequence[tuple[bytes, bytes]]
#: not of the three above: frameworks have each types of their own for the messages
ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]

#: packets or messages taken, or sent, in one go: one read may bring thousands, and all other tasks wait meanwhile
RUN = 32


class Transport(Protocol):
    """One road of an Engine.IO session: packets in, packets out, whole and in order. One task sends, one task receives.

    What ends it says so every time: who sends or receives after the end gets the same exception again. What had arrived
    whole before the end is received first. The tests in ``tests/contract`` hold every transport to this page.
    """

    @property
    def name(self) -> Literal["websocket", "polling"]:
        """Socket.IO's name for this kind of transport."""
        ...

    async def send(self, packets: Sequence[Packet]) -> None:
        """Send a batch of packets.

        Cancelled, it has sent nothing (a server's polling), or whole packets from the front of the batch and perhaps a
        part of the next one: then the transport is good for :meth:`aclose` only.

        :raises anyio.ClosedResourceError: this side has closed the transport, before or meanwhile.
        :raises ConnectionLost: the peer has closed the transport or is gone, or takes no bytes for the stall timeout
            (code ``"stalled"``).
        """
        ...

    async def receive(self) -> list[Packet]:
        """Wait for the next packets, at least one. Safe to cancel: nothing is lost.

        :raises anyio.EndOfStream: the peer closed the transport in an orderly way; a WebSocket's close code and reason
            are in its text. Polling knows no such end, but for a CLOSE packet.
        :raises anyio.ClosedResourceError: this side has closed the transport, before or meanwhile.
        :raises ConnectionLost: the peer is gone.
        :raises ProtocolError: the peer sent something invalid, or more than ``max_payload``; the transport is good for
            :meth:`aclose` only.
        """
        ...

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close the transport, with a WebSocket close code and reason where there is one. Idempotent.

        Ends a ``send`` and a ``receive`` that are under way. Waits for the peer's part for the close timeout at most;
        cancelled, it closes the hard way.
        """
        ...


class PromptTransport(Transport, Protocol):
    """A transport that takes packets at once, without a switch to the task that sends, often closes at once, and can be
    received from without a coroutine of its own."""

    def arrival(self) -> Awaitable[Any]:
        """What to await for the next packets, once and at once; :meth:`read` takes what comes of it. Safe to cancel:
        nothing is lost.

        It is what lies below the transport where that is possible: a coroutine in between is made, kept or visited for
        each message.

        Nobody closes the transport meanwhile. However much comes, others have their turn after :data:`RUN` of these at
        the latest.

        :raises: as :meth:`receive`, when all that had come before has been read. To await it may raise any exception,
            whose meaning :meth:`failure` tells.
        """
        ...

    def readable(self) -> Awaitable[Any] | None:
        """The same, if it is nothing but to wait for the peer: it may be awaited in whatever scope, and ends early at a
        :meth:`nudge`. ``None`` if there is more to it, or nothing more to wait for."""
        ...

    def nudge(self) -> bool:
        """Have what :meth:`readable` has given come to its end, perhaps with nothing; returns whether somebody has
        waited for it."""
        ...

    @property
    def watched(self) -> bool:
        """Whether :meth:`readable` can give anything at all."""
        ...

    def read(self, arrived: Any) -> list[Packet]:
        """The packets that have arrived; none, if that was nothing whole.

        :param arrived: what awaiting the :meth:`arrival` has returned; ``None`` for what is :meth:`readable`.
        :raises: as :meth:`receive`, when all that had come before has been read.
        """
        ...

    def failure(self, raised: Exception) -> Exception:
        """What it means that an arrival, or :meth:`read`, has raised something: an exception of :meth:`receive`'s."""
        ...

    def take_arrived(self) -> list[Packet]:
        """What had come when a ``receive`` or an ``arrival`` was cancelled, and is at hand.

        :raises ProtocolError: the peer sent something invalid.
        """
        ...

    def send_nowait(self, packets: Sequence[Packet], stuck: Callable[[], None]) -> bool:
        """Send a batch of packets if nothing has to be waited for; returns whether they were taken, all or none. They
        are on their way by the end of the loop's turn.

        Only while no :meth:`send` is under way. Never raises: what is wrong is the next :meth:`send`'s to say.

        :param stuck: called, now or at the end of the turn, if that was not possible for all of what was taken: the
            next :meth:`send`, perhaps of nothing, sends the rest first.
        """
        ...

    def close_nowait(self) -> bool:
        """Close the transport if nothing has to be said to the peer or waited for; returns whether it is closed."""
        ...

    @property
    def flushed(self) -> bool:
        """Whether nothing of what was taken at once is left for :meth:`send`."""
        ...


class WebSocketRequest(Protocol):
    """A WebSocket handshake that waits for its answer: the one form that every front door gives it."""

    @property
    def scope(self) -> Scope:
        """An ASGI ``websocket`` scope: ``path``, ``query_string``, ``headers``, ``client``, ``scheme``…"""
        ...

    @property
    def at_home(self) -> bool:
        """Whether the task that brings it is one of our own server's: then nobody else cancels it, and the session may
        live in it."""
        ...

    async def wait_gone(self) -> None:
        """Wait until the peer is gone, before the request is answered; for ever where that cannot be known.

        Safe to cancel: nothing of what the peer sends is lost.
        """
        ...

    async def accept(self, eio: Literal[3, 4], headers: Headers = (), subprotocol: str | None = None) -> Transport:
        """Finish the handshake.

        :param headers: further ones of the answer.
        :param subprotocol: the one that was chosen.

        :raises ConnectionLost: the peer is gone.
        """
        ...

    async def reject(self, status: int, body: bytes, headers: Headers = ()) -> None:
        """Answer with an HTTP error, further headers and a JSON body, and be done with the request."""
        ...
