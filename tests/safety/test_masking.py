"""What is masked once stays masked, and nothing that was found is left."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tidemill.checks import find_pii, find_secrets
from tidemill.safety import mask_pii

PIECES = (
    "bob@example.org", "+44 20 7946 0958", "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00", "203.0.113.7",
    "078-05-1120", "12345678Z", "password: hunter2x!", "sk-proj-a1B2c3D4e5F6g7H8i9J0", "http://u:pa55@h/",
    "Bearer a1B2c3D4e5F6g7H8i9J0", "call", " ", "-", "/", ":", "x", "1", "0", "\n", "is", "<", ">", "@", ".",
)  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text())
def test_masking_leaves_nothing_and_is_idempotent(text: str) -> None:
    masked = mask_pii(text)
    assert find_pii(masked) == ()
    assert find_secrets(masked) == ()
    assert mask_pii(masked) == masked


def test_placeholders_are_stable() -> None:
    assert mask_pii("a@example.org, b@example.org: sk-proj-a1B2c3D4e5F6g7H8i9J0") == "<email>, <email>: <api_key>"
    assert mask_pii("nothing here") == "nothing here"
