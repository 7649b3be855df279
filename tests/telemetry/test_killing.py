"""Real processes, killed at random moments: nothing acknowledged is lost, nothing is stored twice."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from tests.telemetry.making import CONTENT, intent, passage, span
from tidemill.kernel import FakeClock, Scope, SystemClock, Unavailable
from tidemill.telemetry import Drainer, SegmentWriter, SpanQuery, SpanStore, open_span_store

ROOT = Path(__file__).parents[2]


def start(*arguments: str) -> subprocess.Popen[str]:
    command: Sequence[str] = (sys.executable, "-m", "tests.telemetry.children", *arguments)
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def drain_all(drainer: Drainer) -> None:
    while drainer.drain_once().more:
        pass


def stored_numbers(store: SpanStore) -> Counter[tuple[int, str]]:
    spans = store.spans(SpanQuery(limit=1_000_000))
    return Counter((int(stored.span.trace_id, 16), stored.span.status) for stored in spans)


@pytest.mark.parametrize("kills", [6, pytest.param(30, marks=pytest.mark.soak)])
def test_every_span_a_killed_writer_acknowledged_is_stored_once(tmp_path: Path, kills: int) -> None:
    store = open_span_store(tmp_path / "telemetry.duckdb", Scope("shop"))
    drainer = Drainer(tmp_path / "segments", store, mask=str)
    draw = random.Random()
    first = 1
    for _ in range(kills):
        child = start("write", str(tmp_path / "segments" / "gateway-0"), str(first))
        assert child.stdout
        acknowledged = int(child.stdout.readline())
        until = time.monotonic() + draw.uniform(0, 0.15)
        while time.monotonic() < until:
            drainer.drain_once(limit=draw.randint(1, 500))
        child.kill()
        child.wait()
        # A last line without its end was cut by the kill.
        acknowledged = max((int(line) for line in child.stdout.read().split("\n")[:-1] if line), default=acknowledged)
        child.stdout.close()
        drain_all(drainer)
        counts = stored_numbers(store)
        assert max(counts.values()) == 1
        assert {number for number, status in counts if status == "ok"} >= set(range(first, acknowledged + 1))
        beyond = {entry for entry in counts if entry[0] > acknowledged}
        assert beyond <= {(acknowledged + 1, "ok"), (acknowledged + 1, "interrupted")}
        first = acknowledged + 2
    assert list((tmp_path / "segments").rglob("*.seg")) == []
    # A writer killed while it made a segment leaves a key and a draft; they go when they are surely nobody's.
    later = FakeClock(SystemClock().now() + timedelta(minutes=5))
    Drainer(tmp_path / "segments", store, mask=str, clock=later).drain_once()
    assert list((tmp_path / "segments").glob("*/*")) == []
    assert all(stored.content == CONTENT for stored in store.trace(f"{1:032x}"))
    store.close()


@pytest.mark.parametrize(("most_kills", "count"), [(6, 2400), pytest.param(30, 12_000, marks=pytest.mark.soak)])
def test_a_drainer_killed_again_and_again_loses_and_doubles_nothing(
    tmp_path: Path, most_kills: int, count: int
) -> None:
    draw = random.Random()
    with SegmentWriter(
        tmp_path / "segments" / "gateway-0", project="shop", tenant="default", max_segment_bytes=200_000
    ) as writer:
        for number in range(1, count + 1):
            writer.intent(intent(number))
            if number % 100:
                writer.finished(span(number, references=(passage(1),)), CONTENT)
    kills = 0
    while kills < most_kills:
        child = start("drain", str(tmp_path))
        assert child.stdout
        child.stdout.readline()
        try:
            code: int | None = child.wait(draw.uniform(0.0, 0.25))
        except subprocess.TimeoutExpired:
            child.kill()
            code = child.wait()
            kills += 1
        child.stdout.close()
        if code == 0:
            break
    store = open_span_store(tmp_path / "telemetry.duckdb", Scope("shop"))
    drain_all(Drainer(tmp_path / "segments", store, mask=str))
    expected = {(number, "ok" if number % 100 else "interrupted") for number in range(1, count + 1)}
    assert stored_numbers(store) == Counter(dict.fromkeys(expected, 1))
    assert len(store.traces_using([passage(1).ref])) == count - count // 100
    trace_ids = [f"{number:032x}" for number in range(1, count + 1)]
    assert len(store.references(trace_ids)) == count - count // 100
    assert all(stored.content for stored in store.spans(SpanQuery(status="ok", limit=count, with_content=True)))
    store.close()


def test_a_second_process_is_told_who_may_hold_the_store(tmp_path: Path) -> None:
    store = open_span_store(tmp_path / "telemetry.duckdb", Scope("shop"))
    code = (
        "import sys, pathlib\nfrom tidemill.kernel import Scope, Unavailable\n"
        "from tidemill.telemetry import open_span_store\n"
        "try: open_span_store(pathlib.Path(sys.argv[1]), Scope('shop'))\nexcept Unavailable as error: print(error)"
    )
    command = (sys.executable, "-c", code, str(tmp_path / "telemetry.duckdb"))
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert "held by another process" in said
    assert "server" in said
    store.close()


def test_a_file_that_is_no_store_is_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.duckdb"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(Unavailable, match="cannot be opened"):
        open_span_store(path, Scope("shop"))
