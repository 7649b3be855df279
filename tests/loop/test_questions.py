"""The demo's question set: what it promises about itself."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib.resources import files
from statistics import mean
from typing import Any

import pytest
import Stemmer

from tidemill.data import read_python_reference, sift

Question = dict[str, Any]
TAGS = ("plain", "paraphrase", "misspelt", "unanswerable")
# Words that carry no subject: articles, pronouns, auxiliaries and the polite noise of a help desk.
STOPWORDS = frozenset(
    """a about above after again all am an and any anything are as at be because been before being both but by can
    cannot could did do does doesn doing don down each for from further get gets got had has hasn have having he her
    here hers him his how if in into is isn it its itself just let like ll make me more most my myself need no nor not
    of off on once one only or other our out over own please put re same she should so some somebody someone something
    stuff such than that the their them then there these they thing things this those through to too under until up
    use ve very want was wasn way we were what when where which while who whom whose why will with won would you your
    """.split()  # noqa: SIM905 - a list literal would fill forty lines
)


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    text = files("tidemill.loop.demo").joinpath("questions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return {document.source: f"{document.title}\n{document.text}" for document in read_python_reference()}


def _of(questions: list[Question], tag: str) -> list[Question]:
    return [question for question in questions if question["tags"] == [tag]]


def _content_words(text: str) -> set[str]:
    stemmer = Stemmer.Stemmer("english")
    words = re.findall(r"[a-z]+", text.lower())
    return {stemmer.stemWord(word) for word in words if word not in STOPWORDS and len(word) > 1}


def _overlap(question: Question, texts: dict[str, str]) -> float:
    """Share of the question's content words that the text uses which shares the fewest of them."""
    asked = _content_words(question["question"])
    return min(len(asked & _content_words(texts[uri])) / max(1, len(asked)) for uri in question["documents"])


def test_every_question_has_the_agreed_form(questions: list[Question]) -> None:
    for question in questions:
        assert set(question) == {"question", "answers", "documents", "answerable", "tags", "split"}
        assert question["question"].strip() == question["question"] != ""
        assert len(question["tags"]) == 1
        assert question["tags"][0] in TAGS
        assert question["split"] in {"dev", "heldout"}
        assert question["answerable"] == (question["tags"] != ["unanswerable"])
        assert bool(question["documents"]) == bool(question["answers"]) == question["answerable"]
        assert all(1 <= len(answer.split()) <= 8 for answer in question["answers"])
        assert len(set(question["documents"])) == len(question["documents"])


def test_there_are_enough_questions_of_each_kind(questions: list[Question]) -> None:
    shares = {tag: len(_of(questions, tag)) / len(questions) for tag in TAGS}
    assert len(questions) >= 320
    assert shares["paraphrase"] >= 1 / 3
    assert 0.09 <= shares["misspelt"] <= 0.15
    assert 0.06 <= shares["unanswerable"] <= 0.1


def test_no_question_is_asked_twice(questions: list[Question]) -> None:
    counts = Counter(re.sub(r"\W+", " ", question["question"].lower()).strip() for question in questions)
    assert [text for text, count in counts.items() if count > 1] == []


def test_every_named_document_exists(questions: list[Question], texts: dict[str, str]) -> None:
    named = {uri for question in questions for uri in question["documents"]}
    assert sorted(named - set(texts)) == []


def test_where_a_document_repeats_another_the_one_that_is_kept_answers_too(questions: list[Question]) -> None:
    kept_for = {
        document.source: verdict.evidence["source"] for document, verdict in sift(read_python_reference()).dropped
    }
    lost = {
        (question["question"], uri)
        for question in questions
        for uri in question["documents"]
        if uri in kept_for and kept_for[uri] not in question["documents"]
    }
    assert lost == set()


def test_the_documents_named_are_of_great_variety(questions: list[Question]) -> None:
    named = {uri for question in questions for uri in question["documents"]}
    assert len(named) >= 220
    assert len([uri for uri in named if uri.startswith("python:topics/")]) >= 45


def test_paraphrases_use_hardly_a_word_of_the_text(questions: list[Question], texts: dict[str, str]) -> None:
    paraphrases = {question["question"]: _overlap(question, texts) for question in _of(questions, "paraphrase")}
    assert mean(paraphrases.values()) <= 0.15
    assert {text: share for text, share in paraphrases.items() if share > 0.5} == {}
    assert mean(_overlap(question, texts) for question in _of(questions, "plain")) >= 0.5


def test_the_split_is_balanced_within_each_kind(questions: list[Question]) -> None:
    for tag in TAGS:
        splits = Counter(question["split"] for question in _of(questions, tag))
        assert abs(splits["dev"] - splits["heldout"]) <= 1
