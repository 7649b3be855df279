"""Learning which requests a small model may answer, from requests that both models have answered and somebody scored.

A third of the requests fits the weights, a third chooses the threshold, and a third tells what to expect, so that no
figure is read off the data it was made with.

The threshold is the cheapest that is *shown* to lose no more than was allowed. The candidates are tested in a fixed
order, from "everything to the large model" to "everything to the small one", and the first that cannot be shown ends
the search: so the chance of choosing a threshold that loses more is at most ``alpha``, however many there are (fixed
sequence testing; Maurer, Hothorn and Lehmacher, 1995; for thresholds of models: Angelopoulos and others, "Learn then
test", 2021). Without enough data everything goes to the large model.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tidemill.evidence import Interval, mean_interval
from tidemill.gateway.routing import FEATURES, RoutingCall, features, score_of
from tidemill.kernel import InvalidInput, LearnedRouting, Outcome, Verdict

if TYPE_CHECKING:
    from tidemill.telemetry import StoredSpan

_LEAST: Final = 60
_CANDIDATES: Final = 20
_RIDGE: Final = 2.0
_STEPS: Final = 25


@dataclass(frozen=True, slots=True)
class ScoredRequest:
    """A request that both models have answered.

    Args:
        call: the request.
        small: score of the small model's answer, in [0, 1].
        large: score of the large model's.
        small_usd: what the small model's answer cost.
        large_usd: what the large model's cost.
    """

    call: RoutingCall
    small: float
    large: float
    small_usd: float
    large_usd: float


def scored_pairs(
    spans: Iterable[StoredSpan], score: Callable[[StoredSpan], float | None], *, large: str
) -> list[ScoredRequest]:
    """Scored requests out of traces in which both models answered: one live, the other in its shadow.

    What was masked in the kept content is masked to the features too, and requests whose content was not kept are left
    out, as are those of which either answer has no score.

    Args:
        spans: the gateway's, with content.
        score: in [0, 1], of one answer; ``None`` where there is none.
        large: digest of the large model's release; the other release of a trace is the small model's.

    Returns:
        The requests in the order in which they came.
    """
    traces: dict[str, dict[bool, StoredSpan]] = {}
    for stored in spans:
        if stored.span.arm is not None and stored.span.operation != "attempt":
            traces.setdefault(stored.span.trace_id, {})[stored.span.release == large] = stored
    found: list[tuple[int, ScoredRequest]] = []
    for pair in traces.values():
        content = pair[True].content if len(pair) == 2 else None
        if content is None:
            continue
        small_score, large_score = score(pair[False]), score(pair[True])
        if small_score is None or large_score is None:
            continue
        call = RoutingCall(messages=content.input.encode())
        costs = [pair[place].span.cost_usd or 0.0 for place in (False, True)]
        request = ScoredRequest(call, small_score, large_score, small_usd=costs[0], large_usd=costs[1])
        found.append((min(stored.span.started_at_ns for stored in pair.values()), request))
    return [request for _, request in sorted(found, key=lambda one: one[0])]


def read_scored(path: Path) -> list[ScoredRequest]:
    """Scored requests out of a file of JSON lines.

    A line is an object with ``input`` (the text that was asked) or ``messages`` (a chat's), ``small`` and ``large``
    (scores in [0, 1]) and, if known, ``small_usd`` and ``large_usd``.

    Raises:
        InvalidInput: a line is something else, or the file cannot be read; the message names it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(_scored(json.loads(line)))
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidInput(
                f"{path}, line {number} is no scored request: {error!r}",
                hint='A line is {"input": "…", "small": 0.5, "large": 1.0, "small_usd": 0.0001, "large_usd": 0.002}',
            ) from None
    return found


def _scored(line: Mapping[str, Any]) -> ScoredRequest:
    messages = line["messages"] if "messages" in line else [{"role": "user", "content": str(line["input"])}]
    if not isinstance(messages, list):
        raise TypeError("'messages' is no list")
    return ScoredRequest(
        RoutingCall(messages=json.dumps(messages).encode()),
        float(line["small"]),
        float(line["large"]),
        float(line.get("small_usd", 0.0)),
        float(line.get("large_usd", 0.0)),
    )


@dataclass(frozen=True, slots=True)
class FittedRouter:
    """Weights and threshold for ``choice: learned``, and what they did to requests that had no part in them.

    Args:
        learned: for the release's choice.
        share_large: of those requests that went to the large model.
        quality, quality_small, quality_large: mean scores routed, of the small model, of the large one.
        cost_usd, cost_small_usd, cost_large_usd: mean costs of a request, likewise.
        loss: mean of large minus routed, with its confidence limits.
        over_random: mean of routed minus a random mix of the same cost, with its confidence limits.
        verdict: PASS when a threshold that saves anything was shown to keep the quality; else INSUFFICIENT.
    """

    learned: LearnedRouting
    share_large: float
    quality: float
    quality_small: float
    quality_large: float
    cost_usd: float
    cost_small_usd: float
    cost_large_usd: float
    loss: Interval
    over_random: Interval
    verdict: Verdict

    @property
    def saved(self) -> float:
        """Share of the large model's cost that is saved."""
        return 1 - self.cost_usd / self.cost_large_usd if self.cost_large_usd else 0.0

    @property
    def beats_random(self) -> bool:
        """Whether the features help: whether a random mix of the same cost is shown to be worse."""
        return self.over_random.low > 0


def fit_router(
    scored: Sequence[ScoredRequest], *, max_loss: float = 0.02, alpha: float = 0.05, seed: int = 0
) -> FittedRouter:
    """Learn weights and threshold.

    Args:
        scored: requests as they come in production, at least 60; independent of each other.
        max_loss: how far the mean score may fall below the large model's.
        alpha: chance that the threshold loses more; error rate of the intervals.
        seed: of the split in three.

    Raises:
        InvalidInput: too few requests, or a score outside [0, 1].
    """
    if len(scored) < _LEAST:
        raise InvalidInput(f"{len(scored)} scored requests are too few to learn a route from; {_LEAST} are the least")
    if not all(0 <= request.small <= 1 and 0 <= request.large <= 1 for request in scored):
        raise InvalidInput("a score is out of range: expected 0 to 1")
    order = list(scored)
    random.Random(seed).shuffle(order)  # noqa: S311 - a repeatable split is wanted, not a secret
    third = len(order) // 3
    learning, choosing, telling = order[:third], order[third : 2 * third], order[2 * third :]
    weights = _weights(learning)
    threshold, shown = _threshold(weights, choosing, max_loss, alpha)
    return _told(LearnedRouting(weights=weights, threshold=threshold), telling, shown, max_loss, alpha)


def _weights(scored: Sequence[ScoredRequest]) -> tuple[float, ...]:
    """Ridge logistic regression of "the large answer is better" by Newton's method, on standardised features."""
    import numpy as np  # loop loads it only when it learns

    x = np.array([features(request.call) for request in scored])
    better = np.array([float(request.large > request.small) for request in scored])
    middle, spread = x.mean(axis=0), x.std(axis=0)
    spread[spread < 1e-9] = 1.0
    design = np.hstack([(x - middle) / spread, np.ones((len(x), 1))])
    penalty = np.diag([_RIDGE] * len(FEATURES) + [1e-6])
    beta = np.zeros(design.shape[1])
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(-np.clip(design @ beta, -30, 30)))
        slope = design.T @ (better - chance) - penalty @ beta
        curve = (design * (chance * (1 - chance))[:, None]).T @ design + penalty
        step = np.linalg.solve(curve, slope)
        beta = beta + step
        if float(np.abs(step).max()) < 1e-8:
            break
    plain = beta[:-1] / spread
    return (*(float(weight) for weight in plain), float(beta[-1] - plain @ middle))


