"""The benchmark runs: each kind of work, with a server of ours, for a moment. What it measures is no test's affair."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.report import comparison_table, table

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("work", ["echo", "broadcast", "connect", "idle-1", "polling", "flood"])
def test_each_work_can_be_done(work: str) -> None:
    measure(work, "ours, Trio")


def test_the_generator_can_stay_awake() -> None:
    measure("echo", "ours, Trio", "--awake")


@pytest.mark.parametrize(
    ("work", "server"),
    [
        ("echo", "bare ASGI, uvicorn"),
        ("connect", "bare ASGI, uvicorn"),
        ("connect", "bare h11 and websockets, Trio"),
        ("connect", "bare h11 and websockets, AnyIO on uvloop"),
    ],
)
def test_the_floors_of_a_server_can_be_measured(work: str, server: str) -> None:
    measure(work, server)


def test_two_servers_can_be_compared_by_turns() -> None:
    done = run("--quick", "--only", "compare", "--servers", "ours, Trio")
    [row] = [line for line in done.splitlines() if line.startswith("| By stream over by handler, Trio")]
    assert all(float(each) > 0 for each in row.replace("/", "|").split("|")[2:7])


def measure(work: str, server: str, *further: str) -> None:
    """Measure a server for a moment."""
    done = run("--quick", "--only", work, "--servers", server, "--seconds", "0.1", *further)
    rows = [line for line in done.splitlines() if line.startswith(f"| {server}")]
    assert rows
    for row in rows:
        # memory may be what was there before
        assert float(row.split("|")[3].replace(",", "")) >= 0


def run(*options: str) -> str:
    """What the benchmark prints."""
    command = [sys.executable, "-m", "benchmarks", *options]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


def test_a_table_has_ratios_and_says_who_was_held_up() -> None:
    def result(cpu: float, generator: float, server: float) -> dict[str, float]:
        return {"cpu_us": cpu, "per_second": 1000, "generator_load": generator, "server_load": server}

    work = {
        "title": "Echo",
        "unit": "µs",
        "figure": "cpu_us",
        "servers": {
            "ours": [result(10, 0.99, 0.3), result(30, 0.5, 1), result(20, 0.5, 1)],
            "python-socketio, uvicorn": [result(80, 0.5, 1)],
            "socket.io, Node": [result(10, 0.5, 1)],
        },
    }
    lines = table(json.loads(json.dumps(work))).splitlines()
    assert "| ours | 10.0 | 20.0 | 30.0 | 0.25 | 2.00 | 1,000 * |" in lines
    assert "| python-socketio, uvicorn | 80.0 | 80.0 | 80.0 | 1.00 | 8.00 | 1,000 |" in lines
    assert any(line.startswith("\\* held up") for line in lines)


def test_a_comparison_has_the_rounds_medians() -> None:
    results = [{"upper_us": 20 * each, "lower_us": 10.0, "quotient": 2 * each} for each in (1, 3, 2)]
    assert "| one over the other | 2.00 | 4.00 | 6.00 | 40.0 / 10.0 |" in comparison_table(
        {"one over the other": results}
    )
