"""One suite over every store of accounts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from tidemill.kernel import FakeClock, InvalidInput, Limit, LimitScope, LimitUnit, Scope, Unavailable
from tidemill.ledger.accounts import (
    ADMITTED_AT,
    CHARGES,
    USED,
    Ask,
    Charge,
    ChargedRequest,
    Grant,
    LeaseReport,
    LeaseStore,
    SettleReport,
    Shortage,
    charge_head,
    charged_request,
    open_lease_store,
    quanta,
)

OpenStore = Callable[..., LeaseStore]


def limit(amount: float = 100, *, unit: str = "requests", window_s: float = 60.0, name: str = "key/ann/m") -> Limit:
    return Limit(
        limit_id=name, scope=LimitScope.KEY, subject="ann", unit=LimitUnit(unit), amount=amount, window_s=window_s
    )


def ask(
    lease: str, need: int, want: int = 0, *, of: Limit | None = None, holder: str = "gw-0/a", ttl_s: float = 3.0
) -> Ask:
    of = of or limit()
    return Ask(f"{of.limit_id}.{lease}", of, holder, need, max(need, want), need, ttl_s)


def request(number: int, *charges: Charge, at: float | None = None) -> ChargedRequest:
    return ChargedRequest(f"{number:016x}", time.time() if at is None else at, charges)


def granted(answer: Grant | Shortage) -> int:
    assert isinstance(answer, Grant), answer
    return answer.amount


def refused(answer: Grant | Shortage) -> Shortage:
    assert isinstance(answer, Shortage), answer
    return answer


def stands(store: LeaseStore, of: Limit | None = None) -> tuple[float, float, float]:
    (one,) = store.standing([of or limit()])
    assert one.spent + one.leased + one.available >= one.amount
    return one.spent, one.leased, one.available


def test_no_more_is_lent_than_is_there(open_store: OpenStore) -> None:
    store, other = open_store(), open_store()
    assert granted(store.grant([ask("a", 1, 60)])[0]) == 60
    assert granted(other.grant([ask("b", 1, 60, holder="gw-1/b")])[0]) == 40
    short = refused(store.grant([ask("c", 1)])[0])
    assert (short.amount, short.spent, short.leased, short.idle, short.available) == (100, 0, 100, 98, 0)
    assert short.retry_after_s > 0
    assert stands(other) == (0, 100, 0)
    store.report([LeaseReport(ask("a", 1).lease, returned=59, idle=0)])
    store.report([LeaseReport(ask("a", 1).lease, returned=59, idle=0)])  # said twice, counted once
    assert stands(store) == (0, 41, 59)
    assert granted(other.grant([ask("d", 59, holder="gw-1/b")])[0]) == 59


def test_asks_are_answered_one_after_the_other(open_store: OpenStore) -> None:
    store, tokens = open_store(), limit(10, unit="tokens", name="t")
    answers = store.grant([ask("a", 5, 80), ask("b", 8, of=tokens), ask("c", 30), ask("d", 3, of=tokens), ask("e", 20)])
    assert [isinstance(answer, Grant) for answer in answers] == [True, True, False, False, True]


def test_settling_moves_what_was_used(open_store: OpenStore) -> None:
    store = open_store()
    lease = ask("a", 1, 50).lease
    store.grant([ask("a", 1, 50)])
    charged = [request(1, Charge(lease, 20, 5)), request(2, Charge(lease, 20))]  # nobody knows what the second used
    assert store.settle(charged) == SettleReport(2, 0, 0)
    assert stands(store) == (25, 25, 50)
    assert store.settle([*charged, request(3, Charge(lease, 1, 1))]) == SettleReport(1, 2, 0)
    assert stands(store) == (26, 24, 50)
    assert store.settle([request(4, Charge(lease, 1, 1)), request(4, Charge(lease, 1, 1))]) == SettleReport(1, 1, 0)
    store.report([LeaseReport(lease, returned=23, used=27, last_used_at_s=time.time())])
    assert stands(store) == (27, 0, 73)
    assert store.settle([]) == SettleReport()


def test_the_holders_last_word_counts_at_once_and_only_once(open_store: OpenStore) -> None:
    """A control plane that is down must not starve a limit: what is spent leaves the window although unsettled."""
    store = open_store()
    lease = ask("a", 1, 50).lease
    store.grant([ask("a", 1, 50)])
    store.settle([request(1, Charge(lease, 5, 5))])
    last = LeaseReport(lease, returned=30, used=20, last_used_at_s=time.time())
    store.report([last])
    store.report([last])
    assert stands(store) == (20, 0, 80)
    store.settle([request(2, Charge(lease, 10, 10)), request(1, Charge(lease, 5, 5))])
    assert stands(store) == (20, 0, 80)
    store.settle([request(3, Charge(lease, 5, 8))])  # three more than the holder said
    assert stands(store) == (23, 0, 77)
    store.report([last])
    assert stands(store) == (23, 0, 77)


def test_a_charge_on_a_lease_nobody_knows_is_spent(open_store: OpenStore) -> None:
    store = open_store()
    assert store.settle([request(1, Charge("key/ann/m.gone", 7, 3), Charge("key/ann/m.gone", 7))]).unleased == 2
    assert stands(store) == (10, 0, 90)


def test_more_than_the_reserve_is_charged_as_it_was(open_store: OpenStore) -> None:
    store = open_store()
    lease = ask("a", 90).lease
    store.grant([ask("a", 90)])
    store.settle([request(1, Charge(lease, 90, 120))])
    assert stands(store) == (120, 0, 0)
    assert refused(store.grant([ask("b", 1)])[0]).available == 0


def test_spending_leaves_the_window_and_not_before(open_store: OpenStore) -> None:
    clock = FakeClock()
    store = open_store(clock)
    lease = ask("a", 100).lease
    start = clock.now().timestamp()
    store.grant([ask("a", 100)])
    store.settle([request(1, Charge(lease, 30, 30), at=start)])
    clock.advance(20)
    store.settle([request(2, Charge(lease, 70, 70), at=start + 20)])
    clock.advance(39.9)
    short = refused(store.grant([ask("b", 20)])[0])
    assert short.spent == 100
    assert 0.1 <= short.retry_after_s <= 1.2
    clock.advance(short.retry_after_s + 0.001)
    assert stands(store) == (70, 0, 30)
    short = refused(store.grant([ask("b", 31)])[0])
    assert 18 < short.retry_after_s < 21
    assert granted(store.grant([ask("b", 30)])[0]) == 30
    assert refused(store.grant([ask("c", 500)])[0]).retry_after_s == 60


def test_a_finished_lease_leaves_the_window_though_it_was_never_settled(open_store: OpenStore) -> None:
    clock = FakeClock()
    store = open_store(clock)
    lease = ask("a", 100).lease
    store.grant([ask("a", 100)])
    at = clock.now().timestamp()
    clock.advance(5)
    store.report([LeaseReport(lease, returned=0, used=100, last_used_at_s=at)])
    clock.advance(54)
    assert stands(store) == (100, 0, 0)
    clock.advance(2.1)
    assert stands(store) == (0, 0, 100)
    store.tidy(600)
    assert store.settle([request(1, Charge(lease, 100, 100), at=at)]).requests == 1
    assert stands(store) == (0, 0, 100)


def test_leases_of_the_dead_are_closed_and_no_others(open_store: OpenStore) -> None:
    clock = FakeClock()
    store = open_store(clock)
    store.grant([ask("a", 10, holder="gw-0/a"), ask("b", 20, holder="gw-1/b"), ask("c", 30, holder="gw-2/c", ttl_s=60)])
    assert store.expired(1.0) == {}
    clock.advance(2)
    store.report([LeaseReport(ask("b", 1).lease, returned=0, ttl_s=3.0)])
    clock.advance(2.5)
    assert store.expired(1.0) == {"gw-0/a": pytest.approx(1.5)}
    assert store.close_expired(["gw-0/a", "gw-1/b", "gw-2/c"], 1.0) == 1
    assert stands(store) == (0, 50, 50)
    assert store.close_expired([], 0.0) == 0
    assert store.close_expired(["gw-0/a"], 0.0) == 0
    store.report([LeaseReport(ask("a", 1).lease, returned=0, used=10, last_used_at_s=clock.now().timestamp())])
    assert stands(store) == (0, 50, 50)


def test_a_finished_lease_is_nobodys_any_more(open_store: OpenStore) -> None:
    clock = FakeClock()
    store = open_store(clock)
    store.grant([ask("a", 10)])
    store.report([LeaseReport(ask("a", 1).lease, returned=0, used=10, last_used_at_s=clock.now().timestamp())])
    clock.advance(30)
    assert store.expired(0.0) == {}


def test_settled_requests_are_remembered_as_long_as_asked(open_store: OpenStore) -> None:
    clock = FakeClock()
    store = open_store(clock)
    one = request(1, Charge("key/ann/m.x", 1, 1), at=clock.now().timestamp())
    store.settle([one])
    clock.advance(10)
    store.tidy(20)
    assert store.settle([one]).duplicates == 1
    clock.advance(11)
    store.tidy(20)
    assert store.settle([one]).duplicates == 0


def test_money_is_exact(open_store: OpenStore) -> None:
    money = limit(1_000_000.25, unit="usd", window_s=30 * 86400.0, name="usd")
    store = open_store()
    price = quanta(LimitUnit.USD, 0.000_000_15)
    assert price == 150
    whole = quanta(LimitUnit.USD, money.amount)
    assert granted(store.grant([ask("a", whole, of=money)])[0]) == whole == 1_000_000_250_000_000
    store.settle([request(number, Charge("usd.a", price, price)) for number in range(300)])
    assert stands(store, money) == (0.000045, 1_000_000.249955, 0)


def test_scopes_do_not_meet(open_store: OpenStore, ledger_scope: Scope) -> None:
    store, other = open_store(), open_store(scope=Scope(ledger_scope.project, "other"))
    store.grant([ask("a", 100)])
    assert granted(other.grant([ask("a", 100)])[0]) == 100
    other.settle([request(1, Charge(ask("a", 1).lease, 100, 100))])
    assert store.settle([request(1, Charge(ask("a", 1).lease, 40, 40))]).requests == 1
    assert stands(store) == (40, 60, 0)
    other.close_expired(["gw-0/a"], -100)
    assert stands(store) == (40, 60, 0)


def test_many_ask_at_once_and_none_gets_too_much(open_store: OpenStore) -> None:
    stores = [open_store() for _ in range(4)]
    got: list[int] = []

    def take(number: int) -> None:
        for turn in range(10):
            answers = stores[number].grant([ask(f"{number}-{turn}", 3, 7, holder=f"gw-{number}/x")])
            got.extend(answer.amount for answer in answers if isinstance(answer, Grant))

    threads = [threading.Thread(target=take, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 98 <= sum(got) <= 100
    assert stands(stores[0])[1] == sum(got)


def test_a_batch_of_many_requests_is_settled(open_store: OpenStore) -> None:
    store, wide = open_store(), limit(5000)
    store.grant([ask("a", 5000, of=wide)])
    batch = [request(number, Charge(ask("a", 1).lease, 2, 2)) for number in range(1500)]
    assert store.settle(batch) == SettleReport(1500, 0, 0)
    assert store.settle(batch) == SettleReport(0, 1500, 0)
    assert stands(store, wide) == (3000, 2000, 0)


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:1/0", "postgresql+psycopg://x@127.0.0.1:1/x", "sqlite:////nowhere/x.db"]
)
def test_a_store_that_does_not_answer_is_said_so(url: str) -> None:
    with pytest.raises(Unavailable):
        open_lease_store(url, Scope("p"))


def test_a_url_that_names_no_store_is_refused() -> None:
    with pytest.raises(InvalidInput):
        open_lease_store("mysql://x", Scope("p"))


def test_charges_come_back_as_they_were_written() -> None:
    text = "[" + charge_head("key/ann/usd/1.ab") + "5,2]," + charge_head('t".cd') + "1,0]]"
    attributes = {CHARGES: text, ADMITTED_AT: 12.5}
    reserves = (Charge("key/ann/usd/1.ab", 5), Charge('t".cd', 1))
    assert charged_request("r", attributes) == ChargedRequest("r", 12.5, reserves)
    charges = (Charge("key/ann/usd/1.ab", 5, 3), Charge('t".cd', 1, 1))
    assert charged_request("r", {**attributes, USED: "[1,7,3]"}) == ChargedRequest("r", 12.5, charges)
    assert charged_request("r", {"other": 1}) is None
    for broken in ({CHARGES: "<phone>", ADMITTED_AT: 1.0}, {CHARGES: text}, {**attributes, USED: "[1]"}):
        with pytest.raises(InvalidInput, match="span r"):
            charged_request("r", broken)
