"""Decisions, each a link of the scope's audit chain, and the check of that chain.

The hash of an entry is ``sha256`` over the canonical JSON of everything the entry says and of the entry before it, so
that an entry edited, removed, added or moved breaks the chain at its place. An entry cut off at the end is found by
the kept head of the chain (``chain_heads``), and, should that be rewritten too, by a head that was kept elsewhere.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import Connection, Row, insert, select, update

from tidemill.kernel import Conflict, DecisionId, Digest, Scope, Verdict, digest_json, fresh_id
from tidemill.ledger.records import (
    UNCHECKED,
    AuditEntry,
    AuditHead,
    AuditReport,
    Decision,
    Lease,
    Unchecked,
    plain_json,
)
from tidemill.ledger.tables import chain_heads, decisions

if TYPE_CHECKING:
    from tidemill.ledger.database import Database
    from tidemill.ledger.leases import Leases


_Names: TypeAlias = list[str]  # inside the class `list` is its method


def genesis(scope: Scope) -> Digest:
    """The hash before the first entry of a scope's chain."""
    return digest_json({"chain": 1, "project": scope.project, "tenant": scope.tenant})


def entry_hash(scope: Scope, decision: Decision, previous_hash: Digest) -> Digest:
    """The hash of an entry: over all it says and the hash of the entry before it."""
    return digest_json(
        {
            "project": scope.project,
            "tenant": scope.tenant,
            "seq": decision.seq,
            "decision_id": decision.decision_id,
            "kind": decision.kind,
            "subject": decision.subject,
            "verdict": decision.verdict.as_json(),
            "actor": decision.actor,
            "at": decision.at.isoformat(timespec="microseconds"),
            "previous": decision.previous,
            "previous_hash": previous_hash,
        }
    )


class Decisions:
    """The decisions of one scope."""

    def __init__(self, database: Database, leases: Leases) -> None:
        self._database = database
        self._leases = leases

    def record(
        self,
        kind: str,
        subject: str,
        verdict: Verdict,
        *,
        actor: str,
        expected: DecisionId | Unchecked | None = UNCHECKED,
        fence: Lease | None = None,
    ) -> Decision:
        """Write a decision, durable when this returns, and its link of the audit chain with it.

        Args:
            kind: what sort of decision, e.g. ``gate``.
            subject: what it is about.
            verdict: the judgement and what it rests on.
            actor: who made it.
            expected: the newest decision on the subject that the caller knows; ``None``: there is none yet.
            fence: a lease in whose right the caller acts.

        Raises:
            Conflict: another decision on the subject came first, or the lease has another holder by now; nothing was
                written.
            InvalidInput: evidence JSON has no form for.
        """
        with self._database.write() as connection:
            self.lock(connection)
            if fence is not None:
                self._leases.check_within(connection, fence)
            return self.append(connection, kind, subject, verdict, actor, expected)

    def lock(self, connection: Connection) -> None:
        """Make this write transaction the only one that appends to the chain until it ends."""
        self._database.lock(connection, "chain")

    def append(
        self,
        connection: Connection,
        kind: str,
        subject: str,
        verdict: Verdict,
        actor: str,
        expected: DecisionId | Unchecked | None = UNCHECKED,
    ) -> Decision:
        """``record`` as a part of a larger write transaction that holds the chain's ``lock``."""
        newest = connection.execute(
            select(decisions.c.decision_id)
            .where(self._database.mine(decisions), decisions.c.subject == subject)
            .order_by(decisions.c.seq.desc())
            .limit(1)
        ).scalar_one_or_none()
        if expected is not UNCHECKED and newest != expected:
            raise Conflict(
                f"The newest decision on '{subject}' is {newest or 'none'}, not {expected or 'none'}. "
                "Nothing was written.",
                hint="Another writer was first: look at its decision and decide again.",
            )
        head = _head(connection, self._database)
        decision = Decision(
            decision_id=DecisionId(fresh_id("dec")),
            seq=head.seq + 1,
            kind=kind,
            subject=subject,
            verdict=Verdict.from_json(plain_json(verdict.as_json())),
            actor=actor,
            at=self._database.clock.now(),
            previous=newest,
        )
        digest = entry_hash(self._database.scope, decision, head.hash)
        columns = {column: getattr(decision, column) for column in decision.__slots__}
        columns |= {"verdict": decision.verdict.as_json(), "previous_hash": head.hash, "hash": digest}
        connection.execute(insert(decisions), self._database.row(**columns))
        if head.seq == 0:
            connection.execute(insert(chain_heads), self._database.row(seq=1, hash=digest))
        else:
            moved = update(chain_heads).where(self._database.mine(chain_heads)).values(seq=decision.seq, hash=digest)
            connection.execute(moved)
        return decision

    def list(self, *, subject: str | None = None, kind: str | None = None, limit: int | None = None) -> list[Decision]:
        """Decisions, oldest first; with a limit the newest so many."""
        query = select(decisions).where(self._database.mine(decisions)).order_by(decisions.c.seq.desc()).limit(limit)
        if subject is not None:
            query = query.where(decisions.c.subject == subject)
        if kind is not None:
            query = query.where(decisions.c.kind == kind)
        with self._database.read() as connection:
            return [_decision(row) for row in connection.execute(query)][::-1]

    def last(self, subject: str) -> Decision | None:
        """The newest decision on a subject."""
        found = self.list(subject=subject, limit=1)
        return found[0] if found else None

    def subjects(self, kind: str) -> _Names:
        """The subjects that have a decision of this kind, sorted."""
        query = (
            select(decisions.c.subject).where(self._database.mine(decisions), decisions.c.kind == kind).distinct()
        ).order_by(decisions.c.subject)
        with self._database.read() as connection:
            return [row.subject for row in connection.execute(query)]


