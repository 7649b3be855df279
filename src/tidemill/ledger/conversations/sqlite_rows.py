"""Conversations of one host in a SQLite file of their own, which its gateway workers share.

Write-ahead log with ``synchronous = FULL``: what was added survives a power cut. ``secure_delete`` overwrites what is
deleted. The file is readable by its owner only.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, Final

from tidemill.kernel import Unavailable
from tidemill.ledger.conversations.sql import TABLES, Statements

_BUSY_TIMEOUT_S: Final = 30.0
_FORMAT: Final = 1


class SqliteRows(Statements):
    """The back end.

    Args:
        path: the file; made with its tables when missing.

    Raises:
        Unavailable: it cannot be opened, or is of a newer format.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(self._begin)
        self._path = str(path)
        self._idle: list[sqlite3.Connection] = []
        self._writing = Lock()  # threads queue here; processes queue on SQLite's own lock
        self._closed = False
        with self._explained():
            Path(self._path).parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
            with self._writing, closing(self._connect()) as connection:
                self._prepare(connection)

    def close(self) -> None:
        """Close the connections. The object may not be used afterwards."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found > _FORMAT:
            raise Unavailable(f"{self._path} was written by a newer Tidemill.", hint="Install that version.")
        for statement in TABLES:
            connection.execute(statement.format(bytes="BLOB", real="REAL"))
        connection.execute(f"PRAGMA user_version = {_FORMAT}")
        connection.execute("COMMIT")

    @contextmanager
    def _begin(self, writing: bool) -> Iterator[Any]:
        with self._explained():
            if not writing:
                with self._connection() as connection:
                    yield _runner(connection)
                return
            with self._writing, self._connection() as connection:
                connection.execute("BEGIN IMMEDIATE")
                yield _runner(connection)
                connection.execute("COMMIT")

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """One of the idle connections, or a new one; given back unless something went wrong on it."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect()
        try:
            yield connection
        except BaseException:
            connection.close()  # rolls back
            raise
        if self._closed:
            connection.close()
        else:
            self._idle.append(connection)

    def _connect(self) -> sqlite3.Connection:
        # Transactions begin where this class says so (isolation_level); a connection serves one thread at a time.
        connection = sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        for pragma in ("synchronous = FULL", "secure_delete = ON", "temp_store = MEMORY"):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.OperationalError, sqlite3.DatabaseError, OSError) as error:
            if isinstance(error, sqlite3.IntegrityError):
                raise
            text = f"The store of conversations {self._path} cannot be used: {error}."
            raise Unavailable(text, hint="Check the disk, the folder and who else holds the file.") from error


def _runner(connection: sqlite3.Connection) -> Any:
    def run(statement: str, values: dict[str, Any]) -> Any:
        cursor = connection.execute(statement, values)
        return cursor.fetchall() if cursor.description is not None else cursor.rowcount

    return run
