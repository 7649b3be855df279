"""What the ledger promises: commits of many processes, decisions that outlive a kill, lineage in both directions.

Run as ``python benchmarks/bench_ledger.py [traces]``; 200,000 traces with 1,000,000 references by default. PostgreSQL
is measured beside SQLite where one is found (see ``tests/conftest.py``).
"""

from __future__ import annotations

import importlib
import random
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the tests' child processes and servers are used here too

import pytest
from tests.conftest import any_postgres, new_database
from tests.ledger.processes import kill_writers, write_together

from rows import Row, write_rows
from tidemill.kernel import ArtifactKind, Digest, Scope, digest_json
from tidemill.ledger import Ledger, RunStatus, open_ledger
from tidemill.telemetry import Batch, Reference, Span, SpanStore, open_span_store

SCOPE = Scope("bench")
DOCUMENTS = 20_000
PASSAGES_A_DOCUMENT = 10
RELEASES = 200
CODE = digest_json("code")


def main() -> None:
    """Measure everything and write the rows."""
    traces = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    rows: list[Row] = []
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="tidemill-bench-")))
        urls = {"SQLite": f"sqlite:///{folder}/ledger.db"}
        try:
            urls["PostgreSQL"] = held.enter_context(new_database(held.enter_context(any_postgres())))
        except pytest.skip.Exception as reason:
            print(f"PostgreSQL is left out: {reason}")
        store = open_span_store(folder / "telemetry.duckdb", SCOPE)
        held.callback(store.close)
        world = World(random.Random(7))
        rows += fill_traces(store, world, traces)
        for name, url in urls.items():
            beside = {"sqlite3 alone, 1 process": plain_commits_per_s(folder)} if name == "SQLite" else {}
            rows += commits(name, url, beside)
            rows += kills(name, url)
            with open_ledger(url, blobs=str(folder / "blobs"), scope=SCOPE) as ledger:
                rows += fill_ledger(name, ledger, world)
                rows += lineage(name, ledger, store, world)
                rows += audit(name, ledger)
    rows += opening()
    rows += storage()
    write_rows("ledger", rows)


def commits(name: str, url: str, beside: dict[str, float]) -> list[Row]:
    """8 processes record 200 decisions each."""
    seconds, complaints = write_together(url, f"p-{uuid.uuid4().hex[:8]}", 8, 200)
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return [
        Row(f"{name}: processes of 8 x 200 commits that met an error", len(complaints), "processes", "== 0",
            not complaints),
        Row(f"{name}: decisions committed in full, 8 processes", 1600 / seconds, "1/s", beside=beside),
    ]  # fmt: skip


def plain_commits_per_s(folder: Path) -> float:
    """What the disk and SQLite allow: one process, one narrow row, one full commit."""
    connection = sqlite3.connect(folder / "plain.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE t (x)")
    began_s = time.monotonic()
    for n in range(400):
        connection.execute("INSERT INTO t VALUES (?)", (n,))
    seconds = time.monotonic() - began_s
    connection.close()
    return 400 / seconds


def kills(name: str, url: str) -> list[Row]:
    """30 writers killed at random moments; the store is opened and its chain checked after them."""
    acknowledged, lost = kill_writers(url, f"p-{uuid.uuid4().hex[:8]}", 30)
    return [
        Row(f"{name}: acknowledged decisions missing after 30 SIGKILLs", lost, "decisions", "== 0", lost == 0),
        Row(f"{name}: decisions acknowledged meanwhile", acknowledged, "decisions"),
    ]


