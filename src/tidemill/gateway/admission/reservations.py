"""A call as the limiter sees it: while it waits for leases, and with what it holds once it is let in.

A call takes its parts in the order of the accounts' names and keeps those it has, so that two calls never wait for each
other in a circle.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from tidemill.gateway.admission.leases import Account, Lease, seconds
from tidemill.gateway.admission.seams import Reservation
from tidemill.gateway.answers import Refusal
from tidemill.ledger.accounts import charge_attributes

if TYPE_CHECKING:
    from tidemill.gateway.admission.desks import LeaseDesk

_log = logging.getLogger(__name__)

_NANO: Final = 1e9

Part = tuple[Account, Lease, int]
"""An account, the lease of it that a call is admitted on, and the reserve in quanta."""


def nanodollars(usd: float) -> int:
    """Billionths of a US dollar, rounded up."""
    return math.ceil(round(usd * _NANO, 3))


class LeasedReservation:
    """What a call holds. See ``Reservation``.

    Args:
        desk: of the call's tenant.
        parts: what it holds, at least one part.
        admitted_at_s: the store's time.
    """

    __slots__ = ("_admitted_at_s", "_desk", "_parts", "_used")

    def __init__(self, desk: LeaseDesk, parts: Sequence[Part], admitted_at_s: float) -> None:
        self._desk = desk
        self._parts = parts
        self._admitted_at_s = admitted_at_s
        self._used: tuple[int, int, int] | None = None

    @property
    def attributes(self) -> Mapping[str, str | float]:
        """The charges: with the reserves alone before ``settle``, with what was used after it."""
        if not self._parts:
            return {}
        used = self._used
        if used is None:
            charges: list[tuple[object, ...]] = [(lease.lease_id, reserved) for _, lease, reserved in self._parts]
        else:
            charges = [(lease.lease_id, reserved, used[account.place]) for account, lease, reserved in self._parts]
        return charge_attributes(self._admitted_at_s, charges)

    def first_token(self, elapsed_s: float) -> None:
        """Limits do not listen to this."""

    def settle(self, *, tokens: int, cost_usd: float, ok: bool = True) -> None:  # noqa: ARG002 - failures cost too
        """Count what was used, give back the rest."""
        if self._used is not None:
            return
        self._used = used = (1, tokens, nanodollars(cost_usd))
        at_s = self._admitted_at_s
        overdrawn = False
        for account, lease, reserved in self._parts:
            amount = used[account.place]
            if amount > reserved:
                overdrawn = True
            lease.end(reserved, amount, at_s)
            if account.waiting:
                self._desk.look_again(account)
        self._desk.counts.overdrawn += overdrawn

    def cancel(self) -> None:
        """Nothing was used."""
        if self._used is None:
            self._used = (0, 0, 0)
            self._desk.give_back(self._parts)
            self._parts = ()


class Unlimited:
    """What a call holds that no limit counts."""

    attributes: Final[Mapping[str, str | float]] = {}

    def first_token(self, elapsed_s: float) -> None:
        """Limits do not listen to this."""

    def settle(self, *, tokens: int, cost_usd: float, ok: bool = True) -> None:
        """Nothing is counted."""

    def cancel(self) -> None:
        """Nothing is held."""


class LimitWait:
    """A call that waits for a lease. It holds the parts before the one it waits for.

    Args:
        desk: of the call's tenant.
        needs: accounts and quanta, by the accounts' names.
        then, refused: one of the two is called in the end, unless the call is cancelled.

    ``since`` is how many asks for the account it waits for had been sent when it began to: an answer to one of those is
    no answer to this call.
    """

    __slots__ = ("_desk", "_needs", "_parts", "_place", "_refused", "_then", "_timer", "began", "since")

    def __init__(
        self,
        desk: LeaseDesk,
        needs: Sequence[tuple[Account, int]],
        then: Callable[[Reservation], None],
        refused: Callable[[Refusal], None],
    ) -> None:
        self._desk = desk
        self._needs = needs
        self._then = then
        self._refused = refused
        self._parts: list[Part] = []
        self._place = 0
        self._timer: asyncio.TimerHandle | None = None
        self.began = seconds()
        self.since = 0

    @property
    def account(self) -> Account:
        """The one it waits for."""
        return self._needs[self._place][0]

    @property
    def need(self) -> int:
        """What it lacks of that account, in quanta."""
        return self._needs[self._place][1]

    @property
    def over(self) -> bool:
        """Whether it waits no more."""
        return self._place >= len(self._needs)

    def begin(self) -> None:
        """Take what there is, and ask for all the rest at once, so that a cold start costs one round trip."""
        self._timer = asyncio.get_running_loop().call_later(self._desk.options.wait_s, self._late)
        self._advance()
        if not self.over:
            for account, need in self._needs[self._place + 1 :]:
                if account.lease is None or account.lease.remaining < need:
                    self._desk.wish(account, need)

    def retry(self) -> None:
        """There may be a new lease: go on if it suffices."""
        if self.over:
            return
        account, need = self._needs[self._place]
        lease = account.take(need, seconds())
        if lease is not None:
            self._go_on(account, lease, need)

    def allow(self) -> None:
        """The store does not tell: go on without a lease; what is used is charged all the same."""
        account, need = self._needs[self._place]
        account.unleased.busy += 1
        self._go_on(account, account.unleased, need)

    def refuse(self, refusal: Refusal) -> None:
        """Give up."""
        self.cancel()
        try:
            self._refused(refusal)
        except Exception:  # noqa: BLE001 - a fault in one call must not strand the others
            _log.exception("a call could not be refused")

    def cancel(self) -> None:
        """The client has left: forget the call."""
        if self.over:
            return
        self.account.waiting.remove(self)
        self._end()
        self._desk.give_back(self._parts)

    def _go_on(self, account: Account, lease: Lease, need: int) -> None:
        account.waiting.remove(self)
        self._parts.append((account, lease, need))
        self._place += 1
        self._advance()

    def _advance(self) -> None:
        while not self.over:
            account, need = self._needs[self._place]
            lease = account.take(need, seconds())
            if lease is None:
                self.since = account.asks_sent
                account.waiting.append(self)
                self._desk.look_again(account)
                return
            self._parts.append((account, lease, need))
            self._place += 1
        self._end()
        admitted_at_s = max(lease.store_offset_s for _, lease, _ in self._parts) + seconds()
        try:
            self._then(LeasedReservation(self._desk, self._parts, admitted_at_s))
        except Exception:  # noqa: BLE001 - a fault in one call must not strand the others
            _log.exception("a call could not be continued")

    def _late(self) -> None:
        self._timer = None
        if not self.over:
            self._desk.late(self)

    def _end(self) -> None:
        self._place = len(self._needs)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
