"""Limits in a worker: what is reserved, who waits, who is refused and what is said; over a real store."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.gateway.admission.limiting import (
    KEY,
    PRICES,
    ROUTE,
    attempt,
    call,
    enter,
    limit,
    limiter,
    refusal,
    snapshot,
    until,
)
from tidemill.gateway.admission.desks import LimiterOptions
from tidemill.gateway.admission.limits import Limiter, dearest
from tidemill.gateway.answers import Refusal
from tidemill.kernel import Scope, Unavailable
from tidemill.ledger import open_ledger
from tidemill.ledger.accounts import LeaseStore, charged_request, open_lease_store

SCOPE = Scope("shop")


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Callable[[], LeaseStore]]:
    url = f"sqlite:///{tmp_path}/ledger.db"
    open_ledger(url, blobs="memory://", scope=SCOPE).close()
    opened: list[LeaseStore] = []

    def opener() -> LeaseStore:
        opened.append(open_lease_store(url, SCOPE))
        return opened[-1]

    yield opener
    for store in opened:
        store.close()


Opener = Callable[[], LeaseStore]


def test_without_limits_nothing_is_held_and_no_thread_runs(tmp_path: Path, open_store: Opener) -> None:
    async def main() -> None:
        async with limiter(tmp_path, open_store) as limits:
            held = await enter(limits)
            assert held.attributes == {}
            held.settle(tokens=5, cost_usd=1.0)
            assert not limits.applies(ROUTE)
        assert not (tmp_path / "gw-0").exists()

    asyncio.run(main())


def test_a_worker_without_limits_loads_no_database() -> None:
    program = (
        "import sys, tidemill.gateway.admission.limits; print([m for m in ('sqlalchemy', 'redis') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_first_limit_finds_all_loaded_and_needs_no_sqlalchemy(tmp_path: Path) -> None:
    """A snapshot may bring it while requests are served, and loading beside a busy loop stalls them."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    open_ledger(url, blobs="memory://", scope=SCOPE).close()
    program = f"""
import asyncio, sys
from pathlib import Path
from tests.gateway.admission.limiting import enter, limit, snapshot
from tidemill.gateway.backing import open_limiter
from tidemill.gateway.backing_options import BackingOptions

async def main():
    backing = BackingOptions(limits_url={url!r})
    limiter = open_limiter(backing, project={SCOPE.project!r}, worker="gw-0", folder=Path({str(tmp_path / "gw-0")!r}))
    limiter.follow(snapshot(epoch=1))
    before = set(sys.modules)
    limiter.follow(snapshot(limit(100), epoch=2))
    (await enter(limiter)).settle(tokens=1, cost_usd=0.0)
    print(sorted(set(sys.modules) - before), "sqlalchemy" in sys.modules)
    limiter.close()

asyncio.run(main())
"""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout == "[] False\n"


def test_reserves_and_uses_are_on_the_records(tmp_path: Path, open_store: Opener) -> None:
    limits_ = (
        limit(1000),
        limit(10_000, "tokens", "team"),
        limit(5.0, "usd", "endpoint"),
        limit(9, "requests", "tenant"),
    )

    async def main() -> None:
        async with limiter(tmp_path, open_store, *limits_) as limits:
            assert limits.applies(ROUTE)
            held = await enter(limits)
            before = charged_request("r", held.attributes)
            assert before is not None
            assert [(one.lease.rpartition(".")[0], one.reserved, one.used) for one in before.charges] == [
                ("endpoint/desk/usd/60", 600_001, None),
                ("key/ann/requests/60", 1, None),
                ("team/blue/tokens/60", 150, None),
                ("tenant/default/requests/60", 1, None),
            ]
            held.settle(tokens=30, cost_usd=0.000_12)
            held.settle(tokens=99, cost_usd=99.0)  # once is once
            after = charged_request("r", held.attributes)
            assert after is not None
            assert [one.used for one in after.charges] == [120_000, 1, 30, 1]
            assert after.admitted_at_s == before.admitted_at_s
        standing = {one.limit.limit_id: (one.spent, one.leased) for one in open_store().standing(limits_)}
        assert standing == {
            "endpoint/desk/usd/60": (0.00012, 0),
            "key/ann/requests/60": (1, 0),
            "team/blue/tokens/60": (30, 0),
            "tenant/default/requests/60": (1, 0),
        }
        assert list((tmp_path / "gw-0").iterdir()) == []

    asyncio.run(main())


