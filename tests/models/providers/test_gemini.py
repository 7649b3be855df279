"""Gemini: bodies as Google's servers take them, and what the recorded exchanges do not show."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.models.providers.provider_servers import GEMINI_BODIES, check_fields
from tests.models.providers.test_exchanges import EXCHANGES, events, having
from tidemill.kernel import InvalidInput
from tidemill.models.providers import Credentials, Dialect, Place, UnsupportedField, UnsupportedOperation, dialect
from tidemill.models.providers.gemini import EMBEDDING_FIELDS

GEMINI = [name for name in having("dialect") if EXCHANGES[name]["dialect"] == "gemini"]
HELLO = b'{"messages": [{"role": "user", "content": "Hello"}]}'


@pytest.fixture
def gemini() -> Dialect:
    return dialect("gemini")


@pytest.mark.parametrize("name", [name for name in GEMINI if "provider_request" in EXCHANGES[name]])
def test_bodies_have_only_fields_that_gemini_knows(name: str) -> None:
    request = EXCHANGES[name]["provider_request"]
    check_fields(request["body"], GEMINI_BODIES[request["path"].rpartition(":")[2]], "")


def body(gemini: Dialect, model: str = "gemini-3.8-flash", **fields: Any) -> dict[str, Any]:
    request = {"messages": [{"role": "user", "content": "Hello"}], **fields}
    sent = gemini.request("chat", json.dumps(request).encode(), Place("", "h", model), Credentials(), now_s=0)
    found: dict[str, Any] = json.loads(sent.body)
    return found


@pytest.mark.parametrize(
    ("model", "effort", "thinking"),
    [
        ("gemini-3.8-flash", "minimal", {"thinkingLevel": "minimal"}),
        ("gemini-3.8-flash", "xhigh", {"thinkingLevel": "xhigh"}),
        ("models/gemini-10-pro", "high", {"thinkingLevel": "high"}),
        ("gemini-2.5-pro", "minimal", {"thinkingBudget": 1024}),
        ("gemini-2.5-pro", "medium", {"thinkingBudget": 8192}),
        ("gemini-2.5-pro", "high", {"thinkingBudget": 24576}),
    ],
)
def test_reasoning_effort_by_the_models_generation(
    gemini: Dialect, model: str, effort: str, thinking: dict[str, Any]
) -> None:
    assert body(gemini, model, reasoning_effort=effort)["generationConfig"] == {"thinkingConfig": thinking}


@pytest.mark.parametrize(
    ("choice", "strict", "mode"),
    [
        ("auto", False, None),
        ("auto", True, {"mode": "VALIDATED"}),
        ("required", True, {"mode": "ANY"}),
        ("none", True, {"mode": "NONE"}),
        (None, True, {"mode": "VALIDATED"}),
        (None, False, None),
    ],
)
def test_tool_choice(gemini: Dialect, choice: str | None, strict: bool, mode: dict[str, Any] | None) -> None:
    tools = [{"type": "function", "function": {"name": "f", "strict": strict}}]
    config = body(gemini, tools=tools, tool_choice=choice).get("toolConfig", {}).get("functionCallingConfig")
    assert config == mode


def test_places_without_a_path_a_key_or_the_models_folder(gemini: Dialect) -> None:
    sent = gemini.request("chat", HELLO, Place("", "h", "models/gemini-3.8-flash"), Credentials(), now_s=0)
    assert sent.path == "/v1beta/models/gemini-3.8-flash:generateContent"
    assert dict(sent.headers) == {"content-type": "application/json"}
    sent = gemini.request("chat", HELLO, Place("/v1beta", "h", "tunedModels/kim's"), Credentials(), now_s=0)
    assert sent.path == "/v1beta/tunedModels/kim%27s:generateContent"


def test_a_conversation_of_nobody(gemini: Dialect) -> None:
    with pytest.raises(InvalidInput, match="at least one message"):
        body(gemini, messages=[{"role": "system", "content": "Be kind."}, {"role": "user", "content": ""}])


def test_a_result_must_answer_a_call(gemini: Dialect) -> None:
    with pytest.raises(InvalidInput, match="call-7"):
        body(gemini, messages=[{"role": "tool", "tool_call_id": "call-7", "content": "x"}])


def test_operations_it_does_not_serve(gemini: Dialect) -> None:
    with pytest.raises(UnsupportedOperation, match="speech"):
        gemini.request("speech", HELLO, Place("", "h", "m"), Credentials(), now_s=0)
    with pytest.raises(UnsupportedOperation, match="embeddings"):
        dialect("bedrock").answer("embeddings", b"{}", model="m")


@pytest.mark.parametrize(
    ("request_", "field"),
    [({"input": [1, 2]}, "input"), ({"input": []}, "input"), ({"input": "a", "user": "kim"}, "user")],
)
def test_embeddings_it_cannot_serve(gemini: Dialect, request_: dict[str, Any], field: str) -> None:
    with pytest.raises(UnsupportedField) as refused:
        gemini.request("embeddings", json.dumps(request_).encode(), Place("", "h", "m"), Credentials(), now_s=0)
    assert refused.value.field == field


def test_every_field_of_an_embedding_request_has_a_row() -> None:
    known = EMBEDDING_FIELDS.served.keys() | EMBEDDING_FIELDS.refused.keys()
    assert {"model", "input", "encoding_format", "dimensions", "user"} <= known


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("STOP", "stop"), ("MAX_TOKENS", "length"), ("SAFETY", "content_filter"), ("RECITATION", "content_filter"),
        ("SPII", "content_filter"), ("A_REASON_OF_THE_FUTURE", "stop"),
    ],
)  # fmt: skip
def test_finish_reasons(gemini: Dialect, reason: str, finish: str) -> None:
    candidate = {"content": {"parts": [{"text": "x"}]}, "finishReason": reason}
    answer = json.loads(gemini.answer("chat", json.dumps({"candidates": [candidate]}).encode(), model="m"))
    assert answer["choices"][0]["finish_reason"] == finish
    assert answer["model"] == "m"
    assert "usage" not in answer


@pytest.mark.parametrize("reason", ["MALFORMED_FUNCTION_CALL", "OTHER", "MISSING_THOUGHT_SIGNATURE"])
def test_an_end_without_an_answer_is_a_failure(gemini: Dialect, reason: str) -> None:
    failed = {"candidates": [{"finishReason": reason, "finishMessage": "why"}]}
    with pytest.raises(InvalidInput, match=f"{reason}, why"):
        gemini.answer("chat", json.dumps(failed).encode(), model="m")


def test_nothing_follows_an_error_in_a_stream(gemini: Dialect) -> None:
    stream = gemini.stream("chat", HELLO, model="m")
    (first,) = events(stream.feed(b'data: {"error": {"code": 429, "message": "slow down"}}\n\n'))
    assert first["error"]["type"] == "rate_limit_error"
    assert stream.feed(b'data: {"candidates": [{"content": {"parts": [{"text": "x"}]}}]}\n\n') == b""
    assert stream.finish() == b""


def test_a_part_of_the_future_is_no_silent_loss(gemini: Dialect) -> None:
    answer = {"candidates": [{"content": {"parts": [{"executableCode": {"code": "1"}}]}, "finishReason": "STOP"}]}
    with pytest.raises(InvalidInput, match="executableCode"):
        gemini.answer("chat", json.dumps(answer).encode(), model="m")
