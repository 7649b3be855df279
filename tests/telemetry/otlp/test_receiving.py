"""From the receiver through segments to the store: nothing acknowledged is lost or doubled, policies hold on disk."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.telemetry.otlp.making import NOW_NS, as_json, mapper, metrics, traces, wire_span
from tidemill.kernel import InvalidInput, Scope
from tidemill.telemetry import Drainer, SpanQuery, SpanStore, open_span_store
from tidemill.telemetry.frames import FRAME_BYTES
from tidemill.telemetry.otlp import Bounds, Busy, CapturePolicy, Decoder, Points, Receiver, TooLarge
from tidemill.telemetry.reading import read_header

USED = {"gen_ai.token.type": "input"}


class Bench:
    """A receiver, a store and the drainer between them."""

    def __init__(self, root: Path, policy: CapturePolicy, bounds: Bounds | None = None) -> None:
        self.segments = root / "segments"
        self.points = Points()
        self.store: SpanStore = open_span_store(root / "telemetry.duckdb", Scope("shop"))
        decoder = Decoder(mapper(policy=policy), bytes_most=1 << 26, points=self.points)
        self.receiver = Receiver(
            self.segments,
            project="shop",
            tenant="default",
            policy=policy,
            mapper=mapper(policy=policy),
            bounds=bounds,
            waiting_bytes=lambda: self.drainer.waiting_bytes(),  # noqa: PLW0108 - it is made below
            now_ns=lambda: NOW_NS,
        )
        self.drainer = Drainer(self.segments, self.store, mask=str, decoder=decoder, refused=self.receiver.refused)

    def send(self, request: Any, signal: Any = "traces", **how: Any) -> Any:
        body = how.pop("body", None) or request.SerializeToString()
        taken, written = self.receiver.receive(signal, how.pop("encoding", "protobuf"), body, **how)
        written.result(10)
        return taken

    def drain(self) -> Any:
        reports = [self.drainer.drain_once()]
        while reports[-1].more:
            reports.append(self.drainer.drain_once())
        return reports[-1]

    def names(self) -> list[str]:
        return sorted(one.span.name for one in self.store.spans(SpanQuery(limit=10_000)))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, CapturePolicy(of={"quiet": "none"}))
    yield made
    made.receiver.close()
    made.store.close()


def test_a_request_is_stored_once_however_often_and_however_encoded_it_comes(bench: Bench) -> None:
    request = traces(wire_span(1, {"input.value": "hi"}, name="a"), wire_span(2, name="b"))
    bench.send(request)
    bench.send(request, body=gzip.compress(as_json(request)), encoding="json", packing="gzip")
    bench.drain()
    bench.send(request)
    bench.drain()
    assert bench.names() == ["a", "b"]
    (stored,) = bench.store.trace(f"{1:032x}")
    assert stored.content is not None
    assert stored.content.input == "hi"
    bench.receiver.close()
    bench.drain()
    assert not list(bench.segments.rglob("*.seg"))


def test_the_first_of_two_spans_with_the_same_ids_stays_and_the_other_is_counted(bench: Bench) -> None:
    bench.send(traces(wire_span(1, name="first")))
    bench.send(traces(wire_span(1, name="second")))
    assert bench.drain().conflicts == 1
    assert bench.names() == ["first"]


def test_the_sender_is_told_what_was_refused_and_the_store_keeps_why(bench: Bench) -> None:
    taken = bench.send(
        traces(wire_span(1, name="good"), wire_span(2, end_time_unix_nano=5), wire_span(3, trace_id=b""))
    )
    assert taken.rejected == 2
    assert "negative_duration" in taken.message
    assert "invalid_trace_id" in taken.message
    bench.drain()
    assert bench.names() == ["good"]
    assert bench.receiver.totals.rejected == {"negative_duration": 1, "invalid_trace_id": 1}
    assert bench.receiver.totals.records == {"traces": 1}


def test_what_a_policy_forbids_never_reaches_the_disk(bench: Bench) -> None:
    bench.send(traces(wire_span(1, {"input.value": "Ada lives in Kent"}, name="n"), service="quiet"))
    mixed = traces(wire_span(2, {"input.value": "Ada lives in York"}, name="m"), service="quiet")
    mixed.MergeFrom(traces(wire_span(3, {"input.value": "Babbage"}, name="o")))
    bench.send(mixed)
    bench.send(mixed, body=as_json(mixed), encoding="json")
    assert not [path for path in bench.segments.rglob("*.seg") if b"Ada lives" in path.read_bytes()]
    bench.drain()
    assert bench.names() == ["m", "n", "o"]
    assert bench.store.trace(f"{2:032x}")[0].content is None
    content = bench.store.trace(f"{3:032x}")[0].content
    assert content is not None
    assert content.input == "Babbage"


def test_a_backlog_makes_senders_wait_until_it_is_stored(tmp_path: Path) -> None:
    bench = Bench(tmp_path, CapturePolicy(), Bounds(request_bytes_most=1 << 16, backlog_bytes_most=1))
    bench.drain()
    bench.send(traces(wire_span(1)))
    bench.drain()  # notes the new segment
    bench.receiver._backlog = (0.0, 0)
    bench.receiver.admit(100)
    bench.receiver.release(100)
    bench.send(traces(wire_span(2)))
    bench.receiver._backlog = (0.0, 0)
    with pytest.raises(Busy, match="wait to be stored"):
        bench.receiver.admit(100)
    bench.drain()
    bench.receiver._backlog = (0.0, 0)
    bench.receiver.admit(1 << 16)
    bench.receiver.admit(1 << 16)
    with pytest.raises(Busy, match="at once"):
        bench.receiver.admit(1 << 16)
    with pytest.raises(TooLarge):
        bench.receiver.admit((1 << 16) + 1)
    bench.receiver.close()
    bench.store.close()


def test_a_corrupted_byte_costs_its_request_and_is_told(bench: Bench) -> None:
    for number in range(1, 6):
        bench.send(traces(wire_span(number, name=str(number))))
    (segment,) = (bench.segments / "otlp").glob("*.seg")
    _, first = read_header(segment)
    size = (segment.stat().st_size - first) // 5
    with segment.open("r+b") as file:
        for place in (1, 4):  # in the middle, and in the last record
            file.seek(first + place * size + FRAME_BYTES + 40)
            byte = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte[0] ^ 1]))
    report = bench.drain()
    assert report.corrupt == 1
    assert "are lost" in report.problems[0]
    bench.receiver._journal._abandon()  # as if its process had died
    report = bench.drain()
    assert report.corrupt == 1
    assert "its last" in report.problems[0]
    assert bench.names() == ["1", "3", "4"]
    assert len(list(bench.segments.rglob("*.corrupt"))) == 1
    assert bench.drain().problems == ()
    bench.send(traces(wire_span(9, name="9")))
    bench.drain()
    assert "9" in bench.names()


def test_a_torn_last_record_was_never_acknowledged_and_is_said(bench: Bench) -> None:
    bench.send(traces(wire_span(1, name="1")))
    bench.send(traces(wire_span(2, name="2")))
    (segment,) = (bench.segments / "otlp").glob("*.seg")
    bench.receiver._journal._abandon()
    with segment.open("r+b") as file:
        file.truncate(segment.stat().st_size - 10)
    report = bench.drain()
    assert report.torn_bytes > 100
    assert bench.names() == ["1"]
    assert not list(bench.segments.rglob("otlp/*"))


def test_metrics_are_kept_as_the_newest_standing(bench: Bench) -> None:
    bench.send(metrics("gen_ai.client.token.usage", USED, total=10, count=2), "metrics")
    bench.send(metrics("gen_ai.client.token.usage", USED, total=30, count=5), "metrics")
    bench.send(metrics("gen_ai.client.x", total=10, count=2, delta=True), "metrics")
    bench.send(metrics("gen_ai.client.x", total=5, count=1, delta=True), "metrics")
    bench.send(metrics("http.server.duration", total=5, count=1), "metrics")
    bench.drain()
    usage, delta = bench.points.series()
    assert (usage.total, usage.count, usage.labels) == (30, 5, (("gen_ai.token.type", "input"),))
    assert (delta.total, delta.count) == (15, 3)
    assert bench.points.dropped == {"not_genai": 1}


def test_a_request_that_is_only_junk_is_refused_and_noted(bench: Bench) -> None:
    with pytest.raises(InvalidInput):
        bench.send(None, body=b"\xff\xff\xff")
    bench.drain()
    assert bench.receiver.totals.rejected == {"wrong_protobuf": 1}
