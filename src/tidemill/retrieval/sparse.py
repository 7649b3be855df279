"""BM25 as a sparse matrix of scores computed ahead, one column a term (the eager scheme of bm25s).

bm25s builds the matrix. Looking scores up needs only numpy, so a process that answers questions does not load bm25s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidemill.kernel import InvalidInput


@dataclass(frozen=True, slots=True)
class Bm25Matrix:
    """BM25 scores of every (term, passage) pair that occurs, in compressed columns.

    Args:
        vocabulary: term to column.
        scores: the scores, column after column, float32.
        rows: the passage each score belongs to, int32.
        starts: where each column begins in ``scores``, one more than there are columns.
        passages: number of passages.
    """

    vocabulary: dict[str, int]
    scores: NDArray[np.float32]
    rows: NDArray[np.int32]
    starts: NDArray[np.int64]
    passages: int

    def score(self, query_terms: Sequence[str]) -> NDArray[np.float32]:
        """BM25 of every passage for a question, shape (passages,); a term asked twice counts twice."""
        total = np.zeros(self.passages, np.float32)
        for term, count in Counter(query_terms).items():
            column = self.vocabulary.get(term)
            if column is not None:
                span = slice(int(self.starts[column]), int(self.starts[column + 1]))
                total[self.rows[span]] += count * self.scores[span]
        return total

    def frequencies(self) -> dict[str, int]:
        """In how many passages each term occurs."""
        counts = np.diff(self.starts).tolist()
        return {term: counts[column] for term, column in self.vocabulary.items()}

    def bound(self, query_terms: Sequence[str]) -> float:
        """What no passage can exceed for a question: each term's best score; an unknown term counts as the best of all.

        Raw scores grow with the question; divided by this they say how much of it a passage answers, in [0, 1].
        """
        if not len(self.scores):
            return 1.0
        best = float(self.scores.max())
        total = 0.0
        for term in query_terms:
            column = self.vocabulary.get(term)
            span = slice(0, 0) if column is None else slice(int(self.starts[column]), int(self.starts[column + 1]))
            total += best if column is None else float(self.scores[span].max())
        return total or 1.0

    def encode(self) -> bytes:
        """The matrix as one safetensors file: equal matrices, equal bytes."""
        from safetensors.numpy import save

        terms = "\n".join(sorted(self.vocabulary, key=self.vocabulary.__getitem__)).encode()
        arrays: dict[str, NDArray[Any]] = {"scores": self.scores, "rows": self.rows, "starts": self.starts}
        arrays |= {"terms": np.frombuffer(terms, np.uint8), "passages": np.array([self.passages], np.int64)}
        return save(arrays)

    @classmethod
    def decode(cls, data: bytes) -> Bm25Matrix:
        """Read back what ``encode`` wrote.

        Raises:
            InvalidInput: the bytes are not such a file.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            arrays = load(data)
            terms = arrays["terms"].tobytes().decode().split("\n")
            passages = int(arrays["passages"][0])
            scores, rows, starts = arrays["scores"], arrays["rows"], arrays["starts"]
        except (SafetensorError, KeyError, UnicodeDecodeError) as error:
            raise InvalidInput(f"the index's BM25 file cannot be read: {error!r}") from error
        vocabulary = {term: column for column, term in enumerate(terms) if term}
        return cls(vocabulary=vocabulary, scores=scores, rows=rows, starts=starts, passages=passages)


def build_bm25(documents: Sequence[Sequence[str]], *, k1: float = 1.2, b: float = 0.75) -> Bm25Matrix:
    """Compute the matrix.

    Args:
        documents: the terms of each passage.
        k1: how fast repetitions of a term saturate.
        b: how much length is normalised, in [0, 1].

    Returns:
        Scores by Lucene's BM25 (Kamphuis et al. 2020), columns in the order of the sorted terms.
    """
    terms = sorted({term for document in documents for term in document})
    if not terms:
        starts = np.zeros(1, np.int64)
        return Bm25Matrix({}, np.zeros(0, np.float32), np.zeros(0, np.int32), starts, len(documents))
    import bm25s

    vocabulary = {term: column for column, term in enumerate(terms)}
    built = bm25s.BM25(k1=k1, b=b, method="lucene").build_index_from_ids(
        unique_token_ids=list(range(len(terms))),
        corpus_token_ids=[[vocabulary[term] for term in document] for document in documents],
        show_progress=False,
    )
    scores = np.ascontiguousarray(built["data"], np.float32)
    rows, starts = np.ascontiguousarray(built["indices"], np.int32), np.ascontiguousarray(built["indptr"], np.int64)
    return Bm25Matrix(vocabulary, scores, rows, starts, len(documents))
