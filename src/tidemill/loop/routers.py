"""Routers of the project file: what a person may ask about one, and what one may learn from of an endpoint's traces."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import msgspec

from tidemill.gateway.routing import FEATURES, Chooser, RoutingCall, TargetHealth, features, score_of
from tidemill.kernel import ChoicePolicy, NotFound, Target
from tidemill.kernel.routing_policy import Breaker, Choice
from tidemill.kernel.settings import Settings
from tidemill.kernel.settings_gateway import RouterSettings
from tidemill.loop.router_training import ScoredRequest, scored_pairs
from tidemill.telemetry import StoredSpan
from tidemill.telemetry.records import Content, Span

_BY_REQUEST: Final = frozenset((Choice.ORDERED, Choice.LEARNED))
_FIELDS: Final = frozenset(one.name for one in msgspec.structs.fields(Span)) - {"references"}


@dataclass(frozen=True, slots=True)
class Router:
    """A release's models and how one of them is chosen.

    Args:
        release: its name in the project file.
        models: names in the catalogue, the release's own first.
        settings: the choice.
    """

    release: str
    models: tuple[str, ...]
    settings: RouterSettings

    def as_json(self) -> dict[str, Any]:
        """The router as a plain JSON object; ``weights`` by the names of the features."""
        learned = self.settings.learned
        return {
            "release": self.release,
            "models": list(self.models),
            "choice": self.settings.choice.value,
            "rules": [{"field": one.field, "pattern": one.pattern, "model": one.model} for one in self.settings.rules],
            "weights": dict(zip((*FEATURES, "intercept"), learned.weights, strict=False)),
            "threshold": learned.threshold if learned.weights else None,
        }

    def first(self, text: str) -> dict[str, Any]:
        """Where a user's message would go first, while all models are ready.

        Returns:
            ``model``, or ``None`` where the choice does not look at the request; and the ``score`` that was learned.

        Raises:
            InvalidInput: rules or weights that cannot be used.
        """
        router = self.settings
        call = RoutingCall(messages=json.dumps([{"role": "user", "content": text}]).encode())
        score = score_of(router.learned.weights, features(call)) if router.learned.weights else None
        if router.choice not in _BY_REQUEST:
            return {"model": None, "score": score}
        policy = ChoicePolicy(
            kind=router.choice,
            rules=tuple((one.field, one.pattern, one.model) for one in router.rules),
            learned=msgspec.convert(router.learned.model_dump(), type(ChoicePolicy().learned)),
        )
        rng = Random(0)  # noqa: S311 - these two kinds of choice draw nothing
        targets = [Target("http://127.0.0.1:9/v1", name=model) for model in self.models]
        chooser = Chooser(targets, [TargetHealth(Breaker(), rng) for _ in targets], policy, rng)
        return {"model": self.models[chooser.order(call, 0.0)[0]], "score": score}


def router_of(settings: Settings, release: str) -> Router:
    """The router of a release of the project file.

    Raises:
        NotFound: there is no such release, or it has one model only.
    """
    found = settings.releases.get(release)
    if found is None:
        known = ", ".join(settings.releases) or "none yet"
        raise NotFound(f"The project file has no release '{release}'.", hint=f"It has: {known}.")
    if found.router is None:
        raise NotFound(
            f"The release '{release}' has one model and no router.",
            hint="Name further models under its router: in tidemill.yaml; see docs/how-to/route-between-models.md",
        )
    return Router(release, (found.model, *found.router.models), found.router)


def traced_pairs(
    spans: Iterable[Mapping[str, Any]], scores: Iterable[Mapping[str, Any]], *, large: str
) -> list[ScoredRequest]:
    """Scored requests out of the traces of an endpoint in which two models answered.

    Args:
        spans: with content, as ``answering.Answers.spans`` tells them.
        scores: of one name, in the order of storing, as ``Answers.scores`` tells them. One that names no span is the
            live answer's; of several of an answer the last one holds.
        large: digest of the large model's release.
    """
    values: dict[tuple[str, str | None], float] = {}
    for one in scores:
        if one["value"] is not None:
            values[one["trace_id"], one["span_id"]] = one["value"]

    def value_of(stored: StoredSpan) -> float | None:
        span = stored.span
        found = values.get((span.trace_id, span.span_id))
        if found is None and span.arm != "shadow":
            found = values.get((span.trace_id, None))
        return found

    return scored_pairs(map(_stored, spans), value_of, large=large)


def _stored(told: Mapping[str, Any]) -> StoredSpan:
    content = told.get("content")
    span = Span(**{name: told[name] for name in _FIELDS if name in told})
    return StoredSpan(span, Content(**content) if content is not None else None, told["ingest_seq"])
