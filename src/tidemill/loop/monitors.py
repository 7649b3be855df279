"""Drives monitors: shows each the requests of its endpoint, in the order they were stored, and records alarms.

State can be replayed from the span store; it is kept nevertheless, with the place it has reached, so that a restart
reads on. An alarm found again by a replay is recognised by its monitor and time and is not recorded twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from tidemill.kernel import ArtifactKind, Verdict
from tidemill.loop.apply import applied
from tidemill.loop.feed import SpanFeed, is_request
from tidemill.loop.sessions import LIVE_ARMS
from tidemill.monitoring import Alarm, BurnState, Monitor, Sample, evaluate, initial_state
from tidemill.telemetry import FAILED_STATUSES, StoredSpan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tidemill.ledger import Ledger

ACTOR: Final = "monitor"
ALARM: Final = "monitor.alarm"


@dataclass(slots=True)
class _Watched:
    monitor: Monitor
    state: BurnState
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
    """Evaluates the applied monitors, one look at a time.

    Args:
        ledger: what is applied, and where alarms are recorded.
        feed: the stored spans.
        kept: what ``kept`` gave before a restart.
    """

    def __init__(self, ledger: Ledger, feed: SpanFeed, kept: Mapping[str, Any] | None = None) -> None:
        self._ledger = ledger
        self._feed = feed
        self._kept = dict(kept or {})
        self._watched: dict[str, _Watched] = {}
        self._pending: list[tuple[_Watched, Alarm]] = []  # found, and not recorded yet

    def tick(self) -> list[Alarm]:
        """Look at every monitor once; the alarms that are new are recorded as decisions and returned."""
        versions = {version.name: version for version in applied(self._ledger, ArtifactKind.MONITOR)}
        for name in set(self._watched) - set(versions):
            del self._watched[name]
        found = self._record_pending()
        for name, version in versions.items():
            monitor = monitor_of(name, version.content)
            watched = self._watched.get(name)
            if watched is None or watched.monitor != monitor:
                watched = self._watched[name] = self._begin(monitor)
            found += self._look(watched)
        return found

    @property
    def behind(self) -> bool:
        """Whether an alarm waits to be recorded, so that the state must not be kept yet."""
        return bool(self._pending)

    def states(self) -> list[dict[str, Any]]:
        """What each monitor has seen so far, for people and pages."""
        return [
            {
                "monitor": watched.monitor.as_json(),
                "firing": watched.state.firing,
                "fired_at": _moment(watched.state.fired_at_s),
                "requests": watched.state.events,
                "bad": watched.state.bad,
                "alarms": watched.state.alarms,
            }
            for watched in list(self._watched.values())
        ]

    def kept(self) -> dict[str, Any]:
        """The states by monitor, as JSON, with the place each has reached."""
        return {
            name: {"monitor": one.monitor.as_json(), "span_seq": one.span_seq, "state": one.state.as_json()}
            for name, one in list(self._watched.items())
        }

    def _begin(self, monitor: Monitor) -> _Watched:
        known = self._known(monitor.name)
        kept = self._kept.pop(monitor.name, None)
        if kept is None or kept["monitor"] != monitor.as_json():
            return _Watched(monitor, initial_state(monitor), known=known)
        return _Watched(monitor, BurnState.from_json(kept["state"]), int(kept["span_seq"]), known)

    def _look(self, watched: _Watched) -> list[Alarm]:
        found: list[Alarm] = []
        for stored in self._feed.after(watched.span_seq):
            watched.state, alarms = evaluate(watched.monitor, watched.state, _samples(watched.monitor, stored))
            watched.span_seq = stored[-1].ingest_seq
            self._pending += [(watched, alarm) for alarm in alarms]
            found += self._record_pending()
        return found

    def _record_pending(self) -> list[Alarm]:
        """Record what was found; what cannot be recorded now stays for the next look."""
        found = []
        while self._pending:
            watched, alarm = self._pending[0]
            if self._record(watched, alarm):
                found.append(alarm)
            del self._pending[0]
        return found

    def _record(self, watched: _Watched, alarm: Alarm) -> bool:
        moment = alarm.at.isoformat()
        if moment in watched.known:
            return False
        evidence = {**alarm.verdict.evidence, "at": moment}
        verdict = Verdict(alarm.verdict.value, alarm.verdict.reason, evidence)
        self._ledger.decisions.record(ALARM, f"monitor/{alarm.monitor}", verdict, actor=ACTOR)
        watched.known.add(moment)
        return True

    def _known(self, name: str) -> set[str]:
        decisions = self._ledger.decisions.list(subject=f"monitor/{name}", kind=ALARM)
        return {str(decision.verdict.evidence["at"]) for decision in decisions}


def _samples(monitor: Monitor, stored: Sequence[StoredSpan]) -> list[Sample]:
    return [
        Sample(_moment(span.ended_at_ns / 1e9), span.status not in FAILED_STATUSES, span.duration_s)
        for span in (one.span for one in stored)
        if span.arm in LIVE_ARMS
        and span.status != "cancelled"
        and (monitor.endpoint is None or span.endpoint == monitor.endpoint)
        and is_request(span)
    ]


def _moment(at_s: float | None) -> Any:
    return None if at_s is None else datetime.fromtimestamp(at_s, UTC)
