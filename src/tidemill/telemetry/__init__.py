"""What is happening in production: the segment log that processes append to, and the span store it is drained into.

Light: importing this package or its ``records`` and ``segments`` loads no database. ``open_span_store`` loads DuckDB
when called.
"""

from __future__ import annotations

from pathlib import Path

from tidemill.kernel import Scope
from tidemill.telemetry.drainer import Drainer, DrainReport
from tidemill.telemetry.frames import End
from tidemill.telemetry.queries import (
    Condition,
    Erased,
    Erasure,
    Measure,
    SeriesQuery,
    SeriesRow,
    SeriesRows,
    SessionQuery,
    SessionRow,
)
from tidemill.telemetry.reading import Corrupt, Finished, read_segment
from tidemill.telemetry.records import Capture, Content, Intent, Reference, Score, Span, Status
from tidemill.telemetry.segments import SegmentWriter
from tidemill.telemetry.spans.fields import FIELDS, MEASURES
from tidemill.telemetry.store import (
    ENTRY_ATTRIBUTE,
    FAILED_STATUSES,
    Batch,
    CommitReport,
    Compacted,
    ScoreQuery,
    SetAside,
    SetAsideReport,
    SpanQuery,
    SpanStore,
    StoredScore,
    StoredSpan,
    SummaryQuery,
    SummaryRow,
)

__all__ = [
    "ENTRY_ATTRIBUTE",
    "FAILED_STATUSES",
    "FIELDS",
    "MEASURES",
    "Batch",
    "Capture",
    "CommitReport",
    "Compacted",
    "Condition",
    "Content",
    "Corrupt",
    "DrainReport",
    "Drainer",
    "End",
    "Erased",
    "Erasure",
    "Finished",
    "Intent",
    "Measure",
    "Reference",
    "Score",
    "ScoreQuery",
    "SegmentWriter",
    "SeriesQuery",
    "SeriesRow",
    "SeriesRows",
    "SessionQuery",
    "SessionRow",
    "SetAside",
    "SetAsideReport",
    "Span",
    "SpanQuery",
    "SpanStore",
    "Status",
    "StoredScore",
    "StoredSpan",
    "SummaryQuery",
    "SummaryRow",
    "open_span_store",
    "read_segment",
]


def open_span_store(
    path: Path, scope: Scope, *, url: str | None = None, memory_mb: int = 512, cold: str | None = None
) -> SpanStore:
    """Open the span store of a scope; only one process may hold an embedded one.

    Args:
        path: the DuckDB file, made if missing.
        scope: whose spans are kept and asked for.
        url: a ``clickhouse://`` URL, of the server to be used in place of the file (``telemetry.store``).
        memory_mb: memory of the embedded store (``telemetry.memory_mb``).
        cold: folder or ``s3://bucket/prefix`` of partitions (``telemetry.retention.cold``); ``None`` for beside the
            file.

    Raises:
        Unavailable: another process holds the file, or it cannot be read; or the server does not answer.
        InvalidInput: the URL is none of ClickHouse.
    """
    if url is not None:
        from tidemill.telemetry.spans.clickhouse import open_clickhouse

        return open_clickhouse(url, scope)
    from tidemill.telemetry.spans.embedded import DuckDBSpanStore

    return DuckDBSpanStore(path, scope, memory_mb=memory_mb, cold=cold)
