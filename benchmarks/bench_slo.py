"""Burn alarms on simulated traffic: the product's e-detector beside the classic multiwindow, multi-burn-rate rules.

Objective 0.99 over 28 days. Classic page rules: burn > 14.4 over 1 h and 5 min, or > 6 over 6 h and 30 min; classic
ticket rule: > 1 over 3 d and 6 h; evaluated each minute (The Site Reliability Workbook, chapter 5). Ours: ``ticket``
(more than the budget) and ``page`` (six times it), one false alarm in 90 days. Errors are independent unless a row says
otherwise. Delays are of the streams in which the failure was found, within seven days of its beginning.
Run: python benchmarks/bench_slo.py [STREAMS]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rows import Row, write_rows
from tidemill.monitoring import Slo, watch

OBJECTIVE, MINUTES_A_DAY = 0.99, 1440
BUDGET = 1 - OBJECTIVE
SLO = Slo(name="s", indicator="availability", objective=OBJECTIVE)
CALM_DAYS, WARM_DAYS, FOUND_DAYS = 30, 7, 7
RULES = {"page": ((60, 5, 14.4), (360, 30, 6.0)), "ticket": ((4320, 360, 1.0),)}


@dataclass(frozen=True)
class Stream:
    """Requests and failed requests of each minute."""

    total: np.ndarray
    bad: np.ndarray

    def events(self, first: int, end: int) -> Iterator[tuple[float, bool]]:
        """Time in seconds and whether it failed, of the minutes from ``first`` to ``end``."""
        for minute in np.flatnonzero(self.total[first:end]).tolist():
            minute += first  # noqa: PLW2901
            total, bad = int(self.total[minute]), int(self.bad[minute])
            if not bad:
                yield from [(minute * 60.0, False)] * total
                continue
            # bad events spread over the minute's requests
            for place in range(total):
                yield minute * 60.0 + place * 60.0 / total, (place * bad) // total != ((place + 1) * bad) // total


def stream(rng: np.random.Generator, per_hour: float, share: np.ndarray, *, daily: bool = False) -> Stream:
    minutes = np.arange(len(share))
    rate = per_hour / 60 * (1 + 0.8 * np.sin(2 * np.pi * minutes / MINUTES_A_DAY) if daily else np.ones(len(share)))
    total = rng.poisson(rate)
    return Stream(total, rng.binomial(total, share))


def bursts(rng: np.random.Generator, minutes: int, mean: float) -> np.ndarray:
    """A share of failures that lies inside the budget on average but comes in bursts: ten minutes at ten times it."""
    share = np.full(minutes, mean / 2)
    for start in np.flatnonzero(rng.random(minutes) < 0.5 / 9.5 / 10):
        share[start : start + 10] = mean * 10
    return share


def classic(one: Stream, kind: str) -> np.ndarray:
    """Whether the classic rules of a kind are on, minute by minute."""
    sums = [np.concatenate(([0], np.cumsum(values))) for values in (one.total, one.bad)]
    last = np.arange(1, len(one.total) + 1)
    on = np.zeros(len(one.total), dtype=bool)
    for long, short, factor in RULES[kind]:
        both = np.ones(len(one.total), dtype=bool)
        for minutes in (long, short):
            total, bad = (values[last] - values[np.maximum(0, last - minutes)] for values in sums)
            both &= np.divide(bad, total, out=np.zeros(len(total)), where=total > 0) / BUDGET > factor
        on |= both
    return on


def classic_alarms(one: Stream, kind: str) -> int:
    on = classic(one, kind)
    return int(np.sum(on & ~np.concatenate(([False], on[:-1]))))


def classic_delay(one: Stream, kind: str, begin: int) -> float:
    places = np.flatnonzero(classic(one, kind)[begin:])
    return float(places[0]) if len(places) else np.nan


def our_alarms(one: Stream, kind: str) -> int:
    rule = SLO.rules[kind]  # type: ignore[index]  # the two names are those of the product
    return sum(turn.fired for turn in watch(rule, rule.start(), one.events(0, len(one.total)))[1])


def our_delay(one: Stream, kind: str, begin: int) -> float:
    """Minutes from the failure's beginning to the alarm; 0 if one was on already."""
    rule = SLO.rules[kind]  # type: ignore[index]
    state, _ = watch(rule, rule.start(), one.events(0, begin))
    for minute in range(begin, len(one.total), 10):
        if state.firing:
            return 0.0
        state, turns = watch(rule, state, one.events(minute, minute + 10))
        if turns:
            return turns[0].at_s / 60 - begin
    return np.nan


