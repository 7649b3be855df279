"""How the span store reaches ClickHouse, and its tables there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

import pyarrow as pa

from tidemill.kernel import Unavailable
from tidemill.telemetry.spans.rows import SPAN_FIELDS

_DURABLE: Final = {"async_insert": 0, "max_insert_block_size": 1_000_000, "max_partitions_per_insert_block": 0}
_FEW: Final = frozenset(
    {"name", "operation", "status", "error_type", "endpoint", "release", "assigned_release", "arm", "provider",
     "request_model", "response_model", "rollout", "prompt", "service"}
)  # fmt: skip
_TYPES: Final = {pa.string(): "String", pa.int64(): "Int64", pa.float64(): "Float64", pa.bool_(): "Bool"}
_GIVEN: Final = frozenset(
    {"trace_id", "span_id", "name", "operation", "started_at_ns", "ended_at_ns", "status", "stream"}
)
_OWNER: Final = "project LowCardinality(String), tenant LowCardinality(String)"


def _declared(fields: Mapping[str, pa.DataType]) -> str:
    found = []
    for name, kind in fields.items():
        declared = _TYPES[kind] if name in _GIVEN else f"Nullable({_TYPES[kind]})"
        found.append(f'"{name}" LowCardinality({declared})' if name in _FEW else f'"{name}" {declared}')
    return ", ".join(found)


SCHEMA: Final = (
    f"""CREATE TABLE IF NOT EXISTS spans ({_OWNER}, seq Int64, digest Int32, is_root Bool, {_declared(SPAN_FIELDS)},
    finish_reasons LowCardinality(Nullable(String)), attributes Nullable(String) CODEC(ZSTD(3)),
    input_chars Nullable(Int32), said Nullable(String) CODEC(ZSTD(6)), detail Nullable(String) CODEC(ZSTD(6)),
    refs Array(Tuple(kind String, ref String, role String, rank Nullable(Int64), score Nullable(Float64))),
    INDEX by_trace trace_id TYPE bloom_filter(0.01) GRANULARITY 1, INDEX by_seq seq TYPE minmax GRANULARITY 1,
    INDEX by_ref refs.ref TYPE bloom_filter(0.01) GRANULARITY 1)
    ENGINE = MergeTree PARTITION BY toYYYYMMDD(toDateTime(intDiv(started_at_ns, 1000000000)))
    ORDER BY (project, tenant, started_at_ns, seq) SETTINGS fsync_after_insert = 1, fsync_part_directory = 1""",
    f"""CREATE TABLE IF NOT EXISTS scores ({_OWNER}, seq Int64, digest Int32,
    score_id String, trace_id String, span_id Nullable(String), name String, value Nullable(Float64),
    label Nullable(String), comment Nullable(String), correction Nullable(String), source String, at_ns Int64)
    ENGINE = MergeTree ORDER BY (project, tenant, trace_id, seq)
    SETTINGS fsync_after_insert = 1, fsync_part_directory = 1""",
    f"""CREATE TABLE IF NOT EXISTS segment_offsets ({_OWNER}, segment String, "offset" Int64, seq Int64)
    ENGINE = ReplacingMergeTree(seq) ORDER BY (project, tenant, segment)
    SETTINGS fsync_after_insert = 1, fsync_part_directory = 1""",
    f"""CREATE TABLE IF NOT EXISTS aside_counts ({_OWNER}, reason String, count Int64)
    ENGINE = SummingMergeTree ORDER BY (project, tenant, reason)""",
    f"""CREATE TABLE IF NOT EXISTS aside_samples ({_OWNER}, seq Int64, reason String, at_ns Int64,
    trace_id Nullable(String), span_id Nullable(String), source Nullable(String), detail String)
    ENGINE = MergeTree ORDER BY (project, tenant, reason, seq)""",
    f"""CREATE TABLE IF NOT EXISTS late_contents ({_OWNER}, seq Int64, trace_id String, span_id String,
    input String CODEC(ZSTD(6)), output String CODEC(ZSTD(6)), detail String CODEC(ZSTD(6)))
    ENGINE = MergeTree ORDER BY (project, tenant, trace_id, span_id, seq)
    SETTINGS fsync_after_insert = 1, fsync_part_directory = 1""",
)


class Connection(Protocol):
    """How statements reach ClickHouse: over HTTP, or in tests its engine in this process."""

    def rows(self, sql: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """All rows of a statement."""
        ...

    def run(self, sql: str, values: Mapping[str, Any]) -> None:
        """Run a statement that has no rows."""
        ...

    def insert(self, table: str, rows: pa.Table) -> None:
        """Insert rows by the names of their columns, durably, in one block."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


class HttpConnection:
    """ClickHouse over HTTP.

    Args:
        url: ``clickhouse://user:password@host:port/database?setting=value``; ``clickhouses://`` for TLS.

    Raises:
        Unavailable: the extra is missing, or the server does not answer.
    """

    def __init__(self, url: str) -> None:
        try:
            import clickhouse_connect
        except ImportError as error:
            raise Unavailable(
                "telemetry.store names a ClickHouse server, and its client is not installed.",
                hint="Install it: pip install 'tidemill[clickhouse]'",
            ) from error
        scheme, _, rest = url.partition("://")
        dsn = ("https://" if scheme == "clickhouses" else "http://") + rest
        try:
            self._client = clickhouse_connect.get_client(dsn=dsn)
        except Exception as error:
            raise Unavailable(f"The ClickHouse server of telemetry.store does not answer: {error}") from error

    def rows(self, sql: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """See ``Connection.rows``."""
        return [tuple(row) for row in self._client.query(sql, parameters=dict(values)).result_rows]

    def run(self, sql: str, values: Mapping[str, Any]) -> None:
        """See ``Connection.run``."""
        self._client.command(sql, parameters=dict(values))

    def insert(self, table: str, rows: pa.Table) -> None:
        """See ``Connection.insert``."""
        self._client.insert_arrow(table, rows, settings=_DURABLE)

    def close(self) -> None:
        """See ``Connection.close``."""
        self._client.close()
