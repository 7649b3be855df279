"""What the ledger returns: frozen values, free of any database library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, StrEnum
from typing import Any, Final

from tidemill.kernel import (
    ArtifactId,
    ArtifactKind,
    ArtifactRef,
    DecisionId,
    Digest,
    InvalidInput,
    RunId,
    Verdict,
    canonical_json,
    digest_json,
    parse_digest,
)


class Unchecked(Enum):
    """The type of ``UNCHECKED``."""

    UNCHECKED = "unchecked"


UNCHECKED: Final = Unchecked.UNCHECKED
"""Says that a decision does not mind which decision came before it on its subject."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactVersion:
    """One version of a named artifact.

    Args:
        digest: over kind, content and blobs: what it is, not who made it.
        content: its JSON content.
        blobs: role -> digest of a blob.
        made_by: the run that published it, if one did.
    """

    artifact_id: ArtifactId
    kind: ArtifactKind
    name: str
    version: int
    digest: Digest
    content: Mapping[str, Any]
    blobs: Mapping[str, Digest]
    made_by: RunId | None
    created_at: datetime

    @property
    def ref(self) -> ArtifactRef:
        """The reference that names exactly this version."""
        return ArtifactRef(self.kind, self.name, version=self.version)


def artifact_digest(kind: ArtifactKind, content: Mapping[str, Any], blobs: Mapping[str, Digest]) -> Digest:
    """The digest an artifact of this kind, content and blobs has."""
    return digest_json({"kind": kind.value, "content": dict(content), "blobs": dict(blobs)})


class RunStatus(StrEnum):
    """How a run stands. Only ``queued`` and ``running`` may still change."""

    QUEUED = "queued"
    RUNNING = "running"
    OK = "ok"
    FAILED = "failed"
    ABANDONED = "abandoned"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One execution of a step.

    Args:
        key: digest of all that determines the outputs; an ``ok`` run with the same key can stand for this one.
        inputs, outputs: slot -> digest of an artifact or blob.
        lease_until: when the run counts as abandoned unless it says that it lives.
        parent: the run that started this one.
    """

    run_id: RunId
    step: str
    status: RunStatus
    key: Digest | None
    params: Mapping[str, Any]
    inputs: Mapping[str, Digest]
    outputs: Mapping[str, Digest]
    error: str | None
    started_at: datetime
    finished_at: datetime | None
    lease_until: datetime
    parent: RunId | None
    code_digest: Digest
    environment_digest: Digest


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """One value of a metric's series; ``step`` is its place on the horizontal axis."""

    step: int
    value: float
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Who judged what and why, and its place in the audit chain.

    Args:
        seq: place in the audit chain of the scope, from 1, without gaps.
        kind: what sort of decision, e.g. ``label`` or ``gate``.
        subject: what it is about, e.g. ``prompt/answer@production``.
        previous: the decision before it on the same subject.
    """

    decision_id: DecisionId
    seq: int
    kind: str
    subject: str
    verdict: Verdict
    actor: str
    at: datetime
    previous: DecisionId | None


@dataclass(frozen=True, slots=True)
class AuditHead:
    """The newest entry's place and hash. Whoever keeps it elsewhere can tell later that nothing was cut off."""

    seq: int
    hash: Digest

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> AuditHead:
        """Read back what ``str`` wrote.

        Raises:
            InvalidInput: not a number, a colon and a digest.
        """
        seq, _, digest = text.strip().partition(":")
        if not seq.isdecimal():
            raise InvalidInput(f"'{text}' is not the head of an audit chain: write its number, a colon and its digest")
        return cls(int(seq), parse_digest(digest))


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One link of the audit chain: ``hash`` covers the decision and ``previous_hash``."""

    decision: Decision
    previous_hash: Digest
    hash: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What a check of the audit chain found.

    Args:
        entries: entries read; when not ``ok``, up to the first bad one.
        first_bad_seq: the place that does not fit, and ``reason`` in what.
        head: the newest entry that was checked, to be kept elsewhere.
    """

    entries: int
    ok: bool
    first_bad_seq: int | None
    reason: str
    head: AuditHead


@dataclass(frozen=True, slots=True)
class LineageNode:
    """An artifact or blob (its digest), a run (its id), a data set row (its id) or a source (its URI).

    Args:
        kind: an artifact kind, ``blob``, ``run``, ``row`` or ``source``.
        label: how a person would name it.
    """

    node_id: str
    kind: str
    label: str


@dataclass(frozen=True, slots=True)
class LineageGraph:
    """Nodes, and edges as (child, parent, role)."""

    nodes: tuple[LineageNode, ...] = ()
    edges: tuple[tuple[str, str, str], ...] = ()

    def __contains__(self, node_id: object) -> bool:
        return any(node.node_id == node_id for node in self.nodes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one unit (a session) showed, at its place in the sequence a sequential decision rests on."""

    unit: str
    arm: str
    metrics: Mapping[str, float | None]
    at: datetime
    seq: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyRecord:
    """A client's key, by its digest alone.

    Args:
        prefix: its first characters, so that its owner can tell which it is.
        team: whose limits count besides the key's own.
        endpoints, operations: what it may call and ask for; empty for everything of the tenant.
        expires_at: from then on it is not honoured.
        priority: ``interactive`` or ``batch``; ``None`` leaves it to the endpoint.
    """

    digest: str
    name: str
    tenant: str
    created_at: datetime
    revoked_at: datetime | None = None
    prefix: str = ""
    team: str | None = None
    endpoints: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()
    expires_at: datetime | None = None
    priority: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyTerms:
    """What a key may do, and until when. See ``ApiKeyRecord`` for the fields."""

    team: str | None = None
    endpoints: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()
    expires_at: datetime | None = None
    priority: str | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one holder to act under a name until a time; ``epoch`` grows with every new holder."""

    name: str
    holder: str
    epoch: int
    until: datetime


@dataclass(frozen=True, slots=True)
class S3Options:
    """How to reach an S3-compatible store.

    Args:
        endpoint: base URL of a server other than Amazon's.
        region: its region.
        access_key_id, secret_access_key: credentials, read from secret references by the caller.
        allow_http: speak plain HTTP to the endpoint.
    """

    endpoint: str | None = None
    region: str = "us-east-1"
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    allow_http: bool = False


def plain_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """The value as it will be read back: keys are texts, tuples are lists.

    Raises:
        InvalidInput: JSON has no form for it.
    """
    import json

    plain: dict[str, Any] = json.loads(canonical_json(dict(value)))
    return plain
