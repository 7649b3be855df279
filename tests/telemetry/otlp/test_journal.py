"""What the journal acknowledges is on the disk; what it cannot write it refuses, and goes on afterwards."""

from __future__ import annotations

import resource
import subprocess
import sys
from concurrent.futures import wait
from pathlib import Path

import pytest

from tests.telemetry.making import span
from tidemill.kernel import InvalidInput, Unavailable
from tidemill.telemetry import Content, Finished, read_segment
from tidemill.telemetry.otlp.journal import BODY_BYTES_MOST, Journal
from tidemill.telemetry.otlp.packing import TooLarge, repacked, unpack
from tidemill.telemetry.receipts import Receipt, Received

RECEIPT = Receipt("traces", "protobuf", "", 5, 1)
ROOT = Path(__file__).parents[3]


def read(folder: Path) -> list[object]:
    return [record for path in sorted(folder.glob("*.seg")) for record, _ in read_segment(path)]


def test_requests_and_records_come_back_in_order_and_sealed(tmp_path: Path) -> None:
    folder = tmp_path / "otlp"
    with Journal(folder, project="shop", tenant="default") as journal:
        futures = [journal.append((RECEIPT, b"body %d" % number)) for number in range(50)]
        futures.append(journal.append((span(), Content("blake2b:1", "")), (span(2), None)))
        wait(futures)
        assert all(future.exception() is None for future in futures)
    records = read(folder)
    assert [one.body for one in records if isinstance(one, Received)] == [b"body %d" % number for number in range(50)]
    assert [one.span.trace_id[-1] for one in records if isinstance(one, Finished)] == ["1", "2"]
    assert b"body" not in next(folder.glob("*.seg")).read_bytes()
    with pytest.raises(InvalidInput):
        journal.append((RECEIPT, b"late"))


def test_a_full_segment_is_followed_by_the_next(tmp_path: Path) -> None:
    with Journal(tmp_path / "otlp", project="shop", tenant="default", max_segment_bytes=1000) as journal:
        for _ in range(5):
            journal.append((RECEIPT, b"x" * 600)).result(10)
    assert len(list((tmp_path / "otlp").glob("*.seg"))) > 1
    assert sum(isinstance(one, Received) for one in read(tmp_path / "otlp")) == 5


def test_a_request_beyond_a_frame_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "otlp", project="shop", tenant="default") as journal, pytest.raises(InvalidInput):
        journal.append((RECEIPT, bytes(BODY_BYTES_MOST + 1)))


def test_a_folder_that_cannot_be_written_fails_the_request_and_not_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "otlp"
    folder.write_text("a file stands here")
    with Journal(folder, project="shop", tenant="default") as journal:
        with pytest.raises(Unavailable, match="cannot be written"):
            journal.append((RECEIPT, b"one")).result(10)
        folder.unlink()
        journal.append((RECEIPT, b"two")).result(10)
    assert [one.body for one in read(folder) if isinstance(one, Received)] == [b"two"]


FULL = """
import resource, signal, sys
from pathlib import Path
from tidemill.kernel import Unavailable
from tidemill.telemetry.otlp.journal import Journal
from tidemill.telemetry.receipts import Receipt
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
journal = Journal(Path(sys.argv[1]), project="shop", tenant="default")
done = failed = 0
for number in range(100):
    try:
        journal.append((Receipt("traces", "protobuf", "", number, 1), b"x" * 3000)).result(10)
        done += 1
    except Unavailable:
        failed += 1
        if failed == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.close()
print(done, failed)
"""


def test_a_full_disk_refuses_what_does_not_fit_and_keeps_the_rest_whole(tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "otlp")], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.split() == ["99", "1"]
    records = read(tmp_path / "otlp")
    assert [one.receipt.received_ns for one in records if isinstance(one, Received)] == [
        number for number in range(100) if number != 33 - 1
    ] or sum(isinstance(one, Received) for one in records) == 99


@pytest.mark.parametrize("packing", ["gzip", "deflate"])
def test_bodies_are_unpacked_within_a_bound(packing: str) -> None:
    import gzip
    import zlib

    data = b"abc" * 1000
    packed = gzip.compress(data[:1500]) + gzip.compress(data[1500:]) if packing == "gzip" else zlib.compress(data)
    assert unpack(packed, packing, 3000) == data
    with pytest.raises(TooLarge):
        unpack(packed, packing, 2999)
    with pytest.raises(InvalidInput, match="cut short"):
        unpack(packed[:-9], packing, 3000)
    with pytest.raises(InvalidInput, match="Content-Encoding"):
        unpack(b"plain", packing, 3000)
    bomb = gzip.compress(bytes(100 << 20))
    with pytest.raises(TooLarge):
        unpack(bomb, "gzip", 1 << 20)
    assert unpack(*repacked(data, "", 100), 3000) == data
    assert repacked(data, "", 5000) == (data, "")