def test_the_limit_is_used_up_to_the_last_request(tmp_path: Path, open_store: Opener) -> None:
    async def main() -> None:
        async with limiter(tmp_path, open_store, limit(10)) as limits:
            held = [await enter(limits) for _ in range(10)]
            said = await refusal(limits)
            assert (said.status, said.code) == (429, "rate_limit_exceeded")
            assert said.retry_after_s is not None
            assert 1 <= said.retry_after_s <= 62
            assert "key 'ann' is reached: 10 requests in 1 minute" in said.message
            held.pop().cancel()
            held.append(await enter(limits))
            assert (await refusal(limits)).status == 429
            assert limits.counts.refused == 2
            for one in held:
                one.settle(tokens=1, cost_usd=0.0)

    asyncio.run(main())


def test_what_is_not_used_is_free_again(tmp_path: Path, open_store: Opener) -> None:
    async def main() -> None:
        async with limiter(tmp_path, open_store, limit(200, "tokens")) as limits:
            for _ in range(10):
                held = await enter(limits)  # reserves 150
                held.settle(tokens=5, cost_usd=0.0)
            said = await refusal(limits, call(max_output_tokens=51))
            assert "This request may need 151 tokens" in said.message

    asyncio.run(main())


def test_a_call_that_waits_is_let_in_when_another_ends(tmp_path: Path, open_store: Opener) -> None:
    """Nobody is refused while another's reserve may come back at any moment: here it does at once."""

    async def main() -> None:
        async with limiter(tmp_path, open_store, limit(200, "tokens")) as limits:
            first = await enter(limits)
            asyncio.get_running_loop().call_soon(lambda: first.settle(tokens=5, cost_usd=0.0))
            await enter(limits)

    asyncio.run(main())


def test_what_lies_idle_elsewhere_is_waited_for(tmp_path: Path, open_store: Opener) -> None:
    async def main() -> None:
        async with (
            limiter(tmp_path, open_store, limit(200, "tokens"), name="gw-0") as one,
            limiter(tmp_path, open_store, limit(200, "tokens"), name="gw-1") as other,
        ):
            held = await enter(one)
            held.settle(tokens=5, cost_usd=0.0)  # 145 lie idle in the first worker now
            await enter(other)

    asyncio.run(main())


def test_a_request_that_can_never_fit_is_told_so(tmp_path: Path, open_store: Opener) -> None:
    async def main() -> None:
        async with limiter(tmp_path, open_store, limit(100, "tokens"), limit(0.0001, "usd")) as limits:
            said = await refusal(limits)
            assert (said.status, said.code, said.retry_after_s) == (429, "rate_limit_exceeded", None)
            assert "150 tokens" in said.message
            said = await refusal(limits, call(input_bytes=10, max_output_tokens=20))
            assert (said.status, said.code) == (429, "insufficient_quota")
            assert "$0.00021" in said.message
            assert "smaller max_tokens" in said.message

    asyncio.run(main())


def test_a_spent_budget_is_a_quota_error(tmp_path: Path, open_store: Opener) -> None:
    async def main() -> None:
        async with limiter(tmp_path, open_store, limit(0.001, "usd", window_s=86400.0)) as limits:
            (await enter(limits)).settle(tokens=1, cost_usd=0.0007)
            said = await refusal(limits)
            assert (said.status, said.code) == (429, "insufficient_quota")
            assert "$0.001 in 1 day" in said.message

    asyncio.run(main())


def test_without_a_bound_of_its_own_the_routes_bound_is_reserved(tmp_path: Path, open_store: Opener) -> None:
    async def main() -> None:
        async with limiter(tmp_path, open_store, limit(100_000, "tokens")) as limits:
            held = await enter(limits, call(max_output_tokens=None, n=2))
            charged = charged_request("r", held.attributes)
            assert charged is not None
            assert charged.charges[0].reserved == 100 + 2 * 4096
            held = await enter(limits, call(max_output_tokens=None, operation="embeddings"))
            charged = charged_request("r", held.attributes)
            assert charged is not None
            assert charged.charges[0].reserved == 100

    asyncio.run(main())


