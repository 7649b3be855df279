"""Plots as inline SVG: pure functions from values to text, without a plotting library.

Colours come from the page by class: ``s1``, ``s2``, … are series, ``axis``, ``grid``, ``muted``, ``strong`` the rest.
Every series also has its own marker or dash, so that colour is never the only signal. All text is escaped.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_SERIES: Final = 7
_DASHES: Final = ("", "6 3", "2 3", "9 3 2 3", "4 2", "1 2")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_SMALLEST: Final = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """A value with its interval, a lane of ``dot_plot``.

    Args:
        label: names the lane.
        value: where the dot is.
        low, high: ends of the interval.
        note: shown when pointed at, besides the numbers.
        series: which series it belongs to, from 0; gives colour and marker.
    """

    label: str
    value: float
    low: float
    high: float
    note: str = ""
    series: int = 0


@dataclass(frozen=True, slots=True)
class Line:
    """A line of ``log_chart``: its name, its (x, y) points, y > 0, and its series from 0."""

    label: str
    points: Sequence[tuple[float, float]]
    series: int = 0


@dataclass(frozen=True, slots=True)
class Threshold:
    """A horizontal line of ``log_chart`` at ``value``, with its label."""

    value: float
    label: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A marked place of ``log_chart``: a vertical line at ``x`` with a label."""

    x: float
    label: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A lane of ``quantile_bars``: name, (name, value) marks in growing order, single points, and series from 0."""

    label: str
    marks: Sequence[tuple[str, float]]
    points: Sequence[tuple[str, float]] = ()
    series: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A box of ``layered_graph``.

    Args:
        key: what edges name it by.
        kind: the small line.
        label: the large line, cut to fit; whole when pointed at.
        note: shown when pointed at, besides the label.
        strong: stands out, with the edges between strong boxes.
    """

    key: str
    kind: str
    label: str
    note: str = ""
    strong: bool = False


def safe(value: object) -> str:
    """Text for HTML and SVG: escaped, with control and direction characters shown instead of obeyed."""
    visible = _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", str(value))
    return html.escape(visible, quote=True)


def dot_plot(dots: Sequence[Dot], *, title: str, low: float = 0.0, high: float = 1.0) -> str:
    """Dots with interval bars, one lane each, on one axis.

    Args:
        dots: the lanes, from top to bottom.
        title: what is plotted, for those who hear the page.
        low: left end of the axis.
        high: right end of the axis.
    """
    width, left, right, lane = 340.0, 74.0, 42.0, 28.0
    height = lane * len(dots) + 30

    def x(value: float) -> float:
        share = (min(high, max(low, value)) - low) / (high - low)
        return left + share * (width - left - right)

    parts = []
    for step in range(5):
        value = low + (high - low) * step / 4
        parts.append(_rule(x(value), 6, x(value), height - 22, "grid"))
        parts.append(_text(x(value), height - 8, f"{value:g}", "tick", "middle"))
    for place, dot in enumerate(dots):
        y, name = 6 + lane * (place + 0.5), _series(dot.series)
        told = f"{dot.label}: {dot.value:.3f}, 95 % interval {dot.low:.3f} to {dot.high:.3f}"
        note = f". {dot.note}" if dot.note else ""
        parts.append(
            f'<g class="{name}"><title>{safe(told + note)}</title>'
            f'<rect class="hover" x="0" y="{y - lane / 2:.1f}" width="{width:g}" height="{lane:g}"/>'
            + _text(0, y + 4, dot.label, "lane")
            + _rule(x(dot.low), y, x(dot.high), y, "whisker")
            + _rule(x(dot.low), y - 4, x(dot.low), y + 4, "whisker")
            + _rule(x(dot.high), y - 4, x(dot.high), y + 4, "whisker")
            + _marker(dot.series, x(dot.value), y)
            + _text(width, y + 4, f"{dot.value:.2f}", "value", "end")
            + "</g>"
        )
    said = "; ".join(f"{dot.label} {dot.value:.2f} ({dot.low:.2f} to {dot.high:.2f})" for dot in dots)
    return _svg(width, height, f"{title}: {said}", parts)


