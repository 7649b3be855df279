"""The routing snapshot as a worker holds it: read when its file is replaced, checked, indexed, swapped whole."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from random import Random
from time import monotonic
from typing import TYPE_CHECKING, Final

from tidemill.gateway.admission import Admission
from tidemill.gateway.backing import KeptAnswers
from tidemill.gateway.limits import Limits
from tidemill.gateway.operations import OPERATIONS
from tidemill.gateway.routing import Chooser, HealthBook, Hedger, RetryBudget, RetryParts
from tidemill.gateway.tls import Trust
from tidemill.gateway.upstream import Address, UpstreamPool, Waits
from tidemill.kernel import ApiKey, InvalidInput, ReleaseRoute, Route, RoutingSnapshot, Target, UserError
from tidemill.kernel.routing_policy import Overflow, Prices
from tidemill.models.providers import PASS_THROUGH, Credentials, Dialect, Place, dialect
from tidemill.telemetry.records import Reference

if TYPE_CHECKING:
    from tidemill.gateway.admission.limits import Limiter
    from tidemill.gateway.guardrails import Guardrails, Plan

_log = logging.getLogger(__name__)

_ADMITTED_MOST: Final = 4096
_STREAM_USAGE: Final = "stream_usage"
_OPENAIS: Final = frozenset((PASS_THROUGH, "azure"))
_REASONING: Final = re.compile(r"(o\d|gpt-[5-9])")  # OpenAI's models that refuse ``max_tokens``

SecretResolver = Callable[[str], str]
"""Turns a secret reference (``env:NAME``, ``file:…``) into the secret."""


class Lane:
    """One target of a release, ready for use: address, credentials and the constant lines of the request head.

    Args:
        route: whose target.
        release: the release.
        target: one of its upstreams.
        shared: what lanes share in a worker.

    Attributes:
        alone: whether its release has no other target, so that there is nothing to choose and no cap to keep.
        prices_by_tokens: whether a call costs its tokens and nothing else.

    Raises:
        UserError: the URL, the dialect or a secret reference cannot be used.
    """

    __slots__ = (
        "address", "alone", "answer_header", "arm", "asks_usage", "bound_field", "call_lines", "credentials", "dialect",
        "health", "host", "input_usd_per_mtok", "name", "output_usd_per_mtok", "place", "prices_by_tokens", "provider",
        "reference", "references", "release", "target",
    )  # fmt: skip

    def __init__(self, route: Route, release: ReleaseRoute, target: Target, shared: Shared) -> None:
        self.release = release
        self.target = target
        self.alone = len(release.targets) == 1 and target.max_in_flight is None
        self.name = target.name or target.model or target.url
        self.address = Address.parse(target.url, _trust(target))
        self.host = self.address.host_header
        self.health = shared.health.of(route, target)
        self.arm = release.arm.value
        self.answer_header = f"x-tidemill-release: {release.release}\r\n".encode()
        self.reference = Reference("artifact", release.release, "release")
        self.references = (self.reference,)
        prices = target.prices
        self.prices_by_tokens = not prices.image_usd and not prices.request_usd
        self.input_usd_per_mtok, self.output_usd_per_mtok = prices.input_usd_per_mtok, prices.output_usd_per_mtok
        secret = _secret(target.api_key_ref, shared) if target.api_key_ref is not None else None
        self.dialect: Dialect | None = None
        self.provider = "openai_compatible"
        # A dialect tells usage anyway, on the chunk with the finish reason.
        self.asks_usage = target.dialect == PASS_THROUGH and target.options.get(_STREAM_USAGE) != "off"
        self.bound_field = b"max_tokens"
        if target.dialect in _OPENAIS and _REASONING.match(target.model or route.endpoint):
            self.bound_field = b"max_completion_tokens"
        if target.dialect != PASS_THROUGH or "leave_out" in target.options:
            self.dialect = dialect(target.dialect)
            self.provider = target.dialect
        self.credentials = Credentials(
            secret, {name: _secret(reference, shared) for name, reference in target.secret_refs.items()}
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
        shared: what lanes share in a worker.

    Attributes:
        only: the lane of a release with one target without a cap, which needs no choice.
    """

    __slots__ = ("arm", "chooser", "lanes", "only", "parts", "release")

    def __init__(self, route: Route, release: ReleaseRoute, shared: Shared) -> None:
        self.release = release
        self.arm = release.arm
        self.lanes = tuple(Lane(route, release, target, shared) for target in release.targets)
        self.chooser = Chooser(release.targets, [lane.health for lane in self.lanes], release.choice, shared.rng)
        budget = shared.budget(route)
        self.parts = RetryParts(route.policy.retries, self.chooser, budget, shared.rng)
        self.only = self.lanes[0] if self.lanes[0].alone else None


