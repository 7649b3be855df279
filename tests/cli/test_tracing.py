"""``trace`` and ``data from-traces`` over a store with traffic in it, while nothing runs and while it does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.cli.shop import Shop
from tests.cli.test_watching import running_server
from tests.loop.traffic import fill, request, trace_id
from tidemill.kernel import Scope
from tidemill.loop.project import open_project
from tidemill.telemetry import SegmentWriter, open_span_store

SINCE = "2026-09-21"


@pytest.fixture
def busy(bare_shop: Shop) -> Shop:
    """A shop with forty requests."""
    with open_project(bare_shop.folder) as opened:
        store = open_span_store(opened.places.spans, Scope("shop"))
        fill(store, 40)
        store.close()
    return bare_shop


def test_list_by_condition_text_and_page(busy: Shop) -> None:
    found = busy.json("trace", "list", "-w", "duration_s >= 4", "-w", "request_model = large", "--since", SINCE)
    assert [one["trace_id"] for one in found["traces"]] == [trace_id(number) for number in (35, 23, 11)]
    assert found["next"] is None
    shown = busy.ok("trace", "list", "--text", '"number 17"')
    assert trace_id(17) in shown
    assert "2026-09-21 14:30:20" in shown
    first = busy.json("trace", "list", "-n", "25")
    rest = busy.json("trace", "list", "-n", "25", "--cursor", first["next"])
    assert len({one["trace_id"] for one in (*first["traces"], *rest["traces"])}) == 40
    assert f"--cursor {first['next']}" in busy.ok("trace", "list", "-n", "25")
    assert busy.ok("trace", "list", "--endpoint", "other") == "No trace meets that.\n"
    assert len(busy.json("trace", "list", "--spans", "-n", "100")["traces"]) == 80


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("list", "-w", "colour = red"), "There is no field 'colour'"),
        (("list", "-w", "statuss = error"), "did you mean 'status'"),
        (("list", "-w", "status"), "cannot be read"),
        (("list", "--since", "whenever"), "no moment"),
        (("list", "--release", "desk@9"), "no release 'desk@9'"),
        (("list", "--cursor", "x"), "no cursor"),
        (("show", "nine"), "no trace id"),
        (("show", "9" * 32), "no trace '99"),
        (("show", trace_id(1), "--span", "9" * 16), "has no span"),
        (("stats", "-m", "latency"), "no measure 'latency'"),
        (("stats", "--by", "colour"), "no field 'colour'"),
        (("stats", "--every", "soon"), "no duration"),
        (("sessions", "x"), "no session 'x'"),
        (("compare", "a@1", "a@2"), "no release 'a@1'"),
        (("export", "x.csv"), "no format"),
        (("tail",), "tidemill up"),
    ],
)
def test_a_mistake_gets_a_sentence(busy: Shop, arguments: tuple[str, ...], said: str) -> None:
    assert said in busy.refused("trace", *arguments)


def test_show_one_span_with_all_that_is_known(busy: Shop) -> None:
    shown = busy.ok("trace", "show", f"00-{trace_id(5)}-{'1' * 16}-01", "--span", f"{6:016x}")
    for part in ("attributes.tool", "search", "user_key", "user-5", "What costs tyre number 5?", "session-1"):
        assert part in shown
    assert busy.json("trace", "show", trace_id(5).upper())["trace_id"] == trace_id(5)


def test_stats(busy: Shop) -> None:
    shown = busy.ok("trace", "stats", "-m", "requests", "-m", "p95:duration_s", "--by", "request_model")
    assert "27" in shown
    assert "█" in shown
    charts = busy.ok("trace", "stats", "-m", "requests", "--by", "request_model", "--every", "10m")
    assert "requests  up to 7" in charts
    assert "2026-09-21 14:10" in charts
    table = busy.ok("trace", "stats", "-m", "requests", "--every", "10m", "--table")
    assert table.splitlines()[1].split() == ["2026-09-21", "14:10", "7"]
    found = busy.json("trace", "stats", "-m", "errors", "--every", "1h")
    assert sum(row["values"]["errors"] for row in found["rows"]) == 4
    assert busy.ok("trace", "stats", "--endpoint", "other") == "No trace meets that.\n"


def test_sessions(busy: Shop) -> None:
    assert "session-7" in busy.ok("trace", "sessions", "-n", "2")
    assert [one["session_id"] for one in busy.json("trace", "sessions", "-n", "1")] == ["session-7"]
    shown = busy.ok("trace", "sessions", "session-1")
    assert "5 requests" in shown
    assert "user: What costs tyre number 7?" in shown
    assert "assistant: It costs 9 euros." in shown
    assert "error" in shown
    assert "score feedback: 1 by user" in shown


def test_compare(busy: Shop) -> None:
    first, second = (f"sha256:{one * 64}" for one in "ab")
    shown = busy.ok("trace", "compare", first, second)
    assert "20 % [" in shown
    assert "score feedback" in shown
    assert "at most 0.05 each" in shown
    found = busy.json("trace", "compare", first, second, "--alpha", "0.1")
    assert [one["values"]["errors"] for one in found["releases"]] == [0, 4]
    assert busy.ok("trace", "compare", first, second, "--endpoint", "other") == "No trace meets that.\n"


def test_export(busy: Shop, tmp_path: Path) -> None:
    file = tmp_path / "all.parquet"
    assert "80 spans" in busy.ok("trace", "export", str(file), "--spans", "--content", "--scores")
    assert pq.read_table(file).num_rows == 80
    assert "is there already" in busy.refused("trace", "export", str(file))
    written = busy.json("trace", "export", str(file), "--force", "--where", "status = error")
    assert (written["spans"], written["bytes"]) == (4, file.stat().st_size)
    lines = tmp_path / "some.txt"
    busy.ok("trace", "export", str(lines), "--format", "jsonl", "--text", "number 17")
    assert [json.loads(line)["trace_id"] for line in lines.read_text().splitlines()] == [trace_id(17)]


def test_data_from_traces(busy: Shop) -> None:
    said = busy.ok("data", "from-traces", "sample", "--size", "8", "--where", "status = ok", "--seed", "7")
    assert said.startswith("dataset/sample@1: 8 rows of 36 requests, uniform, seed 7")
    rows = busy.json("data", "rows", "sample", "--limit", "100")
    assert sum(row["value"]["sampling_weight"] for row in rows) == pytest.approx(36)
    assert rows[0]["sources"][0] == f"trace:{rows[0]['value']['trace_id']}"
    again = busy.json("data", "from-traces", "sample", "--size", "8", "--where", "status = ok", "--seed", "7")
    assert again["ref"] == "dataset/sample@1"
    said = busy.ok("data", "from-traces", "s", "--sample", "stratified", "--by", "request_model", "--share", "equal")
    assert "large: 13, small: 27" in said
    assert "field of the strata" in busy.refused("data", "from-traces", "s", "--sample", "stratified")
    assert "name of a score" in busy.refused("data", "from-traces", "s", "--sample", "uncertainty")
    tree = busy.ok("lineage", rows[0]["value"]["trace_id"])
    assert "dataset/sample@1" in tree


def test_the_same_answers_while_the_control_plane_runs(busy: Shop, tmp_path: Path) -> None:
    first, second = (f"sha256:{one * 64}" for one in "ab")
    asked = (
        ("trace", "list", "-w", "status = error", "-n", "2"),
        ("trace", "list", "--text", "number 17", "--spans"),
        ("trace", "stats", "-m", "p95:duration_s", "--by", "request_model", "--every", "10m"),
        ("trace", "sessions", "-n", "3"),
        ("trace", "sessions", "session-1"),
        ("trace", "compare", first, second),
        ("trace", "show", trace_id(3)),
        ("data", "from-traces", "sample", "--size", "8", "--sample", "feedback"),
    )
    before = [busy.json(*one) for one in asked]
    with open_project(busy.folder) as opened:
        port = opened.settings.server.port
    with running_server(busy, port):
        for question, answer in zip(asked, before, strict=True):
            assert busy.json(*question) == answer, question
        assert busy.json("trace", "export", str(tmp_path / "x.jsonl"), "--spans")["spans"] == 80
        assert "There is no field" in busy.refused("trace", "list", "-w", "colour = red")
        assert "no session 'a/b'" in busy.refused("trace", "sessions", "a/b")


def test_tail_follows_what_is_finished(busy: Shop) -> None:
    with open_project(busy.folder) as opened:
        port = opened.settings.server.port
    with running_server(busy, port):
        command = [sys.executable, "-m", "tidemill.cli", "trace", "tail", "--project", str(busy.folder)]
        command += ["--json", "--last", "2", "--count", "3"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as following:
            assert following.stdout is not None
            shown = [json.loads(following.stdout.readline())["trace_id"] for _ in range(2)]
            assert shown == [trace_id(38), trace_id(39)]
            new = write_span(busy)
            assert json.loads(following.stdout.readline())["trace_id"] == new
            assert following.wait(30) == 0
        shown_text = busy.ok("trace", "tail", "--last", "3", "--count", "3", "--content")
        assert "It costs 39 euros." in shown_text
        assert "✗ desk" in shown_text


def write_span(shop: Shop) -> str:
    """A finished request in the segment log; its trace id."""
    writer = SegmentWriter(shop.folder / ".tidemill" / "segments" / "test", project="shop", tenant="default")
    writer.finished(request(50), None)
    writer.close()
    return trace_id(50)
