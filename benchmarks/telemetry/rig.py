"""Receivers of spans as processes, what they cost, and how much of what was sent can be asked for."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

STARTED_WITHIN_S = 300.0
STORED_WITHIN_S = 300.0
PROTOBUF = {"content-type": "application/x-protobuf"}


@dataclass
class Receiver:
    """A server that takes OTLP.

    Args:
        name: how it is called in the table.
        url: where traces are posted.
        headers: sent with each request.
        process: its first process.
        stored: how many spans it can be asked for now.
        files: what it keeps on disk.
    """

    name: str
    url: str
    process: subprocess.Popen[bytes]
    stored: Callable[[], int]
    files: Sequence[Path]
    headers: dict[str, str] = field(default_factory=dict)

    def post(self, body: bytes, timeout_s: float = 120) -> int:
        """Send one request; its status, 0 where the connection broke."""
        request = urllib.request.Request(self.url, body, PROTOBUF | self.headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                answer.read()
                return int(answer.status)
        except urllib.error.HTTPError as error:
            error.read()
            return error.code
        except OSError:
            return 0

    def cpu_s(self) -> float:
        """CPU seconds of all its processes so far, ended ones included."""
        return sum(_cpu_s(pid) for pid in family(self.process.pid))

    def disk_bytes(self) -> int:
        """Bytes on disk of what it keeps."""
        found = [path for root in self.files for path in ([root] if root.is_file() else root.rglob("*"))]
        return sum(path.stat().st_blocks * 512 for path in found if path.is_file())

    def stop(self) -> None:
        """End it in order, as its users would."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = tasks.read_text().split()
        except OSError:
            continue
        for child in children:
            found += family(int(child))
    return found


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return sum(int(one) for one in fields[11:15]) / os.sysconf("SC_CLK_TCK")  # its own and its ended children's


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def rows_in(database: Path, question: str) -> int:
    """A count from another program's SQLite file; 0 while it is not there."""
    try:
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5)
        try:
            return int(connection.execute(question).fetchone()[0])
        finally:
            connection.close()
    except sqlite3.Error:
        return 0


class Bench:
    """A folder for one run and the processes started in it; stops them all when left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running = ExitStack()

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def spawn(self, command: Sequence[str], name: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a process that writes its words to NAME.log."""
        log = (self.folder / f"{name}.log").open("ab")
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, env={**os.environ, **environment})
        self._running.callback(_end, process)
        return process

    def wait_until(self, ready: Callable[[], bool], process: subprocess.Popen[bytes], name: str) -> None:
        """Wait until something answers."""
        end = time.monotonic() + STARTED_WITHIN_S
        while not ready():
            if time.monotonic() > end or process.poll() is not None:
                sys.exit(f"{name} did not start:\n{(self.folder / f'{name}.log').read_text()[-3000:]}")
            time.sleep(0.02)

    def tidemill(self, name: str = "tidemill", **settings: object) -> Receiver:
        """Our control plane on a project of its own; started again over the same folder by the same name."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        port = free_port()
        document = {"project": "bench", "server": {"port": port}, "runtime": {"enabled": False}, **settings}
        (folder / "tidemill.yaml").write_text(json.dumps(document))
        token = folder / ".tidemill" / "run" / "token"
        process = self.spawn([sys.executable, "-m", "tidemill.server", "--project", str(folder)], name)
        base = f"http://127.0.0.1:{port}"

        def headers() -> dict[str, str]:
            return {"authorization": f"Bearer {token.read_text()}"} if token.exists() else {}

        def ready() -> bool:
            return get(f"{base}/health", {}) is not None

        def stored() -> int:
            groups = get(f"{base}/api/v1/series?measure=requests&spans=true", headers())
            return int(sum(row["values"]["requests"] or 0 for row in groups["rows"])) if groups else 0

        self.wait_until(ready, process, name)
        return Receiver("tidemill", f"{base}/v1/traces", process, stored, [folder / ".tidemill"], headers())


def get(url: str, headers: dict[str, str]) -> dict[str, object] | None:
    """A JSON answer, or nothing where there is none."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=120) as answer:
            found = json.loads(answer.read())
            return dict(found) if isinstance(found, dict) else {"rows": found}
    except (OSError, ValueError):
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
