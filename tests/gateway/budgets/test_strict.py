"""A budget holds through retries, failover and hedges: what a provider may charge for each is reserved before it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.conftest import RELEASE_1, RELEASE_2, Records, RunningGateway, read_records, snapshot_of
from tests.gateway.wire import Wire, ask, post
from tidemill.gateway.admission.limits import IMAGE_TOKENS_MOST
from tidemill.gateway.backing_options import BackingOptions, ConversationOptions
from tidemill.gateway.testing import Fault, ScriptedUpstream
from tidemill.kernel import Arm, Limit, LimitScope, LimitUnit, ReleaseRoute, Route, Scope, Target
from tidemill.kernel.routing_policy import Breaker, Hedging, Prices, Retries, RoutePolicy, Timeouts
from tidemill.ledger import open_ledger
from tidemill.ledger.accounts import LeaseStore, charged_request, open_lease_store
from tidemill.server.settlement import Settlement
from tidemill.telemetry import Drainer, open_span_store

SCOPE = Scope("demo", "default")
PRICES = Prices(input_usd_per_mtok=10.0, output_usd_per_mtok=100.0)
TIMES = Timeouts(connect_s=30.0, first_token_s=30.0, between_chunks_s=30.0, total_s=120.0)
BREAKER = Breaker(consecutive=100_000, min_requests=100_000)
POLICY = RoutePolicy(
    timeouts=TIMES, breaker=BREAKER, retries=Retries(max_attempts=3, base_s=0.001, max_s=0.01, budget_share=10.0)
)
START = Callable[..., RunningGateway]


class Cycle(deque[Fault]):
    """Faults in turn, without end; ``None`` is a good answer."""

    def __init__(self, faults: tuple[Fault | None, ...]) -> None:
        super().__init__()
        self._faults = cycle(faults)
        self._next: Fault | None = None

    def __bool__(self) -> bool:
        self._next = next(self._faults)
        return self._next is not None

    def popleft(self) -> Fault:
        assert self._next is not None
        return self._next


class Desk:
    """The control plane's part: accounts and settlement."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder / 'ledger.db'}"
        open_ledger(self.url, blobs="memory://", scope=SCOPE).close()
        self.accounts: LeaseStore = open_lease_store(self.url, SCOPE)
        self.conversations = f"sqlite:///{folder / 'conversations.db'}"
        self._spans = open_span_store(folder / "spans.duckdb", SCOPE)

    def close(self) -> None:
        self.accounts.close()
        self._spans.close()

    @property
    def backing(self) -> BackingOptions:
        return BackingOptions(limits_url=self.url, conversations=ConversationOptions(url=self.conversations))

    def settle(self, segments: Path, *limits: Limit) -> list[tuple[float, float]]:
        """Drain, settle, and say what is spent and what is lent."""
        settlement = Settlement(self.accounts, segments, tenant="default", grace_s=0.0, lost_s=0.0)
        drainer = Drainer(segments, self._spans, mask=str, settle=settlement.settle)
        while drainer.drain_once().more:
            pass
        settlement.tick()
        return [(one.spent, one.leased) for one in self.accounts.standing(limits)]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.close()


def budget(amount: float, unit: LimitUnit = LimitUnit.USD) -> Limit:
    return Limit(
        limit_id=f"all/{unit.value}", scope=LimitScope.TENANT, subject="default", unit=unit, amount=amount,
        window_s=86_400.0,
    )  # fmt: skip


def route_to(*urls: str, policy: RoutePolicy = POLICY, prices: Prices = PRICES, **more: Any) -> Route:
    targets = tuple(Target(url, name=f"t{place}", prices=prices, **more) for place, url in enumerate(urls))
    return Route("desk", "default", (ReleaseRoute(RELEASE_1, "release/desk@1", targets),), policy=policy)


def begin(start: START, desk: Desk, route: Route, *limits: Limit) -> RunningGateway:
    gateway = start(backing=desk.backing)
    gateway.route(replace(snapshot_of(route), limits=limits))
    return gateway


def bound(request: bytes, max_tokens: int) -> float:
    """What one attempt may cost, in US dollars."""
    return (len(request.partition(b"\r\n\r\n")[2]) * 10.0 + max_tokens * 100.0) / 1e6 + 1e-9


