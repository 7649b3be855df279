"""The end of the demo on the terminal: the page's facts in about eighty lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tidemill.cli.output import plain
from tidemill.loop.demo import wording

if TYPE_CHECKING:
    from rich.console import Console

Result = Mapping[str, Any]

_WIDTH: Final = 100
_BAR: Final = 27
_METRICS: Final = ("recall@5", "citation_correct", "groundedness")
_COLOURS: Final = {"promoted": "green", "rolled_back": "red", "gated_out": "red", "held": "yellow"}
_MOST_TREE_LINES: Final = 11
_MOST_COMMANDS: Final = 6


def show(result: Result, *, page: Path, kept: bool) -> None:
    """Print what the demo found out. Plain where nobody watches; what others wrote cannot move the cursor.

    Args:
        result: what ``result_of`` returns.
        page: where the HTML page is.
        kept: the processes still run, so they can be asked at once.
    """
    from rich.console import Console

    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal or console.width > _WIDTH:
        console = Console(markup=False, highlight=False, emoji=False, width=_WIDTH)
    screen = _Screen(console)
    screen.heading("Outcome")
    screen.say(" ".join(wording.outcome(result)))
    _releases(screen, result)
    _scores(screen, result)
    _timeline(screen, result)
    _evidence(screen, result)
    _speed(screen, result)
    _lineage(screen, result)
    _next(screen, result, page=page, kept=kept)


class _Screen:
    """Prints lines that obey no control character and fit the console's encoding."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.ascii = console.options.ascii_only

    def heading(self, text: str) -> None:
        """The heading of a section."""
        self._console.print()
        self._console.print(self.clean(text), style="bold cyan")

    def say(self, text: object) -> None:
        """A paragraph, wrapped."""
        self._console.print(self.clean(text))

    def line(self, *parts: tuple[object, str]) -> None:
        """One line of (text, style) parts, cut where the console ends."""
        from rich.text import Text

        line = Text()
        for text, style in parts:
            line.append(self.clean(text), style=style)
        self._console.print(line, no_wrap=True, overflow="crop" if self.ascii else "ellipsis")

    def verbatim(self, text: str) -> None:
        """A line to copy: never wrapped or cut."""
        self._console.print(self.clean(text), soft_wrap=True)

    def clean(self, text: object) -> str:
        """Text on one line, with control characters shown instead of obeyed."""
        shown = plain(" ".join(part for part in str(text).split("\n")))
        return shown.encode("ascii", "replace").decode() if self.ascii else shown.encode("utf-8", "replace").decode()


def _releases(screen: _Screen, result: Result) -> None:
    screen.heading("Releases")
    for one in result["releases"]:
        sign, word = wording.DECISIONS.get(str(one["decision"]), ("?", str(one["decision"])))
        gate = (one.get("gate") or {}).get("value")
        about = f"{wording.short(one)}: {wording.about(one)}, {one['ref']}" + (f", gate {gate}" if gate else "")
        style = _COLOURS.get(str(one["decision"]), "")
        screen.line((f"{sign} {word:<12}", f"bold {style}"), (about, ""))
        screen.line((" " * 14 + str(one["reason"]), "dim"))


def _scores(screen: _Screen, result: Result) -> None:
    screen.heading(f"{'Scores, 95 % intervals':<46}0{'0.5':^{_BAR - 2}}1")
    for title, rows in _score_rows(result):
        for number, (name, value, low, high, n, colour) in enumerate(rows):
            screen.line(
                (f"{title if number == 0 else '':<34.34}", "bold"),
                (f" {name:<11}", colour),
                (interval_bar(value, low, high, ascii_only=screen.ascii), colour),
                (f"  {value:.2f} [{low:.2f}, {high:.2f}]", ""),
                (f" n {n}", "dim"),
            )


def _score_rows(result: Result) -> Iterator[tuple[str, list[tuple[str, float, float, float, int, str]]]]:
    colours = ("white", "cyan", "yellow")
    marked = [(one, colours[place % 3]) for place, one in enumerate(result["releases"])]
    users = [
        (wording.short(one), asked["content"] / asked["sessions"], *asked["interval"], asked["sessions"], colour)
        for one, colour in marked
        if (asked := one["users"]).get("interval")
    ]
    if users:
        yield "Users content", users
    for name in _METRICS:
        rows = [
            (wording.short(one), one["scores"][name], *one["intervals"][name], one["n"][name], colour)
            for one, colour in marked
            if name in one["scores"]
        ]
        if rows:
            yield wording.metric_title(name), rows


def interval_bar(value: float, low: float, high: float, *, ascii_only: bool = False) -> str:
    """An interval in [0, 1] as text: ``····├──●──┤····``."""
    empty, left, line, dot, right = ".[-o]" if ascii_only else "·├─●┤"
    begin, middle, end = (round(min(1.0, max(0.0, one)) * (_BAR - 1)) for one in (low, value, high))
    cells = [line if begin <= place <= end else empty for place in range(_BAR)]
    cells[begin], cells[end], cells[middle] = left, right, dot
    return "".join(cells)


