"""The ledger: one object whose parts answer what was made, from what, by which run, and who decided."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

from tidemill.kernel import Clock, Scope, SystemClock
from tidemill.ledger.api_keys import ApiKeys
from tidemill.ledger.artifacts import Artifacts
from tidemill.ledger.database import Database
from tidemill.ledger.decisions import Audit, Decisions
from tidemill.ledger.leases import Leases
from tidemill.ledger.lineage import Lineage
from tidemill.ledger.records import S3Options
from tidemill.ledger.runs import Runs
from tidemill.ledger.schema import prepare
from tidemill.ledger.series import Observations, Results

if TYPE_CHECKING:
    from tidemill.ledger.blobs import Blobs
    from tidemill.ledger.datasets import Datasets


class Ledger:
    """The store of one scope. Safe for threads, for many processes on one store, and for a child after ``fork``.

    Args:
        database: an open database with the current schema.
        blobs: where blobs lie: a folder, ``memory://`` or ``s3://bucket/prefix``.
        s3: how to reach an S3-compatible store.
        cache_dir: where blobs of a remote store are kept once downloaded.
    """

    def __init__(
        self, database: Database, *, blobs: str, s3: S3Options | None = None, cache_dir: Path | None = None
    ) -> None:
        self.database: Final = database
        self.scope: Final = database.scope
        self.clock: Final = database.clock
        self.blobs_url: Final = blobs
        self.leases: Final = Leases(database)
        self.decisions: Final = Decisions(database, self.leases)
        self.audit: Final = Audit(database)
        self.artifacts: Final = Artifacts(database, self.decisions)
        self.runs: Final = Runs(database)
        self.lineage: Final = Lineage(database, self.artifacts)
        self.observations: Final = Observations(database)
        self.results: Final = Results(database)
        self.api_keys: Final = ApiKeys(database, self.decisions)
        self._s3 = s3
        self._cache_dir = cache_dir
        self._opening = threading.Lock()
        self._blobs: Blobs | None = None
        self._datasets: Datasets | None = None

    @property
    def blobs(self) -> Blobs:
        """Content-addressed bytes. Opened when first used, for its library is not small."""
        with self._opening:
            if self._blobs is None:
                from tidemill.ledger.blobs import Blobs

                self._blobs = Blobs(self.blobs_url, s3=self._s3, cache_dir=self._cache_dir, database=self.database)
            return self._blobs

    @property
    def datasets(self) -> Datasets:
        """Rows of data set versions. Opened when first used."""
        blobs = self.blobs
        with self._opening:
            if self._datasets is None:
                from tidemill.ledger.datasets import Datasets

                self._datasets = Datasets(self.database, blobs=blobs, artifacts=self.artifacts, lineage=self.lineage)
            return self._datasets

    def close(self) -> None:
        """Give the database's connections back."""
        self.database.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_ledger(
    url: str,
    *,
    blobs: str,
    scope: Scope,
    clock: Clock = SystemClock(),  # noqa: B008 - it has no state
    s3: S3Options | None = None,
    migrate: bool = True,
    cache_dir: Path | None = None,
) -> Ledger:
    """Open a ledger, or make it where there is none.

    Args:
        url: ``sqlite:////path/ledger.db`` or ``postgresql+psycopg://user@host/name``.
        blobs: where blobs lie: a folder, ``memory://`` or ``s3://bucket/prefix``.
        scope: whose things are read and written; a store holds many scopes.
        clock: where times come from.
        s3: how to reach an S3-compatible store.
        migrate: make the tables in an empty database, and bring an older SQLite file up to date after copying it
            beside itself. A PostgreSQL server is brought up to date by ``upgrade`` alone.
        cache_dir: where blobs of a remote store are kept once downloaded.

    Raises:
        InvalidInput: a URL that cannot hold a ledger.
        Unavailable: it cannot be reached or opened, or its tables are of another version of Tidemill.
        MissingExtra: PostgreSQL without its driver.
    """
    database = Database(url, scope, clock)
    try:
        prepare(database, migrate=migrate)
    except BaseException:
        database.close()
        raise
    return Ledger(database, blobs=blobs, s3=s3, cache_dir=cache_dir)
