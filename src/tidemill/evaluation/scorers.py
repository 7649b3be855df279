"""Scorers: (case, answer) -> Verdict with a value in [0, 1].

A scorer is a function registered under a name; called with its arguments it gives a ``Scorer`` that carries both, so
that a report can say how each number came about and can be computed again::

    scorer = token_f1(split_punctuation=True)
    verdict = scorer(case, answer)
    assert build_scorer(scorer.spec) == scorer
"""

from __future__ import annotations

import difflib
import inspect
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from tidemill.checks import shingles, words
from tidemill.evaluation.answers import Answer, abstained
from tidemill.evaluation.cases import Case
from tidemill.kernel import InvalidInput, NotFound, Verdict

ScoreFunction = Callable[..., Verdict | None]


class Scorer(Protocol):
    """What ``run_evaluation`` scores with. ``None`` says that the scorer does not apply to the case."""

    @property
    def name(self) -> str:
        """The metric's name in reports and gate rules."""
        ...

    @property
    def spec(self) -> Mapping[str, Any]:
        """Name, version and arguments, from which ``build_scorer`` makes it again."""
        ...

    def __call__(self, case: Case, answer: Answer, /) -> Verdict | None:
        """Judge an answer; the value lies in [0, 1]."""
        ...


@dataclass(frozen=True, slots=True)
class RegisteredScorer:
    """A registered function with its arguments."""

    name: str
    version: int
    arguments: Mapping[str, Any]
    function: ScoreFunction = field(repr=False)

    @property
    def spec(self) -> dict[str, Any]:
        """Name, version and arguments, from which ``build_scorer`` makes it again."""
        return {"name": self.name, "version": self.version, "arguments": dict(self.arguments)}

    def __call__(self, case: Case, answer: Answer, /) -> Verdict | None:
        """Judge an answer."""
        return self.function(case, answer, **self.arguments)


_REGISTRY: Final[dict[str, Callable[..., RegisteredScorer]]] = {}


def scorer(*, version: int) -> Callable[[ScoreFunction], Callable[..., RegisteredScorer]]:
    """Register a function ``(case, answer, *, argument=default, ...)`` as a scorer under its own name.

    Args:
        version: to be raised whenever the function's numbers change, so that old reports stay told apart.

    Returns:
        A decorator; the decorated name takes the keyword arguments and returns the ``Scorer``.
    """

    def register(function: ScoreFunction) -> Callable[..., RegisteredScorer]:
        name = function.__name__
        parameters = [
            parameter
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind == parameter.KEYWORD_ONLY
        ]
        defaults = {parameter.name: parameter.default for parameter in parameters}

        def build(**arguments: Any) -> RegisteredScorer:
            if unknown := set(arguments) - set(defaults):
                raise InvalidInput(
                    f"scorer '{name}' has no argument '{min(unknown)}'; it has {', '.join(defaults) or 'none'}"
                )
            return RegisteredScorer(name, version, defaults | arguments, function)

        build.__name__, build.__doc__ = name, function.__doc__
        if name in _REGISTRY:
            raise InvalidInput(f"a scorer named '{name}' is registered already; choose another name")
        _REGISTRY[name] = build
        return build

    return register


def build_scorer(spec: Mapping[str, Any]) -> RegisteredScorer:
    """Make the scorer that a report names.

    Raises:
        NotFound: no scorer of that name is registered.
        InvalidInput: an argument it does not have, or another version of it.
    """
    name = spec["name"]
    if name not in _REGISTRY:
        near = difflib.get_close_matches(name, _REGISTRY, n=1) or sorted(_REGISTRY)
        raise NotFound(f"There is no scorer '{name}'.", hint=f"Did you mean {' or '.join(near)}?")
    built = _REGISTRY[name](**spec.get("arguments", {}))
    if spec.get("version", built.version) != built.version:
        raise InvalidInput(
            f"scorer '{name}' is at version {built.version}, the report used version {spec['version']}; "
            "evaluate again to compare"
        )
    return built


_ARTICLES: Final = re.compile(r"\b(?:a|an|the)\b")
_DROP: Final = str.maketrans("", "", string.punctuation)
_SPLIT: Final = str.maketrans({char: " " for char in string.punctuation if char != "_"})


def normalise(text: str, *, split_punctuation: bool = False) -> str:
    """Normalise as SQuAD's evaluation script does: lower case, no punctuation, no articles, single blanks.

    Rajpurkar et al., "SQuAD: 100,000+ Questions" (2016). Two differences: a text of punctuation alone (``//``) stays
    as it is, where SQuAD would make it equal to every other; and ``split_punctuation`` puts a blank where SQuAD
    drops a character, so that ``functools.lru_cache`` shares the word ``lru_cache``.
    """
    lowered = " ".join(text.lower().split())
    plain = lowered.translate(_SPLIT if split_punctuation else _DROP)
    return " ".join(_ARTICLES.sub(" ", plain).split()) or lowered


