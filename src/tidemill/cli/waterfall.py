"""A trace in the terminal: its spans as a tree, each with its place in time, its tokens and its price.

Everything that a model or a client wrote is shown, never obeyed: control characters become visible.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from tidemill.cli.charts import count, instant, seconds, usd
from tidemill.cli.output import plain

SpanJson: TypeAlias = Mapping[str, Any]

MOST_SPANS: Final = 300
"""Spans that are drawn; of the rest is said how many they are."""

_MOST_DEPTH: Final = 24
_MOST_TEXT_CHARS: Final = 4000
_MOST_DOCUMENTS: Final = 10
_LEAST_BAR: Final = 12
_KINDS: Final[dict[str, str]] = {
    "chat": "magenta",
    "text_completion": "magenta",
    "generate_content": "magenta",
    "embeddings": "blue",
    "retrieval": "green",
    "rerank": "green",
    "execute_tool": "yellow",
    "invoke_agent": "cyan",
    "create_agent": "cyan",
    "invoke_workflow": "cyan",
    "guardrail": "bright_yellow",
    "attempt": "bright_black",
}
_ROLES: Final = {"system": "bright_black", "user": "cyan", "assistant": "magenta", "tool": "yellow"}
_FAILED: Final = ("error", "truncated", "interrupted")


@dataclass(frozen=True, slots=True)
class Branch:
    """A span at its place in the tree.

    Args:
        span: what the REST API says of it.
        lead: the lines of the tree before its name.
        below: the lines of the tree before what is said of it.
    """

    span: SpanJson
    lead: str
    below: str


def branches(spans: Sequence[SpanJson]) -> list[Branch]:
    """The spans of a trace depth first, the earlier before the later.

    A span whose parent is not there stands at the top; of spans that are each other's parents the earliest does. Each
    span stands once.
    """
    ordered = sorted(spans, key=lambda one: (one["started_at_ns"], one["span_id"]))
    known = {one["span_id"] for one in ordered}
    children: dict[str | None, list[SpanJson]] = {}
    for one in ordered:
        parent = one["parent_span_id"]
        children.setdefault(parent if parent in known and parent != one["span_id"] else None, []).append(one)
    found: list[Branch] = []
    seen: set[str] = set()
    for one in (*children.get(None, ()), *ordered):  # the second part reaches circles, and nothing else
        if one["span_id"] not in seen:
            _walk(one, children, seen, found)
    return found


def _walk(root: SpanJson, children: Mapping[str | None, list[SpanJson]], seen: set[str], found: list[Branch]) -> None:
    """Depth first, without recursion: a chain of spans may be long."""
    stack = [(root, "", "", 0)]
    while stack:
        span, lead, below, depth = stack.pop()
        if span["span_id"] in seen:
            continue
        seen.add(span["span_id"])
        under = [one for one in children.get(span["span_id"], ()) if one["span_id"] not in seen]
        found.append(Branch(span, lead, below + ("│  " if under else "   ")))
        indent = below if depth < _MOST_DEPTH else below[: 3 * _MOST_DEPTH]
        for place, one in reversed(list(enumerate(under))):
            last = place == len(under) - 1
            stack.append((one, indent + ("└─ " if last else "├─ "), indent + ("   " if last else "│  "), depth + 1))


class Waterfall:
    """A trace as rich renders it, as wide as the terminal.

    Args:
        trace: what the REST API says of it.
        names: references of artifacts by their digests.
        content: show what was said.
    """

    def __init__(self, trace: Mapping[str, Any], names: Mapping[str, str], *, content: bool = False) -> None:
        self._trace = trace
        self._names = names
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        spans = self._trace["spans"]
        tree = branches(spans)
        start = min(one["started_at_ns"] for one in spans)
        end = max(one["ended_at_ns"] for one in spans)
        plan = _plan(tree[:MOST_SPANS], options.max_width)
        scores: dict[str | None, list[Mapping[str, Any]]] = {}
        for score in self._trace["scores"]:
            known = score["span_id"] in {one["span_id"] for one in spans}
            scores.setdefault(score["span_id"] if known else None, []).append(score)
        yield from self._head(spans, start, end)
        yield Text()
        if plan.bar:
            yield _axis(plan, (end - start) / 1e9)
        for branch in tree[:MOST_SPANS]:
            yield _line(branch, plan, start, end, ascii_only=options.ascii_only)
            yield from self._below(branch, options.max_width)
            for score in scores.get(branch.span["span_id"], ()):
                yield _under(branch, score_text(score), options.max_width)
        if len(tree) > MOST_SPANS:
            yield Text(f"… and {len(tree) - MOST_SPANS:,} spans more; all of them with --json", "dim")
        loose = scores.get(None, [])
        if loose:
            yield Text()
            yield from (score_text(score) for score in loose)

    def _head(self, spans: Sequence[SpanJson], start: int, end: int) -> Iterator[Text]:
        roots = [one for one in spans if one["parent_span_id"] is None] or spans[:1]
        line = Text().append("trace ", "bold")
        line.append(str(self._trace["trace_id"]), "bold cyan")
        line.append(f"  {instant(start)} UTC", "dim")
        yield line
        tokens, cost = _sums(spans)
        bad = sum(one["status"] in _FAILED for one in spans)
        parts = [f"{len(spans):,} span{'s' * (len(spans) != 1)}", seconds((end - start) / 1e9)]
        parts += [f"{tokens} tokens"] if tokens else []
        parts += [usd(cost)] if cost else []
        line = Text(" · ".join(parts))
        if bad:
            line.append(f" · {bad} failed", "bold red")
        yield line
        facts = [
            (what, self._names.get(str(roots[0].get(field)), roots[0].get(field)))
            for what, field in (
                ("endpoint", "endpoint"),
                ("release", "release"),
                ("arm", "arm"),
                ("prompt", "prompt"),
                ("service", "service"),
                ("session", "session_id"),
                ("user", "user_key"),
            )
        ]
        shown = [f"{what} {plain(value)}" for what, value in facts if value]
        if shown:
            yield Text(" · ".join(shown), "dim")

    def _below(self, branch: Branch, width: int) -> Iterator[RenderableType]:
        span = branch.span
        if span["status"] != "ok":
            why = " ".join(plain(span[field]) for field in ("error_type", "http_status") if span.get(field) is not None)
            yield _under(branch, Text(f"{span['status']} {why}".rstrip(), "red"), width)
        documents = [one for one in span["references"] if one["kind"] == "passage"]
        for one in documents[:_MOST_DOCUMENTS]:
            line = Text().append(f"{plain(one['role'])} ", "green")
            line.append(plain(one["ref"]))
            if one["score"] is not None:
                line.append(f"  {one['score']:.3g}", "dim")
            yield _under(branch, line, width)
        if len(documents) > _MOST_DOCUMENTS:
            yield _under(branch, Text(f"… and {len(documents) - _MOST_DOCUMENTS} documents more", "dim"), width)
        if self._content and span["content"] is not None:
            for part in said(span["content"]):
                yield _under(branch, part, width)


def said(content: Mapping[str, Any]) -> list[Text]:
    """What was said: messages by role, then the answer."""
    found = [_message(role, text, "◂") for role, text in messages_of(str(content["input"]))]
    for role, text in messages_of(str(content["output"]), role="assistant"):
        found.append(_message(role, text, "▸"))
    return found


def messages_of(text: str, *, role: str = "input") -> list[tuple[str, str]]:
    """(role, text) of each message of a JSON list of messages; anything else is one text of the role given."""
    if not text:
        return []
    try:
        value = json.loads(text)
    except ValueError:
        return [(role, text)]
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        value = value["messages"]
    if not (isinstance(value, list) and value and all(isinstance(one, dict) for one in value)):
        return [(role, value if isinstance(value, str) else text)]
    return [(str(one.get("role", role)), _text_of(one)) for one in value]


def _text_of(message: Mapping[str, Any]) -> str:
    """The text of a message, whichever dialect wrote it; what is no text as JSON."""
    parts = message.get("content", message.get("parts"))
    if isinstance(parts, str):
        text = parts
    elif isinstance(parts, list):
        texts = [one.get("text", one.get("content")) if isinstance(one, dict) else one for one in parts]
        text = "\n".join(
            one if isinstance(one, str) else json.dumps(part, ensure_ascii=False)
            for one, part in zip(texts, parts, strict=True)
        )
    else:
        text = ""
    calls = message.get("tool_calls")
    if calls:
        text += ("\n" if text else "") + json.dumps(calls, ensure_ascii=False)
    return text or json.dumps(dict(message), ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Columns of each part of a line; a bar of zero is left out."""

    name: int
    bar: int
    time: int
    tokens: int
    cost: int


