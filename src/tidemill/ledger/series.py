"""Observations in their sequence, cached results and API keys: the small facets of the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, func, insert, select, update

from tidemill.kernel import Conflict, Digest, NotFound, Verdict
from tidemill.ledger.records import ApiKeyRecord, Decision, Observation, plain_json
from tidemill.ledger.tables import api_keys, observations, results

if TYPE_CHECKING:
    from tidemill.ledger.database import Database
    from tidemill.ledger.decisions import Decisions


class Observations:
    """The sequences that sequential decisions rest on, one per subject."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(self, subject: str, rows: Sequence[Observation]) -> int:
        """Put observations at the end of a subject's sequence, in the order given.

        A unit that is in the sequence already is left out, so that appending again after a crash changes nothing.
        Numbers run from 1 without gaps, whoever else appends. A power cut, but no killed process, may undo the newest
        appends; a decision recorded later makes them durable.

        Returns:
            The number of the last observation of the subject.
        """
        with self._database.write(sync_full=False) as connection:
            self._database.lock(connection, f"observations:{subject}")
            mine = and_(self._database.mine(observations), observations.c.subject == subject)
            last = connection.execute(select(func.max(observations.c.seq)).where(mine)).scalar_one() or 0
            fresh = {row.unit: row for row in reversed(rows)}
            units = sorted(fresh)
            for start in range(0, len(units), 500):
                known = select(observations.c.unit).where(mine, observations.c.unit.in_(units[start : start + 500]))
                for unit in connection.execute(known).scalars():
                    del fresh[unit]
            inserted = []
            for row in rows:
                if fresh.pop(row.unit, None) is not None:
                    last += 1
                    values = {"subject": subject, "seq": last, "unit": row.unit, "arm": row.arm, "at": row.at}
                    inserted.append(self._database.row(**values, metrics=plain_json(row.metrics)))
            if inserted:
                connection.execute(insert(observations), inserted)
            return int(last)

    def read(self, subject: str, after_seq: int = 0) -> list[Observation]:
        """The observations of a subject after a number, in their order."""
        query = (
            select(observations)
            .where(self._database.mine(observations), observations.c.subject == subject, observations.c.seq > after_seq)
            .order_by(observations.c.seq)
        )
        with self._database.read() as connection:
            return [
                Observation(unit=row.unit, arm=row.arm, metrics=row.metrics, at=row.at, seq=row.seq)
                for row in connection.execute(query)
            ]


class Results:
    """Cached JSON results by the digest of all they depend on: cache and resume are the same table."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put_many(self, values: Mapping[Digest, Any]) -> None:
        """Keep results; a key that is there already takes the new value."""
        now = self._database.clock.now()
        rows = [self._database.row(key=key, value=values[key], at=now) for key in sorted(values)]
        with self._database.write(sync_full=False) as connection:
            self._database.put(connection, results, rows, replace=("value", "at"))

    def get_many(self, keys: Iterable[Digest]) -> dict[Digest, Any]:
        """The results that are kept, by key."""
        wanted = sorted(set(keys))
        found: dict[Digest, Any] = {}
        with self._database.read() as connection:
            for start in range(0, len(wanted), 500):
                query = select(results.c.key, results.c.value).where(
                    self._database.mine(results), results.c.key.in_(wanted[start : start + 500])
                )
                found |= {row.key: row.value for row in connection.execute(query)}
        return found


class ApiKeys:
    """Clients' keys, by their digests alone."""

    def __init__(self, database: Database, decisions: Decisions) -> None:
        self._database = database
        self._decisions = decisions

    def add(self, digest: str, name: str) -> ApiKeyRecord:
        """Let a key in.

        Args:
            digest: ``kernel.key_digest`` of the key.
            name: what people call it; free again once revoked.

        Raises:
            Conflict: a live key has that name, or the digest is known.
        """
        now = self._database.clock.now()
        with self._database.write() as connection:
            self._database.lock(connection, "api_keys")
            taken = select(api_keys.c.name).where(
                (api_keys.c.digest == digest)
                | (self._database.mine(api_keys) & (api_keys.c.name == name) & api_keys.c.revoked_at.is_(None))
            )
            if connection.execute(taken.limit(1)).one_or_none() is not None:
                raise Conflict(
                    f"There is an API key '{name}' already.", hint="Revoke it first, or choose another name."
                )
            connection.execute(insert(api_keys), self._database.row(digest=digest, name=name, created_at=now))
        return ApiKeyRecord(digest=digest, name=name, tenant=self._database.scope.tenant, created_at=now)

    def list(self) -> list[ApiKeyRecord]:
        """All keys, revoked ones too, oldest first."""
        query = (
            select(api_keys)
            .where(self._database.mine(api_keys))
            .order_by(api_keys.c.created_at, api_keys.c.name, api_keys.c.digest)
        )
        with self._database.read() as connection:
            return [
                ApiKeyRecord(
                    digest=row.digest,
                    name=row.name,
                    tenant=row.tenant,
                    created_at=row.created_at,
                    revoked_at=row.revoked_at,
                )
                for row in connection.execute(query)
            ]

    def revoke(self, name: str, *, actor: str, reason: str) -> Decision:
        """Shut a key out; a decision of kind ``api_key`` says who and why.

        Raises:
            NotFound: no live key has that name.
        """
        with self._database.write() as connection:
            self._decisions.lock(connection)
            live = self._database.mine(api_keys) & (api_keys.c.name == name) & api_keys.c.revoked_at.is_(None)
            now = self._database.clock.now()
            if connection.execute(update(api_keys).where(live).values(revoked_at=now)).rowcount == 0:
                raise NotFound(f"There is no live API key '{name}'.")
            verdict = Verdict("revoked", reason)
            return self._decisions.append(connection, "api_key", f"api_key/{name}", verdict, actor)