def _timeline(screen: _Screen, result: Result) -> None:
    screen.heading("Timeline (UTC)")
    names = wording.names(result)
    for row in result["timeline"]:
        event = str(row["event"])
        if event == "open":
            continue  # the next line of that release says as much
        word = wording.EVENTS.get(event, event.replace("_", " "))
        style = {"promote": "bold green", "roll_back": "bold red", "gate_failed": "red"}.get(event, "bold")
        screen.line(
            (f"{str(row['at'])[11:19]} ", "dim"),
            (f"{names.get(str(row['release']), str(row['release'])):<11}", ""),
            (f"{word:<27}", style),
            (f"{row['reason']} ({row['actor']})", ""),
        )


def _evidence(screen: _Screen, result: Result) -> None:
    decided = [one for one in result["evidence"] if one["path"]]
    if not decided:
        return
    screen.heading("Evidence of the canaries (e-values)")
    names = wording.names(result)
    for one in decided:
        path = one["path"]
        # a measure that was shown once stays shown, so the highest value counts
        highest = {name: max(point["e_not_inferior"][name] for point in path) for name in path[-1]["e_not_inferior"]}
        shown = ", ".join(f"{wording.metric_title(name)} {value:.3g}" for name, value in highest.items())
        name = names.get(str(one["release"]), str(one["release"]))
        screen.line(
            (f"{name:<11}", "bold"), (f"no worse, highest: {shown} (each must reach {one['promote_at']:g})", "")
        )
        worse = f"worse: average {path[-1]['average_e_inferior']:.3g} (rolls back at {one['roll_back_at']:g})"
        screen.line((f"{'':<11}{worse}, after {len(path)} sessions", ""))


def _speed(screen: _Screen, result: Result) -> None:
    if not result["latency"]:
        return
    headers = ("requests", "errors", "p50", "p95", "p99", "1st chunk", "tokens in", "out", "USD")
    widths = (9, 7, 8, 8, 8, 10, 10, 7, 9)
    columns = "".join(f"{header:>{width}}" for header, width in zip(headers, widths, strict=True))
    screen.heading(f"{'Latency and cost':<22}{columns}")
    names = wording.names(result)
    for row in sorted(result["latency"], key=lambda one: (str(one["release"]), str(one["arm"]))):
        times = [row.get(name) for name in ("p50_s", "p95_s", "p99_s", "ttfc_p50_s")]
        cost = row.get("cost_usd")
        cells = [
            row["requests"],
            row["errors"],
            *("n/a" if one is None else wording.duration(one) for one in times),
            row.get("input_tokens") or 0,
            row.get("output_tokens") or 0,
            "n/a" if cost is None else f"{cost:.2g}",
        ]
        label = f"{names.get(str(row['release']), row['release'])}, {row['arm'] or 'alone'}"
        shown = "".join(f"{cell!s:>{width}}" for cell, width in zip(cells, widths, strict=True))
        screen.line((f"{label:<22.22}", ""), (shown, ""))


def _lineage(screen: _Screen, result: Result) -> None:
    from tidemill.loop.demo.ancestry import ancestry, branches

    lineage = result.get("lineage") or {}
    lines = branches(ancestry(lineage))
    if not lines:
        return
    screen.heading("One answer, followed back")
    screen.line(("asked     ", "dim"), (lineage.get("question", ""), ""))
    screen.line(("answered  ", "dim"), (lineage.get("answer", ""), ""))
    for line in lines[1:_MOST_TREE_LINES]:
        role = f" ({line.role}{', see above' if line.again else ''})"
        style = "bold" if line.node.strong else ""
        screen.line(("  " * line.depth, ""), (f"{line.node.kind} {line.node.label}", style), (role, "dim"))
    if len(lines) > _MOST_TREE_LINES:
        screen.line((f"  and {len(lines) - _MOST_TREE_LINES} lines more: see the page", "dim"))


def _next(screen: _Screen, result: Result, *, page: Path, kept: bool) -> None:
    timings = result["timings"]
    stages = ", ".join(f"{name} {wording.duration(timings[name])}" for name in timings if name not in ("total", "loop"))
    total = f", total {wording.duration(timings['total'])}" if "total" in timings else ""
    screen.heading("Timings")
    screen.say(stages + total)
    screen.heading("What to type next")
    screen.verbatim(f"The page with plots: {page.resolve()}")
    if not kept:
        screen.say("The processes were stopped; tidemill up starts them again, tidemill demo --keep leaves them up.")
    near = dict(result) | {"project": _near(str(result["project"]))}
    for command, why in wording.commands(near, kept=kept)[:_MOST_COMMANDS]:
        screen.verbatim(f"  {command}   # {why}")
    if kept:
        screen.say(f"The gateway still answers at {wording.gateway_place(result)}; any OpenAI client can ask it:")
        for line in wording.client_snippet(result).split("\n"):
            screen.verbatim(f"  {line}")


def _near(folder: str) -> str:
    """The folder as one would type it here."""
    here = Path.cwd()
    return str(Path(folder).relative_to(here)) if Path(folder).is_relative_to(here) else folder
