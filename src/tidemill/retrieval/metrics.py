"""How good a ranking is: recall, reciprocal rank and normalised discounted cumulative gain.

Each takes one question's ranking and its judgements; a mean over questions is the caller's. Formulas: Manning,
Raghavan, Schütze, Introduction to Information Retrieval, chapter 8; nDCG with linear gain, as trec_eval computes it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence


def recall_at(ranking: Sequence[str], relevant: Collection[str], k: int) -> float:
    """The share of the relevant ids among the first ``k``.

    Args:
        ranking: ids, best first.
        relevant: ids that answer the question.
        k: how many places are looked at.

    Returns:
        A share in [0, 1]; 0 when nothing is relevant.
    """
    wanted = set(relevant)
    return len(wanted.intersection(ranking[:k])) / len(wanted) if wanted else 0.0


def reciprocal_rank(ranking: Sequence[str], relevant: Collection[str]) -> float:
    """One over the rank of the first relevant id (ranks count from 1); 0 when none is ranked."""
    wanted = set(relevant)
    return next((1 / rank for rank, found in enumerate(ranking, 1) if found in wanted), 0.0)


def ndcg_at(ranking: Sequence[str], gains: Mapping[str, float], k: int) -> float:
    """Normalised discounted cumulative gain of the first ``k`` places.

    Args:
        ranking: ids, best first, none twice.
        gains: graded relevance by id, not negative; ids not in it have none.
        k: how many places are looked at.

    Returns:
        The sum of ``gain / log2(rank + 1)`` over that of the best possible ranking, in [0, 1]; 0 when no id has gain.
    """
    ideal = _discounted(sorted(gains.values(), reverse=True)[:k])
    return _discounted([gains.get(found, 0.0) for found in ranking[:k]]) / ideal if ideal else 0.0


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))
