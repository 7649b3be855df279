"""The cold tier: whole days as Parquet files, listed in the DuckDB file.

A file counts from the moment its row in ``partitions`` is committed, and the same transaction deletes the rows it took
out of the hot tables: killed at any moment, a span is in exactly one tier. Files without a row are leftovers of such a
moment and are swept.
"""

# ruff: noqa: S608 - statements are put together from this package's own constants; values are bound

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from tidemill.kernel import Scope
from tidemill.telemetry.records import Span
from tidemill.telemetry.spans.rows import key_of
from tidemill.telemetry.spans.schema import SPAN_COLUMNS
from tidemill.telemetry.spans.sifting import Known, SpanId
from tidemill.telemetry.store import Compacted

if TYPE_CHECKING:
    import duckdb

    from tidemill.telemetry.spans.cold_files import ColdFiles
    from tidemill.telemetry.spans.database import Database

DAY_NS: Final = 86_400_000_000_000
_PROCESS: Final = uuid.uuid4().hex
"""Stands in the names of this process's drafts: those of another are leftovers, for only one may hold the file."""
_SLICES: Final = 64
_BITS_A_TRACE: Final = 12
_HASHES: Final = 5
_NAMES: Final = ", ".join(f's."{name}"' for name in ("project", "tenant", *SPAN_COLUMNS))
_WRITTEN: Final = "FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 9, ROW_GROUP_SIZE 20480"
"""Row groups small enough that one span's text is read in hundredths of a second, large enough to compress."""
_REFERENCES: Final = (
    "SELECT seq, to_json(list([kind, ref, role, rank::VARCHAR, score::VARCHAR] ORDER BY place))::VARCHAR AS refs, "
    "list(ref_key) AS ref_keys FROM trace_references WHERE project = $project AND tenant = $tenant GROUP BY seq"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """One file of one day.

    Args:
        day: days since 1970 (UTC) of the spans' starts.
        name: of the file.
        first_ns, last_ns: earliest and latest start.
        first_seq, last_seq: lowest and highest place in the order of commits.
    """

    day: int
    name: str
    spans: int
    bytes: int
    first_ns: int
    last_ns: int
    first_seq: int
    last_seq: int


class Partitions:
    """The partitions of one scope.

    Args:
        database: lists them.
        files: holds them.
        scope: whose they are.
    """

    def __init__(self, database: Database, files: ColdFiles, scope: Scope) -> None:
        self._database = database
        self._files = files
        self._owner = {"project": scope.project, "tenant": scope.tenant}
        self._prefix = f"project={scope.project}/tenant={scope.tenant}"

    def listed(self, cursor: duckdb.DuckDBPyConnection) -> list[Partition]:
        """All partitions, by first place."""
        rows = cursor.execute(
            "SELECT day, name, spans, bytes, first_ns, last_ns, first_seq, last_seq FROM partitions "
            "WHERE project = $project AND tenant = $tenant ORDER BY first_seq",
            self._owner,
        ).fetchall()
        return [
            Partition(
                day=row[0], name=row[1], spans=row[2], bytes=row[3],
                first_ns=row[4], last_ns=row[5], first_seq=row[6], last_seq=row[7],
            )
            for row in rows
        ]  # fmt: skip

    def size(self) -> int:
        """Bytes of all partitions."""
        rows = self._database.rows(
            "SELECT coalesce(sum(bytes), 0)::BIGINT FROM partitions WHERE project = $project AND tenant = $tenant",
            self._owner,
        )
        found: int = rows[0][0]
        return found

    def source(self, partitions: Sequence[Partition]) -> str:
        """What to read partitions from, as SQL."""
        paths = ", ".join(_quoted(str(path)) for path in self._files.local([one.name for one in partitions]))
        return f"read_parquet([{paths}])"

    def holding(
        self, cursor: duckdb.DuckDBPyConnection, trace_ids: Sequence[str], partitions: Sequence[Partition]
    ) -> list[Partition]:
        """Those partitions that may hold a span of one of the traces; one in a thousand of the others too."""
        if not partitions:
            return []
        found: set[str] = set()
        for key in {key_of(trace_id) for trace_id in trace_ids}:
            rows = cursor.execute(
                "SELECT name, bits FROM partition_traces "
                "WHERE slice = $slice AND project = $project AND tenant = $tenant",
                {**self._owner, "slice": key % _SLICES},
            ).fetchall()
            found |= {name for name, bits in rows if name not in found and _may_hold(bits, key)}
        return [one for one in partitions if one.name in found]

    def known(self, cursor: duckdb.DuckDBPyConnection, spans: Sequence[Span]) -> Mapping[SpanId, Known]:
        """Which of some spans lie in partitions of the days they began on."""
        days = {span.started_at_ns // DAY_NS for span in spans}
        partitions = [one for one in self.listed(cursor) if one.day in days]
        trace_ids = list({span.trace_id for span in spans})
        partitions = self.holding(cursor, trace_ids, partitions)
        if not partitions:
            return {}
        cursor.register("wanted", pa.table({"trace_id": trace_ids}))
        rows = cursor.execute(
            f"SELECT trace_id, span_id, status = 'interrupted', digest FROM {self.source(partitions)} "
            "WHERE trace_id IN (SELECT trace_id FROM wanted)"
        ).fetchall()
        cursor.unregister("wanted")
        return {(trace_id, span_id): Known(placeholder, digest) for trace_id, span_id, placeholder, digest in rows}

    def compact(self, before_ns: int) -> Compacted:
        """See ``SpanStore.compact``."""
        self.sweep()
        days = self._database.rows(
            "SELECT DISTINCT s.started_at_ns // $day AS d FROM spans s WHERE s.started_at_ns < $before "
            "AND project = $project AND tenant = $tenant ORDER BY d",
            {**self._owner, "day": DAY_NS, "before": before_ns // DAY_NS * DAY_NS},
        )
        moved = [self._move(day) for (day,) in days]
        if moved:
            self._database.checkpoint()
        return Compacted(
            partitions=len(moved), spans=sum(one.spans for one in moved), bytes=sum(one.bytes for one in moved)
        )

    def sweep(self) -> None:
        """Remove files that no partition names: what a process left that died, or partitions that were rewritten."""
        with self._database.writing():
            with self._database.cursor() as cursor:
                listed = {one.name for one in self.listed(cursor)}
            for name in self._files.names(self._prefix):
                if name not in listed:
                    self._files.remove(name)
            path = self._database.path
            for draft in path.parent.glob(f"*{path.name}.*.draft"):  # DuckDB sets tmp_ before what it has not finished
                if _PROCESS not in draft.name:
                    draft.unlink(missing_ok=True)

    def _move(self, day: int) -> Partition:
        """Write a day's file while commits go on, then take its rows out of the hot tables.

        What came in meanwhile has higher places and stays; a placeholder that gave way meanwhile shows in the count,
        and the file is written once more, with commits held off.
        """
        last_seq, _ = self._extent(day)
        written = self._write(day, last_seq)
        with self._database.writing():
            if self._extent(day, last_seq)[1] != written.spans:
                self._files.remove(written.name)
                last_seq, _ = self._extent(day)
                written = self._write(day, last_seq)
            rest = {**self._owner, "last": last_seq, "since": day * DAY_NS, "until": (day + 1) * DAY_NS}
            taken = "started_at_ns >= $since AND started_at_ns < $until AND seq <= $last"
            owned = "project = $project AND tenant = $tenant"
            with self._database.transaction() as cursor:
                self.enter(cursor, written)
                for table in ("contents", "trace_references"):
                    cursor.execute(
                        f"DELETE FROM {table} WHERE {owned} AND seq IN "
                        f"(SELECT seq FROM spans WHERE {owned} AND {taken})",
                        rest,
                    )
                cursor.execute(f"DELETE FROM spans WHERE {owned} AND {taken}", rest)
        return written

    def _extent(self, day: int, last_seq: int = 2**62) -> tuple[int, int]:
        """Highest place and number of a day's hot spans."""
        rows = self._database.rows(
            "SELECT max(seq), count(*) FROM spans WHERE started_at_ns >= $since AND started_at_ns < $until "
            "AND seq <= $last AND project = $project AND tenant = $tenant",
            {**self._owner, "since": day * DAY_NS, "until": (day + 1) * DAY_NS, "last": last_seq},
        )
        return rows[0]

    def _write(self, day: int, last_seq: int) -> Partition:
        select = (
            f"SELECT {_NAMES}, c.input_chars, c.said, c.detail, r.refs, r.ref_keys FROM spans s "
            "LEFT JOIN (SELECT * FROM contents WHERE project = $project AND tenant = $tenant) c ON c.seq = s.seq "
            f"LEFT JOIN ({_REFERENCES}) r ON r.seq = s.seq "
            "WHERE s.started_at_ns >= $since AND s.started_at_ns < $until AND s.seq <= $last "
            "AND s.project = $project AND s.tenant = $tenant ORDER BY s.seq"
        )
        values = {**self._owner, "since": day * DAY_NS, "until": (day + 1) * DAY_NS, "last": last_seq}
        with self._database.cursor() as cursor:
            written = self.write(day, select, values, cursor)
        assert written is not None
        return written

    def write(
        self, day: int, select: str, values: Mapping[str, Any], cursor: duckdb.DuckDBPyConnection
    ) -> Partition | None:
        """Write a file of a day from a statement; ``None`` where it has no row. It counts once it is entered."""
        date = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)).date()
        name = f"{self._prefix}/day={date.isoformat()}/{uuid.uuid4().hex}.parquet"
        draft = self._database.path.with_name(f"{self._database.path.name}.{_PROCESS}.{uuid.uuid4().hex}.draft")
        try:
            cursor.execute(f"COPY ({select}) TO {_quoted(str(draft))} ({_WRITTEN})", dict(values))
            facts = cursor.execute(
                "SELECT count(*), min(started_at_ns), max(started_at_ns), min(seq), max(seq) "
                f"FROM read_parquet({_quoted(str(draft))})"
            ).fetchall()[0]
            if not facts[0]:
                return None
            size = draft.stat().st_size
            self._files.keep(draft, name)
        finally:
            draft.unlink(missing_ok=True)
        return Partition(
            day=day, name=name, spans=facts[0], bytes=size,
            first_ns=facts[1], last_ns=facts[2], first_seq=facts[3], last_seq=facts[4],
        )  # fmt: skip

    def enter(self, cursor: duckdb.DuckDBPyConnection, one: Partition) -> None:
        """List a partition with a filter of its traces."""
        cursor.execute(
            "INSERT INTO partitions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [*self._owner.values(), one.day, one.name, one.spans, one.bytes, one.first_ns, one.last_ns, one.first_seq,
             one.last_seq],
        )  # fmt: skip
        ids = cursor.execute(f"SELECT DISTINCT trace_id FROM {self.source([one])}").fetchall()
        keys = np.array([key_of(trace_id) for (trace_id,) in ids], np.int64)
        for place in range(_SLICES):
            cursor.execute(
                "INSERT INTO partition_traces VALUES (?, ?, ?, ?, ?)",
                [*self._owner.values(), place, one.name, _trace_filter(keys[keys % _SLICES == place])],
            )

    def strike(self, cursor: duckdb.DuckDBPyConnection, one: Partition) -> None:
        """Take a partition off the list; its file is removed by the next sweep."""
        for table in ("partitions", "partition_traces"):
            cursor.execute(
                f"DELETE FROM {table} WHERE name = $name AND project = $project AND tenant = $tenant",
                {**self._owner, "name": one.name},
            )


def _places(keys: Any, size: int) -> list[Any]:
    with np.errstate(over="ignore"):
        spread = keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        first, step = spread >> np.uint64(32), (spread & np.uint64(0xFFFFFFFF)) | np.uint64(1)
        return [(first + np.uint64(turn) * step) % np.uint64(size) for turn in range(_HASHES)]


def _trace_filter(keys: Any) -> bytes:
    """A Bloom filter over traces' keys: one in five hundred that are not in it seems to be."""
    size = max(64, (len(keys) * _BITS_A_TRACE + 7) // 8 * 8)
    bits = np.zeros(size, np.uint8)
    for places in _places(keys, size):
        bits[places] = 1
    return np.packbits(bits).tobytes()


def _may_hold(bits: bytes, key: int) -> bool:
    places = (int(one[0]) for one in _places(np.array([key], np.int64), len(bits) * 8))
    return all(bits[place // 8] >> (7 - place % 8) & 1 for place in places)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
