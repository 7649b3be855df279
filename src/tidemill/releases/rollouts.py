"""Rollouts in the ledger: each event a decision, the state what replaying them gives.

The subject of all decisions of a rollout is its id. ``rollout.open`` states endpoint, releases and policy;
``rollout.<event>`` follows, each by compare-and-swap on the one before, so two movers cannot both succeed. A
promotion, and the rollback of a promotion, also move labels. The decision is written first, the labels are moved
next, and ``rollout.settled`` says that they were; whoever loads a rollout that is not settled moves them then. So a
process may die between any two writes and nothing stays half done.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tidemill.kernel import ArtifactKind, Conflict, DecisionId, InvalidInput, NotFound, RolloutId, Verdict, fresh_id
from tidemill.ledger import ArtifactVersion, Decision, Lease
from tidemill.releases.assessment import assess
from tidemill.releases.policy import RolloutPolicy
from tidemill.releases.registry import PRODUCTION, live_release
from tidemill.releases.rules import ACTIVE, Position, RolloutEvent, RolloutState, advance

if TYPE_CHECKING:
    from tidemill.ledger import Ledger

_OPEN: Final = "rollout.open"
_SETTLED: Final = "rollout.settled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One rollout as of its newest decision.

    Args:
        endpoint: the public model name whose traffic moves.
        candidate: the release it moves to.
        baseline: the release it moves from; ``None`` for an endpoint's first.
        position: state, step of the ramp and where it was held.
        history: its decisions, oldest first.
        resumed_after_seq: the last session before the rollout was last resumed; 0 if it never was.
    """

    rollout_id: RolloutId
    endpoint: str
    candidate: ArtifactVersion
    baseline: ArtifactVersion | None
    policy: RolloutPolicy
    position: Position
    history: tuple[Decision, ...]
    resumed_after_seq: int = 0

    @property
    def state(self) -> RolloutState:
        """Where it stands."""
        return self.position.state

    @property
    def active(self) -> bool:
        """Whether it has its endpoint to itself. A held rollout has not: it serves nobody."""
        return self.state in ACTIVE

    @property
    def share(self) -> float:
        """The candidate's share of new sessions."""
        if self.state is RolloutState.CANARY:
            return self.policy.ramp[min(self.position.step, len(self.policy.ramp) - 1)]
        return 1.0 if self.state is RolloutState.PROMOTED else 0.0

    @property
    def last(self) -> Decision:
        """The newest decision."""
        return self.history[-1]

    @property
    def settled(self) -> bool:
        """Whether the labels are known to say what the decisions say."""
        events = _events(self.history)
        promoted = any(event is RolloutEvent.PROMOTE for event, _ in events)
        moves = promoted and self.state in (RolloutState.PROMOTED, RolloutState.ROLLED_BACK)
        return not moves or self.last.kind == _SETTLED


def open_rollout(
    ledger: Ledger,
    endpoint: str,
    candidate: ArtifactVersion,
    baseline: ArtifactVersion | None,
    policy: RolloutPolicy,
    actor: str,
) -> Rollout:
    """Begin to move an endpoint to another release.

    An endpoint's first release has nothing to be compared with and is promoted at once.

    Args:
        ledger: where it is kept.
        endpoint: the public model name.
        candidate: the release to move to.
        baseline: the release the endpoint serves, ``None`` if it serves none.
        policy: what must be shown.
        actor: who wants it.

    Raises:
        Conflict: the endpoint serves another release than ``baseline``, or has an active rollout.
        InvalidInput: the candidate is no release, or is the baseline.
    """
    for version in (candidate, baseline):
        if version is not None and version.kind is not ArtifactKind.RELEASE:
            raise InvalidInput(f"{version.ref} is not a release: a rollout moves an endpoint between releases")
    if baseline is not None and baseline.digest == candidate.digest:
        raise InvalidInput(f"{candidate.ref} is what '{endpoint}' serves: there is nothing to roll out")
    _refuse_second(list_rollouts(ledger, endpoint), endpoint, None)
    _refuse_stale(ledger, endpoint, baseline)
    content = {
        "endpoint": endpoint,
        "candidate": candidate.digest,
        "candidate_ref": str(candidate.ref),
        "baseline": baseline.digest if baseline else None,
        "baseline_ref": str(baseline.ref) if baseline else None,
        "policy": policy.as_json(),
    }
    against = f"against {baseline.ref}" if baseline else "as its first release"
    opened = Verdict("open", f"{candidate.ref} on '{endpoint}' {against}", content)
    rollout_id = RolloutId(fresh_id("rol"))
    ledger.decisions.record(_OPEN, rollout_id, opened, actor=actor, expected=None)
    if baseline is None:
        return _first(ledger, rollout_id)
    rollout = _read(ledger, rollout_id)
    try:
        _refuse_second(list_rollouts(ledger, endpoint), endpoint, rollout)
        _refuse_stale(ledger, endpoint, baseline)
    except Conflict as conflict:
        # Another opened one between our look and our record: the older stays.
        apply_event(ledger, rollout, RolloutEvent.CANCEL, Verdict("cancel", conflict.message), actor)
        raise
    return rollout


