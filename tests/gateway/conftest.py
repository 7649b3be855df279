"""A gateway worker in a thread of its own, over real sockets, in front of scripted upstreams."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tidemill.gateway import Limits, Worker, WorkerOptions, bind
from tidemill.gateway.testing import ScriptedUpstream
from tidemill.kernel import ApiKey, Arm, ReleaseRoute, Route, RoutingSnapshot, Target, key_digest
from tidemill.kernel.routing_policy import Retries, RoutePolicy
from tidemill.telemetry.reading import Finished, read_segment
from tidemill.telemetry.records import Content, Intent, Score, Span

KEY = "tm_test_key"
OTHER_KEY = "tm_other_key"
RELEASE_1 = "sha256:" + "1" * 64
RELEASE_2 = "sha256:" + "2" * 64
RELEASE_3 = "sha256:" + "3" * 64
#: ``TIDEMILL_TEST_LOOP=asyncio`` runs all workers of these tests as a machine without uvloop does.
LOOP: Callable[[], asyncio.AbstractEventLoop] = (
    asyncio.new_event_loop if os.environ.get("TIDEMILL_TEST_LOOP") == "asyncio" else uvloop.new_event_loop
)
ONCE = RoutePolicy(retries=Retries(max_attempts=1))
"""A policy that never tries again."""


def target(
    url: str, release: str = RELEASE_1, *, arm: Arm = Arm.CONTROL, weight: float = 1.0, **more: Any
) -> ReleaseRoute:
    """A release with one target."""
    return ReleaseRoute(release, "release/desk@1", (Target(url, **more),), arm, weight)


def snapshot_of(*routes: Route, epoch: int = 1, **more: Any) -> RoutingSnapshot:
    return RoutingSnapshot(
        project="demo",
        epoch=epoch,
        issued_at=more.pop("issued_at", time.time()),
        lifetime_s=more.pop("lifetime_s", 600.0),
        routes=routes,
        keys=(ApiKey(key_digest(KEY), "test", "default"), ApiKey(key_digest(OTHER_KEY), "other", "acme")),
        **more,
    )


def write_snapshot(path: Path, snapshot: RoutingSnapshot) -> None:
    draft = path.with_suffix(".tmp")
    draft.write_bytes(snapshot.encode())
    draft.replace(path)


@dataclasses.dataclass
class Records:
    intents: list[Intent]
    spans: list[Span]
    contents: dict[str, Content]
    scores: list[Score]

    def span(self) -> Span:
        """The only request's span."""
        (one,) = self.requests()
        return one

    def requests(self) -> list[Span]:
        """The spans of requests, without those of attempts that came to nothing."""
        return [span for span in self.spans if span.operation != "attempt"]

    def attempts(self) -> list[Span]:
        """The spans of attempts that came to nothing."""
        return [span for span in self.spans if span.operation == "attempt"]


def read_records(segments: Path) -> Records:
    found = Records([], [], {}, [])
    for path in sorted(segments.glob("*/*.seg")):
        for record, _ in read_segment(path, 0):
            if isinstance(record, Intent):
                found.intents.append(record)
            elif isinstance(record, Score):
                found.scores.append(record)
            elif isinstance(record, Finished):
                found.spans.append(record.span)
                if record.content is not None:
                    found.contents[record.span.span_id] = record.content
    return found


class RunningGateway:
    """A worker that runs in a thread until closed.

    Args:
        folder: for its files.
        limits: its bounds.
        loop: runs it.
        more: options of the worker.
    """

    def __init__(
        self, folder: Path, limits: Limits, *, loop: asyncio.AbstractEventLoop | None = None, **more: Any
    ) -> None:
        self.folder = folder
        self.snapshot_path = folder / "routing.json"
        self.segments = folder / "segments"
        self.options = WorkerOptions(
            project="demo",
            tenant="default",
            snapshot_path=self.snapshot_path,
            segments_folder=self.segments,
            state_folder=folder / "gateway",
            limits=limits,
            **more,
        )
        listener = bind("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        self.worker = Worker(self.options)
        self._loop = loop or LOOP()
        self._stop = asyncio.Event()
        ready = threading.Event()

        async def main() -> None:
            await self.worker.start(listener)
            ready.set()
            await self._stop.wait()
            await self.worker.stop(drain_timeout_s=1.0)

        def run() -> None:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(main())

        self._thread = threading.Thread(target=run)
        self._thread.start()
        assert ready.wait(30)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def route(self, snapshot: RoutingSnapshot) -> None:
        """Replace the snapshot and wait until the worker holds it."""
        write_snapshot(self.snapshot_path, snapshot)
        self.wait(lambda: self.gateway.snapshots.table is not None and self.epoch == snapshot.epoch)

    @property
    def gateway(self) -> Any:
        return self.worker.gateway

    @property
    def epoch(self) -> int:
        return int(self.gateway.snapshots.table.snapshot.epoch)

    def wait(self, condition: Callable[[], bool], seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.01)

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(30)
            assert not self._thread.is_alive()

    def records(self) -> Records:
        """Stop the worker and read what it wrote."""
        self.close()
        return read_records(self.segments)


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as server:
        yield server


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., RunningGateway]]:
    running: list[RunningGateway] = []

    def begin(*routes: Route, limits: Limits | None = None, **more: Any) -> RunningGateway:
        folder = tmp_path / f"g{len(running)}"
        folder.mkdir()
        gateway = RunningGateway(folder, limits or Limits(), **more)
        running.append(gateway)
        if routes:
            gateway.route(snapshot_of(*routes))
        return gateway

    yield begin
    for gateway in running:
        gateway.close()


@pytest.fixture
def gateway(start: Callable[..., RunningGateway], upstream: ScriptedUpstream) -> RunningGateway:
    """A worker with one endpoint, ``desk``, in front of ``upstream``."""
    return start(Route(endpoint="desk", tenant="default", releases=(target(upstream.url),)))


def canary_route(control: ScriptedUpstream, canary_url: str, **more: Any) -> Route:
    return Route(
        endpoint="desk",
        tenant="default",
        releases=(
            target(control.url, weight=more.pop("control_weight", 0.0)),
            replace(target(canary_url, RELEASE_2), arm=Arm.CANARY, weight=more.pop("canary_weight", 1.0)),
        ),
        rollout="rol_1",
        salt=more.pop("salt", "s1"),
        **more,
    )
