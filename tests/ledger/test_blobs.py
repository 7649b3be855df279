from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest

from tidemill.kernel import Digest, InvalidInput, NotFound, Scope, Unavailable, digest_bytes
from tidemill.ledger import Ledger, S3Options, collect_garbage, open_ledger

LARGE = os.urandom(3 << 20)


@pytest.fixture(params=["folder", "memory", "s3"])
def stored(request: pytest.FixtureRequest, tmp_path: Path, ledger_scope: Scope) -> Iterator[Ledger]:
    """A ledger on each kind of blob store."""
    url, s3 = str(tmp_path / "blobs"), None
    if request.param == "memory":
        url = "memory://"
    elif request.param == "s3":
        url, s3 = request.getfixturevalue("s3_url"), request.getfixturevalue("s3_options")
    database = f"sqlite:///{tmp_path}/ledger.db"
    with open_ledger(database, blobs=url, scope=ledger_scope, s3=s3, cache_dir=tmp_path / "cache") as opened:
        yield opened


def _pieces(data: bytes, size: int = 100_000) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


@pytest.mark.parametrize("data", [b"", b"short", LARGE, LARGE * 4])
def test_bytes_stream_and_file_are_one_blob(stored: Ledger, tmp_path: Path, data: bytes) -> None:
    source = tmp_path / "source"
    source.write_bytes(data)
    digests = {stored.blobs.put(data), stored.blobs.put(_pieces(data)), stored.blobs.put(source)}
    assert digests == {digest_bytes(data)}
    (digest,) = digests
    assert [(found, size) for found, size, _ in stored.blobs.list()] == [(digest, len(data))]
    assert stored.blobs.read(digest) == data
    assert b"".join(stored.blobs.stream(digest, 1 << 18)) == data
    assert stored.blobs.exists(digest)
    assert stored.blobs.size(digest) == len(data)
    assert stored.blobs.local_path(digest).read_bytes() == data
    assert source.exists()
    assert not list(tmp_path.rglob("tmp/*")), "nothing temporary is left"


def test_a_file_larger_than_a_part_goes_up_in_parts(stored: Ledger, tmp_path: Path) -> None:
    data = os.urandom(19 << 20)
    source = tmp_path / "source"
    source.write_bytes(data)
    assert stored.blobs.read(stored.blobs.put(source)) == data


def test_what_is_not_there_is_not_found(stored: Ledger) -> None:
    digest = digest_bytes(b"nothing")
    assert not stored.blobs.exists(digest)
    for ask in (stored.blobs.read, stored.blobs.size, stored.blobs.local_path):
        with pytest.raises(NotFound, match="There is no blob sha256:"):
            ask(digest)
    with pytest.raises(InvalidInput, match="is not a digest"):
        stored.blobs.read(Digest("../../etc/passwd"))


def test_a_source_that_cannot_be_read_is_a_sentence(stored: Ledger, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="There is no file"):
        stored.blobs.put(tmp_path / "nowhere")
    with pytest.raises(InvalidInput, match="cannot be read"):
        stored.blobs.put(tmp_path)
    assert list(stored.blobs.list()) == []


def test_a_stream_that_fails_leaves_nothing(stored: Ledger, tmp_path: Path) -> None:
    def failing() -> Iterator[bytes]:
        yield LARGE
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        stored.blobs.put(failing())
    assert list(stored.blobs.list()) == []
    assert not list(tmp_path.rglob("tmp/*"))


def test_scopes_are_apart(tmp_path: Path) -> None:
    database, blobs = f"sqlite:///{tmp_path}/ledger.db", str(tmp_path / "blobs")
    with (
        open_ledger(database, blobs=blobs, scope=Scope("one")) as one,
        open_ledger(database, blobs=blobs, scope=Scope("one", "other")) as other,
    ):
        digest = one.blobs.put(b"one's own")
        assert not other.blobs.exists(digest)
        assert list(other.blobs.list()) == []
        time.sleep(0.01)
        assert collect_garbage(other, grace_s=0).examined == 0
        assert one.blobs.exists(digest)


def test_files_are_private_and_read_only(sqlite_ledger: Ledger, tmp_path: Path) -> None:
    digests = [sqlite_ledger.blobs.put(b"small"), sqlite_ledger.blobs.put(_pieces(LARGE))]
    for digest in digests:
        assert sqlite_ledger.blobs.local_path(digest).stat().st_mode & 0o777 == 0o400
    for folder in [tmp_path / "blobs", *(path for path in (tmp_path / "blobs").rglob("*") if path.is_dir())]:
        assert folder.stat().st_mode & 0o077 == 0, folder


def test_damage_is_told(sqlite_ledger: Ledger) -> None:
    digest = sqlite_ledger.blobs.put(b"what it was")
    path = sqlite_ledger.blobs.local_path(digest)
    path.chmod(0o600)
    path.write_bytes(b"what it is!")
    with pytest.raises(Unavailable, match="is damaged"):
        sqlite_ledger.blobs.read(digest)
    path.write_bytes(b"what")
    assert sqlite_ledger.blobs.put(b"what it was") == digest
    assert sqlite_ledger.blobs.read(digest) == b"what it was", "a blob cut short is stored again"


