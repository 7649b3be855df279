"""The rollout's state machine. Everything that may change a rollout's state stands in this file.

The rules:

1. A state changes by an event in ``TRANSITIONS`` and by nothing else. An event that is not listed for a state is
   refused; there is no default.
2. Nothing unproven goes live. ``promoted`` is reached from ``canary`` alone, with one exception: ``FIRST_RELEASE``,
   an endpoint's first release, has nothing to be compared with and goes from ``draft`` straight to ``promoted``.
3. ``INSUFFICIENT`` is not a pass: it holds the rollout. A person may override a gate; the event says so for ever.
4. A held rollout serves nobody. It remembers where it was held. ``resume`` leads back there; what was held before its
   gate may also be gated again (``HELD_BEFORE_GATE``).
5. ``rolled_back`` and ``cancelled`` are final. ``promoted`` may still be rolled back, ``gated_out`` overridden.
6. This file knows no clock, no store and no statistics: whoever applies an event has judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from tidemill.kernel import Conflict


class RolloutState(StrEnum):
    """Where a rollout stands."""

    DRAFT = "draft"
    GATED = "gated"
    SHADOW = "shadow"
    CANARY = "canary"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    HELD = "held"
    GATED_OUT = "gated_out"
    CANCELLED = "cancelled"


class RolloutEvent(StrEnum):
    """What may happen to a rollout."""

    GATE_PASSED = "gate_passed"
    GATE_FAILED = "gate_failed"
    GATE_INSUFFICIENT = "gate_insufficient"
    GATE_OVERRIDDEN = "gate_overridden"
    SHADOW_STARTED = "shadow_started"
    SHADOW_PASSED = "shadow_passed"
    SHADOW_FAILED = "shadow_failed"
    CANARY_STEP = "canary_step"
    PROMOTE = "promote"
    ROLL_BACK = "roll_back"
    HOLD = "hold"
    CANCEL = "cancel"
    RESUME = "resume"


_S, _E = RolloutState, RolloutEvent

TRANSITIONS: Final[Mapping[tuple[RolloutState, RolloutEvent], RolloutState]] = MappingProxyType(
    {
        (_S.DRAFT, _E.GATE_PASSED): _S.GATED,
        (_S.DRAFT, _E.GATE_FAILED): _S.GATED_OUT,
        (_S.DRAFT, _E.GATE_INSUFFICIENT): _S.HELD,
        (_S.DRAFT, _E.GATE_OVERRIDDEN): _S.GATED,
        (_S.DRAFT, _E.HOLD): _S.HELD,
        (_S.DRAFT, _E.CANCEL): _S.CANCELLED,
        (_S.GATED_OUT, _E.GATE_OVERRIDDEN): _S.GATED,
        (_S.GATED, _E.SHADOW_STARTED): _S.SHADOW,
        (_S.GATED, _E.CANARY_STEP): _S.CANARY,
        (_S.GATED, _E.HOLD): _S.HELD,
        (_S.GATED, _E.CANCEL): _S.CANCELLED,
        (_S.SHADOW, _E.SHADOW_PASSED): _S.CANARY,
        (_S.SHADOW, _E.SHADOW_FAILED): _S.ROLLED_BACK,
        (_S.SHADOW, _E.ROLL_BACK): _S.ROLLED_BACK,
        (_S.SHADOW, _E.HOLD): _S.HELD,
        (_S.SHADOW, _E.CANCEL): _S.CANCELLED,
        (_S.CANARY, _E.CANARY_STEP): _S.CANARY,
        (_S.CANARY, _E.PROMOTE): _S.PROMOTED,
        (_S.CANARY, _E.ROLL_BACK): _S.ROLLED_BACK,
        (_S.CANARY, _E.HOLD): _S.HELD,
        (_S.CANARY, _E.CANCEL): _S.CANCELLED,
        (_S.HELD, _E.ROLL_BACK): _S.ROLLED_BACK,
        (_S.HELD, _E.CANCEL): _S.CANCELLED,
        (_S.PROMOTED, _E.ROLL_BACK): _S.ROLLED_BACK,
    }
)
"""(state, event) -> next state."""

FIRST_RELEASE: Final[Mapping[tuple[RolloutState, RolloutEvent], RolloutState]] = MappingProxyType(
    {(_S.DRAFT, _E.PROMOTE): _S.PROMOTED}
)
"""Holds besides, where the endpoint serves nothing yet."""

HELD_BEFORE_GATE: Final[Mapping[tuple[RolloutState, RolloutEvent], RolloutState]] = MappingProxyType(
    {
        (_S.HELD, _E.GATE_PASSED): _S.GATED,
        (_S.HELD, _E.GATE_FAILED): _S.GATED_OUT,
        (_S.HELD, _E.GATE_INSUFFICIENT): _S.HELD,
        (_S.HELD, _E.GATE_OVERRIDDEN): _S.GATED,
    }
)
"""Holds besides, for a rollout that was held in ``draft``."""

ACTIVE: Final = frozenset({_S.DRAFT, _S.GATED, _S.SHADOW, _S.CANARY})
"""States in which a rollout has its endpoint to itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a rollout stands, with what the rules need to remember.

    Args:
        state: its state.
        held_from: the state it was held in, while it is held.
        step: the step of the ramp, from 0, in ``canary``.
        first_release: whether the endpoint served nothing when the rollout was opened.
    """

    state: RolloutState = RolloutState.DRAFT
    held_from: RolloutState | None = None
    step: int = 0
    first_release: bool = False


def _table(position: Position) -> dict[tuple[RolloutState, RolloutEvent], RolloutState]:
    table = dict(TRANSITIONS)
    if position.first_release:
        table |= FIRST_RELEASE
    if position.held_from is RolloutState.DRAFT:
        table |= HELD_BEFORE_GATE
    if position.held_from is not None:
        table[RolloutState.HELD, RolloutEvent.RESUME] = position.held_from
    return table


def legal_events(position: Position) -> tuple[RolloutEvent, ...]:
    """The events that may happen at a position, in their order of declaration."""
    table = _table(position)
    return tuple(event for event in RolloutEvent if (position.state, event) in table)


def advance(position: Position, event: RolloutEvent) -> Position:
    """The position after an event.

    Raises:
        Conflict: the rules do not allow the event here.
    """
    state = _table(position).get((position.state, event))
    if state is None:
        legal = ", ".join(legal_events(position)) or "nothing: this state is final"
        raise Conflict(f"'{event}' cannot happen to a rollout that is {position.state}.", hint=f"What can: {legal}.")
    if state is RolloutState.HELD:
        held_from = position.held_from if position.state is RolloutState.HELD else position.state
        return replace(position, state=state, held_from=held_from)
    stepped = position.state is state is RolloutState.CANARY
    return replace(position, state=state, held_from=None, step=position.step + stepped)


def mermaid() -> str:
    """The state machine as a Mermaid diagram, from the tables."""
    lines = ["stateDiagram-v2", "    [*] --> draft"]
    lines += [f"    {state} --> {to}: {event}" for (state, event), to in TRANSITIONS.items()]
    lines += [f"    {state} --> {to}: {event} (first release)" for (state, event), to in FIRST_RELEASE.items()]
    lines += [f"    {state} --> {to}: {event} (held in draft)" for (state, event), to in HELD_BEFORE_GATE.items()]
    back = [state for state in RolloutState if (state, RolloutEvent.HOLD) in TRANSITIONS]
    lines += [f"    held --> {state}: resume (held in {state})" for state in back]
    final = [state for state in RolloutState if not legal_events(Position(state=state))]
    return "\n".join([*lines, *(f"    {state} --> [*]" for state in final if state is not RolloutState.HELD)]) + "\n"


def rollouts_page() -> str:
    """The page ``docs/explanation/rollouts.md``, generated from this file."""
    assert __doc__ is not None
    rules = __doc__.split("The rules:\n\n", 1)[1].strip()
    return (
        "# Rollouts\n\n"
        "A rollout moves an endpoint's traffic from one release to the next. Each event below is a decision in the\n"
        "ledger: who, when, why, and the evidence. The state is what replaying them gives.\n\n"
        "This page is what `tidemill.releases.rules.rollouts_page()` returns.\n\n"
        f"```mermaid\n{mermaid()}```\n\n"
        f"## Rules\n\n{rules}\n"
    )
