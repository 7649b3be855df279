"""How a worker's targets and limits stand, as lines of its ``/metrics``. Read when they are asked for, counted nowhere.

Labels are bounded by what the project file names: targets, and limits up to ``LIMITS_MOST``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from tidemill.gateway.metrics import escaped
from tidemill.gateway.routing.breaker import BreakerState
from tidemill.gateway.routing.health import HealthBook
from tidemill.ledger.accounts import units

if TYPE_CHECKING:
    from tidemill.gateway.admission.limits import Limiter

LIMITS_MOST: Final = 500
"""So many limits have lines of their own, those asked for most first; ``limits_unnamed`` counts the others."""

_EVENTS: Final = ("waited", "refused", "unavailable", "overdrawn", "failures")
_PREFIX: Final = "tidemill_gateway_"


def target_lines(worker: str, health: HealthBook) -> Iterator[str]:
    """Each target's breaker, as one series a state of which one is 1, and its attempts in flight.

    Args:
        worker: the worker's name.
        health: what is known of targets.
    """
    places = sorted(health, key=lambda one: tuple(part or "" for part in one[0]))
    if not places:
        return
    labelled = []
    for (tenant, endpoint, url, model, key), found in places:
        named = {"tenant": tenant, "endpoint": endpoint, "url": url, "model": model or "", "key": key or ""}
        labelled.append((_labels({"worker": worker, **named}), found))
    yield f"# TYPE {_PREFIX}breaker_state gauge"
    for labels, found in labelled:
        for state in BreakerState:
            yield f'{_PREFIX}breaker_state{{{labels},state="{state.value}"}} {int(found.breaker.state is state)}'
    yield f"# TYPE {_PREFIX}target_in_flight gauge"
    for labels, found in labelled:
        yield f"{_PREFIX}target_in_flight{{{labels}}} {found.in_flight}"


def limit_lines(worker: str, limiter: Limiter) -> Iterator[str]:
    """What each limit has reserved, refused, lent and asked for, in its own unit, and what happened to calls.

    Args:
        worker: the worker's name.
        limiter: the worker's limits.
    """
    yield f"# TYPE {_PREFIX}limit_events_total counter"
    for event in _EVENTS:
        yield f'{_PREFIX}limit_events_total{{worker="{escaped(worker)}",event="{event}"}} ' + str(
            getattr(limiter.counts, event)
        )
    accounts = sorted(limiter.accounts, key=lambda one: (-one.asks_sent, one.tenant, one.limit.limit_id))
    yield f"# TYPE {_PREFIX}limits_unnamed gauge"
    yield f'{_PREFIX}limits_unnamed{{worker="{escaped(worker)}"}} {max(0, len(accounts) - LIMITS_MOST)}'
    series = []
    for account in accounts[:LIMITS_MOST]:
        limit = account.limit
        labels = _labels({"worker": worker, "tenant": limit.tenant, "limit": limit.limit_id, "unit": limit.unit.value})
        series.append((labels, limit.unit, account))
    yield f"# TYPE {_PREFIX}limit_reserved_total counter"
    for labels, unit, account in series:
        yield f"{_PREFIX}limit_reserved_total{{{labels}}} {units(unit, account.drawn):.12g}"
    yield f"# TYPE {_PREFIX}limit_refused_total counter"
    for labels, _, account in series:
        yield f"{_PREFIX}limit_refused_total{{{labels}}} {account.refused}"
    yield f"# TYPE {_PREFIX}limit_leases_asked_total counter"
    for labels, _, account in series:
        yield f"{_PREFIX}limit_leases_asked_total{{{labels}}} {account.asks_sent}"
    yield f"# TYPE {_PREFIX}limit_lent gauge"
    for labels, unit, account in series:
        yield f"{_PREFIX}limit_lent{{{labels}}} {units(unit, account.lent):.12g}"


def _labels(named: dict[str, str]) -> str:
    return ",".join(f'{name}="{escaped(value)}"' for name, value in named.items())
