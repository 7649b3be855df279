"""Accounts in a ledger's SQLite file. Needs nothing but the standard library, so every worker may load it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import Final

from tidemill.kernel import Clock, InvalidInput, Scope, SystemClock, Unavailable
from tidemill.ledger.accounts.statements import SQLITE_LISTS, Mode, Run, Statements
from tidemill.ledger.accounts.values import MICROSECONDS

_BUSY_TIMEOUT_S: Final = 30.0
_BEGIN: Final = {Mode.READ: "BEGIN", Mode.WRITE: "BEGIN IMMEDIATE", Mode.SETTLE: "BEGIN IMMEDIATE"}
_SYNCHRONOUS: Final = {Mode.WRITE: "PRAGMA synchronous = NORMAL", Mode.SETTLE: "PRAGMA synchronous = FULL"}
_HINTS: Final = {
    "locked": "Find the process that holds it.",
    "no such table": "After a backup run: python -m tidemill.ledger upgrade URL",
    "unable to open": "Run: tidemill init; or name another file.",
    "full": "Free some space and try again.",
}


class SqliteLeaseStore(Statements):
    """Accounts of one scope. See ``LeaseStore``. Other processes may write to the same file.

    Args:
        url: ``sqlite:////path/ledger.db``, with the ledger's tables.
        scope: whose accounts.
        clock: where the time comes from.

    Raises:
        InvalidInput: not such a URL.
        Unavailable: it cannot be read, or its tables are of another version.
    """

    def __init__(self, url: str, scope: Scope, clock: Clock | None = None) -> None:
        clock = clock or SystemClock()
        super().__init__(
            scope,
            self._begin,
            now_us=lambda _: round(clock.now().timestamp() * MICROSECONDS),
            lists=SQLITE_LISTS,
        )
        self._url = url
        self._path = _path(url)
        self._writing = Lock()  # threads queue here; processes queue on SQLite's own lock
        self._idle: list[_Connection] = []
        self._pid = os.getpid()
        self._closed = False
        self.check(url)

    def close(self) -> None:
        """See ``LeaseStore.close``."""
        self._closed = True
        while self._idle:
            self._idle.pop().driver.close()

    @contextmanager
    def _begin(self, mode: Mode) -> Iterator[Run]:
        if os.getpid() != self._pid:  # a forked child must not touch its parent's connections
            self._idle, self._writing, self._pid = [], Lock(), os.getpid()
        try:
            if mode is Mode.READ:
                with self._connection() as connection:
                    yield from connection.transaction(mode)
            else:
                with self._writing, self._connection() as connection:
                    yield from connection.transaction(mode)
        except sqlite3.Error as error:
            if isinstance(error, (sqlite3.IntegrityError, sqlite3.ProgrammingError)):
                raise
            hint = next((hint for sign, hint in _HINTS.items() if sign in str(error)), "Run: tidemill doctor")
            raise Unavailable(f"{self._url} cannot be used: {error}.", hint=hint) from error

    @contextmanager
    def _connection(self) -> Iterator[_Connection]:
        """An idle connection, or a new one; given back unless something went wrong on it."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = _Connection(self._path)
        try:
            yield connection
        except BaseException:
            connection.driver.close()  # rolls back
            raise
        if self._closed:
            connection.driver.close()
        else:
            self._idle.append(connection)


class _Connection:
    """One connection. It serves one thread at a time.

    Args:
        path: the file, which must be there.
    """

    def __init__(self, path: str) -> None:
        # Transactions begin where this class says so (isolation_level); a missing file is an error (mode=rw).
        self.driver = sqlite3.connect(
            f"file:{_quoted(path)}?mode=rw",
            uri=True,
            timeout=_BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=64,
        )
        self.driver.execute("PRAGMA temp_store = MEMORY")
        self._synchronous = ""

    def transaction(self, mode: Mode) -> Iterator[Run]:
        """The steps of a transaction around what its user does."""
        execute = self.driver.execute
        wanted = _SYNCHRONOUS.get(mode, "")
        if wanted and wanted != self._synchronous:
            execute(wanted)  # only outside a transaction
            self._synchronous = wanted
        execute(_BEGIN[mode])
        yield partial(_run, execute)
        execute("COMMIT")


def _run(execute: Callable[..., sqlite3.Cursor], statement: str, values: dict[str, object]) -> object:
    cursor = execute(statement, values)
    return cursor.fetchall() if cursor.description is not None else cursor.rowcount


def _path(url: str) -> str:
    scheme, _, path = url.partition(":///")
    if scheme.partition("+")[0] != "sqlite" or not path or path == ":memory:":
        raise InvalidInput(f"'{url}' cannot hold accounts: write sqlite:////path/ledger.db")
    return path


def _quoted(path: str) -> str:
    from urllib.parse import quote

    return quote(path)
