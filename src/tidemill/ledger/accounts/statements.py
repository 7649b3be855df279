"""The statements that the SQL stores of accounts share, and the order in which a call runs them.

Plain SQL over the database's own driver, for gateway workers run this beside a busy event loop: a lease costs some
tenths of a millisecond and no library but the driver. Parameters are written ``:name``; PostgreSQL's store turns them
into its own form. The tables are the ledger's (``ledger.tables``).
"""

# All texts put together here are constants of this file; values are always parameters.
# ruff: noqa: S608
from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from typing import Any, Final, NamedTuple

from tidemill.kernel import Limit, Scope, Unavailable
from tidemill.ledger.accounts.charges import Charge, ChargedRequest
from tidemill.ledger.accounts.values import (
    MICROSECONDS,
    Ask,
    Grant,
    LeaseReport,
    SettleReport,
    Shortage,
    Standing,
    account_of,
    bucket_end_us,
    quanta,
    shortage,
    standing,
    window_us,
)
from tidemill.ledger.version import NEWEST

#: A window is shorter than this, so older spending counts for nobody.
_LONGEST_WINDOW_US: Final = 400 * 86_400 * MICROSECONDS

_MINE: Final = "project = :project AND tenant = :tenant"
_OUT: Final = "granted - returned - settled"
_LENT: Final = f"{_MINE} AND account = :account AND owed IS NULL AND {_OUT} > 0"
_COUNTS: Final = f"{_MINE} AND account = :account AND ends_us > :counts_from"
_OVER: Final = f"{_MINE} AND owed IS NULL AND until_us < :over"
_THIS: Final = f"{_MINE} AND lease = :lease"

_VERSION: Final = "SELECT version_num FROM alembic_version"
_SUMS: Final = f"""SELECT (SELECT CAST(COALESCE(SUM(amount), 0) AS BIGINT) FROM limit_spending WHERE {_COUNTS}),
    (SELECT CAST(COALESCE(SUM({_OUT}), 0) AS BIGINT) FROM limit_leases WHERE {_LENT})"""
_SPENDING: Final = f"SELECT ends_us, amount FROM limit_spending WHERE {_COUNTS}"
_IDLE: Final = f"SELECT {_OUT}, idle FROM limit_leases WHERE {_LENT}"
_LEND: Final = """INSERT INTO limit_leases
    (project, tenant, lease, account, holder, granted, returned, settled, idle, owed, window_us, until_us)
    VALUES (:project, :tenant, :lease, :account, :holder, :granted, 0, 0, :idle, NULL, :window_us, :until_us)"""
_FORGET_SPENDING: Final = f"DELETE FROM limit_spending WHERE {_MINE} AND account = :account AND ends_us <= :counts_from"
_FIND: Final = f"""SELECT lease, account, settled, returned, owed, window_us, until_us FROM limit_leases
    WHERE {_MINE} AND lease {{among}}"""
_NOTE: Final = f"""UPDATE limit_leases SET returned = :returned, idle = :idle, until_us = :until_us, owed = :owed
    WHERE {_THIS}"""
_CHARGE: Final = f"UPDATE limit_leases SET settled = :settled, owed = :owed WHERE {_THIS}"
_END: Final = f"DELETE FROM limit_leases WHERE {_THIS}"
_SPEND: Final = """INSERT INTO limit_spending (project, tenant, account, ends_us, amount)
    VALUES (:project, :tenant, :account, :ends_us, :amount)
    ON CONFLICT (project, tenant, account, ends_us) DO UPDATE SET amount = limit_spending.amount + excluded.amount"""
_REMEMBER: Final = """INSERT INTO limit_requests (project, tenant, request, settled_us)
    SELECT :project, :tenant, value, :now_us FROM {each} WHERE TRUE
    ON CONFLICT (project, tenant, request) DO NOTHING RETURNING request"""
