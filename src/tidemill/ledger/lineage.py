"""Lineage: what a thing was made from and what was made from it, over artifacts, runs and rows.

Edges point from child to parent. The graph is walked by recursive common table expressions in the database; a cycle
ends the walk, for a node is visited once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Table, and_, func, literal, select

from tidemill.kernel import Digest
from tidemill.ledger.records import ArtifactVersion, LineageGraph, LineageNode
from tidemill.ledger.tables import artifacts, dataset_rows, dataset_versions, edges, row_edges, runs

if TYPE_CHECKING:
    from tidemill.ledger.artifacts import Artifacts
    from tidemill.ledger.database import Database

_CHUNK = 500
_WALK_BY_INDEX = select(
    *(func.set_config(f"enable_{way}", "off", True) for way in ("hashjoin", "mergejoin", "seqscan"))
)


class Lineage:
    """The graph of artifacts, runs and rows of one scope."""

    def __init__(self, database: Database, artifacts_: Artifacts) -> None:
        self._database = database
        self._artifacts = artifacts_

    def ancestors(self, digest: Digest | Iterable[Digest], *, depth: int | None = None) -> LineageGraph:
        """All that a thing, or several, came from, with itself.

        Args:
            digest: an artifact's or blob's digest or a run's id, or several.
            depth: follow so many edges at most.
        """
        return self._graph(_several(digest), upwards=True, depth=depth)

    def descendants(self, digest: Digest | Iterable[Digest], *, depth: int | None = None) -> LineageGraph:
        """All that came from a thing, or several, with itself."""
        return self._graph(_several(digest), upwards=False, depth=depth)

    def link_rows(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Say which rows came from which: (child row, parent row or source URI). Idempotent."""
        with self._database.write() as connection:
            self.link_rows_within(connection, pairs)

    def link_rows_within(self, connection: Connection, pairs: Iterable[tuple[str, str]]) -> None:
        """``link_rows`` as a part of a larger write transaction."""
        rows = [self._database.row(child=child, parent=parent) for child, parent in sorted(set(pairs))]
        self._database.put(connection, row_edges, rows)

    def row_ancestors(self, row_ids: Iterable[str]) -> LineageGraph:
        """The rows and sources that rows came from, with themselves."""
        return self._rows(sorted(set(row_ids)), upwards=True)

    def row_descendants(self, row_id: str) -> LineageGraph:
        """The rows that came from a row or source, with itself."""
        return self._rows([row_id], upwards=False)

    def versions_holding(self, row_id: str) -> list[ArtifactVersion]:
        """The data set versions that hold a row, by name and version."""
        part = and_(dataset_rows.c.part == dataset_versions.c.part, self._database.mine(dataset_rows))
        query = (
            select(dataset_versions.c.version, dataset_rows.c.present)
            .join(dataset_rows, part)
            .where(self._database.mine(dataset_versions), dataset_rows.c.row_id == row_id)
            .order_by(dataset_versions.c.version, dataset_versions.c.ordinal)
        )
        named = select(artifacts.c.kind, artifacts.c.name, artifacts.c.version).where(self._database.mine(artifacts))
        with self._database.read() as connection:
            # The last part of a version that speaks of the row decides whether the version holds it.
            spoken = {row.version: row.present for row in connection.execute(query)}
            holding = [version for version, present in spoken.items() if present]
            refs = [
                row
                for start in range(0, len(holding), _CHUNK)
                for row in connection.execute(named.where(artifacts.c.digest.in_(holding[start : start + _CHUNK])))
            ]
        found = [self._artifacts.get(f"{row.kind}/{row.name}@{row.version}") for row in refs]
        return sorted(found, key=lambda version: (version.kind, version.name, version.version))

    def _graph(self, starts: Sequence[str], *, upwards: bool, depth: int | None) -> LineageGraph:
        with self._database.read() as connection:
            found = self._walk(connection, edges, starts, upwards=upwards, depth=depth)
            nodes = dict.fromkeys(starts) | dict.fromkeys(node for edge in found for node in edge[:2])
            return LineageGraph(self._described(connection, list(nodes)), found)

    def _rows(self, starts: Sequence[str], *, upwards: bool) -> LineageGraph:
        with self._database.read() as connection:
            found = self._walk(connection, row_edges, starts, upwards=upwards, depth=None)
        nodes = dict.fromkeys(starts) | dict.fromkeys(node for edge in found for node in edge[:2])
        return LineageGraph(tuple(LineageNode(node, "source" if ":" in node else "row", node) for node in nodes), found)

    def _walk(
        self, connection: Connection, table: Table, starts: Sequence[str], *, upwards: bool, depth: int | None
    ) -> tuple[tuple[str, str, str], ...]:
        """The edges reached from the starts, nearest first."""
        if self._database.dialect == "postgresql":
            # The planner cannot know how short these walks are, guesses thousands of nodes and would read whole tables.
            connection.execute(_WALK_BY_INDEX)
        found: dict[tuple[str, str, str], None] = {}
        for start in range(0, len(starts), _CHUNK):
            query = self._walk_query(table, starts[start : start + _CHUNK], upwards=upwards, depth=depth)
            found |= dict.fromkeys((row[0], row[1], row[2]) for row in connection.execute(query))
        return tuple(found)

    def _walk_query(self, table: Table, starts: Sequence[str], *, upwards: bool, depth: int | None) -> Any:
        near, far = (table.c.child, table.c.parent) if upwards else (table.c.parent, table.c.child)
        mine = self._database.mine(table)
        role = table.c.role if "role" in table.c else literal("row")
        if depth is None:
            reached = select(near.label("node")).where(mine, near.in_(starts)).distinct().cte(recursive=True)
            reached = reached.union(select(far).join(reached, near == reached.c.node).where(mine))
            return select(table.c.child, table.c.parent, role).join(reached, near == reached.c.node).where(mine)
        level = literal(0).label("level")
        reached = select(near.label("node"), level).where(mine, near.in_(starts)).distinct().cte(recursive=True)
        further = select(far, reached.c.level + 1).join(reached, near == reached.c.node)
        reached = reached.union(further.where(mine, reached.c.level < depth - 1))
        nodes = select(reached.c.node, func.min(reached.c.level).label("level")).group_by(reached.c.node).subquery()
        query = select(table.c.child, table.c.parent, role).join(nodes, near == nodes.c.node)
        return query.where(mine, literal(depth) > 0).order_by(nodes.c.level)

    def _described(self, connection: Connection, nodes: list[str]) -> tuple[LineageNode, ...]:
        labels: dict[str, tuple[str, str]] = {}
        for start in range(0, len(nodes), _CHUNK):
            chunk = nodes[start : start + _CHUNK]
            named = (
                select(artifacts.c.digest, artifacts.c.kind, artifacts.c.name, artifacts.c.version)
                .where(self._database.mine(artifacts), artifacts.c.digest.in_(chunk))
                .order_by(artifacts.c.created_at, artifacts.c.artifact_id)
            )
            for row in connection.execute(named):
                labels[row.digest] = (row.kind, f"{row.kind}/{row.name}@{row.version}")
            ran = select(runs.c.run_id, runs.c.step).where(self._database.mine(runs), runs.c.run_id.in_(chunk))
            labels |= {row.run_id: ("run", row.step) for row in connection.execute(ran)}
        return tuple(LineageNode(node, *labels.get(node, ("blob", node))) for node in nodes)


def _several(digest: Digest | Iterable[Digest]) -> list[str]:
    return [digest] if isinstance(digest, str) else sorted(set(digest))
