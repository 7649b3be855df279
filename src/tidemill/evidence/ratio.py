"""Sample-ratio guard: do the arms get the shares they were assigned?

A canary whose sessions vanish more often than the control's looks good by what it lost. The guard tests the shares of
the sessions that arrived, at every look, in the manner of Lindon and Malek, "Anytime-valid inference for multinomial
count data" (2022), with bets in both directions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tidemill.evidence.betting import EProcess
from tidemill.kernel import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioGuard:
    """Evidence against "each session was a canary with the stated probability".

    Each session is centred by the share in force when it was assigned, so the share may change: with ``c`` 1 for a
    canary, ``z = (c - share) / scale`` has mean 0 and lies in [-1, 1] for ``scale = max(share, 1 - share)``.

    Args:
        more, fewer: evidence for too many and for too few canaries.
        controls, canaries: sessions seen.
        expected_canaries: the sum of the stated shares.
    """

    more: EProcess
    fewer: EProcess
    controls: int = 0
    canaries: int = 0
    expected_canaries: float = 0.0

    @classmethod
    def start(cls) -> RatioGuard:
        """A guard before any session."""
        return cls(more=EProcess.start(0.0), fewer=EProcess.start(0.0))

    def observe(self, *, canary: bool, share: float) -> RatioGuard:
        """Take the next session.

        Args:
            canary: whether it was served by the canary.
            share: the probability of that, in [0, 1], when it was assigned.

        Raises:
            InvalidInput: the share is out of range.
        """
        if not 0 <= share <= 1:
            raise InvalidInput(f"share {share} of a canary is out of range: it lies between 0 and 1")
        z = (float(canary) - share) / max(share, 1 - share)
        return replace(
            self,
            more=self.more.update(z),
            fewer=self.fewer.update(-z),
            controls=self.controls + (not canary),
            canaries=self.canaries + canary,
            expected_canaries=self.expected_canaries + share,
        )

    @property
    def e_value(self) -> float:
        """The e-value against the stated shares: the mean of both directions."""
        return (self.more.e_value + self.fewer.e_value) / 2
