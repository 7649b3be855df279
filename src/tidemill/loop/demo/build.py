"""What the demo builds: data sets, indexes and questions, each a pipeline step that runs once."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tidemill.evaluation import Case, publish_cases
from tidemill.kernel import Digest, InvalidInput, digest_json
from tidemill.loop.demo.plan import DemoPlan
from tidemill.loop.recipes import build_documents, fingerprint, index_step
from tidemill.pipelines import Flow, Step, StepContext

if TYPE_CHECKING:
    from tidemill.ledger import Row

_WORD: Final = re.compile(r"[A-Za-z][A-Za-z'-]{2,}")
_SENTENCE: Final = re.compile(r"(?<=[.!?])\s+")
_KNOWN_ITEMS: Final = 320


def demo_flow(plan: DemoPlan, *, docs: Path | None, embedder: Digest) -> Flow:
    """The demo's data sets, questions and indexes.

    Args:
        plan: sizes.
        docs: a folder of the user's documents; ``None`` for Python's language reference.
        embedder: digest of the embedding model.
    """
    source: dict[str, Any] = {"name": "demo-documents", "source": "python"}
    questions: dict[str, Any] = {"name": "demo-questions", "source": "written", "questions": _questions_digest()}
    if docs is not None:
        source = {"name": "demo-documents", "source": "folder", "path": str(docs), "fingerprint": fingerprint(docs)}
        questions = {"name": "demo-questions", "source": "known-item"}
    bm25, hybrid = plan.bm25_index(), plan.hybrid_index()
    good, bad = "documents.dataset", "poisoned.dataset"
    return Flow(
        "demo",
        (
            Step(name="documents", function=build_documents, params=source),
            Step(name="questions", function=build_questions, params=questions, inputs={"dataset": good}),
            index_step("demo-bm25", bm25, source=good, embedder=None, step="bm25-index"),
            index_step("demo-hybrid", hybrid, source=good, embedder=embedder, step="hybrid-index"),
            Step(name="poisoned", function=poison, inputs={"dataset": good}),
            index_step("demo-poisoned", hybrid, source=bad, embedder=embedder, step="poisoned-index"),
        ),
    )


def build_questions(context: StepContext) -> Mapping[str, Digest]:
    """Step: the cases. Written by hand for Python's reference; known items of the documents themselves otherwise."""
    dataset = context.ledger.artifacts.by_digest(context.inputs["dataset"])
    rows = list(context.ledger.datasets.read(dataset))
    sources = {str(row.value["source"]) for row in rows}
    if context.params["source"] == "written":
        cases = [case for case in map(_case, _question_lines()) if not case.answerable or sources & set(case.documents)]
    else:
        cases = known_items(rows)
    version = publish_cases(
        context.ledger, context.params["name"], cases, made_by=context.run_id, parents=(dataset.digest,)
    )
    return {"cases": version.digest}


def poison(context: StepContext) -> Mapping[str, Digest]:
    """Step: the same texts under each other's sources, as a broken importer would leave them."""
    from tidemill.data import Document
    from tidemill.ledger import Row

    dataset = context.ledger.artifacts.by_digest(context.inputs["dataset"])
    documents = [Document.from_value(row.value) for row in context.ledger.datasets.read(dataset)]
    sources = [document.source for document in documents]
    shift = max(1, len(sources) // 3)
    wrong = [
        Document(title=one.title, text=one.text, source=source, media_type=one.media_type)
        for one, source in zip(documents, sources[shift:] + sources[:shift], strict=True)
    ]
    version = context.ledger.datasets.write(
        "demo-poisoned-documents",
        (Row(row_id=one.row_id, value=one.as_value(), sources=(one.source,)) for one in wrong),
        made_by=context.run_id,
        parents=(dataset.digest,),
    )
    return {"dataset": version.digest}


def known_items(rows: Iterable[Row]) -> list[Case]:
    """Questions for documents that nobody has written questions for.

    From each document a sentence is drawn and asked for by its rarest words; every second question is misspelt. The
    answer is the sentence, the document its own. Deterministic.

    Raises:
        InvalidInput: fewer than eight questions could be made.
    """
    sentences: list[tuple[str, str]] = []
    frequency: Counter[str] = Counter()
    for row in rows:
        text = " ".join(str(row.value["text"]).split())
        frequency.update({word.lower() for word in _WORD.findall(text)})
        fitting = [one for one in _SENTENCE.split(text) if 6 <= len(_WORD.findall(one)) <= 30]
        sentences += [(str(row.value["source"]), one) for one in fitting]
    chance = random.Random(11)  # noqa: S311 - a sample, not a secret
    chance.shuffle(sentences)
    cases: dict[str, Case] = {}
    for place, (source, sentence) in enumerate(sentences[: 2 * _KNOWN_ITEMS]):
        rare = sorted(set(_WORD.findall(sentence)), key=lambda word: (frequency[word.lower()], word))[:5]
        chance.shuffle(rare)
        misspelt = place % 2 == 1
        words = [_misspell(word, chance) if misspelt else word for word in rare]
        question = " ".join(words).lower()
        tag = "misspelt" if misspelt else "plain"
        split = "heldout" if place % 4 < 2 else "dev"
        cases.setdefault(
            question, Case(question=question, answers=(sentence,), documents=(source,), tags=(tag,), split=split)
        )
    if len(cases) < 8:
        raise InvalidInput(
            f"Only {len(cases)} questions could be made from these documents; the demo needs at least 8.",
            hint="Give a folder with more text: --docs DIR",
        )
    return list(cases.values())[:_KNOWN_ITEMS]


def _misspell(word: str, chance: random.Random) -> str:
    place = chance.randrange(len(word) - 1)
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


def _question_lines() -> Sequence[dict[str, Any]]:
    text = (files("tidemill.loop.demo") / "questions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _questions_digest() -> Digest:
    return digest_json(list(_question_lines()))


def _case(line: dict[str, Any]) -> Case:
    return Case.from_value(line)