class World:
    """Documents, their passages and releases, by ids of the form that Tidemill makes."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.sources = [f"file:docs/section-{n // 40}/page-{n}.md" for n in range(DOCUMENTS)]
        self.documents = [f"doc_{chance.getrandbits(96):024x}" for _ in range(DOCUMENTS)]
        self.passages = [f"psg_{chance.getrandbits(96):024x}" for _ in range(DOCUMENTS * PASSAGES_A_DOCUMENT)]
        self.releases = [digest_json({"release": n}) for n in range(RELEASES)]  # as spans name them
        self.traces: list[str] = []

    def row_edges(self) -> Iterator[tuple[str, str]]:
        """Passage -> document -> source."""
        yield from zip(self.documents, self.sources, strict=True)
        for place, passage in enumerate(self.passages):
            yield passage, self.documents[place // PASSAGES_A_DOCUMENT]

    def passage(self) -> str:
        """A passage as traffic meets it: half of all answers use one passage in twenty."""
        popular = self.chance.random() < 0.5
        return self.passages[self.chance.randrange(len(self.passages) // 20 if popular else len(self.passages))]


def fill_traces(store: SpanStore, world: World, traces: int) -> list[Row]:
    """Traces of four passages and a release each."""
    chance = world.chance
    world.traces = [f"{chance.getrandbits(128):032x}" for _ in range(traces)]
    began_s = time.monotonic()
    for start in range(0, traces, 5000):
        spans = []
        for place, trace_id in enumerate(world.traces[start : start + 5000], start):
            release = world.releases[place * RELEASES // traces]
            used = [Reference(kind="passage", ref=world.passage(), role="retrieved", rank=n) for n in range(4)]
            spans.append(
                Span(
                    trace_id=trace_id,
                    span_id=trace_id[:16],
                    project=SCOPE.project,
                    tenant=SCOPE.tenant,
                    name="chat desk",
                    operation="chat",
                    started_at_ns=place * 10**6,
                    ended_at_ns=place * 10**6 + 10**5,
                    release=release,
                    references=(*used, Reference(kind="artifact", ref=release, role="release")),
                )
            )
        store.commit(Batch(spans=spans), {"bench": start})
    return [Row("span store: traces with 5 references stored", traces / (time.monotonic() - began_s), "1/s")]


def fill_ledger(name: str, ledger: Ledger, world: World) -> list[Row]:
    """220,000 row edges, and for each release: data set -> run -> index, model -> run -> adapter, prompt."""
    began_s = time.monotonic()
    ledger.lineage.link_rows(world.row_edges())
    seconds = time.monotonic() - began_s
    base = ledger.artifacts.publish(ArtifactKind.MODEL, "base", {})
    for n in range(RELEASES):
        documents = ledger.artifacts.publish(ArtifactKind.DATASET, "docs", {"n": n // 10})
        parts = [ledger.artifacts.publish(ArtifactKind.PROMPT, "answer", {"n": n}).digest]
        for step, kind, reads in (("index", ArtifactKind.INDEX, documents), ("tune", ArtifactKind.ADAPTER, base)):
            inputs = {"in": reads.digest, "documents": documents.digest}
            run = ledger.runs.start(step, inputs=inputs, code_digest=CODE, environment_digest=CODE)
            made = ledger.artifacts.publish(kind, "desk", {"n": n}, made_by=run.run_id)
            ledger.runs.finish(run.run_id, RunStatus.OK, outputs={"out": made.digest})
            parts.append(made.digest)
        ledger.artifacts.publish(ArtifactKind.RELEASE, "desk", {"release": n}, parents=parts)
    return [Row(f"{name}: row edges linked", DOCUMENTS * (PASSAGES_A_DOCUMENT + 1) / seconds, "1/s")]


@dataclass
class Timed:
    """Wall and CPU time of calls, in milliseconds."""

    wall_ms: list[float]
    cpu_ms: float

    @classmethod
    def of(cls, call: Callable[[int], object], times: int) -> Timed:
        """Call once to warm up, then so many times."""
        call(0)
        walls = []
        cpu_s = time.process_time()
        for n in range(times):
            began_s = time.perf_counter()
            call(n)
            walls.append((time.perf_counter() - began_s) * 1e3)
        return cls(sorted(walls), (time.process_time() - cpu_s) * 1e3 / times)

    def row(self, figure: str, limit_ms: float, **beside: float) -> Row:
        """The median against a bar."""
        median = statistics.median(self.wall_ms)
        rest = {"p95 ms": self.wall_ms[int(len(self.wall_ms) * 0.95)], "CPU ms": self.cpu_ms, **beside}
        return Row(figure, median, "ms", f"< {limit_ms:g}", median < limit_ms, rest)


def lineage(name: str, ledger: Ledger, store: SpanStore, world: World) -> list[Row]:
    """One answer up to its documents and artifacts; one document down to every trace it had a part in."""
    versions = {item.content["release"]: item for item in ledger.artifacts.versions(ArtifactKind.RELEASE, "desk")}
    published = {digest: versions[n].digest for n, digest in enumerate(world.releases)}
    chosen = [world.chance.choice(world.traces) for _ in range(60)]
    sizes: list[int] = []

    def answer(n: int) -> None:
        found = [reference for _, reference in store.references([chosen[n]])]
        rows = ledger.lineage.row_ancestors(item.ref for item in found if item.kind == "passage")
        made = ledger.lineage.ancestors([published[Digest(item.ref)] for item in found if item.kind == "artifact"])
        assert len(rows.nodes) >= 6
        sizes.append(len(rows.nodes) + len(made.nodes))

    def document(source: str) -> int:
        below = ledger.lineage.row_descendants(source)
        return len(store.traces_using([node.node_id for node in below.nodes if node.node_id.startswith("psg_")]))

    any_document = [world.chance.choice(world.sources) for _ in range(20)]
    popular = [world.chance.choice(world.sources[: DOCUMENTS // 20]) for _ in range(20)]
    met: list[int] = []
    answered = Timed.of(answer, len(chosen))
    down = Timed.of(lambda n: document(any_document[n]), 20)
    down_popular = Timed.of(lambda n: met.append(document(popular[n])), 20)

    oldest = ledger.artifacts.get("dataset/docs@1")

    def version(_n: int) -> None:
        below = ledger.lineage.descendants(oldest.digest)
        spans_name = {digest: release for release, digest in published.items()}
        releases = [spans_name[Digest(node.node_id)] for node in below.nodes if node.kind == "release"]
        met.append(len(store.traces_using(releases)))

    whole = Timed.of(version, 5)
    return [
        answered.row(f"{name}: answer -> ancestors", 20.0, nodes=statistics.mean(sizes)),
        down.row(f"{name}: document -> all traces", 500.0),
        down_popular.row(f"{name}: popular document -> all traces", 500.0, traces=statistics.mean(met[:20])),
        whole.row(f"{name}: data set version -> traces of its releases", 500.0, traces=met[-1]),
    ]


def audit(name: str, ledger: Ledger) -> list[Row]:
    """The check of a chain of 5,000 entries."""
    from tidemill.kernel import Verdict

    with ledger.database.write() as connection:
        for n in range(5000):
            ledger.decisions.append(connection, "gate", "s", Verdict(n, "a reason", {"n": n}), "bench")
    began_s = time.monotonic()
    report = ledger.audit.verify()
    assert report.ok
    return [Row(f"{name}: audit entries checked", report.entries / (time.monotonic() - began_s), "1/s")]


def opening() -> list[Row]:
    """CPU of a process that opens a SQLite ledger that is there and lists its artifacts."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/ledger.db"
        open_ledger(url, blobs="memory://", scope=SCOPE).close()
        program = (
            "from tidemill.ledger import open_ledger; from tidemill.kernel import Scope\n"
            f"open_ledger({url!r}, blobs='memory://', scope=Scope('bench')).artifacts.list()"
        )
        used_ms = []
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-c", program], check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            used_ms.append((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3)
    return [Row("SQLite: open and list, whole process", min(used_ms), "ms CPU")]


def storage() -> list[Row]:
    """The rows of blobs and data sets, where that module lies beside this one."""
    if not (Path(__file__).parent / "ledger_storage.py").exists():
        return []
    rows: list[Row] = importlib.import_module("ledger_storage").rows()
    return rows


if __name__ == "__main__":
    main()
