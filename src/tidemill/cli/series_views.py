"""Series and comparisons as tables and small charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tidemill.cli.charts import bar, count, number, seconds, share, sparkline, step_name, usd
from tidemill.cli.output import plain

_GroupKey: TypeAlias = tuple[Any, ...]

_MOST_GROUPS: Final = 40
_MOST_LABEL: Final = 32
_BAR_COLUMNS: Final = 16
_MOST_WIDE: Final = 4
_COLOURS: Final = ("cyan", "magenta", "green", "yellow", "blue", "red")
_COUNTED: Final = ("requests", "errors")


def over_time(
    series: Mapping[str, Any], names: Mapping[str, str], *, width: int, ascii_only: bool = False
) -> RenderableType:
    """Each measure as one chart a group, all groups on one scale from zero.

    Args:
        series: what the REST API says, with steps.
        names: references of releases by their digests.
        width: columns of the terminal.
        ascii_only: for terminals without block characters.
    """
    step_ns = int(series["every_s"] * 1e9)
    starts = [row["start_ns"] for row in series["rows"]]
    steps = (max(starts) - min(starts)) // step_ns + 1
    groups = _groups(series["rows"])
    labels = {key: _label(key, names) for key in groups}
    label_columns = max(len(label) for label in labels.values())
    parts: list[RenderableType] = []
    for measure in series["measures"]:
        lines = {key: _filled(rows, measure, min(starts), step_ns, steps) for key, rows in groups.items()}
        parts += _chart(measure, lines, labels, label_columns, width, ascii_only=ascii_only)
    room = _chart_columns(width, label_columns)
    columns = min(steps * _wide(steps, room), room)
    first, last = (step_name(at, series["every_s"]) for at in (min(starts), max(starts)))
    axis = first + (last.rjust(columns - len(first)) if columns > len(first) + len(last) + 1 else f" … {last}")
    parts.append(Text(" " * (label_columns + 2) + axis + " UTC", "dim", no_wrap=True))
    if steps > columns:
        parts.append(Text(f"{steps:,} steps in {columns} columns: each shows its greatest value.", "dim"))
    if len(groups) > _MOST_GROUPS:
        parts.append(Text(f"… and {len(groups) - _MOST_GROUPS} groups more; all of them with --json", "dim"))
    return Group(*parts)


def side_by_side(series: Mapping[str, Any], names: Mapping[str, str], *, width: int) -> RenderableType:
    """One row a group with all its measures, the first of them drawn as a bar."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    by, measures, rows = series["by"], series["measures"], series["rows"]
    for name in by:
        table.add_column(name, overflow="fold")
    for name in measures:
        table.add_column(name, justify="right", no_wrap=True)
    drawn = bool(by) and width >= 80
    if drawn:
        table.add_column(measures[0], no_wrap=True)
    values = [row["values"][measures[0]] or 0.0 for row in rows]
    for row, value in zip(rows, values, strict=True):
        cells: list[str | Text] = [_value(row["group"][name], names) for name in by]
        cells += [number(name, row["values"][name]) for name in measures]
        if drawn:
            cells.append(Text(bar(value, most=max(values), columns=_BAR_COLUMNS), "cyan"))
        table.add_row(*cells)
    return table


