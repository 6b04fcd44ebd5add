"""Starting processes on a core of their own, and what the operating system says they used."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

_PAGE = os.sysconf("SC_PAGE_SIZE")

ROOT = Path(__file__).parent.parent
CORES = sorted(os.sched_getaffinity(0))
#: where servers run, and where the load comes from
SERVER_CORE, LOAD_CORE = CORES[0], CORES[-1]


def processor_time_of(pid: int) -> float:
    """What a process has used until now, user and system, all of its threads together, in seconds
    (clock_getcpuclockid(3)): as of the scheduler's last look at it, of which a process that runs has one every few
    milliseconds; ``/proc`` counts in steps of ten."""
    clock = ctypes.c_int()
    if error := ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise OSError(error, os.strerror(error))
    return time.clock_gettime(clock.value)


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
    measured: dict[str, float] = _generate(load)
    return measured


def alternate(*loads: dict[str, Any]) -> list[list[float]]:
    """Have the generator do several things by turns, for several servers; returns what one message has cost each, turn
    by turn, in microseconds of the server's."""
    measured: list[list[float]] = _generate(loads)
    return measured


def _generate(what: Any) -> Any:
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.generator", json.dumps(what)],
        stdout=subprocess.PIPE,
        check=True,
        cwd=ROOT,
        env=_environment(),
        preexec_fn=partial(os.sched_setaffinity, 0, {LOAD_CORE}),
    )
    return json.loads(result.stdout)
