"""The DuckDB file: one connection, one cursor a use, one writer at a time.

Every statement runs on a cursor of its own and is fetched whole: DuckDB's cursors must not be shared between threads
nor left half read.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import duckdb

from tidemill.kernel import Unavailable
from tidemill.telemetry.spans.schema import SCHEMA_VERSION, prepare

_WAL_LIMIT: Final = "128MB"
"""Above it the log is folded into the file. A row group that is still growing is written anew each time, so seldom is
better; the log is read when the file is opened after a crash, so it must not grow without end (128 MB: a second)."""

_NOISE: Final = (
    "CREATE TABLE noise AS SELECT hash(i, random()) AS n FROM range($1) t(i)",
    "CREATE TABLE noise AS SELECT hash(i, random())::VARCHAR AS n FROM range($1) t(i)",
    "CREATE TABLE noise AS SELECT hash(i, random()) AS n FROM range($1) t(i)",
)
_MORE_BLOCKS: Final = 16
"""Noise beyond the free blocks, so that buffers in memory are overwritten too."""


class Database:
    """An open DuckDB file.

    Args:
        path: the file, made if missing.
        memory_mb: DuckDB's own limit; what does not fit is spilled beside the file.
        threads: DuckDB's worker threads.

    Raises:
        Unavailable: another process holds the file, or it cannot be opened.
    """

    def __init__(self, path: Path, *, memory_mb: int, threads: int) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._writing = threading.RLock()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The memory limit counts for the whole file in this process, so a second scope must ask for the same.
        self._config: dict[str, Any] = {
            "memory_limit": f"{memory_mb}MB",
            "threads": threads,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "storage_compatibility_version": "latest",
            "checkpoint_threshold": _WAL_LIMIT,
        }
        try:
            self._database: duckdb.DuckDBPyConnection | None = duckdb.connect(str(path), config=self._config)
            with self.cursor() as cursor:
                self.found_version = prepare(cursor)
        except duckdb.Error as error:
            raise _cannot_open(path, error) from error
        if self.found_version > SCHEMA_VERSION:
            self.close()
            raise Unavailable(
                f"{path} was written by a newer Tidemill (span store {self.found_version}, this version reads "
                f"{SCHEMA_VERSION})."
            )
        path.chmod(0o600)

    def close(self) -> None:
        """Let go of the file; statements that are running end first."""
        with self._writing, self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None

    @contextmanager
    def cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A cursor of one's own.

        Raises:
            Unavailable: the store is closed.
        """
        with self._lock:
            if self._database is None:
                raise Unavailable(f"the span store {self.path} is closed")
            cursor = self._database.cursor()
        try:
            yield cursor
        finally:
            cursor.close()

    def rows(self, sql: str, values: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """All rows of a statement."""
        with self.cursor() as cursor:
            return cursor.execute(sql, values or None).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A cursor inside a transaction, committed at the end; the only writer meanwhile.

        Raises:
            Unavailable: the disk is full, or the file cannot be written; nothing was stored.
        """
        with self._writing, self.cursor() as cursor:
            cursor.execute("BEGIN")
            try:
                yield cursor
                cursor.execute("COMMIT")
            except BaseException as error:
                with suppress(duckdb.Error):  # a commit that failed has ended the transaction already
                    cursor.execute("ROLLBACK")
                if isinstance(error, duckdb.IOException):
                    raise Unavailable(
                        f"the span store {self.path} cannot be written: {error}",
                        hint="Free space on its disk; records wait in the segments meanwhile.",
                    ) from error
                raise

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other writers out over several transactions."""
        with self._writing:
            yield

    def checkpoint(self) -> None:
        """Fold the log into the file."""
        with self._writing, self.cursor() as cursor:
            cursor.execute("CHECKPOINT")

    def overwrite_free_blocks(self) -> None:
        """Overwrite what the file no longer uses, so that nothing deleted can be read from it.

        DuckDB fills free blocks before it lets the file grow; a table of noise as large as they are takes them all and
        is dropped. Several times and in several shapes, for the rest of a block that is not full is written as it was
        found in memory, and after the first time that is noise. The file is opened anew before, to let go of the
        memory that held what was deleted; another store of this process that has it open keeps it.
        """
        with self._writing, self._lock:
            if self._database is not None:
                self._database.close()
                self._database = duckdb.connect(str(self.path), config=self._config)
        with self._writing, self.cursor() as cursor:
            # What a checkpoint frees can be taken after the next one.
            cursor.execute("CHECKPOINT")
            cursor.execute("CHECKPOINT")
            for noise in _NOISE:
                found = cursor.execute("SELECT block_size, free_blocks FROM pragma_database_size()").fetchall()
                block_bytes, free = found[0]
                count = (free + _MORE_BLOCKS) * block_bytes // 8
                cursor.execute(noise, [count])
                cursor.execute("CHECKPOINT")
                cursor.execute("DROP TABLE noise")
                cursor.execute("CHECKPOINT")
                cursor.execute("CHECKPOINT")


def _cannot_open(path: Path, error: Exception) -> Unavailable:
    if "lock" in str(error).lower():
        return Unavailable(
            f"the span store {path} is held by another process.",
            hint="Ask through the running server, or stop it first: only one process may hold the store.",
        )
    return Unavailable(f"the span store {path} cannot be opened: {error}")
