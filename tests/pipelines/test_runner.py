from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipelines.steps import add, break_down, chain, number, refuse
from tidemill.kernel import Fault, InvalidInput, Scope
from tidemill.ledger import Ledger, open_ledger
from tidemill.pipelines import Flow, LedgerRecipe, ProcessExecutor, Step, StepEvent, StepFailed, explain_miss, run_flow


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    with open_ledger(url, blobs="memory://", scope=Scope("test")) as opened:
        yield opened


def value(ledger: Ledger, flow: Flow, step: str) -> int:
    return int(ledger.artifacts.by_digest(run_flow(flow, ledger).outputs[step]["out"]).content["value"])


def test_runs_in_order_and_reuses(ledger: Ledger) -> None:
    events: list[StepEvent] = []
    first = run_flow(chain(4), ledger, on_event=events.append)
    assert first.ran == ("s0", "s1", "s2", "s3")
    assert [event.state for event in events] == ["started", "ok"] * 4
    second = run_flow(chain(4), ledger)
    assert second.cached == first.ran
    assert second.outputs == first.outputs


def test_only_what_a_change_touches_runs_again(ledger: Ledger) -> None:
    def diamond(left: int) -> Flow:
        return Flow(
            "diamond",
            (
                Step(name="top", function=number, params={"value": 1}),
                Step(name="left", function=add, params={"plus": left}, inputs={"a": "top.out"}),
                Step(name="right", function=add, params={"plus": 10}, inputs={"a": "top.out"}),
                Step(name="bottom", function=add, inputs={"a": "left.out", "b": "right.out"}),
            ),
        )

    assert value(ledger, diamond(1), "bottom") == 13
    again = run_flow(diamond(2), ledger)
    assert again.ran == ("left", "bottom")
    assert set(again.cached) == {"top", "right"}


def test_equal_output_cuts_off_what_follows(ledger: Ledger) -> None:
    """Another parameter, the same digest: nothing below has changed."""
    run_flow(chain(3), ledger)
    result = run_flow(chain(3, note="x"), ledger)
    assert result.ran == ("s0", "s1", "s2")  # the parameter is in every step's own key
    flow = chain(3)
    changed = Flow("chain", (Step(name="s0", function=number, params={"value": 1, "mark": 99}), *flow.steps[1:]))
    assert run_flow(changed, ledger).ran == ("s0",)


def test_misses_are_explained(ledger: Ledger) -> None:
    step = Step(name="top", function=number, params={"value": 1})
    assert explain_miss(step, {}, ledger) == "never ran"
    run_flow(Flow("f", (step,)), ledger)
    assert explain_miss(step, {}, ledger) == "nothing changed"
    assert (
        explain_miss(Step(name="top", function=number, params={"value": 2}), {}, ledger)
        == "params.value changed 1 -> 2"
    )
    other = Step(name="top", function=number, params={"value": 1}, helpers=(chain,))
    assert explain_miss(other, {}, ledger) == "code changed"


def test_cache_off_always_runs(ledger: Ledger) -> None:
    flow = Flow("f", (Step(name="top", function=number, params={"value": 1}, cache="off"),))
    assert run_flow(flow, ledger).ran == run_flow(flow, ledger).ran == ("top",)


def test_the_two_families_of_errors(ledger: Ledger) -> None:
    with pytest.raises(StepFailed, match="'a' stopped: there are no documents\nadd some"):
        run_flow(Flow("f", (Step(name="a", function=refuse),)), ledger)
    with pytest.raises(Fault, match="RuntimeError: broken"):
        run_flow(Flow("f", (Step(name="b", function=break_down),)), ledger)
    assert {run.status for run in ledger.runs.list()} == {"failed"}


def test_a_failure_keeps_what_finished(ledger: Ledger) -> None:
    good = Step(name="good", function=number, params={"value": 1})
    with pytest.raises(StepFailed):
        run_flow(Flow("f", (good, Step(name="bad", function=refuse, inputs={"a": "good.out"}))), ledger)
    assert run_flow(Flow("f", (good,)), ledger).cached == ("good",)


def test_flows_are_checked() -> None:
    step = Step(name="a", function=add, inputs={"x": "b.out"})
    with pytest.raises(InvalidInput, match="'b', which is not there"):
        Flow("f", (step,))
    with pytest.raises(InvalidInput, match="cycle"):
        Flow("f", (step, Step(name="b", function=add, inputs={"x": "a.out"})))
    with pytest.raises(InvalidInput, match="not a module-level function"):
        Step(name="a", function=lambda context: {})


def test_processes_give_the_same_outputs(ledger: Ledger, url: str) -> None:
    inline = run_flow(chain(3), ledger)
    with ProcessExecutor(LedgerRecipe(url, "memory://", Scope("test")), 2) as executor:
        pooled = run_flow(chain(3, note="pool"), ledger, executor=executor)
        assert pooled.outputs == inline.outputs
        with pytest.raises(StepFailed, match="add some"):
            run_flow(Flow("f", (Step(name="a", function=refuse),)), ledger, executor=executor)


def start(url: str, length: int, log: Path, processes: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.pipelines.steps", url, str(length), str(log), str(processes)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return output.strip()


def test_killed_at_every_boundary_it_resumes(url: str, ledger: Ledger, tmp_path: Path) -> None:
    """After each kill the next process reuses every step that had finished, and the result is the same."""
    length = 5
    log = tmp_path / "log"
    for boundary in range(length):
        process = start(url, length, log)
        while len(log.read_text().splitlines() if log.exists() else []) < boundary + 1 and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        finished = sum(run.status == "ok" for run in ledger.runs.list())
        log.write_text("\n".join(f"kept {place}" for place in range(finished)) + "\n" if finished else "")
    _, cached, ran, output = finish(start(url, length, log)).split()
    assert int(cached) + int(ran) == length
    assert ledger.artifacts.by_digest(output).content["value"] == length  # type: ignore[arg-type]


@pytest.mark.soak
def test_killed_at_random_moments(url: str, ledger: Ledger, tmp_path: Path) -> None:
    chance = random.Random(7)
    for processes in (0, 2):
        log = tmp_path / f"log{processes}"
        for _ in range(15):
            process = start(url, 30, log, processes)
            time.sleep(chance.uniform(0.2, 1.5))
            process.kill()
            process.communicate()
        assert finish(start(url, 30, log, processes)).startswith("done")
        counts = {line: log.read_text().splitlines().count(line) for line in log.read_text().splitlines()}
        assert max(counts.values()) <= 16  # a step runs again only when it was killed inside
