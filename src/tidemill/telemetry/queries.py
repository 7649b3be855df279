"""What a span store is asked beyond single traces: conditions on any attribute, series, sessions, erasure.

Pure values, the same for every store. ``fields`` says which names a condition, a group or a measure may use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Operator = Literal["=", "!=", "<", "<=", ">", ">=", "in", "contains", "exists"]

Aggregate = Literal["sum", "mean", "min", "max", "p50", "p75", "p90", "p95", "p99"]


@dataclass(frozen=True, slots=True)
class Condition:
    """One restriction of a query. A missing value meets no operator but ``!=``; ``exists`` asks for its presence.

    Args:
        field: a span's column (``endpoint``, ``release``, ``status``, ``service``, ``prompt``, ``cost_usd``, …), the
            derived ``duration_s``, ``attributes.NAME`` for an attribute under the name it is kept with, or
            ``score.NAME`` for the value of a score of the span's trace.
        operator: ``contains`` is for text, ``in`` takes a sequence of values.
        value: what is compared with; a bool for ``exists``.
    """

    field: str
    operator: Operator
    value: str | int | float | bool | Sequence[str | int | float]


@dataclass(frozen=True, slots=True)
class Measure:
    """One number of a series.

    Args:
        of: ``requests``, ``errors`` or ``error_share``, which take no aggregate; or a number of a span:
            ``duration_s``, ``time_to_first_chunk_s``, ``between_tokens_s``, ``input_tokens``, ``output_tokens``,
            ``cached_input_tokens``, ``reasoning_output_tokens``, ``total_tokens``, ``cost_usd``.
        aggregate: how the numbers of a group become one; quantiles are exact, linearly interpolated.
    """

    of: str
    aggregate: Aggregate | None = None

    @property
    def name(self) -> str:
        """``p95_duration_s``, ``sum_cost_usd``, ``requests``."""
        return f"{self.aggregate}_{self.of}" if self.aggregate else self.of


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesQuery:
    """Measures over time, by group.

    Args:
        measures: at least one.
        group_by: columns or ``attributes.NAME``.
        every_s: length of a step in seconds, aligned to 1970; ``None`` for one row a group over the whole time.
        since_ns, until_ns: start times, ``since`` included, ``until`` not; nanoseconds since 1970.
        where: conditions that must all hold.
        roots_only: whole requests, not the spans inside them.
        limit: most rows; a store says in ``SeriesRows.more`` that there were more.
    """

    measures: tuple[Measure, ...]
    group_by: tuple[str, ...] = ()
    every_s: float | None = None
    since_ns: int | None = None
    until_ns: int | None = None
    where: tuple[Condition, ...] = ()
    roots_only: bool = False
    limit: int = 10_000


@dataclass(frozen=True, slots=True)
class SeriesRow:
    """One group at one step.

    Args:
        start_ns: the step's start; ``None`` without steps.
        group: the group's value of each column asked for.
        values: by the measures' names; ``None`` where the group has no such number.
    """

    start_ns: int | None
    group: Mapping[str, str | int | float | bool | None]
    values: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class SeriesRows:
    """A series, ordered by start and group; ``more`` says that the query's limit cut it."""

    rows: Sequence[SeriesRow]
    more: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionQuery:
    """Which sessions, newest activity first."""

    since_ns: int | None = None
    until_ns: int | None = None
    where: tuple[Condition, ...] = ()
    limit: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRow:
    """What happened in a session, added up over its traces.

    Args:
        traces: whole requests; ``errors`` of them failed.
        spans: all spans.
    """

    session_id: str
    started_at_ns: int
    ended_at_ns: int
    traces: int
    spans: int
    errors: int
    input_tokens: int
    output_tokens: int
    cost_usd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """What is to be forgotten: by subject, by trace, or by age. Exactly one is given.

    Args:
        user_keys: keyed hashes of persons: all spans, contents, references and scores of their traces.
        trace_ids: these traces.
        before_ns: traces that began before; partitions that are wholly older are dropped as files.
    """

    user_keys: tuple[str, ...] = ()
    trace_ids: tuple[str, ...] = ()
    before_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Erased:
    """What an erasure removed, and how many cold partitions it wrote anew or dropped."""

    traces: int = 0
    spans: int = 0
    scores: int = 0
    partitions_rewritten: int = 0
    partitions_dropped: int = 0
