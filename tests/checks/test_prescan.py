from __future__ import annotations

import json
from pydoc_data import topics

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidemill.checks import find_pii, find_secrets, may_hold_findings

HINTS = st.sampled_from([
    "sk-", "tm-", "AKIA", "ASIA", "ghp_", "github_pat_", "glpat-", "xoxb-", "xapp-", "AIza", "hf_", "sk_live_", "npm_",
    "pypi-", "SG.", "gsk_", "r8_", "nvapi-", "eyJ", "-----BEGIN PRIVATE KEY-----", "password", "passphrase: ",
    "API-Key=", "access_token = ", "auth-token:", "client_secret", "Bearer ", "https://me:pass1word@host", "a.b@c.de",
    "pa\u017fsword: ", "+49 30 1234567", "call 5551234567", "DE89370400440532013000", "10.1.2.3", "fe80::1:2:3",
    "QQ123456C", "AB 12 34 56 C", "4111 1111 1111 1111", "078-05-1120", "12345678Z", "X1234567L", "RSSMRA85T10A562S",
    "11010519491231002X", "1 85 05 78 006 084 36", "2 1 0 9 8 7 6", "key", "token", "\u212aey", "rk_test_",
    "AKIAIOSFODNN7EXAMPLE", "sk-proj-aB3dE6gH9jK2mN5pQ8sT", "gh", "k_", "t-",
])  # fmt: skip
PIECES = st.one_of(
    HINTS,
    st.text(max_size=20),
    st.text("0123456789 .-()/:ABCDEFabcdef", max_size=24),
    st.text("aB3xY9zQ_-", max_size=44),
)
TEXTS = st.lists(PIECES, max_size=8).map("".join)


def holds(text: str) -> bool:
    return bool(find_secrets(text) or find_pii(text))


@given(TEXTS)
@example("+1 (212) 555-0123")
@example("password is hunter2A!")
def test_what_is_found_in_a_text_is_never_ruled_out(text: str) -> None:
    assert may_hold_findings(text) or not holds(text)


@given(TEXTS, TEXTS, TEXTS)
def test_what_is_found_in_a_part_is_never_ruled_out_for_the_whole(before: str, text: str, behind: str) -> None:
    assert may_hold_findings("\n".join((before, text, behind))) or not holds(text)


@given(st.recursive(TEXTS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3)))
def test_json_hides_nothing_but_behind_two_escapes(value: object) -> None:
    encoded = json.dumps(value, ensure_ascii=False)
    if "\\u" in encoded or "\\/" in encoded or may_hold_findings(encoded):
        return
    assert not any(holds(text) for text in leaves(value))


def leaves(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        pairs = [f"{key}: {one}" for key, one in value.items() if isinstance(one, str)]
        return pairs + [text for key, one in value.items() for text in [key, *leaves(one)]]
    return [text for one in value for text in leaves(one)] if isinstance(value, list) else []


@pytest.mark.parametrize(
    "text", ["", "Write assert.", "30 days, 40.5 km, 2 pm", "what is an access modifier?", "the api"]
)
def test_plain_text_is_ruled_out(text: str) -> None:
    assert not may_hold_findings(text)


def test_most_of_real_text_is_ruled_out() -> None:
    pages = list(topics.topics.values())
    pieces = [page[at : at + 1000] for page in pages for at in range(0, len(page), 1000)]
    assert all(may_hold_findings(piece) for piece in pieces if holds(piece))
    assert sum(map(may_hold_findings, pieces)) < len(pieces) / 4
