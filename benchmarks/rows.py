"""What every benchmark prints and writes: rows of figure, value, unit, bar, holds and peers measured beside it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One measured figure. ``bar`` is the text of the limit, ``holds`` whether it was met (None: no bar)."""

    figure: str
    value: float
    unit: str
    bar: str = ""
    holds: bool | None = None
    beside: dict[str, float] = field(default_factory=dict)


def write_rows(name: str, rows: list[Row]) -> Path:
    """Print the rows as a table and write them to ``benchmarks/results/NAME.json``."""
    width = max(len(row.figure) for row in rows)
    for row in rows:
        mark = {True: "holds", False: "MISSED", None: ""}[row.holds]
        peers = ", ".join(f"{peer} {value:.4g}" for peer, value in row.beside.items())
        print(f"{row.figure:<{width}}  {row.value:>10.4g} {row.unit:<12} {row.bar:<14} {mark:<7} {peers}".rstrip())
    return save_rows(name, rows)


def save_rows(name: str, rows: list[Row]) -> Path:
    """Write the rows to ``benchmarks/results/NAME.json`` without a word; a long benchmark does so as it goes."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return path


def read_rows(name: str) -> list[Row]:
    """The rows of the last run that was written; none where there is none."""
    path = RESULTS / f"{name}.json"
    return [Row(**row) for row in json.loads(path.read_text())] if path.exists() else []


def merge_rows(name: str, rows: list[Row]) -> Path:
    """Print the rows of a part of a benchmark and put them in place of those of the last whole run, or behind them."""
    fresh = {row.figure: row for row in rows}
    kept = [fresh.pop(row.figure, row) for row in read_rows(name)]
    for row in rows:
        print(row)
    return save_rows(name, [*kept, *fresh.values()])
