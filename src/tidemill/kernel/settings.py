"""The project file ``tidemill.yaml`` and the environment, read here and nowhere else.

Order of precedence: an environment variable ``TIDEMILL_SECTION__KEY`` wins over the file, the file over the defaults.
The environment is read once and frozen. Unknown keys are refused with the nearest known one.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from tidemill.kernel.errors import NotFound, SettingsError
from tidemill.kernel.scope import Scope
from tidemill.kernel.settings_gateway import (
    GatewaySettings,
    LimitSettings,
    Name,
    PolicySettings,
    Port,
    Positive,
    Price,
    PriceSettings,
    RouterSettings,
    Section,
    Share,
)
from tidemill.kernel.settings_telemetry import SloSettings, TelemetrySettings

PROJECT_FILE: Final = "tidemill.yaml"
STATE_FOLDER: Final = ".tidemill"
_PREFIX: Final = "TIDEMILL_"
#: Variables with our prefix that belong to the test suite, not to a project.
_FOREIGN: Final = re.compile(r"TIDEMILL_(TEST_\w+|SHARED_DATA)")


class S3Settings(Section):
    """How to reach an S3-compatible object store. Keys are secret references, never values."""

    endpoint: str | None = Field(None, description="URL of the server; empty for AWS.")
    region: str = Field("us-east-1", description="Region name the server expects.")
    access_key_id: str | None = Field(None, description="Secret reference, e.g. env:S3_KEY_ID.")
    secret_access_key: str | None = Field(None, description="Secret reference, e.g. file:/run/secrets/s3.")


class StoreSettings(Section):
    """Where what was made is kept."""

    ledger: str | None = Field(None, description="SQLAlchemy URL; empty for SQLite in the state folder.")
    blobs: str | None = Field(None, description="Folder or s3://bucket/prefix; empty for the state folder.")
    s3: S3Settings | None = Field(None, description="How to reach the object store.")
    garbage_grace_s: Positive = Field(86400.0, description="Unreferenced blobs younger than this are kept.")


class ServerSettings(Section):
    """The control plane."""

    host: str = Field("127.0.0.1", description="Address to listen on. Keep to loopback until access control is set up.")
    port: Port = Field(8400, description="Port of the REST API.")
    drain_every_s: Positive = Field(0.2, description="How often segments are drained into the span store.")
    decide_every_s: Positive = Field(0.5, description="How often rollouts are looked at.")
    monitor_every_s: Positive = Field(2.0, description="How often monitors are evaluated.")


class RuntimeSettings(Section):
    """The local model server."""

    enabled: bool = Field(True, description="Start a local model server with `tidemill up`.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Port = Field(8420, description="Port of its OpenAI-compatible API.")
    chat: Name | None = Field("smollm2-135m-instruct", description="Chat model of the catalogue to serve.")
    embedding: Name | None = Field("all-minilm-l6-v2", description="Embedding model of the catalogue to serve.")
    threads: int | None = Field(None, ge=1, description="Threads of the engine; empty for the number of cores.")
    parallel: int = Field(8, ge=1, le=64, description="Requests decoded together.")
    context_tokens: int = Field(8192, ge=128, description="Tokens held at once, shared by parallel requests.")
    input_usd_per_mtok: float = Field(0.0, ge=0, description="What a million input tokens cost on this machine.")
    output_usd_per_mtok: float = Field(0.0, ge=0, description="What a million output tokens cost on this machine.")


class ModelSettings(Section):
    """A model of the user's own catalogue: weights in a folder or on a hub, or an OpenAI-compatible server."""

    kind: Literal["chat", "embedding"] = Field("chat", description="What it does.")
    licence: str = Field("unknown", description="SPDX identifier of its licence.")
    folder: str | None = Field(None, description="Local folder with the weights.")
    hub: str | None = Field(None, description="Hub id to pull from.")
    url: str | None = Field(None, description="Base URL of an OpenAI-compatible server instead of weights.")
    api_key: str | None = Field(None, description="Secret reference for that server.")
    upstream_model: str | None = Field(None, description="Model name that server knows.")
    context_tokens: int = Field(2048, ge=1, description="Context window, in tokens.")
    input_usd_per_mtok: Price = Field(0.0, description="Price of a million input tokens, where there is no table.")
    output_usd_per_mtok: Price = Field(0.0, description="Likewise of output tokens.")
    prices: tuple[PriceSettings, ...] = Field((), description="Price table; the newest row that has begun holds.")
    dialect: Literal["openai", "azure", "anthropic", "gemini", "bedrock", "mistral", "ollama", "vllm"] = Field(
        "openai", description="What the server at url speaks."
    )
    options: Mapping[str, str] = Field(default_factory=dict, description="What the dialect needs, e.g. region.")
    secrets: Mapping[str, str] = Field(default_factory=dict, description="Further secret references, by name.")
    quality: Share = Field(1.0, description="Score that a router's quality_floor is compared with.")
    max_in_flight: int | None = Field(None, ge=1, description="Calls at once from one worker; empty for no cap.")
    weight: Positive = Field(1.0, description="Share of a router's weighted choice.")


