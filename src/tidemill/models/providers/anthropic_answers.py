"""Anthropic's Messages API: its answers, errors and streams into the pivot's.

Format: Anthropic's API reference, messages, errors and streaming, as its Python library 2.12 types them (2026-11).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from tidemill.kernel import InvalidInput
from tidemill.models.providers.events import DONE, ChunkWriter, Event, EventSplitter, error_event
from tidemill.models.providers.pivot import completion, error_json, read_object, reading, tool_call, usage_of

FINISH_REASONS: Final = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""``stop_reason`` -> ``finish_reason``."""

_ERRORS: Final = {  # their error type -> OpenAI's
    "invalid_request_error": "invalid_request_error",
    "request_too_large": "invalid_request_error",
    "authentication_error": "authentication_error",
    "billing_error": "insufficient_quota",
    "permission_error": "permission_error",
    "not_found_error": "not_found_error",
    "rate_limit_error": "rate_limit_error",
}
_STREAM_STATUS: Final = {  # an error inside a stream carries no status of its own
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 503,
}
_OVERLOADED: Final = 529  # their own status for "overloaded"; 503 is what other clients know
_TIERS: Final = {"standard": "default", "priority": "priority"}
REASONING_FORMAT: Final = "anthropic-claude-v1"
"""Marks ``reasoning_details`` that only Anthropic can read."""


def translate_answer(body: bytes, model: str, now_s: float) -> bytes:
    """A message as a chat completion.

    Args:
        body: the provider's JSON.
        model: named where the message names none.
        now_s: Unix time for ``created``.

    Raises:
        InvalidInput: the body is not a message.
    """
    found = read_object(body, "The provider's answer")
    content = found.get("content")
    if not isinstance(content, list):
        raise InvalidInput("The provider's answer is no message: it has no list of content blocks.")
    with reading("The provider's answer"):
        return msgspec.json.encode(_completion(found, content, model, now_s))


def _completion(found: dict[str, Any], content: list[Any], model: str, now_s: float) -> dict[str, Any]:
    choice = {
        "index": 0,
        "message": _message(content, found),
        "logprobs": None,
        "finish_reason": FINISH_REASONS.get(found.get("stop_reason") or "", "stop"),
    }
    usage = found.get("usage")
    answer = completion(str(found.get("id") or ""), found.get("model") or model, int(now_s), [choice], _usage(usage))
    tier = _tier(usage)
    if tier is not None:
        answer["service_tier"] = tier
    return answer


def _message(content: list[Any], found: dict[str, Any]) -> dict[str, Any]:
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    thoughts: list[str] = []
    details: list[dict[str, Any]] = []
    for block in content:
        kind = block.get("type")
        if kind == "text":
            texts.append(block.get("text") or "")
        elif kind == "tool_use":
            arguments = msgspec.json.encode(block.get("input") or {}).decode()
            calls.append(tool_call(block.get("id") or "", block.get("name") or "", arguments))
        elif kind == "thinking":
            thoughts.append(block.get("thinking") or "")
            details.append(thinking_detail(block.get("thinking") or "", block.get("signature") or ""))
        elif kind == "redacted_thinking":
            details.append(redacted_detail(block.get("data") or ""))
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) if texts else None, "refusal": None}
    if found.get("stop_reason") == "refusal":
        message["refusal"] = _explanation(found.get("stop_details"))
    if calls:
        message["tool_calls"] = calls
    if any(thoughts):
        message["reasoning_content"] = "\n".join(thoughts)
    if details:
        message["reasoning_details"] = details
    return message


def thinking_detail(text: str, signature: str) -> dict[str, Any]:
    """A signed thinking block as an entry of ``reasoning_details``."""
    return {"type": "reasoning.text", "text": text, "signature": signature, "format": REASONING_FORMAT}


def redacted_detail(data: str) -> dict[str, Any]:
    """A redacted thinking block as an entry of ``reasoning_details``."""
    return {"type": "reasoning.encrypted", "data": data, "format": REASONING_FORMAT}


def _explanation(details: Any) -> str:
    text = details.get("explanation") if isinstance(details, dict) else None
    return text or "The model refused to answer."


def _usage(usage: Any) -> dict[str, Any] | None:
    if not isinstance(usage, dict) or not usage:
        return None
    written = usage.get("cache_creation_input_tokens") or 0
    read = usage.get("cache_read_input_tokens") or 0
    details = usage.get("output_tokens_details") or {}
    return usage_of(
        (usage.get("input_tokens") or 0) + written + read,
        usage.get("output_tokens") or 0,
        cached=read,
        cache_write=written,
        reasoning=details.get("thinking_tokens") or 0,
    )


def _tier(usage: Any) -> str | None:
    return _TIERS.get(usage.get("service_tier") or "") if isinstance(usage, dict) else None


def error_of(status: int, body: bytes) -> tuple[int, bytes]:
    """The status for the client, and OpenAI's error JSON; see ``Dialect.error``."""
    try:
        found = read_object(body, "The error").get("error")
    except InvalidInput:
        found = None
    if not isinstance(found, dict):
        found = {"message": body[:500].decode("utf-8", "replace").strip() or f"The provider answered {status}."}
    status = 503 if status == _OVERLOADED else status
    return status, _error_json(status, found)


def _error_json(status: int, found: dict[str, Any]) -> bytes:
    kind = found.get("type")
    details = found.get("details")
    code = details.get("error_code") if isinstance(details, dict) else None
    message = found.get("message")
    return error_json(
        status,
        message if isinstance(message, str) and message else "The provider reported an error.",
        kind=_ERRORS.get(kind) if isinstance(kind, str) else None,
        code=next((word for word in (code, kind) if isinstance(word, str)), None),
    )


