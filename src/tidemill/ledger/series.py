"""Observations in their sequence and cached results: the small facets of the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, func, insert, select

from tidemill.kernel import Digest
from tidemill.ledger.records import Observation, plain_json
from tidemill.ledger.tables import observations, results

if TYPE_CHECKING:
    from tidemill.ledger.database import Database


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
