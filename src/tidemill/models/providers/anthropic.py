"""Anthropic's Messages API: pivot requests into its requests.

Format: Anthropic's API reference, ``POST /v1/messages`` and ``/v1/messages/count_tokens``, version 2023-06-01, as its
Python library 2.12 types them (2026-11). Answers, errors and streams are read in ``anthropic_answers``. A count takes a
chat request, of which only what the count depends on is sent, and its answer is passed on as it is.

Options of a target: ``max_tokens`` (where the request names none; the API demands one), ``thinking`` (``adaptive``, or
``budget`` for models that take a number of thinking tokens), ``api_version``, ``beta`` (the ``anthropic-beta`` header)
and ``leave_out``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from tidemill.kernel import InvalidInput
from tidemill.models.providers.anthropic_answers import REASONING_FORMAT, AnthropicStream, error_of, translate_answer
from tidemill.models.providers.dialect import Credentials, Place, ProviderRequest, UnsupportedField
from tidemill.models.providers.fields import FieldTable, check_keys, left_out
from tidemill.models.providers.messages import signed_thoughts
from tidemill.models.providers.pivot import (
    arguments_of,
    check_operation,
    data_url,
    image_url,
    parts_of,
    read_list,
    read_messages,
    read_object,
    wants_usage,
)

NAME: Final = "anthropic"
COUNT_TOKENS: Final = "count_tokens"
_COUNTED: Final = frozenset(
    {"model", "messages", "system", "tools", "tool_choice", "thinking", "output_config", "cache_control", "speed"}
)
_VERSION: Final = "2023-06-01"
_DEFAULT_MAX_TOKENS: Final = 4096
_MIN_THINKING_TOKENS: Final = 1024
_IMAGE_TYPES: Final = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_NOT_IN_IDS: Final = re.compile(r"[^a-zA-Z0-9_-]")
_DETAILS: Final = (None, "auto", "high", "original")

# reasoning_effort -> output_config.effort
_EFFORTS: Final = {
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "xhigh",
    "max": "max",
}
# reasoning_effort -> share of max_tokens to think with, for models that take a number
_THINKING_SHARES: Final = {"minimal": 0.1, "low": 0.2, "medium": 0.5, "high": 0.8, "xhigh": 0.9, "max": 0.95}
_TIERS: Final = {"auto": "auto", "default": "standard_only"}
_TOOL_CHOICES: Final = {"auto": "auto", "none": "none", "required": "any"}

FIELDS: Final = FieldTable(
    NAME,
    served={
        "model": "`model`: the target's model",
        "messages": "`messages`; system and developer messages together become `system`",
        "stream": "`stream`",
        "stream_options": "usage is always sent",
        "max_completion_tokens": "`max_tokens`; else the target's option `max_tokens`, else 4096",
        "max_tokens": "`max_tokens`",
        "temperature": "`temperature`, up to 1",
        "top_p": "`top_p`",
        "top_k": "`top_k`",
        "stop": "`stop_sequences`",
        "tools": "`tools` with `input_schema`",
        "tool_choice": "`tool_choice`: `required` is `any`, a function is `tool`",
        "parallel_tool_calls": "`tool_choice.disable_parallel_tool_use`",
        "response_format": "`output_config.format`, `json_schema` only",
        "reasoning_effort": "`output_config.effort` and `thinking`; `none` disables it",
        "thinking": "`thinking`",
        "user": "`metadata.user_id`",
        "safety_identifier": "`metadata.user_id`",
        "service_tier": "`service_tier`: `default` is `standard_only`",
        "prompt_cache_options": "`cache_control` of the request in mode `implicit`; `ttl` `30m` is `1h`",
        "cache_control": "`cache_control`",
        "inference_geo": "`inference_geo`",
        "speed": "`speed`",
    },
    refused={
        "seed": "sampling cannot be seeded there",
        "n": "it gives one answer a request",
        "frequency_penalty": "there is no such penalty there",
        "presence_penalty": "there is no such penalty there",
        "logit_bias": "tokens cannot be weighted there",
        "logprobs": "it tells no probabilities",
        "top_logprobs": "it tells no probabilities",
        "functions": "it is replaced by 'tools'",
        "function_call": "it is replaced by 'tool_choice'",
        "verbosity": "there is no such setting there",
        "modalities": "it answers in text only",
        "audio": "it answers in text only",
        "prediction": "there is no predicted output there",
        "web_search_options": "its web search is a tool of another shape",
        "metadata": "it keeps only a user id; set 'user'",
        "store": "it stores no answers",
        "moderation": "it does not moderate on request",
        "prompt_cache_key": "its cache has no key; set 'prompt_cache_options' or a part's 'prompt_cache_breakpoint'",
        "prompt_cache_retention": "it is replaced by 'prompt_cache_options'",
    },
)

_MESSAGE_KEYS: Final = {
    "system": frozenset({"role", "content"}),
    "developer": frozenset({"role", "content"}),
    "user": frozenset({"role", "content"}),
    "assistant": frozenset({"role", "content", "refusal", "tool_calls", "reasoning_content", "reasoning_details"}),
    "tool": frozenset({"role", "content", "tool_call_id", "name"}),  # the call's id already says the name
}


class AnthropicDialect:
    """Chat completions served by Anthropic's Messages API."""

    name = NAME
    operations = frozenset({"chat", COUNT_TOKENS})
    stream_type = b"text/event-stream"

    def request(
        self,
        operation: str,
        body: bytes,
        place: Place,
        credentials: Credentials,
        *,
        now_s: float,  # noqa: ARG002 - the interface's; nothing is signed with a time here
    ) -> ProviderRequest:
        """Translate a pivot chat request; see ``Dialect.request``."""
        check_operation(self, operation)
        leave_out = left_out(place)
        asked = FIELDS.wanted(read_object(body, "The request"), leave_out)
        wanted: dict[str, Any] = {"model": place.model, "max_tokens": _max_tokens(asked, place)}
        system, wanted["messages"] = _conversation(read_messages(asked), leave_out)
        if system:
            wanted["system"] = system
        _add_sampling(asked, wanted, leave_out)
        _add_tools(asked, wanted)
        _add_output(asked, wanted, place)
        _add_account(asked, wanted)
        path = (place.base_path or "/v1") + "/messages"
        if operation == COUNT_TOKENS:
            path += "/count_tokens"
            wanted = {name: value for name, value in wanted.items() if name in _COUNTED}
        return ProviderRequest(path, _headers(place, credentials), msgspec.json.encode(wanted))

    def answer(self, operation: str, body: bytes, *, model: str, now_s: float = 0.0) -> bytes:
        """Translate a message to a chat completion; see ``Dialect.answer``."""
        check_operation(self, operation)
        if operation == COUNT_TOKENS:
            if not isinstance(read_object(body, "The count").get("input_tokens"), int):
                raise InvalidInput("The count has no 'input_tokens'.")
            return body
        return translate_answer(body, model, now_s)

    def error(self, status: int, body: bytes) -> tuple[int, bytes]:
        """Translate an error; see ``Dialect.error``."""
        return error_of(status, body)

    def stream(self, operation: str, request_body: bytes, *, model: str, now_s: float = 0.0) -> AnthropicStream:
        """Begin to translate a stream of events; see ``Dialect.stream``."""
        check_operation(self, operation)
        include_usage = wants_usage(read_object(request_body, "The request"))
        return AnthropicStream(model, int(now_s), include_usage=include_usage)