def _first(ledger: Ledger, rollout_id: RolloutId) -> Rollout:
    rollout = load_rollout(ledger, rollout_id)
    if rollout.state is RolloutState.CANCELLED:
        raise Conflict(rollout.last.verdict.reason, hint="Open the rollout against the release that is live.")
    return rollout


def _refuse_second(rollouts: Sequence[Rollout], endpoint: str, own: Rollout | None) -> None:
    for other in rollouts:
        older = own is None or other.history[0].seq < own.history[0].seq
        if other.active and older:
            raise Conflict(
                f"'{endpoint}' already has a rollout that is {other.state}: {other.rollout_id}.",
                hint="Wait for its end or cancel it.",
            )


def _refuse_stale(ledger: Ledger, endpoint: str, baseline: ArtifactVersion | None) -> None:
    live = live_release(ledger, endpoint)
    if (live and live.digest) != (baseline and baseline.digest):
        serves = live.ref if live else "nothing"
        raise Conflict(
            f"'{endpoint}' serves {serves}, not {baseline.ref if baseline else 'nothing'}.",
            hint="Open the rollout against the release that is live.",
        )


def load_rollout(ledger: Ledger, rollout_id: str) -> Rollout:
    """Read a rollout, and finish what a process that died left undone.

    Raises:
        NotFound: there is no such rollout.
    """
    return _settle(ledger, _read(ledger, rollout_id))


def list_rollouts(ledger: Ledger, endpoint: str | None = None) -> list[Rollout]:
    """Rollouts, oldest first, each as ``load_rollout`` gives it."""
    opened = ledger.decisions.list(kind=_OPEN)
    wanted = [d for d in opened if endpoint is None or d.verdict.evidence["endpoint"] == endpoint]
    return [load_rollout(ledger, decision.subject) for decision in wanted]


def apply_event(
    ledger: Ledger,
    rollout: Rollout,
    event: RolloutEvent,
    verdict: Verdict,
    actor: str,
    *,
    fence: Lease | None = None,
) -> Rollout:
    """Record an event of a rollout and do what follows from it.

    ``promote`` points ``endpoint/NAME@production`` and the release's label ``production`` at the candidate;
    ``roll_back`` of a promoted rollout points both back at the baseline. Rolled back before, they never moved.

    Args:
        ledger: where it is kept.
        rollout: the rollout as the caller knows it.
        event: what happened.
        verdict: what it rests on.
        actor: who decided.
        fence: a lease in whose right the caller acts.

    Returns:
        The rollout after the event.

    Raises:
        Conflict: the rules do not allow the event, or another decision on the rollout came first; nothing changed.
    """
    event = RolloutEvent(event)
    advance(rollout.position, event)
    if event is RolloutEvent.RESUME:
        _refuse_second(list_rollouts(ledger, rollout.endpoint), rollout.endpoint, None)
        _refuse_stale(ledger, rollout.endpoint, rollout.baseline)
    if event is RolloutEvent.ROLL_BACK and rollout.state is RolloutState.PROMOTED:
        _refuse_stale(ledger, rollout.endpoint, rollout.candidate)
        if rollout.baseline is None:
            raise Conflict(
                f"{rollout.candidate.ref} was the first release of '{rollout.endpoint}': nothing is behind it."
            )
    last: DecisionId = rollout.last.decision_id
    kind = f"rollout.{event}"
    ledger.decisions.record(kind, rollout.rollout_id, verdict, actor=actor, expected=last, fence=fence)
    return load_rollout(ledger, rollout.rollout_id)


