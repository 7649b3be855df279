"""The routing snapshot: all that a gateway worker knows, as one immutable value.

The control plane compiles it, writes it beside its place and renames it into place; a worker reads it whole, checks
the checksum, refuses an older epoch and swaps. Nothing else is read on the request path.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Final

from tidemill.kernel.digests import canonical_json, digest_bytes
from tidemill.kernel.errors import InvalidInput

FORMAT: Final = 1


class Arm(StrEnum):
    """The part a release plays for one request."""

    CONTROL = "control"
    CANARY = "canary"
    SHADOW = "shadow"


@dataclass(frozen=True, slots=True)
class Target:
    """One release that can answer, and where.

    Args:
        release: release digest.
        release_ref: how people name it, e.g. ``release/helpdesk@2``.
        url: base URL of the OpenAI-compatible upstream, e.g. ``http://127.0.0.1:8431/v1``.
        model: the model name the upstream expects; ``None`` passes the request's bytes on unchanged.
        arm: the part it plays in a rollout.
        weight: share of new sessions in [0, 1]; the live targets of a route sum to 1.
        api_key_ref: a secret reference (``env:NAME``, ``file:…``) for the upstream, never the secret.
        input_usd_per_mtok, output_usd_per_mtok: price of a million tokens, for ``cost_usd`` on spans.
    """

    release: str
    release_ref: str
    url: str
    model: str | None = None
    arm: Arm = Arm.CONTROL
    weight: float = 1.0
    api_key_ref: str | None = None
    input_usd_per_mtok: float = 0.0
    output_usd_per_mtok: float = 0.0


@dataclass(frozen=True, slots=True)
class Route:
    """How one endpoint's traffic is spread.

    Args:
        endpoint: the public ``model`` name.
        tenant: whose endpoint it is.
        targets: live targets, control first.
        shadow: a target that receives a copy of every answered request and answers nobody.
        salt: what sticky assignment is seeded with; a new rollout gets a new salt.
        session_idle_s: a session without requests for so long is closed.
    """

    endpoint: str
    tenant: str
    targets: tuple[Target, ...]
    shadow: Target | None = None
    rollout: str | None = None
    salt: str = ""
    session_idle_s: float = 1800.0


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A client's key by its digest; the key itself is never stored."""

    digest: str
    name: str
    tenant: str


@dataclass(frozen=True, slots=True)
class RoutingSnapshot:
    """Everything a gateway worker routes by, as of one epoch.

    Args:
        epoch: grows by one with each compilation; a worker refuses a smaller one.
        issued_at: seconds since 1970.
        lifetime_s: a worker cut off from the control plane serves on for so long after ``issued_at``.
    """

    project: str
    epoch: int
    issued_at: float
    lifetime_s: float
    routes: tuple[Route, ...] = ()
    keys: tuple[ApiKey, ...] = ()
    capture: str = "masked"
    extra: dict[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Write the snapshot with its checksum, as one JSON document."""
        body = asdict(self)
        return json.dumps({"format": FORMAT, "checksum": digest_bytes(canonical_json(body)), "body": body}).encode()

    @classmethod
    def decode(cls, data: bytes) -> RoutingSnapshot:
        """Read and check a snapshot.

        Raises:
            InvalidInput: not JSON, another format, or a checksum that does not fit.
        """
        try:
            document = json.loads(data)
            body = document["body"]
            if document["format"] != FORMAT:
                raise InvalidInput(f"routing snapshot has format {document['format']}; this version reads {FORMAT}")
            if document["checksum"] != digest_bytes(canonical_json(body)):
                raise InvalidInput("routing snapshot: the checksum does not fit its content")
            routes = tuple(_route(route) for route in body.pop("routes"))
            keys = tuple(ApiKey(**key) for key in body.pop("keys"))
            return cls(**body, routes=routes, keys=keys)
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(f"routing snapshot cannot be read: {error!r}") from error


def _target(value: dict[str, Any]) -> Target:
    return Target(**{**value, "arm": Arm(value["arm"])})


def _route(value: dict[str, Any]) -> Route:
    shadow = value.pop("shadow")
    targets = tuple(_target(target) for target in value.pop("targets"))
    return Route(**value, targets=targets, shadow=_target(shadow) if shadow else None)


def key_digest(key: str) -> str:
    """The digest under which an API key is stored: SHA-256, for keys are 192 random bits and need no slow hash."""
    return hashlib.sha256(key.encode()).hexdigest()


def assign(route: Route, session_key: str) -> Target:
    """Choose the live target of a session: the same session and salt give the same target in every worker.

    The hash is compared with the cumulated weights from the last target to the first, so that raising the canary's
    share (the last target) moves sessions to it and never away from it.
    """
    seed = f"{route.salt}\0{session_key}".encode()
    point = int.from_bytes(hashlib.blake2b(seed, digest_size=8).digest(), "big") / 2**64
    edge = 0.0
    for target in reversed(route.targets):
        edge += target.weight
        if point < edge:
            return target
    return route.targets[0]