def reserved(records: Records) -> list[list[int]]:
    """What the intents of the only request say, one after the other."""
    found = [charged_request("r", one.attributes) for one in records.intents]
    return [[charge.reserved for charge in one.charges] for one in found if one is not None]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_retry_that_the_budget_has_no_room_for_is_not_made(
    start: START, desk: Desk, upstream: ScriptedUpstream, streamed: bool
) -> None:
    request = ask(stream=streamed, max_tokens=50)
    limit = budget(1.5 * bound(request, 50))
    with ScriptedUpstream(always=Fault.RESET) as bad:
        gateway = begin(start, desk, route_to(bad.url, upstream.url), limit)
        with Wire(gateway.port) as wire:
            wire.send(request)
            status, body = wire.answer()
        assert (status, b"upstream_failed" in body) == (502, True)
        assert (len(bad.seen), len(upstream.seen)) == (1, 0)
        span = gateway.records().span()
    assert (span.status, span.error_type) == ("error", "upstream_lost")
    assert span.attributes["tidemill.attempt_forbidden"] == "insufficient_quota"
    assert "tidemill.attempts" not in span.attributes
    ((spent, leased),) = desk.settle(gateway.segments, limit)
    assert leased == 0
    assert spent == pytest.approx(span.cost_usd)


def test_a_retry_is_noted_with_its_reserve_before_it_is_made(
    start: START, desk: Desk, upstream: ScriptedUpstream
) -> None:
    request = ask(max_tokens=50)
    each = round(bound(request, 50) * 1e9)
    limit = budget(1.0)
    with ScriptedUpstream(always=Fault.RESET) as bad, ScriptedUpstream(always=Fault.STALL) as silent:
        gateway = begin(start, desk, route_to(bad.url, silent.url), limit)
        with Wire(gateway.port) as wire:
            wire.send(request)
            gateway.wait(lambda: bool(silent.seen))
            # What a kill would leave behind now.
            assert [sum(one) for one in reserved(read_records(gateway.segments))] == [each, 2 * each]
        span = gateway.records().span()
    assert span.status == "cancelled"
    ((spent, leased),) = desk.settle(gateway.segments, limit)
    assert leased == 0
    assert spent == pytest.approx(span.cost_usd)


def test_a_hedge_that_the_budget_has_no_room_for_is_not_launched(start: START, desk: Desk) -> None:
    policy = replace(POLICY, hedging=Hedging(share=1.0, min_wait_s=0.01))
    request = ask(max_tokens=50)
    with ScriptedUpstream() as first, ScriptedUpstream() as second:
        gateway = begin(start, desk, route_to(first.url, second.url, policy=policy), budget(100.0))
        with Wire(gateway.port) as wire:
            for _ in range(40):  # until the first target's p95 is known
                wire.send(request)
                assert wire.answer()[0] == 200
            first.delay_s = 0.5
            asked = len(second.seen)
            wire.send(request)
            assert wire.answer()[0] == 200
            assert len(second.seen) == asked + 1, "it is not hedged at all"
            gateway.wait(lambda: not gateway.gateway.live)
            first.delay_s = 2.0
            tight = replace(budget(0.0), limit_id="tight", amount=1.5 * bound(request, 50))
            gateway.route(
                replace(snapshot_of(route_to(first.url, second.url, policy=policy), epoch=2), limits=(tight,))
            )
            wire.send(request)
            assert wire.answer()[0] == 200
            assert len(second.seen) == asked + 1
        *_, hedged, alone = sorted(gateway.records().requests(), key=lambda span: span.started_at_ns)
    assert hedged.attributes["tidemill.hedged"] is True
    assert hedged.attributes["tidemill.attempts"] == 2
    assert "tidemill.hedged" not in alone.attributes
    assert alone.attributes["tidemill.attempt_forbidden"] == "insufficient_quota"
    charged = charged_request("r", hedged.attributes)
    assert charged is not None
    assert all(charge.used is not None and charge.used <= charge.reserved for charge in charged.charges)
    assert sum(charge.used or 0 for charge in charged.charges) == pytest.approx((hedged.cost_usd or 0) * 1e9, abs=1)


@pytest.mark.parametrize(("room", "status"), [(2.5, 200), (1.5, 502)])
def test_a_canarys_failover_is_reserved_too(
    start: START, desk: Desk, upstream: ScriptedUpstream, room: float, status: int
) -> None:
    request = ask(max_tokens=50)
    with ScriptedUpstream(always=Fault.WRONG_LENGTH) as canary:
        releases = (
            ReleaseRoute(RELEASE_1, "release/desk@1", (Target(upstream.url, prices=PRICES),), Arm.CONTROL, 0.0),
            ReleaseRoute(RELEASE_2, "release/desk@2", (Target(canary.url, prices=PRICES),), Arm.CANARY, 1.0),
        )
        policy = replace(POLICY, retries=Retries(max_attempts=2))
        route = Route("desk", "default", releases, rollout="rol_1", salt="s1", policy=policy)
        gateway = begin(start, desk, route, budget(room * bound(request, 50)))
        with Wire(gateway.port) as wire:
            wire.send(request)
            assert wire.answer()[0] == status
        span = gateway.records().span()
    charged = charged_request("r", span.attributes)
    assert charged is not None
    assert len(charged.charges) == len(upstream.seen) + 1
    assert span.attributes.get("tidemill.failover_from") == (RELEASE_2 if status == 200 else None)
    assert ("tidemill.attempt_forbidden" in span.attributes) is (status == 502)