def _headers(place: Place, credentials: Credentials) -> tuple[tuple[str, str], ...]:
    headers = [
        ("content-type", "application/json"),
        ("anthropic-version", place.options.get("api_version", _VERSION)),
    ]
    if credentials.api_key:
        headers.append(("x-api-key", credentials.api_key))
    if beta := place.options.get("beta"):
        headers.append(("anthropic-beta", beta))
    return tuple(headers)


def _max_tokens(asked: Mapping[str, Any], place: Place) -> int:
    wanted = asked.get("max_completion_tokens", asked.get("max_tokens"))
    if wanted is None:
        return int(place.options.get("max_tokens", _DEFAULT_MAX_TOKENS))
    if not isinstance(wanted, int):
        raise InvalidInput("'max_completion_tokens' must be a whole number.")
    return wanted


def _add_sampling(asked: Mapping[str, Any], wanted: dict[str, Any], leave_out: frozenset[str]) -> None:
    temperature = asked.get("temperature")
    if isinstance(temperature, int | float) and temperature > 1:
        raise UnsupportedField("temperature", NAME, "it takes 0 to 1")
    for name in ("temperature", "top_p", "top_k", "stream", "cache_control", "inference_geo", "speed"):
        if name in asked:
            wanted[name] = asked[name]
    stop = asked.get("stop")
    if stop is not None:
        wanted["stop_sequences"] = [stop] if isinstance(stop, str) else read_list(stop, "stop")
    options = asked.get("stream_options") or {}
    check_keys(options, frozenset({"include_usage"}), "stream_options", NAME, leave_out)
    cache = asked.get("prompt_cache_options")
    if cache is not None:
        marked = _cache_control(cache)
        if cache.get("mode", "implicit") == "implicit":
            wanted["cache_control"] = marked