class DatasetSettings(Section):
    """A data set built from documents."""

    source: Literal["folder", "python"] = Field("folder", description="A folder, or Python's own language reference.")
    path: str | None = Field(None, description="The folder, relative to the project file.")


class IndexSettings(Section):
    """A search index over a data set."""

    dataset: Name = Field(description="Data set it is built from.")
    mode: Literal["bm25", "dense", "hybrid"] = Field("hybrid", description="How it searches.")
    passage_tokens: int = Field(120, ge=16, le=512, description="Length of a passage, in tokens.")


class MessageSettings(Section):
    """One message of a prompt."""

    role: Literal["system", "user", "assistant"] = Field(description="Whose message.")
    content: str = Field(description="Template text with {{name}} places.")


class PromptSettings(Section):
    """A versioned prompt."""

    messages: tuple[MessageSettings, ...] = Field(min_length=1, description="Message templates in order.")
    no_answer: str = Field("I do not know.", description="Answer when nothing fitting was found.")


class DecodingSettings(Section):
    """How the model is sampled."""

    max_tokens: int = Field(24, ge=1, description="Longest answer, in tokens.")
    temperature: float = Field(0.0, ge=0, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus.")
    seed: int | None = Field(0, description="Seed of the sampler.")
    stop: tuple[str, ...] = Field((), description="Texts that end the answer.")


class RetrievalSettings(Section):
    """How a release searches its index."""

    mode: Literal["bm25", "dense", "hybrid"] | None = Field(None, description="Empty: as the index was built.")
    top_k: int = Field(1, ge=1, le=20, description="Passages given to the model.")
    max_context_tokens: int = Field(250, ge=16, description="Budget of the context, in tokens.")
    dense_weight: Share = Field(0.5, description="Weight of the dense score in hybrid search.")
    min_score: float | None = Field(None, description="Below this best score the release abstains.")


class ReleaseSettings(Section):
    """A recipe for a release: model, prompt and index by name."""

    model: Name = Field("smollm2-135m-instruct", description="Catalogue name of the model.")
    prompt: Name | None = Field(None, description="Prompt name.")
    index: Name | None = Field(None, description="Index name.")
    decoding: DecodingSettings = Field(default=DecodingSettings(), description="How the model is sampled.")
    retrieval: RetrievalSettings = Field(default=RetrievalSettings(), description="How the index is searched.")
    router: RouterSettings | None = Field(None, description="Further models, for a release that is a bare model.")


class RolloutSettings(Section):
    """How an endpoint moves from one release to the next."""

    margins: Mapping[str, Share] = Field(
        default_factory=lambda: {"success": 0.1, "latency_ok": 0.1, "ok": 0.05},
        description="Loss per metric that is still acceptable, each a rate in [0, 1].",
    )
    alpha_promote: float = Field(0.05, gt=0, lt=1, description="Error rate of promoting a release that is worse.")
    alpha_rollback: float = Field(0.05, gt=0, lt=1, description="Error rate of rolling back one that is not.")
    canary_share: Share = Field(0.5, description="Share of new sessions that the candidate answers.")
    min_sessions: int = Field(20, ge=1, description="Canary sessions before a promotion.")
    max_sessions: int = Field(2000, ge=1, description="Canary sessions after which on_max applies.")
    on_max: Literal["hold", "rollback"] = Field("hold", description="What happens at max_sessions.")
    shadow_requests: int = Field(0, ge=0, description="Shadow copies compared before the canary; 0 for no shadow.")
    shadow_margin: Share = Field(0.2, description="Loss of paired groundedness that is still acceptable in shadow.")
    label_timeout_s: Positive = Field(600.0, description="A session without feedback for so long counts as unmeasured.")
    latency_slo_s: Positive = Field(5.0, description="A request slower than this is not latency_ok.")
    session_idle_s: Positive = Field(1800.0, description="A session idle for so long is closed.")


class EndpointSettings(PolicySettings):
    """A public model name."""

    release: Name = Field(description="Release name whose @production answers.")
    rollout: RolloutSettings = Field(default=RolloutSettings(), description="How the next release is let in.")


class MonitorSettings(Section):
    """An alarm on an endpoint."""

    endpoint: Name = Field(description="Endpoint it watches.")
    signal: Literal["errors", "latency"] = Field(description="What it watches.")
    objective: float = Field(0.99, gt=0, lt=1, description="Share of requests that must be good.")
    latency_slo_s: Positive = Field(5.0, description="For latency: slower than this is bad.")
    false_alarm_every_days: Positive = Field(90.0, description="At most one false alarm in so many days.")


class Settings(Section):
    """The whole project file. One file is one project; the same file serves a laptop and a cluster."""

    version: Literal[1] = Field(1, description="Version of this file's format.")
    project: Name = Field(description="Name of the project.")
    tenant: Name = Field("default", description="Whose data this is.")
    store: StoreSettings = Field(default=StoreSettings(), description="Where what was made is kept.")
    server: ServerSettings = Field(default=ServerSettings(), description="The control plane.")
    gateway: GatewaySettings = Field(default=GatewaySettings(), description="The data plane.")
    runtime: RuntimeSettings = Field(default=RuntimeSettings(), description="The local model server.")
    models: Mapping[Name, ModelSettings] = Field(default_factory=dict, description="Models besides the built-in ones.")
    datasets: Mapping[Name, DatasetSettings] = Field(default_factory=dict, description="Data sets by name.")
    indexes: Mapping[Name, IndexSettings] = Field(default_factory=dict, description="Indexes by name.")
    prompts: Mapping[Name, PromptSettings] = Field(default_factory=dict, description="Prompts by name.")
    releases: Mapping[Name, ReleaseSettings] = Field(default_factory=dict, description="Releases by name.")
    endpoints: Mapping[Name, EndpointSettings] = Field(default_factory=dict, description="Endpoints by name.")
    monitors: Mapping[Name, MonitorSettings] = Field(default_factory=dict, description="Monitors by name.")
    limits: Mapping[Name, LimitSettings] = Field(default_factory=dict, description="Rate limits and budgets by name.")
    telemetry: TelemetrySettings = Field(default=TelemetrySettings(), description="What is received, kept, passed on.")
    slos: Mapping[Name, SloSettings] = Field(default_factory=dict, description="Service level objectives by name.")

    #: Folder that holds the project file; relative paths start here. Not a key of the file.
    _folder: Path = Path()

    @field_validator(
        "models",
        "datasets",
        "indexes",
        "prompts",
        "releases",
        "endpoints",
        "monitors",
        "limits",
        "slos",
        mode="before",
    )
    @classmethod
    def _empty_section(cls, value: Any) -> Any:
        return {} if value is None else value

    @property
    def folder(self) -> Path:
        """Folder of the project file."""
        return self._folder

    @property
    def state(self) -> Path:
        """Folder with everything Tidemill keeps for the project on this machine."""
        return self._folder / STATE_FOLDER

    @property
    def scope(self) -> Scope:
        """Project and tenant."""
        return Scope(self.project, self.tenant)

    @property
    def ledger_url(self) -> str:
        """SQLAlchemy URL of the ledger."""
        return self.store.ledger or f"sqlite:///{self.state / 'ledger.db'}"

    @property
    def blobs_url(self) -> str:
        """Folder or URL of the blob store."""
        return self.store.blobs or str(self.state / "blobs")


def load_settings(path: Path, environment: Mapping[str, str] | None = None) -> Settings:
    """Read a project file, with overrides from the environment.

    Args:
        path: the file, or the folder that holds ``tidemill.yaml``.
        environment: variables to read instead of the process's own.

    Raises:
        NotFound: there is no such file.
        SettingsError: not YAML, an unknown key (with the nearest known one) or a value of the wrong kind.
    """
    file = path / PROJECT_FILE if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"There is no project file {file}.", hint="Write one with: tidemill init") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"The project file {file} cannot be read: {error}.") from error
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise SettingsError(f"{file} holds no settings: expected 'project: NAME' and sections below it.")
    _override(document, environment_overrides(_environment() if environment is None else environment))
    settings = parse_settings(document, where=str(file))
    settings._folder = file.parent.resolve()
    return settings


