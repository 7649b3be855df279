"""What a span costs from the socket until it can be asked for, beside Phoenix and MLflow in the same run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from rows import Row
from telemetry.payload import requests_of
from telemetry.peers import start_mlflow, start_phoenix
from telemetry.rig import STORED_WITHIN_S, Bench, Receiver

BATCH = 500
OURS, MLFLOW, PHOENIX = 100_000, 5_000, 5_000
WAITING = (429, 503)


@dataclass(frozen=True)
class Taken:
    """What one receiver did with what it was sent."""

    spans: int
    stored: int
    cpu_s: float
    acknowledged_s: float
    queryable_s: float
    bytes_a_span: float
    refused: int

    @property
    def per_cpu_s(self) -> float:
        return self.stored / max(self.cpu_s, 1e-9)


def send_all(receiver: Receiver, spans: int) -> Taken:
    """Send spans in requests of 500, wait until they can be asked for, and count its CPU seconds meanwhile."""
    bodies = list(requests_of(spans, BATCH, start_ns=time.time_ns() - 26 * 3600 * 10**9, seed=spans))
    before, cpu, begun = receiver.stored(), receiver.cpu_s(), time.monotonic()
    refused = 0
    for body in bodies:
        while (status := receiver.post(body)) in WAITING:
            refused += 1
            time.sleep(0.2)
        if status != 200:
            raise SystemExit(f"{receiver.name} answered {status}")
    acknowledged_s = time.monotonic() - begun
    stored, moved = 0, time.monotonic()
    while time.monotonic() - begun < STORED_WITHIN_S and time.monotonic() - moved < 60:
        found = receiver.stored() - before
        if found > stored:
            stored, moved = found, time.monotonic()
        if stored >= spans:
            break
        time.sleep(0.25)
    queryable_s = time.monotonic() - begun
    cpu_s = receiver.cpu_s() - cpu
    return Taken(spans, stored, cpu_s, acknowledged_s, queryable_s, receiver.disk_bytes() / max(stored, 1), refused)


def ingest_rows(folder: Path, *, peers: bool = True) -> list[Row]:
    """The ratio to each peer needs both in the same run; without peers their rows are left out."""
    found: dict[str, Taken] = {}
    with Bench(folder) as bench:
        receiver = bench.tidemill()
        send_all(receiver, 5_000)  # libraries that are loaded with the first spans
        found["tidemill"] = send_all(receiver, OURS)
        receiver.stop()
        for name, start, spans in (("mlflow", start_mlflow, MLFLOW), ("phoenix", start_phoenix, PHOENIX)):
            if peers:
                receiver = start(bench)
                send_all(receiver, BATCH)
                found[name] = send_all(receiver, spans)
                receiver.stop()
    return list(_rows(found))


def _rows(found: dict[str, Taken]) -> list[Row]:
    ours = found["tidemill"]
    beside = {name: round(one.per_cpu_s, 1) for name, one in found.items() if name != "tidemill"}
    rate = ours.per_cpu_s
    rows = [
        Row("OTLP ingest until queryable", rate, "spans/CPU-s", ">= 5000", rate >= 5000, beside),
        Row("spans acknowledged and not queryable at the end", ours.spans - ours.stored, "spans", "0",
            ours.spans == ours.stored, {name: one.spans - one.stored for name, one in found.items() if name in beside}),
    ]  # fmt: skip
    for name, least in (("mlflow", 12), ("phoenix", 40)):
        if name in found:
            ratio = rate / found[name].per_cpu_s
            rows.append(Row(f"ingest over {name}'s", ratio, "ratio", f">= {least}", ratio >= least))
    wall = {name: one.spans / one.queryable_s for name, one in found.items() if name in beside}
    rows.append(Row("OTLP ingest, one sender", ours.spans / ours.queryable_s, "spans/s", beside=wall))
    disk = {name: one.bytes_a_span for name, one in found.items() if name in beside}
    rows.append(Row("disk per span right after ingest, 1.1 KB each", ours.bytes_a_span, "bytes", beside=disk))
    return rows
