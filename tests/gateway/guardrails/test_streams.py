"""Streams under guard: events leave with their own bytes, edited, or not at all."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tidemill.gateway.cache import whole_of
from tidemill.gateway.guardrails import (
    PASSED,
    Blocked,
    Edit,
    Guardrail,
    GuardrailPolicy,
    Guardrails,
    OnError,
    Ruling,
    Stage,
    StreamGuard,
)
from tidemill.gateway.guardrails.testing import BLOCKS, ScriptedGuardrail, blocks_where
from tidemill.kernel import Verdict

DONE = b"data: [DONE]\n\n"
words = st.lists(st.text(alphabet="abxé .", min_size=1, max_size=8), max_size=20)
policies = st.builds(
    GuardrailPolicy, hold_chars=st.integers(3, 20), step_chars=st.integers(1, 10), whole_sentences=st.booleans()
)


def event(delta: dict[str, Any], reason: str | None = None, index: int = 0, **more: Any) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": reason, **more}
    return b"data: %b\n\n" % json.dumps({"object": "chat.completion.chunk", "choices": [choice]}).encode()


def stream(parts: list[str]) -> bytes:
    first = event({"role": "assistant", "content": ""})
    return first + b"".join(event({"content": part}) for part in parts) + event({}, "stop") + DONE


class Client:
    """What arrives at the other end."""

    def __init__(self, *guardrails: Guardrail) -> None:
        plan = Guardrails({one.name: one for one in guardrails}).plan(tuple(one.name for one in guardrails))
        assert plan is not None
        self.watch = plan.watch("chat")
        self.got = b""
        self.blocked: list[Blocked] = []
        self.ended = 0
        self.guard = StreamGuard(self.watch, released=self._take, blocked=self.blocked.append, ended=self._end)

    def _take(self, data: bytes) -> None:
        assert not self.blocked
        self.got += data

    def _end(self) -> None:
        self.ended += 1

    def run(self, data: bytes, cuts: list[int] | None = None) -> Client:
        """Feed whole events, some at a time."""
        events = [part + b"\n\n" for part in data.split(b"\n\n") if part]
        edges = sorted({0, len(events), *[cut % (len(events) + 1) for cut in cuts or []]})
        for one, other in pairwise(edges):
            self.guard.feed(b"".join(events[one:other]))
        self.guard.finish()
        return self

    @property
    def text(self) -> str:
        found = re.findall(rb"data: (\{.*?\})\n\n", self.got)
        deltas = [choice["delta"] for one in found for choice in json.loads(one)["choices"]]
        return "".join(delta.get("content") or "" for delta in deltas)


def scripted(rule: Callable[[str], Ruling], **more: Any) -> ScriptedGuardrail:
    return ScriptedGuardrail({Stage.STREAM: rule}, **more)


@given(words, policies, st.lists(st.integers(0, 30), max_size=6))
def test_what_passes_leaves_byte_by_byte(parts: list[str], policy: GuardrailPolicy, cuts: list[int]) -> None:
    sent = stream(parts)
    client = Client(scripted(lambda _: PASSED, policy=policy)).run(sent, cuts)
    assert client.got == sent
    assert client.ended == 1
    assert client.guard.held_bytes == 0


@given(words, policies, st.lists(st.integers(0, 30), max_size=6))
def test_nothing_blocked_leaves(parts: list[str], policy: GuardrailPolicy, cuts: list[int]) -> None:
    whole = "".join(parts)
    client = Client(scripted(blocks_where(["xxx"]), policy=policy)).run(stream(parts), cuts)
    if "xxx" in whole:
        assert len(client.blocked) == 1
        assert client.ended == 0
        assert DONE not in client.got
        assert len(client.text) <= whole.index("xxx")
        assert whole.startswith(client.text)
        assert b"[DONE]" not in client.blocked[0].event()
    else:
        assert client.text == whole
        assert client.ended == 1


@given(words, policies, st.lists(st.integers(0, 30), max_size=6))
def test_edits_reach_across_events(parts: list[str], policy: GuardrailPolicy, cuts: list[int]) -> None:
    def rule(text: str) -> Ruling:
        edits = tuple(Edit(hit.start(), hit.end(), "<x>") for hit in re.finditer("x+", text))
        return Ruling(Verdict(True, "masked"), edits=edits)

    client = Client(scripted(rule, policy=policy)).run(stream(parts), cuts)
    assert client.text == re.sub("x+", "<x>", "".join(parts))
    assert client.got.endswith(event({}, "stop") + DONE)


def test_every_text_of_every_choice_is_guarded() -> None:
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"to": "xx'}}
    told = [
        event({"content": "fine"}, index=0),
        event({"content": "all well"}, index=1),
        event({"reasoning_content": "hm"}, index=0),
        event({"tool_calls": [call]}, index=1),
        event({"tool_calls": [{"index": 0, "function": {"arguments": 'x"}'}}]}, index=1),
    ]
    rest = event({}, "stop", 0) + event({}, "tool_calls", 1) + DONE
    client = Client(scripted(blocks_where(["xxx"]))).run(b"".join(told) + rest)
    assert len(client.blocked) == 1
    assert client.blocked[0].content == '{"to": "xxx"}'


def test_log_probabilities_do_not_tell_what_was_masked() -> None:
    def rule(text: str) -> Ruling:
        at = text.find("secret")
        return Ruling(Verdict(True, "masked"), edits=(Edit(at, at + 6, "<s>"),)) if at >= 0 else PASSED

    told = event({"content": "a secret"}, logprobs={"content": [{"token": "secret", "logprob": -0.1}]})
    client = Client(scripted(rule)).run(told + event({}, "stop") + DONE)
    assert client.text == "a <s>"
    assert b"secret" not in client.got


def test_an_event_that_cannot_be_read_does_not_leave() -> None:
    client = Client(scripted(lambda _: PASSED, policy=GuardrailPolicy(on_error=OnError.PASS)))
    client.run(event({"content": "a"}) + b"data: {broken\n\n" + event({"content": "b"}) + DONE)
    assert len(client.blocked) == 1
    assert client.got == b""


def test_what_was_abandoned_never_leaves() -> None:
    client = Client(scripted(lambda _: PASSED))
    client.guard.feed(event({"content": "a"}))
    client.guard.abandon()
    client.guard.feed(event({"content": "b"}))
    client.guard.finish()
    assert client.got == b""
    assert client.ended == 0


@given(words, st.integers(0, 3), st.booleans())
def test_awaited_rulings_keep_the_order(parts: list[str], strict: int, forbidden: bool) -> None:
    """Two guardrails that rule at once and two that are awaited; more text comes while they rule."""
    sent = stream([*parts, "xxx"] if forbidden else parts)

    async def main() -> Client:
        some = [
            scripted(
                blocks_where(["xxx"]) if at == strict else lambda _: PASSED,
                name=f"g{at}",
                awaits=at % 2 == 1,
                policy=GuardrailPolicy(hold_chars=6, step_chars=2, timeout_s=30),
            )
            for at in range(4)
        ]
        client = Client(*some)
        for part in sent.split(b"\n\n")[:-1]:
            client.guard.feed(part + b"\n\n")
            await asyncio.sleep(0)
        client.guard.finish()
        while not (client.blocked or client.ended):
            await asyncio.sleep(0)
        assert client.watch.plan.places.taken == 0
        return client

    client = asyncio.run(main())
    if "xxx" in "".join([*parts, "xxx"] if forbidden else parts):
        assert len(client.blocked) == 1
        assert "xxx" not in client.text
    else:
        assert client.got == sent


def test_much_that_waits_asks_for_a_pause() -> None:
    async def main() -> None:
        slow = scripted(lambda _: PASSED, awaits=True)
        slow.gate.clear()
        client = Client(slow)
        big = event({"content": "a" * 70_000})
        for _ in range(20):
            client.guard.feed(big)
        assert client.guard.full
        assert client.got == b""
        slow.gate.set()
        client.guard.finish()
        while not client.ended:
            await asyncio.sleep(0)
        assert not client.guard.full
        assert client.got == big * 20

    asyncio.run(main())


def test_a_stream_waits_whole_for_those_that_rule_on_whole_answers() -> None:
    sent = stream(["Hello ", "there."])
    passing = Client(ScriptedGuardrail({Stage.AFTER: PASSED}))
    passing.guard.feed(sent)
    assert passing.got == b""
    passing.guard.finish()
    assert passing.got == sent
    assert passing.ended == 1

    blocking = Client(ScriptedGuardrail({Stage.AFTER: BLOCKS})).run(sent)
    assert blocking.got == b""
    assert blocking.ended == 0
    assert b"Hello there." in blocking.blocked[0].content.encode()

    other = whole_of(stream(["Other."]))
    rewriting = Client(ScriptedGuardrail({Stage.AFTER: Ruling(Verdict(True, "rewritten"), body=other)})).run(sent)
    assert rewriting.text == "Other."
    assert rewriting.got.endswith(DONE)


def test_one_that_knows_streams_is_not_asked_again_at_the_end() -> None:
    both = ScriptedGuardrail({Stage.STREAM: PASSED, Stage.AFTER: BLOCKS}, name="both")
    whole = ScriptedGuardrail({Stage.AFTER: PASSED}, name="whole")
    client = Client(both, whole).run(stream(["Hello."]))
    assert client.text == "Hello."
    assert both.seen_at(Stage.AFTER) == []
    assert len(whole.seen_at(Stage.AFTER)) == 1