def parse_settings(document: Mapping[str, Any], *, where: str = "settings") -> Settings:
    """Check a document already read.

    Raises:
        SettingsError: naming the key, what is wrong with it and, for an unknown one, the nearest known.
    """
    try:
        return Settings.model_validate(document)
    except ValidationError as error:
        raise SettingsError(_explain(error, where)) from None


def settings_schema() -> dict[str, Any]:
    """The JSON Schema of the project file, as published in the reference."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Settings.model_json_schema()}


def environment_overrides(environment: Mapping[str, str]) -> dict[tuple[str, ...], str]:
    """The settings that the environment names, as paths into the project file."""
    return {
        tuple(part.lower() for part in name.removeprefix(_PREFIX).split("__")): value
        for name, value in sorted(environment.items())
        if name.startswith(_PREFIX) and not _FOREIGN.fullmatch(name)
    }


def resolve_secret(reference: str, environment: Mapping[str, str] | None = None) -> str:
    """Turn a secret reference into its value: ``env:NAME`` or ``file:PATH``.

    Raises:
        SettingsError: another form (a value written in place is refused), or nothing is there.
    """
    scheme, _, place = reference.partition(":")
    if scheme == "env" and place:
        value = (_environment() if environment is None else environment).get(place)
        if value is None:
            raise SettingsError(f"The secret 'env:{place}' is not set.", hint=f"Set it: export {place}=…")
        return value
    if scheme == "file" and place:
        try:
            return Path(place).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise SettingsError(f"The secret 'file:{place}' cannot be read: {error.strerror}.") from error
    raise SettingsError("A secret is written in place.", hint="Refer to it instead: env:NAME or file:PATH")


def child_environment(**changes: str) -> dict[str, str]:
    """The environment for a child process, with changes. Settings overrides pass on unchanged."""
    return {**_environment(), **changes}


_frozen: dict[str, str] = {}


def _environment() -> Mapping[str, str]:
    if not _frozen:
        _frozen.update(os.environ)  # noqa: TID251 - the one place
    return _frozen


def _override(document: dict[str, Any], overrides: Mapping[tuple[str, ...], str]) -> None:
    for path, text in overrides.items():
        place = document
        for part in path[:-1]:
            following = place.setdefault(part, {})
            if not isinstance(following, dict):
                raise SettingsError(f"The variable {_variable(path)} names a key inside '{part}', which is a value.")
            place = following
        place[path[-1]] = yaml.safe_load(text)


def _variable(path: tuple[str, ...]) -> str:
    return _PREFIX + "__".join(path).upper()


def _explain(error: ValidationError, where: str) -> str:
    problems = error.errors()
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), _known_keys(first["loc"][:-1]), n=1)
        text = f"{where}: there is no setting '{key}'" + (f"; did you mean '{near[0]}'?" if near else ".")
    elif first["type"] == "missing":
        text = f"{where}: the setting '{key}' is missing."
    else:
        text = f"{where}: '{key}' is {first['input']!r}: {first['msg'][:1].lower()}{first['msg'][1:]}."
    return text + (f" ({len(problems) - 1} more)" if len(problems) > 1 else "")


def _known_keys(path: tuple[int | str, ...]) -> list[str]:
    """The keys of the section at ``path``, following mappings from names to sections."""
    section: type[BaseModel] = Settings
    parts = [str(part) for part in path]
    while parts:
        field = section.model_fields.get(parts.pop(0))
        if field is None:
            return []
        if get_origin(field.annotation) is Mapping and parts:
            parts.pop(0)
        found = _section_of(field.annotation)
        if found is None:
            return []
        section = found
    return list(section.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section class inside an annotation such as ``Mapping[Name, EndpointSettings]`` or ``S3Settings | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for argument in get_args(annotation) if (found := _section_of(argument))), None)


__all__ = [
    "PROJECT_FILE",
    "STATE_FOLDER",
    "DatasetSettings",
    "EndpointSettings",
    "GatewaySettings",
    "IndexSettings",
    "LimitSettings",
    "ModelSettings",
    "MonitorSettings",
    "PriceSettings",
    "PromptSettings",
    "ReleaseSettings",
    "RolloutSettings",
    "RouterSettings",
    "Settings",
    "child_environment",
    "load_settings",
    "parse_settings",
    "resolve_secret",
    "settings_schema",
]
