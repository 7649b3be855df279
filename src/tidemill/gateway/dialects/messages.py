"""Clients that speak Anthropic's Messages API: their requests into the pivot's.

Format: Anthropic's API reference, ``POST /v1/messages``, as its Python library 2.12 types it (2026-11). A field that
the pivot has no place for is refused by name; a field of the request that is not known here is passed on, and the
target's own dialect serves or refuses it. Answers, errors and streams are written in ``messages_answers``.

Marks for the provider's cache (``cache_control``) become OpenAI's ``prompt_cache_breakpoint``. One that stands where
the pivot has no place for it (a tool, a tool call) moves to the next part of the prompt that has one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from tidemill.gateway.answers import Refusal
from tidemill.gateway.dialects.messages_answers import MessagesStream, opened_details, write_answer, write_error
from tidemill.kernel import InvalidInput
from tidemill.models.providers.pivot import read_object, tool_call

_EFFORTS: Final = ("low", "medium", "high", "xhigh", "max")
# The share of max_tokens that a thinking budget may take, and the effort that comes nearest to it.
_SHARES: Final = ((0.3, "low"), (0.65, "medium"), (1.0, "high"))
_TOOL_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}
_TIERS: Final = {"auto": "auto", "standard_only": "default"}
_TTLS: Final = {None: None, "5m": None, "1h": "30m"}
_NOTHING: Final[tuple[Any, ...]] = (None, "", [], {}, False)


class MessagesDialect:
    """One request of a client that speaks the Messages API; see ``ClientDialect``."""

    __slots__ = ("_hides_thoughts",)

    def __init__(self) -> None:
        self._hides_thoughts = False  # the request's thinking.display

    def request(self, body: bytes) -> bytes:
        """Translate a request; see ``ClientDialect.request``."""
        try:
            asked = read_object(body, "The request body")
            wanted = translate_request(asked)
        except InvalidInput as error:
            raise Refusal(400, error.message, "invalid_request") from None
        thinking = asked.get("thinking")
        self._hides_thoughts = isinstance(thinking, dict) and thinking.get("display") == "omitted"
        return msgspec.json.encode(wanted)

    def answer(self, body: bytes) -> bytes:
        """Translate an answer; see ``ClientDialect.answer``."""
        return write_answer(body, hides_thoughts=self._hides_thoughts)

    def error(self, status: int, body: bytes) -> bytes:
        """Translate an error; see ``ClientDialect.error``."""
        return write_error(status, body)

    def stream(self) -> MessagesStream:
        """Begin to translate a stream; see ``ClientDialect.stream``."""
        return MessagesStream(hides_thoughts=self._hides_thoughts)


def translate_request(asked: dict[str, Any]) -> dict[str, Any]:
    """A request's fields as the pivot's.

    Raises:
        Refusal: 400, naming what cannot be read or served.
    """
    return _Request(asked).translate()


def _refuse(field: str, reason: str) -> Refusal:
    return Refusal(400, f"'{field}' cannot be served: {reason}.", "unsupported_field", param=field)


def _check(found: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    for key, value in found.items():
        if key not in known and value not in _NOTHING:
            raise _refuse(f"{where}.{key}", "the gateway has no place for it")


class _Request:
    """The translation of one request; holds the mark for the cache that still looks for its place."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self.asked = asked
        self.mark: dict[str, Any] | None = None
        self.messages: list[dict[str, Any]] = []

    def translate(self) -> dict[str, Any]:
        if not isinstance(self.asked.get("max_tokens"), int):
            raise Refusal(400, "'max_tokens' must be a whole number.", "invalid_request", param="max_tokens")
        wanted: dict[str, Any] = {}
        for name, value in self.asked.items():
            if value is None:
                continue
            translate = _FIELDS.get(name)
            if translate is None:
                wanted[name] = value
            else:
                translate(self, value, wanted)
        self._prompt(wanted)
        if self.mark is not None:
            wanted.setdefault("prompt_cache_options", {"mode": "implicit", **_ttl(self.mark)})
        return wanted

    def _prompt(self, wanted: dict[str, Any]) -> None:
        """Tools, system and messages, in the order in which the cache counts them."""
        tools = self.asked.get("tools")
        if tools:
            wanted["tools"] = [self._tool(tool, number) for number, tool in enumerate(_list(tools, "tools"))]
        if self.asked.get("system"):
            self.messages.append({"role": "system", "content": self._texts(self.asked["system"], "system")})
        messages = _list(self.asked.get("messages"), "messages")
        if not messages:
            raise Refusal(400, "'messages' must hold at least one message.", "invalid_request", param="messages")
        for message in messages:
            role = message.get("role") if isinstance(message, dict) else None
            if not isinstance(role, str) or role not in _ROLES:
                raise Refusal(
                    400,
                    "Each of 'messages' must have a role: user, assistant or system.",
                    "invalid_request",
                    param="messages",
                )
            _check(message, frozenset({"role", "content"}), "messages")
            _ROLES[role](self, message.get("content"))
        wanted["messages"] = self.messages

    def _tool(self, tool: Any, number: int) -> dict[str, Any]:
        if not isinstance(tool, dict) or tool.get("type", "custom") not in (None, "custom"):
            kind = tool.get("type") if isinstance(tool, dict) else tool
            raise _refuse(f"tools.{number}.{kind}", "only tools of the client's own are served")
        # Eager streaming only asks for smaller pieces: the pieces are passed on as they come.
        known = {"type", "name", "description", "input_schema", "strict", "cache_control", "eager_input_streaming"}
        callers = tool.get("allowed_callers")
        if callers == ["direct"]:
            known.add("allowed_callers")
        _check(tool, frozenset(known), f"tools.{number}")
        self._take_mark(tool)
        function = {"name": tool.get("name"), "parameters": tool.get("input_schema") or {"type": "object"}}
        for key in ("description", "strict"):
            if tool.get(key):
                function[key] = tool[key]
        return {"type": "function", "function": function}

    def _take_mark(self, block: Mapping[str, Any]) -> None:
        if block.get("cache_control"):
            self.mark = block["cache_control"]

    def _part(self, block: Mapping[str, Any], part: dict[str, Any]) -> dict[str, Any]:
        """The part, with its own mark or the one that still looks for a place."""
        self._take_mark(block)
        if self.mark is not None:
            part["prompt_cache_breakpoint"] = {"mode": "explicit", **_ttl(self.mark)}
            self.mark = None
        return part

    def _texts(self, content: Any, where: str) -> str | list[dict[str, Any]]:
        if isinstance(content, str) and self.mark is None:
            return content
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else _list(content, where)
        parts = []
        for block in blocks:
            if _kind(block, where) != "text":
                raise _refuse(f"{where}.{block['type']}", "only text has a place there")
            parts.append(self._text(block))
        return _plain(parts)

    def _text(self, block: dict[str, Any]) -> dict[str, Any]:
        _check(block, frozenset({"type", "text", "cache_control"}), "messages.content.text")
        return self._part(block, {"type": "text", "text": str(block.get("text") or "")})

    def _system(self, content: Any) -> None:
        self.messages.append({"role": "system", "content": self._texts(content, "messages.content")})

    def _user(self, content: Any) -> None:
        parts: list[dict[str, Any]] = []
        for block in _blocks(content):
            if _kind(block, "messages.content") == "tool_result":
                if parts:
                    self.messages.append({"role": "user", "content": _plain(parts)})
                    parts = []
                self.messages.append(self._result(block))
            else:
                parts.append(self._shown(block))
        if parts:
            self.messages.append({"role": "user", "content": _plain(parts)})

    def _shown(self, block: dict[str, Any]) -> dict[str, Any]:
        kind = _kind(block, "messages.content")
        if kind == "text":
            return self._text(block)
        if kind == "image":
            return self._part(block, _image(block))
        if kind == "document":
            return self._part(block, _document(block))
        raise _refuse(f"messages.content.{kind}", "such a block has no place there")

    def _result(self, block: dict[str, Any]) -> dict[str, Any]:
        known = frozenset({"type", "tool_use_id", "content", "is_error", "cache_control"})
        _check(block, known, "messages.content.tool_result")
        parts = [self._shown(one) for one in _blocks(block.get("content") or "")]
        if block.get("is_error"):
            _say_error(parts)
        self._take_mark(block)
        if self.mark is not None and parts:
            self._part(block, parts[-1])
        return {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": _plain(parts) if parts else ""}

    def _assistant(self, content: Any) -> None:
        parts: list[dict[str, Any]] = []
        calls: list[dict[str, Any]] = []
        thoughts: list[dict[str, Any]] = []
        for block in _blocks(content):
            kind = _kind(block, "messages.content")
            if kind == "text":
                parts.append(self._text(block))
            elif kind == "tool_use":
                _check(
                    block,
                    frozenset({"type", "id", "name", "input", "cache_control", "caller"}),
                    "messages.content.tool_use",
                )
                self._take_mark(block)
                arguments = msgspec.json.encode(block.get("input") or {}).decode()
                calls.append(tool_call(str(block.get("id")), str(block.get("name")), arguments))
            elif kind in ("thinking", "redacted_thinking"):
                thoughts.append(block)
            else:
                raise _refuse(f"messages.content.{kind}", "such a block has no place there")
        message: dict[str, Any] = {"role": "assistant", "content": _plain(parts) if parts else None}
        if calls:
            message["tool_calls"] = calls
        message |= opened_details(thoughts)
        self.messages.append(message)


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise Refusal(400, f"'{field}' must be an array.", "invalid_request", param=field)
    return value


def _blocks(content: Any) -> list[Any]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return _list(content, "messages.content")


def _kind(block: Any, where: str) -> str:
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(kind, str):
        raise Refusal(400, f"Each block of '{where}' must be an object with a 'type'.", "invalid_request", param=where)
    return kind


def _plain(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """One unmarked text as a string, which every server reads."""
    if len(parts) == 1 and parts[0].keys() == {"type", "text"}:
        return str(parts[0]["text"])
    return parts


def _ttl(mark: Any) -> dict[str, str]:
    if not isinstance(mark, dict):
        raise Refusal(400, "'cache_control' must be an object.", "invalid_request", param="cache_control")
    ttl = mark.get("ttl")
    if not isinstance(ttl, str | None) or ttl not in _TTLS:
        raise _refuse("cache_control.ttl", "it is '5m' or '1h'")
    named = _TTLS[ttl]
    return {"ttl": named} if named else {}


def _say_error(parts: list[dict[str, Any]]) -> None:
    """The pivot has no flag for a tool that failed: the text says it."""
    for part in parts:
        if part["type"] == "text":
            if not part["text"].lower().startswith("error"):
                part["text"] = f"Error: {part['text']}"
            return
    parts.insert(0, {"type": "text", "text": "Error: the tool failed."})


def _image(block: dict[str, Any]) -> dict[str, Any]:
    _check(block, frozenset({"type", "source", "cache_control"}), "messages.content.image")
    return {"type": "image_url", "image_url": {"url": _url(block, "image")}}


def _url(block: dict[str, Any], kind: str) -> str:
    source = block.get("source")
    source = source if isinstance(source, dict) else {}
    if source.get("type") == "url":
        return str(source.get("url"))
    if source.get("type") == "base64":
        return f"data:{source.get('media_type')};base64,{source.get('data')}"
    raise _refuse(f"messages.content.{kind}.source.{source.get('type')}", "send the bytes or a URL")


def _document(block: dict[str, Any]) -> dict[str, Any]:
    citations = block.get("citations")
    known = {"type", "source", "title", "cache_control"}
    if isinstance(citations, dict) and not citations.get("enabled"):
        known.add("citations")
    _check(block, frozenset(known), "messages.content.document")
    source = block.get("source")
    source = source if isinstance(source, dict) else {}
    if source.get("type") == "text":
        title = f"{block['title']}\n" if block.get("title") else ""
        return {"type": "text", "text": f"{title}{source.get('data') or ''}"}
    if source.get("type") != "base64":
        raise _refuse(f"messages.content.document.source.{source.get('type')}", "send its bytes or its text")
    return {
        "type": "file",
        "file": {"filename": block.get("title") or "document.pdf", "file_data": _url(block, "document")},
    }


def _max_tokens(_: _Request, value: Any, wanted: dict[str, Any]) -> None:
    wanted["max_completion_tokens"] = value


def _stream(_: _Request, value: Any, wanted: dict[str, Any]) -> None:
    wanted["stream"] = value
    if value:
        wanted["stream_options"] = {"include_usage": True}


def _stop(_: _Request, value: Any, wanted: dict[str, Any]) -> None:
    if value:
        wanted["stop"] = value


def _later(_: _Request, __: Any, ___: dict[str, Any]) -> None:
    """``_prompt`` reads it."""


def _tool_choice(_: _Request, value: Any, wanted: dict[str, Any]) -> None:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "tool":
        wanted["tool_choice"] = {"type": "function", "function": {"name": value.get("name")}}
    elif isinstance(kind, str) and kind in _TOOL_CHOICES:
        wanted["tool_choice"] = _TOOL_CHOICES[kind]
    else:
        raise _refuse(f"tool_choice.{kind}", "there is 'auto', 'any', 'tool' and 'none'")
    if value.get("disable_parallel_tool_use"):
        wanted["parallel_tool_calls"] = False


def _metadata(_: _Request, value: Any, wanted: dict[str, Any]) -> None:
    if not isinstance(value, dict):
        raise Refusal(400, "'metadata' must be an object.", "invalid_request", param="metadata")
    _check(value, frozenset({"user_id"}), "metadata")
    if value.get("user_id"):
        wanted["user"] = value["user_id"]


def _service_tier(_: _Request, value: Any, wanted: dict[str, Any]) -> None:
    if not isinstance(value, str) or value not in _TIERS:
        raise _refuse(f"service_tier.{value}", "there is 'auto' and 'standard_only'")
    wanted["service_tier"] = _TIERS[value]


def _thinking(request: _Request, value: Any, wanted: dict[str, Any]) -> None:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "disabled":
        wanted["reasoning_effort"] = "none"
    elif kind == "adaptive":
        wanted.setdefault("reasoning_effort", "high")  # Anthropic's own default; output_config may say another
    elif kind == "enabled":
        budget = value.get("budget_tokens")
        if not isinstance(budget, int):
            raise Refusal(
                400,
                "'thinking.budget_tokens' must be a whole number.",
                "invalid_request",
                param="thinking.budget_tokens",
            )
        share = budget / max(1, request.asked["max_tokens"])
        wanted.setdefault("reasoning_effort", next((effort for most, effort in _SHARES if share <= most), "high"))
    else:
        raise _refuse(f"thinking.{kind}", "there is 'enabled', 'adaptive' and 'disabled'")


def _output_config(_: _Request, value: Any, wanted: dict[str, Any]) -> None:
    if not isinstance(value, dict):
        raise Refusal(400, "'output_config' must be an object.", "invalid_request", param="output_config")
    _check(value, frozenset({"effort", "format"}), "output_config")
    effort = value.get("effort")
    if effort is not None:
        if effort not in _EFFORTS:
            raise _refuse(f"output_config.effort.{effort}", "there is " + ", ".join(_EFFORTS))
        if wanted.get("reasoning_effort") != "none":
            wanted["reasoning_effort"] = effort
    form = value.get("format")
    if form is not None:
        if not isinstance(form, dict) or form.get("type") != "json_schema":
            raise _refuse("output_config.format", "only type 'json_schema' is served")
        schema = {"name": "answer", "schema": form.get("schema"), "strict": True}
        wanted["response_format"] = {"type": "json_schema", "json_schema": schema}


def _cache_control(_: _Request, value: Any, wanted: dict[str, Any]) -> None:
    wanted["prompt_cache_options"] = {"mode": "implicit", **_ttl(value)}


_FIELDS: Final[dict[str, Callable[[_Request, Any, dict[str, Any]], None]]] = {
    "max_tokens": _max_tokens,
    "messages": _later,
    "system": _later,
    "tools": _later,
    "tool_choice": _tool_choice,
    "stop_sequences": _stop,
    "stream": _stream,
    "metadata": _metadata,
    "service_tier": _service_tier,
    "thinking": _thinking,
    "output_config": _output_config,
    "cache_control": _cache_control,
}
_ROLES: Final[dict[str, Callable[[_Request, Any], None]]] = {
    "user": _Request._user,
    "assistant": _Request._assistant,
    "system": _Request._system,
}
