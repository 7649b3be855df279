"""What is said to those whom a limit keeps out: sentences with the right numbers, and the right words for one."""

from __future__ import annotations

import pytest

from tidemill.gateway.admission.caps import Gate
from tidemill.gateway.admission.refusals import too_large, used_up
from tidemill.kernel import Limit, LimitScope, LimitUnit
from tidemill.kernel.routing_policy import Caps
from tidemill.ledger.accounts import Shortage, quanta


def limit(unit: LimitUnit, amount: float, window_s: float = 60.0) -> Limit:
    return Limit(limit_id="l", scope=LimitScope.KEY, subject="ada", unit=unit, amount=amount, window_s=window_s)


@pytest.mark.parametrize(
    ("unit", "amount", "need", "free", "said"),
    [
        (LimitUnit.REQUESTS, 1, 1, 0, ("1 request in 1 minute.", "may need 1 request,", "0 requests are free.")),
        (LimitUnit.REQUESTS, 20, 1, 1, ("20 requests in 1 minute.", "may need 1 request,", "1 request is free.")),
        (LimitUnit.TOKENS, 1000, 2500, 2, ("1,000 tokens", "may need 2,500 tokens,", "2 tokens are free.")),
        (LimitUnit.USD, 5, 0.25, 0.1, ("$5 in 1 minute.", "may need $0.25,", "$0.1 is free.")),
    ],
)
def test_one_is_no_plural(unit: LimitUnit, amount: float, need: float, free: float, said: tuple[str, ...]) -> None:
    most, needed = quanta(unit, amount), quanta(unit, need)
    shortage = Shortage("lease", needed, most, most - quanta(unit, free), 0, 0, 0.2)
    told = used_up(limit(unit, amount), shortage, needed)
    assert all(part in told.message for part in said), told.message
    assert told.message.endswith("Try again in 1 second.")
    assert (told.status, told.retry_after_s) == (429, 1)


def test_what_never_fits_says_so() -> None:
    told = too_large(limit(LimitUnit.TOKENS, 1, window_s=7200.0), quanta(LimitUnit.TOKENS, 30))
    assert "may need 30 tokens, but the limit of key 'ada' is 1 token in 2 hours." in told.message
    assert told.retry_after_s is None


def test_a_key_with_one_place_is_told_of_one_request() -> None:
    gate = Gate("desk", Caps(in_flight=9, in_flight_per_key=1))
    gate.take("ada")
    assert "Key 'ada' has 1 request at 'desk' in flight" in gate.refusal("queue_full", "ada").message