class Shared:
    """What lanes and junctions of all snapshots of a worker share.

    Args:
        project: whose gateway.
        resolve_secret: for the keys of upstreams.
        limits: sizes and times.
        pool: connections to upstreams.
        answers: what may be given again.
        limiter: rate limits and budgets.
        guardrails: what routes may name; ``None`` for those that are built in.

    Attributes:
        admission: who is let in.
        health: what is known of targets.
    """

    def __init__(
        self,
        project: str,
        resolve_secret: SecretResolver,
        limits: Limits,
        pool: UpstreamPool,
        answers: KeptAnswers,
        limiter: Limiter | None = None,
        guardrails: Guardrails | None = None,
    ) -> None:
        self.project = project
        self.resolve_secret = resolve_secret
        self.limits = limits
        self.pool = pool
        self.answers = answers
        self.limiter = limiter
        self.admission = Admission(monotonic, limiter)
        self.rng = Random()  # noqa: S311 - it spreads load, and keeps no secret
        self.health = HealthBook(self.rng)
        self._budgets: dict[tuple[str, str], RetryBudget] = {}
        self._hedgers: dict[tuple[str, str], Hedger] = {}
        self._guardrails = guardrails

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

    def plan(self, route: Route) -> Plan | None:
        """The guardrails of a route; ``None`` without."""
        if not route.policy.guardrails:
            return None
        if self._guardrails is None:
            from tidemill.gateway.guardrails import Guardrails

            self._guardrails = Guardrails()
        return self._guardrails.plan(route.policy.guardrails)

    def follow(self, table: RoutingTable) -> None:
        """A new table is taken over: forget what it no longer has, and let admission follow."""
        snapshot = table.snapshot
        named = {(route.tenant, route.endpoint) for route in snapshot.routes}
        self._budgets = {place: budget for place, budget in self._budgets.items() if place in named}
        self._hedgers = {place: hedger for place, hedger in self._hedgers.items() if place in named}
        self.health.forget_others(snapshot)
        self.admission.follow(snapshot)
        for junction in table.junctions.values():
            junction.admitted = self.admission.applies(junction.route)
            junction.prepares = junction.prepares or junction.admitted


