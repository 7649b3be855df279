"""Choosing a back end by its URL."""

from __future__ import annotations

from tidemill.kernel import InvalidInput
from tidemill.ledger.conversations.rows import ConversationRows


def open_conversation_rows(url: str) -> ConversationRows:
    """Open a store of conversations, with its tables made where they are missing.

    Args:
        url: ``sqlite:////path/conversations.db``, ``postgresql://user@host/name`` or ``redis://host:6379/0``.

    Raises:
        InvalidInput: another kind of URL.
        MissingExtra: the driver is not installed.
        Unavailable: the store cannot be reached or made.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "sqlite" and rest.startswith("/") and len(rest) > 1:
        from tidemill.ledger.conversations.sqlite_rows import SqliteRows

        return SqliteRows(rest[1:])
    if scheme.partition("+")[0] in {"postgresql", "postgres"}:
        from tidemill.ledger.conversations.postgres_rows import PostgresRows

        return PostgresRows(f"postgresql://{rest}")
    if scheme in {"redis", "rediss", "unix"}:
        from tidemill.ledger.conversations.redis_rows import RedisRows

        return RedisRows(url)
    raise InvalidInput(
        f"'{scheme}' is no store of conversations: write sqlite:////path/conversations.db, postgresql://user@host/name "
        "or redis://host:6379/0"
    )
