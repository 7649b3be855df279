"""The control plane's work: drain segments, move rollouts, keep releases served, compile the routing snapshot.

A few threads, each a loop over one look. A look that fails is logged with its traceback and tried again at the next
turn: the data plane serves on meanwhile.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING, Any, Final

from tidemill.kernel import (
    ArtifactKind,
    Digest,
    Limit,
    NotFound,
    ReleaseParts,
    Route,
    RoutingSnapshot,
    SystemClock,
    Target,
    UserError,
)
from tidemill.ledger.accounts import LeaseStore, Standing, open_lease_store
from tidemill.loop.apply import APPLIED
from tidemill.loop.policies import limits_of, route_policy
from tidemill.loop.rollouts import RolloutDriver
from tidemill.loop.routing import EndpointPlan, ServedRelease, compile_route, next_snapshot
from tidemill.loop.targets import choice_of, release_targets
from tidemill.releases import Rollout, RolloutState, live_release
from tidemill.safety import mask_pii, routing_keys
from tidemill.server.children import Deployment, limits_url, read_deployments
from tidemill.server.files import write_atomically, write_json
from tidemill.server.forward import Forwarding
from tidemill.server.keeping import Keeping
from tidemill.server.otlp import open_receiving
from tidemill.server.settlement import Settlement, SettlementTotals
from tidemill.server.supervisor import free_port, is_healthy
from tidemill.server.watching import Watching
from tidemill.telemetry import Drainer, DrainReport, SpanStore

if TYPE_CHECKING:
    from tidemill.ledger import ArtifactVersion
    from tidemill.loop.project import Project

_log = logging.getLogger(__name__)

#: A release that nothing routes to any more is served on for so long, so that requests under way can end.
_RETIRE_AFTER_S: Final = 5.0
#: After a start, a route that stands is not torn down before its releases had so long to answer again.
_SETTLE_S: Final = 15.0
#: A serving process that is not ready after so long gets another port: somebody else may have taken its own.
_NEW_PORT_AFTER_S: Final = 120.0
_LAST_DRAIN_S: Final = 3.0
#: Spans stream in when two turns of the loop in a row found so many.
_STREAMING_RECORDS: Final = 300
#: While more keeps coming than is stored at once, a question waits so long and one round more.
_ASKED_DRAIN_S: Final = 0.25
_JOIN_S: Final = 5.0
_KEEP_EVERY_S: Final = 1.0


class ControlPlane:
    """Everything the control plane does by itself.

    Args:
        project: the opened project.
        store: its span store, owned by this process.
    """

    def __init__(self, project: Project, store: SpanStore) -> None:
        self.project = project
        self.store = store
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._served: dict[str, ServedRelease] = {}
        self._unwanted_since: dict[str, float] = {}
        self._asked_since: dict[str, float] = {}
        self._begun_s = time.monotonic()
        self._written: dict[str, Deployment] | None = None
        self._deployments = {one.digest: one for one in read_deployments(project.places.deployments)}
        self._draining = threading.Lock()
        self._asking: list[None] = []  # one for each question that drains or waits to
        self._whole_s = -math.inf  # when the last round began that left nothing
        self._streaming = self._much = False  # whether the loop's last two turns, or its last, found much
        self._accounts = self._open_accounts()
        settings = project.settings
        self._settlement: Settlement | None = None
        if self._accounts is not None:
            self._settlement = Settlement(self._accounts, project.places.segments, tenant=settings.tenant)
        self.receiving = open_receiving(project, self.waiting_bytes)
        self._drainer = Drainer(
            project.places.segments,
            store,
            mask=mask_pii,
            clock=SystemClock(),
            settle=self._settlement.settle if self._settlement is not None else None,
            decoder=self.receiving.decoder,
            refused=self.receiving.receiver.refused,
        )
        self._rollouts = RolloutDriver(project.ledger, store, lambda digest: digest in self._served, time.time_ns)
        self.watching = Watching(project, store)
        self.monitors = self.watching.monitors
        self.forwarding = Forwarding(project, store)
        self.keeping = Keeping(project, store, lambda: self._drain(self._stop.is_set))
        self.counts: Counter[str] = Counter()  # what was drained since the start, for /metrics
        self.caught_up_s = time.monotonic()
        self.drained = 0
        self._active: list[Rollout] = []
        self.limits: tuple[Limit, ...] = ()
        self._priced_on: date | None = None
        self._routed: set[str] = set()  # releases in the snapshot that stands in its file

    def start(self) -> None:
        """Begin the loops."""
        server = self.project.settings.server
        for name, look, every_s in (
            ("drain", self._drain_idly, server.drain_every_s),
            ("decide", self.decide, server.decide_every_s),
            ("monitor", self.watching.tick, server.monitor_every_s),
            ("keep", self.keeping.look, _KEEP_EVERY_S),
        ):
            thread = threading.Thread(target=self._loop, args=(look, every_s), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        self.forwarding.start()

    def stop(self) -> None:
        """End the loops, drain what is there and close the store. What is left is drained after the next start."""
        self._stop.set()
        for thread in self._threads:
            thread.join(_JOIN_S)
        self.forwarding.stop()
        try:
            last_s = time.monotonic() + _LAST_DRAIN_S
            self._drain(lambda: time.monotonic() > last_s)
            self.watching.save()
        finally:
            self.store.close()
            if self._accounts is not None:
                self._accounts.close()

    def drain(self) -> None:
        """Bring what was finished before the call into the span store. Any thread may call it.

        While spans stream in, or an erasure holds the store, nothing: the loop is at it, and a question that took its
        turn in it would wait for two rounds to be fresher by one. After a round of few records a question drains
        itself, for about a quarter of a second and a round at most.
        """
        if self.keeping.erasing or self._streaming:
            return
        until_s = time.monotonic() + _ASKED_DRAIN_S
        self._asking.append(None)
        try:
            self._drain(lambda: time.monotonic() > until_s)
        finally:
            self._asking.pop()

    def _drain_idly(self) -> None:
        """Drain all, but leave the work to a question that waits: it would not get between two rounds otherwise."""
        if not self.keeping.erasing:
            before = self.drained
            self._drain(lambda: self._stop.is_set() or bool(self._asking))
            much = self.drained - before >= _STREAMING_RECORDS
            self._streaming, self._much = much and self._much, much

    def _drain(self, ended: Callable[[], bool]) -> None:
        """Drain round by round until all is stored that was finished at the call, or until ``ended`` after a round."""
        begun_s = time.monotonic()
        while True:
            with self._draining:  # a drainer is one thread's at a time
                if self._whole_s >= begun_s or not self._drain_round():
                    return
            if ended():
                return

    def _drain_round(self) -> bool:
        """One batch; whether there is more."""
        begun_s = time.monotonic()
        report = self._drainer.drain_once()
        self.drained += report.records
        self._count(report)
        for problem in report.problems:
            _log.warning("drain: %s", problem)
        if not report.more:
            self._whole_s = begun_s
            if self._settlement is not None:
                self._settlement.tick()
        return report.more

    def _count(self, report: DrainReport) -> None:
        for name, count in (
            ("drained_records", report.records),
            ("drain_conflicts", report.conflicts),
            ("drain_corrupt", report.corrupt),
            ("drain_content_lost", report.content_lost),
        ):
            self.counts[name] += count
        if not report.more:
            self.caught_up_s = time.monotonic()

    def waiting_bytes(self) -> int:
        """How much is written and not stored yet."""
        return self._drainer.waiting_bytes()

    @property
    def settled(self) -> SettlementTotals:
        """What settlement has counted since the start."""
        return self._settlement.totals if self._settlement is not None else SettlementTotals()

    def standing(self) -> list[Standing]:
        """How much of each limit is spent, lent to workers, and left."""
        return self._accounts.standing(self.limits) if self._accounts is not None else []

    def decide(self) -> None:
        """Move rollouts, see to it that what should answer is served, and tell the gateway."""
        self._active = self._rollouts.tick()
        plans = self.plans()
        self._serve({digest for plan in plans for digest in (plan.control, plan.canary, plan.shadow) if digest})
        self._route(plans)

    def plans(self) -> list[EndpointPlan]:
        """What each endpoint should do now."""
        ledger = self.project.ledger
        found = []
        for newest in ledger.artifacts.list(ArtifactKind.ENDPOINT):
            live = live_release(ledger, newest.name)
            if live is None:
                continue
            rollout = next((one for one in self._active if one.endpoint == newest.name), None)
            found.append(self._plan(newest.name, live, rollout))
        return found

    def status(self) -> dict[str, Any]:
        """What is served and what is being rolled out; ready is what the gateway has been told to route to."""
        routed = set(self._served) & self._routed
        return {
            "endpoints": [
                {"endpoint": plan.endpoint, "control": self._ref(plan.control), "ready": plan.control in routed}
                for plan in self.plans()
            ],
            "serving": [{"release": one.ref, "url": one.url} for one in list(self._served.values())],
            "rollouts": [
                {"rollout": one.rollout_id, "endpoint": one.endpoint, "state": one.state, "to": str(one.candidate.ref)}
                for one in self._active
            ],
            "records_drained": self.drained,
        }

    def _loop(self, look: Callable[[], object], every_s: float) -> None:
        while not self._stop.wait(every_s):
            try:
                look()
            except Exception:  # noqa: BLE001 - the data plane serves on; the next turn tries again
                _log.exception("a look failed")

    def _open_accounts(self) -> LeaseStore | None:
        settings = self.project.settings
        url = limits_url(settings)
        return open_lease_store(url, settings.scope) if url is not None else None

    def _plan(self, endpoint: str, live: ArtifactVersion, rollout: Rollout | None) -> EndpointPlan:
        applied = self._applied(endpoint)
        state = rollout.state if rollout is not None else None
        candidate = rollout.candidate.digest if rollout is not None else None
        return EndpointPlan(
            endpoint=endpoint,
            tenant=self.project.settings.tenant,
            control=live.digest,
            canary=candidate if state in (RolloutState.GATED, RolloutState.CANARY) else None,
            canary_share=rollout.share if rollout is not None else 0.0,
            shadow=candidate if state is RolloutState.SHADOW else None,
            rollout=rollout.rollout_id if rollout is not None else None,
            session_idle_s=float(applied.get("rollout", {}).get("session_idle_s", 1800.0)),
            policy=route_policy(applied),
        )

    def _applied(self, endpoint: str) -> Mapping[str, Any]:
        """What the project file says of an endpoint; nothing of one that was made by hand."""
        try:
            return self.project.ledger.artifacts.get(f"{ArtifactKind.ENDPOINT}/{endpoint}@{APPLIED}").content
        except NotFound:
            return {}

    def _serve(self, wanted: set[str]) -> None:
        now_s, today = time.monotonic(), SystemClock().now().date()
        if today != self._priced_on:  # a row of a price table may begin today
            self._priced_on = today
            self._served = {digest: self._priced(one) for digest, one in self._served.items()}
        for digest in wanted - set(self._served):
            try:
                self._prepare(digest, now_s)
            except (UserError, KeyError):  # one release that cannot be served must not take the others along
                _log.exception("release %s cannot be served", digest)
        for digest in set(self._served) - wanted:
            since_s = self._unwanted_since.setdefault(digest, now_s)
            if now_s - since_s > _RETIRE_AFTER_S:
                del self._served[digest], self._unwanted_since[digest]
        for digest in wanted & set(self._unwanted_since):
            del self._unwanted_since[digest]
        for digest in set(self._deployments) - wanted - set(self._served):
            del self._deployments[digest]
            self._asked_since.pop(digest, None)
        if self._written != self._deployments:
            rows = [{name: getattr(one, name) for name in Deployment.__slots__} for one in self._deployments.values()]
            write_json(self.project.places.deployments, rows)
            self._written = dict(self._deployments)

    def _prepare(self, digest: str, now_s: float) -> None:
        """Ask for a process that serves the release, and note it as served once it says that it is ready."""
        version = self.project.ledger.artifacts.by_digest(Digest(digest))
        parts = ReleaseParts.from_json(version.content)
        ref, targets = str(version.ref), self._targets(parts)
        if parts.prompt is None and parts.index is None:
            self._served[digest] = ServedRelease(digest=digest, ref=ref, targets=targets, choice=choice_of(parts))
            return
        model = targets[0]
        since_s = self._asked_since.setdefault(digest, now_s)
        one = self._deployments.get(digest)
        if one is None or now_s - since_s > _NEW_PORT_AFTER_S:
            self._asked_since[digest] = now_s
            self._deployments[digest] = self._deployment(digest, parts, model)
            return
        if is_healthy(f"http://127.0.0.1:{one.port}/health", release=digest):
            target = Target(url=f"http://127.0.0.1:{one.port}/v1", name=model.name, prices=model.prices)
            self._served[digest] = ServedRelease(digest=digest, ref=ref, targets=(target,))

    def _targets(self, parts: ReleaseParts) -> tuple[Target, ...]:
        """Where a release's models answer, at today's prices."""
        return release_targets(self.project.settings, self.project.ledger, parts, SystemClock().now().date())

    def _priced(self, served: ServedRelease) -> ServedRelease:
        version = self.project.ledger.artifacts.by_digest(Digest(served.digest))
        now = {one.name: one.prices for one in self._targets(ReleaseParts.from_json(version.content))}
        return replace(
            served, targets=tuple(replace(one, prices=now.get(one.name, one.prices)) for one in served.targets)
        )

    def _deployment(self, digest: str, parts: ReleaseParts, model: Target) -> Deployment:
        runtime = self.project.settings.runtime
        searches = parts.index is not None and runtime.embedding is not None
        taken = {one.port for one in self._deployments.values()}
        port = next(port for port in iter(free_port, None) if port not in taken)
        return Deployment(
            digest=digest,
            port=port,
            model_url=model.url,
            chat_model=model.model or model.name,
            model_key_ref=model.api_key_ref,
            dialect=model.dialect,
            options=model.options,
            secret_refs=model.secret_refs,
            embed_model=runtime.embedding if searches else None,
            embed_url=f"http://{runtime.host}:{runtime.port}/v1" if searches else None,
        )

    def _route(self, plans: list[EndpointPlan]) -> None:
        settings, path = self.project.settings, self.project.places.routing
        current = path.read_bytes() if path.exists() else None
        before = _routes(current) if time.monotonic() - self._begun_s < _SETTLE_S else {}
        compiled = [self._compile(plan, before.get(plan.endpoint)) for plan in plans]
        routes = [route for route in compiled if route is not None]
        keys = routing_keys(self.project.ledger, now_s=time.time())
        self.limits = limits_of(
            settings.limits, tenant=settings.tenant, keys=keys, endpoints={route.endpoint for route in routes}
        )
        snapshot = next_snapshot(
            current,
            project=settings.project,
            routes=routes,
            keys=keys,
            capture=settings.gateway.capture,
            lifetime_s=settings.gateway.snapshot_lifetime_s,
            now_s=time.time(),
            limits=self.limits,
        )
        if snapshot is not None:
            write_atomically(path, snapshot.encode())
        self._routed = {release.release for route in routes for release in route.releases}

    def _compile(self, plan: EndpointPlan, before: Route | None) -> Route | None:
        """The endpoint's route; the one that stands while its releases are being found again after a start.

        Taken down for a moment, a canary would lose its sessions, and an endpoint all of its clients.
        """
        wanted = {one for one in (plan.control, plan.canary, plan.shadow) if one}
        if before is not None and not wanted <= set(self._served):
            standing = [*before.releases, *([before.shadow] if before.shadow is not None else [])]
            if {release.release for release in standing} == wanted:
                return before
        return compile_route(plan, self._served)

    def _ref(self, digest: str) -> str:
        return str(self.project.ledger.artifacts.by_digest(Digest(digest)).ref)


def _routes(snapshot: bytes | None) -> dict[str, Route]:
    """The routes of a snapshot by endpoint; none of one that cannot be read."""
    if snapshot is None:
        return {}
    try:
        return {route.endpoint: route for route in RoutingSnapshot.decode(snapshot).routes}
    except UserError:
        return {}
