"""The gateway beside nginx, TensorZero and LiteLLM on the same core in turn, its memory, and what clients see of churn.

On for every figure: keys, three limits (requests, tokens, money), sessions, prices, an exact cache that misses, intent
and finished records with encrypted content. CPU is the run time of the whole process tree as the scheduler counts it,
so other load on the machine disturbs it less than wall time. Needs nginx and wrk (Debian packages ``nginx-light`` and
``wrk``) and two cores; the other gateways are installed below ``.bench`` when they are missing.

Usage: python benchmarks/bench_gateway.py [--seconds 2] [--rounds 7] [--requests 2000000] [--only NAME]
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from gateway.churn import churn_rows
from gateway.figures import latency_rows, request_rows, scaling_rows, stream_rows, throughput_rows
from gateway.memory import memory_rows
from gateway.rig import Rig
from rows import Row, merge_rows, write_rows


def parts(given: argparse.Namespace) -> dict[str, Callable[[Rig], list[Row]]]:
    """The parts of the benchmark by name, in order."""
    return {
        "requests": lambda rig: request_rows(rig, given.rounds),
        "streams": lambda rig: stream_rows(rig, given.rounds),
        "throughput": lambda rig: throughput_rows(rig, given.rounds),
        "latency": lambda rig: latency_rows(rig, given.rounds),
        "scaling": lambda rig: scaling_rows(rig, given.rounds),
        "churn": churn_rows,
        "memory": lambda rig: memory_rows(rig, given.requests),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2, help="of one turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=2_000_000, help="of the run that watches memory")
    parser.add_argument("--only", action="append", help="a part: requests, streams, throughput, latency, scaling, …")
    given = parser.parse_args()
    missing = [name for name in ("nginx", "wrk", "taskset") if shutil.which(name) is None]
    if missing:
        sys.exit(
            f"bench_gateway needs {', '.join(missing)} on the path (Debian: apt install nginx-light wrk util-linux)."
        )
    if (os.cpu_count() or 1) < 2:
        sys.exit("bench_gateway needs two cores: one for the proxy, one for load and upstream.")
    rows: list[Row] = []
    for name, part in parts(given).items():
        if given.only and name not in given.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rig = Rig(Path(folder), given.seconds)
            with rig.children:
                rows.extend(part(rig))
    if given.only:
        merge_rows("gateway", rows)
    else:
        write_rows("gateway", rows)


if __name__ == "__main__":
    main()
