"""What is kept of metrics: of each GenAI series the newest standing, to be shown beside our own metrics.

Spans carry the same numbers one by one, so points are not stored: they are kept in memory, bounded, for those who look
at ``/metrics``. Cumulative series stand again with the sender's next export after a restart.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, replace
from typing import Final

from tidemill.telemetry.otlp.wire import Group, RawPoint

SERIES_MOST: Final = 2000
_LABELS: Final = (
    "gen_ai.operation.name",
    "gen_ai.provider.name",
    "gen_ai.system",
    "gen_ai.request.model",
    "gen_ai.response.model",
    "gen_ai.token.type",
    "gen_ai.token.modality",
    "error.type",
)
"""Attributes that make series; others are added up over, so that labels stay few."""
_LABEL_CHARS: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Where a series stands.

    Args:
        metric: the name it came with, e.g. ``gen_ai.client.token.usage``.
        unit: as told, e.g. ``{token}`` or ``s``.
        service: of the sender.
        labels: (attribute, value), sorted.
        at_ns: of the newest point.
        count, total: of a histogram; of a sum ``total``.
        value: of a gauge.
    """

    metric: str
    unit: str
    service: str
    labels: tuple[tuple[str, str], ...]
    at_ns: int = 0
    count: int = 0
    total: float = 0.0
    value: float | None = None


class Points:
    """The standing of received metrics. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._standing: dict[tuple[str, str, str], Series] = {}
        self.dropped: Counter[str] = Counter()

    def add(self, group: Group) -> None:
        """Take a group's points in; ``dropped`` counts those that are not kept, by reason."""
        service = group.resource.get("service.name")
        with self._lock:
            for point in group.points:
                self._add(point, service if isinstance(service, str) else "")

    def series(self) -> list[Series]:
        """All series, sorted by metric, service and labels; what differs in other attributes is added up."""
        found: dict[tuple[str, str, tuple[tuple[str, str], ...]], Series] = {}
        with self._lock:
            for one in self._standing.values():
                key = (one.metric, one.service, one.labels)
                sofar = found.get(key)
                if sofar is None:
                    found[key] = one
                else:
                    newest = max(sofar, one, key=lambda each: each.at_ns)
                    found[key] = replace(newest, count=sofar.count + one.count, total=sofar.total + one.total)
        return [found[key] for key in sorted(found)]

    def _add(self, point: RawPoint, service: str) -> None:
        if not point.metric.startswith(("gen_ai.", "llm.")):
            self.dropped["not_genai"] += 1
            return
        labels = tuple(
            (name, str(point.attributes[name])[:_LABEL_CHARS]) for name in sorted(_LABELS) if name in point.attributes
        )
        key = (point.metric, service, repr(sorted(point.attributes.items(), key=lambda pair: pair[0])))
        before = self._standing.get(key)
        if before is None:
            if len(self._standing) >= SERIES_MOST:
                self.dropped["too_many_series"] += 1
                return
            before = Series(metric=point.metric[:_LABEL_CHARS], unit=point.unit, service=service, labels=labels)
        elif point.at_ns < before.at_ns:
            self.dropped["out_of_order"] += 1
            return
        add = before if point.delta else replace(before, count=0, total=0.0)
        self._standing[key] = replace(
            before,
            at_ns=point.at_ns,
            count=add.count + (point.count or 0),
            total=add.total + (point.total or 0.0),
            value=point.value,
        )
