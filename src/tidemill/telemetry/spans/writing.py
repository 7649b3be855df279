"""What a commit does to the DuckDB file: sifts a batch, inserts what is new, moves offsets, notes what was refused."""

# ruff: noqa: S608 - statements are put together from this module's own constants; values are bound

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from tidemill.kernel import InvalidInput, Scope
from tidemill.telemetry.records import Content, Score, Span
from tidemill.telemetry.spans.late_contents import LateContents
from tidemill.telemetry.spans.rows import content_table, key_of, reference_table, score_table, span_table
from tidemill.telemetry.spans.sifting import DETAIL_CHARS, Known, Sifted, SpanId, sift_scores, sift_spans
from tidemill.telemetry.spans.text import word_filter, words_of
from tidemill.telemetry.store import Batch, CommitReport, SetAside, SetAsideReport

if TYPE_CHECKING:
    import duckdb

    from tidemill.telemetry.spans.database import Database

BLOCK: Final = 1024
"""Contents that share a filter of words."""
_READ_AT_ONCE: Final = 16 * BLOCK
SAMPLES_KEPT: Final = 100
_DAY_NS: Final = 86_400_000_000_000

ColdSpans = Callable[["duckdb.DuckDBPyConnection", Sequence[Span]], Mapping[SpanId, Known]]


