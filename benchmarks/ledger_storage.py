"""What the ledger's storage promises: bounded memory, no unpublished blob collected, an edit at the cost of the edit.

``bench_ledger.py`` calls ``rows``; alone, ``python benchmarks/ledger_storage.py`` prints and writes the same rows.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the tests' S3 server and child processes are used here too

import psutil
from tests.ledger.conftest import new_bucket, s3_server

from rows import Row, write_rows
from tidemill.kernel import ArtifactKind, RowId, Scope
from tidemill.ledger import Ledger, S3Options, collect_garbage, open_ledger
from tidemill.ledger import Row as DataRow

SCOPE = Scope("bench")
MIB = 1 << 20
BLOB_MIB = 1024
ROUNDS = 150
WRITERS = 3


def rows() -> list[Row]:
    """Measure everything, on a folder and on a local S3 server."""
    measured: list[Row] = []
    with s3_server() as endpoint, tempfile.TemporaryDirectory(prefix="tidemill-bench-") as name:
        folder = Path(name)
        for store, s3 in (("folder", ""), ("S3", endpoint)):
            measured += memory(folder, store, s3)
            measured += collection(folder, store, s3)
        measured += edits(folder)
    return measured


def memory(folder: Path, store: str, endpoint: str) -> list[Row]:
    """How much a process grows while it stores and reads a blob of a gibibyte."""
    where = new_bucket(endpoint) if endpoint else str(folder / "blobs")
    measured = []
    for how in ("stream", "file"):
        told = _child("grow", str(folder), where, endpoint, how)
        for doing in ("put", "read"):
            grown = told[doing]
            figure = f"peak memory growth, {doing} of a 1 GB blob ({how}), {store}"
            measured.append(Row(figure, grown, "MB", "< 100", grown < 100, {"MB/s": told[f"{doing} MB/s"]}))
    return measured


def grow(folder: str, where: str, endpoint: str, how: str) -> None:
    """Store and read the blob, and print by how many MB the peak of this process rose."""
    with _open(Path(folder), where, endpoint) as ledger:
        ledger.blobs.read(ledger.blobs.put(b"small"))  # loads the libraries, and no more: buffers are counted
        source = Path(folder) / "source"
        if how == "file":
            with source.open("wb") as file:
                file.writelines(_random_pieces())
        told = {}
        begun = _Peak()
        digest = ledger.blobs.put(source if how == "file" else _random_pieces())
        told["put"], told["put MB/s"] = begun.end()
        source.unlink(missing_ok=True)
        begun = _Peak()
        size = sum(len(piece) for piece in ledger.blobs.stream(digest))
        told["read"], told["read MB/s"] = begun.end()
        assert size == BLOB_MIB * MIB
        ledger.blobs.store.remove([digest])
    print(json.dumps(told))


class _Peak:
    """From now: by how many MB memory rises at its peak, and how many MB of the blob pass in a second."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # sets the kernel's high-water mark to the present size
        self._before = psutil.Process().memory_info().rss
        self._started = time.perf_counter()

    def end(self) -> tuple[float, float]:
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
        return (peak - self._before) / 1e6, BLOB_MIB * MIB / 1e6 / (time.perf_counter() - self._started)


def collection(folder: Path, store: str, endpoint: str) -> list[Row]:
    """Collect again and again, without grace, beside runs that store, wait, look and publish."""
    where = new_bucket(endpoint) if endpoint else str(folder / "blobs")
    url = f"sqlite:///{folder}/{store}.db"
    with _open(folder, where, endpoint, url) as ledger:
        arguments = (url, where, SCOPE.project, endpoint, ROUNDS)
        code = f"from tests.ledger import test_garbage; test_garbage.work(*{arguments!r})"
        children = [_start(code) for _ in range(WRITERS)]
        collections = removed = 0
        while any(child.poll() is None for child in children):
            removed += len(collect_garbage(ledger, grace_s=0).removed)
            collections += 1
            time.sleep(0.005)
        taken = 0
        for child in children:
            out, _ = child.communicate()
            assert child.returncode == 0
            taken += len(out.splitlines())
        models = ledger.artifacts.versions(ArtifactKind.MODEL, "m")
        taken += sum(not ledger.blobs.exists(version.blobs["w"]) for version in models)
    figure = f"blobs of live runs collected, {WRITERS} processes x {ROUNDS} runs, {store}"
    return [Row(figure, taken, "blobs", "0", taken == 0, {"collections": collections, "garbage removed": removed})]


def edits(folder: Path) -> list[Row]:
    """What a scattered edit of 1 % of the rows adds, and how fast rows are written and read."""
    count = 50_000
    chance = random.Random(1)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 10))) for _ in range(20_000)]
    texts = [" ".join(chance.choices(words, k=60)) for _ in range(count)]
    edited = set(chance.sample(range(count), count // 100))

    def data(changed: set[int]) -> Iterator[DataRow]:
        for number, text in enumerate(texts):
            value = {"text": text + " edited" if number in changed else text}
            yield DataRow(row_id=RowId(f"doc_{number * 7919 % count:06d}"), value=value)

    with _open(folder, str(folder / "rows"), "", f"sqlite:///{folder}/rows.db") as ledger:
        started = time.process_time()
        first = ledger.datasets.write("set", data(set()))
        wrote = time.process_time() - started
        whole = sum(size for _, size, _ in ledger.blobs.list())
        second = ledger.datasets.write("set", data(edited), base=first)
        share = 100 * (sum(size for _, size, _ in ledger.blobs.list()) - whole) / whole
        started = time.process_time()
        assert sum(1 for _ in ledger.datasets.read(second)) == count
        read = time.process_time() - started
    return [
        Row("bytes added by a scattered edit of 1 % of the rows", share, "% of the set", "about 1", share < 1.5),
        Row("data set rows written", count / wrote, "rows/CPU-s"),
        Row("data set rows read through a delta", count / read, "rows/CPU-s"),
    ]


def _open(folder: Path, where: str, endpoint: str, url: str | None = None) -> Ledger:
    s3 = S3Options(endpoint=endpoint, access_key_id="a", secret_access_key="b", allow_http=True) if endpoint else None
    url = url or f"sqlite:///{folder}/storage.db"
    return open_ledger(url, blobs=where, scope=SCOPE, s3=s3, cache_dir=folder / "cache")


def _random_pieces() -> Iterator[bytes]:
    for _ in range(BLOB_MIB):
        yield os.urandom(MIB)


def _child(function: str, *arguments: str) -> dict[str, float]:
    load = "import sys; sys.path.insert(0, 'benchmarks'); import ledger_storage"
    code = f"{load}; ledger_storage.{function}(*{arguments!r})"
    child = _start(code)
    out, _ = child.communicate()
    assert child.returncode == 0, f"{function} failed"
    told: dict[str, float] = json.loads(out.splitlines()[-1])
    return told


def _start(code: str) -> subprocess.Popen[str]:
    root = Path(__file__).parent.parent
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root)


if __name__ == "__main__":
    write_rows("ledger_storage", rows())
