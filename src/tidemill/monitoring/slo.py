"""Service level objectives: what makes an event good, the error budget, and the alarm when it burns too fast.

Every indicator is a share of events under a threshold, so one test serves them all. An objective is watched twice: a
``ticket`` when more of the events are bad than the objective allows at all, a ``page`` when the budget burns at six
times that and more. Both hold the same false-alarm horizon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Final, Literal, get_args

from tidemill.kernel import InvalidInput, Verdict, check_name
from tidemill.monitoring.budgets import BudgetReport, EventCounts, budget_report
from tidemill.monitoring.burning import BIN_S, DAY_S, BurnRule, BurnState, Turn, watch
from tidemill.telemetry import FAILED_STATUSES
from tidemill.telemetry.records import Score, Span

Indicator = Literal[
    "availability",
    "error_rate",
    "first_token_time",
    "between_token_time",
    "total_time",
    "cost",
    "refusal_rate",
    "groundedness",
    "data_freshness",
    "recovery_time",
]
Severity = Literal["ticket", "page"]
Source = Literal["requests", "scores", "checks", "incidents"]

SEVERITIES: Final[tuple[Severity, ...]] = get_args(Severity)
PAGE_BURN: Final = 6.0
"""A page needs a burn of more than this: the slower of the two classic page rules."""
#: What each threshold is measured in; indicators without a threshold are missing.
UNITS: Final[Mapping[str, str]] = {
    "first_token_time": "s",
    "between_token_time": "s",
    "total_time": "s",
    "cost": "USD",
    "groundedness": "",
    "data_freshness": "s",
    "recovery_time": "s",
}
_SOURCES: Final[Mapping[str, Source]] = {
    "groundedness": "scores",
    "data_freshness": "checks",
    "recovery_time": "incidents",
}
#: The caller's own mistakes; 408 and 429 are not among them: nobody answered, whoever is to blame.
_MISTAKES: Final = frozenset(range(400, 500)) - {408, 429}
_REFUSALS: Final = frozenset({"content_filter", "refusal", "safety", "blocked"})
_GUARDRAIL: Final = "tidemill.guardrail."


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """An objective.

    Args:
        name: its name.
        indicator: what makes an event good.
        endpoint: the endpoint it is about; ``None`` for all.
        objective: share of events that must be good, in (0, 1).
        threshold: good is at most this: seconds, or USD a request; for groundedness the least score. Needed for the
            indicators of ``UNITS``.
        window_days: the error budget belongs to so many days.
        false_alarm_days: at most one false alarm in so many days.

    Raises:
        InvalidInput: an objective that leaves no budget, a threshold that is missing or makes no sense.
    """

    name: str
    indicator: Indicator
    endpoint: str | None = None
    objective: float = 0.99
    threshold: float | None = None
    window_days: float = 28.0
    false_alarm_days: float = 90.0

    def __post_init__(self) -> None:
        check_name(self.name, "objective")
        _check(self.indicator in get_args(Indicator), self.name, f"there is no indicator '{self.indicator}'")
        _check(
            0 < self.objective < 1,
            self.name,
            f"the share {self.objective:g} of good events leaves no budget or no promise: it lies between 0 and 1",
        )
        _check(self.window_days >= 1, self.name, f"window_days is {self.window_days:g}: it is at least 1")
        if self.indicator in UNITS:
            _check(self.threshold is not None, self.name, f"'{self.indicator}' needs a threshold")
        else:
            _check(self.threshold is None, self.name, f"'{self.indicator}' takes no threshold")
        try:
            _ = self.rules
        except InvalidInput as error:
            raise InvalidInput(f"objective '{self.name}': {error.message}") from None

    @property
    def source(self) -> Source:
        """Where its events come from."""
        return _SOURCES.get(self.indicator, "requests")

    @property
    def window_s(self) -> float:
        """The budget's window in seconds."""
        return self.window_days * DAY_S

    @property
    def rules(self) -> dict[Severity, BurnRule]:
        """The two alarms. Of a large budget six times is more than all: a page then means half of what is good."""
        tolerated = 1 - self.objective
        page = min(PAGE_BURN * tolerated, (1 + tolerated) / 2)
        return {
            "ticket": BurnRule(max_share=tolerated, false_alarm_days=self.false_alarm_days),
            "page": BurnRule(max_share=page, false_alarm_days=self.false_alarm_days),
        }

    @property
    def promise(self) -> str:
        """The objective in words."""
        unit = UNITS.get(self.indicator)
        what = self.indicator.replace("_", " ")
        if unit is not None:
            what += f" {'>=' if self.indicator == 'groundedness' else '<='} {self.threshold:g} {unit}".rstrip()
        return f"{what} for {self.objective:.6g} of the events{f' of {self.endpoint}' if self.endpoint else ''}"

    def as_json(self) -> dict[str, Any]:
        """The objective as a plain JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Slo:
        """Read back what ``as_json`` wrote; fields left out take their defaults.

        Raises:
            InvalidInput: an unknown field or a value that makes no sense.
        """
        known = [part.name for part in fields(cls)]
        for name in value:
            _check(name in known, str(value.get("name")), f"'{name}' is not a field; they are {', '.join(known)}")
        return cls(**value)


def _check(holds: bool, name: str, message: str) -> None:
    if not holds:
        raise InvalidInput(f"objective '{name}': {message}.", hint="See 'slos' in the project file.")


def good_request(slo: Slo, span: Span) -> bool | None:
    """Whether a request is a good event of an objective; ``None`` if it is none of its events.

    A request whose client went away is no event. ``availability``: a request the caller got wrong (4xx but 408 and
    429) counts as answered; ``error_rate`` counts it as an error. Times and cost are those of requests that succeeded
    and have the number: an outage is for ``availability`` to find.
    """
    if span.status == "cancelled" or (slo.endpoint is not None and span.endpoint != slo.endpoint):
        return None
    failed = span.status in FAILED_STATUSES
    if slo.indicator == "availability":
        return not failed or span.http_status in _MISTAKES
    if slo.indicator == "error_rate":
        return not failed
    if slo.indicator == "refusal_rate":
        return None if failed and not _refused(span) else not _refused(span)
    number = None if failed else _number(slo.indicator, span)
    return None if number is None or slo.threshold is None else number <= slo.threshold


def good_score(slo: Slo, score: Score) -> bool | None:
    """Whether a score is a good event of an objective on scores; ``None`` if it is none of its events."""
    if score.name != slo.indicator or score.value is None or slo.threshold is None:
        return None
    return score.value >= slo.threshold


def _number(indicator: str, span: Span) -> float | None:
    first_s = span.time_to_first_chunk_s
    if indicator == "first_token_time":
        return first_s
    if indicator == "between_token_time":
        return between_tokens_s(span)
    if indicator == "total_time":
        return span.duration_s
    if indicator == "cost":
        return span.cost_usd
    return None


def between_tokens_s(span: Span) -> float | None:
    """Seconds from one token of a streamed answer to the next, on average; ``None`` where there are not two."""
    first_s, tokens = span.time_to_first_chunk_s, span.output_tokens
    if first_s is None or tokens is None or tokens < 2:
        return None
    return max(0.0, span.duration_s - first_s) / (tokens - 1)


def _refused(span: Span) -> bool:
    if not _REFUSALS.isdisjoint(span.finish_reasons):
        return True
    return any(
        value in ("blocked", "failed")
        for name, value in span.attributes.items()
        if name.startswith(_GUARDRAIL) and name.count(".") == 2
    )


@dataclass(slots=True)
class SloState:
    """All that an objective remembers: a few kilobytes, replayable from the span store.

    Args:
        counts: good and bad events by time.
        burns: the two alarms.
        events, bad: events since it began, and the bad ones.
    """

    counts: EventCounts = field(default_factory=EventCounts)
    burns: dict[Severity, BurnState] = field(default_factory=dict)
    events: int = 0
    bad: int = 0

    @classmethod
    def start(cls, slo: Slo) -> SloState:
        """An objective's state before any event."""
        return cls(burns={severity: rule.start() for severity, rule in slo.rules.items()})

    def as_json(self) -> dict[str, Any]:
        """The state as a plain JSON object."""
        return {
            "counts": self.counts.as_json(),
            "burns": {severity: burn.as_json() for severity, burn in self.burns.items()},
            "events": self.events,
            "bad": self.bad,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SloState:
        """Read back what ``as_json`` wrote."""
        burns: dict[Severity, BurnState] = {name: BurnState.from_json(burn) for name, burn in value["burns"].items()}
        return cls(EventCounts.from_json(value["counts"]), burns, value["events"], value["bad"])


@dataclass(frozen=True, slots=True, kw_only=True)
class SloTurn:
    """An objective's alarm that began or ended.

    Args:
        slo: the objective's name.
        severity: ``ticket`` or ``page``.
        fired: whether it began; otherwise it ended.
        at: time of the event that decided it.
        verdict: value ``ticket``, ``page`` or ``cleared``, with its evidence.
    """

    slo: str
    severity: Severity
    fired: bool
    at: datetime
    verdict: Verdict


def advance(slo: Slo, state: SloState, events: Sequence[tuple[float, bool]]) -> list[SloTurn]:
    """Show an objective the events that came since the last call; its state moves on.

    Args:
        slo: the objective.
        state: its state, changed in place.
        events: time in seconds since 1970, and whether it is bad, in the order they were stored.

    Returns:
        Alarms that began or ended, in their order.
    """
    state.counts.add(events)
    state.events += len(events)
    state.bad += sum(bad for _, bad in events)
    found: list[SloTurn] = []
    for severity, rule in slo.rules.items():
        state.burns[severity], turns = watch(rule, state.burns[severity], events)
        found += [_turn(slo, severity, rule, turn) for turn in turns]
    return sorted(found, key=lambda turn: turn.at)


def report(slo: Slo, state: SloState, now_s: float) -> BudgetReport:
    """The objective's error budget at a moment, in seconds since 1970."""
    return budget_report(state.counts, objective=slo.objective, window_s=slo.window_s, now_s=now_s)


def _turn(slo: Slo, severity: Severity, rule: BurnRule, turn: Turn) -> SloTurn:
    at = datetime.fromtimestamp(turn.at_s, UTC)
    evidence: dict[str, Any] = {
        "at": at.isoformat(),
        "at_s": turn.at_s,
        "severity": severity,
        "objective": slo.as_json(),
    }
    if not turn.fired:
        began = datetime.fromtimestamp(turn.fired_at_s, UTC)
        evidence |= {"fired_at": began.isoformat(), "lasted_s": turn.lasted_s}
        reason = f"{slo.promise}: kept again, after {turn.lasted_s:.0f} s"
        return SloTurn(
            slo=slo.name, severity=severity, fired=False, at=at, verdict=Verdict("cleared", reason, evidence)
        )
    evidence |= {
        "statistic": turn.statistic,
        "horizon_bins": rule.horizon_bins,
        "bins": turn.bins,
        "bin_s": BIN_S,
        "max_share": rule.max_share,
        "burn": rule.max_share / (1 - slo.objective),
        "events": turn.events,
        "bad": turn.bad,
    }
    pace = "more than the objective allows" if severity == "ticket" else f"at more than {evidence['burn']:.3g} times"
    reason = (
        f"{slo.promise}: the error budget burns {pace}, {turn.bad} of {turn.events} events so far were bad "
        f"(one false alarm in {slo.false_alarm_days:g} days)"
    )
    return SloTurn(slo=slo.name, severity=severity, fired=True, at=at, verdict=Verdict(severity, reason, evidence))
