"""One database behind one object: connections, transactions and the translation of its errors.

SQLite: write-ahead log, ``busy_timeout`` 30 s, foreign keys on, writers begin with ``BEGIN IMMEDIATE`` so that what
they read stays true until they commit. PostgreSQL: writers read committed rows and take a named advisory lock where
several statements must see one state; readers see one snapshot.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

from sqlalchemy import URL, Column, ColumnElement, Connection, Engine, Table, create_engine, event, make_url, text
from sqlalchemy import exc as sql

from tidemill.kernel import Clock, Fault, InvalidInput, MissingExtra, Scope, Unavailable, digest_json

BUSY_TIMEOUT_S: Final = 30.0
Dialect = Literal["sqlite", "postgresql"]


class Database:
    """An engine, the scope whose rows it may touch, and a clock. Safe for threads, and for a child after ``fork``.

    Args:
        url: ``sqlite:////path/ledger.db`` or ``postgresql+psycopg://user@host/name``.
        scope: whose rows are read and written.
        clock: where times come from.

    Raises:
        InvalidInput: not such a URL.
        MissingExtra: PostgreSQL without its driver.
    """

    def __init__(self, url: str, scope: Scope, clock: Clock) -> None:
        self.url: Final = read_url(url)
        self.dialect: Final[Dialect] = "sqlite" if self.url.get_backend_name() == "sqlite" else "postgresql"
        self.scope: Final = scope
        self.clock: Final = clock
        self._pid = os.getpid()
        self._writing = threading.Lock()
        self._writer: int | None = None
        self.engine: Final = _sqlite_engine(self.url) if self.dialect == "sqlite" else _postgres_engine(self.url)

    @property
    def path(self) -> Path | None:
        """The database file; ``None`` for a server."""
        return Path(str(self.url.database)) if self.dialect == "sqlite" else None

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A read transaction: all its statements see one state.

        Raises:
            Unavailable: the database cannot be reached or read.
        """
        self._after_fork()
        with self._explained(), self.engine.connect() as connection:
            if self.dialect == "postgresql":
                connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                yield connection

    @contextmanager
    def write(self, sync_full: bool = True, *, foreign_keys: bool = True) -> Iterator[Connection]:
        """A write transaction; on SQLite the only one in the world until it ends.

        Args:
            sync_full: return only when the commit is on the disk. Otherwise a power cut, but no killed process, may
                undo the newest commits; a later full commit makes them safe as well.
            foreign_keys: ``False`` leaves references unchecked on SQLite, for migrations that make a table anew.

        Raises:
            Unavailable: the database cannot be reached, is full, or stayed locked for ``BUSY_TIMEOUT_S``.
            Fault: this thread is already writing.
        """
        self._after_fork()
        if self.dialect == "postgresql":
            with self._explained(), self.engine.begin() as connection:
                if not sync_full:
                    connection.exec_driver_sql("SET LOCAL synchronous_commit = off")
                yield connection
            return
        if self._writer == threading.get_ident():
            raise Fault("a write transaction inside a write transaction")
        # Threads of one process queue here, fairly and without polling; processes queue on SQLite's own lock.
        with self._explained(), self._writing, self.engine.connect() as connection:
            self._writer = threading.get_ident()
            try:
                _set_pragma(connection, "synchronous", "FULL" if sync_full else "NORMAL")
                _set_pragma(connection, "foreign_keys", "ON" if foreign_keys else "OFF")
                with connection.execution_options(tidemill_begin="BEGIN IMMEDIATE").begin():
                    yield connection
            finally:
                self._writer = None

    def lock(self, connection: Connection, name: str) -> None:
        """Hold the named lock of this scope until the transaction ends. On SQLite a writer holds every lock."""
        if self.dialect == "postgresql":
            key = advisory_key([self.scope.project, self.scope.tenant, name])
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})

    def mine(self, table: Table) -> ColumnElement[bool]:
        """The condition that a row is of this scope."""
        return (table.c.project == self.scope.project) & (table.c.tenant == self.scope.tenant)

    def row(self, **values: Any) -> dict[str, Any]:
        """A row to insert: the values, with project and tenant."""
        return {"project": self.scope.project, "tenant": self.scope.tenant, **values}

    def put(
        self, connection: Connection, table: Table, rows: list[dict[str, Any]], *, replace: tuple[str, ...] = ()
    ) -> None:
        """Insert rows; where the key is taken keep what is there, or replace the named columns.

        Args:
            connection: of a write transaction.
            table: where to.
            rows: as made by ``row``, all with the same columns, sorted alike by every writer, for PostgreSQL
                locks them in this order.
            replace: columns that take the new value where the key is there already.
        """
        if not rows:
            return
        statement = _upsert(self.dialect, table, replace)
        for start in range(0, len(rows), 5000):
            connection.execute(statement, rows[start : start + 5000])

    def close(self) -> None:
        """Give the connections back. The object may not be used afterwards."""
        self.engine.dispose()

    def _after_fork(self) -> None:
        """A forked child must not touch its parent's connections: forget them, unclosed."""
        if os.getpid() != self._pid:
            self.engine.dispose(close=False)
            self._writing = threading.Lock()
            self._writer = None
            self._pid = os.getpid()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sql.TimeoutError as error:
            raise Unavailable("The ledger's connections are all in use; nothing was written.") from error
        except (sql.OperationalError, sql.DatabaseError) as error:
            explained = explain(error, self.url)
            if explained is None:
                raise
            raise explained from error


