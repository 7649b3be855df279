"""An index in memory: BM25, exact vector search, and both together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tidemill.kernel import InvalidInput
from tidemill.retrieval.passages import Passage, SplitOptions
from tidemill.retrieval.sparse import Bm25Matrix, build_bm25
from tidemill.retrieval.spelling import Spelling
from tidemill.retrieval.words import terms

Mode = Literal["bm25", "dense", "hybrid"]
Fusion = Literal["bounded", "minmax", "rrf"]
Vectors = NDArray[np.float32]

# Reciprocal rank fusion's constant, from Cormack, Clarke, Büttcher 2009.
_RRF_K: Final = 60
_DECIMALS: Final = 6


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """How an index is built.

    Args:
        split: how documents are cut into passages.
        k1, b: BM25's saturation and length normalisation.
        title_weight: how many times the words of a passage's title count.
    """

    split: SplitOptions = field(default_factory=SplitOptions)
    k1: float = 1.2
    b: float = 0.75
    title_weight: int = 2

    def __post_init__(self) -> None:
        if self.k1 < 0 or not 0 <= self.b <= 1 or self.title_weight < 0:
            raise InvalidInput(
                f"index options k1={self.k1}, b={self.b}, title_weight={self.title_weight}: "
                "k1 and title_weight are not negative and b lies in [0, 1]"
            )

    def as_json(self) -> dict[str, Any]:
        """The options as a plain JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> IndexOptions:
        """Read back what ``as_json`` wrote.

        Raises:
            InvalidInput: an option that does not exist or has an impossible value.
        """
        try:
            return cls(**{**value, "split": SplitOptions(**value.get("split", {}))})
        except TypeError as error:
            raise InvalidInput(f"index options: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One passage found.

    Args:
        score: what the ranking went by; comparable within one result only.
        rank: place in the result, from 1.
        bm25: BM25 of the passage for this question, 0 without a common word.
        cosine: cosine of question and passage, where the search had a question vector.
    """

    passage_id: str
    document_id: str
    source: str
    title: str
    text: str
    score: float
    rank: int
    bm25: float
    cosine: float | None = None

    @property
    def evidence(self) -> float:
        """A score that compares across questions: the cosine, else BM25. Fused scores do not."""
        return self.bm25 if self.cosine is None else self.cosine


class Index:
    """Passages with their BM25 matrix and, if it has them, vectors. Read-only, so threads may share it.

    Args:
        passages: in the order of their ids, which also breaks ties.
        bm25: the matrix over the same order.
        vectors: shape (passages, dimension), L2-normalised; ``None`` for an index without.
        mode: how it searches unless told otherwise.
    """

    def __init__(
        self, passages: Sequence[Passage], bm25: Bm25Matrix, vectors: Vectors | None = None, *, mode: Mode = "bm25"
    ) -> None:
        if bm25.passages != len(passages) or (vectors is not None and len(vectors) != len(passages)):
            raise InvalidInput(
                f"the index does not fit together: {len(passages)} passages, {bm25.passages} rows of BM25, "
                f"{'no' if vectors is None else len(vectors)} vectors; build it again"
            )
        self._passages = passages
        self._bm25 = bm25
        self._vectors = vectors
        self._spelling: Spelling | None = None
        self.mode = _checked(mode)
        if mode != "bm25" and vectors is None:
            raise InvalidInput(f"an index without vectors cannot search in mode '{mode}'; build it with an embedder")

    def __len__(self) -> int:
        return len(self._passages)

    @property
    def dimension(self) -> int | None:
        """Length of the vectors, ``None`` for an index without."""
        return None if self._vectors is None else int(self._vectors.shape[1])

    def search(
        self,
        query: str,
        *,
        top_k: int,
        query_vector: Vectors | None = None,
        mode: Mode | None = None,
        dense_weight: float = 0.5,
        fusion: Fusion = "bounded",
        spelling: bool | None = None,
    ) -> list[Hit]:
        """Find the passages nearest to a question.

        Args:
            query: the question.
            top_k: at most so many hits.
            query_vector: the question's vector, shape (dimension,), L2-normalised; needed in dense and hybrid mode.
            mode: the index's own if ``None``.
            dense_weight: share of the vectors in a hybrid score, in [0, 1].
            fusion: ``bounded`` adds the cosine scaled to [0, 1] and the share of the best possible BM25 that a
                passage reached, so that words count for little where few of them are found (the theoretical bounds of
                Bruch, Gai, Ingber 2023); ``minmax`` scales both by what was found; ``rrf`` adds reciprocal ranks.
            spelling: read unknown words as the nearest known ones; ``None`` does so in hybrid mode.

        Returns:
            Hits, best first; ties go by passage id. BM25 mode returns no passage without a common word.

        Raises:
            InvalidInput: a mode the index cannot serve, or a vector that is missing or has another length.
        """
        chosen = self.mode if mode is None else _checked(mode)
        if fusion not in get_args(Fusion):
            raise InvalidInput(f"'{fusion}' is no fusion; there are {', '.join(get_args(Fusion))}")
        if top_k < 1 or not 0 <= dense_weight <= 1:
            raise InvalidInput(f"top_k is {top_k} and dense_weight {dense_weight}: give at least 1, and 0 to 1")
        if not self._passages:
            return []
        words = terms(query)
        if spelling or (spelling is None and chosen == "hybrid"):
            words = self._corrected(words)
        sparse = np.round(self._bm25.score(words), _DECIMALS)
        cosine = None if chosen == "bm25" else self._cosine(query_vector, chosen)
        if cosine is None:
            scores = sparse
        elif chosen == "dense":
            scores = cosine
        else:
            scores = _fuse(_scaled(sparse, fusion, self._bm25.bound(words)), _scaled(cosine, fusion), dense_weight)
        order = np.argsort(-scores, kind="stable")[:top_k]
        if chosen == "bm25":
            order = order[scores[order] > 0]
        return [
            self._hit(int(row), rank, float(scores[row]), float(sparse[row]), cosine)
            for rank, row in enumerate(order, 1)
        ]

    def _corrected(self, words: list[str]) -> list[str]:
        if self._spelling is None:
            # Two threads that come here at once make the same thing twice, and no harm.
            self._spelling = Spelling(self._bm25.frequencies())
        return self._spelling.correct(words)

    def _cosine(self, query_vector: Vectors | None, mode: Mode) -> Vectors:
        if self._vectors is None or query_vector is None:
            missing = "has no vectors" if self._vectors is None else "needs the question's vector"
            raise InvalidInput(f"search in mode '{mode}': the index {missing}")
        vector = np.asarray(query_vector, np.float32).reshape(-1)
        if vector.shape[0] != self._vectors.shape[1]:
            raise InvalidInput(
                f"the question's vector has {vector.shape[0]} numbers, the index's have {self._vectors.shape[1]}: "
                "ask with the embedding model that the index was built with"
            )
        # Not BLAS: for one vector its threads cost thirty times what they save, and their sums vary with their number.
        product: Vectors = np.round(np.einsum("ij,j->i", self._vectors, vector), _DECIMALS)
        return product

    def _hit(self, row: int, rank: int, score: float, sparse: float, cosine: Vectors | None) -> Hit:
        passage = self._passages[row]
        return Hit(
            passage_id=passage.passage_id,
            document_id=passage.document_id,
            source=passage.source,
            title=passage.title,
            text=passage.text,
            score=round(score, _DECIMALS),
            rank=rank,
            bm25=round(sparse, _DECIMALS),
            cosine=None if cosine is None else round(float(cosine[row]), _DECIMALS),
        )


def index_passages(
    passages: Sequence[Passage],
    *,
    vectors: Vectors | None = None,
    mode: Mode = "bm25",
    options: IndexOptions | None = None,
) -> Index:
    """Make an index in memory, without a ledger.

    Args:
        passages: in any order; ``vectors`` are in the same one.
        vectors: shape (passages, dimension), L2-normalised.
        mode: how it searches unless told otherwise.
        options: BM25's numbers; how passages were split is not looked at.
    """
    order = sorted(range(len(passages)), key=lambda at: passages[at].passage_id)
    ordered = [passages[at] for at in order]
    return Index(ordered, bm25_of(ordered, options or IndexOptions()), _reorder(vectors, order), mode=mode)


def bm25_of(passages: Sequence[Passage], options: IndexOptions) -> Bm25Matrix:
    """The BM25 matrix of passages, titles weighted."""
    documents = [terms(passage.title) * options.title_weight + terms(passage.text) for passage in passages]
    return build_bm25(documents, k1=options.k1, b=options.b)


def _reorder(vectors: Vectors | None, order: Sequence[int]) -> Vectors | None:
    return None if vectors is None else np.ascontiguousarray(vectors[list(order)], np.float32)


def _fuse(sparse: Vectors, cosine: Vectors, dense_weight: float) -> Vectors:
    return np.round((1 - dense_weight) * sparse + dense_weight * cosine, _DECIMALS).astype(np.float32)


def _scaled(scores: Vectors, fusion: Fusion, bound: float | None = None) -> Vectors:
    if fusion == "rrf":
        return _rrf(scores)
    if fusion == "bounded" and bound is not None:
        return (scores / bound).astype(np.float32)
    return _minmax(scores)


def _minmax(scores: Vectors) -> Vectors:
    low, high = float(scores.min()), float(scores.max())
    scaled: Vectors = (scores - low) / (high - low) if high > low else np.zeros_like(scores)
    return scaled


def _rrf(scores: Vectors) -> Vectors:
    ranks = np.empty(len(scores), np.float32)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1, dtype=np.float32)
    return ((_RRF_K + 1) / (_RRF_K + ranks)).astype(np.float32)


def _checked(mode: Mode) -> Mode:
    if mode not in get_args(Mode):
        raise InvalidInput(f"'{mode}' is no search mode; there are {', '.join(get_args(Mode))}")
    return mode
