"""Guardrails made from a function that finds things in a text, and those that come with the gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Final

from tidemill.checks import Finding, find_pii, find_secrets, mask
from tidemill.gateway.guardrails.guardrail import (
    PASSED,
    Edit,
    Guardrail,
    GuardrailPolicy,
    Passage,
    Ruling,
    Stage,
)
from tidemill.gateway.guardrails.pivot import PivotAnswer, PivotRequest
from tidemill.kernel import Verdict

Find = Callable[[str], tuple[Finding, ...]]
"""Finds what must not pass; pure, and quick: the request waits for it."""

_ROUNDS_MOST: Final = 8


class OnFinding(StrEnum):
    """What happens to what was found."""

    BLOCK = "block"
    MASK = "mask"


class TextGuardrail:
    """Blocks or masks what a function finds in requests and answers.

    Args:
        name: how routes call it.
        find: what must not pass.
        on_finding: whether a finding blocks, or is replaced by its kind in angle brackets.
        stages: where it looks; ``PARALLEL`` is of no use to something that rules at once.
        version: of the rules behind ``find``; a change makes kept answers stale.
        policy: how it is run.
    """

    def __init__(
        self,
        name: str,
        find: Find,
        *,
        on_finding: OnFinding,
        stages: Iterable[Stage] = (Stage.BEFORE, Stage.STREAM, Stage.AFTER),
        version: str = "1",
        policy: GuardrailPolicy | None = None,
    ) -> None:
        self.name = name
        self.stages = frozenset(stages)
        self.policy = policy or GuardrailPolicy()
        self.fingerprint = f"{on_finding.value}@{version}:{','.join(sorted(self.stages))}"
        self._find = find
        self._masks = on_finding is OnFinding.MASK

    def before(self, request: PivotRequest) -> Ruling:
        """Look at every text of the request."""
        return self._judge(request)

    def parallel(self, request: PivotRequest) -> Ruling:
        """Look at every text of the request; it is too late to mask any."""
        found = [finding for text in request.texts() for finding in self._find(text)]
        return Ruling(self._verdict(found)) if found else PASSED

    def after(self, answer: PivotAnswer) -> Ruling:
        """Look at every text of the answer."""
        return self._judge(answer)

    def on_stream(self, passage: Passage) -> Ruling:
        """Look at what is new, with its context."""
        found = [finding for finding in self._find(passage.text) if finding.end > passage.released]
        if not found:
            return PASSED
        if not self._masks:
            return Ruling(self._verdict(found))
        edits = tuple(Edit(finding.start, finding.end, f"<{finding.kind}>") for finding in found)
        return Ruling(Verdict(True, f"Masked {_listing(found)}."), edits=edits)

    def _judge(self, told: PivotRequest | PivotAnswer) -> Ruling:
        found: list[Finding] = []
        for text in told.texts():
            found += self._find(text)
        if not found:
            return PASSED
        if not self._masks:
            return Ruling(self._verdict(found))
        return Ruling(Verdict(True, f"Masked {_listing(found)}."), body=told.mapped(self._masked))

    def _masked(self, text: str) -> str:
        # Taking one finding out can lay bare its neighbour.
        for _ in range(_ROUNDS_MOST):
            found = self._find(text)
            if not found:
                break
            text = mask(text, found)
        return text

    def _verdict(self, found: list[Finding]) -> Verdict:
        kinds: dict[str, int] = {}
        for finding in found:
            kinds[finding.kind] = kinds.get(finding.kind, 0) + 1
        return Verdict(False, f"The text holds {_listing(found)}.", {"kinds": kinds})


def _listing(found: list[Finding]) -> str:
    kinds = sorted({finding.kind for finding in found})
    return f"{len(found)} x {', '.join(kinds)}" if len(kinds) == 1 else f"{len(found)} findings: {', '.join(kinds)}"


def built_in_guardrails() -> Mapping[str, Guardrail]:
    """The guardrails every gateway has, by name.

    ``pii`` masks personal data in requests and answers and ``pii-block`` blocks it; ``credentials`` blocks keys,
    tokens and passwords, and ``credentials-mask`` masks them.
    """
    return {
        one.name: one
        for one in (
            TextGuardrail("pii", find_pii, on_finding=OnFinding.MASK),
            TextGuardrail("pii-block", find_pii, on_finding=OnFinding.BLOCK),
            TextGuardrail("credentials", find_secrets, on_finding=OnFinding.BLOCK),
            TextGuardrail("credentials-mask", find_secrets, on_finding=OnFinding.MASK),
        )
    }
