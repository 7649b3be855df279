"""The routing snapshot: all that a gateway worker knows, as one immutable value.

The control plane compiles it, writes it beside its place and renames it into place; a worker reads it whole, checks
the checksum, refuses an older epoch and swaps. Nothing else is read on the request path.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import msgspec

from tidemill.kernel.digests import canonical_json, digest_bytes
from tidemill.kernel.errors import InvalidInput
from tidemill.kernel.routing_policy import ChoicePolicy, Limit, Prices, Priority, RoutePolicy

FORMAT: Final = 2


class Arm(StrEnum):
    """The part a release plays for one request."""

    CONTROL = "control"
    CANARY = "canary"
    SHADOW = "shadow"


@dataclass(frozen=True, slots=True)
class Target:
    """One upstream that can answer for a release.

    Args:
        url: base URL, e.g. ``http://127.0.0.1:8431/v1``.
        model: the model name the upstream expects; ``None`` passes the request's own on unchanged.
        name: how metrics, spans and rules call it; unique in its release.
        dialect: what it speaks: ``openai`` (nothing is translated) or the name of a provider dialect.
        api_key_ref: a secret reference (``env:NAME``, ``file:…``) for the upstream, never the secret.
        secret_refs: further secret references that a dialect needs, by name.
        options: what else a dialect needs, by name, e.g. ``region``, ``api_version``.
        prices: what it charges.
        weight: share of ``weighted`` choice.
        quality: score in [0, 1] that ``cheapest`` compares with its floor.
        max_in_flight: calls at once from one worker; ``None`` sets no cap.
        context_tokens: longest prompt with its answer; ``None`` is unknown.
    """

    url: str
    model: str | None = None
    name: str = ""
    dialect: str = "openai"
    api_key_ref: str | None = None
    secret_refs: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    prices: Prices = Prices()
    weight: float = 1.0
    quality: float = 1.0
    max_in_flight: int | None = None
    context_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class ReleaseRoute:
    """One release that can answer an endpoint, and where.

    Args:
        release: release digest.
        release_ref: how people name it, e.g. ``release/helpdesk@2``.
        targets: the upstreams that can answer for it, at least one.
        arm: the part it plays in a rollout.
        weight: share of new sessions in [0, 1]; the live releases of a route sum to 1.
        choice: how one of several targets is chosen.
    """

    release: str
    release_ref: str
    targets: tuple[Target, ...]
    arm: Arm = Arm.CONTROL
    weight: float = 1.0
    choice: ChoicePolicy = ChoicePolicy()


@dataclass(frozen=True, slots=True)
class Route:
    """How one endpoint's traffic is spread.

    Args:
        endpoint: the public ``model`` name.
        tenant: whose endpoint it is.
        releases: live releases, control first.
        shadow: a release that receives a copy of every answered request and answers nobody.
        salt: what sticky assignment is seeded with; a new rollout gets a new salt.
        session_idle_s: a session without requests for so long is closed.
        policy: how its requests are treated.
    """

    endpoint: str
    tenant: str
    releases: tuple[ReleaseRoute, ...]
    shadow: ReleaseRoute | None = None
    rollout: str | None = None
    salt: str = ""
    session_idle_s: float = 1800.0
    policy: RoutePolicy = RoutePolicy()


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A client's key by its digest; the key itself is never stored.

    Args:
        digest: see ``key_digest``.
        name: how listings, limits and spans call it; two keys of one name share their limits (rotation).
        team: whose limits count besides the key's own.
        endpoints: the endpoints it may call; empty for all of the tenant.
        operations: the operations it may ask for, e.g. ``chat``; empty for all.
        expires_at: seconds since 1970 from which it is not honoured; ``None`` never.
        priority: of its requests; ``None`` leaves it to the endpoint.
    """

    digest: str
    name: str
    tenant: str
    team: str | None = None
    endpoints: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()
    expires_at: float | None = None
    priority: Priority | None = None


@dataclass(frozen=True, slots=True)
class RoutingSnapshot:
    """Everything a gateway worker routes by, as of one epoch.

    Args:
        epoch: grows by one with each compilation; a worker refuses a smaller one.
        issued_at: seconds since 1970.
        lifetime_s: a worker cut off from the control plane serves on for so long after ``issued_at``.
        capture: what is kept of content: ``masked``, ``hashed`` or ``none``.
        limits: rate limits and budgets.
    """

    project: str
    epoch: int
    issued_at: float
    lifetime_s: float
    routes: tuple[Route, ...] = ()
    keys: tuple[ApiKey, ...] = ()
    capture: str = "masked"
    limits: tuple[Limit, ...] = ()

    def encode(self) -> bytes:
        """Write the snapshot with its checksum, as one JSON document."""
        body = msgspec.to_builtins(self)
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
            return msgspec.convert(body, cls)
        except (ValueError, KeyError, TypeError) as error:  # msgspec's ValidationError is a ValueError
            raise InvalidInput(f"routing snapshot cannot be read: {error!r}") from error


def key_digest(key: str) -> str:
    """The digest under which an API key is stored: SHA-256, for keys are 192 random bits and need no slow hash."""
    return hashlib.sha256(key.encode()).hexdigest()


def assign(route: Route, session_key: str) -> ReleaseRoute:
    """Choose the live release of a session: the same session and salt give the same release in every worker.

    The hash is compared with the cumulated weights from the last release to the first, so that raising the canary's
    share (the last release) moves sessions to it and never away from it.
    """
    seed = f"{route.salt}\0{session_key}".encode()
    point = int.from_bytes(hashlib.blake2b(seed, digest_size=8).digest(), "big") / 2**64
    edge = 0.0
    for release in reversed(route.releases):
        edge += release.weight
        if point < edge:
            return release
    return route.releases[0]
