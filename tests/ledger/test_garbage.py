from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import NewLedger
from tidemill.kernel import ArtifactKind, Conflict, RowId, RunId, Scope, digest_bytes
from tidemill.ledger import Ledger, Row, RunStatus, S3Options, collect_garbage, open_ledger

CODE = digest_bytes(b"code")


def _run(ledger: Ledger, lease_s: float = 60.0) -> RunId:
    return ledger.runs.start("step", code_digest=CODE, environment_digest=CODE, lease_s=lease_s).run_id


def _collect(ledger: Ledger) -> set[str]:
    time.sleep(0.01)  # what is stored in the same instant as a collection begins is young
    return set(collect_garbage(ledger, grace_s=0).removed)


def test_only_what_nothing_refers_to_is_taken(ledger: Ledger) -> None:
    put = ledger.blobs.put
    garbage = {put(b"nobody's"), put(b"nobody's either")}
    run_id = _run(ledger)
    version = ledger.datasets.write("rows", [Row(row_id=RowId("r1"), value={"a": 1}, sources=("file:a",))])
    weights, made, told, cached = put(b"weights"), put(b"made"), put(b"told"), put(b"cached")
    ledger.artifacts.publish(ArtifactKind.MODEL, "m", {"see": f"the file {told}"}, blobs={"weights": weights})
    ledger.results.put_many({digest_bytes(b"key"): {"answers": [cached]}})
    ledger.runs.finish(run_id, RunStatus.OK, outputs={"out": made})
    kept = {weights, made, told, cached, *ledger.datasets.objects(version)}
    time.sleep(0.01)
    would = collect_garbage(ledger, grace_s=0, dry_run=True)
    assert set(would.removed) == garbage
    assert would.examined == len(garbage | kept)
    assert would.freed_bytes == len(b"nobody'snobody's either")
    assert {digest for digest, _, _ in ledger.blobs.list()} == garbage | kept
    assert _collect(ledger) == garbage
    assert {digest for digest, _, _ in ledger.blobs.list()} == kept
    assert [row.value for row in ledger.datasets.read(version)] == [{"a": 1}]


def test_young_blobs_stay(ledger: Ledger) -> None:
    ledger.blobs.put(b"young")
    report = collect_garbage(ledger)
    assert (report.removed, report.kept_young) == ((), 1)


def test_a_live_run_keeps_its_blobs_and_a_dead_one_does_not(ledger: Ledger) -> None:
    alive, dying = _run(ledger), _run(ledger, lease_s=0.2)
    ours = ledger.blobs.put(b"ours", run_id=alive)
    theirs = ledger.blobs.put(b"theirs", run_id=dying)
    both = ledger.blobs.put(b"both's", run_id=alive)
    assert ledger.blobs.put(b"both's", run_id=dying) == both
    assert _collect(ledger) == set()
    time.sleep(0.25)
    assert _collect(ledger) == {theirs}
    assert ledger.blobs.exists(ours)
    ledger.runs.finish(alive, RunStatus.FAILED)
    assert _collect(ledger) == {ours, both}


def test_stored_again_it_is_young_again(ledger: Ledger) -> None:
    digest = ledger.blobs.put(b"again")
    time.sleep(0.3)
    assert ledger.blobs.put(b"again") == digest
    assert collect_garbage(ledger, grace_s=0.2).removed == ()


def test_one_collection_at_a_time(new_ledger: NewLedger) -> None:
    from tidemill.ledger.garbage import storage_lease

    with storage_lease(new_ledger()), pytest.raises(Conflict, match="under way"):
        collect_garbage(new_ledger())
    collect_garbage(new_ledger())


def work(url: str, blobs: str, project: str, endpoint: str, rounds: int) -> None:
    """Do as a run does: store, wait, look, publish; some contents again and again."""
    s3 = S3Options(endpoint=endpoint, access_key_id="a", secret_access_key="b", allow_http=True) if endpoint else None
    chance = random.Random(os.getpid())
    with open_ledger(url, blobs=blobs, scope=Scope(project), s3=s3) as ledger:
        for turn in range(rounds):
            run_id = _run(ledger)
            data = f"shared {chance.randrange(3)}".encode() if turn % 2 else f"{os.getpid()} {turn}".encode() * 9
            digest = ledger.blobs.put(data, run_id=run_id)
            time.sleep(chance.random() * 0.01)
            if not ledger.blobs.exists(digest):
                print("taken", digest, flush=True)
            if turn % 2 == 0:
                ledger.artifacts.publish(
                    ArtifactKind.MODEL, "m", {"turn": turn, "pid": os.getpid()}, blobs={"w": digest}
                )
            ledger.runs.finish(run_id, RunStatus.OK if turn % 2 == 0 else RunStatus.FAILED)


@pytest.mark.parametrize("store", ["folder", "s3"])
def test_beside_live_runs_no_unpublished_blob_is_taken(
    request: pytest.FixtureRequest, ledger_url: str, ledger_scope: Scope, tmp_path: Path, store: str
) -> None:
    blobs, endpoint = str(tmp_path / "blobs"), ""
    if store == "s3":
        blobs, endpoint = request.getfixturevalue("s3_url"), request.getfixturevalue("s3_endpoint")
    s3 = S3Options(endpoint=endpoint, access_key_id="a", secret_access_key="b", allow_http=True) if endpoint else None
    with open_ledger(ledger_url, blobs=blobs, scope=ledger_scope, s3=s3, cache_dir=tmp_path / "cache") as ledger:
        arguments = (ledger_url, blobs, ledger_scope.project, endpoint, 12)
        code = f"from tests.ledger import test_garbage; test_garbage.work(*{arguments!r})"
        children = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
        removed = 0
        while any(child.poll() is None for child in children):
            removed += len(collect_garbage(ledger, grace_s=0).removed)
            time.sleep(0.005)
        for child in children:
            out, _ = child.communicate(timeout=60)
            assert (child.returncode, out) == (0, "")
        assert removed > 0, "there was garbage to take meanwhile"
        for version in ledger.artifacts.versions(ArtifactKind.MODEL, "m"):
            assert ledger.blobs.read(version.blobs["w"])
        assert len(ledger.artifacts.versions(ArtifactKind.MODEL, "m")) == 3 * 6
