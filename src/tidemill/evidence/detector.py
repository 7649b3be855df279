"""Change alarm on a rate: a Shiryaev-Roberts e-detector.

Shin, Ramdas and Rinaldo, "E-detectors: a nonparametric framework for sequential change detection" (2024), with the
stakes of ``LAMBDAS``. On 0/1 data each stake is the likelihood ratio of the rate ``null + lambda * (1 - null)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from tidemill.evidence.betting import LAMBDAS
from tidemill.kernel import InvalidInput

_CEILING: Final = 1e300


@dataclass(frozen=True, slots=True, kw_only=True)
class RateDetector:
    """Raises an alarm when a rate has risen above ``null_rate``; false alarms come at most once in ``horizon`` steps.

    A step is any number of observations: one, or those of five minutes. At the first observation of a step
    ``M_j = 1 + M_j``; each observation multiplies ``M_j *= 1 + lambda_j * (x - null_rate) / null_rate``. While the
    rate is at most ``null_rate``, the mean of the M_j less the number of steps begun is a supermartingale, so the
    expected number of steps until ``value >= horizon`` is at least ``horizon``, whenever one looks. Steps without
    observations do not exist: silence never raises an alarm.

    Args:
        null_rate: the largest tolerated mean of x, in (0, 1).
        horizon: steps in which one false alarm is accepted, at least 1.
        closed: M_j as of the last closed step.
        open_log_wealth: sums of log factors of the open step, additive over replicas.
        open_count: observations of the open step.
        steps: closed steps with observations.
        count: observations in all.
    """

    null_rate: float
    horizon: float
    closed: tuple[float, ...]
    open_log_wealth: tuple[float, ...]
    open_count: int = 0
    steps: int = 0
    count: int = 0

    @classmethod
    def start(cls, null_rate: float, horizon: float) -> RateDetector:
        """A detector before any data.

        Raises:
            InvalidInput: a rate outside (0, 1) or a horizon below 1.
        """
        if not 0 < null_rate < 1:
            raise InvalidInput(f"tolerated rate {null_rate} is out of range: it lies between 0 and 1")
        if not horizon >= 1:
            raise InvalidInput(f"false-alarm horizon {horizon} is out of range: it is at least one step")
        zeros = (0.0,) * len(LAMBDAS)
        return cls(null_rate=null_rate, horizon=horizon, closed=zeros, open_log_wealth=zeros)

    def observe(self, x: float) -> RateDetector:
        """Add an observation in [0, 1] to the open step.

        Raises:
            InvalidInput: ``x`` is out of range.
        """
        if not 0 <= x <= 1:
            raise InvalidInput(f"observation {x} is out of range: a rate is watched over values from 0 to 1")
        gain = (x - self.null_rate) / self.null_rate
        logs = tuple(
            log_w + math.log1p(stake * gain) for log_w, stake in zip(self.open_log_wealth, LAMBDAS, strict=True)
        )
        return replace(self, open_log_wealth=logs, open_count=self.open_count + 1, count=self.count + 1)

    def absorb(self, other: RateDetector) -> RateDetector:
        """Add the open step of a replica that watched other observations of the same step.

        Raises:
            InvalidInput: the replica watches another rate.
        """
        if other.null_rate != self.null_rate:
            raise InvalidInput(f"detectors of rate {self.null_rate} and {other.null_rate} cannot be merged")
        logs = tuple(a + b for a, b in zip(self.open_log_wealth, other.open_log_wealth, strict=True))
        count = self.count + other.open_count
        return replace(self, open_log_wealth=logs, open_count=self.open_count + other.open_count, count=count)

    def close_step(self) -> RateDetector:
        """End the open step; without observations nothing changes."""
        if not self.open_count:
            return self
        zeros = (0.0,) * len(LAMBDAS)
        return replace(self, closed=self._current(), open_log_wealth=zeros, open_count=0, steps=self.steps + 1)

    def _current(self) -> tuple[float, ...]:
        if not self.open_count:
            return self.closed
        pairs = zip(self.closed, self.open_log_wealth, strict=True)
        return tuple(min(_CEILING, (1 + m) * math.exp(min(690.0, log_w))) for m, log_w in pairs)

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
            "open_log_wealth": list(self.open_log_wealth),
            "open_count": self.open_count,
            "steps": self.steps,
            "count": self.count,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RateDetector:
        """Read back what ``as_json`` wrote."""
        fields = dict(value)
        fields["closed"] = tuple(fields["closed"])
        fields["open_log_wealth"] = tuple(fields["open_log_wealth"])
        return cls(**fields)
