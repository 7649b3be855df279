"""What a user does wrong: one sentence that says what, where and how to mend; exit code 2; nothing lost."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.shop import Shop
from tidemill.server.supervisor import InstanceLock


def test_no_project_here(tmp_path: Path) -> None:
    assert "tidemill init" in Shop(tmp_path).refused("data", "list")
    assert "tidemill init" in Shop(tmp_path).refused("status")


def test_a_project_that_is_there_already(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    from tidemill.cli.entry import run

    before = (shop.folder / "tidemill.yaml").read_bytes()
    assert run(["init", str(shop.folder)]) == 2
    assert "already" in capsys.readouterr().err
    assert (shop.folder / "tidemill.yaml").read_bytes() == before


def test_missing_documents_folder(shop: Shop) -> None:
    shutil.rmtree(shop.folder / "documents")
    message = shop.refused("data", "build", "shop")
    assert str(shop.folder / "documents") in message
    assert "tidemill.yaml" in message
    assert len(shop.json("data", "rows", "shop")) == 3


def test_empty_documents_folder(shop: Shop) -> None:
    for file in (shop.folder / "documents").iterdir():
        file.unlink()
    assert "holds no files" in shop.refused("data", "build", "shop")
    assert len(shop.json("data", "rows", "shop")) == 3


def test_a_folder_without_one_readable_file(shop: Shop) -> None:
    for file in (shop.folder / "documents").iterdir():
        file.write_bytes(b"\xff\x00")
    assert "No document could be read" in shop.refused("index", "build", "shop")


def test_wrong_project_keys(shop: Shop) -> None:
    shop.change("gatway", to={"port": 1})
    assert "did you mean 'gateway'" in shop.refused("status")
    shop.change("gatway", to=None)
    text = (shop.folder / "tidemill.yaml").read_text(encoding="utf-8").replace("gatway: null", "")
    (shop.folder / "tidemill.yaml").write_text(text, encoding="utf-8")
    shop.change("gateway", "port", to="many")
    assert "'gateway.port' is 'many'" in shop.refused("apply")
    (shop.folder / "tidemill.yaml").write_text("project: [", encoding="utf-8")
    assert "is not YAML" in shop.refused("data", "list")


def test_names_that_the_project_file_does_not_have(shop: Shop) -> None:
    for command in ("data", "index"):
        assert "there is: shop" in shop.refused(command, "build", "other")
    assert "there is: shop" in shop.refused("release", "create", "other")
    assert "there is: shop" in shop.refused("rollout", "start", "other", "shop")


@pytest.mark.parametrize(
    "arguments",
    [
        ("data", "show", "other"),
        ("data", "rows", "dataset/shop@9"),
        ("index", "search", "shop@none", "x"),
        ("prompt", "show", "sha256:" + "0" * 64),
        ("prompt", "diff", "answer@1", "answer@7"),
        ("eval", "show", "other"),
        ("eval", "run", "other", "questions"),
        ("release", "show", "other"),
        ("rollout", "show", "rol_none"),
        ("lineage", "dataset/other"),
        ("data", "show", "nothing/at-all"),
        ("release", "show", "dataset/shop"),
        ("prompt", "show", "sha256:zz"),
    ],
    ids=" ".join,
)
def test_unknown_references(shop: Shop, arguments: tuple[str, ...]) -> None:
    assert len(shop.refused(*arguments).strip().splitlines()) <= 2


def test_options_that_do_not_exist(shop: Shop) -> None:
    for arguments in (("data", "shw"), ("data", "show", "shop", "--jsn"), ("gc", "--grace-s", "soon"), ("dta",)):
        called = shop.call(*arguments)
        assert called.code == 2
        assert "Traceback" not in called.err
        assert called.err


@pytest.mark.parametrize("what", ["server", "gateway"])
def test_a_port_that_is_taken(shop: Shop, what: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        shop.change(what, "port", to=port)
        message = shop.refused("up")
    assert f"127.0.0.1:{port}" in message
    assert f"{what}.port" in message


def test_a_second_instance_on_the_same_store(shop: Shop) -> None:
    (shop.folder / ".tidemill" / "run").mkdir(exist_ok=True)
    lock = InstanceLock(shop.folder / ".tidemill" / "run")
    try:
        assert "already runs" in shop.refused("up")
    finally:
        lock.release()


def test_a_mistake_in_a_real_process_has_no_traceback(shop: Shop) -> None:
    command = [sys.executable, "-m", "tidemill.cli", "data", "show", "other", "--project", str(shop.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("tidemill: There is no 'dataset/other'.")
    assert "Traceback" not in done.stderr


def test_a_state_folder_that_cannot_be_made(shop: Shop) -> None:
    shutil.rmtree(shop.folder / ".tidemill")
    (shop.folder / ".tidemill").write_text("in the way")
    assert "cannot be written" in shop.refused("data", "list")


def test_guardrails_that_cannot_be_had_are_told_before_anything_starts(bare_shop: Shop) -> None:
    bare_shop.change("gateway", "guardrails", to="nowhere_at_all:guardrails")
    said = bare_shop.refused("up")
    assert "The guardrails 'nowhere_at_all:guardrails' cannot be loaded" in said
    bare_shop.change("gateway", "guardrails", to=None)
    bare_shop.change("endpoints", "shop", "guardrails", to=["pii", "code-names"])
    said = bare_shop.refused("up")
    assert "There is no guardrail 'code-names'" in said
    assert "This gateway knows: credentials" in said
