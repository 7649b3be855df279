"""Cases: what is asked, and what is expected of the answer. Kept as rows of data set versions."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tidemill.kernel import ArtifactRef, CaseId, Digest, InvalidInput, RowId, RunId, canonical_json
from tidemill.ledger import ArtifactVersion

if TYPE_CHECKING:
    from tidemill.ledger import Ledger

SPLITS = ("dev", "heldout")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One evaluation input with what is expected.

    Args:
        question: what is asked.
        answers: short accepted answers; any of them is right.
        documents: source URIs, each of which answers the question.
        answerable: whether the documents hold an answer at all.
        split: ``dev`` for trying things out, ``heldout`` for the gate alone.
        tags: slices to report on, e.g. ``paraphrase``.
    """

    question: str
    answers: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()
    answerable: bool = True
    split: str = "dev"
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise InvalidInput("a case without a question cannot be asked")
        if self.split not in SPLITS:
            raise InvalidInput(f"case '{self.question}' is in split '{self.split}'; the splits are dev and heldout")
        if self.answerable and not (self.answers or self.documents):
            raise InvalidInput(
                f"case '{self.question}' counts as answerable but names neither an answer nor a document; "
                "add one, or set answerable to false"
            )

    @property
    def case_id(self) -> CaseId:
        """Stable id over question and expectation; the split and the tags may change without it."""
        expected = canonical_json([self.question, self.answers, self.documents, self.answerable])
        return CaseId("case_" + hashlib.sha256(expected).hexdigest()[:24])

    def as_value(self) -> dict[str, Any]:
        """The value of the case's data set row."""
        return {
            "question": self.question,
            "answers": list(self.answers),
            "documents": list(self.documents),
            "answerable": self.answerable,
            "split": self.split,
            "tags": list(self.tags),
        }

    @classmethod
    def from_value(cls, value: Mapping[str, Any]) -> Case:
        """Read back what ``as_value`` wrote, or a line of a question file.

        Raises:
            InvalidInput: a field is missing, unknown or of the wrong type.
        """
        fields = dict(value)
        unknown = set(fields) - set(cls.__slots__)
        if unknown or not isinstance(fields.get("question"), str):
            what = f"unknown fields {', '.join(sorted(unknown))}" if unknown else "no text in 'question'"
            raise InvalidInput(f"a case has {what}; its fields are {', '.join(cls.__slots__)}")
        for name in ("answers", "documents", "tags"):
            given = fields.get(name, [])
            if isinstance(given, str) or not all(isinstance(item, str) for item in given):
                raise InvalidInput(f"case '{fields['question']}': '{name}' must be a list of texts")
            fields[name] = tuple(given)
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class CaseSet:
    """Cases and the data set version they come from.

    Args:
        version: digest of that version.
        cases: in the order of their ids.
    """

    version: Digest
    cases: tuple[Case, ...]

    def __len__(self) -> int:
        return len(self.cases)

    def select(self, *, split: str | None = None, tags: Collection[str] = ()) -> CaseSet:
        """The cases of one split, and of those only the ones that carry any of ``tags`` (all without tags)."""
        wanted = set(tags)
        chosen = (case for case in self.cases if split in (None, case.split))
        return CaseSet(self.version, tuple(case for case in chosen if not wanted or wanted & set(case.tags)))

    def sample(self, count: int) -> CaseSet:
        """A sample of at most ``count`` cases with about the same shares of tags: the same one in every process.

        Cases are ordered by the digest of their id within each combination of tags; a smaller sample is part of a
        larger one as nearly as rounding allows.
        """
        groups: dict[tuple[str, ...], list[Case]] = {}
        for case in sorted(self.cases, key=lambda case: hashlib.sha256(case.case_id.encode()).digest()):
            groups.setdefault(case.tags, []).append(case)
        # Each case stands at its place within its group, so that any prefix of the order is stratified.
        placed = [
            ((place + 0.5) / len(group), tags, case)
            for tags, group in groups.items()
            for place, case in enumerate(group)
        ]
        chosen = [case for _, _, case in sorted(placed, key=lambda item: item[:2])[: max(0, count)]]
        return CaseSet(self.version, tuple(sorted(chosen, key=lambda case: case.case_id)))


def publish_cases(
    ledger: Ledger,
    name: str,
    cases: Iterable[Case],
    *,
    made_by: RunId | None = None,
    parents: Sequence[Digest] = (),
) -> ArtifactVersion:
    """Write cases as a data set version. The same cases give the same version.

    Raises:
        InvalidInput: no case at all, or the same question twice with the same expectation.
    """
    from tidemill.ledger import Row  # with it comes what reads and writes data sets

    by_id: dict[CaseId, Case] = {}
    for case in cases:
        if case.case_id in by_id:
            raise InvalidInput(f"the case '{case.question}' stands twice among the cases of '{name}'; remove one")
        by_id[case.case_id] = case
    if not by_id:
        raise InvalidInput(f"there are no cases to publish as '{name}'")
    rows = [
        Row(row_id=RowId(case_id), value=by_id[case_id].as_value(), sources=by_id[case_id].documents)
        for case_id in sorted(by_id)
    ]
    content = {"holds": "cases", "cases": len(rows)}
    return ledger.datasets.write(name, rows, content=content, made_by=made_by, parents=parents)


def load_cases(ledger: Ledger, ref: ArtifactRef | str) -> CaseSet:
    """Read the cases of a data set version, in the order of their ids.

    Raises:
        NotFound: there is no such version.
        InvalidInput: its rows are not cases.
    """
    version = ledger.artifacts.get(ref)
    return CaseSet(version.digest, tuple(Case.from_value(row.value) for row in ledger.datasets.read(version)))
