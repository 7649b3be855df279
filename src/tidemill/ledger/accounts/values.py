"""What is exchanged with a store of accounts, and what such a store promises.

An account belongs to one limit. Its amounts are whole quanta: requests, tokens, or billionths of a US dollar, so that
sums are exact on every back end. At any moment::

    available = amount - spent in the window - lent and not yet returned or settled

A worker takes a *lease*, a part of what is available, admits requests against it without asking anybody, and hands
back what it did not need. Because a grant never exceeds what is available, spent never exceeds the amount, however many
workers there are and whichever of them die.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from tidemill.kernel import Limit, LimitUnit
from tidemill.ledger.accounts.charges import ChargedRequest

BUCKETS: Final = 60
"""A window's spending is kept in so many buckets; each counts until all of it has left the window."""

HOLDER_SUFFIX: Final = ".holder"
"""Of ``segments/WRITER/INCARNATION.holder``, the file that its holder keeps locked while it lives."""

UNLEASED: Final = "unleased"
"""Ends the lease id of a charge that was admitted while no store could be asked."""

_QUANTA: Final = {LimitUnit.REQUESTS: 1, LimitUnit.TOKENS: 1, LimitUnit.USD: 1_000_000_000}
MICROSECONDS: Final = 1_000_000


def quanta(unit: LimitUnit, amount: float) -> int:
    """Whole quanta of an amount of requests, tokens or US dollars, rounded down."""
    return math.floor(round(amount * _QUANTA[unit], 3))


def units(unit: LimitUnit, quanta: int) -> float:
    """Quanta in the limit's own unit."""
    return quanta / _QUANTA[unit]


def account_of(lease: str) -> str:
    """The account (``Limit.limit_id``) that a lease id belongs to."""
    return lease.rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class Ask:
    """A worker's wish for a lease.

    Args:
        lease: the id it shall have: the limit's id, a dot, and something unique.
        limit: of which account.
        holder: who asks, as ``writer/incarnation``; the writer is the name of its folder of segments.
        need: quanta without which the lease is of no use.
        want: quanta it would like, at least ``need``.
        promised: quanta that requests are waiting for; the rest of the lease will be idle at first.
        ttl_s: how long it may admit requests on it.
    """

    lease: str
    limit: Limit
    holder: str
    need: int
    want: int
    promised: int
    ttl_s: float


@dataclass(frozen=True, slots=True)
class Grant:
    """A lease that was given.

    Args:
        amount: quanta, at least what was needed.
        at_s: the store's own time, seconds since 1970.
    """

    lease: str
    amount: int
    at_s: float


@dataclass(frozen=True, slots=True)
class Shortage:
    """A lease that was not given, for less is available than was needed.

    Args:
        lease: the id asked for; it does not exist.
        amount, spent, leased: of the account at that moment, in quanta.
        idle: the part of ``leased`` that its holders have not promised to any request, as far as they have said.
        retry_after_s: when enough of the window will have left, supposed that all lent is spent.
    """

    lease: str
    need: int
    amount: int
    spent: int
    leased: int
    idle: int
    retry_after_s: float

    @property
    def available(self) -> int:
        """Quanta that could have been lent; never negative."""
        return max(0, self.amount - self.spent - self.leased)


@dataclass(frozen=True, slots=True)
class LeaseReport:
    """What a holder says about a lease. Sums, not differences, so that it may be said twice.

    Args:
        returned: quanta handed back since the grant.
        idle: quanta that are neither handed back nor promised to a request.
        ttl_s: the lease is alive for so long from now; ``None`` leaves its end as it is.
        used: given with the last report, when no request runs on the lease any more: all it was used for. What of it
            is not settled yet counts as spent from now on, and settlement will not count it again.
        last_used_at_s: the store's time when the last request on it was admitted.
    """

    lease: str
    returned: int
    idle: int = 0
    ttl_s: float | None = None
    used: int | None = None
    last_used_at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SettleReport:
    """What a settlement did.

    Args:
        requests: settled now.
        duplicates: settled before, and left as they were.
        unleased: charges on a lease that the store does not know (closed, or never given); spent all the same.
    """

    requests: int = 0
    duplicates: int = 0
    unleased: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """How a limit stands, in its own unit.

    Args:
        spent: in the window that ends now.
        leased: lent to workers and not yet settled.
        available: what a worker could be given now.
    """

    limit: Limit
    amount: float
    spent: float
    leased: float
    available: float


