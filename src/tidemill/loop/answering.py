"""Answers about telemetry as plain JSON: what the REST API says, and what commands read from a store themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from tidemill.kernel import ArtifactKind, Digest, InvalidInput, NotFound, fresh_id, parse_ref
from tidemill.kernel.trace_ids import parse_span_id, parse_trace_id
from tidemill.loop.asking import (
    CompareQuestion,
    FollowQuestion,
    ListQuestion,
    SeriesQuestion,
    SessionsQuestion,
    Which,
    conditions,
    read_cursor,
    series_query,
    session_query,
    span_query,
    write_cursor,
)
from tidemill.telemetry import Batch, Condition, Score, ScoreQuery, SessionQuery, SpanQuery, StoredSpan, SummaryQuery
from tidemill.telemetry.masking import masked_score

if TYPE_CHECKING:
    from tidemill.ledger import Ledger
    from tidemill.telemetry import SpanStore
    from tidemill.telemetry.store import Grouping

_MOST_OF_A_SESSION: Final = 1000


class ScoreBody(BaseModel):
    """A number or label on a trace or one of its spans."""

    model_config = ConfigDict(extra="forbid", strict=True)

    trace_id: str = Field(description="Trace id in any usual form.")
    name: str = Field(min_length=1, max_length=64, description="What was scored: feedback, groundedness, …")
    span_id: str | None = Field(None, description="Span within the trace.")
    value: float | None = Field(None, allow_inf_nan=False, description="A number, e.g. 1 for helpful and 0 for not.")
    label: str | None = Field(None, max_length=256, description="A word in place of, or besides, the number.")
    comment: str | None = Field(None, max_length=65_536, description="Free text; masked before it is stored.")
    correction: str | None = Field(None, max_length=262_144, description="What would have been right; masked likewise.")
    source: Literal["user", "scorer", "judge", "person"] = Field("user", description="Who scored.")
    score_id: str | None = Field(
        None, min_length=1, max_length=128, description="Names the score: sent again, it is the same score."
    )


class Answers:
    """Asks the span store and the ledger of a project.

    Args:
        ledger: knows releases by their names.
        store: the spans.
        now_ns: the present, nanoseconds since 1970.
    """

    def __init__(self, ledger: Ledger, store: SpanStore, *, now_ns: Callable[[], int]) -> None:
        self._ledger = ledger
        self._store = store
        self._now_ns = now_ns

    def traces(self, question: ListQuestion) -> dict[str, Any]:
        """A page of requests, newest first: ``{"traces", "next", "last_seq"}``.

        ``last_seq`` is the store's last place before the page was read: ``spans`` goes on there.
        """
        query = span_query(question, self.where(question), now_ns=self._now_ns())
        before = None if question.cursor is None else read_cursor(question.cursor)
        last_seq = self._store.last_seq()
        found = self._store.spans(replace(query, before=before, limit=question.limit + 1))
        page = found[: question.limit]
        more = len(found) > len(page)
        return {
            "traces": [span_json(one) for one in page],
            "next": _place(page[-1]) if more else None,
            "last_seq": last_seq,
        }

    def spans(self, question: FollowQuestion) -> dict[str, Any]:
        """Spans in the order of storing: ``{"spans", "after_seq", "more"}``; the place is where to go on."""
        query = span_query(question, self.where(question), now_ns=self._now_ns())
        found = self._store.spans(query)
        last = found[-1].ingest_seq if found else question.after_seq
        return {"spans": [span_json(one) for one in found], "after_seq": last, "more": len(found) == question.limit}

    def trace(self, text: str) -> dict[str, Any]:
        """All spans and scores of a trace.

        Raises:
            InvalidInput: the id cannot be read.
            NotFound: there is no such trace.
        """
        trace_id = parse_trace_id(text)
        spans = self._store.trace(trace_id)
        if not spans:
            raise NotFound(f"There is no trace '{trace_id}'.", hint="List the newest: tidemill trace list")
        scores = self._store.scores(ScoreQuery(trace_ids=(trace_id,)))
        return {
            "trace_id": trace_id,
            "spans": [span_json(one) for one in spans],
            "scores": [msgspec.to_builtins(one.score) for one in scores],
        }

    def scores(self, *, names: list[str] | None, after_seq: int = 0, limit: int = 10_000) -> dict[str, Any]:
        """Scores in the order of storing: ``{"scores", "after_seq", "more"}``; the place is where to go on."""
        found = self._store.scores(ScoreQuery(names=names, after_seq=after_seq, limit=limit))
        return {
            "scores": [msgspec.to_builtins(one.score) for one in found],
            "after_seq": found[-1].ingest_seq if found else after_seq,
            "more": len(found) == limit,
        }

    def series(self, question: SeriesQuestion) -> dict[str, Any]:
        """Measures over time and by group: ``{"measures", "by", "every_s", "rows", "more"}``."""
        query = series_query(question, self.where(question), now_ns=self._now_ns())
        found = self._store.series(query)
        return {
            "measures": [one.name for one in query.measures],
            "by": list(query.group_by),
            "every_s": query.every_s,
            "rows": [
                {"start_ns": row.start_ns, "group": dict(row.group), "values": dict(row.values)} for row in found.rows
            ],
            "more": found.more,
        }

    def sessions(self, question: SessionsQuestion) -> list[dict[str, Any]]:
        """Sessions with what happened in each, newest activity first."""
        query = session_query(question, self.where(question), now_ns=self._now_ns())
        return [asdict(one) for one in self._store.sessions(query)]

    def session(self, session_id: str) -> dict[str, Any]:
        """One session: its sums, and its requests in the order of time with what was said and how it was scored.

        Raises:
            NotFound: there is no such session.
        """
        mine = (Condition("session_id", "=", session_id),)
        sums = self._store.sessions(SessionQuery(where=mine, limit=1))
        if not sums:
            raise NotFound(f"There is no session '{session_id}'.", hint="List them: tidemill trace sessions")
        query = SpanQuery(where=mine, newest_first=True, roots_only=True, with_content=True, limit=_MOST_OF_A_SESSION)
        traces = self._store.spans(query)[::-1]
        ids = tuple(dict.fromkeys(one.span.trace_id for one in traces))
        scores = self._store.scores(ScoreQuery(trace_ids=ids))
        return asdict(sums[0]) | {
            "requests": [span_json(one) for one in traces],
            "scores": [msgspec.to_builtins(one.score) for one in scores],
        }

    def comparison(self, question: CompareQuestion) -> dict[str, Any]:
        """Two releases side by side; see ``comparing.compare_releases``."""
        from tidemill.loop.comparing import compare_releases

        names = [self.release(one) for one in (question.first, question.second)]
        if names[0] == names[1]:
            raise InvalidInput(f"'{question.first}' and '{question.second}' are the same release.")
        return compare_releases(self._store, question, names, self.where(question), now_ns=self._now_ns())

    def summary(self, group_by: list[Grouping], *, since_ns: int | None = None) -> list[dict[str, Any]]:
        """Requests, errors, latency, tokens and cost by group."""
        return [asdict(row) for row in self._store.summary(SummaryQuery(group_by=tuple(group_by), since_ns=since_ns))]

    def lineage(self, ref: str) -> dict[str, Any]:
        """What something came from and what came from it."""
        from tidemill.loop.following import follow

        return follow(self._ledger, self._store, ref)

    def score(self, body: ScoreBody, mask: Callable[[str], str]) -> dict[str, str]:
        """Store a score, durable when this returns; its texts are masked first.

        The trace may come later: exporters send in batches, and a user may be faster.

        Raises:
            InvalidInput: an id cannot be read, or nothing is said.
            Unavailable: the store cannot be written.
        """
        trace_id = parse_trace_id(body.trace_id)
        if all(part is None for part in (body.value, body.label, body.comment, body.correction)):
            raise InvalidInput(f"The score '{body.name}' says nothing: give a value, label, comment or correction.")
        scope = self._store.scope
        score = Score(
            score_id=body.score_id or fresh_id("score"),
            trace_id=trace_id,
            span_id=None if body.span_id is None else parse_span_id(body.span_id),
            name=body.name,
            source=body.source,
            at_ns=self._now_ns(),
            project=scope.project,
            tenant=scope.tenant,
            value=body.value,
            label=body.label,
            comment=body.comment,
            correction=body.correction,
        )
        self._store.commit(Batch(scores=[masked_score(score, mask)]), {})
        return {"score_id": score.score_id, "trace_id": trace_id}

    def where(self, question: Which) -> tuple[Condition, ...]:
        """The conditions of a question, with releases under the names they are stored with.

        Raises:
            InvalidInput: a condition cannot be read.
            NotFound: there is no such release.
        """
        found = [self._named(one) for one in conditions(question, now_ns=self._now_ns())]
        if question.release is not None:
            found.append(Condition("release", "=", self.release(question.release)))
        return tuple(found)

    def release(self, text: str) -> str:
        """The name that a release's spans carry: its digest, or what a program outside Tidemill calls itself.

        Raises:
            NotFound: neither the ledger nor a span knows it.
        """
        digest = self._digest(text)
        if digest is not None:
            return digest
        if self._store.spans(SpanQuery(release=text, limit=1, with_references=False)):
            return text
        raise NotFound(f"There is no release '{text}', and no trace of one.", hint="List them: tidemill release list")

    def _named(self, condition: Condition) -> Condition:
        """A condition on a release by its reference is one on its digest."""
        if condition.field not in ("release", "assigned_release") or condition.operator in ("contains", "exists"):
            return condition
        if condition.operator == "in":
            values = condition.value if isinstance(condition.value, tuple) else ()
            return replace(condition, value=tuple(self._digest(str(one)) or str(one) for one in values))
        return replace(condition, value=self._digest(str(condition.value)) or str(condition.value))

    def _digest(self, text: str) -> str | None:
        if text.startswith("sha256:"):
            return text
        try:
            return self._ledger.artifacts.get(
                parse_ref(text if "/" in text.split("@", 1)[0] else f"{ArtifactKind.RELEASE}/{text}")
            ).digest
        except (NotFound, InvalidInput):
            return None


def names_of(ledger: Ledger, digests: set[Any]) -> dict[str, str]:
    """The references of those digests that the ledger knows."""
    wanted = [Digest(one) for one in digests if isinstance(one, str) and one.startswith("sha256:")]
    return {digest: str(one.ref) for digest, one in ledger.artifacts.named_by(wanted).items()}


def span_json(stored: StoredSpan) -> dict[str, Any]:
    """A stored span as a plain JSON object."""
    plain: Callable[[Any], Mapping[str, Any]] = msgspec.structs.asdict
    return {
        **plain(stored.span),
        "references": [plain(reference) for reference in stored.span.references],
        "duration_s": stored.span.duration_s,
        "content": plain(stored.content) if stored.content is not None else None,
        "ingest_seq": stored.ingest_seq,
    }


def _place(stored: StoredSpan) -> str:
    return write_cursor(stored.span.started_at_ns, stored.ingest_seq)