_EXPIRED: Final = f"SELECT holder, MAX(until_us) FROM limit_leases WHERE {_OVER} GROUP BY holder"
_HELD_BY: Final = f"SELECT DISTINCT account FROM limit_leases WHERE {_MINE} AND holder {{among}}"
_CLOSE: Final = f"DELETE FROM limit_leases WHERE {_OVER} AND holder {{among}}"
_TIDY: Final = (
    f"DELETE FROM limit_requests WHERE {_MINE} AND settled_us < :forgotten",
    f"DELETE FROM limit_leases WHERE {_MINE} AND owed IS NOT NULL AND until_us <= :now_us",
    f"DELETE FROM limit_spending WHERE {_MINE} AND ends_us <= :counts_from",
)


class Mode(Enum):
    """What a transaction is for.

    ``WRITE`` is safe from the death of any process, but a power cut may undo it: then the workers are dead too, and
    what they had admitted is settled from their segments. ``SETTLE`` is on the disk when it ends.
    """

    READ = "read"
    WRITE = "write"
    SETTLE = "settle"


Run = Callable[..., Any]
"""Runs a statement with its parameters; gives its rows, or the number of rows changed."""


class Lists(NamedTuple):
    """How a database takes a list of texts as one parameter, ``:names``.

    Args:
        among: ``IN`` and what follows.
        each: a table of them with the column ``value``.
        pack: the parameter's value.
    """

    among: str
    each: str
    pack: Callable[[Sequence[str]], Any]


SQLITE_LISTS: Final = Lists("IN (SELECT value FROM json_each(:names))", "json_each(:names)", json.dumps)
POSTGRES_LISTS: Final = Lists("= ANY(:names)", "unnest(CAST(:names AS TEXT[])) AS each (value)", list)


class _Row(NamedTuple):
    """A lease, as ``_FIND`` finds it."""

    lease: str
    account: str
    settled: int
    returned: int
    owed: int | None
    window_us: int
    until_us: int


