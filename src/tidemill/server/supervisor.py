"""``tidemill up``: starts the processes of a project, restarts what dies, stops all of it cleanly.

Which processes there are is a plain list of ``ChildSpec``: the fixed ones from the settings, and one serving process
per release that the control plane asks for in ``run/deployments.json``. The supervisor knows nothing of what they do.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import IO, Final
from urllib.request import HTTPSHandler, ProxyHandler, build_opener

from tidemill.kernel import Unavailable
from tidemill.kernel.settings import child_environment
from tidemill.server.files import write_json

_POLL_S: Final = 0.1
_STOP_GRACE_S: Final = 10.0
_FIRST_BACKOFF_S: Final = 0.2
_LONGEST_BACKOFF_S: Final = 5.0
_STEADY_S: Final = 30.0
_TAIL_LINES: Final = 5
#: Children of a supervisor that was killed stop themselves within their grace; a new one waits for them so long.
_ORPHANS_S: Final = 12.0
#: A child that leaves with exit code 2 so often before everything is ready will not be mended by another start.
_MOST_REFUSALS: Final = 3
#: A proxy named by the environment must not see what goes to this machine itself.
# Asks our own children whether they live; whose certificate they show is their clients' business.
_direct: Final = build_opener(ProxyHandler({}), HTTPSHandler(context=ssl._create_unverified_context()))  # noqa: S323 - see above


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """One process that should be running.

    Args:
        name: unique; also the name of its log file.
        module: Python module to run as ``__main__``.
        arguments: its command line.
        health_url: answers 200 when it is ready; ``None`` when being alive is all.
        inherit: file descriptors it inherits (the gateway's listening socket).
        stops_last: told to stop only when the others have, for it takes in what they leave.
    """

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    health_url: str | None = None
    inherit: tuple[int, ...] = ()
    stops_last: bool = False


@dataclass(slots=True)
class _Child:
    spec: ChildSpec
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    retry_s: float = 0.0
    backoff_s: float = _FIRST_BACKOFF_S
    restarts: int = field(default=-1)
    refusals: int = 0
    stop_by_s: float | None = None


class InstanceLock:
    """Held by the one supervisor of a state folder. Waits for children that a killed predecessor left to stop.

    Raises:
        Unavailable: another instance holds it; the message names its process.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock"
        self._file: IO[str] = self._path.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            self._file.close()
            raise Unavailable(
                f"Tidemill already runs on {folder.parent} (process {holder}).",
                hint="Stop that one first, or use it: tidemill status",
            ) from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()
        _await_end(_child_pids(folder), _ORPHANS_S)

    def release(self) -> None:
        """Give the folder free."""
        self._file.close()


def listening_socket(host: str, port: int, what: str) -> socket.socket:
    """Bind and listen, with a sentence instead of a traceback when the port is taken.

    Raises:
        Unavailable: the address cannot be bound.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise Unavailable(
            f"The {what} cannot listen on {host}:{port}: {error.strerror}.",
            hint=f"Stop what uses the port, or choose another: {what}.port in tidemill.yaml",
        ) from None
    sock.listen(4096)
    return sock


def check_port(host: str, port: int, what: str) -> None:
    """Fail early when a port that a child will bind is taken.

    Raises:
        Unavailable: it is.
    """
    listening_socket(host, port, what).close()


def free_port(host: str = "127.0.0.1") -> int:
    """A port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind((host, 0))
        return int(sock.getsockname()[1])


class Supervisor:
    """Keeps a set of child processes running until told to stop.

    Args:
        run_folder: where the state file is written (``run/state.json``).
        log_folder: one log file per child.
        fixed: children that always run.
        wanted: called on every round; the further children that should run now.
        on_change: told one line about every start, death and stop.
    """

    def __init__(
        self,
        run_folder: Path,
        log_folder: Path,
        fixed: Sequence[ChildSpec],
        wanted: Callable[[], Sequence[ChildSpec]],
        on_change: Callable[[str], None],
    ) -> None:
        self._run_folder = run_folder
        self._log_folder = log_folder
        self._fixed = list(fixed)
        self._wanted = wanted
        self._say = on_change
        self._children: dict[str, _Child] = {}
        self._stopping = False
        self._ready_s: float | None = None
        self._begun_s = time.monotonic()

    def stop(self) -> None:
        """Ask ``run`` to end. Safe from a signal handler."""
        self._stopping = True

    def run(self, *, ready_within_s: float = 60.0, on_ready: Callable[[float], None]) -> None:
        """Start everything and keep it running until ``stop``.

        Args:
            ready_within_s: a fixed child that is not healthy by then is an error.
            on_ready: told once, with the seconds it took, when every fixed child is healthy.

        Raises:
            Unavailable: a child did not become ready; the message ends with the last lines of its log.
        """
        try:
            while not self._stopping:
                self._reconcile()
                if self._ready_s is None:
                    self._check_ready(ready_within_s, on_ready)
                time.sleep(_POLL_S)
        finally:
            self._stop_all()

    def _reconcile(self) -> None:
        specs = {spec.name: spec for spec in [*self._fixed, *self._wanted()]}
        changed = False
        for name, child in list(self._children.items()):
            if child.stop_by_s is None and specs.get(name) != child.spec:
                self._retire(child)
            if child.stop_by_s is not None and self._gone(child):
                del self._children[name]
                self._say(f"stopped {name}")
                changed = True
        for name, spec in specs.items():
            child = self._children.setdefault(name, _Child(spec))
            if child.stop_by_s is None:
                changed |= self._keep(child)
        if changed:
            self._write_state()

    def _retire(self, child: _Child) -> None:
        """Ask a child to stop; the others are looked after while it does."""
        child.stop_by_s = time.monotonic() + _STOP_GRACE_S
        if child.process is not None:
            child.process.terminate()

    def _gone(self, child: _Child) -> bool:
        assert child.stop_by_s is not None
        if child.process is not None and child.process.poll() is None:
            if time.monotonic() > child.stop_by_s:
                child.process.kill()
            return False
        self._close(child)
        return True

    def _keep(self, child: _Child) -> bool:
        now_s = time.monotonic()
        if child.process is not None:
            code = child.process.poll()
            if code is None:
                return False
            steady = now_s - child.started_s > _STEADY_S
            child.backoff_s = _FIRST_BACKOFF_S if steady else min(child.backoff_s * 2, _LONGEST_BACKOFF_S)
            child.retry_s = now_s + (0.0 if child.restarts == 0 else child.backoff_s)
            self._close(child)
            self._say(f"{child.spec.name} died ({_exit_text(code)}); starting it again")
            child.refusals += code == Unavailable.exit_code
            if self._ready_s is None and child.refusals >= _MOST_REFUSALS and child.spec in self._fixed:
                raise Unavailable(f"The {child.spec.name} does not start.", hint=self._log_tail(child.spec))
        if now_s < child.retry_s:
            return False
        try:
            self._start(child)
        except OSError as error:  # no space for the log, no memory for the process: the others run on
            child.backoff_s = min(child.backoff_s * 2, _LONGEST_BACKOFF_S)
            child.retry_s = now_s + child.backoff_s
            self._say(f"{child.spec.name} cannot be started: {error.strerror}")
            return False
        return True

    def _start(self, child: _Child) -> None:
        spec = child.spec
        command = [sys.executable, "-m", "tidemill.server.child", spec.module, *spec.arguments]
        with (self._log_folder / f"{spec.name}.log").open("ab") as log:
            child.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=spec.inherit,
                start_new_session=True,
                env=child_environment(PYTHONUNBUFFERED="1"),
            )
        child.started_s = time.monotonic()
        child.restarts += 1

    def _check_ready(self, within_s: float, on_ready: Callable[[float], None]) -> None:
        waited_s = time.monotonic() - self._begun_s
        missing = [spec for spec in self._fixed if not is_healthy(spec.health_url)]
        if not missing:
            self._ready_s = waited_s
            self._write_state()
            on_ready(waited_s)
        elif waited_s > within_s:
            spec = missing[0]
            raise Unavailable(f"The {spec.name} was not ready after {within_s:.0f} s.", hint=self._log_tail(spec))

    def _log_tail(self, spec: ChildSpec) -> str:
        lines: list[str] = []
        with suppress(OSError):
            text = (self._log_folder / f"{spec.name}.log").read_text(errors="replace")
            lines = text.strip().splitlines()[-_TAIL_LINES:]
        return "Its log ends with:\n  " + "\n  ".join(lines or ["(nothing)"])

    def _write_state(self) -> None:
        children = {
            name: {"pid": child.process.pid, "restarts": child.restarts}
            for name, child in self._children.items()
            if child.process is not None
        }
        state = {"pid": os.getpid(), "ready_after_s": self._ready_s, "children": children}
        try:
            write_json(self._run_folder / "state.json", state)
        except OSError as error:  # a full disk must not end what runs
            self._say(f"the state of the processes cannot be written: {error.strerror}")

    def _stop_all(self) -> None:
        for last in (False, True):
            self._terminate([child for child in self._children.values() if child.spec.stops_last is last])
        self._children.clear()
        (self._run_folder / "state.json").unlink(missing_ok=True)

    def _terminate(self, children: Sequence[_Child]) -> None:
        running = [child for child in children if child.process is not None]
        for child in running:
            assert child.process is not None
            with suppress(ProcessLookupError):
                child.process.send_signal(signal.SIGTERM)
        limit_s = time.monotonic() + _STOP_GRACE_S
        for child in running:
            assert child.process is not None
            try:
                child.process.wait(max(0.0, limit_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
            self._close(child)

    @staticmethod
    def _close(child: _Child) -> None:
        if child.process is not None and child.process.stdin is not None:
            child.process.stdin.close()
        child.process = None


def is_healthy(url: str | None, timeout_s: float = 1.0, *, release: str | None = None) -> bool:
    """Whether a health page answers 200; ``None`` counts as healthy.

    Args:
        url: the page.
        timeout_s: how long to wait for it.
        release: digest that the page must name, for the port may belong to another process by now.
    """
    if url is None:
        return True
    try:
        with _direct.open(url, timeout=timeout_s) as answer:
            if answer.status != 200:
                return False
            return release is None or json.load(answer).get("release") == release
    except (OSError, HTTPException, ValueError, AttributeError):  # not there, not HTTP, not a health page of ours
        return False


def read_state(run_folder: Path) -> dict[str, object] | None:
    """What the running supervisor wrote of itself, or ``None`` when none runs."""
    try:
        state: dict[str, object] = json.loads((run_folder / "state.json").read_text())
        os.kill(int(str(state["pid"])), 0)
    except (OSError, ValueError, KeyError):
        return None
    return state


def _child_pids(run_folder: Path) -> list[int]:
    """The children that the last supervisor wrote down, if it did not come to stop them."""
    try:
        children = json.loads((run_folder / "state.json").read_text())["children"]
        return [int(child["pid"]) for child in children.values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _await_end(pids: Iterable[int], within_s: float) -> None:
    limit_s = time.monotonic() + within_s
    left = list(pids)
    while left and time.monotonic() < limit_s:
        left = [pid for pid in left if _runs(pid)]
        if left:
            time.sleep(_POLL_S)


def _runs(pid: int) -> bool:
    """Whether a process of ours of that id runs (a number may have gone to somebody else's)."""
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    with suppress(OSError):  # only Linux has this; elsewhere the wait is bounded
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        # One that is ending has no command line any more, but may still hold its ports until it is a zombie.
        return b"tidemill" in command or (not command and state not in "ZX")
    return True


def _exit_text(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
