"""Items of the Responses API and messages of a chat: one list into the other.

Source: OpenAI's API reference, Responses (input items, output items) and Chat completions (messages), 2026-11.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from tidemill.gateway.answers import Refusal

Item = dict[str, Any]
Message = dict[str, Any]

_ROLES: Final = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
#: item type -> prefix of its ids
_PREFIXES: Final = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "reasoning": "rs",
    "item_reference": "ref",
}
_NEEDED: Final[Mapping[str, tuple[str, ...]]] = {
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id",),
    "custom_tool_call": ("call_id", "name", "input"),
    "custom_tool_call_output": ("call_id",),
    "item_reference": ("id",),
}
_SEALED_MARK: Final = "tidemill:"  # begins our form of a reasoning item's encrypted_content


def unsupported(what: str, reason: str = "") -> Refusal:
    """The refusal of something that this endpoint cannot serve, by its name."""
    because = f": {reason}" if reason else ""
    return Refusal(400, f"This endpoint cannot serve {what}{because}.", "unsupported_parameter", param=what.strip("'"))


def malformed(text: str, param: str) -> Refusal:
    """The refusal of a field that is not what it should be."""
    return Refusal(400, text, "invalid_request", param=param)


def read_items(given: Any, stamp: str, param: str = "input") -> list[Item]:
    """Items as a client sent them, each with its type, an id and, for a message, a list as content.

    Args:
        given: a text, or a list of items.
        stamp: part of the ids that are given to items without one.
        param: names the field in errors.

    Raises:
        Refusal: 400, naming the item and what is wrong with it.
    """
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list):
        raise malformed(f"'{param}' must be a text or a list of items.", param)
    return [_read_item(item, f"{stamp}_i{index}", f"{param}[{index}]") for index, item in enumerate(given)]


def _read_item(item: Any, number: str, where: str) -> Item:
    if not isinstance(item, dict):
        raise malformed(f"'{where}' must be an object.", where)
    kind = item.get("type") or ("message" if "role" in item else "item_reference" if "id" in item else None)
    if kind not in _PREFIXES:
        raise unsupported(f"'{where}.type'", f"there is no item type '{kind}' here")
    for name in _NEEDED.get(kind, ()):
        if not isinstance(item.get(name), str):
            raise malformed(f"'{where}' is a {kind} and needs '{name}', a text.", f"{where}.{name}")
    found = {"id": item.get("id") or f"{_PREFIXES[kind]}_{number}", **item, "type": kind}
    found["id"] = found["id"] or f"{_PREFIXES[kind]}_{number}"
    if kind == "message":
        _read_message(found, where)
    elif kind in {"function_call_output", "custom_tool_call_output"}:
        if not isinstance(found.get("output"), str | list):
            raise malformed(f"'{where}.output' must be a text or a list of parts.", f"{where}.output")
        _parts(found["output"], f"{where}.output")
    if kind not in {"reasoning", "item_reference"}:
        found["status"] = item.get("status") or "completed"
    return found


def _read_message(item: Item, where: str) -> None:
    role = item.get("role")
    if role not in _ROLES:
        raise malformed(f"'{where}.role' must be one of {', '.join(_ROLES)}.", f"{where}.role")
    content = item.get("content")
    if isinstance(content, str):
        kind = "output_text" if role == "assistant" else "input_text"
        extra: dict[str, Any] = {"annotations": []} if role == "assistant" else {}
        item["content"] = [{"type": kind, "text": content, **extra}]
    elif not isinstance(content, list):
        raise malformed(f"'{where}.content' must be a text or a list of parts.", f"{where}.content")
    _parts(item["content"], f"{where}.content")


# -- content parts ------------------------------------------------------------------------------------------------


def _parts(content: str | list[Any], where: str) -> list[dict[str, Any]]:
    """The content as a chat's parts."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    found = []
    for index, part in enumerate(content):
        place = f"{where}[{index}]"
        translate = _PARTS.get(part.get("type")) if isinstance(part, dict) else None
        if translate is None:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise unsupported(f"'{place}.type'", f"there is no content part '{kind}' here")
        found.append(translate(part, place))
    return found


