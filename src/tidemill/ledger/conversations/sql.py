"""The statements that the SQL back ends share, and the order in which a call runs them.

Parameters are written ``:name``; PostgreSQL's back end turns them into its own form.
"""

# All texts put together here are constants of this file; values are always parameters.
# ruff: noqa: S608
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

from tidemill.ledger.conversations.rows import ConversationScope, Entry, Walk

#: Types differ by name only: ``{bytes}`` and ``{real}`` are filled in by the back end.
TABLES: Final = (
    """CREATE TABLE IF NOT EXISTS conversation_entries (
    project TEXT NOT NULL, tenant TEXT NOT NULL, api_key TEXT NOT NULL, entry_id TEXT NOT NULL,
    thread TEXT NOT NULL, parent TEXT, start TEXT, head TEXT, created_at {real} NOT NULL, sealed {bytes} NOT NULL,
    PRIMARY KEY (project, tenant, api_key, entry_id))""",
    """CREATE INDEX IF NOT EXISTS conversation_entries_thread
    ON conversation_entries (project, tenant, api_key, thread)""",
    """CREATE TABLE IF NOT EXISTS conversation_threads (
    project TEXT NOT NULL, tenant TEXT NOT NULL, api_key TEXT NOT NULL, thread TEXT NOT NULL,
    expires_at {real} NOT NULL, PRIMARY KEY (project, tenant, api_key, thread))""",
    "CREATE INDEX IF NOT EXISTS conversation_threads_expiry ON conversation_threads (expires_at)",
)

_MINE: Final = "project = :project AND tenant = :tenant AND api_key = :api_key"
_OF_E: Final = "e.project = :project AND e.tenant = :tenant AND e.api_key = :api_key"
_COLUMNS: Final = "e.entry_id, e.thread, e.created_at, e.sealed, e.parent, e.start, e.head"
_ALIVE: Final = """JOIN conversation_threads t ON t.project = e.project AND t.tenant = e.tenant
    AND t.api_key = e.api_key AND t.thread = e.thread AND t.expires_at > :now"""

_GET: Final = f"SELECT {_COLUMNS} FROM conversation_entries e {_ALIVE} WHERE {_OF_E} AND e.entry_id = :entry_id"
_WALK: Final = f"""WITH RECURSIVE walk (entry_id, parent, stop, depth) AS (
    SELECT e.entry_id, e.parent, e.start, 1 FROM conversation_entries e {_ALIVE}
    WHERE {_OF_E} AND e.entry_id = :entry_id
    UNION ALL
    SELECT e.entry_id, e.parent, w.stop, w.depth + 1 FROM walk w
    JOIN conversation_entries e ON {_OF_E} AND e.entry_id = w.parent
    WHERE w.depth < :depth_most AND (w.stop IS NULL OR w.entry_id <> w.stop))
SELECT {_COLUMNS} FROM walk w JOIN conversation_entries e ON {_OF_E} AND e.entry_id = w.entry_id ORDER BY w.depth"""
_HEAD: Final = f"SELECT head FROM conversation_entries WHERE {_MINE} AND entry_id = :conversation"
_SET_HEAD: Final = f"UPDATE conversation_entries SET head = :entry_id WHERE {_MINE} AND entry_id = :conversation"
_INSERT: Final = """INSERT INTO conversation_entries
    (project, tenant, api_key, entry_id, thread, parent, start, head, created_at, sealed)
    VALUES (:project, :tenant, :api_key, :entry_id, :thread, :parent, :start, :head, :created_at, :sealed)"""
_RENEW: Final = """INSERT INTO conversation_threads (project, tenant, api_key, thread, expires_at)
    VALUES (:project, :tenant, :api_key, :thread, :expires_at)
    ON CONFLICT (project, tenant, api_key, thread) DO UPDATE SET expires_at = excluded.expires_at
    WHERE excluded.expires_at > conversation_threads.expires_at"""
_REPLACE: Final = (
    f"UPDATE conversation_entries SET sealed = :sealed, start = :start WHERE {_MINE} AND entry_id = :entry_id"
)
_REMOVE: Final = f"DELETE FROM conversation_entries WHERE {_MINE} AND entry_id = :entry_id RETURNING thread"
_REMOVE_THREAD: Final = f"DELETE FROM conversation_entries WHERE {_MINE} AND thread = :entry_id RETURNING thread"
_REMOVE_EMPTY: Final = f"""DELETE FROM conversation_threads WHERE {_MINE} AND thread = :thread AND NOT EXISTS (
    SELECT 1 FROM conversation_entries e WHERE {_OF_E} AND e.thread = :thread)"""
