"""Compiles the routing snapshot: which release answers which endpoint, where, and with which share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tidemill.kernel import (
    ApiKey,
    Arm,
    ChoicePolicy,
    Limit,
    ReleaseRoute,
    Route,
    RoutePolicy,
    RoutingSnapshot,
    Target,
    UserError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedRelease:
    """A release that is ready to answer.

    Args:
        digest: digest of the release artifact.
        ref: how people name it.
        targets: the upstreams that can answer for it, at least one.
        choice: how one of several is chosen.
    """

    digest: str
    ref: str
    targets: tuple[Target, ...]
    choice: ChoicePolicy = ChoicePolicy()

    @property
    def url(self) -> str:
        """Base URL of its first upstream."""
        return self.targets[0].url


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointPlan:
    """What one endpoint should do now.

    Args:
        control: digest of the release in production.
        canary: digest of the release that answers ``canary_share`` of new sessions, if a canary runs.
        shadow: digest of the release that gets copies, if a shadow runs.
        rollout: id of the running rollout; with its phase it is also the salt of the assignment.
        policy: how the endpoint's requests are treated.
    """

    endpoint: str
    tenant: str
    control: str
    canary: str | None = None
    canary_share: float = 0.0
    shadow: str | None = None
    rollout: str | None = None
    session_idle_s: float = 1800.0
    policy: RoutePolicy = RoutePolicy()


def compile_route(plan: EndpointPlan, served: Mapping[str, ServedRelease]) -> Route | None:
    """The route of one endpoint from what is ready; ``None`` while its production release is not.

    A canary or shadow that is not ready is left out: its sessions go to control until it is.
    """
    control = served.get(plan.control)
    if control is None:
        return None
    canary = served.get(plan.canary) if plan.canary else None
    shadow = served.get(plan.shadow) if plan.shadow else None
    share = plan.canary_share if canary is not None else 0.0
    releases = [_release_route(control, Arm.CONTROL, 1.0 - share)]
    if canary is not None:
        releases.append(_release_route(canary, Arm.CANARY, share))
    tag = None
    if plan.rollout is not None:
        tag = plan.rollout if canary is not None else shadow_tag(plan.rollout) if shadow is not None else None
    return Route(
        endpoint=plan.endpoint,
        tenant=plan.tenant,
        releases=tuple(releases),
        shadow=_release_route(shadow, Arm.SHADOW, 1.0) if shadow is not None else None,
        rollout=tag,
        salt=tag or plan.endpoint,
        session_idle_s=plan.session_idle_s,
        policy=plan.policy,
    )


def shadow_tag(rollout: str) -> str:
    """What the spans of a rollout's shadow carry as their rollout.

    Sessions opened during the shadow were not drawn by the canary's assignment, so they must not count in it.
    """
    return f"{rollout}/shadow"


def next_snapshot(
    current: bytes | None,
    *,
    project: str,
    routes: Sequence[Route],
    keys: Sequence[ApiKey],
    capture: str,
    lifetime_s: float,
    now_s: float,
    limits: Sequence[Limit] = (),
) -> RoutingSnapshot | None:
    """The snapshot to write, or ``None`` when the current one still says the same and is young.

    A snapshot past a third of its lifetime is issued again, so that workers never run out while we live.
    """
    before: RoutingSnapshot | None = None
    if current is not None:
        try:
            before = RoutingSnapshot.decode(current)
        except UserError:
            before = None  # a torn or foreign file is replaced; workers refuse it anyway
    wanted = RoutingSnapshot(
        project=project,
        epoch=before.epoch + 1 if before else 1,
        issued_at=now_s,
        lifetime_s=lifetime_s,
        routes=tuple(routes),
        keys=tuple(keys),
        capture=capture,
        limits=tuple(limits),
    )
    if before is None or now_s - before.issued_at > lifetime_s / 3:
        return wanted
    same = replace(wanted, epoch=before.epoch, issued_at=before.issued_at)
    return None if same == before else wanted


def _release_route(release: ServedRelease, arm: Arm, weight: float) -> ReleaseRoute:
    return ReleaseRoute(
        release=release.digest,
        release_ref=release.ref,
        targets=release.targets,
        arm=arm,
        weight=weight,
        choice=release.choice,
    )
