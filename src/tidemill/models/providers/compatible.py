"""Servers that speak OpenAI's format, each with what it is documented to lack or to call by another name.

Unknown fields are passed on: such a server may know more than OpenAI. Only what a server would drop in silence, or is
known to refuse, is refused here by name. Sources: OpenAI's API reference; vLLM's ``ChatCompletionRequest`` and its
serving documentation; Ollama's "OpenAI compatibility" page, with its list of unsupported fields (2026-11). Mistral,
which differs more, stands in ``mistral``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from tidemill.kernel import InvalidInput
from tidemill.models.providers.dialect import Credentials, Place, ProviderRequest, StreamTranslator, UnsupportedField
from tidemill.models.providers.events import DONE, MAX_EVENT_BYTES
from tidemill.models.providers.fields import CHAT_FIELDS, FieldTable, asks_for_nothing, left_out
from tidemill.models.providers.pivot import check_operation, error_json, read_object

PATHS: Final[Mapping[str, str]] = {
    "chat": "/chat/completions",
    "text_completion": "/completions",
    "embeddings": "/embeddings",
    "moderation": "/moderations",
    "transcription": "/audio/transcriptions",
    "speech": "/audio/speech",
    "responses": "/responses",
}
"""Operation -> path below the base URL."""

MULTIPART: Final = frozenset({"transcription"})
"""Operations whose body is a form, not JSON: it is passed on as it is, with the client's content type."""

USER: Final = frozenset({"user"})
"""What the gateway serves itself, with sessions and traces, where the provider has no place for it."""

NOT_SENT: Final = "not sent: the gateway's own"
"""What the table of fields says of ``USER``."""

_JSON: Final = ("content-type", "application/json")
_decode: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True)
class CompatibleDialect:
    """A server that speaks OpenAI's format.

    Args:
        name: the word in a target's ``dialect``.
        operations: what it offers.
        renamed: operation -> field -> its name there.
        refused: operation -> field -> why it cannot be served.
        kept: fields that are not sent, because the gateway itself serves them.
        stream_type: content type of a stream.
    """

    name: str
    operations: frozenset[str]
    renamed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    refused: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()
    stream_type: bytes = b"text/event-stream"

    def request(
        self,
        operation: str,
        body: bytes,
        place: Place,
        credentials: Credentials,
        *,
        now_s: float,  # noqa: ARG002 - the interface's; nothing is signed with a time here
    ) -> ProviderRequest:
        """Put in the target's model, rename and refuse; see ``Dialect.request``."""
        check_operation(self, operation)
        headers = (("authorization", f"Bearer {credentials.api_key}"),) if credentials.api_key else ()
        path = place.base_path + PATHS[operation]
        if operation in MULTIPART:
            return ProviderRequest(path, headers, body)
        return ProviderRequest(path, (_JSON, *headers), msgspec.json.encode(self.fields(operation, body, place)))

    def fields(self, operation: str, body: bytes, place: Place) -> dict[str, msgspec.Raw]:
        """The request's fields as the server wants them, values untouched.

        Raises:
            UnsupportedField: the server cannot serve a field.
            InvalidInput: the body is no JSON object.
        """
        try:
            asked = _decode.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidInput(f"The request is no JSON object: {error}.") from None
        asked["model"] = msgspec.Raw(msgspec.json.encode(place.model))
        for name in left_out(place) | self.kept:
            asked.pop(name, None)
        for name, reason in self.refused.get(operation, {}).items():
            if name in asked:
                if not asks_for_nothing(name, msgspec.json.decode(asked[name])):
                    raise UnsupportedField(name, self.name, reason)
                del asked[name]
        for name, other in self.renamed.get(operation, {}).items():
            if name in asked:
                asked[other] = asked.pop(name)
        return asked

    def answer(
        self,
        operation: str,
        body: bytes,
        *,
        model: str,  # noqa: ARG002 - the interface's; the server names its own
        now_s: float = 0.0,  # noqa: ARG002 - the interface's; the server tells its own
    ) -> bytes:
        """The bytes as they are; see ``Dialect.answer``."""
        check_operation(self, operation)
        return body

    def error(self, status: int, body: bytes) -> tuple[int, bytes]:
        """The bytes as they are when they are OpenAI's error; see ``Dialect.error``."""
        return status, openai_error(status, body)

    def stream(
        self,
        operation: str,
        request_body: bytes,  # noqa: ARG002 - the interface's
        *,
        model: str,  # noqa: ARG002 - the interface's; the server names its own
        now_s: float = 0.0,  # noqa: ARG002 - the interface's; the server tells its own
    ) -> StreamTranslator:
        """Pass whole events on; see ``Dialect.stream``."""
        check_operation(self, operation)
        return WholeEvents()


