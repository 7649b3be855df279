"""Artifacts: immutable versions by name, and the labels that point at them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Row, and_, delete, func, insert, select, update

from tidemill.kernel import (
    ArtifactId,
    ArtifactKind,
    ArtifactRef,
    Conflict,
    Digest,
    InvalidInput,
    NotFound,
    RunId,
    Verdict,
    check_name,
    fresh_id,
    parse_digest,
    parse_ref,
)
from tidemill.ledger.records import ArtifactVersion, Decision, artifact_digest, plain_json
from tidemill.ledger.tables import artifact_blobs, artifacts, edges, labels

if TYPE_CHECKING:
    from tidemill.ledger.database import Database
    from tidemill.ledger.decisions import Decisions


class Artifacts:
    """The registry of artifacts of one scope."""

    def __init__(self, database: Database, decisions: Decisions) -> None:
        self._database = database
        self._decisions = decisions

    def publish(
        self,
        kind: ArtifactKind,
        name: str,
        content: Mapping[str, Any],
        *,
        blobs: Mapping[str, Digest] | None = None,
        made_by: RunId | None = None,
        parents: Iterable[Digest] = (),
    ) -> ArtifactVersion:
        """Make a version of a named artifact, durable when this returns.

        Publishing the same content and blobs under the same name again returns the version that is there; its lineage
        gains the new run and parents.

        Args:
            kind: what sort of thing it is.
            name: its name.
            content: its JSON content.
            blobs: role -> digest of a blob that is in the store.
            made_by: the run that made it.
            parents: artifacts it came from, where no run records them.

        Raises:
            InvalidInput: a bad name, a digest that is none, or content JSON has no form for.
        """
        with self._database.write() as connection:
            return self.publish_within(
                connection, kind, name, content, blobs=blobs or {}, made_by=made_by, parents=parents
            )

    def publish_within(
        self,
        connection: Connection,
        kind: ArtifactKind,
        name: str,
        content: Mapping[str, Any],
        *,
        blobs: Mapping[str, Digest],
        made_by: RunId | None = None,
        parents: Iterable[Digest] = (),
    ) -> ArtifactVersion:
        """``publish`` as a part of a larger write transaction."""
        kind = ArtifactKind(kind)
        check_name(name, kind.value)
        content = plain_json(content)
        blobs = {role: parse_digest(blob) for role, blob in blobs.items()}
        digest = artifact_digest(kind, content, blobs)
        self._database.lock(connection, f"artifact:{kind}/{name}")
        version = self._named(connection, kind, name, artifacts.c.digest == digest)
        if version is None:
            version = self._insert(connection, kind, name, content, blobs, made_by)
        self._link(connection, digest, made_by, parents)
        return version

    def get(self, ref: ArtifactRef | str) -> ArtifactVersion:
        """The version a reference names; without a version, label or digest the newest.

        Raises:
            InvalidInput: the text is no reference.
            NotFound: there is no such version; the message names what comes near.
        """
        ref = parse_ref(ref) if isinstance(ref, str) else ref
        with self._database.read() as connection:
            found = self._resolve(connection, ref)
            if found is None:
                raise self._missing(connection, ref)
            return found

    def by_digest(self, digest: Digest) -> ArtifactVersion:
        """The artifact with this digest, under its newest name.

        Raises:
            NotFound: there is none.
        """
        found = self.named_by([digest])
        if not found:
            raise NotFound(f"There is no artifact with the digest {digest}.", hint="List them: tidemill status")
        return found[digest]

    def named_by(self, digests: Iterable[str]) -> dict[str, ArtifactVersion]:
        """The newest naming of each of these digests that is an artifact's."""
        with self._database.read() as connection:
            return self.named_by_within(connection, digests)

    def named_by_within(self, connection: Connection, digests: Iterable[str]) -> dict[str, ArtifactVersion]:
        """``named_by`` as a part of a larger read."""
        wanted = sorted(set(digests))
        found: dict[str, ArtifactVersion] = {}
        for start in range(0, len(wanted), 500):
            chunk = wanted[start : start + 500]
            query = (
                select(artifacts)
                .where(self._database.mine(artifacts), artifacts.c.digest.in_(chunk))
                .order_by(artifacts.c.created_at, artifacts.c.artifact_id)
            )
            found |= {row.digest: _version(row) for row in connection.execute(query)}
        return found

    def versions(self, kind: ArtifactKind, name: str) -> list[ArtifactVersion]:
        """All versions of a name, newest first; none if there is no such name."""
        query = (
            select(artifacts)
            .where(self._database.mine(artifacts), artifacts.c.kind == kind.value, artifacts.c.name == name)
            .order_by(artifacts.c.version.desc())
        )
        with self._database.read() as connection:
            return [_version(row) for row in connection.execute(query)]

    def list(self, kind: ArtifactKind | None = None) -> list[ArtifactVersion]:
        """The newest version of each name, by kind and name."""
        mine = self._database.mine(artifacts)
        if kind is not None:
            mine &= artifacts.c.kind == kind.value
        newest = (
            select(artifacts.c.kind, artifacts.c.name, func.max(artifacts.c.version).label("version"))
            .where(mine)
            .group_by(artifacts.c.kind, artifacts.c.name)
            .subquery()
        )
        same = and_(*(artifacts.c[column] == newest.c[column] for column in ("kind", "name", "version")))
        query = (
            select(artifacts)
            .join(newest, same)
            .where(self._database.mine(artifacts))
            .order_by(artifacts.c.kind, artifacts.c.name)
        )
        with self._database.read() as connection:
            return [_version(row) for row in connection.execute(query)]

    def labels(self, kind: ArtifactKind, name: str) -> dict[str, int]:
        """The labels of a name and the versions they point at."""
        query = select(labels.c.label, labels.c.version).where(
            self._database.mine(labels), labels.c.kind == kind.value, labels.c.name == name
        )
        with self._database.read() as connection:
            return {row.label: row.version for row in connection.execute(query)}

    def move_label(
        self,
        kind: ArtifactKind,
        name: str,
        label: str,
        to: int | None,
        *,
        expected: int | None,
        actor: str,
        reason: str,
        verdict: Verdict | None = None,
    ) -> Decision:
        """Point a label at another version, if it still points where the caller believes.

        Args:
            kind: kind of the artifact.
            name: name of the artifact.
            label: the label.
            to: the version it shall point at; ``None`` removes it.
            expected: the version it points at now; ``None``: it does not exist.
            actor: who moves it.
            reason: why; kept in the decision.
            verdict: what the move rests on; without one the decision says ``moved`` or ``removed`` and the reason.

        Returns:
            The decision of kind ``label``, written in the same durable transaction.

        Raises:
            Conflict: the label points elsewhere; nothing was moved.
            NotFound: there is no such version.
        """
        check_name(label, "label")
        if label.isdecimal():
            raise InvalidInput(f"'{label}' cannot name a label: a number after @ means a version")
        judged = verdict or Verdict("removed" if to is None else "moved", reason)
        evidence = {**judged.evidence, "from": expected, "to": to, "why": reason}
        judged = Verdict(judged.value, judged.reason, evidence)
        subject = str(ArtifactRef(kind, name, label=label))
        with self._database.write() as connection:
            # The chain's lock comes first: it is taken by every decision, so two moves wait here and not in a circle.
            self._decisions.lock(connection)
            if to is not None and self._named(connection, kind, name, artifacts.c.version == to) is None:
                raise self._missing(connection, ArtifactRef(kind, name, version=to))
            decision = self._decisions.append(connection, "label", subject, judged, actor)
            self._swap(connection, decision, (kind, name, label), expected, to)
            return decision

    def _swap(
        self,
        connection: Connection,
        decision: Decision,
        key: tuple[ArtifactKind, str, str],
        expected: int | None,
        to: int | None,
    ) -> None:
        kind, name, label = key
        which = and_(
            self._database.mine(labels), labels.c.kind == kind.value, labels.c.name == name, labels.c.label == label
        )
        current = connection.execute(select(labels.c.version).where(which)).scalar_one_or_none()
        if current != expected:
            now = "does not exist" if current is None else f"points at version {current}"
            believed = "not to exist" if expected is None else f"to point at version {expected}"
            raise Conflict(
                f"'{kind}/{name}@{label}' {now}; you expected it {believed}. Nothing was moved.",
                hint="Look again, and repeat the move if it is still what you want.",
            )
        if to is None:
            connection.execute(delete(labels).where(which))
            return
        values = {"version": to, "decision_id": decision.decision_id, "moved_at": decision.at}
        if current is None:
            row = self._database.row(kind=kind.value, name=name, label=label, **values)
            connection.execute(insert(labels), row)
        else:
            connection.execute(update(labels).where(which).values(**values))

    def _insert(
        self,
        connection: Connection,
        kind: ArtifactKind,
        name: str,
        content: Mapping[str, Any],
        blobs: Mapping[str, Digest],
        made_by: RunId | None,
    ) -> ArtifactVersion:
        mine = and_(self._database.mine(artifacts), artifacts.c.kind == kind.value, artifacts.c.name == name)
        newest = connection.execute(select(func.max(artifacts.c.version)).where(mine)).scalar_one()
        version = ArtifactVersion(
            artifact_id=ArtifactId(fresh_id("art")),
            kind=kind,
            name=name,
            version=(newest or 0) + 1,
            digest=artifact_digest(kind, content, blobs),
            content=content,
            blobs=blobs,
            made_by=made_by,
            created_at=self._database.clock.now(),
        )
        columns = {column: getattr(version, column) for column in version.__slots__}
        connection.execute(insert(artifacts), self._database.row(**columns | {"kind": kind.value}))
        held = [self._database.row(artifact=version.digest, role=role, blob=blob) for role, blob in blobs.items()]
        self._database.put(connection, artifact_blobs, held)
        return version

    def _link(self, connection: Connection, digest: Digest, made_by: RunId | None, parents: Iterable[Digest]) -> None:
        rows = [
            self._database.row(child=digest, parent=parse_digest(parent), relation="parent", role="parent")
            for parent in sorted(set(parents))
            if parent != digest
        ]
        if made_by is not None:
            rows.append(self._database.row(child=digest, parent=made_by, relation="made_by", role="made by"))
        self._database.put(connection, edges, rows)

    def _named(self, connection: Connection, kind: ArtifactKind, name: str, which: Any) -> ArtifactVersion | None:
        query = (
            select(artifacts)
            .where(self._database.mine(artifacts), artifacts.c.kind == kind.value, artifacts.c.name == name, which)
            .order_by(artifacts.c.version.desc())
            .limit(1)
        )
        row = connection.execute(query).one_or_none()
        return None if row is None else _version(row)

    def _resolve(self, connection: Connection, ref: ArtifactRef) -> ArtifactVersion | None:
        which: Any = artifacts.c.version > 0
        if ref.version is not None:
            which = artifacts.c.version == ref.version
        elif ref.digest is not None:
            which = artifacts.c.digest == ref.digest
        elif ref.label is not None:
            pointed = select(labels.c.version).where(
                self._database.mine(labels),
                labels.c.kind == ref.kind.value,
                labels.c.name == ref.name,
                labels.c.label == ref.label,
            )
            which = artifacts.c.version == pointed.scalar_subquery()
        return self._named(connection, ref.kind, ref.name, which)

    def _missing(self, connection: Connection, ref: ArtifactRef) -> NotFound:
        mine = self._database.mine(artifacts)
        names = connection.execute(select(artifacts.c.kind, artifacts.c.name).where(mine).distinct()).all()
        if (ref.kind.value, ref.name) not in {tuple(name) for name in names}:
            known = [f"{row.kind}/{row.name}" for row in names]
            near = difflib.get_close_matches(f"{ref.kind}/{ref.name}", known, n=3, cutoff=0.5)
            hint = (
                f"Near it: {', '.join(near)}." if near else f"Known: {', '.join(sorted(known)[:8]) or 'nothing yet'}."
            )
            return NotFound(f"There is no '{ref}'.", hint=hint)
        newest = connection.execute(
            select(func.max(artifacts.c.version)).where(
                mine, artifacts.c.kind == ref.kind.value, artifacts.c.name == ref.name
            )
        ).scalar_one()
        marked = connection.execute(
            select(labels.c.label).where(
                self._database.mine(labels), labels.c.kind == ref.kind.value, labels.c.name == ref.name
            )
        ).scalars()
        hint = f"'{ref.kind}/{ref.name}' has versions 1 to {newest}; labels: {', '.join(sorted(marked)) or 'none'}."
        return NotFound(f"There is no '{ref}'.", hint=hint)


def _version(row: Row[Any]) -> ArtifactVersion:
    return ArtifactVersion(
        artifact_id=row.artifact_id,
        kind=ArtifactKind(row.kind),
        name=row.name,
        version=row.version,
        digest=row.digest,
        content=row.content,
        blobs=row.blobs,
        made_by=row.made_by,
        created_at=row.created_at,
    )
