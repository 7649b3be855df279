"""A guardrail that does as it is told, for tests of what runs guardrails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from tidemill.gateway.guardrails.guardrail import PASSED, GuardrailPolicy, Passage, Ruling, RulingOrLater, Stage
from tidemill.gateway.guardrails.pivot import PivotAnswer, PivotRequest
from tidemill.kernel import Verdict

BLOCKS = Ruling(Verdict(False, "The script says so.", {"by": "script"}))

Scripted: TypeAlias = Ruling | Exception | Callable[[str], Ruling]
"""A ruling, an error to raise, or a function of the text (the body, or the passage's text)."""


class ScriptedGuardrail:
    """Rules as its script says, and remembers what it was asked.

    Args:
        name: how routes call it.
        script: what it does at each of its stages.
        awaits: whether its rulings are awaited; they come when ``gate`` is set, which it is from the start.
        policy: how it is run.
    """

    def __init__(
        self,
        script: Mapping[Stage, Scripted] | None = None,
        *,
        name: str = "scripted",
        awaits: bool = False,
        policy: GuardrailPolicy | None = None,
    ) -> None:
        self.name = name
        self.fingerprint = f"script-{name}"
        self.policy = policy or GuardrailPolicy()
        self.seen: list[tuple[Stage, str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.running = 0
        """Rulings that are being awaited now."""
        self._script = dict(script or dict.fromkeys(Stage, PASSED))
        self._awaits = awaits

    @property
    def stages(self) -> frozenset[Stage]:
        """Those of its script."""
        return frozenset(self._script)

    def before(self, request: PivotRequest) -> RulingOrLater:
        """Rule by the script."""
        return self._rule(Stage.BEFORE, request.body.decode())

    def parallel(self, request: PivotRequest) -> RulingOrLater:
        """Rule by the script."""
        return self._rule(Stage.PARALLEL, request.body.decode())

    def on_stream(self, passage: Passage) -> RulingOrLater:
        """Rule by the script."""
        return self._rule(Stage.STREAM, passage.text)

    def after(self, answer: PivotAnswer) -> RulingOrLater:
        """Rule by the script."""
        return self._rule(Stage.AFTER, answer.body.decode())

    def seen_at(self, stage: Stage) -> list[str]:
        """What it was asked at a stage."""
        return [text for at, text in self.seen if at is stage]

    def _rule(self, stage: Stage, text: str) -> RulingOrLater:
        self.seen.append((stage, text))
        return self._later(stage, text) if self._awaits else self._now(stage, text)

    def _now(self, stage: Stage, text: str) -> Ruling:
        scripted = self._script[stage]
        if isinstance(scripted, Exception):
            raise scripted
        return scripted if isinstance(scripted, Ruling) else scripted(text)

    async def _later(self, stage: Stage, text: str) -> Ruling:
        self.running += 1
        try:
            await self.gate.wait()
            return self._now(stage, text)
        finally:
            self.running -= 1


def blocks_where(words: Iterable[str]) -> Callable[[str], Ruling]:
    """A script that blocks a text which holds one of some words."""
    forbidden = tuple(words)
    return lambda text: BLOCKS if any(word in text for word in forbidden) else PASSED