def assess_rollout(ledger: Ledger, rollout: Rollout) -> Verdict:
    """Judge a rollout's canary from the sessions stored under its id. See ``assess``."""
    observations = ledger.observations.read(rollout.rollout_id)
    return assess(rollout.policy, observations, since_seq=rollout.resumed_after_seq)


def _events(history: Sequence[Decision]) -> list[tuple[RolloutEvent, Decision]]:
    kinds = {f"rollout.{event}": event for event in RolloutEvent}
    return [(kinds[decision.kind], decision) for decision in history if decision.kind in kinds]


def _read(ledger: Ledger, rollout_id: str) -> Rollout:
    history = tuple(ledger.decisions.list(subject=rollout_id))
    if not history or history[0].kind != _OPEN:
        raise NotFound(f"There is no rollout '{rollout_id}'.", hint="List them: tidemill rollout list")
    content: dict[str, Any] = dict(history[0].verdict.evidence)
    baseline_ref = content["baseline_ref"]
    position = Position(first_release=baseline_ref is None)
    held_after = resumed_after = 0
    for event, decision in _events(history):
        position = advance(position, event)
        if event is RolloutEvent.HOLD:
            held_after = int(decision.verdict.evidence.get("through_seq", held_after))
        if event is RolloutEvent.RESUME:
            resumed_after = held_after
    return Rollout(
        rollout_id=RolloutId(rollout_id),
        endpoint=content["endpoint"],
        candidate=ledger.artifacts.get(content["candidate_ref"]),
        baseline=ledger.artifacts.get(baseline_ref) if baseline_ref else None,
        policy=RolloutPolicy.from_json(content["policy"]),
        position=position,
        history=history,
        resumed_after_seq=resumed_after,
    )


def _settle(ledger: Ledger, rollout: Rollout) -> Rollout:
    """Do what the decisions of a rollout ask for, if it is not done; safe to repeat, by any number of processes."""
    if rollout.position.first_release and rollout.state is RolloutState.DRAFT:
        rollout = _settle_first(ledger, rollout)
    if rollout.settled:
        return rollout
    old, new = rollout.baseline, rollout.candidate
    if rollout.state is RolloutState.ROLLED_BACK and old is not None:
        old, new = new, old
    moved = _serve(ledger, rollout.endpoint, old, new, rollout.last)
    if moved:
        done = Verdict("settled", f"'{rollout.endpoint}' serves {new.ref}", {"serves": new.digest})
    else:
        done = Verdict("settled", f"'{rollout.endpoint}' was pointed elsewhere meanwhile and was left so")
    _record_once(ledger, _SETTLED, rollout, done, rollout.last.actor)
    return _read(ledger, rollout.rollout_id)


def _settle_first(ledger: Ledger, rollout: Rollout) -> Rollout:
    """Promote an endpoint's first release, unless another was opened before it."""
    opened = ledger.decisions.list(kind=_OPEN)
    same = [d for d in opened if d.verdict.evidence["endpoint"] == rollout.endpoint and d.seq < rollout.history[0].seq]
    before = [d.subject for d in same if _read(ledger, d.subject).state is not RolloutState.CANCELLED]
    actor = rollout.history[0].actor
    if before:
        lost = Verdict("cancel", f"'{rollout.endpoint}' was given its first release by {before[0]} meanwhile.")
        _record_once(ledger, "rollout.cancel", rollout, lost, actor)
    else:
        first = Verdict("promote", "first release: there is nothing to compare it with")
        _record_once(ledger, "rollout.promote", rollout, first, actor)
    return _read(ledger, rollout.rollout_id)


