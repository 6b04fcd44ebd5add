"""The counters of an API: counted where things happen, read as one snapshot, and offered to OpenTelemetry."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


def _counter(text: str) -> Any:
    return field(default=0, metadata={"kind": "counter", "text": text})


def _gauge(text: str) -> Any:
    return field(default=0, metadata={"kind": "gauge", "text": text})


@dataclass(slots=True)
class Statistics:
    """What an API has done since it was made, over all its runs, and what there is now.

    Those that end in ``_open``, and ``connections_absent``, say what there is now; the others only grow.
    """

    sessions_open: int = _gauge("Engine.IO sessions that are open")
    connections_open: int = _gauge("connections that are accepted and have not ended")
    connections_absent: int = _gauge("connections that were lost and that their clients may recover")
    sessions_opened: int = _counter("Engine.IO sessions that have been opened")
    requests_refused: int = _counter("requests for the API that have been refused: handshakes, polls, upgrades")
    connections_accepted: int = _counter("clients that have been let into a channel")
    connections_recovered: int = _counter("clients of these that have recovered a lost connection")
    connections_refused: int = _counter("clients that have been turned away from a channel or a namespace")
    connections_failed: int = _counter("connections that have ended by an exception")
    upgrades: int = _counter("sessions that have moved from polling to a WebSocket")
    packets_received: int = _counter("Engine.IO packets that have been received")
    packets_sent: int = _counter("Engine.IO packets that have been sent")
    actions_dropped: int = _counter("actions that nothing received and that had to make room")
    emits_dropped: int = _counter("emitted messages that have been dropped for slow clients")
    slow_disconnected: int = _counter("sessions that have been ended because their client was too slow")


#: those that the metrics are the sum of; each stays, since a counter must not fall when an API is no more
_offered: list[Statistics] = []
_instruments: list[Any] = []


def offer_metrics(statistics: Statistics) -> None:
    """Add an API's statistics to OpenTelemetry's metrics, if that package is installed. Idempotent.

    They are called ``brightsocket.`` and the name of the statistic.
    """
    if not any(each is statistics for each in _offered):
        _offered.append(statistics)
    if _instruments:
        return
    try:
        from opentelemetry import metrics
    except ImportError:
        return
    meter = metrics.get_meter("brightsocket_anyio")
    for each in fields(Statistics):

        def observe(options: Any, name: str = each.name) -> list[metrics.Observation]:
            return [metrics.Observation(sum(getattr(statistics, name) for statistics in _offered))]

        counts = each.metadata["kind"] == "counter"
        create = meter.create_observable_counter if counts else meter.create_observable_gauge
        _instruments.append(create(f"brightsocket.{each.name}", [observe], description=each.metadata["text"]))
