"""Running :mod:`.program`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import Process

from brightsocket_anyio import Bound

from ..support import PATIENCE

ROOT = Path(__file__).parents[2]


@dataclass
class Running:
    """The program, running."""

    process: Process
    bound: Bound

    def memory(self) -> int:
        """Bytes that it has in memory."""
        return self._status("VmRSS")

    def peak_memory(self) -> int:
        """The most bytes that it has had in memory since :meth:`reset_peak`."""
        return self._status("VmHWM")

    def reset_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def _status(self, name: str) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise LookupError(name)


@asynccontextmanager
async def running(loop: str, door: str = "embedded", **settings: Any) -> AsyncGenerator[Running]:
    """The program in a process of its own, on one of the loops; what still runs at the end is killed."""
    command = [sys.executable, "-m", "tests.faults.program", loop, door, json.dumps(settings)]
    async with await anyio.open_process(command, cwd=ROOT, env={**os.environ}, stderr=None) as process:
        try:
            assert process.stdout is not None
            line = b""
            with anyio.fail_after(PATIENCE):
                while not line.endswith(b"\n"):
                    line += await process.stdout.receive()
            url = line.decode().strip()
            host, _, port = url.removeprefix("http://").partition(":")
            yield Running(process, Bound(((host, int(port)),), url))
        finally:
            if process.returncode is None:
                process.kill()
