"""Forgetting: by subject, by trace or by age, in both tiers, down to the bytes.

A deleted row of a columnar file still lies in its row group, and a freed block keeps its bytes. So rows are deleted and
partitions replaced in one transaction; then files that are no longer listed are removed, the hot tables are written
anew without their deleted rows, and free blocks are overwritten. This second part takes time in proportion to the hot
tier, so erase many at once. It is noted as due in the transaction, and a store that was killed before does it when it
is opened.
"""

# ruff: noqa: S608 - statements are put together from this module's own constants; values are bound

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pyarrow as pa

from tidemill.kernel import InvalidInput, Scope, Unavailable
from tidemill.telemetry.queries import Erased, Erasure
from tidemill.telemetry.spans.schema import SCHEMA
from tidemill.telemetry.spans.text import word_filter, words_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import duckdb

    from tidemill.telemetry.spans.database import Database
    from tidemill.telemetry.spans.partitions import Partition, Partitions
    from tidemill.telemetry.spans.writing import Writer

_T = TypeVar("_T")
_TRIES: Final = 25
_PAUSE_S: Final = 0.2
_OWNED: Final = "project = $project AND tenant = $tenant"
_GONE: Final = "trace_id IN (SELECT trace_id FROM gone)"
_REWRITTEN: Final = (
    "spans", "contents", "trace_references", "scores", "late_contents", "aside_samples", "word_blocks",
)  # fmt: skip


