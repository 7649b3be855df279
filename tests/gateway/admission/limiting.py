"""Workers, clients and limits for the tests of limits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tidemill.gateway.admission.desks import LimiterOptions
from tidemill.gateway.admission.limits import Limiter
from tidemill.gateway.admission.seams import Admissible, Reservation
from tidemill.gateway.answers import Refusal
from tidemill.kernel import (
    ApiKey,
    Limit,
    LimitScope,
    LimitUnit,
    Prices,
    Priority,
    ReleaseRoute,
    Route,
    RoutingSnapshot,
    Target,
)
from tidemill.ledger.accounts import LeaseStore

PATIENCE_S = 30.0
KEY = ApiKey(digest="d-ann", name="ann", tenant="default", team="blue")
ROUTE = Route("desk", "default", (ReleaseRoute("sha256:r", "release/r@1", (Target("http://127.0.0.1:1/v1"),)),))
PRICES = Prices(input_usd_per_mtok=1.0, output_usd_per_mtok=10.0)


def limit(amount: float, unit: str = "requests", scope: str = "key", **changes: Any) -> Limit:
    subject = {"key": "ann", "team": "blue", "endpoint": "desk", "tenant": "default"}[scope]
    window_s = changes.pop("window_s", 60.0)
    limit_id = changes.pop("limit_id", f"{scope}/{subject}/{unit}/{window_s:g}")
    made = Limit(
        limit_id=limit_id,
        scope=LimitScope(scope),
        subject=subject,
        unit=LimitUnit(unit),
        amount=amount,
        window_s=window_s,
    )
    return replace(made, **changes)


def snapshot(*limits: Limit, epoch: int = 1) -> RoutingSnapshot:
    return RoutingSnapshot("shop", epoch, time.time(), 3600.0, (ROUTE,), (KEY,), limits=limits)


def call(**changes: Any) -> Admissible:
    fields: dict[str, Any] = {
        "key": KEY,
        "route": ROUTE,
        "operation": "chat",
        "priority": Priority.INTERACTIVE,
        "input_bytes": 100,
        "max_output_tokens": 50,
        "n": 1,
        "request_id": "0" * 16,
        "prices": PRICES,
    }
    return Admissible(**(fields | changes))


@asynccontextmanager
async def limiter(
    folder: Path, open_store: Callable[[], LeaseStore], *limits: Limit, name: str = "gw-0", **options: Any
) -> AsyncIterator[Limiter]:
    """A worker's limiter that follows a snapshot with these limits; closed in the end."""
    made = Limiter(name, folder / name, lambda _: open_store(), LimiterOptions(**({"wait_s": PATIENCE_S} | options)))
    made.follow(snapshot(*limits))
    try:
        yield made
    finally:
        made.close()


async def enter(limits: Limiter, one: Admissible | None = None) -> Reservation:
    """Let a call in.

    Raises:
        Refusal: it is not let in.
    """
    future: asyncio.Future[Reservation] = asyncio.get_running_loop().create_future()
    limits.enter(one or call(), future.set_result, future.set_exception)
    return await asyncio.wait_for(future, 2 * PATIENCE_S)


async def attempt(limits: Limiter, one: Admissible | None = None) -> Reservation | Refusal:
    """Let a call in, or have it refused."""
    try:
        return await enter(limits, one)
    except Refusal as caught:
        return caught


async def refusal(limits: Limiter, one: Admissible | None = None) -> Refusal:
    """Have a call refused."""
    answer = await attempt(limits, one)
    assert isinstance(answer, Refusal), "it was let in"
    return answer


async def until(holds: Callable[[], bool]) -> None:
    """Wait for something that has to come."""
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, "it does not come"
        await asyncio.sleep(0.01)
