"""Judge a canary from its sessions in their stored order. Pure: the same sequence gives the same verdict.

The sequence is folded session by session and the first session at which a rule speaks decides; later sessions change
nothing. So it does not matter when, how often or in what batches one looks.

The rules, in this order at each session:

1. A guard metric whose e-value against "loses nothing" reaches 1/alpha of the guard: roll back.
2. The weighted average over the metrics of the e-values against "loses nothing" reaches 1/alpha_rollback: roll back.
3. The shares of the arms are not those of the assignment (e-value 1/alpha_ratio): hold.
4. Every metric has at some session refuted "loses its margin or more" at alpha_promote, the ramp is at its last step
   and ``min_sessions`` are in: promote. No correction for several metrics is needed, since all must be shown.
5. ``max_sessions`` are in: hold or roll back, as the policy says.

A session without a value of a metric is no evidence on that metric. Without data nothing is shown: continue.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from tidemill.evidence import BlockBetting, EProcess, RatioGuard, average_e, confidence_sequence
from tidemill.kernel import InvalidInput, Verdict
from tidemill.ledger import Observation
from tidemill.releases.policy import SHARE_METRIC, RolloutPolicy

RULE: Final = "block-betting/1"
"""Names this rule in every decision; a change of the rule is a new number."""


class PathPoint(NamedTuple):
    """The evidence after one session, by metric."""

    seq: int
    e_not_inferior: Mapping[str, float]
    e_inferior: Mapping[str, float]
    average_e_inferior: float


class _Fold:
    """The evidence so far; private to one call of ``assess``."""

    def __init__(self, policy: RolloutPolicy, since_seq: int) -> None:
        self.policy = policy
        self.since_seq = since_seq
        self.bets = {name: BlockBetting.start(margin) for name, margin in policy.margins.items()}
        self.bets |= {name: BlockBetting.start(0.0) for name in policy.guards if name not in self.bets}
        self.outcomes: dict[str, list[float]] = {name: [] for name in self.bets}
        self.unmeasured = dict.fromkeys(self.bets, 0)
        self.shown_at: dict[str, int] = {}
        self.ratio = RatioGuard.start()
        self.sessions = {"control": 0, "canary": 0}
        self.canaries_since = 0
        self.seq = 0

    def take(self, observation: Observation) -> None:
        """Add a session."""
        arm = observation.arm
        if arm not in self.sessions:
            raise InvalidInput(f"session '{observation.unit}' has arm '{arm}': a canary compares control and canary")
        if observation.seq > self.since_seq or not self.since_seq:
            self._count(observation)
        self.sessions[arm] += 1
        self.seq = observation.seq
        for name, bets in self.bets.items():
            value = observation.metrics.get(name)
            if value is None or math.isnan(value):
                self.unmeasured[name] += 1
                continue
            self.bets[name], z = bets.step(arm, min(1.0, max(0.0, value)))
            if z is not None:
                self.outcomes[name].append(z)
            if name not in self.shown_at and self.bets[name].e_not_inferior >= 1 / self.policy.alpha_promote:
                self.shown_at[name] = observation.seq

    def _count(self, observation: Observation) -> None:
        """The shares and the length of the rollout, anew after a resume."""
        canary = observation.arm == "canary"
        self.canaries_since += canary
        share = observation.metrics.get(SHARE_METRIC)
        if share is None and len(self.policy.ramp) == 1:
            share = self.policy.ramp[0]
        if share is not None:  # on a ramp of several steps an unrecorded share is not known: sessions overlap steps
            self.ratio = self.ratio.observe(canary=canary, share=share)

    def average(self) -> float:
        """The e-value for "some metric loses"."""
        losing = {name: self.bets[name].e_inferior for name in self.policy.margins}
        return average_e(losing, self.policy.weights)

    def decision(self) -> tuple[str, str] | None:
        """The verdict and its reason, if a rule speaks."""
        policy = self.policy
        for name, alpha in policy.guards.items():
            if self.bets[name].e_inferior >= 1 / alpha:
                return "roll_back", f"guard '{name}' is worse than the baseline's ({self._seen(name)}), alpha {alpha:g}"
        if self.average() >= 1 / policy.alpha_rollback:
            worst = max(policy.margins, key=lambda name: self.bets[name].e_inferior)
            return "roll_back", f"worse than the baseline, most of all in '{worst}' ({self._seen(worst)})"
        if self.ratio.e_value >= 1 / policy.alpha_ratio:
            got, due = self.ratio.canaries, self.ratio.expected_canaries
            return "hold", f"the arms do not get their shares: {got} canary sessions where {due:.0f} were assigned"
        canaries = self.sessions["canary"]
        ready = canaries >= policy.min_sessions and policy.step_at(canaries) == len(policy.ramp) - 1
        if ready and len(self.shown_at) >= len(policy.margins) and not set(policy.margins) - set(self.shown_at):
            margins = ", ".join(f"{name} {margin:g}" for name, margin in policy.margins.items())
            return "promote", f"every metric is shown to lose less than its margin ({margins})"
        if self.canaries_since >= policy.max_sessions:
            value = "hold" if policy.on_max == "hold" else "roll_back"
            return value, f"undecided after {self.canaries_since} canary sessions: {self._missing()}"
        return None

    def _seen(self, name: str) -> str:
        bets = self.bets[name]
        return f"difference {bets.delta or 0.0:+.3f}, e-value {bets.e_inferior:.3g}"

    def _missing(self) -> str:
        names = [name for name in self.policy.margins if name not in self.shown_at]
        return "not shown yet: " + ", ".join(names) if names else "every metric is shown"

    def waiting_for(self) -> str:
        """Why nothing is decided yet."""
        canaries = self.sessions["canary"]
        step = self.policy.step_at(canaries)
        parts = [f"{canaries} canary sessions", self._missing()]
        if canaries < self.policy.min_sessions:
            parts.append(f"at least {self.policy.min_sessions} are needed")
        if step < len(self.policy.ramp) - 1:
            parts.append(f"step {step + 1} of {len(self.policy.ramp)}")
        return "; ".join(parts)

    def evidence(self) -> dict[str, Any]:
        """All that the verdict rests on, as JSON."""
        policy = self.policy
        step = policy.step_at(self.sessions["canary"])
        return {
            "rule": RULE,
            "through_seq": self.seq,
            "sessions": dict(self.sessions),
            "step": step,
            "share": policy.ramp[step],
            "alpha_promote": policy.alpha_promote,
            "alpha_rollback": policy.alpha_rollback,
            "average_e_inferior": self.average(),
            "metrics": {name: self._metric(name) for name in self.bets},
            "ratio": {
                "e_value": self.ratio.e_value,
                "canaries": self.ratio.canaries,
                "controls": self.ratio.controls,
                "expected_canaries": self.ratio.expected_canaries,
                "alpha": policy.alpha_ratio,
            },
        }

    def _metric(self, name: str) -> dict[str, Any]:
        bets = self.bets[name]
        interval = confidence_sequence(self.outcomes[name], low=-1.0)
        return {
            "margin": self.policy.margins.get(name),
            "weight": self.policy.weights.get(name, 1.0) if name in self.policy.margins else None,
            "guard_alpha": self.policy.guards.get(name),
            "e_not_inferior": bets.e_not_inferior,
            "e_inferior": bets.e_inferior,
            "shown_at_seq": self.shown_at.get(name),
            "delta": bets.delta,
            "interval": interval.as_json(),
            "controls": bets.controls,
            "canaries": bets.canaries,
            "control_mean": bets.control_total / bets.controls if bets.controls else None,
            "canary_mean": bets.canary_total / bets.canaries if bets.canaries else None,
            "bets": bets.bets,
            "unmeasured": self.unmeasured[name],
        }


def _folded(
    policy: RolloutPolicy, observations: Sequence[Observation], since_seq: int
) -> Iterator[tuple[_Fold, tuple[str, str] | None]]:
    """The fold after each session, up to the one that decides. One object, changed in place."""
    fold = _Fold(policy, since_seq)
    for observation in observations:
        fold.take(observation)
        # What held a rollout before it was resumed is known and was answered: it does not hold it again.
        decision = None if observation.seq <= since_seq else fold.decision()
        yield fold, decision
        if decision is not None:
            return


def assess(policy: RolloutPolicy, observations: Sequence[Observation], *, since_seq: int = 0) -> Verdict:
    """Judge a canary.

    Args:
        policy: the rollout's rules.
        observations: its sessions in the order of ``seq``; arms ``control`` and ``canary``; metrics in [0, 1], by
            the names of the policy's margins and guards, ``None`` where a session was not measured. Values beyond
            the range are clipped. ``canary_share`` among the metrics tells the share at assignment.
        since_seq: the last session before the rollout was resumed. Evidence counts from the start; shares and
            ``max_sessions`` count anew.

    Returns:
        A verdict ``promote``, ``roll_back``, ``hold`` or ``continue``. Evidence: rule, through_seq, sessions, step and
        share of the ramp, average_e_inferior, ratio, and for each metric both e-values, counts, means, the
        difference and its 95 % interval, which holds at every look.

    Raises:
        InvalidInput: a session of another arm.
    """
    fold, decision = _Fold(policy, since_seq), None
    for fold, decision in _folded(policy, observations, since_seq):  # noqa: B007 - the last pair is what counts
        pass
    value, reason = decision or ("continue", fold.waiting_for())
    return Verdict(value, reason, fold.evidence())


def assess_path(policy: RolloutPolicy, observations: Sequence[Observation], *, since_seq: int = 0) -> list[PathPoint]:
    """The evidence after every session up to the one that decides, for plots. See ``assess``."""
    points = []
    for fold, _ in _folded(policy, observations, since_seq):
        up = {name: bets.e_not_inferior for name, bets in fold.bets.items()}
        down = {name: bets.e_inferior for name, bets in fold.bets.items()}
        points.append(PathPoint(fold.seq, up, down, fold.average()))
    return points


def assess_shadow(policy: RolloutPolicy, pairs: Sequence[tuple[float, float]]) -> Verdict:
    """Judge a shadow from paired scores of the same requests, at any number of looks.

    Args:
        policy: gives ``shadow_margin``, ``shadow_requests`` and the alphas.
        pairs: (candidate's score, baseline's score) in the order of the requests, each in [0, 1].

    Returns:
        ``shadow_passed`` (shown to lose less than the margin), ``shadow_failed`` (shown to lose), ``hold`` (undecided
        after ``shadow_requests``) or ``continue``; the first pair that decides counts.

    Raises:
        InvalidInput: a score out of range.
    """
    passing, failing = EProcess.start(-policy.shadow_margin), EProcess.start(0.0)
    value, total = "continue", 0.0
    for candidate, baseline in pairs:
        passing, failing = passing.update(candidate - baseline), failing.update(baseline - candidate)
        total += candidate - baseline
        if failing.e_value >= 1 / policy.alpha_rollback:
            value = "shadow_failed"
        elif passing.e_value >= 1 / policy.alpha_promote:
            value = "shadow_passed"
        elif policy.shadow_requests and passing.count >= policy.shadow_requests:
            value = "hold"
        if value != "continue":
            break
    differences = [candidate - baseline for candidate, baseline in pairs[: passing.count]]
    delta = total / passing.count if passing.count else None
    evidence = {
        "rule": RULE,
        "pairs": passing.count,
        "margin": policy.shadow_margin,
        "e_not_inferior": passing.e_value,
        "e_inferior": failing.e_value,
        "delta": delta,
        "interval": confidence_sequence(differences, low=-1.0).as_json(),
    }
    reasons = {
        "shadow_passed": f"shown to lose less than {policy.shadow_margin:g} on the same requests",
        "shadow_failed": "shown to be worse on the same requests",
        "hold": f"undecided after {passing.count} paired requests",
        "continue": f"{passing.count} of {policy.shadow_requests} paired requests",
    }
    difference = "" if delta is None else f" (difference {delta:+.3f})"
    return Verdict(value, reasons[value] + difference, evidence)
