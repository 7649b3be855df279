"""Choice, failover, breakers, hedging and admission in a running worker, over real sockets."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import openai
import pytest

from tests.gateway.conftest import KEY, RELEASE_1, RunningGateway, snapshot_of
from tidemill.gateway.testing import Fault, ScriptedUpstream
from tidemill.kernel import ReleaseRoute, Route, Target
from tidemill.kernel.routing_policy import (
    Breaker,
    Caps,
    Choice,
    ChoicePolicy,
    Hedging,
    Prices,
    Retries,
    RoutePolicy,
)

Start = Callable[..., RunningGateway]


@pytest.fixture
def upstreams() -> Iterator[list[ScriptedUpstream]]:
    with ExitStack() as held:
        yield [held.enter_context(ScriptedUpstream(words=(name,), model=name)) for name in ("a", "b", "c")]


def route(
    upstreams: list[ScriptedUpstream],
    choice: ChoicePolicy | None = None,
    *,
    targets: list[dict[str, Any]] | None = None,
    **policy: Any,
) -> Route:
    more = targets or [{} for _ in upstreams]
    built = tuple(
        Target(upstream.url, name=upstream.model, **each) for upstream, each in zip(upstreams, more, strict=True)
    )
    release = ReleaseRoute(RELEASE_1, "release/desk@1", built, choice=choice or ChoicePolicy())
    return Route("desk", "default", (release,), policy=RoutePolicy(**policy))


def client(gateway: RunningGateway) -> openai.OpenAI:
    return openai.OpenAI(base_url=gateway.url, api_key=KEY, max_retries=0, timeout=60)


def ask(gateway: RunningGateway, text: str = "Hello", **more: Any) -> str | None:
    with client(gateway) as one:
        answer = one.chat.completions.create(model="desk", messages=[{"role": "user", "content": text}], **more)
        return answer.choices[0].message.content


def stream(gateway: RunningGateway) -> str:
    with client(gateway) as one:
        messages: Any = [{"role": "user", "content": "Hello"}]
        chunks = one.chat.completions.create(model="desk", messages=messages, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.SERVER_ERROR, Fault.NOT_JSON, Fault.RATE_LIMIT])
def test_a_failing_target_is_not_noticed(start: Start, upstreams: list[ScriptedUpstream], fault: Fault) -> None:
    gateway = start(route(upstreams))
    upstreams[0].always = upstreams[1].always = fault
    assert ask(gateway) == "c"
    assert [len(upstream.seen) for upstream in upstreams] == [1, 1, 1]
    upstreams[0].always = upstreams[1].always = Fault.CUT_OPENING
    assert stream(gateway) == "c"


def test_the_breaker_spares_a_dead_target(start: Start, upstreams: list[ScriptedUpstream]) -> None:
    gateway = start(route(upstreams, breaker=Breaker(consecutive=3, open_s=60.0)))
    upstreams[0].always = Fault.NOT_JSON
    assert [ask(gateway) for _ in range(6)] == ["b"] * 6
    assert len(upstreams[0].seen) == 3


def test_a_target_that_is_back_is_noticed(start: Start, upstreams: list[ScriptedUpstream]) -> None:
    gateway = start(route(upstreams, breaker=Breaker(consecutive=3, open_s=0.05, open_max_s=0.05)))
    upstreams[0].always = Fault.NOT_JSON
    assert [ask(gateway) for _ in range(4)] == ["b"] * 4
    upstreams[0].always = None
    gateway.wait(lambda: ask(gateway) == "a")
    assert ask(gateway) == "a"


def test_a_long_retry_after_is_left_to_the_client(start: Start, upstreams: list[ScriptedUpstream]) -> None:
    gateway = start(route(upstreams))
    upstreams[0].always = Fault.RATE_LIMIT  # Retry-After: 7
    assert ask(gateway) == "b"
    upstreams[1].always = upstreams[2].always = Fault.RATE_LIMIT
    with pytest.raises(openai.RateLimitError) as told:
        ask(gateway)
    assert told.value.response.headers["retry-after"] == "7"


def test_rules_and_prices_choose(start: Start, upstreams: list[ScriptedUpstream]) -> None:
    gateway = start(route(upstreams, ChoicePolicy(rules=(("messages", "(?i)contract", "c"),))))
    assert ask(gateway, "The Contract, please") == "c"
    assert ask(gateway, "Hello") == "a"
    prices = [Prices(output_usd_per_mtok=price) for price in (9.0, 1.0, 3.0)]
    targets = [{"prices": price, "quality": quality} for price, quality in zip(prices, (0.9, 0.2, 0.9), strict=True)]
    cheapest = route(upstreams, ChoicePolicy(kind=Choice.CHEAPEST, quality_floor=0.5), targets=targets)
    gateway.route(snapshot_of(cheapest, epoch=2))
    assert ask(gateway) == "c"


def test_weights_share_the_requests(start: Start, upstreams: list[ScriptedUpstream]) -> None:
    targets = [{"weight": weight} for weight in (2.0, 1.0, 1.0)]
    gateway = start(route(upstreams, ChoicePolicy(kind=Choice.WEIGHTED), targets=targets))
    counts = Counter(ask(gateway) for _ in range(20))
    assert abs(counts["a"] - 10) <= 1
    assert abs(counts["b"] - 5) <= 1


def test_a_lone_target_is_tried_again_and_its_last_error_is_told(
    start: Start, upstreams: list[ScriptedUpstream]
) -> None:
    gateway = start(route(upstreams[:1], retries=Retries(max_attempts=3, base_s=0.01)))
    upstreams[0].faults.extend([Fault.NOT_JSON, Fault.NOT_JSON])
    assert ask(gateway) == "a"
    assert len(upstreams[0].seen) == 3
    upstreams[0].always = Fault.NOT_JSON
    with pytest.raises(openai.InternalServerError, match="desk"):
        ask(gateway)
    assert len(upstreams[0].seen) == 6


def test_a_mistake_of_the_request_is_not_repeated(start: Start, upstreams: list[ScriptedUpstream]) -> None:
    gateway = start(route(upstreams))
    upstreams[0].always = Fault.BAD_REQUEST
    with pytest.raises(openai.BadRequestError):
        ask(gateway)
    assert [len(upstream.seen) for upstream in upstreams] == [1, 0, 0]


def test_a_slow_answer_is_hedged_and_the_loser_is_stopped(start: Start, upstreams: list[ScriptedUpstream]) -> None:
    gateway = start(route(upstreams[:2], hedging=Hedging(share=1.0, min_wait_s=1.0)))
    for _ in range(22):  # p95 is known from 20 on
        ask(gateway)
    upstreams[0].always = Fault.STALL
    assert ask(gateway) == "b"
    records = gateway.records()
    assert records.requests()[-1].attributes["tidemill.hedged"] is True
    assert records.attempts(), "the loser has a record of its own"


def together(gateway: RunningGateway, count: int) -> Counter[str]:
    """What becomes of calls that start at once; for refusals status, code and whether they say when to come back."""
    begin = threading.Barrier(count)

    def one(_: int) -> str:
        with client(gateway) as caller:
            begin.wait(60)
            try:
                messages: Any = [{"role": "user", "content": "Hello"}]
                return str(caller.chat.completions.create(model="desk", messages=messages).choices[0].message.content)
            except openai.APIStatusError as error:
                return f"{error.status_code} {error.code} {int(error.response.headers['retry-after']) >= 1}"

    with ThreadPoolExecutor(count) as pool:
        return Counter(pool.map(one, range(count)))


def test_calls_beyond_cap_and_queue_are_refused_before_any_upstream_work(
    start: Start, upstreams: list[ScriptedUpstream]
) -> None:
    gateway = start(route(upstreams[:1], caps=Caps(in_flight=1, queue=2, queue_timeout_s=60.0)))
    upstreams[0].delay_s = 1.5
    outcomes = together(gateway, 8)
    assert set(outcomes) <= {"a", "429 queue_full True"}
    assert outcomes["a"] >= 3
    assert outcomes["429 queue_full True"] >= 1
    assert len(upstreams[0].seen) == outcomes["a"]
    upstreams[0].delay_s = 0.0
    assert ask(gateway) == "a", "no place was lost"


def test_who_waits_too_long_is_told_so(start: Start, upstreams: list[ScriptedUpstream]) -> None:
    gateway = start(route(upstreams[:1], caps=Caps(in_flight_per_key=1, queue_timeout_s=0.2)))
    upstreams[0].delay_s = 3.0
    outcomes = together(gateway, 3)
    assert outcomes["a"] >= 1
    assert outcomes["429 key_in_flight True"] >= 1


def test_a_target_at_its_cap_passes_requests_on(start: Start, upstreams: list[ScriptedUpstream]) -> None:
    gateway = start(route(upstreams[:2], targets=[{"max_in_flight": 1}, {"max_in_flight": 1}]))
    for upstream in upstreams:
        upstream.delay_s = 2.0
    outcomes = together(gateway, 6)
    assert outcomes["a"] >= 1
    assert outcomes["b"] >= 1
    assert set(outcomes) <= {"a", "b", "503 targets_busy True"}
