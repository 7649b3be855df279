"""Statements of our own SQL stores as PostgreSQL's driver takes them: parameters named its way, texts made once."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import psycopg

_NAMED: Final = re.compile(r"(?<!:):(\w+)")  # not the type after a cast's two colons


class PostgresTexts:
    """Runs statements whose parameters are written ``:name``, as SQLite takes them too."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def runner(self, connection: psycopg.Connection[Any]) -> Callable[[str, dict[str, Any]], Any]:
        """What runs a statement with its parameters, and returns the rows or the number of rows changed."""

        def run(statement: str, values: dict[str, Any]) -> Any:
            text: Any = self._texts.get(statement)
            if text is None:
                text = self._texts[statement] = numbered(statement)
            cursor = connection.execute(text, values)
            return cursor.fetchall() if cursor.description is not None else cursor.rowcount

        return run


def numbered(statement: str) -> str:
    """The statement with ``%(name)s`` for ``:name`` (PEP 249's ``pyformat``)."""
    return _NAMED.sub(r"%(\1)s", statement.replace("%", "%%"))
