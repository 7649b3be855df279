"""Worker processes: light start, drain, death."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.conftest import RunningGateway, read_records, snapshot_of, target, write_snapshot
from tests.gateway.wire import Wire, ask, spawn_worker
from tidemill.gateway import Limits, bind
from tidemill.gateway.testing import ScriptedUpstream
from tidemill.kernel import Route, Unavailable


@pytest.fixture
def listener(tmp_path: Path, upstream: ScriptedUpstream) -> Iterator[socket.socket]:
    """A socket the test holds, as the supervisor does, and a snapshot beside it."""
    write_snapshot(
        tmp_path / "routing.json",
        snapshot_of(Route(endpoint="desk", tenant="default", releases=(target(upstream.url),))),
    )
    held = bind("127.0.0.1", 0)
    yield held
    held.close()


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> int:
    process.send_signal(number)
    code = process.wait(20)
    assert process.stdout is not None
    process.stdout.close()
    return code


def test_a_worker_loads_nothing_heavy() -> None:
    code = (
        "import sys, tidemill.gateway.worker, tidemill.gateway.__main__\n"
        "heavy = {'duckdb', 'sqlalchemy', 'pandas', 'torch', 'numpy', 'pyarrow', 'fastapi', 'starlette', 'httpx2',"
        " 'onnxruntime', 'openai'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sigterm_finishes_what_is_in_flight(
    tmp_path: Path, listener: socket.socket, upstream: ScriptedUpstream
) -> None:
    upstream.chunk_pause_s = 0.1
    worker = spawn_worker(tmp_path, listener, "w1")
    with Wire(listener.getsockname()[1]) as busy, Wire(listener.getsockname()[1]) as idle:
        idle.send(ask())
        assert idle.answer()[0] == 200
        busy.send(ask(stream=True))
        while b"Hello" not in busy.buffer:
            assert busy.fill()
        worker.send_signal(signal.SIGTERM)
        assert idle.closed()
        assert busy.answer()[1].endswith(b"data: [DONE]\n\n")
    assert end(worker) == 0
    assert [span.status for span in read_records(tmp_path / "segments").spans] == ["ok", "ok"]


def test_a_killed_worker_loses_no_answered_request(tmp_path: Path, listener: socket.socket) -> None:
    """Two workers on one socket under load, killed and replaced at random moments."""
    port = listener.getsockname()[1]
    answered: set[str] = set()
    broken = 0
    stop = threading.Event()

    def client(seed: int) -> None:
        nonlocal broken
        number = 0
        while not stop.is_set():
            number += 1
            trace_id = f"{seed:08x}{number:024x}"
            try:
                with Wire(port) as wire:  # a connection each: none may be refused or reset before it is accepted
                    wire.send(ask(stream=number % 2 == 0, headers=f"traceparent: 00-{trace_id}-{'1' * 16}-01\r\n"))
                    status, body = wire.answer()
            except (ConnectionResetError, AssertionError):
                broken += 1  # in flight in the worker that was killed
                continue
            if status == 200 and (number % 2 or body.endswith(b"[DONE]\n\n")):
                answered.add(trace_id)

    workers = [spawn_worker(tmp_path, listener, f"w{n}") for n in range(2)]
    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(1, 5)]
    for thread in clients:
        thread.start()
    for n in range(3):
        time.sleep(random.uniform(0.1, 0.4))
        end(workers.pop(0), signal.SIGKILL)
        workers.append(spawn_worker(tmp_path, listener, f"w{n + 2}"))
    stop.set()
    for thread in clients:
        thread.join(20)
    for worker in workers:
        end(worker)
    spans = read_records(tmp_path / "segments").spans
    assert len(answered) > 50
    assert answered <= {span.trace_id for span in spans if span.status == "ok"}
    assert broken <= 3 * len(clients)


def test_connections_queued_while_no_worker_lives_are_served(tmp_path: Path, listener: socket.socket) -> None:
    end(spawn_worker(tmp_path, listener, "w1"), signal.SIGKILL)
    with Wire(listener.getsockname()[1]) as wire:
        wire.send(ask())
        worker = spawn_worker(tmp_path, listener, "w2")
        assert wire.answer()[0] == 200
    assert end(worker) == 0


def test_a_full_disk_refuses_new_calls(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    folder = tmp_path / "g"
    folder.mkdir()
    gateway = RunningGateway(folder, Limits())
    gateway.route(snapshot_of(Route(endpoint="desk", tenant="default", releases=(target(upstream.url),))))
    gateway.segments.parent.chmod(0o755)
    gateway.segments.write_text("a file where the folder should be")
    with Wire(gateway.port) as wire:
        wire.send(ask())
        assert wire.answer()[0] == 503
        assert upstream.seen == []
    gateway.segments.unlink()
    with Wire(gateway.port) as wire:
        wire.send(ask())
        assert wire.answer()[0] == 200
    gateway.close()


def test_a_taken_port_is_a_sentence() -> None:
    held = bind("127.0.0.1", 0)
    with pytest.raises(Unavailable, match="cannot listen"):
        bind("127.0.0.1", held.getsockname()[1])
    held.close()
