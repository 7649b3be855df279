"""What stored spans say, as Prometheus metrics: GenAI names of OpenTelemetry, bounded label sets.

Names follow OpenTelemetry's GenAI conventions (``gen_ai.client.operation.duration``, …) in Prometheus' spelling: dots
become underscores, the unit is appended. ``new`` are the names and labels of the conventions of 2026, ``old`` those
before them (``gen_ai.system``, ``gen_ai.server.time_to_first_token``); ``both`` gives a series that has both its labels
where the name did not change, so that a sum counts nothing twice.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from tidemill.loop.feed import is_request
from tidemill.monitoring.slo import between_tokens_s
from tidemill.telemetry import FAILED_STATUSES, StoredSpan
from tidemill.telemetry.records import Span

Names = Literal["new", "old", "both"]

OTHER: Final = "other"
#: Most values a label takes; what comes after them is counted as ``other``.
MOST_VALUES: Final = 50
#: Most label sets of a metric.
MOST_SETS: Final = 2000

SECONDS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TOKENS: Final = tuple(float(4**power) for power in range(14))
_FIRST_TOKEN: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25),
    *(0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
_BETWEEN_TOKENS: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)

_OPERATIONS: Final = frozenset(
    {
        *("chat", "text_completion", "generate_content", "embeddings", "execute_tool", "invoke_agent"),
        *("create_agent", "invoke_workflow", "plan", "retrieval", "rerank", "search_memory"),
    }
)
_STREAMED: Final = frozenset({"chat", "text_completion", "generate_content"})


@dataclass(frozen=True, slots=True)
class MetricKind:
    """A histogram: its name, what it says, its buckets, and the generation of names it belongs to."""

    name: str
    about: str
    buckets: tuple[float, ...]
    names: frozenset[str]


_ALL: Final = frozenset({"new", "old", "both"})
_NEW: Final = frozenset({"new", "both"})
_OLD: Final = frozenset({"old", "both"})
DURATION: Final = MetricKind("gen_ai_client_operation_duration_seconds", "Seconds of a GenAI operation.", SECONDS, _ALL)
FIRST_CHUNK: Final = MetricKind(
    "gen_ai_client_operation_time_to_first_chunk_seconds",
    "Seconds to the first chunk of a streamed answer.",
    SECONDS,
    _NEW,
)
PER_CHUNK: Final = MetricKind(
    "gen_ai_client_operation_time_per_output_chunk_seconds",
    "Seconds from one token of a streamed answer to the next, the mean of each answer.",
    SECONDS,
    _NEW,
)
USAGE: Final = MetricKind("gen_ai_client_token_usage", "Tokens of an operation, by gen_ai_token_type.", TOKENS, _ALL)
OLD_FIRST: Final = MetricKind(
    "gen_ai_server_time_to_first_token_seconds", "Seconds to the first token.", _FIRST_TOKEN, _OLD
)
OLD_BETWEEN: Final = MetricKind(
    "gen_ai_server_time_per_output_token_seconds", "Seconds a token after the first.", _BETWEEN_TOKENS, _OLD
)
KINDS: Final = (DURATION, FIRST_CHUNK, PER_CHUNK, USAGE, OLD_FIRST, OLD_BETWEEN)


class BoundedValues:
    """The values a label takes: those reserved and the first that come; all others are ``other``."""

    def __init__(self, reserved: Iterable[str] = (), most: int = MOST_VALUES) -> None:
        self._known = set(reserved)
        self._most = max(most, len(self._known))

    def of(self, value: str | None) -> str:
        """The value to be shown; a missing one is empty."""
        if value is None or value in self._known:
            return value or ""
        if len(self._known) >= self._most:
            return OTHER
        self._known.add(value)
        return value


@dataclass(slots=True)
class _Series:
    buckets: list[int]
    total: float = 0.0


@dataclass(slots=True)
class _Histogram:
    kind: MetricKind
    series: dict[tuple[str, ...], _Series] = field(default_factory=dict)

    def observe(self, labels: tuple[str, ...], value: float) -> None:
        series = self.series.get(labels)
        if series is None:
            if len(self.series) >= MOST_SETS:
                labels = (OTHER,) * len(labels)
            series = self.series.setdefault(labels, _Series([0] * (len(self.kind.buckets) + 1)))
        series.buckets[bisect_left(self.kind.buckets, value)] += 1
        series.total += value


class SpanMetrics:
    """Counts stored spans. One thread writes; another may collect.

    Args:
        names: which generation of names is shown.
        endpoints: names that always have a series of their own.
    """

    def __init__(self, names: Names, *, endpoints: Sequence[str] = ()) -> None:
        self._names: Names = names
        self._histograms = {kind.name: _Histogram(kind) for kind in KINDS if names in kind.names}
        self._endpoints = BoundedValues(endpoints)
        self._values = {label: BoundedValues() for label in ("operation", "provider", "model", "error", "service")}
        self._requests: Counter[tuple[str, str, str]] = Counter()
        self._cost: dict[tuple[str, str], float] = {}
        self.spans = 0

    def take(self, stored: Sequence[StoredSpan]) -> None:
        """Count spans that were stored."""
        self.spans += len(stored)
        for one in stored:
            span = one.span
            endpoint = self._endpoints.of(span.endpoint)
            if is_request(span):
                self._requests[endpoint, self._values["service"].of(span.service), span.status] += 1
            model = self._values["model"].of(span.request_model)
            if span.cost_usd:
                place = (endpoint, model)
                self._cost[place] = self._cost.get(place, 0.0) + span.cost_usd
            if span.operation in _OPERATIONS:
                self._observe(span, endpoint, model)

    def _observe(self, span: Span, endpoint: str, model: str) -> None:
        values = self._values
        error = span.error_type or span.status if span.status in FAILED_STATUSES else None
        labels = (values["operation"].of(span.operation), values["provider"].of(span.provider), model, endpoint)
        self._add(DURATION, (*labels, values["error"].of(error)), span.duration_s)
        for tokens, which in ((span.input_tokens, "input"), (span.output_tokens, "output")):
            if tokens is not None:
                self._add(USAGE, (*labels, which), tokens)
        if span.operation not in _STREAMED:
            return
        if span.time_to_first_chunk_s is not None:
            for kind in (FIRST_CHUNK, OLD_FIRST):
                self._add(kind, (*labels, ""), span.time_to_first_chunk_s)
        between_s = between_tokens_s(span)
        if between_s is not None:
            for kind in (PER_CHUNK, OLD_BETWEEN):
                self._add(kind, (*labels, ""), between_s)

    def _add(self, kind: MetricKind, labels: tuple[str, ...], value: float) -> None:
        histogram = self._histograms.get(kind.name)
        if histogram is not None:
            histogram.observe(labels, value)

    def collect(self) -> Iterator[Any]:
        """The metric families, for a registry of ``prometheus_client``."""
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        for histogram in self._histograms.values():
            kind = histogram.kind
            family = HistogramMetricFamily(kind.name, kind.about, labels=label_names(kind, self._names))
            for labels, series in list(histogram.series.items()):
                counts, total = [], 0
                for edge, count in zip((*kind.buckets, float("inf")), list(series.buckets), strict=True):
                    total += count
                    counts.append(("+Inf" if edge == float("inf") else str(edge), total))
                family.add_metric(self._shown(kind, labels), counts, series.total)
            yield family
        requests = CounterMetricFamily(
            "tidemill_requests", "Whole requests that were stored.", labels=("endpoint", "service", "status")
        )
        for place, count in list(self._requests.items()):
            requests.add_metric(place, count)
        yield requests
        cost = CounterMetricFamily("tidemill_cost_usd", "What stored spans cost, in USD.", labels=("endpoint", "model"))
        for where, usd in list(self._cost.items()):
            cost.add_metric(where, usd)
        yield cost
        yield CounterMetricFamily("tidemill_spans_followed", "Spans counted here since the start.", value=self.spans)

    def _shown(self, kind: MetricKind, labels: tuple[str, ...]) -> tuple[str, ...]:
        operation, provider, model, endpoint, last = labels
        providers = (provider, provider) if self._names == "both" else (provider,)
        more = () if kind not in (DURATION, USAGE) else (last,)
        return (operation, *providers, model, endpoint, *more)


def label_names(kind: MetricKind, names: Names) -> tuple[str, ...]:
    """The labels of a histogram in a generation of names."""
    by: Mapping[Names, tuple[str, ...]] = {
        "new": ("gen_ai_provider_name",),
        "old": ("gen_ai_system",),
        "both": ("gen_ai_provider_name", "gen_ai_system"),
    }
    last = {DURATION.name: ("error_type",), USAGE.name: ("gen_ai_token_type",)}.get(kind.name, ())
    return ("gen_ai_operation_name", *by[names], "gen_ai_request_model", "endpoint", *last)
