"""The version of a store's tables: made when new, brought up to date, or refused.

A fresh database gets its tables at once; an older one goes through the migrations, each store under one lock, so that
processes that open it at the same time do it once. A test holds both ways equal.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, String, column, insert, inspect, select, table, text
from sqlalchemy import exc as sql

from tidemill.kernel import Clock, Scope, SystemClock, Unavailable
from tidemill.ledger.database import BUSY_TIMEOUT_S, Database, advisory_key
from tidemill.ledger.tables import SCHEMA_VERSION, metadata

if TYPE_CHECKING:
    from alembic.config import Config

_VERSIONS: Final = table("alembic_version", column("version_num", String(32)))

_BASE: Final = ""  # the version of a store that was moved back to before the first migration; sorts before every other
# As Alembic itself makes it.
_CREATE_VERSIONS: Final = """CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
)"""


def prepare(database: Database, *, migrate: bool) -> None:
    """Make sure that the tables are there and of this version.

    Raises:
        Unavailable: they are not, and ``migrate`` or the kind of server does not allow to mend it here.
    """
    if database.path is not None:
        _prepare_file(database.path, create=migrate)
    found = version(database)
    if found == SCHEMA_VERSION:
        return
    where = database.url.render_as_string()
    if found is not None and found > SCHEMA_VERSION:
        raise Unavailable(f"{where} was written by a newer Tidemill (schema {found}).", hint="Install that version.")
    if not migrate or (found is not None and database.dialect == "postgresql"):
        raise Unavailable(
            f"{where} has schema {found or 'none'}; this version of Tidemill needs {SCHEMA_VERSION}.",
            hint=f"After a backup run: python -m tidemill.ledger upgrade {where}",
        )
    with _exclusive(database) as connection:
        found = _version(connection)  # another process may have been first
        if found is None:
            metadata.create_all(connection, checkfirst=False)
            connection.execute(text(_CREATE_VERSIONS))
            connection.execute(insert(_VERSIONS), {"version_num": SCHEMA_VERSION})
        elif found < SCHEMA_VERSION:
            if database.path is not None:
                copy_file(database.path, database.path.with_name(f"{database.path.name}.before-{SCHEMA_VERSION}"))
            _alembic(connection, "upgrade", "head")


def version(database: Database) -> str | None:
    """The version of a store's tables; ``None`` where there never was one."""
    with database.read() as connection:
        return _version(connection)


def upgrade(url: str, revision: str = "head") -> str | None:
    """Bring a store's tables to a newer version, all in one transaction; an empty store gets them.

    Args:
        url: the database.
        revision: which version; the newest by default.

    Returns:
        The version it has now.
    """
    return _move(url, "upgrade", revision)


def downgrade(url: str, revision: str) -> str | None:
    """Bring a store's tables back to an older version, all in one transaction. ``base`` removes them with all rows."""
    return _move(url, "downgrade", revision)


def copy_file(source: Path, target: Path) -> None:
    """Copy a SQLite file as of one moment, while others use it."""
    target.unlink(missing_ok=True)
    _create_private(target)
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)


def _move(url: str, way: str, revision: str, clock: Clock = SystemClock()) -> str | None:  # noqa: B008 - no state
    database = Database(url, Scope("schema"), clock)
    try:
        if database.path is not None:
            _prepare_file(database.path, create=way == "upgrade")
        with _exclusive(database) as connection:
            _alembic(connection, way, revision)
            return _version(connection) or None
    finally:
        database.close()


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(select(_VERSIONS.c.version_num)).scalar_one_or_none() or _BASE


def _alembic(connection: Connection, way: str, revision: str) -> None:
    from alembic import command

    config = alembic_config()
    config.attributes["connection"] = connection
    {"upgrade": command.upgrade, "downgrade": command.downgrade}[way](config, revision)


def alembic_config() -> Config:
    """Alembic's configuration for the migrations inside this package."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


@contextmanager
def _exclusive(database: Database) -> Iterator[Connection]:
    """A write transaction that no other process changes the schema beside."""
    if database.dialect == "postgresql":
        with database.write() as connection:
            key = advisory_key(["tidemill", "schema"])
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
            yield connection
        return
    # A table that is made anew, as SQLite needs for most changes, must not cascade to those that refer to it.
    with database.write(foreign_keys=False) as connection:
        yield connection


def _prepare_file(path: Path, *, create: bool) -> None:
    """Make the file for its owner alone, and turn on the write-ahead log, which SQLite remembers in the file."""
    if not path.exists():
        if not create:
            raise Unavailable(f"There is no ledger at {path}.", hint="Run: tidemill init; or name another file.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _create_private(path)
        except OSError as error:
            raise Unavailable(f"{path} cannot be made: {error.strerror}.", hint="Choose a writable folder.") from error
    deadline_s = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)) as connection:
                if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                    connection.execute("PRAGMA journal_mode = WAL")
                return
        except sqlite3.OperationalError as error:
            # SQLite does not wait for this lock by itself; another process that opens the file holds it for moments.
            if "locked" not in str(error) or time.monotonic() > deadline_s:
                raise _unreadable(path, error) from error
            time.sleep(0.02)
        except sqlite3.DatabaseError as error:
            raise _unreadable(path, error) from error


def _unreadable(path: Path, error: sqlite3.Error) -> Unavailable:
    from tidemill.ledger.database import explain, read_url

    wrapped: Any = sql.OperationalError(None, None, error)
    return explain(wrapped, read_url(f"sqlite:///{path}")) or Unavailable(f"{path} cannot be opened: {error}.")


def _create_private(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
