"""Where models answer and what they charge: one value for the gateway, the control plane and evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING, Any

from tidemill.kernel import ChoicePolicy, Digest, Prices, ReleaseParts, Target
from tidemill.kernel.settings import ModelSettings, PriceSettings, RouterSettings, Settings

if TYPE_CHECKING:
    from tidemill.ledger import Ledger
    from tidemill.models.transport import ModelClient


def is_local(entry: Mapping[str, Any]) -> bool:
    """Whether a model of the catalogue runs in the project's own model server."""
    return bool(entry["source"]["type"] != "provider")


def model_target(settings: Settings, entry: Mapping[str, Any], today: date) -> Target:
    """Where a model of the catalogue answers: at its provider, or at the project's model server.

    Address and dialect are the entry's, for a release names its model by digest; prices, caps and quality are the
    project file's of today.

    Args:
        settings: the project file.
        entry: the ``entry`` in the content of the model's artifact.
        today: which row of the price table holds.
    """
    source, name, runtime = entry["source"], str(entry["name"]), settings.runtime
    own = settings.models.get(name)
    if is_local(entry):
        prices = Prices(input_usd_per_mtok=runtime.input_usd_per_mtok, output_usd_per_mtok=runtime.output_usd_per_mtok)
        target = Target(url=f"http://{runtime.host}:{runtime.port}/v1", model=name, name=name, prices=prices)
    else:
        target = Target(
            url=source["url"],
            model=source["model"],
            name=name,
            dialect=source.get("dialect", "openai"),
            api_key_ref=source.get("api_key_ref"),
            secret_refs=dict(source.get("secret_refs", {})),
            options=dict(source.get("options", {})),
            prices=provider_prices(own, entry, today),
        )
    target = replace(target, context_tokens=entry.get("context_tokens"))
    if own is None:
        return target
    return replace(target, quality=own.quality, max_in_flight=own.max_in_flight, weight=own.weight)


def provider_prices(own: ModelSettings | None, entry: Mapping[str, Any], today: date) -> Prices:
    """What a provider charges today: the newest row of the price table that has begun, else the flat prices."""
    begun = [row for row in own.prices if row.since <= today] if own is not None else []
    if begun:
        return _prices(max(begun, key=lambda row: row.since))
    flat = own if own is not None else None
    return Prices(
        input_usd_per_mtok=flat.input_usd_per_mtok if flat else float(entry.get("input_usd_per_mtok", 0.0)),
        output_usd_per_mtok=flat.output_usd_per_mtok if flat else float(entry.get("output_usd_per_mtok", 0.0)),
    )


def release_targets(settings: Settings, ledger: Ledger, parts: ReleaseParts, today: date) -> tuple[Target, ...]:
    """The targets of a release that is a bare model, or several behind a router, its own model first."""
    digests = [parts.model, *(Digest(digest) for digest in parts.router.get("models", ()))]
    return tuple(
        model_target(settings, ledger.artifacts.by_digest(digest).content["entry"], today) for digest in digests
    )


def open_client(target: Target) -> ModelClient:
    """A client of a target, with its secrets resolved.

    Raises:
        SettingsError: a secret is not there.
    """
    from tidemill.kernel.settings import resolve_secret
    from tidemill.models.providers import Credentials
    from tidemill.models.transport import ModelClient

    key = resolve_secret(target.api_key_ref) if target.api_key_ref is not None else None
    if target.dialect == "openai":
        return ModelClient(target.url, api_key=key)
    secrets = {name: resolve_secret(reference) for name, reference in target.secret_refs.items()}
    credentials = Credentials(key, secrets)
    return ModelClient(target.url, dialect=target.dialect, credentials=credentials, options=target.options)


def choice_of(parts: ReleaseParts) -> ChoicePolicy:
    """How a release chooses among its targets."""
    import msgspec

    router = {name: value for name, value in parts.router.items() if name != "models"}
    return msgspec.convert(router, ChoicePolicy)


def router_content(router: RouterSettings, models: Mapping[str, Digest]) -> dict[str, Any]:
    """A router as a release keeps it: further models by digest, and the choice in ``ChoicePolicy``'s words.

    Args:
        router: of the project file.
        models: digests of its models, by catalogue name.
    """
    return {
        "models": [models[name] for name in router.models],
        "kind": router.choice.value,
        "quality_floor": router.quality_floor,
        "rules": [[rule.field, rule.pattern, rule.model] for rule in router.rules],
        "learned": {"weights": list(router.learned.weights), "threshold": router.learned.threshold},
    }


def _prices(row: PriceSettings) -> Prices:
    return Prices(**row.model_dump(exclude={"since"}), version=row.since.isoformat())
