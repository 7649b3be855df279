"""Stores under test: SQLite, PostgreSQL and Redis, each over a real connection."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tidemill.kernel import Clock, Scope
from tidemill.ledger import open_ledger
from tidemill.ledger.accounts import LeaseStore, open_lease_store

BACK_ENDS = ("sqlite", "postgres", "redis")
REDIS_URL = os.environ.get("TIDEMILL_TEST_REDIS_URL", "redis://127.0.0.1:6379/0")


def redis_url() -> str:
    """URL of a Redis server; skips the test where there is none. Tests keep apart by their scopes."""
    pytest.importorskip("redis", reason="redis-py is not installed")
    place = urlsplit(REDIS_URL)
    try:
        socket.create_connection((place.hostname or "127.0.0.1", place.port or 6379), 3).close()
    except OSError as error:
        pytest.skip(f"no Redis at {REDIS_URL}: {error}")
    return REDIS_URL


def clear_redis(url: str, scope: Scope) -> None:
    """Remove a scope's keys."""
    import redis

    with redis.Redis.from_url(url) as client:
        for key in client.scan_iter(match=f"tidemill:{{{scope.project}/{scope.tenant}}}:limits:*", count=1000):
            client.delete(key)


@pytest.fixture(params=BACK_ENDS)
def store_url(request: pytest.FixtureRequest, tmp_path: Path, ledger_scope: Scope) -> Iterator[str]:
    """Where accounts are kept, on each back end in turn."""
    if request.param == "redis":
        url = redis_url()
        yield url
        clear_redis(url, ledger_scope)
        return
    url = f"sqlite:///{tmp_path}/ledger.db"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
    open_ledger(url, blobs="memory://", scope=ledger_scope).close()
    yield url


@pytest.fixture
def open_store(store_url: str, ledger_scope: Scope) -> Iterator[Callable[..., LeaseStore]]:
    """Opens handles on the same accounts; all are closed at the end."""
    opened: list[LeaseStore] = []

    def opener(clock: Clock | None = None, scope: Scope | None = None) -> LeaseStore:
        store = open_lease_store(store_url, scope or ledger_scope, clock=clock)
        opened.append(store)
        return store

    yield opener
    for store in opened:
        store.close()
