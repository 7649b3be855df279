"""Stages, timeouts, failure policies, bounded concurrency, and the record of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from tidemill.gateway.guardrails import (
    PASSED,
    Blocked,
    Guardrail,
    GuardrailPolicy,
    Guardrails,
    OnBlock,
    OnError,
    Places,
    Ruling,
    Stage,
    Watch,
)
from tidemill.gateway.guardrails.testing import BLOCKS, ScriptedGuardrail
from tidemill.kernel import NotFound, Verdict

REQUEST = b'{"model": "desk", "messages": [{"role": "user", "content": "hi"}]}'
ANSWER = b'{"choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}]}'
WAIT_S = 30.0


def watch(*guardrails: Guardrail, **more: Any) -> Watch:
    plan = Guardrails({one.name: one for one in guardrails}, **more).plan(tuple(one.name for one in guardrails))
    assert plan is not None
    return plan.watch("chat")


async def until(condition: Any) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.001)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def rewriting(old: str, new: str, name: str, **more: Any) -> ScriptedGuardrail:
    def rule(text: str) -> Ruling:
        return Ruling(Verdict(True, "rewritten"), body=text.replace(old, new).encode())

    return ScriptedGuardrail({Stage.BEFORE: rule, Stage.AFTER: rule}, name=name, **more)


@pytest.mark.parametrize("awaits", [False, True])
def test_each_guardrail_sees_what_the_one_before_left(awaits: bool) -> None:
    async def main() -> None:
        one, two = rewriting("hi", "ho", "one", awaits=awaits), rewriting("ho", "hu", "two", awaits=awaits)
        last = ScriptedGuardrail({Stage.BEFORE: PASSED}, name="last")
        under = watch(one, two, last)
        got: list[Any] = []
        under.before(REQUEST, got.append, got.append)
        assert bool(got) != awaits  # at once, unless something is awaited
        await until(lambda: got)
        assert got == [REQUEST.replace(b"hi", b"hu")]
        assert last.seen_at(Stage.BEFORE) == [got[0].decode()]
        assert under.attributes == {
            "tidemill.guardrail.one": "rewritten",
            "tidemill.guardrail.two": "rewritten",
            "tidemill.guardrail.last": "passed",
        }

    run(main())


def test_a_block_before_the_call_ends_it() -> None:
    after = ScriptedGuardrail(name="after")
    under = watch(ScriptedGuardrail({Stage.BEFORE: BLOCKS}, name="strict"), after)
    allowed: list[bytes] = []
    blocked: list[Blocked] = []
    under.before(REQUEST, allowed.append, blocked.append)
    assert allowed == []
    assert after.seen == []
    assert under.blocked is blocked[0]
    assert blocked[0].content == REQUEST.decode()
    refusal = blocked[0].refusal()
    assert (refusal.status, refusal.code) == (400, "content_filter")
    assert "strict" in refusal.message
    assert under.attributes["tidemill.guardrail.strict"] == "blocked"
    assert under.attributes["tidemill.guardrail.strict.stage"] == "before"
    verdict = Verdict.from_json(json.loads(str(under.attributes["tidemill.guardrail.strict.verdict"])))
    assert verdict == BLOCKS.verdict


def test_what_is_blocked_may_be_refused_in_the_models_own_words() -> None:
    policy = GuardrailPolicy(on_block=OnBlock.REFUSAL, message="I cannot help with that.")
    under = watch(ScriptedGuardrail({Stage.AFTER: BLOCKS}, policy=policy))
    blocked: list[Blocked] = []
    under.after(ANSWER, pytest.fail, blocked.append)
    assert blocked[0].on_block is OnBlock.REFUSAL
    body = blocked[0].answer(model="desk", answer_id="t1", created_s=1)
    told = ChatCompletion.model_validate_json(body, strict=True)
    assert told.choices[0].finish_reason == "content_filter"
    assert told.choices[0].message.refusal == "I cannot help with that."
    error = json.loads(blocked[0].event()[6:])["error"]
    assert error["code"] == "content_filter"


def test_a_whole_answer_is_reviewed_in_order() -> None:
    under = watch(rewriting("yes", "no", "one"), ScriptedGuardrail({Stage.AFTER: PASSED}, name="two"))
    got: list[bytes] = []
    under.after(ANSWER, got.append, pytest.fail)
    assert got == [ANSWER.replace(b"yes", b"no")]


FAULTS = [
    ValueError("broken"),
    Ruling(Verdict(0.7, "a score, not a decision")),
    Ruling(Verdict("PASS", "a word, not a decision")),
]


@pytest.mark.parametrize("awaits", [False, True])
@pytest.mark.parametrize("fault", FAULTS, ids=["raises", "score", "word"])
@pytest.mark.parametrize("on_error", list(OnError))
@pytest.mark.parametrize("stage", [Stage.BEFORE, Stage.AFTER])
def test_a_guardrail_that_fails_blocks_or_passes_by_policy(
    awaits: bool, fault: Any, on_error: OnError, stage: Stage
) -> None:
    async def main() -> None:
        under = watch(ScriptedGuardrail({stage: fault}, awaits=awaits, policy=GuardrailPolicy(on_error=on_error)))
        allowed: list[bytes] = []
        blocked: list[Blocked] = []
        ask = under.before if stage is Stage.BEFORE else under.after
        ask(REQUEST, allowed.append, blocked.append)
        await until(lambda: allowed or blocked)
        if on_error is OnError.PASS:
            assert allowed == [REQUEST]
            assert under.attributes == {"tidemill.guardrail.scripted": "failed_open"}
        else:
            assert blocked[0].verdict.value is False
            assert under.attributes["tidemill.guardrail.scripted"] == "failed"

    run(main())


@pytest.mark.parametrize("on_error", list(OnError))
def test_no_verdict_in_time_is_a_failure(on_error: OnError) -> None:
    async def main() -> None:
        slow = ScriptedGuardrail(
            {Stage.BEFORE: PASSED}, awaits=True, policy=GuardrailPolicy(timeout_s=0.02, on_error=on_error)
        )
        slow.gate.clear()
        under = watch(slow)
        allowed: list[bytes] = []
        blocked: list[Blocked] = []
        under.before(REQUEST, allowed.append, blocked.append)
        await until(lambda: allowed or blocked)
        assert bool(allowed) == (on_error is OnError.PASS)
        assert slow.running == 0  # it was stopped, not left running
        assert under.plan.places.taken == 0
        if blocked:
            assert "in time" in blocked[0].verdict.reason

    run(main())


# -- parallel -------------------------------------------------------------------------------------------------


def test_the_first_byte_waits_for_the_parallel_verdicts() -> None:
    async def main() -> None:
        one = ScriptedGuardrail({Stage.PARALLEL: PASSED}, name="one", awaits=True)
        two = ScriptedGuardrail({Stage.PARALLEL: PASSED}, name="two", awaits=True)
        quick = ScriptedGuardrail({Stage.PARALLEL: PASSED}, name="quick")
        one.gate.clear()
        two.gate.clear()
        under = watch(one, quick, two)
        cleared: list[bool] = []
        under.alongside(REQUEST, pytest.fail)
        under.clear(lambda: cleared.append(True))
        one.gate.set()
        await until(lambda: under.attributes.get("tidemill.guardrail.one"))
        assert cleared == []
        two.gate.set()
        await until(lambda: cleared)
        under.clear(lambda: cleared.append(True))  # by now at once
        assert cleared == [True, True]

    run(main())


@pytest.mark.parametrize("awaits", [False, True])
def test_a_parallel_block_comes_once_and_the_gate_stays_shut(awaits: bool) -> None:
    async def main() -> None:
        some = [ScriptedGuardrail({Stage.PARALLEL: BLOCKS}, name=f"g{at}", awaits=awaits) for at in range(3)]
        under = watch(*some)
        blocked: list[Blocked] = []
        under.clear(lambda: None)
        under.alongside(REQUEST, blocked.append)
        under.clear(lambda: pytest.fail("the gate opened"))
        await until(lambda: blocked)
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(blocked) == 1
        assert blocked[0].stage is Stage.PARALLEL

    run(main())


def test_nothing_is_called_after_the_client_has_left() -> None:
    async def main() -> None:
        slow = ScriptedGuardrail(dict.fromkeys((Stage.BEFORE, Stage.PARALLEL), PASSED), awaits=True)
        slow.gate.clear()
        under = watch(slow)
        under.before(REQUEST, pytest.fail, pytest.fail)
        under.alongside(REQUEST, pytest.fail)
        under.clear(lambda: pytest.fail("the gate opened"))
        await until(lambda: slow.running == 2)
        under.cancel()
        await until(lambda: slow.running == 0)
        slow.gate.set()
        await asyncio.sleep(0)
        under.clear(lambda: pytest.fail("the gate opened"))
        assert under.plan.places.taken == 0

    run(main())


# -- concurrency ----------------------------------------------------------------------------------------------


def test_rulings_that_are_awaited_are_bounded_over_all_requests() -> None:
    async def main() -> None:
        slow = ScriptedGuardrail({Stage.BEFORE: PASSED}, awaits=True, policy=GuardrailPolicy(timeout_s=WAIT_S))
        slow.gate.clear()
        plan = Guardrails({"scripted": slow}, most=3, queue=4).plan(("scripted",))
        assert plan is not None
        allowed: list[bytes] = []
        blocked: list[Blocked] = []
        watches = [plan.watch("chat") for _ in range(10)]
        for one in watches:
            one.before(REQUEST, allowed.append, blocked.append)
        await until(lambda: len(blocked) == 3)  # neither a place nor room to wait for one
        assert slow.running == 3
        watches[3].cancel()  # while it waits for a place
        watches[0].cancel()  # while it has one
        slow.gate.set()
        await until(lambda: len(allowed) == 5)
        assert plan.places.taken == 0

    run(main())


def test_places_are_handed_on_in_order() -> None:
    async def main() -> None:
        places = Places(1, 8)
        order: list[int] = []

        async def one(number: int) -> None:
            await places.take()
            order.append(number)
            await asyncio.sleep(0)
            places.free()

        tasks = [asyncio.create_task(one(number)) for number in range(5)]
        await asyncio.sleep(0)
        tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == [0, 1, 3, 4]
        assert places.taken == 0

    run(main())


# -- registry -------------------------------------------------------------------------------------------------


def test_a_route_is_never_served_with_fewer_guardrails_than_it_names() -> None:
    known = Guardrails()
    assert known.plan(()) is None
    with pytest.raises(NotFound, match="toxicity"):
        known.plan(("pii", "toxicity"))


def test_another_packages_guardrail_joins_by_its_name() -> None:
    mine = ScriptedGuardrail(name="toxicity")
    plan = Guardrails({"toxicity": mine}).plan(("pii", "toxicity", "pii"))
    assert plan is not None
    assert [one.name for one in plan.guardrails] == ["pii", "toxicity"]
    assert plan.parallel == (mine,)


def test_the_digest_names_the_rules_and_their_order() -> None:
    def digest(*names: str, **registry: Guardrail) -> str:
        plan = Guardrails(registry).plan(names)
        assert plan is not None
        return plan.digest

    assert digest("pii") == digest("pii")
    found = {digest("pii"), digest("pii-block"), digest("pii", "credentials"), digest("credentials", "pii")}
    assert len(found) == 4
    assert digest("pii", pii=ScriptedGuardrail(name="pii")) != digest("pii")
