"""Step functions and a program for the tests: a worker process imports them by name."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tidemill.kernel import ArtifactKind, Digest, InvalidInput, Scope
from tidemill.pipelines import Flow, InlineExecutor, LedgerRecipe, ProcessExecutor, Step, StepContext, run_flow


def number(context: StepContext) -> Mapping[str, Digest]:
    """Publish a number given as a parameter, and note that it was done."""
    _note(context, "number")
    return {"out": _publish(context, int(context.params["value"]))}


def add(context: StepContext) -> Mapping[str, Digest]:
    """Publish the sum of the inputs and a parameter."""
    _note(context, "add")
    total = sum(int(context.ledger.artifacts.by_digest(one).content["value"]) for one in context.inputs.values())
    return {"out": _publish(context, total + int(context.params.get("plus", 0)))}


def refuse(context: StepContext) -> Mapping[str, Digest]:
    """A user's mistake."""
    raise InvalidInput("there are no documents", hint="add some")


def break_down(context: StepContext) -> Mapping[str, Digest]:
    """A bug."""
    raise RuntimeError("broken")


def _publish(context: StepContext, value: int) -> Digest:
    name = f"value-{value}"
    return context.ledger.artifacts.publish(ArtifactKind.STEP, name, {"value": value}, made_by=context.run_id).digest


def _note(context: StepContext, what: str) -> None:
    if "log" in context.params:
        with Path(str(context.params["log"])).open("a") as log:
            log.write(f"{what} {context.params.get('mark', '')}\n")
    time.sleep(float(context.params.get("sleep_s", 0)))


def chain(length: int, **params: object) -> Flow:
    """A flow of ``length`` steps, each adding one to the step before it."""
    steps = [Step(name="s0", function=number, params={"value": 1, "mark": 0, **params})]
    for place in range(1, length):
        inputs = {"before": f"s{place - 1}.out"}
        steps.append(Step(name=f"s{place}", function=add, params={"plus": 1, "mark": place, **params}, inputs=inputs))
    return Flow("chain", tuple(steps))


def main() -> None:
    """Run a chain: URL LENGTH LOG PROCESSES. Used by the kill tests."""
    url, length, log, processes = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    recipe = LedgerRecipe(url, "memory://", Scope("test"))
    flow = chain(length, log=log, sleep_s=0.02)
    with recipe.open() as ledger:
        if processes:
            with ProcessExecutor(recipe, processes) as executor:
                result = run_flow(flow, ledger, executor=executor)
        else:
            result = run_flow(flow, ledger, executor=InlineExecutor())
    print(f"done {len(result.cached)} {len(result.ran)} {result.outputs[f's{length - 1}']['out']}", flush=True)


if __name__ == "__main__":
    main()
