"""Leases as a worker holds them, and the thread that talks with the store of accounts.

The event loop never waits for the store: it leaves an errand, and the answer comes back as a callback of the loop. The
store's library is loaded in the thread, and the thread begins with the first errand.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

from tidemill.kernel import Limit, LimitUnit
from tidemill.ledger.accounts import (
    HOLDER_SUFFIX,
    UNLEASED,
    Ask,
    Grant,
    LeaseReport,
    LeaseStore,
    Shortage,
    charge_head,
    quanta,
)

if TYPE_CHECKING:
    from tidemill.gateway.admission.reservations import LimitWait

_log = logging.getLogger(__name__)

_UNIT_PLACE: Final = {LimitUnit.REQUESTS: 0, LimitUnit.TOKENS: 1, LimitUnit.USD: 2}
# A laptop that slept must find its leases run out; CLOCK_MONOTONIC stands still meanwhile.
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_REFILL_SHARE: Final = 0.4
_SHORTEST_S: Final = 0.005

seconds: Final = partial(time.clock_gettime, _CLOCK)
"""Seconds that never run backwards and go on while the machine sleeps."""


class Lease:
    """A part of an account that this worker may give away without asking. Amounts are quanta.

    Args:
        lease_id: as the store knows it.
        granted: what it began with; 0 for one of which nobody knows whether it was given.
        until: no request is admitted on it from this moment of ``seconds`` on.
        store_offset_s: what is added to ``seconds`` to have the store's time, or a little more than it.
    """

    __slots__ = (
        "counted",
        "drawn",
        "ended",
        "granted",
        "head",
        "idle_said",
        "last_used_at_s",
        "lease_id",
        "low",
        "remaining",
        "renewed",
        "returned",
        "since",
        "store_offset_s",
        "until",
    )

    def __init__(self, lease_id: str, granted: int, until: float, store_offset_s: float) -> None:
        self.lease_id = lease_id
        self.head = charge_head(lease_id)
        self.granted = granted
        self.remaining = granted
        self.since = seconds()
        self.until = until
        self.renewed = until
        self.store_offset_s = store_offset_s
        self.low = int(granted * _REFILL_SHARE)
        self.drawn = 0  # reserved since the grant, and never 0 for a request
        self.ended = 0  # of that, what requests had reserved that are over
        self.counted = 0  # of that, what the account has seen
        self.returned = 0
        self.idle_said = granted
        self.last_used_at_s = 0.0

    @property
    def busy(self) -> bool:
        """Whether a request runs on it."""
        return self.drawn > self.ended

    @property
    def used(self) -> int:
        """Quanta that requests which are over have used."""
        return self.granted - self.returned - self.remaining - (self.drawn - self.ended)

    def draw(self, need: int, at_s: float) -> None:
        """Reserve for a request that was admitted at this moment of the store's time."""
        self.remaining -= need
        self.drawn += need
        self.last_used_at_s = at_s

    def end(self, reserved: int, used: int) -> None:
        """A request on it is over."""
        self.ended += reserved
        self.remaining += reserved - used

    def pace(self, now: float) -> float:
        """Quanta a second that it was drawn on so far; what a cold start has instead of an average."""
        return (self.granted - self.remaining) / max(now - self.since, _SHORTEST_S)

    def hand_back(self) -> None:
        """What no request holds goes back to the account, with the next report."""
        if self.remaining > 0:
            self.returned += self.remaining
            self.remaining = 0