class Statements:
    """The calls of ``LeaseStore`` over one kind of SQL database.

    Args:
        scope: whose accounts.
        transaction: opens a transaction; what it gives is a ``Run``.
        now_us: the store's time inside a transaction, in microseconds since 1970.
        lists: how lists are passed.
        lock: holds the named lock of the scope until the transaction ends; ``None`` where a writer is alone anyway.
    """

    def __init__(
        self,
        scope: Scope,
        transaction: Callable[[Mode], AbstractContextManager[Run]],
        *,
        now_us: Callable[[Run], int],
        lists: Lists,
        lock: Callable[[Run, str], None] | None = None,
    ) -> None:
        self._mine = {"project": scope.project, "tenant": scope.tenant}
        self._transaction = transaction
        self._now_us = now_us
        self._lists = lists
        self._lock_name = lock
        self._short: set[str] = set()  # accounts whose last ask could not be met

    def check(self, where: str) -> None:
        """See that the tables are there and of this version.

        Raises:
            Unavailable: they are not.
        """
        with self._transaction(Mode.READ) as run:
            found = run(_VERSION, {})
        version = found[0][0] if found else None
        if version != NEWEST:
            raise Unavailable(
                f"{where} has schema {version or 'none'}; this version of Tidemill needs {NEWEST}.",
                hint=f"After a backup run: python -m tidemill.ledger upgrade {where}",
            )

    def grant(self, asks: Sequence[Ask]) -> list[Grant | Shortage]:
        """See ``LeaseStore.grant``."""
        accounts = {ask.limit.limit_id for ask in asks}
        if self._lock_name is None and accounts <= self._short:
            # Most likely still short. Reading hinders nobody; writing would stop every other writer of the file.
            with self._transaction(Mode.READ) as run:
                now_us = self._now_us(run)
                found = [self._answer(run, ask, now_us) for ask in asks]
            if all(isinstance(answer, Shortage) for answer in found):
                return found
        with self._transaction(Mode.WRITE) as run:
            self._lock(run, accounts)
            now_us = self._now_us(run)
            answers = [self._grant(run, ask, now_us) for ask in asks]
        for ask, answer in zip(asks, answers, strict=True):
            (self._short.add if isinstance(answer, Shortage) else self._short.discard)(ask.limit.limit_id)
        return answers

    def report(self, reports: Sequence[LeaseReport]) -> None:
        """See ``LeaseStore.report``."""
        if not reports:
            return
        with self._transaction(Mode.WRITE) as run:
            self._lock(run, {account_of(one.lease) for one in reports})
            now_us = self._now_us(run)
            known = self._leases(run, {one.lease for one in reports})
            for one in reports:
                row = known.get(one.lease)
                if row is not None and row.owed is None:
                    noted = self._note(run, row, one, now_us)
                    if noted is None:
                        del known[one.lease]
                    else:
                        known[one.lease] = noted

    def settle(self, requests: Sequence[ChargedRequest]) -> SettleReport:
        """See ``LeaseStore.settle``."""
        if not requests:
            return SettleReport()
        accounts = {account_of(charge.lease) for request in requests for charge in request.charges}
        with self._transaction(Mode.SETTLE) as run:
            if self._lock_name is not None:
                self._lock_name(run, "limit-requests")
            self._lock(run, accounts)
            now_us = self._now_us(run)
            fresh = self._fresh(run, requests, now_us)
            tally = _Tally(self._leases(run, {charge.lease for one in fresh for charge in one.charges}))
            for request in fresh:
                at_us = min(now_us, round(request.admitted_at_s * MICROSECONDS))
                for charge in request.charges:
                    tally.add(charge, at_us)
            self._spend(run, tally.spending)
            for lease, (settled, owed) in tally.changes().items():
                if owed == 0:
                    run(_END, self._mine | {"lease": lease})
                else:
                    run(_CHARGE, self._mine | {"lease": lease, "settled": settled, "owed": owed})
        return SettleReport(len(fresh), len(requests) - len(fresh), tally.unleased)

    def expired(self, grace_s: float) -> Mapping[str, float]:
        """See ``LeaseStore.expired``."""
        with self._transaction(Mode.READ) as run:
            now_us = self._now_us(run)
            rows = run(_EXPIRED, self._over(now_us, grace_s))
        return {holder: (now_us - until_us) / MICROSECONDS for holder, until_us in rows}

    def close_expired(self, holders: Collection[str], grace_s: float) -> int:
        """See ``LeaseStore.close_expired``."""
        names = {"names": self._lists.pack(sorted(holders))}
        with self._transaction(Mode.WRITE) as run:
            held = run(_HELD_BY.format(among=self._lists.among), self._mine | names)
            self._lock(run, {account for (account,) in held})
            over = self._over(self._now_us(run), grace_s)
            closed: int = run(_CLOSE.format(among=self._lists.among), over | names)
        return closed

    def tidy(self, remember_s: float) -> None:
        """See ``LeaseStore.tidy``."""
        with self._transaction(Mode.WRITE) as run:
            now_us = self._now_us(run)
            values = self._mine | {
                "now_us": now_us,
                "forgotten": now_us - round(remember_s * MICROSECONDS),
                "counts_from": now_us - _LONGEST_WINDOW_US,
            }
            for statement in _TIDY:
                run(statement, values)

    def standing(self, limits: Iterable[Limit]) -> list[Standing]:
        """See ``LeaseStore.standing``."""
        with self._transaction(Mode.READ) as run:
            now_us = self._now_us(run)
            return [standing(limit, *self._sums(run, limit, now_us)) for limit in limits]

    def _grant(self, run: Run, ask: Ask, now_us: int) -> Grant | Shortage:
        answer = self._answer(run, ask, now_us)
        if isinstance(answer, Grant):
            values = self._of(ask.limit, now_us) | {
                "lease": ask.lease,
                "holder": ask.holder,
                "granted": answer.amount,
                "idle": max(0, answer.amount - ask.promised),
                "window_us": window_us(ask.limit),
                "until_us": now_us + round(ask.ttl_s * MICROSECONDS),
            }
            run(_LEND, values)
            run(_FORGET_SPENDING, values)
        return answer

    def _answer(self, run: Run, ask: Ask, now_us: int) -> Grant | Shortage:
        spent, leased = self._sums(run, ask.limit, now_us)
        available = quanta(ask.limit.unit, ask.limit.amount) - spent - leased
        if available >= ask.need:
            return Grant(ask.lease, min(available, max(ask.need, ask.want)), now_us / MICROSECONDS)
        values = self._of(ask.limit, now_us)
        idle = sum(min(out, unpromised) for out, unpromised in run(_IDLE, values))
        return shortage(ask, buckets=run(_SPENDING, values), leased=leased, idle=idle, now_us=now_us)

    def _sums(self, run: Run, limit: Limit, now_us: int) -> tuple[int, int]:
        """What of an account is spent and what is lent, as of one moment."""
        spent, leased = run(_SUMS, self._of(limit, now_us))[0]
        return spent, leased

    def _note(self, run: Run, row: _Row, said: LeaseReport, now_us: int) -> _Row | None:
        """Take note of one report; ``None`` if the lease is over with it."""
        until_us, owed, idle = row.until_us, None, said.idle
        if said.ttl_s is not None:
            until_us = max(until_us, now_us + round(said.ttl_s * MICROSECONDS))
        if said.used is not None:
            owed, idle = said.used - row.settled, 0
            if owed <= 0:
                run(_END, self._mine | {"lease": said.lease})
                return None
            ends_us = bucket_end_us(min(now_us, round(said.last_used_at_s * MICROSECONDS)), row.window_us)
            self._spend(run, {(row.account, ends_us): owed})
            until_us = ends_us + row.window_us
        noted = row._replace(returned=max(row.returned, said.returned), until_us=until_us, owed=owed)
        values = {"lease": said.lease, "returned": noted.returned, "idle": idle, "until_us": until_us, "owed": owed}
        run(_NOTE, self._mine | values)
        return noted

    def _leases(self, run: Run, leases: Collection[str]) -> dict[str, _Row]:
        rows = run(_FIND.format(among=self._lists.among), self._mine | {"names": self._lists.pack(sorted(leases))})
        return {row[0]: _Row(*row) for row in rows}

    def _fresh(self, run: Run, requests: Sequence[ChargedRequest], now_us: int) -> list[ChargedRequest]:
        """The requests that were not settled before; from now on they are."""
        named = {one.request_id: one for one in reversed(requests)}
        values = self._mine | {"names": self._lists.pack(sorted(named)), "now_us": now_us}
        return [named[name] for (name,) in run(_REMEMBER.format(each=self._lists.each), values)]

    def _spend(self, run: Run, amounts: Mapping[tuple[str, int], int]) -> None:
        for (account, ends_us), amount in sorted(amounts.items()):
            run(_SPEND, self._mine | {"account": account, "ends_us": ends_us, "amount": amount})

    def _of(self, limit: Limit, now_us: int) -> dict[str, Any]:
        return self._mine | {"account": limit.limit_id, "counts_from": now_us - window_us(limit)}

    def _over(self, now_us: int, grace_s: float) -> dict[str, Any]:
        return self._mine | {"over": now_us - round(grace_s * MICROSECONDS)}

    def _lock(self, run: Run, accounts: Collection[str]) -> None:
        """Hold accounts until the transaction ends; in one order for everybody, so that nobody waits in a circle."""
        if self._lock_name is not None:
            for account in sorted(accounts):
                self._lock_name(run, f"limit:{account}")


