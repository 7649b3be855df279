"""The demo's page and its end on the terminal: whole, safe, and legible without a network."""

from __future__ import annotations

import copy
import io
import re
import shlex
from contextlib import redirect_stdout
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.cli.demo_page import interval_bar, show
from tidemill.cli.entry import COMMANDS
from tidemill.loop.demo import wording
from tidemill.loop.demo.ancestry import ancestry, branches
from tidemill.loop.demo.page import page_of, write_page
from tidemill.loop.demo.plots import (
    Bar,
    Dot,
    Line,
    Mark,
    Node,
    Threshold,
    dot_plot,
    layered_graph,
    layers,
    log_chart,
    quantile_bars,
    safe,
)

_HOSTILE = '<script>alert("x")</script>\'"&\x1b[2J\x00\u202e</svg></title>'
_VOID = {"meta", "br", "link", "img", "hr", "input"}
_RULE: dict[str, Any] = {
    "metric": "recall@5",
    "kind": "superior",
    "margin": 0.05,
    "verdict": {
        "value": "PASS",
        "reason": "recall@5: shown to be better",
        "evidence": {
            "n": 188,
            "candidate_mean": 0.70,
            "baseline_mean": 0.59,
            "delta": 0.106,
            "interval": {"low": 0.05, "high": 0.16, "mean": 0.106, "n": 188},
            "p": 4.4e-05,
        },
    },
}


def _metric(canary: float, control: float) -> dict[str, Any]:
    interval = {"low": -0.1, "high": 0.5, "mean": canary - control, "n": 20}
    figures = {"canaries": 28, "controls": 34, "canary_mean": canary, "control_mean": control}
    return figures | {"delta": canary - control, "interval": interval, "e_not_inferior": 12.0, "e_inferior": 0.8}


def _release(number: int, decision: str, gate: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "ref": f"release/python-help@{number}",
        "digest": f"sha256:{number:064x}",
        "title": f"release {number}: kind {number}",
        "decision": decision,
        "reason": f"reason {number}",
        "gate": gate,
        "scores": {"recall@5": 0.5 + number / 10, "token_f1": 0.4},
        "intervals": {"recall@5": [0.5, 0.9], "token_f1": [0.2, 0.6]},
        "n": {"recall@5": 188, "token_f1": 32},
        "users": {"sessions": 20, "content": 12.0, "interval": [0.4, 0.8]},
    }


def _event(number: int, second: int, event: str, **evidence: Any) -> dict[str, Any]:
    return {
        "at": f"2026-11-23T21:49:{second:02d}.15+00:00",
        "release": f"release/python-help@{number}",
        "event": event,
        "actor": "rollout-controller",
        "reason": f"because of {event} {second}",
        "evidence": evidence,
    }


def _path(up: float, down: float) -> list[dict[str, Any]]:
    return [
        {
            "seq": seq,
            "e_not_inferior": {"ok": up**seq, "success": up**seq / 2},
            "e_inferior": {"ok": 1.0, "success": down**seq},
            "average_e_inferior": (1.0 + down**seq) / 2,
        }
        for seq in range(1, 41)
    ]


def _evidence(number: int, path: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "release": f"release/python-help@{number}",
        "rollout": f"rol_{number}",
        "promote_at": 10.0,
        "roll_back_at": 10.0,
        "margins": {"ok": 0.2, "success": 0.2},
        "sessions": len(path),
        "path": path,
    }


def _lineage() -> dict[str, Any]:
    nodes = [
        ("t1", "trace", "answer t1"),
        ("psg_1", "row", "psg_1"),
        ("doc_1", "row", "doc_1"),
        ("python:assert", "source", "python:assert"),
        ("r", "release", "release/python-help@2"),
        ("i", "index", "index/demo-hybrid@1"),
        ("d", "dataset", "dataset/demo-documents@1"),
    ]
    edges = [
        ("t1", "psg_1", "cited"),
        ("psg_1", "doc_1", "row"),
        ("doc_1", "python:assert", "row"),
        ("t1", "r", "release"),
        ("t1", "i", "index"),
        ("r", "i", "parent"),
        ("i", "d", "parent"),
    ]
    return {
        "question": "What does assert do?",
        "answer": "It checks a condition.",
        "sources": ["python:assert"],
        "ref": "t1",
        "kind": "trace",
        "nodes": [{"id": key, "kind": kind, "label": label} for key, kind, label in nodes],
        "edges": [{"child": child, "parent": parent, "role": role} for child, parent, role in edges],
        "rows": {
            "psg_1": {"title": "The assert statement", "text": "Assert statements …", "held_by": "index/demo-hybrid@1"},
            "doc_1": {"title": "Assert", "text": "…", "held_by": "dataset/demo-documents@1"},
        },
    }


