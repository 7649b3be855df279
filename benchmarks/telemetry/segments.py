"""What a process pays to write a record, what draining costs, and finding traces by what they used."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from rows import Row
from tidemill.kernel import Scope
from tidemill.safety import mask_pii
from tidemill.telemetry import (
    Batch,
    Content,
    Drainer,
    Intent,
    Reference,
    SegmentWriter,
    Span,
    SpanQuery,
    SpanStore,
    SummaryQuery,
    open_span_store,
)

PASSAGES = 5000
TEXT = "users reset the account from the settings page after an order was shipped and the refund policy applies"
WORDS = TEXT.split()


def make_span(draw: random.Random, number: int, references: int = 5) -> Span:
    start = 1_700_000_000_000_000_000 + number * 10_000_000
    return Span(
        trace_id=f"{draw.getrandbits(128):032x}", span_id=f"{draw.getrandbits(64):016x}", project="bench",
        tenant="default", name="chat helpdesk", operation="chat", started_at_ns=start,
        ended_at_ns=start + int(draw.lognormvariate(20, 0.5)),
        endpoint="helpdesk", release="sha256:" + "a" * 64, assigned_release="sha256:" + "a" * 64, arm="control",
        session_id=f"s{number % 5000}", request_model="helpdesk", input_tokens=200, output_tokens=24, stream=True,
        time_to_first_chunk_s=0.1, finish_reasons=("stop",), attributes={"route": "helpdesk", "worker": 1},
        references=tuple(
            Reference("passage", f"psg_{draw.randrange(PASSAGES):024x}", "retrieved", rank + 1, draw.random())
            for rank in range(references)
        ),
    )  # fmt: skip


def make_content(draw: random.Random) -> Content:
    said = " ".join(draw.choices(WORDS, k=120))
    return Content('[{"role":"user","content":"' + said + '"}]', " ".join(draw.choices(WORDS, k=40)))


def writing_and_draining(folder: Path, count: int = 20_000) -> list[Row]:
    draw = random.Random(1)
    spans = [make_span(draw, number) for number in range(count)]
    contents = [make_content(draw) for _ in range(64)]
    intents = [Intent(trace_id=s.trace_id, span_id=s.span_id, started_at_ns=s.started_at_ns) for s in spans]
    with SegmentWriter(folder / "segments" / "gateway-0", project="bench", tenant="default") as writer:
        start = time.process_time()
        for number, one in enumerate(spans):
            writer.finished(one, contents[number & 63])
        finished_us = (time.process_time() - start) / count * 1e6
        start = time.process_time()
        for one in intents:
            writer.intent(one)
        intent_us = (time.process_time() - start) / count * 1e6
        writer._open_intents.clear()  # they had finished before
    store = open_span_store(folder / "drained.duckdb", Scope("bench"))
    drainer = Drainer(folder / "segments", store, mask=mask_pii)
    start = time.process_time()
    while drainer.drain_once().more:
        pass
    rate = count / (time.process_time() - start)
    store.close()
    return [
        Row("finished record written, 1 KB of content", finished_us, "CPU us", "<= 30", finished_us <= 30),
        Row("intent written", intent_us, "CPU us", "<= 15", intent_us <= 15),
        Row("spans drained, masked and stored", rate, "per CPU s", ">= 5000", rate >= 5000),
    ]


def timed(question: Callable[[], object], repeats: int = 15) -> float:
    question()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        question()
        taken.append((time.perf_counter() - start) * 1e3)
    return statistics.median(taken)


def fill(store: SpanStore, traces: int) -> list[Span]:
    draw = random.Random(2)
    sample: list[Span] = []
    for start in range(0, traces, 10_000):
        spans = [make_span(draw, number) for number in range(start, min(start + 10_000, traces))]
        store.commit(Batch(spans), {"bench": start})
        sample += draw.sample(spans, 20)
    return sample


def asking(folder: Path, traces: int) -> list[Row]:
    store = open_span_store(folder / "large.duckdb", Scope("bench"))
    sample = fill(store, traces)
    draw = random.Random(3)
    refs = [f"psg_{draw.randrange(PASSAGES):024x}" for _ in range(15)]
    size = f"{traces:,} traces"
    one = timed(lambda: store.references([draw.choice(sample).trace_id]))
    some = timed(lambda: store.references([entry.trace_id for entry in sample[:50]]))
    using = timed(lambda: store.traces_using([draw.choice(refs)]))
    many = timed(lambda: store.traces_using(refs))
    trace = timed(lambda: store.trace(draw.choice(sample).trace_id))
    page = timed(lambda: store.spans(SpanQuery(limit=50, newest_first=True)))
    summary = timed(lambda: store.summary(SummaryQuery(group_by=("release", "arm"))))
    store.close()
    return [
        Row(f"references of one trace, {size}", one, "ms", "<= 20", one <= 20),
        Row("references of 50 traces", some, "ms", "<= 20", some <= 20),
        Row("traces that used one passage", using, "ms", "<= 300", using <= 300),
        Row("traces that used any of 15 passages", many, "ms", "<= 300", many <= 300),
        Row("one trace whole", trace, "ms"),
        Row("newest 50 spans", page, "ms"),
        Row("summary by release and arm, exact quantiles", summary, "ms"),
    ]


def segment_rows(folder: Path, traces: int = 200_000) -> list[Row]:
    """Writing and draining, then the references of many traces."""
    return writing_and_draining(folder) + asking(folder, traces)
