"""AWS Signature Version 4, as far as a request without a query string needs it.

Source: "Create a signed AWS API request", AWS Identity and Access Management user guide. Four steps: the canonical
request, its hash in the string to sign, a key derived from the secret by day, region and service, and the signature.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import gmtime, strftime
from typing import Final
from urllib.parse import quote

_ALGORITHM: Final = "AWS4-HMAC-SHA256"
_UNRESERVED: Final = "-._~/"  # and letters and digits, which `quote` always leaves as they are


@dataclass(frozen=True, slots=True)
class SigningIdentity:
    """Who signs, and for which service where.

    Args:
        access_key_id: the public half of the credentials.
        secret_access_key: the secret half.
        session_token: given with temporary credentials.
        region: e.g. ``eu-central-1``.
        service: the name to sign for, e.g. ``bedrock``.
    """

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(repr=False)
    region: str
    service: str


def signed_headers(
    method: str,
    path: str,
    headers: Sequence[tuple[str, str]],
    body: bytes,
    identity: SigningIdentity,
    *,
    now_s: float,
) -> tuple[tuple[str, str], ...]:
    """Sign a request.

    Args:
        method: ``POST``.
        path: as it is sent, percent-encoded and without a query string. It is encoded once more for the signature, as
            every service but S3 expects.
        headers: what to sign, with ``host``; each of them must be sent as given here.
        body: the bytes that are sent.
        identity: credentials and scope.
        now_s: seconds since the epoch; services refuse a request that is more than five minutes off.

    Returns:
        The headers to send besides ``headers``: the date, the session token where there is one, and ``authorization``.
    """
    moment = strftime("%Y%m%dT%H%M%SZ", gmtime(now_s))
    added = [("x-amz-date", moment)]
    if identity.session_token:
        added.append(("x-amz-security-token", identity.session_token))
    names, lines = _canonical_headers([*headers, *added])
    canonical = "\n".join(
        [method, quote(path, safe=_UNRESERVED), "", *lines, "", names, hashlib.sha256(body).hexdigest()]
    )
    scope = f"{moment[:8]}/{identity.region}/{identity.service}/aws4_request"
    to_sign = "\n".join([_ALGORITHM, moment, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    signature = _mac(_signing_key(identity, moment[:8]), to_sign).hex()
    authorization = (
        f"{_ALGORITHM} Credential={identity.access_key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return (*added, ("authorization", authorization))


def _canonical_headers(headers: Sequence[tuple[str, str]]) -> tuple[str, list[str]]:
    values: dict[str, list[str]] = {}
    for name, value in headers:
        values.setdefault(name.lower(), []).append(" ".join(value.split()))
    names = sorted(values)
    return ";".join(names), [f"{name}:{','.join(values[name])}" for name in names]


def _signing_key(identity: SigningIdentity, day: str) -> bytes:
    key = b"AWS4" + identity.secret_access_key.encode()
    for part in (day, identity.region, identity.service, "aws4_request"):
        key = _mac(key, part)
    return key


def _mac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