@pytest.fixture
def result() -> dict[str, Any]:
    """A result of the shape that ``result_of`` returns."""
    gate = {"value": "PASS", "reason": "all rules hold", "evidence": {"rules": [_RULE]}}
    sessions = {"canary": 28, "control": 34}
    row = {"requests": 9, "errors": 0, "p50_s": 2.5, "p95_s": 4.0, "p99_s": 4.1, "ttfc_p50_s": None}
    tokens = {"input_tokens": 900, "output_tokens": 90, "cost_usd": 0.00013}
    return {
        "project": "/tmp/a demo",
        "endpoint": "python-help",
        "run": 1,
        "base_url": "http://127.0.0.1:43025/v1",
        "counts": {"documents": 904, "passages": 3842, "questions": 408},
        "steps": {"cached": ["documents"], "ran": ["bm25-index"]},
        "releases": [
            _release(1, "promoted", None),
            _release(2, "promoted", gate),
            _release(3, "rolled_back", {"value": "FAIL", "reason": "worse", "evidence": {}}),
        ],
        "timeline": [
            _event(1, 1, "promote"),
            _event(2, 2, "gate_passed"),
            _event(2, 3, "promote", sessions=sessions, metrics={"success": _metric(0.61, 0.31)}),
            _event(3, 4, "gate_overridden"),
            _event(3, 5, "roll_back", sessions=sessions, metrics={"success": _metric(0.0, 0.6)}),
        ],
        "evidence": [_evidence(2, _path(1.1, 0.99)), _evidence(3, _path(0.97, 1.1))],
        "latency": [{"release": f"release/python-help@{n}", "arm": "canary"} | row | tokens for n in (2, 3)],
        "price": {"input_usd_per_mtok": 0.07, "output_usd_per_mtok": 0.15},
        "lineage": _lineage(),
        "audit": {"entries": 18, "ok": True, "first_bad_seq": None, "reason": "every entry fits", "head": None},
        "timings": {"build": 60.0, "rollout 2": 74.2, "total": 180.0, "loop": 175.0},
    }


