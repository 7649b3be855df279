"""The worker's dealings with one tenant's store of accounts: which leases to ask for, to keep and to hand back.

One errand is under way at a time, so wishes that come meanwhile travel together in the next one.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from tidemill.gateway.admission.leases import Account, Errand, Lease, seconds
from tidemill.gateway.admission.refusals import no_answer, used_up
from tidemill.gateway.admission.reservations import LimitWait, Part
from tidemill.kernel import LimitUnit
from tidemill.ledger.accounts import Ask, Grant, LeaseReport, Shortage

_log = logging.getLogger(__name__)

_DOWN_S: Final = 1.0
_LEASE_BYTES: Final = 6
_RATE_WEIGHT: Final = 0.3
#: A refill in the background is not asked for again before so long after the store had none.
_REFILL_PAUSE_S: Final = 0.2
#: A lease is at most so many times the one before it, unless the average of some time wants more.
_GROWTH: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class LimiterOptions:
    """How leases are kept.

    Args:
        ttl_s: how long a lease admits requests.
        idle_s: a lease without a request for so long is handed back, that other workers may have it.
        tick_s: how often that is looked at.
        share: a lease is at most this part of the limit, unless the calls that wait need more.
        ahead_s: likewise at most what was lately used in so long.
        poll_s: pause between two questions about a limit that is used up.
        wait_s: longest wait of a call for the store's answer.
        unavailable: what happens to calls whose limits the store cannot tell: ``refuse`` (503), or ``allow``, which
            may overshoot and charges them all the same.
    """

    ttl_s: float = 3.0
    idle_s: float = 0.5
    tick_s: float = 0.25
    share: float = 0.05
    ahead_s: float = 1.0
    poll_s: float = 0.02
    wait_s: float = 2.0
    unavailable: Literal["refuse", "allow"] = "refuse"


@dataclass(slots=True)
class LimitCounts:
    """What happened since the start.

    Args:
        waited: calls that had to wait for the store.
        refused: with 429.
        unavailable: calls whose limits the store did not tell.
        overdrawn: calls that used more than they had reserved.
        failures: errands that the store did not do.
    """

    waited: int = 0
    refused: int = 0
    unavailable: int = 0
    overdrawn: int = 0
    failures: int = 0


class LeaseDesk:
    """One tenant's leases in this worker.

    Args:
        tenant: whose accounts.
        holder: the name leases are held under.
        send: hands an errand to the thread that runs it.
        options: how leases are kept.
        counts: where what happens is counted.
    """

    def __init__(
        self,
        tenant: str,
        holder: str,
        send: Callable[[Errand], None],
        options: LimiterOptions,
        counts: LimitCounts,
    ) -> None:
        self.options = options
        self.counts = counts
        self._tenant = tenant
        self._holder = holder
        self._send_errand = send
        self._live: dict[str, Account] = {}  # accounts that hold leases or that somebody waits for
        self._wishes: dict[str, Account] = {}
        self._under_way: Errand | None = None
        self._sending: asyncio.Handle | None = None
        self._down_until = 0.0

    def open(self) -> None:
        """Have the store opened before anybody waits for it."""
        self._under_way = Errand(self._tenant, left_at=seconds())
        self._send_errand(self._under_way)

    def wish(self, account: Account, need: int = 0) -> None:
        """Ask for a lease, with whatever else comes up in this turn of the loop.

        Args:
            account: of which account.
            need: what a call is going to need of it that does not wait for it yet.
        """
        name = account.limit.limit_id
        account.foreseen.append(need)
        self._live[name] = self._wishes[name] = account
        if self._under_way is None and self._sending is None:
            self._sending = asyncio.get_running_loop().call_soon(self._send)

    def refill(self, account: Account, now: float) -> None:
        """The lease at hand runs low: ask for the next one before it is used up."""
        if now >= account.next_refill:
            account.next_refill = now + _REFILL_PAUSE_S
            if self._ahead(account, now):
                self.wish(account)

    def look_again(self, account: Account) -> None:
        """Somebody waits: ask for a lease, at once or when the pause since the last shortage ends."""
        if account.asked is not None or account.paused:
            return
        now = seconds()
        if now < self._down_until:
            asyncio.get_running_loop().call_soon(self._unanswered, account)
        elif now >= account.next_ask:
            self.wish(account)
        else:
            account.paused = True
            asyncio.get_running_loop().call_later(account.next_ask - now, self._pause_over, account)

    def give_back(self, parts: Sequence[Part]) -> None:
        """Return reserves of which nothing was used."""
        for account, lease, reserved in parts:
            lease.end(reserved, 0)
            if account.waiting:
                self.look_again(account)

    def late(self, call: LimitWait) -> None:
        """A call has waited as long as it may."""
        account = call.account
        if account.shortage is not None and account.shortage_of > call.since:
            self._refuse(call, account.shortage)
        else:
            self._without(call)

    def tick(self, elapsed_s: float) -> list[Account]:
        """Hand back what is idle, renew what is in use, ask for what will be needed.

        Returns:
            Accounts of which nothing is held any more.
        """
        now = seconds()
        ended = []
        for name, account in list(self._live.items()):
            taken = account.taken()
            account.rate += _RATE_WEIGHT * (taken / elapsed_s - account.rate)
            account.idle_s = 0.0 if taken else account.idle_s + elapsed_s
            lease = account.lease
            if lease is not None:
                if now >= lease.until or account.idle_s >= self.options.idle_s:
                    account.retire()
                elif lease.until - now < self.options.ttl_s / 3 and account.asked is None:
                    self.refill(account, now)
            if account.at_rest and name not in self._wishes:
                account.rate = 0.0
                del self._live[name]
                ended.append(account)
        self._send(looking=True)
        return ended

    def hand_back_all(self) -> tuple[Errand, bool]:
        """The last errand, and whether it settles everything: no call is under way on any lease."""
        errand = Errand(self._tenant)
        whole = True
        if self._under_way is not None:  # what was asked for may have been granted, and nobody will use it
            errand.reports += [LeaseReport(ask.lease, 0, used=0) for ask in self._under_way.asks]
        for account in self._live.values():
            account.retire()
            for lease in account.retired:
                whole &= not lease.busy
                errand.reports.append(self._said(lease))
        return errand, whole

    def answered(self, errand: Errand, answers: Sequence[Grant | Shortage], problem: Exception | None) -> None:
        """The thread has run an errand, or could not."""
        self._under_way = None
        if problem is not None:
            self._failed(errand, problem)
        else:
            self._down_until = 0.0
            for account, lease, report in errand.about:
                _noted(account, lease, report, errand.left_at)
            for account, ask, answer in zip(errand.accounts, errand.asks, answers, strict=True):
                account.asked = None
                if isinstance(answer, Grant):
                    self._granted(account, ask, answer, errand.left_at)
                else:
                    self._short(account, answer)
        if self._wishes:
            self._send()

    def _send(self, *, looking: bool = False) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
        if self._under_way is not None:
            return
        errand = Errand(self._tenant, left_at=seconds())
        wishes, self._wishes = self._wishes, {}
        for account in wishes.values():
            self._ask(account, errand)
        for account in self._live.values():
            self._report(account, errand, looking=looking)
        if errand.asks or errand.reports:
            self._under_way = errand
            self._send_errand(errand)

    def _ask(self, account: Account, errand: Errand) -> None:
        for call in tuple(account.waiting):
            if account.gone:
                call.allow()
            else:
                call.retry()  # a call that ended meanwhile may have made room
        needs = [call.need for call in account.waiting] or account.foreseen
        account.foreseen = []
        if account.asked is not None or account.gone:
            return
        ahead = self._ahead(account, errand.left_at)
        if account.waiting:
            account.retire()  # too small for the call that waits; its rest must not lack at the store
        promised = sum(needs)
        need = max(1, needs[0] if account.waiting else max(needs, default=0))
        want = max(need, promised, ahead)
        lease_id = f"{account.limit.limit_id}.{secrets.token_hex(_LEASE_BYTES)}"
        account.asked = Ask(lease_id, account.limit, self._holder, need, want, promised, self.options.ttl_s)
        account.asks_sent += 1
        errand.asks.append(account.asked)
        errand.accounts.append(account)

    def _ahead(self, account: Account, now: float) -> int:
        """What is worth having beyond what calls wait for.

        After a cold start the lease at hand tells how fast calls come, long before the average does; what it says is
        trusted up to a multiple of what the lease was.
        """
        rate, lease = account.rate, account.lease
        if lease is not None:
            rate = max(rate, min(lease.pace(now), lease.granted * _GROWTH / self.options.ahead_s))
        return min(int(account.cap * self.options.share), int(rate * self.options.ahead_s))

    def _report(self, account: Account, errand: Errand, *, looking: bool) -> None:
        now = errand.left_at
        for lease in account.retired:
            if lease.remaining <= 0 and lease.busy and now < lease.renewed - self.options.ttl_s * 2 / 3:
                continue
            errand.add(account, lease, self._said(lease))
        lease_ = account.lease
        if looking and lease_ is not None and abs(lease_.remaining - lease_.idle_said) * 4 > lease_.granted:
            errand.add(account, lease_, LeaseReport(lease_.lease_id, 0, idle=max(0, lease_.remaining)))

    def _said(self, lease: Lease) -> LeaseReport:
        lease.hand_back()
        if lease.busy:
            return LeaseReport(lease.lease_id, lease.returned, ttl_s=self.options.ttl_s)
        return LeaseReport(lease.lease_id, lease.returned, used=lease.used, last_used_at_s=lease.last_used_at_s)

    def _granted(self, account: Account, ask: Ask, grant: Grant, left_at: float) -> None:
        lease = Lease(ask.lease, grant.amount, left_at + ask.ttl_s, grant.at_s - left_at)
        lease.idle_said = max(0, grant.amount - ask.promised)
        account.retire()
        account.lease = lease
        account.next_refill = 0.0
        account.shortage = None
        account.idle_s = 0.0
        if account.gone:
            account.retire()
        for call in tuple(account.waiting):
            call.retry()
        if account.waiting:
            self.wish(account)

    def _short(self, account: Account, shortage: Shortage) -> None:
        account.shortage, account.shortage_of = shortage, account.asks_sent
        account.next_ask = seconds() + self.options.poll_s
        for call in tuple(account.waiting):
            # What lies idle with other workers is handed back soon, so the call waits for it.
            if call.over or call.account is not account or call.since >= account.asks_sent:
                continue
            if shortage.available + shortage.idle < call.need and not self._may_come_back(call, shortage):
                self._refuse(call, shortage)
        if account.waiting:
            self.look_again(account)

    def _may_come_back(self, call: LimitWait, shortage: Shortage) -> bool:
        """Whether other workers may soon say that what they hold lies idle: they look after a tick at the latest.

        What a request was lent is used, but tokens and money mostly come back in part when an answer ends.
        """
        if call.account.limit.unit is LimitUnit.REQUESTS or shortage.amount - shortage.spent < call.need:
            return False
        return seconds() - call.began < 2 * self.options.tick_s

    def _failed(self, errand: Errand, problem: Exception) -> None:
        now = seconds()
        self.counts.failures += 1
        if now >= self._down_until:
            _log.error("the store of limits of tenant %s does not answer: %s", self._tenant, problem)
        self._down_until = now + _DOWN_S
        for account, ask in zip(errand.accounts, errand.asks, strict=True):
            account.asked = None
            # Perhaps it was granted all the same: it is handed back when the store answers again.
            account.retired.append(Lease(ask.lease, 0, 0.0, 0.0))
            self._unanswered(account)

    def _unanswered(self, account: Account) -> None:
        for call in tuple(account.waiting):
            if not call.over:
                self._without(call)

    def _without(self, call: LimitWait) -> None:
        self.counts.unavailable += 1
        if self.options.unavailable == "allow":
            call.allow()
        else:
            call.refuse(no_answer(call.account.limit))

    def _refuse(self, call: LimitWait, shortage: Shortage) -> None:
        self.counts.refused += 1
        call.account.refused += 1
        call.refuse(used_up(call.account.limit, shortage, call.need))

    def _pause_over(self, account: Account) -> None:
        account.paused = False
        if account.waiting:
            self.look_again(account)


def _noted(account: Account, lease: Lease, report: LeaseReport, left_at: float) -> None:
    """The store has taken note of a report."""
    lease.idle_said = report.idle
    if report.used is not None:
        account.retired.remove(lease)
    elif report.ttl_s is not None:
        lease.renewed = left_at + report.ttl_s
