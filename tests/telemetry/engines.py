"""Span stores under test, one back end each; chDB is ClickHouse's engine in this process."""

from __future__ import annotations

import itertools
import json
import tempfile
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tidemill.kernel import Scope
from tidemill.telemetry import SpanStore, open_span_store
from tidemill.telemetry.spans.clickhouse import ClickHouseSpanStore

_numbers = itertools.count()
_one_at_a_time = threading.Lock()


@cache
def engine() -> Any:
    """The one session that chDB allows in a process."""
    session = pytest.importorskip("chdb.session", reason="chDB (ClickHouse's engine) is not installed")
    return session.Session(tempfile.mkdtemp(prefix="tidemill-chdb-"))


class ChdbConnection:
    """A database of ClickHouse's engine in this process."""

    def __init__(self, name: str) -> None:
        self._name = name
        engine().query(f"CREATE DATABASE IF NOT EXISTS {name} ENGINE = Atomic")

    def rows(self, sql: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        answer = self._ask(sql, values, "JSONCompactEachRow")
        return [tuple(json.loads(line)) for line in answer.bytes().splitlines()]

    def run(self, sql: str, values: Mapping[str, Any]) -> None:
        self._ask(sql, values, "Null")

    def insert(self, table: str, rows: pa.Table) -> None:
        names = ", ".join(f'"{name}"' for name in rows.column_names)
        frame = rows  # chDB finds it by the name of this variable
        self._ask(f"INSERT INTO {table} ({names}) SELECT {names} FROM Python(frame)", {}, "Null")
        del frame

    def close(self) -> None:
        """The session goes on: chDB allows one path in a process."""

    def _ask(self, sql: str, values: Mapping[str, Any], form: str) -> Any:
        with _one_at_a_time:  # the session has one current database for all threads
            engine().query(f"USE {self._name}")
            return engine().query(sql, form, params={name: _written(value) for name, value in values.items()})


def _written(value: Any) -> Any:
    """A value as ClickHouse reads parameters: a text escaped, texts of a list quoted."""
    if isinstance(value, str):
        return value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")
    if isinstance(value, list):
        return "[" + ", ".join(_quoted(one) if isinstance(one, str) else str(one) for one in value) + "]"
    return value


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_databases: dict[Path, str] = {}


def open_chdb(folder: Path, scope: Scope) -> SpanStore:
    """ClickHouse: the same folder is the same database."""
    pytest.importorskip("chdb", reason="chDB (ClickHouse's engine) is not installed")
    name = _databases.setdefault(folder, f"d{next(_numbers)}")
    return ClickHouseSpanStore(ChdbConnection(name), scope)


def open_duckdb(folder: Path, scope: Scope) -> SpanStore:
    """The embedded store."""
    return open_span_store(folder / "telemetry.duckdb", scope)


STORES = {"duckdb": open_duckdb, "clickhouse": open_chdb}
