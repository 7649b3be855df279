"""Finds and fetches spans in the DuckDB file and its cold partitions.

Finding reads narrow columns and gives places; fetching reads the wide columns of the rows found and of no others. Both
run in one transaction, so that a compaction in between shows neither twice nor not at all.
"""

# ruff: noqa: S608 - statements are put together from this package's own constants; values are bound

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeVar

import duckdb
import msgspec

from tidemill.kernel import Scope, Unavailable
from tidemill.telemetry.records import Content, Reference
from tidemill.telemetry.spans import builder
from tidemill.telemetry.spans.builder import Statement
from tidemill.telemetry.spans.dialects import DuckDBDialect
from tidemill.telemetry.spans.rows import content_of, key_of, span_of
from tidemill.telemetry.spans.schema import SPAN_COLUMNS, STORED
from tidemill.telemetry.spans.text import Term, bit_places, terms_of
from tidemill.telemetry.store import SpanQuery, StoredSpan

if TYPE_CHECKING:
    from tidemill.telemetry.spans.database import Database
    from tidemill.telemetry.spans.partitions import Partition, Partitions

_COLUMNS: Final = ", ".join(f's."{name}"' for name in STORED)
_NAMES: Final = ", ".join(f'"{name}"' for name in ("project", "tenant", *SPAN_COLUMNS))
_OWNED: Final = "project = $project AND tenant = $tenant"
_ATTEMPTS: Final = 3
_STRETCH: Final = 4096
_FIRST_PLACES: Final = 4 * _STRETCH
_WIDER: Final = 3
_MOST_RANGES: Final = 100

_json = msgspec.json.Decoder(list[tuple[Literal["passage", "artifact"], str, str, str | None, str | None]])
T = TypeVar("T")


class Found(NamedTuple):
    """A span that meets a query: what it is ordered by, and where it lies."""

    started_at_ns: int
    seq: int
    partition: str | None


class _Stretch(NamedTuple):
    """Places in the order of commits that are next to each other, and the latest start there."""

    first_seq: int
    last_seq: int
    last_ns: int


