"""The pure steps: context, citation, cleaning, options."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.kernel import InvalidInput
from tidemill.retrieval import Hit, estimate_tokens
from tidemill.serving import RetrievalOptions, build_context, cite
from tidemill.serving.answers import clean, question_of


def hit(rank: int, text: str, title: str = "") -> Hit:
    name = f"psg_{rank}"
    return Hit(
        passage_id=name, document_id="doc", source=f"s:{rank}", title=title, text=text, score=1, rank=rank, bm25=1
    )


@given(st.lists(st.integers(1, 60), max_size=6), st.integers(5, 80))
def test_the_context_keeps_its_budget(lengths: list[int], budget: int) -> None:
    hits = [hit(rank, "word " * length) for rank, length in enumerate(lengths, 1)]
    context, used = build_context(hits, budget)
    assert estimate_tokens(context) <= budget
    assert bool(used) == bool(hits)
    assert [one.rank for one in used] == sorted(one.rank for one in used)


def test_a_passage_that_does_not_fit_makes_room_for_one_that_does() -> None:
    hits = [hit(1, "one two three", "Title"), hit(2, "word " * 50), hit(3, "four five")]
    context, used = build_context(hits, 12)
    assert context == "Title\none two three\n\nfour five"
    assert [one.rank for one in used] == [1, 3]


def test_passages_that_hold_the_answers_words_are_cited() -> None:
    hits = [hit(1, "cats sleep all day"), hit(2, "dogs chase a ball in the park"), hit(3, "dogs chase a ball")]
    assert [one.rank for one in cite("Dogs chase balls.", hits)] == [2, 3]
    assert [one.rank for one in cite("Quantum chromodynamics.", hits)] == [1]
    assert cite("Anything", []) == ()


@given(st.text(st.sampled_from("ab \n\t")), st.sampled_from([None, 1, 2]))
def test_cleaning_a_growing_text_only_adds(text: str, lines: int | None) -> None:
    given = ""
    for end in range(len(text) + 1):
        cleaned = clean(text[:end], lines)
        assert cleaned.startswith(given)
        given = cleaned


def test_cleaning_keeps_the_first_lines() -> None:
    assert clean("\n  Yes.  \nBecause.", 1) == "Yes."
    assert clean("\n  Yes.\nBecause. \n", None) == "Yes.\nBecause."


def test_the_question_is_the_last_user_message() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert question_of([{"role": "user", "content": "old"}, {"role": "user", "content": parts}]) == "a\nb"
    assert question_of([{"role": "user", "content": " q "}, {"role": "assistant", "content": "x"}]) == "q"
    for messages in ([], [{"role": "user", "content": " "}], [{"role": "system", "content": "x"}]):
        with pytest.raises(InvalidInput, match="no text"):
            question_of(messages)
    with pytest.raises(InvalidInput, match="text parts"):
        question_of([{"role": "user", "content": [{"type": "image_url"}]}])


def test_retrieval_options_are_checked() -> None:
    assert RetrievalOptions.from_json({"top_k": 2, "mode": None}).top_k == 2
    for wrong in ({"topk": 1}, {"top_k": 0}, {"mode": "sideways"}, {"fusion": "sideways"}):
        with pytest.raises(InvalidInput):
            RetrievalOptions.from_json(wrong)
