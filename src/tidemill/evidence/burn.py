"""Change alarm on a share of bad events: the Shiryaev-Roberts e-detector on counts, with bets for rare events.

``RateDetector`` takes any values in [0, 1] and bets on rises by fixed parts of the room above the tolerated rate; of a
budget of one in a thousand its smallest bet is a rise to twenty times as much. Here an observation is good or bad and
the bets are multiples of the tolerated odds, so that a slow burn of any budget is found. The state is three counts and
one number a bet: it takes a million good events as cheaply as one, and the order of the events of a step leaves no
trace in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from tidemill.kernel import InvalidInput

ODDS_MULTIPLES: Final = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""The alternatives, as multiples of the tolerated odds: fixed before any data, equal weights."""

_CEILING: Final = 1e300
_LOG_MAX: Final = 690.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BurnDetector:
    """Raises an alarm when the share of bad events has risen above ``null_rate``.

    Of Shin, Ramdas and Rinaldo, "E-detectors: a nonparametric framework for sequential change detection" (2024).
    A step is any number of events. At the first event of a step ``M_j = 1 + M_j``; each event multiplies M_j by its
    likelihood ratio under ``q_j`` against ``null_rate``, where ``q_j`` has ``ODDS_MULTIPLES[j]`` times its odds. While
    the probability that an event is bad, given all before it, is at most ``null_rate``, the mean of the M_j less the
    number of steps begun is a supermartingale, so the expected number of steps until ``value >= horizon`` is at least
    ``horizon``, whenever one looks. Steps without events do not exist: silence never raises an alarm.

    Args:
        null_rate: the largest tolerated share of bad events, in (0, 1).
        horizon: steps in which one false alarm is accepted, at least 1.
        closed: M_j as of the last closed step.
        open_good, open_bad: events of the open step; additive over replicas.
        steps: closed steps with events.
        count: events in all.
    """

    null_rate: float
    horizon: float
    closed: tuple[float, ...] = (0.0,) * len(ODDS_MULTIPLES)
    open_good: int = 0
    open_bad: int = 0
    steps: int = 0
    count: int = 0

    @classmethod
    def start(cls, null_rate: float, horizon: float) -> BurnDetector:
        """A detector before any data.

        Raises:
            InvalidInput: a rate outside (0, 1) or a horizon below 1.
        """
        if not 0 < null_rate < 1:
            raise InvalidInput(f"tolerated share {null_rate} is out of range: it lies between 0 and 1")
        if not horizon >= 1:
            raise InvalidInput(f"false-alarm horizon {horizon} is out of range: it is at least one step")
        return cls(null_rate=null_rate, horizon=horizon)

    def observe(self, *, good: int = 0, bad: int = 0) -> BurnDetector:
        """Add events to the open step.

        Raises:
            InvalidInput: a negative count.
        """
        if good < 0 or bad < 0:
            raise InvalidInput(f"{good} good and {bad} bad events: counts are not negative")
        return replace(
            self, open_good=self.open_good + good, open_bad=self.open_bad + bad, count=self.count + good + bad
        )

    def absorb(self, other: BurnDetector) -> BurnDetector:
        """Add the open step of a replica that watched other events of the same step.

        Raises:
            InvalidInput: the replica tolerates another share.
        """
        if other.null_rate != self.null_rate:
            raise InvalidInput(f"detectors of shares {self.null_rate} and {other.null_rate} cannot be merged")
        return self.observe(good=other.open_good, bad=other.open_bad)

    def close_step(self) -> BurnDetector:
        """End the open step; without events nothing changes."""
        if not self.open_good + self.open_bad:
            return self
        return replace(self, closed=self._current(), open_good=0, open_bad=0, steps=self.steps + 1)

    def _current(self) -> tuple[float, ...]:
        good, bad = self.open_good, self.open_bad
        if not good + bad:
            return self.closed
        p = self.null_rate
        found = []
        for m, multiple in zip(self.closed, ODDS_MULTIPLES, strict=True):
            # q = multiple * p / (1 - p + multiple * p): the ratios of a bad and of a good event are these two
            log_ratio = bad * math.log(multiple) - (good + bad) * math.log1p((multiple - 1) * p)
            found.append(min(_CEILING, (1 + m) * math.exp(min(_LOG_MAX, log_ratio))))
        return tuple(found)

    @property
    def value(self) -> float:
        """The detector's statistic, comparable with ``horizon``."""
        current = self._current()
        return sum(current) / len(current)

    @property
    def alarmed(self) -> bool:
        """Whether the statistic has reached the horizon."""
        return self.value >= self.horizon

    def as_json(self) -> dict[str, Any]:
        """The state as a plain JSON object."""
        return {
            "null_rate": self.null_rate,
            "horizon": self.horizon,
            "closed": list(self.closed),
            "open_good": self.open_good,
            "open_bad": self.open_bad,
            "steps": self.steps,
            "count": self.count,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> BurnDetector:
        """Read back what ``as_json`` wrote."""
        return cls(**{**value, "closed": tuple(value["closed"])})
