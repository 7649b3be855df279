"""From traces to evidence: sessions as the units of a rollout's comparison, in the order they were assigned.

The unit of analysis is the unit of assignment: a session. Its observation enters the stored sequence when every
answered request in it has feedback, or ``label_timeout_s`` after its last request (then ``success`` is unmeasured).
Observations enter in the order in which sessions were assigned, so that a session judged late waits for nobody but
holds the later ones back: how fast a person answers must not decide which observation the test sees next.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from tidemill.kernel import Arm
from tidemill.ledger import Observation
from tidemill.telemetry.records import Score, Span

LIVE_ARMS: Final = frozenset({Arm.CONTROL.value, Arm.CANARY.value})
#: The release is not to blame: the client went away, or our own process died before it knew the end.
_BLAMELESS: Final = frozenset({"cancelled", "interrupted"})


@dataclass(slots=True)
class _Session:
    arm: str
    order: tuple[int, str]
    spans: dict[tuple[str, str], Span] = field(default_factory=dict)

    def traces(self) -> set[str]:
        """The traces with an answer that a person could judge."""
        return {span.trace_id for span in self.spans.values() if span.status == "ok"}

    def last_ns(self) -> int:
        return max(span.ended_at_ns for span in self.spans.values())


class SessionCollector:
    """Turns the spans and scores of one rollout into observations. Fed incrementally; rebuilt by feeding again.

    Args:
        candidate: digest of the release on trial; sessions first assigned to it are the canary's.
        latency_slo_s: a session is ``latency_ok`` when no request took longer.
        label_timeout_s: how long a session waits for feedback after its last request.
        feedback: name of the score that counts as success, a value in [0, 1].
        known: sessions that were observed already, before a restart. They are over, whatever follows in them.
    """

    def __init__(
        self,
        *,
        candidate: str,
        latency_slo_s: float,
        label_timeout_s: float,
        feedback: str = "feedback",
        known: Iterable[str] = (),
    ) -> None:
        self._candidate = candidate
        self._latency_slo_s = latency_slo_s
        self._label_timeout_s = label_timeout_s
        self._feedback = feedback
        self._sessions: dict[str, _Session] = {}
        self._values: dict[str, list[float]] = {}
        self._emitted: set[str] = set(known)

    def feed(self, spans: Iterable[Span], scores: Iterable[Score]) -> None:
        """Take in gateway spans of the rollout and scores of any trace."""
        for span in spans:
            if span.session_id is None or span.arm not in LIVE_ARMS or span.session_id in self._emitted:
                continue
            order = (span.started_at_ns, span.span_id)
            arm = Arm.CANARY if span.assigned_release == self._candidate else Arm.CONTROL
            session = self._sessions.get(span.session_id)
            if session is None:
                session = self._sessions[span.session_id] = _Session(arm.value, order)
            elif order < session.order:
                session.arm, session.order = arm.value, order
            session.spans[span.trace_id, span.span_id] = span
        for score in scores:
            if score.name == self._feedback and score.value is not None:
                self._values.setdefault(score.trace_id, []).append(min(1.0, max(0.0, score.value)))

    def ready(self, now_ns: int) -> list[Observation]:
        """The next observations in assignment order, up to the first session that still waits for feedback."""
        found: list[Observation] = []
        for session_id, session in sorted(self._sessions.items(), key=lambda item: item[1].order):
            judged = session.traces()
            waiting = [trace_id for trace_id in judged if trace_id not in self._values]
            if (waiting or not judged) and now_ns < session.last_ns() + self._label_timeout_s * 1e9:
                break
            found.append(self._observe(session_id, session))
        for observation in found:
            session = self._sessions.pop(observation.unit)
            self._emitted.add(observation.unit)
            for trace_id in session.traces():
                self._values.pop(trace_id, None)
        return found

    def _observe(self, session_id: str, session: _Session) -> Observation:
        blamed = [span for span in session.spans.values() if span.status not in _BLAMELESS]
        values = [value for trace_id in sorted(session.traces()) for value in self._values.get(trace_id, ())]
        metrics: dict[str, float | None] = {
            "success": sum(values) / len(values) if values else None,
            "ok": float(all(map(_served, blamed))) if blamed else None,
            "latency_ok": float(all(span.duration_s <= self._latency_slo_s for span in blamed)) if blamed else None,
        }
        at = datetime.fromtimestamp(session.last_ns() / 1e9, UTC)
        return Observation(unit=session_id, arm=session.arm, metrics=metrics, at=at)


def _served(span: Span) -> bool:
    """Whether the assigned release itself answered: being saved by failover is a failure of the one assigned."""
    return span.status == "ok" and span.release == span.assigned_release
