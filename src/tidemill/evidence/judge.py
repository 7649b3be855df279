"""A judge errs; what its verdicts say about people's, with the error of the judge counted in.

Calibration cases carry a person's label and the judge's verdict. From them follow the judge's sensitivity and
specificity (Rogan and Gladen 1978 correct a share by them) or, directly, how far the judge is off on average
(prediction-powered inference: Angelopoulos et al., "Prediction-powered inference" (2023) and "PPI++" (2023)).

Both assume that the judge errs on the cases at hand as it does on the calibration cases. Rogan-Gladen needs that given
the true label, so the calibration cases may hold any mix of good and bad; prediction-powered means need the labelled
cases to be a random draw from the same cases. For looks at any time see ``JudgedProcess``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tidemill.evidence.bootstrap import student_quantile
from tidemill.evidence.intervals import Interval, wilson_interval
from tidemill.kernel import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeCalibration:
    """A judge's verdicts beside people's labels, as counts.

    Args:
        true_positive, false_negative: cases that people call good, and the judge good or bad.
        true_negative, false_positive: cases that people call bad, and the judge bad or good.
    """

    true_positive: int
    false_negative: int
    true_negative: int
    false_positive: int

    def __post_init__(self) -> None:
        if min(self.true_positive, self.false_negative, self.true_negative, self.false_positive) < 0:
            raise InvalidInput("the counts of a judge's calibration must not be negative")

    @classmethod
    def of(cls, labels: Sequence[bool], verdicts: Sequence[bool]) -> JudgeCalibration:
        """Count labels and verdicts of the same cases in the same order.

        Raises:
            InvalidInput: lengths differ.
        """
        if len(labels) != len(verdicts):
            raise InvalidInput(f"{len(labels)} labels cannot be paired with {len(verdicts)} verdicts of the judge")
        pairs = [(bool(label), bool(verdict)) for label, verdict in zip(labels, verdicts, strict=True)]
        return cls(
            true_positive=pairs.count((True, True)),
            false_negative=pairs.count((True, False)),
            true_negative=pairs.count((False, False)),
            false_positive=pairs.count((False, True)),
        )

    @property
    def positives(self) -> int:
        """Cases that people call good."""
        return self.true_positive + self.false_negative

    @property
    def negatives(self) -> int:
        """Cases that people call bad."""
        return self.true_negative + self.false_positive

    def sensitivity(self, alpha: float = 0.05) -> Interval:
        """The share of good cases that the judge calls good, with Wilson's interval."""
        return wilson_interval(self.true_positive, self.positives, alpha)

    def specificity(self, alpha: float = 0.05) -> Interval:
        """The share of bad cases that the judge calls bad, with Wilson's interval."""
        return wilson_interval(self.true_negative, self.negatives, alpha)

    def informedness(self, alpha: float = 0.05) -> Interval:
        """``sensitivity + specificity - 1``: 1 for a perfect judge, 0 for one that knows nothing (Youden 1950).

        The interval joins the two Wilson intervals by their distances from the estimates (Newcombe 1998).
        """
        good, bad = self.sensitivity(alpha), self.specificity(alpha)
        value = good.mean + bad.mean - 1
        low = value - math.hypot(good.mean - good.low, bad.mean - bad.low)
        high = value + math.hypot(good.high - good.mean, bad.high - bad.mean)
        return Interval(max(-1.0, low), min(1.0, high), value, self.positives + self.negatives)

    def as_json(self) -> dict[str, Any]:
        """The counts and what follows from them, as a plain JSON object."""
        return {
            "true_positive": self.true_positive,
            "false_negative": self.false_negative,
            "true_negative": self.true_negative,
            "false_positive": self.false_positive,
            "sensitivity": self.sensitivity().as_json(),
            "specificity": self.specificity().as_json(),
            "informedness": self.informedness().as_json(),
        }


