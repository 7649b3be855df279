"""The first tables.

A migration says what it makes in its own words, for ``tidemill.ledger.tables`` goes on changing after it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_TYPES: dict[str, sa.types.TypeEngine[Any]] = {
    "text": _TEXT,
    "json": sa.Text(),
    "int": sa.Integer(),
    "big": sa.BigInteger(),
    "float": sa.Float(),
    "bool": sa.Boolean(),
}
_SCOPE = ("project", "tenant")


class _Made(NamedTuple):
    """A table: its columns ('name type', a question mark where NULL is allowed) after project and tenant, its key and
    indexes, which begin or end with those two, its unique keys, and the table its rows refer to."""

    name: str
    columns: str
    key: str
    unique: tuple[str, ...] = ()
    indexes: tuple[str, ...] = ()
    refers: tuple[str, str] | None = None
    narrow: bool = True
    scope_last: bool = False


_TABLES = (
    _Made(
        "artifacts",
        "kind text, name text, version int, artifact_id text, digest text, content json, blobs json, made_by text?,"
        " created_at big",
        key="kind name version",
        unique=("project tenant kind name digest", "project tenant artifact_id"),
        indexes=("digest",),
        narrow=False,
    ),
    _Made("artifact_blobs", "artifact text, role text, blob text", key="artifact role", indexes=("blob",)),
    _Made(
        "labels",
        "kind text, name text, label text, version int, decision_id text, moved_at big",
        key="kind name label",
        refers=("artifacts", "kind name version"),
    ),
    _Made(
        "runs",
        "run_id text, step text, status text, key text?, params json, code_digest text, environment_digest text,"
        " error text?, parent text?, started_at big, finished_at big?, lease_s float, lease_until big",
        key="run_id",
        indexes=("key status", "step run_id", "status lease_until"),
        narrow=False,
    ),
    _Made(
        "metrics",
        "run_id text, name text, step big, value float?, at big",
        key="run_id name step",
        refers=("runs", "run_id"),
    ),
    _Made(
        "edges",
        "child text, parent text, relation text, role text",
        key="child parent relation role",
        indexes=("parent relation",),
        scope_last=True,
    ),
    _Made("row_edges", "child text, parent text", key="child parent", indexes=("parent child",), scope_last=True),
    _Made(
        "decisions",
        "seq big, decision_id text, kind text, subject text, verdict json, actor text, at big, previous text?,"
        " previous_hash text, hash text",
        key="seq",
        unique=("project tenant decision_id",),
        indexes=("subject seq", "kind seq"),
        narrow=False,
    ),
    _Made("chain_heads", "seq big, hash text", key=""),
    _Made(
        "observations",
        "subject text, seq big, unit text, arm text, metrics json, at big",
        key="subject seq",
        unique=("project tenant subject unit",),
        narrow=False,
    ),
    _Made("results", "key text, value json, at big", key="key", narrow=False),
    _Made("api_keys", "digest text, name text, created_at big, revoked_at big?", key="digest", unique=("digest",)),
    _Made("leases", "name text, holder text, epoch big, until big", key="name"),
    _Made("blob_pins", "digest text, run_id text, created_at big", key="digest run_id", indexes=("run_id",)),
    _Made("dataset_parts", "part int, object text", key="part", unique=("project tenant object",)),
    _Made("dataset_versions", "version text, ordinal int, part int", key="version ordinal", indexes=("part",)),
    _Made("dataset_rows", "row_id text, part int, present bool", key="row_id part", indexes=("part",), scope_last=True),
)


def scoped(made: _Made, columns: str) -> list[str]:
    """The columns of a key, with project and tenant."""
    return [*columns.split(), *_SCOPE] if made.scope_last else [*_SCOPE, *columns.split()]


def upgrade() -> None:
    for made in _TABLES:
        items: list[sa.Column[Any]] = [sa.Column(name, sa.String(64), nullable=False) for name in _SCOPE]
        for column in made.columns.split(", "):
            name, kind = column.split()
            typed = _TYPES[kind.removesuffix("?")]
            items.append(sa.Column(name, typed, nullable=kind.endswith("?"), autoincrement=False))
        constraints: list[sa.Constraint] = [
            sa.PrimaryKeyConstraint(*scoped(made, made.key), name=f"pk_{made.name}"),
            *(
                sa.UniqueConstraint(*unique.split(), name=f"uq_{made.name}_{unique.replace(' ', '_')}")
                for unique in made.unique
            ),
        ]
        if made.refers is not None:
            table, columns = made.refers
            local = [*_SCOPE, *columns.split()]
            remote = [f"{table}.{column}" for column in local]
            constraints.append(sa.ForeignKeyConstraint(local, remote, name=f"fk_{made.name}_{table}"))
        op.create_table(made.name, *items, *constraints, sqlite_with_rowid=not made.narrow)
        for index in made.indexes:
            columns_ = scoped(made, index)
            op.create_index(f"ix_{made.name}_{'_'.join(columns_)}", made.name, columns_)


def downgrade() -> None:
    for made in reversed(_TABLES):
        op.drop_table(made.name)