def read_url(url: str) -> URL:
    """Read and check a database URL.

    Raises:
        InvalidInput: not ``sqlite:////path`` or ``postgresql+psycopg://…``.
    """
    try:
        parsed = make_url(url)
    except sql.ArgumentError as error:
        raise InvalidInput(f"'{url}' is not a database URL: write sqlite:////path/ledger.db") from error
    backend = parsed.get_backend_name()
    if backend == "sqlite" and parsed.database and parsed.database != ":memory:":
        return parsed
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    raise InvalidInput(
        f"'{parsed.render_as_string()}' cannot hold a ledger: "
        "write sqlite:////path/ledger.db or postgresql+psycopg://user@host/name"
    )


def advisory_key(parts: list[str]) -> int:
    """A PostgreSQL advisory lock's key, a signed 64-bit number, for a name in parts."""
    return int.from_bytes(bytes.fromhex(digest_json(parts)[-16:]), "big", signed=True)


def explain(error: sql.DBAPIError, url: URL) -> Unavailable | None:
    """Turn a database's complaint about its surroundings into a sentence; ``None`` for any other complaint."""
    where = url.render_as_string()
    said = str(error.orig).strip()
    sentences = {
        "database is locked": (f"{where} stayed locked for {BUSY_TIMEOUT_S:.0f} s.", "Find the process that holds it."),
        "unable to open database file": (f"{where} cannot be opened.", "Create its folder, or make it writable."),
        "readonly database": (f"{where} cannot be written.", "Make the file and its folder writable."),
        "disk is full": (f"No space is left for {where}; nothing was written.", "Free some space and try again."),
        "file is not a database": (f"{where} is not a SQLite database.", "Name another file, or restore a backup."),
        "malformed": (f"{where} is damaged: {said}.", "Run: tidemill doctor; then restore a backup."),
        "disk I/O error": (f"{where} cannot be read or written: {said}.", "Check the disk and the folder."),
    }
    for sign, (sentence, hint) in sentences.items():
        if sign in said:
            return Unavailable(sentence, hint=hint)
    if url.get_backend_name() == "postgresql" and (error.connection_invalidated or "connection" in said):
        return Unavailable(f"PostgreSQL at {where} does not answer: {said}", hint="Start it, or mend the URL.")
    return None


def _upsert(dialect: Dialect, table: Table, replace: tuple[str, ...]) -> Any:
    if dialect == "sqlite":
        from sqlalchemy.dialects.sqlite import insert
    else:
        from sqlalchemy.dialects.postgresql import insert  # type: ignore[assignment]  # the same methods
    statement = insert(table)
    if not replace:
        return statement.on_conflict_do_nothing()
    keys: list[Column[Any]] = list(table.primary_key.columns)
    return statement.on_conflict_do_update(
        index_elements=keys, set_={column: statement.excluded[column] for column in replace}
    )


def _set_pragma(connection: Connection, name: str, value: str) -> None:
    """Set an option of the connection. SQLite takes these only outside a transaction, hence on the driver."""
    if connection.info.get(name) != value:
        driver: Any = connection.connection.driver_connection
        driver.execute(f"PRAGMA {name} = {value}")
        connection.info[name] = value


def _sqlite_engine(url: URL) -> Engine:
    engine = create_engine(
        url,
        connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
        pool_size=4,
        max_overflow=60,
        pool_timeout=BUSY_TIMEOUT_S,
    )

    @event.listens_for(engine, "connect")
    def prepare(driver: Any, _record: Any) -> None:
        driver.isolation_level = None  # transactions begin where `begin` below says so, not where sqlite3 guesses
        for pragma in ("foreign_keys = ON", "temp_store = MEMORY", "cache_size = -16384"):
            driver.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("tidemill_begin", "BEGIN"))

    return engine


def _postgres_engine(url: URL) -> Engine:
    try:
        return create_engine(url, pool_size=4, max_overflow=60, pool_timeout=BUSY_TIMEOUT_S, pool_pre_ping=True)
    except ModuleNotFoundError as error:
        raise MissingExtra("A ledger in PostgreSQL", "postgres") from error
