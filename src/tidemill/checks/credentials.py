"""Credentials in text: keys and tokens by their issuers' prefixes, private key blocks, passwords beside their names."""

from __future__ import annotations

import math
import re
from typing import Final

from tidemill.checks.findings import Finding, merged, verdict_of
from tidemill.kernel import Verdict

_KEYS: Final = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"sk-[A-Za-z0-9_-]{20,200}"  # OpenAI, Anthropic and those who copied them
    r"|tm-[A-Za-z0-9_-]{32,64}"  # our own
    r"|(?:AKIA|ASIA)[A-Z2-7]{16}"
    r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255}"
    r"|glpat-[A-Za-z0-9_-]{20,64}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,250}|xapp-[A-Za-z0-9-]{10,250}"
    r"|AIza[A-Za-z0-9_-]{35}"
    r"|hf_[A-Za-z0-9]{30,64}"
    r"|[sr]k_(?:live|test)_[A-Za-z0-9]{16,250}"
    r"|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,250}"
    r"|SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}"
    r"|gsk_[A-Za-z0-9]{40,64}|r8_[A-Za-z0-9]{37}|nvapi-[A-Za-z0-9_-]{40,90}"
    r")(?![A-Za-z0-9])"
)
_KEY_HINTS: Final = (
    *("sk-", "tm-", "AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "xox", "xapp-"),
    *("AIza", "hf_", "sk_", "rk_", "npm_", "pypi-", "SG.", "gsk_", "r8_", "nvapi-"),
)
"""A key holds one of these; looking for them first is ten times as fast as the pattern."""
_NAMES: Final = ("pass", "secret", "api", "access", "token", "bearer")
_PRIVATE_KEY: Final = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    r"(?:[^-]{0,20000}-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----|[A-Za-z0-9+/=\s\\]{0,20000})"
)
_JWT: Final = re.compile(r"(?<![\w-])eyJ[\w-]{8,4000}\.eyJ[\w-]{8,16000}\.[\w-]{0,4000}", re.ASCII)
_NAMED: Final = re.compile(
    r"(?:pass(?:word|wd|phrase)|secret(?:[_-]?key)?|api[_-]?key|access[_-]?(?:key|token)|auth[_-]?token|client[_-]?secret)"
    r"[\"']?\s{0,3}(?:[:=]|=>|\bis\b)\s{0,3}[\"']?([^\s\"'<>,;]{6,200})",
    re.I,
)
_BEARER: Final = re.compile(r"\bBearer\s{1,3}([A-Za-z0-9._~+/=-]{16,4000})", re.I)
_URL_PASSWORD: Final = re.compile(r"[a-z][a-z0-9+.-]{1,15}://[^\s:/@<>]{0,64}:([^\s:/@<>]{3,128})@", re.I)


def find_secrets(text: str) -> tuple[Finding, ...]:
    """Find credentials: ``api_key``, ``jwt``, ``private_key``, ``password``.

    Returns:
        Findings in order, without overlaps.
    """
    found: list[Finding] = []
    if any(hint in text for hint in _KEY_HINTS):
        found += [Finding(hit.start(), hit.end(), "api_key") for hit in _KEYS.finditer(text) if _random(hit.group())]
    if "PRIVATE KEY" in text:
        found += [Finding(hit.start(), hit.end(), "private_key") for hit in _PRIVATE_KEY.finditer(text)]
    if "eyJ" in text:
        found += [Finding(hit.start(), hit.end(), "jwt") for hit in _JWT.finditer(text)]
    if "://" in text:
        found += [Finding(hit.start(1), hit.end(1), "password") for hit in _URL_PASSWORD.finditer(text)]
    folded = text.lower()
    if any(name in folded for name in _NAMES):
        found += _named(text)
    return merged(found)


def _named(text: str) -> list[Finding]:
    """Values that stand behind the name of a secret."""
    found: list[Finding] = []
    for pattern, kind in ((_NAMED, "password"), (_BEARER, "api_key")):
        found += [Finding(hit.start(1), hit.end(1), kind) for hit in pattern.finditer(text) if _secretive(hit.group(1))]
    return found


def check_secrets(text: str) -> Verdict:
    """Judge whether a text is free of credentials; ``False`` when it is not, with kinds and places as evidence."""
    return verdict_of(find_secrets(text), "credentials")


def entropy_bits(text: str) -> float:
    """Shannon's entropy of the characters, in bits per character; 0 for the empty text."""
    size = len(text)
    return -sum(count / size * math.log2(count / size) for count in (text.count(char) for char in set(text)))


def _random(key: str) -> bool:
    """Whether a key-shaped word is drawn at random: 'sk-your-key-goes-here-please' is not."""
    body = key[4:]
    return entropy_bits(body) >= 3.0 and (any(char.isdigit() for char in body) or not body.islower())


def _secretive(value: str) -> bool:
    """Whether what follows 'password:' is one, not the next word of a sentence or a reference to where it is kept."""
    if value.startswith(("env:", "file:", "$", "{", "(", "os.")) or len(set(value)) < 4:
        return False
    classes = sum(any(test(char) for char in value) for test in (str.islower, str.isupper, str.isdigit))
    return classes + any(not char.isalnum() for char in value[:-1]) >= 2
