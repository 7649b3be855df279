"""What a span store is, whatever keeps it: one batch in with its offsets, questions out.

A store belongs to one scope (project and tenant) and answers nothing about any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from tidemill.kernel import Scope
from tidemill.telemetry.queries import Condition, Erased, Erasure, SeriesQuery, SeriesRows, SessionQuery, SessionRow
from tidemill.telemetry.records import Content, Reference, Score, Span

Grouping = Literal["release", "assigned_release", "arm", "endpoint", "minute", "request_model", "status"]

ENTRY_ATTRIBUTE = "tidemill.entry"
"""True on the span that received a request whose caller sent a parent of its own, so that it counts as a root."""

FAILED_STATUSES = ("error", "truncated", "interrupted")
"""What counts as an error in summaries. ``cancelled`` does not: the client went away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """A record that was not stored, and why. All are counted; of each reason a sample is kept.

    Args:
        reason: a short class, e.g. ``differing_span``, ``negative_duration``, ``wrong_protobuf``.
        at_ns: when it was refused, nanoseconds since 1970.
        trace_id, span_id: of the record, where it has them.
        source: who sent it: a service, or a segment's writer.
        detail: what was refused, as text a person can read; masked already, cut to a few kilobytes by the store.
    """

    reason: str
    at_ns: int
    trace_id: str | None = None
    span_id: str | None = None
    source: str | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class SetAsideReport:
    """What was set aside: how many by reason, and the newest samples that were kept, newest first."""

    counts: Mapping[str, int]
    samples: Sequence[SetAside]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compacted:
    """What a compaction moved out of the hot tier.

    Args:
        partitions: days written.
        spans: how many went with them.
        bytes: size of the partitions written.
    """

    partitions: int = 0
    spans: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """What one commit brings: spans, the content of some of them, and scores.

    Args:
        spans: in the order they were written.
        contents: by (trace id, span id); masked already.
        scores: in the order they were written; their texts masked already.
        late: content that came apart from its span, before it or after it: ((trace id, span id), content), masked
            already. A span shows one content, joined by ``late.combined``; what is there already is not added again.
        rejected: records that were refused before they came here. Spans that differ from the one stored first are
            set aside by the store itself.
    """

    spans: Sequence[Span] = ()
    contents: Mapping[tuple[str, str], Content] = field(default_factory=dict)
    scores: Sequence[Score] = ()
    rejected: Sequence[SetAside] = ()
    late: Sequence[tuple[tuple[str, str], Content]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitReport:
    """What a commit did with its batch.

    Args:
        spans: new finished spans, those that replaced a placeholder included.
        interrupted: new placeholders.
        scores: new scores.
        duplicates: records that were there already, equal.
        conflicts: records that were there already, different: the first one stays, this one is set aside.
        rejected: refusals noted.
        replaced: placeholders (``interrupted``) that gave way to the finished record.
    """

    spans: int = 0
    interrupted: int = 0
    scores: int = 0
    duplicates: int = 0
    conflicts: int = 0
    replaced: int = 0
    rejected: int = 0


@dataclass(frozen=True, slots=True)
class StoredSpan:
    """A span as the store keeps it.

    Args:
        span: the span.
        content: what was said, where it was kept and asked for.
        ingest_seq: grows in the order of commits; a reader that remembers the last one it saw misses nothing.
    """

    span: Span
    content: Content | None
    ingest_seq: int


@dataclass(frozen=True, slots=True)
class StoredScore:
    """A score with its place in the order of commits."""

    score: Score
    ingest_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanQuery:
    """Which spans. Every condition given must hold; times compare with the start, ``since`` included, ``until`` not.

    Args:
        after_seq: only spans ingested after this place; 0 is the beginning.
        limit: at most so many.
        newest_first: by start time, newest first; otherwise in the order of ingestion.
        roots_only: only spans that stand for a whole request (no parent, or marked with ``ENTRY_ATTRIBUTE``).
        with_references, with_content: whether to bring those along.
        where: conditions on any field; see ``queries.Condition``.
        before: (start, place) of the last span of a page that was newest first; only spans that come behind it.
        text: full text over input and output, see ``spans.text``: every word must occur, as a whole word and whatever
            its case; words "in quotes" in that order.
    """

    endpoint: str | None = None
    release: str | None = None
    assigned_release: str | None = None
    arm: str | None = None
    session_id: str | None = None
    rollout: str | None = None
    operation: str | None = None
    status: str | None = None
    since_ns: int | None = None
    until_ns: int | None = None
    after_seq: int = 0
    limit: int = 1000
    newest_first: bool = False
    roots_only: bool = False
    with_references: bool = True
    with_content: bool = False
    where: tuple[Condition, ...] = ()
    text: str | None = None
    before: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreQuery:
    """Which scores, in the order of ingestion. ``None`` does not restrict; an empty sequence matches nothing."""

    trace_ids: Sequence[str] | None = None
    names: Sequence[str] | None = None
    after_seq: int = 0
    limit: int = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryQuery:
    """How requests are counted.

    Args:
        group_by: columns of the groups; ``minute`` is the start of the minute in nanoseconds since 1970.
        operation: only this operation; ``None`` takes all.
        roots_only: count whole requests, not the spans inside them.
    """

    group_by: tuple[Grouping, ...] = ()
    since_ns: int | None = None
    until_ns: int | None = None
    endpoint: str | None = None
    release: str | None = None
    rollout: str | None = None
    operation: str | None = None
    roots_only: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryRow:
    """One group: counts, latency quantiles in seconds (exact, over requests that did not fail), tokens and cost.

    Args:
        group: the group's value of each column asked for.
        errors: requests with one of ``FAILED_STATUSES``.
        ttfc_p50_s: median time to the first chunk of streamed answers.
    """

    group: Mapping[str, str | int | None]
    requests: int
    errors: int
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    ttfc_p50_s: float | None
    input_tokens: int
    output_tokens: int
    cost_usd: float


class SpanStore(Protocol):
    """Keeps spans, contents, references and scores of one scope. Thread-safe."""

    @property
    def scope(self) -> Scope:
        """Whose spans these are."""
        ...

    def commit(self, batch: Batch, offsets: Mapping[str, int], *, forget: Iterable[str] = ()) -> CommitReport:
        """Store a batch and the segment offsets it reaches, both or neither.

        Idempotent: the first complete record of a (trace id, span id) wins, an ``interrupted`` placeholder gives way
        to a finished record and never takes the place of one, a score id is stored once.

        Args:
            batch: records of this store's scope.
            offsets: byte offset reached, by segment name.
            forget: segment names whose offsets are dropped, for their files are gone.

        Raises:
            InvalidInput: a record belongs to another scope; nothing was stored.
        """
        ...

    def last_seq(self) -> int:
        """The highest place in the order of commits; 0 while there is none."""
        ...

    def sizes(self) -> Mapping[str, int]:
        """Bytes on disk by tier, ``hot`` and ``cold``."""
        ...

    def offsets(self) -> dict[str, int]:
        """How far each segment has been stored."""
        ...

    def trace(self, trace_id: str) -> list[StoredSpan]:
        """All spans of a trace with content and references, by start time; empty if there is no such trace."""
        ...

    def spans(self, query: SpanQuery) -> list[StoredSpan]:
        """Spans that meet a query."""
        ...

    def references(self, trace_ids: Sequence[str]) -> list[tuple[str, Reference]]:
        """The passages and artifacts that answers used: (trace id, reference), by trace and rank as written."""
        ...

    def traces_using(self, refs: Sequence[str]) -> list[str]:
        """The ids of all traces that used any of these passages or artifacts, sorted."""
        ...

    def scores(self, query: ScoreQuery) -> list[StoredScore]:
        """Scores that meet a query."""
        ...

    def summary(self, query: SummaryQuery) -> list[SummaryRow]:
        """Requests, errors, latency, tokens and cost by group, sorted by group."""
        ...

    def series(self, query: SeriesQuery) -> SeriesRows:
        """Measures over time, by group.

        Raises:
            InvalidInput: a field, measure, aggregate or operator that there is not.
        """
        ...

    def sessions(self, query: SessionQuery) -> list[SessionRow]:
        """Sessions that have a span which meets the query, added up over those spans; newest activity first."""
        ...

    def values(
        self, field: str, *, since_ns: int | None = None, until_ns: int | None = None, limit: int = 100
    ) -> list[tuple[str | int | float | bool, int]]:
        """The values a field has and how many spans have each, most frequent first; spans without one do not count."""
        ...

    def set_aside(self, *, reason: str | None = None, limit: int = 100) -> SetAsideReport:
        """What was refused or differed from the record stored first; of one reason, or of all."""
        ...

    def compact(self, before_ns: int) -> Compacted:
        """Move whole days (UTC) that ended before a time out of the hot tier into partitions that are read in place.

        Nothing changes for any query. Killed at any moment, no span is lost or counted twice. A store without tiers
        of its own does nothing.
        """
        ...

    def erase(self, erasure: Erasure) -> Erased:
        """Forget by subject, by trace or by age, in every tier; afterwards the text is nowhere in the store's files.

        Raises:
            InvalidInput: not exactly one of the three is given.
        """
        ...

    def close(self) -> None:
        """Let go of the store. Calling it twice does nothing."""
        ...
