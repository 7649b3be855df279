"""Compressed request bodies, unpacked within a bound."""

from __future__ import annotations

import zlib
from typing import Final, Literal

from tidemill.kernel import InvalidInput

Packing = Literal["", "gzip", "deflate"]

PACKINGS: Final[dict[str, Packing]] = {
    "": "",
    "identity": "",
    "gzip": "gzip",
    "x-gzip": "gzip",
    "deflate": "deflate",
}
"""Content-Encoding to what is understood."""


class TooLarge(InvalidInput):
    """A body that is larger than allowed, as it came or unpacked."""


def unpack(body: bytes, packing: str, bytes_most: int) -> bytes:
    """The bytes of a body.

    Args:
        body: as it came.
        packing: one of ``Packing``.
        bytes_most: of the result; no more is ever unpacked.

    Raises:
        TooLarge: it would be larger.
        InvalidInput: it is not packed so, or is cut short.
    """
    if not packing:
        if len(body) > bytes_most:
            raise _too_large(bytes_most)
        return body
    # 47 takes gzip's and zlib's headers.
    parts, left = [], body
    size = 0
    try:
        while left:
            unpacker = zlib.decompressobj(47)
            parts.append(unpacker.decompress(left, bytes_most - size + 1))
            size += len(parts[-1])
            if size > bytes_most:
                raise _too_large(bytes_most)
            if not unpacker.eof:
                raise InvalidInput(f"The body is cut short: its {packing} data has no end.")
            left = unpacker.unused_data  # gzip allows several members, one behind the other
    except zlib.error as error:
        raise InvalidInput(f"The body is not what its Content-Encoding says ({packing}): {error}.") from error
    return b"".join(parts)


def repacked(body: bytes, packing: Packing, bytes_most: int) -> tuple[bytes, Packing]:
    """A body that fits a frame: compressed if it came larger than that."""
    if packing or len(body) <= bytes_most:
        return body, packing
    return zlib.compress(body, 1), "deflate"


def _too_large(bytes_most: int) -> TooLarge:
    return TooLarge(
        f"The body is larger than {bytes_most} bytes, unpacked.",
        hint="Send smaller batches, or raise telemetry.otlp.request_bytes_most.",
    )
