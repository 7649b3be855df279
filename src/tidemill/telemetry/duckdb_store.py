"""The embedded span store: one DuckDB file, owned by one process.

Narrow spans and wide content lie in tables of their own, so that counting never reads text. Ids are scanned by 64-bit
keys; there is no index to keep up. Every statement runs on a cursor of its own and is fetched whole: DuckDB's cursors
must not be shared between threads nor left half read.
"""

# ruff: noqa: S608 - statements are put together from this module's own constants and integer keys; values are bound

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa

from tidemill.kernel import InvalidInput, Scope, Unavailable
from tidemill.telemetry.columns import (
    SCORE_FIELDS,
    SPAN_FIELDS,
    content_table,
    digest_of,
    key_of,
    reference_table,
    score_of,
    score_table,
    span_of,
    span_table,
)
from tidemill.telemetry.queries import Erased, Erasure, SeriesQuery, SeriesRows, SessionQuery, SessionRow
from tidemill.telemetry.records import Content, Reference, Score, Span
from tidemill.telemetry.store import (
    FAILED_STATUSES,
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

SCHEMA_VERSION: Final = 1

_TYPES: Final = {pa.string(): "VARCHAR", pa.int64(): "BIGINT", pa.float64(): "DOUBLE", pa.bool_(): "BOOLEAN"}
_OWNER: Final = "project VARCHAR NOT NULL, tenant VARCHAR NOT NULL"


def _declared(fields: Mapping[str, pa.DataType]) -> str:
    return ", ".join(f'"{name}" {_TYPES[kind]}' for name, kind in fields.items())


_SCHEMA: Final = f"""
CREATE SEQUENCE IF NOT EXISTS ingest_seq;
CREATE TABLE IF NOT EXISTS store_version (version INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS spans (
    {_OWNER}, ingest_seq BIGINT NOT NULL, trace_key BIGINT NOT NULL, digest BIGINT NOT NULL, is_root BOOLEAN NOT NULL,
    {_declared(SPAN_FIELDS)}, finish_reasons VARCHAR, attributes VARCHAR);
CREATE TABLE IF NOT EXISTS span_content (
    {_OWNER}, trace_key BIGINT NOT NULL, trace_id VARCHAR, span_id VARCHAR, input VARCHAR, output VARCHAR);
CREATE TABLE IF NOT EXISTS trace_references (
    {_OWNER}, trace_key BIGINT NOT NULL, ref_key BIGINT NOT NULL, trace_id VARCHAR, span_id VARCHAR, place INTEGER,
    kind VARCHAR, ref VARCHAR, role VARCHAR, rank BIGINT, score DOUBLE);
CREATE TABLE IF NOT EXISTS scores (
    {_OWNER}, ingest_seq BIGINT NOT NULL, trace_key BIGINT NOT NULL, digest BIGINT NOT NULL, {_declared(SCORE_FIELDS)});
CREATE TABLE IF NOT EXISTS segment_offsets ({_OWNER}, segment VARCHAR NOT NULL, "offset" BIGINT NOT NULL);
"""

_SPAN_COLUMNS: Final = ", ".join(f's."{name}"' for name in (*SPAN_FIELDS, "finish_reasons", "attributes"))
_SCORE_COLUMNS: Final = ", ".join(f'"{name}"' for name in SCORE_FIELDS)
_MINUTE_NS: Final = 60_000_000_000


class DuckDBSpanStore:
    """A ``SpanStore`` in a DuckDB file.

    Args:
        path: the file, made if missing.
        scope: whose spans are kept and asked for. Stores of several tenants may share a file within one process.
        memory_mb: DuckDB's own limit; what does not fit is spilled beside the file.
        threads: DuckDB's worker threads.

    Raises:
        Unavailable: another process holds the file, or it cannot be opened.
    """

    def __init__(self, path: Path, scope: Scope, *, memory_mb: int = 512, threads: int = 2) -> None:
        self._scope = scope
        self._path = path
        self._owner = [scope.project, scope.tenant]
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            # The memory limit counts for the whole file in this process, so a second scope must ask for the same.
            self._database: duckdb.DuckDBPyConnection | None = duckdb.connect(
                str(path),
                config={
                    "memory_limit": f"{memory_mb}MB",
                    "threads": threads,
                    "autoinstall_known_extensions": False,
                    "autoload_known_extensions": False,
                },
            )
            self._prepare()
        except duckdb.Error as error:
            raise _cannot_open(path, error) from error
        path.chmod(0o600)

    @property
    def scope(self) -> Scope:
        """Whose spans these are."""
        return self._scope

    def close(self) -> None:
        """Let go of the file; statements that are running end first."""
        with self._writing, self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None

    def __enter__(self) -> DuckDBSpanStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def commit(self, batch: Batch, offsets: Mapping[str, int], *, forget: Iterable[str] = ()) -> CommitReport:
        """See ``SpanStore.commit``."""
        records: list[Span | Score] = [*batch.spans, *batch.scores]
        for record in records:
            if (record.project, record.tenant) != (self._scope.project, self._scope.tenant):
                raise InvalidInput(
                    f"a record of {record.project}/{record.tenant} does not belong into the span store of "
                    f"{self._scope.project}/{self._scope.tenant}"
                )
        with self._writing, self._cursor() as cursor:
            cursor.execute("BEGIN")
            try:
                counts = self._put_spans(cursor, batch) if batch.spans else {}
                if batch.scores:
                    for name, count in self._put_scores(cursor, batch.scores).items():
                        counts[name] = counts.get(name, 0) + count
                self._put_offsets(cursor, offsets, forget)
                cursor.execute("COMMIT")
            except BaseException as error:
                with suppress(duckdb.Error):  # a commit that failed has ended the transaction already
                    cursor.execute("ROLLBACK")
                if isinstance(error, duckdb.IOException):
                    raise Unavailable(
                        f"the span store {self._path} cannot be written: {error}",
                        hint="Free space on its disk; records wait in the segments meanwhile.",
                    ) from error
                raise
        return CommitReport(**counts)

    def offsets(self) -> dict[str, int]:
        """See ``SpanStore.offsets``."""
        return dict(
            self._rows('SELECT segment, "offset" FROM segment_offsets WHERE project = ? AND tenant = ?', self._owner)
        )

    def trace(self, trace_id: str) -> list[StoredSpan]:
        """See ``SpanStore.trace``."""
        return self._stored(
            "s.trace_key = ? AND s.trace_id = ? ORDER BY s.started_at_ns, s.ingest_seq",
            [key_of(trace_id), trace_id],
            references=True,
            content=True,
        )

    def spans(self, query: SpanQuery) -> list[StoredSpan]:
        """See ``SpanStore.spans``."""
        conditions, values = _conditions(query, _SPAN_CONDITIONS)
        if query.after_seq:
            conditions.append("s.ingest_seq > ?")
            values.append(query.after_seq)
        if query.roots_only:
            conditions.append("s.is_root")
        order = "s.started_at_ns DESC, s.ingest_seq DESC" if query.newest_first else "s.ingest_seq"
        return self._stored(
            f"{' AND '.join(conditions) or 'true'} ORDER BY {order} LIMIT ?",
            [*values, query.limit],
            references=query.with_references,
            content=query.with_content,
        )

    def references(self, trace_ids: Sequence[str]) -> list[tuple[str, Reference]]:
        """See ``SpanStore.references``."""
        return [(trace_id, reference) for trace_id, _, reference in self._references(trace_ids)]

    def traces_using(self, refs: Sequence[str]) -> list[str]:
        """See ``SpanStore.traces_using``."""
        wanted = sorted(set(refs))
        if not wanted:
            return []
        rows = self._rows(
            f"SELECT DISTINCT trace_id FROM trace_references WHERE {_any_key('trace_references', 'ref_key', wanted)} "
            "AND list_contains(?, ref) AND project = ? AND tenant = ?",
            [wanted, *self._owner],
        )
        return sorted(trace_id for (trace_id,) in rows)

    def scores(self, query: ScoreQuery) -> list[StoredScore]:
        """See ``SpanStore.scores``."""
        sql = f"SELECT ingest_seq, {_SCORE_COLUMNS} FROM scores WHERE project = ? AND tenant = ? AND ingest_seq > ?"
        values: list[Any] = [*self._owner, query.after_seq]
        if query.trace_ids is not None:
            sql += f" AND {_any_key('scores', 'trace_key', query.trace_ids)} AND list_contains(?, trace_id)"
            values.append(list(query.trace_ids))
        if query.names is not None:
            sql += " AND list_contains(?, name)"
            values.append(list(query.names))
        rows = self._rows(sql + " ORDER BY ingest_seq LIMIT ?", [*values, query.limit])
        scope = self._scope
        return [StoredScore(score_of(row, project=scope.project, tenant=scope.tenant), seq) for seq, *row in rows]

    def summary(self, query: SummaryQuery) -> list[SummaryRow]:
        """See ``SpanStore.summary``."""
        conditions, values = _conditions(query, _SUMMARY_CONDITIONS)
        if query.roots_only:
            conditions.append("s.is_root")
        groups = [_group(name) for name in query.group_by]
        head = "".join(f"{group}, " for group in groups)
        numbers = ", ".join(str(place + 1) for place in range(len(groups)))
        failed = ", ".join(f"'{status}'" for status in FAILED_STATUSES)
        rows = self._rows(
            f"SELECT {head} count(*), count(*) FILTER (s.status IN ({failed})), "
            "quantile_cont((s.ended_at_ns - s.started_at_ns) / 1e9, [0.5, 0.95, 0.99]) "
            f"FILTER (s.status NOT IN ({failed})), median(s.time_to_first_chunk_s), "
            "coalesce(sum(s.input_tokens), 0)::BIGINT, coalesce(sum(s.output_tokens), 0)::BIGINT, "
            "coalesce(sum(s.cost_usd), 0)::DOUBLE FROM spans s WHERE s.project = ? AND s.tenant = ?"
            + "".join(f" AND {condition}" for condition in conditions)
            + (f" GROUP BY {numbers} ORDER BY {numbers}" if groups else ""),
            [*self._owner, *values],
        )
        return [_summary_row(query.group_by, row) for row in rows]

    def series(self, query: SeriesQuery) -> SeriesRows:
        """See ``SpanStore.series``."""
        raise NotImplementedError

    def sessions(self, query: SessionQuery) -> list[SessionRow]:
        """See ``SpanStore.sessions``."""
        raise NotImplementedError

    def values(
        self, field: str, *, since_ns: int | None = None, until_ns: int | None = None, limit: int = 100
    ) -> list[tuple[str | int | float | bool, int]]:
        """See ``SpanStore.values``."""
        raise NotImplementedError

    def set_aside(self, *, reason: str | None = None, limit: int = 100) -> SetAsideReport:
        """See ``SpanStore.set_aside``."""
        raise NotImplementedError

    def compact(self, before_ns: int) -> Compacted:
        """See ``SpanStore.compact``."""
        raise NotImplementedError

    def erase(self, erasure: Erasure) -> Erased:
        """See ``SpanStore.erase``."""
        raise NotImplementedError

    def _prepare(self) -> None:
        with self._cursor() as cursor:
            cursor.execute(_SCHEMA)
            found = cursor.execute("SELECT max(version) FROM store_version").fetchall()[0][0]
            if found is None:
                cursor.execute("INSERT INTO store_version VALUES (?)", [SCHEMA_VERSION])
            elif found > SCHEMA_VERSION:
                raise Unavailable(
                    f"{self._path} was written by a newer Tidemill (span store {found}, this version reads "
                    f"{SCHEMA_VERSION})."
                )

    @contextmanager
    def _cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._lock:
            if self._database is None:
                raise Unavailable(f"the span store {self._path} is closed")
            cursor = self._database.cursor()
        try:
            yield cursor
        finally:
            cursor.close()

    def _rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._cursor() as cursor:
            return cursor.execute(sql, list(values)).fetchall()

    def _stored(self, where: str, values: Sequence[Any], *, references: bool, content: bool) -> list[StoredSpan]:
        rows = self._rows(
            f"SELECT s.ingest_seq, {_SPAN_COLUMNS} FROM spans s WHERE s.project = ? AND s.tenant = ? AND {where}",
            [*self._owner, *values],
        )
        trace_ids = list({row[1] for row in rows})
        by_span: dict[tuple[str, str], list[Reference]] = {}
        if references:
            for trace_id, span_id, reference in self._references(trace_ids):
                by_span.setdefault((trace_id, span_id), []).append(reference)
        contents = self._contents(trace_ids) if content else {}
        scope = self._scope
        return [
            StoredSpan(
                span_of(
                    row,
                    project=scope.project,
                    tenant=scope.tenant,
                    references=tuple(by_span.get((row[0], row[1]), ())),
                ),
                contents.get((row[0], row[1])),
                seq,
            )
            for seq, *row in rows
        ]

    def _references(self, trace_ids: Sequence[str]) -> list[tuple[str, str, Reference]]:
        if not trace_ids:
            return []
        rows = self._rows(
            "SELECT trace_id, span_id, kind, ref, role, rank, score FROM trace_references "
            f"WHERE {_any_key('trace_references', 'trace_key', trace_ids)} AND project = ? AND tenant = ? "
            "ORDER BY trace_id, span_id, place",
            self._owner,
        )
        wanted = set(trace_ids)
        return [(row[0], row[1], Reference(*row[2:])) for row in rows if row[0] in wanted]

    def _contents(self, trace_ids: Sequence[str]) -> dict[tuple[str, str], Content]:
        if not trace_ids:
            return {}
        rows = self._rows(
            "SELECT trace_id, span_id, input, output FROM span_content "
            f"WHERE {_any_key('span_content', 'trace_key', trace_ids)} AND project = ? AND tenant = ?",
            self._owner,
        )
        return {(trace_id, span_id): Content(said, answer) for trace_id, span_id, said, answer in rows}

    def _put_spans(self, cursor: duckdb.DuckDBPyConnection, batch: Batch) -> dict[str, int]:
        counts = {"spans": 0, "interrupted": 0, "duplicates": 0, "conflicts": 0, "replaced": 0}
        known = self._known_spans(cursor, batch.spans)
        fresh: dict[tuple[str, str], Span] = {}
        outdated: list[tuple[str, str]] = []
        for span in batch.spans:
            key = (span.trace_id, span.span_id)
            earlier = known.get(key)
            placeholder = span.status == "interrupted"
            digest = digest_of(span)
            if earlier is None:
                fresh[key] = span
            elif earlier[0] and not placeholder:
                counts["replaced"] += 1
                if key not in fresh:
                    outdated.append(key)
                fresh[key] = span
            else:
                # A placeholder that comes after the finished record says nothing that contradicts it.
                counts["duplicates" if placeholder or digest == earlier[1] else "conflicts"] += 1
                continue
            known[key] = (placeholder, digest)
        for span in fresh.values():
            counts["interrupted" if span.status == "interrupted" else "spans"] += 1
        if outdated:
            cursor.executemany(
                "DELETE FROM spans WHERE trace_key = ? AND trace_id = ? AND span_id = ? AND project = ? AND tenant = ?",
                [[key_of(trace_id), trace_id, span_id, *self._owner] for trace_id, span_id in outdated],
            )
        if fresh:
            spans = list(fresh.values())
            self._insert(cursor, "spans", span_table(spans), sequenced=True)
            self._insert(cursor, "trace_references", reference_table(spans))
            self._insert(cursor, "span_content", content_table({k: v for k, v in batch.contents.items() if k in fresh}))
        return counts

    def _known_spans(
        self, cursor: duckdb.DuckDBPyConnection, spans: Sequence[Span]
    ) -> dict[tuple[str, str], tuple[bool, int]]:
        """Of the spans' ids those already stored: whether as a placeholder, and the record's digest."""
        wanted = list({span.trace_id for span in spans})
        cursor.register("wanted", pa.table({"trace_key": pa.array([key_of(trace_id) for trace_id in wanted])}))
        rows = cursor.execute(
            "SELECT trace_id, span_id, status = 'interrupted', digest FROM spans "
            "WHERE trace_key IN (SELECT trace_key FROM wanted) AND project = ? AND tenant = ?",
            self._owner,
        ).fetchall()
        cursor.unregister("wanted")
        return {(trace_id, span_id): (placeholder, digest) for trace_id, span_id, placeholder, digest in rows}

    def _put_scores(self, cursor: duckdb.DuckDBPyConnection, scores: Sequence[Score]) -> dict[str, int]:
        cursor.register("wanted", pa.table({"score_id": pa.array([score.score_id for score in scores])}))
        known = dict(
            cursor.execute(
                "SELECT score_id, digest FROM scores WHERE score_id IN (SELECT score_id FROM wanted) "
                "AND project = ? AND tenant = ?",
                self._owner,
            ).fetchall()
        )
        cursor.unregister("wanted")
        counts = {"scores": 0, "duplicates": 0, "conflicts": 0}
        fresh: list[Score] = []
        for score in scores:
            digest = digest_of(score)
            if score.score_id not in known:
                known[score.score_id] = digest
                fresh.append(score)
            else:
                counts["duplicates" if known[score.score_id] == digest else "conflicts"] += 1
        counts["scores"] = len(fresh)
        if fresh:
            self._insert(cursor, "scores", score_table(fresh), sequenced=True)
        return counts

    def _put_offsets(
        self, cursor: duckdb.DuckDBPyConnection, offsets: Mapping[str, int], forget: Iterable[str]
    ) -> None:
        changed = [*offsets, *forget]
        if changed:
            cursor.execute(
                "DELETE FROM segment_offsets WHERE list_contains(?, segment) AND project = ? AND tenant = ?",
                [changed, *self._owner],
            )
        for segment, offset in offsets.items():
            cursor.execute("INSERT INTO segment_offsets VALUES (?, ?, ?, ?)", [*self._owner, segment, offset])

    def _insert(
        self, cursor: duckdb.DuckDBPyConnection, table: str, rows: pa.Table, *, sequenced: bool = False
    ) -> None:
        if not rows.num_rows:
            return
        names = ", ".join(f'"{name}"' for name in rows.column_names)
        cursor.register("incoming", rows)
        cursor.execute(
            f"INSERT INTO {table} (project, tenant, {'ingest_seq, ' if sequenced else ''}{names}) "
            f"SELECT ?, ?, {'nextval($$ingest_seq$$), ' if sequenced else ''}{names} FROM incoming",
            self._owner,
        )
        cursor.unregister("incoming")


_SPAN_CONDITIONS: Final = {
    "endpoint": "s.endpoint = ?",
    "release": "s.release = ?",
    "assigned_release": "s.assigned_release = ?",
    "arm": "s.arm = ?",
    "session_id": "s.session_id = ?",
    "rollout": "s.rollout = ?",
    "operation": "s.operation = ?",
    "status": "s.status = ?",
    "since_ns": "s.started_at_ns >= ?",
    "until_ns": "s.started_at_ns < ?",
}
_SUMMARY_CONDITIONS: Final = {
    name: _SPAN_CONDITIONS[name] for name in ("endpoint", "release", "rollout", "operation", "since_ns", "until_ns")
}
_GROUPS: Final = {
    **{name: f"s.{name}" for name in ("release", "assigned_release", "arm", "endpoint", "request_model", "status")},
    "minute": f"s.started_at_ns // {_MINUTE_NS} * {_MINUTE_NS}",
}


def _conditions(query: SpanQuery | SummaryQuery, table: Mapping[str, str]) -> tuple[list[str], list[Any]]:
    given = {name: getattr(query, name) for name in table if getattr(query, name) is not None}
    return [table[name] for name in given], list(given.values())


def _group(name: str) -> str:
    if name not in _GROUPS:
        raise InvalidInput(f"spans cannot be grouped by '{name}'; the groups are {', '.join(sorted(_GROUPS))}")
    return _GROUPS[name]


def _any_key(table: str, column: str, ids: Sequence[str]) -> str:
    """A condition on 64-bit keys. Numbers, so they may stand in the statement's text.

    One key is compared in the scan itself. Several are joined, which finds row numbers from one narrow column; only
    then are the wide ones read (measured over a million rows: 10 ms, of a plain ``IN`` 25).
    """
    keys = ", ".join(str(key_of(text)) for text in ids)
    if len(ids) == 1:
        return f"{column} = {keys}"
    return f"rowid IN (SELECT rowid FROM {table} WHERE {column} IN (SELECT unnest([{keys}]::BIGINT[])))"


def _summary_row(group_by: Sequence[str], row: Sequence[Any]) -> SummaryRow:
    size = len(group_by)
    requests, errors, quantiles, first_chunk_s, input_tokens, output_tokens, cost_usd = row[size:]
    p50_s, p95_s, p99_s = quantiles or (None, None, None)
    return SummaryRow(
        group=dict(zip(group_by, row[:size], strict=True)),
        requests=requests,
        errors=errors,
        p50_s=p50_s,
        p95_s=p95_s,
        p99_s=p99_s,
        ttfc_p50_s=first_chunk_s,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cost_usd=cost_usd,
    )


def _cannot_open(path: Path, error: Exception) -> Unavailable:
    if "lock" in str(error).lower():
        return Unavailable(
            f"the span store {path} is held by another process.",
            hint="Ask through the running server, or stop it first: only one process may hold the store.",
        )
    return Unavailable(f"the span store {path} cannot be opened: {error}")
