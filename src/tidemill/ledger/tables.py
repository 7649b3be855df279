"""Every table of the ledger. Each carries project and tenant in its key.

``SCHEMA_VERSION`` is the newest migration; a test holds these tables equal to what the migrations make.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.sql.schema import SchemaItem

from tidemill.ledger.columns import CanonicalJson, Moment
from tidemill.ledger.version import NEWEST

SCHEMA_VERSION: Final = NEWEST

metadata: Final = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
    }
)

# PostgreSQL sorts and compares texts by code point, as SQLite and Python do, whatever its locale.
_TEXT: Final = Text().with_variant(Text(collation="C"), "postgresql")
_SCOPE: Final = ("project", "tenant")


def _table(
    name: str, key: tuple[str, ...], *items: SchemaItem, narrow: bool = False, scope_last: bool = False
) -> Table:
    """A table of the given columns, its key beginning with project and tenant.

    Rows of a narrow table lie in the order of their key (SQLite's ``WITHOUT ROWID``), so that its columns are kept
    once; a wide row there would make every search read more pages. Where the rest of the key is nearly unique by
    itself and many rows share a scope, the scope comes last: else PostgreSQL, as long as it has no statistics of a
    freshly filled table, may believe that the scope alone finds a row, and read them all.
    """
    return Table(
        name,
        metadata,
        Column("project", String(64), nullable=False),
        Column("tenant", String(64), nullable=False),
        *items,
        PrimaryKeyConstraint(*(*key, *_SCOPE) if scope_last else (*_SCOPE, *key)),
        sqlite_with_rowid=not narrow,
    )


def _index(*columns: str, scope_last: bool = False) -> Index:
    return Index(None, *(*columns, *_SCOPE) if scope_last else (*_SCOPE, *columns))


def _text(name: str, *, nullable: bool = False) -> Column[str]:
    return Column(name, _TEXT, nullable=nullable)


artifacts: Final = _table(
    "artifacts",
    ("kind", "name", "version"),
    _text("kind"),
    _text("name"),
    Column("version", Integer, nullable=False),
    _text("artifact_id"),
    _text("digest"),
    Column("content", CanonicalJson, nullable=False),
    Column("blobs", CanonicalJson, nullable=False),  # {role: blob digest}; artifact_blobs holds the same as rows
    _text("made_by", nullable=True),
    Column("created_at", Moment, nullable=False),
    UniqueConstraint(*_SCOPE, "kind", "name", "digest"),
    UniqueConstraint(*_SCOPE, "artifact_id"),
    _index("digest"),
)

artifact_blobs: Final = _table(
    "artifact_blobs",
    ("artifact", "role"),
    _text("artifact"),  # the artifact's digest
    _text("role"),
    _text("blob"),
    _index("blob"),
    narrow=True,
)

labels: Final = _table(
    "labels",
    ("kind", "name", "label"),
    _text("kind"),
    _text("name"),
    _text("label"),
    Column("version", Integer, nullable=False),
    _text("decision_id"),
    Column("moved_at", Moment, nullable=False),
    ForeignKeyConstraint(
        (*_SCOPE, "kind", "name", "version"),
        [f"artifacts.{column}" for column in (*_SCOPE, "kind", "name", "version")],
    ),
    narrow=True,
)

runs: Final = _table(
    "runs",
    ("run_id",),
    _text("run_id"),
    _text("step"),
    _text("status"),
    _text("key", nullable=True),
    Column("params", CanonicalJson, nullable=False),
    _text("code_digest"),
    _text("environment_digest"),
    _text("error", nullable=True),
    _text("parent", nullable=True),
    Column("started_at", Moment, nullable=False),
    Column("finished_at", Moment),
    Column("lease_s", Float, nullable=False),
    Column("lease_until", Moment, nullable=False),
    _index("key", "status"),
    _index("step", "run_id"),
    _index("status", "lease_until"),
)

metrics: Final = _table(
    "metrics",
    ("run_id", "name", "step"),
    _text("run_id"),
    _text("name"),
    Column("step", BigInteger, nullable=False),
    Column("value", Float),  # NULL: not a number
    Column("at", Moment, nullable=False),
    ForeignKeyConstraint((*_SCOPE, "run_id"), [f"runs.{column}" for column in (*_SCOPE, "run_id")]),
    narrow=True,
)

edges: Final = _table(
    "edges",
    ("child", "parent", "relation", "role"),
    _text("child"),  # an artifact's or blob's digest, or a run id
    _text("parent"),
    _text("relation"),  # input: child is a run; output, made_by: parent is a run; parent: both are artifacts
    _text("role"),
    _index("parent", "relation", scope_last=True),
    narrow=True,
    scope_last=True,
)

row_edges: Final = _table(
    "row_edges",
    ("child", "parent"),
    _text("child"),  # a row id
    _text("parent"),  # a row id or the URI of a source
    _index("parent", "child", scope_last=True),
    narrow=True,
    scope_last=True,
)

decisions: Final = _table(
    "decisions",
    ("seq",),
    Column("seq", BigInteger, nullable=False, autoincrement=False),
    _text("decision_id"),
    _text("kind"),
    _text("subject"),
    Column("verdict", CanonicalJson, nullable=False),
    _text("actor"),
    Column("at", Moment, nullable=False),
    _text("previous", nullable=True),  # the decision before on the same subject
    _text("previous_hash"),
    _text("hash"),
    UniqueConstraint(*_SCOPE, "decision_id"),
    _index("subject", "seq"),
    _index("kind", "seq"),
)

chain_heads: Final = _table(
    "chain_heads",
    (),
    Column("seq", BigInteger, nullable=False),
    _text("hash"),
    narrow=True,
)

observations: Final = _table(
    "observations",
    ("subject", "seq"),
    _text("subject"),
    Column("seq", BigInteger, nullable=False, autoincrement=False),
    _text("unit"),
    _text("arm"),
    Column("metrics", CanonicalJson, nullable=False),
    Column("at", Moment, nullable=False),
    UniqueConstraint(*_SCOPE, "subject", "unit"),
)

results: Final = _table(
    "results",
    ("key",),
    _text("key"),
    Column("value", CanonicalJson, nullable=False),
    Column("at", Moment, nullable=False),
)

api_keys: Final = _table(
    "api_keys",
    ("digest",),
    _text("digest"),
    _text("name"),
    Column("created_at", Moment, nullable=False),
    Column("revoked_at", Moment),
    Column("prefix", _TEXT, nullable=False, server_default=""),  # the first characters, to know a key by
    _text("team", nullable=True),
    Column("endpoints", CanonicalJson, nullable=False, server_default="[]"),  # those it may call; none is all
    Column("operations", CanonicalJson, nullable=False, server_default="[]"),  # likewise
    Column("expires_at", Moment),
    _text("priority", nullable=True),
    UniqueConstraint("digest"),  # a key says whose it is, so no two tenants hold the same
    narrow=True,
)

leases: Final = _table(
    "leases",
    ("name",),
    _text("name"),
    _text("holder"),
    Column("epoch", BigInteger, nullable=False),
    Column("until", Moment, nullable=False),
    narrow=True,
)

blob_pins: Final = _table(
    "blob_pins",
    ("digest", "run_id"),
    _text("digest"),
    _text("run_id"),
    Column("created_at", Moment, nullable=False),
    _index("run_id"),
    narrow=True,
)

# Which rows a data set version holds, at the cost of what changed: a version is a list of parts (its base, then deltas
# and deletions), parts are shared among versions, and dataset_rows says what a part adds or removes.
dataset_parts: Final = _table(
    "dataset_parts",
    ("part",),
    Column("part", Integer, nullable=False, autoincrement=False),
    _text("object"),  # digest of the blob that holds the part
    UniqueConstraint(*_SCOPE, "object"),
    narrow=True,
)

dataset_versions: Final = _table(
    "dataset_versions",
    ("version", "ordinal"),
    _text("version"),  # the artifact's digest
    Column("ordinal", Integer, nullable=False),
    Column("part", Integer, nullable=False),
    _index("part"),
    narrow=True,
)

dataset_rows: Final = _table(
    "dataset_rows",
    ("row_id", "part"),
    _text("row_id"),
    Column("part", Integer, nullable=False),
    Column("present", Boolean, nullable=False),
    _index("part", scope_last=True),
    narrow=True,
    scope_last=True,
)

# The accounts of limits. Amounts are quanta (see ledger.accounts), times microseconds since 1970 by the store's clock.
limit_leases: Final = _table(
    "limit_leases",
    ("lease",),
    _text("lease"),
    _text("account"),  # the limit's id
    _text("holder"),
    *(Column(name, BigInteger, nullable=False) for name in ("granted", "returned", "settled", "idle")),
    Column("owed", BigInteger),  # set when the holder is done: spent already, and settlement is still to come
    Column("window_us", BigInteger, nullable=False),
    Column("until_us", BigInteger, nullable=False),
    _index("account"),
    narrow=True,
)

limit_spending: Final = _table(
    "limit_spending",
    ("account", "ends_us"),
    _text("account"),
    Column("ends_us", BigInteger, nullable=False, autoincrement=False),  # end of the bucket
    Column("amount", BigInteger, nullable=False),
    narrow=True,
)

limit_requests: Final = _table(
    "limit_requests",
    ("request",),
    _text("request"),
    Column("settled_us", BigInteger, nullable=False),
    _index("settled_us"),
    narrow=True,
)
