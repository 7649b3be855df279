"""A further attempt is reserved like the first one; what a call used is shared among its reserves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.admission.limiting import PRICES, call, enter, limit, limiter, until
from tidemill.gateway.admission.gatekeeper import Admission
from tidemill.gateway.admission.limits import IMAGE_TOKENS_MOST, Limiter
from tidemill.gateway.admission.seams import Needs, Reservation
from tidemill.gateway.answers import Refusal
from tidemill.kernel import Scope
from tidemill.ledger import open_ledger
from tidemill.ledger.accounts import LeaseStore, account_of, charged_request, open_lease_store, portions

SCOPE = Scope("shop")
Opener = Callable[[], LeaseStore]


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Opener]:
    url = f"sqlite:///{tmp_path}/ledger.db"
    open_ledger(url, blobs="memory://", scope=SCOPE).close()
    opened: list[LeaseStore] = []

    def opener() -> LeaseStore:
        opened.append(open_lease_store(url, SCOPE))
        return opened[-1]

    yield opener
    for store in opened:
        store.close()


def never(answer: Reservation | Refusal) -> None:
    pytest.fail(f"nobody asked for {answer}")


async def more(ticket: Reservation, needs: Needs | None = None) -> Reservation | Refusal:
    answer: asyncio.Future[Reservation | Refusal] = asyncio.get_running_loop().create_future()
    ticket.more(answer.set_result, answer.set_result, needs)
    return await asyncio.wait_for(answer, 30)


async def granted(ticket: Reservation, needs: Needs | None = None) -> Reservation:
    answer = await more(ticket, needs)
    assert not isinstance(answer, Refusal), answer
    return answer


def reserves(ticket: Reservation) -> list[tuple[str, int, int | None]]:
    charged = charged_request("r", ticket.attributes)
    assert charged is not None
    return [(account_of(one.lease), one.reserved, one.used) for one in charged.charges]


def test_a_further_attempt_reserves_tokens_and_money_but_no_request(tmp_path: Path, open_store: Opener) -> None:
    limits_ = (limit(10), limit(10_000, "tokens", "team"), limit(5.0, "usd", "endpoint"))
    usd, request, tokens = "endpoint/desk/usd/60", "key/ann/requests/60", "team/blue/tokens/60"

    async def main() -> None:
        async with limiter(tmp_path, open_store, *limits_) as limits:
            first = await enter(limits)
            held = await granted(first)
            once = [(usd, 600_001, None), (request, 1, None), (tokens, 150, None)]
            assert reserves(held) == [*once, (usd, 600_001, None), (tokens, 150, None)]
            first.settle(tokens=9, cost_usd=9.0)  # the other one speaks for it now
            held.settle(tokens=190, cost_usd=0.000_7)
            held.settle(tokens=9, cost_usd=9.0)
            assert [used for *_, used in reserves(held)] == [600_001, 1, 150, 99_999, 40]
            assert limits.counts.overdrawn == 0
        standing = {one.limit.limit_id: (one.spent, one.leased) for one in open_store().standing(limits_)}
        assert standing == {usd: (0.0007, 0), request: (1, 0), tokens: (190, 0)}

    asyncio.run(main())


def test_a_limit_of_requests_counts_a_request_once(tmp_path: Path, open_store: Opener) -> None:
    async def main() -> None:
        async with limiter(tmp_path, open_store, limit(1)) as limits:
            held = await enter(limits)
            assert await granted(held) is held
            held.settle(tokens=1, cost_usd=0.0)

    asyncio.run(main())


def test_where_there_is_no_room_the_call_keeps_what_it_has(tmp_path: Path, open_store: Opener) -> None:
    async def main() -> None:
        async with limiter(tmp_path, open_store, limit(299, "tokens")) as limits:
            held = await enter(limits)
            said = await more(held)
            assert isinstance(said, Refusal)
            assert (said.status, said.code) == (429, "rate_limit_exceeded")
            held.settle(tokens=150, cost_usd=0.0)
        (standing,) = open_store().standing([limit(299, "tokens")])
        assert (standing.spent, standing.leased) == (150, 0)

    asyncio.run(main())


def test_a_call_that_ends_meanwhile_holds_nothing_more(tmp_path: Path, open_store: Opener) -> None:
    async def main() -> None:
        async with limiter(tmp_path, open_store, limit(1000, "tokens"), idle_s=0.1, tick_s=0.05) as limits:
            held = await enter(limits)
            waiting = held.more(never, never)
            held.settle(tokens=5, cost_usd=0.0)
            if waiting is not None:
                await asyncio.sleep(0.1)
                waiting.cancel()
            store = open_store()
            await until(
                lambda: [(one.spent, one.leased) for one in store.standing([limit(1000, "tokens")])] == [(5, 0)]
            )

    asyncio.run(main())


def test_a_cancelled_call_gives_all_back(tmp_path: Path, open_store: Opener) -> None:
    async def main() -> None:
        async with limiter(tmp_path, open_store, limit(300, "tokens")) as limits:
            held = await granted(await enter(limits))
            held.cancel()
            again = await granted(await enter(limits))
            again.settle(tokens=0, cost_usd=0.0)
        (standing,) = open_store().standing([limit(300, "tokens")])
        assert (standing.spent, standing.leased) == (0, 0)

    asyncio.run(main())


def test_a_call_that_has_grown_reserves_as_much_for_each_attempt(tmp_path: Path, open_store: Opener) -> None:
    async def main() -> None:
        async with limiter(tmp_path, open_store, limit(10_000, "tokens")) as limits:
            before, after = limits.needs(call()), limits.needs(call(input_bytes=400))
            growth = (after[0] - before[0], after[1] - before[1], after[2] - before[2])
            held = await granted(await enter(limits), growth)
            assert [need for _, need, _ in reserves(held)] == [150, 300]
            held = await granted(held)
            assert [need for _, need, _ in reserves(held)] == [150, 300, 450]
            held = await granted(held)
            assert [need for _, need, _ in reserves(held)] == [150, 300, 450, 450]
            held.settle(tokens=1000, cost_usd=0.0)
            assert [used for *_, used in reserves(held)] == [150, 300, 450, 100]

    asyncio.run(main())


def test_at_a_gate_the_place_stays_and_the_reserve_grows(tmp_path: Path, open_store: Opener) -> None:
    async def main() -> None:
        async with limiter(tmp_path, open_store, limit(1000, "tokens")) as limits:
            admission = Admission(lambda: 0.0, limits)
            tickets: list[Reservation] = []
            admission.enter(call(), tickets.append, never)
            await until(lambda: bool(tickets))
            held = await granted(tickets[0])
            assert [need for _, need, _ in reserves(held)] == [150, 150]
            held.settle(tokens=1, cost_usd=0.0)
            free = Admission(lambda: 0.0)
            free.enter(call(), tickets.append, never)
            assert await granted(tickets[-1]) is tickets[-1]
            assert free.needs(call()) == (0, 0, 0)

    asyncio.run(main())


def test_images_are_within_the_bound(tmp_path: Path, open_store: Opener) -> None:
    async def main() -> None:
        async with limiter(tmp_path, open_store, limit(5.0, "usd")) as limits:
            _, tokens, money = limits.needs(call(images=2))
            assert tokens == 150 + 2 * IMAGE_TOKENS_MOST
            assert money == 600_001 + 2 * IMAGE_TOKENS_MOST * 1000
            priced = type(PRICES)(input_usd_per_mtok=1.0, output_usd_per_mtok=10.0, image_usd=0.25)
            assert limits.needs(call(images=2, prices=priced))[2] == money + 500_000_000
            assert isinstance(limits, Limiter)

    asyncio.run(main())


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 50)), min_size=1, max_size=8),
    st.fixed_dictionaries({name: st.integers(0, 120) for name in "abc"}),
)
def test_what_was_used_is_shared_without_rest(parts: list[tuple[str, int]], used: dict[str, int]) -> None:
    found = portions(parts, [used[account] for account, _ in parts])
    for account in {account for account, _ in parts}:
        mine = [(reserved, part) for (name, reserved), part in zip(parts, found, strict=True) if name == account]
        assert sum(part for _, part in mine) == used[account]
        assert all(0 <= part <= reserved for reserved, part in mine[:-1])
        if used[account] <= sum(reserved for reserved, _ in mine):
            assert mine[-1][1] <= mine[-1][0]
