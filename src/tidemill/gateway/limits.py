"""How much of everything the gateway takes from a client or an upstream, and how long it waits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds in bytes, counts and seconds; the defaults suit one host with prompts up to some megabytes.

    Args:
        url_bytes: longest request target; longer ones get 414.
        header_bytes: request line and headers together; more gets 431.
        header_count: headers of one request; more gets 431.
        body_bytes: request body; more gets 413.
        response_header_bytes: head of an upstream's answer; more is an upstream error.
        capture_bytes: how much of an answer is kept for the trace; the rest is passed on uncaptured.
        header_timeout_s: from a request's first byte to the end of its headers (slowloris); then 408.
        body_timeout_s: from the end of the headers to the end of the body; then 408.
        idle_timeout_s: a kept-alive client connection without a request is closed after so long.
        write_timeout_s: a client that reads nothing for so long is dropped.
        client_connections: client connections of one worker; further ones get 503.
        connect_timeout_s: to an upstream: name, connection and TLS handshake together. This and the next two are for
            calls that no endpoint makes; an endpoint's calls wait as long as its ``timeouts`` say.
        first_byte_timeout_s: from the sent request to the end of the head of the upstream's answer.
        chunk_timeout_s: between two pieces of an upstream's answer.
        upstream_idle_s: kept-alive upstream connections are closed after so long without use (servers such as uvicorn
            close theirs after 5 s).
        upstream_idle_connections: kept-alive connections an upstream address may have.
        drain_timeout_s: how long SIGTERM waits for requests in flight.
        drain_idle_s: so long after SIGTERM idle connections still take a request, whose answer announces their end: a
            request that was on its way when they were closed would be lost.
        shadow_queue: copies that may wait for the shadow target; further ones are dropped and counted.
        shadow_concurrency: copies in flight at once.
    """

    url_bytes: int = 4096
    header_bytes: int = 32 * 1024
    header_count: int = 100
    body_bytes: int = 32 * 1024 * 1024
    response_header_bytes: int = 64 * 1024
    capture_bytes: int = 512 * 1024
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    idle_timeout_s: float = 75.0
    write_timeout_s: float = 60.0
    connect_timeout_s: float = 5.0
    first_byte_timeout_s: float = 300.0
    chunk_timeout_s: float = 120.0
    upstream_idle_s: float = 4.0
    client_connections: int = 8192
    upstream_idle_connections: int = 256
    drain_timeout_s: float = 20.0
    drain_idle_s: float = 0.5
    shadow_queue: int = 64
    shadow_concurrency: int = 2
