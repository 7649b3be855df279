"""What clients notice while the gateway changes under them: reloads, a worker told to stop, a worker killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from gateway.rig import HERE, KEY, LOAD_CORE, Gateway, Rig
from rows import Row
from tidemill.telemetry import Span
from tidemill.telemetry.reading import read_segment

CONNECTIONS = 32
SECONDS = 8.0


class Load:
    """Careful clients in a process of their own."""

    def __init__(self, rig: Rig, gateway: Gateway, name: str, seconds: float = SECONDS, mix: str = "plain") -> None:
        self._traces = rig.folder / f"traces-{name}.txt"
        self._process = subprocess.Popen(
            ["taskset", "-c", str(LOAD_CORE), sys.executable, str(HERE / "careful.py"), str(gateway.port),
             str(rig.body), KEY, str(CONNECTIONS), str(seconds), str(self._traces), mix],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def finish(self) -> tuple[dict[str, int], set[str]]:
        """What became of the requests, and the trace ids of those that were answered."""
        printed, _ = self._process.communicate(timeout=120)
        return json.loads(printed), set(self._traces.read_text().split())


def finished_traces(segments: Path) -> set[str]:
    """Trace ids of the finished spans in the segments of all workers."""
    found = set()
    for path in segments.glob("*/*.seg"):
        for record, _ in read_segment(path, 0):
            span = getattr(record, "span", None)
            if isinstance(span, Span):
                found.add(span.trace_id)
    return found


def churn_rows(rig: Rig) -> list[Row]:
    """Failed requests under reloads, SIGTERM and SIGKILL, and finished requests missing from the segments."""
    upstream = rig.plain_upstream()
    rows = []
    missing = 0

    gateway = rig.gateway(upstream, workers=2)
    load = Load(rig, gateway, "reload")
    for _ in range(int(SECONDS * 5)):
        time.sleep(0.2)
        gateway.reload()
    found, answered = load.finish()
    rows.append(_failed("40 reloads under load: failed requests", found, 0))
    missing += len(answered - _stopped(gateway))

    gateway = rig.gateway(upstream, workers=2)
    load = Load(rig, gateway, "sigterm")
    time.sleep(SECONDS / 2)
    gateway.processes[0].send_signal(signal.SIGTERM)
    found, answered = load.finish()
    rows.append(_failed("SIGTERM of one of two workers under load: failed requests", found, 0))
    missing += len(answered - _stopped(gateway))

    gateway = rig.gateway(upstream, workers=2)
    load = Load(rig, gateway, "sigkill")
    time.sleep(SECONDS / 2)
    in_flight = _connections(gateway.processes[0].pid, gateway.port)
    os.kill(gateway.processes[0].pid, signal.SIGKILL)
    found, answered = load.finish()
    rows.append(_failed("SIGKILL of one of two workers under load: failed requests", found, in_flight))
    missing += len(answered - _stopped(gateway))
    rows.append(Row("finished requests missing from the segments", missing, "requests", "0", missing == 0))
    return rows


def _failed(label: str, found: dict[str, int], most: int) -> Row:
    print(label, found, flush=True)
    failed = found.get("failed", 0) + found.get("unexpected", 0) + found.get("refused", 0)
    bar = "0" if not most else f"<= {most} in flight"
    return Row(label, failed, "requests", bar, failed <= most, {"answered": found["answered"]})


def _stopped(gateway: Gateway) -> set[str]:
    for process in gateway.processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    return finished_traces(gateway.segments)


def _connections(pid: int, port: int) -> int:
    """Established client connections of a worker: each has at most one request in flight."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(str(entry.readlink()))
        except OSError:
            continue
    sockets = {name.removeprefix("socket:[").rstrip("]") for name in inodes if name.startswith("socket:")}
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    rows = [line.split() for line in lines]
    return sum(1 for row in rows if row[3] == "01" and int(row[1].split(":")[1], 16) == port and row[9] in sockets)
