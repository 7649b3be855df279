"""Which records of a batch are new: the first complete one of its ids wins, whatever store keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from tidemill.telemetry.records import Score, Span
from tidemill.telemetry.spans.rows import digest_of, storable
from tidemill.telemetry.store import SetAside

DETAIL_CHARS: Final = 4096
DIFFERING_SPAN: Final = "differing_span"
DIFFERING_SCORE: Final = "differing_score"
SpanId = tuple[str, str]


class Known(NamedTuple):
    """What is stored under a record's ids: whether it is a placeholder, and its digest if that is known."""

    placeholder: bool
    digest: int | None


@dataclass(slots=True)
class Sifted:
    """What is to be stored of a batch, and what is not.

    Args:
        spans: new ones by their ids, with their digests.
        places: where a store has put them, once it has.
        scores: likewise new ones.
        outdated: ids whose stored placeholder gives way.
        aside: records that differ from the one stored first.
        counts: for the report.
    """

    spans: dict[SpanId, tuple[Span, int]] = field(default_factory=dict)
    places: dict[SpanId, int] = field(default_factory=dict)
    scores: list[tuple[Score, int]] = field(default_factory=list)
    outdated: list[SpanId] = field(default_factory=list)
    aside: list[SetAside] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, name: str) -> None:
        """One more."""
        self.counts[name] = self.counts.get(name, 0) + 1


def sift_spans(spans: Sequence[Span], stored: Mapping[SpanId, Known], sifted: Sifted) -> None:
    """Take the spans that are new, or that replace a placeholder.

    Args:
        spans: in the order they were written.
        stored: what the store has under their ids.
        sifted: gets them.
    """
    known = dict(stored)
    for given in spans:
        span = storable(given)
        key = (span.trace_id, span.span_id)
        earlier = known.get(key)
        placeholder = span.status == "interrupted"
        digest = digest_of(span)
        if earlier is None:
            sifted.spans[key] = (span, digest)
        elif earlier.placeholder and not placeholder:
            sifted.count("replaced")
            if key not in sifted.spans:
                sifted.outdated.append(key)
            sifted.spans[key] = (span, digest)
        else:
            # A placeholder that comes after the finished record says nothing that contradicts it.
            same = placeholder or earlier.digest is None or digest == earlier.digest
            sifted.count("duplicates" if same else "conflicts")
            if not same:
                sifted.aside.append(_aside(DIFFERING_SPAN, span, span.started_at_ns, span.service))
            continue
        known[key] = Known(placeholder, digest)
    for span, _ in sifted.spans.values():
        sifted.count("interrupted" if span.status == "interrupted" else "spans")


def sift_scores(scores: Sequence[Score], stored: Mapping[str, int | None], sifted: Sifted) -> None:
    """Take the scores that are new.

    Args:
        scores: in the order they were written.
        stored: digests by the ids of scores that the store has.
        sifted: gets them.
    """
    known = dict(stored)
    for score in scores:
        digest = digest_of(score)
        if score.score_id not in known:
            known[score.score_id] = digest
            sifted.scores.append((score, digest))
            sifted.count("scores")
            continue
        same = known[score.score_id] in (None, digest)
        sifted.count("duplicates" if same else "conflicts")
        if not same:
            sifted.aside.append(_aside(DIFFERING_SCORE, score, score.at_ns, score.source))


def _aside(reason: str, record: Span | Score, at_ns: int, source: str | None) -> SetAside:
    detail = msgspec.json.encode(
        {
            name: getattr(record, name)
            for name in record.__struct_fields__
            if getattr(record, name) not in (None, (), {})
        }
    ).decode()
    return SetAside(
        reason=reason,
        at_ns=at_ns,
        trace_id=record.trace_id,
        span_id=record.span_id,
        source=source,
        detail=detail[:DETAIL_CHARS],
    )
