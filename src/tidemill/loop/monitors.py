"""Drives monitors: shows each the requests of its endpoint, in the order they were stored, and records alarms.

State is what replaying the span store gives, so it is rebuilt after a restart; an alarm found again by a replay is
recognised by its monitor and time and is not recorded twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from tidemill.kernel import ArtifactKind, Verdict
from tidemill.loop.apply import applied
from tidemill.loop.sessions import LIVE_ARMS
from tidemill.monitoring import Alarm, Monitor, MonitorState, Sample, evaluate, initial_state
from tidemill.telemetry import FAILED_STATUSES, SpanQuery, SpanStore

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tidemill.ledger import Ledger

ACTOR: Final = "monitor"
ALARM: Final = "monitor.alarm"
_BATCH: Final = 5000


@dataclass(slots=True)
class _Watched:
    monitor: Monitor
    state: MonitorState
    span_seq: int = 0
    known: set[str] = field(default_factory=set)


def monitor_of(name: str, content: Mapping[str, Any]) -> Monitor:
    """The monitor that a project file's section describes."""
    return Monitor(
        name=name,
        kind="error_rate" if content["signal"] == "errors" else "latency",
        endpoint=content["endpoint"],
        max_share=1.0 - float(content["objective"]),
        latency_slo_s=float(content["latency_slo_s"]),
        false_alarm_days=float(content["false_alarm_every_days"]),
    )


class MonitorDriver:
    """Evaluates the applied monitors, one look at a time."""

    def __init__(self, ledger: Ledger, store: SpanStore) -> None:
        self._ledger = ledger
        self._store = store
        self._watched: dict[str, _Watched] = {}

    def tick(self) -> list[Alarm]:
        """Look at every monitor once; the alarms that are new are recorded as decisions and returned."""
        versions = {version.name: version for version in applied(self._ledger, ArtifactKind.MONITOR)}
        for name in set(self._watched) - set(versions):
            del self._watched[name]
        found: list[Alarm] = []
        for name, version in versions.items():
            monitor = monitor_of(name, version.content)
            watched = self._watched.get(name)
            if watched is None or watched.monitor != monitor:
                watched = self._watched[name] = _Watched(monitor, initial_state(monitor), known=self._known(name))
            found += self._look(watched)
        return found

    def states(self) -> list[dict[str, Any]]:
        """What each monitor has seen so far, for people and pages."""
        return [
            {
                "monitor": watched.monitor.as_json(),
                "firing": watched.state.firing,
                "fired_at": watched.state.fired_at,
                "requests": watched.state.samples,
                "bad": watched.state.bad,
                "alarms": watched.state.alarms,
            }
            for watched in list(self._watched.values())
        ]

    def _look(self, watched: _Watched) -> list[Alarm]:
        found: list[Alarm] = []
        while True:
            query = SpanQuery(
                endpoint=watched.monitor.endpoint,
                after_seq=watched.span_seq,
                limit=_BATCH,
                roots_only=True,
                with_references=False,
            )
            stored = self._store.spans(query)
            if not stored:
                return found
            watched.span_seq = stored[-1].ingest_seq
            for one in stored:
                span = one.span
                if span.arm not in LIVE_ARMS or span.status == "cancelled":
                    continue
                at = datetime.fromtimestamp(span.ended_at_ns / 1e9, UTC)
                sample = Sample(at, span.status not in FAILED_STATUSES, span.duration_s)
                watched.state, alarm = evaluate(watched.monitor, watched.state, [sample])
                if alarm is not None and self._record(watched, alarm):
                    found.append(alarm)

    def _record(self, watched: _Watched, alarm: Alarm) -> bool:
        moment = alarm.at.isoformat()
        if moment in watched.known:
            return False
        watched.known.add(moment)
        evidence = {**alarm.verdict.evidence, "at": moment}
        verdict = Verdict(alarm.verdict.value, alarm.verdict.reason, evidence)
        self._ledger.decisions.record(ALARM, f"monitor/{alarm.monitor}", verdict, actor=ACTOR)
        return True

    def _known(self, name: str) -> set[str]:
        decisions = self._ledger.decisions.list(subject=f"monitor/{name}", kind=ALARM)
        return {str(decision.verdict.evidence["at"]) for decision in decisions}
