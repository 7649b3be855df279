"""The alias table: which attribute names, of any generation and vendor, mean which field of a span.

The table is data (``aliases.toml``, beside this module); here it is only read and turned into look-ups.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasTable:
    """The table as look-ups.

    Args:
        version: of the table; spans tell the instrumentation's own by their ``scope``.
        columns, content, scores: field to its names, best first.
        named: every name of ``columns``, ``content`` and of the attributes that tell an operation: they are mapped,
            and are not kept as they came.
        indexed: prefix of numbered names (``llm.input_messages``) to ``input``, ``output`` or ``documents``.
        parts: what stands behind the number, to the field of a message or document.
        operations: attribute to (its value to operation), in the order in which they are asked.
        calls: operations that call a model.
        attributes: name to the one name it is kept under.
        events: name of a span event or log record to what it holds.
    """

    version: int
    columns: Mapping[str, tuple[str, ...]]
    content: Mapping[str, tuple[str, ...]]
    scores: Mapping[str, tuple[str, ...]]
    named: frozenset[str]
    indexed: Mapping[str, str]
    parts: Mapping[str, str]
    operations: Mapping[str, Mapping[str, str]]
    calls: frozenset[str]
    attributes: Mapping[str, str]
    events: Mapping[str, str]


@cache
def alias_table() -> AliasTable:
    """The table that this version of Tidemill reads names by."""
    text = resources.files("tidemill.telemetry").joinpath("aliases.toml").read_text("utf-8")
    return table_of(tomllib.loads(text))


def table_of(data: Mapping[str, Any]) -> AliasTable:
    """Turn the file's content into look-ups.

    Raises:
        ValueError: one name belongs to two events, parts or attributes.
    """
    columns = {field: tuple(names) for field, names in data["columns"].items()}
    content = {field: tuple(names) for field, names in data["content"].items()}
    mapped = {name for names in (*columns.values(), *content.values()) for name in names}
    return AliasTable(
        version=int(data["version"]),
        columns=columns,
        content=content,
        scores={field: tuple(names) for field, names in data["scores"].items()},
        named=frozenset(mapped | set(data["operations"])),
        indexed=_inverted(data["indexed"]),
        parts=_inverted(data["parts"]),
        operations={name: dict(values) for name, values in data["operations"].items()},
        calls=frozenset(data["calls"]["operations"]),
        attributes=_inverted(data["attributes"]),
        events=dict(data["events"]),
    )


def _inverted(rows: Mapping[str, list[str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for field, names in rows.items():
        for name in names:
            if found.setdefault(name, field) != field:
                raise ValueError(f"'{name}' stands in the alias table for '{found[name]}' and for '{field}'")
    return found