class _Reader(HTMLParser):
    """Checks that tags close in order, and gathers attributes and text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def _read(page: str) -> _Reader:
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def _plots(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def _hostile(value: Any, path: str = "") -> Any:
    """The result with hostile text wherever somebody else may have written."""
    if isinstance(value, dict):
        return {key: _hostile(one, key) for key, one in value.items()}
    if isinstance(value, list):
        return [_hostile(one, path) for one in value]
    free = {"reason", "question", "answer", "actor", "title", "text", "label", "event", "arm", "project", "decision"}
    return f"{value} {_HOSTILE}" if isinstance(value, str) and path in free else value


def _terminal(result: dict[str, Any], *, kept: bool = False) -> str:
    out = io.StringIO()
    with redirect_stdout(out):
        show(result, page=Path("demo.html"), kept=kept)
    return out.getvalue()


def test_page_tells_all_releases_events_and_figures(result: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "new" / "demo.html"
    write_page(file, result)
    reader = _read(file.read_text(encoding="utf-8"))
    text = " ".join(" ".join(reader.text).split())
    for one in result["releases"]:
        assert one["ref"] in text
        assert one["reason"] in text
    for row in result["timeline"]:
        assert row["reason"] in text
    assert "Release 2 (kind 2) now answers python-help." in text
    assert "content in 61 %" in text
    assert "What does assert do?" in text
    assert "0.07 USD" in text
    assert reader.tags.count("svg") >= 8
    assert {"main", "header", "footer", "nav", "time", "details", "table"} <= set(reader.tags)


def test_page_loads_nothing(result: dict[str, Any]) -> None:
    page = page_of(result)
    reader = _read(page)
    assert "script" not in reader.tags
    for tag, name, value in reader.attributes:
        assert name not in ("src", "style", "srcset", "action"), (tag, name)
        assert not name.startswith("on")
        if name == "href":
            assert value.startswith("#")
    assert not re.search(r"url\(|@import", page)


def test_headings_are_where_the_links_point(result: dict[str, Any]) -> None:
    reader = _read(page_of(result))
    ids = [value for _, name, value in reader.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for _, name, value in reader.attributes if name == "href"} <= set(ids)


def test_plots_are_well_formed_and_named(result: dict[str, Any]) -> None:
    plots = _plots(page_of(result))
    assert plots
    for plot in plots:
        assert plot.get("role") == "img"
        assert plot.get("aria-label")
        assert all(one.text for one in plot.iter("title"))


def test_what_others_wrote_is_escaped(result: dict[str, Any]) -> None:
    page = page_of(_hostile(result))
    reader = _read(page)
    assert "script" not in reader.tags
    assert not re.search("[\x00\x1b\u202e]", page)
    assert "<script>alert" in "".join(reader.text)  # shown as text
    assert _plots(page)


def test_lone_surrogates_do_not_break_the_file(result: dict[str, Any], tmp_path: Path) -> None:
    result["lineage"]["answer"] = "half \ud83d of a pair"
    write_page(tmp_path / "demo.html", result)
    assert "\\ud83d" in (tmp_path / "demo.html").read_text(encoding="utf-8")


def test_a_thin_result_still_makes_a_page(result: dict[str, Any]) -> None:
    thin = result | {"lineage": {}, "evidence": [_evidence(2, [])], "latency": [], "timeline": []}
    thin["timings"] = {}
    for one in thin["releases"]:
        one |= {"scores": {}, "intervals": {}, "n": {}, "gate": None, "decision": "held"}
        one["users"] = {"sessions": 0, "content": 0, "interval": None}
    del thin["price"]
    text = " ".join(_read(page_of(thin)).text)
    assert "none was promoted" in text
    assert "No answer could be followed" in text
    assert "No session reached its canary" in text
    assert _terminal(thin)


def test_figures_that_were_not_measured(result: dict[str, Any]) -> None:
    rule = copy.deepcopy(_RULE)
    rule["verdict"]["evidence"] |= dict.fromkeys(("candidate_mean", "baseline_mean", "delta", "interval"))
    result["releases"][1]["gate"]["evidence"]["rules"] = [rule]
    result["releases"][1]["decision"] = "held"
    result["timeline"][2]["evidence"]["metrics"]["success"] |= {"canary_mean": None, "delta": None, "interval": None}
    for row in result["latency"]:
        row |= {"p99_s": None, "cost_usd": None}
    assert "n/a" in page_of(result)
    assert "release 2" in _terminal(result)


def test_a_held_release_is_told_with_its_reason(result: dict[str, Any]) -> None:
    result["releases"][1] |= {"decision": "held", "reason": "not enough evidence"}
    result["timeline"] = [row for row in result["timeline"] if row["release"] != result["releases"][1]["ref"]]
    said = " ".join(wording.outcome(result))
    assert said.startswith("Release 1 (kind 1) now answers python-help.")
    assert "Release 2 (kind 2) passed the gate" in said
    assert "It was held: not enough evidence." in said


def test_commands_to_type_exist_and_quote_the_folder(result: dict[str, Any]) -> None:
    for command, why in wording.commands(result, kept=False):
        words = shlex.split(command)
        assert words[0] == "tidemill"
        assert words[1] in COMMANDS
        assert why
        if "-p" in words:
            assert words[words.index("-p") + 1] == "/tmp/a demo"
    assert not any(command.startswith("tidemill up") for command, _ in wording.commands(result, kept=True))


def test_snippet_is_six_lines_of_python(result: dict[str, Any]) -> None:
    result["lineage"]["question"] = 'What\'s \'\n""" here?'
    snippet = wording.client_snippet(result)
    assert len(snippet.split("\n")) == 6
    compile(snippet, "snippet", "exec")


def test_terminal_fits_and_shows_what_matters(result: dict[str, Any]) -> None:
    said = _terminal(result, kept=True)
    lines = said.splitlines()
    assert len(lines) <= 85
    for line in lines[: lines.index("What to type next")]:
        assert len(line) <= 100
    for word in ("Release 2 (kind 2) now answers", "rolled back", "├", "p95", "What does assert do?", "from openai"):
        assert word in said
    assert "\x1b" not in said


def test_terminal_obeys_no_control_character(result: dict[str, Any]) -> None:
    said = _terminal(_hostile(result))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", said)
    assert "\\x1b[2J" in said


