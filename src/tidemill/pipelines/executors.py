"""Where a step runs: in this process, or in a pool of worker processes. Executors know nothing of what steps do."""

from __future__ import annotations

import multiprocessing
import threading
import time
import traceback
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tidemill.kernel import Digest, RunId, Scope, UserError
from tidemill.pipelines.flow import Step, StepContext

if TYPE_CHECKING:
    from tidemill.ledger import Ledger, S3Options

_PROGRESS_EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class LedgerRecipe:
    """How a worker process opens the same ledger. Travels between processes."""

    url: str
    blobs: str
    scope: Scope
    s3: S3Options | None = None
    cache_dir: Path | None = None

    def open(self) -> Ledger:
        """Open the ledger without migrating it: the process that started the flow has done so."""
        from tidemill.ledger import open_ledger

        return open_ledger(
            self.url, blobs=self.blobs, scope=self.scope, s3=self.s3, cache_dir=self.cache_dir, migrate=False
        )


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What came of one execution: outputs, or an error as text with its family."""

    outputs: dict[str, Digest] = field(default_factory=dict)
    error: str | None = None
    hint: str | None = None
    ours: bool = False


class Executor(Protocol):
    """Runs one step for a run already recorded as running."""

    def submit(self, step: Step, inputs: dict[str, Digest], run_id: RunId, ledger: Ledger) -> Future[StepOutcome]:
        """Start the step; the future never raises, errors are in the outcome."""
        ...

    @property
    def workers(self) -> int:
        """How many steps run at once."""
        ...


class InlineExecutor:
    """Runs each step in the calling thread."""

    workers = 1

    def submit(self, step: Step, inputs: dict[str, Digest], run_id: RunId, ledger: Ledger) -> Future[StepOutcome]:
        """Run the step to its end and return a finished future."""
        future: Future[StepOutcome] = Future()
        future.set_result(execute(step, inputs, run_id, ledger))
        return future


class ProcessExecutor:
    """Runs steps in a pool of worker processes started by a fork server. A context manager.

    Args:
        recipe: how workers open the ledger.
        workers: how many steps run at once.
    """

    def __init__(self, recipe: LedgerRecipe, workers: int = 2) -> None:
        self._recipe = recipe
        self.workers = workers
        self._pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("forkserver"))

    def submit(self, step: Step, inputs: dict[str, Digest], run_id: RunId, ledger: Ledger) -> Future[StepOutcome]:  # noqa: ARG002 - the protocol's signature; a worker opens its own
        """Queue the step for the next free worker."""
        return self._pool.submit(_execute_in_worker, self._recipe, step, inputs, run_id)

    def __enter__(self) -> ProcessExecutor:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def execute(step: Step, inputs: dict[str, Digest], run_id: RunId, ledger: Ledger) -> StepOutcome:
    """Run a step with its lease kept alive, and report what came of it."""
    context = StepContext(
        params=dict(step.params),
        inputs=inputs,
        ledger=ledger,
        run_id=run_id,
        progress=_progress_metric(ledger, run_id),
    )
    with _Heartbeat(ledger, run_id, step.lease_s / 3):
        try:
            return StepOutcome(outputs=dict(step.function(context)))
        except UserError as error:
            return StepOutcome(error=error.message, hint=error.hint)
        except Exception:  # noqa: BLE001 - a step's bug ends its run and is reported with its traceback
            return StepOutcome(error=traceback.format_exc(), ours=True)


def _execute_in_worker(recipe: LedgerRecipe, step: Step, inputs: dict[str, Digest], run_id: RunId) -> StepOutcome:
    with recipe.open() as ledger:
        return execute(step, inputs, run_id, ledger)


def _progress_metric(ledger: Ledger, run_id: RunId):  # type: ignore[no-untyped-def] # a closure with its own signature
    last_s = 0.0
    count = 0

    def progress(share: float, note: str) -> None:  # noqa: ARG001 - the note is for executors that show it
        nonlocal last_s, count
        now_s = time.monotonic()
        if now_s - last_s >= _PROGRESS_EVERY_S or share >= 1.0:
            last_s, count = now_s, count + 1
            ledger.runs.log_metric(run_id, "progress", share, step=count)

    return progress


class _Heartbeat:
    """Extends a run's lease from a thread until left."""

    def __init__(self, ledger: Ledger, run_id: RunId, every_s: float) -> None:
        self._ledger = ledger
        self._run_id = run_id
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat-{run_id}", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self._ledger.runs.heartbeat(self._run_id)
            except UserError:
                return  # the lease is lost; finishing the run will say so
