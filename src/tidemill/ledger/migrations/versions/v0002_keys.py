"""Keys with a prefix to know them by, a team, scopes, an expiry and a priority."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


_COLUMNS = (
    sa.Column("prefix", _TEXT, nullable=False, server_default=""),
    sa.Column("team", _TEXT),
    sa.Column("endpoints", sa.Text(), nullable=False, server_default="[]"),
    sa.Column("operations", sa.Text(), nullable=False, server_default="[]"),
    sa.Column("expires_at", sa.BigInteger()),
    sa.Column("priority", _TEXT),
)


def upgrade() -> None:
    """Add the columns."""
    for column in _COLUMNS:
        op.add_column("api_keys", column.copy())


def downgrade() -> None:
    """Take the columns away."""
    for column in reversed(_COLUMNS):
        op.execute(f"ALTER TABLE api_keys DROP COLUMN {column.name}")
