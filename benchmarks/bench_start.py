"""How quickly things start, and what an installation weighs.

CPU is user plus system time of the child process and its children, the median of seven calls. ``up`` runs the example
project with a scripted model at a provider, so no weights are loaded. The installation is a fresh virtual environment
in a temporary folder with the pinned base dependencies: distributions are counted with ``importlib.metadata``, bytes
are those of the files as shipped, and beside them with the bytecode that pip compiles (``pip install --no-compile``
leaves it out; Python writes what it uses). pip and setuptools are counted apart: Tidemill runs without them.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from rows import Row, write_rows
from tidemill.serving.testing import ScriptedServer

ROOT = Path(__file__).parents[1]
TIDEMILL = Path(sys.executable).with_name("tidemill")
TOOLS = ("pip", "setuptools", "wheel", "pkg_resources", "_distutils_hack")
REPEATS = 7


def cpu_ms(command: Sequence[str | Path]) -> float:
    """User and system time of a command, in milliseconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stderr}")
    return 1e3 * (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def median_row(figure: str, command: Sequence[str | Path], limit_ms: float, *, beside: dict[str, float]) -> Row:
    values = [cpu_ms(command) for _ in range(REPEATS)]
    value = statistics.median(values)
    return Row(figure, value, "ms CPU", f"< {limit_ms:g}", value < limit_ms, beside)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def make_project(folder: Path, model_url: str) -> None:
    """The example project of ``init``, answered by a scripted provider, with a release in production."""
    subprocess.run([TIDEMILL, "init", folder, "--name", "shop"], check=True, stdout=subprocess.DEVNULL)
    file = folder / "tidemill.yaml"
    document = yaml.safe_load(file.read_text())
    document["indexes"]["shop"]["mode"] = "bm25"
    document["models"] = {"scripted": {"kind": "chat", "url": model_url}}
    document["releases"]["shop"]["model"] = "scripted"
    document |= {"runtime": {"enabled": False}, "server": {"port": free_port()}, "gateway": {"port": free_port()}}
    file.write_text(yaml.safe_dump(document))
    for command in (
        "apply",
        "models pull scripted",
        "data build shop",
        "index build shop",
        "release create shop",
        "rollout start shop shop@1",
    ):
        subprocess.run([TIDEMILL, *command.split(), "-p", folder], check=True, stdout=subprocess.DEVNULL)


@contextmanager
def running(folder: Path) -> Iterator[tuple[float, float]]:
    """``tidemill up``: yields the seconds until it said it was ready, and until its release answered."""
    begun_s = time.monotonic()
    with subprocess.Popen([TIDEMILL, "up", "-p", folder], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith("ready after"):
                    break
            ready_s = time.monotonic() - begun_s
            while True:
                told = subprocess.run([TIDEMILL, "status", "--json", "-p", folder], capture_output=True, check=True)
                control = json.loads(told.stdout)["control"]
                if control and any(one["ready"] for one in control["endpoints"]):
                    break
                if time.monotonic() - begun_s > 60:
                    raise SystemExit("tidemill up: the release did not become ready within 60 s")
            yield ready_s, time.monotonic() - begun_s
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def start_rows(work: Path) -> list[Row]:
    bare = statistics.median(cpu_ms([sys.executable, "-c", "pass"]) for _ in range(REPEATS))
    beside = {"python alone": bare}
    rows = [
        median_row("import tidemill", [sys.executable, "-c", "import tidemill"], 200, beside=beside),
        median_row("tidemill --help", [TIDEMILL, "--help"], 400, beside=beside),
    ]
    folder = work / "shop"
    with ScriptedServer() as model:
        make_project(folder, model.url)
        status = [TIDEMILL, "status", "-p", folder]
        rows.append(median_row("tidemill status, nothing running", status, 700, beside=beside))
        with running(folder) as (ready_s, answers_s):
            rows.append(median_row("tidemill status, project running", status, 700, beside=beside))
    rows.append(Row("tidemill up ready", ready_s, "s", "< 15", ready_s < 15, {"until the release answers": answers_s}))
    return rows


def install_rows(work: Path) -> list[Row]:
    """Install into a fresh environment and weigh it."""
    venv = work / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    python = venv / "bin" / "python"
    begun_s = time.monotonic()
    subprocess.run(
        [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "-c",
            ROOT / "constraints.txt",
            ROOT,
        ],
        check=True,
    )
    took_s = time.monotonic() - begun_s
    code = "import json, importlib.metadata as m; print(json.dumps([d.metadata['Name'] for d in m.distributions()]))"
    names = sorted(
        {re.sub(r"[-_.]+", "-", name).lower() for name in json.loads(subprocess.check_output([python, "-c", code]))}
    )
    tools = [name for name in names if name in TOOLS]
    heavy = [name for name in names if name in ("torch", "tensorflow", "jax", "pandas", "scipy")]
    packages = next((venv / "lib").glob("python*/site-packages"))
    own = [path for path in packages.iterdir() if path.name.split("-")[0].lower() not in TOOLS]
    megabytes = sum(bytes_of(path, compiled=False) for path in own) / 1e6
    compiled = sum(bytes_of(path, compiled=True) for path in own) / 1e6
    count = len(names) - len(tools)
    print("installed:", ", ".join(name for name in names if name not in TOOLS))
    subprocess.run([venv / "bin" / "tidemill", "--version"], check=True, stdout=subprocess.DEVNULL)
    return [
        Row("base install, distributions", count, "", "<= 60", count <= 60, {"and tools": len(tools)}),
        Row("base install, files", megabytes, "MB", "<= 650", megabytes <= 650, {"with pip's bytecode": compiled}),
        Row("base install, torch and the like", len(heavy), "", "0", not heavy),
        Row("base install, time with downloads", took_s, "s"),
    ]


def bytes_of(path: Path, *, compiled: bool) -> int:
    """Bytes of the files in a folder, or of a file; with or without the bytecode that pip compiles from them."""
    if path.is_file():
        return path.stat().st_size
    files = (one for one in path.rglob("*") if compiled or one.parent.name != "__pycache__")
    return sum(one.lstat().st_size for one in files if one.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-install", action="store_true", help="leave out the fresh installation")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="tidemill-bench-"))
    try:
        rows = start_rows(work)
        if not options.no_install:
            rows += install_rows(work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    write_rows("start", rows)


if __name__ == "__main__":
    main()
