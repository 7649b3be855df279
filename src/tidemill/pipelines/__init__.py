"""Steps, their content-addressed cache and the executors that run them."""

from tidemill.pipelines.executors import InlineExecutor, LedgerRecipe, ProcessExecutor
from tidemill.pipelines.flow import Flow, Step, StepContext, StepFunction
from tidemill.pipelines.keys import explain_miss
from tidemill.pipelines.runner import FlowResult, StepEvent, StepFailed, StepState, run_flow

__all__ = [
    "Flow",
    "FlowResult",
    "InlineExecutor",
    "LedgerRecipe",
    "ProcessExecutor",
    "Step",
    "StepContext",
    "StepEvent",
    "StepFailed",
    "StepFunction",
    "StepState",
    "explain_miss",
    "run_flow",
]