def _cache_control(options: Any) -> dict[str, Any]:
    if not isinstance(options, dict):
        raise InvalidInput("'prompt_cache_options' and 'prompt_cache_breakpoint' must be objects.")
    ttl = options.get("ttl")
    if ttl is None:
        return {"type": "ephemeral"}
    if ttl != "30m":
        raise UnsupportedField("ttl", NAME, "its cache lives for five minutes (no ttl) or an hour ('30m')")
    return {"type": "ephemeral", "ttl": "1h"}


def _add_tools(asked: Mapping[str, Any], wanted: dict[str, Any]) -> None:
    tools = read_list(asked.get("tools", []), "tools")
    if not tools:
        if asked.get("tool_choice") not in (None, "auto", "none"):
            raise InvalidInput("'tool_choice' asks for a tool, but there are no 'tools'.")
        return
    wanted["tools"] = [_tool(tool) for tool in tools]
    choice = _tool_choice(asked.get("tool_choice"))
    if asked.get("parallel_tool_calls") is False and (choice is None or choice["type"] != "none"):
        choice = {**(choice or {"type": "auto"}), "disable_parallel_tool_use": True}
    if choice is not None:
        wanted["tool_choice"] = choice


def _tool(tool: Any) -> dict[str, Any]:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        kind = tool.get("type") if isinstance(tool, dict) else type(tool).__name__
        raise UnsupportedField(f"tools.{kind}", NAME, "only tools of type 'function' are served")
    function = tool.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidInput("Each of 'tools' must have a 'function' with a 'name'.")
    known = frozenset({"name", "description", "parameters", "strict"})
    check_keys(function, known, "tools.function", NAME)
    check_keys(tool, frozenset({"type", "function", "cache_control"}), "tools", NAME)
    found: dict[str, Any] = {"name": function["name"]}
    if function.get("description"):
        found["description"] = function["description"]
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    found["input_schema"] = schema if not isinstance(schema, dict) or "type" in schema else {"type": "object", **schema}
    if function.get("strict"):
        found["strict"] = True
    if tool.get("cache_control"):
        found["cache_control"] = tool["cache_control"]
    return found


def _tool_choice(choice: Any) -> dict[str, Any] | None:
    if choice is None:
        return None
    if isinstance(choice, str) and choice in _TOOL_CHOICES:
        return {"type": _TOOL_CHOICES[choice]}
    if isinstance(choice, dict) and choice.get("type") == "function" and isinstance(choice.get("function"), dict):
        return {"type": "tool", "name": choice["function"].get("name")}
    kind = choice.get("type") if isinstance(choice, dict) else choice
    raise UnsupportedField(f"tool_choice.{kind}", NAME, "there is 'auto', 'none', 'required' or one function")


def _add_output(asked: Mapping[str, Any], wanted: dict[str, Any], place: Place) -> None:
    output: dict[str, Any] = {}
    effort = asked.get("reasoning_effort")
    if effort is not None:
        wanted["thinking"] = _thinking(effort, place, wanted["max_tokens"], output)
    if "thinking" in asked:
        wanted["thinking"] = asked["thinking"]
    response = asked.get("response_format")
    if response is not None:
        output["format"] = {"type": "json_schema", "schema": _schema(response)}
    if output:
        wanted["output_config"] = output


