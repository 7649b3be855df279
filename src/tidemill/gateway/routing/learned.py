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

_READ_MOST: Final = 8192
_NUMBER: Final = re.compile(r"\d+(?:[.,]\d+)*")
_CODE: Final = re.compile(
    r"```|\bdef \w+\(|\bclass \w+|\bimport \w+|\breturn\b|[{};]\s*$|</\w+>|\bSELECT\b", re.MULTILINE
)
_REASON: Final = re.compile(
    r"\b(?:why|how|prove|proof|explain|derive|analy[sz]e|compare|design|evaluate|justify|implement|refactor|debug|plan"
    r"|optimi[sz]e|calculate|compute|step by step|each|total|per|twice|remaining|percent|if)\b",
    re.IGNORECASE,
)
_LOOK_UP: Final = re.compile(
    r"\b(?:what|who|when|where|which|list|name|define|translate|summari[sz]e|rewrite|spell|capital|synonym)\b",
    re.IGNORECASE,
)
_OPTION: Final = re.compile(r"^\s*\(?[A-Ea-e1-5][.):]\s", re.MULTILINE)
_FORMULA: Final = "=+*/^<>\\$%"
_RARE: Final = "jqxzJQXZ"


def features(call: RoutingCall) -> tuple[float, ...]:
    """The features of a request, in the order of ``FEATURES``; each between 0 and about 3.

    The last user turn is what is asked, up to 8,192 characters; everything before it is context.
    """
    turns = turns_of(call.messages)
    asked = next((text for role, text in reversed(turns) if role == "user"), "")
    context = sum(len(text) for _, text in turns) - len(asked)
    text = asked[:_READ_MOST]
    size = len(text) or 1
    words = len(text.split()) or 1
    numbers = len(_NUMBER.findall(text))
    return (
        math.log1p(len(asked)) / 3,
        math.log1p(context) / 3,
        math.log1p(len(turns)),
        len(text) / words / 4,
        math.log1p(numbers),
        sum(map(text.count, "0123456789")) / size * 10,
        math.log1p(sum(map(text.count, _FORMULA))) / 2,
        1.0 if _CODE.search(text) else 0.0,
        math.log1p(text.count("\n")) / 2,
        math.log1p(text.count("?")),
        math.log1p(len(_REASON.findall(text))),
        math.log1p(len(_LOOK_UP.findall(text))),
        1.0 if _OPTION.search(text) else 0.0,
        sum(map(text.count, _RARE)) / size * 50,
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
            "Learn them with tidemill.loop.router_training"
        )
    logit = weights[-1] + sum(weight * value for weight, value in zip(weights, values, strict=False))
    return 1 / (1 + math.exp(-max(-500.0, min(500.0, logit))))
