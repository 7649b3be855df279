"""Accounts in the ledger's own database: SQLite on one host, PostgreSQL on a cluster."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, Table, delete, func, insert, select, text, update

from tidemill.kernel import Clock, Limit, Scope, SystemClock
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
from tidemill.ledger.database import Database, read_url
from tidemill.ledger.schema import prepare
from tidemill.ledger.tables import limit_leases, limit_requests, limit_spending

_CHUNK: Final = 500
#: A window is shorter than this, so older spending counts for nobody.
_LONGEST_WINDOW_US: Final = 400 * 86_400 * MICROSECONDS
_SERVER_TIME: Final = text("SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)")
_PATIENCE: Final = {"connect_timeout": "3", "options": "-c statement_timeout=10s -c lock_timeout=10s"}


class _Position(NamedTuple):
    """An account as of one moment."""

    buckets: list[tuple[int, int]]
    leased: int
    idle: int

    @property
    def spent(self) -> int:
        return sum(amount for _, amount in self.buckets)


class SqlLeaseStore:
    """Accounts of one scope in a ledger's database. See ``LeaseStore``.

    Grants and reports are safe from the death of any process, but a power cut may undo the newest: then the workers are
    dead too, and what they had admitted is settled from their segments. Settlements are on the disk when they return.

    Args:
        url: of the database.
        scope: whose accounts.
        clock: ``None`` takes the server's time on PostgreSQL and the machine's on SQLite.

    Raises:
        Unavailable: it does not answer, or its tables are of another version.
    """

    def __init__(self, url: str, scope: Scope, clock: Clock | None = None) -> None:
        parsed = read_url(url)
        server = parsed.get_backend_name() == "postgresql"
        if server:
            parsed = parsed.update_query_dict({**_PATIENCE, **parsed.query})
        self._database: Final = Database(parsed.render_as_string(hide_password=False), scope, clock or SystemClock())
        self._server_time = server and clock is None
        self._short: set[str] = set()  # accounts whose last ask could not be met
        try:
            prepare(self._database, migrate=False)
        except BaseException:
            self._database.close()
            raise

    def grant(self, asks: Sequence[Ask]) -> list[Grant | Shortage]:
        """See ``LeaseStore.grant``."""
        accounts = {ask.limit.limit_id for ask in asks}
        if self._database.dialect == "sqlite" and accounts <= self._short:
            # Most likely still short. Reading hinders nobody; writing would stop every other writer of the file.
            with self._database.read() as connection:
                now_us = self._now_us(connection)
                found = [_answer(ask, self._position(connection, ask.limit, now_us), now_us) for ask in asks]
            if all(isinstance(answer, Shortage) for answer in found):
                return found
        with self._database.write(sync_full=False) as connection:
            self._lock(connection, accounts)
            now_us = self._now_us(connection)
            answers = [self._grant(connection, ask, now_us) for ask in asks]
        for ask, answer in zip(asks, answers, strict=True):
            (self._short.add if isinstance(answer, Shortage) else self._short.discard)(ask.limit.limit_id)
        return answers

    def _grant(self, connection: Connection, ask: Ask, now_us: int) -> Grant | Shortage:
        account, window = ask.limit.limit_id, window_us(ask.limit)
        answer = _answer(ask, self._position(connection, ask.limit, now_us), now_us)
        if isinstance(answer, Grant):
            values = {
                "lease": ask.lease,
                "account": account,
                "holder": ask.holder,
                "granted": answer.amount,
                "returned": 0,
                "settled": 0,
                "idle": max(0, answer.amount - ask.promised),
                "owed": None,
                "window_us": window,
                "until_us": now_us + round(ask.ttl_s * MICROSECONDS),
            }
            connection.execute(insert(limit_leases), self._database.row(**values))
            gone = limit_spending.c.ends_us <= now_us - window
            mine = self._database.mine(limit_spending) & (limit_spending.c.account == account)
            connection.execute(delete(limit_spending).where(mine, gone))
        return answer

    def report(self, reports: Sequence[LeaseReport]) -> None:
        """See ``LeaseStore.report``."""
        if not reports:
            return
        with self._database.write(sync_full=False) as connection:
            self._lock(connection, {account_of(one.lease) for one in reports})
            now_us = self._now_us(connection)
            known = self._leases(connection, [one.lease for one in reports])
            for one in reports:
                row = known.get(one.lease)
                if row is not None and row.owed is None:
                    self._note(connection, row, one, now_us)

    def _note(self, connection: Connection, row: Row[Any], said: LeaseReport, now_us: int) -> None:
        mine = self._database.mine(limit_leases) & (limit_leases.c.lease == said.lease)
        changes: dict[str, Any] = {"returned": max(row.returned, said.returned), "idle": said.idle}
        if said.ttl_s is not None:
            changes["until_us"] = max(row.until_us, now_us + round(said.ttl_s * MICROSECONDS))
        if said.used is not None:
            owed = said.used - row.settled
            if owed <= 0:
                connection.execute(delete(limit_leases).where(mine))
                return
            at_us = min(now_us, round(said.last_used_at_s * MICROSECONDS))
            ends_us = bucket_end_us(at_us, row.window_us)
            self._spend(connection, {(row.account, ends_us): owed})
            changes |= {"owed": owed, "idle": 0, "until_us": ends_us + row.window_us}
        connection.execute(update(limit_leases).where(mine).values(**changes))

    def settle(self, requests: Sequence[ChargedRequest]) -> SettleReport:
        """See ``LeaseStore.settle``."""
        if not requests:
            return SettleReport()
        accounts = {account_of(charge.lease) for request in requests for charge in request.charges}
        with self._database.write() as connection:
            self._database.lock(connection, "limit-requests")
            self._lock(connection, accounts)
            now_us = self._now_us(connection)
            fresh = self._fresh(connection, requests, now_us)
            known = self._leases(connection, {charge.lease for one in fresh for charge in one.charges})
            tally = _Tally(known)
            for request in fresh:
                at_us = min(now_us, round(request.admitted_at_s * MICROSECONDS))
                for charge in request.charges:
                    tally.add(charge, at_us)
            self._spend(connection, tally.spending)
            for lease, (settled, owed) in tally.changes().items():
                mine = self._database.mine(limit_leases) & (limit_leases.c.lease == lease)
                if owed == 0:
                    connection.execute(delete(limit_leases).where(mine))
                else:
                    connection.execute(update(limit_leases).where(mine).values(settled=settled, owed=owed))
        return SettleReport(len(fresh), len(requests) - len(fresh), tally.unleased)

    def expired(self, grace_s: float) -> Mapping[str, float]:
        """See ``LeaseStore.expired``."""
        with self._database.read() as connection:
            now_us = self._now_us(connection)
            last = func.max(limit_leases.c.until_us)
            query = (
                select(limit_leases.c.holder, last).where(self._over(now_us, grace_s)).group_by(limit_leases.c.holder)
            )
            return {holder: (now_us - until_us) / MICROSECONDS for holder, until_us in connection.execute(query)}

    def close_expired(self, holders: Collection[str], grace_s: float) -> int:
        """See ``LeaseStore.close_expired``."""
        with self._database.write(sync_full=False) as connection:
            held = limit_leases.c.holder.in_(list(holders))
            accounts = select(limit_leases.c.account).where(self._database.mine(limit_leases), held)
            self._lock(connection, set(connection.execute(accounts).scalars()))
            over = self._over(self._now_us(connection), grace_s)
            return connection.execute(delete(limit_leases).where(over, held)).rowcount

    def tidy(self, remember_s: float) -> None:
        """See ``LeaseStore.tidy``."""
        with self._database.write(sync_full=False) as connection:
            now_us = self._now_us(connection)
            forgotten = {
                limit_requests: limit_requests.c.settled_us < now_us - round(remember_s * MICROSECONDS),
                limit_leases: limit_leases.c.owed.is_not(None) & (limit_leases.c.until_us <= now_us),
                limit_spending: limit_spending.c.ends_us <= now_us - _LONGEST_WINDOW_US,
            }
            for table, condition in forgotten.items():
                connection.execute(delete(table).where(self._database.mine(table), condition))

    def standing(self, limits: Iterable[Limit]) -> list[Standing]:
        """See ``LeaseStore.standing``."""
        with self._database.read() as connection:
            now_us = self._now_us(connection)
            found = []
            for limit in limits:
                position = self._position(connection, limit, now_us)
                found.append(standing(limit, position.spent, position.leased))
            return found

    def close(self) -> None:
        """See ``LeaseStore.close``."""
        self._database.close()

    def _now_us(self, connection: Connection) -> int:
        if self._server_time:
            return int(connection.execute(_SERVER_TIME).scalar_one())
        return round(self._database.clock.now().timestamp() * MICROSECONDS)

    def _lock(self, connection: Connection, accounts: Collection[str]) -> None:
        """Hold accounts until the transaction ends; in one order for everybody, so that nobody waits in a circle."""
        for account in sorted(accounts):
            self._database.lock(connection, f"limit:{account}")

    def _position(self, connection: Connection, limit: Limit, now_us: int) -> _Position:
        account = limit.limit_id
        spending = select(limit_spending.c.ends_us, limit_spending.c.amount).where(
            self._database.mine(limit_spending),
            limit_spending.c.account == account,
            limit_spending.c.ends_us > now_us - window_us(limit),
        )
        leases = limit_leases.c
        out = leases.granted - leases.returned - leases.settled
        lent = select(out, leases.idle).where(
            self._database.mine(limit_leases), leases.account == account, leases.owed.is_(None), out > 0
        )
        buckets = [(int(ends), int(amount)) for ends, amount in connection.execute(spending)]
        leased = idle = 0
        for lent_out, unpromised in connection.execute(lent):
            leased += lent_out
            idle += min(lent_out, unpromised)
        return _Position(buckets, leased, idle)

    def _leases(self, connection: Connection, leases: Collection[str]) -> dict[str, Row[Any]]:
        names = sorted(leases)
        found = {}
        for start in range(0, len(names), _CHUNK):
            named = limit_leases.c.lease.in_(names[start : start + _CHUNK])
            query = select(limit_leases).where(self._database.mine(limit_leases), named)
            found.update({row.lease: row for row in connection.execute(query)})
        return found

    def _fresh(self, connection: Connection, requests: Sequence[ChargedRequest], now_us: int) -> list[ChargedRequest]:
        """The requests that were not settled before; from now on they are."""
        fresh = {one.request_id: one for one in reversed(requests)}
        names = sorted(fresh)
        for start in range(0, len(names), _CHUNK):
            known = select(limit_requests.c.request).where(
                self._database.mine(limit_requests), limit_requests.c.request.in_(names[start : start + _CHUNK])
            )
            for name in connection.execute(known).scalars():
                del fresh[name]
        if fresh:
            rows = [self._database.row(request=name, settled_us=now_us) for name in sorted(fresh)]
            connection.execute(insert(limit_requests), rows)
        return list(fresh.values())

    def _spend(self, connection: Connection, amounts: Mapping[tuple[str, int], int]) -> None:
        if not amounts:
            return
        table: Table = limit_spending
        rows = [self._database.row(account=account, ends_us=ends, amount=0) for account, ends in sorted(amounts)]
        self._database.put(connection, table, rows)
        for (account, ends), amount in sorted(amounts.items()):
            here = self._database.mine(table) & (table.c.account == account) & (table.c.ends_us == ends)
            connection.execute(update(table).where(here).values(amount=table.c.amount + amount))

    def _over(self, now_us: int, grace_s: float) -> Any:
        leases = limit_leases.c
        end_us = now_us - round(grace_s * MICROSECONDS)
        return self._database.mine(limit_leases) & leases.owed.is_(None) & (leases.until_us < end_us)


def _answer(ask: Ask, position: _Position, now_us: int) -> Grant | Shortage:
    available = quanta(ask.limit.unit, ask.limit.amount) - position.spent - position.leased
    if available < ask.need:
        return shortage(ask, buckets=position.buckets, leased=position.leased, idle=position.idle, now_us=now_us)
    return Grant(ask.lease, min(available, max(ask.need, ask.want)), now_us / MICROSECONDS)


class _Tally:
    """What a batch of charges changes.

    Args:
        leases: the rows of the leases that are still known.
    """

    def __init__(self, leases: Mapping[str, Row[Any]]) -> None:
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
        return {
            lease: (
                self._leases[lease].settled + amount,
                None if self._leases[lease].owed is None else max(0, self._leases[lease].owed - amount),
            )
            for lease, amount in self._settled.items()
        }
