"""Drives objectives: brings each its events, keeps what it has seen, and records its alarms as decisions.

An objective on requests follows the stored spans, one on groundedness the stored scores, one on the freshness of data
looks at the live index of its endpoint once in five minutes, one on recovery follows the alarms of the other
objectives. A new objective, or one that was changed, reads its window of stored spans once; a restart reads on from
the kept state. An alarm found again is recognised by its time and severity and is not recorded twice.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tidemill.kernel import ArtifactKind, Clock, Digest, NotFound, ReleaseParts
from tidemill.loop.feed import SpanFeed, is_request
from tidemill.monitoring import Slo, SloState, SloTurn, advance, good_request, good_score, report
from tidemill.monitoring.burning import BIN_S
from tidemill.releases import live_release
from tidemill.telemetry import ScoreQuery, SpanStore, StoredSpan

if TYPE_CHECKING:
    from tidemill.kernel.settings_telemetry import SloSettings
    from tidemill.ledger import Ledger

_log = logging.getLogger(__name__)

ACTOR: Final = "slo"
ALARM: Final = "slo.alarm"
CLEARED: Final = "slo.cleared"
_SCORES: Final = 1000
_PICTURE_DAYS: Final = 28

Event = tuple[float, bool]


@dataclass(slots=True)
class _Watched:
    """An objective on its way.

    Args:
        seq: the place reached among spans or scores; ``None`` until its window has been read.
        bin_index: the newest bin of time whose freshness was looked at.
        incidents: alarms whose recovery has been judged.
    """

    slo: Slo
    state: SloState
    seq: int | None = None
    bin_index: int = 0
    incidents: set[str] = field(default_factory=set)
    known: set[tuple[str, str, str]] = field(default_factory=set)


def slo_of(name: str, settings: SloSettings) -> Slo:
    """The objective that a project file's section describes.

    Raises:
        InvalidInput: an objective that leaves no budget, a threshold that is missing or makes no sense.
    """
    return Slo(
        name=name,
        indicator=settings.indicator,
        endpoint=settings.endpoint,
        objective=settings.objective,
        threshold=settings.threshold,
        window_days=settings.window_days,
        false_alarm_days=settings.false_alarm_every_days,
    )


def shown(slo: Slo, state: SloState, now_s: float) -> dict[str, Any]:
    """An objective with its budget, its burn and its alarms at a moment, as a plain JSON object."""
    return {
        "slo": slo.as_json(),
        "promise": slo.promise,
        "budget": report(slo, state, now_s).as_json(),
        "events": state.events,
        "bad": state.bad,
        "days": state.counts.days(now_s, min(_PICTURE_DAYS, max(1, int(slo.window_days)))),
        "alarms": {
            severity: {
                "firing": burn.firing,
                "fired_at_s": burn.fired_at_s,
                "count": burn.alarms,
                "statistic": burn.detector.value,
                "horizon_bins": burn.detector.horizon,
            }
            for severity, burn in state.burns.items()
        },
    }


def kept_state(slo: Slo, kept: Mapping[str, Any]) -> SloState | None:
    """The state of an objective in what ``SloDriver.kept`` gave; ``None`` if it is not there, or was another's."""
    found = kept.get(slo.name)
    return SloState.from_json(found["state"]) if found is not None and found["slo"] == slo.as_json() else None


