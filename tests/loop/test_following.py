"""Lineage where ledger and telemetry meet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tidemill.kernel import ArtifactKind, InvalidInput, NotFound, RowId, Scope
from tidemill.ledger import Ledger, Row, open_ledger
from tidemill.loop.following import follow
from tidemill.telemetry import Batch, Reference, Span, SpanStore, open_span_store

SCOPE = Scope("p", "t")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SpanStore]:
    opened = open_span_store(tmp_path / "spans.duckdb", SCOPE)
    yield opened
    opened.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """Two documents, a passage of each, an index over both, a release over the index."""
    with open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}", blobs=str(tmp_path / "blobs"), scope=SCOPE) as opened:
        documents = [
            Row(row_id=RowId(f"doc_{name}"), value={"title": name}, sources=(f"file:docs/{name}.md",)) for name in "ab"
        ]
        dataset = opened.datasets.write("papers", documents)
        passages = [Row(row_id=RowId(f"psg_{name}"), value={"text": name}, sources=(f"doc_{name}",)) for name in "ab"]
        index = opened.datasets.write("papers", passages, kind=ArtifactKind.INDEX, parents=[dataset.digest])
        opened.artifacts.publish(ArtifactKind.RELEASE, "desk", {"index": index.digest}, parents=[index.digest])
        yield opened


def answered(store: SpanStore, number: int, *references: Reference) -> str:
    trace_id = f"{number:032x}"
    span = Span(
        trace_id=trace_id,
        span_id=f"{number:016x}",
        project="p",
        tenant="t",
        name="chat",
        operation="chat",
        started_at_ns=number,
        ended_at_ns=number + 1,
        references=references,
    )
    store.commit(Batch([span]), {})
    return trace_id


def edges(found: dict) -> set[tuple[str, str, str]]:  # type: ignore[type-arg]  # JSON
    return {(one["child"], one["parent"], one["role"]) for one in found["edges"]}


def test_an_answer_leads_up_to_its_sources_and_says_what_it_cited(ledger: Ledger, store: SpanStore) -> None:
    release = ledger.artifacts.get("release/desk")
    trace_id = answered(
        store,
        1,
        Reference("passage", "psg_a", "cited"),
        Reference("passage", "psg_a", "retrieved"),
        Reference("passage", "psg_b", "retrieved"),
        Reference("artifact", release.digest, "release"),
    )
    found = follow(ledger, store, trace_id)
    assert follow(ledger, store, f"trace:{trace_id}") == found
    used = {(parent, role) for child, parent, role in edges(found) if child == trace_id}
    assert used == {("psg_a", "cited"), ("psg_b", "retrieved"), (release.digest, "release")}
    nodes = {one["id"] for one in found["nodes"]}
    assert {
        "doc_a",
        "doc_b",
        "file:docs/a.md",
        "file:docs/b.md",
        ledger.artifacts.get("dataset/papers").digest,
    } <= nodes


def test_a_source_leads_down_to_the_answers_it_touched_and_no_others(ledger: Ledger, store: SpanStore) -> None:
    first = answered(store, 1, Reference("passage", "psg_a", "retrieved"))
    answered(store, 2, Reference("passage", "psg_b", "retrieved"))
    for ref in ("file:docs/a.md", "doc_a", "psg_a"):
        found = follow(ledger, store, ref)
        assert (found["kind"], found["traces"], found["trace_count"]) == ("row", [first], 1)
    assert follow(ledger, None, "doc_a")["traces"] == []
    holders = {one["label"] for one in found["nodes"] if one["kind"] == "index"}
    assert holders == {"index/papers@1"}


def test_a_data_set_leads_down_to_answers_of_releases_over_it(ledger: Ledger, store: SpanStore) -> None:
    release = ledger.artifacts.get("release/desk")
    trace_id = answered(store, 1, Reference("artifact", release.digest, "release"))
    for ref in ("dataset/papers", "dataset/papers@1", ledger.artifacts.get("index/papers").digest):
        assert follow(ledger, store, ref)["traces"] == [trace_id]


def test_what_is_not_known_is_a_sentence(ledger: Ledger, store: SpanStore) -> None:
    for ref in ("0" * 32, "trace:" + "f" * 32, "doc_none", "file:docs/none.md", "dataset/none", "sha256:" + "0" * 64):
        with pytest.raises(NotFound):
            follow(ledger, store, ref)
    with pytest.raises(InvalidInput):
        follow(ledger, store, "no such/kind@x")