def _record_once(ledger: Ledger, kind: str, rollout: Rollout, verdict: Verdict, actor: str) -> None:
    try:
        ledger.decisions.record(kind, rollout.rollout_id, verdict, actor=actor, expected=rollout.last.decision_id)
    except Conflict:
        newest = ledger.decisions.list(subject=rollout.rollout_id)
        if not any(decision.kind == kind and decision.seq > rollout.last.seq for decision in newest):
            raise


def _serve(
    ledger: Ledger, endpoint: str, old: ArtifactVersion | None, new: ArtifactVersion, decision: Decision
) -> bool:
    """Point the endpoint at ``new`` if it serves ``old`` or ``new``; whether it does now."""
    live = live_release(ledger, endpoint)
    if live is not None and live.digest not in (old and old.digest, new.digest):
        return False
    content = {"release": new.digest, "release_ref": str(new.ref)}
    version = ledger.artifacts.publish(ArtifactKind.ENDPOINT, endpoint, content, parents=[new.digest])
    _point(ledger, version, decision)
    label = ledger.artifacts.labels(ArtifactKind.RELEASE, new.name).get(PRODUCTION)
    if label is None or (old is not None and old.name == new.name and label == old.version):
        _point(ledger, new, decision)
    return True


def _point(ledger: Ledger, version: ArtifactVersion, decision: Decision) -> None:
    """Move ``production`` of the artifact's name to this version, as often as another process is in between."""
    reason = decision.verdict.reason
    verdict = Verdict(decision.verdict.value, reason, {"decision": decision.decision_id, "rollout": decision.subject})
    for attempt in range(3):
        current = ledger.artifacts.labels(version.kind, version.name).get(PRODUCTION)
        if current == version.version:
            return
        try:
            ledger.artifacts.move_label(
                version.kind,
                version.name,
                PRODUCTION,
                version.version,
                expected=current,
                actor=decision.actor,
                reason=reason,
                verdict=verdict,
            )
        except Conflict:
            if attempt == 2:
                raise


def explain(rollout: Rollout) -> list[str]:
    """A rollout's story, line by line: each decision with who, when, why and the evidence it rested on."""
    against = f" against {rollout.baseline.ref}" if rollout.baseline else ", its first release"
    lines = [f"{rollout.rollout_id}: '{rollout.endpoint}' to {rollout.candidate.ref}{against} - {rollout.state}"]
    for decision in rollout.history:
        when = decision.at.strftime("%Y-%m-%d %H:%M:%S")
        event = decision.kind.removeprefix("rollout.")
        lines.append(f"{when}  {event:<17} by {decision.actor}: {decision.verdict.reason}")
        lines.extend(f"{'':21}{line}" for line in _evidence_lines(decision.verdict))
    return lines


def _evidence_lines(verdict: Verdict) -> Iterator[str]:
    sessions = verdict.evidence.get("sessions")
    metrics = verdict.evidence.get("metrics")
    if not isinstance(sessions, dict) or not isinstance(metrics, dict):
        return
    through = verdict.evidence.get("through_seq")
    yield f"{json.dumps(sessions)} sessions, through number {through}; rule {verdict.evidence.get('rule')}"
    for name, metric in metrics.items():
        delta, interval = metric["delta"], metric["interval"]
        seen = "no bets" if delta is None else f"{delta:+.3f} [{interval['low']:+.3f}, {interval['high']:+.3f}]"
        margin = "guard" if metric["margin"] is None else f"margin {metric['margin']:g}"
        e_values = f"e(loses less than margin) {metric['e_not_inferior']:.3g}, e(is worse) {metric['e_inferior']:.3g}"
        yield f"{name}: {seen}, {margin}, {e_values}"