@pytest.mark.parametrize("hedged", [False, True])
def test_spent_stays_within_the_budget_when_failures_are_charged(start: START, desk: Desk, hedged: bool) -> None:
    """64 clients at once; two targets fail half of the time after they have read the prompt, and charge for it."""
    faults = (Fault.WRONG_LENGTH, Fault.WRONG_LENGTH, Fault.NOT_JSON, Fault.ERROR_BODY, None, None, None, None)
    request = ask(max_tokens=10, messages=[{"role": "user", "content": "x" * 100}])
    limits = budget(60 * bound(request, 10)), budget(200_000, LimitUnit.TOKENS)
    policy = replace(POLICY, hedging=Hedging(share=0.5, min_wait_s=0.001)) if hedged else POLICY
    with ScriptedUpstream(delay_s=0.002) as one, ScriptedUpstream() as other:
        one.faults, other.faults = Cycle(faults), Cycle(faults[::-1])
        gateway = begin(start, desk, route_to(one.url, other.url, policy=policy), *limits)
        stop = threading.Event()
        over: list[str] = []

        def watch() -> None:
            while not stop.wait(0.02):
                over.extend(str(at) for at in desk.accounts.standing(limits) if at.spent + at.leased > at.amount + 1e-9)

        def call(_: int) -> list[int]:
            with Wire(gateway.port) as wire:
                wire.socket.settimeout(120)
                statuses = []
                for _ in range(4):
                    wire.send(request)
                    statuses.append(wire.answer()[0])
                return statuses

        watcher = threading.Thread(target=watch)
        watcher.start()
        with ThreadPoolExecutor(64) as pool:
            statuses = [status for found in pool.map(call, range(64)) for status in found]
        stop.set()
        watcher.join()
        records = gateway.records()
        calls = len(one.seen) + len(other.seen)
    assert over == []
    assert set(statuses) <= {200, 429, 502, 503}
    assert {200, 429} <= set(statuses)
    spent = desk.settle(gateway.segments, *limits)
    assert spent[0][0] <= limits[0].amount + 1e-9
    assert [leased for _, leased in spent] == [0, 0]
    owed = [charged_request(span.span_id, span.attributes) for span in records.requests()]
    charges = [charge for request_ in owed if request_ is not None for charge in request_.charges]
    assert all(charge.used is not None and charge.used <= charge.reserved for charge in charges)
    told = sum(span.cost_usd or 0.0 for span in records.requests())
    assert spent[0][0] == pytest.approx(told, abs=1e-6)
    attempts = sum(int(span.attributes.get("tidemill.attempts", 1)) for span in records.requests())
    assert attempts >= calls, "an upstream was asked by nobody's account"
    assert calls > len(records.requests()), "nothing was attempted again"


def test_images_by_address_are_reserved_for(start: START, desk: Desk, upstream: ScriptedUpstream) -> None:
    prices = replace(PRICES, image_usd=0.5)
    content = [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}] * 2
    request = ask(max_tokens=50, messages=[{"role": "user", "content": content}])
    limit = budget(10.0)
    gateway = begin(start, desk, route_to(upstream.url, prices=prices), limit)
    with Wire(gateway.port) as wire:
        wire.send(request)
        assert wire.answer()[0] == 200
    records = gateway.records()
    more = 2 * (0.5 + IMAGE_TOKENS_MOST * 10.0 / 1e6)
    assert sum(reserved(records)[0]) / 1e9 == pytest.approx(bound(request, 50) + more)
    span = records.span()
    assert span.attributes["tidemill.images"] == 2
    ((spent, leased),) = desk.settle(gateway.segments, limit)
    assert leased == 0
    assert spent == pytest.approx(1.0 + (11 * 10 + 5 * 100) / 1e6)


def test_what_was_said_before_is_reserved_for(start: START, desk: Desk, upstream: ScriptedUpstream) -> None:
    gateway = begin(start, desk, route_to(upstream.url), budget(10.0))
    with Wire(gateway.port) as wire:
        wire.send(post({"model": "desk", "input": "Hello. " * 300, "max_output_tokens": 50}, path="/v1/responses"))
        status, body = wire.answer()
        assert status == 200
        (response_id,) = {part for part in body.decode().split('"') if part.startswith("resp_")}
        second = {"model": "desk", "input": "Go on.", "previous_response_id": response_id, "max_output_tokens": 50}
        wire.send(post(second, path="/v1/responses"))
        assert wire.answer()[0] == 200
    first, grown = (sum(one) for one in reserved(gateway.records()))
    assert grown > first
    assert len(upstream.seen) == 2
