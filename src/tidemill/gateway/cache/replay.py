"""One kept answer, two forms: a whole JSON answer from a stream's events, and a stream from a whole answer.

Both ways keep fields this gateway does not know. Deltas are joined as OpenAI's own clients join them: strings grow,
list items with an ``index`` meet by it, everything else is replaced.
(https://platform.openai.com/docs/api-reference/chat-streaming)
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

DONE: Final = b"data: [DONE]\n\n"
_CHUNK: Final = "chat.completion.chunk"
_WHOLE: Final = "chat.completion"
_SET_ONCE: Final = frozenset(("role", "id", "type", "name", "object", "index"))
_ON_EACH_CHUNK: Final = ("id", "created", "model", "system_fingerprint", "service_tier")

_encode: Final = msgspec.json.encode
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode


def whole_of(stream: bytes) -> bytes | None:
    """The whole answer that a complete stream told.

    Args:
        stream: pivot events, the last of them ``[DONE]``.

    Returns:
        JSON, or ``None`` if the stream is not complete, holds an error, or cannot be read.
    """
    answer: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    events = read_events(stream)
    if events is None:
        return None
    for event in events:
        if event.get("error") is not None:
            return None
        for choice in event.pop("choices", None) or ():
            _join_choice(choices.setdefault(choice.get("index", 0), {}), choice)
        answer.update({name: value for name, value in event.items() if value is not None})
    if not choices or any(choice.get("finish_reason") is None for choice in choices.values()):
        return None
    if answer.get("object") == _CHUNK:
        answer["object"] = _WHOLE
    usage = answer.pop("usage", None)
    answer["choices"] = [_whole_choice(index, choices[index]) for index in sorted(choices)]
    return _encode(answer if usage is None else {**answer, "usage": usage})


def read_events(stream: bytes) -> list[dict[str, Any]] | None:
    """The JSON of a complete stream's events; ``None`` if one cannot be read or ``[DONE]`` is missing."""
    events = []
    finished = False
    for line in stream.splitlines():
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            finished = True
            continue
        try:
            events.append(_decode(data))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
    return events if finished else None


def stream_of(whole: bytes, *, include_usage: bool = False) -> bytes | None:
    """A whole answer as the events of a stream: per choice its role, all it says, and how it finished.

    Args:
        whole: a pivot answer of a chat or a text completion.
        include_usage: the request's ``stream_options.include_usage``; usage is an event of its own before the last.

    Returns:
        Events with ``[DONE]``, or ``None`` if it cannot be read.
    """
    try:
        answer = _decode(whole)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    choices = answer.pop("choices", None)
    if not isinstance(choices, list) or not choices:
        return None
    usage = answer.pop("usage", None)
    kind = answer.pop("object", _WHOLE)
    common: dict[str, Any] = {name: answer.pop(name) for name in _ON_EACH_CHUNK if name in answer}
    common["object"] = _CHUNK if kind == _WHOLE else kind
    events = [event for choice in choices for event in _chunks(choice)]
    last = {**common, "choices": [events.pop()], **answer}  # what the gateway does not know stands at the end
    lines = [{**common, "choices": [event]} for event in events] + [last]
    if include_usage and usage is not None:
        lines.append({**common, "choices": [], "usage": usage})
    return b"".join([b"data: %b\n\n" % _encode(line) for line in lines]) + DONE


def _join_choice(choice: dict[str, Any], chunk: dict[str, Any]) -> None:
    for name, value in chunk.items():
        if value is None:
            choice.setdefault(name, None)
        elif name == "text":
            choice["text"] = (choice.get("text") or "") + value
        elif name == "finish_reason":
            choice[name] = value
        elif isinstance(value, dict):
            held = choice.get(name)
            choice[name] = held if isinstance(held, dict) else {}
            _join(choice[name], value)
        else:
            choice[name] = value


def _join(held: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        before = held.get(name)
        if before is None or value is None:
            held[name] = before if value is None else _copy(value)
        elif isinstance(before, str) and isinstance(value, str) and name not in _SET_ONCE:
            held[name] = before + value
        elif isinstance(before, dict) and isinstance(value, dict):
            _join(before, value)
        elif isinstance(before, list) and isinstance(value, list):
            _join_list(before, value)
        elif value != "":
            held[name] = value


def _join_list(held: list[Any], items: list[Any]) -> None:
    for item in items:
        index = item.get("index") if isinstance(item, dict) else None
        twin = next((one for one in held if isinstance(one, dict) and one.get("index") == index), None)
        if index is not None and twin is not None:
            _join(twin, item)
        else:
            held.append(_copy(item))


def _copy(value: Any) -> Any:
    if isinstance(value, list):
        held: list[Any] = []
        _join_list(held, value)
        return held
    if isinstance(value, dict):
        return {name: _copy(item) for name, item in value.items()}
    return value


def _whole_choice(index: int, choice: dict[str, Any]) -> dict[str, Any]:
    delta = choice.pop("delta", None)
    choice.pop("index", None)
    if delta is None:
        return {"index": index, **choice}
    message = {"role": "assistant", "content": None, **delta}
    for call in message.get("tool_calls") or ():
        call.pop("index", None)
    return {"index": index, "message": message, **choice}


def _chunks(choice: dict[str, Any]) -> list[dict[str, Any]]:
    rest = dict(choice)
    index, reason = rest.pop("index", 0), rest.pop("finish_reason", None)
    if "text" in rest:
        said = {"index": index, **rest, "finish_reason": None}
        return [said, {"index": index, "text": "", "logprobs": None, "finish_reason": reason}]
    message = dict(rest.pop("message", None) or {})
    role = {"role": message.pop("role", "assistant"), "content": ""}
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        message["tool_calls"] = [{"index": place, **call} for place, call in enumerate(calls)]
    message = {name: value for name, value in message.items() if value is not None}
    events = [{"index": index, "delta": role, "finish_reason": None}] if message.get("content") is not None else []
    if not events:
        message = {"role": role["role"], **message}
    events.append({"index": index, "delta": message, **rest, "finish_reason": None})
    return [*events, {"index": index, "delta": {}, "finish_reason": reason}]