def _thinking(effort: Any, place: Place, max_tokens: int, output: dict[str, Any]) -> dict[str, Any]:
    if effort == "none":
        return {"type": "disabled"}
    if not isinstance(effort, str) or effort not in _EFFORTS:
        raise InvalidInput("'reasoning_effort' must be one of none, " + ", ".join(_EFFORTS) + ".")
    if place.options.get("thinking", "adaptive") == "adaptive":
        output["effort"] = _EFFORTS[effort]
        return {"type": "adaptive"}
    if max_tokens <= _MIN_THINKING_TOKENS:
        reason = f"thinking takes at least {_MIN_THINKING_TOKENS} of 'max_completion_tokens', which must be more"
        raise UnsupportedField("reasoning_effort", NAME, reason)
    budget = max(_MIN_THINKING_TOKENS, int(max_tokens * _THINKING_SHARES[effort]))
    return {"type": "enabled", "budget_tokens": budget}


def _schema(response: Any) -> dict[str, Any]:
    kind = response.get("type") if isinstance(response, dict) else None
    if kind != "json_schema":
        raise UnsupportedField(f"response_format.{kind}", NAME, "give a schema: type 'json_schema'")
    form = response.get("json_schema")
    if not isinstance(form, dict) or not isinstance(form.get("schema"), dict):
        raise InvalidInput("'response_format.json_schema' must have a 'schema'.")
    schema: dict[str, Any] = form["schema"]
    if form.get("description") and "description" not in schema:
        schema = {"description": form["description"], **schema}
    return schema


def _add_account(asked: Mapping[str, Any], wanted: dict[str, Any]) -> None:
    user = asked.get("safety_identifier") or asked.get("user")
    if user:
        wanted["metadata"] = {"user_id": user}
    tier = asked.get("service_tier")
    if tier is not None:
        if not isinstance(tier, str) or tier not in _TIERS:
            raise UnsupportedField(f"service_tier.{tier}", NAME, "there is 'auto' and 'default'")
        wanted["service_tier"] = _TIERS[tier]


