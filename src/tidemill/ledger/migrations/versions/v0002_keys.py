"""Keys with a prefix to know them by, a team, scopes, an expiry and a priority."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


_NAMES = ("prefix", "team", "endpoints", "operations", "expires_at", "priority")


def upgrade() -> None:
    """Add the columns."""
    op.add_column("api_keys", sa.Column("prefix", _TEXT, nullable=False, server_default=""))
    op.add_column("api_keys", sa.Column("team", _TEXT))
    op.add_column("api_keys", sa.Column("endpoints", sa.Text(), nullable=False, server_default="[]"))
    op.add_column("api_keys", sa.Column("operations", sa.Text(), nullable=False, server_default="[]"))
    op.add_column("api_keys", sa.Column("expires_at", sa.BigInteger()))
    op.add_column("api_keys", sa.Column("priority", _TEXT))


def downgrade() -> None:
    """Take the columns away."""
    for name in reversed(_NAMES):
        op.execute(f"ALTER TABLE api_keys DROP COLUMN {name}")
