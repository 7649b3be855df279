"""Indexes in a real ledger: built, loaded, built again with as little embedding as possible."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from tidemill.kernel import ArtifactKind, InvalidInput, RowId, Scope, digest_json
from tidemill.ledger import ArtifactVersion, Ledger, Row, open_ledger
from tidemill.retrieval import Embedder, IndexOptions, SplitOptions, build_index, load_index

OPTIONS = IndexOptions(split=SplitOptions(passage_tokens=20))


class Embedding:
    """Counts words by their first letter, and remembers what it was asked."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.texts: list[str] = []
        self.fail_after = fail_after

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        if self.fail_after is not None and len(self.texts) >= self.fail_after:
            raise ConnectionError("the embedder died")
        self.texts.extend(texts)
        rows = np.zeros((len(texts), 26), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.lower().split():
                row[ord(word[0]) % 26] += 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def embedder(self, name: str = "minilm") -> Embedder:
        return Embedder(self, digest_json(name))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    url = f"sqlite:///{tmp_path}/ledger.db"
    with open_ledger(url, blobs=str(tmp_path / "blobs"), scope=Scope("desk")) as opened:
        yield opened


def documents(ledger: Ledger, *names: str) -> ArtifactVersion:
    rows = [
        Row(
            row_id=RowId(f"doc_{name}"),
            value={
                "title": name,
                "text": f"All about {name}. " + f"More words on {name} follow here. " * 6,
                "source": f"test:{name}",
                "media_type": "text/plain",
            },
            sources=(f"test:{name}",),
        )
        for name in names
    ]
    return ledger.datasets.write("docs", rows)


def test_an_index_is_built_and_loaded(ledger: Ledger) -> None:
    dataset = documents(ledger, "loops", "generators")
    told: list[float] = []
    version = build_index(
        ledger, "desk", dataset, mode="bm25", options=OPTIONS, progress=lambda share, _: told.append(share)
    )
    index = load_index(ledger, version)
    assert (version.kind, version.content["mode"], version.content["dimension"]) == (ArtifactKind.INDEX, "bm25", None)
    assert len(index) == version.content["passages"] == ledger.datasets.count(version) > 2
    (hit,) = index.search("generator", top_k=1)
    assert (hit.document_id, hit.source, hit.title) == ("doc_generators", "test:generators", "generators")
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_passages_know_their_documents_and_the_index_its_data_set(ledger: Ledger) -> None:
    dataset = documents(ledger, "loops")
    version = build_index(ledger, "desk", dataset, mode="bm25", options=OPTIONS)
    passage = next(iter(ledger.datasets.read(version)))
    above = {node.node_id for node in ledger.lineage.row_ancestors([passage.row_id]).nodes}
    assert {"doc_loops", "test:loops"} <= above
    assert dataset.digest in {node.node_id for node in ledger.lineage.ancestors(version.digest).nodes}


def test_hybrid_search_goes_through_the_ledger(ledger: Ledger) -> None:
    embedding = Embedding()
    version = build_index(
        ledger, "desk", documents(ledger, "loops", "zebras"), embedder=embedding.embedder(), options=OPTIONS
    )
    index = load_index(ledger, version)
    assert (index.mode, index.dimension) == ("hybrid", 26)
    hits = index.search("nothing", top_k=2, mode="dense", query_vector=embedding(["zebras zebras"])[0])
    assert {hit.document_id for hit in hits} == {"doc_zebras"}
    for passage, vector in zip(ledger.datasets.read(version), index._vectors, strict=True):
        assert np.allclose(vector, embedding([f"{passage.value['title']}\n{passage.value['text']}"])[0])


def test_only_what_changed_is_embedded_again(ledger: Ledger) -> None:
    first, second = Embedding(), Embedding()
    old = build_index(ledger, "desk", documents(ledger, "loops"), embedder=first.embedder(), options=OPTIONS)
    new = build_index(ledger, "desk", documents(ledger, "loops", "zip"), embedder=second.embedder(), options=OPTIONS)
    assert first.texts
    assert all(text.startswith("zip\n") for text in second.texts)
    assert new.version == old.version + 1
    other = Embedding()
    build_index(ledger, "another", documents(ledger, "loops"), embedder=other.embedder(), options=OPTIONS)
    assert other.texts == []
    build_index(ledger, "another", documents(ledger, "loops"), embedder=other.embedder("e5"), options=OPTIONS)
    assert sorted(other.texts) == sorted(set(first.texts))


def test_the_same_index_twice_is_one_version(ledger: Ledger) -> None:
    dataset = documents(ledger, "loops")
    versions = [
        build_index(ledger, "desk", dataset, embedder=Embedding().embedder(), options=OPTIONS) for _ in range(2)
    ]
    assert versions[0].digest == versions[1].digest
    assert versions[0].version == versions[1].version


def test_a_build_that_died_goes_on_where_it_stopped(ledger: Ledger) -> None:
    dataset = documents(ledger, *(f"thing{n}" for n in range(30)))
    dying, after = Embedding(fail_after=64), Embedding()
    with pytest.raises(ConnectionError):
        build_index(ledger, "desk", dataset, embedder=dying.embedder(), options=OPTIONS)
    build_index(ledger, "desk", dataset, embedder=after.embedder(), options=OPTIONS)
    assert dying.texts
    assert after.texts
    assert not set(dying.texts) & set(after.texts)


def test_what_cannot_be_built_or_loaded_is_refused(ledger: Ledger) -> None:
    dataset = documents(ledger, "loops")
    with pytest.raises(InvalidInput, match="needs an embedder"):
        build_index(ledger, "desk", dataset)
    with pytest.raises(InvalidInput, match="no text"):
        build_index(ledger, "desk", ledger.datasets.write("void", []), mode="bm25")
    flat = Embedder(lambda _texts: np.zeros(3, np.float32), digest_json("flat"))
    with pytest.raises(InvalidInput, match="one row a text"):
        build_index(ledger, "desk", dataset, embedder=flat, options=OPTIONS)
    with pytest.raises(InvalidInput, match="no index"):
        load_index(ledger, dataset)
