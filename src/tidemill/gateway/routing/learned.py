"""How hard a request looks: a logistic score over features that are read off its text in microseconds.

The score estimates the chance that the large model's answer is good and the small one's is not; the weights are
learned from scored traces by ``loop.router_training``. No feature leaves the worker and none is a model's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final

from tidemill.gateway.routing.rules import RoutingCall, turns_of
from tidemill.kernel import InvalidInput

FEATURES: Final = (
    "asked_length",
    "context_length",
    "turns",
    "word_length",
    "numbers",
    "digit_share",
    "formula_signs",
    "code",
    "lines",
    "questions",
    "reasoning_words",
    "look_up_words",
    "options",
    "rare_letters",
    "tools",
)
"""What is computed of a request, in the order of the weights; the intercept's weight stands last."""

_READ_MOST: Final = 4096
_NUMBER: Final = re.compile(r"\d+")
_OPTION: Final = re.compile(r"^\s*\(?[A-Ea-e1-5][.):]\s", re.MULTILINE)
_BREAKS: Final = str.maketrans(dict.fromkeys(".,;:!?()[]{}\"'`*#", " "))
_REASON_WORDS: Final = (
    "why how prove proof explain derive analyse analyze compare design evaluate justify implement refactor debug plan "
    "optimise optimize calculate compute step each total per twice remaining percent if"
)
_LOOK_UP_WORDS: Final = (
    "what who when where which list name define translate summarise summarize rewrite spell capital synonym"
)
_REASON: Final = frozenset(_REASON_WORDS.split())
_LOOK_UP: Final = frozenset(_LOOK_UP_WORDS.split())
_CODE: Final = ("```", "def ", "import ", "return ", "};", "</", "SELECT ", "function(", "){", "#include")
_FORMULA: Final = "=+*/^<>\\$%"
_DIGITS: Final = "0123456789"
_RARE: Final = "jqxz"


def features(call: RoutingCall) -> tuple[float, ...]:
    """The features of a request, in the order of ``FEATURES``; most between 0 and 3.

    The last user turn is what is asked, up to 4,096 characters; everything before it is context.
    """
    turns = turns_of(call.messages)
    asked = next((text for role, text in reversed(turns) if role == "user"), "")
    context = sum(len(text) for _, text in turns) - len(asked)
    text = asked[:_READ_MOST]
    lower = text.lower()
    words = lower.translate(_BREAKS).split()
    size = len(text) or 1
    return (
        math.log1p(len(asked)) / 3,
        math.log1p(context) / 3,
        math.log1p(len(turns)),
        size / (len(words) or 1) / 4,
        math.log1p(len(_NUMBER.findall(text))),
        sum(map(text.count, _DIGITS)) / size * 10,
        math.log1p(sum(map(text.count, _FORMULA))) / 2,
        1.0 if any(mark in text for mark in _CODE) else 0.0,
        math.log1p(text.count("\n")) / 2,
        math.log1p(text.count("?")),
        math.log1p(sum(map(_REASON.__contains__, words))),
        math.log1p(sum(map(_LOOK_UP.__contains__, words))),
        1.0 if _OPTION.search(text) else 0.0,
        sum(map(lower.count, _RARE)) / size * 50,
        1.0 if call.tools else 0.0,
    )


def score(weights: Sequence[float], call: RoutingCall) -> float:
    """The logistic score of a request, in [0, 1]; high means hard.

    Raises:
        InvalidInput: not one weight a feature and the intercept.
    """
    return score_of(weights, features(call))


def score_of(weights: Sequence[float], values: Sequence[float]) -> float:
    """The score of features already computed.

    Raises:
        InvalidInput: not one weight a feature and the intercept.
    """
    if len(weights) != len(values) + 1:
        raise InvalidInput(
            f"learned choice has {len(weights)} weights and needs {len(values) + 1}: {', '.join(FEATURES)}, intercept. "
            "Learn them: tidemill router train"
        )
    logit = weights[-1] + sum(weight * value for weight, value in zip(weights, values, strict=False))
    return 1 / (1 + math.exp(-max(-500.0, min(500.0, logit))))
