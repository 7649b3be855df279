"""Content digests: ``sha256:`` over byte streams and over canonical JSON.

Canonical JSON here: UTF-8, keys sorted by code point, no white space, no NaN or infinity. It follows RFC 8785 except
that numbers are written as Python's ``repr`` writes them, so digests compare among Tidemill processes, not with other
producers of canonical JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NewType

from tidemill.kernel.errors import InvalidInput

Digest = NewType("Digest", str)

_PREFIX: Final = "sha256:"
_CHUNK_BYTES: Final = 1 << 20


def canonical_json(value: Any) -> bytes:
    """Encode a JSON value so that equal values give equal bytes.

    Raises:
        InvalidInput: the value holds something JSON has no form for (NaN, infinity, an object, half a surrogate pair).
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except (TypeError, ValueError) as error:  # a UnicodeEncodeError is a ValueError
        raise InvalidInput(f"cannot write {type(value).__name__} as canonical JSON: {error}") from error


def digest_bytes(data: bytes) -> Digest:
    """Digest a byte string."""
    return Digest(_PREFIX + hashlib.sha256(data).hexdigest())


def digest_json(value: Any) -> Digest:
    """Digest a JSON value by its canonical form."""
    return digest_bytes(canonical_json(value))


def digest_stream(chunks: Iterable[bytes]) -> Digest:
    """Digest a stream of byte strings without holding more than one of them."""
    hasher = hashlib.sha256()
    for chunk in chunks:
        hasher.update(chunk)
    return Digest(_PREFIX + hasher.hexdigest())


def digest_file(path: Path) -> Digest:
    """Digest a file's bytes, one mebibyte at a time."""
    with path.open("rb") as file:
        return digest_stream(iter(lambda: file.read(_CHUNK_BYTES), b""))


def parse_digest(text: str) -> Digest:
    """Check that a text is a full digest and return it typed.

    Raises:
        InvalidInput: not ``sha256:`` followed by 64 lower-case hexadecimal digits.
    """
    hexadecimal = text.removeprefix(_PREFIX)
    if not text.startswith(_PREFIX) or len(hexadecimal) != 64 or set(hexadecimal) - set("0123456789abcdef"):
        raise InvalidInput(f"'{text}' is not a digest: expected sha256: and 64 lower-case hexadecimal digits")
    return Digest(text)
