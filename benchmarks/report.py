"""What the benchmark has found, as tables, JSON and a plot."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

#: what the others are compared with
PYTHON, NODE = "python-socketio", "socket.io, Node"
#: above this share of its core, the generator has held up the server
BUSY = 0.9


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def _median(results: list[dict[str, float]], figure: str) -> float:
    return statistics.median(each[figure] for each in results)


def _of(servers: dict[str, list[dict[str, float]]], prefix: str, figure: str) -> float | None:
    for name, results in servers.items():
        if name.startswith(prefix):
            return _median(results, figure)
    return None


def _held_up(result: dict[str, float]) -> bool:
    """Whether the generator, and not the server, was the bottleneck."""
    return result.get("generator_load", 0) > BUSY and result["server_load"] < BUSY


def table(work: dict[str, Any]) -> str:
    """One work's figures, as a table in Markdown: the figure that is compared, its ratios, the throughput."""
    figure, servers = work["figure"], work["servers"]
    python, node = _of(servers, PYTHON, figure), _of(servers, NODE, figure)
    lines = [
        f"### {work['title']}",
        "",
        f"| {work['unit']} | min | median | max | × python-socketio | × socket.io on Node | per second |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    held_up = died = False
    for name, results in servers.items():
        values = [each[figure] for each in results]
        median = statistics.median(values)
        ratios = [f"{median / other:.2f}" if other else "" for other in (python, node)]
        rate = _number(_median(results, "per_second")) if "per_second" in results[0] else ""
        if any(_held_up(each) for each in results):
            held_up = True
            rate += " *"
        if any(not each.get("survived", 1) for each in results):
            died = True
            name += " †"
        row = [name, _number(min(values)), _number(median), _number(max(values)), *ratios, rate]
        lines.append(f"| {' | '.join(row)} |")
    lines.append("")
    if held_up:
        lines += ["\\* held up by the generator, whose core was busy while the server's was not.", ""]
    if died:
        lines += ["† the client was disconnected before all was handled.", ""]
    return "\n".join(lines)


def comparison_table(comparisons: dict[str, list[dict[str, float]]]) -> str:
    """How many times as much one echo costs as another one, as a table in Markdown."""
    lines = [
        "### Two echoes by turns, one over the other",
        "",
        "Each round: turns of 0.3 seconds, one after the other; its figure is the median of their quotients.",
        "",
        "| | min | median | max | µs of the server's CPU per message, medians |",
        "|---|--:|--:|--:|--:|",
    ]
    for title, results in comparisons.items():
        values = [each["quotient"] for each in results]
        row = [title, *(f"{each:.2f}" for each in (min(values), statistics.median(values), max(values)))]
        row.append(" / ".join(_number(_median(results, figure)) for figure in ("upper_us", "lower_us")))
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, ""])


def tables(outcome: dict[str, Any]) -> str:
    """All of them."""
    parts = [table(work) for work in outcome["works"].values()]
    if outcome["comparisons"]:
        parts.append(comparison_table(outcome["comparisons"]))
    return "\n".join(parts)


def write(outcome: dict[str, Any], folder: Path) -> None:
    """Write ``benchmark.md``, ``benchmark.json`` and, of what is no comparison, ``benchmark.png``."""
    machine = ", ".join(f"{name} {value}" for name, value in outcome["machine"].items())
    taken = f"{outcome['runs']} runs of {outcome['seconds']:g} seconds, taken in turn"
    generator = "stays awake" if outcome["awake"] else "sleeps until something comes"
    lines = [
        f"Each figure: {taken}. The generator {generator}.",
        f"{machine[:1].upper()}{machine[1:]}.",
        "",
        tables(outcome),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.md").write_text("\n".join(lines), "utf-8")
    (folder / "benchmark.json").write_text(json.dumps(outcome, indent=1) + "\n", "utf-8")
    if outcome["works"]:
        plot(outcome["works"], folder / "benchmark.png")


def plot(works: dict[str, Any], path: Path) -> None:
    """A bar for each server in each work, with its range."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    columns = 2
    rows = -(-len(works) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(13, 3.2 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat[len(works) :]:
        axis.remove()
    for axis, work in zip(axes.flat, works.values(), strict=False):
        names = list(work["servers"])
        values = [[each[work["figure"]] for each in results] for results in work["servers"].values()]
        middles = [statistics.median(each) for each in values]
        spread = [
            [middle - min(each) for middle, each in zip(middles, values, strict=True)],
            [max(each) - middle for middle, each in zip(middles, values, strict=True)],
        ]
        colours = ["#2a6fb0" if name.startswith("ours") else "#b0b0b0" for name in names]
        axis.barh(names, middles, xerr=spread, color=colours, ecolor="#404040", capsize=2)
        axis.invert_yaxis()
        axis.set_title(work["title"], fontsize=9)
        axis.set_xlabel(work["unit"], fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
