"""Gemini and Bedrock: every field of a request with values of every wrong kind, and damaged messages of a stream."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

import pytest

from tests.models.providers.provider_servers import event
from tests.models.providers.test_exchanges import events, having, spoken
from tests.models.providers.test_robustness import failures
from tidemill.kernel import InvalidInput
from tidemill.models.providers import Credentials, Place, dialect

TRANSLATING = ["bedrock", "gemini"]
PLACE = Place("", "bedrock-runtime.eu-central-1.amazonaws.com", "gemini-3.8-flash")
WRONG: list[Any] = [
    None, True, -1, 0.5, "", "x", [], [1], ["x"], [None], [{}], {}, {"type": "x"}, {"type": "function"}, {"x": []},
    {"type": []}, [{"type": "function"}], [{"type": "function", "function": {"name": 1}}], {"url": "data:,"},
    {"type": "json_schema"}, {"type": "json_schema", "json_schema": []}, {"google": {"thinking_config": []}},
    {"type": "allowed_tools"}, {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [1]}},
    {"type": "function", "function": {}}, {"file_data": "x"}, {"data": 1, "format": "wav"}, {"include_usage": []},
]  # fmt: skip


def translated(name: str, request: dict[str, Any]) -> bool:
    """Whether the dialect serves the request; anything but its own refusals is raised."""
    try:
        sent = dialect(name).request("chat", json.dumps(request).encode(), PLACE, Credentials("k"), now_s=0)
    except InvalidInput:
        return False
    assert isinstance(json.loads(sent.body), dict)
    return True


@pytest.mark.parametrize("name", TRANSLATING)
def test_a_field_is_served_or_refused(name: str) -> None:
    fields = import_module(f"tidemill.models.providers.{name}").FIELDS
    messages = [{"role": "user", "content": "Hello"}]
    assert translated(name, {"messages": messages})
    for field in [*fields.served, *fields.refused]:
        for value in WRONG:
            translated(name, {"messages": messages, field: value})
    for field in fields.refused:
        assert not translated(name, {"messages": messages, field: "x"})


@pytest.mark.parametrize("name", TRANSLATING)
def test_a_message_is_served_or_refused(name: str) -> None:
    fields = ("content", "tool_calls", "tool_call_id", "refusal", "reasoning_content", "reasoning_details",
              "extra_content", "name")  # fmt: skip
    for role in ("system", "developer", "user", "assistant", "tool"):
        for field in fields:
            for value in WRONG:
                translated(name, {"messages": [{"role": role, field: value}]})
    for kind in ("text", "image_url", "input_audio", "file", "refusal"):
        for value in WRONG:
            translated(name, {"messages": [{"role": "user", "content": [{"type": kind, kind: value}]}]})


@pytest.mark.parametrize("name", having("provider_frames"))
def test_a_damaged_message_is_read_or_refused(name: str) -> None:
    exchange, speaker, operation = spoken(name)
    request = json.dumps(exchange["pivot_request"]).encode()
    frames = exchange["provider_frames"]

    def use(payloads: Any) -> None:
        raw = b"".join(event(kind, payloads[str(at)], *rest) for at, (kind, _, *rest) in enumerate(frames)
                       if str(at) in payloads)  # fmt: skip
        translator = speaker.stream(operation, request, model="m")
        for one in events(translator.feed(raw) + translator.finish()):
            assert one == "[DONE]" or "choices" in one or "error" in one

    assert failures({str(at): payload for at, (_, payload, *_) in enumerate(frames)}, use) == []