def _abstention(case: Case, answer: Answer) -> Verdict | None:
    """The verdict where nothing can be answered: saying so is right. ``None`` where the answer must be compared."""
    if case.answerable:
        return None
    if abstained(answer.text):
        return Verdict(1.0, "rightly says that it has no answer")
    return Verdict(0.0, "answers a question that the documents do not answer", {"answer": answer.text})


@scorer(version=1)
def exact(case: Case, answer: Answer, *, split_punctuation: bool = False) -> Verdict | None:
    """1 if the answer is one of the accepted answers after normalisation, else 0.

    A question without an answer asks for an abstention. Does not apply to cases without accepted answers.
    """
    if (verdict := _abstention(case, answer)) or not case.answers:
        return verdict
    given = normalise(answer.text, split_punctuation=split_punctuation)
    for accepted in case.answers:
        if normalise(accepted, split_punctuation=split_punctuation) == given:
            return Verdict(1.0, f"equals the accepted answer '{accepted}'")
    return Verdict(0.0, "equals no accepted answer", {"answer": answer.text, "accepted": list(case.answers)})


@scorer(version=1)
def token_f1(case: Case, answer: Answer, *, split_punctuation: bool = False) -> Verdict | None:
    """The best F1 of shared words over the accepted answers, as SQuAD scores: F1 = 2 P R / (P + R).

    With P the share of the answer's words found in the accepted answer and R the reverse, counted with repetition.
    A question without an answer asks for an abstention. Does not apply to cases without accepted answers.
    """
    if (verdict := _abstention(case, answer)) or not case.answers:
        return verdict
    given = normalise(answer.text, split_punctuation=split_punctuation).split()
    scores = {
        accepted: _f1(given, normalise(accepted, split_punctuation=split_punctuation).split())
        for accepted in case.answers
    }
    best = max(scores, key=lambda accepted: scores[accepted])
    return Verdict(scores[best], f"closest to '{best}'", {"answer": answer.text, "accepted": best})


def _f1(given: list[str], accepted: list[str]) -> float:
    shared = (Counter(given) & Counter(accepted)).total()
    return 2 * shared / (len(given) + len(accepted)) if shared else 0.0


@scorer(version=1)
def citation_correct(case: Case, answer: Answer, *, which: str = "any") -> Verdict | None:
    """1 if the answer cites a document that answers the question, else 0.

    ``which`` is ``any`` (one of the citations is right) or ``first`` (the first one is). A question without an answer
    asks for an abstention. Does not apply to cases that name no documents.
    """
    if which not in ("any", "first"):
        raise InvalidInput(f"citation_correct: which='{which}' is neither 'any' nor 'first'")
    if (verdict := _abstention(case, answer)) or not case.documents:
        return verdict
    looked_at = answer.citations if which == "any" else answer.citations[:1]
    evidence = {"cited": list(answer.citations), "expected": list(case.documents)}
    for source in looked_at:
        if source in case.documents:
            return Verdict(1.0, f"cites {source}", evidence)
    return Verdict(0.0, "cites no right document" if answer.citations else "cites nothing", evidence)


_FILLER_WORDS: Final = (
    "a an the and or but if is are was were be been being do does did can could will would should may might must to of "
    "in on at by for with from as it its this that these those you your i we they he she there here not no yes so then "
    "than when which who what how use used using"
)
_FILLERS: Final = frozenset(_FILLER_WORDS.split())


@scorer(version=1)
def groundedness(case: Case, answer: Answer, *, n: int = 1) -> Verdict | None:
    """The share of the answer's content words (or of its ``n``-grams) that stand in the passages it was given.

    A cheap lower rung below an entailment judge: it finds words made up, not claims made up. Content words are all
    but the commonest function words. Does not apply to abstentions and to answers without a content word.
    """
    del case  # what is expected plays no part in what is grounded
    if abstained(answer.text):
        return None
    given = " ".join(passage.text for passage in answer.passages)
    claims: set[Any] = set(shingles(answer.text, n)) if n > 1 else set(words(answer.text)) - _FILLERS
    if not claims:
        return None
    found: set[Any] = set(shingles(given, n)) if n > 1 else set(words(given))
    missing = sorted(claims - found)[:10] if n == 1 else []
    share = len(claims & found) / len(claims)
    return Verdict(share, f"{share:.0%} of the answer stands in its passages", {"not_found": missing})
