"""Rules that send a request to a named target by what it says, and the texts of a request they look at."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from tidemill.kernel import InvalidInput

_SEARCHED_MOST: Final = 256 * 1024
"""Characters of a part that patterns are tried on, so that a 10 MB prompt cannot stop the worker."""

_any: Final = msgspec.json.Decoder()


@dataclass(slots=True)
class RoutingCall:
    """A request as far as the choice of a target may look at it. Raw JSON is decoded only by those who need it.

    Args:
        streamed: whether the answer is a stream.
        messages: the raw JSON of ``messages``, ``prompt`` or ``input``.
        tools: the raw JSON of ``tools``; empty without.
        user: the request's ``user``.
        input_bytes: of the request's body.
        max_output_tokens: what the request allows for its answer; ``None`` when it says nothing.
    """

    streamed: bool = False
    messages: bytes | memoryview = b""
    tools: bytes | memoryview = b""
    user: str | None = None
    input_bytes: int = 0
    max_output_tokens: int | None = None


def turns_of(messages: bytes | memoryview) -> list[tuple[str, str]]:
    """The turns of a request as (role, text).

    ``messages`` may also be a ``prompt`` or an ``input``: a text or a list of texts, which are one user turn each. What
    holds no text (images, token ids, what is not JSON) gives none.
    """
    try:
        value = _any.decode(messages) if messages else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    if isinstance(value, str):
        return [("user", value)]
    if not isinstance(value, list):
        return []
    turns: list[tuple[str, str]] = []
    for turn in value:
        if isinstance(turn, str):
            turns.append(("user", turn))
        elif isinstance(turn, dict):
            turns.append((str(turn.get("role", "user")), _text(turn.get("content"))))
    return turns


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = (part.get("text") for part in content if isinstance(part, dict))
    return "\n".join(text for text in texts if isinstance(text, str))


def _messages(call: RoutingCall) -> str:
    return "\n".join(text for _, text in turns_of(call.messages))


def _tools(call: RoutingCall) -> str:
    return bytes(call.tools).decode("utf-8", "replace")


_PARTS: Final[dict[str, Callable[[RoutingCall], str]]] = {
    "messages": _messages,
    "user": lambda call: call.user or "",
    "tools": _tools,
}


class RuleList:
    """The rules of a release, compiled.

    Args:
        rules: (part, pattern, target name), the first that is found wins. Parts are ``messages`` (all turns, one a
            line or more, as text), ``user`` and ``tools`` (raw JSON). Patterns are Python regular expressions, searched
            in the first 256 thousand characters; they are the operator's own, so their cost is too.
        names: names of the release's targets, in order.

    Raises:
        InvalidInput: an unknown part or target, or a pattern that is none.
    """

    def __init__(self, rules: Sequence[tuple[str, str, str]], names: Sequence[str]) -> None:
        self._rules: list[tuple[str, re.Pattern[str], int]] = []
        for part, pattern, name in rules:
            if part not in _PARTS:
                raise InvalidInput(f"rule for '{part}': a rule looks at one of {', '.join(_PARTS)}")
            if name not in names:
                raise InvalidInput(f"rule '{pattern}' names the target '{name}', which is none of {', '.join(names)}")
            try:
                self._rules.append((part, re.compile(pattern), list(names).index(name)))
            except re.error as error:
                raise InvalidInput(f"rule '{pattern}' is no regular expression: {error}") from error

    def find(self, call: RoutingCall) -> int | None:
        """The target that the first matching rule names; ``None`` without one. Each part is read at most once."""
        read: dict[str, str] = {}
        for part, pattern, target in self._rules:
            text = read.get(part)
            if text is None:
                text = read[part] = _PARTS[part](call)[:_SEARCHED_MOST]
            if pattern.search(text):
                return target
        return None
