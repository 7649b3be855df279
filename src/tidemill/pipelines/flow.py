"""The record and the signature of a step, and the flow that orders steps.

A step is a module-level function ``(StepContext) -> {output name: digest}``. What it makes it puts in the ledger as
artifacts or blobs and names by digest, so that outputs are small, immutable and shared by every executor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tidemill.kernel import Digest, InvalidInput, RunId, check_name

if TYPE_CHECKING:
    from tidemill.ledger import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class StepContext:
    """What a step function is given.

    Args:
        params: JSON values that choose what is done.
        inputs: digests of what is read, by input name.
        ledger: where inputs are read and outputs are put.
        run_id: the run; pass it as ``made_by`` and to ``blobs.put`` so that lineage and protection hold.
        progress: call with (share done in [0, 1], a short note).
    """

    params: Mapping[str, Any]
    inputs: Mapping[str, Digest]
    ledger: Ledger
    run_id: RunId
    progress: Callable[[float, str], None]


StepFunction: TypeAlias = Callable[[StepContext], Mapping[str, Digest]]
Cache: TypeAlias = Literal["content", "off"] | float


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One node of a flow.

    Args:
        name: unique in the flow.
        function: module-level function; its source joins the cache key.
        params: JSON values; they join the cache key.
        inputs: input name -> ``other_step.output`` or a digest.
        helpers: functions whose source joins the key too.
        libraries: distributions whose installed version joins the key.
        cache: ``content`` reuses a finished run with the same key, a number of seconds one that young, ``off`` none.
        version: bump it to force a re-run when something outside changed.
        lease_s: a run whose process is silent for so long is abandoned.
    """

    name: str
    function: StepFunction
    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str | Digest] = field(default_factory=dict)
    helpers: tuple[Callable[..., Any], ...] = ()
    libraries: tuple[str, ...] = ()
    cache: Cache = "content"
    version: str = ""
    lease_s: float = 60.0

    def __post_init__(self) -> None:
        check_name(self.name, "step")
        for function in (self.function, *self.helpers):
            if "<" in function.__qualname__:
                raise InvalidInput(
                    f"step '{self.name}': {function.__qualname__} is not a module-level function, "
                    "so its source cannot be part of the cache key"
                )

    def upstream(self) -> set[str]:
        """Names of the steps whose outputs this one reads."""
        return {source.rpartition(".")[0] for source in self.inputs.values() if not source.startswith("sha256:")}


@dataclass(frozen=True, slots=True)
class Flow:
    """Steps in an order in which every input exists before it is read.

    Raises:
        InvalidInput: two steps of one name, an input from a step that is not there, or a cycle.
    """

    name: str
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        check_name(self.name, "flow")
        names = [step.name for step in self.steps]
        if len(set(names)) != len(names):
            raise InvalidInput(f"flow '{self.name}' has two steps of one name")
        for step in self.steps:
            for missing in step.upstream() - set(names):
                raise InvalidInput(f"flow '{self.name}': step '{step.name}' reads from '{missing}', which is not there")
        self.sorter().prepare()

    def sorter(self) -> TopologicalSorter[str]:
        """A fresh sorter over the step names.

        Raises:
            InvalidInput: the steps form a cycle.
        """
        sorter = TopologicalSorter({step.name: step.upstream() for step in self.steps})
        try:
            TopologicalSorter({step.name: step.upstream() for step in self.steps}).prepare()
        except CycleError as error:
            raise InvalidInput(f"flow '{self.name}' has a cycle: {' -> '.join(error.args[1])}") from None
        return sorter

    def step(self, name: str) -> Step:
        """The step of that name."""
        return next(step for step in self.steps if step.name == name)
