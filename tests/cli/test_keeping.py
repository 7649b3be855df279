from __future__ import annotations

import sqlite3
from pathlib import Path

from tests.cli.shop import Shop, make_shop


def test_the_audit_chain_verifies_and_tells_of_tampering(shop: Shop) -> None:
    shop.ok("prompt", "label", "answer@1", "production", "--reason", "first")
    report = shop.json("audit", "verify")
    assert report["ok"]
    assert shop.json("audit", "verify", "--head", report["head"])["ok"]
    assert "is not the head" in shop.refused("audit", "verify", "--head", "x")
    with sqlite3.connect(shop.folder / ".tidemill" / "ledger.db") as database:
        database.execute("UPDATE decisions SET actor = 'somebody else' WHERE seq = 2")
    database.close()
    called = shop.call("audit", "verify")
    assert (called.code, "breaks at entry 2" in called.out) == (1, True)
    assert shop.json("audit", "verify", code=1)["first_bad_seq"] == 2
    assert shop.call("doctor").code == 1


def test_lists_decisions(shop: Shop) -> None:
    found = shop.json("audit", "list", "--kind", "label", "--limit", "1")
    assert [one["subject"].partition("@")[2] for one in found] == ["built"]
    assert "prompt/answer@applied" in shop.ok("audit", "list")
    assert "No decision" in shop.ok("audit", "list", "--kind", "none")


def test_the_doctor_finds_and_mends(shop: Shop) -> None:
    assert all(one["ok"] for one in shop.json("doctor", "--deep"))
    (shop.folder / ".tidemill" / "ledger.db").chmod(0o644)
    found = shop.call("doctor")
    assert found.code == 1
    assert "tidemill doctor --mend" in found.out
    assert any(one["mended"] for one in shop.json("doctor", "--mend"))
    assert shop.call("doctor").code == 0


def test_garbage_is_shown_and_collected(shop: Shop) -> None:
    from tidemill.loop.project import open_project

    with open_project(shop.folder) as opened:
        opened.ledger.blobs.put(b"nobody refers to me")
    assert "1 that nothing refers to are kept" in shop.ok("gc")
    assert len(shop.json("gc", "--dry-run", "--grace-s", "0")["removed"]) == 1
    assert len(shop.json("gc", "--grace-s", "0")["removed"]) == 1
    assert shop.json("gc", "--grace-s", "0")["removed"] == []
    assert shop.json("data", "rows", "shop")


def test_a_backup_is_restored_elsewhere(shop: Shop, tmp_path: Path, model_url: str) -> None:
    report = shop.json("backup", str(tmp_path / "copy"))
    assert report["missing"] == []
    assert "already" in shop.refused("backup", str(tmp_path / "copy"))
    elsewhere = make_shop(tmp_path / "elsewhere", model_url=model_url, ports=[1, 2, 3])
    assert "audit chain fits" in elsewhere.ok("restore", str(tmp_path / "copy"))
    assert elsewhere.json("data", "rows", "shop") == shop.json("data", "rows", "shop")
    assert elsewhere.json("release", "list") == shop.json("release", "list")
    assert "Nothing was restored" in elsewhere.refused("restore", str(tmp_path / "copy"))
    assert "no backup" in elsewhere.refused("restore", str(tmp_path / "nothing"))


def test_a_backup_that_cannot_be_written_says_so(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "cannot be written" in shop.refused("backup", str(tmp_path / "file" / "copy"))
