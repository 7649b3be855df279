"""Paired comparisons at one look: the same cases answered by a candidate and by a baseline.

All tests hold at every sample size; none leans on a normal approximation. Sources: the sign test and McNemar (1947)
in their exact binomial form; Fisher's randomisation test by flipping signs; Efron's bootstrap, drawn over clusters;
Connor (1987) for the detectable difference; the betting test of ``intervals`` where a margin is given.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final, Literal

from tidemill.evidence.bootstrap import cluster_bootstrap
from tidemill.evidence.intervals import Interval, betting_log_evidence, shuffled
from tidemill.kernel import InvalidInput, Outcome, Verdict

Alternative = Literal["greater", "less", "two-sided"]

_EXACT_UNITS: Final = 14  # up to 2**14 sign patterns are enumerated
_CHUNK: Final = 1 << 20  # random signs held at a time
_TIE: Final = 1e-9  # sums of floats this close are the same sum


def sign_test(wins: int, losses: int, *, alternative: Alternative = "greater") -> float:
    """The exact sign test: are wins more likely than losses?

    Args:
        wins: pairs in which the candidate was better.
        losses: pairs in which it was worse; ties are left out.
        alternative: ``greater`` asks whether wins prevail.

    Returns:
        The p-value from the binomial distribution with probability 1/2; 1 without any win or loss.

    Raises:
        InvalidInput: a negative count.
    """
    if wins < 0 or losses < 0:
        raise InvalidInput(f"{wins} wins and {losses} losses cannot be counts")
    n = wins + losses
    if alternative == "two-sided":
        return min(1.0, 2 * _upper_tail(n, max(wins, losses)))
    return _upper_tail(n, wins if alternative == "greater" else losses)


def mcnemar_exact(wins: int, losses: int) -> float:
    """McNemar's exact test, two-sided: are the two discordant counts equally likely?"""
    return sign_test(wins, losses, alternative="two-sided")


def _upper_tail(n: int, k: int) -> float:
    """P(X >= k) for X ~ Binomial(n, 1/2), in integers until the last division."""
    term = math.comb(n, k)
    total = 0
    for i in range(k, n + 1):
        total += term
        term = term * (n - i) // (i + 1)
    return total / 2**n if n < 1000 else math.exp(math.log(total) - n * math.log(2)) if total else 0.0