_EXPIRED: Final = """SELECT project, tenant, api_key, thread FROM conversation_threads
    WHERE expires_at <= :now ORDER BY expires_at LIMIT :threads_most"""
_SWEEP_ENTRIES: Final = f"""DELETE FROM conversation_entries WHERE {_MINE} AND thread = :thread AND EXISTS (
    SELECT 1 FROM conversation_threads t WHERE t.project = :project AND t.tenant = :tenant AND t.api_key = :api_key
    AND t.thread = :thread AND t.expires_at <= :now)"""
_SWEEP_THREAD: Final = f"DELETE FROM conversation_threads WHERE {_MINE} AND thread = :thread AND expires_at <= :now"

_SWEPT_AT_ONCE: Final = 200  # threads a transaction of the sweep takes, so that writers never wait long for it


class Statements:
    """The calls of ``ConversationRows`` over one kind of SQL database.

    Args:
        transaction: opens a transaction for reading or, with ``True``, for writing; what it gives runs a statement
            with its parameters and returns the rows, or the number of rows changed.
        lock_rows: what to append to a query whose row is to be changed next.
    """

    def __init__(
        self, transaction: Callable[[bool], AbstractContextManager[Callable[..., Any]]], *, lock_rows: str = ""
    ) -> None:
        self._transaction = transaction
        self._lock_rows = lock_rows

    def add(
        self, scope: ConversationScope, entry: Entry, *, expires_at: float, conversation: str | None = None
    ) -> bool:
        """See ``ConversationRows.add``."""
        values = {
            **_named(scope),
            "entry_id": entry.entry_id,
            "thread": entry.thread,
            "parent": entry.parent,
            "start": entry.start,
            "head": entry.head,
            "created_at": entry.created_at,
            "sealed": entry.sealed,
            "expires_at": expires_at,
            "conversation": conversation,
        }
        with self._transaction(True) as run:
            if conversation is not None:
                rows = run(_HEAD + self._lock_rows, values)
                if not rows:
                    return False
                values["parent"] = rows[0][0]
                run(_SET_HEAD, values)
            run(_INSERT, values)
            run(_RENEW, values)
        return True

    def get(self, scope: ConversationScope, entry_id: str, *, now: float) -> Entry | None:
        """See ``ConversationRows.get``."""
        with self._transaction(False) as run:
            rows = run(_GET, {**_named(scope), "entry_id": entry_id, "now": now})
        return _entry(rows[0]) if rows else None

    def walk(self, scope: ConversationScope, head: str, *, now: float, depth_most: int) -> Walk:
        """See ``ConversationRows.walk``."""
        values = {**_named(scope), "entry_id": head, "now": now, "depth_most": depth_most}
        with self._transaction(False) as run:
            rows = run(_WALK, values)
        return Walk.of([_entry(row) for row in rows])

    def replace(self, scope: ConversationScope, entry: Entry) -> bool:
        """See ``ConversationRows.replace``."""
        values = {**_named(scope), "entry_id": entry.entry_id, "sealed": entry.sealed, "start": entry.start}
        with self._transaction(True) as run:
            return bool(run(_REPLACE, values))

    def remove(self, scope: ConversationScope, entry_id: str, *, whole_thread: bool = False) -> bool:
        """See ``ConversationRows.remove``."""
        values = {**_named(scope), "entry_id": entry_id}
        with self._transaction(True) as run:
            removed = run(_REMOVE_THREAD if whole_thread else _REMOVE, values)
            if removed:
                run(_REMOVE_EMPTY, {**values, "thread": removed[0][0]})
        return bool(removed)

    def sweep(self, now: float, /) -> int:
        """See ``ConversationRows.sweep``."""
        removed = 0
        while True:
            with self._transaction(True) as run:
                expired: Sequence[Sequence[str]] = run(
                    _EXPIRED + self._lock_rows, {"now": now, "threads_most": _SWEPT_AT_ONCE}
                )
                for project, tenant, api_key, thread in expired:
                    values = {"project": project, "tenant": tenant, "api_key": api_key, "thread": thread, "now": now}
                    removed += run(_SWEEP_ENTRIES, values)
                    run(_SWEEP_THREAD, values)
            if len(expired) < _SWEPT_AT_ONCE:
                return removed


def _named(scope: ConversationScope) -> Mapping[str, str]:
    return {"project": scope.project, "tenant": scope.tenant, "api_key": scope.key}


def _entry(row: Sequence[Any]) -> Entry:
    entry_id, thread, created_at, sealed, parent, start, head = row
    return Entry(entry_id, thread, created_at, bytes(sealed), parent, start, head)