def _plan(tree: Sequence[Branch], width: int) -> _Plan:
    def widest(cells: Iterator[str]) -> int:
        return max((len(cell) for cell in cells), default=0)

    time = widest(seconds(one.span["duration_s"]) for one in tree)
    tokens = widest(_tokens(one.span) for one in tree)
    cost = widest(_cost(one.span) for one in tree)
    name = widest(one.lead + "✗ " * (one.span["status"] in _FAILED) + _title(one.span) for one in tree) + 2
    right = sum(part + 2 for part in (time, tokens, cost) if part)
    name = max(12, min(name, max(width * 45 // 100, 20), width - right))
    bar = width - right - name - 2
    return _Plan(name, bar if bar >= _LEAST_BAR else 0, time, tokens, cost)


def _line(branch: Branch, plan: _Plan, start: int, end: int, *, ascii_only: bool) -> Text:
    span = branch.span
    failed = span["status"] in _FAILED
    line = Text(no_wrap=True, overflow="crop")
    line.append(branch.lead, "dim")
    line.append("! " if failed and ascii_only else "✗ " if failed else "", "bold red")
    title = Text(_title(span), "bold red" if failed else _KINDS.get(span["operation"], ""))
    title.truncate(max(4, plan.name - len(line.plain) - 1), overflow="ellipsis")
    line.append_text(title)
    line.append(" " * max(1, plan.name - line.cell_len))
    if plan.bar:
        line.append_text(_bar(span, plan.bar, start, end, ascii_only=ascii_only))
        line.append("  ")
    for text, width, style in (
        (seconds(span["duration_s"]), plan.time, ""),
        (_tokens(span), plan.tokens, "dim"),
        (_cost(span), plan.cost, "green"),
    ):
        if width:
            line.append(text.rjust(width) + "  ", style)
    line.rstrip()
    return line


def _bar(span: SpanJson, columns: int, start: int, end: int, *, ascii_only: bool) -> Text:
    """Thin until the first chunk, thick from there on; at least one mark, however short the span."""
    whole = max(1, end - start)
    first = min(columns - 1, max(0, int((span["started_at_ns"] - start) / whole * columns)))
    last = min(columns, max(first + 1, round((span["ended_at_ns"] - start) / whole * columns)))
    thin = 0
    waited_s = span.get("time_to_first_chunk_s")
    if waited_s is not None and span["duration_s"] > 0:
        thin = min(last - first - 1, int(waited_s / span["duration_s"] * (last - first)))
    colour = "red" if span["status"] in _FAILED else _KINDS.get(span["operation"], "white")
    line = Text(" " * first)
    line.append(("." if ascii_only else "╌") * thin, colour)
    line.append(("=" if ascii_only else "━") * (last - first - thin), colour)
    line.append(" " * (columns - last))
    return line


def _axis(plan: _Plan, total_s: float) -> Text:
    """The scale above the bars."""
    end = seconds(total_s)
    middle = seconds(total_s / 2)
    line = "0"
    if plan.bar > len(end) + len(middle) + 8:
        line = line.ljust(plan.bar // 2 - len(middle) // 2) + middle
    line = line.ljust(plan.bar - len(end)) + end
    return Text(" " * plan.name + line, "dim", no_wrap=True, overflow="crop")


def _under(branch: Branch, text: Text, width: int) -> RenderableType:
    """A text under its span, wrapped beside the lines of the tree."""
    lead = branch.below[: max(0, width - 24)]
    wrapped = text.wrap(Console(width=max(20, width - len(lead))), max(20, width - len(lead)))
    return Group(*(Text(no_wrap=True, overflow="crop").append(lead, "dim").append_text(one) for one in wrapped))


def _message(role: str, text: str, mark: str) -> Text:
    shown = text if len(text) <= _MOST_TEXT_CHARS else text[:_MOST_TEXT_CHARS]
    line = Text().append(f"{mark} {plain(role)}: ", _ROLES.get(role, "cyan"))
    line.append("\n".join(plain(one) for one in shown.split("\n")), "")
    if len(text) > len(shown):
        line.append(f" … {len(text) - len(shown):,} characters more, all of them with --json", "dim")
    return line


def score_text(score: Mapping[str, Any]) -> Text:
    """A score with who gave it and what they wrote."""
    value = score["value"]
    style = "yellow"
    if value is not None and 0 <= value <= 1:
        style = "green" if value >= 0.5 else "red"
    said_value = plain(score["label"]) if value is None else f"{value:g}"
    line = Text().append("score ", "dim")
    line.append(plain(score["name"]))
    line.append(": ")
    line.append(said_value, style)
    line.append(f" by {plain(score['source'])}", "dim")
    for what in ("comment", "correction"):
        if score[what]:
            line.append(f", {what}: {plain(score[what])}")
    return line


def _title(span: SpanJson) -> str:
    name = " ".join(plain(span["name"]).split())
    model = span["response_model"] or span["request_model"]
    return name if not model or model in name else f"{name} ({plain(model)})"


def _tokens(span: SpanJson) -> str:
    given, made = span["input_tokens"], span["output_tokens"]
    return "" if given is None and made is None else f"{count(given or 0)}→{count(made or 0)}"


def _cost(span: SpanJson) -> str:
    return usd(span["cost_usd"]) if span["cost_usd"] else ""


def _sums(spans: Sequence[SpanJson]) -> tuple[str, float]:
    """Tokens and cost of a trace, each call once.

    Spans repeat the sums of those below them: an agent's those of its calls, a gateway's those of its attempts. So a
    span counts unless one above it does.
    """
    by_id = {one["span_id"]: one for one in spans}

    def counted(field: str) -> float:
        total = 0.0
        for one in spans:
            if one[field] is not None and not _covered(one, field, by_id):
                total += one[field]
        return total

    given, made = counted("input_tokens"), counted("output_tokens")
    return (f"{count(given)}→{count(made)}" if given or made else ""), counted("cost_usd")


def _covered(span: SpanJson, field: str, by_id: Mapping[str, SpanJson]) -> bool:
    seen = {span["span_id"]}
    parent = by_id.get(span["parent_span_id"])
    while parent is not None and parent["span_id"] not in seen:
        if parent[field] is not None:
            return True
        seen.add(parent["span_id"])
        parent = by_id.get(parent["parent_span_id"])
    return False
