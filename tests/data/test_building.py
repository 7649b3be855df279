from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.data import Document, Skipped, build_dataset, read_python_reference, sift
from tidemill.kernel import InvalidInput, Verdict
from tidemill.ledger import Ledger

LONG = "the quick brown fox jumps over the lazy dog while seven wizards box with great vigour in the old barn tonight"


def _document(text: str, source: str = "file:a") -> Document:
    return Document(title="t", text=text, source=source)


def test_repetitions_and_empty_documents_are_dropped_with_their_reason() -> None:
    near = LONG + " again"
    sifted = sift(
        [
            _document(LONG, "1"),
            _document(LONG + "\r\n", "2"),
            _document(near, "3"),
            _document("--", "4"),
            _document("x", "5"),
        ]
    )
    assert [document.source for document in sifted.kept] == ["1", "5"]
    assert [(document.source, verdict.evidence["check"]) for document, verdict in sifted.dropped] == [
        ("2", "duplicate"),
        ("3", "near_duplicate"),
        ("4", "empty"),
    ]
    assert sifted.also_at == {"1": ("2",)}
    assert all(verdict.value is False and verdict.reason for _, verdict in sifted.dropped)


@given(st.lists(st.builds(_document, st.text(max_size=30), st.sampled_from("abc")), max_size=12))
def test_nothing_vanishes_and_no_text_is_kept_twice(documents: list[Document]) -> None:
    sifted = sift(documents)
    assert len(sifted.kept) + len(sifted.dropped) == len(documents)
    texts = [document.text for document in sifted.kept]
    assert len(set(texts)) == len(texts)
    assert sift(sifted.kept).dropped == ()


def test_a_data_set_and_what_was_left_out_are_written(sqlite_ledger: Ledger) -> None:
    documents = [_document(LONG, "file:1"), _document(LONG, "file:2"), _document("other text", "file:3")]
    skipped = [Skipped("file:4", Verdict(False, "is binary, not text"))]
    build = build_dataset(sqlite_ledger, "helpdesk", documents, skipped=skipped)
    assert build.counts == {"duplicate": 1, "kept": 2, "read": 3, "skipped": 1}
    rows = {row.value["source"]: row for row in sqlite_ledger.datasets.read(build.version)}
    assert Document.from_value(rows["file:3"].value) == documents[2]
    assert rows["file:1"].sources == ("file:1", "file:2")
    assert rows["file:1"].row_id == documents[0].row_id
    assert build.excluded is not None
    assert build.excluded.name == "helpdesk-excluded"
    excluded = {
        row.value["source"]: row.value["verdict"]["reason"] for row in sqlite_ledger.datasets.read(build.excluded)
    }
    assert excluded == {"file:2": "the same text stands in file:1", "file:4": "is binary, not text"}


def test_the_same_documents_give_the_same_version(sqlite_ledger: Ledger) -> None:
    documents = [_document(f"text number {number}", f"file:{number}") for number in range(5)]
    first = build_dataset(sqlite_ledger, "helpdesk", documents)
    assert build_dataset(sqlite_ledger, "helpdesk", documents).version.digest == first.version.digest
    assert first.excluded is None
    changed = build_dataset(sqlite_ledger, "helpdesk", documents[1:])
    assert changed.version.version == 2


def test_nothing_but_empty_documents_is_an_error(sqlite_ledger: Ledger) -> None:
    with pytest.raises(InvalidInput, match="No document is left"):
        build_dataset(sqlite_ledger, "helpdesk", [_document(" ")])


def test_the_python_reference_becomes_a_data_set_whose_lineage_ends_at_its_source(sqlite_ledger: Ledger) -> None:
    build = build_dataset(sqlite_ledger, "python", read_python_reference())
    assert build.counts["kept"] >= 400
    assert build.counts["duplicate"] >= 1
    row = next(
        row for row in sqlite_ledger.datasets.read(build.version) if row.value["source"] == "python:topics/assert"
    )
    assert "python:topics/assert" in sqlite_ledger.lineage.row_ancestors([row.row_id])
