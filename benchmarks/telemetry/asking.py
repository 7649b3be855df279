"""Questions over one and ten million spans, and the bytes that a span takes while hot and when cold."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb

from rows import Row
from telemetry.payload import HOUR_NS, MODELS, Pieces
from tidemill.kernel import Scope
from tidemill.telemetry import (
    Batch,
    Condition,
    Content,
    Measure,
    SeriesQuery,
    Span,
    SpanQuery,
    SpanStore,
    open_span_store,
)

DAY_NS = 24 * HOUR_NS
DISTINCT = 40_000
BATCH = 5_000
LONG_TRACE = 10_000
COPIES = 10
NEEDLE = "quicksilver estuary ledger"
STEPS = ("invoke_agent", "retrieval", "chat", "execute_tool", "chat")
SERIES = (Measure("duration_s", "p95"), Measure("requests"), Measure("total_tokens", "sum"))


def traces(count: int, begin_ns: int, over_ns: int, *, length: int = len(STEPS), seed: int = 5) -> Iterator[Span]:
    """Spans of traces, in the order of time: a root and steps below it."""
    draw = random.Random(seed)
    for first in range(0, count, length):
        trace_id, root = f"{draw.getrandbits(128):032x}", f"{draw.getrandbits(64):016x}"
        session = f"s{draw.randrange(5000)}"
        at_ns = begin_ns + over_ns * first // count
        for place in range(min(length, count - first)):
            step = STEPS[place % len(STEPS)]
            took_ns = int(draw.lognormvariate(20, 0.6))
            chat = step == "chat"
            model = draw.choice(MODELS) if chat else None
            yield Span(
                trace_id=trace_id, span_id=root if place == 0 else f"{draw.getrandbits(64):016x}",
                parent_span_id=root if place else None, project="bench", tenant="default",
                name="chat" if chat else step, operation=step, started_at_ns=at_ns, ended_at_ns=at_ns + took_ns,
                status="error" if draw.random() < 0.02 else "ok", endpoint="helpdesk", session_id=session,
                release="sha256:" + "ab" * 32, arm="control", provider="openai" if chat else None,
                request_model=model, response_model=model, service="bench",
                input_tokens=draw.randrange(100, 3000) if chat else None,
                output_tokens=draw.randrange(10, 600) if chat else None,
                cost_usd=round(draw.uniform(1e-5, 1e-2), 8) if chat else None,
                attributes={"gen_ai.request.temperature": 0.2, "route": "helpdesk"},
            )  # fmt: skip
            at_ns += took_ns if place else 0


def fill(store: SpanStore, spans: Iterator[Span], pieces: Pieces, characters: int = 512) -> list[str]:
    """Commit spans with contents of two texts; ids of some of their traces."""
    seen: list[str] = []
    batch: list[Span] = []

    def put() -> None:
        contents = {
            (one.trace_id, one.span_id): Content(pieces.take(characters), pieces.take(characters)) for one in batch
        }
        store.commit(Batch(batch, contents), {})
        seen.append(batch[len(batch) // 2].trace_id)

    for span in spans:
        batch.append(span)
        if len(batch) == BATCH:
            put()
            batch.clear()
    if batch:
        put()
    return seen


def timed(question: Callable[[], object], repeats: int = 9) -> float:
    """Median of the milliseconds that a question takes, after one that warms up."""
    question()
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        question()
        taken.append((time.perf_counter() - begun) * 1e3)
    return statistics.median(taken)


def cpu_ms(question: Callable[[], object], repeats: int = 5) -> float:
    """Least CPU milliseconds of all threads; other load on the machine disturbs it less than time on the clock."""
    least = float("inf")
    for _ in range(repeats):
        begun = time.process_time()
        question()
        least = min(least, (time.process_time() - begun) * 1e3)
    return least


def size_rows(folder: Path) -> list[Row]:
    """Bytes a span with 1 KB of text that does not repeat: in the span store, and as a partition of a past day."""
    begin_ns = time.time_ns() // DAY_NS * DAY_NS - 3 * DAY_NS
    path = folder / "sizes" / "telemetry.duckdb"
    store, pieces = open_span_store(path, Scope("bench")), Pieces()
    fill(store, traces(DISTINCT, begin_ns, DAY_NS - HOUR_NS), pieces)
    store.close()
    hot = path.stat().st_size / DISTINCT
    store = open_span_store(path, Scope("bench"))
    compacted = store.compact(time.time_ns() // DAY_NS * DAY_NS)
    store.close()
    cold = compacted.bytes / max(compacted.spans, 1)
    beside = {"texts used again": float(pieces.rounds)}
    return [
        Row("disk per span, 1 KB of distinct text, hot", hot, "bytes", "< 450", hot < 450, beside),
        Row("disk per span, 1 KB of distinct text, cold", cold, "bytes", "< 300", cold < 300),
    ]


def asking_rows(folder: Path, million: int = 1_000_000) -> list[Row]:
    """A million spans through commits; ten million by copying their narrow rows to ten days."""
    path = folder / "asking" / "telemetry.duckdb"
    begin_ns = time.time_ns() // DAY_NS * DAY_NS - 12 * DAY_NS
    store, pieces = open_span_store(path, Scope("bench"), memory_mb=2048), Pieces()
    begun = time.process_time()
    ids = fill(store, traces(million, begin_ns, DAY_NS), pieces)
    loaded_us = (time.process_time() - begun) / million * 1e6
    last = next(iter(traces(1, begin_ns + DAY_NS, HOUR_NS, seed=9)))
    store.commit(Batch([last], {(last.trace_id, last.span_id): Content(f"of the {NEEDLE} itself", "yes")}), {})
    long = list(traces(LONG_TRACE, begin_ns + DAY_NS, HOUR_NS, length=LONG_TRACE, seed=7))
    store.commit(Batch(long), {})
    rows = [Row("commit of a span with 1 KB of text", loaded_us, "CPU us")]
    rows += _series_rows(store, "1 million", 150)
    rows += _text_rows(store)
    store.close()
    _copy(path, COPIES - 1, million + LONG_TRACE + 1)
    begun = time.perf_counter()
    store = open_span_store(path, Scope("bench"), memory_mb=2048)
    rows.append(Row("open the store of 10 million", time.perf_counter() - begun, "s"))
    rows += _series_rows(store, "10 million", 1000)
    rows += _lookup_rows(store, ids, long[0].trace_id)
    store.close()
    return rows


def _copy(path: Path, times: int, rows: int) -> None:
    """Whole days more of the same requests, under ids of their own."""
    with duckdb.connect(str(path), config={"threads": 2, "memory_limit": "4GB"}) as connection:
        for copy in range(1, times + 1):
            connection.execute(
                f"INSERT INTO spans SELECT * REPLACE (seq + {copy * rows} AS seq, "
                f"md5(trace_id || '{copy}') AS trace_id, (hash(trace_id, {copy}) % 2147483647)::INTEGER AS trace_key, "
                f"started_at_ns + {copy * DAY_NS} AS started_at_ns, ended_at_ns + {copy * DAY_NS} AS ended_at_ns) "
                f"FROM spans WHERE seq <= {rows}"
            ).fetchall()
        connection.execute("CHECKPOINT").fetchall()


def _series_rows(store: SpanStore, size: str, most_ms: float) -> list[Row]:
    query = SeriesQuery(
        measures=SERIES, group_by=("request_model",), every_s=3600, where=(Condition("operation", "=", "chat"),)
    )
    took = timed(lambda: store.series(query), 5)
    return [
        Row(f"p95, count and tokens per model and hour, {size} spans", took, "ms", f"< {most_ms:g}", took < most_ms)
    ]


def _text_rows(store: SpanStore) -> list[Row]:
    rare = timed(lambda: store.spans(SpanQuery(text=NEEDLE, limit=20, newest_first=True)), 5)
    common = timed(lambda: store.spans(SpanQuery(text="iterator protocol", limit=20, newest_first=True)), 5)
    absent = timed(lambda: store.spans(SpanQuery(text="zxqv unheard", limit=20, newest_first=True)), 5)
    found = len(store.spans(SpanQuery(text=NEEDLE, limit=20)))
    worst = max(rare, common, absent)
    beside = {"in one span": rare, "in many": common, "in none": absent, "found": found}
    return [Row("full text over 1 million spans", worst, "ms", "< 1000", worst < 1000 and found == 1, beside)]


def _lookup_rows(store: SpanStore, ids: list[str], long: str) -> list[Row]:
    draw = random.Random(8)
    newest = timed(lambda: store.spans(SpanQuery(limit=50, newest_first=True, roots_only=True, with_references=False)))
    trace = timed(lambda: store.trace(draw.choice(ids)))
    large = timed(lambda: store.trace(long), 5)
    size = len(store.trace(long))
    cpu = {
        "newest": cpu_ms(
            lambda: store.spans(SpanQuery(limit=50, newest_first=True, roots_only=True, with_references=False))
        ),
        "trace": cpu_ms(lambda: store.trace(draw.choice(ids))),
        "large": cpu_ms(lambda: store.trace(long)),
    }
    return [
        Row("newest 50 traces of 10 million spans", newest, "ms", "< 20", newest < 20, {"CPU ms": cpu["newest"]}),
        Row("a trace by its id, of 10 million spans", trace, "ms", "< 50", trace < 50, {"CPU ms": cpu["trace"]}),
        Row(f"a trace of {size:,} spans, of 10 million", large, "ms", "< 300", large < 300 and size == LONG_TRACE,
            {"CPU ms": cpu["large"]}),
    ]  # fmt: skip
