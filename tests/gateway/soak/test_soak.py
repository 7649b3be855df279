"""The whole gateway under everything at once: clients, faults, reloads, limits, kills; then the books are read."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.gateway.soak.callers import MAIL, Caller, Diary
from tests.gateway.soak.stage import BUDGET_USD, KEYS, Stage
from tidemill.kernel import LimitUnit
from tidemill.ledger.accounts import account_of, charged_request, quanta
from tidemill.telemetry import Span

SOAK_S = float(os.environ.get("SOAK_SECONDS", "60"))
SHORT_S = 6.0
CALLERS_PER_KEY = 2
MOST_MB = 200.0
#: A call that a kill cut may end a little later for the client than the process did.
AFTER_KILL_S = 10.0


@pytest.mark.soak
@pytest.mark.parametrize("seconds", [SHORT_S, SOAK_S])
def test_the_promises_hold_under_everything_at_once(tmp_path: Path, seconds: float) -> None:
    with ExitStack() as stack:
        stage = Stage(tmp_path, stack)
        diary = play(stage, seconds)
        assert not any(stage.in_flight().values())
        for name in tuple(stage.workers):
            stage.end_worker(name, signal.SIGTERM)
        stage.settle()
        report(stage, diary)
        assert diary.wrong == []
        assert stage.wrong == []
        assert not (said := stage.log_lines()), "\n".join(said)
        assert stage.most_mb < MOST_MB
        check_cuts(stage, diary)
        check_spans(stage.spans, diary)
        check_privacy(stage)
        assert stage.upstreams.injected
        assert diary.whole


def play(stage: Stage, seconds: float) -> Diary:
    """Run the clients, and meanwhile reload, kill and restart."""
    callers = [
        Caller(stage.port, tenant, key, seed)
        for seed, (key, (_, tenant)) in enumerate(tuple(KEYS.items()) * CALLERS_PER_KEY)
    ]
    for caller in callers:
        caller.foreign = next(one.responses for one in callers if one.tenant != caller.tenant)
    stop, control_stop = threading.Event(), threading.Event()
    threads = [threading.Thread(target=caller.run, args=(stop,)) for caller in callers]
    control = threading.Thread(target=stage.control_until, args=(control_stop,))
    for thread in (*threads, control):
        thread.start()
    try:
        end, turn = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            time.sleep(seconds / 12)
            stage.reload()
            if turn % 3 == 1:
                name = f"gateway-{turn // 3 % 2}"
                stage.end_worker(name, signal.SIGKILL if turn % 2 else signal.SIGTERM)
                stage.start_worker(name)
            turn += 1
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        control_stop.set()
        control.join()
    diary = Diary()
    for caller in callers:
        diary.add(caller.diary)
    return diary


def report(stage: Stage, diary: Diary) -> None:
    """The figures, shown with ``-s``, and where something fails."""
    injected = stage.upstreams.injected
    print(f"\n{sum(diary.asked.values())} asked, {len(diary.whole)} traced answers, {diary.hits} hits")
    print(f"{sum(injected.values())} faults of {len(injected)} kinds; {diary.broken_streams} streams ended in an error")
    print(f"{len(stage.killed_at)} kills cut {len(diary.cut)} calls; most memory {stage.most_mb:.0f} MB")
    statuses: Counter[int] = Counter()
    for (_, status), count in diary.statuses.items():
        statuses[status] += count
    print(f"statuses: {dict(sorted(statuses.items()))}")
    print({kind: (count, round(diary.spent_s[kind], 1)) for kind, count in diary.asked.items()})
    for one in stage.standing():
        print(f"{one.limit.limit_id}: {one.spent:g} of {one.amount:g}, {one.leased:g} leased")


def check_cuts(stage: Stage, diary: Diary) -> None:
    """No connection ends early but by a kill during the call."""
    stray = [
        (kind, round(begun, 2), round(ended, 2))
        for begun, ended, kind in diary.cut
        if not any(begun - AFTER_KILL_S <= at <= ended for at in stage.killed_at)
    ]
    assert stray == [], f"cut without a kill, which were at {stage.killed_at}"


def check_spans(spans: list[Span], diary: Diary) -> None:
    """Whoever got a whole answer is on record as finished, once; and the money is within the budget."""
    requests = [span for span in spans if span.operation != "attempt"]
    finished = Counter(span.trace_id for span in requests if span.status != "interrupted")
    interrupted = {span.trace_id for span in requests if span.status == "interrupted"}
    missing = [(trace_id, finished[trace_id]) for trace_id in diary.whole if finished[trace_id] != 1]
    assert missing == [], f"{len(missing)} of {len(diary.whole)} are not on record once"
    assert not interrupted & set(diary.whole)
    statuses = {span.trace_id: span.http_status for span in requests}
    assert [one for one, status in diary.whole.items() if statuses[one] != status] == []
    charges = [
        charge
        for span in requests
        if (charged := charged_request(span.span_id, span.attributes)) is not None
        for charge in charged.charges
    ]
    overdrawn = [one for one in charges if one.used is not None and one.used > one.reserved]
    print(f"{len(overdrawn)} of {len(charges)} charges are above their reserve: {overdrawn}")
    used = sum(
        charge.reserved if charge.used is None else charge.used
        for charge in charges
        if account_of(charge.lease) == "web-usd"
    )
    assert 0 < used <= quanta(LimitUnit.USD, BUDGET_USD)


def check_privacy(stage: Stage) -> None:
    """The guardrail's word is kept upstream too."""
    for server in stage.upstreams.servers.values():
        assert not any(MAIL in str(seen.body) for seen in server.seen)