@dataclass(frozen=True, slots=True)
class JudgedShare:
    """A share of good cases as people would have counted it.

    Args:
        interval: the corrected share; 0 to 1 if the judge is useless.
        raw: the share as the judge counted it, with Wilson's interval, which knows nothing of the judge's errors.
        useful: whether the judge is shown to know more than chance.
        reason: a sentence for the reader.
    """

    interval: Interval
    raw: Interval
    useful: bool
    reason: str

    def as_json(self) -> dict[str, Any]:
        """The share as a plain JSON object."""
        return {
            "interval": self.interval.as_json(),
            "raw": self.raw.as_json(),
            "useful": self.useful,
            "reason": self.reason,
        }


def rogan_gladen(positives: int, n: int, calibration: JudgeCalibration, alpha: float = 0.05) -> JudgedShare:
    """Correct a judge's share of good cases by its sensitivity and specificity.

    ``p = (q + sp - 1) / (se + sp - 1)``, clipped to [0, 1]. The interval is the delta method's,
    ``var = (q(1-q)/n + p^2 se(1-se)/n1 + (1-p)^2 sp(1-sp)/n0) / (se + sp - 1)^2``, with the counts and the centre
    adjusted after Lang and Reiczigel, "Confidence limits for prevalence of disease adjusted for estimated sensitivity
    and specificity" (2014), which mends it for few calibration cases and for a judge that made no error on them.
    Approximate: it misses about ``alpha`` of the time.

    A judge whose ``sensitivity + specificity`` is at most 1 knows nothing, and no correction brings back what it never
    saw: the answer is 0 to 1, and so it is while the calibration cases do not show (at ``alpha``) that it knows
    anything, for then the ratio's true confidence set has no ends (Fieller 1954).

    Args:
        positives: cases that the judge called good.
        n: cases judged, all without labels of people or disjoint from the calibration cases.
        calibration: the judge beside people.
        alpha: the nominal chance to miss.

    Raises:
        InvalidInput: not ``0 <= positives <= n``.
    """
    raw = wilson_interval(positives, n, alpha)
    informed = calibration.informedness(alpha)
    whole = Interval(0.0, 1.0, raw.mean, n)
    if not (n and calibration.positives and calibration.negatives):
        return JudgedShare(whole, raw, False, "without judged cases and labels of both kinds there is no correction")
    if informed.mean <= 0:
        found = f"sensitivity + specificity is {informed.mean + 1:.2f}, at most 1: the judge knows nothing"
        return JudgedShare(whole, raw, False, found)
    if informed.low <= 0:
        found = f"{informed.n} labels do not show that the judge knows more than chance; label more cases"
        return JudgedShare(whole, raw, False, found)
    share = min(1.0, max(0.0, (raw.mean - 1 + calibration.specificity().mean) / informed.mean))
    low, high = _adjusted_limits(raw.mean, n, calibration, alpha)
    interval = Interval(max(0.0, min(share, low)), min(1.0, max(share, high)), share, n)
    reason = f"the judge counts {raw.mean:.3f}; with its errors on {informed.n} labelled cases that is {share:.3f}"
    return JudgedShare(interval, raw, True, reason)


def _adjusted_limits(q: float, n: int, calibration: JudgeCalibration, alpha: float) -> tuple[float, float]:
    """Lang and Reiczigel's limits: z^2/2 cases more of either verdict, one case more of each judgement."""
    from statistics import NormalDist  # its import costs more than this package's

    z = NormalDist().inv_cdf(1 - alpha / 2)
    judged = n + z * z
    q = (n * q + z * z / 2) / judged
    good, bad = calibration.positives + 2, calibration.negatives + 2
    se, sp = (calibration.true_positive + 1) / good, (calibration.true_negative + 1) / bad
    informed = se + sp - 1
    if informed <= 0:
        return 0.0, 1.0
    p = (q + sp - 1) / informed
    of_good, of_bad = p * se * (1 - se) / good, (1 - p) * sp * (1 - sp) / bad
    centre = p + 2 * z * z * (of_good - of_bad)
    variance = q * (1 - q) / judged + p * of_good + (1 - p) * of_bad
    half = z * math.sqrt(max(0.0, variance)) / informed
    return centre - half, centre + half


