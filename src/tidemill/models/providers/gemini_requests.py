"""Pivot requests as Gemini's: ``generateContent`` and the embedding calls.

Source: Google, "Gemini API reference" (``models.generateContent``, ``models.embedContent``, v1beta), and for what its
own OpenAI layer adds (``extra_content``, ``extra_body.google``, reasoning effort) the page "OpenAI compatibility".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from tidemill.kernel import InvalidInput
from tidemill.models.providers.dialect import Place, UnsupportedField
from tidemill.models.providers.fields import FieldTable, check_keys, left_out
from tidemill.models.providers.messages import Media, check_message, check_part, read_media
from tidemill.models.providers.pivot import parts_of, read_list, read_messages, text_of
from tidemill.models.providers.tools import read_calls, read_tool_choice, read_tools

NAME: Final = "gemini"

#: pivot field -> field of generationConfig, its value unchanged
_GENERATION: Final[Mapping[str, str]] = {
    "max_tokens": "maxOutputTokens",
    "max_completion_tokens": "maxOutputTokens",
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "seed": "seed",
    "n": "candidateCount",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
    "logprobs": "responseLogprobs",
    "top_logprobs": "logprobs",
}
#: pivot field -> field beside generationConfig, its value unchanged
_BESIDE: Final[Mapping[str, str]] = {"metadata": "labels", "safety_settings": "safetySettings", "store": "store"}

FIELDS: Final = FieldTable(
    provider=NAME,
    served={
        "model": "the path",
        "messages": "`contents`; system and developer messages together become `systemInstruction`",
        "stream": "`streamGenerateContent`",
        "stream_options": "`include_usage`: a last chunk with usage",
        **{field: f"`generationConfig.{name}`" for field, name in _GENERATION.items()},
        "stop": "`generationConfig.stopSequences`",
        "tools": "`tools.functionDeclarations`; a strict one sets the mode `VALIDATED`",
        "tool_choice": "`toolConfig.functionCallingConfig`",
        "response_format": "`generationConfig.responseMimeType` and `responseJsonSchema`",
        "reasoning_effort": "`generationConfig.thinkingConfig`: a level from Gemini 3 on, else a budget",
        "service_tier": "`serviceTier`: `default` is `standard`",
        **{field: f"`{name}`" for field, name in _BESIDE.items()},
        "user": "`labels.user`, as a SHA-256",
        "safety_identifier": "`labels.safety_identifier`, as a SHA-256",
        "extra_body": "`google.thinking_config` and `google.cached_content`",
    },
    refused={
        "logit_bias": "tokens cannot be weighted there",
        "parallel_tool_calls": "it cannot be held to one call at a time",
        "functions": "it is replaced by 'tools'",
        "function_call": "it is replaced by 'tool_choice'",
        "verbosity": "there is no such setting there",
        "modalities": "only text is asked for",
        "audio": "only text is asked for",
        "prediction": "there is no predicted output there",
        "web_search_options": "its search is a tool of another shape",
        "moderation": "it has 'safety_settings' instead",
        "prompt_cache_key": "it caches by itself, without a key",
        "prompt_cache_options": "it caches by itself, or by extra_body.google.cached_content",
        "prompt_cache_retention": "it caches by itself, or by extra_body.google.cached_content",
    },
)
"""The fields of a chat request."""

EMBEDDING_FIELDS: Final = FieldTable(
    provider=NAME,
    served={
        "model": "the path",
        "input": "`content` of each request; texts only",
        "dimensions": "`outputDimensionality`",
        "encoding_format": "either: the answer holds numbers, which OpenAI's clients take for `base64` too",
        "task_type": "`taskType`",
        "title": "`title`",
    },
    refused={"user": "an embedding call has no labels"},
)
"""The fields of an embedding request."""

#: OpenAI's word -> thinkingLevel of Gemini 3 and later; 'none' is not among them, they always think
_LEVELS: Final[Mapping[str, str]] = {word: word for word in ("minimal", "low", "medium", "high", "xhigh")}
#: OpenAI's word -> thinkingBudget of Gemini 2.5, tokens
_BUDGETS: Final[Mapping[str, int]] = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576}
_MODES: Final[Mapping[str, str]] = {"auto": "AUTO", "none": "NONE", "required": "ANY"}
_TIERS: Final[Mapping[str, str]] = {"default": "standard", "flex": "flex", "priority": "priority"}
_RESOLUTIONS: Final[Mapping[str, str]] = {"low": "MEDIA_RESOLUTION_LOW", "high": "MEDIA_RESOLUTION_HIGH"}

_DETAIL: Final = "messages.content.image_url.detail"
#: For a call that Gemini 3 did not make itself, as after a failover; Google, "Thought signatures".
_NO_SIGNATURE: Final = "skip_thought_signature_validator"
_VERSION: Final = re.compile(r"gemini-(\d+)")


@dataclass(frozen=True, slots=True)
class _Target:
    """What the translation of a field may depend on besides the field."""

    generation: int
    leave_out: frozenset[str]

    @classmethod
    def of(cls, place: Place) -> _Target:
        found = _VERSION.search(place.model)
        return cls(int(found[1]) if found else 0, left_out(place))


def chat_body(request: dict[str, Any], place: Place) -> dict[str, Any]:
    """The body of ``generateContent``.

    Args:
        request: the decoded pivot request.
        place: the target; what a model allows depends on its generation, which its name tells.

    Raises:
        UnsupportedField: a field has no place.
        InvalidInput: the request is malformed.
    """
    target = _Target.of(place)
    wanted = FIELDS.wanted(request, target.leave_out)
    body: dict[str, Any] = {}
    generation = {_GENERATION[field]: value for field, value in wanted.items() if field in _GENERATION}
    body.update({_BESIDE[field]: value for field, value in wanted.items() if field in _BESIDE})
    if generation:
        body["generationConfig"] = generation
    for field, translate in _TRANSLATORS.items():
        if field in wanted:
            translate(wanted[field], body, target)
    body.update(_conversation(read_messages(request), target))
    return body


def embedding_body(request: dict[str, Any], model: str, leave_out: frozenset[str]) -> tuple[str, dict[str, Any]]:
    """The method and body of an embedding call: one text by ``embedContent``, several by ``batchEmbedContents``.

    Args:
        request: the decoded pivot request.
        model: the model's name with its folder, ``models/…``.
        leave_out: fields to pass over.

    Raises:
        UnsupportedField: a field has no place, or the input holds token ids.
        InvalidInput: there is no input.
    """
    wanted = EMBEDDING_FIELDS.wanted(request, leave_out)
    texts = wanted.get("input")
    single = isinstance(texts, str)
    texts = [texts] if single else read_list(texts, "input")
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UnsupportedField("input", NAME, "it embeds texts only, and at least one")
    rest = {"task_type": "taskType", "title": "title", "dimensions": "outputDimensionality"}
    options = {name: wanted[field] for field, name in rest.items() if field in wanted}
    requests = [{"model": model, "content": {"parts": [{"text": text}]}, **options} for text in texts]
    return ("embedContent", requests[0]) if single else ("batchEmbedContents", {"requests": requests})


def _stop(value: Any, body: dict[str, Any], _: _Target) -> None:
    body.setdefault("generationConfig", {})["stopSequences"] = [value] if isinstance(value, str) else value


def _tools(value: Any, body: dict[str, Any], target: _Target) -> None:
    tools = read_tools(value, NAME, target.leave_out)
    declarations = []
    for tool in tools:
        declaration: dict[str, Any] = {"name": tool.name, "parametersJsonSchema": tool.parameters}
        if tool.description:
            declaration["description"] = tool.description
        declarations.append(declaration)
    body["tools"] = [{"functionDeclarations": declarations}]
    if any(tool.strict for tool in tools):
        body["toolConfig"] = {"functionCallingConfig": {"mode": "VALIDATED"}}


def _tool_choice(value: Any, body: dict[str, Any], _: _Target) -> None:
    choice = read_tool_choice(value, NAME)
    strict = "toolConfig" in body
    mode = _MODES[choice.mode]
    # Names narrow VALIDATED and ANY alone.
    if mode == "AUTO" and (strict or choice.names):
        mode = "VALIDATED"
    config: dict[str, Any] = {"mode": mode}
    if choice.names:
        config["allowedFunctionNames"] = list(choice.names)
    body["toolConfig"] = {"functionCallingConfig": config}


def _response_format(value: Any, body: dict[str, Any], _: _Target) -> None:
    kind = value.get("type") if isinstance(value, dict) else None
    generation = body.setdefault("generationConfig", {})
    if kind not in ("json_object", "json_schema"):
        raise UnsupportedField("response_format", NAME, "its type must be text, json_object or json_schema")
    generation["responseMimeType"] = "application/json"
    if kind == "json_schema":
        described = value.get("json_schema")
        schema = described.get("schema") if isinstance(described, dict) else None
        if not isinstance(schema, dict):
            raise InvalidInput("'response_format.json_schema' must have a 'schema'.")
        if described.get("description"):
            schema = {"description": described["description"], **schema}
        generation["responseJsonSchema"] = schema


def _reasoning(value: Any, body: dict[str, Any], target: _Target) -> None:
    leveled = target.generation >= 3
    table: Mapping[str, str | int] = _LEVELS if leveled else _BUDGETS
    if str(value) not in table:
        raise UnsupportedField(f"reasoning_effort.{value}", NAME, f"this model takes {', '.join(table)}")
    thinking = {"thinkingLevel" if leveled else "thinkingBudget": table[str(value)]}
    body.setdefault("generationConfig", {})["thinkingConfig"] = thinking


def _extra_body(value: Any, body: dict[str, Any], _: _Target) -> None:
    google = value.get("google") if isinstance(value, dict) and set(value) == {"google"} else None
    if not isinstance(google, dict) or set(google) - {"thinking_config", "cached_content"}:
        raise UnsupportedField("extra_body", NAME, "only google.thinking_config and google.cached_content have a place")
    thinking = google.get("thinking_config")
    if thinking is not None:
        if not isinstance(thinking, dict):
            raise InvalidInput("'extra_body.google.thinking_config' must be an object.")
        words = {_camel(name): setting for name, setting in thinking.items()}
        body.setdefault("generationConfig", {}).setdefault("thinkingConfig", {}).update(words)
    if google.get("cached_content"):
        body["cachedContent"] = google["cached_content"]


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _service_tier(value: Any, body: dict[str, Any], _: _Target) -> None:
    if str(value) not in _TIERS:
        raise UnsupportedField(f"service_tier.{value}", NAME, f"the tiers are auto, {', '.join(_TIERS)}")
    body["serviceTier"] = _TIERS[str(value)]


def _label(name: str) -> Callable[[Any, dict[str, Any], _Target], None]:
    def translate(value: Any, body: dict[str, Any], _: _Target) -> None:
        # A label holds up to 63 lower-case letters, digits, dashes and underscores; a user's name may hold anything.
        digest = hashlib.sha256(str(value).encode()).hexdigest()[:63]
        body["labels"] = {**body.get("labels", {}), name: digest}

    return translate


def _stream_options(value: Any, _: dict[str, Any], target: _Target) -> None:
    if not isinstance(value, dict):
        raise InvalidInput("'stream_options' must be an object.")
    check_keys(value, frozenset({"include_usage"}), "stream_options", NAME, target.leave_out)


_TRANSLATORS: Final[Mapping[str, Callable[[Any, dict[str, Any], _Target], None]]] = {
    "stop": _stop,
    "tools": _tools,
    "tool_choice": _tool_choice,  # after the tools, whose strictness it keeps
    "response_format": _response_format,
    "reasoning_effort": _reasoning,
    "extra_body": _extra_body,
    "service_tier": _service_tier,
    "user": _label("user"),
    "safety_identifier": _label("safety_identifier"),
    "stream_options": _stream_options,
}


def _conversation(messages: list[dict[str, Any]], target: _Target) -> dict[str, Any]:
    system: list[dict[str, Any]] = []
    contents: list[dict[str, Any]] = []
    called: dict[str, str] = {}  # id of a tool call -> its function's name, which the result must repeat
    for message in messages:
        role = check_message(message, NAME, target.leave_out)
        if role in ("system", "developer"):
            text = text_of(message.get("content"), "messages.content", NAME)
            system.extend([{"text": text}] if text else [])
        elif role == "tool":
            _append_result(contents, _result(message, called))
        elif role == "assistant":
            parts = list(_model_parts(message, target, called))
            contents.extend([{"role": "model", "parts": parts}] if parts else [])
        else:
            spoken = list(_parts(message.get("content"), target))
            contents.extend([{"role": "user", "parts": spoken}] if spoken else [])
    if not contents:
        raise InvalidInput("'messages' must hold at least one message of a user that is not empty.")
    body: dict[str, Any] = {"contents": contents}
    if system:
        body["systemInstruction"] = {"parts": system}
    return body


def _append_result(contents: list[dict[str, Any]], result: dict[str, Any]) -> None:
    # All results of one round of calls stand in one content.
    if contents and contents[-1]["role"] == "user" and "functionResponse" in contents[-1]["parts"][-1]:
        contents[-1]["parts"].append(result)
    else:
        contents.append({"role": "user", "parts": [result]})


def _result(message: dict[str, Any], called: Mapping[str, str]) -> dict[str, Any]:
    identity = str(message.get("tool_call_id") or "")
    name = called.get(identity) or message.get("name")
    if not name:
        raise InvalidInput(f"The tool message for '{identity}' answers no tool call of an earlier message.")
    text = text_of(message.get("content"), "messages.content", NAME)
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        value = None
    response = value if isinstance(value, dict) else {"output": text}
    return {"functionResponse": {"id": identity, "name": str(name), "response": response}}


def _model_parts(message: dict[str, Any], target: _Target, called: dict[str, str]) -> Iterator[dict[str, Any]]:
    if message.get("reasoning_details") and "messages.reasoning_details" not in target.leave_out:
        raise UnsupportedField("messages.reasoning_details", NAME, "another provider has signed them")
    if message.get("reasoning_content") and "messages.reasoning_content" not in target.leave_out:
        yield {"text": str(message["reasoning_content"]), "thought": True}
    spoken = list(_parts(message.get("content"), target))
    if message.get("refusal"):
        spoken.append({"text": str(message["refusal"])})
    signature = _signature(message.get("extra_content"))
    if signature:
        spoken = spoken or [{"text": ""}]
        spoken[-1]["thoughtSignature"] = signature
    yield from spoken
    for number, call in enumerate(read_calls(message, NAME, target.leave_out, extra=True)):
        called[call.identity] = call.name
        part: dict[str, Any] = {"functionCall": {"id": call.identity, "name": call.name, "args": call.arguments}}
        signature = _signature(call.extra)
        if signature is None and number == 0 and target.generation >= 3:
            signature = _NO_SIGNATURE
        if signature:
            part["thoughtSignature"] = signature
        yield part


def _signature(extra: Any) -> str | None:
    google = extra.get("google") if isinstance(extra, dict) else None
    signature = google.get("thought_signature") if isinstance(google, dict) else None
    return signature if isinstance(signature, str) else None


def _parts(content: Any, target: _Target) -> Iterator[dict[str, Any]]:
    for part in parts_of(content, "messages.content"):
        check_part(part, NAME, target.leave_out)
        if part["type"] in ("text", "refusal"):
            yield {"text": str(part.get("text") or part.get("refusal") or "")}
        else:
            yield _media(read_media(part, NAME), target)


def _media(media: Media, target: _Target) -> dict[str, Any]:
    typed = {"mimeType": media.media_type} if media.media_type else {}
    part: dict[str, Any]
    if media.base64:
        part = {"inlineData": {**typed, "data": media.base64}}
    else:
        part = {"fileData": {**typed, "fileUri": media.url}}
    if media.detail and _DETAIL not in target.leave_out:
        if target.generation < 3 or media.detail not in _RESOLUTIONS:
            raise UnsupportedField(_DETAIL, NAME, "Gemini 3 and later take low and high, others no such setting")
        part["mediaResolution"] = {"level": _RESOLUTIONS[media.detail]}
    return part
