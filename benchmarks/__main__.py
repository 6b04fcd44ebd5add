"""``python -m benchmarks``: run everything, in turn and several times over, and write what came out.

One machine, one run: what is compared is the time that a server's process has used for one message, as the operating
system counts it, so that neither the generator's speed nor the network's matters. Each round measures all works once,
so that a busy moment of the machine meets all of it. Where a quotient is asked for, or figures are near to each other,
two servers have turns of a third of a second, one after the other (:class:`Comparison`).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from . import report
from .processes import CORES, LOAD_CORE, ROOT, SERVER_CORE, alternate, generate, server

OURS = [sys.executable, "-m", "benchmarks.servers.ours"]


@dataclass(frozen=True)
class Server:
    """A program to be measured, and how the generator talks to it."""

    name: str
    command: tuple[str, ...]
    dialect: str = "socketio"
    identify: bool = False


def ours(name: str, *options: str) -> Server:
    return Server(name, (*OURS, *options), identify=True)


def carrier(name: str, which: str, dialect: str) -> Server:
    return Server(name, (sys.executable, "-m", "benchmarks.servers.carriers", which), dialect)


TRIO = ours("ours, Trio", "--loop", "trio")
UVLOOP = ours("ours, asyncio+uvloop", "--loop", "uvloop")
ASYNCIO = ours("ours, asyncio", "--loop", "asyncio")
UVICORN = ours("ours, uvicorn", "--uvicorn")
TRIO_STREAM = ours("ours, Trio, by stream", "--loop", "trio", "--by", "stream")
UVLOOP_STREAM = ours("ours, asyncio+uvloop, by stream", "--loop", "uvloop", "--by", "stream")
PYTHON = Server("python-socketio, uvicorn", (sys.executable, "-m", "benchmarks.servers.python_socketio"))
NODE = Server("socket.io, Node", ("node", str(ROOT / "benchmarks" / "servers" / "node.js")))
#: below us in each of ours
BELOW = [
    carrier("bare ASGI, uvicorn", "asgi-uvicorn", "websocket"),
    carrier("bare TCP, Trio", "tcp-trio", "tcp"),
    carrier("bare TCP, AnyIO on uvloop", "tcp-anyio-uvloop", "tcp"),
]
FLOORS = [
    carrier("bare trio-websocket", "trio-websocket", "websocket"),
    carrier("bare websockets, asyncio", "websockets", "websocket"),
    carrier("bare websockets, asyncio+uvloop", "websockets-uvloop", "websocket"),
    *BELOW,
    carrier("bare TCP, uvloop's protocol", "tcp-protocol-uvloop", "tcp"),
]
#: what answers the handshakes by rote
ROTE = [
    Server(name, (sys.executable, "-m", "benchmarks.servers.replies", which), identify=True)
    for name, which in (
        ("bare h11 and websockets, Trio", "trio"),
        ("bare h11 and websockets, AnyIO on uvloop", "uvloop"),
        ("bare ASGI, uvicorn", "uvicorn"),
    )
]
PEERS = [PYTHON, NODE]
EMBEDDED = [TRIO, UVLOOP, ASYNCIO]


@dataclass(frozen=True)
class Work:
    """Something that servers are made to do, and what of the outcome is compared."""

    key: str
    title: str
    servers: list[Server]
    load: dict[str, Any] = field(default_factory=dict)
    figure: str = "cpu_us"
    unit: str = "µs of the server's CPU per message"
    #: how much of it has a quick run
    quick: dict[str, Any] = field(default_factory=dict)


_IDLE = [TRIO, UVLOOP, ASYNCIO, UVICORN]
WORKS = [
    Work(
        "echo",
        "Echo, 32 connections, one message of 60 characters under way on each",
        [*EMBEDDED, UVICORN, TRIO_STREAM, UVLOOP_STREAM, *PEERS, *FLOORS],
        {"work": "echo", "connections": 32},
    ),
    Work(
        "echo-10",
        "Echo, 32 connections, ten messages under way on each",
        [*EMBEDDED, UVICORN, TRIO_STREAM, UVLOOP_STREAM, *PEERS],
        {"work": "echo", "connections": 32, "in_flight": 10},
    ),
    Work(
        "echo-16k",
        "Echo, 32 connections, messages of 16,000 characters",
        [*EMBEDDED, UVICORN, *PEERS],
        {"work": "echo", "connections": 32, "size": 16_000},
    ),
    Work(
        "echo-1000",
        "Echo, 1,000 connections",
        [*EMBEDDED, UVICORN, *PEERS, *BELOW],
        {"work": "echo", "connections": 1000},
    ),
    Work(
        "broadcast",
        "Broadcast to 500 connections",
        [*EMBEDDED, UVICORN, *PEERS],
        {"work": "broadcast", "connections": 500},
        unit="µs of the server's CPU per delivery",
    ),
    Work(
        "connect",
        "Connecting, identifying and leaving, 8 at a time",
        [*EMBEDDED, UVICORN, *PEERS, *ROTE],
        {"work": "connect", "connections": 8},
        unit="µs of the server's CPU per client",
    ),
    Work(
        "idle-1",
        "2,000 idle connections, one handler each",
        [ours(each.name, *each.command[len(OURS) :], "--handlers", "1") for each in _IDLE],
        {"work": "idle", "connections": 2000},
        figure="bytes_each",
        unit="bytes of the server's memory per connection",
        quick={"connections": 500},
    ),
    Work(
        "idle-10",
        "2,000 idle connections, ten handlers each (the peers: four for all)",
        [*(ours(each.name, *each.command[len(OURS) :], "--handlers", "10") for each in _IDLE), *PEERS],
        {"work": "idle", "connections": 2000},
        figure="bytes_each",
        unit="bytes of the server's memory per connection",
        quick={"connections": 500},
    ),
    Work(
        "polling",
        "Echo by long-polling, 32 connections",
        [*EMBEDDED, UVICORN, *PEERS],
        {"work": "polling", "connections": 32},
    ),
    Work(
        "flood",
        "A flood of 10,000 actions of 1 KB at a handler that takes a millisecond for each",
        [*EMBEDDED, UVICORN, *PEERS],
        {"work": "flood", "size": 1000, "amount": 10_000},
        figure="growth",
        unit="bytes by which the server's memory grew",
        quick={"amount": 2000},
    ),
]


@dataclass(frozen=True)
class Comparison:
    """What a message costs the one server, over what it costs the other, with so many connections each."""

    title: str
    upper: tuple[Server, int]
    lower: tuple[Server, int]


COMPARISONS = [
    Comparison("By stream over by handler, Trio", (TRIO_STREAM, 32), (TRIO, 32)),
    Comparison("By stream over by handler, asyncio+uvloop", (UVLOOP_STREAM, 32), (UVLOOP, 32)),
    Comparison("Under uvicorn over python-socketio", (UVICORN, 32), (PYTHON, 32)),
    *(
        Comparison(f"1,000 connections over 32, {each.name}", (each, 1000), (each, 32))
        for each in [TRIO, UVLOOP, *PEERS, *BELOW]
    ),
]


def compare(comparison: Comparison, *, quick: bool, awake: bool) -> dict[str, float]:
    """One measurement of both, in processes made for it: the medians of what their turns took, and of the quotients."""
    (upper, many), (lower, few) = comparison.upper, comparison.lower
    shared = {"work": "echo", "turns": 2 if quick else 12, "seconds": 0.3, "warm_up": 0.1, "awake": awake}
    with server(upper.command) as (pid, port), server(lower.command) as (other_pid, other_port):
        uppers, lowers = alternate(
            {"pid": pid, "port": port, "connections": many, **_talk(upper), **shared},
            {"pid": other_pid, "port": other_port, "connections": few, **_talk(lower), **shared},
        )
    return {
        "upper_us": statistics.median(uppers),
        "lower_us": statistics.median(lowers),
        "quotient": statistics.median(one / other for one, other in zip(uppers, lowers, strict=True)),
    }


def _talk(peer: Server) -> dict[str, Any]:
    return {"dialect": peer.dialect, "identify": peer.identify}


def run(work: Work, peer: Server, seconds: float, *, quick: bool, awake: bool) -> dict[str, float]:
    """One measurement of one server, in a process made for it."""
    with server(peer.command) as (pid, port):
        load = {**work.load, **(work.quick if quick else {})}
        load |= {**_talk(peer), "seconds": seconds, "awake": awake}
        return generate(port=port, pid=pid, **load)


def imports(runs: int) -> dict[str, Any]:
    """Milliseconds of CPU that importing takes, beyond the interpreter's own start."""

    def once(code: str) -> float:
        before = os.times()
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
        after = os.times()
        return 1000 * (after.children_user + after.children_system - before.children_user - before.children_system)

    names = {"brightsocket_anyio": "ours", "socketio": "python-socketio"}
    bare = statistics.median(once("") for _ in range(3 * runs))
    taken: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(3 * runs):
        for name, each in taken.items():
            each.append(once(f"import {name}") - bare)
    return {
        "title": "Importing the package",
        "unit": "ms of CPU beyond the interpreter's start",
        "figure": "cpu_ms",
        "servers": {names[name]: [{"cpu_ms": each} for each in figures] for name, figures in taken.items()},
    }


