"""The span store of a cluster: ClickHouse, through the same queries as the embedded store.

A span is one row with its content and references, so it is there whole or not at all. ClickHouse has no transaction
over several statements; what makes a commit count once all the same is its order. First what is stored is read, then
new rows are inserted, and the offsets last: a process that dies in between reads its batch again from the old offsets,
and finds the rows stored. That needs one writer at a time (the control plane's leader) and inserts that its reads see,
which holds for one server, and for replicas with ``insert_quorum`` and ``select_sequential_consistency`` in the URL.
"""

# ruff: noqa: S608 - statements are put together from this package's own constants; values are bound

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import pyarrow as pa

from tidemill.kernel import InvalidInput, Scope, Unavailable
from tidemill.telemetry.late import combined
from tidemill.telemetry.queries import Erased, Erasure, SeriesQuery, SeriesRows, SessionQuery, SessionRow
from tidemill.telemetry.records import Content, Reference, Span
from tidemill.telemetry.spans import builder
from tidemill.telemetry.spans.answers import series_rows, session_rows, summary_row, value_rows
from tidemill.telemetry.spans.builder import Statement, Value
from tidemill.telemetry.spans.clickhouse_tables import SCHEMA, Connection, HttpConnection
from tidemill.telemetry.spans.dialects import ClickHouseDialect
from tidemill.telemetry.spans.erasing import check
from tidemill.telemetry.spans.rows import (
    SCORE_FIELDS,
    content_of,
    score_of,
    score_table,
    span_of,
    span_table,
)
from tidemill.telemetry.spans.schema import STORED
from tidemill.telemetry.spans.sifting import Known, Sifted, SpanId, sift_scores, sift_spans
from tidemill.telemetry.spans.text import BETWEEN, terms_of
from tidemill.telemetry.spans.writing import SAMPLES_KEPT, aside_of, aside_row, refuse_foreign
from tidemill.telemetry.store import (
    Batch,
    CommitReport,
    Compacted,
    ScoreQuery,
    SetAside,
    SetAsideReport,
    SpanQuery,
    StoredScore,
    StoredSpan,
    SummaryQuery,
    SummaryRow,
)

_OWNED: Final = "project = {project:String} AND tenant = {tenant:String}"
_COLUMNS: Final = ", ".join(f's."{name}"' for name in STORED)
_SCORES: Final = ", ".join(f'c."{name}"' for name in SCORE_FIELDS)
_FORGOTTEN: Final = -1
"""An offset that stands for none: rows are only ever added."""
_REFS: Final = pa.list_(
    pa.struct(
        [
            ("kind", pa.string()),
            ("ref", pa.string()),
            ("role", pa.string()),
            ("rank", pa.int64()),
            ("score", pa.float64()),
        ]
    )
)


