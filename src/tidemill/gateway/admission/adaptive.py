"""How many calls at once an upstream bears, found out from its time to the first token.

While calls queue up inside the upstream, the first token comes later. Every second the median of the times measured
is compared with the uncrowded time, and the limit follows the ratio, as in Netflix's concurrency-limits
(``GradientLimit``):

    limit <- limit * clamp(tolerance * uncrowded / median, 0.5, 1) + sqrt(limit)

smoothed. The square root is what probes for more; at rest ``median = tolerance * uncrowded / (1 - 1 / sqrt(limit))``.
The limit only grows while it is used, and a window in which a tenth of the calls failed cuts it to 0.7 of itself.

The uncrowded time must be measured without a crowd, or it creeps upwards with the limit: every 20 windows the limit is
halved for two, one to drain and one to measure (the idea of BBR's ProbeRTT; Cardwell and others, 2016). So a slower
model behind the same address is no overload for ever either.
"""

from __future__ import annotations

import math
from typing import Final

WINDOW_S: Final = 1.0
LEAST: Final = 2.0
"""The limit never falls below this: what is let in nothing can measure nothing."""

_TOLERANCE: Final = 1.2
_SMOOTHING: Final = 0.4
_SAMPLES_LEAST: Final = 8
_WINDOW_MOST_S: Final = 30.0
_PROBE_EVERY: Final = 20
_FAILED_SHARE: Final = 0.1
_FAILED_FACTOR: Final = 0.7


class AdaptiveLimit:
    """The limit of one endpoint in one worker.

    Args:
        first: where it begins.
        most: where it ends.

    Attributes:
        limit: calls that may be in flight; read it as ``int(limit)``.
    """

    __slots__ = ("_began_s", "_failed", "_most", "_peak", "_resume", "_seen", "_uncrowded_s", "_windows", "limit")

    def __init__(self, first: float, most: float) -> None:
        self._most = max(LEAST, most)
        self.limit = min(max(LEAST, first), self._most)
        self._seen: list[float] = []
        self._failed = 0
        self._peak = 0
        self._began_s = -math.inf
        self._uncrowded_s = math.inf
        self._windows = 0  # since the last probe
        self._resume: float | None = None  # the limit to go back to, while probing

    def follow(self, most: float) -> None:
        """Take over another upper end."""
        self._most = max(LEAST, most)
        self.limit = min(self.limit, self._most)

    def observe(self, first_token_s: float, in_flight: int, now_s: float) -> None:
        """A first token came so long after the upstream was asked; so many calls are in flight."""
        self._seen.append(first_token_s)
        self._peak = max(self._peak, in_flight)
        self._turn(now_s)

    def observe_failure(self, now_s: float) -> None:
        """The upstream failed, timed out, or said that it is overloaded."""
        self._failed += 1
        self._turn(now_s)

    def _turn(self, now_s: float) -> None:
        if self._began_s == -math.inf:
            self._began_s = now_s
        lasted_s = now_s - self._began_s
        count = len(self._seen) + self._failed
        if lasted_s < WINDOW_S or (count < _SAMPLES_LEAST and lasted_s < _WINDOW_MOST_S):
            return
        if self._failed > _FAILED_SHARE * count:
            self._set((self._resume or self.limit) * _FAILED_FACTOR)
            self._resume = None
        elif self._seen:
            self._weigh(sorted(self._seen)[len(self._seen) // 2])
        self._seen = []
        self._failed = self._peak = 0
        self._began_s = now_s

    def _weigh(self, seen_s: float) -> None:
        self._windows += 1
        if self._resume is not None:
            if self._windows == 2:
                self.limit, self._resume = self._resume, None
                self._uncrowded_s = seen_s
                self._windows = 0
            return
        self._uncrowded_s = min(self._uncrowded_s, seen_s)
        if self._windows >= _PROBE_EVERY:
            self._resume, self._windows = self.limit, 0
            self._set(self.limit / 2)
            return
        gradient = min(1.0, max(0.5, _TOLERANCE * self._uncrowded_s / seen_s)) if seen_s > 0 else 1.0
        room = math.sqrt(self.limit) if 2 * self._peak >= self.limit else 0.0
        wanted = self.limit * gradient + room
        if room or wanted < self.limit:
            self._set(self.limit + _SMOOTHING * (wanted - self.limit))

    def _set(self, limit: float) -> None:
        self.limit = min(self._most, max(LEAST, limit))
