"""Guardrail hooks: checks before the call, in parallel with it, on the stream and after it.

The interface and its execution; a guardrail engine is another package's, and joins through ``Guardrails(registry)``.
"""

from tidemill.gateway.guardrails.execution import Blocked, Places, Plan, Watch
from tidemill.gateway.guardrails.guardrail import (
    PASSED,
    Edit,
    Guardrail,
    GuardrailPolicy,
    OnBlock,
    OnError,
    Passage,
    Ruling,
    Stage,
)
from tidemill.gateway.guardrails.hold_back import HoldBack
from tidemill.gateway.guardrails.pivot import PivotAnswer, PivotRequest
from tidemill.gateway.guardrails.registry import Guardrails, load_guardrails
from tidemill.gateway.guardrails.streams import StreamGuard
from tidemill.gateway.guardrails.text import OnFinding, TextGuardrail, built_in_guardrails

__all__ = [
    "PASSED",
    "Blocked",
    "Edit",
    "Guardrail",
    "GuardrailPolicy",
    "Guardrails",
    "HoldBack",
    "OnBlock",
    "OnError",
    "OnFinding",
    "Passage",
    "PivotAnswer",
    "PivotRequest",
    "Places",
    "Plan",
    "Ruling",
    "Stage",
    "StreamGuard",
    "TextGuardrail",
    "Watch",
    "built_in_guardrails",
    "load_guardrails",
]
