"""The demo as a user runs it: its time, its memory, its second run, and the same decisions whatever dies.

    python benchmarks/bench_demo.py [--quick] [--wheels DIR] [--folder DIR]

A first ``tidemill demo`` in an empty folder and a second one in the same folder are timed, and the memory of all its
processes is sampled (PSS, so that shared pages count once). Then, for every kind of process, a further demo in the same
folder (its builds cached, its traffic and its rollouts new) has one such process killed with SIGKILL at a random
moment; it must complete with the decisions of the undisturbed run, or, when it was the demo's own process that died,
come to them on the next call.

Downloads are left out of the bars; to leave them out of the waiting too, ``--wheels`` names a folder with wheels
downloaded before (``FOLDER/.tidemill/cache/wheels`` of an earlier demo), which are copied into the demo's cache.
``--quick`` kills nothing. ``--kill`` repeats a kind's death, at its moment of the whole run, and replaces that row
only: the other rows of the results stay as they were measured.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from rows import Row, read_rows, save_rows, write_rows

TIDEMILL = Path(sys.executable).with_name("tidemill")
KINDS = ("runtime", "server", "gateway-0", "serving", "supervisor", "demo")
LONGEST_S = 1500.0
SAMPLE_S = 0.5
SEED = 20


@dataclass
class Told:
    """One call of ``tidemill demo``.

    Args:
        result: what it wrote to ``--json``; ``None`` when it was killed or failed.
        wall_s: how long it ran.
        peak_mb: most memory of its process tree at one moment.
    """

    code: int
    wall_s: float
    peak_mb: float
    result: dict[str, Any] | None
    killed: list[str] = field(default_factory=list)

    @property
    def decisions(self) -> list[str]:
        return [one["decision"] for one in self.result["releases"]] if self.result is not None else []


class Watch(threading.Thread):
    """Samples the memory of a process tree, and kills one of its processes once at a given moment.

    Args:
        root: the demo's process.
        folder: its project folder, whose state file names the children.
        kill: kind of the process to kill; ``None`` kills nothing.
        at_s: when, in seconds from the start; delayed until there is such a process.
    """

    def __init__(self, root: int, folder: Path, kill: str | None, at_s: float) -> None:
        super().__init__(daemon=True)
        self.peak_mb = 0.0
        self.killed: list[str] = []
        self.done = threading.Event()
        self._root = psutil.Process(root)
        self._folder = folder
        self._kill = kill
        self._at_s = at_s
        self._begun_s = time.monotonic()

    def run(self) -> None:
        while not self.done.wait(SAMPLE_S):
            self.peak_mb = max(self.peak_mb, sum(map(memory_mb, self._tree())))
            if self._kill is not None and not self.killed and time.monotonic() - self._begun_s > self._at_s:
                self._strike()

    def _tree(self) -> list[psutil.Process]:
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _strike(self) -> None:
        pid = self._root.pid if self._kill == "demo" else self._pid(str(self._kill))
        if pid is None:
            return
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        after_s = time.monotonic() - self._begun_s
        self.killed.append(f"{self._kill} after {after_s:.0f} s")

    def _pid(self, kind: str) -> int | None:
        try:
            state = json.loads((self._folder / ".tidemill" / "run" / "state.json").read_text())
        except (OSError, ValueError):
            return None
        if state.get("ready_after_s") is None:
            return None
        if kind == "supervisor":
            return int(state["pid"])
        found = [one["pid"] for name, one in state["children"].items() if name.startswith(kind)]
        return int(found[-1]) if found else None


def memory_mb(process: psutil.Process) -> float:
    """Proportional share of memory; resident memory where the system does not tell it."""
    try:
        full = process.memory_full_info()
        return float(getattr(full, "pss", full.rss)) / 1e6
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0.0


def tell(folder: Path, *, kill: str | None = None, at_s: float = 0.0) -> Told:
    """Run ``tidemill demo`` once."""
    file = folder.with_suffix(".json")
    file.unlink(missing_ok=True)
    command = [TIDEMILL, "demo", "--folder", folder, "--json", file]
    begun_s = time.monotonic()
    with (
        folder.with_suffix(".log").open("ab") as log,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        watch = Watch(process.pid, folder, kill, at_s)
        watch.start()
        try:
            code = process.wait(LONGEST_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        watch.done.set()
        watch.join()
    result = json.loads(file.read_text()) if code == 0 and file.exists() else None
    told = Told(code, time.monotonic() - begun_s, watch.peak_mb, result, watch.killed)
    said = ", ".join(told.decisions) or f"exit code {code}"
    print(
        f"  {folder.name}: {said}; {told.wall_s:.0f} s, {told.peak_mb:.0f} MB" + "".join(f"; {k}" for k in told.killed)
    )
    return told


def copy_wheels(wheels: Path | None, folder: Path) -> None:
    """Give a new demo the wheels that were downloaded before."""
    if wheels is not None and wheels.is_dir():
        shutil.copytree(wheels, folder / ".tidemill" / "cache" / "wheels", dirs_exist_ok=True)


def undisturbed_rows(first: Told, second: Told, *, downloaded: bool) -> list[Row]:
    """Rows of two demos in one folder; ``downloaded`` when the first had to fetch its weights."""
    assert first.result is not None
    timings = first.result["timings"]
    total_s, loop_s = first.wall_s - (timings["downloads"] if downloaded else 0.0), timings["loop"]
    weights = {"downloads and weights" if downloaded else "weights": timings["downloads"]}
    rows = [
        Row("first demo, after downloads", total_s, "s", "<= 480", total_s <= 480, weights),
        Row("  of which the loop", loop_s, "s", "<= 360", loop_s <= 360),
        Row("peak memory of all processes", first.peak_mb, "MB", "<= 3000", first.peak_mb <= 3000),
    ]
    rows += [
        Row(f"  stage: {name}", float(took), "s") for name, took in timings.items() if name not in ("total", "loop")
    ]
    if second.result is not None:
        share = second.wall_s / total_s
        rows.append(Row("second demo, share of the first", share, "", "<= 0.6", share <= 0.6, {"wall": second.wall_s}))
        same = float(second.decisions == first.decisions)
        rows.append(Row("second demo decides alike", same, "", "1", same == 1.0))
    else:
        rows.append(Row("second demo completes", 0.0, "", "1", holds=False))
    expected = float(first.decisions == ["promoted", "promoted", "rolled_back"])
    rows.append(Row("promoted, promoted, rolled back", expected, "", "1", expected == 1.0))
    return rows


def killed_row(kind: str, folder: Path, expected: list[str], at_s: float) -> Row:
    """Kill one process of that kind during a demo; whether its decisions are those of the undisturbed one."""
    told = tell(folder, kill=kind, at_s=at_s)
    calls = 1
    while told.code != 0 and calls < 3:
        # The bar lets the next call resume; more than one would be a miss and is shown as such.
        told = tell(folder)
        calls += 1
    alike = told.decisions == expected and calls <= 2
    beside = {"calls": float(calls), "killed at s": round(at_s, 1)}
    return Row(f"SIGKILL of {kind}: same decisions", float(alike), "", "1", alike, beside)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two demos, nothing killed")
    parser.add_argument("--wheels", type=Path, help="wheels downloaded before")
    parser.add_argument("--folder", type=Path, help="where the demos run and stay; default: a temporary folder")
    parser.add_argument("--kill", choices=KINDS, action="append", help="kill only these kinds, replace only their rows")
    options = parser.parse_args()
    work = options.folder or Path(tempfile.mkdtemp(prefix="tidemill-demo-"))
    work.mkdir(parents=True, exist_ok=True)
    chance = random.Random(SEED)
    try:
        folder = work / "undisturbed"
        copy_wheels(options.wheels, folder)
        first = tell(folder)
        if first.result is None:
            log = folder.with_suffix(".log").read_text(errors="replace")
            raise SystemExit("The first demo failed:\n" + "\n".join(log.splitlines()[-20:]))
        second = tell(folder)
        rows = undisturbed_rows(first, second, downloaded=options.wheels is None)
        if options.kill:
            rows = read_rows("demo") or rows
        moments = {kind: chance.uniform(0.15, 0.8) * second.wall_s for kind in KINDS}
        for kind in () if options.quick else options.kill or KINDS:
            save_rows("demo", rows)
            row = killed_row(kind, folder, first.decisions, moments[kind])
            at = next((place for place, one in enumerate(rows) if one.figure == row.figure), len(rows))
            rows[at : at + 1] = [row]
    finally:
        if options.folder is None:
            shutil.rmtree(work, ignore_errors=True)
    write_rows("demo", rows)


if __name__ == "__main__":
    main()
