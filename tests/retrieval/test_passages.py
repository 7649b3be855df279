"""Splitting: nothing lost, nothing too long, ids stable."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.kernel import InvalidInput, RowId
from tidemill.retrieval import SplitOptions, estimate_tokens, split

DOCUMENT = RowId("doc_1")

texts = st.text(st.sampled_from("ab Z.\n?!,_9\t(é)"), max_size=600)


def cut(text: str, options: SplitOptions | None = None) -> list[str]:
    return [passage.text for passage in split(DOCUMENT, value(text), options)]


def value(text: str) -> dict[str, str]:
    return {"title": "T", "text": text, "source": "file:a.md"}


@given(texts, st.integers(16, 60))
def test_every_character_that_is_not_white_space_is_in_exactly_one_passage(text: str, limit: int) -> None:
    passages = split(DOCUMENT, value(text), SplitOptions(passage_tokens=limit))
    assert "".join("".join(p.text.split()) for p in passages) == "".join(text.split())
    for passage, following in itertools.pairwise(passages):
        assert passage.end <= following.start
    for passage in passages:
        assert passage.text == text[passage.start : passage.end]
        assert estimate_tokens(passage.text) <= limit
    assert len({p.passage_id for p in passages}) == len(passages)


@given(texts, st.integers(0, 20))
def test_overlap_terminates_and_covers_the_text(text: str, overlap: int) -> None:
    passages = split(DOCUMENT, value(text), SplitOptions(passage_tokens=40, overlap_tokens=overlap))
    covered = {at for passage in passages for at in range(passage.start, passage.end)}
    assert {at for at, sign in enumerate(text) if not sign.isspace()} <= covered
    assert [p.end for p in passages] == sorted({p.end for p in passages})


def test_overlap_repeats_whole_sentences() -> None:
    text = " ".join(f"This is sentence number {n} of the text." for n in range(12))
    first, second = cut(text, SplitOptions(passage_tokens=50, overlap_tokens=12))[:2]
    assert first.endswith(second.split(". ")[0] + ".")


def test_cuts_fall_between_paragraphs_first_and_a_heading_stays_with_its_text() -> None:
    paragraph = "Some words about a thing that matters to us all. " * 2
    text = f"{paragraph}\n\nSecond heading\n\n{paragraph}"
    first, second = cut(text, SplitOptions(passage_tokens=30))
    assert first == paragraph.strip()
    assert second.startswith("Second heading\n\nSome words")


def test_long_texts_are_evened_out() -> None:
    text = " ".join(f"Here stands sentence number {n} of it." for n in range(30))
    sizes = [estimate_tokens(part) for part in cut(text, SplitOptions(passage_tokens=100))]
    assert max(sizes) <= 100
    assert min(sizes) > 60


def test_ids_depend_on_document_span_and_options_alone() -> None:
    text = "One sentence. " * 40
    options = SplitOptions(passage_tokens=40)
    ids = [p.passage_id for p in split(DOCUMENT, value(text), options)]
    assert ids == [p.passage_id for p in split(DOCUMENT, {**value(text), "title": "other"}, options)]
    others = {p.passage_id for p in split(RowId("doc_2"), value(text), options)}
    others |= {p.passage_id for p in split(DOCUMENT, value(text), SplitOptions(passage_tokens=41))}
    assert not others & set(ids)
    assert all(one.startswith("psg_") and len(one) == 28 for one in ids)


def test_token_estimates() -> None:
    assert estimate_tokens("") == 0
    assert estimate_tokens("the cat sat") == 3
    assert estimate_tokens("2026") == 4
    assert estimate_tokens("incomprehensibilities") == 5


def test_impossible_options_are_refused() -> None:
    with pytest.raises(InvalidInput, match="at least 16"):
        SplitOptions(passage_tokens=3)
    with pytest.raises(InvalidInput, match="half a passage"):
        SplitOptions(passage_tokens=40, overlap_tokens=30)
