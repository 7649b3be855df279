from __future__ import annotations

import re
import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.evaluation import (
    Answer,
    Case,
    Passage,
    abstained,
    build_scorer,
    citation_correct,
    exact,
    groundedness,
    normalise,
    score_retrieval,
    token_f1,
)
from tidemill.kernel import InvalidInput, NotFound

CASE = Case(question="Which?", answers=("the assert statement", "assert"), documents=("doc:1", "doc:2"))
UNANSWERABLE = Case(question="Which?", answerable=False)


def squad_normalise(text: str) -> str:
    """As the published script of SQuAD 1.1 computes it, step by step."""
    text = "".join(char for char in text.lower() if char not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def squad_f1(prediction: str, truth: str) -> float:
    given_tokens, true_tokens = squad_normalise(prediction).split(), squad_normalise(truth).split()
    same = sum((Counter(given_tokens) & Counter(true_tokens)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(given_tokens), same / len(true_tokens)
    return 2 * precision * recall / (precision + recall)


SENTENCES = st.lists(st.sampled_from(["the", "A", "assert", "with.", "x,", "Else", "os.path"]), min_size=1).map(
    " ".join
)


@given(SENTENCES, SENTENCES)
def test_token_f1_agrees_with_squad(prediction: str, truth: str) -> None:
    if not squad_normalise(prediction) or not squad_normalise(truth):
        return
    case = Case(question="q", answers=(truth,))
    verdict = token_f1()(case, Answer(text=prediction))
    assert verdict is not None
    assert verdict.value == pytest.approx(squad_f1(prediction, truth))


def test_token_f1_takes_the_best_of_the_accepted_answers() -> None:
    verdict = token_f1()(CASE, Answer(text="Use the assert statement."))
    assert verdict is not None
    assert verdict.value == pytest.approx(2 * 2 / (3 + 2))
    assert verdict.evidence["accepted"] == "the assert statement"


def test_answers_of_punctuation_alone_are_told_apart() -> None:
    case = Case(question="floor division?", answers=("//",))
    verdicts = [exact()(case, Answer(text=text)) for text in ("//", "%", " // ")]
    assert [verdict and verdict.value for verdict in verdicts] == [1.0, 0.0, 1.0]


def test_punctuation_may_split_words() -> None:
    assert normalise("functools.lru_cache()", split_punctuation=True) == "functools lru_cache"
    assert normalise("functools.lru_cache()") == "functoolslrucache"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("I don't know.", True),
        ("I don\u2019t know", True),
        ("The documents do not say.", True),
        ("This is not mentioned in the context.", True),
        ("Sorry, I cannot answer that", True),
        ("Use assert.", False),
        ("No, tuples are immutable", False),
        ("not in", False),
    ],
)
def test_abstentions_are_recognised(text: str, expected: bool) -> None:
    assert abstained(text) is expected


@pytest.mark.parametrize("scorer", [exact(), token_f1(), citation_correct()])
def test_a_question_without_an_answer_asks_for_an_abstention(scorer: object) -> None:
    right = scorer(UNANSWERABLE, Answer(text="I don't know."))  # type: ignore[operator]
    wrong = scorer(UNANSWERABLE, Answer(text="42", citations=("doc:1",)))  # type: ignore[operator]
    assert (right.value, wrong.value) == (1.0, 0.0)


def test_citations() -> None:
    answer = Answer(text="x", citations=("doc:9", "doc:2"))
    any_of, first = citation_correct()(CASE, answer), citation_correct(which="first")(CASE, answer)
    assert (any_of and any_of.value, first and first.value) == (1.0, 0.0)
    nothing = citation_correct()(CASE, Answer(text="x"))
    assert nothing is not None
    assert (nothing.value, nothing.reason) == (0.0, "cites nothing")
    with pytest.raises(InvalidInput, match="neither"):
        citation_correct(which="last")(CASE, answer)


def test_groundedness_is_the_share_of_words_found_in_the_passages() -> None:
    passages = (Passage("doc:1", "Assert statements are a convenient way to insert debugging assertions"),)
    half = groundedness()(CASE, Answer(text="debugging elephants", passages=passages))
    assert half is not None
    assert half.value == 0.5
    assert half.evidence["not_found"] == ["elephants"]
    pairs = groundedness(n=2)(CASE, Answer(text="insert debugging assertions", passages=passages))
    assert pairs is not None
    assert pairs.value == 1.0
    assert groundedness()(CASE, Answer(text="I don't know")) is None
    made_up = groundedness()(CASE, Answer(text="elephants"))
    assert made_up is not None
    assert made_up.value == 0.0


@pytest.mark.parametrize("scorer", [exact(), token_f1(split_punctuation=True), citation_correct(which="first")])
def test_a_report_can_name_its_scorers(scorer: object) -> None:
    assert build_scorer(scorer.spec) == scorer  # type: ignore[attr-defined]


def test_unknown_scorers_and_arguments_are_refused() -> None:
    with pytest.raises(NotFound, match="token_f1"):
        build_scorer({"name": "tokenf1"})
    with pytest.raises(InvalidInput, match="no argument 'top'"):
        exact(top=3)
    with pytest.raises(InvalidInput, match="version"):
        build_scorer({"name": "exact", "version": 0})


def test_retrieval_counts_distinct_documents() -> None:
    values = {name: verdict.value for name, verdict in score_retrieval(CASE, ["doc:9", "doc:9", "doc:2"]).items()}
    assert values == {"recall@1": 0.0, "recall@5": 1.0, "mrr": 0.5}
    missed = {
        name: verdict.value for name, verdict in score_retrieval(CASE, [f"x{i}" for i in range(10)] + ["doc:1"]).items()
    }
    assert missed == {"recall@1": 0.0, "recall@5": 0.0, "mrr": 0.0}
    assert score_retrieval(UNANSWERABLE, ["doc:1"]) == {}