class SloDriver:
    """Evaluates objectives, one look at a time.

    Args:
        slos: the objectives.
        ledger: where alarms are recorded, and where the live index of an endpoint is found.
        store: the stored spans and scores.
        feed: the stored spans, shared with others who follow them.
        clock: where the time comes from.
        kept: what ``kept`` gave before a restart.
    """

    def __init__(
        self,
        slos: Sequence[Slo],
        ledger: Ledger,
        store: SpanStore,
        feed: SpanFeed,
        clock: Clock,
        kept: Mapping[str, Any] | None = None,
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._feed = feed
        self._clock = clock
        self._pending: list[tuple[_Watched, SloTurn]] = []  # found, and not recorded yet
        self._changing = threading.Lock()  # one thread looks, others ask for states
        self._watched = [self._begin(slo, (kept or {}).get(slo.name)) for slo in slos]

    def tick(self) -> list[SloTurn]:
        """Look at every objective once; alarms that began or ended are recorded as decisions and returned."""
        found = self._record_pending()
        for watched in self._watched:
            for events in self._events(watched):
                with self._changing:
                    turns = advance(watched.slo, watched.state, events)
                self._pending += [(watched, turn) for turn in turns]
                found += self._record_pending()
        now_s = self._now_s()
        with self._changing:
            for watched in self._watched:
                watched.state.counts.forget(now_s, watched.slo.window_s)
        return found

    @property
    def behind(self) -> bool:
        """Whether an alarm waits to be recorded, so that the state must not be kept yet."""
        return bool(self._pending)

    def states(self) -> list[dict[str, Any]]:
        """Each objective with its budget, its burn and its alarms, for people and pages. Any thread may ask."""
        with self._changing:
            return [shown(one.slo, one.state, self._now_s()) for one in self._watched]

    def kept(self) -> dict[str, Any]:
        """The states by objective, as JSON, with the place each has reached."""
        return {
            one.slo.name: {
                "slo": one.slo.as_json(),
                "seq": one.seq,
                "bin_index": one.bin_index,
                "incidents": sorted(one.incidents),
                "state": one.state.as_json(),
            }
            for one in self._watched
        }

    def _begin(self, slo: Slo, kept: Mapping[str, Any] | None) -> _Watched:
        state = kept_state(slo, {slo.name: kept} if kept is not None else {})
        watched = _Watched(slo, state or SloState.start(slo))
        if state is not None and kept is not None:
            watched.seq, watched.bin_index = kept["seq"], kept["bin_index"]
            watched.incidents = set(kept["incidents"])
        subject = f"slo/{slo.name}"
        for kind in (ALARM, CLEARED):
            for one in self._ledger.decisions.list(subject=subject, kind=kind):
                evidence = one.verdict.evidence
                watched.known.add((kind, str(evidence["severity"]), str(evidence["at"])))
        return watched

    def _events(self, watched: _Watched) -> Iterable[list[Event]]:
        """New events in batches; the place reached moves on with each batch, so that none is lost or comes twice."""
        source = watched.slo.source
        if source == "scores":
            return self._scored(watched)
        if source == "checks":
            return self._checked(watched)
        if source == "incidents":
            return self._recovered(watched)
        return self._requested(watched)

    def _requested(self, watched: _Watched) -> Iterator[list[Event]]:
        """Events of the stored spans; of a new objective at most those of its window."""
        if watched.seq is None:
            begin_ns = int((self._now_s() - watched.slo.window_s) * 1e9)
            batches = self._feed.since(max(0, begin_ns))
        else:
            batches = self._feed.after(watched.seq)
        watched.seq = watched.seq or 0
        for stored in batches:
            events = self._judged(watched.slo, stored)
            watched.seq = stored[-1].ingest_seq
            yield events

    def _judged(self, slo: Slo, stored: Sequence[StoredSpan]) -> list[Event]:
        events = []
        for one in stored:
            span = one.span
            good = good_request(slo, span) if is_request(span) else None
            if good is not None:
                events.append((span.ended_at_ns / 1e9, not good))
        return self._timely(slo, events)

    def _timely(self, slo: Slo, events: list[Event]) -> list[Event]:
        """The events of the window. A clock that runs ahead must not move time on for all the others."""
        now_s = self._now_s()
        first_s = now_s - slo.window_s
        return [(min(at_s, now_s), bad) for at_s, bad in events if at_s >= first_s]

    def _scored(self, watched: _Watched) -> Iterator[list[Event]]:
        slo = watched.slo
        while True:
            query = ScoreQuery(names=(slo.indicator,), after_seq=watched.seq or 0, limit=_SCORES)
            scores = self._store.scores(query)
            if not scores:
                return
            events = []
            for one in scores:
                good = good_score(slo, one.score)
                if good is not None and self._concerns(slo, one.score.trace_id):
                    events.append((one.score.at_ns / 1e9, not good))
            watched.seq = scores[-1].ingest_seq
            yield self._timely(slo, events)

    def _concerns(self, slo: Slo, trace_id: str) -> bool:
        """Whether a trace is of the objective's endpoint, and no copy for a shadow."""
        return any(
            is_request(one.span) and (slo.endpoint is None or one.span.endpoint == slo.endpoint)
            for one in self._store.trace(trace_id)
        )

    def _checked(self, watched: _Watched) -> list[list[Event]]:
        """One event a bin of time: whether the data behind the endpoint are fresh."""
        now_s = self._now_s()
        index = int(now_s // BIN_S)
        if index <= watched.bin_index or watched.slo.threshold is None:
            return []
        watched.bin_index = index
        ages = [age for name in self._endpoints(watched.slo) if (age := self._age_s(name, now_s)) is not None]
        return [[(now_s, max(ages) > watched.slo.threshold)]] if ages else []

    def _endpoints(self, slo: Slo) -> list[str]:
        if slo.endpoint is not None:
            return [slo.endpoint]
        return [one.name for one in self._ledger.artifacts.list(ArtifactKind.ENDPOINT)]

    def _age_s(self, endpoint: str, now_s: float) -> float | None:
        """Seconds since the index that an endpoint answers from was made; ``None`` where it has none."""
        live = live_release(self._ledger, endpoint)
        index = ReleaseParts.from_json(live.content).index if live is not None else None
        if index is None:
            return None
        try:
            return now_s - self._ledger.artifacts.by_digest(Digest(index)).created_at.timestamp()
        except NotFound:
            return None

    def _recovered(self, watched: _Watched) -> list[list[Event]]:
        """One event an incident, when it ends or its time is up: whether an objective's alarm ended in time."""
        slo, now_s, events = watched.slo, self._now_s(), []
        assert slo.threshold is not None
        ended = {}
        for one in self._ledger.decisions.list(kind=CLEARED):
            evidence = one.verdict.evidence
            ended[one.subject, evidence["severity"], evidence["fired_at"]] = float(evidence["lasted_s"])
        for one in self._ledger.decisions.list(kind=ALARM):
            evidence = one.verdict.evidence
            concerned = slo.endpoint is None or evidence["objective"]["endpoint"] == slo.endpoint
            name = f"{one.subject} {evidence['severity']} {evidence['at']}"
            if name in watched.incidents or not concerned or evidence["objective"]["indicator"] == slo.indicator:
                continue
            began_s = float(evidence["at_s"])
            lasted_s = ended.get((one.subject, evidence["severity"], evidence["at"]))
            if lasted_s is None and now_s - began_s <= slo.threshold:
                continue  # under way, and not too long yet
            watched.incidents.add(name)
            took_s = now_s - began_s if lasted_s is None else lasted_s
            events.append((began_s + min(took_s, slo.threshold), took_s > slo.threshold))
        return [events] if events else []

    def _record_pending(self) -> list[SloTurn]:
        """Record what was found; what cannot be recorded now stays for the next look."""
        found = []
        while self._pending:
            watched, turn = self._pending[0]
            if self._record(watched, turn):
                found.append(turn)
            del self._pending[0]
        return found

    def _record(self, watched: _Watched, turn: SloTurn) -> bool:
        kind = ALARM if turn.fired else CLEARED
        mark = (kind, turn.severity, turn.at.isoformat())
        if mark in watched.known:
            return False
        self._ledger.decisions.record(kind, f"slo/{turn.slo}", turn.verdict, actor=ACTOR)
        watched.known.add(mark)
        _log.info("%s %s: %s", turn.severity, "begins" if turn.fired else "ends", turn.verdict.reason)
        return True

    def _now_s(self) -> float:
        return self._clock.now().timestamp()
