from __future__ import annotations

import hashlib
import random
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidemill.kernel import ArtifactKind, InvalidInput, NotFound, RowId, digest_bytes
from tidemill.ledger import ArtifactVersion, Ledger, Row, RunStatus, collect_garbage
from tidemill.ledger.dataset_files import MerkleTree, SortedRows

CODE = digest_bytes(b"code")


def _row(number: int, text: Any = "text", **more: Any) -> Row:
    return Row(row_id=RowId(f"r{number:06d}"), value={"text": text, "n": number}, **more)


def _bytes(ledger: Ledger) -> int:
    return sum(size for _, size, _ in ledger.blobs.list())


def _texts(count: int) -> list[str]:
    """Texts that do not compress to nothing."""
    return [
        " ".join(hashlib.sha256(f"{number} {word}".encode()).hexdigest() for word in range(4))
        for number in range(count)
    ]


def test_rows_come_back_in_order_with_sources_and_subject(ledger: Ledger) -> None:
    rows = [_row(number, ["ä", None, 1.5], sources=(f"file:{number}", "r0"), subject_hash="s") for number in range(50)]
    random.Random(1).shuffle(rows)
    version = ledger.datasets.write(
        "set", rows, content={"title": "a set"}, extra_blobs={"card": ledger.blobs.put(b"c")}
    )
    assert version.content["title"] == "a set"
    assert version.content["rows"]["count"] == ledger.datasets.count(version) == 50
    assert version.content["rows"]["fields"] == ["n", "text"]
    assert list(version.blobs) == ["card"]
    assert list(ledger.datasets.read(version)) == sorted(rows, key=lambda row: row.row_id)
    wanted = [rows[3], rows[1], rows[3]]
    assert ledger.datasets.rows(version, [row.row_id for row in wanted]) == wanted
    assert ledger.datasets.verify(version)


def test_a_set_without_rows(ledger: Ledger) -> None:
    version = ledger.datasets.write("empty", [])
    assert (list(ledger.datasets.read(version)), ledger.datasets.count(version)) == ([], 0)
    assert ledger.datasets.rows(version, []) == []
    filled = ledger.datasets.write("empty", [_row(1)], base=version)
    assert [row.row_id for row in ledger.datasets.read(filled)] == ["r000001"]
    assert list(ledger.datasets.read(ledger.datasets.write("empty", [], base=filled))) == []


def test_the_name_depends_on_content_alone(ledger: Ledger) -> None:
    rows = [_row(number) for number in range(30)]
    first = ledger.datasets.write("set", rows)
    assert ledger.datasets.write("set", reversed(rows)) == first
    assert ledger.datasets.write("set", rows, base=first) == first
    assert ledger.datasets.write("other", rows + rows).digest == first.digest
    sourced = [_row(number, sources=("file:a",)) for number in range(30)]
    assert ledger.datasets.write("set", sourced).version == 2


def test_what_is_wrong_is_said(ledger: Ledger) -> None:
    with pytest.raises(InvalidInput, match="two different rows have the id 'r000001'"):
        ledger.datasets.write("set", [_row(1, "a"), _row(2), _row(1, "b")])
    with pytest.raises(InvalidInput, match="an empty id"):
        ledger.datasets.write("set", [Row(row_id=RowId(""), value={})])
    with pytest.raises(InvalidInput, match="canonical JSON"):
        ledger.datasets.write("set", [_row(1, float("nan"))])
    with pytest.raises(InvalidInput, match="may not have the key 'rows'"):
        ledger.datasets.write("set", [], content={"rows": 1})
    assert ledger.artifacts.list() == []
    prompt = ledger.artifacts.publish(ArtifactKind.PROMPT, "p", {})
    with pytest.raises(InvalidInput, match="'prompt/p@1' is no data set"):
        next(ledger.datasets.read(prompt))
    version = ledger.datasets.write("set", [_row(1)])
    with pytest.raises(NotFound, match="does not hold the row 'r000009'"):
        ledger.datasets.rows(version, [RowId("r000001"), RowId("r000009")])


def test_one_percent_costs_about_one_percent_and_compaction_keeps_the_name(sqlite_ledger: Ledger) -> None:
    ledger = sqlite_ledger
    texts = _texts(8000)
    first = ledger.datasets.write("set", (_row(number, text) for number, text in enumerate(texts)))
    whole = _bytes(ledger)
    edited = [
        _row(number, text + ("!" if number % 100 == 3 else "")) for number, text in enumerate(texts) if number % 1000
    ]
    second = ledger.datasets.write("set", edited, base=first)
    assert (_bytes(ledger) - whole) / whole < 0.02
    assert len(ledger.datasets.objects(second)) == 3
    assert ledger.datasets.objects(second)[:1] == ledger.datasets.objects(first)
    third = ledger.datasets.write("set", (_row(number, text) for number, text in enumerate(texts)), base=second)
    assert (third.digest, third.version) == (first.digest, 1), "back to what it was"
    assert list(ledger.datasets.read(second)) == edited
    asked = [edited[7], edited[2], edited[2000]]
    assert ledger.datasets.rows(second, [row.row_id for row in asked]) == asked
    reading = ledger.datasets.read(second)
    begun = [next(reading) for _ in range(5)]
    assert ledger.datasets.compact(second)
    assert not ledger.datasets.compact(second)
    assert not ledger.datasets.compact(first)
    assert len(ledger.datasets.objects(second)) == 1
    time.sleep(0.01)
    assert len(collect_garbage(ledger, grace_s=0).removed) == 3, "delta, deletions, and the delta back"
    assert begun + list(reading) == edited, "who reads is not disturbed"
    assert list(ledger.datasets.read(second)) == edited
    assert ledger.datasets.rows(second, [row.row_id for row in asked]) == asked
    assert ledger.datasets.write("set", edited) == second
    assert ledger.datasets.verify(first)
    assert ledger.lineage.versions_holding("r001000") == [first]
    assert ledger.lineage.versions_holding("r000003") == [first, second]


