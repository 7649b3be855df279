from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.cli.shop import Shop
from tidemill.cli.trees import mermaid, tree_lines
from tidemill.kernel import Verdict, fresh_span_id, fresh_trace_id
from tidemill.loop.monitors import ALARM
from tidemill.loop.project import open_project
from tidemill.server.supervisor import is_healthy
from tidemill.telemetry import Content, Reference, Score, SegmentWriter, Span

STARTED_NS = 1_790_000_000_000_000_000


def write_trace(shop: Shop, *, status: str = "ok", output: str = "12 euros") -> str:
    """A finished request in the segment log, as the gateway writes one; its trace id."""
    release = shop.json("release", "show", "shop@1")["digest"]
    passage = shop.json("index", "search", "shop", "tyre")[0]["passage_id"]
    trace_id = fresh_trace_id()
    span = Span(
        trace_id=trace_id,
        span_id=fresh_span_id(),
        project="shop",
        tenant="default",
        name="chat shop",
        operation="chat",
        started_at_ns=STARTED_NS,
        ended_at_ns=STARTED_NS + 250_000_000,
        status=status,  # type: ignore[arg-type]
        endpoint="shop",
        release=release,
        arm="control",
        input_tokens=30,
        output_tokens=4,
        cost_usd=0.5,
        references=(Reference("passage", passage, "cited"), Reference("artifact", release, "release")),
    )
    writer = SegmentWriter(shop.folder / ".tidemill" / "segments" / "test", project="shop", tenant="default")
    writer.finished(span, Content('[{"role": "user", "content": "How much?"}]', output))
    score = Score(
        score_id=fresh_span_id(),
        trace_id=trace_id,
        name="feedback",
        value=1.0,
        source="user",
        at_ns=STARTED_NS,
        project="shop",
        tenant="default",
    )
    writer.score(score)
    writer.close()
    return trace_id


