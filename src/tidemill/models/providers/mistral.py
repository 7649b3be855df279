"""Mistral's API: close to OpenAI's, with other names, a closed list of fields, and reasoning among the content.

Format: Mistral's API reference, as its Python library 3.7 types it (2026-11). The API answers 422 to a field it does
not know, so fields that are only OpenAI's are refused here, and others are passed on for it to judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from tidemill.kernel import InvalidInput
from tidemill.models.providers.compatible import NOT_SENT, USER, CompatibleDialect, chat_table, openai_error, read_value
from tidemill.models.providers.dialect import Place, StreamTranslator, UnsupportedField
from tidemill.models.providers.events import DONE, Event, EventSplitter, error_event
from tidemill.models.providers.fields import left_out
from tidemill.models.providers.pivot import check_operation, read_list, read_messages, read_object, reading

NAME: Final = "mistral"
REASONING_FORMAT: Final = "mistral-v1"
"""Marks ``reasoning_details`` that only Mistral can read."""

_REFUSED: Final = {
    "logit_bias": "tokens cannot be weighted there",
    "functions": "it is replaced by 'tools'",
    "function_call": "it is replaced by 'tool_choice'",
    "verbosity": "there is no such setting there",
    "modalities": "it answers in text only",
    "audio": "it answers in text only",
    "web_search_options": "its web search belongs to its agents",
    "safety_identifier": "it takes no user id",
    "store": "it stores no answers there",
    "moderation": "its guardrails are another field, 'guardrails'",
    "prompt_cache_options": "its cache has a key only: 'prompt_cache_key'",
    "prompt_cache_retention": "its cache has a key only: 'prompt_cache_key'",
}
_RENAMED: Final = {"seed": "random_seed", "max_completion_tokens": "max_tokens"}
_TIERS: Final = {"auto": "auto", "default": "standard_only"}
_FINISH_REASONS: Final = {"model_length": "length"}

FIELDS: Final = chat_table(
    NAME,
    {
        "seed": "`random_seed`",
        "max_completion_tokens": "`max_tokens`",
        "messages": "`messages`; a developer message is a system message",
        "stream_options": "usage is always sent",
        "user": NOT_SENT,
        "service_tier": "`service_tier`: `default` is `standard_only`",
    },
    _REFUSED,
)


class MistralDialect(CompatibleDialect):
    """Chat completions and embeddings served by Mistral."""

    __slots__ = ()

    def fields(self, operation: str, body: bytes, place: Place) -> dict[str, msgspec.Raw]:
        """The request's fields as Mistral wants them; see ``CompatibleDialect.fields``."""
        fields = CompatibleDialect.fields(self, operation, body, place)
        if operation != "chat":
            return fields
        fields.pop("stream_options", None)
        tier = read_value(fields, "service_tier")
        if tier is not None:
            if not isinstance(tier, str) or tier not in _TIERS:
                raise UnsupportedField(f"service_tier.{tier}", NAME, "there is 'auto' and 'default'")
            fields["service_tier"] = msgspec.Raw(msgspec.json.encode(_TIERS[tier]))
        messages = bytes(fields.get("messages", b""))
        if b'"developer"' in messages or b'"reasoning_' in messages or b'"refusal"' in messages:
            rewritten = [
                _message(one, left_out(place)) for one in read_messages({"messages": read_value(fields, "messages")})
            ]
            fields["messages"] = msgspec.Raw(msgspec.json.encode(rewritten))
        return fields

    def answer(self, operation: str, body: bytes, *, model: str, now_s: float = 0.0) -> bytes:  # noqa: ARG002 - the interface's
        """Take reasoning out of the content; see ``Dialect.answer``."""
        check_operation(self, operation)
        if operation != "chat" or not _special(body):
            return body
        found = read_object(body, "The provider's answer")
        with reading("The provider's answer"):
            for choice in found.get("choices") or ():
                _rewrite(choice, "message")
        return msgspec.json.encode(found)

    def error(self, status: int, body: bytes) -> tuple[int, bytes]:
        """Bring Mistral's errors into OpenAI's shape; see ``Dialect.error``."""
        translated = openai_error(status, body)
        return (400 if status == 422 else status), translated

    def stream(
        self,
        operation: str,
        request_body: bytes,  # noqa: ARG002 - the interface's
        *,
        model: str,  # noqa: ARG002 - the interface's
        now_s: float = 0.0,  # noqa: ARG002 - the interface's
    ) -> StreamTranslator:
        """Begin to translate a stream; see ``Dialect.stream``."""
        check_operation(self, operation)
        return MistralStream()


