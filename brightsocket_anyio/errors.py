"""Every exception that this package raises of its own.

::

    BrightsocketError
    ├── ConfigurationError (ValueError)          the API or a setting is wrong; raised before anything is served
    ├── ProtocolError (ValueError)               the peer sent what the wire protocol does not allow
    ├── HandshakeError                           a client could not open a session
    ├── Refused                                  raised by a channel to turn a client away
    ├── ChannelRefused                           raised by a client's ``connect``: the server turned it away
    └── ConnectionLost (anyio.BrokenResourceError)   the connection ended and neither side meant it to

AnyIO's own exceptions keep AnyIO's meaning: :exc:`anyio.ClosedResourceError` (we closed it), :exc:`anyio.EndOfStream`
(the peer ended it), :exc:`anyio.BusyResourceError` (two tasks read one stream).
"""

from __future__ import annotations

from copy import copy
from typing import Any, TypeVar

import anyio

Error = TypeVar("Error", bound=Exception)


def sole(exc: BaseException) -> BaseException:
    """An exception without the groups around it, as long as it is the only one in them: what tasks of one scope raise
    comes out of it in a group, even if there is just one."""
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc


def fresh(exc: Error) -> Error:
    """A copy to raise of an exception that is kept: a traceback would keep the frames that it has come through, and by
    them whoever keeps it."""
    return copy(exc)


class BrightsocketError(Exception):
    """The root of this package's exceptions."""


class ConfigurationError(BrightsocketError, ValueError):
    """The API or one of its settings is wrong: an unknown base, a cycle, a channel defined twice, an unusable value."""


class ProtocolError(BrightsocketError, ValueError):
    """The peer sent something that the wire protocol does not allow; its session (or its probe) is closed.

    The only exception that the :mod:`brightsocket_anyio.protocol` package raises for input, whatever the input.
    """


class HandshakeError(BrightsocketError):
    """A client could not open a session: the server is unreachable, or its answer is not a Socket.IO server's.

    :ivar status: the HTTP status code of the answer, ``None`` where there was no answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Refused(BrightsocketError):
    """Raised by a channel's function to turn a client away, with the reason that the client is told.

    Before the connection is accepted it is a refusal: the client's ``connect`` raises :exc:`ChannelRefused`, a stock
    Socket.IO client gets CONNECT_ERROR (a namespace) or the event ``BRIGHTSOCKET:REFUSED``. Later it ends the
    connection, with the same reason.

    :param reason: a text for the client.
    :param data: any JSON value that a namespace's CONNECT_ERROR carries beside the reason.
    """

    def __init__(self, reason: str = "refused", data: Any = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.data = data


class ChannelRefused(BrightsocketError):
    """The server turned this client away; the client is on no channel now.

    :ivar channel: the channel that was asked for.
    :ivar reason: the server's reason, a text.
    :ivar data: the further JSON value that a Socket.IO server may send with the reason, else ``None``.
    """

    def __init__(self, channel: str, reason: str, data: Any = None) -> None:
        super().__init__(f"{channel}: {reason}")
        self.channel = channel
        self.reason = reason
        self.data = data


class ConnectionLost(BrightsocketError, anyio.BrokenResourceError):
    """The connection was lost: no side meant it to end.

    :ivar code: a short machine-readable word, such as ``"ping timeout"``, ``"transport error"``, ``"stalled"``.
    :ivar reason: a sentence for the log.
    """

    def __init__(self, code: str, reason: str = "") -> None:
        super().__init__(f"{code}: {reason}" if reason else code)
        self.code = code
        self.reason: str = reason or code
