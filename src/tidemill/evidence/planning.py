"""How many cases a question needs, and with which chance it is answered.

All but ``sign_test_power``, which is exact, are the usual normal formulas: right to a few cases in a hundred from some
30 cases on. ``alpha`` is that of a two-sided test; ask for ``2 * alpha`` to plan a one-sided one. To plan for "loses
less than a margin", the effect is the true difference plus the margin. ``minimal_detectable_effect`` is the inverse of
``required_pairs``.
"""

from __future__ import annotations

import math

from tidemill.evidence.binomial import log_mass
from tidemill.kernel import InvalidInput

_LOG_TINY = -60.0  # terms below exp of this add nothing that can be seen


def required_pairs(effect: float, discordance: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Pairs that show a mean difference of scores in [0, 1].

    Connor (1987): ``n = (z_alpha/2 + z_power)^2 (discordance - effect^2) / effect^2``.

    Args:
        effect: the mean difference, not 0, in [-1, 1].
        discordance: the mean square of the differences; on 0/1 scores the share of pairs that differ.
        alpha: error rate of the two-sided test.
        power: the chance to find the effect.

    Raises:
        InvalidInput: no effect, or a discordance that cannot go with it.
    """
    if not effect * effect <= discordance <= 1 or not effect:
        raise InvalidInput(f"a difference of {effect} cannot come from pairs of which {discordance} differ")
    return required_pairs_mean(effect, math.sqrt(discordance - effect * effect), alpha, power)


def required_pairs_mean(effect: float, spread: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Pairs that show a mean difference of any measure: ``n = (z_alpha/2 + z_power)^2 spread^2 / effect^2``.

    Args:
        effect: the mean difference, not 0.
        spread: standard deviation of the differences, in the same unit.
        alpha: error rate of the two-sided test.
        power: the chance to find the effect.

    Raises:
        InvalidInput: no effect, or a negative spread.
    """
    return max(1, _whole(_z_sum(alpha, power) ** 2 * _squared_ratio(spread, effect)))


def required_per_arm(baseline: float, candidate: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Cases in each of two independent arms that tell two shares apart.

    Fleiss, Levin and Paik, "Statistical methods for rates and proportions", 4.2, without correction for continuity:
    ``n = (z_alpha/2 sqrt(2 m (1-m)) + z_power sqrt(p(1-p) + q(1-q)))^2 / (p - q)^2``, m the mean of the shares.

    Args:
        baseline: one share, in [0, 1].
        candidate: the other, different from it.
        alpha: error rate of the two-sided test.
        power: the chance to find the difference.

    Raises:
        InvalidInput: equal shares, or one out of range.
    """
    _shares(baseline, candidate)
    z_alpha, z_power = _z(1 - alpha / 2), _z_sum(alpha, power) - _z(1 - alpha / 2)
    null, alternative = _deviations(baseline, candidate)
    return max(1, _whole(((z_alpha * null + z_power * alternative) / (candidate - baseline)) ** 2))


def required_per_arm_mean(effect: float, spread: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Cases in each of two independent arms that show a difference of means.

    ``n = 2 (z_alpha/2 + z_power)^2 spread^2 / effect^2 + z_alpha/2^2 / 4``; the last term is Guenther's (1981) for not
    knowing the spread.

    Args:
        effect: the difference of the means, not 0.
        spread: standard deviation within an arm, in the same unit.
        alpha: error rate of the two-sided test.
        power: the chance to find the effect.

    Raises:
        InvalidInput: no effect, or a negative spread.
    """
    plain = 2 * _z_sum(alpha, power) ** 2 * _squared_ratio(spread, effect)
    return max(2, _whole(plain + _z(1 - alpha / 2) ** 2 / 4))


def paired_power(n: int, effect: float, discordance: float, alpha: float = 0.05) -> float:
    """The chance that ``n`` pairs show an effect: ``Phi(|effect| sqrt(n / (discordance - effect^2)) - z_alpha/2)``.

    Arguments and errors as for ``required_pairs``.
    """
    if n < 0 or not effect * effect <= discordance <= 1:
        raise InvalidInput(f"a difference of {effect} cannot come from {n} pairs of which {discordance} differ")
    variance = discordance - effect * effect
    return _phi(abs(effect) * math.sqrt(n / variance) - _z(1 - alpha / 2)) if variance else float(n > 0 and effect != 0)


def unpaired_power(n: int, baseline: float, candidate: float, alpha: float = 0.05) -> float:
    """The chance that ``n`` cases in each of two independent arms tell two shares apart.

    ``Phi((|p - q| sqrt(n) - z_alpha/2 sqrt(2 m (1-m))) / sqrt(p(1-p) + q(1-q)))``; arguments and errors as for
    ``required_per_arm``.
    """
    _shares(baseline, candidate)
    null, alternative = _deviations(baseline, candidate)
    reach = abs(candidate - baseline) * math.sqrt(max(0, n)) - _z(1 - alpha / 2) * null
    return _phi(reach / alternative) if alternative else float(reach > 0)


def sign_test_power(n: int, wins: float, losses: float, alpha: float = 0.05) -> float:
    """The exact chance that the one-sided exact sign test shows a better candidate on ``n`` pairs of 0/1 scores.

    Sums over the number of discordant pairs, Binomial(n, wins + losses), the chance that wins among them reach the
    smallest count whose p-value is at most ``alpha``. This is the test of a gate without margin. As
    the test never exceeds its level, its power lies up to .05 below that of the formula.

    Args:
        n: pairs.
        wins: share of pairs that the candidate alone gets right.
        losses: share of pairs that the baseline alone gets right.
        alpha: error rate of the one-sided test.

    Raises:
        InvalidInput: a negative count, or shares that are none.
    """
    if n < 0 or min(wins, losses) < 0 or not 0 <= wins + losses <= 1:
        raise InvalidInput(f"wins {wins} and losses {losses} on {n} pairs are not shares of pairs")
    if not n or not wins:
        return 0.0
    discordance = wins + losses
    chance = 0.0
    for m in range(n + 1):
        log_weight = log_mass(n, m, discordance) if discordance < 1 else (0.0 if m == n else -math.inf)
        if log_weight > _LOG_TINY:
            chance += math.exp(log_weight) * _chance_of_showing(m, wins / discordance, alpha)
    return min(1.0, chance)


def design_effect(cluster_size: float, correlation: float) -> float:
    """How many times as many cases dependent ones must be: ``1 + (cluster_size - 1) * correlation`` (Kish 1965).

    Args:
        cluster_size: mean number of cases of a cluster (a document, a user), at least 1.
        correlation: of two cases of a cluster, in [0, 1].

    Raises:
        InvalidInput: either is out of range.
    """
    if not cluster_size >= 1 or not 0 <= correlation <= 1:
        raise InvalidInput(f"clusters of {cluster_size} cases with correlation {correlation} do not exist")
    return 1 + (cluster_size - 1) * correlation


def _chance_of_showing(m: int, win_share: float, alpha: float) -> float:
    """P(wins >= the critical count) for wins ~ Binomial(m, win_share), the count critical at one half."""
    tail, critical = 0.0, m + 1
    while critical:
        tail += math.exp(log_mass(m, critical - 1, 0.5))
        if tail > alpha:
            break
        critical -= 1
    if win_share == 1:
        return float(critical <= m)
    return math.fsum(math.exp(log_mass(m, k, win_share)) for k in range(critical, m + 1))


def _deviations(baseline: float, candidate: float) -> tuple[float, float]:
    """Standard deviation of the difference of one case in each arm: if the shares were equal, and as they are."""
    middle = (baseline + candidate) / 2
    apart = baseline * (1 - baseline) + candidate * (1 - candidate)
    return math.sqrt(2 * middle * (1 - middle)), math.sqrt(apart)


def _shares(baseline: float, candidate: float) -> None:
    if not (0 <= baseline <= 1 and 0 <= candidate <= 1) or baseline == candidate:
        raise InvalidInput(f"shares {baseline} and {candidate} cannot be told apart: they differ, and lie in 0 to 1")


def _squared_ratio(spread: float, effect: float) -> float:
    if not spread >= 0 or not effect:
        raise InvalidInput(f"an effect of {effect} with spread {spread} cannot be planned for")
    return (spread / effect) ** 2


def _z_sum(alpha: float, power: float) -> float:
    if not alpha / 2 < power < 1:
        raise InvalidInput(f"power {power} is out of range: it lies between half of alpha and 1")
    return _z(1 - alpha / 2) + _z(power)


def _z(probability: float) -> float:
    if not 0 < probability < 1:
        raise InvalidInput(f"probability {probability} is out of range: it lies between 0 and 1")
    from statistics import NormalDist  # its import costs more than this package's

    return NormalDist().inv_cdf(probability)


def _phi(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2


def _whole(count: float) -> int:
    return math.ceil(count - 1e-9)
