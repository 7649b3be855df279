from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.kernel import (
    InvalidInput,
    canonical_json,
    digest_bytes,
    digest_file,
    digest_json,
    digest_stream,
    parse_digest,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def test_known_digest() -> None:
    """The empty string's SHA-256 is published in FIPS 180-4 test vectors."""
    assert digest_bytes(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@given(st.dictionaries(st.text(), json_values, min_size=2))
def test_key_order_does_not_matter(value: dict[str, object]) -> None:
    assert digest_json(value) == digest_json(dict(reversed(value.items())))


@given(st.lists(st.binary()))
def test_stream_equals_whole(chunks: list[bytes]) -> None:
    assert digest_stream(chunks) == digest_bytes(b"".join(chunks))


def test_file_equals_bytes(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 3_000_000)
    assert digest_file(path) == digest_bytes(b"x" * 3_000_000)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {"a": {1, 2}}])
def test_what_json_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(InvalidInput):
        canonical_json(value)


@pytest.mark.parametrize("text", ["", "sha256:", "sha256:" + "g" * 64, "md5:" + "0" * 64, "sha256:" + "A" * 64])
def test_bad_digests_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="64 lower-case"):
        parse_digest(text)
