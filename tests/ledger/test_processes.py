"""Many processes on one store, and processes that are killed."""

from __future__ import annotations

import multiprocessing
import sqlite3
import uuid
from pathlib import Path

import pytest

from tests.ledger.processes import go, kill_writers, start_writer, write_together
from tidemill.kernel import Scope, Verdict
from tidemill.ledger import Ledger, open_ledger


def test_no_acknowledged_decision_is_lost_to_a_kill(ledger_url: str) -> None:
    acknowledged, lost = kill_writers(ledger_url, f"p-{uuid.uuid4().hex[:8]}", 4)
    assert acknowledged > 0
    assert lost == 0


@pytest.mark.soak
def test_no_acknowledged_decision_is_lost_to_thirty_kills(ledger_url: str) -> None:
    acknowledged, lost = kill_writers(ledger_url, f"p-{uuid.uuid4().hex[:8]}", 30)
    assert acknowledged > 100
    assert lost == 0


def test_a_killed_store_is_whole(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    kill_writers(url, "demo", 2)
    checked = sqlite3.connect(tmp_path / "ledger.db")
    assert checked.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    checked.close()


def test_processes_wait_for_each_other(ledger_url: str) -> None:
    project = f"p-{uuid.uuid4().hex[:8]}"
    _, complaints = write_together(ledger_url, project, 4, 25)
    assert complaints == []
    with open_ledger(ledger_url, blobs="memory://", scope=Scope(project)) as ledger:
        report = ledger.audit.verify()
        assert (report.entries, report.ok) == (100, True)


@pytest.mark.soak
def test_eight_processes_commit_two_hundred_times_each(ledger_url: str) -> None:
    project = f"p-{uuid.uuid4().hex[:8]}"
    _, complaints = write_together(ledger_url, project, 8, 200)
    assert complaints == []


def test_processes_that_open_a_new_store_at_once_make_it_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new/ledger.db"
    children = [start_writer(url, "demo", f"w{n}", 1) for n in range(4)]
    go(children)
    assert [child.communicate()[1] for child in children] == [""] * 4
    with open_ledger(url, blobs="memory://", scope=Scope("demo")) as ledger:
        assert ledger.audit.verify().entries == 4


def _record(ledger: Ledger) -> None:
    ledger.decisions.record("gate", "s", Verdict(2, "r"), actor="child")


def test_a_forked_child_uses_connections_of_its_own(ledger: Ledger) -> None:
    ledger.decisions.record("gate", "s", Verdict(1, "r"), actor="parent")
    child = multiprocessing.get_context("fork").Process(target=_record, args=(ledger,))
    child.start()
    child.join()
    assert child.exitcode == 0
    ledger.decisions.record("gate", "s", Verdict(3, "r"), actor="parent")
    assert [decision.actor for decision in ledger.decisions.list()] == ["parent", "child", "parent"]
    assert ledger.audit.verify().ok