class Audit:
    """The audit chain of one scope, for those who check it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def head(self) -> AuditHead:
        """The newest entry's place and hash, to be kept where the ledger's writers cannot reach it."""
        with self._database.read() as connection:
            return _head(connection, self._database)

    def entries(self, *, after_seq: int = 0, limit: int | None = None) -> list[AuditEntry]:
        """Entries in their order, after a place."""
        with self._database.read() as connection:
            return list(_entries(connection, self._database, after_seq, limit))

    def verify(self, *, head: AuditHead | None = None) -> AuditReport:
        """Recompute the whole chain.

        Finds an entry that was edited, removed, added or moved, and entries cut off at the end as long as the kept
        head, or the given one, still tells of them.

        Args:
            head: a head that was read earlier and kept elsewhere.
        """
        with self._database.read() as connection:
            return _verify(connection, self._database, head)


def _verify(connection: Connection, database: Database, known: AuditHead | None) -> AuditReport:
    at = AuditHead(0, genesis(database.scope))
    reason: str | None = None
    bad_seq = 1
    try:
        with closing(_entries(connection, database, 0, None)) as entries:
            for entry in entries:
                bad_seq, reason = _misfit(database.scope, at, entry, known)
                if reason is not None:
                    break
                at = AuditHead(entry.decision.seq, entry.hash)
    except (ValueError, KeyError, TypeError):  # what was written here is no longer JSON, or no decision
        bad_seq, reason = at.seq + 1, f"an entry after {at.seq} cannot be read: it was changed after it was written"
    if reason is None:
        bad_seq, reason = _cut_off(at, _head(connection, database), known)
    ok = reason is None
    return AuditReport(
        entries=at.seq, ok=ok, first_bad_seq=None if ok else bad_seq, reason=reason or "every entry fits", head=at
    )


def _misfit(scope: Scope, at: AuditHead, entry: AuditEntry, known: AuditHead | None) -> tuple[int, str | None]:
    """In what an entry does not follow the chain so far, and at which place; ``None`` if it does."""
    seq = entry.decision.seq
    if seq != at.seq + 1:
        return at.seq + 1, f"entry {at.seq + 1} is missing: {seq} follows {at.seq}"
    if entry.previous_hash != at.hash:
        return seq, f"entry {seq} does not follow the entry before it: one of the two was replaced"
    if entry_hash(scope, entry.decision, entry.previous_hash) != entry.hash:
        return seq, f"entry {seq} was changed after it was written"
    if known is not None and known.seq == seq and known.hash != entry.hash:
        return seq, f"entry {seq} is not the one whose hash you kept: the chain was rewritten"
    return seq, None


def _cut_off(at: AuditHead, kept: AuditHead, known: AuditHead | None) -> tuple[int, str | None]:
    if kept != at:
        return at.seq + 1, f"the chain ends at entry {at.seq}, but its kept head is entry {kept.seq}"
    if known is not None and known.seq > at.seq:
        return at.seq + 1, f"the chain ends at entry {at.seq}, but you kept the hash of entry {known.seq}"
    return at.seq, None


def _head(connection: Connection, database: Database) -> AuditHead:
    query = select(chain_heads.c.seq, chain_heads.c.hash).where(database.mine(chain_heads))
    row = connection.execute(query).one_or_none()
    return AuditHead(0, genesis(database.scope)) if row is None else AuditHead(row.seq, row.hash)


def _entries(
    connection: Connection, database: Database, after_seq: int, limit: int | None
) -> Generator[AuditEntry, None, None]:
    query = (
        select(decisions)
        .where(database.mine(decisions), decisions.c.seq > after_seq)
        .order_by(decisions.c.seq)
        .limit(limit)
    )
    with connection.execution_options(yield_per=1000).execute(query) as rows:
        for row in rows:
            yield AuditEntry(_decision(row), row.previous_hash, row.hash)


def _decision(row: Row[Any]) -> Decision:
    at: datetime = row.at
    return Decision(
        decision_id=row.decision_id,
        seq=row.seq,
        kind=row.kind,
        subject=row.subject,
        verdict=Verdict.from_json(row.verdict),
        actor=row.actor,
        at=at,
        previous=row.previous,
    )
