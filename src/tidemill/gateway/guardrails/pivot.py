"""Requests and answers as guardrails see them: the pivot's JSON, and the texts in it.

A text is any string that a person, a model or a tool wrote, wherever it stands below ``messages``, ``prompt``,
``input`` or ``choices``: content, its parts, tool arguments, refusals, reasoning; and the ``text`` of a transcription.
Names of roles and types, ids, and the data of images and audio are none: nobody here looks into a picture or listens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

_ASKED: Final = ("messages", "prompt", "input", "instructions")
_NO_TEXT: Final = frozenset(
    ("role", "type", "id", "tool_call_id", "call_id", "url", "data", "file_data", "format", "detail", "finish_reason")
)
_FORM: Final = "transcription"
"""Its request is a form with a file."""
_SOUND: Final = "speech"
"""Its answer is sound."""
_encode: Final = msgspec.json.encode
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode

Place = tuple[int | str, ...]


class PivotRequest:
    """A request in the pivot format. Its body is only read when somebody looks into it.

    Args:
        operation: what is asked, e.g. ``chat``.
        body: JSON.

    Raises:
        msgspec.DecodeError: by whatever looks into a body that is not a JSON object.
    """

    __slots__ = ("_value", "body", "operation")

    def __init__(self, operation: str, body: bytes) -> None:
        self.operation = operation
        self.body = body
        self._value: dict[str, Any] | None = None

    @property
    def value(self) -> dict[str, Any]:
        """The decoded body; to be left unchanged."""
        if self._value is None:
            self._value = {} if self.operation == _FORM else _decode(self.body)
        return self._value

    def texts(self) -> Iterator[str]:
        """Every text of the request."""
        for name in _ASKED:
            yield from (text for _, text in found_texts(self.value.get(name)))

    def mapped(self, change: Callable[[str], str]) -> bytes | None:
        """The body with every text changed; ``None`` if nothing changes."""
        changed = {name: _mapped(self.value[name], change) for name in _ASKED if name in self.value}
        if all(changed[name] == self.value[name] for name in changed):
            return None
        return _encode({**self.value, **changed})


class PivotAnswer:
    """A whole answer in the pivot format; see ``PivotRequest``.

    Args:
        operation: what was asked.
        body: JSON.
        request: what it answers.
    """

    __slots__ = ("_value", "body", "operation", "request")

    def __init__(self, operation: str, body: bytes, request: PivotRequest | None = None) -> None:
        self.operation = operation
        self.body = body
        self.request = request
        self._value: dict[str, Any] | None = None

    @property
    def value(self) -> dict[str, Any]:
        """The decoded body; to be left unchanged."""
        if self._value is None:
            self._value = {} if self.operation == _SOUND else _decode(self.body)
        return self._value

    def texts(self) -> Iterator[str]:
        """Every text of every choice."""
        yield from (text for _, text in found_texts(self.value.get("text")))
        for choice in self._choices():
            yield from (text for _, text in found_texts(_said(choice)))

    def mapped(self, change: Callable[[str], str]) -> bytes | None:
        """The body with every text changed; ``None`` if nothing changes. Log probabilities of what changed go."""
        value = dict(self.value)
        if "text" in value:
            value["text"] = _mapped(value["text"], change)
        choices = []
        for choice in self._choices():
            said = _said(choice)
            changed = _mapped(said, change)
            choices.append(choice if changed == said else {**choice, **changed, "logprobs": None})
        if choices:
            value["choices"] = choices
        return None if value == self.value else _encode(value)

    def _choices(self) -> list[dict[str, Any]]:
        choices = self.value.get("choices")
        return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def _said(choice: dict[str, Any]) -> dict[str, Any]:
    return {name: choice[name] for name in ("message", "delta", "text") if choice.get(name) is not None}


def found_texts(value: Any, place: Place = ()) -> Iterator[tuple[Place, str]]:
    """The texts below a JSON value, each with where it stands: names of fields, and indexes of list items."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, list):
        for at, item in enumerate(value):
            # Streamed list items say themselves which of the list they are.
            index = item.get("index", at) if isinstance(item, dict) else at
            yield from found_texts(item, (*place, index))
    elif isinstance(value, dict):
        for name, item in value.items():
            if name not in _NO_TEXT:
                yield from found_texts(item, (*place, name))


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_mapped(item, change) for item in value]
    if isinstance(value, dict):
        return {name: item if name in _NO_TEXT else _mapped(item, change) for name, item in value.items()}
    return value
