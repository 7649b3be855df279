"""Messages of any convention in one form: OpenAI's chat messages, as the gateway writes them.

``parts`` of OpenTelemetry, numbered attributes of OpenInference and Traceloop, Vercel's and Langfuse's JSON: all become
``{"role", "content", "tool_calls", …}``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

_CALL: Final = re.compile(r"(?:message\.)?tool_calls\.(\d+)\.(?:tool_call\.)?(?:function\.)?(id|name|arguments)")
_PART: Final = re.compile(r"message\.contents\.(\d+)\.message_content\.(.+)")
_MOST_PARTS: Final = 10_000

Message = dict[str, Any]


def json_text(value: Any) -> str:
    """A value as JSON text."""
    return _encode(value).decode()


def decoded(value: Any) -> Any:
    """The value of a text that is a JSON list or object; anything else as it is."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return _decode(value)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            return value
    return value


def messages_of(value: Any) -> list[Message] | None:
    """The messages in a decoded value; ``None`` if it is something else."""
    if isinstance(value, dict):
        inner = value.get("messages")
        if isinstance(inner, list):
            found = messages_of(inner)
            system = value.get("system")
            if found is not None and isinstance(system, str) and system:
                found.insert(0, {"role": "system", "content": system})
            return found
        value = [value]
    if not isinstance(value, list) or not value:
        return None
    if not all(isinstance(one, dict) and isinstance(one.get("role"), str) for one in value):
        return None
    return [message for one in value for message in _normal(one)]


def _normal(message: Message) -> Sequence[Message]:
    parts = message.get("parts")
    if not isinstance(parts, list):
        content = message.get("content")
        if isinstance(content, list):
            message = {**message, "content": _joined(content)}
        return (message,)
    if len(parts) == 1 and isinstance(parts[0], dict) and parts[0].get("type") == "text":
        return ({"role": message["role"], "content": parts[0].get("content", "")},)
    return _from_parts(message["role"], parts)


def _from_parts(role: str, parts: Sequence[Any]) -> Sequence[Message]:
    """A message of parts: its texts, its tool calls, and the tools' answers as messages of their own."""
    content: list[Any] = []
    calls: list[Any] = []
    answers: list[Message] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            content.append({"type": "text", "text": part.get("content", "")})
        elif kind == "tool_call":
            calls.append(tool_call(part.get("id"), part.get("name"), part.get("arguments")))
        elif kind == "tool_call_response":
            answer = part.get("response", part.get("result"))
            answers.append({"role": "tool", "tool_call_id": part.get("id"), "content": _as_text(answer)})
        else:
            content.append(part)
    message: Message = {"role": role}
    if content or not (calls or answers):
        message["content"] = _joined(content)
    if calls:
        message["tool_calls"] = calls
    return [message, *answers] if len(message) > 1 else answers


def tool_call(call_id: Any, name: Any, arguments: Any) -> Message:
    """A tool call in OpenAI's form; ``arguments`` as text."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": _as_text(arguments)}}


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json_text(value)


def _joined(content: list[Any]) -> Any:
    """The text of a content that is texts alone; else the content, its texts in OpenAI's form."""
    if all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        return "\n".join(part["text"] for part in content)
    return content


def system_message(value: Any) -> Message | None:
    """System instructions: text, or a list of parts."""
    value = decoded(value)
    if isinstance(value, list):
        texts = [part.get("content") for part in value if isinstance(part, dict)]
        value = "\n".join(text for text in texts if isinstance(text, str))
    if isinstance(value, dict):
        value = value.get("content")
    return {"role": "system", "content": value} if isinstance(value, str) and value else None


def answer_of(messages: Sequence[Message]) -> tuple[str, list[str]]:
    """What was answered: the text alone where there is nothing else, else the messages as JSON; and why it ended."""
    reasons: list[str] = []
    bare: list[Message] = []
    for message in messages:
        reason = message.get("finish_reason")
        if isinstance(reason, str) and reason:
            reasons.append(reason)
        bare.append({key: value for key, value in message.items() if key != "finish_reason"})
    if len(bare) == 1:
        only = bare[0]
        if isinstance(only.get("content"), str) and not (only.keys() - {"role", "content"}):
            return only["content"], reasons
    return json_text(bare), reasons


def indexed_message(fields: Mapping[str, Any], parts: Mapping[str, str]) -> Message:
    """A message out of what stands behind its number: ``message.role``, ``tool_calls.0.name``.

    Args:
        fields: by the rest of the attribute's name.
        parts: the table's names of a message's parts.
    """
    message: Message = {}
    calls: dict[int, dict[str, Any]] = {}
    pieces: dict[int, dict[str, Any]] = {}
    for rest, value in fields.items():
        if rest in parts:
            message[parts[rest]] = value
        elif call := _CALL.fullmatch(rest):
            calls.setdefault(_place(call.group(1)), {})[call.group(2)] = value
        elif piece := _PART.fullmatch(rest):
            pieces.setdefault(_place(piece.group(1)), {})[piece.group(2)] = value
        else:
            message[rest] = value
    if pieces and "content" not in message:
        message["content"] = _joined([_piece(pieces[place]) for place in sorted(pieces)])
    if calls:
        message["tool_calls"] = [
            tool_call(one.get("id"), one.get("name"), one.get("arguments", ""))
            for one in (calls[place] for place in sorted(calls))
        ]
    content = decoded(message.get("content"))
    if isinstance(content, list) and content and all(isinstance(part, dict) and "type" in part for part in content):
        message["content"] = _joined(content)
    return {"role": message["role"], **message} if "role" in message else message


def _place(digits: str) -> int:
    return min(int(digits[:6]), _MOST_PARTS)


def _piece(fields: Mapping[str, Any]) -> Message:
    if fields.get("type", "text") == "text":
        return {"type": "text", "text": str(fields.get("text", ""))}
    image = fields.get("image.image.url")
    return {"type": "image_url", "image_url": {"url": image}} if image else dict(fields)
