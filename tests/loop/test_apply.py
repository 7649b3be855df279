from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tidemill.kernel import ArtifactKind, Scope
from tidemill.kernel.settings import parse_settings
from tidemill.ledger import Ledger, open_ledger
from tidemill.loop.apply import applied, apply, plan

PROMPT = {"messages": [{"role": "user", "content": "{{question}}"}]}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}", blobs="memory://", scope=Scope("p")) as opened:
        yield opened


def test_adds_changes_removes_and_then_does_nothing(ledger: Ledger) -> None:
    first = parse_settings(
        {"project": "p", "prompts": {"a": PROMPT, "b": PROMPT}, "endpoints": {"e": {"release": "r"}}}
    )
    assert [(one.action, one.kind, one.name) for one in plan(first, ledger).changes] == [
        ("add", "endpoint", "e"),
        ("add", "prompt", "a"),
        ("add", "prompt", "b"),
    ]
    assert len(apply(first, ledger, actor="me").changes) == 3
    assert apply(first, ledger, actor="me").changes == ()
    changed = {**PROMPT, "no_answer": "Ask a colleague."}
    second = parse_settings({"project": "p", "prompts": {"a": changed}, "endpoints": {"e": {"release": "r"}}})
    changes = apply(second, ledger, actor="me").changes
    assert [(one.action, one.name) for one in changes] == [("change", "a"), ("remove", "b")]
    assert "+  no_answer: Ask a colleague." in changes[0].diff
    assert "-  no_answer: I do not know." in changes[0].diff
    assert [one.name for one in applied(ledger, ArtifactKind.PROMPT)] == ["a"]
    assert plan(second, ledger).changes == ()


def test_a_removed_thing_can_come_back(ledger: Ledger) -> None:
    full = parse_settings({"project": "p", "prompts": {"a": PROMPT}})
    empty = parse_settings({"project": "p"})
    for settings in (full, empty, full):
        apply(settings, ledger, actor="me")
    (version,) = applied(ledger, ArtifactKind.PROMPT)
    assert version.version == 1
    assert plan(full, ledger).changes == ()


def test_every_change_is_a_decision(ledger: Ledger) -> None:
    apply(parse_settings({"project": "p", "prompts": {"a": PROMPT}}), ledger, actor="mia")
    (decision,) = ledger.decisions.list()
    assert (decision.actor, decision.subject) == ("mia", "prompt/a@applied")
    assert ledger.audit.verify().ok