@dataclass(frozen=True, slots=True)
class JudgedMean:
    """A mean of people's scores from few of theirs and many of a judge's.

    Args:
        interval: the estimate; ``n`` counts the labelled cases.
        trust: the weight given to the judge: 0 uses the labels alone, 1 believes the judge and mends its mean error.
        classical: the interval from the labels alone, by limits of the same kind.
    """

    interval: Interval
    trust: float
    classical: Interval

    def as_json(self) -> dict[str, Any]:
        """The mean as a plain JSON object."""
        return {"interval": self.interval.as_json(), "trust": self.trust, "classical": self.classical.as_json()}


def prediction_powered_mean(
    labels: Sequence[float],
    judged: Sequence[float],
    judged_only: Sequence[float],
    *,
    trust: float | None = None,
    alpha: float = 0.05,
    low: float = 0.0,
    high: float = 1.0,
) -> JudgedMean:
    """The mean of people's scores, prediction-powered.

    ``mean = c * mean(judged_only) + mean(labels - c * judged)`` with variance
    ``c^2 var(judged_only)/N + var(labels - c * judged)/n`` and limits from Student's t of n - 1 degrees. PPI has c = 1.
    PPI++ takes the c with the least variance, ``cov(labels, judged) / ((1 + n/N) var(all judged))``, kept in [0, 1], so
    that a bad judge costs nothing. Without bias for any judge where c is fixed beforehand. The tuned c and the limits
    are approximate: they need labels on which the judge erred some ten times, since the errors that were seen are all
    that is known of it. A judge of 0/1 scores that is wrong on 1 case in 10 makes 3 errors on 30 labels, and the limits
    then miss nearly twice as often as ``alpha``. For decisions use ``JudgedProcess``, or ``mean_interval`` of the
    labels alone.

    Args:
        labels: people's scores of n cases, drawn at random from all.
        judged: the judge's scores of the same cases in the same order.
        judged_only: its scores of N other cases.
        trust: c; ``None`` tunes it.
        alpha: the nominal chance to miss.
        low: the smallest possible score of people.
        high: the largest; the limits are kept within.

    Returns:
        The mean; the whole range with fewer than two labels.

    Raises:
        InvalidInput: lengths differ, a label is out of range, a score is not finite, or ``trust`` is not in [0, 1].
    """
    if len(labels) != len(judged):
        raise InvalidInput(f"{len(labels)} labels cannot be paired with {len(judged)} scores of the judge")
    if trust is not None and not 0 <= trust <= 1:
        raise InvalidInput(f"trust {trust} in a judge is out of range: it lies between 0 and 1")
    if not all(low <= label <= high for label in labels):
        raise InvalidInput(f"a label is out of range: expected {low} to {high}")
    if not all(map(math.isfinite, [*judged, *judged_only])):
        raise InvalidInput("a score of the judge is not a finite number: leave out what it could not judge")
    n, others = len(labels), len(judged_only)
    classical = _normal_limits(_mean(labels), _variance(labels) / max(1, n), n, alpha, low, high)
    if n < 2 or others < 2:
        return JudgedMean(classical, 0.0, classical)
    c = _tuned_trust(labels, judged, judged_only) if trust is None else trust
    rest = [label - c * score for label, score in zip(labels, judged, strict=True)]
    mean = c * _mean(judged_only) + _mean(rest)
    variance = c * c * _variance(judged_only) / others + _variance(rest) / n
    return JudgedMean(_normal_limits(mean, variance, n, alpha, low, high), c, classical)


def _tuned_trust(labels: Sequence[float], judged: Sequence[float], judged_only: Sequence[float]) -> float:
    n, others = len(labels), len(judged_only)
    spread = _variance([*judged, *judged_only])
    if not spread:
        return 0.0
    label_mean, judged_mean = _mean(labels), _mean(judged)
    together = sum((y - label_mean) * (f - judged_mean) for y, f in zip(labels, judged, strict=True)) / n
    return min(1.0, max(0.0, together / ((1 + n / others) * spread)))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _variance(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    mean = _mean(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def _normal_limits(mean: float, variance: float, n: int, alpha: float, low: float, high: float) -> Interval:
    if n < 2:
        return Interval(low, high, mean if n else (low + high) / 2, n)
    half = student_quantile(1 - alpha / 2, n - 1) * math.sqrt(variance)
    mean = min(high, max(low, mean))
    return Interval(max(low, mean - half), min(high, mean + half), mean, n)
