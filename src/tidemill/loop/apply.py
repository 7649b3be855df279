"""``tidemill apply``: bring what the project file declares into the ledger, after showing what would change.

Declared are prompts, endpoints and monitors. Each is an artifact; the label ``applied`` names the version that the
file asks for. Data sets, indexes and releases are recipes: they are built by their own commands and flows.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import yaml

from tidemill.kernel import ArtifactKind, digest_json
from tidemill.kernel.settings import Settings
from tidemill.prompts import Message, Prompt

if TYPE_CHECKING:
    from tidemill.ledger import ArtifactVersion, Ledger

Action = Literal["add", "change", "remove"]
APPLIED: Final = "applied"
_KINDS: Final = (ArtifactKind.PROMPT, ArtifactKind.ENDPOINT, ArtifactKind.MONITOR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing that would be added, changed or removed.

    Args:
        diff: unified diff of the YAML of before and after.
    """

    action: Action
    kind: ArtifactKind
    name: str
    diff: str

    def as_json(self) -> dict[str, str]:
        """The change as a plain JSON object."""
        return {"action": self.action, "kind": self.kind.value, "name": self.name, "diff": self.diff}


@dataclass(frozen=True, slots=True)
class Plan:
    """What has to change so that the ledger says what the file says. Empty: nothing."""

    changes: tuple[Change, ...]


def declared(settings: Settings) -> dict[tuple[ArtifactKind, str], dict[str, Any]]:
    """The content of every artifact that the project file declares, by kind and name."""
    wanted: dict[tuple[ArtifactKind, str], dict[str, Any]] = {}
    for name, prompt in settings.prompts.items():
        messages = tuple(Message(one.role, one.content) for one in prompt.messages)
        content = Prompt(name=name, messages=messages, config={"no_answer": prompt.no_answer}).as_json()
        wanted[ArtifactKind.PROMPT, name] = content
    for name, endpoint in settings.endpoints.items():
        wanted[ArtifactKind.ENDPOINT, name] = endpoint.model_dump(mode="json")
    for name, monitor in settings.monitors.items():
        wanted[ArtifactKind.MONITOR, name] = monitor.model_dump(mode="json")
    return wanted


def applied(ledger: Ledger, kind: ArtifactKind) -> list[ArtifactVersion]:
    """The versions of a kind that the last ``apply`` asked for."""
    found = []
    for newest in ledger.artifacts.list(kind):
        version = ledger.artifacts.labels(kind, newest.name).get(APPLIED)
        if version is not None:
            found.append(ledger.artifacts.get(f"{kind}/{newest.name}@{version}"))
    return found


def plan(settings: Settings, ledger: Ledger) -> Plan:
    """Compare the project file with the ledger. Changes nothing."""
    wanted = declared(settings)
    present = {(kind, one.name): one.content for kind in _KINDS for one in applied(ledger, kind)}
    changes = []
    for key in sorted({*wanted, *present}):
        before, after = present.get(key), wanted.get(key)
        if before is not None and after is not None and digest_json(dict(before)) == digest_json(after):
            continue
        action: Literal["add", "change", "remove"] = (
            "add" if before is None else "remove" if after is None else "change"
        )
        changes.append(Change(action=action, kind=key[0], name=key[1], diff=_diff(key, before, after)))
    return Plan(tuple(changes))


def apply(settings: Settings, ledger: Ledger, *, actor: str) -> Plan:
    """Carry a plan out. Applied twice, the second plan is empty.

    Each change is one label move, so a crash in between leaves a state from which ``apply`` goes on.

    Raises:
        Conflict: somebody else applied at the same time; apply again.
    """
    found = plan(settings, ledger)
    wanted = declared(settings)
    for change in found.changes:
        labels = ledger.artifacts.labels(change.kind, change.name) if change.action != "add" else {}
        before = labels.get(APPLIED)
        after = None
        if change.action != "remove":
            after = ledger.artifacts.publish(change.kind, change.name, wanted[change.kind, change.name]).version
        reason = f"the project file {change.action}s it"
        ledger.artifacts.move_label(
            change.kind, change.name, APPLIED, after, expected=before, actor=actor, reason=reason
        )
    return found


def _diff(key: tuple[ArtifactKind, str], before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    old, new = (_lines(value) for value in (before, after))
    name = f"{key[0]}/{key[1]}"
    return "\n".join(difflib.unified_diff(old, new, f"{name} (now)", f"{name} (file)", lineterm=""))


def _lines(value: Mapping[str, Any] | None) -> list[str]:
    if value is None:
        return []
    return yaml.safe_dump(dict(value), sort_keys=True, allow_unicode=True, width=100).splitlines()