def _text_part(part: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(part.get("text"), str):
        raise malformed(f"'{where}.text' must be a text.", f"{where}.text")
    return _with_rest({"type": "text", "text": part["text"]}, part, "annotations", "logprobs")


def _refusal_part(part: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(part.get("refusal"), str):
        raise malformed(f"'{where}.refusal' must be a text.", f"{where}.refusal")
    return {"type": "refusal", "refusal": part["refusal"]}


def _image_part(part: Mapping[str, Any], where: str) -> dict[str, Any]:
    if part.get("file_id"):
        raise unsupported(f"'{where}.file_id'", "send the image as 'image_url', a URL or a data URL")
    url = part.get("image_url")
    if not isinstance(url, str) or not url:
        raise malformed(f"'{where}.image_url' must be a URL or a data URL.", f"{where}.image_url")
    image = {"url": url}
    if part.get("detail"):
        image["detail"] = part["detail"]
    return _with_rest({"type": "image_url", "image_url": image}, part, "detail", "file_id")


def _file_part(part: Mapping[str, Any], where: str) -> dict[str, Any]:
    if part.get("file_url"):
        raise unsupported(f"'{where}.file_url'", "send the file as 'file_data'")
    file = {name: part[name] for name in ("file_data", "file_id", "filename") if part.get(name)}
    if not file.keys() & {"file_data", "file_id"}:
        raise malformed(f"'{where}' needs 'file_data' or 'file_id'.", where)
    return _with_rest({"type": "file", "file": file}, part, "file_data", "file_id", "filename", "file_url", "detail")


def _audio_part(part: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(part.get("input_audio"), dict):
        raise malformed(f"'{where}.input_audio' must be an object with 'data' and 'format'.", f"{where}.input_audio")
    return dict(part)


def _with_rest(made: dict[str, Any], part: Mapping[str, Any], *known: str) -> dict[str, Any]:
    """Pass on what this dialect does not know, e.g. a cache breakpoint."""
    return {**{name: value for name, value in part.items() if name not in known and name != "type"}, **made}


_PARTS: Final[Mapping[Any, Callable[[Mapping[str, Any], str], dict[str, Any]]]] = {
    "input_text": _text_part,
    "output_text": _text_part,
    "text": _text_part,
    "refusal": _refusal_part,
    "input_image": _image_part,
    "input_file": _file_part,
    "input_audio": _audio_part,
}


def _plain(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """One plain text as such: more servers understand it than understand lists."""
    if len(parts) == 1 and parts[0].keys() == {"type", "text"}:
        return str(parts[0]["text"])
    return parts


# -- items -> messages ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Translated:
    """A chat's messages, and where they came from.

    Args:
        messages: in order.
        ends: for each message, how many items it and those before it were made of.
    """

    messages: list[Message] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)


class _Writer:
    """Puts messages together: an assistant's text and the calls that follow it are one message."""

    def __init__(self) -> None:
        self.made = Translated()
        self._open: Message | None = None  # an assistant message that may still get calls
        self._thoughts: list[Any] | None = None

    def add(self, item: Item, count: int) -> None:
        kind = item["type"]
        if kind == "reasoning":
            self._open = None
            self._thoughts = open_thoughts(item)
            return
        if kind == "message":
            self._message(item, count)
        elif kind in {"function_call", "custom_tool_call"}:
            self._call(item, count)
        else:
            self._open = None
            content = _plain(_parts(item["output"], "output"))
            self._put({"role": "tool", "tool_call_id": item["call_id"], "content": content}, count)

    def _message(self, item: Item, count: int) -> None:
        role = _ROLES[item["role"]]
        self._open = None
        parts = _parts(item["content"], "content")
        if role != "assistant":
            self._put({"role": role, "content": _plain(parts)}, count)
            return
        message: Message = {"role": "assistant", "content": "".join(part.get("text", "") for part in parts)}
        refusal = "".join(part.get("refusal", "") for part in parts)
        if refusal:
            message["refusal"] = refusal
        self._put_open(message, count)

    def _call(self, item: Item, count: int) -> None:
        if self._open is None:
            self._put_open({"role": "assistant", "content": None}, count)
        assert self._open is not None
        self.made.ends[-1] = count
        if item["type"] == "function_call":
            said = {"type": "function", "function": {"name": item["name"], "arguments": item["arguments"]}}
        else:
            said = {"type": "custom", "custom": {"name": item["name"], "input": item["input"]}}
        self._open.setdefault("tool_calls", []).append({"id": item["call_id"], **said})

    def _put_open(self, message: Message, count: int) -> None:
        if self._thoughts:
            message["reasoning_details"] = self._thoughts
            self._thoughts = None
        self._put(message, count)
        self._open = message

    def _put(self, message: Message, count: int) -> None:
        self.made.messages.append(message)
        self.made.ends.append(count)


def to_messages(items: Sequence[Item]) -> Translated:
    """A chat's messages for items that ``read_items`` or the model made.

    A reasoning item goes back to the model as ``reasoning_details`` of the assistant message that follows it, if it
    carries what a provider wants back; the text of a thought has no place in a chat's messages.
    """
    writer = _Writer()
    for count, item in enumerate(items, 1):
        writer.add(item, count)
    return writer.made


# -- reasoning ------------------------------------------------------------------------------------------------------


def close_thoughts(details: Any) -> str:
    """A provider's ``reasoning_details`` as the ``encrypted_content`` of a reasoning item."""
    return _SEALED_MARK + base64.b64encode(msgspec.json.encode(details)).decode()


def open_thoughts(item: Item) -> list[Any] | None:
    """What ``close_thoughts`` wrote; ``None`` where there is nothing to be sent back."""
    text = item.get("encrypted_content")
    if not isinstance(text, str) or not text.startswith(_SEALED_MARK):
        return None
    try:
        details = msgspec.json.decode(base64.b64decode(text.removeprefix(_SEALED_MARK), validate=True))
    except (binascii.Error, msgspec.DecodeError, ValueError):
        raise malformed("A reasoning item's 'encrypted_content' was altered.", "input") from None
    return details if isinstance(details, list) else None
