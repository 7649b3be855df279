"""Sessions in the terminal: the list, and one as it went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tidemill.cli.charts import count, instant, seconds, usd
from tidemill.cli.output import plain
from tidemill.cli.waterfall import messages_of, said, score_text

_FAILED: Final = ("error", "truncated", "interrupted")


def sessions_table(sessions: Sequence[Mapping[str, Any]]) -> Table:
    """The sessions, each with its sums."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("session", style="cyan", overflow="fold")
    table.add_column("last activity", no_wrap=True)
    for name in ("lasted", "requests", "errors", "spans", "tokens", "cost"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in sessions:
        table.add_row(
            Text(plain(one["session_id"])),
            instant(one["ended_at_ns"]),
            seconds((one["ended_at_ns"] - one["started_at_ns"]) / 1e9),
            count(one["traces"]),
            Text(count(one["errors"]), "red" if one["errors"] else "dim"),
            count(one["spans"]),
            f"{count(one['input_tokens'])}→{count(one['output_tokens'])}",
            usd(one["cost_usd"]),
        )
    return table


def session_lines(session: Mapping[str, Any]) -> list[RenderableType]:
    """One session: its sums, then each request with what was said last, what was answered, and its scores."""
    head = Text().append("session ", "bold").append(plain(session["session_id"]), "bold cyan")
    head.append(f"  {instant(session['started_at_ns'])} UTC", "dim")
    sums = [
        f"{session['traces']} request{'s' * (session['traces'] != 1)}",
        seconds((session["ended_at_ns"] - session["started_at_ns"]) / 1e9),
        f"{count(session['input_tokens'])}→{count(session['output_tokens'])} tokens",
        usd(session["cost_usd"]),
    ]
    lines: list[RenderableType] = [
        head,
        Text(" · ".join(sums)).append(f" · {session['errors']} failed" if session["errors"] else "", "red"),
    ]
    scores: dict[str, list[Mapping[str, Any]]] = {}
    for score in session["scores"]:
        scores.setdefault(score["trace_id"], []).append(score)
    for one in session["requests"]:
        lines += [Text(), _request(one), *_said(one)]
        lines += [_indented(score_text(score)) for score in scores.get(one["trace_id"], ())]
    return lines


def _request(one: Mapping[str, Any]) -> Text:
    failed = one["status"] in _FAILED
    line = Text().append(f"{instant(one['started_at_ns'], day=False)}  ", "dim")
    line.append(plain(one["endpoint"] or one["name"]), "bold red" if failed else "bold")
    line.append(f"  {seconds(one['duration_s'])}")
    if one["status"] != "ok":
        line.append(f"  {one['status']} {plain(one['error_type'] or '')}".rstrip(), "red")
    line.append(f"  {one['trace_id']}", "cyan")
    return line


def _said(one: Mapping[str, Any]) -> list[RenderableType]:
    """The last thing that was said to it, for a chat sends all that was said before along, and the answer."""
    content = one["content"]
    if content is None:
        return [Text("  what was said is not kept", "dim")]
    asked = len(messages_of(str(content["input"])))
    return [_indented(text) for text in said(content)[max(0, asked - 1) :]]


def _indented(text: Text) -> Padding:
    return Padding(text, (0, 0, 0, 2), expand=False)
