"""A call as the limiter sees it: while it waits for leases, and with what it holds once it is let in.

A call takes its parts in the order of the accounts' names and keeps those it has, so that two calls never wait for each
other in a circle.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from tidemill.gateway.admission.leases import Account, Lease, seconds
from tidemill.gateway.admission.seams import Needs, Reservation
from tidemill.gateway.answers import Refusal
from tidemill.kernel import LimitUnit
from tidemill.ledger.accounts import ADMITTED_AT, CHARGES, USED, portions
from tidemill.telemetry.records import AttributeValue

if TYPE_CHECKING:
    from tidemill.gateway.admission.desks import LeaseDesk

_log = logging.getLogger(__name__)

_NANO: Final = 1e9

Part = tuple[Account, Lease, int]
"""An account, the lease of it that a call is admitted on, and the reserve in quanta."""

Leg = tuple[Account, Lease, int]
"""An account, its lease of the moment, and the place of its unit among what a call needs."""


class LeasedReservation:
    """What a call holds. See ``Reservation``.

    Args:
        desk: of the call's tenant.
        parts: what it holds, at least one part.
        charges: the parts as text, see ``ledger.accounts.CHARGES``, without the brackets around.
        admitted_at_s: the store's time.

    ``attributes`` hold the reserves, and after ``settle`` what was used as well.
    """

    __slots__ = ("_admitted_at_s", "_desk", "_held", "_over", "attributes")

    def __init__(self, desk: LeaseDesk, parts: Sequence[Part], charges: str, admitted_at_s: float) -> None:
        self._desk = desk
        self._held = parts
        self._admitted_at_s = admitted_at_s
        self._over = False
        self.attributes: dict[str, AttributeValue] = {CHARGES: f"[{charges}]", ADMITTED_AT: admitted_at_s}

    @property
    def _parts(self) -> Sequence[Part]:
        return self._held

    def first_token(self, elapsed_s: float) -> None:
        """Limits do not listen to this."""

    def more(
        self, then: Callable[[Reservation], None], refused: Callable[[Refusal], None], needs: Needs | None = None
    ) -> LimitWait | None:
        """See ``Ticket``. The reserves for all attempts are settled together."""
        each = self._each()
        wanted = each if needs is None else {account: needs[account.place] for account in each}
        wanted = {account: need for account, need in wanted.items() if need > 0}
        if self._over or not wanted:
            then(self)
            return None
        if needs is not None:
            each = {account: need + wanted.get(account, 0) for account, need in each.items()}

        def reserved(further: LeasedReservation) -> None:
            if self._over:  # settled meanwhile: nobody would settle this
                further.cancel()
                return
            self._over = True
            then(SeveralReserves(self, further, each))

        wait = LimitWait(self._desk, tuple(wanted.items()), reserved, refused)
        wait.begin()
        return None if wait.over else wait

    def _each(self) -> dict[Account, int]:
        """What one attempt may come to, of each account that counts more than requests."""
        return {account: need for account, _, need in self._parts if account.limit.unit is not LimitUnit.REQUESTS}

    def settle(self, *, tokens: int, cost_usd: float, ok: bool = True) -> None:  # noqa: ARG002 - failures cost too
        """Count what was used, give back the rest."""
        if self._over:
            return
        self._over = True
        used = (1, tokens, int(cost_usd * _NANO + 0.5))
        for account, lease, reserved in self._parts:
            amount = used[account.place]
            if amount > reserved:
                self._desk.counts.overdrawn += 1
            lease.end(reserved, amount)
            if account.waiting:
                self._desk.look_again(account)
        # A new object, for the intent that is open still has the old one.
        self.attributes = {**self.attributes, USED: f"[1,{tokens},{used[2]}]"}

    def cancel(self) -> None:
        """Nothing was used."""
        if not self._over:
            self._over = True
            self.attributes = {}
            self._desk.give_back(self._parts)


class FlatReservation(LeasedReservation):
    """What a call holds whose leases were all at hand: the common one, made and settled with few steps.

    Args:
        desk: of the call's tenant.
        legs: what it is counted by.
        needs: what it has reserved.
        charges: the reserves as text, with brackets.
        admitted_at_s: the store's time.
    """

    __slots__ = ("_legs", "_needs")

    def __init__(self, desk: LeaseDesk, legs: Sequence[Leg], needs: Needs, charges: str, admitted_at_s: float) -> None:
        self._desk = desk
        self._legs = legs
        self._needs = needs
        self._admitted_at_s = admitted_at_s
        self._over = False
        self.attributes = {CHARGES: charges, ADMITTED_AT: admitted_at_s}

    @property
    def _parts(self) -> Sequence[Part]:
        return [(account, lease, self._needs[place]) for account, lease, place in self._legs]

    def settle(self, *, tokens: int, cost_usd: float, ok: bool = True) -> None:  # noqa: ARG002 - failures cost too
        """Count what was used, give back the rest."""
        if self._over:
            return
        self._over = True
        nanodollars = int(cost_usd * _NANO + 0.5)
        used, needs = (1, tokens, nanodollars), self._needs
        for account, lease, place in self._legs:
            reserved = needs[place]
            amount = used[place]
            lease.ended += reserved
            lease.remaining += reserved - amount
            if amount > reserved:
                self._desk.counts.overdrawn += 1
            if account.waiting:
                self._desk.look_again(account)
        held = self.attributes
        self.attributes = {
            CHARGES: held[CHARGES],
            ADMITTED_AT: self._admitted_at_s,
            USED: f"[1,{tokens},{nanodollars}]",
        }


class SeveralReserves(LeasedReservation):
    """What a call holds that was attempted again, or has grown.

    Args:
        first: what it held before; from now on this speaks for it.
        further: what came to it.
        each: what one attempt may come to.
    """

    __slots__ = ("_wanted",)

    def __init__(self, first: LeasedReservation, further: LeasedReservation, each: Mapping[Account, int]) -> None:
        charges = f"{str(first.attributes[CHARGES])[1:-1]},{str(further.attributes[CHARGES])[1:-1]}"
        # What is used last counts longest: an attempt that was made later leaves the window later.
        admitted_at_s = max(first._admitted_at_s, further._admitted_at_s)
        super().__init__(first._desk, (*first._parts, *further._parts), charges, admitted_at_s)
        self._wanted = dict(each)

    def _each(self) -> dict[Account, int]:
        return self._wanted

    def settle(self, *, tokens: int, cost_usd: float, ok: bool = True) -> None:  # noqa: ARG002 - failures cost too
        """Count what was used, once for all reserves of an account; give back the rest."""
        if self._over:
            return
        self._over = True
        used = (1, tokens, int(cost_usd * _NANO + 0.5))
        parts = self._parts
        amounts = portions([(one[0], one[2]) for one in parts], [used[one[0].place] for one in parts])
        for (account, lease, reserved), amount in zip(parts, amounts, strict=True):
            self._desk.counts.overdrawn += amount > reserved
            lease.end(reserved, amount)
            if account.waiting:
                self._desk.look_again(account)
        self.attributes = {**self.attributes, USED: f"[1,{tokens},{used[2]}]"}


class Unlimited:
    """What a call holds that no limit counts."""

    attributes: Final[dict[str, AttributeValue]] = {}

    def first_token(self, elapsed_s: float) -> None:
        """Limits do not listen to this."""

    def more(
        self,
        then: Callable[[Reservation], None],
        refused: Callable[[Refusal], None],  # noqa: ARG002 - the ticket's interface
        needs: Needs | None = None,  # noqa: ARG002 - likewise
    ) -> None:
        """Nothing is needed."""
        then(self)

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
        then: Callable[[LeasedReservation], None],
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
        account.unleased.draw(need, account.unleased.store_offset_s + seconds())
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
        charges = ",".join(f"{lease.head}{need},{account.place}]" for account, lease, need in self._parts)
        try:
            self._then(LeasedReservation(self._desk, self._parts, charges, admitted_at_s))
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
