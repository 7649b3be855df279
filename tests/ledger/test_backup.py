from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from tests.conftest import NewLedger
from tidemill.kernel import (
    ArtifactKind,
    Conflict,
    InvalidInput,
    NotFound,
    RowId,
    Scope,
    Unavailable,
    Verdict,
    digest_bytes,
)
from tidemill.ledger import Ledger, Observation, Row, RunStatus, backup, collect_garbage, open_ledger, restore
from tidemill.ledger.accounts import Charge, ChargedRequest, open_lease_store
from tidemill.ledger.backups import _TABLES

CODE = digest_bytes(b"code")


def _fill(ledger: Ledger) -> None:
    """Something in every table."""
    run_id = ledger.runs.start("step", params={"k": 3}, code_digest=CODE, environment_digest=CODE, key=CODE).run_id
    rows = [Row(row_id=RowId(f"r{number}"), value={"t": "ä" * number}, sources=("file:a",)) for number in range(50)]
    first = ledger.datasets.write("set", rows, made_by=run_id)
    ledger.datasets.write("set", rows[1:], base=first)
    weights = ledger.blobs.put(os.urandom(3 << 20), run_id=run_id)
    ledger.artifacts.publish(ArtifactKind.MODEL, "m", {"x": [1.5, None, "ü"]}, blobs={"weights": weights})
    ledger.runs.log_metric(run_id, "loss", 0.25)
    ledger.runs.log_metric(run_id, "loss", float("nan"), step=1)
    ledger.runs.finish(run_id, RunStatus.OK, outputs={"out": ledger.blobs.put(b"made")})
    ledger.artifacts.move_label(ArtifactKind.MODEL, "m", "production", 1, expected=None, actor="me", reason="good")
    ledger.decisions.record("gate", "release/a", Verdict("PASS", "better"), actor="me")
    ledger.observations.append("o", [Observation(unit="u", arm="a", metrics={"m": 1.0}, at=ledger.clock.now())])
    ledger.results.put_many({CODE: {"score": 0.5}})
    ledger.api_keys.add(digest_bytes(ledger.scope.project.encode()), "key")
    ledger.blobs.put(b"garbage")
    url = ledger.database.url.render_as_string(hide_password=False)
    with closing(open_lease_store(url, ledger.scope)) as accounts:
        accounts.settle([ChargedRequest("r", 0.0, (Charge("key/ann.x", 5, 3),))])


def _rows(ledger: Ledger) -> dict[str, list[tuple[Any, ...]]]:
    with ledger.database.read() as connection:
        return {
            one.name: sorted(
                (tuple(row) for row in connection.execute(select(one).where(ledger.database.mine(one)))), key=repr
            )
            for one in _TABLES
        }