class Reader:
    """Reads the spans of one scope.

    Args:
        database: the file.
        partitions: the cold tier.
        scope: whose spans.
    """

    def __init__(self, database: Database, partitions: Partitions, scope: Scope) -> None:
        self._database = database
        self._partitions = partitions
        self._scope = scope
        self._owner = {"project": scope.project, "tenant": scope.tenant}

    def statement(self) -> Statement:
        """A new statement of this scope."""
        return Statement(DuckDBDialect(), self._scope)

    def rows(
        self,
        build: Callable[[Statement, str], str],
        *,
        since_ns: int | None = None,
        until_ns: int | None = None,
    ) -> list[tuple[Any, ...]]:
        """Ask a statement of the builder over both tiers.

        Args:
            build: makes it, given what stands for spans.
            since_ns: partitions wholly before are not read.
            until_ns: partitions wholly behind are not read.
        """

        def ask(cursor: duckdb.DuckDBPyConnection) -> list[tuple[Any, ...]]:
            cold = [one for one in self._partitions.listed(cursor) if _overlaps(one, since_ns, until_ns)]
            statement = self.statement()
            sql = build(statement, self._source(cold))
            return cursor.execute(sql, statement.values).fetchall()

        return self._settled(ask)

    def spans(self, query: SpanQuery) -> list[StoredSpan]:
        """See ``SpanStore.spans``."""
        terms = terms_of(query.text) if query.text is not None else ()

        def ask(cursor: duckdb.DuckDBPyConnection) -> list[StoredSpan]:
            found = self._find(cursor, query, terms)
            return self._fetch(cursor, found, references=query.with_references, content=query.with_content)

        return self._settled(ask)

    def last_seq(self) -> int:
        """See ``SpanStore.last_seq``."""
        rows = self._database.rows(
            f"SELECT greatest((SELECT max(seq) FROM spans WHERE {_OWNED}), "
            f"(SELECT max(last_seq) FROM partitions WHERE {_OWNED}), (SELECT max(seq) FROM scores WHERE {_OWNED}))",
            self._owner,
        )
        return rows[0][0] or 0

    def trace(self, trace_id: str) -> list[StoredSpan]:
        """See ``SpanStore.trace``."""

        def ask(cursor: duckdb.DuckDBPyConnection) -> list[StoredSpan]:
            found = sorted(self._of_traces(cursor, [trace_id]))
            return self._fetch(cursor, found, references=True, content=True)

        return self._settled(ask)

    def references(self, trace_ids: Sequence[str]) -> list[tuple[str, Reference]]:
        """See ``SpanStore.references``."""
        wanted = list(dict.fromkeys(trace_ids))
        if not wanted:
            return []

        def ask(cursor: duckdb.DuckDBPyConnection) -> list[tuple[str, Reference]]:
            found = self._of_traces(cursor, wanted)
            stored = self._fetch(cursor, sorted(found, key=lambda one: one.seq), references=True, content=False)
            return [(one.span.trace_id, reference) for one in stored for reference in one.span.references]

        pairs = self._settled(ask)
        return sorted(pairs, key=lambda pair: pair[0])

    def traces_using(self, refs: Sequence[str]) -> list[str]:
        """See ``SpanStore.traces_using``."""
        wanted = sorted(set(refs))
        if not wanted:
            return []
        keys = sorted({key_of(ref) for ref in wanted})

        def ask(cursor: duckdb.DuckDBPyConnection) -> list[str]:
            values = {**self._owner, "keys": keys, "refs": wanted}
            hot = cursor.execute(
                "SELECT DISTINCT trace_id FROM trace_references WHERE ref_key IN (SELECT unnest($keys::INTEGER[])) "
                f"AND list_contains($refs, ref) AND {_OWNED}",
                values,
            ).fetchall()
            found = {trace_id for (trace_id,) in hot}
            cold = self._partitions.listed(cursor)
            if cold:
                rows = cursor.execute(
                    f"SELECT trace_id, refs FROM {self._partitions.source(cold)} "
                    "WHERE list_has_any(ref_keys, $keys::INTEGER[])",
                    {"keys": keys},
                ).fetchall()
                found |= {trace_id for trace_id, text in rows if any(one[1] in wanted for one in _json.decode(text))}
            return sorted(found)

        return self._settled(ask)

    def _settled(self, ask: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
        """Ask within one transaction; again if a partition was rewritten before it could be opened."""
        for attempt in range(_ATTEMPTS):
            try:
                with self._reading() as cursor:
                    return ask(cursor)
            except (duckdb.IOException, FileNotFoundError) as error:
                if attempt == _ATTEMPTS - 1:
                    raise Unavailable(f"the span store cannot be read: {error}") from error
        raise AssertionError

    @contextmanager
    def _reading(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._database.cursor() as cursor:
            cursor.execute("BEGIN")
            try:
                yield cursor
            finally:
                with suppress(duckdb.Error):
                    cursor.execute("ROLLBACK")

    def _source(self, cold: Sequence[Partition]) -> str:
        if not cold:
            return "spans"
        return f"(SELECT {_NAMES} FROM spans UNION ALL SELECT {_NAMES} FROM {self._partitions.source(cold)})"

    def _find(self, cursor: duckdb.DuckDBPyConnection, query: SpanQuery, terms: Sequence[Term]) -> list[Found]:
        found = self._find_text(cursor, query, terms) if terms else self._find_hot(cursor, query)
        cold = [one for one in self._partitions.listed(cursor) if _overlaps(one, query.since_ns, query.until_ns)]
        cold = [one for one in cold if one.last_seq > query.after_seq]
        if query.newest_first:
            cold.sort(key=lambda one: -one.last_ns)
        for one in cold:
            if len(found) >= query.limit and _is_behind(one, found[-1], newest_first=query.newest_first):
                continue
            found = _first(found + self._find_cold(cursor, query, terms, one), query)
        return found

    def _find_hot(self, cursor: duckdb.DuckDBPyConnection, query: SpanQuery) -> list[Found]:
        statement = self.statement()
        conditions = builder.span_conditions(statement, query)
        rows = cursor.execute(
            f"SELECT s.started_at_ns, s.seq FROM spans s WHERE {' AND '.join(conditions)} {_order(query)}",
            statement.values,
        ).fetchall()
        return [Found(started, seq, None) for started, seq in rows]

    def _find_cold(
        self, cursor: duckdb.DuckDBPyConnection, query: SpanQuery, terms: Sequence[Term], one: Partition
    ) -> list[Found]:
        statement = self.statement()
        conditions = builder.span_conditions(statement, query)
        source = self._partitions.source([one])
        hit = ""
        if terms:
            ranges = self._candidates(cursor, terms, one.first_seq, one.last_seq)
            if not ranges:
                return []
            texts = _stretches(f"{source} c WHERE c.said IS NOT NULL", ranges)
            hit = f"WITH hit AS MATERIALIZED (SELECT c.seq FROM ({texts}) c WHERE {_said(statement, terms)}) "
            conditions.append("s.seq IN (SELECT seq FROM hit)")
        rows = cursor.execute(
            f"{hit}SELECT s.started_at_ns, s.seq FROM {source} s WHERE {' AND '.join(conditions)} {_order(query)}",
            statement.values,
        ).fetchall()
        return [Found(started, seq, one.name) for started, seq in rows]

    def _find_text(self, cursor: duckdb.DuckDBPyConnection, query: SpanQuery, terms: Sequence[Term]) -> list[Found]:
        """Stretch by stretch in the order asked for, so that frequent words are found without reading everything."""
        stretches = self._stretches_in_order(cursor, query)
        found: list[Found] = []
        at, places, narrowed = 0, _FIRST_PLACES, False
        while at < len(stretches):
            if at and not narrowed:  # what is frequent has been found by now; for the rest filters pay
                stretches = stretches[:at] + self._narrowed(cursor, terms, stretches[at:])
                narrowed = True
            end, size = at, 0
            while end < len(stretches) and size < places and end - at < _MOST_RANGES:
                size += stretches[end].last_seq - stretches[end].first_seq + 1
                end += 1
            if end > at:
                hits = self._hits(cursor, query, terms, stretches[at:end])
                found = _first(found + hits, query)
            at, places = end, places * _WIDER
            if len(found) >= query.limit and at < len(stretches):
                last, following = found[-1], stretches[at]
                if following.last_ns < last.started_at_ns if query.newest_first else following.first_seq > last.seq:
                    break
        return found

    def _stretches_in_order(self, cursor: duckdb.DuckDBPyConnection, query: SpanQuery) -> list[_Stretch]:
        """Where spans of the query may lie, its cheap conditions considered, in the order it asks for."""
        statement = self.statement()
        conditions = builder.span_conditions(statement, replace(query, where=()))
        rows = cursor.execute(
            "SELECT min(s.seq), max(s.seq), max(s.started_at_ns) FROM spans s "
            f"WHERE {' AND '.join(conditions)} GROUP BY s.seq // {_STRETCH}",
            statement.values,
        ).fetchall()
        found = [_Stretch(*row) for row in rows]
        return sorted(found, key=(lambda one: -one.last_ns) if query.newest_first else (lambda one: one.first_seq))

    def _narrowed(
        self, cursor: duckdb.DuckDBPyConnection, terms: Sequence[Term], stretches: Sequence[_Stretch]
    ) -> list[_Stretch]:
        """Those parts of stretches that may hold all words of the terms."""
        if not stretches:
            return []
        first, last = min(one.first_seq for one in stretches), max(one.last_seq for one in stretches)
        ranges = self._candidates(cursor, terms, first, last)
        ends = [high for _, high in ranges]
        found = []
        for one in stretches:
            for low, high in ranges[bisect_left(ends, one.first_seq) :]:
                if low > one.last_seq:
                    break
                found.append(_Stretch(max(low, one.first_seq), min(high, one.last_seq), one.last_ns))
        return found

    def _hits(
        self,
        cursor: duckdb.DuckDBPyConnection,
        query: SpanQuery,
        terms: Sequence[Term],
        stretches: Sequence[_Stretch],
    ) -> list[Found]:
        statement = self.statement()
        ranges = sorted((one.first_seq, one.last_seq) for one in stretches)
        conditions = builder.span_conditions(statement, query)
        conditions.append(f"s.seq BETWEEN {ranges[0][0]} AND {ranges[-1][1]}")
        texts = _stretches(f"contents c WHERE {statement.owned('c')}", _merged(ranges))
        # Texts are matched first and by themselves: inside a join all of them would be read.
        rows = cursor.execute(
            f"WITH hit AS MATERIALIZED (SELECT c.seq FROM ({texts}) c WHERE {_said(statement, terms)}) "
            "SELECT s.started_at_ns, s.seq FROM spans s WHERE s.seq IN (SELECT seq FROM hit) "
            f"AND {' AND '.join(conditions)} {_order(query)}",
            statement.values,
        ).fetchall()
        return [Found(started, seq, None) for started, seq in rows]

    def _candidates(
        self, cursor: duckdb.DuckDBPyConnection, terms: Sequence[Term], first: int, last: int
    ) -> list[tuple[int, int]]:
        """Stretches of places that may hold all words of the terms, in a stretch of places."""
        values: dict[str, Any] = {**self._owner, "first": first, "last": last}
        held = []
        for word in dict.fromkeys(word for term in terms for word in term.words):
            for place in bit_places(word):
                name = f"b{len(values)}"
                values[name] = place
                held.append(f"get_bit(bits, (${name} % bit_length(bits))::INTEGER) = 1")
        rows = cursor.execute(
            f"SELECT first_seq, last_seq FROM word_blocks WHERE last_seq >= $first AND first_seq <= $last AND {_OWNED}"
            + "".join(f" AND {one}" for one in held)
            + " ORDER BY first_seq",
            values,
        ).fetchall()
        tail = cursor.execute(f"SELECT coalesce(max(last_seq), 0) + 1 FROM word_blocks WHERE {_OWNED}", self._owner)
        rows.append((max(first, tail.fetchall()[0][0]), last))
        return _merged(rows)

    def _of_traces(self, cursor: duckdb.DuckDBPyConnection, trace_ids: Sequence[str]) -> list[Found]:
        keys = ", ".join(str(key) for key in sorted({key_of(trace_id) for trace_id in trace_ids}))
        by_key = f"trace_key = {keys}" if "," not in keys else f"trace_key IN (SELECT unnest([{keys}]::INTEGER[]))"
        # Keys of four bytes first, then places, whose zone maps find the few rows to compare by id.
        places = [seq for (seq,) in cursor.execute(f"SELECT seq FROM spans WHERE {by_key}").fetchall()]
        rows: list[tuple[int, int]] = []
        if places:
            rows = cursor.execute(
                "SELECT started_at_ns, seq FROM spans WHERE seq BETWEEN $low AND $high "
                f"AND seq IN (SELECT unnest($seqs::BIGINT[])) AND list_contains($ids, trace_id) AND {_OWNED}",
                {**self._owner, "ids": list(trace_ids), "seqs": places, "low": min(places), "high": max(places)},
            ).fetchall()
        found = [Found(started, seq, None) for started, seq in rows]
        cold = self._partitions.listed(cursor)
        for one in self._partitions.holding(cursor, trace_ids, cold):
            rows = cursor.execute(
                f"SELECT started_at_ns, seq FROM {self._partitions.source([one])} WHERE list_contains($ids, trace_id)",
                {"ids": list(trace_ids)},
            ).fetchall()
            found += [Found(started, seq, one.name) for started, seq in rows]
        return found

    def _fetch(
        self, cursor: duckdb.DuckDBPyConnection, found: Sequence[Found], *, references: bool, content: bool
    ) -> list[StoredSpan]:
        """The spans at the places found, in that order."""
        stored: dict[int, StoredSpan] = {}
        hot = [one.seq for one in found if one.partition is None]
        if hot:
            stored |= self._fetch_hot(cursor, hot, references=references, content=content)
        cold = {one.partition for one in found if one.partition is not None}
        if cold:
            partitions = [one for one in self._partitions.listed(cursor) if one.name in cold]
            seqs = [one.seq for one in found if one.partition is not None]
            stored |= self._fetch_cold(cursor, seqs, partitions, references=references, content=content)
        return [stored[one.seq] for one in found]

    def _fetch_hot(
        self, cursor: duckdb.DuckDBPyConnection, seqs: Sequence[int], *, references: bool, content: bool
    ) -> dict[int, StoredSpan]:
        values = {**self._owner, "low": min(seqs), "high": max(seqs), "seqs": list(seqs)}
        at = "seq BETWEEN $low AND $high AND seq IN (SELECT unnest($seqs::BIGINT[]))"

        def rows_of(table: str, columns: str) -> list[tuple[Any, ...]]:
            # Row numbers are found from one narrow column; only then are the wide ones read.
            sql = (
                f"SELECT s.seq, {columns} FROM {table} s "
                f"WHERE s.seq BETWEEN $low AND $high AND s.rowid IN (SELECT rowid FROM {table} WHERE {at}) AND {_OWNED}"
            )
            return cursor.execute(sql, values).fetchall()

        contents: dict[int, Content] = {}
        if content:
            rows = rows_of("contents", "s.input_chars, s.said, s.detail")
            contents = {seq: content_of(*row) for seq, *row in rows}
        used: dict[int, list[tuple[int, Reference]]] = {}
        if references:
            for seq, place, *plain in rows_of("trace_references", "s.place, s.kind, s.ref, s.role, s.rank, s.score"):
                used.setdefault(seq, []).append((place, Reference(*plain)))
        return {
            seq: self._stored(
                seq, row, tuple(one for _, one in sorted(used.get(seq, ()), key=_place)), contents.get(seq)
            )
            for seq, *row in rows_of("spans", _COLUMNS)
        }

    def _fetch_cold(
        self,
        cursor: duckdb.DuckDBPyConnection,
        seqs: Sequence[int],
        partitions: Sequence[Partition],
        *,
        references: bool,
        content: bool,
    ) -> dict[int, StoredSpan]:
        wide = ", s.input_chars, s.said, s.detail" if content else ", NULL, NULL, NULL"
        wide += ", s.refs" if references else ", NULL"
        rows = cursor.execute(
            f"SELECT s.seq, {_COLUMNS}{wide} FROM {self._partitions.source(partitions)} s "
            "WHERE s.seq BETWEEN $low AND $high AND s.seq IN (SELECT unnest($seqs::BIGINT[]))",
            {"low": min(seqs), "high": max(seqs), "seqs": list(seqs)},
        ).fetchall()
        found = {}
        for seq, *row in rows:
            *plain, input_chars, said, detail, refs = row
            text = content_of(input_chars, said, detail) if said is not None else None
            found[seq] = self._stored(seq, plain, references_of(refs), text)
        return found

    def _stored(
        self, seq: int, row: Sequence[Any], references: tuple[Reference, ...], content: Content | None
    ) -> StoredSpan:
        scope = self._scope
        span = span_of(row, project=scope.project, tenant=scope.tenant, references=references)
        return StoredSpan(span, content, seq)


def references_of(text: str | None) -> tuple[Reference, ...]:
    """References from the JSON a partition keeps them as."""
    return tuple(
        Reference(kind, ref, role, None if rank is None else int(rank), None if score is None else float(score))
        for kind, ref, role, rank, score in (_json.decode(text) if text else ())
    )


def _place(one: tuple[int, Reference]) -> int:
    return one[0]


def _order(query: SpanQuery) -> str:
    order = "s.started_at_ns DESC, s.seq DESC" if query.newest_first else "s.seq"
    return f"ORDER BY {order} LIMIT {int(query.limit)}"


def _first(found: Iterable[Found], query: SpanQuery) -> list[Found]:
    if query.newest_first:
        return sorted(found, reverse=True)[: query.limit]
    return sorted(found, key=lambda one: one.seq)[: query.limit]


def _is_behind(one: Partition, last: Found, *, newest_first: bool) -> bool:
    return one.last_ns < last.started_at_ns if newest_first else one.first_seq > last.seq


def _overlaps(one: Partition, since_ns: int | None, until_ns: int | None) -> bool:
    return (since_ns is None or one.last_ns >= since_ns) and (until_ns is None or one.first_ns < until_ns)


def _said(statement: Statement, terms: Sequence[Term]) -> str:
    patterns = [pattern for term in terms for pattern in term.patterns]
    return " AND ".join(f"regexp_matches(c.said, {statement.bind(pattern)})" for pattern in patterns)


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted ranges of places, those that touch as one; empty ones left out."""
    merged: list[tuple[int, int]] = []
    for low, high in ranges:
        if low > high:
            continue
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged


def _stretches(source: str, ranges: Sequence[tuple[int, int]]) -> str:
    """The texts of stretches of places. Places are numbers, so they may stand in the statement's text.

    One read for each: a condition that joins them with OR is not used to skip what lies between, and takes fifty times
    as long (measured over a million texts and 13 stretches).
    """
    if len(ranges) > _MOST_RANGES:  # reading what lies between costs less than so many reads
        ranges = [(ranges[0][0], ranges[-1][1])]
    return " UNION ALL ".join(
        f"SELECT c.seq, c.said FROM {source} AND c.seq BETWEEN {low} AND {high}" for low, high in ranges
    )
