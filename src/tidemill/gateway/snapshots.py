"""The routing snapshot as a worker holds it: read when its file is replaced, checked, indexed, swapped whole."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from random import Random
from time import monotonic
from typing import Final

from tidemill.gateway.limits import Limits
from tidemill.gateway.operations import OPERATIONS
from tidemill.gateway.routing import Chooser, HealthBook, Hedger, RetryBudget, RetryParts
from tidemill.gateway.tls import Trust
from tidemill.gateway.upstream import Address, Waits
from tidemill.kernel import ApiKey, InvalidInput, ReleaseRoute, Route, RoutingSnapshot, Target, UserError
from tidemill.models.providers import PASS_THROUGH, Credentials, Dialect, Place, dialect
from tidemill.telemetry.records import Reference

_log = logging.getLogger(__name__)

_ADMITTED_MOST: Final = 4096
_NOT_COUNTED: Final = "stream_usage"

SecretResolver = Callable[[str], str]
"""Turns a secret reference (``env:NAME``, ``file:…``) into the secret."""


class Lane:
    """One target of a release, ready for use: address, credentials and the constant lines of the request head.

    Args:
        route: whose target.
        release: the release.
        target: one of its upstreams.
        services: what lanes share in a worker.

    Raises:
        UserError: the URL, the dialect or a secret reference cannot be used.
    """

    __slots__ = (
        "address", "answer_header", "arm", "asks_usage", "call_lines", "credentials", "dialect", "health", "host",
        "name", "place", "provider", "reference", "release", "target",
    )  # fmt: skip

    def __init__(self, route: Route, release: ReleaseRoute, target: Target, services: Services) -> None:
        self.release = release
        self.target = target
        self.name = target.name or target.model or target.url
        self.address = Address.parse(target.url, _trust(target))
        self.host = self.address.host_header
        self.health = services.health.of(route, target)
        self.arm = release.arm.value
        self.answer_header = f"x-tidemill-release: {release.release}\r\n".encode()
        self.reference = Reference("artifact", release.release, "release")
        secret = _secret(target.api_key_ref, services) if target.api_key_ref is not None else None
        self.dialect: Dialect | None = None
        self.provider = "openai_compatible"
        self.asks_usage = target.options.get(_NOT_COUNTED) != "off"
        if target.dialect != PASS_THROUGH:
            self.dialect = dialect(target.dialect)
            self.provider = target.dialect
        self.credentials = Credentials(
            secret, {name: _secret(reference, services) for name, reference in target.secret_refs.items()}
        )
        self.place = Place(self.address.base_path, self.host, target.model or route.endpoint, target.options)
        lines = [f"host: {self.host}", f"x-tidemill-arm: {self.arm}"]
        if secret is not None:
            lines.append(f"authorization: Bearer {secret}")
        headers = "".join(line + "\r\n" for line in lines)
        self.call_lines = {
            operation.path: f"POST {self.address.base_path}{operation.path} HTTP/1.1\r\n{headers}".encode()
            for operation in OPERATIONS.values()
        }

    def serves(self, operation: str) -> bool:
        """Whether the target can be asked for an operation."""
        return self.dialect is None or operation in self.dialect.operations


class Branch:
    """A release of a route with the lanes to its targets.

    Args:
        route: the route.
        release: one of its releases.
        services: what lanes share in a worker.

    Attributes:
        only: the lane of a release with one target without a cap, which needs no choice.
    """

    __slots__ = ("arm", "chooser", "lanes", "only", "parts", "release")

    def __init__(self, route: Route, release: ReleaseRoute, services: Services) -> None:
        self.release = release
        self.arm = release.arm
        self.lanes = tuple(Lane(route, release, target, services) for target in release.targets)
        self.chooser = Chooser(release.targets, [lane.health for lane in self.lanes], release.choice, services.rng)
        budget = services.budget(route)
        self.parts = RetryParts(route.policy.retries, self.chooser, budget, services.rng)
        alone = len(self.lanes) == 1 and release.targets[0].max_in_flight is None
        self.only = self.lanes[0] if alone else None


class Services:
    """What lanes and junctions of all snapshots of a worker share.

    Args:
        resolve_secret: for the keys of upstreams.
        limits: sizes and times.
    """

    def __init__(self, resolve_secret: SecretResolver, limits: Limits) -> None:
        self.resolve_secret = resolve_secret
        self.limits = limits
        self.rng = Random()  # noqa: S311 - it spreads load, and keeps no secret
        self.health = HealthBook(self.rng)
        self._budgets: dict[tuple[str, str], RetryBudget] = {}
        self._hedgers: dict[tuple[str, str], Hedger] = {}

    def budget(self, route: Route) -> RetryBudget:
        """The retry budget of an endpoint; it outlives snapshots."""
        place, share = (route.tenant, route.endpoint), route.policy.retries.budget_share
        budget = self._budgets.get(place)
        if budget is None:
            budget = self._budgets[place] = RetryBudget(share, monotonic())
        budget.share = share
        return budget

    def hedger(self, route: Route) -> Hedger | None:
        """The hedger of an endpoint, likewise; ``None`` where hedging is off."""
        place, policy = (route.tenant, route.endpoint), route.policy.hedging
        if policy.share <= 0:
            self._hedgers.pop(place, None)
            return None
        hedger = self._hedgers.get(place)
        if hedger is None:
            hedger = self._hedgers[place] = Hedger(policy)
        hedger.follow(policy)
        return hedger

    def forget_others(self, snapshot: RoutingSnapshot) -> None:
        """Forget the endpoints and targets that a snapshot no longer has."""
        named = {(route.tenant, route.endpoint) for route in snapshot.routes}
        self._budgets = {place: budget for place, budget in self._budgets.items() if place in named}
        self._hedgers = {place: hedger for place, hedger in self._hedgers.items() if place in named}
        self.health.forget_others(snapshot)


class Junction:
    """A route with its branches by release, and what its policy asks for.

    What a policy leaves off is ``None`` here, so that a request passes it by for the price of one comparison.
    """

    __slots__ = (
        "branches", "budget", "by_release", "control", "hedger", "policy", "rollout_header", "route", "shadow", "waits",
    )  # fmt: skip

    def __init__(self, route: Route, services: Services) -> None:
        if not route.releases or not all(release.targets for release in route.releases):
            raise InvalidInput(f"endpoint {route.endpoint} of {route.tenant} has a release without a target")
        self.route = route
        self.policy = route.policy
        self.branches = tuple(Branch(route, release, services) for release in route.releases)
        self.control = self.branches[0]
        self.by_release = {branch.release.release: branch for branch in reversed(self.branches)}
        self.shadow = Lane(route, route.shadow, route.shadow.targets[0], services) if route.shadow is not None else None
        self.budget = services.budget(route)
        self.hedger = services.hedger(route)
        self.rollout_header = f"x-tidemill-rollout: {route.rollout}\r\n".encode() if route.rollout else b""
        times, limits = route.policy.timeouts, services.limits
        self.waits = Waits(
            min(times.connect_s, limits.connect_timeout_s),
            min(times.first_token_s, limits.first_byte_timeout_s),
            min(times.between_chunks_s, limits.chunk_timeout_s),
        )


def _trust(target: Target) -> Trust | None:
    files = [target.options.get(name) for name in ("tls_ca", "tls_certificate", "tls_key")]
    if not any(files):
        return None
    return Trust(*(Path(name) if name else None for name in files))


def _secret(reference: str, services: Services) -> str:
    secret = services.resolve_secret(reference)
    if not secret.isascii() or not secret.isprintable():
        raise InvalidInput(f"the secret {reference} is not one line of ASCII text")
    return secret


class RoutingTable:
    """A snapshot, indexed for look-up by key digest and by tenant and endpoint."""

    __slots__ = ("admitted", "junctions", "keys", "snapshot")

    def __init__(self, snapshot: RoutingSnapshot, services: Services) -> None:
        self.snapshot = snapshot
        self.keys: dict[str, ApiKey] = {key.digest: key for key in snapshot.keys}
        # Authorization headers found good under this snapshot; gone with it, so a revoked key is gone too.
        self.admitted: dict[bytes | None, ApiKey] = {}
        self.junctions = {(route.tenant, route.endpoint): Junction(route, services) for route in snapshot.routes}

    def admit(self, authorization: bytes, key: ApiKey) -> None:
        """Remember a header that was found good, to spare its hash the next time."""
        if len(self.admitted) < _ADMITTED_MOST:
            self.admitted[authorization] = key

    def endpoints(self, tenant: str) -> list[str]:
        """The public model names of a tenant, sorted."""
        return sorted(endpoint for owner, endpoint in self.junctions if owner == tenant)

    def expired(self, now_s: float) -> str | None:
        """Why the snapshot may not be served by any more at ``now_s`` (seconds since 1970), or ``None``."""
        snapshot = self.snapshot
        late_s = now_s - snapshot.issued_at - snapshot.lifetime_s
        if late_s <= 0:
            return None
        return (
            f"The routing snapshot (epoch {snapshot.epoch}) ran out {late_s:.0f} s ago and the control plane has not "
            "written a newer one. Start it: tidemill up."
        )


class SnapshotFile:
    """Follows the snapshot's file. The file is replaced by renaming, so one read sees one snapshot.

    Args:
        path: the file.
        project: a snapshot of another project is refused.
        services: what lanes share.
        taken: told of each snapshot that is taken over, before any request is served by it.
    """

    def __init__(
        self,
        path: Path,
        *,
        project: str,
        services: Services,
        taken: Callable[[RoutingSnapshot], None] = lambda _: None,
    ) -> None:
        self.table: RoutingTable | None = None
        self.refusals = 0
        self._path = path
        self._project = project
        self._services = services
        self._taken = taken
        self._seen: tuple[int, int, int] | None = None

    def poll(self) -> bool:
        """Look whether the file was replaced, and take it over if it is good. Returns whether the table changed."""
        try:
            stat = self._path.stat()
            mark = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if mark == self._seen:
                return False
            self._seen = mark
            data = self._path.read_bytes()
        except FileNotFoundError:
            return False  # not written yet, or taken away: what is held stays good until its lifetime ends
        except OSError as error:
            self._refuse(str(error))
            return False
        try:
            return self._take(data)
        except UserError as error:
            self._refuse(str(error))
            return False

    def _take(self, data: bytes) -> bool:
        snapshot = RoutingSnapshot.decode(data)
        held = self.table.snapshot if self.table is not None else None
        if snapshot.project != self._project:
            raise InvalidInput(f"it belongs to project {snapshot.project}, this worker serves {self._project}")
        if held is not None and snapshot.epoch < held.epoch:
            raise InvalidInput(f"its epoch {snapshot.epoch} is older than {held.epoch}, which is held")
        table = RoutingTable(snapshot, self._services)
        self._taken(snapshot)
        self.table = table
        self._services.forget_others(snapshot)
        _log.info("routing snapshot of epoch %d: %d routes", snapshot.epoch, len(snapshot.routes))
        return True

    def _refuse(self, reason: str) -> None:
        self.refusals += 1
        _log.error("routing snapshot %s refused, the one held stays: %s", self._path, reason)
