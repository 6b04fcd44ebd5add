"""Starting processes on a core of their own, and what the operating system says they used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

_TICK = 1 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")

ROOT = Path(__file__).parent.parent
CORES = sorted(os.sched_getaffinity(0))
#: where servers run, and where the load comes from
SERVER_CORE, LOAD_CORE = CORES[0], CORES[-1]


@dataclass
class Usage:
    """Processor time of a process, in seconds."""

    user: float
    system: float

    @property
    def seconds(self) -> float:
        return self.user + self.system


def usage_of(pid: int) -> Usage:
    """What a process has used until now, all of its threads together (proc(5), ``/proc/pid/stat``)."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return Usage(int(fields[11]) * _TICK, int(fields[12]) * _TICK)


def memory_of(pid: int) -> int:
    """The resident memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * _PAGE


def peak_of(pid: int) -> int:
    """The most resident memory that a process has had, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text("ascii", "replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise LookupError("VmHWM")


def reset_peak(pid: int) -> None:
    """From now on :func:`peak_of` is of what comes (proc(5), ``clear_refs``)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", "ascii")


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "NODE_PATH": str(ROOT / "tests" / "interop" / "node_modules"),
        "NODE_ENV": "production",
    }


@contextmanager
def server(command: Sequence[str]) -> Generator[tuple[int, int]]:
    """Run a server on its core: its process and its port, which it prints when it listens."""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=_environment(),
        preexec_fn=partial(os.sched_setaffinity, 0, {SERVER_CORE}),
    ) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line.strip().isdigit():
                raise RuntimeError(f"{' '.join(command)} does not start: {line!r}")
            yield process.pid, int(line)
        finally:
            process.kill()


def generate(**load: Any) -> dict[str, float]:
    """Have the generator do something on its core; returns what it has measured."""
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.generator", json.dumps(load)],
        stdout=subprocess.PIPE,
        check=True,
        cwd=ROOT,
        env=_environment(),
        preexec_fn=partial(os.sched_setaffinity, 0, {LOAD_CORE}),
    )
    measured: dict[str, float] = json.loads(result.stdout)
    return measured
