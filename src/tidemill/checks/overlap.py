"""Shared word n-grams: how much of one text stands in another, and which texts are nearly the same."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tidemill.kernel import InvalidInput

if TYPE_CHECKING:
    import numpy as np

_WORD: Final = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text, case folded, without punctuation."""
    return _WORD.findall(text.casefold())


def shingles(text: str, n: int) -> frozenset[int]:
    """The distinct word n-grams of a text as 64-bit hashes that are the same in every process.

    A text of fewer than ``n`` words has one shingle, itself; a text without words has none.
    """
    if n < 1:
        raise InvalidInput(f"n-grams need n of at least 1, not {n}")
    found = words(text)
    if not found:
        return frozenset()
    grams = (" ".join(found[start : start + n]) for start in range(max(1, len(found) - n + 1)))
    blake2b = hashlib.blake2b
    return frozenset(
        int.from_bytes(blake2b(gram.encode("utf-8", "replace"), digest_size=8).digest(), "big") for gram in grams
    )


def overlap(text: str, source: str, n: int = 3) -> float:
    """The share of a text's distinct n-grams that stand in a source too, in [0, 1]; 0 for a text without words.

    A text shorter than ``n`` words is compared by n-grams of its own length.
    """
    size = max(1, min(n, len(words(text))))
    wanted = shingles(text, size)
    return len(wanted & shingles(source, size)) / len(wanted) if wanted else 0.0


def jaccard(a: str, b: str, n: int = 5) -> float:
    """Shared n-grams over all n-grams of both texts, in [0, 1]; two texts without words are equal (1)."""
    return _jaccard(shingles(a, n), shingles(b, n))


def _jaccard(a: frozenset[int], b: frozenset[int]) -> float:
    return len(a & b) / len(a | b) if a or b else 1.0


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """An earlier text that a new one nearly repeats.

    Args:
        key: the earlier text's key.
        similarity: exact Jaccard similarity of their n-grams.
    """

    key: Hashable
    similarity: float


class NearDuplicates:
    """Finds, for each text in turn, the most similar earlier one.

    MinHash with banded buckets proposes, exact Jaccard similarity decides, so there are no false alarms; at the
    threshold itself a pair is missed with probability ``(1 - threshold**rows)**bands`` (A. Broder, 1997; Leskovec et
    al., Mining of Massive Datasets, 3.4).

    Args:
        threshold: Jaccard similarity in (0, 1] from which texts count as nearly the same.
        n: words in an n-gram.
        bands, rows: of the signature; 32 x 4 misses .02 % at .7 and 0 to eight places at .9.
    """

    def __init__(self, threshold: float = 0.8, *, n: int = 5, bands: int = 32, rows: int = 4) -> None:
        if not 0 < threshold <= 1:
            raise InvalidInput(f"the similarity threshold must lie in (0, 1], not {threshold}")
        import numpy as np

        self._threshold = threshold
        self._n = n
        self._bands = bands
        draw = np.random.default_rng(20261)
        # Multiply-shift hashing: odd factors, arithmetic modulo 2**64.
        self._factors = draw.integers(1, 2**63, bands * rows, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self._terms = draw.integers(0, 2**63, bands * rows, dtype=np.uint64)
        self._buckets: list[dict[bytes, list[int]]] = [{} for _ in range(bands)]
        self._kept: list[tuple[Hashable, frozenset[int]]] = []

    def add(self, key: Hashable, text: str) -> NearDuplicate | None:
        """Compare a text with all before it, and keep it for those that follow unless it repeats one.

        Returns:
            The most similar earlier text at or above the threshold, or ``None``.
        """
        grams = shingles(text, self._n)
        bands = self._signature(grams)
        seen = {place for bucket, band in zip(self._buckets, bands, strict=True) for place in bucket.get(band, ())}
        best: NearDuplicate | None = None
        for place in sorted(seen):
            other, kept = self._kept[place]
            similarity = _jaccard(grams, kept)
            if similarity >= self._threshold and (best is None or similarity > best.similarity):
                best = NearDuplicate(other, similarity)
        if best is None:
            for bucket, band in zip(self._buckets, bands, strict=True):
                bucket.setdefault(band, []).append(len(self._kept))
            self._kept.append((key, grams))
        return best

    def _signature(self, grams: frozenset[int]) -> list[bytes]:
        import numpy as np

        values = np.fromiter(grams or {0}, dtype=np.uint64, count=max(1, len(grams)))
        least: np.ndarray[Any, np.dtype[np.uint64]] = np.full(
            len(self._factors), np.iinfo(np.uint64).max, dtype=np.uint64
        )
        for chunk in np.array_split(values, 1 + len(values) // 4096):
            mixed = (chunk[:, None] * self._factors + self._terms) >> np.uint64(16)
            least = np.minimum(least, mixed.min(axis=0, initial=np.iinfo(np.uint64).max))
        return [band.tobytes() for band in np.split(least, self._bands)]