class ClickHouseSpanStore:
    """A ``SpanStore`` in ClickHouse.

    Args:
        connection: to a database of its own.
        scope: whose spans are kept and asked for.

    Raises:
        Unavailable: ClickHouse does not answer.
    """

    def __init__(self, connection: Connection, scope: Scope) -> None:
        self._connection = connection
        self._scope = scope
        self._owner = {"project": scope.project, "tenant": scope.tenant}
        self._writing = threading.Lock()
        self._closed = False
        for statement in SCHEMA:
            connection.run(statement, {})
        newest = [
            self._rows(f"SELECT max(seq) FROM {table} WHERE {_OWNED}", self._owner)[0][0]
            for table in ("spans", "scores", "aside_samples", "late_contents", "segment_offsets")
        ]
        self._seq, self._commits = max(newest[:-1]), newest[-1]

    @property
    def scope(self) -> Scope:
        """Whose spans these are."""
        return self._scope

    def close(self) -> None:
        """See ``SpanStore.close``."""
        if not self._closed:
            self._closed = True
            self._connection.close()

    def commit(self, batch: Batch, offsets: Mapping[str, int], *, forget: Iterable[str] = ()) -> CommitReport:
        """See ``SpanStore.commit``; what holds when it fails half-way is said at the head of this module."""
        refuse_foreign(batch, self._scope)
        with self._writing:
            sifted = Sifted()
            if batch.spans:
                sift_spans(batch.spans, self._known_spans(batch.spans), sifted)
            if batch.scores:
                ids = [score.score_id for score in batch.scores]
                rows = self._rows(
                    f"SELECT score_id, digest FROM scores WHERE {_OWNED} AND score_id IN {{ids:Array(String)}}",
                    {**self._owner, "ids": ids},
                )
                sift_scores(batch.scores, dict(rows), sifted)
            self._put_spans(batch, sifted)
            self._put_late(batch.late)
            if sifted.scores:
                scores = [score for score, _ in sifted.scores]
                table = score_table(scores, [digest for _, digest in sifted.scores], self._places(len(scores)))
                self._insert("scores", table.drop_columns(["trace_key"]))
            self._note([*batch.rejected, *sifted.aside])
            reached = {**offsets, **dict.fromkeys(forget, _FORGOTTEN)}
            if reached:
                self._commits += 1
                self._insert(
                    "segment_offsets",
                    pa.table(
                        {
                            "segment": list(reached),
                            "offset": pa.array(list(reached.values()), pa.int64()),
                            "seq": pa.array([self._commits] * len(reached), pa.int64()),
                        }
                    ),
                )
        return CommitReport(rejected=len(batch.rejected), **sifted.counts)

    def last_seq(self) -> int:
        """See ``SpanStore.last_seq``."""
        rows = [
            self._rows(f"SELECT max(seq) FROM {table} WHERE {_OWNED}", self._owner) for table in ("spans", "scores")
        ]
        return max(int(one[0][0]) for one in rows)

    def sizes(self) -> dict[str, int]:
        """See ``SpanStore.sizes``; of all scopes in the database, and all of it hot."""
        sql = "SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND database = currentDatabase()"
        return {"hot": int(self._rows(sql, {})[0][0]), "cold": 0}

    def offsets(self) -> dict[str, int]:
        """See ``SpanStore.offsets``."""
        rows = self._rows(
            f'SELECT segment, "offset" FROM segment_offsets FINAL WHERE {_OWNED} AND "offset" != {_FORGOTTEN}',
            self._owner,
        )
        return dict(rows)

    def trace(self, trace_id: str) -> list[StoredSpan]:
        """See ``SpanStore.trace``."""
        statement = self._statement()
        where = f"{statement.owned()} AND s.trace_id = {statement.bind(trace_id)}"
        rows = self._rows(
            f"SELECT s.seq, {_COLUMNS}, s.refs, s.input_chars, s.said, s.detail FROM spans s WHERE {where} "
            "ORDER BY s.started_at_ns, s.seq",
            statement.values,
        )
        return self._joined([self._stored(row) for row in rows])

    def spans(self, query: SpanQuery) -> list[StoredSpan]:
        """See ``SpanStore.spans``."""
        statement = self._statement()
        conditions = builder.span_conditions(statement, query)
        if query.text is not None:
            for term in terms_of(query.text):
                conditions.append(statement.dialect.matches("s.said", statement.bind(term.pattern)))
        order = "s.started_at_ns DESC, s.seq DESC" if query.newest_first else "s.seq"
        wide = "s.refs" if query.with_references else "[] AS no_refs"
        wide += ", s.input_chars, s.said, s.detail" if query.with_content else ", NULL, NULL, NULL"
        # The inner statement reads narrow columns; the wide ones are read of the rows found only.
        found = self._rows(
            f"SELECT s.started_at_ns, s.seq FROM spans s WHERE {' AND '.join(conditions)} "
            f"ORDER BY {order} LIMIT {int(query.limit)}",
            statement.values,
        )
        if not found:
            return []
        statement = self._statement()
        starts = [started for started, _ in found]
        rows = self._rows(
            f"SELECT s.seq, {_COLUMNS}, {wide} FROM spans s WHERE {statement.owned()} "
            f"AND s.started_at_ns BETWEEN {statement.bind(min(starts))} AND {statement.bind(max(starts))} "
            f"AND s.seq IN {statement.bind([seq for _, seq in found])}",
            statement.values,
        )
        stored = {row[0]: self._stored(row) for row in rows}
        whole = [stored[seq] for _, seq in found]
        return self._joined(whole) if query.with_content else whole

    def references(self, trace_ids: Sequence[str]) -> list[tuple[str, Reference]]:
        """See ``SpanStore.references``."""
        if not trace_ids:
            return []
        rows = self._rows(
            f"SELECT trace_id, refs FROM spans WHERE {_OWNED} AND trace_id IN {{ids:Array(String)}} "
            "AND notEmpty(refs) ORDER BY trace_id, seq",
            {**self._owner, "ids": list(trace_ids)},
        )
        return [(trace_id, reference) for trace_id, refs in rows for reference in _references(refs)]

    def traces_using(self, refs: Sequence[str]) -> list[str]:
        """See ``SpanStore.traces_using``."""
        if not refs:
            return []
        rows = self._rows(
            f"SELECT DISTINCT trace_id FROM spans WHERE {_OWNED} AND hasAny(refs.ref, {{refs:Array(String)}}) "
            "ORDER BY trace_id",
            {**self._owner, "refs": list(refs)},
        )
        return [trace_id for (trace_id,) in rows]

    def scores(self, query: ScoreQuery) -> list[StoredScore]:
        """See ``SpanStore.scores``."""
        statement = self._statement()
        rows = self._rows(builder.scores(statement, _SCORES, query), statement.values)
        scope = self._scope
        return [StoredScore(score_of(row, project=scope.project, tenant=scope.tenant), seq) for seq, *row in rows]

    def summary(self, query: SummaryQuery) -> list[SummaryRow]:
        """See ``SpanStore.summary``."""
        statement = self._statement()
        rows = self._rows(builder.summary(statement, "spans", query), statement.values)
        return [summary_row(query, row) for row in rows]

    def series(self, query: SeriesQuery) -> SeriesRows:
        """See ``SpanStore.series``."""
        statement = self._statement()
        return series_rows(query, self._rows(builder.series(statement, "spans", query), statement.values))

    def sessions(self, query: SessionQuery) -> list[SessionRow]:
        """See ``SpanStore.sessions``."""
        statement = self._statement()
        return session_rows(self._rows(builder.sessions(statement, "spans", query), statement.values))

    def values(
        self, field: str, *, since_ns: int | None = None, until_ns: int | None = None, limit: int = 100
    ) -> list[tuple[Value, int]]:
        """See ``SpanStore.values``."""
        statement = self._statement()
        sql = builder.values(statement, "spans", field, since_ns, until_ns, limit)
        return value_rows(field, self._rows(sql, statement.values))

    def set_aside(self, *, reason: str | None = None, limit: int = 100) -> SetAsideReport:
        """See ``SpanStore.set_aside``."""
        only, values = "", dict(self._owner)
        if reason is not None:
            only, values["reason"] = " AND reason = {reason:String}", reason
        counts = self._rows(
            f"SELECT reason, sum(count) FROM aside_counts WHERE {_OWNED}{only} GROUP BY reason ORDER BY reason", values
        )
        samples = self._rows(
            "SELECT reason, at_ns, trace_id, span_id, source, detail FROM aside_samples "
            f"WHERE {_OWNED}{only} ORDER BY seq DESC LIMIT {int(limit)}",
            values,
        )
        return SetAsideReport({name: int(count) for name, count in counts}, [aside_of(row) for row in samples])

    def compact(self, before_ns: int) -> Compacted:  # noqa: ARG002 - the face of every store
        """Does nothing: ClickHouse has storage policies of its own for old partitions."""
        return Compacted()

    def erase(self, erasure: Erasure) -> Erased:
        """See ``SpanStore.erase``. ClickHouse keeps files it replaced for minutes more (``old_parts_lifetime``)."""
        check(erasure)
        values: dict[str, Any] = dict(self._owner)
        if erasure.before_ns is not None:
            condition, values["before"] = "started_at_ns < {before:Int64}", erasure.before_ns
        elif erasure.user_keys:
            condition, values["keys"] = "user_key IN {keys:Array(String)}", list(erasure.user_keys)
        else:
            condition, values["ids"] = "trace_id IN {ids:Array(String)}", list(erasure.trace_ids)
        with self._writing:
            rows = self._rows(f"SELECT DISTINCT trace_id FROM spans WHERE {_OWNED} AND {condition}", values)
            gone = {trace_id for (trace_id,) in rows}
            ids = sorted(gone | set(erasure.trace_ids))
            counts = {"spans": 0, "scores": 0, "aside_samples": 0, "late_contents": 0}
            for start in range(0, len(ids), _IDS_AT_ONCE):
                for table in counts:
                    counts[table] += self._erase_from(table, ids[start : start + _IDS_AT_ONCE])
            if erasure.before_ns is not None:
                self._connection.run(
                    f"ALTER TABLE aside_samples DELETE WHERE {_OWNED} AND at_ns < {{before:Int64}} "
                    "SETTINGS mutations_sync = 2",
                    {**self._owner, "before": erasure.before_ns},
                )
        return Erased(traces=len(gone), spans=counts["spans"], scores=counts["scores"])

    def _erase_from(self, table: str, trace_ids: Sequence[str]) -> int:
        which = f"{_OWNED} AND trace_id IN {{ids:Array(String)}}"
        values = {**self._owner, "ids": list(trace_ids)}
        count = int(self._rows(f"SELECT count(*) FROM {table} WHERE {which}", values)[0][0])
        if count:
            self._connection.run(f"ALTER TABLE {table} DELETE WHERE {which} SETTINGS mutations_sync = 2", values)
        return count

    def _known_spans(self, spans: Sequence[Span]) -> dict[SpanId, Known]:
        rows = self._rows(
            "SELECT trace_id, span_id, status = 'interrupted', digest FROM spans "
            f"WHERE {_OWNED} AND trace_id IN {{ids:Array(String)}}",
            {**self._owner, "ids": sorted({span.trace_id for span in spans})},
        )
        return {
            (trace_id, span_id): Known(bool(placeholder), digest) for trace_id, span_id, placeholder, digest in rows
        }

    def _put_spans(self, batch: Batch, sifted: Sifted) -> None:
        for trace_id, span_id in sifted.outdated:  # before its successor is inserted: never are both there
            self._connection.run(
                f"DELETE FROM spans WHERE {_OWNED} AND trace_id = {{trace:String}} AND span_id = {{span:String}}",
                {**self._owner, "trace": trace_id, "span": span_id},
            )
        if not sifted.spans:
            return
        spans = [span for span, _ in sifted.spans.values()]
        table = span_table(spans, [digest for _, digest in sifted.spans.values()], self._places(len(spans)))
        contents = [batch.contents.get(key) for key in sifted.spans]
        wide = {
            "input_chars": pa.array([None if one is None else len(one.input) for one in contents], pa.int32()),
            "said": pa.array([None if one is None else _said(one) for one in contents], pa.string()),
            "detail": pa.array([(one.detail or None) if one is not None else None for one in contents], pa.string()),
            "refs": pa.array([[msgspec.structs.asdict(one) for one in span.references] for span in spans], _REFS),
        }
        table = table.drop_columns(["trace_key"])
        for name, column in wide.items():
            table = table.append_column(name, column)
        self._insert("spans", table)

    def _put_late(self, late: Sequence[tuple[SpanId, Content]]) -> None:
        """Content that came apart is kept apart and joined when it is read; full text does not look there."""
        there = self._late([trace_id for (trace_id, _), _ in late])
        fresh: list[tuple[str, str, Content]] = []
        for (trace_id, span_id), content in late:
            known = there.setdefault((trace_id, span_id), [])
            if content not in known:
                known.append(content)
                fresh.append((trace_id, span_id, content))
        if not fresh:
            return
        columns: dict[str, Any] = {
            "trace_id": [trace_id for trace_id, _, _ in fresh],
            "span_id": [span_id for _, span_id, _ in fresh],
            "seq": pa.array(self._places(len(fresh)), pa.int64()),
        }
        for name in ("input", "output", "detail"):
            columns[name] = [getattr(content, name) for *_, content in fresh]
        self._insert("late_contents", pa.table(columns))

    def _late(self, trace_ids: Sequence[str]) -> dict[SpanId, list[Content]]:
        found: dict[SpanId, list[Content]] = {}
        if trace_ids:
            rows = self._rows(
                f"SELECT trace_id, span_id, input, output, detail FROM late_contents WHERE {_OWNED} "
                "AND trace_id IN {ids:Array(String)} ORDER BY seq",
                {**self._owner, "ids": sorted(set(trace_ids))},
            )
            for trace_id, span_id, *content in rows:
                found.setdefault((trace_id, span_id), []).append(Content(*content))
        return found

    def _joined(self, stored: list[StoredSpan]) -> list[StoredSpan]:
        """With what came late."""
        late = self._late([one.span.trace_id for one in stored])
        if not late:
            return stored
        found = []
        for one in stored:
            parts = late.get((one.span.trace_id, one.span.span_id), [])
            own = [one.content] if one.content is not None else []
            whole = combined([*own, *parts]) if parts else one.content
            found.append(StoredSpan(one.span, whole, one.ingest_seq))
        return found

    def _note(self, aside: Sequence[SetAside]) -> None:
        if not aside:
            return
        counts = Counter(one.reason for one in aside)
        self._insert(
            "aside_counts",
            pa.table({"reason": list(counts), "count": pa.array(list(counts.values()), pa.int64())}),
        )
        rows = [aside_row(one) for one in aside[-SAMPLES_KEPT:]]
        names = ("reason", "at_ns", "trace_id", "span_id", "source", "detail")
        columns: dict[str, Any] = {
            name: pa.array([row[place] for row in rows], pa.int64() if name == "at_ns" else pa.string())
            for place, name in enumerate(names)
        }
        columns["seq"] = pa.array(self._places(len(rows)), pa.int64())
        self._insert("aside_samples", pa.table(columns))

    def _insert(self, table: str, rows: pa.Table) -> None:
        for name, value in self._owner.items():
            rows = rows.append_column(name, pa.array([value] * rows.num_rows, pa.string()))
        self._connection.insert(table, rows)

    def _places(self, count: int) -> list[int]:
        first = self._seq + 1
        self._seq += count
        return list(range(first, first + count))

    def _rows(self, sql: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        if self._closed:
            raise Unavailable("the span store is closed")
        return self._connection.rows(sql, values)

    def _statement(self) -> Statement:
        return Statement(ClickHouseDialect(), self._scope)

    def _stored(self, row: Sequence[Any]) -> StoredSpan:
        seq, *plain, refs, input_chars, said, detail = row
        scope = self._scope
        span = span_of(plain, project=scope.project, tenant=scope.tenant, references=_references(refs))
        return StoredSpan(span, None if said is None else content_of(input_chars, said, detail), seq)


_IDS_AT_ONCE: Final = 2000


def _said(content: Content) -> str:
    return content.input + BETWEEN + content.output


def _references(rows: Sequence[Any]) -> tuple[Reference, ...]:
    return tuple(Reference(**row) if isinstance(row, Mapping) else Reference(*row) for row in rows)


def open_clickhouse(url: str, scope: Scope) -> ClickHouseSpanStore:
    """Open the span store that a ``clickhouse://`` URL names.

    Raises:
        InvalidInput: it is no such URL.
        Unavailable: the extra is missing, or the server does not answer.
    """
    if url.partition("://")[0] not in ("clickhouse", "clickhouses"):
        raise InvalidInput(
            f"telemetry.store is '{url.partition('@')[2] or url}', and that is no ClickHouse URL.",
            hint="Write clickhouse://user:password@host:8123/database, or leave it empty for DuckDB.",
        )
    return ClickHouseSpanStore(HttpConnection(url), scope)
