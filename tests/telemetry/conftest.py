"""Stores under test: the conformance suite runs over each of ``STORES``; another back end joins with one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.telemetry.engines import STORES
from tidemill.kernel import Scope
from tidemill.telemetry import SpanStore


@pytest.fixture(params=sorted(STORES))
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[Scope], SpanStore]]:
    """Opens stores of one back end on the same place; closes them after the test."""
    opened: list[SpanStore] = []

    def opener(scope: Scope) -> SpanStore:
        store = STORES[request.param](tmp_path, scope)
        opened.append(store)
        return store

    yield opener
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[[Scope], SpanStore]) -> SpanStore:
    return open_store(Scope("shop"))
