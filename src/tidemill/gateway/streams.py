"""What the events of a stream are, as far as delivery must know: content, an error, broken, or nothing yet.

Events are OpenAI's (``data: {...}`` and a blank line). They are read shallowly: whether each is JSON at all and whether
it carries an ``error`` costs a quarter of a microsecond an event; what it says is looked at only until the first one
that says something.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from enum import Enum
from typing import Final, NamedTuple

import msgspec

EVENT_ENDS: Final = (b"\n\n", b"\r\n\r\n")
DONE: Final = b"[DONE]"
DONE_WITHIN: Final = -24
"""``[DONE]`` is looked for in the last bytes of what came: nothing follows it."""

_NO_RAW: Final = msgspec.Raw(b"")
_EMPTY: Final = frozenset((b"", b"null", b'""', b"[]", b"{}"))
_GAP: Final = re.compile(rb"\r?\n\r?\n")


class View(Enum):
    """What an event is."""

    NOTHING = "nothing"
    CONTENT = "content"
    ERROR = "error"
    MALFORMED = "malformed"


class Trouble(NamedTuple):
    """An event that ends a stream.

    Args:
        at: where in the bytes it begins; what stands before it is good.
        view: ``ERROR`` or ``MALFORMED``.
        error: the error, as JSON.
    """

    at: int
    view: View
    error: bytes


class Event(msgspec.Struct, gc=False):
    """What an event of a stream is always asked: whether it is JSON, and carries an error or usage."""

    error: msgspec.Raw = _NO_RAW
    usage: msgspec.Raw = _NO_RAW


class _Delta(msgspec.Struct, gc=False):
    content: msgspec.Raw = _NO_RAW
    tool_calls: msgspec.Raw = _NO_RAW
    function_call: msgspec.Raw = _NO_RAW
    refusal: msgspec.Raw = _NO_RAW
    reasoning: msgspec.Raw = _NO_RAW
    reasoning_content: msgspec.Raw = _NO_RAW
    reasoning_details: msgspec.Raw = _NO_RAW
    audio: msgspec.Raw = _NO_RAW


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    text: msgspec.Raw = _NO_RAW
    finish_reason: msgspec.Raw = _NO_RAW


class _Telling(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    error: msgspec.Raw = _NO_RAW


class _Choices(msgspec.Struct, gc=False):
    choices: list[msgspec.Raw] | None = None
    usage: msgspec.Raw = _NO_RAW


_event: Final = msgspec.json.Decoder(Event)
read_event: Final = _event.decode
"""Read the JSON of one event; trailing line ends are allowed. Raises msgspec's ``DecodeError``."""
_events: Final = msgspec.json.Decoder(list[Event])
_telling: Final = msgspec.json.Decoder(_Telling)
_choices: Final = msgspec.json.Decoder(_Choices)


def is_object(data: bytes) -> bool:
    """Whether this is a JSON object.

    Half of a surrogate pair, which servers send that cut text between tokens, is JSON, although msgspec refuses it.
    """
    try:
        _event.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return b"\\u" in data and _is_odd_object(data)
    return True


def _is_odd_object(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        return False


def whole_events(data: bytes) -> int:
    """How many bytes of ``data`` are whole events; the rest is the beginning of one."""
    if data.endswith(EVENT_ENDS):
        return len(data)
    return max((data.rfind(mark) + len(mark) for mark in EVENT_ENDS if mark in data), default=0)


def trouble(events: bytes) -> Trouble | None:
    """The first of these whole events that is an error or no JSON; ``None`` when all are good.

    Args:
        events: whole events.
    """
    if events.startswith(b"data: {"):
        try:
            body = events[6:].rstrip()
            if body.endswith(b"data: [DONE]"):
                body = body[:-12].rstrip()
            # Inside JSON a line feed is always escaped, so this separator only occurs between events.
            found = _events.decode(b"[" + body.replace(b"\n\ndata: ", b",") + b"]")
            if not any(event.error for event in found):
                return None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass  # the way below tells which event it is, and forgives comments and names
    for at, name, data in _each(events):
        view, error_json = _judge(name, data)
        if view is not View.NOTHING:
            return Trouble(at, view, error_json)
    return None


def opening(events: bytes, *, says_text: bool) -> tuple[View, Trouble | None]:
    """What the first deciding event among these is: content, or trouble; ``NOTHING`` when none decides.

    Content is text, a tool call, a refusal, reasoning or audio; a finish reason too, for then there is no more to wait
    for. A role alone, an empty delta, a ping, or usage is nothing.

    Args:
        events: whole events.
        says_text: whether they are completions; of other operations any event is content.
    """
    for at, name, data in _each(events):
        view, error = _judge(name, data)
        if view is not View.NOTHING:
            return view, Trouble(at, view, error)
        if not says_text or _tells(data):
            return View.CONTENT, None
    return View.NOTHING, None


def without_usage(events: bytes) -> bytes:
    """The same events without those that only tell usage (no choices), for a client that did not ask for them."""
    if b'"choices":[]' not in events and b'"choices": []' not in events:
        return events
    kept = bytearray()
    places = [(at, data) for at, _, data in _each(events)]
    for place, (at, data) in enumerate(places):
        end = places[place + 1][0] if place + 1 < len(places) else len(events)
        if not _only_usage(data):
            kept += events[at:end]
    return bytes(kept)


def _only_usage(data: bytes) -> bool:
    try:
        found = _choices.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return found.choices == [] and bytes(found.usage) not in _EMPTY


def _each(events: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Place, name and data of each event; comments and ids are left out."""
    at = 0
    while at < len(events):
        gap = _GAP.search(events, at)
        end = gap.end() if gap is not None else len(events)
        name, parts = b"", []
        for line in events[at : gap.start() if gap is not None else end].splitlines():
            field, _, value = line.partition(b":")
            if field == b"data":
                parts.append(value.removeprefix(b" "))
            elif field == b"event":
                name = value.strip()
        if parts:
            yield at, name, b"\n".join(parts)
        at = end


def _judge(name: bytes, data: bytes) -> tuple[View, bytes]:
    if data.strip() == DONE:
        return View.NOTHING, b""
    try:
        error = _event.decode(data).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return View.NOTHING if is_object(data) else View.MALFORMED, b""
    if error and bytes(error) not in _EMPTY:
        return View.ERROR, bytes(error)
    if name == b"error":
        return View.ERROR, data
    return View.NOTHING, b""


def _tells(data: bytes) -> bool:
    if data.strip() == DONE:
        return False
    try:
        choices = _telling.decode(data).choices
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return True  # of another shape than ours: let the client read it
    for choice in choices or ():
        delta = choice.delta
        said = [choice.text, choice.finish_reason]
        if delta is not None:
            said += [getattr(delta, name) for name in delta.__struct_fields__]
        if any(part and bytes(part) not in _EMPTY for part in said):
            return True
    return False