@contextmanager
def running_server(shop: Shop, port: int) -> Iterator[None]:
    command = [sys.executable, "-m", "tidemill.server", "--project", str(shop.folder / "tidemill.yaml")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        limit_s = time.monotonic() + 60
        while not is_healthy(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None
            assert time.monotonic() < limit_s
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        assert process.wait(30) is not None


def test_nothing_there_is_said_with_what_to_do(shop: Shop) -> None:
    assert "no trace yet" in shop.ok("trace", "list")
    assert "no trace yet" in shop.ok("trace", "summary")
    assert "tidemill trace list" in shop.refused("trace", "show", "1" * 32)
    assert "No monitor has raised" in shop.ok("monitor", "alarms")
    assert "not running" in shop.ok("monitor", "list")


def test_traces_are_read_from_the_store_while_nothing_runs(shop: Shop) -> None:
    trace_id = write_trace(shop)
    write_trace(shop, status="error")
    assert len(shop.json("trace", "list")["traces"]) == 2
    (one,) = shop.json("trace", "list", "--status", "ok", "--release", "shop@1", "--endpoint", "shop")["traces"]
    assert one["trace_id"] == trace_id
    assert "release/shop@1" in shop.ok("trace", "list")
    (row,) = shop.json("trace", "summary", "--by", "endpoint")
    assert (row["group"], row["requests"], row["errors"]) == ({"endpoint": "shop"}, 2, 1)
    assert "release/shop@1" in shop.ok("trace", "summary", "--by", "release", "--by", "minute")
    shown = shop.ok("trace", "show", trace_id)
    assert "12 euros" not in shown
    assert "score feedback: 1 by user" in shown
    assert "release: release/shop@1" in shown
    shown = shop.ok("trace", "show", trace_id, "--content")
    assert "user: How much?" in shown
    assert "assistant: 12 euros" in shown
    assert shop.json("trace", "show", f"trace:{trace_id}")["spans"][0]["endpoint"] == "shop"


def test_an_answer_is_followed_to_its_sources_and_back(shop: Shop) -> None:
    trace_id = write_trace(shop)
    tree = shop.ok("lineage", trace_id)
    assert tree.splitlines()[0].startswith("answer ")
    for part in ("psg_", "doc_", "file:documents/repairs.md", "release/shop@1", "model/scripted@1", "prompt/answer@1"):
        assert part in tree
    down = shop.ok("lineage", "file:documents/repairs.md")
    assert trace_id in down
    assert "used by 1 answers" in down
    assert shop.json("lineage", "release/shop@1")["traces"] == [trace_id]
    graph = shop.ok("lineage", trace_id, "--mermaid")
    assert graph.startswith("graph TD\n")
    assert "-->" in graph
    assert "Nothing is known of" in shop.refused("lineage", "doc_0")
    assert "no 'release/other'" in shop.refused("lineage", "release/other")


def test_what_a_model_wrote_cannot_move_the_cursor(shop: Shop) -> None:
    trace_id = write_trace(shop, output="\x1b]0;owned\x07 \x1b[2J")
    shown = shop.ok("trace", "show", trace_id, "--content")
    assert "\x1b" not in shown
    assert "\\x1b[2J" in shown


def test_traces_come_from_the_control_plane_while_it_runs(shop: Shop) -> None:
    trace_id = write_trace(shop)
    with open_project(shop.folder) as opened:
        port = opened.settings.server.port
    with running_server(shop, port):
        assert [one["trace_id"] for one in shop.json("trace", "list")["traces"]] == [trace_id]
        assert shop.json("trace", "show", trace_id)["scores"][0]["name"] == "feedback"
        assert [one["requests"] for one in shop.json("trace", "summary", "--by", "release")] == [1]
        assert shop.json("lineage", trace_id)["kind"] == "trace"
        assert "no trace" in shop.refused("trace", "show", "1" * 32)
        limit_s = time.monotonic() + 30
        while not (states := shop.json("monitor", "list")):
            assert time.monotonic() < limit_s
            time.sleep(0.2)
        assert states[0]["firing"] is False
        # A project whose settings name another port finds the store taken, and says by what.
        shop.change("server", "port", to=1)
        assert "telemetry.duckdb" in shop.refused("trace", "list")
    assert [one["trace_id"] for one in shop.json("trace", "list")["traces"]] == [trace_id]


def test_alarms_are_listed_with_their_evidence(shop: Shop) -> None:
    with open_project(shop.folder) as opened:
        verdict = Verdict("firing", "3 % of requests fail", {"at": "2026-01-01T00:00:00+00:00"})
        opened.ledger.decisions.record(ALARM, "monitor/shop-errors", verdict, actor="monitor")
    assert "3 % of requests fail" in shop.ok("monitor", "alarms")
    assert shop.json("monitor", "alarms")[0]["evidence"]["at"].startswith("2026")


def test_a_tree_shows_each_thing_once_and_ends_in_a_circle() -> None:
    nodes = [{"id": name, "kind": "row", "label": name} for name in ("a", "b", "c", "held")]
    edges = [("a", "b", "x"), ("a", "b", "y"), ("a", "c", "x"), ("b", "c", "x"), ("c", "a", "x")]
    graph = {
        "ref": "a",
        "nodes": nodes,
        "edges": [dict(zip(("child", "parent", "role"), edge, strict=True)) for edge in edges],
    }
    assert tree_lines(graph) == [
        "row a",
        "came from:",
        "  row b  (x, y)",
        "    row c  (x)",
        "      row a  (x), see above",
        "  row c  (x), see above",
        "went into:",
        "  row c  (x), see above",
        "held by:",
        "  row held",
    ]


def test_a_label_cannot_leave_its_place_in_the_graph() -> None:
    graph = {"ref": "n", "nodes": [{"id": "n", "kind": "row", "label": 'x"]\nclick n0 <b>'}], "edges": []}
    assert mermaid(graph) == 'graph TD\n    n0["row x#quot;] click n0 #lt;b>"]'
