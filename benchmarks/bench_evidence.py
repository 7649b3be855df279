"""How often do rollouts decide wrongly when looked at continuously? Simulation with the product's own code.

Beside it, on the same simulated traffic: the rule of Flagger's kind (10 checks of 100 canary requests against a fixed
threshold, 5 failed checks roll back, else promote) and a z-test that is looked at after every 20 canary sessions.
Run: python benchmarks/bench_evidence.py [RUNS]
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

from rows import Row, write_rows
from tidemill.evidence import RateDetector, compare_paired
from tidemill.kernel import Outcome
from tidemill.ledger import Observation
from tidemill.releases import RolloutPolicy, assess

MARGIN, BASE, ALPHA = 0.1, 0.85, 0.05
POLICY = RolloutPolicy(margins={"success": MARGIN}, max_sessions=1000, min_sessions=20)
AT = datetime(2026, 1, 1, tzinfo=UTC)
Session = tuple[bool, float]  # (canary?, success)


def traffic(delta: float, drift: bool, seed: int) -> list[Session]:
    """2,400 sessions, half of them canary; with drift the success of both arms swings by .1 twice."""
    rng = random.Random(seed)
    sessions = []
    for i in range(2400):
        base = BASE + (0.1 * math.sin(4 * math.pi * i / 2400) if drift else 0.0)
        canary = rng.random() < 0.5
        sessions.append((canary, float(rng.random() < base + (delta if canary else 0.0))))
    return sessions


def betting(sessions: list[Session]) -> tuple[str, int]:
    rows = [
        Observation(unit=str(i), arm="canary" if canary else "control", metrics={"success": value}, at=AT, seq=i + 1)
        for i, (canary, value) in enumerate(sessions)
    ]
    verdict = assess(POLICY, rows)
    return str(verdict.value), verdict.evidence["sessions"]["canary"]


def thresholds(sessions: list[Session]) -> tuple[str, int]:
    values = [value for canary, value in sessions if canary][:1000]
    failures = 0
    for check in range(10):
        failures += sum(values[check * 100 : check * 100 + 100]) / 100 < BASE - MARGIN
        if failures >= 5:
            return "roll_back", check * 100 + 100
    return "promote", 1000


def peeking_z(sessions: list[Session]) -> tuple[str, int]:
    n, total = {True: 0, False: 0}, {True: 0.0, False: 0.0}
    for canary, value in sessions:
        n[canary] += 1
        total[canary] += value
        if not canary or n[True] % 20 or not n[False]:
            continue
        means = {arm: total[arm] / n[arm] for arm in n}
        error = math.sqrt(sum(max(means[arm] * (1 - means[arm]), 1e-4) / n[arm] for arm in n))
        delta = means[True] - means[False]
        if delta / error < -1.645:
            return "roll_back", n[True]
        if (delta + MARGIN) / error > 1.645:
            return "promote", n[True]
        if n[True] >= 1000:
            break
    return "hold", n[True]


RULES: dict[str, Callable[[list[Session]], tuple[str, int]]] = {
    "block betting": betting,
    "thresholds 10x100, 5 failures": thresholds,
    "z-test, look each 20": peeking_z,
}


def simulate(delta: float, drift: bool, runs: int) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {name: {"promote": 0, "roll_back": 0, "hold": 0, "n": 0} for name in RULES}
    for run in range(runs):
        sessions = traffic(delta, drift, run)
        for name, rule in RULES.items():
            value, canaries = rule(sessions)
            found[name]["hold" if value == "continue" else value] += 1 / runs
            found[name]["n"] += canaries / runs
    return found


def rollouts(runs: int) -> list[Row]:
    rows = []
    slack = 2 * math.sqrt(ALPHA * (1 - ALPHA) / runs)  # two standard errors of the simulation itself
    for delta, drift, what in (
        (-MARGIN, False, "promote"),
        (-MARGIN, True, "promote"),
        (0.0, False, "roll_back"),
        (0.0, True, "roll_back"),
    ):
        found = simulate(delta, drift, runs)
        label = {"promote": "false promotion", "roll_back": "false rollback"}[what]
        name = f"{label}, true loss {abs(delta):g}" + (", shared drift" if drift else "")
        ours = found.pop("block betting")
        beside = {peer: result[what] for peer, result in found.items()}
        rows.append(Row(name, ours[what], "share", f"<= {ALPHA}", ours[what] <= ALPHA + slack, beside))
        if delta == 0 and not drift:
            good = {peer: result["promote"] for peer, result in found.items()}
            rows.append(
                Row("right promotion, true loss 0", ours["promote"], "share", ">= 0.9", ours["promote"] >= 0.9, good)
            )
            sizes = {peer: result["n"] for peer, result in found.items()}
            rows.append(Row("canary sessions to decide, true loss 0", ours["n"], "sessions", beside=sizes))
    found = simulate(-0.25, False, runs)
    ours = found.pop("block betting")
    rows.append(
        Row(
            "rolled back, true loss 0.25",
            ours["roll_back"],
            "share",
            ">= 0.99",
            ours["roll_back"] >= 0.99,
            {peer: result["roll_back"] for peer, result in found.items()},
        )
    )
    sizes = {peer: result["n"] for peer, result in found.items()}
    rows.append(Row("canary sessions exposed, true loss 0.25", ours["n"], "sessions", beside=sizes))
    return rows


def gates(runs: int) -> list[Row]:
    """One look at 60 cases where the candidate truly loses exactly the margin, by rare total losses."""
    rng = random.Random(1)
    passed = naive = 0
    for _ in range(runs):
        candidate = [float(rng.random() < 0.95) for _ in range(60)]
        passed += compare_paired(candidate, [1.0] * 60, margin=0.05).value is Outcome.PASS
        mean = sum(candidate) / 60
        error = math.sqrt(max(mean * (1 - mean), 1e-9) / 60)
        naive += (mean - 1 + 0.05) / error > 1.645
    share, peer = passed / runs, naive / runs
    slack = 2 * math.sqrt(ALPHA * (1 - ALPHA) / runs)
    return [
        Row(
            "gate: false PASS, true loss = margin 0.05, 60 cases",
            share,
            "share",
            "<= 0.05",
            share <= 0.05 + slack,
            {"z-test": peer},
        )
    ]


def detectors(runs: int) -> list[Row]:
    horizon, null_rate = 300.0, 0.05
    rng = random.Random(2)

    def run_length(rate: float, limit: int) -> int:
        detector = RateDetector.start(null_rate, horizon)
        for n in range(1, limit + 1):
            detector = detector.close_step().observe(float(rng.random() < rate))
            if detector.alarmed:
                return n
        return limit

    def window_rule(rate: float, limit: int) -> int:
        """More than twice the tolerated share in the last 50 requests."""
        last: list[float] = []
        for n in range(1, limit + 1):
            last = [*last[-49:], float(rng.random() < rate)]
            if len(last) == 50 and sum(last) / 50 > 2 * null_rate:
                return n
        return limit

    false = sum(run_length(null_rate, 6000) for _ in range(runs)) / runs
    window = sum(window_rule(null_rate, 6000) for _ in range(runs)) / runs
    delay = sum(run_length(0.5, 6000) for _ in range(runs)) / runs
    window_delay = sum(window_rule(0.5, 6000) for _ in range(runs)) / runs
    peer = "window of 50, twice the share"
    return [
        Row(
            "alarm: mean requests to a false alarm, at the limit",
            false,
            "requests",
            f">= {horizon:g}",
            false >= horizon,
            {peer: window},
        ),
        Row("alarm: mean requests until found, half failing", delay, "requests", beside={peer: window_delay}),
    ]


def cost() -> Row:
    sessions = traffic(-MARGIN / 2, False, 3)[:1000]
    began = time.process_time()
    betting(sessions)
    return Row("assessment from scratch, 1,000 sessions", (time.process_time() - began) * 1000, "ms CPU")


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    write_rows("evidence", [*rollouts(runs), *gates(runs), *detectors(max(20, runs // 4)), cost()])


if __name__ == "__main__":
    main()
