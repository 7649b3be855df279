"""Telemetry: what ingest costs beside Phoenix and MLflow, kills, questions over ten million spans, bytes on disk.

CPU is that of all processes of a receiver, from the first byte sent until the last span can be asked for. The peers are
installed below ``.bench`` when they are missing. The whole takes about a quarter of an hour.

Usage: python benchmarks/bench_telemetry.py [--only NAME] [--no-peers]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from rows import Row, merge_rows, write_rows
from telemetry.asking import asking_rows, size_rows
from telemetry.ingest import ingest_rows
from telemetry.killing import killing_rows
from telemetry.living import living_rows
from telemetry.segments import segment_rows


def parts(given: argparse.Namespace) -> dict[str, Callable[[Path], list[Row]]]:
    """The parts of the benchmark by name, in order."""
    return {
        "ingest": lambda folder: ingest_rows(folder, peers=not given.no_peers),
        "kills": killing_rows,
        "sizes": size_rows,
        "questions": asking_rows,
        "living": living_rows,
        "segments": segment_rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", help="a part: ingest, kills, sizes, questions, living, segments")
    parser.add_argument("--no-peers", action="store_true", help="without Phoenix and MLflow")
    given = parser.parse_args()
    rows: list[Row] = []
    for name, part in parts(given).items():
        if given.only and name not in given.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = part(Path(folder))
        rows.extend(found)
        if given.only:
            merge_rows("telemetry", found)
    if not given.only:
        write_rows("telemetry", rows)


if __name__ == "__main__":
    main()
