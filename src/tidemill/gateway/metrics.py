"""Counters and latency histograms of one worker, in Prometheus' text format."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Final

BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class _Series:
    __slots__ = ("buckets", "sum_s")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BUCKETS_S) + 1)
        self.sum_s = 0.0

    @property
    def count(self) -> int:
        return sum(self.buckets)

    def add(self, other: _Series) -> None:
        self.buckets = [mine + theirs for mine, theirs in zip(self.buckets, other.buckets, strict=True)]
        self.sum_s += other.sum_s


class Metrics:
    """What a worker counts. Every series carries the worker's name, for each scrape reaches one worker.

    Args:
        worker: the worker's name.
    """

    def __init__(self, worker: str) -> None:
        self.worker = worker
        self._requests: dict[tuple[str, str, int, str], _Series] = {}  # by endpoint, arm, HTTP status, outcome
        self._events: Counter[str] = Counter()
        self.in_flight = 0

    def request(self, endpoint: str, arm: str, http_status: int, outcome: str, duration_s: float) -> None:
        """Count one finished call of an endpoint."""
        place = (endpoint, arm, http_status, outcome)
        series = self._requests.get(place)
        if series is None:
            series = self._requests[place] = _Series()
        series.buckets[bisect_left(BUCKETS_S, duration_s)] += 1
        series.sum_s += duration_s

    def event(self, name: str) -> None:
        """Count something else, e.g. ``failover`` or ``refused_413``."""
        self._events[name] += 1

    def count(self, name: str) -> int:
        """How often an event was counted."""
        return self._events[name]

    def render(self, *, epoch: int, further: Iterable[str] = ()) -> bytes:
        """Write everything in Prometheus' text format 0.0.4.

        Args:
            epoch: of the routing snapshot.
            further: lines to add, without their ends.
        """
        worker = f'worker="{self.worker}"'
        out = ["# TYPE tidemill_gateway_requests_total counter"]
        errors: Counter[tuple[str, str]] = Counter()
        latency: defaultdict[tuple[str, str], _Series] = defaultdict(_Series)
        for place in sorted(self._requests):
            (endpoint, arm, status, outcome), series = place, self._requests[place]
            labels = f'{worker},endpoint="{escaped(endpoint)}",arm="{arm}",code="{status}",outcome="{outcome}"'
            out.append(f"tidemill_gateway_requests_total{{{labels}}} {series.count}")
            errors[endpoint, arm] += series.count if outcome != "ok" else 0
            latency[endpoint, arm].add(series)
        out.append("# TYPE tidemill_gateway_errors_total counter")
        for (endpoint, arm), count in sorted(errors.items()):
            out.append(f'tidemill_gateway_errors_total{{{worker},endpoint="{escaped(endpoint)}",arm="{arm}"}} {count}')
        out.append("# TYPE tidemill_gateway_request_seconds histogram")
        for (endpoint, arm), series in sorted(latency.items()):
            out.extend(_histogram(f'{worker},endpoint="{escaped(endpoint)}",arm="{arm}"', series))
        out.append("# TYPE tidemill_gateway_events_total counter")
        for name, count in sorted(self._events.items()):
            out.append(f'tidemill_gateway_events_total{{{worker},event="{name}"}} {count}')
        out.append("# TYPE tidemill_gateway_in_flight gauge")
        out.append(f"tidemill_gateway_in_flight{{{worker}}} {self.in_flight}")
        out.append("# TYPE tidemill_gateway_snapshot_epoch gauge")
        out.append(f"tidemill_gateway_snapshot_epoch{{{worker}}} {epoch}")
        out.extend(further)
        return ("\n".join(out) + "\n").encode()


def _histogram(labels: str, series: _Series) -> list[str]:
    name, total, out = "tidemill_gateway_request_seconds", 0, []
    for edge, count in zip((*BUCKETS_S, "+Inf"), series.buckets, strict=True):
        total += count
        out.append(f'{name}_bucket{{{labels},le="{edge}"}} {total}')
    out.append(f"{name}_sum{{{labels}}} {series.sum_s:.6f}")
    out.append(f"{name}_count{{{labels}}} {total}")
    return out


def escaped(text: str) -> str:
    """A text as the value of a label."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
