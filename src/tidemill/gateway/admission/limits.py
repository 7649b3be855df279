"""Rate limits and budgets in a worker: reserve an upper bound before the call, count what was used after it.

Where the leases at hand suffice, a call is let in without a system call. Otherwise it waits for the store's answer, and
it is refused only because of one that was asked for after the call came.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

from tidemill.gateway.admission.desks import LeaseDesk, LimitCounts, LimiterOptions
from tidemill.gateway.admission.leases import Account, Errand, HolderMark, LeaseKeeper, seconds
from tidemill.gateway.admission.refusals import too_large
from tidemill.gateway.admission.reservations import FlatReservation, Leg, LimitWait, Unlimited
from tidemill.gateway.admission.seams import Admissible, Needs, Reservation
from tidemill.gateway.answers import Refusal
from tidemill.kernel import ApiKey, LimitScope, LimitUnit, Prices, Route, RoutingSnapshot
from tidemill.ledger.accounts import Grant, LeaseStore, Shortage

IMAGE_TOKENS_MOST: Final = 50_000
"""Bound of the tokens that a provider counts for one image of a prompt. The most that is known is 48,169: gpt-4o-mini
counts 2,833 and 5,667 for each of at most 8 tiles (https://platform.openai.com/docs/guides/images-vision)."""

_MARK_BYTES: Final = 6
_LAST_ERRAND_S: Final = 2.0
_UNLIMITED: Final = Unlimited()
#: Operations whose answers are no output tokens.
_SILENT: Final = frozenset({"count_tokens", "embeddings", "moderation"})


class _Counted:
    """The accounts that count a key's calls to an endpoint, and what bounds a call's amounts there."""

    __slots__ = (
        "_charges", "_legs", "_offset_s", "_until", "accounts", "context_tokens", "dearest", "desk", "money", "prices",
        "tokens",
    )  # fmt: skip

    def __init__(self, accounts: Sequence[Account], desk: LeaseDesk | None, route: Route) -> None:
        self.accounts = tuple(sorted(accounts, key=lambda account: account.limit.limit_id))
        self.desk = desk
        self.money = any(account.limit.unit is LimitUnit.USD for account in accounts)
        self.tokens = self.money or any(account.limit.unit is LimitUnit.TOKENS for account in accounts)
        windows = [target.context_tokens for release in route.releases for target in release.targets]
        known = [window for window in windows if window is not None]
        self.prices: Prices | None = None
        self.dearest = (0.0, 0.0, 0.0, 0.0)
        self.context_tokens = max(known) if known and len(known) == len(windows) else None
        self._legs: tuple[Leg, ...] = ()
        self._until = 0.0
        self._offset_s = 0.0
        self._charges: Callable[..., str] = "".format

    def at_once(self, needs: Needs) -> FlatReservation | None:
        """Reserve from the leases at hand; ``None``, with nothing reserved, if they do not suffice."""
        now = seconds()
        held = self._reserve(needs, now) if now < self._until else None
        # A lease may have followed another one since the last call.
        return self._reserve(needs, now) if held is None and self._look(now) else held

    def _reserve(self, needs: Needs, now: float) -> FlatReservation | None:
        desk = self.desk
        assert desk is not None
        at_s = now + self._offset_s
        low = False
        for account, lease, place in self._legs:
            need = needs[place]
            left = lease.remaining - need
            if left < 0 or account.lease is not lease:
                self._undo(needs, account)
                return None
            lease.remaining = left
            lease.drawn += need
            lease.last_used_at_s = at_s
            if left < lease.low:
                low = True
        if low:
            for account, lease, _ in self._legs:
                if lease.remaining < lease.low and account.asked is None:
                    desk.refill(account, now)
        return FlatReservation(desk, self._legs, needs, self._charges(*needs), at_s)

    def _undo(self, needs: Needs, short: Account) -> None:
        for account, lease, place in self._legs:
            if account is short:
                return
            lease.remaining += needs[place]
            lease.drawn -= needs[place]

    def _look(self, now: float) -> bool:
        """Take over the leases that the accounts have now. Returns whether each has a good one, and any is new."""
        legs = tuple([(one, one.lease, one.place) for one in self.accounts if one.lease is not None])
        if len(legs) < len(self.accounts) or legs == self._legs:
            return False
        self._legs = legs
        self._until = min(lease.until for _, lease, _ in legs)
        self._offset_s = legs[0][1].store_offset_s
        heads = [lease.head.replace("{", "{{").replace("}", "}}") for _, lease, _ in legs]
        parts = [f"{head}{{{place}}},{place}]" for head, (_, _, place) in zip(heads, legs, strict=True)]
        self._charges = f"[{','.join(parts)}]".format
        return now < self._until

    def needs(self, call: Admissible) -> Needs:
        """Upper bounds of a call in quanta: requests, tokens, billionths of a US dollar."""
        if not self.tokens:
            return 1, 0, 0
        # A token is at least a byte; an image may have any number of either. All is still bound by the model's window.
        given = call.input_bytes + call.images * IMAGE_TOKENS_MOST
        if self.context_tokens is not None and given > self.context_tokens:
            given = self.context_tokens
        most = call.max_output_tokens
        if most is None:
            most = 0 if call.operation in _SILENT else call.route.policy.max_output_tokens
        made = most * call.n
        if not self.money:
            return 1, given + made, 0
        if call.prices is not self.prices:
            self.prices, self.dearest = call.prices, dearest(call.prices)
        input_price, output_price, request_price, image_price = self.dearest
        apart = request_price + call.images * image_price
        return 1, given + made, int(given * input_price + made * output_price + apart) + 1


def dearest(prices: Prices) -> tuple[float, float, float, float]:
    """The most that an input token, an output token, a request and an image can cost, in billionths of a US dollar."""
    given = max(
        prices.input_usd_per_mtok, prices.cached_input_usd_per_mtok or 0.0, prices.audio_input_usd_per_mtok or 0.0
    )
    made = max(
        prices.output_usd_per_mtok, prices.reasoning_usd_per_mtok or 0.0, prices.audio_output_usd_per_mtok or 0.0
    )
    # A dollar a million tokens is a thousand billionths a token.
    return given * 1e3, made * 1e3, prices.request_usd * 1e9, prices.image_usd * 1e9


class Limiter:
    """The limits of one worker, inside its event loop.

    Args:
        worker: its name, which is also that of its folder of segments.
        folder: that folder.
        open_store: opens the accounts of a tenant; called in a thread of its own, and only once there are limits.
        options: how leases are kept.
    """

    def __init__(
        self,
        worker: str,
        folder: Path,
        open_store: Callable[[str], LeaseStore],
        options: LimiterOptions = LimiterOptions(),  # noqa: B008 - a plain value
    ) -> None:
        self.options = options
        self.counts = LimitCounts()
        self._mark_name = f"h{secrets.token_hex(_MARK_BYTES)}"
        self._holder = f"{worker}/{self._mark_name}"
        self._folder = folder
        self._open_store = open_store
        self._accounts: dict[tuple[str, str], Account] = {}
        self._counting: dict[tuple[str, LimitScope, str], list[Account]] = {}
        self._counted: dict[str, dict[str, _Counted]] = {}
        self._desks: dict[str, LeaseDesk] = {}
        self._keeper: LeaseKeeper | None = None
        self._mark: HolderMark | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ticked_at = 0.0

    @property
    def accounts(self) -> Collection[Account]:
        """The limits of all tenants, as this worker knows them."""
        return self._accounts.values()

    def follow(self, snapshot: RoutingSnapshot) -> None:
        """Take over the limits of a new snapshot; what is held of those that stay, stays."""
        if not snapshot.limits and not self._accounts:
            return
        known = self._accounts
        self._accounts, self._counting, self._counted = {}, {}, {}
        for limit in snapshot.limits:
            name = (limit.tenant, limit.limit_id)
            account = known.pop(name, None)
            if account is None:
                account = Account(limit)
            account.take_over(limit)
            self._accounts[name] = account
            self._counting.setdefault((limit.tenant, limit.scope, limit.subject), []).append(account)
        for name, account in known.items():
            if not account.at_rest:
                account.gone = True
                account.retire()
                self._accounts[name] = account
        if self._keeper is None and snapshot.limits:
            self._start()
            for tenant in {limit.tenant for limit in snapshot.limits}:
                self._desk(tenant).open()

    def wait(self, timeout_s: float) -> None:
        """Block until the store was opened, or could not be: for a worker that serves nobody yet.

        Loading a database's library takes a second, and many times that beside a busy event loop.
        """
        if self._keeper is not None:
            self._keeper.wait(timeout_s)

    def applies(self, route: Route) -> bool:
        """Whether a limit may count a call to this route."""
        return any(
            tenant == route.tenant and (scope is not LimitScope.ENDPOINT or subject == route.endpoint)
            for tenant, scope, subject in self._counting
        )

    def needs(self, call: Admissible) -> Needs:
        """What would be reserved for one attempt of a call."""
        return self._counted_by(call.key, call.route).needs(call)

    def enter(
        self, call: Admissible, then: Callable[[Reservation], None], refused: Callable[[Refusal], None]
    ) -> LimitWait | None:
        """Reserve for a call.

        Args:
            call: who asks for what.
            then: called with what is held; at once where the leases at hand suffice.
            refused: called instead with a 429 or 503.

        Returns:
            The waiting call, or ``None`` if one of the two was called.
        """
        counted = self._counted_by(call.key, call.route)
        desk = counted.desk
        if desk is None:
            then(_UNLIMITED)
            return None
        needs = counted.needs(call)
        held = counted.at_once(needs)
        if held is None:
            return self._wait(desk, [(one, needs[one.place]) for one in counted.accounts], then, refused)
        then(held)
        return None

    def enter_at_once(self, call: Admissible) -> Reservation | None:
        """``enter`` for a call whose leases are at hand; ``None`` where it must be asked instead."""
        counted = self._counted_by(call.key, call.route)
        if counted.desk is None:
            return _UNLIMITED
        return counted.at_once(counted.needs(call))

    def _counted_by(self, key: ApiKey, route: Route) -> _Counted:
        by_endpoint = self._counted.get(key.digest)
        counted = by_endpoint.get(route.endpoint) if by_endpoint is not None else None
        return self._count(key, route) if counted is None else counted

    def close(self) -> None:
        """Hand back every lease. Call it when the worker has drained; waits a little for the store."""
        keeper, mark, self._keeper, self._mark = self._keeper, self._mark, None, None
        if keeper is None or mark is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        whole = True
        for desk in self._desks.values():
            errand, settled = desk.hand_back_all()
            whole &= settled
            keeper.send(errand)
        done = keeper.close(_LAST_ERRAND_S)
        mark.close(done=done and whole)

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        self._mark = HolderMark(self._folder, self._mark_name)
        self._keeper = LeaseKeeper(self._open_store, self._answered, loop)
        self._ticked_at = seconds()
        self._timer = loop.call_later(self.options.tick_s, self._tick)

    def _desk(self, tenant: str) -> LeaseDesk:
        desk = self._desks.get(tenant)
        if desk is None:
            assert self._keeper is not None
            desk = LeaseDesk(tenant, self._holder, self._keeper.send, self.options, self.counts)
            self._desks[tenant] = desk
        return desk

    def _answered(self, errand: Errand, answers: Sequence[Grant | Shortage], problem: Exception | None) -> None:
        if self._keeper is not None:
            self._desks[errand.tenant].answered(errand, answers, problem)

    def _tick(self) -> None:
        now = seconds()
        elapsed_s, self._ticked_at = max(now - self._ticked_at, 1e-3), now
        for desk in self._desks.values():
            for account in desk.tick(elapsed_s):
                if account.gone:
                    self._accounts.pop((account.tenant, account.limit.limit_id), None)
        self._timer = asyncio.get_running_loop().call_later(self.options.tick_s, self._tick)

    def _count(self, key: ApiKey, route: Route) -> _Counted:
        subjects = (
            (LimitScope.KEY, key.name),
            (LimitScope.TEAM, key.team),
            (LimitScope.ENDPOINT, route.endpoint),
            (LimitScope.TENANT, route.tenant),
        )
        found = [
            account
            for scope, subject in subjects
            if subject is not None
            for account in self._counting.get((route.tenant, scope, subject), ())
        ]
        counted = _Counted(found, self._desk(route.tenant) if found else None, route)
        self._counted.setdefault(key.digest, {})[route.endpoint] = counted
        return counted

    def _wait(
        self,
        desk: LeaseDesk,
        needs: Sequence[tuple[Account, int]],
        then: Callable[[Reservation], None],
        refused: Callable[[Refusal], None],
    ) -> LimitWait | None:
        for account, need in needs:
            if need > account.cap:
                self.counts.refused += 1
                account.refused += 1
                refused(too_large(account.limit, need))
                return None
        self.counts.waited += 1
        call = LimitWait(desk, needs, then, refused)
        call.begin()
        return None if call.over else call