class Eraser:
    """Erases records of one scope.

    Args:
        database: the hot tier.
        partitions: the cold tier.
        writer: told to forget the words it holds in memory.
        scope: whose records.
    """

    def __init__(self, database: Database, partitions: Partitions, writer: Writer, scope: Scope) -> None:
        self._database = database
        self._partitions = partitions
        self._writer = writer
        self._owner = {"project": scope.project, "tenant": scope.tenant}

    def finish(self) -> None:
        """Do what an erasure had still to do when its process died, unless the cold tier cannot be reached."""
        due = self._database.rows(f"SELECT count(*) FROM erasures_due WHERE {_OWNED}", self._owner)
        if due[0][0]:
            with suppress(Unavailable):  # it stays due; what came in since must not wait for it
                self._scrub()

    def erase(self, erasure: Erasure) -> Erased:
        """See ``SpanStore.erase``."""
        check(erasure)
        with self._database.writing(), self._database.cursor() as cursor:
            cold = self._partitions.listed(cursor)
            gone = self._gone(cursor, erasure, cold)
            cursor.execute("CREATE OR REPLACE TEMP TABLE gone AS SELECT DISTINCT trace_id FROM wanted")
            cursor.unregister("wanted")
            spans, blocks = self._hot(cursor)
            replaced = [(one, *self._without(cursor, one)) for one in cold if self._touches(cursor, one)]
            scores = _patiently(lambda: self._delete(cursor, replaced, blocks, erasure))
            self._writer.forget()
            _patiently(self._scrub)
        return Erased(
            traces=gone,
            spans=spans + sum(count for _, _, count in replaced),
            scores=scores,
            partitions_rewritten=sum(new is not None for _, new, _ in replaced),
            partitions_dropped=sum(new is None for _, new, _ in replaced),
        )

    def _gone(self, cursor: duckdb.DuckDBPyConnection, erasure: Erasure, cold: list[Partition]) -> int:
        """Register the ids of the traces to be erased as ``wanted``; how many there are in the store."""
        source = f"(SELECT trace_id, user_key, started_at_ns FROM spans WHERE {_OWNED}"
        if cold:
            source += f" UNION ALL SELECT trace_id, user_key, started_at_ns FROM {self._partitions.source(cold)}"
        values: dict[str, Any] = dict(self._owner)
        if erasure.before_ns is not None:
            condition = "started_at_ns < $before"
            values["before"] = erasure.before_ns
        elif erasure.user_keys:
            condition = "list_contains($keys, user_key)"
            values["keys"] = list(erasure.user_keys)
        else:
            condition = "list_contains($ids, trace_id)"
            values["ids"] = list(erasure.trace_ids)
        ids = cursor.execute(f"SELECT DISTINCT trace_id FROM {source}) WHERE {condition}", values).fetchall()
        found = {trace_id for (trace_id,) in ids}
        # A trace that has scores and no span is erased with its scores.
        cursor.register("wanted", pa.table({"trace_id": pa.array([*found, *erasure.trace_ids], pa.string())}))
        return len(found)

    def _hot(self, cursor: duckdb.DuckDBPyConnection) -> tuple[int, list[tuple[int, int]]]:
        """How many hot spans the traces have, and which filters of words know of them."""
        hot = f"SELECT seq FROM spans WHERE {_OWNED} AND {_GONE}"
        spans = cursor.execute(f"SELECT count(*) FROM ({hot})", self._owner).fetchall()[0][0]
        blocks = cursor.execute(
            f"SELECT DISTINCT b.first_seq, b.last_seq FROM word_blocks b JOIN ({hot}) h "
            "ON h.seq BETWEEN b.first_seq AND b.last_seq WHERE b.project = $project AND b.tenant = $tenant",
            self._owner,
        ).fetchall()
        return spans, blocks

    def _touches(self, cursor: duckdb.DuckDBPyConnection, one: Partition) -> bool:
        rows = cursor.execute(f"SELECT 1 FROM {self._partitions.source([one])} WHERE {_GONE} LIMIT 1").fetchall()
        return bool(rows)

    def _without(self, cursor: duckdb.DuckDBPyConnection, one: Partition) -> tuple[Partition | None, int]:
        """A partition written anew without the erased traces, and how many spans it lost; ``None`` if all of them."""
        source = self._partitions.source([one])
        lost = cursor.execute(f"SELECT count(*) FROM {source} WHERE {_GONE}").fetchall()[0][0]
        if lost == one.spans:
            return None, lost
        return self._partitions.write(
            one.day, f"SELECT * FROM {source} WHERE NOT {_GONE} ORDER BY seq", {}, cursor
        ), lost

    def _delete(
        self,
        cursor: duckdb.DuckDBPyConnection,
        replaced: list[tuple[Partition, Partition | None, int]],
        blocks: list[tuple[int, int]],
        erasure: Erasure,
    ) -> int:
        """Take everything out, in one transaction; how many scores went."""
        values = dict(self._owner)
        cursor.execute("BEGIN")
        try:
            cursor.execute("INSERT INTO erasures_due VALUES ($project, $tenant)", values)
            for old, new, _ in replaced:
                self._partitions.strike(cursor, old)
                if new is not None:
                    self._partitions.enter(cursor, new)
            for table in ("contents", "trace_references"):
                cursor.execute(
                    f"DELETE FROM {table} WHERE {_OWNED} AND seq IN (SELECT seq FROM spans WHERE {_OWNED} AND {_GONE})",
                    values,
                )
            cursor.execute(f"DELETE FROM spans WHERE {_OWNED} AND {_GONE}", values)
            scores = cursor.execute(f"DELETE FROM scores WHERE {_OWNED} AND {_GONE} RETURNING 1", values).fetchall()
            for table in ("aside_samples", "late_contents"):
                cursor.execute(f"DELETE FROM {table} WHERE {_OWNED} AND {_GONE}", values)
            if erasure.before_ns is not None:
                cursor.execute(
                    f"DELETE FROM aside_samples WHERE {_OWNED} AND at_ns < $before",
                    {**values, "before": erasure.before_ns},
                )
            for first, last in {*blocks, *self._cold_blocks(cursor, replaced)}:
                self._filter_anew(cursor, first, last)
            cursor.execute("COMMIT")
        except BaseException:
            cursor.execute("ROLLBACK")
            raise
        return len(scores)

    def _cold_blocks(
        self, cursor: duckdb.DuckDBPyConnection, replaced: list[tuple[Partition, Partition | None, int]]
    ) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for old, _, _ in replaced:
            found += cursor.execute(
                f"SELECT DISTINCT b.first_seq, b.last_seq FROM word_blocks b JOIN (SELECT seq FROM "
                f"{self._partitions.source([old])} WHERE {_GONE} AND said IS NOT NULL) h "
                "ON h.seq BETWEEN b.first_seq AND b.last_seq WHERE b.project = $project AND b.tenant = $tenant",
                self._owner,
            ).fetchall()
        return found

    def _filter_anew(self, cursor: duckdb.DuckDBPyConnection, first: int, last: int) -> None:
        """Make a filter of words again from the contents that are left; without any, drop it."""
        values = {**self._owner, "first": first, "last": last}
        within = "seq BETWEEN $first AND $last"
        source = f"SELECT said FROM contents WHERE {within} AND {_OWNED}"
        cold = [one for one in self._partitions.listed(cursor) if one.first_seq <= last and one.last_seq >= first]
        if cold:
            source += f" UNION ALL SELECT said FROM {self._partitions.source(cold)} WHERE {within} AND said IS NOT NULL"
        words = {word for (said,) in cursor.execute(source, values).fetchall() for word in words_of(said)}
        mine = f"first_seq = $first AND last_seq = $last AND {_OWNED}"
        cursor.execute(f"DELETE FROM word_blocks WHERE {mine}", values)
        if words:
            cursor.execute(
                "INSERT INTO word_blocks VALUES ($project, $tenant, $first, $last, $bits::BLOB::BIT)",
                {**values, "bits": word_filter(words)},
            )

    def _scrub(self) -> None:
        """Remove files that are no longer listed, dead rows of the hot tables, and what lies in freed blocks."""
        self._partitions.sweep()
        with self._database.transaction() as cursor:
            for table in _REWRITTEN:
                cursor.execute(f"ALTER TABLE {table} RENAME TO {table}_old")
            cursor.execute(SCHEMA)
            for table in _REWRITTEN:
                cursor.execute(f"INSERT INTO {table} SELECT * FROM {table}_old ORDER BY rowid")
                cursor.execute(f"DROP TABLE {table}_old")
        self._database.overwrite_free_blocks()
        with self._database.transaction() as cursor:
            cursor.execute(f"DELETE FROM erasures_due WHERE {_OWNED}", self._owner)


def _patiently(step: Callable[[], _T]) -> _T:
    """Do a step that readers may be in the way of: DuckDB refuses some statements while a question is answered."""
    import duckdb

    for _ in range(_TRIES - 1):
        with suppress(duckdb.TransactionException, duckdb.CatalogException, duckdb.ConnectionException):
            return step()
        time.sleep(_PAUSE_S)
    return step()


def check(erasure: Erasure) -> None:
    """Refuse an erasure that names not exactly one of subject, trace and age.

    Raises:
        InvalidInput: it does not.
    """
    given = [bool(erasure.user_keys), bool(erasure.trace_ids), erasure.before_ns is not None]
    if sum(given) != 1:
        raise InvalidInput("An erasure is by user keys, by trace ids or by age: exactly one of them.")
