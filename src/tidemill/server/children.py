"""The processes of a project, as the supervisor starts them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tidemill.gateway.backing_options import (
    BackingOptions,
    ConversationOptions,
    EmbedderOptions,
    GuardrailOptions,
)
from tidemill.kernel.settings import Settings
from tidemill.server.supervisor import ChildSpec

if TYPE_CHECKING:
    from tidemill.loop.project import Places


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """Weights on this machine that the local model server loads."""

    chat: tuple[str, Path] | None = None
    embedding: tuple[str, Path, Path] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One release that the control plane wants served.

    Args:
        digest: the release artifact's.
        chat_model, model_url, model_key_ref: the model server that answers for it.
        dialect, options, secret_refs: what that server speaks, and what else it takes to call it.
        embed_model: model name for embeddings; ``None`` when it does not search by vectors.
    """

    digest: str
    port: int
    chat_model: str
    model_url: str
    model_key_ref: str | None = None
    dialect: str = "openai"
    options: Mapping[str, str] = field(default_factory=dict)
    secret_refs: Mapping[str, str] = field(default_factory=dict)
    embed_model: str | None = None
    embed_url: str | None = None


def server_child(settings: Settings, project_file: Path) -> ChildSpec:
    """The control plane."""
    url = f"http://{reachable(settings.server.host)}:{settings.server.port}/health"
    return ChildSpec(
        name="server",
        module="tidemill.server",
        arguments=("--project", str(project_file)),
        health_url=url,
        stops_last=True,  # it drains the last segments of the others
    )


def gateway_children(settings: Settings, places: Places, listener: int) -> list[ChildSpec]:
    """The gateway workers, all on one inherited listening socket."""
    arguments = (
        *("--fd", str(listener)),
        *("--snapshot", str(places.routing)),
        *("--segments", str(places.segments)),
        *("--project", settings.project),
        *("--tenant", settings.tenant),
        *("--backing", gateway_backing(settings, places).encode()),
        *_optional("--tls-certificate", _file(settings, settings.gateway.tls_certificate)),
        *_optional("--tls-key", _file(settings, settings.gateway.tls_key)),
        *(word for origin in settings.gateway.allowed_origins for word in ("--allow-origin", origin)),
        *(word for host in settings.gateway.allowed_hosts for word in ("--allow-host", host)),
    )
    scheme = "https" if settings.gateway.tls_certificate is not None else "http"
    url = f"{scheme}://{reachable(settings.gateway.host)}:{settings.gateway.port}/health"
    return [
        ChildSpec(
            name=f"gateway-{number}",
            module="tidemill.gateway",
            arguments=(*arguments, "--worker", f"gateway-{number}"),
            health_url=url,
            inherit=(listener,),
        )
        for number in range(settings.gateway.workers)
    ]


def gateway_backing(settings: Settings, places: Places) -> BackingOptions:
    """What stands behind the gateway's workers, as the project file says."""
    gateway, runtime = settings.gateway, settings.runtime
    kept = gateway.conversations
    conversations = None
    if kept.enabled:
        conversations = ConversationOptions(
            url=kept.store or f"sqlite:///{places.state / 'gateway' / 'conversations.db'}",
            retention_s=kept.retention_s,
            bytes_most=kept.bytes_most,
            depth_most=kept.depth_most,
            key_ref=kept.key,
        )
    embeddings = None
    if runtime.enabled and runtime.embedding is not None:
        embeddings = EmbedderOptions(url=f"http://{reachable(runtime.host)}:{runtime.port}/v1", model=runtime.embedding)
    return BackingOptions(
        limits_url=limits_url(settings),
        limits_unavailable=gateway.limits_unavailable,
        cache_bytes=gateway.cache_bytes,
        cache_url=gateway.cache_store,
        embeddings=embeddings,
        conversations=conversations,
        guardrails=(
            GuardrailOptions(factory=gateway.guardrails, folder=str(settings.folder)) if gateway.guardrails else None
        ),
    )


