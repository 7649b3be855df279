"""Leases: one holder at a time acts under a name, and a fencing epoch that tells a late holder from the new one."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import ColumnElement, Connection, and_, insert, select, update

from tidemill.kernel import Conflict, InvalidInput
from tidemill.ledger.records import Lease
from tidemill.ledger.tables import leases

if TYPE_CHECKING:
    from tidemill.ledger.database import Database


class Leases:
    """The leases of one scope."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def acquire(self, name: str, holder: str, ttl_s: float) -> Lease | None:
        """Take a lease that is free, over, or this holder's own.

        Args:
            name: what is leased.
            holder: who asks; distinct for every process.
            ttl_s: how long it lasts unless renewed, in seconds, above 0.

        Returns:
            The lease, its epoch larger than any before it under this name; ``None`` while another holds it.
        """
        if ttl_s <= 0:
            raise InvalidInput(f"a lease lasts longer than {ttl_s} s")
        with self._database.write() as connection:
            self._database.lock(connection, f"lease:{name}")
            now = self._database.clock.now()
            row = connection.execute(select(leases).where(self._named(name))).one_or_none()
            if row is not None and row.holder != holder and row.holder and row.until > now:
                return None
            lease = Lease(name, holder, 1 if row is None else row.epoch + 1, now + timedelta(seconds=ttl_s))
            if row is None:
                values = {"name": name, "holder": holder, "epoch": lease.epoch, "until": lease.until}
                connection.execute(insert(leases), self._database.row(**values))
            else:
                taken = {"holder": holder, "epoch": lease.epoch, "until": lease.until}
                connection.execute(update(leases).where(self._named(name)).values(**taken))
            return lease

    def renew(self, lease: Lease, ttl_s: float) -> Lease:
        """Prolong a lease from now on.

        Raises:
            Conflict: it is over or has another holder; the caller must stop acting under it.
        """
        until = self._database.clock.now() + timedelta(seconds=ttl_s)
        with self._database.write(sync_full=False) as connection:
            self._database.lock(connection, f"lease:{lease.name}")
            self.check_within(connection, lease)
            connection.execute(update(leases).where(self._named(lease.name)).values(until=until))
        return Lease(lease.name, lease.holder, lease.epoch, until)

    def release(self, lease: Lease) -> None:
        """Give a lease back; nothing happens if it has another holder by now. Its epoch is remembered."""
        with self._database.write() as connection:
            held = and_(self._named(lease.name), leases.c.holder == lease.holder, leases.c.epoch == lease.epoch)
            freed = {"holder": "", "until": self._database.clock.now()}
            connection.execute(update(leases).where(held).values(**freed))

    def check_within(self, connection: Connection, lease: Lease) -> None:
        """Make sure, as a part of a write transaction, that a lease still holds.

        Raises:
            Conflict: it is over or has another holder.
        """
        query = select(leases).where(self._named(lease.name))
        if self._database.dialect == "postgresql":
            query = query.with_for_update()
        row = connection.execute(query).one_or_none()
        now = self._database.clock.now()
        if row is None or (row.holder, row.epoch) != (lease.holder, lease.epoch) or row.until <= now:
            holder = "nobody" if row is None or not row.holder or row.until <= now else f"'{row.holder}'"
            raise Conflict(
                f"The lease '{lease.name}' of '{lease.holder}' (epoch {lease.epoch}) is held by {holder} now."
            )

    def _named(self, name: str) -> ColumnElement[bool]:
        return and_(self._database.mine(leases), leases.c.name == name)
