"""How the attributes of one kind of span are read. Spans of a program have few different sets of names, so a plan is
made once for each set and every further span costs a look-up by field instead of one by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tidemill.telemetry.aliases import AliasTable

_MOST_PLANS: Final = 2048
RESERVED: Final = frozenset(("tidemill.charges", "tidemill.used", "tidemill.admitted_at"))
"""Attributes by which Tidemill's own records are settled; from anybody else they are left out."""


@dataclass(slots=True)
class Plan:
    """Where the fields of a span stand among its attributes.

    Args:
        single: (field, name) of the columns that one name is there for.
        contested: (field, names) of those with several, best first.
        content: field to the names that are there, best first.
        operations: names that tell the operation, with their values' meanings.
        indexed: (group, number, rest of the name, name), in order.
        rest: (name, name to keep it under) of all that has no field.
    """

    single: tuple[tuple[str, str], ...] = ()
    contested: tuple[tuple[str, tuple[str, ...]], ...] = ()
    content: dict[str, tuple[str, ...]] = field(default_factory=dict)
    operations: tuple[tuple[str, Mapping[str, str]], ...] = ()
    indexed: tuple[tuple[str, int, str, str], ...] = ()
    rest: tuple[tuple[str, str], ...] = ()


class Plans:
    """Plans by set of names. Not thread-safe."""

    def __init__(self, table: AliasTable) -> None:
        self._table = table
        self._plans: dict[tuple[str, ...], Plan] = {}

    def plan(self, names: tuple[str, ...]) -> Plan:
        """The plan for spans with these attributes, in this order."""
        found = self._plans.get(names)
        if found is None:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            found = self._plans[names] = self._made(names)
        return found

    def _made(self, names: tuple[str, ...]) -> Plan:
        table, there = self._table, set(names)
        indexed, rest = [], []
        for name in names:
            if name in table.named:
                continue
            numbered = self._numbered(name)
            if numbered is not None:
                indexed.append((*numbered, name))
            elif name not in RESERVED:
                rest.append((name, table.attributes.get(name, name)))
        columns = _present(table.columns, there)
        return Plan(
            tuple((column, names[0]) for column, names in columns.items() if len(names) == 1),
            tuple((column, names) for column, names in columns.items() if len(names) > 1),
            _present(table.content, there),
            tuple((name, values) for name, values in table.operations.items() if name in there),
            tuple(sorted(indexed)),
            tuple(rest),
        )

    def _numbered(self, name: str) -> tuple[str, int, str] | None:
        for prefix, group in self._table.indexed.items():
            if name.startswith(prefix) and name[len(prefix) : len(prefix) + 1] == ".":
                number, _, rest = name[len(prefix) + 1 :].partition(".")
                if rest and number.isascii() and number.isdigit() and len(number) < 7:
                    return group, int(number), rest
        return None


def _present(rows: Mapping[str, Iterable[str]], there: set[str]) -> dict[str, tuple[str, ...]]:
    found = {field: tuple(name for name in names if name in there) for field, names in rows.items()}
    return {field: names for field, names in found.items() if names}


def first(attributes: Mapping[str, Any], names: Iterable[str]) -> Any:
    """The first value among these names that is neither empty nor missing."""
    for name in names:
        value = attributes.get(name)
        if value is not None and value not in ("", []):
            return value
    return None
