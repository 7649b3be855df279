"""What another program sent, as it came: a request's bytes in a segment, before anybody has looked into them."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec


class Receipt(msgspec.Struct, frozen=True, array_like=True):
    """How and when a request came.

    Args:
        signal: ``traces``, ``logs`` or ``metrics``.
        encoding: ``protobuf`` or ``json``.
        packed: ``gzip``, ``deflate``, or empty where the bytes are not compressed.
        received_ns: nanoseconds since 1970; refusals for wrong clocks compare with it, so that they stay the same
            whenever the request is decoded.
        records: spans, log records or data points that were acknowledged.
    """

    signal: str
    encoding: str
    packed: str
    received_ns: int
    records: int

    @property
    def about(self) -> bytes:
        """What is bound to the sealed bytes."""
        return f"{self.signal}/{self.encoding}/{self.packed}/{self.received_ns}".encode()


class ReceivedWire(msgspec.Struct, frozen=True, array_like=True):
    """Payload of a received request: its bytes are sealed like other content."""

    receipt: Receipt
    count: int
    sealed: bytes


@dataclass(frozen=True, slots=True)
class Received:
    """A received request as it is read; ``body`` is ``None`` where it cannot be decrypted any more."""

    receipt: Receipt
    body: bytes | None
