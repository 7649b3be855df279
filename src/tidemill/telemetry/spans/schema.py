"""Tables of the DuckDB file, and how a file of an older version becomes one of this.

Narrow spans and wide content lie in tables of their own, joined by ``seq``, a span's place in the order of commits: it
grows, so it costs next to nothing and its zone maps find rows. There is no index to keep up.
"""

# ruff: noqa: S608 - statements are put together from this package's own constants

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import duckdb
import pyarrow as pa

from tidemill.telemetry.spans.rows import SCORE_FIELDS, SPAN_FIELDS

SCHEMA_VERSION: Final = 2

_TYPES: Final = {pa.string(): "VARCHAR", pa.int64(): "BIGINT", pa.float64(): "DOUBLE", pa.bool_(): "BOOLEAN"}
_OWNER: Final = "project VARCHAR NOT NULL, tenant VARCHAR NOT NULL"
_KEYS: Final = "seq BIGINT NOT NULL, trace_key INTEGER NOT NULL, digest INTEGER"


def declared(fields: Mapping[str, pa.DataType]) -> str:
    """Column definitions of DuckDB."""
    return ", ".join(f'"{name}" {_TYPES[kind]}' for name, kind in fields.items())


SPAN_COLUMNS: Final = ("seq", "digest", "is_root", *SPAN_FIELDS, "finish_reasons", "attributes")
"""What is known of a span in every tier; content and references apart."""
STORED: Final = (*SPAN_FIELDS, "finish_reasons", "attributes")

SCHEMA: Final = f"""
CREATE SEQUENCE IF NOT EXISTS ingest_seq;
CREATE TABLE IF NOT EXISTS store_version (version INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS spans ({_OWNER}, {_KEYS}, is_root BOOLEAN NOT NULL, {declared(SPAN_FIELDS)},
    finish_reasons VARCHAR, attributes VARCHAR);
CREATE TABLE IF NOT EXISTS contents ({_OWNER}, seq BIGINT NOT NULL, input_chars INTEGER NOT NULL,
    said VARCHAR USING COMPRESSION zstd, detail VARCHAR USING COMPRESSION zstd);
CREATE TABLE IF NOT EXISTS word_blocks ({_OWNER}, first_seq BIGINT NOT NULL, last_seq BIGINT NOT NULL,
    bits BIT NOT NULL);
CREATE TABLE IF NOT EXISTS trace_references ({_OWNER}, seq BIGINT NOT NULL, ref_key INTEGER NOT NULL,
    trace_id VARCHAR NOT NULL, place INTEGER, kind VARCHAR, ref VARCHAR, role VARCHAR, rank BIGINT, score DOUBLE);
CREATE TABLE IF NOT EXISTS scores ({_OWNER}, {_KEYS}, {declared(SCORE_FIELDS)});
CREATE TABLE IF NOT EXISTS segment_offsets ({_OWNER}, segment VARCHAR NOT NULL, "offset" BIGINT NOT NULL);
CREATE TABLE IF NOT EXISTS aside_counts ({_OWNER}, reason VARCHAR NOT NULL, count BIGINT NOT NULL);
CREATE TABLE IF NOT EXISTS aside_samples ({_OWNER}, seq BIGINT NOT NULL, reason VARCHAR NOT NULL,
    at_ns BIGINT NOT NULL, trace_id VARCHAR, span_id VARCHAR, source VARCHAR, detail VARCHAR NOT NULL);
CREATE TABLE IF NOT EXISTS partitions ({_OWNER}, day BIGINT NOT NULL, name VARCHAR NOT NULL, spans BIGINT NOT NULL,
    bytes BIGINT NOT NULL, first_ns BIGINT NOT NULL, last_ns BIGINT NOT NULL, first_seq BIGINT NOT NULL,
    last_seq BIGINT NOT NULL);
CREATE TABLE IF NOT EXISTS partition_traces ({_OWNER}, slice UTINYINT NOT NULL, name VARCHAR NOT NULL,
    bits BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS late_contents ({_OWNER}, trace_id VARCHAR NOT NULL, span_id VARCHAR NOT NULL,
    input VARCHAR NOT NULL, output VARCHAR NOT NULL, detail VARCHAR NOT NULL);
CREATE TABLE IF NOT EXISTS erasures_due ({_OWNER});
"""
"""``day`` counts days since 1970. ``partition_traces`` says which partitions cannot hold a trace, in slices so that a
look-up reads a small part of it."""

_V1_FIELDS: Final = ", ".join(
    f'"{name}"'
    for name in SPAN_FIELDS
    if name not in ("prompt", "service", "cached_input_tokens", "reasoning_output_tokens")
)
_V1_SCORES: Final = ", ".join(f'"{name}"' for name in SCORE_FIELDS)


def _low(key: str) -> str:
    """The lower 32 bits of a 64-bit key, with their sign: what this version's keys are."""
    return f"(xor({key} & 4294967295, 2147483648) - 2147483648)::INTEGER"


# A digest of version 1 was over fewer fields, so none is taken over: what comes again counts as the same.
_FROM_1: Final = f"""
INSERT INTO spans (project, tenant, seq, trace_key, is_root, {_V1_FIELDS}, finish_reasons, attributes)
    SELECT project, tenant, ingest_seq, {_low("trace_key")}, is_root, {_V1_FIELDS}, finish_reasons, attributes
    FROM spans_1 ORDER BY ingest_seq;
INSERT INTO contents SELECT c.project, c.tenant, s.ingest_seq, length(c.input), c.input || chr(31) || c.output, NULL
    FROM span_content c JOIN spans_1 s USING (project, tenant, trace_key, trace_id, span_id) ORDER BY s.ingest_seq;
INSERT INTO trace_references SELECT r.project, r.tenant, s.ingest_seq, {_low("r.ref_key")}, r.trace_id, r.place, r.kind,
    r.ref, r.role, r.rank, r.score
    FROM references_1 r JOIN spans_1 s USING (project, tenant, trace_key, trace_id, span_id) ORDER BY s.ingest_seq;
INSERT INTO scores (project, tenant, seq, trace_key, {_V1_SCORES})
    SELECT project, tenant, ingest_seq, {_low("trace_key")}, {_V1_SCORES} FROM scores_1 ORDER BY ingest_seq;
DROP TABLE spans_1; DROP TABLE span_content; DROP TABLE references_1; DROP TABLE scores_1;
DELETE FROM store_version;
INSERT INTO store_version VALUES (2);
"""


def prepare(cursor: duckdb.DuckDBPyConnection) -> int:
    """Make the tables, or bring those of an older version up to this one, in one transaction.

    Returns:
        The version found, 0 for a new file; above ``SCHEMA_VERSION`` nothing was touched.
    """
    cursor.execute("BEGIN")
    try:
        found = _version(cursor)
        if found == 1:
            for old, new in (("spans", "spans_1"), ("trace_references", "references_1"), ("scores", "scores_1")):
                cursor.execute(f"ALTER TABLE {old} RENAME TO {new}")
            cursor.execute(SCHEMA)
            cursor.execute(_FROM_1)
        elif found <= SCHEMA_VERSION:
            cursor.execute(SCHEMA)
            if found == 0:
                cursor.execute("INSERT INTO store_version VALUES (?)", [SCHEMA_VERSION])
        cursor.execute("COMMIT")
    except BaseException:
        cursor.execute("ROLLBACK")
        raise
    return found


def _version(cursor: duckdb.DuckDBPyConnection) -> int:
    known = cursor.execute("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'store_version'").fetchall()[0][0]
    return cursor.execute("SELECT coalesce(max(version), 0) FROM store_version").fetchall()[0][0] if known else 0
