"""Error budgets: good and bad events of a window, what is left of the budget, and how fast it burns.

Kept as counts of hours over the whole window and of bins of five minutes over the last six hours: a few kilobytes
whatever the traffic, and additive, so that a budget can be recomputed from stored traces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tidemill.monitoring.burning import BIN_S, DAY_S

HOUR_S: Final = 3600.0
_FINE_S: Final = 6 * HOUR_S
#: The windows a burn is told for: those of the classic rules.
BURN_WINDOWS: Final[Mapping[str, float]] = {
    "5m": 300.0,
    "30m": 1800.0,
    "1h": HOUR_S,
    "6h": 6 * HOUR_S,
    "1d": DAY_S,
    "3d": 3 * DAY_S,
}


@dataclass(slots=True)
class EventCounts:
    """Good and bad events by time.

    Args:
        hours: (good, bad) by hours since 1970.
        bins: (good, bad) by bins of ``BIN_S`` since 1970, the last six hours.
    """

    hours: dict[int, tuple[int, int]] = field(default_factory=dict)
    bins: dict[int, tuple[int, int]] = field(default_factory=dict)

    def add(self, events: Sequence[tuple[float, bool]]) -> None:
        """Count events: time in seconds since 1970, and whether it is bad."""
        for places, length_s in ((self.hours, HOUR_S), (self.bins, BIN_S)):
            for at_s, bad in events:
                index = int(at_s // length_s)
                good_before, bad_before = places.get(index, (0, 0))
                places[index] = (good_before + (not bad), bad_before + bad)

    def forget(self, now_s: float, window_s: float) -> None:
        """Let go of what lies before the window, and of fine bins older than six hours."""
        for places, length_s, kept_s in ((self.hours, HOUR_S, window_s), (self.bins, BIN_S, _FINE_S)):
            first = int((now_s - kept_s) // length_s)
            for index in [index for index in places if index < first]:
                del places[index]

    def within(self, now_s: float, window_s: float) -> tuple[int, int]:
        """Good and bad events of the last ``window_s`` seconds, to the bin or, beyond six hours, to the hour."""
        places, length_s = (self.bins, BIN_S) if window_s <= _FINE_S else (self.hours, HOUR_S)
        first, last = int((now_s - window_s) // length_s), int(now_s // length_s)
        chosen = [counts for index, counts in places.items() if first < index <= last]
        return sum(good for good, _ in chosen), sum(bad for _, bad in chosen)

    def days(self, now_s: float, count: int) -> list[tuple[int, int]]:
        """Good and bad events of each of the last ``count`` days, oldest first; for pictures."""
        today = int(now_s // DAY_S)
        found = [(0, 0)] * count
        for index, (good, bad) in self.hours.items():
            place = count - 1 - (today - int(index * HOUR_S // DAY_S))
            if 0 <= place < count:
                found[place] = (found[place][0] + good, found[place][1] + bad)
        return found

    def as_json(self) -> dict[str, Any]:
        """The counts as a plain JSON object."""
        return {
            "hours": [[index, *counts] for index, counts in sorted(self.hours.items())],
            "bins": [[index, *counts] for index, counts in sorted(self.bins.items())],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> EventCounts:
        """Read back what ``as_json`` wrote."""
        hours, bins = ({row[0]: (row[1], row[2]) for row in value[part]} for part in ("hours", "bins"))
        return cls(hours, bins)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetReport:
    """An error budget at a moment.

    Args:
        good, bad: events of the window.
        allowed_bad: bad events that the objective allows in as many events.
        left: share of the budget that is left: 1 untouched, 0 spent, below 0 overdrawn; ``None`` without events.
        burn: by the names of ``BURN_WINDOWS``: the share of bad events as a multiple of what is allowed; 1 spends
            the budget exactly within its window; ``None`` without events.
        spent_in_s: seconds until the budget is spent at the burn of the last day (of the last hour where a day has
            not passed); ``None`` if it does not burn faster than it renews, 0 if it is spent.
    """

    good: int
    bad: int
    allowed_bad: float
    left: float | None
    burn: Mapping[str, float | None]
    spent_in_s: float | None

    def as_json(self) -> dict[str, Any]:
        """The report as a plain JSON object."""
        return {
            "good": self.good,
            "bad": self.bad,
            "allowed_bad": self.allowed_bad,
            "left": self.left,
            "burn": dict(self.burn),
            "spent_in_s": self.spent_in_s,
        }


def budget_report(counts: EventCounts, *, objective: float, window_s: float, now_s: float) -> BudgetReport:
    """What is left of an error budget.

    Args:
        counts: the events.
        objective: share of events that must be good, in (0, 1).
        window_s: the budget's window in seconds.
        now_s: the moment, seconds since 1970.
    """
    tolerated = 1 - objective
    good, bad = counts.within(now_s, window_s)
    allowed = (good + bad) * tolerated
    left = 1 - bad / allowed if allowed else None
    burn = {name: _burn(counts.within(now_s, length_s), tolerated) for name, length_s in BURN_WINDOWS.items()}
    return BudgetReport(
        good=good, bad=bad, allowed_bad=allowed, left=left, burn=burn, spent_in_s=_spent_in(left, burn, window_s)
    )


def _burn(counts: tuple[int, int], tolerated: float) -> float | None:
    good, bad = counts
    return bad / (good + bad) / tolerated if good + bad else None


def _spent_in(left: float | None, burn: Mapping[str, float | None], window_s: float) -> float | None:
    pace = burn["1d"] if burn["1d"] is not None else burn["1h"]
    if left is None or pace is None:
        return None
    if left <= 0:
        return 0.0
    return left * window_s / pace if pace > 1 else None
