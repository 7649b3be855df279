"""Pivot chat requests as requests of Amazon Bedrock's Converse API.

Source: AWS, "Amazon Bedrock Runtime API reference", operation ``Converse``, as botocore 1.44 models it (2026-11).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

from tidemill.kernel import InvalidInput
from tidemill.models.providers.anthropic_answers import REASONING_FORMAT
from tidemill.models.providers.dialect import Place, UnsupportedField
from tidemill.models.providers.fields import FieldTable, check_keys, left_out
from tidemill.models.providers.messages import (
    CACHE_MARKS,
    Media,
    check_message,
    check_part,
    read_media,
    signed_thoughts,
)
from tidemill.models.providers.pivot import parts_of, read_list, read_messages
from tidemill.models.providers.tools import read_calls, read_tool_choice, read_tools

NAME: Final = "bedrock"

#: pivot field -> field of inferenceConfig, its value unchanged
_INFERENCE: Final[Mapping[str, str]] = {
    "max_tokens": "maxTokens",
    "max_completion_tokens": "maxTokens",
    "temperature": "temperature",
    "top_p": "topP",
}
#: pivot field -> field of the request, its value unchanged
_BESIDE: Final[Mapping[str, str]] = {
    "additional_model_request_fields": "additionalModelRequestFields",
    "guardrail_config": "guardrailConfig",
    "performance_config": "performanceConfig",
}
_BY_MODEL: Final = "Converse has no such field; a model that has one takes it in 'additional_model_request_fields'"

FIELDS: Final = FieldTable(
    provider=NAME,
    served={
        "model": "the path",
        "messages": "`messages`; system and developer messages together become `system`",
        "stream": "`converse-stream`",
        "stream_options": "`include_usage`: a last chunk with usage",
        **{field: f"`inferenceConfig.{name}`" for field, name in _INFERENCE.items()},
        "stop": "`inferenceConfig.stopSequences`",
        "tools": "`toolConfig.tools`",
        "tool_choice": "`toolConfig.toolChoice`; `none` leaves the tools out; `allowed_tools` leaves out the others",
        "response_format": "`outputConfig.textFormat`, `json_schema` only",
        "reasoning_effort": "`outputConfig.effort`: `low`, `medium`, `high`, `xhigh`, `max`",
        "thinking": "`additionalModelRequestFields.thinking`, as Claude takes it",
        "service_tier": "`serviceTier`",
        "metadata": "`requestMetadata`",
        "user": "`requestMetadata.user`",
        "safety_identifier": "`requestMetadata.safety_identifier`",
        **{field: f"`{name}`" for field, name in _BESIDE.items()},
    },
    refused={
        "top_k": _BY_MODEL,
        "seed": _BY_MODEL,
        "n": "Converse gives one answer a request",
        "frequency_penalty": _BY_MODEL,
        "presence_penalty": _BY_MODEL,
        "logit_bias": _BY_MODEL,
        "logprobs": "Converse tells no probabilities",
        "top_logprobs": "Converse tells no probabilities",
        "parallel_tool_calls": _BY_MODEL,
        "functions": "it is replaced by 'tools'",
        "function_call": "it is replaced by 'tool_choice'",
        "verbosity": "there is no such setting there",
        "modalities": "it answers in text only",
        "audio": "it answers in text only",
        "prediction": "there is no predicted output there",
        "web_search_options": "it has no web search",
        "store": "it stores no answers",
        "moderation": "it has 'guardrail_config' instead",
        "prompt_cache_key": "its cache has no key; mark parts with 'prompt_cache_breakpoint'",
        "prompt_cache_options": "mark parts with 'prompt_cache_breakpoint'",
        "prompt_cache_retention": "mark parts with 'prompt_cache_breakpoint'",
    },
)
"""The fields of a chat request."""

_TIERS: Final = ("default", "flex", "priority", "reserved")
_EFFORTS: Final = ("low", "medium", "high", "xhigh", "max")
_DETAIL: Final = "messages.content.image_url.detail"
#: media type -> format, where the media type's second half is not the format itself
_FORMATS: Final[Mapping[str, str]] = {
    "image/jpg": "jpeg",
    "application/msword": "doc",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/vnd.ms-excel": "xls",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "text/plain": "txt",
    "text/markdown": "md",
}
#: kind -> the name of its block, and the formats Converse reads
_BLOCKS: Final[Mapping[str, tuple[str, frozenset[str]]]] = {
    "image": ("image", frozenset({"png", "jpeg", "gif", "webp"})),
    "file": ("document", frozenset({"pdf", "csv", "doc", "docx", "xls", "xlsx", "html", "txt", "md"})),
    "audio": (
        "audio",
        frozenset({"mp3", "opus", "wav", "aac", "flac", "mp4", "ogg", "mkv", "mka", "m4a", "mpeg", "pcm", "webm"}),
    ),
}
_NOT_IN_A_NAME: Final = re.compile(r"[^A-Za-z0-9\s()\[\]-]+")
_Body = dict[str, Any]


def converse_body(request: dict[str, Any], place: Place) -> _Body:
    """The body of ``Converse`` and ``ConverseStream``.

    Args:
        request: the decoded pivot request.
        place: the target, with its option ``leave_out``.

    Raises:
        UnsupportedField: a field has no place.
        InvalidInput: the request is malformed.
    """
    leave_out = left_out(place)
    wanted = FIELDS.wanted(request, leave_out)
    body: _Body = {_BESIDE[field]: value for field, value in wanted.items() if field in _BESIDE}
    inference = {_INFERENCE[field]: value for field, value in wanted.items() if field in _INFERENCE}
    if inference:
        body["inferenceConfig"] = inference
    for field, translate in _TRANSLATORS.items():
        if field in wanted:
            translate(wanted[field], body, leave_out)
    body.update(_conversation(read_messages(request), leave_out))
    _add_tools(wanted, body, leave_out)
    return body


def _stop(value: Any, body: _Body, _: frozenset[str]) -> None:
    stops = [value] if isinstance(value, str) else read_list(value, "stop")
    body.setdefault("inferenceConfig", {})["stopSequences"] = stops


def _response_format(value: Any, body: _Body, _: frozenset[str]) -> None:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind != "json_schema":
        raise UnsupportedField(f"response_format.{kind}", NAME, "give a schema: type 'json_schema'")
    form = value.get("json_schema")
    if not isinstance(form, dict) or not isinstance(form.get("schema"), dict):
        raise InvalidInput("'response_format.json_schema' must have a 'schema'.")
    described = {name: form[name] for name in ("name", "description") if form.get(name)}
    schema = {"schema": msgspec.json.encode(form["schema"]).decode(), **described}
    text = {"type": "json_schema", "structure": {"jsonSchema": schema}}
    body.setdefault("outputConfig", {})["textFormat"] = text


def _reasoning(value: Any, body: _Body, _: frozenset[str]) -> None:
    if value not in _EFFORTS:
        raise UnsupportedField(f"reasoning_effort.{value}", NAME, f"there is {', '.join(_EFFORTS)}")
    body.setdefault("outputConfig", {})["effort"] = value


def _thinking(value: Any, body: _Body, _: frozenset[str]) -> None:
    own = body.get("additionalModelRequestFields", {})
    if not isinstance(own, dict):
        raise InvalidInput("'additional_model_request_fields' must be an object.")
    body["additionalModelRequestFields"] = {"thinking": value, **own}


def _service_tier(value: Any, body: _Body, _: frozenset[str]) -> None:
    if value not in _TIERS:
        raise UnsupportedField(f"service_tier.{value}", NAME, f"there is auto, {', '.join(_TIERS)}")
    body["serviceTier"] = {"type": value}


def _metadata(value: Any, body: _Body, _: frozenset[str]) -> None:
    if not isinstance(value, dict):
        raise InvalidInput("'metadata' must be an object.")
    body.setdefault("requestMetadata", {}).update(value)


def _identified(name: str) -> Callable[[Any, _Body, frozenset[str]], None]:
    def translate(value: Any, body: _Body, _: frozenset[str]) -> None:
        body.setdefault("requestMetadata", {})[name] = value

    return translate


def _stream_options(value: Any, _: _Body, leave_out: frozenset[str]) -> None:
    if not isinstance(value, dict):
        raise InvalidInput("'stream_options' must be an object.")
    check_keys(value, frozenset({"include_usage"}), "stream_options", NAME, leave_out)


_TRANSLATORS: Final[Mapping[str, Callable[[Any, _Body, frozenset[str]], None]]] = {
    "stop": _stop,
    "response_format": _response_format,
    "reasoning_effort": _reasoning,
    "thinking": _thinking,
    "service_tier": _service_tier,
    "metadata": _metadata,
    "user": _identified("user"),
    "safety_identifier": _identified("safety_identifier"),
    "stream_options": _stream_options,
}


def _add_tools(wanted: Mapping[str, Any], body: _Body, leave_out: frozenset[str]) -> None:
    choice = read_tool_choice(wanted.get("tool_choice", "auto"), NAME)
    tools = read_tools(wanted.get("tools", []), NAME, leave_out, marks=True)
    if choice.mode == "none":
        if tools and _has_calls(body["messages"]):
            reason = "Converse must know the tools of earlier calls, and may then call them"
            raise UnsupportedField("tool_choice.none", NAME, reason)
        return
    if not tools:
        if choice.mode == "required":
            raise InvalidInput("'tool_choice' asks for a tool, but there are no 'tools'.")
        return
    single = choice.mode == "required" and len(choice.names) == 1  # Converse can name one tool to call, and no more
    listed: list[dict[str, Any]] = []
    for tool in tools:
        if choice.names and not single and tool.name not in choice.names:
            continue
        spec: dict[str, Any] = {"name": tool.name, "inputSchema": {"json": tool.parameters}}
        spec.update({"description": tool.description} if tool.description else {})
        spec.update({"strict": True} if tool.strict else {})
        listed.append({"toolSpec": spec})
        if tool.cached:
            listed.append({"cachePoint": {"type": "default"}})
    if single:
        chosen: dict[str, Any] = {"tool": {"name": choice.names[0]}}
    else:
        chosen = {"any": {}} if choice.mode == "required" else {"auto": {}}
    body["toolConfig"] = {"tools": listed, "toolChoice": chosen}


def _has_calls(messages: list[dict[str, Any]]) -> bool:
    return any("toolUse" in block or "toolResult" in block for message in messages for block in message["content"])


def _conversation(messages: list[dict[str, Any]], leave_out: frozenset[str]) -> _Body:
    system: list[dict[str, Any]] = []
    turns: list[dict[str, Any]] = []
    for message in messages:
        role = check_message(message, NAME, leave_out)
        if role in ("system", "developer"):
            system.extend(_blocks(message.get("content"), leave_out, text_only=True))
            continue
        speaker = "assistant" if role == "assistant" else "user"
        blocks = list(_SPEAKERS[role](message, leave_out))
        if turns and turns[-1]["role"] == speaker:
            turns[-1]["content"].extend(blocks)  # roles must alternate, and parallel results stand together
        elif blocks:
            turns.append({"role": speaker, "content": blocks})
    if not turns:
        raise InvalidInput("'messages' must hold at least one message of a user that is not empty.")
    return {"messages": turns, "system": system} if system else {"messages": turns}


def _user(message: Mapping[str, Any], leave_out: frozenset[str]) -> Iterator[dict[str, Any]]:
    return _blocks(message.get("content"), leave_out)


def _assistant(message: Mapping[str, Any], leave_out: frozenset[str]) -> Iterator[dict[str, Any]]:
    yield from _thoughts(message, leave_out)
    yield from _blocks(message.get("content"), leave_out)
    if message.get("refusal"):
        yield {"text": str(message["refusal"])}
    if message.get("extra_content") and "messages.extra_content" not in leave_out:
        raise UnsupportedField("messages.extra_content", NAME, "another provider has signed it")
    for call in read_calls(message, NAME, leave_out):
        yield {"toolUse": {"toolUseId": call.identity, "name": call.name, "input": call.arguments}}


def _thoughts(message: Mapping[str, Any], leave_out: frozenset[str]) -> Iterator[dict[str, Any]]:
    for thought in signed_thoughts(message, NAME, REASONING_FORMAT, leave_out):
        if thought.data:
            yield {"reasoningContent": {"redactedContent": thought.data}}
        else:
            text = {"text": thought.text, "signature": thought.signature}
            yield {"reasoningContent": {"reasoningText": text}}


def _tool(message: Mapping[str, Any], leave_out: frozenset[str]) -> Iterator[dict[str, Any]]:
    identity = message.get("tool_call_id")
    if not isinstance(identity, str) or not identity:
        raise InvalidInput("A message of role 'tool' must have the 'tool_call_id' it answers.")
    blocks = list(_blocks(message.get("content"), leave_out))
    yield {"toolResult": {"toolUseId": identity, "content": [block for block in blocks if "cachePoint" not in block]}}
    yield from (block for block in blocks if "cachePoint" in block)


_SPEAKERS: Final[Mapping[str, Callable[[Mapping[str, Any], frozenset[str]], Iterator[dict[str, Any]]]]] = {
    "user": _user,
    "assistant": _assistant,
    "tool": _tool,
}


def _blocks(content: Any, leave_out: frozenset[str], *, text_only: bool = False) -> Iterator[dict[str, Any]]:
    for part in parts_of(content, "messages.content"):
        kind = part["type"]
        check_part(part, NAME, leave_out, marks=True)
        if kind in ("text", "refusal"):
            if part.get(kind):  # Converse refuses an empty block
                yield {"text": str(part[kind])}
        elif text_only:
            raise UnsupportedField(f"messages.content.{kind}", NAME, "only text has a place there")
        else:
            yield _media(read_media(part, NAME), leave_out)
        if any(part.get(mark) for mark in CACHE_MARKS):
            yield _cache_point(part)


def _cache_point(part: Mapping[str, Any]) -> dict[str, Any]:
    mark = next(part[mark] for mark in sorted(CACHE_MARKS) if part.get(mark))
    ttl = mark.get("ttl") if isinstance(mark, dict) else None
    if ttl not in (None, "5m", "30m", "1h"):
        raise UnsupportedField("ttl", NAME, "its cache lives for five minutes (no ttl) or an hour ('1h')")
    hour = {"ttl": "1h"} if ttl in ("30m", "1h") else {}
    return {"cachePoint": {"type": "default", **hour}}


def _media(media: Media, leave_out: frozenset[str]) -> dict[str, Any]:
    name, formats = _BLOCKS[media.kind]
    where = f"messages.content.{media.part}"
    if media.detail and _DETAIL not in leave_out:
        raise UnsupportedField(_DETAIL, NAME, "images are always read in full")
    form = _FORMATS.get(media.media_type, media.media_type.rpartition("/")[2])
    if form not in formats:
        raise UnsupportedField(where, NAME, f"it reads no {media.media_type or 'file of an unknown type'}")
    source: dict[str, Any] = {"bytes": media.base64}
    if not media.base64:
        if not media.url.startswith("s3://"):
            raise UnsupportedField(where, NAME, "it reads data URLs and s3:// URLs only")
        source = {"s3Location": {"uri": media.url}}
    block = {"format": form, "source": source}
    if name == "document":
        # The name may mislead the model, so Converse allows few characters in it, and demands one.
        title = _NOT_IN_A_NAME.sub(" ", media.name.rpartition(".")[0] or media.name).strip()
        block = {"name": title or "document", **block}
    return {name: block}