def _conversation(
    messages: list[dict[str, Any]], leave_out: frozenset[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """System blocks, and turns: neighbours of one role become one turn, so all results of parallel calls do."""
    system: list[dict[str, Any]] = []
    turns: list[dict[str, Any]] = []
    for message in messages:
        role = message["role"]
        if role not in _MESSAGE_KEYS:
            raise UnsupportedField(f"messages.{role}", NAME, "there is no such role there")
        check_keys(message, _MESSAGE_KEYS[role], "messages", NAME, leave_out)
        if role in ("system", "developer"):
            system += _blocks(message.get("content"), _TEXT_ONLY, leave_out)
            continue
        speaker = "assistant" if role == "assistant" else "user"
        blocks = _SPOKEN[role](message, leave_out)
        if not blocks:
            continue
        if turns and turns[-1]["role"] == speaker:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": speaker, "content": blocks})
    if not turns:
        raise InvalidInput("'messages' must hold at least one message of a user that is not empty.")
    return system, turns


_Part = Callable[[dict[str, Any], frozenset[str]], "dict[str, Any] | None"]


def _blocks(content: Any, kinds: Mapping[str, _Part], leave_out: frozenset[str]) -> list[dict[str, Any]]:
    blocks = []
    for part in parts_of(content, "messages.content"):
        kind = part["type"]
        if kind not in kinds:
            raise UnsupportedField(f"messages.content.{kind}", NAME, "such a part has no place there")
        block = kinds[kind](part, leave_out)
        if block is None:
            continue
        if part.get("prompt_cache_breakpoint"):
            block["cache_control"] = _cache_control(part["prompt_cache_breakpoint"])
        elif part.get("cache_control"):
            block["cache_control"] = part["cache_control"]
        blocks.append(block)
    return blocks


def _check_part(part: dict[str, Any], key: str, leave_out: frozenset[str]) -> None:
    known = frozenset({"type", key, "prompt_cache_breakpoint", "cache_control"})
    check_keys(part, known, f"messages.content.{part['type']}", NAME, leave_out)


def _text(part: dict[str, Any], leave_out: frozenset[str]) -> dict[str, Any] | None:
    _check_part(part, "text", leave_out)
    text = part.get("text")
    return {"type": "text", "text": text} if text else None  # the API refuses an empty block


def _refusal(part: dict[str, Any], leave_out: frozenset[str]) -> dict[str, Any] | None:
    _check_part(part, "refusal", leave_out)
    text = part.get("refusal")
    return {"type": "text", "text": text} if text else None


def _image(part: dict[str, Any], leave_out: frozenset[str]) -> dict[str, Any]:
    _check_part(part, "image_url", leave_out)
    url = image_url(part)
    detail = part["image_url"].get("detail") if isinstance(part["image_url"], dict) else None
    if detail not in _DETAILS and "messages.content.image_url.detail" not in leave_out:
        raise UnsupportedField("messages.content.image_url.detail", NAME, "images are always read in full")
    data = data_url(url)
    if data is None:
        return {"type": "image", "source": {"type": "url", "url": url}}
    if data.media_type not in _IMAGE_TYPES:
        raise UnsupportedField("messages.content.image_url", NAME, f"it reads no {data.media_type}")
    return {"type": "image", "source": {"type": "base64", "media_type": data.media_type, "data": data.base64}}


def _file(part: dict[str, Any], leave_out: frozenset[str]) -> dict[str, Any]:
    _check_part(part, "file", leave_out)
    file = part.get("file")
    data = data_url(file["file_data"]) if isinstance(file, dict) and isinstance(file.get("file_data"), str) else None
    if not isinstance(file, dict) or data is None:
        raise UnsupportedField("messages.content.file.file_id", NAME, "send the file itself as 'file_data'")
    if data.media_type != "application/pdf":
        raise UnsupportedField("messages.content.file", NAME, f"it reads no {data.media_type}, only application/pdf")
    source = {"type": "base64", "media_type": data.media_type, "data": data.base64}
    document: dict[str, Any] = {"type": "document", "source": source}
    if file.get("filename"):
        document["title"] = file["filename"]
    return document


_TEXT_ONLY: Final[dict[str, _Part]] = {"text": _text}
_SHOWN: Final[dict[str, _Part]] = {"text": _text, "image_url": _image, "file": _file}
_ANSWERED: Final[dict[str, _Part]] = {"text": _text, "refusal": _refusal}


def _from_user(message: dict[str, Any], leave_out: frozenset[str]) -> list[dict[str, Any]]:
    return _blocks(message.get("content"), _SHOWN, leave_out)


def _from_assistant(message: dict[str, Any], leave_out: frozenset[str]) -> list[dict[str, Any]]:
    blocks = _thoughts(message, leave_out)
    blocks += _blocks(message.get("content"), _ANSWERED, leave_out)
    if message.get("refusal"):
        blocks.append({"type": "text", "text": message["refusal"]})
    for call in read_list(message.get("tool_calls") or [], "messages.tool_calls"):
        if not isinstance(call, dict) or call.get("type", "function") != "function":
            raise UnsupportedField("messages.tool_calls", NAME, "only calls of functions are served")
        arguments = arguments_of(call)
        name = call["function"].get("name")
        blocks.append({"type": "tool_use", "id": _identity(call.get("id")), "name": name, "input": arguments})
    return blocks


def _identity(identity: Any) -> str:
    """A call's id in the letters the API allows; ids of other providers may hold more."""
    if not isinstance(identity, str) or not identity:
        raise InvalidInput("A tool call must have an 'id', and a message of role 'tool' the 'tool_call_id' it answers.")
    return _NOT_IN_IDS.sub("_", identity)


def _thoughts(message: dict[str, Any], leave_out: frozenset[str]) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    for thought in signed_thoughts(message, NAME, REASONING_FORMAT, leave_out):
        if thought.data:
            blocks.append({"type": "redacted_thinking", "data": thought.data})
        else:
            blocks.append({"type": "thinking", "thinking": thought.text, "signature": thought.signature})
    return blocks


def _from_tool(message: dict[str, Any], leave_out: frozenset[str]) -> list[dict[str, Any]]:
    result: dict[str, Any] = {"type": "tool_result", "tool_use_id": _identity(message.get("tool_call_id"))}
    content = message.get("content")
    if isinstance(content, str):
        result["content"] = content
        return [result]
    blocks = _blocks(content, _SHOWN, leave_out)
    for block in blocks:
        # A result is cached as a whole: the API takes no breakpoint inside it.
        if marked := block.pop("cache_control", None):
            result["cache_control"] = marked
    result["content"] = blocks
    return [result]


_SPOKEN: Final[dict[str, Callable[[dict[str, Any], frozenset[str]], list[dict[str, Any]]]]] = {
    "user": _from_user,
    "assistant": _from_assistant,
    "tool": _from_tool,
}

DIALECTS: Final = {NAME: AnthropicDialect()}
