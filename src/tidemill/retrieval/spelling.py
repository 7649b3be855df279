"""Misspelt words of a question brought back to words the index knows, one slip of the finger away."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

_SHORTEST: Final = 4


class Spelling:
    """Finds the known term that one insertion, deletion, substitution or swap of neighbours makes of an unknown one.

    Terms meet in what is left of both after deleting one letter (the symmetric delete scheme of W. Garbe's SymSpell),
    so nothing is compared with the whole vocabulary.

    Args:
        frequencies: known term to the number of passages that hold it.
    """

    def __init__(self, frequencies: Mapping[str, int]) -> None:
        self._frequencies = frequencies
        self._by_rest: dict[str, list[str]] = {}
        for term in frequencies:
            if _correctable(term):
                for rest in _rests(term):
                    self._by_rest.setdefault(rest, []).append(term)

    def correct(self, terms: Sequence[str]) -> list[str]:
        """Replace each unknown term by the nearest known one; the commonest if several are near, none if none is."""
        return [self._nearest(term) for term in terms]

    def _nearest(self, term: str) -> str:
        if term in self._frequencies or not _correctable(term):
            return term
        near = {found for rest in _rests(term) for found in self._by_rest.get(rest, ()) if _one_slip(term, found)}
        return min(near, key=lambda found: (-self._frequencies[found], found), default=term)


def _correctable(term: str) -> bool:
    return len(term) >= _SHORTEST and term.isalpha()


def _rests(term: str) -> Iterator[str]:
    yield term
    for at in range(len(term)):
        yield term[:at] + term[at + 1 :]


def _one_slip(left: str, right: str) -> bool:
    """Whether one edit (Damerau 1964) leads from one word to the other, which share a rest."""
    if len(left) != len(right):
        return True
    differing = [at for at, (one, other) in enumerate(zip(left, right, strict=True)) if one != other]
    if len(differing) == 1:
        return True
    first, last = differing[0], differing[-1]
    return len(differing) == 2 and last == first + 1 and left[first] == right[last] and left[last] == right[first]
