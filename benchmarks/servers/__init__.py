"""The servers that are measured. Each is a program that prints its port, and then does the same things:

- ``ECHO``: sends the text back, as an action of the same name;
- ``SHOUT``: sends the text to all, as ``NEWS``;
- ``FLOOD``: takes a millisecond for it; ``EXPECT`` says how many come, and ``DONE`` that they have all been handled.

The bare ones send back whatever comes.
"""

from __future__ import annotations

import socket


def listening() -> socket.socket:
    """A socket that listens, for servers that take one."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setblocking(False)
    return listener
