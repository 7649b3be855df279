"""Whatever happens in whatever order: spent never exceeds the amount, nothing used is forgotten, nothing stays lent."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.ledger.accounts.conftest import clear_redis
from tidemill.kernel import FakeClock, Limit, LimitScope, LimitUnit, Scope
from tidemill.ledger.accounts import Ask, Charge, ChargedRequest, Grant, LeaseReport, LeaseStore, open_lease_store

AMOUNT = 200
WINDOW_S = 60.0
TTL_S = 15.0
GRACE_S = 1.0
LIMIT = Limit(
    limit_id="key/ann/t",
    scope=LimitScope.KEY,
    subject="ann",
    unit=LimitUnit.TOKENS,
    amount=AMOUNT,
    window_s=WINDOW_S,
)


@dataclass
class Held:
    """A lease as its worker knows it."""

    lease: str
    granted: int
    until_s: float
    remaining: int
    busy: int = 0
    returned: int = 0
    used: int = 0
    last_s: float = 0.0


@dataclass
class Worker:
    """A worker and the segments it has written."""

    holder: str
    leases: list[Held] = field(default_factory=list)
    running: list[tuple[str, Held, int, float]] = field(default_factory=list)  # (request, lease, reserve, since)
    written: list[ChargedRequest] = field(default_factory=list)
    alive: bool = True


class Conservation(RuleBasedStateMachine):
    """Workers, a control plane and a clock, on one store."""

    url = ""

    @initialize()
    def open(self) -> None:
        self.clock = FakeClock()
        self.scope = Scope(f"p-{uuid.uuid4().hex[:12]}")
        self.store: LeaseStore = open_lease_store(self.url, self.scope, clock=self.clock)
        self.workers: list[Worker] = []
        self.truth: list[tuple[float, int]] = []  # (admitted at, used) of all that ended or was cut off
        self.settled: list[ChargedRequest] = []
        self.count = 0
        for _ in range(2):
            self.start()

    @property
    def now_s(self) -> float:
        return self.clock.now().timestamp()

    # One rule, for Hypothesis leaves whole rules out of most examples, and then nothing is ever spent.
    @rule(
        what=st.sampled_from(
            (
                "ask",
                "admit",
                "admit",
                "admit",
                "end",
                "end",
                "settle",
                "settle",
                "report",
                "kill",
                "start",
                "close",
                "wait",
            )
        ),
        which=st.integers(0, 9),
        need=st.integers(1, 20),
        more=st.integers(0, 20),
        share=st.floats(0, 1),
        odd=st.booleans(),
        seconds=st.floats(0.1, 20.0),
    )
    def step(self, what: str, which: int, need: int, more: int, share: float, odd: bool, seconds: float) -> None:
        match what:
            case "ask":
                self.ask(which, need, more, lost=odd and need > 15)
            case "admit":
                self.admit(which, share)
            case "end":
                self.end(which, share)
            case "settle":
                self.settle(which, count=need, again=odd)
            case "report":
                self.report(which, twice=odd)
            case "kill" if more < 4:
                self.kill(which)
            case "start" if sum(worker.alive for worker in self.workers) < 3:
                self.start()
            case "close":
                self.close()
            case "wait":
                self.wait(seconds, which if odd or not more else None)

    def start(self) -> None:
        self.count += 1
        self.workers.append(Worker(f"gw-{self.count}/h"))

    def alive(self, which: int) -> Worker | None:
        found = [worker for worker in self.workers if worker.alive]
        return found[which % len(found)] if found else None

    def ask(self, which: int, need: int, more: int, lost: bool) -> None:
        worker = self.alive(which)
        if worker is None:
            return
        (before,) = self.store.standing([LIMIT])
        self.count += 1
        lease = f"{LIMIT.limit_id}.{self.count}"
        (answer,) = self.store.grant([Ask(lease, LIMIT, worker.holder, need, need + more, need, TTL_S)])
        assert isinstance(answer, Grant) == (before.available >= need), "refused if and only if there is too little"
        if isinstance(answer, Grant):
            assert need <= answer.amount <= need + more
            if lost:  # the answer did not arrive: the worker hands back what it may have been given
                self.store.report([LeaseReport(lease, 0, used=0)])
            else:
                worker.leases.append(Held(lease, answer.amount, self.now_s + TTL_S, answer.amount))

    def admit(self, which: int, share: float) -> None:
        open_ = [
            (worker, lease)
            for worker in self.workers
            for lease in worker.leases
            if worker.alive and lease.remaining and self.now_s < lease.until_s
        ]
        if not open_:
            return
        worker, lease = open_[which % len(open_)]
        reserve = max(1, int(lease.remaining * share / 2))
        lease.remaining -= reserve
        lease.busy += 1
        self.count += 1
        worker.running.append((f"r{self.count}", lease, reserve, self.now_s))

    def end(self, which: int, share: float) -> None:
        running = [(worker, call) for worker in self.workers for call in worker.running]
        if not running:
            return
        worker, call = running[which % len(running)]
        request, lease, reserve, since_s = call
        worker.running.remove(call)
        used = int(reserve * share)
        lease.busy -= 1
        lease.remaining += reserve - used
        lease.used += used
        lease.last_s = max(lease.last_s, since_s)
        worker.written.append(ChargedRequest(request, since_s, (Charge(lease.lease, reserve, used),)))
        self.truth.append((since_s, used))

    def report(self, which: int, twice: bool) -> None:
        worker = self.alive(which)
        if worker is None:
            return
        reports = []
        for lease in list(worker.leases):
            lease.returned += lease.remaining
            lease.remaining = 0
            if lease.busy:
                reports.append(LeaseReport(lease.lease, lease.returned, ttl_s=TTL_S))
            else:
                worker.leases.remove(lease)
                reports.append(LeaseReport(lease.lease, lease.returned, used=lease.used, last_used_at_s=lease.last_s))
        for _ in range(1 + twice):
            self.store.report(reports)

    def kill(self, which: int) -> None:
        worker = self.alive(which)
        if worker is None:
            return
        worker.alive = False
        for request, lease, reserve, since_s in worker.running:
            worker.written.append(ChargedRequest(request, since_s, (Charge(lease.lease, reserve),)))
            self.truth.append((since_s, reserve))
        worker.running = []

    def settle(self, which: int, count: int, again: bool) -> None:
        writers = [worker for worker in self.workers if worker.written]
        if not writers:
            return
        worker = writers[which % len(writers)]
        batch, worker.written = worker.written[:count], worker.written[count:]
        report = self.store.settle([*batch, *(self.settled[-3:] if again else [])])
        assert report.requests == len(batch)
        self.settled += batch

    def close(self) -> None:
        expired = self.store.expired(GRACE_S)
        gone = [one.holder for one in self.workers if not one.alive and not one.written and one.holder in expired]
        self.store.close_expired(gone, GRACE_S)
        self.store.tidy(1e6)

    def wait(self, seconds: float, which: int | None) -> None:
        """For a while, or until something used is about to leave the window."""
        if which is None:
            self.clock.advance(seconds / 2)
            return
        left_s = sorted(at_s + WINDOW_S - 0.3 - self.now_s for at_s, _ in self.truth)
        coming = [wait_s for wait_s in left_s if wait_s > 0]
        if coming:
            self.clock.advance(coming[which % len(coming)])

    @invariant()
    def conserved(self) -> None:
        if not hasattr(self, "store"):
            return
        (stands,) = self.store.standing([LIMIT])
        assert stands.leased >= 0
        assert stands.spent + stands.leased <= AMOUNT
        counted = sum(used for at_s, used in self.truth if at_s + WINDOW_S > self.now_s)
        assert counted <= stands.spent + stands.leased, "something used is forgotten"
        most = sum(used for at_s, used in self.truth if at_s + TTL_S + WINDOW_S + 1 > self.now_s)
        assert stands.spent <= most, "something used counts twice, or for too long"
        promised = sum(reserve for worker in self.workers for _, _, reserve, _ in worker.running)
        assert counted + promised <= AMOUNT

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        for _ in range(len(self.workers)):
            self.kill(0)
        for worker in self.workers:
            self.store.settle(worker.written)
            worker.written = []
        self.clock.advance(TTL_S + GRACE_S + 0.1)
        self.close()
        (stands,) = self.store.standing([LIMIT])
        assert stands.leased == 0, "something stays lent"
        self.clock.advance(WINDOW_S + 2)
        (stands,) = self.store.standing([LIMIT])
        assert (stands.spent, stands.available) == (0, AMOUNT)
        self.store.close()
        if self.url.startswith("redis"):
            clear_redis(self.url, self.scope)


def test_spending_is_conserved_in_every_order(store_url: str) -> None:
    machine = type("ConservationHere", (Conservation,), {"url": store_url})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
