"""What a call of another program cost, by our own price table."""

from __future__ import annotations

from collections.abc import Callable

from tidemill.kernel import Prices

PriceOf = Callable[[str | None, str, int], Prices | None]
"""The prices of (provider, model) in force at a time in nanoseconds since 1970; ``None`` where there are none."""

_DAY_NS = 86_400 * 1_000_000_000
_MOST_KNOWN = 4096


def call_cost_usd(
    prices: Prices, input_tokens: int, output_tokens: int, cached_tokens: int = 0, reasoning_tokens: int = 0
) -> float:
    """The price of a call of text: each token once, at the price of the narrowest part it belongs to, and the request.

    The gateway's formula without images and audio, which spans do not count. Cached and reasoning tokens are parts of
    the input and output; more of them than of the whole count as the whole.
    """
    cached, reasoning = min(cached_tokens, input_tokens), min(reasoning_tokens, output_tokens)
    text_in, text_out = prices.input_usd_per_mtok, prices.output_usd_per_mtok
    cached_in, reasoned = prices.cached_input_usd_per_mtok, prices.reasoning_usd_per_mtok
    spent = (
        (input_tokens - cached) * text_in
        + cached * (text_in if cached_in is None else cached_in)
        + (output_tokens - reasoning) * text_out
        + reasoning * (text_out if reasoned is None else reasoned)
    )
    return spent / 1e6 + prices.request_usd


class PriceBook:
    """Remembers prices by day, for price tables change at midnight (UTC)."""

    def __init__(self, price_of: PriceOf | None) -> None:
        self._price_of = price_of
        self._known: dict[tuple[str | None, str, int], Prices | None] = {}

    def prices(self, provider: str | None, models: tuple[str | None, ...], at_ns: int) -> Prices | None:
        """The prices of the first of these models that has any."""
        if self._price_of is None:
            return None
        day = at_ns // _DAY_NS
        for model in models:
            if not model:
                continue
            key = (provider, model, day)
            if key not in self._known:
                if len(self._known) >= _MOST_KNOWN:
                    self._known.clear()
                self._known[key] = self._price_of(provider, model, at_ns)
            if (found := self._known[key]) is not None:
                return found
        return None