def test_more_than_the_reserve_is_charged_and_counted(tmp_path: Path, open_store: Opener) -> None:
    async def main() -> None:
        async with limiter(tmp_path, open_store, limit(200, "tokens")) as limits:
            (await enter(limits)).settle(tokens=180, cost_usd=0.0)
            assert limits.counts.overdrawn == 1
            await refusal(limits)
        (standing,) = open_store().standing([limit(200, "tokens")])
        assert (standing.spent, standing.leased) == (180, 0)

    asyncio.run(main())


def test_a_client_that_leaves_holds_nothing(tmp_path: Path, open_store: Opener) -> None:
    async def main() -> None:
        both = (limit(100, "requests"), limit(300, "tokens"))
        async with limiter(tmp_path, open_store, *both) as limits:
            waiting = limits.enter(call(), pytest.fail, pytest.fail)
            assert waiting is not None
            waiting.cancel()
            waiting.cancel()
            first = await enter(limits)
            second = await enter(limits)
            waiting = limits.enter(call(), pytest.fail, pytest.fail)  # holds its request and lacks its tokens
            assert waiting is not None
            waiting.cancel()
            first.settle(tokens=0, cost_usd=0.0)
            second.cancel()
        assert [(one.spent, one.leased) for one in open_store().standing(both)] == [(1, 0), (0, 0)]

    asyncio.run(main())


def test_many_calls_at_once_share_one_round_trip_each(tmp_path: Path, open_store: Opener) -> None:
    async def main() -> None:
        async with limiter(tmp_path, open_store, limit(64), limit(10_000, "tokens")) as limits:
            held = await asyncio.gather(*(enter(limits) for _ in range(64)))
            assert len(held) == 64
            results = await asyncio.gather(*(refusal(limits) for _ in range(64)))
            assert {one.status for one in results} == {429}

    asyncio.run(main())


def test_a_steady_stream_is_let_in_without_asking(tmp_path: Path, open_store: Opener) -> None:
    async def main() -> None:
        async with limiter(tmp_path, open_store, limit(1_000_000)) as limits:
            asked = 0
            for turn in range(4000):
                (await enter(limits)).settle(tokens=1, cost_usd=0.0)
                if turn == 2000:
                    asked = limits.counts.waited
                if turn % 20 == 0:
                    await asyncio.sleep(0.002)
            assert limits.counts.waited - asked < 100

    asyncio.run(main())


def test_idle_leases_are_handed_back(tmp_path: Path, open_store: Opener) -> None:
    async def main() -> None:
        async with limiter(tmp_path, open_store, limit(200, "tokens"), idle_s=0.1, tick_s=0.05) as limits:
            (await enter(limits)).settle(tokens=7, cost_usd=0.0)
            store = open_store()
            await until(lambda: [(one.spent, one.leased) for one in store.standing([limit(200, "tokens")])] == [(7, 0)])

    asyncio.run(main())


def test_a_long_call_keeps_its_lease_alive(tmp_path: Path, open_store: Opener) -> None:
    async def main() -> None:
        async with limiter(tmp_path, open_store, limit(200, "tokens"), ttl_s=0.6, idle_s=0.1, tick_s=0.05) as limits:
            held = await enter(limits)
            store = open_store()
            charged = charged_request("r", held.attributes)
            assert charged is not None
            for _ in range(30):
                await asyncio.sleep(0.05)
                assert store.expired(2.0) == {}, "a lease with a call under way is renewed"
            assert store.standing([limit(200, "tokens")])[0].leased == 150
            held.settle(tokens=9, cost_usd=0.0)
            await until(lambda: store.standing([limit(200, "tokens")])[0].leased == 0)

    asyncio.run(main())


def test_limits_come_change_and_go(tmp_path: Path, open_store: Opener) -> None:
    async def main() -> None:
        async with limiter(tmp_path, open_store) as limits:
            limits.follow(snapshot(limit(1), epoch=2))
            held = await enter(limits)
            await refusal(limits)
            limits.follow(snapshot(limit(2), epoch=3))
            second = await enter(limits)
            limits.follow(snapshot(epoch=4))
            assert (await enter(limits)).attributes == {}
            held.settle(tokens=1, cost_usd=0.0)
            second.settle(tokens=1, cost_usd=0.0)
            limits.follow(snapshot(limit(2), epoch=5))
            await refusal(limits)
        assert open_store().standing([limit(2)])[0].leased == 0

    asyncio.run(main())