class MistralStream:
    """A stream of Mistral's as the pivot's; see ``StreamTranslator``."""

    __slots__ = ("_closed", "_details", "_events")

    def __init__(self) -> None:
        self._events = EventSplitter()
        self._details = 0
        self._closed = False

    def feed(self, data: bytes) -> bytes:
        """Translate further bytes; see ``StreamTranslator.feed``."""
        return b"".join([self._event(event) for event in self._events.feed(data)])

    def finish(self) -> bytes:
        """Nothing is due: ``[DONE]`` comes with the stream; see ``StreamTranslator.finish``."""
        return b""

    def _event(self, event: Event) -> bytes:
        if self._closed:
            return b""
        if event.data == b"[DONE]":
            self._closed = True
            return DONE
        if not _special(event.data):
            return b"data: %b\n\n" % event.data
        found = read_object(event.data, "An event of the provider's stream")
        if found.get("object") == "error" or "error" in found:
            self._closed = True
            return error_event(openai_error(500, event.data))
        with reading("An event of the provider's stream"):
            for choice in found.get("choices") or ():
                _rewrite(choice, "delta")
                for detail in choice["delta"].get("reasoning_details") or ():
                    detail["index"] = self._details  # OpenAI's client joins the entries of a list by their index
                    self._details += 1
        return b"data: %b\n\n" % msgspec.json.encode(found)


def _special(body: bytes) -> bool:
    """Whether there is anything to translate: a rough look that never misses."""
    return (
        b'"content":[' in body
        or b'"content": [' in body
        or b'"model_length"' in body
        or b'"error"' in body
        or b"\n" in body
    )


def _rewrite(choice: dict[str, Any], part: str) -> None:
    if choice.get("finish_reason") in _FINISH_REASONS:
        choice["finish_reason"] = _FINISH_REASONS[choice["finish_reason"]]
    message = choice.get(part)
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return
    texts, thoughts, details = _split(message["content"])
    message["content"] = "".join(texts) if texts or not thoughts else None
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if details:
        message["reasoning_details"] = details


def _split(content: list[Any]) -> tuple[list[str], list[str], list[dict[str, Any]]]:
    texts: list[str] = []
    thoughts: list[str] = []
    details: list[dict[str, Any]] = []
    for chunk in content:
        if chunk.get("type") == "text":
            texts.append(chunk.get("text") or "")
        elif chunk.get("type") == "thinking":
            thought = "".join(one.get("text") or "" for one in chunk.get("thinking") or () if one.get("type") == "text")
            thoughts.append(thought)
            detail = {"type": "reasoning.text", "text": thought, "format": REASONING_FORMAT}
            details.append(detail | ({"signature": chunk["signature"]} if chunk.get("signature") else {}))
    return texts, thoughts, details


def _message(message: dict[str, Any], leave_out: frozenset[str]) -> dict[str, Any]:
    if message["role"] == "developer":
        return {**message, "role": "system"}
    if message["role"] != "assistant":
        return message
    found = {
        key: value for key, value in message.items() if key not in ("reasoning_content", "reasoning_details", "refusal")
    }
    thoughts = _thoughts(message, leave_out)
    if thoughts:
        content = found.get("content")
        rest = [{"type": "text", "text": content}] if isinstance(content, str) and content else content or []
        found["content"] = [*thoughts, *read_list(rest, "messages.content")]
    elif message.get("refusal") and not found.get("content"):
        found["content"] = message["refusal"]
    return found


def _thoughts(message: Mapping[str, Any], leave_out: frozenset[str]) -> list[dict[str, Any]]:
    """Earlier reasoning as thinking chunks."""
    details = message.get("reasoning_details")
    if not details:
        text = message.get("reasoning_content")
        if not text or "messages.reasoning_content" in leave_out:
            return []
        return [{"type": "thinking", "thinking": [{"type": "text", "text": text}]}]
    if "messages.reasoning_details" in leave_out:
        return []
    chunks = []
    for detail in read_list(details, "messages.reasoning_details"):
        if not isinstance(detail, dict) or detail.get("format", REASONING_FORMAT) != REASONING_FORMAT:
            raise UnsupportedField("messages.reasoning_details", NAME, "it takes back only its own reasoning")
        if detail.get("type") != "reasoning.text":
            raise InvalidInput("'messages.reasoning_details' of Mistral's hold text only.")
        chunk = {"type": "thinking", "thinking": [{"type": "text", "text": detail.get("text") or ""}]}
        chunks.append(chunk | ({"signature": detail["signature"]} if detail.get("signature") else {}))
    return chunks


DIALECTS: Final = {
    NAME: MistralDialect(
        NAME,
        frozenset({"chat", "embeddings"}),
        renamed={"chat": _RENAMED, "embeddings": {"dimensions": "output_dimension"}},
        refused={"chat": _REFUSED},
        kept=USER,
    )
}
