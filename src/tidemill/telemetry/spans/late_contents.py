"""Content that comes apart from its span: it waits for a span that is not there yet, and joins one that is."""

# ruff: noqa: S608 - statements are put together from this module's own constants; values are bound

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from tidemill.telemetry.late import combined
from tidemill.telemetry.records import Content
from tidemill.telemetry.spans.rows import content_of, key_of
from tidemill.telemetry.spans.sifting import SpanId

if TYPE_CHECKING:
    import duckdb

_OWNED: Final = "project = $project AND tenant = $tenant"
_ONE: Final = f"trace_id = $trace_id AND span_id = $span_id AND {_OWNED}"


class LateContents:
    """Late content of one scope in the DuckDB file.

    Args:
        owner: project and tenant, to be bound.
    """

    def __init__(self, owner: Mapping[str, str]) -> None:
        self._owner = owner
        self._waiting: set[SpanId] | None = None

    def joined(
        self,
        cursor: duckdb.DuckDBPyConnection,
        late: Sequence[tuple[SpanId, Content]],
        fresh: Mapping[SpanId, int],
    ) -> list[tuple[int, Content]]:
        """Join what came late with the spans that are there; the rest waits for its span.

        A content that is joined is taken out of its table: what is returned is to be put in its place.

        Args:
            cursor: within the commit's transaction.
            late: of this batch.
            fresh: places of spans that this batch has brought, whose contents are stored already.
        """
        parts: dict[SpanId, list[Content]] = {}
        for key, content in [*self._waited(cursor, fresh), *late]:
            parts.setdefault(key, []).append(content)
        found = []
        for key, contents in parts.items():
            seq = fresh.get(key) or self._place(cursor, key)
            if seq is None:
                self._wait(cursor, key, contents)
                continue
            there = self._content(cursor, seq)
            whole = combined([*there, *contents])
            if there and (whole.input, whole.output) == (there[0].input, there[0].output):
                continue  # the same once more, or nothing that the span did not say itself
            cursor.execute(f"DELETE FROM contents WHERE seq = $seq AND {_OWNED}", {**self._owner, "seq": seq})
            found.append((seq, whole))
        return found

    def _waited(self, cursor: duckdb.DuckDBPyConnection, fresh: Mapping[SpanId, int]) -> list[tuple[SpanId, Content]]:
        if self._waiting is None:
            rows = cursor.execute(f"SELECT trace_id, span_id FROM late_contents WHERE {_OWNED}", self._owner).fetchall()
            self._waiting = {(trace_id, span_id) for trace_id, span_id in rows}
        found = []
        for key in self._waiting & fresh.keys():
            values = {**self._owner, "trace_id": key[0], "span_id": key[1]}
            rows = cursor.execute(
                f"SELECT input, output, detail FROM late_contents WHERE {_ONE} ORDER BY rowid", values
            ).fetchall()
            found += [(key, Content(*row)) for row in rows]
            cursor.execute(f"DELETE FROM late_contents WHERE {_ONE}", values)
        return found

    def _place(self, cursor: duckdb.DuckDBPyConnection, key: SpanId) -> int | None:
        rows = cursor.execute(
            f"SELECT seq FROM spans WHERE trace_key = $key AND {_ONE}",
            {**self._owner, "key": key_of(key[0]), "trace_id": key[0], "span_id": key[1]},
        ).fetchall()
        return rows[0][0] if rows else None

    def _content(self, cursor: duckdb.DuckDBPyConnection, seq: int) -> list[Content]:
        rows = cursor.execute(
            f"SELECT input_chars, said, detail FROM contents WHERE seq = $seq AND {_OWNED}", {**self._owner, "seq": seq}
        ).fetchall()
        return [content_of(*row) for row in rows]

    def _wait(self, cursor: duckdb.DuckDBPyConnection, key: SpanId, contents: Sequence[Content]) -> None:
        for content in contents:
            values = {**self._owner, "trace_id": key[0], "span_id": key[1], "input": content.input}
            values |= {"output": content.output, "detail": content.detail}
            same = "input = $input AND output = $output AND detail = $detail"
            if cursor.execute(f"SELECT 1 FROM late_contents WHERE {_ONE} AND {same}", values).fetchall():
                continue
            cursor.execute(
                "INSERT INTO late_contents VALUES ($project, $tenant, $trace_id, $span_id, $input, $output, $detail)",
                values,
            )
        if self._waiting is not None:
            self._waiting.add(key)

    def forget(self) -> None:
        """What was noted in memory may not have been stored: read it anew."""
        self._waiting = None
