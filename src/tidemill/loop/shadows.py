"""Pairs of answers to the same request, live and shadow, scored without knowing what is right.

In shadow nobody judges the candidate's answers, so they are compared by a score that needs no reference: how much of
the answer stands in the passages it was given.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tidemill.evaluation import Answer, Case, Passage, abstained, groundedness
from tidemill.kernel import Arm, Digest, NotFound, ReleaseParts, RowId

if TYPE_CHECKING:
    from tidemill.ledger import ArtifactVersion, Ledger
    from tidemill.telemetry import Span, StoredSpan

_CASE = Case(question="?", answerable=False)
_NOT_THERE: Final = (None, 502, 503, 504)
_GROUNDED = groundedness()


@dataclass(slots=True)
class _Pair:
    order: tuple[int, str]
    live: float | None = None
    shadow: float | None = None


def _went_unanswered(span: Span) -> bool:
    """Whether no release had a say: its process or its model server was not there, or the client was gone."""
    if span.status in ("cancelled", "interrupted"):
        return True
    return span.status == "error" and span.http_status in _NOT_THERE


class ShadowPairs:
    """Collects (candidate's score, baseline's score) of the same requests.

    A failed answer scores 0. An answer that says it does not know makes no claim, so it is fully grounded. A request
    that nobody answered (a process that was away, a client that left) makes no pair: a restart is not held against the
    candidate, and without pairs a shadow is never passed.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._pairs: dict[str, _Pair] = {}
        self._indexes: dict[str, ArtifactVersion | None] = {}

    def feed(self, spans: Iterable[StoredSpan]) -> None:
        """Take in gateway spans with their content and references."""
        for stored in spans:
            span = stored.span
            if span.arm is None or _went_unanswered(span):
                continue
            pair = self._pairs.setdefault(span.trace_id, _Pair((span.started_at_ns, span.trace_id)))
            score = self._score(stored)
            if span.arm == Arm.SHADOW:
                pair.shadow = score
            else:
                pair.live, pair.order = score, (span.started_at_ns, span.trace_id)

    def scores(self) -> list[tuple[float, float]]:
        """Complete pairs in the order of the requests."""
        complete = sorted(
            (pair for pair in self._pairs.values() if pair.live is not None and pair.shadow is not None),
            key=lambda pair: pair.order,
        )
        return [(pair.shadow or 0.0, pair.live or 0.0) for pair in complete]

    def _score(self, stored: StoredSpan) -> float:
        if stored.span.status != "ok" or stored.content is None:
            return 0.0
        text = stored.content.output
        if abstained(text):
            return 1.0
        verdict = _GROUNDED(_CASE, Answer(text=text, passages=self._passages(stored)))
        return 1.0 if verdict is None else float(verdict.value)

    def _passages(self, stored: StoredSpan) -> tuple[Passage, ...]:
        ids = [RowId(one.ref) for one in stored.span.references if one.kind == "passage"]
        index = self._index(stored.span.release)
        if index is None or not ids:
            return ()
        rows = self._ledger.datasets.rows(index, list(dict.fromkeys(ids)))
        return tuple(Passage(row.value["document_id"], row.value["title"] + " " + row.value["text"]) for row in rows)

    def _index(self, release: str | None) -> ArtifactVersion | None:
        if release is None:
            return None
        if release not in self._indexes:
            try:
                parts = ReleaseParts.from_json(self._ledger.artifacts.by_digest(Digest(release)).content)
                self._indexes[release] = self._ledger.artifacts.by_digest(parts.index) if parts.index else None
            except NotFound:
                self._indexes[release] = None
        return self._indexes[release]
