"""Capacity forecast: what an endpoint's load will be, with an interval, and when a limit will be reached.

Pure. Hourly values are taken to the square root, where counts have the same spread at every level, and fitted by least
squares: a line, three daily harmonics, and from three weeks of history on three weekly ones. The interval is not the
model's own opinion: the model is fitted again to the history up to earlier moments, and its errors on what followed
are taken, by how far ahead they lay (split conformal; Vovk, Gammerman and Shafer, "Algorithmic learning in a random
world", 2005). Farther ahead than the history can show, it widens with the square root of time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

STEP_S: Final = 3600.0
LEVEL: Final = 0.9
LEAST_DAYS: Final = 4.0
WEEKLY_DAYS: Final = 21.0
LEAST_REQUESTS: Final = 100.0
_DAY: Final = 24
_WEEK: Final = 168
_HARMONICS: Final = 3
_ORIGINS: Final = 12
#: Errors are pooled by how many hours ahead they lie.
_LEADS: Final = (6, 24, 72, 168, 336, 672)


@dataclass(frozen=True, slots=True)
class ForecastPoint:
    """One hour: its beginning in seconds since 1970, the expected value and the interval's ends."""

    start_s: float
    low: float
    expected: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """When a limit is reached.

    Args:
        limit: its name.
        amount: how much it allows, in the forecast's unit.
        expected_at_s: first hour whose expected value reaches it; ``None`` within the horizon never.
        possible_at_s: first hour whose interval reaches it.
    """

    limit: str
    amount: float
    expected_at_s: float | None
    possible_at_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What is to be expected of one measure.

    Args:
        measure: what is forecast.
        unit: of the values.
        level: share of hours that the interval should hold.
        points: hour by hour; empty where there is not enough to go by.
        reason: what the forecast rests on, or why there is none.
        growth_a_week: relative change of the daily mean from the last day of history to a week later; ``None``
            without a forecast.
        crossings: of the limits that were given.
    """

    measure: str
    unit: str
    level: float = LEVEL
    points: tuple[ForecastPoint, ...] = ()
    reason: str = ""
    growth_a_week: float | None = None
    crossings: tuple[Crossing, ...] = ()

    @property
    def known(self) -> bool:
        """Whether there is a forecast."""
        return bool(self.points)

    def mapped(self, change: Callable[[float], float], limits: Mapping[str, float], reason: str) -> Forecast:
        """The same forecast of an increasing function of the measure, with limits of its own."""
        points = tuple(
            ForecastPoint(one.start_s, change(one.low), change(one.expected), change(one.high)) for one in self.points
        )
        crossings = tuple(_crossing(name, amount, points) for name, amount in limits.items())
        return replace(self, points=points, crossings=crossings if points else (), reason=reason)

    def as_json(self) -> dict[str, Any]:
        """The forecast as a plain JSON object."""
        return {
            "measure": self.measure,
            "unit": self.unit,
            "level": self.level,
            "known": self.known,
            "reason": self.reason,
            "growth_a_week": self.growth_a_week,
            "points": [[one.start_s, one.low, one.expected, one.high] for one in self.points],
            "crossings": [
                {
                    "limit": one.limit,
                    "amount": one.amount,
                    "expected_at_s": one.expected_at_s,
                    "possible_at_s": one.possible_at_s,
                }
                for one in self.crossings
            ],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Hourly totals without gaps: an hour without traffic is 0.

    Args:
        first_s: beginning of the first hour, seconds since 1970, a multiple of 3600.
        totals: one for each hour; the last hour is over.
        requests: requests in all, by which is judged whether there is enough to go by.
    """

    first_s: float
    totals: Sequence[float] = field(default_factory=tuple)
    requests: float = 0.0