def test_keys_teams_endpoints_and_tenants_are_told_apart(tmp_path: Path, open_store: Opener) -> None:
    async def main() -> None:
        others = [limit(1, scope="key"), limit(2, scope="team"), limit(3, scope="endpoint"), limit(5, scope="tenant")]
        async with limiter(tmp_path, open_store, *others) as limits:
            bob = replace(KEY, digest="d-bob", name="bob")
            eve = replace(KEY, digest="d-eve", name="eve", team=None)
            foreign = replace(KEY, digest="d-x", name="ann", tenant="other", team=None)
            other_route, foreign_route = replace(ROUTE, endpoint="other"), replace(ROUTE, tenant="other")
            await enter(limits)
            assert "key 'ann'" in (await refusal(limits)).message
            await enter(limits, call(key=bob))
            assert "team 'blue'" in (await refusal(limits, call(key=bob))).message
            await enter(limits, call(key=eve))
            assert "endpoint 'desk'" in (await refusal(limits, call(key=eve))).message
            await enter(limits, call(key=eve, route=other_route))
            await enter(limits, call(key=eve, route=other_route))
            assert "tenant 'default'" in (await refusal(limits, call(key=eve, route=other_route))).message
            assert (await enter(limits, call(key=foreign, route=foreign_route))).attributes == {}
            assert not limits.applies(foreign_route)

    asyncio.run(main())


class _Broken:
    """Opens a store, or says that it does not answer."""

    def __init__(self, open_store: Opener) -> None:
        self.open_store = open_store
        self.broken = True

    def __call__(self) -> LeaseStore:
        if self.broken:
            raise Unavailable("nobody is there")
        return self.open_store()


def test_a_store_that_does_not_answer_refuses_or_allows_by_policy(tmp_path: Path, open_store: Opener) -> None:
    async def main() -> None:
        opener = _Broken(open_store)
        async with limiter(tmp_path, opener, limit(10)) as limits:
            said = await refusal(limits)
            assert (said.status, said.code) == (503, "limits_unavailable")
            assert (await refusal(limits)).status == 503
            opener.broken = False
            while isinstance(held := await attempt(limits), Refusal):
                assert held.status == 503
                await asyncio.sleep(0.05)
            held.settle(tokens=1, cost_usd=0.0)
        assert open_store().standing([limit(10)])[0].leased == 0
        async with limiter(tmp_path, _Broken(open_store), limit(10), unavailable="allow") as limits:
            held = await enter(limits)
            held.settle(tokens=1, cost_usd=0.0)
            charged = charged_request("r1", held.attributes)
            assert charged is not None
            assert open_store().settle([charged]).unleased == 1
        assert open_store().standing([limit(10)])[0].spent == 2

    asyncio.run(main())


def test_leases_at_hand_serve_while_the_store_is_away(tmp_path: Path, open_store: Opener) -> None:
    async def main() -> None:
        async with limiter(tmp_path, open_store, limit(200, "tokens"), ttl_s=30, idle_s=30) as limits:
            (await enter(limits)).settle(tokens=1, cost_usd=0.0)
            (tmp_path / "ledger.db").rename(tmp_path / "away.db")
            for path in tmp_path.glob("ledger.db-*"):
                path.unlink()
            for _ in range(10):
                (await enter(limits, call(input_bytes=1, max_output_tokens=1))).settle(tokens=1, cost_usd=0.0)
            (tmp_path / "away.db").rename(tmp_path / "ledger.db")

    asyncio.run(main())


def test_a_store_that_hangs_does_not_hold_a_call_for_ever(tmp_path: Path) -> None:
    let_go = threading.Event()

    def hang() -> LeaseStore:
        let_go.wait(60)
        raise Unavailable("it hung")

    async def main() -> None:
        limits = Limiter("gw-0", tmp_path / "gw-0", lambda _: hang(), LimiterOptions(wait_s=0.1))
        limits.follow(snapshot(limit(10)))
        said = await refusal(limits)
        assert (said.status, said.code) == (503, "limits_unavailable")
        let_go.set()
        limits.close()

    asyncio.run(main())


def test_the_dearest_price_bounds_every_token() -> None:
    assert dearest(PRICES) == (1000.0, 10_000.0, 0.0, 0.0)
    rich = replace(PRICES, cached_input_usd_per_mtok=3.0, reasoning_usd_per_mtok=20.0, request_usd=0.001)
    assert dearest(rich) == (3000.0, 20_000.0, 1_000_000.0, 0.0)