def log_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    thresholds: Sequence[Threshold] = (),
    mark: Mark | None = None,
) -> str:
    """Lines on a logarithmic axis, named at their ends, with thresholds and one marked place.

    Args:
        lines: values below 0.0001 are drawn there.
        title: what is plotted, for those who hear the page.
        x_label: what the horizontal axis counts.
        thresholds: dashed horizontal lines.
        mark: the place that matters.
    """
    width, height, left, right, top, bottom = 430.0, 250.0, 40.0, 104.0, 14.0, 36.0
    values = [y for line in lines for _, y in line.points] + [one.value for one in thresholds] + [0.5, 20.0]
    lowest = math.floor(math.log10(max(_SMALLEST, min(values))))
    highest = max(lowest + 1.0, math.log10(max(values)) + 0.12)
    last = max((x for line in lines for x, _ in line.points), default=1.0) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        share = (math.log10(max(_SMALLEST, y)) - lowest) / (highest - lowest)
        return left + x / last * (width - left - right), height - bottom - share * (height - top - bottom)

    parts = []
    step = max(1, math.ceil((highest - lowest) / 6))
    for power in range(lowest, math.floor(highest) + 1, step):
        y = at(0, 10.0**power)[1]
        parts += [_rule(left, y, width - right, y, "grid"), _text(left - 6, y + 4, f"{10.0**power:g}", "tick", "end")]
    for value in _ticks(last):
        x = at(value, 1.0)[0]
        parts.append(_text(x, height - bottom + 15, f"{value:g}", "tick", "middle"))
    parts.append(_text((left + width - right) / 2, height - 3, x_label, "tick", "middle"))
    parts.append(_rule(left, height - bottom, width - right, height - bottom, "axis"))
    for threshold in thresholds:
        y = at(0, threshold.value)[1]
        parts.append(_rule(left, y, width - right, y, "threshold"))
        parts.append(_text(left + 4, y - 5, threshold.label, "threshold-label"))
    if mark is not None:
        x = at(mark.x, 1.0)[0]
        parts.append(f"<g><title>{safe(mark.label)}</title>{_rule(x, top, x, height - bottom, 'mark')}</g>")
        parts.append(_text(x - 5, height - bottom - 6, mark.label, "mark-label", "end"))
    parts += _lines(lines, at, width - right + 6, (top, height - bottom))
    said = ", ".join(f"{line.label} ends at {line.points[-1][1]:.3g}" for line in lines if line.points)
    limits = ", ".join(f"{one.label}: {one.value:g}" for one in thresholds)
    return _svg(width, height, f"{title}. {said}. {limits}", parts)


def quantile_bars(bars: Sequence[Bar], *, title: str, unit: str) -> str:
    """Bars of which each mark is an end, thinner from mark to mark, with single points as diamonds.

    Args:
        bars: the lanes, from top to bottom.
        title: what is plotted, for those who hear the page.
        unit: of the values.
    """
    width, left, right, lane = 430.0, 122.0, 62.0, 26.0
    height = lane * len(bars) + 26
    most = max((value for bar in bars for _, value in (*bar.marks, *bar.points)), default=1.0) or 1.0

    def x(value: float) -> float:
        return left + max(0.0, value) / most * (width - left - right)

    parts = []
    for value in _ticks(most):
        parts.append(_rule(x(value), 4, x(value), height - 22, "grid"))
        parts.append(_text(x(value), height - 7, f"{value:g}", "tick", "middle"))
    for place, bar in enumerate(bars):
        y = 4 + lane * (place + 0.5)
        told = ", ".join(f"{name} {value:.3g} {unit}" for name, value in (*bar.points, *bar.marks))
        parts.append(f'<g class="{_series(bar.series)}"><title>{safe(f"{bar.label}: {told}")}</title>')
        parts.append(_text(0, y + 4, _cut(bar.label, 19), "lane"))
        begin = 0.0
        for number, (_, value) in enumerate(bar.marks):
            thick = 13 - 4.5 * number
            parts.append(
                f'<rect class="bar b{number + 1}" x="{x(begin):.1f}" y="{y - thick / 2:.1f}"'
                f' width="{max(1.0, x(value) - x(begin)):.1f}" height="{thick:.1f}" rx="1.5"/>'
            )
            begin = value
        parts += [_marker(2, x(value), y, "point") for _, value in bar.points]
        if bar.marks:
            parts.append(_text(width, y + 4, f"{bar.marks[-1][1]:.3g} {unit}".strip(), "value", "end"))
        parts.append("</g>")
    said = "; ".join(f"{bar.label} " + ", ".join(f"{n} {v:.3g}" for n, v in bar.marks) for bar in bars)
    return _svg(width, height, f"{title}{f', in {unit}' if unit else ''}: {said}", parts)


