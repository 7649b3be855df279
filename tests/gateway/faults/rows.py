"""The fault conformance table: what an upstream does, what the client sees, what the trace says.

Each row is asked twice (bytes on a socket, and the official client), alone and with a second target that is well.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import openai

from tidemill.gateway.testing import Fault


class Peer(StrEnum):
    """Peers that are not the scripted upstream."""

    DEAD = "dead"  # nobody listens
    NO_TLS = "no_tls"  # a plain server behind an https URL
    UNTRUSTED = "untrusted"  # a certificate nobody has signed


@dataclass(frozen=True)
class Row:
    """One fault.

    Args:
        fault: of the upstream.
        stream: whether a stream is asked for.
        status: what the client gets when there is no other target; 200 means that the stream had begun.
        error: the span's ``error_type``; ``None`` is a good answer.
        raises: the official client's exception.
        told: bytes of the error that the client is told.
    """

    fault: Fault | Peer
    stream: bool
    status: int
    error: str | None
    raises: type[Exception] | None = openai.InternalServerError
    told: bytes = b"upstream_failed"

    @property
    def name(self) -> str:
        """The row's name, and its endpoint's."""
        return f"{self.fault.value.replace('_', '-')}-{'stream' if self.stream else 'whole'}"

    @property
    def begun(self) -> bool:
        """Whether the client has seen content before the fault."""
        return self.status == 200 and self.error is not None


def _both(fault: Fault | Peer, status: int, error: str | None, **more: object) -> list[Row]:
    return [Row(fault, stream, status, error, **more) for stream in (False, True)]  # type: ignore[arg-type]  # by name


_LATE = {"told": b"upstream_timeout"}
_SAID = {"told": b"scripted"}

BEFORE_CONTENT = [
    *_both(Peer.DEAD, 502, "upstream_connect"),
    *_both(Peer.NO_TLS, 502, "upstream_connect"),
    *_both(Peer.UNTRUSTED, 502, "upstream_connect"),
    *_both(Fault.RESET, 502, "upstream_lost"),
    *_both(Fault.STALL, 504, "upstream_timeout", **_LATE),
    *_both(Fault.DRIP_HEADER, 504, "upstream_timeout", **_LATE),
    *_both(Fault.HUGE_HEADER, 502, "upstream_malformed"),
    *_both(Fault.RATE_LIMIT, 429, "rate_limit_exceeded", raises=openai.RateLimitError, **_SAID),
    *_both(Fault.SERVER_ERROR, 500, "overloaded", **_SAID),
    *_both(Fault.NOT_JSON, 502, "upstream_malformed"),
    *_both(Fault.ERROR_BODY, 503, "overloaded", **_SAID),
    *_both(Fault.WRONG_LENGTH, 502, "upstream_lost"),
    Row(Fault.EMPTY_STREAM, True, 502, "upstream_malformed"),
    Row(Fault.CUT_OPENING, True, 502, "upstream_lost"),
    Row(Fault.STALL_OPENING, True, 504, "upstream_timeout", told=b"upstream_timeout"),
    Row(Fault.MALFORMED_OPENING, True, 502, "upstream_malformed"),
    Row(Fault.ERROR_OPENING, True, 503, "overloaded", told=b"scripted"),
    Row(Fault.RATE_LIMIT_OPENING, True, 429, "rate_limit_exceeded", openai.RateLimitError, b"scripted"),
]

OWN_MISTAKE = _both(Fault.BAD_REQUEST, 400, "context_length_exceeded", raises=openai.BadRequestError, **_SAID)

AFTER_CONTENT = [
    Row(fault, True, 200, error, openai.APIError, told)
    for fault, error, told in (
        (Fault.CUT, "upstream_lost", b"upstream_broke_off"),
        (Fault.STALL_STREAM, "upstream_timeout", b"upstream_broke_off"),
        (Fault.BAD_FRAMING, "upstream_malformed", b"upstream_broke_off"),
        (Fault.MALFORMED_CHUNK, "upstream_malformed", b"upstream_broke_off"),
        (Fault.NO_DONE, "stream_without_end", b"upstream_broke_off"),
        (Fault.ERROR_EVENT, "overloaded", b"scripted"),
        (Fault.RATE_LIMIT_EVENT, "rate_limit_exceeded", b"scripted"),
    )
]

HARMLESS = [
    *_both(Fault.DROP_IDLE, 200, None, raises=None),
    Row(Fault.SLOW_HEADER, False, 200, None, None),
]

ROWS = [*BEFORE_CONTENT, *OWN_MISTAKE, *AFTER_CONTENT, *HARMLESS]