class LeaseStore(Protocol):
    """Accounts of one scope. Thread-safe; many processes may have the same accounts open.

    Each call is one atomic step for every account it touches. All raise ``Unavailable`` where the store does not
    answer; then the call may or may not have happened.
    """

    def grant(self, asks: Sequence[Ask]) -> list[Grant | Shortage]:
        """Answer wishes for leases, one by one in this order."""
        ...

    def report(self, reports: Sequence[LeaseReport]) -> None:
        """Take note of what holders say. Reports on leases that are over are passed by."""
        ...

    def settle(self, requests: Sequence[ChargedRequest]) -> SettleReport:
        """Move what requests used from lent to spent, at the moment each was admitted; once for each request id.

        A charge without a used amount counts with its reserve. Durable when this returns.
        """
        ...

    def expired(self, grace_s: float) -> Mapping[str, float]:
        """Holders of leases whose end is more than ``grace_s`` ago: seconds since the last end that each let pass."""
        ...

    def close_expired(self, holders: Collection[str], grace_s: float) -> int:
        """Close expired leases of holders that are gone and settled: what is still lent to them is free again.

        Returns:
            How many were closed.
        """
        ...

    def tidy(self, remember_s: float) -> None:
        """Forget what no longer counts: ids of requests settled more than ``remember_s`` ago, and finished leases."""
        ...

    def standing(self, limits: Iterable[Limit]) -> list[Standing]:
        """How limits stand, in the order given."""
        ...

    def close(self) -> None:
        """Give connections back. Calling it twice does nothing."""
        ...


def bucket_us(window_us: int) -> int:
    """Length of a window's buckets, in microseconds."""
    return max(1000, window_us // BUCKETS)


def bucket_end_us(at_us: int, window_us: int) -> int:
    """The end of the bucket that a moment falls into; the bucket counts for a window after it."""
    size = bucket_us(window_us)
    return -(-at_us // size) * size


def window_us(limit: Limit) -> int:
    """A limit's window in microseconds."""
    return round(limit.window_s * MICROSECONDS)


def retry_after_s(
    buckets: Iterable[tuple[int, int]], *, window_us: int, now_us: int, excess: int, leased_for_s: float
) -> float:
    """When ``excess`` quanta will have left the window.

    Args:
        buckets: (end in microseconds, quanta) of the spending that counts now.
        window_us: length of the window.
        now_us: the store's time.
        excess: what must leave before the request fits.
        leased_for_s: the answer where even all spending would not do, and what is lent must come back.
    """
    for end_us, amount in sorted(buckets):
        excess -= amount
        if excess <= 0:
            return max(0.0, (end_us + window_us - now_us) / MICROSECONDS)
    return leased_for_s


def shortage(ask: Ask, *, buckets: Iterable[tuple[int, int]], leased: int, idle: int, now_us: int) -> Shortage:
    """The answer to an ask that cannot be met, from what the account holds."""
    entries = list(buckets)
    amount = quanta(ask.limit.unit, ask.limit.amount)
    spent = sum(quantity for _, quantity in entries)
    # A lent request is a request; lent tokens and money come back in part when the answers are shorter than feared.
    leased_for_s = ask.limit.window_s if ask.limit.unit is LimitUnit.REQUESTS else min(1.0, ask.limit.window_s)
    wait_s = retry_after_s(
        entries,
        window_us=window_us(ask.limit),
        now_us=now_us,
        excess=spent + leased + ask.need - amount,
        leased_for_s=leased_for_s,
    )
    return Shortage(ask.lease, ask.need, amount, spent, leased, idle, wait_s)


def standing(limit: Limit, spent: int, leased: int) -> Standing:
    """How a limit stands, from quanta."""
    amount = quanta(limit.unit, limit.amount)
    available = max(0, amount - spent - leased)
    values = (amount, spent, leased, available)
    return Standing(limit, *(units(limit.unit, value) for value in values))
