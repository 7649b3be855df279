"""Specs of toy children, and what tests ask of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from tidemill.server.supervisor import ChildSpec


def toy(name: str, folder: Path, *more: str, port: int | None = None) -> ChildSpec:
    arguments = ("--starts", str(folder / f"{name}.starts"), *more)
    if port is None:
        return ChildSpec(name=name, module="tests.server.toy", arguments=arguments)
    return ChildSpec(
        name=name,
        module="tests.server.toy",
        arguments=(*arguments, "--port", str(port)),
        health_url=f"http://127.0.0.1:{port}/health",
    )


def starts(folder: Path, name: str) -> list[int]:
    """The pids that a child had so far."""
    file = folder / f"{name}.starts"
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


def runs(pid: int) -> bool:
    """Whether the process is alive (one that waits to be reaped is not)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until(holds: Callable[[], object], within_s: float = 15.0, what: str = "") -> None:
    limit_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < limit_s, f"not within {within_s:g} s: {what or holds}"
        time.sleep(0.05)
