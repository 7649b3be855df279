"""Runs a flow: every step once per key, restartable after a kill at any moment.

The state of a flow is in the ledger alone: a step is done when a run with its key ended ``ok`` and its outputs are
there. So resuming is starting again, and a second flow that shares steps shares their results.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from tidemill.kernel import Digest, Fault, NotFound, RunId, UserError
from tidemill.ledger import RunStatus
from tidemill.pipelines.executors import Executor, InlineExecutor, StepOutcome
from tidemill.pipelines.flow import Flow, Step
from tidemill.pipelines.keys import code_digest, environment_digest, step_key

if TYPE_CHECKING:
    from tidemill.ledger import Ledger

_POLL_S = 0.5


class StepState(StrEnum):
    """What is reported of a step."""

    CACHED = "cached"
    STARTED = "started"
    PROGRESS = "progress"
    OK = "ok"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvent:
    """One thing that happened to a step, for progress bars and logs."""

    step: str
    state: StepState
    share: float = 0.0
    seconds: float = 0.0
    run_id: RunId | None = None


@dataclass(frozen=True, slots=True)
class FlowResult:
    """What a flow made: outputs by step, and which steps were reused or run."""

    outputs: Mapping[str, Mapping[str, Digest]]
    cached: tuple[str, ...]
    ran: tuple[str, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)


class StepFailed(UserError):
    """A step ended with an error that its caller can mend; what finished before it stays finished."""


@dataclass(slots=True)
class _Running:
    step: Step
    run_id: RunId
    started_s: float


def run_flow(
    flow: Flow,
    ledger: Ledger,
    *,
    executor: Executor | None = None,
    on_event: Callable[[StepEvent], None] | None = None,
) -> FlowResult:
    """Run every step whose outputs are not there yet, in dependency order.

    Args:
        flow: what to run.
        ledger: where runs, inputs and outputs are recorded.
        executor: where steps run; inline when not given.
        on_event: told of every change, in the calling thread.

    Raises:
        StepFailed: a step ended with a user's error. Other running steps are waited for, no new one is started.
        Fault: a step ended with a bug; the message holds its traceback.
    """
    return _FlowRun(flow, ledger, executor or InlineExecutor(), on_event or _silent).run()


class _FlowRun:
    """One pass over a flow."""

    def __init__(self, flow: Flow, ledger: Ledger, executor: Executor, emit: Callable[[StepEvent], None]) -> None:
        self._flow = flow
        self._ledger = ledger
        self._executor = executor
        self._emit = emit
        self._outputs: dict[str, Mapping[str, Digest]] = {}
        self._cached: list[str] = []
        self._ran: list[str] = []
        self._seconds: dict[str, float] = {}
        self._running: dict[Future[StepOutcome], _Running] = {}
        self._failure: tuple[Step, StepOutcome] | None = None

    def run(self) -> FlowResult:
        self._ledger.runs.expire()
        sorter = self._flow.sorter()
        sorter.prepare()
        waiting: list[str] = []
        while sorter.is_active():
            waiting += sorter.get_ready()
            while waiting and self._failure is None and len(self._running) < self._executor.workers:
                step = self._flow.step(waiting.pop(0))
                if self._reuse(step):
                    sorter.done(step.name)
                    break
                self._start(step)
            else:
                if not self._running:
                    break
                for name in self._collect():
                    sorter.done(name)
        if self._failure is not None:
            _raise_failure(*self._failure)
        return FlowResult(self._outputs, tuple(self._cached), tuple(self._ran), self._seconds)

    def _inputs(self, step: Step) -> dict[str, Digest]:
        inputs: dict[str, Digest] = {}
        for name, source in step.inputs.items():
            if source.startswith("sha256:"):
                inputs[name] = Digest(source)
                continue
            upstream, _, output = source.rpartition(".")
            if output not in self._outputs[upstream]:
                raise Fault(f"step '{upstream}' has no output '{output}', which step '{step.name}' reads")
            inputs[name] = self._outputs[upstream][output]
        return inputs

    def _reuse(self, step: Step) -> bool:
        if step.cache == "off":
            return False
        run = self._ledger.runs.find_ok(step_key(step, self._inputs(step)))
        if run is None or not all(_exists(self._ledger, digest) for digest in run.outputs.values()):
            return False
        if isinstance(step.cache, int | float) and run.finished_at is not None:
            age_s = (self._ledger.clock.now() - run.finished_at).total_seconds()
            if age_s > step.cache:
                return False
        self._outputs[step.name] = run.outputs
        self._cached.append(step.name)
        self._seconds[step.name] = 0.0
        self._emit(StepEvent(step=step.name, state=StepState.CACHED, share=1.0, run_id=run.run_id))
        return True

    def _start(self, step: Step) -> None:
        inputs = self._inputs(step)
        run = self._ledger.runs.start(
            step.name,
            params=step.params,
            inputs=inputs,
            code_digest=code_digest(step),
            environment_digest=environment_digest(step),
            key=step_key(step, inputs),
            lease_s=step.lease_s,
        )
        self._emit(StepEvent(step=step.name, state=StepState.STARTED, run_id=run.run_id))
        started = _Running(step, run.run_id, time.monotonic())
        self._running[self._executor.submit(step, inputs, run.run_id, self._ledger)] = started

    def _collect(self) -> list[str]:
        """Wait for at least one running step to end; return the names of those that ended well."""
        while True:
            done, _ = wait(self._running, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            if done:
                return [name for future in done if (name := self._finish(future)) is not None]
            for running in self._running.values():
                points = self._ledger.runs.metrics(running.run_id).get("progress", [])
                if points:
                    event = StepEvent(step=running.step.name, state=StepState.PROGRESS, share=points[-1].value)
                    self._emit(event)

    def _finish(self, future: Future[StepOutcome]) -> str | None:
        running = self._running.pop(future)
        step, seconds = running.step, time.monotonic() - running.started_s
        outcome = (
            future.result() if future.exception() is None else StepOutcome(error=repr(future.exception()), ours=True)
        )
        if outcome.error is not None:
            self._ledger.runs.finish(running.run_id, RunStatus.FAILED, error=outcome.error)
            self._emit(StepEvent(step=step.name, state=StepState.FAILED, seconds=seconds, run_id=running.run_id))
            self._failure = self._failure or (step, outcome)
            return None
        self._ledger.runs.finish(running.run_id, RunStatus.OK, outputs=outcome.outputs)
        self._outputs[step.name] = outcome.outputs
        self._ran.append(step.name)
        self._seconds[step.name] = seconds
        self._emit(StepEvent(step=step.name, state=StepState.OK, share=1.0, seconds=seconds, run_id=running.run_id))
        return step.name


def _silent(event: StepEvent) -> None:
    """Tell nobody."""


def _exists(ledger: Ledger, digest: Digest) -> bool:
    try:
        ledger.artifacts.by_digest(digest)
    except NotFound:
        present: bool = ledger.blobs.exists(digest)
        return present
    return True


def _raise_failure(step: Step, outcome: StepOutcome) -> Any:
    if outcome.ours:
        raise Fault(f"step '{step.name}' failed:\n{outcome.error}")
    raise StepFailed(f"Step '{step.name}' stopped: {outcome.error}", hint=outcome.hint)
