"""Forecasts: what is not known is said, intervals hold what they promise, limits are met when they will be."""

import math
import random

import pytest

from tidemill.monitoring.forecast import LEVEL, History, forecast, in_flight

START_S = 1_767_225_600.0  # midnight UTC


def poisson(rng, mean):
    if mean > 500:
        return max(0, round(rng.gauss(mean, math.sqrt(mean))))
    total, limit = 0, math.exp(-mean)
    product = rng.random()
    while product > limit:
        total += 1
        product *= rng.random()
    return total


def traffic(hours, *, seed=0, level=60.0, growth_a_day=0.0, weekly=0.0, first=0):
    rng = random.Random(seed)
    found = []
    for hour in range(first, first + hours):
        mean = level * (1 + growth_a_day * hour / 24) * (1 + 0.5 * math.sin(2 * math.pi * hour / 24))
        mean *= 1 - weekly * (hour // 24 % 7 >= 5)
        found.append(poisson(rng, mean))
    return found


def history(totals):
    return History(first_s=START_S, totals=totals, requests=sum(totals))


def test_too_short_or_too_thin_a_history_gives_no_forecast_but_the_reason():
    short = forecast("requests", "requests/s", history(traffic(48)), hours=24)
    assert not short.known
    assert "2.0 days of traffic, a forecast needs 4" in short.reason
    thin = forecast("requests", "requests/s", history([0.0] * 500 + [3.0]), hours=24)
    assert not thin.known
    assert "3 requests" in thin.reason
    assert forecast("x", "y", History(first_s=START_S), hours=1).as_json()["known"] is False


@pytest.mark.parametrize("days", [6, 14, 35])
def test_the_interval_holds_what_comes(days):
    held = total = 0
    for seed in range(12):
        values = traffic((days + 3) * 24, seed=seed, growth_a_day=0.01)
        found = forecast("requests", "requests/h", history(values[: days * 24]), hours=72)
        for point, value in zip(found.points, values[days * 24 :], strict=True):
            held += point.low <= value <= point.high
            total += 1
    assert held / total >= LEVEL - 0.05


def test_growth_and_the_week_are_seen():
    values = traffic(42 * 24, level=200, growth_a_day=0.02, weekly=0.5)
    found = forecast("requests", "requests/h", history(values), hours=14 * 24)
    assert found.growth_a_week is not None
    day = [sum(one.expected for one in found.points[d * 24 : d * 24 + 24]) for d in range(7)]
    assert max(day[5:7]) < 0.75 * min(day[:5])
    assert "day and week" in found.reason


def test_a_limit_is_met_first_possibly_then_expectedly_and_a_far_one_never():
    values = traffic(28 * 24, level=300, growth_a_day=0.03)
    near = 1.05 * max(values[-24:])
    found = forecast("r", "requests/h", history(values), hours=28 * 24, limits={"near": near, "far": 1e9})
    crossings = {one.limit: one for one in found.crossings}
    reached = crossings["near"]
    assert reached.possible_at_s is not None
    assert reached.expected_at_s is not None
    assert START_S < reached.possible_at_s <= reached.expected_at_s
    assert (crossings["far"].possible_at_s, crossings["far"].expected_at_s) == (None, None)


def test_the_unit_changes_the_numbers_and_nothing_else():
    values = traffic(10 * 24)
    a_second = forecast("r", "requests/s", history(values), hours=24, scale=1 / 3600)
    an_hour = forecast("r", "requests/h", history(values), hours=24)
    assert [one.expected * 3600 for one in a_second.points] == pytest.approx([one.expected for one in an_hour.points])
    assert a_second.growth_a_week == pytest.approx(an_hour.growth_a_week)


def test_nothing_is_negative_and_points_are_ordered():
    found = forecast("r", "x", history([50.0 - 0.3 * hour for hour in range(160)]), hours=24 * 30)
    assert all(0 <= one.low <= one.expected <= one.high for one in found.points)


def test_calls_at_once_follow_littles_law():
    assert in_flight(0, 10) == 0
    assert in_flight(10, 10) == pytest.approx(123.26)
