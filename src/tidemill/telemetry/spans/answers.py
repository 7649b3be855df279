"""Rows of the builder's statements as the values that a span store returns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from tidemill.telemetry.queries import SeriesQuery, SeriesRow, SeriesRows, SessionRow
from tidemill.telemetry.spans.builder import Value
from tidemill.telemetry.spans.fields import ATTRIBUTE
from tidemill.telemetry.store import SummaryQuery, SummaryRow


def series_rows(query: SeriesQuery, rows: Sequence[Sequence[Any]]) -> SeriesRows:
    """The answer to a series."""
    stepped = query.every_s is not None
    groups = slice(int(stepped), int(stepped) + len(query.group_by))
    names = [measure.name for measure in query.measures]
    found = [
        SeriesRow(
            row[0] if stepped else None,
            {name: _group(name, value) for name, value in zip(query.group_by, row[groups], strict=True)},
            {name: _real(value) for name, value in zip(names, row[groups.stop :], strict=True)},
        )
        for row in rows[: query.limit]
    ]
    return SeriesRows(found, more=len(rows) > query.limit)


def _group(name: str, value: Any) -> Value | None:
    if name.startswith(ATTRIBUTE) and value is not None:
        decoded: Value | None = msgspec.json.decode(value)
        return decoded
    found: Value | None = value
    return found


def _real(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def value_rows(name: str, rows: Sequence[Sequence[Any]]) -> list[tuple[Value, int]]:
    """The values of a field with their counts."""
    return [(value, int(count)) for raw, count in rows if (value := _group(name, raw)) is not None]


def session_rows(rows: Sequence[Sequence[Any]]) -> list[SessionRow]:
    """Sessions."""
    return [
        SessionRow(
            session_id=session,
            started_at_ns=started,
            ended_at_ns=ended,
            traces=int(traces),
            spans=int(spans),
            errors=int(errors),
            input_tokens=int(input_tokens),
            output_tokens=int(output_tokens),
            cost_usd=float(cost_usd),
        )
        for session, started, ended, traces, spans, errors, input_tokens, output_tokens, cost_usd in rows
    ]


def summary_row(query: SummaryQuery, row: Sequence[Any]) -> SummaryRow:
    """One group of a summary."""
    size = len(query.group_by)
    requests, errors, p50_s, p95_s, p99_s, first_chunk_s, input_tokens, output_tokens, cost_usd = row[size:]
    return SummaryRow(
        group=dict(zip(query.group_by, row[:size], strict=True)),
        requests=int(requests),
        errors=int(errors),
        p50_s=_real(p50_s),
        p95_s=_real(p95_s),
        p99_s=_real(p99_s),
        ttfc_p50_s=_real(first_chunk_s),
        input_tokens=int(input_tokens),
        output_tokens=int(output_tokens),
        cost_usd=float(cost_usd),
    )