def test_many_edits_and_large_ones_make_a_new_base(sqlite_ledger: Ledger) -> None:
    version = sqlite_ledger.datasets.write("set", [_row(number) for number in range(100)])
    for edit in range(20):
        rows = [_row(number, f"edit {edit}" if number == edit else "text") for number in range(100)]
        version = sqlite_ledger.datasets.write("set", rows, base=version)
        assert len(sqlite_ledger.datasets.objects(version)) <= 16
        assert list(sqlite_ledger.datasets.read(version)) == rows
    other = sqlite_ledger.datasets.write("set", [_row(number, "other") for number in range(100)], base=version)
    assert len(sqlite_ledger.datasets.objects(other)) == 1


def test_lineage_of_rows_and_versions(ledger: Ledger) -> None:
    run_id = ledger.runs.start("write", code_digest=CODE, environment_digest=CODE).run_id
    documents = ledger.datasets.write("documents", [_row(1, sources=("file:a.md",)), _row(2, sources=("file:b.md",))])
    passages = ledger.datasets.write(
        "passages",
        [
            Row(row_id=RowId("p1"), value={}, sources=("r000001",)),
            Row(row_id=RowId("p2"), value={}, sources=("r000002",)),
        ],
        made_by=run_id,
        parents=[documents.digest],
    )
    assert passages.made_by == run_id
    assert "file:a.md" in ledger.lineage.row_ancestors(["p1"])
    assert "file:b.md" not in ledger.lineage.row_ancestors(["p1"])
    assert "p2" in ledger.lineage.row_descendants("file:b.md")
    assert documents.digest in ledger.lineage.ancestors(passages.digest)
    assert ledger.lineage.versions_holding("p1") == [passages]
    fewer = ledger.datasets.write("documents", [_row(2, sources=("file:b.md",))], base=documents)
    assert documents.digest in ledger.lineage.ancestors(fewer.digest)
    assert ledger.lineage.versions_holding("r000001") == [documents]
    ledger.runs.finish(run_id, RunStatus.OK)


def test_a_writer_that_died_leaves_nothing_behind(sqlite_ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object, **__: object) -> ArtifactVersion:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sqlite_ledger.artifacts, "publish_within", die)
        with pytest.raises(KeyboardInterrupt):
            sqlite_ledger.datasets.write("set", [_row(1, sources=("file:a",))])
    assert sqlite_ledger.lineage.versions_holding("r000001") == []
    time.sleep(0.01)
    assert len(collect_garbage(sqlite_ledger, grace_s=0).removed) == 1
    version = sqlite_ledger.datasets.write("set", [_row(1, sources=("file:a",))])
    assert list(sqlite_ledger.datasets.read(version)) == [_row(1, sources=("file:a",))]
    assert sqlite_ledger.lineage.versions_holding("r000001") == [version]


def test_more_rows_than_memory_are_sorted_on_the_disk(tmp_path: Path) -> None:
    rows = [_row(number, "x" * 100) for number in range(2000)]
    random.Random(3).shuffle(rows)
    spilled = SortedRows(iter(rows), tmp_path, limit_bytes=50_000)
    assert len(list(tmp_path.glob("run-*"))) > 10
    assert [record.row() for record in spilled] == sorted(rows, key=lambda row: row.row_id)
    assert list(spilled) == list(SortedRows(rows, tmp_path)), "again, and as in memory"


def _root(leaves: list[tuple[str, bytes]]) -> bytes:
    """The Merkle tree hash as RFC 6962 defines it, by recursion."""
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0][1] + leaves[0][0].encode()).digest()
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    return hashlib.sha256(b"\x01" + _root(leaves[:split]) + _root(leaves[split:])).digest()


@given(st.integers(1, 70))
def test_the_root_is_that_of_rfc_6962(count: int) -> None:
    leaves = [(f"r{number}", hashlib.sha256(bytes([number])).digest()) for number in range(count)]
    tree = MerkleTree()
    for leaf in leaves:
        tree.add(*leaf)
    assert tree.root() == "sha256:" + _root(leaves).hex()


STATES = st.dictionaries(st.integers(0, 12), st.text(max_size=4), max_size=10)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STATES, min_size=2, max_size=5), st.data())
def test_any_chain_of_edits_reads_as_if_written_whole(
    sqlite_ledger: Ledger, states: list[dict[int, str]], data: st.DataObject
) -> None:
    name = f"set-{uuid.uuid4().hex[:8]}"
    # Rows that never change keep the edits small beside the whole, so that deltas and not new bases are written.
    still = [_row(number) for number in range(100, 130)]
    version = None
    for state in states:
        rows = [_row(number, text) for number, text in state.items()] + still
        version = sqlite_ledger.datasets.write(name, rows, base=version)
        if data.draw(st.booleans()):
            sqlite_ledger.datasets.compact(version)
        expected = sorted(rows, key=lambda row: row.row_id)
        assert list(sqlite_ledger.datasets.read(version)) == expected
        assert sqlite_ledger.datasets.rows(version, [row.row_id for row in rows]) == rows
        assert sqlite_ledger.datasets.verify(version)
        assert sqlite_ledger.datasets.write(name + "-whole", rows).digest == version.digest
