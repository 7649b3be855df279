"""The accounts of rate limits and budgets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_SCOPE = ("project", "tenant")


def _make(name: str, columns: Mapping[str, Any], key: str, index: str = "") -> None:
    nullable = name == "limit_leases"
    op.create_table(
        name,
        *(sa.Column(column, sa.String(64), nullable=False) for column in _SCOPE),
        *(
            sa.Column(column, kind, nullable=nullable and column == "owed", autoincrement=False)
            for column, kind in columns.items()
        ),
        sa.PrimaryKeyConstraint(*_SCOPE, *key.split(), name=f"pk_{name}"),
        sqlite_with_rowid=False,
    )
    if index:
        indexed = [*_SCOPE, *index.split()]
        op.create_index(f"ix_{name}_{'_'.join(indexed)}", name, indexed)


def upgrade() -> None:
    """Make the tables."""
    big = sa.BigInteger()
    amounts = dict.fromkeys(("granted", "returned", "settled", "idle", "owed", "window_us", "until_us"), big)
    _make("limit_leases", {"lease": _TEXT, "account": _TEXT, "holder": _TEXT, **amounts}, "lease", "account")
    _make("limit_spending", {"account": _TEXT, "ends_us": big, "amount": big}, "account ends_us")
    _make("limit_requests", {"request": _TEXT, "settled_us": big}, "request", "settled_us")


def downgrade() -> None:
    """Drop the tables."""
    for name in ("limit_requests", "limit_spending", "limit_leases"):
        op.drop_table(name)