def forecast(
    measure: str,
    unit: str,
    history: History,
    *,
    hours: int,
    scale: float = 1.0,
    limits: Mapping[str, float] | None = None,
) -> Forecast:
    """Forecast a measure for the hours after its history.

    Args:
        measure: what is forecast.
        unit: of the values.
        history: hourly totals.
        hours: how far ahead.
        scale: from an hourly total to the unit, e.g. 1/3600 for a rate a second.
        limits: by name, in the unit.

    Returns:
        The forecast; without points, and with the reason, where the history is too short or too thin.
    """
    days = len(history.totals) / _DAY
    if days < LEAST_DAYS:
        why = f"not enough data: {days:.1f} days of traffic, a forecast needs {LEAST_DAYS:g}"
        return Forecast(measure=measure, unit=unit, reason=why)
    if history.requests < LEAST_REQUESTS:
        why = f"not enough data: {history.requests:.0f} requests, a forecast needs {LEAST_REQUESTS:g}"
        return Forecast(measure=measure, unit=unit, reason=why)
    import numpy as np

    # Cost and tokens are no counts: in units of their own mean a request they spread like counts.
    quantum = max(1e-12, float(np.sum(history.totals)) / history.requests)
    roots = np.sqrt(np.asarray(history.totals, dtype=np.float64) / quantum + 0.375)
    hour = int(history.first_s // STEP_S)
    expected = _predict(roots, hour, hours)
    spread, seen = _spread(roots, hour, hours)
    low, high = np.maximum(expected - spread, 0.0), expected + spread
    begin_s = history.first_s + len(roots) * STEP_S
    values = [np.maximum(part**2 - 0.375, 0.0) * quantum * scale for part in (low, np.maximum(expected, 0.0), high)]
    points = tuple(
        ForecastPoint(begin_s + place * STEP_S, *(float(part[place]) for part in values)) for place in range(hours)
    )
    seasons = "day and week" if days >= WEEKLY_DAYS else f"day (of the week from {WEEKLY_DAYS:g} days on)"
    reason = (
        f"{days:.0f} days of history; line and seasons of the {seasons}; "
        f"{LEVEL:.0%} interval from errors up to {seen} h ahead"
    )
    return Forecast(
        measure=measure,
        unit=unit,
        points=points,
        reason=reason,
        growth_a_week=_growth(np.asarray(history.totals[-_DAY:]) * scale, values[1]),
        crossings=tuple(_crossing(name, amount, points) for name, amount in (limits or {}).items()),
    )


def in_flight(rate: float, mean_s: float) -> float:
    """Calls at once that are exceeded in one of a hundred moments.

    By Little's law ``rate * mean_s`` on average; around it, with independent arrivals, as a Poisson number.

    Args:
        rate: calls a second.
        mean_s: how long one takes.
    """
    mean = rate * mean_s
    return mean + 2.326 * math.sqrt(mean)


def _design(hours: Array, origin: int, length: int, *, weekly: bool) -> Array:
    """Columns of the regression. Time is counted in lengths of the history from its beginning."""
    import numpy as np

    columns = [np.ones(len(hours)), (hours - origin) / length]
    for period in (_DAY, _WEEK) if weekly else (_DAY,):
        for harmonic in range(1, _HARMONICS + 1):
            angle = 2 * np.pi * harmonic * hours / period
            columns += [np.sin(angle), np.cos(angle)]
    return np.column_stack(columns)


def _predict(roots: Array, hour: int, ahead: int) -> Array:
    import numpy as np

    length = len(roots)
    weekly = length >= WEEKLY_DAYS * _DAY
    then = np.arange(hour, hour + length, dtype=np.float64)
    later = np.arange(hour + length, hour + length + ahead, dtype=np.float64)
    weights = np.linalg.lstsq(_design(then, hour, length, weekly=weekly), roots, rcond=None)[0]
    return np.asarray(_design(later, hour, length, weekly=weekly) @ weights, dtype=np.float64)


def _spread(roots: Array, hour: int, ahead: int) -> tuple[Array, int]:
    """Half the interval's width for each hour ahead, and how many hours ahead errors could be seen."""
    import numpy as np

    length = len(roots)
    least = max(2 * _DAY, length // 2)
    errors: dict[int, list[float]] = {}
    for origin in np.linspace(least, length - 6, _ORIGINS).astype(int):
        missed = np.abs(roots[origin:] - _predict(roots[:origin], hour, length - origin))
        for place, error in enumerate(missed, start=1):
            errors.setdefault(_lead(place), []).append(float(error))
    widths: dict[int, float] = {}
    widest = 0.0
    for lead in sorted(errors):
        ordered = sorted(errors[lead])
        rank = min(len(ordered), math.ceil((len(ordered) + 1) * LEVEL))
        widest = widths[lead] = max(widest, ordered[rank - 1])  # farther ahead is never surer
    seen = length - least
    last = widths[max(widths)]
    spread = [
        widths[_lead(place)] if place <= seen and _lead(place) in widths else last * math.sqrt(max(1.0, place / seen))
        for place in range(1, ahead + 1)
    ]
    return np.asarray(spread), seen


def _lead(place: int) -> int:
    return next((lead for lead in _LEADS if place <= lead), _LEADS[-1])


def _growth(last_day: Array, expected: Array) -> float | None:
    later = expected[6 * _DAY : 7 * _DAY] if len(expected) >= 7 * _DAY else expected[-_DAY:]
    before, after = float(last_day.mean()), float(later.mean())
    return after / before - 1 if before > 0 else None


def _crossing(name: str, amount: float, points: Sequence[ForecastPoint]) -> Crossing:
    return Crossing(
        limit=name,
        amount=amount,
        expected_at_s=next((one.start_s for one in points if one.expected >= amount), None),
        possible_at_s=next((one.start_s for one in points if one.high >= amount), None),
    )
