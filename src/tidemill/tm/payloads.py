"""Arguments and results as attribute texts."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

MOST_CHARS: Final = 256 * 1024
"""Longer texts are cut, with a mark that says so."""

_MARK: Final = "… [cut: {} characters more]"
_MOST_ITEMS: Final = 10_000


def as_text(value: Any) -> tuple[str, str]:
    """A value as text with its media type: a string as it is, anything else as JSON."""
    if isinstance(value, str):
        return cut(value), "text/plain"
    try:
        text = json.dumps(value, ensure_ascii=False, default=_plain)
    except (TypeError, ValueError, RecursionError):  # keys that are no text, circles
        text = json.dumps(_described(value), ensure_ascii=False)
    return cut(text), "application/json"


def arguments_of(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a function was called with: its only argument, or all by name; without ``self`` and ``cls``."""
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):  # the call itself will say what is wrong with it
        return {"args": list(args), "kwargs": dict(kwargs)}
    named = dict(bound.arguments)
    if named and next(iter(named)) in ("self", "cls"):
        named.pop(next(iter(named)))
    only = list(named.values())
    return only[0] if len(only) == 1 and isinstance(only[0], str) else named


def collected(items: Sequence[Any]) -> Any:
    """What a generator gave: one text of texts, else the list."""
    return "".join(items) if items and all(isinstance(one, str) for one in items) else list(items)


def cut(text: str) -> str:
    """The text, cut where it is too long; half a surrogate pair, which no exporter can encode, is replaced."""
    safe = text.encode("utf-8", "replace").decode() if not text.isascii() else text
    return safe if len(safe) <= MOST_CHARS else safe[:MOST_CHARS] + _MARK.format(len(safe) - MOST_CHARS)


def enough(items: Sequence[Any]) -> bool:
    """Whether more of a generator's items would not be kept."""
    return len(items) >= _MOST_ITEMS


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    dump = getattr(value, "model_dump", None)
    if callable(dump):  # pydantic, without importing it
        return dump(mode="json")
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    if isinstance(value, Mapping):
        return {str(key): one for key, one in value.items()}
    return _described(value)


def _described(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - a broken __repr__ must not break the program that is watched
        return f"<{type(value).__name__}>"
