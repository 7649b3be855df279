"""The choice of examples: deterministic, different, never from the held-out split."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.kernel import InvalidInput
from tidemill.prompts import choose_examples


def case(question: str, answer: str = "yes", **changes: Any) -> dict[str, Any]:
    return {"question": question, "answers": [answer], "answerable": True, "split": "dev", **changes}


CASES = [case(f"what does the {word} statement do") for word in ("if", "for", "with", "del", "raise")]


@given(st.integers(0, 6), st.integers(0, 20), st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order(k: int, seed: int, shuffler: random.Random) -> None:
    chosen = choose_examples(CASES, k, seed=seed)
    shuffled = list(CASES)
    shuffler.shuffle(shuffled)
    assert choose_examples(shuffled, k, seed=seed) == chosen
    assert len({one["question"] for one in chosen}) == min(k, len(CASES))


def test_the_second_is_the_one_most_unlike_the_first() -> None:
    cases = [case("a b c"), case("a b d"), case("x y z", "no")]
    for seed in range(10):
        first, second = choose_examples(cases, 2, seed=seed)
        assert "x y z" in {first["question"], second["question"]}


def test_held_out_unanswerable_and_unanswered_cases_are_never_taken() -> None:
    cases = [case("a", split="heldout"), case("b", answerable=False), case("c", answers=[]), case("d")]
    assert [one["question"] for one in choose_examples(cases, 3)] == ["d"]
    assert choose_examples([], 3) == []
    with pytest.raises(InvalidInput):
        choose_examples(cases, -1)
