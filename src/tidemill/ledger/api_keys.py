"""Clients' keys, by their digests alone: let in, rotated with an overlap, shut out."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, insert, or_, select, update

from tidemill.kernel import Conflict, InvalidInput, NotFound, Verdict
from tidemill.ledger.records import ApiKeyRecord, Decision, KeyTerms
from tidemill.ledger.tables import api_keys

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tidemill.ledger.database import Database
    from tidemill.ledger.decisions import Decisions


class ApiKeys:
    """The keys of a project and tenant. A key is live until it is revoked or has expired."""

    def __init__(self, database: Database, decisions: Decisions) -> None:
        self._database = database
        self._decisions = decisions

    def add(self, digest: str, name: str, *, prefix: str = "", terms: KeyTerms | None = None) -> ApiKeyRecord:
        """Let a key in.

        Args:
            digest: ``kernel.key_digest`` of the key.
            name: what people call it; free again once no key of that name is live.
            prefix: its first characters.
            terms: what it may do; everything by default.

        Raises:
            Conflict: a live key has that name, or the digest is known.
        """
        with self._database.write() as connection:
            self._database.lock(connection, "api_keys")
            taken = select(api_keys.c.name).where((api_keys.c.digest == digest) | self._live(name))
            if connection.execute(taken.limit(1)).one_or_none() is not None:
                raise Conflict(
                    f"There is an API key '{name}' already.",
                    hint="Revoke it first, rotate it, or choose another name.",
                )
            return self._insert(connection, digest, name, prefix, terms or KeyTerms())

    def rotate(
        self, digest: str, name: str, *, prefix: str = "", overlap_s: float, actor: str, reason: str
    ) -> tuple[ApiKeyRecord, Decision]:
        """Let a second key of the same name in, with the same terms, and end the first after an overlap.

        Both keys share the name's limits, so that a rotation gives nobody a second budget.

        Args:
            digest: of the new key.
            name: of the key that is rotated.
            prefix: first characters of the new key.
            overlap_s: how long the old key is honoured still; 0 ends it at once.
            actor: who does it.
            reason: why, for the audit chain.

        Raises:
            NotFound: no live key has that name.
            InvalidInput: a negative overlap.
        """
        if overlap_s < 0:
            raise InvalidInput(f"an overlap of {overlap_s:g} s lies in the past")
        with self._database.write() as connection:
            self._decisions.lock(connection)
            self._database.lock(connection, "api_keys")
            newest = select(api_keys).where(self._live(name)).order_by(api_keys.c.created_at.desc()).limit(1)
            old = connection.execute(newest).one_or_none()
            if old is None:
                raise NotFound(f"There is no live API key '{name}'.")
            end = self._database.clock.now() + timedelta(seconds=overlap_s)
            earlier = or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > end)
            connection.execute(update(api_keys).where(self._live(name), earlier).values(expires_at=end))
            record = self._insert(connection, digest, name, prefix, _terms(old))
            verdict = Verdict("rotated", reason)
            return record, self._decisions.append(connection, "api_key", f"api_key/{name}", verdict, actor)

    def list(self) -> list[ApiKeyRecord]:
        """All keys, revoked and expired ones too, oldest first."""
        query = (
            select(api_keys)
            .where(self._database.mine(api_keys))
            .order_by(api_keys.c.created_at, api_keys.c.name, api_keys.c.digest)
        )
        with self._database.read() as connection:
            return [_record(row) for row in connection.execute(query)]

    def revoke(self, name: str, *, actor: str, reason: str) -> Decision:
        """Shut all live keys of a name out; a decision of kind ``api_key`` says who and why.

        Raises:
            NotFound: no live key has that name.
        """
        with self._database.write() as connection:
            self._decisions.lock(connection)
            now = self._database.clock.now()
            if connection.execute(update(api_keys).where(self._live(name)).values(revoked_at=now)).rowcount == 0:
                raise NotFound(f"There is no live API key '{name}'.")
            verdict = Verdict("revoked", reason)
            return self._decisions.append(connection, "api_key", f"api_key/{name}", verdict, actor)

    def _live(self, name: str) -> ColumnElement[bool]:
        now = self._database.clock.now()
        unexpired = or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > now)
        mine: ColumnElement[bool] = self._database.mine(api_keys)
        return mine & (api_keys.c.name == name) & api_keys.c.revoked_at.is_(None) & unexpired

    def _insert(self, connection: Connection, digest: str, name: str, prefix: str, terms: KeyTerms) -> ApiKeyRecord:
        now = self._database.clock.now()
        values: dict[str, Any] = {
            "team": terms.team,
            "endpoints": list(terms.endpoints),
            "operations": list(terms.operations),
            "expires_at": terms.expires_at,
            "priority": terms.priority,
        }
        row = self._database.row(digest=digest, name=name, created_at=now, prefix=prefix, **values)
        connection.execute(insert(api_keys), row)
        return ApiKeyRecord(
            digest=digest,
            name=name,
            tenant=self._database.scope.tenant,
            created_at=now,
            prefix=prefix,
            team=terms.team,
            endpoints=terms.endpoints,
            operations=terms.operations,
            expires_at=terms.expires_at,
            priority=terms.priority,
        )


def _terms(row: Any) -> KeyTerms:
    """The terms of a key for its successor: all but the expiry, which was the old key's."""
    return KeyTerms(
        team=row.team, endpoints=tuple(row.endpoints), operations=tuple(row.operations), priority=row.priority
    )


def _record(row: Any) -> ApiKeyRecord:
    return ApiKeyRecord(
        digest=row.digest,
        name=row.name,
        tenant=row.tenant,
        created_at=row.created_at,
        revoked_at=row.revoked_at,
        prefix=row.prefix,
        team=row.team,
        endpoints=tuple(row.endpoints),
        operations=tuple(row.operations),
        expires_at=row.expires_at,
        priority=row.priority,
    )
