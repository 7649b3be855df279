"""The demo's stack over real processes: started again when it dies, never confused with one that is going."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import yaml

from tests.server.children import runs, wait_until
from tidemill.kernel import Unavailable
from tidemill.loop.demo import stack as stacks
from tidemill.loop.demo.stack import Stack, write_project
from tidemill.server.supervisor import free_port


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    document = {
        "project": "small",
        "server": {"port": free_port()},
        "gateway": {"port": free_port()},
        "runtime": {"enabled": False},
    }
    (tmp_path / "tidemill.yaml").write_text(yaml.safe_dump(document))
    return tmp_path


def supervisor(folder: Path) -> int | None:
    try:
        return int(json.loads((folder / ".tidemill" / "run" / "state.json").read_text())["pid"])
    except FileNotFoundError:
        return None


def test_comes_back_when_it_is_killed_and_ends_with_the_demo(folder: Path) -> None:
    with Stack(folder) as stack:
        stack.ensure()
        first = supervisor(folder)
        assert first is not None
        stack.ensure()
        assert supervisor(folder) == first
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: not runs(first))
        # Its leading thread is gone before its other threads are, and until then it cannot be waited for.
        wait_until(lambda: stack.ensure() or supervisor(folder) not in (None, first))
    assert supervisor(folder) is None


def test_a_stack_that_is_stopping_is_waited_for_and_a_kept_one_is_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacks, "_PREDECESSOR_S", 1.5)
    with Stack(folder, keep=True) as kept:
        kept.ensure()
    first = supervisor(folder)
    assert first is not None
    with Stack(folder) as guest:
        guest.ensure()
        guest.ensure()
        assert supervisor(folder) == first
    assert supervisor(folder) == first
    os.kill(first, signal.SIGTERM)  # says that it is ready until it is gone
    with Stack(folder) as follower:
        follower.ensure()
        assert supervisor(folder) != first
    kept.stop()
    wait_until(lambda: supervisor(folder) is None)


def test_a_stack_that_cannot_start_says_why(folder: Path) -> None:
    (folder / "tidemill.yaml").write_text("project: small\nendpoint: {}\n")
    with Stack(folder) as stack, pytest.raises(Unavailable) as refused:
        stack.ensure()
    assert "there is no setting 'endpoint'; did you mean 'endpoints'?" in str(refused.value.hint)


def test_the_project_keeps_its_ports_and_follows_the_endpoint(tmp_path: Path) -> None:
    write_project(tmp_path, endpoint="desk", free_port=free_port)
    first = yaml.safe_load((tmp_path / "tidemill.yaml").read_text())
    write_project(tmp_path, endpoint="desk-2", free_port=free_port)
    second = yaml.safe_load((tmp_path / "tidemill.yaml").read_text())
    assert [first[name]["port"] for name in ("server", "gateway", "runtime")] == [
        second[name]["port"] for name in ("server", "gateway", "runtime")
    ]
    assert {one["endpoint"] for one in second["monitors"].values()} == {"desk-2"}
