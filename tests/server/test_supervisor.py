"""The supervisor over real child processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.server.children import runs, starts, toy, wait_until
from tidemill.kernel import Unavailable
from tidemill.server.supervisor import (
    ChildSpec,
    InstanceLock,
    Supervisor,
    check_port,
    free_port,
    is_healthy,
    listening_socket,
    read_state,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # children find tests.server.toy here


class Running:
    """A supervisor in a thread, with what it said and what it should run besides its fixed children."""

    def __init__(self, folder: Path, fixed: Sequence[ChildSpec], wanted: Sequence[ChildSpec] = ()) -> None:
        self.folder = folder
        self.wanted = list(wanted)
        self.said: list[str] = []
        self.ready: list[float] = []
        self.error: Unavailable | None = None
        self.supervisor = Supervisor(folder, folder, fixed, lambda: self.wanted, on_change=self.said.append)
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.supervisor.run(on_ready=self.ready.append)
        except Unavailable as error:
            self.error = error

    def pid(self, name: str, number: int = -1) -> int:
        wait_until(lambda: starts(self.folder, name), what=f"{name} has started")
        return starts(self.folder, name)[number]


@contextmanager
def supervised(folder: Path, fixed: Sequence[ChildSpec], wanted: Sequence[ChildSpec] = ()) -> Iterator[Running]:
    running = Running(folder, fixed, wanted)
    running.thread.start()
    try:
        yield running
    finally:
        running.supervisor.stop()
        running.thread.join(30)
        assert not running.thread.is_alive()


def test_starts_says_when_ready_and_stops_all_of_it(tmp_path: Path) -> None:
    with supervised(tmp_path, [toy("web", tmp_path, port=free_port())], [toy("worker", tmp_path)]) as running:
        wait_until(lambda: running.ready, what="ready")
        web, worker = running.pid("web"), running.pid("worker")
        state = read_state(tmp_path)
        assert state is not None
        assert state["pid"] == os.getpid()
        assert state["ready_after_s"] == running.ready[0]
        assert state["children"] == {
            "web": {"pid": web, "restarts": 0},
            "worker": {"pid": worker, "restarts": 0},
        }
    assert not runs(web)
    assert not runs(worker)
    assert read_state(tmp_path) is None
    assert not (tmp_path / "state.json").exists()


def test_restarts_what_dies_and_waits_longer_each_time(tmp_path: Path) -> None:
    with supervised(tmp_path, [toy("worker", tmp_path)]) as running:
        died_s = []
        for number in range(3):
            wait_until(lambda: len(starts(tmp_path, "worker")) > number)  # noqa: B023 - called at once
            os.kill(running.pid("worker", number), signal.SIGKILL)
            died_s.append(time.monotonic())
        wait_until(lambda: len(starts(tmp_path, "worker")) == 4)
        child = running.supervisor._children["worker"]
        assert child.backoff_s > 1.0
        assert child.restarts == 3
        assert time.monotonic() - died_s[-1] > 1.0
    assert running.said.count("worker died (signal SIGKILL); starting it again") == 3


def test_children_come_and_go_with_what_is_wanted(tmp_path: Path) -> None:
    with supervised(tmp_path, [toy("web", tmp_path)]) as running:
        running.wanted = [toy("release", tmp_path)]
        first = running.pid("release")
        running.wanted = [toy("release", tmp_path, "--port", str(free_port()))]
        wait_until(lambda: len(starts(tmp_path, "release")) == 2, what="started with its new arguments")
        assert not runs(first)
        second = running.pid("release")
        running.wanted = []
        wait_until(lambda: not runs(second))
        assert "stopped release" in running.said
        wait_until(lambda: list(read_state(tmp_path)["children"]) == ["web"])  # type: ignore[index,call-overload]
        assert len(starts(tmp_path, "web")) == 1


def test_a_child_that_ignores_the_end_does_not_hold_up_the_others(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("tidemill.server.supervisor._STOP_GRACE_S", 1.5)
    with supervised(tmp_path, [toy("web", tmp_path)], [toy("deaf", tmp_path, "--deaf")]) as running:
        web, deaf = running.pid("web"), running.pid("deaf")
        running.wanted = []
        time.sleep(0.3)
        os.kill(web, signal.SIGKILL)
        wait_until(lambda: len(starts(tmp_path, "web")) == 2)
        wait_until(lambda: not runs(deaf))


def test_what_refuses_to_start_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    with supervised(tmp_path, [toy("web", tmp_path, "--refuse", port=free_port())]) as running:
        running.thread.join(20)
    assert running.error is not None
    assert running.error.message == "The web does not start."
    assert "the port is taken, choose another" in str(running.error.hint)


def test_what_never_becomes_healthy_is_told(tmp_path: Path) -> None:
    silent = ChildSpec(
        name="web",
        module="tests.server.toy",
        arguments=("--starts", str(tmp_path / "web.starts")),
        health_url=f"http://127.0.0.1:{free_port()}/health",
    )
    supervisor = Supervisor(tmp_path, tmp_path, [silent], list, on_change=lambda _: None)
    with pytest.raises(Unavailable, match="web was not ready after 1 s"):
        supervisor.run(ready_within_s=1.0, on_ready=lambda _: None)


def test_a_child_that_cannot_be_started_leaves_the_others_running(tmp_path: Path) -> None:
    (tmp_path / "worker.log").mkdir()  # its log cannot be opened
    with supervised(tmp_path, [toy("web", tmp_path)], [toy("worker", tmp_path)]) as running:
        wait_until(lambda: any(line.startswith("worker cannot be started") for line in running.said))
        assert runs(running.pid("web"))


def test_a_killed_supervisor_leaves_no_child_and_a_new_one_waits_for_them(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "tests.server.supervise", str(tmp_path), str(port)]
    with ExitStack() as stack:
        first = stack.enter_context(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        stack.callback(first.kill)
        wait_until(lambda: starts(tmp_path, "web") and starts(tmp_path, "worker"))
        second = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert f"already runs on {tmp_path.parent} (process {first.pid})" in second.stderr
        first.kill()
        first.wait()
        before_s = time.monotonic()
        lock = InstanceLock(tmp_path)
        assert time.monotonic() - before_s < 10
        assert not runs(starts(tmp_path, "web")[0])
        assert not runs(starts(tmp_path, "worker")[0])
        lock.release()
    check_port("127.0.0.1", port, "server")


def test_one_instance_per_folder(tmp_path: Path) -> None:
    lock = InstanceLock(tmp_path)
    with pytest.raises(Unavailable) as refused:
        InstanceLock(tmp_path)
    assert str(os.getpid()) in refused.value.message
    assert "tidemill status" in str(refused.value.hint)
    lock.release()
    InstanceLock(tmp_path).release()


def test_a_stale_state_names_processes_that_are_not_ours(tmp_path: Path) -> None:
    """The number of a dead child may belong to anybody by now: nobody waits for them."""
    with subprocess.Popen(["sleep", "60"]) as stranger:
        state = {"pid": 1 << 22, "children": {"web": {"pid": stranger.pid}}}
        (tmp_path / "state.json").write_text(json.dumps(state))
        before_s = time.monotonic()
        InstanceLock(tmp_path).release()
        assert time.monotonic() - before_s < 2
        assert read_state(tmp_path) is None
        stranger.kill()


def test_a_taken_port_is_a_sentence(tmp_path: Path) -> None:
    with listening_socket("127.0.0.1", 0, "server") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Unavailable) as refused:
            check_port("127.0.0.1", port, "gateway")
    assert refused.value.message == f"The gateway cannot listen on 127.0.0.1:{port}: Address already in use."
    assert "gateway.port in tidemill.yaml" in str(refused.value.hint)


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 500 No\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n[]"]
)
def test_whatever_else_listens_there_is_not_healthy(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(answer)

        thread = threading.Thread(target=talk)
        thread.start()
        assert not is_healthy(f"http://127.0.0.1:{server.getsockname()[1]}/health", release="sha256:1")
        thread.join()


def test_health_is_asked_past_any_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    port = free_port()
    with supervised(tmp_path, [toy("web", tmp_path, port=port)]) as running:
        wait_until(lambda: running.ready)
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        assert is_healthy(f"http://127.0.0.1:{port}/health")
        assert not is_healthy(f"http://127.0.0.1:{port}/health", release="sha256:1")
    assert is_healthy(None)
