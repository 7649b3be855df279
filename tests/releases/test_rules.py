"""The state machine: its tables, its page, and what no sequence of events can do."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.kernel import Conflict
from tidemill.releases import Position, RolloutEvent, RolloutState, advance, legal_events, mermaid
from tidemill.releases.rules import TRANSITIONS, rollouts_page

S, E = RolloutState, RolloutEvent


def walk(*events, first_release=False):
    position = Position(first_release=first_release)
    for event in events:
        position = advance(position, event)
    return position


def test_the_way_to_promotion_and_the_ways_out():
    assert walk(E.GATE_PASSED, E.SHADOW_STARTED, E.SHADOW_PASSED, E.CANARY_STEP, E.PROMOTE).state is S.PROMOTED
    assert walk(E.GATE_PASSED, E.CANARY_STEP).step == 0
    assert walk(E.GATE_PASSED, E.CANARY_STEP, E.CANARY_STEP).step == 1
    assert walk(E.GATE_FAILED).state is S.GATED_OUT
    assert walk(E.GATE_FAILED, E.GATE_OVERRIDDEN, E.CANARY_STEP, E.ROLL_BACK).state is S.ROLLED_BACK
    assert walk(E.GATE_INSUFFICIENT).state is S.HELD
    assert walk(E.PROMOTE, first_release=True).state is S.PROMOTED


def test_resume_leads_back_to_where_it_was_held():
    canary = walk(E.GATE_PASSED, E.CANARY_STEP, E.CANARY_STEP)
    held = advance(canary, E.HOLD)
    assert (held.state, held.held_from, held.step) == (S.HELD, S.CANARY, 1)
    assert advance(held, E.RESUME) == canary
    assert E.GATE_PASSED not in legal_events(held)
    insufficient = walk(E.GATE_INSUFFICIENT, E.GATE_INSUFFICIENT)
    assert insufficient.held_from is S.DRAFT
    assert advance(insufficient, E.GATE_PASSED).state is S.GATED
    assert advance(insufficient, E.RESUME).state is S.DRAFT


@given(st.lists(st.sampled_from(list(E)), max_size=25), st.booleans())
def test_every_promotion_came_from_a_canary_behind_a_gate(events, first_release):
    position, seen = Position(first_release=first_release), []
    for event in events:
        if event not in legal_events(position):
            with pytest.raises(Conflict):
                advance(position, event)
            continue
        before = position
        position = advance(position, event)
        seen.append(event)
        if event is E.PROMOTE and not (first_release and before.state is S.DRAFT):
            assert before.state is S.CANARY
            assert {E.GATE_PASSED, E.GATE_OVERRIDDEN} & set(seen)
        assert (position.held_from is not None) == (position.state is S.HELD)


def test_final_states_are_final_and_every_state_is_reached():
    for state in (S.ROLLED_BACK, S.CANCELLED):
        assert legal_events(Position(state=state)) == ()
        with pytest.raises(Conflict, match="final"):
            advance(Position(state=state), E.RESUME)
    assert {S.DRAFT, *TRANSITIONS.values()} == set(S)


def test_diagram_shows_every_transition():
    diagram = mermaid()
    for (state, event), to in TRANSITIONS.items():
        assert f"{state} --> {to}: {event}" in diagram


def test_the_page_is_current():
    page = Path(__file__).parents[2] / "docs/explanation/rollouts.md"
    assert page.read_text() == rollouts_page(), "write tidemill.releases.rules.rollouts_page() to this file"
