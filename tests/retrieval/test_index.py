"""Search: oracles for BM25 and fusion, ties, refusals."""

import math
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.kernel import InvalidInput, RowId
from tidemill.retrieval import Index, IndexOptions, Passage, index_passages
from tidemill.retrieval.sparse import Bm25Matrix, build_bm25
from tidemill.retrieval.words import terms

TEXTS = {
    "psg_a": "The assert statement inserts debugging assertions into a program.",
    "psg_b": "The with statement wraps a block in methods defined by a context manager.",
    "psg_c": "A KeyError is raised when a mapping key is not found.",
    "psg_d": "Assignment expressions use := and are named walrus.",
}


def passage(name: str, text: str, title: str = "") -> Passage:
    return Passage(
        passage_id=RowId(name),
        document_id=RowId("doc_" + name),
        source=f"test:{name}",
        title=title,
        text=text,
        start=0,
        end=len(text),
    )


def vectors(count: int, dimension: int = 8) -> np.ndarray:
    raw = np.random.default_rng(0).normal(size=(count, dimension)).astype(np.float32)
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)


def made(mode: str = "bm25") -> Index:
    passages = [passage(name, text) for name, text in TEXTS.items()]
    return index_passages(passages, vectors=None if mode == "bm25" else vectors(4), mode=mode)


def found(index: Index, query: str, **options: object) -> list[str]:
    return [hit.passage_id for hit in index.search(query, top_k=4, **options)]


def test_terms_stem_and_know_identifiers_and_operators() -> None:
    assert terms("What are the running dogs?") == ["run", "dog"]
    assert terms("KeyError") == ["keyerror", "key", "error"]
    assert terms("__init_subclass__") == ["init_subclass", "init", "subclass"]
    assert terms("x := 5 ** 2") == [":=", "**"]
    assert terms("=====") == []


@given(st.lists(st.lists(st.sampled_from("abcde"), max_size=8), min_size=1, max_size=6), st.sampled_from("abcdef"))
def test_bm25_is_lucenes_formula(documents: list[list[str]], query: str) -> None:
    k1, b = 1.2, 0.75
    scores = build_bm25(documents, k1=k1, b=b).score([query])
    mean = sum(map(len, documents)) / len(documents)
    frequency = sum(query in document for document in documents)
    idf = math.log(1 + (len(documents) - frequency + 0.5) / (frequency + 0.5))
    for document, score in zip(documents, scores, strict=True):
        count = document.count(query)
        expected = idf * count / (count + k1 * (1 - b + b * len(document) / mean)) if count else 0.0
        assert score == pytest.approx(expected, rel=1e-4)


@given(
    st.lists(st.lists(st.sampled_from("abcde"), max_size=8), min_size=1, max_size=6),
    st.text("abcdef", min_size=1, max_size=5),
)
def test_no_passage_exceeds_the_bound(documents: list[list[str]], query: str) -> None:
    matrix = build_bm25(documents)
    assert matrix.score(list(query)).max() <= matrix.bound(list(query)) * (1 + 1e-6)
    assert matrix.bound([*query, "f"]) >= matrix.bound(list(query))


def test_bm25_matrix_survives_writing_and_gives_equal_bytes() -> None:
    matrix = build_bm25([["a", "b"], ["b", "c", "c"], []])
    data = matrix.encode()
    again = Bm25Matrix.decode(data)
    assert again.encode() == data == build_bm25([["a", "b"], ["b", "c", "c"], []]).encode()
    assert again.vocabulary == matrix.vocabulary
    assert again.score(["c", "b"]).tolist() == matrix.score(["c", "b"]).tolist()
    with pytest.raises(InvalidInput, match="cannot be read"):
        Bm25Matrix.decode(b"nonsense")


def test_bm25_finds_by_stem_identifier_and_operator() -> None:
    index = made()
    assert found(index, "debugging an assertion")[0] == "psg_a"
    assert found(index, "key error")[0] == "psg_c"
    assert found(index, "what does := do") == ["psg_d"]
    assert found(index, "zebra") == []
    assert found(index, "") == []


