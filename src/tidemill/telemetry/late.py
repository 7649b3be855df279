"""Content that came apart from its span, joined with what the span brought itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tidemill.telemetry.records import Content


def combined(contents: Sequence[Content]) -> Content:
    """One content out of several parts.

    Lists of messages are joined in order; of other texts the first that is not empty stays. Of the details, lists are
    joined and objects merged, earlier parts first.

    Args:
        contents: at least one: the span's own first, then what came apart, in the order of arrival.
    """
    if len(contents) == 1:
        return contents[0]
    said = _joined([one.input for one in contents if one.input])
    answer = _joined([one.output for one in contents if one.output])
    return Content(said, answer, _details([one.detail for one in contents if one.detail]))


def _joined(texts: Sequence[str]) -> str:
    if len(texts) < 2:
        return texts[0] if texts else ""
    lists = [_decoded(text) for text in texts]
    if not all(isinstance(one, list) for one in lists):
        return texts[0]
    found: list[Any] = []
    for one in lists:
        found += [message for message in one if message not in found]
    return msgspec.json.encode(found).decode()


def _details(texts: Sequence[str]) -> str:
    if len(texts) < 2:
        return texts[0] if texts else ""
    found: dict[str, Any] = {}
    for text in texts:
        detail = _decoded(text)
        if not isinstance(detail, dict):
            continue
        for name, value in detail.items():
            there = found.get(name)
            if isinstance(there, list) and isinstance(value, list):
                found[name] = there + value
            elif isinstance(there, dict) and isinstance(value, dict):
                found[name] = {**value, **there}
            elif there is None:
                found[name] = value
    return msgspec.json.encode(found).decode()


def _decoded(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
