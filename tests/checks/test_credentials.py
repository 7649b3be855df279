"""Credentials are found; what only names one is not. Every key here is made up."""

from __future__ import annotations

import time

import pytest

from tidemill.checks import check_secrets, find_secrets, mask
from tidemill.checks.credentials import entropy_bits

RANDOM = "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8s9T0"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"use sk-proj-{RANDOM} here", "use <api_key> here"),
        (f"tm-{RANDOM[:32]}", "<api_key>"),
        (f"ghp_{RANDOM[:36]}", "<api_key>"),
        ("AKIA" + "QWERTYUIOPASDF23", "<api_key>"),
        (f"xoxb-{RANDOM[:24]}", "<api_key>"),
        (f"hf_{RANDOM[:34]}", "<api_key>"),
        (f"AIza{RANDOM[:35]}", "<api_key>"),
        (f"eyJ{RANDOM[:20]}.eyJ{RANDOM[:20]}.{RANDOM}", "<jwt>"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIBOw\n-----END RSA PRIVATE KEY-----\nend", "<private_key>\nend"),
        ("postgres://user:s3cret@db/app", "postgres://user:<password>@db/app"),
        ("password: hunter2x!", "password: <password>"),
        ('{"client_secret": "Zq81-xxAB"}', '{"client_secret": "<password>"}'),
        (f"Authorization: Bearer {RANDOM}", "Authorization: Bearer <api_key>"),
    ],
)
def test_credentials_are_found(text: str, masked: str) -> None:
    assert mask(text, find_secrets(text)) == masked
    verdict = check_secrets(text)
    assert verdict.value is False
    assert RANDOM[:20] not in str(verdict.as_json())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "the password is important",
        "password: ********",
        "api_key: env:OPENAI_API_KEY",
        "api_key = os.getenv(name)",
        "sk-your-key-goes-here-please",
        "bearer of bad news and tokens",
        "http://example.org:8080/path@x",
        "-----BEGIN PUBLIC KEY-----",
        "eyJ is how a token starts",
        "risk-averse-and-cautious-behaviour-in-long-words",
    ],
)
def test_words_about_credentials_are_left_alone(text: str) -> None:
    assert find_secrets(text) == ()
    assert check_secrets(text).value is True


def test_entropy_in_exact_cases() -> None:
    assert entropy_bits("") == 0
    assert entropy_bits("aaaa") == 0
    assert entropy_bits("abab") == 1
    assert entropy_bits("abcdefgh") == 3


@pytest.mark.parametrize(
    "evil",
    [
        "password " * 12_000, "-----BEGIN PRIVATE KEY-----" * 3000, "eyJ" * 30_000, "http://a:" * 10_000,
        "passwordis" * 10_000, "password   is   " * 6000, "sk-" * 30_000, "bearer " * 15_000, "eyJaaaaaaaa." * 8000,
    ],
)  # fmt: skip
def test_no_text_takes_long(evil: str) -> None:
    start = time.process_time()
    find_secrets(evil)
    assert time.process_time() - start < 1.0
