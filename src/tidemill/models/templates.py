"""Logic-less message templates: ``{{name}}``, ``{{#list}}…{{/list}}`` and ``{{^name}}…{{/name}}``.

A template decides where values stand and nothing else: no expressions, no calls, no escapes. A value is put in as it
is and never read as a template, so text that a user or a document brings cannot open a tag. The syntax is the part of
Mustache (its specification v1.3) that prompts need; nothing is HTML-escaped, for the reader is a model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from tidemill.kernel import InvalidInput

_TAG: Final = re.compile(r"\{\{([#^/!]?)\s*(.*?)\s*\}\}", re.DOTALL)
_NAME: Final = re.compile(r"\.|[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")
_MISSING: Final = object()


@dataclass(frozen=True, slots=True)
class _Variable:
    name: str


@dataclass(frozen=True, slots=True)
class _Section:
    name: str
    inverted: bool
    children: tuple[str | _Variable | _Section, ...]


_Node = str | _Variable | _Section


def render(text: str, variables: Mapping[str, Any]) -> str:
    """Put values into a template.

    ``{{name}}`` and ``{{a.b}}`` stand for a value: texts as they are, numbers by ``str``. ``{{#name}}…{{/name}}`` is
    repeated for each item of a list (a mapping's keys become names inside, ``{{.}}`` is the item itself), shown once
    for any other value that is not empty, and left out for an empty, false or ``None`` value.
    ``{{^name}}…{{/name}}`` is its opposite. ``{{! …}}`` is a comment. A line that holds only a section or comment tag
    vanishes with its line break.

    Args:
        text: the template.
        variables: values by name; names it does not use are ignored.

    Raises:
        InvalidInput: the template is malformed, or a name it uses has no value.
    """
    parts: list[str] = []
    _render(_parse(text), [variables], parts)
    return "".join(parts)


def render_messages(messages: Sequence[Mapping[str, str]], variables: Mapping[str, Any]) -> list[dict[str, str]]:
    """Render the ``content`` of each chat message; roles and other keys stay as they are."""
    return [{**message, "content": render(message["content"], variables)} for message in messages]


def template_variables(text: str) -> frozenset[str]:
    """The names a template takes from its caller: each first name that no enclosing section can supply.

    Raises:
        InvalidInput: the template is malformed.
    """
    names: set[str] = set()
    _collect(_parse(text), names, inside=False)
    return frozenset(names)


@lru_cache(maxsize=256)
def _parse(text: str) -> tuple[_Node, ...]:
    stack: list[tuple[str, bool, list[_Node]]] = [("", False, [])]
    at = 0
    for match in _TAG.finditer(text):
        sigil, name = match.groups()
        start, end = _standalone(text, match) if sigil else match.span()
        if start > at:
            stack[-1][2].append(text[at:start])
        at = max(at, end)
        if sigil == "!":
            continue
        if not _NAME.fullmatch(name):
            raise InvalidInput(f"template, {_place(text, match)}: '{match[0]}' does not hold a name")
        if sigil == "/":
            _close(stack, name, text, match)
        elif sigil:
            stack.append((name, sigil == "^", []))
        else:
            stack[-1][2].append(_Variable(name))
    if len(stack) > 1:
        raise InvalidInput(
            f"template: section '{stack[-1][0]}' is never closed; add {{{{/{stack[-1][0]}}}}} where it ends"
        )
    stack[0][2].append(text[at:])
    return tuple(stack[0][2])


def _close(stack: list[tuple[str, bool, list[_Node]]], name: str, text: str, match: re.Match[str]) -> None:
    opened, inverted, children = stack[-1]
    if len(stack) == 1 or opened != name:
        expected = f"'{opened}' is open" if opened else "no section is open"
        raise InvalidInput(f"template, {_place(text, match)}: '{match[0]}' closes '{name}' but {expected}")
    stack.pop()
    stack[-1][2].append(_Section(opened, inverted, tuple(children)))


def _standalone(text: str, match: re.Match[str]) -> tuple[int, int]:
    """The span of a tag, widened to its whole line when nothing else stands there."""
    start, end = match.span()
    line_start = text.rfind("\n", 0, start) + 1
    line_end = text.find("\n", end)
    if text[line_start:start].strip(" \t") or text[end : line_end if line_end >= 0 else len(text)].strip(" \t\r"):
        return start, end
    return line_start, line_end + 1 if line_end >= 0 else len(text)


def _place(text: str, match: re.Match[str]) -> str:
    return f"line {text.count(chr(10), 0, match.start()) + 1}"


def _render(nodes: Sequence[_Node], scopes: list[Any], parts: list[str]) -> None:
    for node in nodes:
        if isinstance(node, str):
            parts.append(node)
        elif isinstance(node, _Variable):
            parts.append(_text(_look_up(node.name, scopes), node.name))
        else:
            value = _look_up(node.name, scopes)
            if node.inverted:
                if not value:
                    _render(node.children, scopes, parts)
                continue
            for item in _items(value):
                _render(node.children, [*scopes, item], parts)


def _items(value: Any) -> Sequence[Any]:
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return value
    return (value,) if value else ()


def _text(value: Any, name: str) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping) or (isinstance(value, Sequence) and not isinstance(value, str)):
        raise InvalidInput(
            f"template: '{name}' is a list or a mapping; show its items in a section {{{{#{name}}}}}…{{{{/{name}}}}}"
        )
    return str(value)


def _look_up(name: str, scopes: Sequence[Any]) -> Any:
    if name == ".":
        return scopes[-1]
    first, *rest = name.split(".")
    value: Any = _MISSING
    for scope in reversed(scopes):
        if isinstance(scope, Mapping) and first in scope:
            value = scope[first]
            break
    for key in rest:
        value = value.get(key, _MISSING) if isinstance(value, Mapping) else _MISSING
    if value is _MISSING:
        known = sorted({str(key) for scope in scopes if isinstance(scope, Mapping) for key in scope})
        raise InvalidInput(
            f"template: there is no value for '{name}'; the values given are {', '.join(known) or 'none'}"
        )
    return value


def _collect(nodes: Sequence[_Node], names: set[str], *, inside: bool) -> None:
    for node in nodes:
        if isinstance(node, _Variable) and not inside and node.name != ".":
            names.add(node.name.split(".")[0])
        elif isinstance(node, _Section):
            if not inside and node.name != ".":
                names.add(node.name.split(".")[0])
            _collect(node.children, names, inside=inside or not node.inverted)