class AnthropicStream:
    """A stream of message events as pivot chunks; see ``StreamTranslator``.

    Args:
        model: named until the message names its own.
        created_s: Unix time of the answer.
        include_usage: whether usage is an event of its own.
    """

    __slots__ = (
        "_arguments",
        "_block",
        "_calls",
        "_chunks",
        "_details",
        "_done",
        "_events",
        "_failed",
        "_stop",
        "_thought",
        "_usage",
    )

    def __init__(self, model: str, created_s: int, *, include_usage: bool) -> None:
        self._events = EventSplitter()
        self._chunks = ChunkWriter(model, "", created_s, include_usage=include_usage)
        self._usage: dict[str, Any] = {}
        self._stop = "end_turn"
        self._calls = self._details = 0  # how many have begun
        self._block: dict[str, Any] = {}  # the content block that is open
        self._arguments = False  # whether the open call has got arguments yet
        self._thought: list[str] = []
        self._done = self._failed = False

    def feed(self, data: bytes) -> bytes:
        """Translate further bytes; see ``StreamTranslator.feed``."""
        return b"".join([self._event(event) for event in self._events.feed(data)])

    def finish(self) -> bytes:
        """End the stream; see ``StreamTranslator.finish``."""
        return DONE if self._done and not self._failed else b""

    def _event(self, event: Event) -> bytes:
        if self._done or self._failed:
            return b""
        found = read_object(event.data, "An event of the provider's stream")
        try:  # not reading(): this is the hot path
            handle = _HANDLERS.get(found.get("type") or "")
            return handle(self, found) if handle is not None else b""  # a ping, or an event of the future
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InvalidInput(f"An event of the provider's stream has another shape: {error}.") from error

    def _message_start(self, found: dict[str, Any]) -> bytes:
        message = found["message"]
        self._chunks.identity = message.get("id") or ""
        self._chunks.model = message.get("model") or self._chunks.model
        self._count(message.get("usage"))
        return self._chunks.delta({"role": "assistant", "content": ""})

    def _count(self, usage: dict[str, Any] | None) -> None:
        if usage:
            self._usage.update({name: value for name, value in usage.items() if value is not None})
            self._chunks.service_tier = _tier(self._usage)

    def _block_start(self, found: dict[str, Any]) -> bytes:
        self._block = block = found["content_block"]
        kind = block["type"]
        if kind == "text":
            return self._chunks.delta({"content": block["text"]}) if block.get("text") else b""
        if kind == "thinking":
            self._thought = [block.get("thinking") or ""]
        elif kind == "tool_use":
            arguments = msgspec.json.encode(block["input"]).decode() if block.get("input") else ""
            self._arguments = bool(arguments)
            self._calls += 1
            call = tool_call(block["id"], block["name"], arguments, index=self._calls - 1)
            return self._chunks.delta({"tool_calls": [call]})
        return b""

    def _block_delta(self, found: dict[str, Any]) -> bytes:
        delta = found["delta"]
        kind = delta["type"]
        if kind == "text_delta":
            return self._chunks.delta({"content": delta["text"]})
        if kind == "input_json_delta":
            return self._more_arguments(delta["partial_json"])
        if kind == "thinking_delta":
            self._thought.append(delta["thinking"])
            return self._chunks.delta({"reasoning_content": delta["thinking"]})
        if kind == "signature_delta":
            self._block["signature"] = delta["signature"]
        return b""

    def _more_arguments(self, text: str) -> bytes:
        if not text or self._block.get("type") != "tool_use":
            return b""
        self._arguments = True
        return self._chunks.delta({"tool_calls": [{"index": self._calls - 1, "function": {"arguments": text}}]})

    def _block_stop(self, _: dict[str, Any]) -> bytes:
        block, self._block = self._block, {}
        kind = block.get("type")
        if kind == "tool_use" and not self._arguments:
            self._block = block
            written = self._more_arguments("{}")  # a call without arguments: clients parse what they get
            self._block = {}
            return written
        if kind == "thinking":
            detail = thinking_detail("".join(self._thought), block.get("signature") or "")
            return self._detail(detail)
        if kind == "redacted_thinking":
            return self._detail(redacted_detail(block.get("data") or ""))
        return b""

    def _detail(self, detail: dict[str, Any]) -> bytes:
        self._details += 1  # OpenAI's client joins the entries of a list by their index
        return self._chunks.delta({"reasoning_details": [{"index": self._details - 1, **detail}]})

    def _message_delta(self, found: dict[str, Any]) -> bytes:
        self._count(found.get("usage"))
        delta = found["delta"]
        self._stop = delta.get("stop_reason") or self._stop
        if self._stop == "refusal":
            return self._chunks.delta({"refusal": _explanation(delta.get("stop_details"))})
        return b""

    def _message_stop(self, _: dict[str, Any]) -> bytes:
        self._done = True
        return self._chunks.end({0: FINISH_REASONS.get(self._stop, "stop")}, _usage(self._usage))

    def _error(self, found: dict[str, Any]) -> bytes:
        self._failed = True
        error = found.get("error")
        error = error if isinstance(error, dict) else {}
        return error_event(_error_json(_STREAM_STATUS.get(error.get("type") or "", 500), error))


_HANDLERS: Final[dict[str, Callable[[AnthropicStream, dict[str, Any]], bytes]]] = {
    "message_start": AnthropicStream._message_start,
    "content_block_start": AnthropicStream._block_start,
    "content_block_delta": AnthropicStream._block_delta,
    "content_block_stop": AnthropicStream._block_stop,
    "message_delta": AnthropicStream._message_delta,
    "message_stop": AnthropicStream._message_stop,
    "error": AnthropicStream._error,
}
