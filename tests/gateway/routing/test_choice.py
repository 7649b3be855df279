"""The strategies: what each promises, and simulations with their error rates."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.evidence import sign_test
from tidemill.gateway.routing import FEATURES, AttemptResult, Chooser, RoutingCall, TargetHealth
from tidemill.kernel import InvalidInput, Target
from tidemill.kernel.routing_policy import Breaker, Choice, ChoicePolicy, LearnedRouting, Prices

STREAM = RoutingCall(streamed=True)


def chat(text: str) -> bytes:
    return json.dumps([{"role": "user", "content": text}]).encode()


def chooser(
    targets: list[Target], kind: Choice = Choice.ORDERED, *, seed: int = 0, **policy: object
) -> tuple[Chooser, list[TargetHealth]]:
    rng = Random(seed)
    healths = [TargetHealth(Breaker(), rng) for _ in targets]
    return Chooser(targets, healths, ChoicePolicy(kind=kind, **policy), rng), healths  # type: ignore[arg-type]


def three(**more: object) -> list[Target]:
    return [Target(f"http://{name}", name=name, **more) for name in "abc"]  # type: ignore[arg-type]


def break_(health: TargetHealth, now_s: float = 0.0) -> None:
    for _ in range(5):
        health.begin(now_s, streamed=True).end(AttemptResult.FAILED, now_s)


WEIGHTS = (0.0,) * len(FEATURES) + (0.0,)


@given(
    kind=st.sampled_from(Choice),
    broken=st.sets(st.integers(0, 4)),
    full=st.sets(st.integers(0, 4)),
    seed=st.integers(0, 100),
)
def test_every_order_holds_each_ready_target_once_and_no_other(
    kind: Choice, broken: set[int], full: set[int], seed: int
) -> None:
    targets = [Target(f"http://{n}", name=str(n), max_in_flight=1, weight=n) for n in range(5)]
    choice, healths = chooser(targets, kind, seed=seed, learned=LearnedRouting(weights=WEIGHTS))
    for place in broken:
        break_(healths[place])
    for place in full:
        healths[place].begin(0.0, streamed=True)
    ready = set(range(5)) - broken - full
    order = choice.order(STREAM, 1.0)
    if ready:
        assert sorted(order) == sorted(ready)
    elif full == set(range(5)):
        assert order == []
    else:  # all are open: the one that is ready first, and nothing after it
        room = set(range(5)) - full
        assert order == [min(room, key=lambda place: healths[place].breaker.opens_at_s)]


def test_ordered_goes_on_to_the_next_and_comes_back() -> None:
    choice, healths = chooser(three())
    assert choice.order(STREAM, 0.0) == [0, 1, 2]
    break_(healths[0])
    assert choice.order(STREAM, 1.0) == [1, 2]
    assert choice.choose(STREAM, healths[0].breaker.opens_at_s) == 0
    healths[0].begin(healths[0].breaker.opens_at_s, streamed=True)
    assert choice.choose(STREAM, healths[0].breaker.opens_at_s) == 1, "one probe is enough"


def test_one_target_is_asked_though_its_breaker_is_open_but_not_beyond_its_cap() -> None:
    choice, healths = chooser([Target("http://a", max_in_flight=2)])
    break_(healths[0])
    assert choice.choose(STREAM, 0.0) == 0
    assert choice.choose(STREAM, 0.0, {0}) is None
    healths[0].begin(0.0, streamed=True)
    healths[0].begin(0.0, streamed=True)
    assert choice.choose(STREAM, 0.0) is None


def test_rules_put_a_target_first_and_the_rest_stands_by() -> None:
    rules = (("user", "^vip-", "c"), ("messages", r"(?i)\bcontract\b", "b"), ("tools", '"sql"', "c"))
    choice, healths = chooser(three(), rules=rules)
    assert choice.order(RoutingCall(messages=chat("Read this Contract.")), 0.0) == [1, 0, 2]
    assert choice.order(RoutingCall(messages=chat("Contracts")), 0.0) == [0, 1, 2]
    assert choice.order(RoutingCall(messages=chat("contract"), user="vip-7"), 0.0) == [2, 0, 1]
    assert choice.order(RoutingCall(tools=b'[{"function":{"name":"sql"}}]'), 0.0) == [2, 0, 1]
    break_(healths[1])
    assert choice.order(RoutingCall(messages=chat("contract")), 0.0) == [0, 2]


def test_rules_see_text_as_it_is_meant_not_as_it_is_escaped() -> None:
    choice, _ = chooser(three(), rules=(("messages", "Verträge\n", "b"),))
    escaped = json.dumps([{"role": "user", "content": [{"type": "text", "text": "Verträge\nalle"}]}]).encode()
    assert b"\\u00e4" in escaped
    assert choice.choose(RoutingCall(messages=escaped), 0.0) == 1


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (("body", "x", "a"), "messages, user, tools"),
        (("user", "x", "z"), "none of a, b, c"),
        (("user", "(", "a"), "no regular expression"),
    ],
)
def test_rules_that_cannot_be_used_are_refused(rule: tuple[str, str, str], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        chooser(three(), rules=(rule,))


def test_weighted_keeps_to_the_shares_over_every_stretch() -> None:
    targets = [Target(f"http://{n}", weight=weight) for n, weight in enumerate((5.0, 3.0, 2.0))]
    choice, _ = chooser(targets, Choice.WEIGHTED, seed=3)
    chosen = [choice.choose(STREAM, 0.0) for _ in range(1000)]
    for start in range(0, 990, 7):
        for length in (10, 50, 200):
            counts = Counter(chosen[start : start + length])
            got = len(chosen[start : start + length])
            for place, weight in enumerate((0.5, 0.3, 0.2)):
                assert abs(counts[place] - weight * got) <= 2
    assert max(len(run) for run in "".join(map(str, chosen)).replace("1", " ").replace("2", " ").split()) <= 2, "smooth"


def test_weighted_is_repeatable_and_differs_between_workers() -> None:
    def sequence(seed: int) -> list[int | None]:
        choice, _ = chooser(three(), Choice.WEIGHTED, seed=seed)
        return [choice.choose(STREAM, 0.0) for _ in range(9)]

    assert sequence(1) == sequence(1)
    assert len({tuple(sequence(seed)) for seed in range(20)}) > 2


def test_weighted_shares_what_a_broken_target_leaves() -> None:
    targets = [Target(f"http://{n}", weight=weight) for n, weight in enumerate((2.0, 1.0, 1.0))]
    choice, healths = chooser(targets, Choice.WEIGHTED)
    break_(healths[0])
    counts = Counter(choice.choose(STREAM, 1.0) for _ in range(100))
    assert counts == {1: 50, 2: 50}


def test_least_in_flight_fills_up_evenly_and_ties_go_around() -> None:
    choice, healths = chooser(three(), Choice.LEAST_IN_FLIGHT)
    for _ in range(30):
        place = choice.choose(STREAM, 0.0)
        assert place is not None
        healths[place].begin(0.0, streamed=True)
    assert [health.in_flight for health in healths] == [10, 10, 10]
    chosen = [choice.choose(STREAM, 0.0) for _ in range(9)]
    assert Counter(chosen) == {0: 3, 1: 3, 2: 3}
    assert all(a != b for a, b in pairwise(chosen))


def priced(quality: float, usd_in: float, usd_out: float, request: float = 0.0) -> Target:
    prices = Prices(input_usd_per_mtok=usd_in, output_usd_per_mtok=usd_out, request_usd=request)
    return Target("http://x", quality=quality, prices=prices)


def test_cheapest_weighs_the_size_of_the_request() -> None:
    targets = [priced(0.9, 1.0, 20.0), priced(0.9, 4.0, 4.0), priced(0.5, 0.1, 0.1), priced(0.95, 30.0, 60.0)]
    choice, healths = chooser(targets, Choice.CHEAPEST, quality_floor=0.8)
    long_prompt = RoutingCall(input_bytes=40_000, max_output_tokens=10)
    long_answer = RoutingCall(input_bytes=400)
    assert choice.choose(long_prompt, 0.0) == 0
    assert choice.choose(long_answer, 0.0) == 1
    assert choice.order(long_answer, 0.0) == [1, 0, 3, 2], "what is below the floor comes last"
    break_(healths[1])
    assert choice.choose(long_answer, 0.0) == 0


def test_learned_sends_hard_requests_to_the_second_target() -> None:
    weights = [0.0] * len(FEATURES) + [-1.0]
    weights[FEATURES.index("code")] = 4.0
    choice, healths = chooser(three(), Choice.LEARNED, learned=LearnedRouting(weights=tuple(weights), threshold=0.5))
    hard, easy = RoutingCall(messages=chat("Fix:\n```python\nx\n```")), RoutingCall(messages=chat("Hello"))
    assert choice.order(hard, 0.0) == [1, 0, 2]
    assert choice.order(easy, 0.0) == [0, 1, 2]
    break_(healths[1])
    assert choice.choose(hard, 0.0) == 0


def test_learned_choice_needs_two_targets_and_all_weights() -> None:
    with pytest.raises(InvalidInput, match="needs two targets"):
        chooser(three()[:1], Choice.LEARNED, learned=LearnedRouting(weights=WEIGHTS))
    with pytest.raises(InvalidInput, match="has 0 weights and needs"):
        chooser(three(), Choice.LEARNED)


# -- simulations ------------------------------------------------------------------------------------------------


def mean_wait_s(kind: Choice, services_s: list[float], *, seed: int, rate: float = 20.0, requests: int = 1500) -> float:
    """Open arrivals at targets that serve four at once each; the mean time to the first token."""
    rng = Random(seed)
    choice, healths = chooser([Target(f"http://{n}") for n in range(len(services_s))], kind, seed=seed)
    free_at_s = [[0.0] * 4 for _ in services_s]
    ends: list[tuple[float, int, int]] = []
    attempts = {}
    now_s = total_s = 0.0
    for number in range(requests):
        now_s += rng.expovariate(rate)
        while ends and ends[0][0] <= now_s:
            at_s, done, place = heapq.heappop(ends)
            attempts[done].first_token(at_s)
            attempts.pop(done).end(AttemptResult.ANSWERED, at_s)
        place = choice.choose(STREAM, now_s)
        assert place is not None
        attempts[number] = healths[place].begin(now_s, streamed=True)
        slot = min(range(4), key=free_at_s[place].__getitem__)
        end_s = max(now_s, free_at_s[place][slot]) + services_s[place] * (0.5 + rng.random())
        free_at_s[place][slot] = end_s
        heapq.heappush(ends, (end_s, number, place))
        total_s += end_s - now_s
    return total_s / requests


@pytest.mark.parametrize("rival", [Choice.WEIGHTED, Choice.LEAST_IN_FLIGHT])
def test_peak_ewma_beats_its_rivals_when_one_target_is_slow(rival: Choice) -> None:
    """Ten independent runs each; all ten won would be chance with p = 0.001."""
    services_s = [0.2, 0.2, 2.0]
    pairs = [
        (mean_wait_s(Choice.PEAK_EWMA, services_s, seed=seed), mean_wait_s(rival, services_s, seed=seed))
        for seed in range(10)
    ]
    wins = sum(ours < theirs for ours, theirs in pairs)
    assert sign_test(wins, len(pairs) - wins) < 0.02, pairs


def test_peak_ewma_is_fair_among_equals() -> None:
    choice, healths = chooser(three(), Choice.PEAK_EWMA)
    rng, counts = Random(5), Counter[int]()
    for number in range(6000):
        place = choice.choose(STREAM, number / 50)
        assert place is not None
        counts[place] += 1
        attempt = healths[place].begin(number / 50, streamed=True)
        attempt.first_token(number / 50 + 0.2 + 0.2 * rng.random())
        attempt.end(AttemptResult.ANSWERED, number / 50 + 0.5)
    assert all(1500 < counts[place] < 2500 for place in range(3)), counts


def test_peak_ewma_tries_a_target_again_that_was_slow_once() -> None:
    choice, healths = chooser(three()[:2], Choice.PEAK_EWMA)
    healths[0].begin(0.0, streamed=True).end(AttemptResult.ANSWERED, 0.0)
    healths[0].observe(20.0, 0.0, streamed=True)
    chosen = []
    for step in range(300):
        place = choice.choose(STREAM, float(step))
        assert place is not None
        chosen.append(place)
        healths[place].observe(0.2, float(step), streamed=True)
    assert 0 not in chosen[1:60]
    assert 0 in chosen[60:], "its peak is forgotten"
