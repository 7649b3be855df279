"""The control plane as a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import yaml

from tests.server.children import wait_until
from tests.server.desk import first_live, open_desk, write_desk
from tidemill.server.client import ControlClient
from tidemill.server.files import write_atomically, write_json
from tidemill.server.supervisor import is_healthy, listening_socket

COMMAND = [sys.executable, "-m", "tidemill.server", "--project"]


def port_of(folder: Path) -> int:
    return int(yaml.safe_load((folder / "tidemill.yaml").read_text())["server"]["port"])


def refused(folder: Path) -> str:
    done = subprocess.run([*COMMAND, str(folder)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    return done.stderr


def test_serves_until_told_to_stop_and_leaves_nothing_undrained(tmp_path: Path) -> None:
    folder = write_desk(tmp_path / "desk")
    with open_desk(folder) as desk:
        one = first_live(desk.project)
    url = f"http://127.0.0.1:{port_of(folder)}"
    with subprocess.Popen([*COMMAND, str(folder)]) as server:
        try:
            wait_until(lambda: is_healthy(url + "/health"), within_s=30)
            client = ControlClient(url, folder / ".tidemill" / "run" / "token")
            wait_until(lambda: client.get("/api/v1/status")["endpoints"][0]["ready"])
            assert client.get("/api/v1/status")["endpoints"][0]["control"] == str(one.ref)
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(20) in (0, -signal.SIGTERM)
    with open_desk(folder) as desk:  # the store was let go
        assert desk.snapshot().routes[0].endpoint == "desk"


def test_a_store_that_another_holds_is_a_sentence(tmp_path: Path) -> None:
    folder = write_desk(tmp_path / "desk")
    with open_desk(folder):
        assert "is held by another process" in refused(folder)


def test_a_taken_port_and_a_missing_project_are_sentences(tmp_path: Path) -> None:
    folder = write_desk(tmp_path / "desk")
    with listening_socket("127.0.0.1", port_of(folder), "server"):
        assert f"The server cannot listen on 127.0.0.1:{port_of(folder)}" in refused(folder)
    assert "tidemill init" in refused(tmp_path)


def test_a_file_is_replaced_whole_and_no_draft_stays(tmp_path: Path) -> None:
    file = tmp_path / "run" / "state.json"
    write_json(file, {"a": 1})
    write_json(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": 2}
    assert file.stat().st_mode & 0o777 == 0o600
    file.unlink()
    file.mkdir()
    try:
        write_atomically(file, b"x")
    except OSError:
        pass
    else:
        raise AssertionError("a folder was replaced by a file")
    assert [path.name for path in file.parent.iterdir()] == ["state.json"]
