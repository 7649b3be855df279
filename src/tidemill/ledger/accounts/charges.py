"""What a request owes its accounts, as a worker writes it to its segments and settlement reads it back."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from tidemill.kernel import InvalidInput

CHARGES: Final = "tidemill.charges"
"""On intents and spans: JSON ``[[lease, reserved quanta, place of the unit], …]``, in the order they were reserved.

A later intent of the same call, written before a further attempt, has the charges of all attempts."""
USED: Final = "tidemill.used"
"""On spans: JSON ``[requests, tokens, billionths of a US dollar]``; a unit's place is its index here."""
ADMITTED_AT: Final = "tidemill.admitted_at"
"""On both: when the request was admitted, in the store's time, seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Charge:
    """One account's part of a request, in quanta.

    Args:
        lease: the lease it was admitted on.
        reserved: the upper bound that was set aside before the call.
        used: what it came to; ``None`` where nobody knows, and then the reserve counts.
    """

    lease: str
    reserved: int
    used: int | None = None

    @property
    def owed(self) -> int:
        """What counts as spent."""
        return self.reserved if self.used is None else self.used


@dataclass(frozen=True, slots=True)
class ChargedRequest:
    """A request with its charges.

    Args:
        request_id: unique; settled once.
        admitted_at_s: when it was admitted, in the store's time, seconds since 1970.
    """

    request_id: str
    admitted_at_s: float
    charges: tuple[Charge, ...]


_DECODE_CHARGES: Final = msgspec.json.Decoder(tuple[tuple[str, int, Literal[0, 1, 2]], ...]).decode
_DECODE_USED: Final = msgspec.json.Decoder(tuple[int, int, int]).decode


def charge_head(lease: str) -> str:
    """How a charge on a lease begins in the text under ``CHARGES``; reserve, comma, place and bracket follow."""
    return f"[{msgspec.json.encode(lease).decode()},"


def portions(reserves: Sequence[tuple[Hashable, int]], used: Sequence[int]) -> list[int]:
    """Which part of what a request used each of its reserves answers for.

    A request that was attempted more than once has several reserves of an account, perhaps on different leases. Each is
    filled before the next one; the last takes what exceeds them all. Worker and settlement both go by this.

    Args:
        reserves: account and quanta, in the order they were made.
        used: for each reserve, what the request used of its account altogether.
    """
    last = {account: place for place, (account, _) in enumerate(reserves)}
    left: dict[Hashable, int] = {}
    found = []
    for place, ((account, reserved), amount) in enumerate(zip(reserves, used, strict=True)):
        rest = left.get(account, amount)
        portion = rest if last[account] == place else min(rest, reserved)
        left[account] = rest - portion
        found.append(portion)
    return found


def charged_request(request_id: str, attributes: Mapping[str, object]) -> ChargedRequest | None:
    """Read the charges of a span; ``None`` where it has none.

    Raises:
        InvalidInput: attributes of that name that no worker wrote.
    """
    text = attributes.get(CHARGES)
    if text is None:
        return None
    used_text = attributes.get(USED)
    try:
        used = None if used_text is None else _DECODE_USED(str(used_text))
        parts = _DECODE_CHARGES(str(text))
        if used is None:
            charges = tuple(Charge(lease, reserved) for lease, reserved, _ in parts)
        else:
            reserves = [(lease.rpartition(".")[0], reserved) for lease, reserved, _ in parts]
            owed = portions(reserves, [used[place] for _, _, place in parts])
            charges = tuple(Charge(lease, reserved, n) for (lease, reserved, _), n in zip(parts, owed, strict=True))
        return ChargedRequest(request_id, float(str(attributes[ADMITTED_AT])), charges)
    except (msgspec.DecodeError, ValueError, KeyError) as error:
        raise InvalidInput(f"the charges of span {request_id} cannot be read: {error!r}") from error
