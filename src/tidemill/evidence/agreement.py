"""How far raters agree beyond chance: Cohen's kappa, weighted kappa and Krippendorff's alpha.

All are ``1 - observed disagreement / expected disagreement``. Kappa (Cohen 1960; weighted: Cohen 1968) takes two raters
who rated every case and expects what their own shares of each category would give by chance. Alpha (Krippendorff,
"Computing Krippendorff's alpha-reliability", 2011) takes any number of raters with holes, and expects what shuffling
all ratings would give. 1 is full agreement, 0 what chance gives.

The interval is a percentile bootstrap over cases, and its coverage approximate: cases must be independent draws. Raters
who never disagreed would make it a point; then the lower limit follows from Wilson's limit on how often a case could
still be disputed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from tidemill.evidence.intervals import wilson_interval
from tidemill.kernel import InvalidInput

if TYPE_CHECKING:
    import numpy as np

    Matrix = np.ndarray[Any, np.dtype[np.float64]]

KappaWeights = Literal["none", "linear", "quadratic"]
RatingScale = Literal["nominal", "ordinal", "interval"]

_MOST_CATEGORIES: Final = 1000  # the tables are square in them


@dataclass(frozen=True, slots=True)
class Agreement:
    """A coefficient of agreement.

    Args:
        value: 1 full agreement, 0 as by chance, below 0 worse; ``None`` where it is undefined: no case was rated twice,
            or everyone gave one and the same rating, so that chance would agree as well.
        low, high: limits of the interval; -1 and 1 where the value is undefined.
        observed: the share of pairs of ratings of one case that are equal; ``None`` without any.
        n: cases rated at least twice.
    """

    value: float | None
    low: float
    high: float
    observed: float | None
    n: int

    def as_json(self) -> dict[str, Any]:
        """The coefficient as a plain JSON object."""
        return {"value": self.value, "low": self.low, "high": self.high, "observed": self.observed, "n": self.n}


def cohen_kappa(
    first: Sequence[Hashable],
    second: Sequence[Hashable],
    *,
    weights: KappaWeights = "none",
    categories: Sequence[Hashable] | None = None,
    alpha: float = 0.05,
    draws: int = 1000,
    seed: int = 0,
) -> Agreement:
    """Cohen's kappa of two raters, plain or weighted.

    ``kappa = 1 - sum(w * O) / sum(w * E)``, O the table of rating pairs, E the product of its margins over n, and w the
    disagreement: 1 off the diagonal, ``|i - j|`` (linear) or ``(i - j)**2`` (quadratic) for places i and j.

    Args:
        first: ratings by one rater.
        second: ratings of the same cases in the same order by the other.
        weights: how bad a disagreement is.
        categories: every possible rating in order; ``None`` takes those seen, sorted. Name them for a weighted kappa,
            for a grade that nobody gave still keeps its neighbours apart.
        alpha: the nominal chance that the interval misses.
        draws: resamples of the bootstrap.
        seed: makes them repeatable.

    Raises:
        InvalidInput: lengths differ, a rating is not among the categories, or ratings cannot be sorted.
    """
    if len(first) != len(second):
        raise InvalidInput(f"{len(first)} ratings cannot be compared with {len(second)} of the other rater")
    if weights not in ("none", "linear", "quadratic"):
        raise InvalidInput(f"'{weights}' is not a weighting of kappa: write none, linear or quadratic")
    places = _places([*first, *second], categories)
    import numpy as np  # only here: a light process that folds e-values never needs it

    k = max(1, len(places))
    rows = np.array([places[one] for one in first], dtype=np.int64)
    columns = np.array([places[one] for one in second], dtype=np.int64)
    gap = np.abs(np.subtract.outer(np.arange(k), np.arange(k))).astype(float)
    disagreement = gap if weights == "linear" else gap**2 if weights == "quadratic" else (gap > 0).astype(float)

    def parts(repeats: Matrix) -> tuple[float, float]:
        table = np.bincount(rows * k + columns, weights=repeats, minlength=k * k).reshape(k, k)
        total = table.sum()
        expected = np.outer(table.sum(1), table.sum(0)) / total
        return float((disagreement * table).sum() / total), float((disagreement * expected).sum() / total)

    equal = float((rows == columns).mean()) if len(first) else None
    return _resampled(parts, len(first), equal, float(disagreement.max()), alpha, draws, seed)


def krippendorff_alpha(
    ratings: Sequence[Sequence[Hashable | None]],
    *,
    scale: RatingScale = "nominal",
    alpha: float = 0.05,
    draws: int = 1000,
    seed: int = 0,
) -> Agreement:
    """Krippendorff's alpha of any number of raters, with missing ratings.

    ``alpha = 1 - sum(delta * o) / sum(delta * e)``: o counts each ordered pair of ratings of a case ``1/(m - 1)`` times
    for m ratings; ``e[c, d] = n_c * (n_d - [c == d]) / (n - 1)``. delta is 1 for different ratings (nominal), the
    squared number of ratings that lie between them, each end counted half (ordinal), or the squared difference
    (interval). Cases with fewer than two ratings carry nothing.

    Args:
        ratings: one row for each case, its ratings by any raters; ``None`` or NaN is missing.
        scale: what a difference means; ``interval`` takes numbers, ``ordinal`` what can be sorted.
        alpha: the nominal chance that the interval misses.
        draws: resamples of the bootstrap.
        seed: makes them repeatable.

    Raises:
        InvalidInput: an unknown scale, or ratings that do not fit it.
    """
    if scale not in ("nominal", "ordinal", "interval"):
        raise InvalidInput(f"'{scale}' is not a scale of ratings: write nominal, ordinal or interval")
    rows = [[one for one in row if not _missing(one)] for row in ratings]
    rows = [row for row in rows if len(row) > 1]
    places = _places([one for row in rows for one in row], None, ordered=scale != "nominal")
    import numpy as np  # only here: a light process that folds e-values never needs it

    counts = np.zeros((len(rows), max(1, len(places))))
    for case, row in enumerate(rows):
        for one in row:
            counts[case, places[one]] += 1
    numbers = _numbers(places) if scale == "interval" else []
    sizes = counts.sum(1)

    def delta(margins: Matrix) -> Matrix:
        if scale == "nominal":
            return 1.0 - np.eye(len(margins))
        # a rank that lies between two grades counts every rating passed on the way, each end by half
        position = np.cumsum(margins) - margins / 2 if scale == "ordinal" else np.asarray(numbers or [0.0])
        return np.asarray(np.subtract.outer(position, position) ** 2)

    def parts(repeats: Matrix) -> tuple[float, float]:
        share = counts * (repeats / (sizes - 1))[:, None]
        observed = share.T @ counts - np.diag(share.sum(0))
        margins = counts.T @ repeats
        total = margins.sum()
        expected = (np.outer(margins, margins) - np.diag(margins)) / (total - 1)
        distance = delta(margins)
        return float((distance * observed).sum() / total), float((distance * expected).sum() / total)

    pairs = float((sizes * (sizes - 1)).sum())
    equal = float((counts * (counts - 1)).sum()) / pairs if pairs else None
    worst = float(delta(counts.sum(0)).max())
    return _resampled(parts, len(rows), equal, worst, alpha, draws, seed)


def _resampled(
    parts: Callable[[Matrix], tuple[float, float]],
    n: int,
    equal: float | None,
    worst: float,
    alpha: float,
    draws: int,
    seed: int,
) -> Agreement:
    """The coefficient and its interval, from observed and expected disagreement of cases that are repeated."""
    import numpy as np  # only here: a light process that folds e-values never needs it

    if not 0 < alpha < 1:
        raise InvalidInput(f"chance to miss {alpha} is out of range: it lies between 0 and 1")
    observed, expected = parts(np.ones(n)) if n else (0.0, 0.0)
    if not expected > 0:
        return Agreement(None, -1.0, 1.0, equal, n)
    value = 1 - observed / expected
    if not observed:
        disputed = 1 - wilson_interval(n, n, alpha).low
        return Agreement(value, max(-1.0, 1 - disputed * worst / expected), 1.0, equal, n)
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        o, e = parts(np.bincount(rng.integers(0, n, n), minlength=n).astype(float))
        if e > 0:  # a resample with one rating throughout has no coefficient
            found.append(1 - o / e)
    low, high = np.quantile(found, [alpha / 2, 1 - alpha / 2]) if found else (-1.0, 1.0)
    return Agreement(value, max(-1.0, min(value, float(low))), min(1.0, max(value, float(high))), equal, n)


def _missing(rating: Hashable | None) -> bool:
    return rating is None or (isinstance(rating, float) and math.isnan(rating))


def _places(
    ratings: Sequence[Hashable | None], categories: Sequence[Hashable] | None, *, ordered: bool = True
) -> dict[Hashable | None, int]:
    """Each category's place in the order."""
    seen = list(dict.fromkeys(ratings))
    if categories is not None:
        strange = [one for one in seen if one not in set(categories)]
        if strange:
            raise InvalidInput(f"rating {strange[0]!r} is not among the categories")
        seen = list(dict.fromkeys(categories))
    elif ordered:
        try:
            seen = sorted(seen)  # type: ignore[type-var]  # what cannot be sorted says so
        except TypeError:
            raise InvalidInput("ratings of different kinds have no order: name the categories in theirs") from None
    if len(seen) > _MOST_CATEGORIES:
        raise InvalidInput(f"{len(seen)} different ratings are too many: round them to {_MOST_CATEGORIES} or fewer")
    return {one: place for place, one in enumerate(seen)}


def _numbers(places: dict[Hashable | None, int]) -> list[float]:
    for one in places:
        if not isinstance(one, int | float):
            raise InvalidInput(f"rating {one!r} is not a number: an interval scale takes numbers")
    return [float(one) for one in places]  # type: ignore[arg-type]  # numbers, as just seen