def machine() -> dict[str, str]:
    """What has been measured with what."""
    packages = [
        "anyio",
        "trio",
        "uvloop",
        "websockets",
        "h11",
        "orjson",
        "trio-websocket",
        "uvicorn",
        "python-socketio",
    ]
    node = subprocess.run(["node", "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    lock = json.loads((ROOT / "tests" / "interop" / "package-lock.json").read_text("utf-8"))["packages"]
    cpu = [line for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines() if line.startswith("model name")]
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": cpu[0].partition(": ")[2] if cpu else platform.machine(),
        "cores": str(len(CORES)),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "node": node.removeprefix("v"),
        "socket.io": lock["node_modules/socket.io-4"]["version"],
        **{package: version(package) for package in packages},
    }


def main() -> None:
    """Measure, and write it down."""
    parser = argparse.ArgumentParser(prog="nox -s bench --", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short run of the most important figures")
    parser.add_argument(
        "--only", metavar="WORK", nargs="+", choices=[*(work.key for work in WORKS), "import", "compare"]
    )
    parser.add_argument("--servers", metavar="NAME", nargs="+", help="only those whose names have one of these in them")
    parser.add_argument("--runs", type=int, help="how often each is measured")
    parser.add_argument("--seconds", type=float, help="how long each measurement lasts, but for those by turns")
    parser.add_argument("--awake", action="store_true", help="do not count what it takes servers to wake the generator")
    parser.add_argument("--output", type=Path, help="the folder for the table, the JSON and the plot")
    options = parser.parse_args()
    runs = options.runs or (1 if options.quick else 5)
    seconds = options.seconds or (1 if options.quick else 3)
    keys = options.only or ([each.key for each in WORKS if each.key != "flood"] if options.quick else None)
    print(f"servers on core {SERVER_CORE}, the generator on core {LOAD_CORE}", flush=True)
    if SERVER_CORE == LOAD_CORE:
        print("there is one core only: times are still the server's own, throughput is not", flush=True)

    def chosen(each: Server) -> bool:
        if not options.servers:
            return not options.quick or each not in [*FLOORS, *ROTE]
        return any(name in each.name for name in options.servers)

    picked = [
        (work, [each for each in work.servers if chosen(each)]) for work in WORKS if keys is None or work.key in keys
    ]
    works: dict[str, Any] = {
        work.key: {
            "title": work.title,
            "unit": work.unit,
            "figure": work.figure,
            "servers": {each.name: [] for each in servers},
        }
        for work, servers in picked
    }
    compared = [
        each
        for each in COMPARISONS
        if (keys is None or "compare" in keys) and chosen(each.upper[0]) and chosen(each.lower[0])
    ]
    comparisons: dict[str, list[dict[str, float]]] = {each.title: [] for each in compared}
    outcome: dict[str, Any] = {
        "runs": runs,
        "seconds": seconds,
        "awake": options.awake,
        "works": works,
        "comparisons": comparisons,
    }
    began = time.monotonic()
    for number in range(runs):
        for work, servers in picked:
            for each in servers:
                result = run(work, each, seconds, quick=options.quick, awake=options.awake)
                works[work.key]["servers"][each.name].append(result)
        for comparison in compared:
            result = compare(comparison, quick=options.quick, awake=options.awake)
            comparisons[comparison.title].append(result)
        # what is there is not lost if something fails later
        print(report.tables(outcome))
        print(f"round {number + 1} of {runs}: {time.monotonic() - began:.0f} seconds", flush=True)
    if keys is None or "import" in keys:
        works["import"] = imports(runs)
        print(report.table(works["import"]))
    if options.output is not None:
        report.write({"machine": machine(), **outcome}, options.output)


if __name__ == "__main__":
    main()
