"""CPU per request of the gateway beside nginx's proxy_pass, on the same core in turn, and the latency both add.

Keys, sessions, intent and finished records with encrypted content are on. CPU is the run time of the whole process
tree as the scheduler counts it, so other load on the machine disturbs it less than wall time. What is left of it hits
neighbours in time alike: the ratio is the median over rounds of short turns, each round's turns compared with each
other, the order reversed from round to round. Needs nginx and wrk (Debian packages ``nginx-light`` and ``wrk``) and
two cores.

Usage: python benchmarks/bench_gateway.py [--seconds 2] [--rounds 7] [--only requests|streams|latency]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from rows import Row, write_rows
from tidemill.kernel import ApiKey, Prices, ReleaseRoute, Route, RoutingSnapshot, Target, key_digest

HERE = Path(__file__).parent / "gateway"
KEY = "tm_benchmark"
RELEASE = "sha256:" + "5" * 64
PROXY_CORE, LOAD_CORE = 0, 1
CONNECTIONS, STREAMS = 64, 16
RATE_PER_S = 500


class Bench:
    """Processes, ports and files of one run."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder = folder
        self.seconds = seconds
        self.children = ExitStack()
        self.body = self._body(stream=False)
        self.stream_body = self._body(stream=True)

    def _body(self, *, stream: bool) -> Path:
        text = "Explain the difference between a process and a thread. " * 16
        request = {
            "model": "gpt-4o-mini",
            "messages": [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": text[:850]},
            ],
            "temperature": 0.7,
        }
        if stream:
            request["stream"] = True
        path = self.folder / f"body-{stream}.json"
        path.write_text(json.dumps(request, separators=(",", ":")))
        return path

    def spawn(self, command: list[str], core: int, port: int) -> subprocess.Popen[bytes]:
        """Start a pinned server and wait for its port."""
        process = subprocess.Popen(["taskset", "-c", str(core), *command])
        self.children.callback(stop, process)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", port), 0.5).close()
            except OSError:
                time.sleep(0.05)
            else:
                return process
        sys.exit(f"{command[0]} did not open port {port}")

    def nginx(self, template: str, core: int, port: int, **values: str) -> subprocess.Popen[bytes]:
        text = (HERE / template).read_text().replace("@DIR@", str(self.folder)).replace("@LISTEN@", str(port))
        for name, value in values.items():
            text = text.replace(f"@{name}@", value)
        conf = self.folder / f"nginx-{port}.conf"
        conf.write_text(text)
        return self.spawn(["nginx", "-p", str(self.folder), "-c", str(conf)], core, port)

    def gateway(self, port: int, upstream: int) -> subprocess.Popen[bytes]:
        place = self.folder / f"gateway-{port}"
        place.mkdir()
        target = Target(
            url=f"http://127.0.0.1:{upstream}/v1", prices=Prices(input_usd_per_mtok=0.15, output_usd_per_mtok=0.6)
        )
        release = ReleaseRoute(RELEASE, "release/bench@1", (target,))
        snapshot = RoutingSnapshot(
            project="bench",
            epoch=1,
            issued_at=time.time(),
            lifetime_s=3600,
            routes=(Route(endpoint="gpt-4o-mini", tenant="default", releases=(release,)),),
            keys=(ApiKey(key_digest(KEY), "bench", "default"),),
        )
        (place / "routing.json").write_bytes(snapshot.encode())
        return self.spawn(
            [sys.executable, "-m", "tidemill.gateway", "--port", str(port), "--snapshot", str(place / "routing.json"),
             "--segments", str(place / "segments"), "--project", "bench"],
            PROXY_CORE,
            port,
        )  # fmt: skip

    def wrk(self, port: int, seconds: float) -> int:
        """Requests answered by a closed loop of 64 connections."""
        done = subprocess.run(
            ["taskset", "-c", str(LOAD_CORE), "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", "-s",
             str(HERE / "post.lua"), f"http://127.0.0.1:{port}/v1/chat/completions"],
            env={**os.environ, "BENCH_BODY": str(self.body), "BENCH_KEY": KEY},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        answered, failed = (int(word) for word in done.stdout.split("RESULT ")[1].split()[:2])
        if failed:
            sys.exit(f"{failed} of {answered} requests failed on port {port}")
        return answered

    def load(self, port: int, body: Path, mode: str, amount: int, seconds: float) -> dict[str, float]:
        done = subprocess.run(
            ["taskset", "-c", str(LOAD_CORE), sys.executable, str(HERE / "load.py"), str(port), str(body), KEY, mode,
             str(amount), str(seconds)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found: dict[str, float] = json.loads(done.stdout)
        if found["errors"]:
            sys.exit(f"{found['errors']} of {found['n']} requests failed on port {port}")
        return found


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def cpu_s(pid: int) -> float:
    """Run time of a process, its threads and its children, in seconds."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
        for child in (task / "children").read_text().split():
            total += int(cpu_s(int(child)) * 1e9)
    return total / 1e9


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def cpu_rows(bench: Bench, peers: dict[str, tuple[int, int]], rounds: int, *, stream: bool) -> list[Row]:
    """CPU microseconds per request of each peer ``name -> (port, pid)``, and how often the gateway's holds nginx's."""
    found: dict[str, list[float]] = {name: [] for name in peers}
    turns = list(peers.items())
    for round_number in range(rounds + 1):
        turns.reverse()
        for name, (port, pid) in turns:
            before = cpu_s(pid)
            if stream:
                answered = bench.load(port, bench.stream_body, "closed", STREAMS, bench.seconds)["n"]
            else:
                answered = bench.wrk(port, bench.seconds)
            if round_number:  # the first warms up
                found[name].append((cpu_s(pid) - before) / answered * 1e6)
    medians = {name: statistics.median(values) for name, values in found.items()}
    ratios = sorted(ours / theirs for ours, theirs in zip(found["gateway"], found["nginx"], strict=True))
    ratio = statistics.median(ratios)
    what = "50-chunk stream" if stream else "request"
    print(
        f"{what}: {ratio:.2f}x nginx, rounds {ratios[0]:.2f} to {ratios[-1]:.2f};",
        {name: [round(value, 1) for value in v] for name, v in found.items()},
    )
    beside = {"nginx": medians["nginx"]}
    return [
        Row(f"gateway CPU per {what}", medians["gateway"], "us", "<= 3x nginx", ratio <= 3, beside),
        Row(f"gateway CPU per {what} over nginx's", ratio, "ratio", "<= 3", ratio <= 3),
    ]


def latency_rows(bench: Bench, ports: dict[str, int], rounds: int) -> list[Row]:
    """What each proxy adds at an even rate, in milliseconds over the upstream asked directly."""
    found: dict[str, dict[str, list[float]]] = {name: {"p50_ms": [], "p99_ms": []} for name in ports}
    for _ in range(rounds):
        for name, port in ports.items():
            one = bench.load(port, bench.body, "open", RATE_PER_S, bench.seconds)
            for figure, values in found[name].items():
                values.append(one[figure])
    rows = []
    for figure in ("p50_ms", "p99_ms"):
        best = {name: min(found[name][figure]) for name in ports}
        added = {name: best[name] - best["direct"] for name in ports}
        label = f"latency added at {RATE_PER_S}/s, {figure[:3]}"
        rows.append(Row(label, added["gateway"], "ms", beside={"nginx": added["nginx"], "direct": best["direct"]}))
    return rows


def measure(bench: Bench, rounds: int, only: str | None) -> list[Row]:
    answer_port, stream_port = free_port(), free_port()
    rows = []
    bench.spawn([sys.executable, str(HERE / "stream_upstream.py"), str(stream_port)], LOAD_CORE, stream_port)
    if only in {None, "requests"}:
        answer = json.dumps(
            {
                "id": "chatcmpl-123", "object": "chat.completion", "created": 1700000000, "model": "gpt-4o-mini",
                "choices": [
                    {"index": 0, "message": {"role": "assistant", "content": "x" * 640}, "finish_reason": "stop"}
                ],
                "usage": {"prompt_tokens": 190, "completion_tokens": 130, "total_tokens": 320},
            },
            separators=(",", ":"),
        )  # fmt: skip
        bench.nginx("nginx-upstream.conf", LOAD_CORE, answer_port, ANSWER=answer)
        peers = start_peers(bench, answer_port, "on")
        rows.extend(cpu_rows(bench, peers, rounds, stream=False))
    if only in {None, "streams", "latency"}:
        peers = start_peers(bench, stream_port, "off")
        if only != "latency":
            rows.extend(cpu_rows(bench, peers, rounds, stream=True))
        if only != "streams":
            ports = {"direct": stream_port, **{name: port for name, (port, _) in peers.items()}}
            rows.extend(latency_rows(bench, ports, rounds))
    return rows


def start_peers(bench: Bench, upstream: int, buffering: str) -> dict[str, tuple[int, int]]:
    nginx_port, gateway_port = free_port(), free_port()
    nginx = bench.nginx("nginx-proxy.conf", PROXY_CORE, nginx_port, UPSTREAM=str(upstream), BUFFERING=buffering)
    gateway = bench.gateway(gateway_port, upstream)
    return {"nginx": (nginx_port, nginx.pid), "gateway": (gateway_port, gateway.pid)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2, help="of one turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=("requests", "streams", "latency"))
    given = parser.parse_args()
    missing = [name for name in ("nginx", "wrk", "taskset") if shutil.which(name) is None]
    if missing:
        sys.exit(
            f"bench_gateway needs {', '.join(missing)} on the path (Debian: apt install nginx-light wrk util-linux)."
        )
    if (os.cpu_count() or 1) < 2:
        sys.exit("bench_gateway needs two cores: one for the proxy, one for load and upstream.")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), given.seconds)
        with bench.children:
            rows = measure(bench, given.rounds, given.only)
    if given.only is None:
        write_rows("gateway", rows)
    else:
        print(*rows, sep="\n")


if __name__ == "__main__":
    main()