class Writer:
    """Commits batches of one scope.

    Args:
        database: the file.
        scope: whose records they are.
        cold: finds which of some spans lie in partitions already.
    """

    def __init__(self, database: Database, scope: Scope, cold: ColdSpans) -> None:
        self._database = database
        self._scope = scope
        self._owner = {"project": scope.project, "tenant": scope.tenant}
        self._cold = cold
        self._late = LateContents(self._owner)
        self._pending: _PendingWords | None = None
        self._closed = 0

    def commit(self, batch: Batch, offsets: Mapping[str, int], forget: Iterable[str]) -> CommitReport:
        """See ``SpanStore.commit``."""
        refuse_foreign(batch, self._scope)
        try:
            with self._database.transaction() as cursor:
                sifted = Sifted()
                if batch.spans:
                    sift_spans(batch.spans, self._known_spans(cursor, batch.spans), sifted)
                    self._put_spans(cursor, batch, sifted)
                for seq, content in self._late.joined(cursor, batch.late, sifted.places):
                    self._put_contents(cursor, [(seq, content)])
                if batch.scores:
                    sift_scores(batch.scores, self._known_scores(cursor, batch.scores), sifted)
                    self._put_scores(cursor, sifted)
                self._note(cursor, [*batch.rejected, *sifted.aside])
                self._put_offsets(cursor, offsets, forget)
        except BaseException:
            self.forget()  # what it knows of may not have been stored
            raise
        return CommitReport(rejected=len(batch.rejected), **sifted.counts)

    def set_aside(self, reason: str | None, limit: int) -> SetAsideReport:
        """See ``SpanStore.set_aside``."""
        only = "AND ($reason IS NULL OR reason = $reason)"
        values = {**self._owner, "reason": reason}
        counts = self._database.rows(
            "SELECT reason, sum(count)::BIGINT FROM aside_counts WHERE project = $project AND tenant = $tenant "
            f"{only} GROUP BY reason ORDER BY reason",
            values,
        )
        samples = self._database.rows(
            "SELECT reason, at_ns, trace_id, span_id, source, detail FROM aside_samples "
            f"WHERE project = $project AND tenant = $tenant {only} ORDER BY seq DESC LIMIT {int(limit)}",
            values,
        )
        return SetAsideReport(dict(counts), [aside_of(row) for row in samples])

    def forget(self) -> None:
        """Read anew what is kept in memory of the file: words not yet in a filter, and which late content waits."""
        self._pending = None
        self._late.forget()

    def _known_spans(self, cursor: duckdb.DuckDBPyConnection, spans: Sequence[Span]) -> dict[SpanId, Known]:
        """Of the spans' ids those already stored."""
        wanted = {key_of(trace_id) for trace_id in {span.trace_id for span in spans}}
        cursor.register("wanted", pa.table({"trace_key": pa.array(list(wanted), pa.int32())}))
        rows = cursor.execute(
            "SELECT trace_id, span_id, status = 'interrupted', digest FROM spans "
            "WHERE trace_key IN (SELECT trace_key FROM wanted) AND project = $project AND tenant = $tenant",
            self._owner,
        ).fetchall()
        cursor.unregister("wanted")
        hot = {(trace_id, span_id): Known(placeholder, digest) for trace_id, span_id, placeholder, digest in rows}
        # A placeholder in a partition stays: partitions are not changed by what comes in.
        cold = {key: Known(False, digest) for key, (_, digest) in self._cold(cursor, spans).items()}
        return cold | hot

    def _put_spans(self, cursor: duckdb.DuckDBPyConnection, batch: Batch, sifted: Sifted) -> None:
        for trace_id, span_id in sifted.outdated:
            gone = cursor.execute(
                "DELETE FROM spans WHERE trace_key = $key AND trace_id = $trace_id AND span_id = $span_id "
                "AND project = $project AND tenant = $tenant RETURNING seq",
                {**self._owner, "key": key_of(trace_id), "trace_id": trace_id, "span_id": span_id},
            ).fetchall()
            for (seq,) in gone:
                for table in ("contents", "trace_references"):
                    cursor.execute(
                        f"DELETE FROM {table} WHERE seq = $seq AND project = $project AND tenant = $tenant",
                        {**self._owner, "seq": seq},
                    )
        if not sifted.spans:
            return
        spans = [span for span, _ in sifted.spans.values()]
        seqs = _places(cursor, len(spans))
        self._insert(cursor, "spans", span_table(spans, [digest for _, digest in sifted.spans.values()], seqs))
        if any(span.references for span in spans):
            self._insert(cursor, "trace_references", reference_table(spans, seqs))
        sifted.places = dict(zip(sifted.spans, seqs, strict=True))
        contents = [(seq, batch.contents[key]) for key, seq in sifted.places.items() if key in batch.contents]
        if contents:
            self._put_contents(cursor, contents)

    def _put_contents(self, cursor: duckdb.DuckDBPyConnection, contents: Sequence[tuple[int, Content]]) -> None:
        if self._pending is None:
            self._pending = self._unindexed(cursor)
        self._insert(cursor, "contents", content_table(contents))
        for seq, content in contents:
            if seq < self._pending.first or seq <= self._closed:
                self._widen(cursor, seq, content)
                continue
            self._pending.add(seq, content.input, content.output)
            if self._pending.count >= BLOCK:
                self._close_block(cursor, self._pending)

    def _widen(self, cursor: duckdb.DuckDBPyConnection, seq: int, content: Content) -> None:
        """A late content lies behind a filter that is closed: it gets one of its own."""
        words = {*words_of(content.input), *words_of(content.output)}
        cursor.execute(
            "INSERT INTO word_blocks VALUES ($project, $tenant, $first, $first, $bits::BLOB::BIT)",
            {**self._owner, "first": seq, "bits": word_filter(words)},
        )

    def _unindexed(self, cursor: duckdb.DuckDBPyConnection) -> _PendingWords:
        """Words of stored contents that are in no filter yet; whole blocks of them get theirs."""
        pending = _PendingWords()
        at = cursor.execute(
            "SELECT coalesce(max(last_seq), 0) FROM word_blocks WHERE project = $project AND tenant = $tenant",
            self._owner,
        ).fetchall()[0][0]
        self._closed = at
        while True:
            rows = cursor.execute(
                "SELECT seq, said FROM contents WHERE seq > $at AND project = $project AND tenant = $tenant "
                f"ORDER BY seq LIMIT {_READ_AT_ONCE}",
                {**self._owner, "at": at},
            ).fetchall()
            if not rows:
                return pending
            for seq, said in rows:
                pending.add(seq, said, "")
                if pending.count >= BLOCK:
                    self._close_block(cursor, pending)
            at = rows[-1][0]

    def _close_block(self, cursor: duckdb.DuckDBPyConnection, pending: _PendingWords) -> None:
        cursor.execute(
            "INSERT INTO word_blocks VALUES ($project, $tenant, $first, $last, $bits::BLOB::BIT)",
            {**self._owner, "first": pending.first, "last": pending.last, "bits": word_filter(pending.words)},
        )
        self._closed = pending.last
        pending.clear()

    def _known_scores(self, cursor: duckdb.DuckDBPyConnection, scores: Sequence[Score]) -> dict[str, int | None]:
        cursor.register("wanted", pa.table({"score_id": pa.array([score.score_id for score in scores])}))
        rows = cursor.execute(
            "SELECT score_id, digest FROM scores WHERE score_id IN (SELECT score_id FROM wanted) "
            "AND project = $project AND tenant = $tenant",
            self._owner,
        ).fetchall()
        cursor.unregister("wanted")
        return dict(rows)

    def _put_scores(self, cursor: duckdb.DuckDBPyConnection, sifted: Sifted) -> None:
        if sifted.scores:
            seqs = _places(cursor, len(sifted.scores))
            scores = [score for score, _ in sifted.scores]
            self._insert(cursor, "scores", score_table(scores, [digest for _, digest in sifted.scores], seqs))

    def _note(self, cursor: duckdb.DuckDBPyConnection, aside: Sequence[SetAside]) -> None:
        """Count what was not stored, and keep the newest samples of each reason."""
        for reason, count in Counter(one.reason for one in aside).items():
            values = {**self._owner, "reason": reason}
            mine = "reason = $reason AND project = $project AND tenant = $tenant"
            before = cursor.execute(f"SELECT count FROM aside_counts WHERE {mine}", values).fetchall()
            cursor.execute(f"DELETE FROM aside_counts WHERE {mine}", values)
            total = count + sum(row[0] for row in before)
            cursor.execute("INSERT INTO aside_counts VALUES ($project, $tenant, $reason, $n)", {**values, "n": total})
            samples = [one for one in aside if one.reason == reason][-SAMPLES_KEPT:]
            for seq, one in zip(_places(cursor, len(samples)), samples, strict=True):
                cursor.execute(
                    "INSERT INTO aside_samples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    [*self._owner.values(), seq, *aside_row(one)],
                )
            cursor.execute(
                f"DELETE FROM aside_samples WHERE {mine} AND seq NOT IN "
                f"(SELECT seq FROM aside_samples WHERE {mine} ORDER BY seq DESC LIMIT {SAMPLES_KEPT})",
                values,
            )

    def _put_offsets(
        self, cursor: duckdb.DuckDBPyConnection, offsets: Mapping[str, int], forget: Iterable[str]
    ) -> None:
        changed = [*offsets, *forget]
        if changed:
            cursor.execute(
                "DELETE FROM segment_offsets WHERE list_contains($changed, segment) "
                "AND project = $project AND tenant = $tenant",
                {**self._owner, "changed": changed},
            )
        for segment, offset in offsets.items():
            cursor.execute("INSERT INTO segment_offsets VALUES (?, ?, ?, ?)", [*self._owner.values(), segment, offset])

    def _insert(self, cursor: duckdb.DuckDBPyConnection, table: str, rows: pa.Table) -> None:
        names = ", ".join(f'"{name}"' for name in rows.column_names)
        cursor.register("incoming", rows)
        cursor.execute(
            f"INSERT INTO {table} (project, tenant, {names}) SELECT $project, $tenant, {names} FROM incoming",
            self._owner,
        )
        cursor.unregister("incoming")