def layered_graph(nodes: Sequence[Node], edges: Iterable[tuple[str, str]], *, title: str) -> str:
    """Boxes in columns from left to right, each to the right of all that lead to it.

    Args:
        nodes: the boxes.
        edges: (from, to) keys; edges to unknown boxes are left out, circles are cut.
        title: what is shown, for those who hear the page.
    """
    known = {node.key: node for node in nodes}
    kept = [(a, b) for a, b in dict.fromkeys(edges) if a in known and b in known and a != b]
    column = layers(list(known), kept)
    columns: list[list[str]] = [[] for _ in range(max(column.values(), default=-1) + 1)]
    for key in known:
        columns[column[key]].append(key)
    order: dict[str, float] = {}
    for keys in columns:
        keys.sort(key=lambda key: (not known[key].strong, _middle(key, kept, order)))
        order |= {key: float(place) for place, key in enumerate(keys)}
    box_width, box_height, gap_x, gap_y = 156.0, 46.0, 26.0, 16.0
    rows = max((len(keys) for keys in columns), default=1)
    width = len(columns) * (box_width + gap_x) - gap_x + 2
    height = rows * (box_height + gap_y) - gap_y + 2
    places = {
        key: (1 + number * (box_width + gap_x), 1 + place * (box_height + gap_y))
        for number, keys in enumerate(columns)
        for place, key in enumerate(keys)
    }
    parts = []
    for child, parent in sorted(kept, key=lambda edge: known[edge[0]].strong and known[edge[1]].strong):
        strong = known[child].strong and known[parent].strong
        (x1, y1), (x2, y2) = places[child], places[parent]
        x1, y1, y2 = x1 + box_width, y1 + box_height / 2, y2 + box_height / 2
        bend = min(gap_x, (x2 - x1) / 2)
        path = f"M{x1:.1f} {y1:.1f}C{x1 + bend:.1f} {y1:.1f} {x2 - bend:.1f} {y2:.1f} {x2 - 5:.1f} {y2:.1f}"
        name = "edge strong" if strong else "edge"
        parts.append(f'<path class="{name}" d="{path}"/>')
        parts.append(f'<path class="{name} head" d="M{x2 - 1:.1f} {y2:.1f}l-7 -4v8z"/>')
    parts += [_box(known[key], x, y, box_width, box_height) for key, (x, y) in places.items()]
    said = ", ".join(f"{known[a].kind} {known[a].label} from {known[b].kind} {known[b].label}" for a, b in kept)
    return _svg(max(width, 1.0), height, f"{title}: {said}", parts)


