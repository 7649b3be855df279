"""API keys: made here, shown once, and known ever after by their digest alone."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from tidemill.kernel import ApiKey, check_name, key_digest

if TYPE_CHECKING:
    from tidemill.ledger import Ledger

_RANDOM_BYTES = 24


def fresh_api_key() -> str:
    """A new key: ``tm-`` and 32 URL-safe characters that carry 192 random bits."""
    return "tm-" + secrets.token_urlsafe(_RANDOM_BYTES)


def issue_key(ledger: Ledger, name: str) -> str:
    """Make a key and record its digest in the ledger's scope.

    Args:
        ledger: where the digest is kept.
        name: what the key is called in listings.

    Returns:
        The key itself. It is stored nowhere; show it to its owner once.

    Raises:
        InvalidInput: the name cannot be one.
        Conflict: a key of that name exists.
    """
    check_name(name, "key")
    key = fresh_api_key()
    ledger.api_keys.add(key_digest(key), name)
    return key


def routing_keys(ledger: Ledger) -> tuple[ApiKey, ...]:
    """The keys that are not revoked, as a routing snapshot carries them."""
    records = ledger.api_keys.list()
    return tuple(ApiKey(record.digest, record.name, record.tenant) for record in records if record.revoked_at is None)
