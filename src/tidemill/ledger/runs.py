"""Runs: executions with a lease, a heartbeat, inputs, outputs and metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, insert, select, update

from tidemill.kernel import Conflict, Digest, InvalidInput, NotFound, RunId, fresh_id, parse_digest
from tidemill.ledger.records import MetricPoint, Run, RunStatus, plain_json
from tidemill.ledger.tables import blob_pins, edges, metrics, runs

if TYPE_CHECKING:
    from tidemill.ledger.database import Database

_RunList: TypeAlias = list[Run]  # inside the class `list` is its method
_ENDS: Final = frozenset({RunStatus.OK, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.ABANDONED})


class Runs:
    """The runs of one scope."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def start(
        self,
        step: str,
        *,
        params: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Digest] | None = None,
        code_digest: Digest,
        environment_digest: Digest,
        key: Digest | None = None,
        lease_s: float = 60.0,
        parent: RunId | None = None,
    ) -> Run:
        """Begin a run. It must give a sign of life at least every ``lease_s`` seconds.

        Args:
            step: what is run.
            params: its parameters, JSON.
            inputs: slot -> digest of what it reads.
            code_digest: digest of the code that runs.
            environment_digest: digest of what it runs on.
            key: digest of all that determines the outputs.
            lease_s: seconds after which a silent run counts as abandoned.
            parent: the run that started this one.
        """
        now = self._database.clock.now()
        run = Run(
            run_id=RunId(fresh_id("run")),
            step=step,
            status=RunStatus.RUNNING,
            key=None if key is None else parse_digest(key),
            params=plain_json(params or {}),
            inputs={slot: parse_digest(digest) for slot, digest in (inputs or {}).items()},
            outputs={},
            error=None,
            started_at=now,
            finished_at=None,
            lease_until=now + timedelta(seconds=lease_s),
            parent=parent,
            code_digest=parse_digest(code_digest),
            environment_digest=parse_digest(environment_digest),
        )
        columns = {column: getattr(run, column) for column in run.__slots__ if column not in ("inputs", "outputs")}
        columns |= {"status": run.status.value, "lease_s": lease_s}
        read = [
            self._database.row(child=run.run_id, parent=digest, relation="input", role=slot)
            for slot, digest in run.inputs.items()
        ]
        with self._database.write() as connection:
            connection.execute(insert(runs), self._database.row(**columns))
            self._database.put(connection, edges, read)
        return run

    def heartbeat(self, run_id: RunId) -> Run:
        """Say that the run lives; its lease lasts from now on.

        Raises:
            Conflict: the lease was lost: the run ended or was silent for too long, and others may have taken over.
            NotFound: there is no such run.
        """
        with self._database.write(sync_full=False) as connection:
            row = self._live(connection, run_id)
            until = self._database.clock.now() + timedelta(seconds=row.lease_s)
            connection.execute(update(runs).where(self._is(run_id)).values(lease_until=until))
            return self._load(connection, self._is(run_id))[0]

    def finish(
        self,
        run_id: RunId,
        status: RunStatus,
        *,
        outputs: Mapping[str, Digest] | None = None,
        error: str | None = None,
    ) -> Run:
        """End a run, durable when this returns. Its blobs are no longer pinned: publish what is to stay before.

        Args:
            run_id: the run.
            status: how it ended.
            outputs: slot -> digest of what it made.
            error: what went wrong, if something did.

        Raises:
            Conflict: the lease was lost; nothing was written.
            InvalidInput: the status is not one a run ends with.
            NotFound: there is no such run.
        """
        status = RunStatus(status)
        if status not in _ENDS:
            raise InvalidInput(f"a run cannot end as '{status}': write one of {', '.join(sorted(_ENDS))}")
        made = [
            self._database.row(child=parse_digest(digest), parent=run_id, relation="output", role=slot)
            for slot, digest in (outputs or {}).items()
        ]
        with self._database.write() as connection:
            self._live(connection, run_id)
            now = self._database.clock.now()
            ended = {"status": status.value, "error": error, "finished_at": now, "lease_until": now}
            connection.execute(update(runs).where(self._is(run_id)).values(**ended))
            self._database.put(connection, edges, made)
            pins = and_(self._database.mine(blob_pins), blob_pins.c.run_id == run_id)
            connection.execute(delete(blob_pins).where(pins))
            return self._load(connection, self._is(run_id))[0]

    def log_metric(self, run_id: RunId, name: str, value: float, step: int = 0) -> None:
        """Add a point to a metric's series; the same step again replaces it.

        Raises:
            NotFound: there is no such run.
        """
        self.log_metrics(run_id, [(name, step, value)])

    def log_metrics(self, run_id: RunId, points: Iterable[tuple[str, int, float]]) -> None:
        """Add many points (name, step, value) in one transaction."""
        now = self._database.clock.now()
        rows = {
            (name, step): self._database.row(
                run_id=run_id, name=name, step=step, value=None if math.isnan(value) else float(value), at=now
            )
            for name, step, value in points
        }
        with self._database.write(sync_full=False) as connection:
            self._row(connection, run_id)
            self._database.put(connection, metrics, [rows[key] for key in sorted(rows)], replace=("value", "at"))

    def metrics(self, run_id: RunId) -> dict[str, list[MetricPoint]]:
        """The series of a run by name, each in the order of its steps."""
        query = (
            select(metrics)
            .where(self._database.mine(metrics), metrics.c.run_id == run_id)
            .order_by(metrics.c.name, metrics.c.step)
        )
        series: dict[str, list[MetricPoint]] = {}
        with self._database.read() as connection:
            for row in connection.execute(query):
                value = math.nan if row.value is None else row.value
                series.setdefault(row.name, []).append(MetricPoint(row.step, value, row.at))
        return series

    def find_ok(self, key: Digest) -> Run | None:
        """The newest run with this key that ended well."""
        which = and_(self._database.mine(runs), runs.c.key == key, runs.c.status == RunStatus.OK.value)
        with self._database.read() as connection:
            found = self._load(connection, which, limit=1)
        return found[0] if found else None

    def get(self, run_id: RunId) -> Run:
        """One run.

        Raises:
            NotFound: there is no such run.
        """
        with self._database.read() as connection:
            self._row(connection, run_id)
            return self._load(connection, self._is(run_id))[0]

    def list(self, step: str | None = None, limit: int = 100) -> _RunList:
        """Runs, newest first."""
        which = self._database.mine(runs)
        if step is not None:
            which &= runs.c.step == step
        with self._database.read() as connection:
            return self._load(connection, which, limit=limit)

    def expire(self) -> _RunList:
        """Mark running runs whose lease is over as abandoned, and return those."""
        now = self._database.clock.now()
        over = and_(self._database.mine(runs), runs.c.status == RunStatus.RUNNING.value, runs.c.lease_until <= now)
        with self._database.read() as connection:
            if connection.execute(select(runs.c.run_id).where(over).limit(1)).one_or_none() is None:
                return []
        with self._database.write() as connection:
            query = select(runs.c.run_id).where(over).order_by(runs.c.run_id)
            if self._database.dialect == "postgresql":
                query = query.with_for_update()
            silent = [row.run_id for row in connection.execute(query)]
            these = and_(self._database.mine(runs), runs.c.run_id.in_(silent))
            ended = {"status": RunStatus.ABANDONED.value, "finished_at": now, "error": "no sign of life"}
            connection.execute(update(runs).where(these).values(**ended))
            return self._load(connection, these)

    def _is(self, run_id: RunId) -> ColumnElement[bool]:
        return and_(self._database.mine(runs), runs.c.run_id == run_id)

    def _row(self, connection: Connection, run_id: RunId, *, locked: bool = False) -> Row[Any]:
        query = select(runs).where(self._is(run_id))
        if locked and self._database.dialect == "postgresql":
            query = query.with_for_update()
        row = connection.execute(query).one_or_none()
        if row is None:
            raise NotFound(f"There is no run '{run_id}'.")
        return row

    def _live(self, connection: Connection, run_id: RunId) -> Row[Any]:
        row = self._row(connection, run_id, locked=True)
        if row.status != RunStatus.RUNNING:
            raise Conflict(f"Run '{run_id}' of '{row.step}' has ended already ({row.status}). Nothing was written.")
        if row.lease_until <= self._database.clock.now():
            raise Conflict(
                f"Run '{run_id}' of '{row.step}' lost its lease: no sign of life for {row.lease_s:g} s.",
                hint="Run the step again; give a long one a longer lease or a heartbeat.",
            )
        return row

    def _load(self, connection: Connection, which: ColumnElement[bool], limit: int | None = None) -> _RunList:
        query = select(runs).where(which).order_by(runs.c.run_id.desc()).limit(limit)
        rows = connection.execute(query).all()
        ids = [row.run_id for row in rows]
        read: dict[str, dict[str, Digest]] = {run_id: {} for run_id in ids}
        made: dict[str, dict[str, Digest]] = {run_id: {} for run_id in ids}
        for start in range(0, len(ids), 500):
            chunk = ids[start : start + 500]
            mine = self._database.mine(edges)
            inputs = select(edges).where(mine, edges.c.child.in_(chunk), edges.c.relation == "input")
            outputs = select(edges).where(mine, edges.c.parent.in_(chunk), edges.c.relation == "output")
            for row in connection.execute(inputs):
                read[row.child][row.role] = row.parent
            for row in connection.execute(outputs):
                made[row.parent][row.role] = row.child
        return [_run(row, read[row.run_id], made[row.run_id]) for row in rows]


def _run(row: Row[Any], inputs: Mapping[str, Digest], outputs: Mapping[str, Digest]) -> Run:
    return Run(
        run_id=row.run_id,
        step=row.step,
        status=RunStatus(row.status),
        key=row.key,
        params=row.params,
        inputs=inputs,
        outputs=outputs,
        error=row.error,
        started_at=row.started_at,
        finished_at=row.finished_at,
        lease_until=row.lease_until,
        parent=row.parent,
        code_digest=row.code_digest,
        environment_digest=row.environment_digest,
    )
