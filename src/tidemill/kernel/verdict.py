"""One shape for every judgement: a filter's, a guardrail's, a scorer's, a gate's and a rollout decision's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any


class Outcome(StrEnum):
    """What a gate may answer. No data is never a pass: it is INSUFFICIENT."""

    PASS = "PASS"
    FAIL = "FAIL"
    INSUFFICIENT = "INSUFFICIENT"

    @property
    def exit_code(self) -> int:
        """0 for PASS, 1 for FAIL, 4 for INSUFFICIENT."""
        return {"PASS": 0, "FAIL": 1, "INSUFFICIENT": 4}[self.value]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judgement with its reason and the evidence it rests on.

    Args:
        value: ``True``/``False`` for a check, a number for a score, an ``Outcome`` or label for a decision.
        reason: one sentence a person can act on.
        evidence: JSON values from which the judgement can be recomputed or shown (counts, e-values, matched spans).
    """

    value: bool | float | str
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "evidence", MappingProxyType(dict(self.evidence)))

    def __reduce__(self) -> tuple[type[Verdict], tuple[Any, ...]]:
        # the read-only view of the evidence cannot be pickled; its content can
        return Verdict, (self.value, self.reason, dict(self.evidence))

    def as_json(self) -> dict[str, Any]:
        """The verdict as a plain JSON object."""
        value = self.value.value if isinstance(self.value, StrEnum) else self.value
        return {"value": value, "reason": self.reason, "evidence": dict(self.evidence)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Verdict:
        """Read back what ``as_json`` wrote."""
        return cls(value=value["value"], reason=value["reason"], evidence=value.get("evidence", {}))
