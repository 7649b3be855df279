"""Opens the store of accounts that a URL names."""

from __future__ import annotations

from typing import Final

from tidemill.kernel import Clock, Scope
from tidemill.ledger.accounts.values import LeaseStore

_REDIS_SCHEMES: Final = ("redis://", "rediss://", "unix://")


def open_lease_store(url: str, scope: Scope, *, clock: Clock | None = None) -> LeaseStore:
    """Open the accounts of a scope.

    Args:
        url: a ledger's database (``sqlite:////path/ledger.db``, ``postgresql+psycopg://…``) with its tables, or
            ``redis://host:port/number``.
        scope: whose accounts.
        clock: where the time comes from; by default the server's own, so that workers' clocks need not agree, and
            this machine's for SQLite.

    Raises:
        InvalidInput: not such a URL.
        Unavailable: it does not answer, or its tables are of another version.
        MissingExtra: the library of the back end is not installed.
    """
    if url.startswith(_REDIS_SCHEMES):
        from tidemill.ledger.accounts.redis_store import RedisLeaseStore

        return RedisLeaseStore(url, scope, clock)
    from tidemill.ledger.accounts.sql_store import SqlLeaseStore

    return SqlLeaseStore(url, scope, clock)
