"""Choosing the worked examples of a prompt from cases whose answers are known."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tidemill.kernel import InvalidInput

_WORD: Final = re.compile(r"\w+")


def choose_examples(cases: Sequence[Mapping[str, Any]], k: int, *, seed: int = 0) -> list[Mapping[str, Any]]:
    """Choose a few cases that differ as much as possible.

    Only cases of the ``dev`` split are taken, so that no example comes from what the gate is judged on, and only
    answerable ones with an answer. The first is drawn by the seed; each next one is farthest from those chosen,
    by the Jaccard distance of the words of question and answer (greedy k-centre, Gonzalez 1985).

    Args:
        cases: values of case rows.
        k: how many to choose.
        seed: which case is the first; equal seeds and cases choose equally, in whatever order the cases come.

    Returns:
        At most ``k`` cases in the order chosen, no question twice.

    Raises:
        InvalidInput: ``k`` is negative.
    """
    if k < 0:
        raise InvalidInput(f"{k} examples cannot be chosen")
    fitting = {str(case["question"]): case for case in cases if _fits(case)}
    ranked = sorted(fitting, key=lambda question: hashlib.sha256(f"{seed}\0{question}".encode()).digest())
    words = {question: _words(fitting[question]) for question in ranked}
    chosen: list[str] = ranked[:1] if k else []
    distance = dict.fromkeys(ranked, 1.0)
    while chosen and len(chosen) < min(k, len(ranked)):
        for question in ranked:
            distance[question] = min(distance[question], _distance(words[question], words[chosen[-1]]))
        # max takes the first of equals, and the order of ranked is the seed's.
        chosen.append(max((question for question in ranked if question not in chosen), key=distance.__getitem__))
    return [fitting[question] for question in chosen]


def _fits(case: Mapping[str, Any]) -> bool:
    return case.get("split") == "dev" and bool(case.get("answerable", True)) and bool(case.get("answers"))


def _words(case: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(_WORD.findall(f"{case['question']} {case['answers'][0]}".lower()))


def _distance(left: frozenset[str], right: frozenset[str]) -> float:
    union = left | right
    return 1 - len(left & right) / len(union) if union else 0.0
