"""Small charts and readable numbers for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final

_LEVELS: Final = "▁▂▃▄▅▆▇█"
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
_ASCII_LEVELS: Final = ".:-=+*#@"
_MINUTE_S: Final = 60
_DAY_S: Final = 86_400


def sparkline(values: Sequence[float | None], *, most: float, columns: int, ascii_only: bool = False) -> str:
    """A line of blocks, one a value; a gap where there is none.

    Args:
        values: in the order of time.
        most: the value of a full block; zero is the floor.
        columns: width at most; with more values each column shows the greatest of its share.
        ascii_only: for terminals without block characters.
    """
    levels = _ASCII_LEVELS if ascii_only else _LEVELS
    shown = [_greatest(part) for part in _shares(values, columns)]
    line = ""
    for value in shown:
        if value is None:
            line += " "
        else:
            share = value / most if most > 0 else 0.0
            line += levels[min(len(levels) - 1, max(0, math.ceil(share * len(levels)) - 1))]
    return line


def bar(value: float | None, *, most: float, columns: int, ascii_only: bool = False) -> str:
    """A horizontal bar, an eighth of a column exact, filled with spaces to its full width."""
    share = 0.0 if value is None or most <= 0 else min(1.0, max(0.0, value / most))
    if ascii_only:
        return ("#" * round(share * columns)).ljust(columns)
    eighths = round(share * columns * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(columns)


def seconds(value: float | None) -> str:
    """A duration: ``230 ms``, ``1.25 s``, ``3 min 20 s``."""
    if value is None:
        return "-"
    if value < 0.0005:
        return f"{value * 1e6:.0f} µs"
    if value < 0.9995:
        return f"{value * 1000:.3g} ms" if value < 0.0995 else f"{value * 1000:.0f} ms"
    if value < _MINUTE_S:
        return f"{value:.2f} s"
    if value < 60 * _MINUTE_S:
        return f"{int(value // 60)} min {value % 60:.0f} s"
    return f"{value / 3600:.1f} h" if value < 2 * _DAY_S else f"{value / _DAY_S:.1f} d"


def usd(value: float | None) -> str:
    """An amount of money with as many digits as say something."""
    if value is None:
        return "-"
    if value == 0:
        return "$0"
    if abs(value) < 0.01:
        return f"${value:.2g}" if abs(value) >= 1e-4 else f"${value:.1e}"
    return f"${value:,.4f}" if abs(value) < 1 else f"${value:,.2f}"


def share(value: float | None) -> str:
    """A share in per cent."""
    return "-" if value is None else f"{value * 100:.3g} %"


def count(value: float | None) -> str:
    """A count: ``12,345``, ``1.2 M``."""
    if value is None:
        return "-"
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.3g}"


def number(measure: str, value: float | None) -> str:
    """A value of a measure, by what the measure's name says it is."""
    if measure.endswith("_s"):
        return seconds(value)
    if measure.endswith("_usd"):
        return usd(value)
    if measure.endswith("error_share"):
        return share(value)
    if measure.endswith(("tokens", "requests", "errors")):
        return count(value)
    return "-" if value is None else f"{value:.4g}"


def instant(at_ns: int | None, *, day: bool = True) -> str:
    """A moment in UTC; with its day or as a time of day."""
    if at_ns is None:
        return "-"
    try:
        at = datetime.fromtimestamp(at_ns / 1e9, UTC)
    except (OverflowError, OSError, ValueError):
        return str(at_ns)  # a clock that was wrong by millennia
    return at.strftime("%Y-%m-%d %H:%M:%S" if day else "%H:%M:%S")


def step_name(at_ns: int, every_s: float) -> str:
    """A step's start, no finer than the step."""
    text = instant(at_ns)
    return text[:10] if every_s >= _DAY_S else text[:16] if every_s >= _MINUTE_S else text


def _shares(values: Sequence[float | None], columns: int) -> list[Sequence[float | None]]:
    if len(values) <= columns:
        return [[value] for value in values]
    edges = [round(place * len(values) / columns) for place in range(columns + 1)]
    return [values[first:last] for first, last in pairwise(edges)]


def _greatest(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return max(present) if present else None
