"""An S3-compatible server for the tests of blobs."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest

from tidemill.ledger import S3Options


@contextmanager
def s3_server() -> Iterator[str]:
    """Start a local S3 server; its base URL. Benchmarks use it too."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert server.poll() is None, "the S3 server does not start"
                assert time.monotonic() < deadline, "the S3 server does not answer"
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Base URL of a local S3 server."""
    with s3_server() as endpoint:
        yield endpoint


def new_bucket(endpoint: str) -> str:
    """Make a bucket; a URL in it with a prefix."""
    bucket = f"b{uuid.uuid4().hex[:12]}"
    httpx2.put(f"{endpoint}/{bucket}").raise_for_status()
    return f"s3://{bucket}/some/prefix"


@pytest.fixture
def s3_options(s3_endpoint: str) -> S3Options:
    """How to reach it."""
    return S3Options(endpoint=s3_endpoint, access_key_id="test", secret_access_key="test", allow_http=True)


@pytest.fixture
def s3_url(s3_endpoint: str) -> str:
    """A fresh bucket, with a prefix."""
    return new_bucket(s3_endpoint)