def _threshold(
    weights: Sequence[float], scored: Sequence[ScoredRequest], max_loss: float, alpha: float
) -> tuple[float, bool]:
    """The cheapest threshold that is shown to lose at most ``max_loss``, and whether it is any but 0."""
    scores = [score_of(weights, features(request.call)) for request in scored]
    ordered = sorted(scores)
    candidates = [
        ordered[min(len(ordered) - 1, number * len(ordered) // _CANDIDATES)] for number in range(1, _CANDIDATES)
    ]
    chosen = 0.0
    for candidate in [*candidates, 1.0]:
        losses = [
            0.0 if score >= candidate else request.large - request.small
            for score, request in zip(scores, scored, strict=True)
        ]
        # one-sided: only the upper limit is used, so the interval may err by 2 * alpha
        if mean_interval(losses, 2 * alpha, low=-1.0, high=1.0).high > max_loss:
            break
        chosen = candidate
    return chosen, chosen > 0


def _told(
    learned: LearnedRouting, scored: Sequence[ScoredRequest], shown: bool, max_loss: float, alpha: float
) -> FittedRouter:
    """What the router does to requests that had no part in it."""
    large = [score_of(learned.weights, features(request.call)) >= learned.threshold for request in scored]
    pairs = list(zip(scored, large, strict=True))
    routed = [request.large if hard else request.small for request, hard in pairs]
    cost = _mean([request.large_usd if hard else request.small_usd for request, hard in pairs])
    cost_small, cost_large = _mean([r.small_usd for r in scored]), _mean([r.large_usd for r in scored])
    share = sum(large) / len(large)
    mix = min(1.0, max(0.0, (cost - cost_small) / (cost_large - cost_small))) if cost_large > cost_small else share
    at_random = [mix * request.large + (1 - mix) * request.small for request in scored]
    over_random = [a - b for a, b in zip(routed, at_random, strict=True)]
    loss = mean_interval([r.large - q for r, q in zip(scored, routed, strict=True)], alpha, low=-1.0, high=1.0)
    quality = _mean(routed)
    evidence: dict[str, Any] = {"max_loss": max_loss, "alpha": alpha, "share_large": share, "loss": loss.as_json()}
    if shown:
        reason = f"{1 - cost / cost_large if cost_large else 0:.0%} of the large model's cost saved at a loss of "
        reason += f"{loss.mean:+.3f} ({loss.low:+.3f} to {loss.high:+.3f}); {share:.0%} of requests still go to it"
        verdict = Verdict(Outcome.PASS, reason, evidence)
    else:
        reason = f"no threshold could be shown to lose at most {max_loss:g}; everything goes to the large model"
        verdict = Verdict(Outcome.INSUFFICIENT, reason, evidence)
    return FittedRouter(
        learned=learned,
        share_large=share,
        quality=quality,
        quality_small=_mean([request.small for request in scored]),
        quality_large=_mean([request.large for request in scored]),
        cost_usd=cost,
        cost_small_usd=cost_small,
        cost_large_usd=cost_large,
        loss=loss,
        over_random=mean_interval(over_random, alpha, low=-1.0, high=1.0),
        verdict=verdict,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