def step_table(series: Mapping[str, Any], names: Mapping[str, str]) -> RenderableType:
    """The numbers of every step."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("from (UTC)", no_wrap=True)
    for name in series["by"]:
        table.add_column(name, overflow="fold")
    for name in series["measures"]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in series["rows"]:
        table.add_row(
            step_name(row["start_ns"], series["every_s"]),
            *(_value(row["group"][name], names) for name in series["by"]),
            *(number(name, row["values"][name]) for name in series["measures"]),
        )
    return table


def comparison_table(found: Mapping[str, Any], names: Mapping[str, str]) -> RenderableType:
    """Two releases side by side, with the change of each figure."""
    first, second = found["releases"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for one in (first, second):
        table.add_column(plain(names.get(one["release"], one["release"])), justify="right", overflow="fold")
    table.add_column("change", justify="right", no_wrap=True)
    rows = (
        ("requests", "requests", count),
        ("errors", "errors", count),
        ("share of errors", "error_share", share),
        ("time, median", "p50_duration_s", seconds),
        ("time, p95", "p95_duration_s", seconds),
        ("first token, median", "p50_time_to_first_chunk_s", seconds),
        ("first token, p95", "p95_time_to_first_chunk_s", seconds),
        ("tokens in, mean", "mean_input_tokens", count),
        ("tokens out, mean", "mean_output_tokens", count),
        ("cost, mean", "mean_cost_usd", usd),
        ("cost, sum", "sum_cost_usd", usd),
    )
    for title, name, shown in rows:
        values = [one["values"].get(name) for one in (first, second)]
        if name != "requests" and all(value is None for value in values):
            continue
        if name == "error_share":
            cells = [_with_interval(one["error_share"], share) for one in (first, second)]
            table.add_row(title, *cells, _apart(first["error_share"], second["error_share"]))
        else:
            table.add_row(title, *(shown(value) for value in values), _change(*values))
    for name in sorted({*first["scores"], *second["scores"]}):
        scores = [one["scores"].get(name) for one in (first, second)]
        cells = [_score(one) for one in scores]
        table.add_row(f"score {plain(name)}", *cells, _apart(*scores))
    return table


def _chart(
    measure: str,
    lines: Mapping[_GroupKey, Sequence[float | None]],
    labels: Mapping[_GroupKey, str],
    label_columns: int,
    width: int,
    *,
    ascii_only: bool,
) -> list[RenderableType]:
    present = [value for values in lines.values() for value in values if value is not None]
    most = max(present, default=0.0)
    parts: list[RenderableType] = [Text.assemble((measure, "bold"), (f"  up to {number(measure, most)}", "dim"))]
    columns = _chart_columns(width, label_columns)
    wide = _wide(max(len(values) for values in lines.values()), columns)
    for place, (key, values) in enumerate(list(lines.items())[:_MOST_GROUPS]):
        known = [value for value in values if value is not None]
        line = Text(labels[key].ljust(label_columns) + "  ", no_wrap=True, overflow="crop")
        steps = [value for value in values for _ in range(wide)]
        drawn = sparkline(steps, most=most, columns=columns, ascii_only=ascii_only)
        line.append(drawn, _COLOURS[place % len(_COLOURS)])
        low, high = (number(measure, value) for value in (min(known, default=None), max(known, default=None)))
        line.append(f"  {low} – {high}" if low != high else f"  {high}", "dim")
        parts.append(line)
    parts.append(Text())
    return parts


def _chart_columns(width: int, label_columns: int) -> int:
    return max(8, width - label_columns - 26)  # the range stands on the right


def _wide(steps: int, columns: int) -> int:
    """Columns of a step: a few steps are drawn wider."""
    return max(1, min(_MOST_WIDE, columns // steps))


def _groups(rows: Sequence[Mapping[str, Any]]) -> dict[_GroupKey, list[Mapping[str, Any]]]:
    found: dict[_GroupKey, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row["group"].values()), []).append(row)
    return found


def _filled(
    rows: Sequence[Mapping[str, Any]], measure: str, start_ns: int, step_ns: int, steps: int
) -> list[float | None]:
    """A value for every step. Where a group has no row nothing was counted, and of nothing there is no percentile."""
    values: list[float | None] = [0.0 if measure in _COUNTED or measure.startswith("sum_") else None] * steps
    for row in rows:
        values[(row["start_ns"] - start_ns) // step_ns] = row["values"][measure]
    return values


def _label(key: _GroupKey, names: Mapping[str, str]) -> str:
    text = " · ".join(_value(value, names) for value in key) or "all"
    return text if len(text) <= _MOST_LABEL else text[: _MOST_LABEL - 1] + "…"


def _value(value: Any, names: Mapping[str, str]) -> str:
    return plain(names.get(value, value)) if isinstance(value, str) else plain(value)


def _with_interval(interval: Mapping[str, Any] | None, shown: Any) -> str:
    if interval is None:
        return "-"
    if interval["low"] is None:
        return str(shown(interval["mean"]))
    return f"{shown(interval['mean'])} [{shown(interval['low'])}, {shown(interval['high'])}]"


def _score(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return "-"
    parts = [f"{_with_interval(score, lambda value: f'{value:.3g}')} of {score['n']:,}"] if "mean" in score else []
    parts += [f"{plain(label)} {times:,}" for label, times in score["labels"].items()]
    return ", ".join(parts)


def _change(before: float | None, after: float | None) -> str:
    return "-" if before is None or after is None or before == 0 else f"{(after / before - 1) * 100:+.3g} %"


def _apart(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> Text:
    """Whether two intervals have a value in common: if they have none, chance alone is no good explanation."""
    if not first or not second or first.get("low") is None or second.get("low") is None:
        return Text("-", "dim")
    if second["low"] > first["high"] or second["high"] < first["low"]:
        return Text("apart", "bold")
    return Text("overlap", "dim")
