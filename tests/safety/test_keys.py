"""API keys over a real ledger: only the digest is kept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tidemill.kernel import Conflict, InvalidInput, Scope, key_digest
from tidemill.ledger import Ledger, open_ledger
from tidemill.safety import fresh_api_key, issue_key, mask_pii, routing_keys


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with open_ledger(
        f"sqlite:///{tmp_path / 'ledger.db'}", blobs=str(tmp_path / "blobs"), scope=Scope("shop")
    ) as opened:
        yield opened


def test_keys_are_192_random_bits_and_masked_in_text() -> None:
    keys = {fresh_api_key() for _ in range(200)}
    assert len(keys) == 200
    assert all(re.fullmatch(r"tm-[A-Za-z0-9_-]{32}", key) for key in keys)
    assert all(mask_pii(f"my key: {key}") == "my key: <api_key>" for key in keys)


def test_only_the_digest_is_kept(ledger: Ledger, tmp_path: Path) -> None:
    key = issue_key(ledger, "laptop")
    (entry,) = routing_keys(ledger)
    assert (entry.digest, entry.name, entry.tenant) == (key_digest(key), "laptop", "default")
    assert all(key.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_revoked_key_routes_nothing(ledger: Ledger) -> None:
    issue_key(ledger, "laptop")
    issue_key(ledger, "phone")
    ledger.api_keys.revoke("laptop", actor="someone", reason="lost")
    assert [entry.name for entry in routing_keys(ledger)] == ["phone"]


def test_a_name_is_taken_once_and_well_formed(ledger: Ledger) -> None:
    issue_key(ledger, "laptop")
    with pytest.raises(Conflict):
        issue_key(ledger, "laptop")
    with pytest.raises(InvalidInput):
        issue_key(ledger, "My Laptop")
