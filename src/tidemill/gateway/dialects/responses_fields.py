"""Fields of a Responses request: what each becomes in a chat request, or why it is refused.

A field that nobody here knows is passed on. Source: OpenAI's API reference, Create a response, 2026-11.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from tidemill.gateway.dialects.responses_items import malformed, unsupported

#: field -> what it becomes; the documentation's table is made of it
SERVED: Final[Mapping[str, str]] = {
    "model": "`model`",
    "input": "`messages`",
    "instructions": "the first system message",
    "tools": "`tools` of type function and custom",
    "tool_choice": "`tool_choice`",
    "parallel_tool_calls": "`parallel_tool_calls`, where there are tools",
    "text": "`response_format`, `verbosity`",
    "temperature": "`temperature`",
    "top_p": "`top_p`",
    "max_output_tokens": "`max_completion_tokens`",
    "top_logprobs": "`logprobs`, `top_logprobs`",
    "include": "`logprobs`; what goes with built-in tools has nothing to include",
    "reasoning": "`reasoning_effort`; a summary is given if the provider gives one",
    "user": "`user`",
    "safety_identifier": "`safety_identifier`",
    "service_tier": "`service_tier`",
    "prompt_cache_key": "`prompt_cache_key`",
    "prompt_cache_options": "`prompt_cache_options`",
    "prompt_cache_retention": "`prompt_cache_retention`",
    "metadata": "kept with the response",
    "store": "whether the gateway keeps the response",
    "previous_response_id": "the history, from the gateway's store",
    "conversation": "the history, from the gateway's store",
    "truncation": "the context policy of this request",
    "stream": "`stream`",
    "stream_options": "`include_usage` is always asked for",
    "background": "only `false`",
    "max_tool_calls": "bounds built-in tools, of which there are none",
}
#: field -> why it cannot be served
REFUSED: Final[Mapping[str, str]] = {
    "background_options": "responses are not made in the background here",
    "prompt": "render the prompt template yourself, or put a release with a prompt behind the endpoint",
    "context_management": "set the endpoint's overflow policy instead",
    "moderation": "call /v1/moderations, or set guardrails on the endpoint",
    "access_programs": "it belongs to one provider's account",
    "image": "there is no built-in image tool",
    "messages": "the Responses API takes 'input'",
    "n": "a response has one answer",
}
_SAME: Final = (
    "model", "temperature", "top_p", "user", "safety_identifier", "service_tier", "prompt_cache_key",
    "prompt_cache_options", "prompt_cache_retention",
)  # fmt: skip
_INCLUDABLE: Final = frozenset(
    (
        "file_search_call.results",
        "web_search_call.results",
        "web_search_call.action.sources",
        "message.input_image.image_url",
        "computer_call_output.output.image_url",
        "code_interpreter_call.outputs",
        "reasoning.encrypted_content",
        "message.output_text.logprobs",
    )
)
_LOGPROBS: Final = "message.output_text.logprobs"
ENCRYPTED_REASONING: Final = "reasoning.encrypted_content"
_FORMATS: Final = frozenset(("text", "json_object", "json_schema"))
_CHOICES: Final = frozenset(("auto", "none", "required"))


def to_chat(request: Mapping[str, Any]) -> dict[str, Any]:
    """The chat request without its messages.

    Args:
        request: the decoded body.

    Raises:
        Refusal: 400, naming the field.
    """
    given = {name: value for name, value in request.items() if value is not None}
    for name, reason in REFUSED.items():
        if name in given and (name, given[name]) != ("n", 1):
            raise unsupported(f"'{name}'", reason)
    chat: dict[str, Any] = {name: given[name] for name in _SAME if name in given}
    chat.update((name, value) for name, value in given.items() if name not in SERVED and name not in REFUSED)
    for name, write in _WRITERS.items():
        if name in given:
            write(given[name], chat)
    _write_tools(given, chat)
    return chat


def _write_max_output(value: Any, chat: dict[str, Any]) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise malformed("'max_output_tokens' must be a whole number of at least 1.", "max_output_tokens")
    chat["max_completion_tokens"] = value


def _write_stream(value: Any, chat: dict[str, Any]) -> None:
    if not isinstance(value, bool):
        raise malformed("'stream' must be true or false.", "stream")
    if value:
        chat["stream"] = True
        chat["stream_options"] = {"include_usage": True}


def _write_stream_options(value: Any, _chat: dict[str, Any]) -> None:
    if not isinstance(value, dict):
        raise malformed("'stream_options' must be an object.", "stream_options")
    if value.get("include_obfuscation"):
        raise unsupported("'stream_options.include_obfuscation'")


def _write_text(value: Any, chat: dict[str, Any]) -> None:
    if not isinstance(value, dict):
        raise malformed("'text' must be an object.", "text")
    if value.get("verbosity") is not None:
        chat["verbosity"] = value["verbosity"]
    form = value.get("format")
    if form is None:
        return
    kind = form.get("type") if isinstance(form, dict) else None
    if kind not in _FORMATS:
        raise malformed(f"'text.format.type' must be one of {', '.join(sorted(_FORMATS))}.", "text.format.type")
    if kind == "json_object":
        chat["response_format"] = {"type": kind}
    elif kind == "json_schema":
        if not isinstance(form.get("name"), str) or not isinstance(form.get("schema"), dict):
            raise malformed("'text.format' of type json_schema needs 'name' and 'schema'.", "text.format")
        schema = {name: part for name, part in form.items() if name != "type" and part is not None}
        chat["response_format"] = {"type": kind, "json_schema": schema}


def _write_reasoning(value: Any, chat: dict[str, Any]) -> None:
    if not isinstance(value, dict):
        raise malformed("'reasoning' must be an object.", "reasoning")
    if value.get("effort") is not None:
        chat["reasoning_effort"] = value["effort"]
    for name, neutral in (("mode", "standard"), ("context", "auto"), ("summary", "auto"), ("generate_summary", "auto")):
        if value.get(name) not in {None, neutral}:
            raise unsupported(f"'reasoning.{name}'", f"only '{neutral}'")


def _write_logprobs(value: Any, chat: dict[str, Any]) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 20:
        raise malformed("'top_logprobs' must be a whole number from 0 to 20.", "top_logprobs")
    if value:
        chat["logprobs"] = True
        chat["top_logprobs"] = value


def _write_include(value: Any, chat: dict[str, Any]) -> None:
    if not isinstance(value, list):
        raise malformed("'include' must be a list.", "include")
    for name in value:
        if name not in _INCLUDABLE:
            raise unsupported("'include'", f"there is no '{name}' to include")
    if _LOGPROBS in value:
        chat["logprobs"] = True


def _write_background(value: Any, _chat: dict[str, Any]) -> None:
    if value:
        raise unsupported("'background'", "responses are not made in the background here")


_WRITERS: Final[Mapping[str, Callable[[Any, dict[str, Any]], None]]] = {
    "max_output_tokens": _write_max_output,
    "stream": _write_stream,
    "stream_options": _write_stream_options,
    "text": _write_text,
    "reasoning": _write_reasoning,
    "top_logprobs": _write_logprobs,
    "include": _write_include,
    "background": _write_background,
}


# -- tools --------------------------------------------------------------------------------------------------------


def _write_tools(given: Mapping[str, Any], chat: dict[str, Any]) -> None:
    tools = given.get("tools", [])
    if not isinstance(tools, list):
        raise malformed("'tools' must be a list.", "tools")
    if tools:
        chat["tools"] = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
        if "parallel_tool_calls" in given:  # without tools, OpenAI's chat API refuses it
            chat["parallel_tool_calls"] = given["parallel_tool_calls"]
    choice = given.get("tool_choice", "auto")
    if choice not in ("auto", "none") or (tools and "tool_choice" in given):
        chat["tool_choice"] = _choice(choice)


def _tool(tool: Any, where: str) -> dict[str, Any]:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if kind not in {"function", "custom"}:
        raise unsupported(f"the tool '{kind}'", "give it as a function, and run it yourself")
    if not isinstance(tool.get("name"), str):
        raise malformed(f"'{where}.name' must be a text.", f"{where}.name")
    for name in ("defer_loading", "async", "allowed_callers", "output_schema"):
        if tool.get(name) not in (None, False, ["direct"]):
            raise unsupported(f"'{where}.{name}'")
    if kind == "function":
        named = {
            name: tool[name] for name in ("name", "description", "parameters", "strict") if tool.get(name) is not None
        }
        return {"type": "function", "function": named}
    named = {name: tool[name] for name in ("name", "description") if tool.get(name) is not None}
    form = tool.get("format")
    if isinstance(form, dict) and form.get("type") == "grammar":
        grammar = {name: form.get(name) for name in ("definition", "syntax")}
        named["format"] = {"type": "grammar", "grammar": grammar}
    elif form is not None:
        named["format"] = form
    return {"type": "custom", "custom": named}


def _choice(choice: Any) -> Any:
    if isinstance(choice, str):
        if choice not in _CHOICES:
            raise malformed(f"'tool_choice' must be one of {', '.join(sorted(_CHOICES))} or an object.", "tool_choice")
        return choice
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind in {"function", "custom"}:
        return {"type": kind, kind: {"name": choice.get("name")}}
    if kind == "allowed_tools":
        tools = choice.get("tools") if isinstance(choice.get("tools"), list) else []
        allowed = {"mode": choice.get("mode", "auto"), "tools": [_choice(tool) for tool in tools]}
        return {"type": kind, kind: allowed}
    raise unsupported(f"the tool '{kind}'", "give it as a function, and run it yourself")
