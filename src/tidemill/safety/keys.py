"""API keys: made here, shown once, and known ever after by their digest and first characters alone."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from tidemill.kernel import ApiKey, Priority, check_name, key_digest

if TYPE_CHECKING:
    from tidemill.ledger import Decision, KeyTerms, Ledger

_RANDOM_BYTES: Final = 24
_PREFIX_CHARACTERS: Final = 9


def fresh_api_key() -> str:
    """A new key: ``tm-`` and 32 URL-safe characters that carry 192 random bits."""
    return "tm-" + secrets.token_urlsafe(_RANDOM_BYTES)


def issue_key(ledger: Ledger, name: str, terms: KeyTerms | None = None) -> str:
    """Make a key and record its digest in the ledger's scope.

    Args:
        ledger: where the digest is kept.
        name: what the key is called in listings, limits and spans.
        terms: what it may do and until when; everything, for ever, by default.

    Returns:
        The key itself. It is stored nowhere; show it to its owner once.

    Raises:
        InvalidInput: the name cannot be one.
        Conflict: a key of that name exists.
    """
    check_name(name, "key")
    key = fresh_api_key()
    ledger.api_keys.add(key_digest(key), name, prefix=key[:_PREFIX_CHARACTERS], terms=terms)
    return key


def rotate_key(ledger: Ledger, name: str, *, overlap_s: float, actor: str, reason: str) -> tuple[str, Decision]:
    """Make a second key of a name, and end the first after an overlap; both share the name's limits meanwhile.

    Returns:
        The new key, which is stored nowhere, and the decision in the audit chain.

    Raises:
        NotFound: no live key has that name.
        InvalidInput: a negative overlap.
    """
    key = fresh_api_key()
    _, decision = ledger.api_keys.rotate(
        key_digest(key), name, prefix=key[:_PREFIX_CHARACTERS], overlap_s=overlap_s, actor=actor, reason=reason
    )
    return key, decision


def routing_keys(ledger: Ledger, *, now_s: float) -> tuple[ApiKey, ...]:
    """The keys that are neither revoked nor expired, as a routing snapshot carries them.

    Args:
        ledger: where the keys are kept.
        now_s: seconds since 1970.
    """
    return tuple(
        ApiKey(
            digest=one.digest,
            name=one.name,
            tenant=one.tenant,
            team=one.team,
            endpoints=one.endpoints,
            operations=one.operations,
            expires_at=one.expires_at.timestamp() if one.expires_at is not None else None,
            priority=Priority(one.priority) if one.priority is not None else None,
        )
        for one in ledger.api_keys.list()
        if one.revoked_at is None and (one.expires_at is None or one.expires_at.timestamp() > now_s)
    )