class _PendingWords:
    """Words of the newest contents, until they are enough for a filter."""

    __slots__ = ("count", "first", "last", "words")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.words: set[bytes] = set()
        self.first = self.last = self.count = 0

    def add(self, seq: int, *texts: str) -> None:
        self.first = self.first or seq
        self.last = seq
        self.count += 1
        for text in texts:
            self.words.update(words_of(text))


def refuse_foreign(batch: Batch, scope: Scope) -> None:
    """Refuse a batch with records of another scope.

    Raises:
        InvalidInput: a record belongs to another scope.
    """
    records: list[Span | Score] = [*batch.spans, *batch.scores]
    for record in records:
        if (record.project, record.tenant) != (scope.project, scope.tenant):
            raise InvalidInput(
                f"a record of {record.project}/{record.tenant} does not belong into the span store of "
                f"{scope.project}/{scope.tenant}"
            )


def aside_row(one: SetAside) -> tuple[str, int, str | None, str | None, str | None, str]:
    """A sample as a row, cut to its size."""
    return one.reason, one.at_ns, one.trace_id, one.span_id, one.source, one.detail[:DETAIL_CHARS]


def aside_of(row: tuple[str, int, str | None, str | None, str | None, str]) -> SetAside:
    """A sample from its row."""
    reason, at_ns, trace_id, span_id, source, detail = row
    return SetAside(reason=reason, at_ns=at_ns, trace_id=trace_id, span_id=span_id, source=source, detail=detail)


def _places(cursor: duckdb.DuckDBPyConnection, count: int) -> list[int]:
    """The next places in the order of commits."""
    taken = cursor.execute("SELECT nextval('ingest_seq') FROM range($1)", [count]).fetchall()
    return [place for (place,) in taken]
