"""From the project file's words to the policies and limits of a routing snapshot."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

import msgspec

from tidemill.kernel import ApiKey, Limit, LimitScope, RoutePolicy
from tidemill.kernel.settings import LimitSettings
from tidemill.kernel.settings_gateway import EVERY, PolicySettings

_POLICY_KEYS: Final = tuple(PolicySettings.model_fields)


def route_policy(content: Mapping[str, Any]) -> RoutePolicy:
    """The policy in the content of an applied endpoint; keys that an older version did not write are defaults."""
    return msgspec.convert({key: content[key] for key in _POLICY_KEYS if key in content}, RoutePolicy)


def limits_of(
    limits: Mapping[str, LimitSettings], *, tenant: str, keys: Iterable[ApiKey], endpoints: Collection[str]
) -> tuple[Limit, ...]:
    """The limits of a snapshot: ``*`` becomes one limit for each key, team or endpoint there is.

    Args:
        limits: of the project file, by name.
        tenant: whose.
        keys: the live keys.
        endpoints: names of the routed endpoints.
    """
    known = list(keys)
    subjects: dict[LimitScope, list[str]] = {
        LimitScope.KEY: sorted({key.name for key in known}),
        LimitScope.TEAM: sorted({key.team for key in known if key.team is not None}),
        LimitScope.ENDPOINT: sorted(endpoints),
        LimitScope.TENANT: [tenant],
    }
    return tuple(
        Limit(
            # Another unit or window is another account: what was spent under the old one says nothing about it.
            limit_id=f"{name}/{subject}/{limit.unit}/{limit.window_s:.15g}s",
            scope=limit.scope,
            subject=subject,
            unit=limit.unit,
            amount=limit.amount,
            window_s=limit.window_s,
            tenant=tenant,
        )
        for name, limit in limits.items()
        for subject in (subjects[limit.scope] if limit.subject == EVERY else [limit.subject])
    )
