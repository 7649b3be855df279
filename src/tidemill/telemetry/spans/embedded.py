"""The embedded span store: one DuckDB file, owned by one process, with a cold tier of Parquet partitions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from tidemill.kernel import Scope
from tidemill.telemetry.queries import Erased, Erasure, SeriesQuery, SeriesRows, SessionQuery, SessionRow
from tidemill.telemetry.records import Reference
from tidemill.telemetry.spans import builder
from tidemill.telemetry.spans.answers import series_rows, session_rows, summary_row, value_rows
from tidemill.telemetry.spans.builder import Value
from tidemill.telemetry.spans.cold_files import cold_files
from tidemill.telemetry.spans.database import Database
from tidemill.telemetry.spans.erasing import Eraser
from tidemill.telemetry.spans.partitions import Partitions
from tidemill.telemetry.spans.reading import Reader
from tidemill.telemetry.spans.rows import SCORE_FIELDS, score_of
from tidemill.telemetry.spans.writing import Writer
from tidemill.telemetry.store import (
    Batch,
    CommitReport,
    Compacted,
    ScoreQuery,
    SetAsideReport,
    SpanQuery,
    StoredScore,
    StoredSpan,
    SummaryQuery,
    SummaryRow,
)

COLD_SUFFIX: Final = ".cold"
_SCORE_COLUMNS: Final = ", ".join(f'c."{name}"' for name in SCORE_FIELDS)


class DuckDBSpanStore:
    """A ``SpanStore`` in a DuckDB file.

    Args:
        path: the file, made if missing.
        scope: whose spans are kept and asked for. Stores of several tenants may share a file within one process.
        memory_mb: DuckDB's own limit; what does not fit is spilled beside the file.
        threads: DuckDB's worker threads.
        cold: where old days go: a folder, or an ``s3://bucket/prefix`` URL; ``None`` for a folder beside the file.

    Raises:
        Unavailable: another process holds the file, or it cannot be opened.
    """

    def __init__(
        self, path: Path, scope: Scope, *, memory_mb: int = 512, threads: int = 2, cold: str | None = None
    ) -> None:
        self._scope = scope
        self._path = path
        self._database = Database(path, memory_mb=memory_mb, threads=threads)
        files = cold_files(cold, path.with_name(path.name + COLD_SUFFIX))
        self._partitions = Partitions(self._database, files, scope)
        self._reader = Reader(self._database, self._partitions, scope)
        self._writer = Writer(self._database, scope, self._partitions.known)
        self._eraser = Eraser(self._database, self._partitions, self._writer, scope)
        self._eraser.finish()

    @property
    def scope(self) -> Scope:
        """Whose spans these are."""
        return self._scope

    def close(self) -> None:
        """Let go of the file; statements that are running end first."""
        self._database.close()

    def __enter__(self) -> DuckDBSpanStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def commit(self, batch: Batch, offsets: Mapping[str, int], *, forget: Iterable[str] = ()) -> CommitReport:
        """See ``SpanStore.commit``."""
        return self._writer.commit(batch, offsets, forget)

    def last_seq(self) -> int:
        """See ``SpanStore.last_seq``."""
        return self._reader.last_seq()

    def sizes(self) -> dict[str, int]:
        """See ``SpanStore.sizes``. The log beside the file counts as hot."""
        files = (self._path, self._path.with_name(self._path.name + ".wal"))
        return {"hot": sum(one.stat().st_size for one in files if one.exists()), "cold": self._partitions.size()}

    def offsets(self) -> dict[str, int]:
        """See ``SpanStore.offsets``."""
        return dict(
            self._database.rows(
                'SELECT segment, "offset" FROM segment_offsets WHERE project = $project AND tenant = $tenant',
                {"project": self._scope.project, "tenant": self._scope.tenant},
            )
        )

    def trace(self, trace_id: str) -> list[StoredSpan]:
        """See ``SpanStore.trace``."""
        return self._reader.trace(trace_id)

    def spans(self, query: SpanQuery) -> list[StoredSpan]:
        """See ``SpanStore.spans``."""
        return self._reader.spans(query)

    def references(self, trace_ids: Sequence[str]) -> list[tuple[str, Reference]]:
        """See ``SpanStore.references``."""
        return self._reader.references(trace_ids)

    def traces_using(self, refs: Sequence[str]) -> list[str]:
        """See ``SpanStore.traces_using``."""
        return self._reader.traces_using(refs)

    def scores(self, query: ScoreQuery) -> list[StoredScore]:
        """See ``SpanStore.scores``."""
        statement = self._reader.statement()
        rows = self._database.rows(builder.scores(statement, _SCORE_COLUMNS, query), statement.values)
        scope = self._scope
        return [StoredScore(score_of(row, project=scope.project, tenant=scope.tenant), seq) for seq, *row in rows]

    def summary(self, query: SummaryQuery) -> list[SummaryRow]:
        """See ``SpanStore.summary``."""
        rows = self._reader.rows(
            partial(builder.summary, query=query), since_ns=query.since_ns, until_ns=query.until_ns
        )
        return [summary_row(query, row) for row in rows]

    def series(self, query: SeriesQuery) -> SeriesRows:
        """See ``SpanStore.series``."""
        rows = self._reader.rows(partial(builder.series, query=query), since_ns=query.since_ns, until_ns=query.until_ns)
        return series_rows(query, rows)

    def sessions(self, query: SessionQuery) -> list[SessionRow]:
        """See ``SpanStore.sessions``."""
        ask = partial(builder.sessions, query=query)
        return session_rows(self._reader.rows(ask, since_ns=query.since_ns, until_ns=query.until_ns))

    def values(
        self, field: str, *, since_ns: int | None = None, until_ns: int | None = None, limit: int = 100
    ) -> list[tuple[Value, int]]:
        """See ``SpanStore.values``."""
        ask = partial(builder.values, name=field, since_ns=since_ns, until_ns=until_ns, limit=limit)
        return value_rows(field, self._reader.rows(ask, since_ns=since_ns, until_ns=until_ns))

    def set_aside(self, *, reason: str | None = None, limit: int = 100) -> SetAsideReport:
        """See ``SpanStore.set_aside``."""
        return self._writer.set_aside(reason, limit)

    def compact(self, before_ns: int) -> Compacted:
        """See ``SpanStore.compact``."""
        return self._partitions.compact(before_ns)

    def erase(self, erasure: Erasure) -> Erased:
        """See ``SpanStore.erase``."""
        return self._eraser.erase(erasure)
