"""Runs the whole table at once: one worker, an endpoint for each row, all rows side by side."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import openai

from tests.gateway.conftest import KEY, ONCE, RELEASE_1, Records, RunningGateway, snapshot_of
from tests.gateway.faults.rows import ROWS, Peer, Row
from tests.gateway.wire import Wire, post
from tidemill.gateway import Limits
from tidemill.gateway.testing import Fault, ScriptedUpstream
from tidemill.kernel import ReleaseRoute, Route, Target
from tidemill.kernel.routing_policy import Breaker, Retries, RoutePolicy, Timeouts
from tidemill.telemetry.records import Span

TIMES = Timeouts(connect_s=20.0, first_token_s=3.0, between_chunks_s=3.0, total_s=120.0)
NO_BREAKER = Breaker(consecutive=1000, min_requests=1000)
ALONE = RoutePolicy(retries=ONCE.retries, timeouts=TIMES, breaker=NO_BREAKER)
FALLBACK = RoutePolicy(retries=Retries(max_attempts=2), timeouts=TIMES, breaker=NO_BREAKER)


@dataclass(frozen=True)
class Seen:
    """What a client saw.

    Args:
        status, body: as they came on the socket.
        error: what the official client raised.
        text: what the official client read before that.
    """

    status: int
    body: bytes
    error: Exception | None
    text: str


@dataclass(frozen=True)
class Outcome:
    """All that happened.

    Args:
        alone: by row; fallback: with a second target.
        in_flight: requests, and calls of targets, that were left over.
        connections: to upstreams that were left over.
    """

    alone: dict[str, Seen]
    fallback: dict[str, Seen]
    records: Records
    in_flight: int
    connections: int

    def spans(self, row: Row, *, fallback: bool) -> list[Span]:
        """The spans of a row's requests: from the socket, and from the client."""
        endpoint = _endpoint(row, fallback=fallback)
        return [span for span in self.records.requests() if span.endpoint == endpoint]

    def lost(self, span: Span) -> list[Span]:
        """The attempts of a request that came to nothing."""
        return [one for one in self.records.attempts() if one.parent_span_id == span.span_id]


def _endpoint(row: Row, *, fallback: bool) -> str:
    return row.name + ("-fallback" if fallback else "")


@contextmanager
def _peers(certificate: tuple[Path, Path]) -> Iterator[dict[Peer, str]]:
    """Peers that refuse, or speak no trusted TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)

    def shake_hands(connection: socket.socket) -> None:
        context.wrap_socket(connection, server_side=True).close()

    def answer_plainly(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")

    with socket.socket() as closed, _listener(shake_hands) as untrusted, _listener(answer_plainly) as plain:
        closed.bind(("127.0.0.1", 0))  # bound, but nobody listens: connecting is refused for as long as this is open
        yield {
            Peer.DEAD: f"http://127.0.0.1:{closed.getsockname()[1]}/v1",
            Peer.NO_TLS: f"https://127.0.0.1:{plain}/v1",
            Peer.UNTRUSTED: f"https://127.0.0.1:{untrusted}/v1",
        }


@contextmanager
def _listener(meet: Callable[[socket.socket], None]) -> Iterator[int]:
    """The port of a server that treats one connection after the other."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener, ThreadPoolExecutor(1) as pool:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, suppress(OSError):
                    meet(connection)

        pool.submit(serve)
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)


def run(folder: Path, certificate: tuple[Path, Path]) -> Outcome:
    """Ask every row, alone and with a fallback, on the socket and with the official client."""
    with ScriptedUpstream() as upstream, ScriptedUpstream() as good, _peers(certificate) as peers:
        upstream.by_model = {row.name: row.fault for row in ROWS if isinstance(row.fault, Fault)}
        routes = []
        for row in ROWS:
            url = peers[row.fault] if isinstance(row.fault, Peer) else upstream.url
            bad = Target(url, row.name, "bad")
            for targets, policy in (((bad,), ALONE), ((bad, Target(good.url, None, "good")), FALLBACK)):
                release = ReleaseRoute(RELEASE_1, "release/desk@1", targets)
                endpoint = _endpoint(row, fallback=len(targets) > 1)
                routes.append(Route(endpoint=endpoint, tenant="default", releases=(release,), policy=policy))
        gateway = RunningGateway(folder, Limits(upstream_idle_s=0.2))
        try:
            gateway.route(snapshot_of(*routes))
            with (
                ThreadPoolExecutor(16) as pool,
                openai.OpenAI(base_url=gateway.url, api_key=KEY, max_retries=0, timeout=120) as client,
            ):
                asked = [(row, fallback) for row in ROWS for fallback in (False, True)]
                seen = list(
                    pool.map(lambda one: _ask(gateway.port, client, one[0], _endpoint(one[0], fallback=one[1])), asked)
                )
            gateway.wait(lambda: not gateway.gateway.live and not gateway.gateway.pool.connections)
            lanes = [
                lane
                for junction in gateway.gateway.snapshots.table.junctions.values()
                for branch in junction.branches
                for lane in branch.lanes
            ]
            in_flight = gateway.gateway.metrics.in_flight + sum(lane.health.in_flight for lane in lanes)
            connections = len(gateway.gateway.pool.connections)
        finally:
            gateway.close()
        found = {fallback: {} for fallback in (False, True)}  # type: dict[bool, dict[str, Seen]]
        for (row, fallback), one in zip(asked, seen, strict=True):
            found[fallback][row.name] = one
        return Outcome(found[False], found[True], gateway.records(), in_flight, connections)


def _ask(port: int, client: openai.OpenAI, row: Row, endpoint: str) -> Seen:
    with Wire(port) as wire:
        wire.socket.settimeout(120)
        wire.send(post({"model": endpoint, "messages": [], "stream": row.stream}))
        status, body = wire.answer()
        wire.send(post({"model": "nobody", "messages": []}))  # the connection is in step
        assert wire.answer()[0] == 404
    text = ""
    try:
        if row.stream:
            for event in client.chat.completions.create(model=endpoint, messages=[], stream=True):
                text += event.choices[0].delta.content or "" if event.choices else ""
        else:
            text = client.chat.completions.create(model=endpoint, messages=[]).choices[0].message.content or ""
    except Exception as error:
        return Seen(status, body, error, text)
    return Seen(status, body, None, text)


def done(body: bytes) -> bool:
    """Whether a stream says that it is complete."""
    return re.search(rb"data: ?\[DONE\]", body) is not None
