"""The routing snapshot as a worker holds it: read when its file is replaced, checked, indexed, swapped whole."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tidemill.gateway.upstream import Address
from tidemill.kernel import ApiKey, InvalidInput, ReleaseRoute, Route, RoutingSnapshot, Target, UserError
from tidemill.telemetry.records import Reference

_log = logging.getLogger(__name__)

CALL_PATHS: Final = ("/chat/completions", "/completions", "/embeddings")
"""Paths of upstream calls, after the base URL."""

_ADMITTED_MOST: Final = 4096

SecretResolver = Callable[[str], str]
"""Turns a secret reference (``env:NAME``, ``file:…``) into the secret."""


class Lane:
    """A release's upstream, ready for use: address and the constant lines of the request head.

    Args:
        release: the release.
        target: one of its upstreams.
        resolve_secret: for the upstream's key.

    Raises:
        UserError: the URL or the secret reference cannot be used.
    """

    __slots__ = ("address", "answer_header", "arm", "call_lines", "reference", "release", "target")

    def __init__(self, release: ReleaseRoute, target: Target, resolve_secret: SecretResolver) -> None:
        self.release = release
        self.target = target
        self.address = Address.parse(target.url)
        lines = [f"host: {self.address.host_header}", f"x-tidemill-arm: {release.arm.value}"]
        if target.api_key_ref is not None:
            secret = resolve_secret(target.api_key_ref)
            if not secret.isascii() or not secret.isprintable():
                raise InvalidInput(f"the secret {target.api_key_ref} is not one line of ASCII text")
            lines.append(f"authorization: Bearer {secret}")
        self.arm = release.arm.value
        self.answer_header = f"x-tidemill-release: {release.release}\r\n".encode()
        self.reference = Reference("artifact", release.release, "release")
        headers = "".join(line + "\r\n" for line in lines)
        self.call_lines = {
            path: f"POST {self.address.base_path}{path} HTTP/1.1\r\n{headers}".encode() for path in CALL_PATHS
        }


class Junction:
    """A route with its lanes by release."""

    __slots__ = ("by_release", "control", "lanes", "rollout_header", "route", "shadow")

    def __init__(self, route: Route, resolve_secret: SecretResolver) -> None:
        if not route.releases or not all(release.targets for release in route.releases):
            raise InvalidInput(f"endpoint {route.endpoint} of {route.tenant} has a release without a target")
        self.route = route
        self.lanes = tuple(Lane(release, release.targets[0], resolve_secret) for release in route.releases)
        self.control = self.lanes[0]
        self.by_release = {lane.release.release: lane for lane in reversed(self.lanes)}
        self.shadow = Lane(route.shadow, route.shadow.targets[0], resolve_secret) if route.shadow is not None else None
        self.rollout_header = f"x-tidemill-rollout: {route.rollout}\r\n".encode() if route.rollout else b""


class RoutingTable:
    """A snapshot, indexed for look-up by key digest and by tenant and endpoint."""

    __slots__ = ("admitted", "junctions", "keys", "snapshot")

    def __init__(self, snapshot: RoutingSnapshot, resolve_secret: SecretResolver) -> None:
        self.snapshot = snapshot
        self.keys: dict[str, ApiKey] = {key.digest: key for key in snapshot.keys}
        # Authorization headers found good under this snapshot; gone with it, so a revoked key is gone too.
        self.admitted: dict[bytes | None, ApiKey] = {}
        self.junctions = {(route.tenant, route.endpoint): Junction(route, resolve_secret) for route in snapshot.routes}

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
        resolve_secret: for the keys of upstreams.
        taken: told of each snapshot that is taken over, before any request is served by it.
    """

    def __init__(
        self,
        path: Path,
        *,
        project: str,
        resolve_secret: SecretResolver,
        taken: Callable[[RoutingSnapshot], None] = lambda _: None,
    ) -> None:
        self.table: RoutingTable | None = None
        self.refusals = 0
        self._path = path
        self._project = project
        self._resolve_secret = resolve_secret
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
        table = RoutingTable(snapshot, self._resolve_secret)
        self._taken(snapshot)
        self.table = table
        _log.info("routing snapshot of epoch %d: %d routes", snapshot.epoch, len(snapshot.routes))
        return True

    def _refuse(self, reason: str) -> None:
        self.refusals += 1
        _log.error("routing snapshot %s refused, the one held stays: %s", self._path, reason)
