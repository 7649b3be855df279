"""Evidence on people's scores from a judge on every case and people on a few drawn by chance, at every look.

Csillag, Struchiner and Goedert, "Prediction-powered e-values" (2025, arXiv 2502.04294): where a person's label is only
asked for with a known probability, the judge's score plus the label's surprise over that probability has the same mean
as the label itself, whatever the judge is worth. Bets on it are bets on people's scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tidemill.evidence.betting import LAMBDAS, log_mean_exp
from tidemill.kernel import InvalidInput

_LOG_MAX = 700.0  # exp of more overflows a float


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedProcess:
    """Evidence against "people's mean score is at most ``null_mean``", for scores in [0, 1].

    With y the label, f the judge's score, pi the probability with which a label was asked for and c the trust,
    ``z = c * f + (y - c * f) / pi`` where it was asked for and ``z = c * f`` where it was not: its mean given the past
    is that of y. z is at least ``-b`` for ``b = c * (1 - pi) / pi``, so with stakes ``lambda_j`` of ``LAMBDAS``

        ``W_j *= 1 + lambda_j * (z - null_mean) / (null_mean + b)``

    never loses more than the stake, and the mean of the W_j is an e-value: while the null holds it ever reaches
    ``1/alpha`` with probability at most alpha (Ville's inequality), for every judge and every trust. A good judge and
    more labels make it grow faster. The asking must be by chance and must not know the label; the probability may
    follow the judge's score and the past. A label that was asked for and never came breaks it.

    The mirrored question, "at least m", is this one about ``1 - y``, ``1 - f`` and ``1 - m``.

    Args:
        null_mean: the largest mean under the null, in (0, 1).
        trust: c, in [0, 1], fixed beforehand; the share of people's variation the judge explains is a good one.
        log_wealth: log W_j for each of ``LAMBDAS``; additive over observations.
        labelled, unlabelled: observations seen with a label and without.
        z_sum: the sum of z; over the count an estimate of people's mean without bias.
    """

    null_mean: float
    trust: float = 1.0
    log_wealth: tuple[float, ...] = (0.0,) * len(LAMBDAS)
    labelled: int = 0
    unlabelled: int = 0
    z_sum: float = 0.0

    @classmethod
    def start(cls, null_mean: float, trust: float = 1.0) -> JudgedProcess:
        """Evidence before any data.

        Raises:
            InvalidInput: ``null_mean`` is not in (0, 1) or ``trust`` not in [0, 1].
        """
        if not 0 < null_mean < 1:
            raise InvalidInput(f"null mean {null_mean} is out of range: it lies between 0 and 1")
        if not 0 <= trust <= 1:
            raise InvalidInput(f"trust {trust} in a judge is out of range: it lies between 0 and 1")
        return cls(null_mean=null_mean, trust=trust)

    def update(self, judged: float, *, label_share: float, label: float | None = None) -> JudgedProcess:
        """Bet on one more case.

        Args:
            judged: the judge's score, in [0, 1].
            label_share: the probability, in (0, 1], with which a person was asked about this case.
            label: the person's score, in [0, 1]; ``None`` if nobody was asked.

        Raises:
            InvalidInput: a value out of range, or no label where one was certain.
        """
        if not 0 <= judged <= 1 or (label is not None and not 0 <= label <= 1):
            raise InvalidInput(f"score {judged} or label {label} is out of range: both lie between 0 and 1")
        if not 0 < label_share <= 1 or (label is None and label_share == 1):
            raise InvalidInput(f"label share {label_share} is not the probability of asking for label {label}")
        guess = self.trust * judged
        z = guess if label is None else guess + (label - guess) / label_share
        floor = self.trust * (1 - label_share) / label_share
        gain = max(-1.0, (z - self.null_mean) / (self.null_mean + floor))  # below -1 by the last bit alone
        wealth = tuple(log_w + math.log1p(stake * gain) for log_w, stake in zip(self.log_wealth, LAMBDAS, strict=True))
        return replace(
            self,
            log_wealth=wealth,
            labelled=self.labelled + (label is not None),
            unlabelled=self.unlabelled + (label is None),
            z_sum=self.z_sum + z,
        )

    def absorb(self, other: JudgedProcess) -> JudgedProcess:
        """The evidence of two disjoint streams about the same null, as if one process had seen both.

        Raises:
            InvalidInput: they test different nulls.
        """
        if other.null_mean != self.null_mean:
            raise InvalidInput(f"evidence on means {self.null_mean} and {other.null_mean} cannot be merged")
        return replace(
            self,
            log_wealth=tuple(a + b for a, b in zip(self.log_wealth, other.log_wealth, strict=True)),
            labelled=self.labelled + other.labelled,
            unlabelled=self.unlabelled + other.unlabelled,
            z_sum=self.z_sum + other.z_sum,
        )

    @property
    def mean(self) -> float | None:
        """The estimate of people's mean, kept in [0, 1]; ``None`` before any data."""
        count = self.labelled + self.unlabelled
        return min(1.0, max(0.0, self.z_sum / count)) if count else None

    @property
    def e_value(self) -> float:
        """The e-value: 1 with no data; 1/alpha or more rejects the null at alpha. At most ``exp(700)``."""
        return math.exp(min(log_mean_exp(self.log_wealth), _LOG_MAX))

    def as_json(self) -> dict[str, Any]:
        """The state as a plain JSON object."""
        return {
            "null_mean": self.null_mean,
            "trust": self.trust,
            "log_wealth": list(self.log_wealth),
            "labelled": self.labelled,
            "unlabelled": self.unlabelled,
            "z_sum": self.z_sum,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> JudgedProcess:
        """Read back what ``as_json`` wrote."""
        return cls(**{**value, "log_wealth": tuple(value["log_wealth"])})
