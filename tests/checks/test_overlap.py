"""N-grams: exact cases, and MinHash against exact similarity."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.checks import NearDuplicates, jaccard, overlap, shingles, words
from tidemill.kernel import InvalidInput

texts = st.text(st.sampled_from("ab c."), max_size=40)


def test_exact_cases() -> None:
    assert words("The cat's 2 Straße!") == ["the", "cat", "s", "2", "strasse"]
    assert overlap("a b c d", "x a b c y", 3) == 0.5
    assert overlap("a b", "x a b y", 3) == 1.0, "a short text is compared by n-grams of its own length"
    assert overlap("a b", "b a", 3) == 0.0
    assert overlap("...", "a b", 3) == 0.0
    assert jaccard("a b c", "b c d", 2) == pytest.approx(1 / 3)
    assert jaccard("", "", 2) == 1.0
    assert len(shingles("a b a b a b", 2)) == 2
    assert shingles("", 3) == frozenset()
    with pytest.raises(InvalidInput):
        shingles("a", 0)


@given(texts, texts, st.integers(1, 4))
def test_laws(a: str, b: str, n: int) -> None:
    assert 0 <= overlap(a, b, n) <= 1
    assert jaccard(a, b, n) == jaccard(b, a, n)
    assert jaccard(a, a, n) == 1
    assert overlap(a, f"{b} {a}", n) == (1.0 if words(a) else 0.0)


def test_shingles_are_the_same_in_every_process() -> None:
    code = "from tidemill.checks import shingles; print(sorted(shingles('the quick brown fox', 2)))"
    said = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True).stdout
    assert said.strip() == str(sorted(shingles("the quick brown fox", 2)))


def test_near_duplicates_are_those_an_exact_comparison_finds() -> None:
    draw = random.Random(7)
    vocabulary = [f"w{number}" for number in range(500)]
    originals = [" ".join(draw.choices(vocabulary, k=80)) for _ in range(60)]
    finder = NearDuplicates(0.7, n=2)
    assert all(finder.add(number, text) is None for number, text in enumerate(originals))
    for number, text in enumerate(originals):
        changed = text.split()
        for place in draw.sample(range(80), 4):
            changed[place] = "other"
        copy = " ".join(changed)
        similarity = jaccard(copy, text, 2)
        found = finder.add(f"copy of {number}", copy)
        if similarity >= 0.75:
            assert found is not None
            assert (found.key, found.similarity) == (number, similarity)
        elif found is not None:
            assert found.similarity >= 0.7
    assert finder.add("new", " ".join(draw.choices(vocabulary, k=80))) is None
    long = " ".join(draw.choices(vocabulary, k=9000))
    assert finder.add("long", long) is None
    assert finder.add("again", long) is not None


def test_texts_without_words_are_one_another() -> None:
    finder = NearDuplicates()
    assert finder.add(1, "") is None
    assert finder.add(2, "!!!") is not None
    with pytest.raises(InvalidInput):
        NearDuplicates(0)