class Account:
    """A limit as this worker knows it: the lease it admits on, those that end, and the calls that wait.

    Args:
        limit: the limit; replaced when a snapshot brings another amount.
    """

    __slots__ = (
        "asked",
        "asks_sent",
        "cap",
        "drawn_before",
        "foreseen",
        "gone",
        "idle_s",
        "lease",
        "limit",
        "next_ask",
        "next_refill",
        "passed",
        "paused",
        "place",
        "rate",
        "refused",
        "retired",
        "shortage",
        "shortage_of",
        "tenant",
        "unleased",
        "waiting",
    )

    def __init__(self, limit: Limit) -> None:
        self.tenant = limit.tenant
        self.lease: Lease | None = None
        self.retired: list[Lease] = []
        self.waiting: deque[LimitWait] = deque()
        self.asked: Ask | None = None  # under way
        self.asks_sent = 0
        self.next_ask = 0.0
        self.next_refill = 0.0
        self.paused = False
        self.foreseen: list[int] = []  # what calls will need that do not wait here yet
        self.shortage: Shortage | None = None
        self.shortage_of = 0  # which ask it answered
        self.rate = 0.0  # quanta a second, smoothed
        self.refused = 0  # calls
        self.drawn_before = 0  # on leases that were retired
        self.passed = 0  # drawn on leases that were retired since the last look
        self.idle_s = 0.0
        self.gone = False
        self.unleased = Lease(f"{limit.limit_id}.{UNLEASED}", 0, 0.0, time.time() - seconds())
        self.take_over(limit)

    def take_over(self, limit: Limit) -> None:
        """Follow the limit's numbers."""
        self.limit = limit
        self.place = _UNIT_PLACE[limit.unit]
        self.cap = quanta(limit.unit, limit.amount)
        self.gone = False

    def retire(self) -> None:
        """Admit no more on the lease; what is left of it is handed back."""
        lease = self.lease
        if lease is not None:
            self.passed += lease.drawn - lease.counted
            self.drawn_before += lease.drawn
            self.retired.append(lease)
            self.lease = None

    def take(self, need: int, now: float) -> Lease | None:
        """Reserve from the lease at hand; ``None`` if it does not suffice."""
        lease = self.lease
        if lease is None or lease.remaining < need or now >= lease.until:
            return None
        lease.draw(need, lease.store_offset_s + now)
        return lease

    @property
    def drawn(self) -> int:
        """Quanta reserved on its leases since the start."""
        return self.drawn_before + (self.lease.drawn if self.lease is not None else 0)

    @property
    def lent(self) -> int:
        """Quanta that this worker holds of it at present, reserved or not."""
        held = (*self.retired, self.lease) if self.lease is not None else tuple(self.retired)
        return sum(max(0, lease.remaining + lease.drawn - lease.ended) for lease in held)

    def taken(self) -> int:
        """Quanta drawn since this was last asked."""
        passed, self.passed = self.passed, 0
        lease = self.lease
        if lease is not None:
            passed += lease.drawn - lease.counted
            lease.counted = lease.drawn
        return passed

    @property
    def at_rest(self) -> bool:
        """Whether nothing is held and nobody waits."""
        return self.lease is None and not self.retired and not self.waiting and self.asked is None


@dataclass(slots=True)
class Errand:
    """What the thread is to tell the store and to ask from it, in this order, for one tenant.

    Args:
        accounts: those that ``asks`` are for.
        about: what ``reports`` speak of. Both are the loop's own; the thread leaves them alone.
        left_at: when it was handed over, by ``seconds``.
    """

    tenant: str
    reports: list[LeaseReport] = field(default_factory=list)
    asks: list[Ask] = field(default_factory=list)
    accounts: list[Account] = field(default_factory=list)
    about: list[tuple[Account, Lease, LeaseReport]] = field(default_factory=list)
    left_at: float = 0.0

    def add(self, account: Account, lease: Lease, report: LeaseReport) -> None:
        """Have something said about a lease."""
        self.reports.append(report)
        self.about.append((account, lease, report))


Answered = Callable[[Errand, Sequence[Grant | Shortage], Exception | None], None]


class LeaseKeeper:
    """The thread that runs errands.

    Args:
        open_store: opens the accounts of a tenant; called in the thread.
        answered: called in the event loop with each errand and its answers, or what went wrong.
        loop: the event loop.
    """

    def __init__(
        self, open_store: Callable[[str], LeaseStore], answered: Answered, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._open_store = open_store
        self._answered = answered
        self._loop = loop
        self._inbox: SimpleQueue[Errand | None] = SimpleQueue()
        self._stores: dict[str, LeaseStore] = {}
        self._failed = False
        self._tried = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)
        self._thread.start()

    def send(self, errand: Errand) -> None:
        """Hand over an errand."""
        self._inbox.put(errand)

    def wait(self, timeout_s: float) -> None:
        """Block until the first errand was run, well or not."""
        self._tried.wait(timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Run the errands that are left, then end; whether all of them were run, the last ones well."""
        self._inbox.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive() and not self._failed

    def _run(self) -> None:
        while (errand := self._inbox.get()) is not None:
            answers: list[Grant | Shortage] = []
            problem: Exception | None = None
            try:
                store = self._stores.get(errand.tenant)
                if store is None:
                    store = self._stores[errand.tenant] = self._open_store(errand.tenant)
                store.report(errand.reports)
                if errand.asks:
                    answers = store.grant(errand.asks)
            except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
                problem = error
            self._failed = problem is not None
            self._tried.set()
            try:
                self._loop.call_soon_threadsafe(self._answered, errand, answers, problem)
            except RuntimeError:
                _log.debug("the event loop ended before an answer of the limits' store")
        for store in self._stores.values():
            store.close()


class HolderMark:
    """A locked file that says: the holder of these leases is alive. The lock goes with the process, however it ends.

    Args:
        folder: the writer's folder of segments; made if missing.
        mark: the incarnation, the second part of the holder's name.
    """

    def __init__(self, folder: Path, mark: str) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = folder / f"{mark}{HOLDER_SUFFIX}"
        self._descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self, *, done: bool) -> None:
        """Let go; ``done`` removes the file, for no lease is left that anybody would have to look after."""
        if done:
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
