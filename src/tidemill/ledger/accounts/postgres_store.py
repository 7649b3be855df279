"""Accounts in a ledger on a PostgreSQL server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from tidemill.kernel import Clock, MissingExtra, Scope, Unavailable, digest_json
from tidemill.ledger.accounts.statements import POSTGRES_LISTS, Mode, Run, Statements
from tidemill.ledger.accounts.values import MICROSECONDS
from tidemill.ledger.postgres_texts import PostgresTexts

if TYPE_CHECKING:
    import psycopg

_SERVER_TIME: Final = "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)"
_LOCK: Final = "SELECT pg_advisory_xact_lock(:key)"
_BEGIN: Final = {
    Mode.READ: "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
    Mode.WRITE: "BEGIN; SET LOCAL synchronous_commit = off",
    Mode.SETTLE: "BEGIN",
}
_PATIENCE: Final = {"connect_timeout": "3", "options": "-c statement_timeout=10s -c lock_timeout=10s"}


class PostgresLeaseStore(Statements):
    """Accounts of one scope. See ``LeaseStore``. Writers read committed rows and lock the accounts they touch.

    Args:
        url: ``postgresql://user@host/name``, with the ledger's tables.
        scope: whose accounts.
        clock: ``None`` takes the server's time.

    Raises:
        MissingExtra: the driver is not installed.
        Unavailable: the server does not answer, or its tables are of another version.
    """

    def __init__(self, url: str, scope: Scope, clock: Clock | None = None) -> None:
        try:
            import psycopg
            from psycopg.conninfo import conninfo_to_dict
        except ModuleNotFoundError as error:
            raise MissingExtra("A store of limits in PostgreSQL", "postgres") from error

        def now_us(run: Run) -> int:
            return int(run(_SERVER_TIME, {})[0][0]) if clock is None else round(clock.now().timestamp() * MICROSECONDS)

        def lock(run: Run, name: str) -> None:
            key = bytes.fromhex(digest_json([scope.project, scope.tenant, name])[-16:])  # as ledger.database does
            run(_LOCK, {"key": int.from_bytes(key, "big", signed=True)})

        super().__init__(scope, self._begin, now_us=now_us, lists=POSTGRES_LISTS, lock=lock)
        self._driver = psycopg
        self._url = "postgresql://" + url.partition("://")[2]
        self._where = self._url.rpartition("@")[2].partition("?")[0]
        self._options = {}
        with self._explained():
            self._options = {**_PATIENCE, **conninfo_to_dict(self._url)}
        self._idle: list[psycopg.Connection[Any]] = []
        self._texts = PostgresTexts()
        self._pid = os.getpid()
        self._closed = False
        self.check(f"postgresql://{self._where}")

    def close(self) -> None:
        """See ``LeaseStore.close``."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def _begin(self, mode: Mode) -> Iterator[Run]:
        if os.getpid() != self._pid:  # a forked child must not touch its parent's connections
            self._idle, self._pid = [], os.getpid()
        with self._explained():
            connection = self._begun(_BEGIN[mode])
            try:
                yield self._texts.runner(connection)
                connection.execute("COMMIT")
            except BaseException:
                connection.close()  # rolls back
                raise
            if self._closed:
                connection.close()
            else:
                self._idle.append(connection)

    def _begun(self, begin: str) -> psycopg.Connection[Any]:
        """A connection with a transaction begun; one that the server gave up while it was idle is passed over."""
        text: Any = begin
        while self._idle:
            connection = self._idle.pop()
            try:
                connection.execute(text)
            except self._driver.OperationalError:
                connection.close()
            else:
                return connection
        options: Any = self._options
        connection = self._driver.connect(**options, autocommit=True)
        connection.execute(text)
        return connection

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (self._driver.OperationalError, self._driver.InterfaceError, self._driver.ProgrammingError) as error:
            text = f"The accounts in PostgreSQL at {self._where} cannot be used: {str(error).strip()}."
            raise Unavailable(text, hint="Start the server, mend the URL, or make its tables.") from error