@pytest.fixture
def target_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    def choose(kind: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path}/restored.db"
        made: str = request.getfixturevalue("new_postgres_database")()
        return made

    return choose


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_restored_it_is_the_same_on_either_database(
    ledger: Ledger, tmp_path: Path, target_url: Callable[[str], str], kind: str
) -> None:
    _fill(ledger)
    report = backup(ledger, tmp_path / "backup")
    assert all(report.rows[one.name] for one in _TABLES), f"a table without rows tests nothing: {report.rows}"
    assert report.missing == ()
    assert report.blobs == 4, "base, deletions, weights and made, but no garbage"
    assert not list(tmp_path.glob(".backup*"))
    for path in [tmp_path / "backup", *(tmp_path / "backup").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    url, blobs = target_url(kind), str(tmp_path / "restored")
    restored = restore(tmp_path / "backup", url=url, blobs=blobs, scope=ledger.scope)
    assert (restored.rows, restored.blobs, restored.audit_entries) == (report.rows, 4, report.audit_head)
    with open_ledger(url, blobs=blobs, scope=ledger.scope) as other:
        assert _rows(other) == _rows(ledger)
        for version in other.artifacts.versions(ArtifactKind.DATASET, "set"):
            assert list(other.datasets.read(version)) == list(ledger.datasets.read(version))
            assert other.datasets.verify(version)
        assert other.audit.verify().ok
        time.sleep(0.01)
        assert collect_garbage(other, grace_s=0).removed == ()
        decision = other.decisions.record("gate", "release/a", Verdict("PASS", "still"), actor="me")
        assert decision.seq == report.audit_head + 1, "the chain goes on"
        again = other.datasets.write("set", [Row(row_id=RowId("new"), value={})])
        assert again.version == 3


def test_a_target_with_anything_in_it_is_refused(sqlite_ledger: Ledger, tmp_path: Path) -> None:
    _fill(sqlite_ledger)
    backup(sqlite_ledger, tmp_path / "backup")
    before = _rows(sqlite_ledger)
    where = {"url": sqlite_ledger.database.url.render_as_string(), "scope": sqlite_ledger.scope}
    with pytest.raises(Conflict, match="is not empty"):
        restore(tmp_path / "backup", blobs=str(tmp_path / "new"), **where)
    assert _rows(sqlite_ledger) == before
    fresh = f"sqlite:///{tmp_path}/fresh.db"
    with pytest.raises(Conflict, match="holds blobs already"):
        restore(tmp_path / "backup", url=fresh, blobs=str(tmp_path / "blobs"), scope=sqlite_ledger.scope)
    with pytest.raises(InvalidInput, match="something at"):
        backup(sqlite_ledger, tmp_path / "backup")


def test_a_restore_that_was_interrupted_can_be_repeated(sqlite_ledger: Ledger, tmp_path: Path) -> None:
    _fill(sqlite_ledger)
    report = backup(sqlite_ledger, tmp_path / "backup")
    url, blobs = f"sqlite:///{tmp_path}/restored.db", str(tmp_path / "restored")
    with open_ledger(url, blobs=blobs, scope=sqlite_ledger.scope) as other:
        other.blobs.store.admit(other.blobs.store.stage(b"made"))  # as if killed after the first blob
    assert restore(tmp_path / "backup", url=url, blobs=blobs, scope=sqlite_ledger.scope).rows == report.rows


def test_a_backup_that_was_changed_is_refused_before_anything_is_written(sqlite_ledger: Ledger, tmp_path: Path) -> None:
    _fill(sqlite_ledger)
    backup(sqlite_ledger, tmp_path / "backup")
    url, blobs = f"sqlite:///{tmp_path}/restored.db", str(tmp_path / "restored")

    def attempt(scope: Scope = sqlite_ledger.scope, path: Path = tmp_path / "backup") -> None:
        restore(path, url=url, blobs=blobs, scope=scope)

    with pytest.raises(NotFound, match="no backup at"):
        attempt(path=tmp_path)
    with pytest.raises(InvalidInput, match="is of project"):
        attempt(Scope("another"))
    for path in (path for path in sorted((tmp_path / "backup").rglob("*")) if path.is_file()):
        kept = path.read_bytes()
        path.chmod(0o600)
        if path.name != "manifest.json":
            path.write_bytes(kept[:-1])
            with pytest.raises(InvalidInput, match="was changed since"):
                attempt()
            path.unlink()
            with pytest.raises(InvalidInput, match="lacks"):
                attempt()
        else:
            path.write_bytes(json.dumps(json.loads(kept) | {"schema": "9999"}).encode())
            with pytest.raises(InvalidInput, match="schema 9999"):
                attempt()
            path.write_bytes(kept[:-5])
            with pytest.raises(InvalidInput, match="cannot be read"):
                attempt()
        path.write_bytes(kept)
    assert not (tmp_path / "restored.db").exists()
    assert not (tmp_path / "restored").exists()
    attempt()


def test_missing_blobs_are_named_and_damaged_ones_stop_it(sqlite_ledger: Ledger, tmp_path: Path) -> None:
    blobs = sqlite_ledger.blobs
    lost, spoilt = blobs.put(b"lost"), blobs.put(b"spoilt")
    sqlite_ledger.artifacts.publish(ArtifactKind.MODEL, "m", {}, blobs={"a": lost, "b": spoilt})
    blobs.local_path(lost).unlink()
    assert backup(sqlite_ledger, tmp_path / "one").missing == (lost,)
    blobs.local_path(spoilt).chmod(0o600)
    blobs.local_path(spoilt).write_bytes(b"SPOILT")
    with pytest.raises(Unavailable, match="is damaged"):
        backup(sqlite_ledger, tmp_path / "two")
    assert [path.name for path in tmp_path.glob("*two*")] == []


def test_a_folder_that_cannot_be_written_is_a_sentence(sqlite_ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Unavailable, match="cannot be written"):
        backup(sqlite_ledger, tmp_path / "file" / "backup")


def test_no_collection_beside_a_backup(new_ledger: NewLedger, tmp_path: Path) -> None:
    from tidemill.ledger.garbage import storage_lease

    with storage_lease(new_ledger()), pytest.raises(Conflict, match="under way"):
        backup(new_ledger(), tmp_path / "backup")


def keep_writing(url: str, blobs: str, project: str) -> None:
    """Decide, store and publish for ever, and say what was acknowledged."""
    with open_ledger(url, blobs=blobs, scope=Scope(project)) as ledger:
        turn = 0
        while True:
            turn += 1
            digest = ledger.blobs.put(os.urandom(2000))
            version = ledger.artifacts.publish(ArtifactKind.MODEL, "m", {"turn": turn}, blobs={"w": digest})
            ledger.datasets.write("set", [Row(row_id=RowId(f"{turn} {number}"), value={}) for number in range(3)])
            decision = ledger.decisions.record("gate", "x", Verdict("PASS", str(version.version)), actor="writer")
            print(decision.seq, flush=True)


def test_under_load_a_backup_is_of_one_moment_and_holds_all_that_was_acknowledged(
    new_ledger: NewLedger, ledger_url: str, ledger_scope: Scope, tmp_path: Path, target_url: Callable[[str], str]
) -> None:
    ledger = new_ledger()
    arguments = (ledger_url, str(tmp_path / "blobs"), ledger_scope.project)
    code = f"from tests.ledger import test_backup; test_backup.keep_writing(*{arguments!r})"
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None
        for round_ in range(3):
            acknowledged = [int(writer.stdout.readline()) for _ in range(4)][-1]
            report = backup(ledger, tmp_path / f"backup-{round_}")
            assert report.audit_head >= acknowledged
            assert report.missing == ()
            assert writer.poll() is None
    finally:
        writer.kill()
        writer.communicate()
    url, blobs = target_url("sqlite"), str(tmp_path / "restored")
    restored = restore(tmp_path / "backup-2", url=url, blobs=blobs, scope=ledger_scope)
    assert restored.audit_entries == report.audit_head
    with open_ledger(url, blobs=blobs, scope=ledger_scope) as other:
        decisions = other.decisions.list(kind="gate")
        models = {version.version: version for version in other.artifacts.versions(ArtifactKind.MODEL, "m")}
        sets = other.artifacts.versions(ArtifactKind.DATASET, "set")
        assert len(decisions) == report.audit_head
        assert len(decisions) <= len(sets) <= len(models) <= len(decisions) + 1, "one moment: causes are never missing"
        for decision in decisions:
            assert len(other.blobs.read(models[int(decision.verdict.reason)].blobs["w"])) == 2000
        assert all(other.datasets.verify(version) for version in sets)
        # What was written after the backup's moment is in the source and not here.
        for name, rows in _rows(other).items():
            if name not in ("runs", "chain_heads", "dataset_rows"):
                assert set(map(repr, rows)) <= set(map(repr, _rows(ledger)[name])), name