def layers(keys: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """The column of each key: the longest way to it from a key that nothing leads to. Circles are cut."""
    after: dict[str, list[str]] = {key: [] for key in keys}
    for child, parent in edges:
        after[child].append(parent)
    order: list[str] = []
    state: dict[str, int] = {}
    back: set[tuple[str, str]] = set()
    for start in keys:
        stack = [(start, iter(after[start]))] if start not in state else []
        state.setdefault(start, 1)
        while stack:
            key, rest = stack[-1]
            above = next(rest, None)
            if above is None:
                stack.pop()
                state[key] = 2
                order.append(key)
            elif state.get(above) == 1:
                back.add((key, above))
            elif above not in state:
                state[above] = 1
                stack.append((above, iter(after[above])))
    column = dict.fromkeys(keys, 0)
    for key in reversed(order):
        for parent in after[key]:
            if (key, parent) not in back:
                column[parent] = max(column[parent], column[key] + 1)
    return column


def _middle(key: str, edges: Sequence[tuple[str, str]], order: Mapping[str, float]) -> float:
    """The mean place of what leads to a box, so that lines cross little."""
    before = [order[child] for child, parent in edges if parent == key and child in order]
    return sum(before) / len(before) if before else 0.0


def _lines(
    lines: Sequence[Line], at: Callable[[float, float], tuple[float, float]], label_x: float, span: tuple[float, float]
) -> Iterable[str]:
    ends = _apart([at(*line.points[-1])[1] if line.points else span[1] for line in lines], 13.0, span)
    for line, end in zip(lines, ends, strict=True):
        if not line.points:
            continue
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in line.points))
        told = f"{line.label}: {line.points[-1][1]:.3g} after {line.points[-1][0]:g}"
        dash = _DASHES[line.series % len(_DASHES)]
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        x, y = at(*line.points[-1])
        yield (
            f'<g class="{_series(line.series)}"><title>{safe(told)}</title>'
            f'<polyline class="line" points="{points}"{dashed}/>'
            + _marker(line.series, x, y, "end")
            + _text(label_x, end + 4, _cut(line.label, 16), "line-label")
            + "</g>"
        )


def _apart(wanted: Sequence[float], gap: float, span: tuple[float, float]) -> list[float]:
    """Places near the wanted ones that are at least ``gap`` apart."""
    order = sorted(range(len(wanted)), key=lambda place: wanted[place])
    found = list(wanted)
    lowest = span[0]
    for place in order:
        found[place] = lowest = max(lowest, wanted[place])
        lowest += gap
    highest = span[1]
    for place in reversed(order):
        found[place] = min(highest, found[place])
        highest = found[place] - gap
    return found


def _ticks(most: float) -> list[float]:
    """Three to six round values from 0 to ``most``."""
    rough = max(most, 1e-9) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.99)
    return [round(step * number, 10) for number in range(math.floor(most / step + 1e-9) + 1)]


def _box(node: Node, x: float, y: float, width: float, height: float) -> str:
    name = "node strong" if node.strong else "node"
    whole = f"{node.kind}: {node.label}" + (f"\n{node.note}" if node.note else "")
    return (
        f'<g class="{name}"><title>{safe(whole)}</title>'
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:g}" height="{height:g}" rx="7"/>'
        + _text(x + 10, y + 18, _cut(node.kind, 26), "kind")
        + _text(x + 10, y + 35, _cut(node.label, 18 if node.strong else 20), "label")
        + "</g>"
    )


def _series(number: int) -> str:
    return f"s{number % _SERIES + 1}"


def _marker(place: int, x: float, y: float, name: str = "dot") -> str:
    """Circle, square, diamond or triangle, by the place of its series."""
    shape = place % 4
    if shape == 0:
        return f'<circle class="{name}" cx="{x:.1f}" cy="{y:.1f}" r="4.6"/>'
    if shape == 1:
        return f'<rect class="{name}" x="{x - 4.2:.1f}" y="{y - 4.2:.1f}" width="8.4" height="8.4"/>'
    if shape == 2:
        return f'<path class="{name}" d="M{x:.1f} {y - 5.8:.1f}l5.8 5.8l-5.8 5.8l-5.8 -5.8z"/>'
    return f'<path class="{name}" d="M{x:.1f} {y - 5.4:.1f}l5.4 9.6h-10.8z"/>'


def _rule(x1: float, y1: float, x2: float, y2: float, name: str) -> str:
    return f'<line class="{name}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, name: str, anchor: str = "start") -> str:
    return f'<text class="{name}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{safe(text)}</text>'


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _svg(width: float, height: float, label: str, parts: Iterable[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img"'
        f' aria-label="{safe(label)}">{"".join(parts)}</svg>'
    )
