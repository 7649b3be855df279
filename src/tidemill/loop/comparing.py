"""Two releases side by side in production: what they answered, how fast, at what price, and how it was scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from tidemill.evidence import Interval, mean_interval, wilson_interval
from tidemill.loop.asking import CompareQuestion, times
from tidemill.telemetry import Condition, Measure, ScoreQuery, SeriesQuery, SpanQuery

if TYPE_CHECKING:
    from tidemill.telemetry import SpanStore

MEASURES: Final = (
    Measure("requests"),
    Measure("errors"),
    Measure("error_share"),
    Measure("duration_s", "p50"),
    Measure("duration_s", "p95"),
    Measure("time_to_first_chunk_s", "p50"),
    Measure("time_to_first_chunk_s", "p95"),
    Measure("input_tokens", "mean"),
    Measure("output_tokens", "mean"),
    Measure("cost_usd", "mean"),
    Measure("cost_usd", "sum"),
)
MOST_SCORED: Final = 20_000
"""Newest requests of each release whose scores are read."""

_PAGE: Final = 5000
_IDS_A_TIME: Final = 1000


def compare_releases(
    store: SpanStore, question: CompareQuestion, releases: Sequence[str], where: Sequence[Condition], *, now_ns: int
) -> dict[str, Any]:
    """What two releases did over the same time.

    Traffic is not shared out at random here, so a difference may come from who asked; a rollout's verdict is what
    promotes. Intervals: Wilson's for the share of errors, and for scores in [0, 1] an interval for the mean whose
    coverage holds for every number of scores (``evidence.mean_interval``).

    Args:
        store: the spans.
        question: time and error rate.
        releases: names that their spans carry.
        where: further conditions.
        now_ns: the present.

    Returns:
        ``{"releases": [{"release", "values", "error_share", "scores", "scored_requests"}], "alpha", "since_ns",
        "until_ns"}``.
    """
    since_ns, until_ns = times(question, now_ns=now_ns)
    found = []
    for release in releases:
        mine = (*where, Condition("release", "=", release))
        rows = store.series(
            SeriesQuery(
                measures=MEASURES, since_ns=since_ns, until_ns=until_ns, where=mine, roots_only=not question.spans
            )
        ).rows
        values = dict(rows[0].values) if rows else {}
        requests, errors = int(values.get("requests") or 0), int(values.get("errors") or 0)
        query = SpanQuery(
            where=mine,
            since_ns=since_ns,
            until_ns=until_ns,
            roots_only=True,
            with_references=False,
            newest_first=True,
            limit=MOST_SCORED,
        )
        trace_ids = [one.span.trace_id for one in store.spans(query)]
        found.append(
            {
                "release": release,
                "values": values | {"requests": requests, "errors": errors},
                "error_share": wilson_interval(errors, requests, question.alpha).as_json() if requests else None,
                "scores": _scores(store, trace_ids, question.alpha),
                "scored_requests": len(trace_ids),
            }
        )
    return {"releases": found, "alpha": question.alpha, "since_ns": since_ns, "until_ns": until_ns}


def _scores(store: SpanStore, trace_ids: Sequence[str], alpha: float) -> dict[str, Any]:
    """By name: the interval of the mean where values lie in [0, 1], else the mean alone; and counts of labels."""
    values: dict[str, list[float]] = {}
    labels: dict[str, dict[str, int]] = {}
    for name, value, label in _read(store, trace_ids):
        if value is not None:
            values.setdefault(name, []).append(value)
        elif label is not None:
            counts = labels.setdefault(name, {})
            counts[label] = counts.get(label, 0) + 1
    found: dict[str, Any] = {}
    for name in sorted({*values, *labels}):
        one: dict[str, Any] = {"labels": labels.get(name, {})}
        if name in values:
            one |= _mean(values[name], alpha)
        found[name] = one
    return found


def _mean(values: Sequence[float], alpha: float) -> dict[str, Any]:
    if all(0 <= value <= 1 for value in values):
        interval: Interval = mean_interval(values, alpha)
        return interval.as_json()
    return {"low": None, "high": None, "mean": sum(values) / len(values), "n": len(values)}


def _read(store: SpanStore, trace_ids: Sequence[str]) -> Iterator[tuple[str, float | None, str | None]]:
    for first in range(0, len(trace_ids), _IDS_A_TIME):
        ids, after = trace_ids[first : first + _IDS_A_TIME], 0
        while True:
            page = store.scores(ScoreQuery(trace_ids=ids, after_seq=after, limit=_PAGE))
            for one in page:
                yield one.score.name, one.score.value, one.score.label
            if len(page) < _PAGE:
                break
            after = page[-1].ingest_seq
