"""The alarm that monitors and objectives share: a share of bad events above what is tolerated, and its end.

Time is cut into bins of ``bin_s``; the false-alarm horizon counts bins with events. Within a bin every event is looked
at, so an outage fires after a handful of requests, and the promise "at most one false alarm in so many days" holds at
any traffic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from tidemill.evidence import BurnDetector, RateDetector
from tidemill.kernel import InvalidInput

DAY_S: Final = 86_400.0
BIN_S: Final = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BurnRule:
    """What share of bad events is tolerated.

    Args:
        max_share: the largest tolerated share, in (0, 1).
        false_alarm_days: while the share is tolerated, one false alarm is expected in no less than this.
        bin_s: length of a bin of time.
        clear_horizon: an alarm ends when the share is shown to have fallen below ``max_share``; while it has not,
            that happens by mistake no more than once in so many events.

    Raises:
        InvalidInput: a value out of range.
    """

    max_share: float
    false_alarm_days: float = 90.0
    bin_s: float = BIN_S
    clear_horizon: float = 200.0

    def __post_init__(self) -> None:
        if not 0 < self.max_share < 1:
            raise InvalidInput(f"the tolerated share is {self.max_share}: it lies between 0 and 1")
        if not self.bin_s > 0:
            raise InvalidInput(f"bin_s is {self.bin_s}: it is positive")
        if not self.clear_horizon >= 1:
            raise InvalidInput(f"clear_horizon is {self.clear_horizon}: it is at least 1")
        if not self.horizon_bins >= 1:
            raise InvalidInput("false_alarm_days is shorter than one bin")

    @property
    def horizon_bins(self) -> float:
        """The false-alarm horizon in bins of time."""
        return self.false_alarm_days * DAY_S / self.bin_s

    def start(self) -> BurnState:
        """The state before any event."""
        return BurnState(detector=BurnDetector.start(self.max_share, self.horizon_bins))


@dataclass(frozen=True, slots=True, kw_only=True)
class BurnState:
    """All that a rule remembers.

    Args:
        detector: the change detector; starts anew at each alarm.
        bin_index: the open bin, counted from 1970; ``None`` before the first event.
        clearing: while firing, the detector of the share's return to what is tolerated.
        fired_at_s: when the current alarm fired, seconds since 1970; ``None`` while all is well.
        events, bad: events seen, and the bad ones among them.
        alarms: alarms so far.
    """

    detector: BurnDetector
    bin_index: int | None = None
    clearing: RateDetector | None = None
    fired_at_s: float | None = None
    events: int = 0
    bad: int = 0
    alarms: int = 0

    @property
    def firing(self) -> bool:
        """Whether an alarm is on."""
        return self.fired_at_s is not None

    def as_json(self) -> dict[str, Any]:
        """The state as a plain JSON object."""
        return {
            "detector": self.detector.as_json(),
            "bin_index": self.bin_index,
            "clearing": self.clearing.as_json() if self.clearing else None,
            "fired_at_s": self.fired_at_s,
            "events": self.events,
            "bad": self.bad,
            "alarms": self.alarms,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> BurnState:
        """Read back what ``as_json`` wrote."""
        state = dict(value)
        state["detector"] = BurnDetector.from_json(state["detector"])
        state["clearing"] = RateDetector.from_json(state["clearing"]) if state["clearing"] else None
        return cls(**state)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A moment at which an alarm began or ended.

    Args:
        at_s: time of the event that decided it, seconds since 1970.
        fired: whether it began; otherwise it ended.
        fired_at_s: when the alarm began.
        lasted_s: for an end: how long the alarm was on.
        statistic, bins, events, bad: for a beginning: the detector's statistic, the bins it rests on, and all events
            seen so far.
    """

    at_s: float
    fired: bool
    fired_at_s: float
    lasted_s: float = 0.0
    statistic: float = 0.0
    bins: int = 0
    events: int = 0
    bad: int = 0


def watch(rule: BurnRule, state: BurnState, events: Iterable[tuple[float, bool]]) -> tuple[BurnState, list[Turn]]:
    """Show a rule the events that came since the last call.

    An event that arrives late counts in the open bin. While an alarm is on, events are taken as evidence that it may
    end. What comes out does not depend on how the events were divided into calls.

    Args:
        rule: what is tolerated.
        state: the state after the last call, or ``rule.start()``.
        events: time in seconds since 1970, and whether it is bad, in the order they were stored.

    Returns:
        The new state, and the alarms that began or ended, in their order.
    """
    turns: list[Turn] = []
    rest = iter(events)
    watched = True
    while watched:
        state, watched = _recover(state, rest, turns) if state.firing else _burn(rule, state, rest, turns)
    return state, turns


def _burn(
    rule: BurnRule, state: BurnState, rest: Iterator[tuple[float, bool]], turns: list[Turn]
) -> tuple[BurnState, bool]:
    """Watch until an alarm begins; whether one did."""
    good = 0  # events not yet shown to the detector: they only lower it, so no look between them is missed
    newest = state.bin_index
    for at_s, bad in rest:
        index = int(at_s // rule.bin_s)
        if newest is None or index > newest:
            state = _shown(state, good=good)
            good = 0
            state = replace(state, detector=state.detector.close_step(), bin_index=index)
            newest = index
        if not bad:
            good += 1
            continue
        state = _shown(state, good=good, bad=1)
        good = 0
        if state.detector.alarmed:
            return _fire(rule, state, at_s, turns), True
    return _shown(state, good=good), False


def _recover(state: BurnState, rest: Iterator[tuple[float, bool]], turns: list[Turn]) -> tuple[BurnState, bool]:
    """Watch until the alarm ends; whether it did."""
    assert state.fired_at_s is not None
    # A detector, not an e-process: after a long outage it forgets, and a recovery is seen as soon as after a short one.
    clearing = state.clearing
    assert clearing is not None
    events, all_bad = state.events, state.bad
    for at_s, bad in rest:
        events += 1
        all_bad += bad
        clearing = clearing.close_step().observe(float(not bad))
        if not bad and clearing.alarmed:
            lasted_s = max(0.0, at_s - state.fired_at_s)
            turns.append(Turn(at_s=at_s, fired=False, fired_at_s=state.fired_at_s, lasted_s=lasted_s))
            return replace(state, clearing=None, fired_at_s=None, events=events, bad=all_bad), True
    return replace(state, clearing=clearing, events=events, bad=all_bad), False


def _shown(state: BurnState, *, good: int, bad: int = 0) -> BurnState:
    if not good + bad:
        return state
    detector = state.detector.observe(good=good, bad=bad)
    return replace(state, detector=detector, events=state.events + good + bad, bad=state.bad + bad)


def _fire(rule: BurnRule, state: BurnState, at_s: float, turns: list[Turn]) -> BurnState:
    detector = state.detector
    turns.append(
        Turn(
            at_s=at_s,
            fired=True,
            fired_at_s=at_s,
            statistic=detector.value,
            bins=detector.steps + 1,
            events=state.events,
            bad=state.bad,
        )
    )
    return replace(
        state,
        detector=BurnDetector.start(rule.max_share, rule.horizon_bins),
        bin_index=None,
        clearing=RateDetector.start(1 - rule.max_share, rule.clear_horizon),
        fired_at_s=at_s,
        alarms=state.alarms + 1,
    )
