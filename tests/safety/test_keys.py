"""API keys over a real ledger: only the digest is kept."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tidemill.kernel import Conflict, InvalidInput, NotFound, Priority, Scope, SystemClock, key_digest
from tidemill.ledger import KeyTerms, Ledger, open_ledger
from tidemill.safety import fresh_api_key, issue_key, mask_pii, rotate_key, routing_keys


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
    (entry,) = routing_keys(ledger, now_s=time.time())
    assert (entry.digest, entry.name, entry.tenant) == (key_digest(key), "laptop", "default")
    assert all(key.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_revoked_key_routes_nothing(ledger: Ledger) -> None:
    issue_key(ledger, "laptop")
    issue_key(ledger, "phone")
    ledger.api_keys.revoke("laptop", actor="someone", reason="lost")
    assert [entry.name for entry in routing_keys(ledger, now_s=time.time())] == ["phone"]


def test_a_name_is_taken_once_and_well_formed(ledger: Ledger) -> None:
    issue_key(ledger, "laptop")
    with pytest.raises(Conflict):
        issue_key(ledger, "laptop")
    with pytest.raises(InvalidInput):
        issue_key(ledger, "My Laptop")


def test_terms_reach_the_snapshot_and_an_expired_key_does_not(ledger: Ledger) -> None:
    end = SystemClock().now() + timedelta(days=1)
    terms = KeyTerms(team="web", endpoints=("desk",), operations=("chat",), expires_at=end, priority="batch")
    key = issue_key(ledger, "laptop", terms)
    (entry,) = routing_keys(ledger, now_s=time.time())
    assert (entry.team, entry.endpoints, entry.operations) == ("web", ("desk",), ("chat",))
    assert entry.expires_at == end.timestamp()
    assert entry.priority is Priority.BATCH
    (record,) = ledger.api_keys.list()
    assert key.startswith(record.prefix)
    assert len(record.prefix) == 9
    assert routing_keys(ledger, now_s=end.timestamp()) == ()


def test_a_rotated_key_has_a_successor_with_its_terms_and_an_end(ledger: Ledger) -> None:
    old = issue_key(ledger, "laptop", KeyTerms(team="web", operations=("chat",)))
    new, decision = rotate_key(ledger, "laptop", overlap_s=3600, actor="ann", reason="yearly")
    both = routing_keys(ledger, now_s=time.time())
    assert {one.digest for one in both} == {key_digest(old), key_digest(new)}
    assert {(one.name, one.team, one.operations) for one in both} == {("laptop", "web", ("chat",))}
    (left,) = routing_keys(ledger, now_s=time.time() + 3601)
    assert left.digest == key_digest(new)
    assert (decision.verdict.value, decision.actor) == ("rotated", "ann")
    rotate_key(ledger, "laptop", overlap_s=0, actor="ann", reason="at once")
    assert len(routing_keys(ledger, now_s=time.time())) == 1
    ledger.api_keys.revoke("laptop", actor="ann", reason="lost")
    assert routing_keys(ledger, now_s=time.time()) == ()
    issue_key(ledger, "laptop")  # the name is free again
    with pytest.raises(NotFound):
        rotate_key(ledger, "phone", overlap_s=0, actor="ann", reason="none there")
    with pytest.raises(InvalidInput):
        rotate_key(ledger, "laptop", overlap_s=-1, actor="ann", reason="past")
