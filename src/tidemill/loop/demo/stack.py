"""The demo's own project folder and the processes that run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import yaml

from tidemill.kernel import Unavailable
from tidemill.kernel.settings import PROJECT_FILE, child_environment

_READY_WITHIN_S: Final = 90.0
_CALLERS_MISTAKE: Final = 2
_REFUSED_MOST: Final = 3
_STOP_WITHIN_S: Final = 30.0
_PREDECESSOR_S: Final = 12.0


def write_project(folder: Path, *, endpoint: str, free_port: Callable[[], int]) -> None:
    """Write the demo's project file: ports that were free when it was first written, monitors of this run's endpoint.

    The price of a token is what two rented cores at 0.08 USD an hour cost while they read 300 or write 150 tokens a
    second.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / PROJECT_FILE
    before = yaml.safe_load(file.read_text()) if file.exists() else {}
    ports = {name: before.get(name, {}).get("port") or free_port() for name in ("server", "gateway", "runtime")}
    slo = {"endpoint": endpoint, "latency_slo_s": 30.0}
    document = {
        "version": 1,
        "project": "tidemill-demo",
        "server": {"port": ports["server"]},
        "gateway": {"port": ports["gateway"]},
        "runtime": {"port": ports["runtime"], "input_usd_per_mtok": 0.074, "output_usd_per_mtok": 0.148},
        "monitors": {
            f"{endpoint}-errors": {**slo, "signal": "errors", "objective": 0.9},
            f"{endpoint}-latency": {**slo, "signal": "latency", "objective": 0.9},
        },
    }
    file.write_text(yaml.safe_dump(document, sort_keys=False))


@dataclass(frozen=True, slots=True)
class _Started:
    process: subprocess.Popen[bytes]
    log: IO[bytes]


class Stack:
    """Runs ``tidemill up`` on a project folder and starts it again should it die. A context manager.

    Args:
        folder: the project folder.
        keep: leave it running at the end.
    """

    def __init__(self, folder: Path, *, keep: bool = False) -> None:
        self._folder = folder
        self._keep = keep
        self._started: _Started | None = None
        self._adopted = False

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._keep and exception[0] is None:
            return
        self.stop()

    def ensure(self) -> None:
        """Start it if it does not run, and wait until it is ready.

        Raises:
            Unavailable: it does not come up; the message ends with the last lines of its log.
        """
        if self._adopted and self._ready():
            return
        limit_s, refused = time.monotonic() + _READY_WITHIN_S, 0
        while self._started is None or self._started.process.poll() is not None or not self._ready():
            if self._started is None or self._started.process.poll() is not None:
                # A mistake of the caller's, not a crash; once or twice it may be a port that is being given up.
                refused += self._started is not None and self._started.process.returncode == _CALLERS_MISTAKE
                if refused >= _REFUSED_MOST:
                    raise Unavailable("The demo's processes do not start.", hint=self._log_tail())
                self._adopted = self._outlives_its_demo()
                if self._adopted:
                    return
                self._start()
            if time.monotonic() > limit_s:
                raise Unavailable("The demo's processes do not become ready.", hint=self._log_tail())
            time.sleep(0.1)

    def _outlives_its_demo(self) -> bool:
        """Whether another stack runs on this folder and stays: one that was told to, with ``--keep``.

        The stack of a demo that was killed is stopping: it says that it is ready to the last, and must not be used.
        """
        limit_s = time.monotonic() + _PREDECESSOR_S
        while self._someone_else_runs():
            if time.monotonic() > limit_s:
                return True
            time.sleep(0.1)
        return False

    def stop(self) -> None:
        """End it and wait."""
        if self._started is None:
            return
        process = self._started.process
        process.terminate()
        try:
            process.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._let_go(self._started)
        self._started = None

    @staticmethod
    def _let_go(started: _Started) -> None:
        if started.process.stdin is not None:
            started.process.stdin.close()
        started.log.close()

    def _start(self) -> None:
        if self._started is not None:
            self._let_go(self._started)
        log = (self._folder / "up.log").open("ab")
        # Without --keep the pipe on its standard input ends the stack when the demo itself is killed.
        child = [] if self._keep else ["-m", "tidemill.server.child"]
        module = ["-m", "tidemill.cli"] if self._keep else ["tidemill.cli"]
        command = [sys.executable, *child, *module, "up", "--project", str(self._folder)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if self._keep else subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=child_environment(PYTHONUNBUFFERED="1"),
        )
        self._started = _Started(process, log)

    def _ready(self) -> bool:
        state = self._state()
        if state is None or state.get("ready_after_s") is None:
            return False
        return self._adopted or not self._someone_else_runs()

    def _someone_else_runs(self) -> bool:
        state = self._state()
        mine = self._started.process.pid if self._started is not None else None
        return state is not None and state.get("pid") != mine

    def _state(self) -> dict[str, object] | None:
        state: dict[str, object] | None = None
        with suppress(OSError, ValueError, KeyError):
            state = json.loads((self._folder / ".tidemill" / "run" / "state.json").read_text())
            os.kill(int(str(state["pid"])), 0)
            return state
        return None

    def _log_tail(self) -> str:
        lines = (self._folder / "up.log").read_text(errors="replace").splitlines()[-6:]
        return "Its log ends with:\n  " + "\n  ".join(lines)
