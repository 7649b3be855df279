"""Processes that tests kill: ``python -m tests.telemetry.children write|drain FOLDER …``."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.telemetry.making import CONTENT, intent, passage, span
from tidemill.kernel import Scope
from tidemill.telemetry import Drainer, SegmentWriter, open_span_store


def write(folder: Path, first: int) -> None:
    """Write spans for ever; print the number of each one acknowledged."""
    writer = SegmentWriter(folder, project="shop", tenant="default", max_segment_bytes=20_000)
    number = first
    while True:
        writer.intent(intent(number))
        writer.finished(span(number, references=(passage(number % 7),)), CONTENT)
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
        number += 1


def drain(root: Path) -> None:
    """Drain in small steps until nothing is left to read."""
    with_store = open_span_store(root / "telemetry.duckdb", Scope("shop"))
    drainer = Drainer(root / "segments", with_store, mask=str)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while drainer.drain_once(limit=40).more:
        pass
    with_store.close()


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        drain(Path(sys.argv[2]))