def openai_error(status: int, body: bytes) -> bytes:
    """The body, when it is OpenAI's error object; else such an object with what the body says.

    Understood besides: ``{"message"}`` and ``{"error": "text"}`` (older vLLM, proxies), and ``{"detail"}`` (FastAPI).
    """
    try:
        found = read_object(body, "The error")
    except InvalidInput:
        text = body[:500].decode("utf-8", "replace").strip()
        return error_json(status, text or f"The provider answered {status}.")
    error = found.get("error")
    if isinstance(error, dict) and isinstance(error.get("message"), str) and error["message"]:
        return body
    said = error if isinstance(error, dict) else found
    message = said.get("message") or said.get("detail") or error
    if not isinstance(message, str):
        message = msgspec.json.encode(message or found).decode()
    kind, code = said.get("type"), said.get("code")
    kind = kind if isinstance(kind, str) else None
    return error_json(status, message, kind=kind, code=str(code) if isinstance(code, str | int) else None)


class WholeEvents:
    """Passes a stream on in whole events; see ``StreamTranslator``."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Everything up to the end of the last whole event; see ``StreamTranslator.feed``."""
        text = self._held + data if self._held else data
        ends = [text.rfind(mark) + len(mark) for mark in (b"\n\n", b"\r\n\r\n") if mark in text]
        if not ends:
            self._held = text
            if len(text) > MAX_EVENT_BYTES:
                raise InvalidInput("The provider sent a single event that is too long to be an answer.")
            return b""
        end = max(ends)
        self._held = text[end:]
        return text[:end] if self._held else text

    def finish(self) -> bytes:
        """What is still due: only a ``[DONE]`` whose line end never came; see ``StreamTranslator.finish``."""
        return DONE if self._held.rstrip() == b"data: [DONE]" else b""


def chat_table(name: str, served: Mapping[str, str], refused: Mapping[str, str]) -> FieldTable:
    """The table of a dialect that passes on what it does not name."""
    rest = {one: "passed on" for one in CHAT_FIELDS if one not in refused}
    return FieldTable(name, {**rest, "model": "`model`: the target's model", **served}, refused)


_OLLAMA_CHAT: Final = {
    "n": "it gives one answer a request",
    "logit_bias": "it would be dropped in silence",
    "tool_choice": "it would be dropped in silence; the model chooses",
    "parallel_tool_calls": "it would be dropped in silence",
    "functions": "it is replaced by 'tools'",
    "function_call": "it is replaced by 'tools'",
    "safety_identifier": "it would be dropped in silence",
    "metadata": "it would be dropped in silence",
    "store": "it stores no answers",
    "service_tier": "there are no tiers",
    "verbosity": "it would be dropped in silence",
    "modalities": "it answers in text only",
    "audio": "it answers in text only",
    "prediction": "there is no predicted output",
    "web_search_options": "it searches no web there",
    "moderation": "it does not moderate",
    "prompt_cache_key": "it would be dropped in silence",
    "prompt_cache_options": "it would be dropped in silence",
    "prompt_cache_retention": "it would be dropped in silence",
}
_OLLAMA_TEXT: Final = {
    "best_of": "it gives one answer a request",
    "echo": "it would be dropped in silence",
    "logit_bias": "it would be dropped in silence",
    "n": "it gives one answer a request",
}
_VLLM_CHAT: Final = {
    "functions": "it is replaced by 'tools'",
    "function_call": "it is replaced by 'tool_choice'",
    "metadata": "it would be dropped in silence",
    "store": "it stores no answers",
    "service_tier": "there are no tiers",
    "verbosity": "it would be dropped in silence",
    "modalities": "it answers in text only",
    "audio": "it answers in text only",
    "prediction": "there is no predicted output",
    "web_search_options": "it searches no web",
    "moderation": "it does not moderate",
    "safety_identifier": "it would be dropped in silence",
    "prompt_cache_key": "its cache is automatic; its own field is 'cache_salt'",
    "prompt_cache_options": "its cache is automatic",
    "prompt_cache_retention": "its cache is automatic",
}

OLLAMA_FIELDS: Final = chat_table("ollama", {"max_completion_tokens": "`max_tokens`", "user": NOT_SENT}, _OLLAMA_CHAT)
VLLM_FIELDS: Final = chat_table("vllm", {"user": "passed on, of no effect there"}, _VLLM_CHAT)
OPENAI_FIELDS: Final = chat_table("openai", {}, {})

_TEXTS: Final = frozenset({"chat", "text_completion", "embeddings"})

DIALECTS: Final = {
    "openai": CompatibleDialect("openai", frozenset(PATHS)),
    "ollama": CompatibleDialect(
        "ollama",
        _TEXTS | {"responses"},
        renamed={"chat": {"max_completion_tokens": "max_tokens"}},
        refused={"chat": _OLLAMA_CHAT, "text_completion": _OLLAMA_TEXT},
        kept=USER,
    ),
    "vllm": CompatibleDialect(
        "vllm",
        _TEXTS | {"responses", "transcription"},
        refused={"chat": _VLLM_CHAT, "text_completion": {"best_of": "it is no longer served there"}},
    ),
}


def read_value(fields: Mapping[str, msgspec.Raw], name: str) -> Any:
    """One field's value, decoded; ``None`` when it is not there."""
    return msgspec.json.decode(fields[name]) if name in fields else None
