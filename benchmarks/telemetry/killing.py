"""SIGKILL at random moments while spans arrive: what was acknowledged is there, once, and the server is back soon."""

from __future__ import annotations

import random
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from rows import Row
from telemetry.payload import requests_of
from telemetry.rig import Bench, Receiver

KILLS = 20
BATCH = 100
ENOUGH = 400_000


@dataclass
class Sender:
    """Sends one request after the other until told to stop, and remembers which were acknowledged."""

    bodies: list[bytes]
    at: int = 0
    acknowledged: set[int] = field(default_factory=set)
    begun: set[int] = field(default_factory=set)
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self, receiver: Receiver) -> None:
        while not self.stopping.is_set() and self.at < len(self.bodies):
            self.begun.add(self.at)
            status = receiver.post(self.bodies[self.at])
            if status == 200:
                self.acknowledged.add(self.at)
                self.at += 1
            elif status == 0:
                return  # killed; the same request is sent again to the next server, as an exporter would
            else:
                time.sleep(0.05)


def killing_rows(folder: Path) -> list[Row]:
    """Every acknowledged span is looked for in the store after the last start, and the whole is counted."""
    draw = random.Random(11)
    sender = Sender(list(requests_of(ENOUGH, BATCH, start_ns=time.time_ns() - 3600 * 10**9, text=100)))
    starts: list[float] = []
    with Bench(folder) as bench:
        for _ in range(KILLS):
            begun = time.monotonic()
            receiver = bench.tidemill()
            starts.append(time.monotonic() - begun)
            sender.stopping.clear()
            sending = threading.Thread(target=sender.run, args=(receiver,))
            sending.start()
            time.sleep(draw.uniform(0.3, 2.5))
            receiver.process.send_signal(signal.SIGKILL)
            receiver.process.wait()
            sender.stopping.set()
            sending.join()
        receiver = bench.tidemill()
        least, most = len(sender.acknowledged) * BATCH, len(sender.begun) * BATCH
        end = time.monotonic() + 120
        while (stored := receiver.stored()) < least and time.monotonic() < end:
            time.sleep(0.5)
        time.sleep(2)
        stored = receiver.stored()
        receiver.stop()
        lost, twice = _compare(folder / "tidemill", sender)
    return [
        Row(f"acknowledged spans lost, {KILLS} SIGKILLs", lost, "spans", "0", lost == 0,
            {"acknowledged": least, "sent": most}),
        Row("spans stored twice", twice, "spans", "0", twice == 0, {"stored": stored}),
        Row("longest start after a kill until it answers", max(starts[1:]), "s", "< 5", max(starts[1:]) < 5),
    ]  # fmt: skip


def _compare(project: Path, sender: Sender) -> tuple[int, int]:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    from tidemill.kernel import Scope
    from tidemill.telemetry import SpanQuery, open_span_store

    acknowledged = set()
    for place in sender.acknowledged:
        request = ExportTraceServiceRequest.FromString(sender.bodies[place])
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                acknowledged |= {(span.trace_id.hex(), span.span_id.hex()) for span in scope.spans}
    store = open_span_store(project / ".tidemill" / "telemetry.duckdb", Scope("bench"))
    try:
        query = SpanQuery(limit=10_000_000, with_references=False)
        found = [(one.span.trace_id, one.span.span_id) for one in store.spans(query)]
    finally:
        store.close()
    return len(acknowledged - set(found)), len(found) - len(set(found))
