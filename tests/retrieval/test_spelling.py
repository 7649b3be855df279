"""Correction of misspelt question words, against all words one slip away."""

from hypothesis import given
from hypothesis import strategies as st

from tests.retrieval.test_index import found, made, vectors
from tidemill.retrieval.spelling import Spelling

LETTERS = "abc"
words = st.text(LETTERS, min_size=4, max_size=6)


def slips(word: str) -> set[str]:
    """Everything one insertion, deletion, substitution or swap makes of a word (Norvig's enumeration)."""
    halves = [(word[:at], word[at:]) for at in range(len(word) + 1)]
    deleted = {left + right[1:] for left, right in halves if right}
    swapped = {left + right[1] + right[0] + right[2:] for left, right in halves if len(right) > 1}
    replaced = {left + letter + right[1:] for left, right in halves if right for letter in LETTERS}
    return deleted | swapped | replaced | {left + letter + right for left, right in halves for letter in LETTERS}


@given(words, st.dictionaries(words, st.integers(1, 3), max_size=30))
def test_the_commonest_word_one_slip_away_is_found(word: str, known: dict[str, int]) -> None:
    (corrected,) = Spelling(known).correct([word])
    near = slips(word) & set(known)
    if word in known or not near:
        assert corrected == word
    else:
        assert corrected in near
        assert known[corrected] == max(known[one] for one in near)


def test_short_words_and_names_with_digits_stay() -> None:
    assert Spelling({"cat": 1, "utf8": 1}).correct(["cet", "utf9"]) == ["cet", "utf9"]


def test_hybrid_search_reads_misspelt_words_and_bm25_when_told() -> None:
    query = "asertions"
    assert found(made(), query) == []
    assert found(made(), query, spelling=True) == ["psg_a"]
    (vector,) = vectors(1)
    hits = made("hybrid").search(query, top_k=4, query_vector=vector)
    assert [hit.passage_id for hit in hits if hit.bm25 > 0] == ["psg_a"]
