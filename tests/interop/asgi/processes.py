"""ASGI servers as processes of their own, each started by the command that docs/deploying.md gives."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brightsocket_anyio import Bound, Client, open_client

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "deploying.md"
#: seconds that a process may take to start, and to end
PATIENCE = 60

#: what each server says when it listens
READY = re.compile(r"Uvicorn running on|Running on http|Started worker-1")
#: what no server says unless something is wrong
TROUBLE = re.compile(
    r"Traceback|Exception|was never awaited|\bCRITICAL\b"
    # uvicorn's websockets-sansio says this of each WebSocket that is answered with an HTTP error
    r"|\bERROR\b(?!: +ASGI callable returned without completing handshake)"
)


@dataclass(frozen=True)
class Server:
    """A server as the page says to start it.

    :ivar command: how the line of the page begins, after the ``$``.
    :ivar options: what the test adds to it.
    """

    command: str
    options: tuple[str, ...] = ()

    def line(self, app: str, port: int) -> list[str]:
        """The command with another application and port."""
        [line] = re.findall(rf"^\$ ({re.escape(self.command)}.*)$", PAGE.read_text("utf-8"), re.MULTILINE)
        words = shlex.split(line.removeprefix("python -m ").replace("8000", str(port)))
        package = app.partition(":")[0].rpartition(".")[0]
        words = [app if word == "chat:app" else word.replace("chat.", f"{package}.") for word in words]
        return [sys.executable, "-m", *words, *self.options]


@dataclass
class Process:
    """A process whose output is read as it comes."""

    process: subprocess.Popen[str]
    output: list[str] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    ended: bool = False

    @property
    def log(self) -> str:
        return "".join(self.output)

    @property
    def trouble(self) -> str:
        """From the first complaint on, what it has said."""
        found = TROUBLE.search(self.log)
        return self.log[found.start() :] if found else ""

    def read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                with self.changed:
                    self.output.append(line)
                    self.changed.notify_all()
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def wait_for(self, pattern: re.Pattern[str]) -> None:
        """Wait until the process has said something."""
        with self.changed:
            self.changed.wait_for(lambda: self.ended or pattern.search(self.log), PATIENCE)
        assert pattern.search(self.log), self.log

    def terminate(self) -> None:
        """Ask the process to end."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait until the process has ended; returns its exit status."""
        return self.process.wait(PATIENCE)


@contextmanager
def running(command: Sequence[str], ready: re.Pattern[str] = READY, **environment: str) -> Iterator[Process]:
    """A process that has said that it is ready; at the end nothing is left of it, nor of its children."""
    process = Process(
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )
    )
    reader = threading.Thread(target=process.read)
    reader.start()
    try:
        process.wait_for(ready)
        yield process
    finally:
        with suppress(ProcessLookupError):  # all may have ended by themselves
            os.killpg(process.process.pid, signal.SIGKILL)
        process.wait()
        reader.join()


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port that nobody else is given, and that a server may listen on: it is bound here, without listening."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def wait_for_port(port: int) -> None:
    """Wait until somebody listens: granian says that it does a moment before it does."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, f"nobody listens on port {port}"
            time.sleep(0.01)
        else:
            return


@dataclass(frozen=True)
class Served:
    """An application behind a server.

    :ivar path: where the API is in it.
    """

    process: Process
    port: int
    path: str

    @property
    def bound(self) -> Bound:
        return Bound((("127.0.0.1", self.port),), self.url)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open(self, **options: Any) -> AbstractAsyncContextManager[Client]:
        return open_client(self.url, path=self.path, **options)


@contextmanager
def serving(server: Server, app: str, path: str) -> Iterator[Served]:
    with reserved_port() as port, running(server.line(app, port)) as process:
        wait_for_port(port)
        yield Served(process, port, path)
