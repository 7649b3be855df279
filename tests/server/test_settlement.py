"""Spending is settled from the segments: once, whoever dies; and nothing stays lent to the dead."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.admission.limiting import limit
from tests.ledger.accounts.conftest import BACK_ENDS, clear_redis, redis_url
from tests.server.limited import limits_of
from tidemill.gateway.admission.leases import HolderMark
from tidemill.kernel import Limit, Scope, Unavailable
from tidemill.ledger import open_ledger
from tidemill.ledger.accounts import (
    ADMITTED_AT,
    CHARGES,
    USED,
    Ask,
    ChargedRequest,
    Grant,
    LeaseStore,
    charge_head,
    charged_request,
    open_lease_store,
)
from tidemill.server.settlement import Settlement
from tidemill.telemetry import Drainer, Intent, SegmentWriter, Span, SpanQuery, SpanStore, open_span_store

PATIENCE_S = 60.0
CHILD = Path(__file__).with_name("limited.py")
ROOT = CHILD.parents[2]


@dataclass
class Plant:
    """The control plane's side: accounts, segments, span store, drainer and settlement."""

    url: str
    scope: Scope
    segments: Path
    accounts: LeaseStore
    spans: SpanStore
    settlement: Settlement
    drainer: Drainer = field(init=False)
    owed: dict[str, ChargedRequest] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin anew, as after a crash."""
        self.drainer = Drainer(self.segments, self.spans, mask=str, settle=self._settle)

    def _settle(self, spans: Sequence[Span]) -> None:
        for span in spans:  # the test's own count, by the span's id
            request = charged_request(span.span_id, span.attributes)
            if request is not None:
                self.owed.setdefault(request.request_id, request)
                assert all(one.owed <= one.reserved for one in request.charges), request
        self.settlement.settle(spans)

    def turn(self) -> None:
        """What the control plane does again and again."""
        while self.drainer.drain_once().more:
            pass
        self.settlement.tick()

    def standing(self, limits: Sequence[Limit]) -> list[tuple[float, float]]:
        found = self.accounts.standing(limits)
        for one in found:
            assert one.spent + one.leased <= one.amount + 1e-9, one
        return [(one.spent, one.leased) for one in found]

    def truth(self, limits: Sequence[Limit]) -> list[float]:
        """What was used, as the test itself counted it."""
        totals = dict.fromkeys((one.limit_id for one in limits), 0)
        for request in self.owed.values():
            for charge in request.charges:
                totals[charge.lease.rpartition(".")[0]] += charge.owed
        return [totals[one.limit_id] / (1e9 if one.unit == "usd" else 1) for one in limits]


@pytest.fixture(params=BACK_ENDS)
def plant(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Plant]:
    scope = Scope(f"p-{uuid.uuid4().hex[:12]}")
    if request.param == "redis":
        url = redis_url()
    else:
        url = f"sqlite:///{tmp_path}/ledger.db"
        if request.param == "postgres":
            url = request.getfixturevalue("postgres_url")
        open_ledger(url, blobs="memory://", scope=scope).close()
    accounts, spans = open_lease_store(url, scope), open_span_store(tmp_path / "telemetry.duckdb", scope)
    segments = tmp_path / "segments"
    settlement = Settlement(accounts, segments, tenant=scope.tenant, grace_s=0.2, lost_s=1.0)
    yield Plant(url, scope, segments, accounts, spans, settlement)
    spans.close()
    accounts.close()
    if request.param == "redis":
        clear_redis(url, scope)


class Workers:
    """Processes of ``tests.server.limited``."""

    def __init__(self, plant: Plant, limits: list[list[Any]], **task: Any) -> None:
        self.log = plant.segments.parent / "refused.txt"
        self.log.touch()
        document = {
            "url": plant.url,
            "project": plant.scope.project,
            "segments": str(plant.segments),
            "limits": limits,
            "calls": 64,
            "total": 0,
            "log": str(self.log),
            "options": {},
        }
        command = [sys.executable, "-m", "tests.server.limited", json.dumps(document | task)]
        self._nursery = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
        )
        self.pids: dict[str, int] = {}
        self._count = 0

    def start(self, name: str) -> None:
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        self._nursery.stdin.write(f"start {name}\n")
        self._nursery.stdin.flush()
        self.pids[name] = int(self._nursery.stdout.readline())

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        os.kill(self.pids[name], number)

    def running(self) -> list[str]:
        return [name for name, pid in self.pids.items() if _runs(pid)]

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._nursery.pid, signal.SIGKILL)
        self._nursery.communicate()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _wait(holds: Callable[[], bool], turn: Callable[[], None], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, what
        turn()
        time.sleep(0.05)


def _kill_workers(plant: Plant, *, workers: int, seconds: float, kills: int) -> None:
    """The property of limits: whatever dies, spent stays within the cap, is counted once, and nothing stays lent."""
    rows: list[list[Any]] = [
        [700 * kills, "requests", "key", 3600.0],
        [30_000 * kills, "tokens", "endpoint", 3600.0],
        [0.04 * kills, "usd", "tenant", 3600.0],
    ]
    limits = limits_of({"limits": rows})
    chance = random.Random()
    crew = Workers(plant, rows, options={"ttl_s": 1.0, "wait_s": 20.0})
    try:
        names = [f"gw-{number}" for number in range(workers)]
        for name in names:
            crew.start(name)
        _wait(lambda: len(plant.owed) > 100, plant.turn, "the workers do nothing")
        moments = sorted(chance.uniform(0.0, seconds) for _ in range(kills))
        begun = time.monotonic()
        while time.monotonic() - begun < seconds or moments:
            plant.turn()
            plant.standing(limits)
            if moments and time.monotonic() - begun > moments[0]:
                moments.pop(0)
                name = chance.choice(names)
                crew.kill(name)
                _wait(lambda name=name: name not in crew.running(), lambda: None, "it does not die")  # type: ignore[misc]
                crew.start(name)  # under the same name, while its lost leases and segments are still there
                if chance.random() < 0.5:
                    plant.restart()
            time.sleep(0.02)
        for name in crew.running():
            crew.kill(name, chance.choice([signal.SIGKILL, signal.SIGTERM]))
        _wait(lambda: not crew.running(), plant.turn, "the workers do not end")
    finally:
        crew.close()
    _wait(lambda: all(leased == 0 for _, leased in plant.standing(limits)), plant.turn, "something stays lent")
    plant.turn()
    spent = [spent for spent, _ in plant.standing(limits)]
    assert spent == pytest.approx(plant.truth(limits))
    assert all(amount > 0 for amount in spent)
    _wait(lambda: not plant.accounts.expired(0.0), plant.turn, "a lease of the dead is not closed")
    refusals = crew.log.read_text().splitlines()
    assert {line.split()[0] for line in refusals} <= {"429", "503"}
    _wait(lambda: not list(plant.segments.glob("*/*.holder")), plant.turn, "marks of the dead are left behind")


def test_spent_stays_within_the_cap_whoever_is_killed(plant: Plant) -> None:
    _kill_workers(plant, workers=8, seconds=2.0, kills=4)


@pytest.mark.soak
def test_spent_stays_within_the_cap_for_a_long_time(plant: Plant) -> None:
    _kill_workers(plant, workers=8, seconds=60.0, kills=60)


def test_nobody_is_refused_while_there_is_room(plant: Plant) -> None:
    """Eight workers with 64 calls each want just what the limit has: every one is let in, though leases are spread."""
    rows: list[list[Any]] = [[8 * 80, "requests", "key", 3600.0], [1_000_000, "tokens", "team", 3600.0]]
    limits = limits_of({"limits": rows})
    crew = Workers(plant, rows, total=80, options={"wait_s": PATIENCE_S})
    try:
        for number in range(8):
            crew.start(f"gw-{number}")
        _wait(lambda: not crew.running(), plant.turn, "the workers do not end")
    finally:
        crew.close()
    assert crew.log.read_text() == ""
    plant.turn()
    (requests, tokens) = plant.standing(limits)
    assert requests == (640, 0)
    assert tokens == (plant.truth(limits)[1], 0)


def _charged(lease: str, reserved: int, used: int | None) -> dict[str, str | float]:
    attributes: dict[str, str | float] = {
        CHARGES: f"[{charge_head(lease)}{reserved},0]]",
        ADMITTED_AT: time.time(),
    }
    return attributes if used is None else {**attributes, USED: f"[{used},{used},{used}]"}


def _ids(number: int) -> dict[str, str]:
    return {"trace_id": f"{number:032x}", "span_id": f"{number:016x}"}


def _span(plant: Plant, number: int, **attributes: Any) -> Span:
    names = {"project": plant.scope.project, "tenant": plant.scope.tenant, "name": "chat", "operation": "chat"}
    return Span(**_ids(number), **names, started_at_ns=1, ended_at_ns=2, attributes=attributes)


def _lend(plant: Plant, holder: str, amount: int, ttl_s: float = 0.1) -> str:
    one = limit(100)
    lease = f"{one.limit_id}.{holder.replace('/', '-')}"
    (answer,) = plant.accounts.grant([Ask(lease, one, holder, amount, amount, amount, ttl_s)])
    assert isinstance(answer, Grant)
    return lease


def test_a_dead_writers_open_call_is_charged_its_reserve(plant: Plant) -> None:
    lease = _lend(plant, "gw-0/h1", 40)
    with SegmentWriter(plant.segments / "gw-0", project=plant.scope.project, tenant="default") as writer:
        writer.intent(Intent(**_ids(1), started_at_ns=1, attributes=_charged(lease, 10, None)))
        writer.finished(_span(plant, 2, **_charged(lease, 20, 5)))
        writer.finished(_span(plant, 3, note="no charge"))
        plant.turn()
        assert plant.standing([limit(100)]) == [(5, 35)]
        time.sleep(0.4)  # the lease is over, and so is the grace
        plant.turn()
        assert plant.standing([limit(100)]) == [(5, 35)]
    _wait(lambda: plant.standing([limit(100)]) == [(15, 0)], plant.turn, "the reserve is not charged")
    stored = {one.span.span_id: one.span for one in plant.spans.spans(SpanQuery())}
    assert stored[f"{1:016x}"].status == "interrupted"
    assert stored[f"{1:016x}"].attributes[CHARGES]


def test_a_holder_that_lives_keeps_its_lease(plant: Plant) -> None:
    _lend(plant, "gw-0/h1", 40)
    mark = HolderMark(plant.segments / "gw-0", "h1")
    time.sleep(1.5)
    plant.turn()
    assert plant.standing([limit(100)]) == [(0, 40)]
    mark.close(done=False)
    _wait(lambda: plant.standing([limit(100)]) == [(0, 0)], plant.turn, "it stays lent")
    assert plant.settlement.totals.closed == 1
    assert not (plant.segments / "gw-0" / "h1.holder").exists()


def test_a_store_that_is_away_keeps_the_batch(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = _lend(plant, "gw-0/h1", 40)
    with SegmentWriter(plant.segments / "gw-0", project=plant.scope.project, tenant="default") as writer:
        writer.finished(_span(plant, 1, **_charged(lease, 20, 5)))
    with monkeypatch.context() as patched:

        def away(_: object) -> None:
            raise Unavailable("away")

        patched.setattr(plant.accounts, "settle", away)
        with pytest.raises(Unavailable):
            plant.turn()
        assert plant.spans.spans(SpanQuery()) == []
    plant.turn()
    assert plant.standing([limit(100)]) == [(5, 0)] or plant.standing([limit(100)]) == [(5, 35)]
    assert len(plant.spans.spans(SpanQuery())) == 1


def test_a_crash_between_settling_and_committing_charges_once(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = _lend(plant, "gw-0/h1", 40, ttl_s=60)
    with SegmentWriter(plant.segments / "gw-0", project=plant.scope.project, tenant="default") as writer:
        writer.finished(_span(plant, 1, **_charged(lease, 20, 5)))
        with monkeypatch.context() as patched:

            def full(*_: object, **__: object) -> None:
                raise OSError("disk full")

            patched.setattr(plant.spans, "commit", full)
            with pytest.raises(OSError, match="disk full"):
                plant.turn()
        plant.restart()
        plant.turn()
    assert plant.standing([limit(100)]) == [(5, 35)]
    assert plant.settlement.totals.duplicates == 1


def test_charges_nobody_can_read_hold_up_nothing(plant: Plant) -> None:
    lease = _lend(plant, "gw-0/h1", 40, ttl_s=60)
    plant.settlement.settle([_span(plant, 1, **{CHARGES: "?"}), _span(plant, 2, **_charged(lease, 9, 9))])
    assert plant.settlement.totals.unreadable == 1
    assert plant.standing([limit(100)]) == [(9, 31)]
