"""Drives rollouts: reads what telemetry says, stores the sequence of sessions, asks ``releases`` and records events.

All state is in the ledger and the span store. A driver that dies and starts again reads the same spans, finds the
sessions it stored already and goes on; two drivers cannot both move a rollout, for every event is a compare-and-swap.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from tidemill.kernel import Conflict, RolloutId, UserError, Verdict
from tidemill.kernel.settings import RolloutSettings
from tidemill.loop.routing import shadow_tag
from tidemill.loop.sessions import LIVE_ARMS, SessionCollector
from tidemill.loop.shadows import ShadowPairs
from tidemill.releases import (
    SHARE_METRIC,
    Rollout,
    RolloutEvent,
    RolloutPolicy,
    RolloutState,
    apply_event,
    assess,
    assess_shadow,
    list_rollouts,
    load_rollout,
)
from tidemill.telemetry import ScoreQuery, SpanQuery, SpanStore, StoredSpan

if TYPE_CHECKING:
    from tidemill.ledger import Ledger

_log = logging.getLogger(__name__)

ACTOR: Final = "rollout-controller"
_BATCH: Final = 5000
#: Clocks of other hosts may be off by so much.
_SKEW_NS: Final = 3_600_000_000_000
_CANARY_EVENTS: Final = {
    "promote": RolloutEvent.PROMOTE,
    "roll_back": RolloutEvent.ROLL_BACK,
    "hold": RolloutEvent.HOLD,
}
_SHADOW_EVENTS: Final = {
    "shadow_passed": RolloutEvent.SHADOW_PASSED,
    "shadow_failed": RolloutEvent.SHADOW_FAILED,
    "hold": RolloutEvent.HOLD,
}


def rollout_policy(settings: RolloutSettings) -> RolloutPolicy:
    """The policy of a rollout as the project file says it."""
    return RolloutPolicy(
        margins=dict(settings.margins),
        alpha_promote=settings.alpha_promote,
        alpha_rollback=settings.alpha_rollback,
        ramp=(settings.canary_share,),
        min_sessions=settings.min_sessions,
        max_sessions=settings.max_sessions,
        on_max=settings.on_max,
        label_timeout_s=settings.label_timeout_s,
        shadow_requests=settings.shadow_requests,
        shadow_margin=settings.shadow_margin,
        latency_slo_s=settings.latency_slo_s,
    )


@dataclass(slots=True)
class _Watch:
    """What the driver remembers of one rollout; all of it can be read again."""

    sessions: SessionCollector
    pairs: ShadowPairs
    span_seq: int = 0
    score_seq: int = 0
    stored: int = field(default=-1)


class RolloutDriver:
    """Moves active rollouts on, one look at a time.

    Args:
        ledger: rollouts, observations and decisions.
        store: spans and scores.
        is_served: whether a release is ready to answer; nothing is sent to one that is not.
        now_ns: the time, in nanoseconds since 1970.
    """

    def __init__(
        self, ledger: Ledger, store: SpanStore, is_served: Callable[[str], bool], now_ns: Callable[[], int]
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._is_served = is_served
        self._now_ns = now_ns
        self._watches: dict[tuple[RolloutId, RolloutState], _Watch] = {}
        self._seen_seq = -1
        self._known: list[Rollout] = []

    def tick(self) -> list[Rollout]:
        """Look at every rollout once; those still active are returned, as they stand after the look."""
        active = []
        for rollout in self._rollouts():
            if not rollout.active:
                for state in (RolloutState.SHADOW, RolloutState.CANARY):
                    self._watches.pop((rollout.rollout_id, state), None)
                continue
            try:
                after = self._look(rollout)
            except Conflict:
                # Somebody else moved it. It must stay in the list while it is active: what routes traffic reads that.
                after = load_rollout(self._ledger, rollout.rollout_id)
            except UserError:
                _log.exception("rollout %s cannot be judged", rollout.rollout_id)
                after = rollout  # one rollout that cannot be judged must not stop the others
            if after.active:
                active.append(after)
        return active

    def _rollouts(self) -> list[Rollout]:
        """All rollouts. Read again only when a decision was recorded, for their number grows for ever."""
        newest = self._ledger.decisions.list(limit=1)
        seq = newest[0].seq if newest else 0
        if seq != self._seen_seq:
            self._known, self._seen_seq = list_rollouts(self._ledger), seq
        return self._known

    def _look(self, rollout: Rollout) -> Rollout:
        if rollout.state is RolloutState.DRAFT or not self._is_served(rollout.candidate.digest):
            return rollout
        if rollout.state is RolloutState.GATED:
            return self._leave_gate(rollout)
        watch = self._watch(rollout)
        if rollout.state is RolloutState.SHADOW:
            return self._decide(rollout, assess_shadow(rollout.policy, watch.pairs.scores()), _SHADOW_EVENTS)
        stored = self._store_sessions(rollout, watch)
        if stored == watch.stored:
            return rollout
        watch.stored = stored
        observations = self._ledger.observations.read(rollout.rollout_id)
        verdict = assess(rollout.policy, observations, since_seq=rollout.resumed_after_seq)
        after = self._decide(rollout, verdict, _CANARY_EVENTS)
        canaries = int(verdict.evidence["sessions"]["canary"])
        if after.state is RolloutState.CANARY and rollout.policy.step_at(canaries) > after.position.step:
            reason = f"{canaries} canary sessions without a loss shown"
            after = self._event(after, RolloutEvent.CANARY_STEP, Verdict("canary_step", reason, verdict.evidence))
        return after

    def _leave_gate(self, rollout: Rollout) -> Rollout:
        if rollout.policy.shadow_requests:
            verdict = Verdict("shadow_started", f"{rollout.candidate.ref} is ready and gets copies of requests")
            return self._event(rollout, RolloutEvent.SHADOW_STARTED, verdict)
        verdict = Verdict("canary_step", f"{rollout.candidate.ref} is ready and gets its share of sessions")
        return self._event(rollout, RolloutEvent.CANARY_STEP, verdict)

    def _decide(self, rollout: Rollout, verdict: Verdict, events: Mapping[Any, RolloutEvent]) -> Rollout:
        event = events.get(verdict.value)
        return rollout if event is None else self._event(rollout, event, verdict)

    def _event(self, rollout: Rollout, event: RolloutEvent, verdict: Verdict) -> Rollout:
        return apply_event(self._ledger, rollout, event, verdict, ACTOR)

    def _watch(self, rollout: Rollout) -> _Watch:
        watch = self._watches.get((rollout.rollout_id, rollout.state))
        if watch is None:
            policy = rollout.policy
            sessions = SessionCollector(
                candidate=rollout.candidate.digest,
                latency_slo_s=policy.latency_slo_s,
                label_timeout_s=policy.label_timeout_s,
                known=[one.unit for one in self._ledger.observations.read(rollout.rollout_id)],
            )
            watch = self._watches[rollout.rollout_id, rollout.state] = _Watch(sessions, ShadowPairs(self._ledger))
        self._read(rollout, watch)
        return watch

    def _read(self, rollout: Rollout, watch: _Watch) -> None:
        in_shadow = rollout.state is RolloutState.SHADOW
        while True:
            query = SpanQuery(
                rollout=shadow_tag(rollout.rollout_id) if in_shadow else rollout.rollout_id,
                after_seq=watch.span_seq,
                limit=_BATCH,
                with_content=in_shadow,
                with_references=in_shadow,
            )
            stored = self._store.spans(query)
            if stored:
                watch.span_seq = stored[-1].ingest_seq
                self._feed(watch, stored, in_shadow=in_shadow)
            if len(stored) < _BATCH:
                break
        if in_shadow:
            return  # nobody judges copies
        while True:
            scores = self._store.scores(ScoreQuery(names=("feedback",), after_seq=watch.score_seq, limit=_BATCH))
            if scores:
                watch.score_seq = scores[-1].ingest_seq
                # Feedback of before the rollout is of answers that are not its own.
                opened_ns = rollout.history[0].at.timestamp() * 1e9 - _SKEW_NS
                watch.sessions.feed((), [one.score for one in scores if one.score.at_ns > opened_ns])
            if len(scores) < _BATCH:
                break

    @staticmethod
    def _feed(watch: _Watch, stored: list[StoredSpan], *, in_shadow: bool) -> None:
        if in_shadow:
            watch.pairs.feed(stored)
        else:
            watch.sessions.feed([one.span for one in stored if one.span.arm in LIVE_ARMS], ())

    def _store_sessions(self, rollout: Rollout, watch: _Watch) -> int:
        ready = watch.sessions.ready(self._now_ns())
        rows = [replace(one, metrics={**one.metrics, SHARE_METRIC: rollout.share}) for one in ready]
        return self._ledger.observations.append(rollout.rollout_id, rows)
