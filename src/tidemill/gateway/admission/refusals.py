"""What a client is told whose call a limit does not let in, in OpenAI's error shape."""

from __future__ import annotations

import math
from typing import Final

from tidemill.gateway.answers import Refusal
from tidemill.kernel import Limit, LimitUnit
from tidemill.ledger.accounts import Shortage, units

_SPANS: Final = ((86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))
_CODES: Final = {
    LimitUnit.REQUESTS: "rate_limit_exceeded",
    LimitUnit.TOKENS: "rate_limit_exceeded",
    LimitUnit.USD: "insufficient_quota",
}
_RETRY_S: Final = 1.0


def used_up(limit: Limit, shortage: Shortage, need: int) -> Refusal:
    """429: the window has no room now; says when it will have."""
    wait_s = max(1, math.ceil(shortage.retry_after_s))
    free = units(limit.unit, shortage.available)
    verb = "is" if limit.unit is LimitUnit.USD or math.floor(free) == 1 else "are"
    message = (
        f"The limit of {_named(limit)} is reached: {_amount(limit.unit, limit.amount)} in {_span(limit.window_s)}. "
        f"This request may need {_amount(limit.unit, units(limit.unit, need))}, "
        f"{_amount(limit.unit, free)} {verb} free. Try again in {_span(wait_s)}."
    )
    return Refusal(429, message, _CODES[limit.unit], retry_after_s=wait_s)


def too_large(limit: Limit, need: int) -> Refusal:
    """429 without a time: a request that may need more than the whole limit never fits."""
    message = (
        f"This request may need {_amount(limit.unit, units(limit.unit, need))}, but the limit of {_named(limit)} is "
        f"{_amount(limit.unit, limit.amount)} in {_span(limit.window_s)}. "
        "Send a shorter prompt or a smaller max_tokens."
    )
    return Refusal(429, message, _CODES[limit.unit])


def no_answer(limit: Limit) -> Refusal:
    """503: nobody can tell whether the limit has room."""
    message = f"The limit of {_named(limit)} cannot be checked now, for the store of limits does not answer."
    return Refusal(503, message, "limits_unavailable", retry_after_s=_RETRY_S)


def _named(limit: Limit) -> str:
    return f"{limit.scope.value} '{limit.subject}'"


def _amount(unit: LimitUnit, amount: float) -> str:
    if unit is LimitUnit.USD:
        return f"${amount:,.6f}".rstrip("0").rstrip(".")
    count = math.floor(amount)
    return f"{count:,} {unit.value.removesuffix('s') if count == 1 else unit.value}"


def _span(window_s: float) -> str:
    for size_s, name in _SPANS:
        count, rest = divmod(window_s, size_s)
        if count and not rest:
            return f"{count:.0f} {name}" + ("s" if count > 1 else "")
    return f"{window_s:g} seconds"
