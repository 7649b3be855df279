from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from tidemill.cli.waterfall import MOST_SPANS, Waterfall, branches, messages_of
from tidemill.loop.answering import span_json
from tidemill.telemetry import Content, Reference, Span, StoredSpan

SECOND = 10**9
BEGUN = 1_790_000_000 * SECOND
TRACE = "0af7651916cd43dd8448eb211c80319c"


def span(number: int, parent: int | None = None, begins: float = 0, ends: float = 1, **fields: Any) -> dict[str, Any]:
    content = fields.pop("content", None)
    plain = {"name": f"span {number}", "operation": "chat", **fields}
    made = Span(
        trace_id=TRACE,
        span_id=f"{number:016x}",
        parent_span_id=None if parent is None else f"{parent:016x}",
        project="shop",
        tenant="default",
        started_at_ns=BEGUN + int(begins * SECOND),
        ended_at_ns=BEGUN + int(ends * SECOND),
        **plain,
    )
    return span_json(StoredSpan(made, content, number))


def score(**fields: Any) -> dict[str, Any]:
    plain = {"name": "feedback", "value": 1.0, "label": None, "source": "user", "comment": None, "correction": None}
    return {**plain, "span_id": None, **fields}


def drawn(
    *spans: Mapping[str, Any], scores: tuple[Mapping[str, Any], ...] = (), width: int = 100, content: bool = False
) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, markup=False, highlight=False)
    console.print(Waterfall({"trace_id": TRACE, "spans": spans, "scores": scores}, {}, content=content))
    return out.getvalue()


def test_a_trace_is_drawn_with_all_that_is_known_of_it() -> None:
    text = drawn(
        span(1, None, 0, 4, name="chat desk", input_tokens=30, output_tokens=4, cost_usd=0.5, endpoint="desk"),
        span(2, 1, 0, 1, name="attempt", operation="attempt", status="error", error_type="refused", http_status=503),
        span(3, 1, 1, 4, name="retrieval", references=(Reference("passage", "psg_1", "retrieved", 1, 0.5),)),
        scores=(score(comment="thanks"), score(name="groundedness", value=0.2, source="judge", span_id=f"{3:016x}")),
    )
    lines = text.splitlines()
    assert lines[0].startswith(f"trace {TRACE}  2026-09-21")
    assert lines[1] == "3 spans · 4.00 s · 30→4 tokens · $0.5000 · 1 failed"
    assert lines[2] == "endpoint desk"
    assert lines[4].split() == ["0", "2.00", "s", "4.00", "s"]
    assert lines[5].startswith("chat desk ")
    assert lines[5].rstrip().endswith("4.00 s  30→4  $0.5000")
    assert lines[6].startswith("├─ ✗ attempt ")
    assert lines[7].strip("│ ") == "error refused 503"
    assert lines[8].startswith("└─ retrieval ")
    assert lines[9].strip() == "retrieved psg_1  0.5"
    assert lines[10].strip() == "score groundedness: 0.2 by judge"
    assert lines[-1] == "score feedback: 1 by user, comment: thanks"


def test_bars_stand_where_their_spans_were() -> None:
    bars = [
        line[line.index("span") + 6 :]
        for line in drawn(span(1, None, 0, 4), span(2, 1, 2, 4), span(3, 1, 3, 3)).splitlines()
        if "━" in line
    ]
    first, second, third = ([place for place, mark in enumerate(bar) if mark == "━"] for bar in bars)
    assert abs(len(second) * 2 - len(first)) <= 2
    assert second[-1] - first[-1] in (0, 3, -3)  # the tree's own lines shift the text
    assert len(third) == 1


def test_the_wait_for_the_first_chunk_is_thin() -> None:
    (line,) = [line for line in drawn(span(1, time_to_first_chunk_s=0.75, stream=True)).splitlines() if "━" in line]
    assert line.count("╌") == pytest.approx(3 * line.count("━"), abs=4)


@given(st.integers(24, 200), st.booleans())
def test_no_line_is_wider_than_the_terminal(width: int, content: bool) -> None:
    text = drawn(
        span(1, None, 0, 4, name="a rather long name " * 4, input_tokens=12345, output_tokens=4, cost_usd=0.00001),
        *(span(number, number - 1, 0, 1, content=Content("wide 漢字 " * 30, "out")) for number in range(2, 40)),
        width=width,
        content=content,
    )
    from rich.cells import cell_len

    assert max(cell_len(line) for line in text.splitlines()) <= width


@settings(max_examples=60)
@given(st.text(), st.text(), st.text())
def test_what_a_model_wrote_is_shown_and_not_obeyed(name: str, said: str, comment: str) -> None:
    nasty = "\x1b]0;owned\x07\x9b2J\x00"
    text = drawn(
        span(1, name=name + nasty, error_type=nasty, status="error", content=Content(said + nasty, nasty)),
        scores=(score(comment=comment + nasty, value=None, label=nasty),),
        content=True,
    )
    assert not set(text) & {chr(code) for code in (*range(9), *range(11, 32), *range(127, 160))}


def test_markup_is_text() -> None:
    assert "[red]stop[/red]" in drawn(span(1, content=Content("", "[red]stop[/red]")), content=True)


def test_messages_of_every_dialect() -> None:
    assert messages_of("") == []
    assert messages_of("plain") == [("input", "plain")]
    assert messages_of('"text"', role="assistant") == [("assistant", "text")]
    assert messages_of('[{"role":"user","content":"a"},{"role":"tool","content":[{"type":"text","text":"b"}]}]') == [
        ("user", "a"),
        ("tool", "b"),
    ]
    assert messages_of('{"messages":[{"role":"user","parts":[{"type":"text","content":"c"}]}]}') == [("user", "c")]
    assert messages_of('[{"role":"assistant","tool_calls":[{"id":1}]}]') == [("assistant", '[{"id": 1}]')]
    assert messages_of('{"a": 1}') == [("input", '{"a": 1}')]
    assert messages_of("[1, 2]") == [("input", "[1, 2]")]


links = st.lists(st.none() | st.integers(0, 14), min_size=1, max_size=12)


@given(links)
def test_every_span_stands_once_whatever_the_parents_say(parents: list[int | None]) -> None:
    spans = [span(number, parent, begins=number) for number, parent in enumerate(parents)]
    found = [one.span["span_id"] for one in branches(spans)]
    assert sorted(found) == sorted(one["span_id"] for one in spans)
    drawn(*spans)


def test_orphans_stand_at_the_top_and_circles_are_cut() -> None:
    orphan, one, two = span(1, 99, begins=1), span(2, 3, begins=2), span(3, 2, begins=3)
    assert [(branch.span["span_id"][-1], branch.lead) for branch in branches([two, one, orphan])] == [
        ("1", ""),
        ("2", ""),
        ("3", "└─ "),
    ]


def test_a_deep_chain_and_a_wide_tree_are_drawn() -> None:
    chain = [span(number, number - 1 if number else None) for number in range(5000)]
    text = drawn(*chain)
    assert f"and {5000 - MOST_SPANS:,} spans more" in text


def test_sums_count_each_call_once() -> None:
    text = drawn(
        span(1, None, cost_usd=3.0, input_tokens=30),
        span(2, 1, cost_usd=1.0, input_tokens=10),
        span(3, 1, cost_usd=2.0, output_tokens=7),
        span(4, 99, cost_usd=5.0, input_tokens=1),
    )
    assert "31→7 tokens · $8.00" in text
