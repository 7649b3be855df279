"""What ``/metrics`` says of targets and limits."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

from tests.gateway.admission.limiting import ROUTE, call, enter, limit, limiter
from tidemill.gateway import gauges
from tidemill.gateway.answers import Refusal
from tidemill.gateway.gauges import limit_lines, target_lines
from tidemill.gateway.metrics import Metrics
from tidemill.gateway.routing.breaker import AttemptResult
from tidemill.gateway.routing.health import HealthBook
from tidemill.kernel import Scope
from tidemill.ledger import open_ledger
from tidemill.ledger.accounts import open_lease_store


def by_name(lines: list[str]) -> dict[str, float]:
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_a_tripped_breaker_is_seen() -> None:
    health = HealthBook(Random(1))
    (target,) = health.of_release(ROUTE, ROUTE.releases[0])
    attempt = target.begin(0.0, streamed=False)
    labels = 'worker="gw-0",tenant="default",endpoint="desk",url="http://127.0.0.1:1/v1",model="",key=""'
    found = by_name(list(target_lines("gw-0", health)))
    assert found[f"tidemill_gateway_target_in_flight{{{labels}}}"] == 1
    assert found[f'tidemill_gateway_breaker_state{{{labels},state="closed"}}'] == 1
    attempt.end(AttemptResult.FAILED, 0.1)
    for _ in range(100):
        target.begin(0.2, streamed=False).end(AttemptResult.FAILED, 0.3)
    found = by_name(list(target_lines("gw-0", health)))
    assert found[f'tidemill_gateway_breaker_state{{{labels},state="open"}}'] == 1
    assert found[f'tidemill_gateway_breaker_state{{{labels},state="closed"}}'] == 0
    assert list(target_lines("gw-0", HealthBook(Random(1)))) == []


def test_limits_tell_what_they_granted_refused_and_lent(tmp_path: Path) -> None:
    url, scope = f"sqlite:///{tmp_path}/ledger.db", Scope("shop")
    open_ledger(url, blobs="memory://", scope=scope).close()
    requests, money = limit(2), limit(1000.0, "usd", "tenant")

    async def main() -> None:
        async with limiter(tmp_path, lambda: open_lease_store(url, scope), requests, money) as limits:
            held = [await enter(limits) for _ in range(2)]
            refused: asyncio.Future[Refusal] = asyncio.get_running_loop().create_future()
            limits.enter(call(), lambda _: None, refused.set_result)
            assert (await refused).status == 429
            found = by_name(list(limit_lines("gw-0", limits)))
            of = f'worker="gw-0",tenant="default",limit="{requests.limit_id}",unit="requests"'
            assert found[f"tidemill_gateway_limit_reserved_total{{{of}}}"] == 2
            assert found[f"tidemill_gateway_limit_refused_total{{{of}}}"] == 1
            assert found[f"tidemill_gateway_limit_lent{{{of}}}"] == 2
            assert found[f"tidemill_gateway_limit_leases_asked_total{{{of}}}"] >= 1
            assert found['tidemill_gateway_limit_events_total{worker="gw-0",event="refused"}'] == 1
            for one in held:
                one.settle(tokens=10, cost_usd=0.0001)
            found = by_name(list(limit_lines("gw-0", limits)))
            of = f'worker="gw-0",tenant="default",limit="{money.limit_id}",unit="usd"'
            assert 0 <= found[f"tidemill_gateway_limit_lent{{{of}}}"] < 1000
            text = Metrics("gw-0").render(epoch=1, further=limit_lines("gw-0", limits))
            assert text.endswith(b"\n")
            assert b"\n\n" not in text

    asyncio.run(main())


def test_lines_are_bounded_however_many_limits_there_are(tmp_path: Path) -> None:
    many = [limit(5, limit_id=f"key/{number}") for number in range(gauges.LIMITS_MOST + 7)]
    url, scope = f"sqlite:///{tmp_path}/ledger.db", Scope("shop")
    open_ledger(url, blobs="memory://", scope=scope).close()

    async def main() -> None:
        async with limiter(tmp_path, lambda: open_lease_store(url, scope), *many) as limits:
            found = by_name(list(limit_lines("gw-0", limits)))
            assert found['tidemill_gateway_limits_unnamed{worker="gw-0"}'] == 7
            assert len(found) < 5 * gauges.LIMITS_MOST

    asyncio.run(main())
