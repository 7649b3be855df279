"""A second call for the slowest requests: after the target's own p95, before the first token, within a budget.

Source: Dean and Barroso, "The tail at scale" (2013). Whichever call brings the first token first is kept, the other is
cancelled, and both are charged.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tidemill.gateway.routing.health import TargetHealth
from tidemill.kernel.routing_policy import Hedging

_BURST: Final = 3.0
_OPERATIONS: Final = frozenset(("chat", "text_completion", "embeddings", "moderation"))
_HARMLESS_TOOLS: Final = frozenset(("function", "custom"))


class _Tool(msgspec.Struct, gc=False):
    type: str = "function"


_tools: Final = msgspec.json.Decoder(list[_Tool])


def may_hedge(operation: str, tools: bytes | memoryview = b"", *, stored: bool = False) -> bool:
    """Whether asking twice does no more than asking once.

    Args:
        operation: audio is left out, for its requests and answers are large.
        tools: the raw JSON of ``tools``: functions run at the client, after an answer; any other kind (code, files,
            web, MCP) may act at the provider.
        stored: the provider keeps the answer (``store``, ``previous_response_id``).
    """
    if stored or operation not in _OPERATIONS:
        return False
    if not tools:
        return True
    try:
        return all(tool.type in _HARMLESS_TOOLS for tool in _tools.decode(tools))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


class Hedger:
    """When the second call of a request may start.

    Over N requests there are at most ``3 + share * N`` hedges.

    Args:
        policy: share and least wait; a share of 0 never hedges.
    """

    __slots__ = ("_policy", "_saved")

    def __init__(self, policy: Hedging) -> None:
        self._policy = policy
        self._saved = min(_BURST, 1.0) if policy.share > 0 else 0.0

    def follow(self, policy: Hedging) -> None:
        """Take over another policy."""
        self._policy = policy

    def delay_s(self, health: TargetHealth, *, streamed: bool) -> float | None:
        """A request begins: how long after its first attempt a second may start.

        Returns:
            The target's p95 of the time to first token, at least ``min_wait_s``; ``None`` for no hedge: switched off,
            nothing saved, or too little measured.
        """
        share = self._policy.share
        if share <= 0:
            return None
        self._saved = saved = min(_BURST, self._saved + share)
        if saved < 1:
            return None
        p95_s = health.p95_first_token_s(streamed=streamed)
        return None if p95_s is None else max(self._policy.min_wait_s, p95_s)

    @property
    def ready(self) -> bool:
        """Whether the budget has a hedge left."""
        return self._saved >= 1

    def spend(self) -> bool:
        """The wait is over without a token: take a hedge out of the budget, if one is left."""
        if not self.ready:
            return False
        self._saved -= 1
        return True
