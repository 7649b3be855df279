"""Artifact references: ``dataset/helpdesk@7``, ``prompt/answer@production``, ``model/smollm2@sha256:…``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tidemill.kernel.digests import Digest, parse_digest
from tidemill.kernel.errors import InvalidInput
from tidemill.kernel.scope import check_name


class ArtifactKind(StrEnum):
    """The kinds of immutable, content-addressed things that have names and versions."""

    DATASET = "dataset"
    TOKENIZER = "tokenizer"
    CHECKPOINT = "checkpoint"
    MODEL = "model"
    ADAPTER = "adapter"
    PROMPT = "prompt"
    INDEX = "index"
    POLICY = "policy"
    REPORT = "report"
    RELEASE = "release"
    ENDPOINT = "endpoint"
    MONITOR = "monitor"
    STEP = "step"


@dataclass(frozen=True, slots=True)
class ArtifactRef:
    """A name and, at most, one way of choosing a version: a number, a label or a digest.

    Without any of the three it means the newest version.
    """

    kind: ArtifactKind
    name: str
    version: int | None = None
    label: str | None = None
    digest: Digest | None = None

    def __post_init__(self) -> None:
        check_name(self.name, self.kind.value)
        if sum(choice is not None for choice in (self.version, self.label, self.digest)) > 1:
            raise InvalidInput(f"'{self.kind}/{self.name}' is given a version, a label or a digest, not several")
        if self.version is not None and self.version < 1:
            raise InvalidInput(f"'{self.kind}/{self.name}@{self.version}': versions count from 1")
        if self.label is not None:
            check_name(self.label, "label")

    def __str__(self) -> str:
        choice = self.version if self.version is not None else self.label or self.digest
        return f"{self.kind}/{self.name}" + (f"@{choice}" if choice is not None else "")


def parse_ref(text: str) -> ArtifactRef:
    """Read a reference as a person writes it.

    Raises:
        InvalidInput: not ``kind/name``, ``kind/name@7``, ``kind/name@label`` or ``kind/name@sha256:…``.
    """
    head, _, choice = text.partition("@")
    kind_text, slash, name = head.partition("/")
    if not slash:
        raise InvalidInput(f"'{text}' is not an artifact reference: write kind/name@version, e.g. dataset/helpdesk@7")
    try:
        kind = ArtifactKind(kind_text)
    except ValueError:
        kinds = ", ".join(ArtifactKind)
        raise InvalidInput(f"'{text}': there is no artifact kind '{kind_text}'; the kinds are {kinds}") from None
    if "@" not in text:
        return ArtifactRef(kind, name)
    if choice.startswith("sha256:"):
        return ArtifactRef(kind, name, digest=parse_digest(choice))
    if choice.isdecimal():
        return ArtifactRef(kind, name, version=int(choice))
    return ArtifactRef(kind, name, label=choice)
