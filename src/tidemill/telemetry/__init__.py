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


def open_span_store(path: Path, scope: Scope) -> SpanStore:
    """Open the embedded span store of a scope; only one process may hold it.

    Args:
        path: the DuckDB file, made if missing.
        scope: whose spans are kept and asked for.

    Raises:
        Unavailable: another process holds the file, or it cannot be read.
    """
    from tidemill.telemetry.spans.embedded import DuckDBSpanStore

    return DuckDBSpanStore(path, scope)