def test_a_source_that_changes_meanwhile_is_never_stored(
    tmp_path: Path, ledger_scope: Scope, s3_url: str, s3_options: S3Options
) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(17 << 20))
    url = f"sqlite:///{tmp_path}/ledger.db"
    with open_ledger(url, blobs=s3_url, scope=ledger_scope, s3=s3_options, cache_dir=tmp_path / "cache") as ledger:
        staged = ledger.blobs.store.stage(source)
        with source.open("r+b") as file:
            file.write(b"changed")
        with pytest.raises(Unavailable, match="changed while it was stored"):
            ledger.blobs.store.admit(staged)
        assert list(ledger.blobs.list()) == []


def test_an_upload_whose_last_answer_is_lost_is_stored(
    tmp_path: Path, ledger_scope: Scope, s3_url: str, s3_endpoint: str
) -> None:
    lost: list[str] = []

    class Losing(BaseHTTPRequestHandler):
        """Passes requests on, and once says that time ran out instead of that an upload is complete."""

        protocol_version = "HTTP/1.1"

        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            answer = httpx2.request(self.command, s3_endpoint + self.path, content=body, headers=headers)
            if self.command == "POST" and "uploadId=" in self.path and not lost:
                lost.append(self.path)
                self.send_error(400, "RequestTimeout")
                self.close_connection = True
                return
            self.send_response(answer.status_code)
            for name, value in answer.headers.items():
                if name.lower() not in ("connection", "transfer-encoding", "date", "server", "content-length"):
                    self.send_header(name, value)
            given = answer.headers["content-length"] if self.command == "HEAD" else str(len(answer.content))
            self.send_header("content-length", given)
            self.end_headers()
            self.wfile.write(answer.content)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do  # noqa: N815 - names http.server calls

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - an override
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Losing)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        s3 = S3Options(endpoint=endpoint, access_key_id="a", secret_access_key="b", allow_http=True)
        url = f"sqlite:///{tmp_path}/ledger.db"
        with open_ledger(url, blobs=s3_url, scope=ledger_scope, s3=s3, cache_dir=tmp_path / "cache") as ledger:
            data = os.urandom(17 << 20)
            assert ledger.blobs.read(ledger.blobs.put(_pieces(data))) == data
        assert len(lost) == 1
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_store_that_does_not_answer_is_a_sentence(tmp_path: Path, ledger_scope: Scope) -> None:
    s3 = S3Options(endpoint="http://127.0.0.1:9", access_key_id="a", secret_access_key="b", allow_http=True)
    url = f"sqlite:///{tmp_path}/ledger.db"
    with (
        open_ledger(url, blobs="s3://bucket/x", scope=ledger_scope, s3=s3, cache_dir=tmp_path) as ledger,
        pytest.raises(Unavailable, match="s3://bucket/x cannot be used for looking for a blob"),
    ):
        ledger.blobs.put(b"x")


@pytest.mark.parametrize("url", ["s3://", "ftp://somewhere", "gs://bucket"])
def test_a_place_of_another_kind_is_refused(tmp_path: Path, ledger_scope: Scope, url: str) -> None:
    with (
        open_ledger(f"sqlite:///{tmp_path}/ledger.db", blobs=url, scope=ledger_scope) as ledger,
        pytest.raises(InvalidInput, match="is no place for blobs"),
    ):
        ledger.blobs.put(b"x")


def _open(folder: str) -> Ledger:
    return open_ledger(f"sqlite:///{folder}/ledger.db", blobs=f"{folder}/blobs", scope=Scope("killed"))


def _child(function: str, folder: Path) -> subprocess.Popen[str]:
    code = f"from tests.ledger import test_blobs; test_blobs.{function}({str(folder)!r})"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def fill_up(folder: str) -> None:
    """Store more than a file may hold here, as on a full disk."""
    with _open(folder) as ledger:
        ledger.blobs.put(b"fits")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, 8 << 20))
        with pytest.raises(Unavailable) as told:
            ledger.blobs.put(os.urandom(1 << 20) for _ in range(12))
        assert isinstance(told.value.__cause__, OSError)
        assert told.value.__cause__.errno == errno.EFBIG
        print(told.value)
        print([size for _, size, _ in ledger.blobs.list()])


def test_no_space_is_a_sentence_and_nothing_is_kept(tmp_path: Path) -> None:
    child = _child("fill_up", tmp_path)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    assert "No space is left in" in out
    assert out.strip().endswith("[4]")
    assert not list(tmp_path.rglob("tmp/*"))


def put_for_ever(folder: str) -> None:
    """Store blobs and say so, until killed."""
    with _open(folder) as ledger:
        while True:
            print(ledger.blobs.put(os.urandom(1 << 16) for _ in range(40)), flush=True)


def test_a_killed_writer_leaves_whole_blobs_and_one_temporary_file(tmp_path: Path) -> None:
    told = []
    for seconds in (0.05, 0.11, 0.17):
        child = _child("put_for_ever", tmp_path)
        assert child.stdout is not None
        told.append(child.stdout.readline().strip())
        time.sleep(seconds)
        child.kill()
        told += child.communicate(timeout=60)[0].split()
    with _open(str(tmp_path)) as ledger:
        there = {digest: size for digest, size, _ in ledger.blobs.list()}
        assert set(told) <= set(there)
        assert set(there.values()) == {40 << 16}
        for digest in there:
            assert len(ledger.blobs.read(digest)) == 40 << 16
        assert not ledger.blobs.store.orphans(), "too young to be sure"
        for path in tmp_path.rglob("tmp/*"):
            os.utime(path, (1, 1))
        orphans = ledger.blobs.store.orphans()
        assert len(orphans) <= 3
        collect_garbage(ledger)
        assert not list(tmp_path.rglob("tmp/*"))