def test_titles_are_weighted() -> None:
    passages = [passage("psg_1", "about loops and more", "loops"), passage("psg_2", "about loops and loops more", "x")]
    weighted = index_passages(passages, options=IndexOptions(title_weight=4))
    plain = index_passages(passages, options=IndexOptions(title_weight=0))
    assert found(weighted, "loops")[0] == "psg_1"
    assert found(plain, "loops")[0] == "psg_2"


def test_dense_search_is_exact() -> None:
    index, rows = made("dense"), vectors(4)
    for at, name in enumerate(sorted(TEXTS)):
        hits = index.search("anything", top_k=4, query_vector=rows[at])
        assert hits[0].passage_id == name
        assert [hit.cosine for hit in hits] == pytest.approx(sorted(rows @ rows[at], reverse=True), abs=1e-5)
        assert hits[0].evidence == pytest.approx(1.0, abs=1e-5)


@given(st.floats(0, 1), st.sampled_from(["bounded", "minmax", "rrf"]))
def test_hybrid_lies_between_its_parts(weight: float, fusion: str) -> None:
    index, vector = made("hybrid"), vectors(4)[2]
    query = "statement in a program"  # every word is known: nothing is corrected
    hybrid = found(index, query, query_vector=vector, dense_weight=weight, fusion=fusion)
    assert sorted(hybrid) == sorted(TEXTS)
    sparse = found(index, query, mode="bm25")
    dense = found(index, query, mode="dense", query_vector=vector)
    if weight == 0:
        assert hybrid[: len(sparse)] == sparse
    if weight == 1:
        assert hybrid == dense
    if sparse[0] == dense[0]:
        assert hybrid[0] == sparse[0]


def test_ties_go_by_passage_id_whatever_the_order_given() -> None:
    passages = [passage(f"psg_{n}", "the same words here") for n in "cabd"]
    assert found(index_passages(passages), "same words") == ["psg_a", "psg_b", "psg_c", "psg_d"]


def test_vectors_follow_their_passages() -> None:
    rows = vectors(3)
    passages = [passage(f"psg_{n}", "x") for n in "cab"]
    index = index_passages(passages, vectors=rows, mode="dense")
    assert [found(index, "", query_vector=row)[0] for row in rows] == ["psg_c", "psg_a", "psg_b"]


def test_threads_may_search_together() -> None:
    index = made()
    wanted = found(index, "assertion statements")
    results: list[list[str]] = []
    workers = [
        threading.Thread(target=lambda: results.extend(found(index, "assertion statements") for _ in range(50)))
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [wanted] * 200


def test_what_cannot_be_searched_is_refused_with_the_reason() -> None:
    passages = [passage("psg_a", "x")]
    with pytest.raises(InvalidInput, match="build it with an embedder"):
        index_passages(passages, mode="dense")
    with pytest.raises(InvalidInput, match="has no vectors"):
        index_passages(passages).search("x", top_k=1, mode="hybrid")
    dense = index_passages(passages, vectors=vectors(1), mode="dense")
    with pytest.raises(InvalidInput, match="needs the question's vector"):
        dense.search("x", top_k=1)
    with pytest.raises(InvalidInput, match="embedding model"):
        dense.search("x", top_k=1, query_vector=np.zeros(3, np.float32))
    with pytest.raises(InvalidInput, match="no search mode"):
        dense.search("x", top_k=1, mode="sideways")
    with pytest.raises(InvalidInput, match="no fusion"):
        dense.search("x", top_k=1, fusion="sideways")
    with pytest.raises(InvalidInput, match="does not fit together"):
        Index(passages, build_bm25([]))
    with pytest.raises(InvalidInput, match="index options"):
        IndexOptions.from_json({"k3": 1})


def test_an_empty_index_finds_nothing() -> None:
    assert index_passages([]).search("x", top_k=3) == []


def test_options_survive_writing() -> None:
    options = IndexOptions(k1=0.9, title_weight=3)
    assert IndexOptions.from_json(options.as_json()) == options
