"""How well a search finds the documents that answer a question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tidemill.evaluation.cases import Case
from tidemill.kernel import Verdict

RETRIEVAL_METRICS: Final = ("recall@1", "recall@5", "mrr")
RETRIEVED: Final = 10
"""How many sources are asked for; ``mrr`` counts a document beyond them as not found."""


def score_retrieval(case: Case, sources: Sequence[str]) -> dict[str, Verdict]:
    """Score a ranking of document sources against the documents that answer the case.

    A case's documents are alternatives, so ``recall@k`` is 1 when any of them is among the first k distinct sources;
    ``mrr`` is one over the place of the first right one (E. Voorhees, TREC-8 QA track, 1999), 0 when there is none.

    Args:
        case: one that names documents; the metrics do not apply to others, and the result is then empty.
        sources: source URIs, best first; several passages of one document may repeat it.
    """
    if not case.documents:
        return {}
    distinct = list(dict.fromkeys(sources))[:RETRIEVED]
    place = next((place for place, source in enumerate(distinct, 1) if source in case.documents), None)
    evidence = {"place": place, "retrieved": distinct[:5]}
    reason = f"a right document stands at place {place}" if place else f"no right document in the first {RETRIEVED}"
    values = {"recall@1": float(place == 1), "recall@5": float(place is not None and place <= 5)}
    values["mrr"] = 1 / place if place else 0.0
    return {metric: Verdict(value, reason, evidence) for metric, value in values.items()}
