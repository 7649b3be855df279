"""Opens the store of accounts that a URL names."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
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
    if _backend(url) == "postgresql":
        from tidemill.ledger.accounts.postgres_store import PostgresLeaseStore

        return PostgresLeaseStore(url, scope, clock)
    from tidemill.ledger.accounts.sqlite_store import SqliteLeaseStore

    return SqliteLeaseStore(url, scope, clock)


def load_driver(url: str) -> None:
    """Load what ``open_lease_store`` will need for a URL, and open nothing.

    For a worker that serves nobody yet: loaded later, beside a busy event loop, a driver takes seconds and stalls
    whoever is being served. One that is not installed is reported when the store is opened.
    """
    kind, driver = "sqlite", "sqlite3"
    if url.startswith(_REDIS_SCHEMES):
        kind, driver = "redis", "redis"
    elif _backend(url) == "postgresql":
        kind, driver = "postgres", "psycopg"
    with suppress(ModuleNotFoundError):
        import_module(driver)
        import_module(f"tidemill.ledger.accounts.{kind}_store")


def _backend(url: str) -> str:
    return url.partition(":")[0].partition("+")[0]