def test_terminal_without_unicode(result: dict[str, Any]) -> None:
    result["timeline"][0]["reason"] = "a long reason " * 20 + "ends in ümläuts"
    kept = io.BytesIO()
    out = io.TextIOWrapper(kept, encoding="ascii")
    with redirect_stdout(out):
        show(result, page=Path("demo.html"), kept=True)
    out.flush()
    assert "[-" in kept.getvalue().decode("ascii")


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_interval_bars_have_one_width_and_one_dot(a: float, b: float, c: float, ascii_only: bool) -> None:
    low, value, high = sorted((a, b, c))
    bar = interval_bar(value, low, high, ascii_only=ascii_only)
    assert len(bar) == len(interval_bar(0, 0, 1))
    assert bar.count("o" if ascii_only else "●") == 1


@given(st.text())
def test_safe_text_is_xml(text: str) -> None:
    assert ElementTree.fromstring(f"<a b='{safe(text)}'>{safe(text)}</a>") is not None


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30))
def test_layers_end_and_follow_the_edges_of_trees(pairs: list[tuple[int, int]]) -> None:
    keys = [str(number) for number in range(10)]
    forward = [(str(a), str(b)) for a, b in pairs if a < b]
    column = layers(keys, forward)
    assert all(column[a] < column[b] for a, b in forward)
    every = [(str(a), str(b)) for a, b in pairs if a != b]
    assert set(layers(keys, every)) == set(keys)
    nodes = [Node(key=key, kind="k", label=key) for key in keys]
    assert ElementTree.fromstring(layered_graph(nodes, every, title="t")).get("role") == "img"


@given(st.lists(st.floats(0, 1e30), min_size=1, max_size=20), st.text())
def test_charts_take_any_values(values: list[float], label: str) -> None:
    line = Line(label, [(float(place), max(value, 1e-300)) for place, value in enumerate(values)])
    marked = Mark(0.0, label)
    for plot in (
        log_chart([line, line], title=label, x_label="x", thresholds=[Threshold(10.0, label)], mark=marked),
        quantile_bars([Bar(label, [("p", value) for value in sorted(values)[:3]])], title=label, unit="s"),
        dot_plot([Dot(label=label, value=v, low=v / 2, high=v * 2, series=n) for n, v in enumerate(values)], title="t"),
    ):
        root = ElementTree.fromstring(plot)
        assert not re.search("nan|inf", " ".join(f"{one.attrib}" for one in root.iter() if one is not root))


def test_large_parts_are_condensed_and_cited_ones_kept() -> None:
    lineage = _lineage()
    for number in range(30):
        lineage["nodes"].append({"id": f"psg_x{number}", "kind": "row", "label": f"psg_x{number}"})
        lineage["edges"].append({"child": "t1", "parent": f"psg_x{number}", "role": "retrieved"})
    found = ancestry(lineage)
    labels = [node.label for node in found.nodes]
    assert "The assert statement" in labels
    assert "28 more passages" in labels
    assert len(found.nodes) < 15
    strong = {node.label for node in found.nodes if node.strong}
    assert {"The assert statement", "Assert", "python:assert"} <= strong


def test_shortcuts_are_left_out_and_documents_lead_to_their_data_set() -> None:
    found = ancestry(_lineage())
    assert ("t1", "i") not in found.edges
    assert ("r", "i") in found.edges
    assert ("doc_1", "d") in found.edges


def test_tree_unfolds_a_part_once() -> None:
    lineage = _lineage()
    lineage["nodes"].append({"id": "psg_2", "kind": "row", "label": "psg_2"})
    lineage["edges"] += [
        {"child": "t1", "parent": "psg_2", "role": "retrieved"},
        {"child": "psg_2", "parent": "doc_1", "role": "row"},
    ]
    lines = branches(ancestry(lineage))
    documents = [line for line in lines if line.node.key == "doc_1"]
    assert [line.again for line in documents] == [False, True]
    assert lines[0].depth == 0
    assert branches(ancestry({})) == []


def test_a_circle_in_the_lineage_ends() -> None:
    lineage = _lineage()
    lineage["edges"].append({"child": "d", "parent": "t1", "role": "parent"})
    found = ancestry(lineage)
    assert branches(found)
    ElementTree.fromstring(layered_graph(found.nodes, found.edges, title="t"))
