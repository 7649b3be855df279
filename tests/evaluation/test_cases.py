from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.evaluation import Case, CaseSet, load_cases, publish_cases
from tidemill.kernel import Digest, InvalidInput
from tidemill.ledger import Ledger

CASE = Case(question="How?", answers=("so",), documents=("doc:1",), tags=("plain",))
NOWHERE = Digest("sha256:" + "0" * 64)


def test_a_case_is_named_by_question_and_expectation_alone() -> None:
    same = Case(question="How?", answers=("so",), documents=("doc:1",), split="heldout", tags=("x",))
    assert same.case_id == CASE.case_id
    assert Case(question="How?", answers=("thus",), documents=("doc:1",)).case_id != CASE.case_id
    assert Case.from_value(CASE.as_value()) == CASE


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ({"question": "  "}, "without a question"),
        ({"question": 3}, "no text"),
        ({"question": "x", "gold": "y"}, "unknown fields gold"),
        ({"question": "x", "answers": "y"}, "list of texts"),
        ({"question": "x"}, "neither an answer nor a document"),
        ({"question": "x", "answerable": False, "split": "test"}, "split 'test'"),
    ],
)
def test_a_bad_case_says_what_is_wrong(value: dict[str, object], what: str) -> None:
    with pytest.raises(InvalidInput, match=what):
        Case.from_value(value)


def test_cases_come_back_as_published(sqlite_ledger: Ledger) -> None:
    cases = [CASE, Case(question="Why not?", answerable=False, split="heldout", tags=("unanswerable",))]
    version = publish_cases(sqlite_ledger, "questions", cases)
    loaded = load_cases(sqlite_ledger, "dataset/questions")
    assert loaded.version == version.digest
    assert set(loaded.cases) == set(cases)
    assert [case.question for case in loaded.select(split="heldout").cases] == ["Why not?"]
    assert [case.question for case in loaded.select(tags=["plain"]).cases] == ["How?"]
    assert publish_cases(sqlite_ledger, "questions", reversed(cases)).digest == version.digest


def test_no_cases_or_one_twice_is_refused(sqlite_ledger: Ledger) -> None:
    with pytest.raises(InvalidInput, match="no cases"):
        publish_cases(sqlite_ledger, "questions", [])
    with pytest.raises(InvalidInput, match="stands twice"):
        publish_cases(sqlite_ledger, "questions", [CASE, CASE])


@given(st.lists(st.sampled_from("ab"), min_size=1, max_size=60), st.integers(0, 70))
def test_a_sample_has_the_shares_of_the_whole(tags: list[str], count: int) -> None:
    cases = CaseSet(NOWHERE, tuple(Case(question=f"q{i}", answers=("x",), tags=(tag,)) for i, tag in enumerate(tags)))
    sample = cases.sample(count)
    assert len(sample) == min(count, len(cases))
    assert sample == cases.sample(count)
    for tag in "ab":
        share = tags.count(tag) / len(tags)
        found = sum(case.tags == (tag,) for case in sample.cases)
        assert abs(found - share * len(sample)) <= 1