def _cluster_sums(differences: Sequence[float], clusters: Sequence[Hashable] | None) -> tuple[list[float], list[int]]:
    """Sum and size of each cluster, in the order of first appearance; every pair its own without ``clusters``."""
    if clusters is None:
        return list(differences), [1] * len(differences)
    if len(clusters) != len(differences):
        raise InvalidInput(f"{len(clusters)} cluster names were given for {len(differences)} pairs")
    sums: dict[Hashable, float] = {}
    sizes: dict[Hashable, int] = {}
    for cluster, difference in zip(clusters, differences, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + difference
        sizes[cluster] = sizes.get(cluster, 0) + 1
    return list(sums.values()), list(sizes.values())


def _differences(a: Sequence[float], b: Sequence[float]) -> list[float]:
    if len(a) != len(b):
        raise InvalidInput(f"{len(a)} candidate values cannot be paired with {len(b)} baseline values")
    return [x - y for x, y in zip(a, b, strict=True)]


def paired_permutation(
    a: Sequence[float],
    b: Sequence[float],
    *,
    alternative: Alternative = "two-sided",
    clusters: Sequence[Hashable] | None = None,
    draws: int = 10_000,
    seed: int = 0,
) -> float:
    """Fisher's randomisation test of paired values: were the two labels of each pair exchangeable?

    Args:
        a: candidate values, (n,).
        b: baseline values of the same cases, (n,).
        alternative: ``greater`` asks whether ``a`` is greater.
        clusters: a name for each pair; pairs of a cluster are flipped together.
        draws: random sign patterns when there are too many to enumerate.
        seed: makes those repeatable.

    Returns:
        The p-value: exact up to 14 pairs or clusters; else ``(1 + hits) / (1 + draws)``, which is valid as it stands.

    Raises:
        InvalidInput: lengths differ.
    """
    units = [unit for unit in _cluster_sums(_differences(a, b), clusters)[0] if unit]
    if not units:
        return 1.0
    sign = -1.0 if alternative == "less" else 1.0
    observed = sign * sum(units)
    if alternative == "two-sided":
        observed = abs(observed)
    slack = _TIE * max(1.0, sum(map(abs, units)))
    if len(units) <= _EXACT_UNITS:
        hits = 0
        for signs in product((1.0, -1.0), repeat=len(units)):
            total = sum(s * unit for s, unit in zip(signs, units, strict=True))
            hits += (abs(total) if alternative == "two-sided" else total) >= observed - slack
        return float(hits / 2 ** len(units))
    return _permutation_draws(units, observed - slack, alternative == "two-sided", draws, seed)


def _permutation_draws(units: list[float], bar: float, two_sided: bool, draws: int, seed: int) -> float:
    import numpy as np  # only here: a light process that folds e-values never needs it

    rng = np.random.default_rng(seed)
    magnitudes = np.abs(np.asarray(units))
    hits, left = 0, draws
    while left:
        rows = min(left, max(1, _CHUNK // len(units)))
        signs = rng.integers(0, 2, size=(rows, len(units)), dtype=np.int8) * 2 - 1
        totals = signs @ magnitudes
        hits += int(((np.abs(totals) if two_sided else totals) >= bar).sum())
        left -= rows
    return (1 + hits) / (1 + draws)


def paired_bootstrap(
    a: Sequence[float],
    b: Sequence[float],
    *,
    clusters: Sequence[Hashable] | None = None,
    alpha: float = 0.05,
    draws: int = 4000,
    seed: int = 0,
) -> Interval:
    """A bootstrap interval for the mean difference ``a - b``. For display: its coverage is approximate.

    The expanded percentile interval over clusters; ``bootstrap`` says why not BCa or percentile-t.

    Args:
        a: candidate values, (n,).
        b: baseline values of the same cases, (n,).
        clusters: a name for each pair; whole clusters are drawn, as pairs of one document or user depend.
        alpha: the nominal chance to miss.
        draws: resamples.
        seed: makes them repeatable.

    Returns:
        The interval; ``n`` counts pairs or clusters. Without pairs: -1 to 1.

    Raises:
        InvalidInput: lengths differ.
    """
    sums, sizes = _cluster_sums(_differences(a, b), clusters)
    if not sums:
        return Interval(-1.0, 1.0, 0.0, 0)
    return cluster_bootstrap(sums, sizes, alpha=alpha, draws=draws, seed=seed)


def minimal_detectable_effect(n: int, discordance: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """The mean difference that a two-sided paired test of ``n`` cases finds with the given power.

    Connor (1987) solved for delta: ``n = (z_alpha/2 + z_power)^2 (discordance - delta^2) / delta^2``.

    Args:
        n: pairs.
        discordance: the mean square of the differences; on 0/1 scores the share of pairs that differ.
        alpha: error rate of the test.
        power: the chance to find such an effect.

    Returns:
        The effect in the scores' own unit, at most 1; 1 without data.

    Raises:
        InvalidInput: a negative count, or a discordance outside [0, 1].
    """
    if n < 0 or not 0 <= discordance <= 1:
        raise InvalidInput(f"no detectable effect for {n} pairs of which {discordance} differ")
    if n == 0:
        return 1.0
    from statistics import NormalDist  # its import costs more than this package's

    z = NormalDist().inv_cdf(1 - alpha / 2) + NormalDist().inv_cdf(power)
    return min(1.0, z * math.sqrt(discordance / (n + z * z)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pairs:
    """Paired scores with the unmeasured filled in once against and once for the candidate."""

    worst: list[float]
    best: list[float]
    measured: list[tuple[float, float]]
    measured_at: list[int]


def _score(value: float | None) -> float | None:
    if value is None or math.isnan(value):
        return None
    if not 0 <= value <= 1:
        raise InvalidInput(f"score {value} is out of range: paired comparison takes scores from 0 to 1")
    return float(value)


def _pairs(candidate: Sequence[float | None], baseline: Sequence[float | None]) -> _Pairs:
    if len(candidate) != len(baseline):
        raise InvalidInput(f"{len(candidate)} candidate scores cannot be paired with {len(baseline)} baseline scores")
    worst, best, measured, places = [], [], [], []
    for place, (x, y) in enumerate(zip(map(_score, candidate), map(_score, baseline), strict=True)):
        worst.append((0.0 if x is None else x) - (1.0 if y is None else y))
        best.append((1.0 if x is None else x) - (0.0 if y is None else y))
        if x is not None and y is not None:
            measured.append((x, y))
            places.append(place)
    return _Pairs(worst=worst, best=best, measured=measured, measured_at=places)


def _p_greater(
    differences: Sequence[float], margin: float, alpha: float, clusters: Sequence[Hashable] | None
) -> tuple[float, str]:
    """The p-value against "mean difference <= -margin" and the name of the test."""
    if margin == 0:
        if clusters is None and all(d in (-1, 0, 1) for d in differences):
            wins, losses = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
            return sign_test(wins, losses), "exact sign test"
        zeros = [0.0] * len(differences)
        p = paired_permutation(differences, zeros, alternative="greater", clusters=clusters)
        return p, "paired permutation test"
    return _p_bet(differences, margin, alpha, clusters), "betting test"


def _p_bet(differences: Sequence[float], margin: float, alpha: float, clusters: Sequence[Hashable] | None) -> float:
    """The betting p-value against "mean difference <= -margin"; a negative margin asks for a gain.

    A cluster's sum of ``difference + margin`` has mean at most 0 under the null, so clusters weigh by their size. It
    lies between ``size * (margin - 1)`` and ``size * (margin + 1)``; dividing by the largest size keeps the range.
    """
    sums, sizes = _cluster_sums(differences, clusters)
    largest = max(sizes)
    low, width = margin - 1, 2.0
    unit = [((total + size * margin) / largest - low) / width for total, size in zip(sums, sizes, strict=True)]
    return math.exp(-betting_log_evidence(shuffled([min(1.0, max(0.0, u)) for u in unit]), -low / width, alpha))


def compare_paired(
    candidate: Sequence[float | None],
    baseline: Sequence[float | None],
    *,
    margin: float = 0.0,
    alpha: float = 0.05,
    minimum: int = 30,
    clusters: Sequence[Hashable] | None = None,
) -> Verdict:
    """Judge a candidate against a baseline on the same cases, at one look.

    With a margin of 0 the question is whether the candidate is better: the exact sign test on 0/1 scores, else the
    permutation test. With a margin it is whether it loses less than the margin: a betting test on the differences,
    exact for bounded scores at every n. FAIL is the mirrored test. Each errs with probability at most ``alpha``.

    A score of ``None`` or NaN was not measured. It is never dropped: PASS must hold with every such pair counted
    against the candidate, FAIL with every such pair counted for it.

    Args:
        candidate: scores in [0, 1]; ``None`` where a case was not measured.
        baseline: scores of the same cases in the same order.
        margin: the loss that is tolerated, in [0, 1).
        alpha: error rate of either answer.
        minimum: measured pairs below which the answer is INSUFFICIENT.
        clusters: a name for each pair, for pairs that depend (same document, same user); clusters are the unit.

    Returns:
        A verdict with an ``Outcome``: PASS (delta > -margin shown), FAIL (delta < -margin shown) or INSUFFICIENT.
        Evidence: n, unmeasured, wins, losses, delta, interval (bootstrap, ``1 - alpha``), p_pass, p_fail, p (the
        smaller), test, mde, margin, alpha, minimum.

    Raises:
        InvalidInput: lengths differ, a score or the margin is out of range.
    """
    if not 0 <= margin < 1:
        raise InvalidInput(f"margin {margin} is out of range: it is at least 0 and below 1")
    pairs = _pairs(candidate, baseline)
    if clusters is not None and len(clusters) != len(pairs.worst):
        raise InvalidInput(f"{len(clusters)} cluster names were given for {len(pairs.worst)} pairs")
    evidence = _description(pairs, alpha, clusters)
    evidence |= {"margin": margin, "alpha": alpha, "minimum": minimum}
    n = len(pairs.measured)
    if n < max(1, minimum):
        evidence |= {"p": 1.0, "p_pass": 1.0, "p_fail": 1.0, "test": "none"}
        return Verdict(Outcome.INSUFFICIENT, f"{n} cases were measured in both; {max(1, minimum)} are needed", evidence)
    p_pass, test = _p_greater(pairs.worst, margin, alpha, clusters)
    # against "delta >= -margin", that is mean(-difference) <= margin
    p_fail = _p_greater([-difference for difference in pairs.best], -margin, alpha, clusters)[0]
    evidence |= {"p": min(p_pass, p_fail), "p_pass": p_pass, "p_fail": p_fail, "test": test}
    return _judged(evidence, margin, alpha)


def _description(pairs: _Pairs, alpha: float, clusters: Sequence[Hashable] | None) -> dict[str, Any]:
    """What was seen, for the reader: counts, the mean difference and its interval, the detectable effect."""
    n = len(pairs.measured)
    a, b = [x for x, _ in pairs.measured], [y for _, y in pairs.measured]
    groups = None if clusters is None else [clusters[place] for place in pairs.measured_at]
    differences = [x - y for x, y in pairs.measured]
    # n equal pairs do not show that pairs never differ: at least one in n is granted
    spread = max(1, sum(d * d for d in differences)) / n if n else 1.0
    units = n if groups is None else len(set(groups))
    return {
        "n": n,
        "clusters": units,
        "unmeasured": len(pairs.worst) - n,
        "wins": sum(d > 0 for d in differences),
        "losses": sum(d < 0 for d in differences),
        "candidate_mean": sum(a) / n if n else None,
        "baseline_mean": sum(b) / n if n else None,
        "delta": sum(differences) / n if n else None,
        "interval": paired_bootstrap(a, b, clusters=groups, alpha=alpha).as_json() if n else None,
        "mde": minimal_detectable_effect(units, spread, alpha),
    }


def _judged(evidence: dict[str, Any], margin: float, alpha: float) -> Verdict:
    delta, n = evidence["delta"], evidence["n"]
    seen = f"difference {delta:+.3f} on {n} cases"
    bound = f"a loss of {margin:g}" if margin else "no difference"
    if evidence["p_pass"] <= alpha:
        shown = f"not worse than the baseline by {margin:g} or more" if margin else "better than the baseline"
        return Verdict(Outcome.PASS, f"shown to be {shown}: {seen}, p = {evidence['p_pass']:.2g}", evidence)
    if evidence["p_fail"] <= alpha:
        shown = f"worse than the baseline by more than {margin:g}" if margin else "worse than the baseline"
        return Verdict(Outcome.FAIL, f"shown to be {shown}: {seen}, p = {evidence['p_fail']:.2g}", evidence)
    reason = f"{seen} can be told neither from better nor from worse than {bound}"
    reason += f"; this many cases show a difference of about {evidence['mde']:.2f}"
    return Verdict(Outcome.INSUFFICIENT, reason, evidence)