def check_guardrails(settings: Settings, places: Places) -> None:
    """Load what the endpoints' guardrails need, so that a mistake is told before anything starts.

    Raises:
        SettingsError: the project's own guardrails cannot be loaded.
        NotFound: an endpoint names one that nobody knows.
    """
    if settings.gateway.guardrails is None and not any(one.guardrails for one in settings.endpoints.values()):
        return
    from tidemill.gateway.backing import open_guardrails
    from tidemill.gateway.guardrails import Guardrails

    known = open_guardrails(gateway_backing(settings, places)) or Guardrails()
    for endpoint in settings.endpoints.values():
        known.plan(endpoint.guardrails)


def limits_url(settings: Settings) -> str | None:
    """Where the accounts of limits are kept; ``None`` where nothing is limited."""
    return (settings.gateway.limits_store or settings.ledger_url) if settings.limits else None


def runtime_child(settings: Settings, files: ModelFiles) -> ChildSpec | None:
    """The local model server, if it has anything to serve."""
    runtime = settings.runtime
    if not runtime.enabled or (files.chat is None and files.embedding is None):
        return None
    arguments = ["--host", runtime.host, "--port", str(runtime.port)]
    if files.chat is not None:
        name, weights = files.chat
        arguments += ["--chat", str(weights), "--chat-name", name]
    if files.embedding is not None:
        name, graph, tokenizer = files.embedding
        arguments += ["--embed", str(graph), "--tokenizer", str(tokenizer), "--embed-name", name]
    if runtime.threads is not None:
        arguments += ["--threads", str(runtime.threads)]
    arguments += ["--parallel", str(runtime.parallel), "--context", str(runtime.context_tokens)]
    url = f"http://{reachable(runtime.host)}:{runtime.port}/health"
    return ChildSpec(name="runtime", module="tidemill.models.runtime", arguments=tuple(arguments), health_url=url)


def serving_children(settings: Settings, places: Places) -> list[ChildSpec]:
    """One process per release that ``run/deployments.json`` asks for; none while there is no such file."""
    return [_serving_child(settings, places, one) for one in read_deployments(places.deployments)]


def read_deployments(path: Path) -> list[Deployment]:
    """What the control plane asked for last; nothing when the file is missing or another version's.

    The control plane writes it anew at its first look, so what cannot be read is not worth stopping for.
    """
    try:
        return [Deployment(**one) for one in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError):
        return []


def reachable(host: str) -> str:
    """The address at which this machine reaches what listens on ``host``."""
    return "127.0.0.1" if host in ("", "0.0.0.0") else host  # noqa: S104 - compared, not bound


def serving_name(digest: str) -> str:
    """The name of a release's process."""
    return f"serving-{digest.removeprefix('sha256:')[:12]}"


def _serving_child(settings: Settings, places: Places, one: Deployment) -> ChildSpec:
    name = serving_name(one.digest)
    arguments: Sequence[str] = (
        *("--ledger-url", settings.ledger_url),
        *("--blobs", settings.blobs_url),
        *("--cache-dir", str(places.cache)),
        *_s3(settings),
        *("--project", settings.project),
        *("--tenant", settings.tenant),
        *("--release", one.digest),
        *("--model-url", one.model_url),
        *("--chat-model", one.chat_model),
        *_optional("--model-key", one.model_key_ref),
        *("--dialect", one.dialect),
        *(word for pair in one.options.items() for word in ("--option", "=".join(pair))),
        *(word for pair in one.secret_refs.items() for word in ("--model-secret", "=".join(pair))),
        *_optional("--embed-model", one.embed_model),
        *_optional("--embed-url", one.embed_url),
        *("--segments", str(places.segments / name)),
        *("--capture", settings.gateway.capture),
        *("--port", str(one.port)),
    )
    return ChildSpec(name=name, module="tidemill.serving", arguments=tuple(arguments))


def _s3(settings: Settings) -> tuple[str, ...]:
    s3 = settings.store.s3
    if s3 is None:
        return ()
    return (
        *_optional("--s3-endpoint", s3.endpoint),
        *("--s3-region", s3.region),
        *_optional("--s3-key-id", s3.access_key_id),
        *_optional("--s3-secret", s3.secret_access_key),
    )


def _file(settings: Settings, name: str | None) -> str | None:
    return None if name is None else str(settings.folder / name)


def _optional(option: str, value: str | None) -> tuple[str, ...]:
    return () if value is None else (option, value)