def calm(streams: int, per_hour: float, *, share: float, bursty: bool = False, daily: bool = False) -> list[Row]:
    """False alarms a month while the objective is kept."""
    found: dict[str, list[int]] = {}
    for seed in range(streams):
        rng = np.random.default_rng([seed, int(per_hour), int(share * 1e4), bursty, daily])
        minutes = CALM_DAYS * MINUTES_A_DAY
        shares = bursts(rng, minutes, share) if bursty else np.full(minutes, share)
        one = stream(rng, per_hour, shares, daily=daily)
        for kind in RULES:
            found.setdefault(f"{kind} ours", []).append(our_alarms(one, kind))
            found.setdefault(f"{kind} classic", []).append(classic_alarms(one, kind))
    how = "bursts" if bursty else "daily cycle" if daily else "independent"
    rows = []
    for kind in RULES:
        mine, theirs = (float(np.mean(found[f"{kind} {who}"])) for who in ("ours", "classic"))
        # the promise is one in 90 days, that is 1/3 in 30, for shares inside the budget
        slack = 2 * float(np.sqrt(1 / 3 / streams))
        promised = kind == "page" or share <= BUDGET
        rows.append(
            Row(
                f"{per_hour:g}/h, {share:.1%} fail ({how}): false {kind}s in 30 days",
                mine,
                "alarms",
                "<= 1/3" if promised and not bursty else "",
                mine <= 1 / 3 + slack if promised and not bursty else None,
                {"multiwindow": theirs},
            )
        )
    return rows


def failure(streams: int, per_hour: float, burn: float) -> list[Row]:
    """Share found and mean delay after failures begin, at so many times the budget."""
    share = min(1.0, burn * BUDGET)
    begin = WARM_DAYS * MINUTES_A_DAY
    delays: dict[str, list[float]] = {}
    for seed in range(streams):
        rng = np.random.default_rng([seed, int(per_hour), int(burn * 10), 7])
        shares = np.concatenate((np.full(begin, BUDGET / 2), np.full(FOUND_DAYS * MINUTES_A_DAY, share)))
        one = stream(rng, per_hour, shares)
        for kind in RULES:
            delays.setdefault(f"{kind} ours", []).append(our_delay(one, kind, begin))
            delays.setdefault(f"{kind} classic", []).append(classic_delay(one, kind, begin))
    rows = []
    for kind in RULES:
        mine, theirs = (np.array(delays[f"{kind} {who}"]) for who in ("ours", "classic"))
        name = f"{per_hour:g}/h, burn {burn:g}: {kind}"
        shares_found = [float(np.mean(~np.isnan(one))) for one in (mine, theirs)]
        # from 60 requests an hour on, nothing that burns at three times the budget may go unseen
        bar = kind == "ticket" and per_hour >= 60
        holds = shares_found[0] >= 1 if bar else None
        beside = {"multiwindow": shares_found[1]}
        rows.append(Row(f"{name} found", shares_found[0], "share", ">= 1" if bar else "", holds, beside))
        if shares_found[0]:
            beside = {"multiwindow": _mean(theirs)} if shares_found[1] else {}
            rows.append(Row(f"{name} mean delay", _mean(mine), "min", beside=beside))
    return rows


def _mean(delays: np.ndarray) -> float:
    return float(np.nanmean(delays))


def total(rows: list[Row]) -> Row:
    """All false alarms of the calm rows together."""
    false = [row for row in rows if ": false " in row.figure and "(bursts)" not in row.figure]
    ours, theirs = sum(row.value for row in false), sum(row.beside["multiwindow"] for row in false)
    share = ours / theirs if theirs else 0.0
    return Row("false alarms, all rows of independent errors, of multiwindow's", share, "share", "<= 0.1", share <= 0.1)


def cost() -> Row:
    one = stream(np.random.default_rng(1), 6000, np.full(2 * MINUTES_A_DAY, BUDGET / 2))
    events = list(one.events(0, len(one.total)))
    rule = SLO.rules["ticket"]
    began = time.process_time()
    watch(rule, rule.start(), events)
    return Row("one objective's alarm, CPU an event", (time.process_time() - began) / len(events) * 1e6, "us")


def main() -> None:
    streams = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    rows: list[Row] = []
    for per_hour in (10, 60, 600):
        few = streams if per_hour < 600 else max(4, streams // 4)
        rows += calm(few, per_hour, share=BUDGET / 2)
        for burn in (3, 10, 30, 100):
            rows += failure(few, per_hour, burn)
    rows += calm(streams, 60, share=BUDGET)
    rows += calm(streams, 60, share=BUDGET / 2, daily=True)
    rows += calm(streams, 60, share=BUDGET / 2, bursty=True)
    write_rows("slo", [*rows, total(rows), cost()])


if __name__ == "__main__":
    main()
