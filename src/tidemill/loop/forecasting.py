"""Forecasts of endpoints from what is stored: requests, tokens, cost and calls at once, with the project's limits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from tidemill.kernel import LimitScope, LimitUnit
from tidemill.monitoring.forecast import STEP_S, Forecast, History, forecast, in_flight
from tidemill.telemetry import SpanStore
from tidemill.telemetry.queries import Condition, Measure, SeriesQuery, SeriesRow

if TYPE_CHECKING:
    from tidemill.kernel.settings import LimitSettings, Settings

_DAY_S: Final = 86_400.0
_REQUESTS: Final = Measure("requests")
_TOKENS: Final = Measure("total_tokens", "sum")
_COST: Final = Measure("cost_usd", "sum")
_DURATION: Final = Measure("duration_s", "mean")
#: measure -> (name, unit, from an hourly total to the unit, what a limit counts)
_FORECASTS: Final[tuple[tuple[Measure, str, str, float, LimitUnit], ...]] = (
    (_REQUESTS, "requests", "requests/s", 1 / STEP_S, LimitUnit.REQUESTS),
    (_TOKENS, "tokens", "tokens/s", 1 / STEP_S, LimitUnit.TOKENS),
    (_COST, "cost", "USD/h", 1.0, LimitUnit.USD),
)


def forecast_endpoints(
    settings: Settings,
    store: SpanStore,
    *,
    now_s: float,
    endpoint: str | None = None,
    days: float = 14.0,
    history_days: float = 56.0,
) -> list[dict[str, Any]]:
    """What each endpoint's load will be.

    Args:
        settings: limits and caps of the project file.
        store: what happened.
        now_s: seconds since 1970; the running hour is left out.
        endpoint: only this one.
        days: how far ahead.
        history_days: how far back.

    Returns:
        For each endpoint its name and its forecasts as JSON objects, sorted by name.
    """
    end_s = now_s // STEP_S * STEP_S
    where = (Condition("endpoint", "exists", True),) if endpoint is None else (Condition("endpoint", "=", endpoint),)
    rows = store.series(
        SeriesQuery(
            measures=(_REQUESTS, _TOKENS, _COST, _DURATION),
            group_by=("endpoint",),
            every_s=STEP_S,
            since_ns=int((end_s - history_days * _DAY_S) * 1e9),
            until_ns=int(end_s * 1e9),
            where=where,
            roots_only=True,
            limit=1_000_000,
        )
    ).rows
    by_endpoint: dict[str, list[SeriesRow]] = {}
    for row in rows:
        by_endpoint.setdefault(str(row.group["endpoint"]), []).append(row)
    hours = max(1, math.ceil(days * _DAY_S / STEP_S))
    return [
        {
            "endpoint": name,
            "forecasts": [one.as_json() for one in _forecasts(settings, name, its_rows, end_s, hours)],
        }
        for name, its_rows in sorted(by_endpoint.items())
    ]


def _forecasts(
    settings: Settings, endpoint: str, rows: Sequence[SeriesRow], end_s: float, hours: int
) -> list[Forecast]:
    found = [
        forecast(
            name,
            unit,
            history_of(rows, measure, end_s),
            hours=hours,
            scale=scale,
            limits=limits_of_endpoint(settings.limits, endpoint, counts, scale),
        )
        for measure, name, unit, scale, counts in _FORECASTS
    ]
    return [*found, _at_once(settings, endpoint, rows, end_s, hours)]


def _at_once(settings: Settings, endpoint: str, rows: Sequence[SeriesRow], end_s: float, hours: int) -> Forecast:
    """Calls at once, one of a hundred moments: the requests' forecast taken through Little's law."""
    requests = history_of(rows, _REQUESTS, end_s)
    busy_s = sum(_value(row, _DURATION) * _value(row, _REQUESTS) for row in rows)
    mean_s = busy_s / requests.requests if requests.requests else 0.0
    plain = forecast("calls at once", "calls", requests, hours=hours)
    cap = cap_of_endpoint(settings, endpoint)
    limits = {} if cap is None else {"max_in_flight": float(cap)}
    return plain.mapped(
        lambda total: in_flight(total / STEP_S, mean_s),
        limits,
        f"{plain.reason}; {mean_s:.2f} s a call" if plain.known else plain.reason,
    )


def history_of(rows: Sequence[SeriesRow], measure: Measure, end_s: float) -> History:
    """Hourly totals from the first hour with traffic to ``end_s``, hours without traffic included.

    Args:
        rows: of one endpoint, one for each hour with traffic.
        measure: which of their values.
        end_s: end of the last hour, seconds since 1970.
    """
    by_hour = {int(row.start_ns // 1e9 // STEP_S): row for row in rows if row.start_ns is not None}
    if not by_hour:
        return History(first_s=end_s)
    first = min(by_hour)
    totals = [0.0] * max(0, int(end_s // STEP_S) - first)
    for hour, row in by_hour.items():
        if hour - first < len(totals):
            totals[hour - first] = _value(row, measure)
    return History(first_s=first * STEP_S, totals=totals, requests=sum(_value(row, _REQUESTS) for row in rows))


def limits_of_endpoint(
    limits: Mapping[str, LimitSettings], endpoint: str, counts: LimitUnit, scale: float
) -> dict[str, float]:
    """The project's limits on an endpoint in the unit of a forecast: their even pace.

    Limits of keys, teams and the tenant are left out: they are shared among endpoints.
    """
    return {
        name: limit.amount / limit.window_s * STEP_S * scale
        for name, limit in limits.items()
        if limit.unit == counts and limit.scope == LimitScope.ENDPOINT and limit.subject in ("*", endpoint)
    }


def cap_of_endpoint(settings: Settings, endpoint: str) -> int | None:
    """Calls at once that the models of an endpoint's release take together, by one worker; ``None`` for no cap."""
    section = settings.endpoints.get(endpoint)
    release = settings.releases.get(section.release) if section is not None else None
    model = settings.models.get(release.model) if release is not None else None
    return model.max_in_flight * settings.gateway.workers if model is not None and model.max_in_flight else None


def _value(row: SeriesRow, measure: Measure) -> float:
    return float(row.values.get(measure.name) or 0.0)