class Junction:
    """A route with its branches by release, and what its policy asks for.

    What a policy leaves off is ``None`` here, so that a request passes it by for the price of one comparison.

    Attributes:
        prepares: whether any step stands between a request and its intent.
        admitted: whether admission must be asked.
        context_tokens: the smallest window of its targets, if it must be kept; else ``None``.
        dearest: the highest prices of its targets, for reserves.
        total_s: what a request may take altogether.
    """

    __slots__ = (
        "admitted", "branches", "budget", "by_release", "cache", "context_tokens", "control", "dearest", "hedger",
        "plan", "policy", "prepares", "rollout_header", "route", "shadow", "total_s", "waits",
    )  # fmt: skip

    def __init__(self, route: Route, shared: Shared) -> None:
        if not route.releases or not all(release.targets for release in route.releases):
            raise InvalidInput(f"endpoint {route.endpoint} of {route.tenant} has a release without a target")
        policy = route.policy
        self.route = route
        self.policy = policy
        self.branches = tuple(Branch(route, release, shared) for release in route.releases)
        self.control = self.branches[0]
        self.by_release = {branch.release.release: branch for branch in reversed(self.branches)}
        self.shadow = Lane(route, route.shadow, route.shadow.targets[0], shared) if route.shadow is not None else None
        self.budget = shared.budget(route)
        self.hedger = shared.hedger(route)
        self.plan = shared.plan(route)
        self.cache = shared.answers.of(route, self.plan.digest if self.plan is not None else "")
        targets = [target for release in route.releases for target in release.targets]
        windows = [target.context_tokens for target in targets if target.context_tokens is not None]
        self.context_tokens = min(windows) if windows and policy.overflow is not Overflow.PASS else None
        self.dearest = dearest([target.prices for target in targets])
        self.admitted = False
        self.prepares = self.cache is not None or self.plan is not None or self.context_tokens is not None
        self.rollout_header = f"x-tidemill-rollout: {route.rollout}\r\n".encode() if route.rollout else b""
        times = policy.timeouts
        self.total_s = times.total_s
        self.waits = Waits(times.connect_s, times.first_token_s, times.between_chunks_s)


def dearest(prices: Sequence[Prices]) -> Prices:
    """The highest of each price, so that a reserve at these suffices whichever target serves.

    Args:
        prices: at least one.
    """

    def most(name: str) -> float | None:
        values = [getattr(price, name) for price in prices]
        return max((value for value in values if value is not None), default=None)

    names = [field.name for field in fields(Prices) if field.name != "version"]
    return Prices(**{name: most(name) for name in names})  # type: ignore[arg-type]  # numbers, by name


def _trust(target: Target) -> Trust | None:
    files = [target.options.get(name) for name in ("tls_ca", "tls_certificate", "tls_key")]
    if not any(files):
        return None
    return Trust(*(Path(name) if name else None for name in files))


def _secret(reference: str, shared: Shared) -> str:
    secret = shared.resolve_secret(reference)
    if not secret.isascii() or not secret.isprintable():
        raise InvalidInput(f"the secret {reference} is not one line of ASCII text")
    return secret


class RoutingTable:
    """A snapshot, indexed for look-up by key digest and by tenant and endpoint."""

    __slots__ = ("admitted", "ends_s", "junctions", "keys", "snapshot")

    def __init__(self, snapshot: RoutingSnapshot, shared: Shared) -> None:
        self.snapshot = snapshot
        self.ends_s = snapshot.issued_at + snapshot.lifetime_s
        self.keys: dict[str, ApiKey] = {key.digest: key for key in snapshot.keys}
        # Authorization headers found good under this snapshot; gone with it, so a revoked key is gone too.
        self.admitted: dict[bytes | None, ApiKey] = {}
        self.junctions = {(route.tenant, route.endpoint): Junction(route, shared) for route in snapshot.routes}

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
        shared: what lanes share; a snapshot of another project is refused.
        taken: told of each snapshot that is taken over, before any request is served by it.
    """

    def __init__(
        self,
        path: Path,
        *,
        shared: Shared,
        taken: Callable[[RoutingSnapshot], None] = lambda _: None,
    ) -> None:
        self.table: RoutingTable | None = None
        self.refusals = 0
        self._path = path
        self.shared = shared
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
        if snapshot.project != self.shared.project:
            raise InvalidInput(f"it belongs to project {snapshot.project}, this worker serves {self.shared.project}")
        if held is not None and snapshot.epoch < held.epoch:
            raise InvalidInput(f"its epoch {snapshot.epoch} is older than {held.epoch}, which is held")
        table = RoutingTable(snapshot, self.shared)
        self._taken(snapshot)
        self.shared.follow(table)
        self.table = table
        _log.info("routing snapshot of epoch %d: %d routes", snapshot.epoch, len(snapshot.routes))
        return True

    def _refuse(self, reason: str) -> None:
        self.refusals += 1
        _log.error("routing snapshot %s refused, the one held stays: %s", self._path, reason)
