"""Processes, ports and files of one run: proxies on one core, load and upstream on the other."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from tidemill.gateway import bind
from tidemill.gateway.backing_options import BackingOptions
from tidemill.kernel import (
    ApiKey,
    CacheMode,
    CachePolicy,
    Limit,
    LimitScope,
    LimitUnit,
    Prices,
    ReleaseRoute,
    Route,
    RoutePolicy,
    RoutingSnapshot,
    Scope,
    Target,
    key_digest,
)
from tidemill.ledger import open_ledger

HERE = Path(__file__).parent
KEY = "tm_benchmark"
MODEL, PLAIN_MODEL = "gpt-4o-mini", "gpt-4o-plain"
RELEASE = "sha256:" + "5" * 64
PROXY_CORE, LOAD_CORE = 0, 1
CONNECTIONS = 64
STARTED_WITHIN_S = 120
#: Each request's body differs in these eight characters, so that a cache never hits.
PLACE = "@@@@@@@@"
ANSWER = json.dumps(
    {
        "id": "chatcmpl-123", "object": "chat.completion", "created": 1700000000, "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x" * 640}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 190, "completion_tokens": 130, "total_tokens": 320},
    },
    separators=(",", ":"),
)  # fmt: skip


class Rig:
    """What one run started. A context manager that stops it all.

    Args:
        folder: for files of this run.
        seconds: length of one turn.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder = folder
        self.seconds = seconds
        self.children = ExitStack()
        self._asked = 0
        self.body = self._body(stream=False)
        self.stream_body = self._body(stream=True)

    def _body(self, *, stream: bool) -> Path:
        text = (PLACE + " Explain the difference between a process and a thread. " * 16)[:850]
        request = {
            "model": MODEL,
            "messages": [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": text},
            ],
            "temperature": 0.7,
            "max_tokens": 256,
        }
        if stream:
            request |= {"stream": True, "stream_options": {"include_usage": True}}
        path = self.folder / f"body-{stream}.json"
        path.write_text(json.dumps(request, separators=(",", ":")))
        return path

    def spawn(
        self, command: list[str], core: int, ready: int | Path | str, inherit: tuple[int, ...] = (), **environment: str
    ) -> subprocess.Popen[bytes]:
        """Start a pinned server and wait for its port, for the file it writes, or for the words it prints."""
        log = (self.folder / f"{Path(command[0]).name}-{len(list(self.folder.iterdir()))}.log").open("ab")
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            stdout=log,
            stderr=log,
            pass_fds=inherit,
            env={**os.environ, **environment},
        )
        self.children.callback(stop, process)
        end = time.monotonic() + STARTED_WITHIN_S
        while time.monotonic() < end and process.poll() is None:
            if _answers(ready, Path(log.name)):
                return process
            time.sleep(0.05)
        sys.exit(f"{command[0]} is not ready ({ready}):\n" + Path(log.name).read_text()[-2000:])

    def nginx(self, template: str, core: int, port: int, **values: str) -> subprocess.Popen[bytes]:
        text = (HERE / template).read_text().replace("@DIR@", str(self.folder)).replace("@LISTEN@", str(port))
        for name, value in values.items():
            text = text.replace(f"@{name}@", value)
        conf = self.folder / f"nginx-{port}.conf"
        conf.write_text(text)
        return self.spawn(["nginx", "-p", str(self.folder), "-c", str(conf)], core, port)

    def plain_upstream(self) -> int:
        """An nginx that answers everything with one JSON answer. Returns its port."""
        port = free_port()
        self.nginx("nginx-upstream.conf", LOAD_CORE, port, ANSWER=ANSWER)
        return port

    def stream_upstream(self) -> int:
        """A Python server that streams 50 chunks, or answers whole, or fails on demand. Returns its port."""
        port = free_port()
        self.spawn([sys.executable, str(HERE / "stream_upstream.py"), str(port)], LOAD_CORE, port)
        return port

    def gateway(self, upstream: int, *, workers: int = 1, plain: int | None = None, bare: bool = False) -> Gateway:
        """A gateway with keys, three limits (requests, tokens, money), an exact cache and traces.

        Args:
            upstream: port of what answers for ``MODEL``.
            workers: processes on one socket.
            plain: port of what answers for ``PLAIN_MODEL``, if that is an endpoint too.
            bare: no limits and no cache: keys, sessions, prices and traces alone.
        """
        place = self.folder / f"gateway-{free_port()}"
        place.mkdir()
        return Gateway(self, place, {MODEL: upstream} | ({PLAIN_MODEL: plain} if plain else {}), workers, bare=bare)

    def wrk(self, place: int | str, seconds: float, *, key: str = KEY, body: Path | None = None) -> int:
        """Requests answered by a closed loop of 64 connections, no two with the same text."""
        self._asked += 10_000_000
        url = f"http://127.0.0.1:{place}/v1" if isinstance(place, int) else place
        done = subprocess.run(
            ["taskset", "-c", str(LOAD_CORE), "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s",
             "--timeout", "30s", "-s", str(HERE / "post.lua"), f"{url}/chat/completions"],
            env={**os.environ, "BENCH_BODY": str(body or self.body), "BENCH_KEY": key, "BENCH_FROM": str(self._asked)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        answered, failed = (int(word) for word in done.stdout.split("RESULT ")[1].split()[:2])
        if failed:
            sys.exit(f"{failed} of {answered} requests failed at {url}:\n{done.stdout}")
        return answered

    def load(self, port: int, body: Path, mode: str, amount: int, seconds: float) -> dict[str, float]:
        """Run the raw client; see ``load.py``."""
        done = subprocess.run(
            ["taskset", "-c", str(LOAD_CORE), sys.executable, str(HERE / "load.py"), str(port), str(body), KEY, mode,
             str(amount), str(seconds)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found: dict[str, float] = json.loads(done.stdout)
        if found["errors"]:
            sys.exit(f"{found['errors']} of {found['n']} requests failed on port {port}")
        return found


class Gateway:
    """Workers on one listening socket, and their snapshot."""

    def __init__(self, rig: Rig, place: Path, upstreams: dict[str, int], workers: int, *, bare: bool) -> None:
        self.place = place
        self.segments = place / "segments"
        self._rig = rig
        self._snapshot = _snapshot(upstreams, bare=bare)
        self._bare = bare
        self._ledger = f"sqlite:///{place / 'ledger.db'}"
        open_ledger(self._ledger, blobs=str(place / "blobs"), scope=Scope("bench")).close()
        self.reload()
        self._listener = bind("127.0.0.1", 0)
        rig.children.callback(self._listener.close)
        self.port = int(self._listener.getsockname()[1])
        self.processes = [self.start_worker(number) for number in range(workers)]

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self.processes]

    def start_worker(self, number: int) -> subprocess.Popen[bytes]:
        listener = self._listener.fileno()
        backing = BackingOptions(limits_url=None if self._bare else self._ledger)
        return self._rig.spawn(
            [sys.executable, "-m", "tidemill.gateway", "--fd", str(listener), "--snapshot",
             str(self.place / "routing.json"), "--segments", str(self.segments), "--project", "bench", "--worker",
             f"gateway-{number}", "--backing", backing.encode()],
            PROXY_CORE,
            "gateway ready",
            inherit=(listener,),
        )  # fmt: skip

    def reload(self) -> None:
        """Put a new snapshot in the place of the present one."""
        self._snapshot = replace(self._snapshot, epoch=self._snapshot.epoch + 1, issued_at=time.time())
        draft = self.place / "routing.tmp"
        draft.write_bytes(self._snapshot.encode())
        draft.replace(self.place / "routing.json")


def _snapshot(upstreams: dict[str, int], *, bare: bool) -> RoutingSnapshot:
    cache = CachePolicy(mode=CacheMode.OFF if bare else CacheMode.EXACT, max_temperature=2.0)
    policy = RoutePolicy(cache=cache)
    routes = tuple(
        Route(name, "default", (ReleaseRoute(RELEASE, "release/bench@1", (_target(port),)),), policy=policy)
        for name, port in upstreams.items()
    )
    limits = (
        _limit("key", LimitScope.KEY, "bench", LimitUnit.REQUESTS, 1e9, 60.0),
        _limit("tokens", LimitScope.ENDPOINT, MODEL, LimitUnit.TOKENS, 1e12, 3600.0),
        _limit("money", LimitScope.TENANT, "default", LimitUnit.USD, 1e6, 86400.0),
    )
    keys = (ApiKey(key_digest(KEY), "bench", "default"),)
    return RoutingSnapshot("bench", 0, time.time(), 7200.0, routes, keys, limits=() if bare else limits)


def _target(port: int) -> Target:
    prices = Prices(input_usd_per_mtok=0.15, output_usd_per_mtok=0.6)
    return Target(url=f"http://127.0.0.1:{port}/v1", name="mock", prices=prices)


def _limit(name: str, scope: LimitScope, subject: str, unit: LimitUnit, amount: float, window_s: float) -> Limit:
    return Limit(limit_id=name, scope=scope, subject=subject, unit=unit, amount=amount, window_s=window_s)


def _answers(ready: int | Path | str, log: Path) -> bool:
    if isinstance(ready, Path):
        return ready.exists()
    if isinstance(ready, str):
        return ready in log.read_text(errors="replace")
    try:
        socket.create_connection(("127.0.0.1", ready), 0.5).close()
    except OSError:
        return False
    return True


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL for who does not listen."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def cpu_s(*pids: int) -> float:
    """Run time of processes, their threads and their children, in seconds."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
            for child in (task / "children").read_text().split():
                total += int(cpu_s(int(child)) * 1e9)
    return total / 1e9


def rss_mb(pid: int) -> float:
    """Resident memory of a process, in megabytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
