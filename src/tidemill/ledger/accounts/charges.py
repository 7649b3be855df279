"""What a request owes its accounts, as a worker writes it to its segments and settlement reads it back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from tidemill.kernel import InvalidInput

CHARGES: Final = "tidemill.charges"
ADMITTED_AT: Final = "tidemill.admitted_at"


class Charge(msgspec.Struct, array_like=True, frozen=True, gc=False):
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


_DECODER: Final = msgspec.json.Decoder(tuple[Charge, ...])
_ENCODE: Final = msgspec.json.Encoder().encode


def charge_attributes(admitted_at_s: float, charges: Sequence[Charge | tuple[object, ...]]) -> dict[str, str | float]:
    """The attributes of an intent or a span that carry its charges.

    Args:
        admitted_at_s: as of ``ChargedRequest``.
        charges: ``Charge`` or, on the hot path, plain tuples of its fields.
    """
    return {CHARGES: _ENCODE(charges).decode(), ADMITTED_AT: admitted_at_s}


def charged_request(request_id: str, attributes: Mapping[str, object]) -> ChargedRequest | None:
    """Read the charges of a span; ``None`` where it has none.

    Raises:
        InvalidInput: attributes of that name that no worker wrote.
    """
    text = attributes.get(CHARGES)
    if text is None:
        return None
    try:
        charges = _DECODER.decode(str(text))
        return ChargedRequest(request_id, float(str(attributes.get(ADMITTED_AT, 0.0))), charges)
    except (msgspec.DecodeError, ValueError) as error:
        raise InvalidInput(f"the charges of span {request_id} cannot be read: {error}") from error