class _Tally:
    """What a batch of charges changes.

    Args:
        leases: those that are still known.
    """

    def __init__(self, leases: Mapping[str, _Row]) -> None:
        self.spending: dict[tuple[str, int], int] = defaultdict(int)
        self.unleased = 0
        self._leases = leases
        self._settled: dict[str, int] = defaultdict(int)

    def add(self, charge: Charge, at_us: int) -> None:
        row = self._leases.get(charge.lease)
        if row is None:
            self.unleased += 1
            self.spending[account_of(charge.lease), bucket_end_us(at_us, MICROSECONDS)] += charge.owed
            return
        before = self._settled[charge.lease]
        self._settled[charge.lease] = before + charge.owed
        counted = 0 if row.owed is None else min(max(0, row.owed - before), charge.owed)
        if charge.owed > counted:
            self.spending[row.account, bucket_end_us(at_us, row.window_us)] += charge.owed - counted

    def changes(self) -> dict[str, tuple[int, int | None]]:
        """For each lease that was charged: what is settled of it, and what of it is still owed."""
        found: dict[str, tuple[int, int | None]] = {}
        for lease, amount in self._settled.items():
            row = self._leases[lease]
            found[lease] = row.settled + amount, None if row.owed is None else max(0, row.owed - amount)
        return found
