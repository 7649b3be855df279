"""Many hypotheses at once: which of them may be rejected together.

Each function gives a name its *adjusted level*: the smallest error rate at which it is rejected. Reject what is at most
the alpha that was fixed before the data were seen.

* Holm (1979): the chance of any wrong rejection is at most alpha, whatever depends on what.
* Benjamini and Hochberg (1995): the expected share of wrong ones among the rejected is at most alpha, for independent
  or positively dependent p-values (Benjamini and Yekutieli 2001).
* e-BH, Wang and Ramdas, "False discovery rate control with e-values" (2022): the same for e-values, under every
  dependence, and at every look at once where each e-value is one.

For "is anything wrong at all" the weighted mean of e-values, ``average_e``, is stronger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from tidemill.kernel import InvalidInput


def _by_size(p_values: Mapping[str, float]) -> list[str]:
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise InvalidInput(f"p-value {p} of '{name}' is out of range: it lies between 0 and 1")
    return sorted(p_values, key=lambda name: p_values[name])


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down levels: ``max over j <= i of (K - j + 1) * p_(j)``, at most 1.

    Args:
        p_values: one for each hypothesis; they may depend on each other in any way.

    Returns:
        The adjusted level of each name, in the order given.

    Raises:
        InvalidInput: a p-value outside [0, 1].
    """
    adjusted: dict[str, float] = {}
    so_far = 0.0
    for rank, name in enumerate(_by_size(p_values)):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = so_far
    return {name: adjusted[name] for name in p_values}


def benjamini_hochberg(p_values: Mapping[str, float]) -> dict[str, float]:
    """Benjamini and Hochberg's step-up levels: ``min over j >= i of K * p_(j) / j``, at most 1.

    Args:
        p_values: one for each hypothesis; independent, or positively dependent.

    Returns:
        The adjusted level of each name, in the order given.

    Raises:
        InvalidInput: a p-value outside [0, 1].
    """
    adjusted: dict[str, float] = {}
    so_far = 1.0
    order = _by_size(p_values)
    for rank in range(len(order), 0, -1):
        so_far = min(so_far, len(order) * p_values[order[rank - 1]] / rank)
        adjusted[order[rank - 1]] = so_far
    return {name: adjusted[name] for name in p_values}


def e_bh(e_values: Mapping[str, float], weights: Mapping[str, float] | None = None) -> dict[str, float]:
    """The e-BH levels: ``min over j >= i of K / (j * e_[j])`` for e-values from large to small, at most 1.

    Args:
        e_values: one for each hypothesis, not negative; they may depend on each other in any way.
        weights: what each counts, set before the data; scaled to a mean of 1. A name left out weighs 1.

    Returns:
        The adjusted level of each name, in the order given.

    Raises:
        InvalidInput: a negative e-value or weight, or weights that are all zero.
    """
    for name, e in e_values.items():
        if not e >= 0:
            raise InvalidInput(f"e-value {e} of '{name}' is out of range: it is not negative")
    shares = {name: 1.0 if weights is None else weights.get(name, 1.0) for name in e_values}
    total = sum(shares.values())
    if shares and not (min(shares.values()) >= 0 and 0 < total < math.inf):
        raise InvalidInput("weights of e-values must not be negative and must not all be zero")
    # one that weighs nothing is never rejected, not even with an infinite e-value
    factor = {name: share * len(shares) / total for name, share in shares.items()}
    scaled = {name: e * factor[name] if factor[name] else 0.0 for name, e in e_values.items()}
    order = sorted(scaled, key=lambda name: -scaled[name])
    adjusted: dict[str, float] = {}
    so_far = 1.0
    for rank in range(len(order), 0, -1):
        e = scaled[order[rank - 1]]
        so_far = min(so_far, len(order) / (rank * e) if e else 1.0)
        adjusted[order[rank - 1]] = so_far
    return {name: adjusted[name] for name in e_values}
