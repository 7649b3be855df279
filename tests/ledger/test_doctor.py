from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from sqlalchemy import text

from tests.conftest import NewLedger
from tidemill.kernel import ArtifactKind, FakeClock, RowId, Scope, SystemClock, Verdict, digest_bytes
from tidemill.ledger import Finding, Ledger, Row, RunStatus, doctor, open_ledger

CODE = digest_bytes(b"code")


def _wrong(findings: list[Finding]) -> list[str]:
    return [finding.check for finding in findings if not finding.ok]


def _find(findings: list[Finding], check: str) -> Finding:
    return next(finding for finding in findings if finding.check == check and (not finding.ok or finding.mended))


def test_a_sound_store(ledger: Ledger) -> None:
    ledger.datasets.write("set", [Row(row_id=RowId("r"), value={})])
    ledger.decisions.record("gate", "x", Verdict("PASS", "good"), actor="me")
    findings = doctor(ledger, deep=True)
    assert _wrong(findings) == []
    assert not any(finding.mended for finding in findings)
    assert [finding.check for finding in findings] == [
        "database", "migrations", "audit", "blobs", "temporary files", "runs", "pins", "modes", "digests", "data sets",
    ]  # fmt: skip
    assert all(finding.what.endswith(".") for finding in findings)


def test_missing_and_damaged_blobs(sqlite_ledger: Ledger) -> None:
    ledger = sqlite_ledger
    lost, spoilt, cut = ledger.blobs.put(b"lost"), ledger.blobs.put(b"spoilt"), ledger.blobs.put(b"cut")
    model = ledger.artifacts.publish(ArtifactKind.MODEL, "m", {}, blobs={"a": lost, "b": spoilt, "c": cut})
    ledger.blobs.local_path(lost).unlink()
    for digest, data in ((spoilt, b"SPOILT"), (cut, b"")):
        ledger.blobs.local_path(digest).chmod(0o600)
        ledger.blobs.local_path(digest).write_bytes(data)
    findings = doctor(ledger)
    assert lost in _find(findings, "blobs").what
    assert model.digest in _find(findings, "blobs").what
    assert cut in _find(findings, "digests").what
    assert _wrong(findings) == ["blobs", "digests"], "the bytes of a blob are read only by a deep look"
    mended = doctor(ledger, deep=True, mend=True)
    assert {spoilt, cut} == {f.what.split()[2] for f in mended if f.check == "digests" and f.mended}
    for data in (b"lost", b"spoilt", b"cut"):
        ledger.blobs.put(data)
    assert _wrong(doctor(ledger, deep=True)) == []


def test_a_data_set_that_lost_rows(sqlite_ledger: Ledger) -> None:
    rows = [Row(row_id=RowId(f"r{number}"), value={}) for number in range(50)]
    first = sqlite_ledger.datasets.write("set", rows)
    second = sqlite_ledger.datasets.write("set", rows[1:], base=first)
    with sqlite_ledger.database.write() as connection:
        connection.execute(
            text("DELETE FROM dataset_versions WHERE version = :v AND ordinal = 1"), {"v": second.digest}
        )
    finding = _find(doctor(sqlite_ledger, deep=True), "data sets")
    assert "'dataset/set@2' cannot be read: its rows do not have its Merkle root" in finding.what


def test_a_broken_audit_chain(ledger: Ledger) -> None:
    for turn in range(3):
        ledger.decisions.record("gate", "x", Verdict("PASS", str(turn)), actor="me")
    with ledger.database.write() as connection:
        scope = {"project": ledger.scope.project}
        connection.execute(text("UPDATE decisions SET actor = 'you' WHERE seq = 2 AND project = :project"), scope)
    finding = _find(doctor(ledger, mend=True), "audit")
    assert "breaks at entry 2" in finding.what
    assert not finding.mended


def test_dead_runs_and_stale_pins_are_mended(new_ledger: NewLedger) -> None:
    clock = FakeClock(SystemClock().now())
    ledger = new_ledger(clock=clock)
    run_id = ledger.runs.start("step", code_digest=CODE, environment_digest=CODE, lease_s=60).run_id
    ledger.blobs.put(b"unpublished", run_id=run_id)
    assert _wrong(doctor(ledger)) == []
    clock.advance(7200)
    findings = doctor(ledger)
    assert _wrong(findings) == ["runs"], "a stale pin is untidy, not wrong"
    assert "can be mended" in next(finding.what for finding in findings if finding.check == "pins")
    mended = doctor(ledger, mend=True)
    assert [finding.check for finding in mended if finding.mended] == ["runs", "pins"]
    assert _wrong(mended) == []
    assert ledger.runs.get(run_id).status == RunStatus.ABANDONED
    assert not any(finding.mended for finding in doctor(ledger, mend=True))


def stage_and_wait(folder: str) -> None:
    """Begin to store a blob and wait to be killed."""
    with open_ledger(f"sqlite:///{folder}/ledger.db", blobs=f"{folder}/blobs", scope=Scope("killed")) as ledger:
        ledger.blobs.store.stage(iter([bytes(2 << 20)]))
        print("staged", flush=True)
        time.sleep(60)


def test_temporary_files_of_dead_writers_alone_are_removed(tmp_path: Path) -> None:
    code = f"from tests.ledger import test_doctor; test_doctor.stage_and_wait({str(tmp_path)!r})"
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "staged\n"
        (temporary,) = tmp_path.rglob("tmp/*")
        os.utime(temporary, (1, 1))
        with open_ledger(f"sqlite:///{tmp_path}/ledger.db", blobs=f"{tmp_path}/blobs", scope=Scope("killed")) as ledger:
            assert _wrong(doctor(ledger, mend=True)) == []
            assert temporary.exists(), "its writer lives"
            writer.kill()
            writer.wait()
            assert _wrong(doctor(ledger)) == ["temporary files"]
            assert _find(doctor(ledger, mend=True), "temporary files").mended
            assert not temporary.exists()
    finally:
        writer.kill()
        writer.communicate()


def test_modes_are_restricted(sqlite_ledger: Ledger, tmp_path: Path) -> None:
    path = sqlite_ledger.blobs.local_path(sqlite_ledger.blobs.put(b"x"))
    path.chmod(0o444)
    path.parent.chmod(0o755)
    (tmp_path / "ledger.db").chmod(0o644)
    assert "3 files or folders" in _find(doctor(sqlite_ledger), "modes").what
    assert _find(doctor(sqlite_ledger, mend=True), "modes").mended
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o400, 0o700)
    assert _wrong(doctor(sqlite_ledger)) == []


def test_another_schema_is_told(sqlite_ledger: Ledger) -> None:
    with sqlite_ledger.database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    assert "version 0000; 0003 is needed" in _find(doctor(sqlite_ledger, mend=True), "migrations").what
