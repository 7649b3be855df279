"""The guardrails that come with the gateway, on real checks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.guardrails.test_streams import DONE, Client, event
from tidemill.checks import find_pii
from tidemill.gateway.guardrails import (
    Blocked,
    Guardrails,
    OnFinding,
    PivotAnswer,
    PivotRequest,
    Stage,
    TextGuardrail,
    Watch,
)
from tidemill.gateway.guardrails.text import built_in_guardrails

MAIL = "anna.meyer@example.com"
CARD = "4111 1111 1111 1111"
KEY = "sk-live8fJ3kQ9zLmN2pR7tVwXyB4cD"


def watch(*names: str, operation: str = "chat") -> Watch:
    plan = Guardrails().plan(names)
    assert plan is not None
    return plan.watch(operation)


def request(content: Any, **more: Any) -> bytes:
    return json.dumps({"model": "desk", "messages": [{"role": "user", "content": content}], **more}).encode()


def answer(**message: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "logprobs": {"content": []}}
    return json.dumps({"id": "a", "choices": [choice]}).encode()


def before(under: Watch, body: bytes) -> bytes | Blocked:
    got: list[bytes | Blocked] = []
    under.before(body, got.append, got.append)
    return got[0]


def after(under: Watch, body: bytes) -> bytes | Blocked:
    got: list[bytes | Blocked] = []
    under.after(body, got.append, got.append)
    return got[0]


def test_personal_data_is_masked_wherever_it_stands() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "send", "arguments": json.dumps({"to": MAIL})}}
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": f"I am {MAIL}"},
                                     {"type": "image_url", "image_url": {"url": "https://x.example/a@b.example"}}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": f"paid with {CARD}"},
    ]  # fmt: skip
    body = json.dumps({"model": "desk", "messages": turns, "temperature": 0.2}).encode()
    got = before(watch("pii"), body)
    assert isinstance(got, bytes)
    assert MAIL.encode() not in got
    assert CARD.encode() not in got
    told = json.loads(got)
    assert told["temperature"] == 0.2
    assert told["messages"][0] == turns[0]
    assert told["messages"][1]["content"][0]["text"] == "I am <email>"
    assert told["messages"][1]["content"][1] == turns[1]["content"][1]  # type: ignore[index]
    assert json.loads(told["messages"][2]["tool_calls"][0]["function"]["arguments"]) == {"to": "<email>"}
    assert told["messages"][3]["content"] == "paid with <credit_card>"


def test_a_request_without_findings_keeps_its_bytes() -> None:
    body = request("What is the opening time?")
    assert before(watch("pii", "credentials"), body) is body


@pytest.mark.parametrize("field", ["prompt", "input"])
def test_other_operations_have_texts_too(field: str) -> None:
    for value in (f"to {MAIL}", ["hello", f"to {MAIL}"]):
        got = before(watch("pii"), json.dumps({"model": "desk", field: value}).encode())
        assert isinstance(got, bytes)
        assert b"<email>" in got
        assert MAIL.encode() not in got


def test_a_form_with_sound_is_let_through_and_its_transcript_is_not() -> None:
    under = watch("pii", operation="transcription")
    assert before(under, b"--form\r\n...") == b"--form\r\n..."
    assert after(under, json.dumps({"text": f"call {MAIL}"}).encode()) == b'{"text":"call <email>"}'
    assert after(watch("pii", operation="speech"), b"ID3\x04") == b"ID3\x04"


def test_a_credential_blocks_and_the_verdict_does_not_repeat_it() -> None:
    under = watch("credentials")
    got = before(under, request(f"use {KEY}"))
    assert isinstance(got, Blocked)
    assert got.verdict.evidence == {"kinds": {"api_key": 1}}
    assert KEY in got.content  # kept with its verdict, for the trace
    assert KEY not in json.dumps(under.attributes)
    assert KEY not in got.message


@pytest.mark.parametrize("field", ["content", "refusal", "reasoning_content"])
def test_answers_are_masked_and_blocked_alike(field: str) -> None:
    body = answer(**{field: f"ask {MAIL}"})
    got = after(watch("pii"), body)
    assert isinstance(got, bytes)
    choice = json.loads(got)["choices"][0]
    assert choice["message"][field] == "ask <email>"
    assert choice["logprobs"] is None
    assert isinstance(after(watch("pii-block"), body), Blocked)


@given(st.lists(st.integers(1, 7), min_size=1, max_size=30), st.sampled_from([MAIL, CARD, KEY]),
       st.text("abc ,.", max_size=120), st.text("abc ,.", max_size=300))  # fmt: skip
def test_a_stream_leaks_nothing_however_it_is_cut(sizes: list[int], found: str, lead: str, tail: str) -> None:
    text = f"{lead} is {found} now {tail}"
    parts, at = [], 0
    while at < len(text):
        size = sizes[len(parts) % len(sizes)]
        parts.append(text[at : at + size])
        at += size
    sent = b"".join(event({"content": part}) for part in parts) + event({}, "stop") + DONE
    known = built_in_guardrails()
    masked = Client(known["pii"], known["credentials-mask"]).run(sent)
    assert masked.ended == 1
    assert found not in masked.text
    for name in ("pii-block", "credentials"):
        client = Client(known[name]).run(sent)
        if client.blocked:
            assert found[:6] not in client.text.removeprefix(lead)
    assert Client(known["pii-block"], known["credentials"]).run(sent).blocked


def test_a_finding_longer_than_the_hold_back_waits_until_it_ends() -> None:
    known: TextGuardrail = built_in_guardrails()["credentials-mask"]  # type: ignore[assignment]
    secret = "-----BEGIN PRIVATE KEY-----\n" + "A1b2" * 400 + "\n-----END PRIVATE KEY-----"
    text = f"Here: {secret}\nKeep it."
    parts = [text[at : at + 11] for at in range(0, len(text), 11)]
    client = Client(known).run(b"".join(event({"content": part}) for part in parts) + DONE)
    assert client.text == "Here: <private_key>\nKeep it."


def test_in_parallel_nothing_is_masked_any_more() -> None:
    guardrail = TextGuardrail("late", find_pii, on_finding=OnFinding.MASK, stages=[Stage.PARALLEL])
    assert guardrail.parallel(PivotRequest("chat", request(f"I am {MAIL}"))).verdict.value is False
    assert guardrail.parallel(PivotRequest("chat", request("I am fine"))).verdict.value is True


def test_what_is_no_json_object_cannot_be_looked_into() -> None:
    for body in (b"[]", b"no json"):
        assert isinstance(before(watch("pii"), body), Blocked)
        assert isinstance(after(watch("pii"), body), Blocked)
    assert list(PivotAnswer("chat", b'{"choices": 3}').texts()) == []
