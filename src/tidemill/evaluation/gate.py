"""The gate: rules over reports, answered by PASS, FAIL or INSUFFICIENT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from tidemill.evaluation.report import Report
from tidemill.evidence import compare_paired, mean_interval
from tidemill.kernel import InvalidInput, Outcome, Verdict


class RuleKind(StrEnum):
    """What a rule asks of a metric."""

    NON_INFERIOR = "non_inferior"
    SUPERIOR = "superior"
    AT_LEAST = "at_least"


@dataclass(frozen=True, slots=True)
class GateRule:
    """One condition that a candidate must be shown to meet.

    Args:
        metric: name of the metric in the reports; its scores lie in [0, 1].
        kind: ``non_inferior``: loses less than ``margin`` against the baseline; ``superior``: is better than the
            baseline; ``at_least``: the mean over cases like these is at least ``floor``.
        margin: the loss tolerated, for ``non_inferior``.
        floor: the mean demanded, for ``at_least``.
        minimum: measured cases below which the answer is INSUFFICIENT.
    """

    metric: str
    kind: RuleKind = RuleKind.NON_INFERIOR
    margin: float = 0.05
    floor: float = 0.0
    minimum: int = 30

    def __post_init__(self) -> None:
        if self.kind not in list(RuleKind):
            kinds = ", ".join(RuleKind)
            raise InvalidInput(f"rule on '{self.metric}': there is no rule kind '{self.kind}'; the kinds are {kinds}")
        object.__setattr__(self, "kind", RuleKind(self.kind))
        if self.kind is RuleKind.NON_INFERIOR and not 0 < self.margin < 1:
            raise InvalidInput(f"rule on '{self.metric}': a margin of {self.margin} is not between 0 and 1")
        if self.kind is RuleKind.AT_LEAST and not 0 < self.floor <= 1:
            raise InvalidInput(f"rule on '{self.metric}': a floor of {self.floor} asks nothing; set one in (0, 1]")


_SEVERITY: Final = (Outcome.FAIL, Outcome.INSUFFICIENT, Outcome.PASS)


def gate(candidate: Report, baseline: Report | None, rules: Sequence[GateRule], *, alpha: float = 0.05) -> Verdict:
    """Judge a candidate's report by rules; the worst answer of a rule is the gate's.

    Comparisons use the cases that both reports share, in pairs. Several ``superior`` rules are corrected by Holm's
    method (S. Holm, 1979), so that the chance of showing any improvement that is none stays below ``alpha``. The
    other rules must all hold, which needs no correction. Cases not measured are counted against every PASS and every
    FAIL. Without data, or without a baseline to compare with, the answer is INSUFFICIENT, never PASS.

    Args:
        candidate: the report of the release that wants to be promoted.
        baseline: the report of the release it would replace.
        rules: at least one.
        alpha: error rate of each answer.

    Returns:
        A verdict with an ``Outcome``; evidence ``rules`` holds each rule's own verdict with counts, interval, p-values
        and the effect that this many cases can show (``mde``).

    Raises:
        InvalidInput: no rules.
    """
    if not rules:
        raise InvalidInput("a gate without rules decides nothing; give it at least one")
    levels = _holm_levels(candidate, baseline, rules, alpha)
    verdicts = [_judge(rule, candidate, baseline, level) for rule, level in zip(rules, levels, strict=True)]
    worst = min((Outcome(str(verdict.value)) for verdict in verdicts), key=_SEVERITY.index)
    blocking = [rule.metric for rule, verdict in zip(rules, verdicts, strict=True) if verdict.value == worst]
    reason = {
        Outcome.PASS: f"all {len(rules)} rules hold",
        Outcome.FAIL: f"shown not to hold: {', '.join(blocking)}",
        Outcome.INSUFFICIENT: f"not enough evidence on {', '.join(blocking)}",
    }[worst]
    evidence = {
        "rules": [_described(rule, verdict) for rule, verdict in zip(rules, verdicts, strict=True)],
        "candidate": candidate.subject,
        "baseline": baseline.subject if baseline else None,
        "alpha": alpha,
    }
    return Verdict(worst, f"{reason}. {_first_reason(worst, verdicts)}", evidence)


def _first_reason(worst: Outcome, verdicts: Sequence[Verdict]) -> str:
    return next(verdict.reason for verdict in verdicts if verdict.value == worst)


def _described(rule: GateRule, verdict: Verdict) -> dict[str, Any]:
    asked = {"metric": rule.metric, "kind": rule.kind.value, "margin": rule.margin, "floor": rule.floor}
    return {**asked, "verdict": verdict.as_json()}


def _pairs(metric: str, candidate: Report, baseline: Report) -> tuple[list[float | None], list[float | None]]:
    ours, theirs = candidate.scores.get(metric, {}), baseline.scores.get(metric, {})
    shared = sorted(set(ours) & set(theirs))
    return [ours[case] for case in shared], [theirs[case] for case in shared]


def _judge(rule: GateRule, candidate: Report, baseline: Report | None, alpha: float) -> Verdict:
    if rule.kind is RuleKind.AT_LEAST:
        return _at_least(rule, candidate, alpha)
    if baseline is None:
        return Verdict(Outcome.INSUFFICIENT, f"{rule.metric}: there is no baseline to compare with", {"n": 0})
    margin = 0.0 if rule.kind is RuleKind.SUPERIOR else rule.margin
    ours, theirs = _pairs(rule.metric, candidate, baseline)
    verdict = compare_paired(ours, theirs, margin=margin, alpha=alpha, minimum=rule.minimum)
    return Verdict(verdict.value, f"{rule.metric}: {verdict.reason}", verdict.evidence)


def _at_least(rule: GateRule, candidate: Report, alpha: float) -> Verdict:
    """Both limits at error rate ``alpha`` each, hence an interval of ``1 - 2 alpha``."""
    scores = list(candidate.scores.get(rule.metric, {}).values())
    measured = [score for score in scores if score is not None]
    worst = mean_interval([0.0 if score is None else score for score in scores], 2 * alpha)
    best = mean_interval([1.0 if score is None else score for score in scores], 2 * alpha)
    seen = mean_interval(measured, 2 * alpha)
    evidence = {
        "n": len(measured),
        "unmeasured": len(scores) - len(measured),
        "mean": seen.mean if measured else None,
        "interval": {"low": worst.low, "high": best.high},
        "floor": rule.floor,
        "alpha": alpha,
        "minimum": rule.minimum,
    }
    bounds = f"mean {seen.mean:.3f} [{worst.low:.3f}, {best.high:.3f}] on {len(measured)} cases"
    if len(measured) < max(1, rule.minimum):
        reason = f"{rule.metric}: {len(measured)} cases were measured; {max(1, rule.minimum)} are needed"
        return Verdict(Outcome.INSUFFICIENT, reason, evidence)
    if worst.low >= rule.floor:
        return Verdict(Outcome.PASS, f"{rule.metric}: shown to be at least {rule.floor:g}: {bounds}", evidence)
    if best.high < rule.floor:
        return Verdict(Outcome.FAIL, f"{rule.metric}: shown to be below {rule.floor:g}: {bounds}", evidence)
    return Verdict(Outcome.INSUFFICIENT, f"{rule.metric}: {bounds} tells nothing about {rule.floor:g}", evidence)


def _holm_levels(candidate: Report, baseline: Report | None, rules: Sequence[GateRule], alpha: float) -> list[float]:
    """The error rate at which each rule is judged: ``alpha``, but Holm's steps among the superiority rules.

    Sorted by p-value, the i-th of m (from 0) is judged at ``alpha / (m - i)``; once one is not rejected, those after
    it are judged at its level, at which they cannot be rejected either, as their p-values are no smaller.
    """
    levels = [alpha] * len(rules)
    places = [place for place, rule in enumerate(rules) if rule.kind is RuleKind.SUPERIOR]
    if baseline is None or len(places) < 2:
        return levels
    p_values = {
        place: float(_judge(rules[place], candidate, baseline, alpha).evidence.get("p_pass", 1.0)) for place in places
    }
    level, stopped = alpha, False
    for step, place in enumerate(sorted(places, key=lambda place: p_values[place])):
        if not stopped:
            level = alpha / (len(places) - step)
            stopped = p_values[place] > level
        levels[place] = level
    return levels
