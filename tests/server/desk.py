"""A desk: a project whose releases are bare models at a provider, so that no process is needed to serve them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tidemill.kernel import ArtifactKind, Decoding, ReleaseParts, RoutingSnapshot, Verdict
from tidemill.ledger import ArtifactVersion
from tidemill.loop.project import Project, open_project
from tidemill.loop.routing import shadow_tag
from tidemill.releases import Rollout, RolloutEvent, RolloutPolicy, apply_event, create_release, open_rollout
from tidemill.server.control import ControlPlane
from tidemill.server.supervisor import free_port
from tidemill.telemetry import Content, Reference, Score, SegmentWriter, Span, open_span_store

POLICY = RolloutPolicy(
    margins={"success": 0.5, "ok": 0.5},
    alpha_promote=0.1,
    alpha_rollback=0.1,
    min_sessions=5,
    max_sessions=80,
    label_timeout_s=600.0,
    shadow_requests=0,
    shadow_margin=0.5,
)
BEGUN_NS = time.time_ns()


def write_desk(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "project": "desk",
        "server": {"port": free_port()},
        "gateway": {"port": free_port()},
        "runtime": {"enabled": False},
    }
    (folder / "tidemill.yaml").write_text(yaml.safe_dump(document))
    return folder


def release(project: Project, number: int, *, url: str = "http://127.0.0.1:9/v1") -> ArtifactVersion:
    """A bare model at a provider, told apart by its sampling."""
    source = {"type": "provider", "url": url, "model": "scripted"}
    entry = {"name": "m", "source": source, "input_usd_per_mtok": 1.0, "output_usd_per_mtok": 2.0}
    model = project.ledger.artifacts.publish(ArtifactKind.MODEL, "scripted", {"entry": entry})
    return create_release(
        project.ledger, "desk", ReleaseParts(model=model.digest, decoding=Decoding(max_tokens=number))
    )


def first_live(project: Project) -> ArtifactVersion:
    one = release(project, 1)
    open_rollout(project.ledger, "desk", one, None, POLICY, "me")
    return one


def gated(project: Project, candidate: ArtifactVersion, policy: RolloutPolicy = POLICY) -> Rollout:
    """An open rollout past its gate."""
    rollout = open_rollout(project.ledger, "desk", candidate, release(project, 1), policy, "me")
    return apply_event(project.ledger, rollout, RolloutEvent.GATE_PASSED, Verdict("PASS", "a test"), "me")


@dataclass
class Desk:
    """A control plane over a project, looked at by hand, and the gateway's side of telemetry."""

    project: Project
    control: ControlPlane
    writer: SegmentWriter
    asked: int = field(default=0)

    def look(self) -> None:
        self.control.drain()
        self.control.decide()

    def snapshot(self) -> RoutingSnapshot:
        return RoutingSnapshot.decode(self.project.places.routing.read_bytes())

    def session(
        self, rollout: Rollout | None, of: ArtifactVersion, *, arm: str, value: float | None = 1.0, status: str = "ok"
    ) -> str:
        """One session of one request, as a gateway writes it; returns the trace id."""
        self.asked += 1
        tag = rollout.rollout_id if rollout is not None else None
        span = self._span(self.asked, of, arm=arm, rollout=tag, status=status)
        self.writer.finished(span, Content('[{"role": "user", "content": "Why?"}]', "Because."))
        if value is not None:
            self.writer.score(_feedback(span, value))
        return span.trace_id

    def shadowed(self, rollout: Rollout, live: ArtifactVersion, *, answer: str, shadow_answer: str) -> None:
        """A request answered by production, and its copy by the candidate."""
        self.asked += 1
        tag = shadow_tag(rollout.rollout_id)
        for of, arm, text in ((live, "control", answer), (rollout.candidate, "shadow", shadow_answer)):
            self.writer.finished(self._span(self.asked, of, arm=arm, rollout=tag), Content("[]", text))

    def _span(self, number: int, of: ArtifactVersion, *, arm: str, rollout: str | None, status: str = "ok") -> Span:
        trace_id = hashlib.sha256(f"trace {number}".encode()).hexdigest()[:32]
        # The project's own age: a suite may run for longer than sessions wait for feedback.
        started_ns = self.project.settings.folder.joinpath("tidemill.yaml").stat().st_mtime_ns + number * 1_000_000
        return Span(
            trace_id=trace_id,
            span_id=hashlib.sha256(f"span {number} {arm}".encode()).hexdigest()[:16],
            project="desk",
            tenant="default",
            name="chat desk",
            operation="chat",
            started_at_ns=started_ns,
            ended_at_ns=started_ns + 500_000,
            status=status,  # type: ignore[arg-type]  # tests write one of them
            endpoint="desk",
            release=of.digest,
            assigned_release=of.digest,
            arm=arm,
            session_id=f"session-{number}",
            rollout=rollout,
            references=(Reference("artifact", of.digest, "release"),),
        )


def _feedback(span: Span, value: float) -> Score:
    return Score(
        score_id=f"score-{span.trace_id}",
        trace_id=span.trace_id,
        name="feedback",
        source="user",
        at_ns=span.ended_at_ns,
        project="desk",
        tenant="default",
        value=value,
    )


@contextmanager
def open_desk(folder: Path) -> Iterator[Desk]:
    """Open it as a process does that starts. Closing and opening again is a restart."""
    with open_project(folder) as project:
        control = ControlPlane(project, open_span_store(project.places.spans, project.settings.scope))
        writer = SegmentWriter(project.places.segments / "gateway-0", project="desk", tenant="default")
        try:
            yield Desk(project, control, writer)
        finally:
            writer.close()
            control.stop()
