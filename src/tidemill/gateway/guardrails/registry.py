"""Guardrails by name: what a route's names mean in this worker."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final, cast

from tidemill.gateway.guardrails.execution import Places, Plan
from tidemill.gateway.guardrails.guardrail import Guardrail, GuardrailPolicy, Stage
from tidemill.gateway.guardrails.text import built_in_guardrails
from tidemill.kernel import NotFound, SettingsError

_METHODS: Final = {
    Stage.BEFORE: "before",
    Stage.PARALLEL: "parallel",
    Stage.STREAM: "on_stream",
    Stage.AFTER: "after",
}
_WHERE: Final = "See gateway.guardrails in tidemill.yaml, and docs/explanation/guardrail-hooks.md."


def load_guardrails(factory: str, folder: Path | None = None) -> dict[str, Guardrail]:
    """The guardrails of another package, or of a module beside the project file.

    Args:
        factory: ``module:function``; called without arguments it returns a mapping of names to guardrails.
        folder: where modules are looked for after those that are installed.

    Raises:
        SettingsError: it cannot be imported or called, or gives something else; the message says which and why.
    """
    module, _, function = factory.partition(":")
    if not module or not function:
        raise SettingsError(f"The guardrails '{factory}' are not written as 'module:factory'.", hint=_WHERE)
    if folder is not None and str(folder) not in sys.path:
        sys.path.append(str(folder))  # last, so that no file of a project takes the place of a library
    try:
        found: Any = getattr(import_module(module), function)()
    except Exception as error:
        raise SettingsError(
            f"The guardrails '{factory}' cannot be loaded: {type(error).__name__}: {error}.", hint=_WHERE
        ) from error
    if not isinstance(found, Mapping):
        raise SettingsError(
            f"The guardrails '{factory}' are no mapping of names to guardrails: {type(found).__name__}.", hint=_WHERE
        )
    for name, guardrail in found.items():
        problem = _problem(name, guardrail)
        if problem is not None:
            raise SettingsError(f"The guardrail '{name}' of '{factory}' {problem}.", hint=_WHERE)
    return cast(dict[str, Guardrail], dict(found))


def _problem(name: object, guardrail: Any) -> str | None:
    """What keeps an object from being a guardrail; ``None`` when nothing does."""
    if not isinstance(name, str) or getattr(guardrail, "name", None) != name:
        return "does not have that name"
    if not isinstance(getattr(guardrail, "fingerprint", None), str):
        return "has no 'fingerprint' that names its rules"
    if not isinstance(getattr(guardrail, "policy", None), GuardrailPolicy):
        return "has no GuardrailPolicy as 'policy'"
    stages = getattr(guardrail, "stages", None)
    if not isinstance(stages, frozenset) or not stages or not stages <= frozenset(Stage):
        return "has no frozenset of Stage as 'stages'"
    methods = [_METHODS[stage] for stage in Stage if stage in stages]
    missing = [method for method in methods if not callable(getattr(guardrail, method, None))]
    return f"has no method '{missing[0]}', which its stages ask for" if missing else None


class Guardrails:
    """The guardrails a worker knows. Another package's engine joins by an entry of ``registry``.

    Args:
        registry: by name; one that is built in may be replaced.
        most: rulings awaited at once, over all requests of the worker.
        queue: further ones that may wait; beyond them a ruling fails, and its guardrail's policy decides.
    """

    def __init__(self, registry: Mapping[str, Guardrail] | None = None, *, most: int = 64, queue: int = 256) -> None:
        self._known: dict[str, Guardrail] = {**built_in_guardrails(), **(registry or {})}
        self._places = Places(most, queue)

    @property
    def names(self) -> list[str]:
        """What a route may name, sorted."""
        return sorted(self._known)

    def plan(self, names: tuple[str, ...]) -> Plan | None:
        """What a route's names mean; ``None`` when it names none.

        Raises:
            NotFound: a name nobody knows. A route is never served with fewer guardrails than it names.
        """
        if not names:
            return None
        unknown = [name for name in names if name not in self._known]
        if unknown:
            raise NotFound(
                f"There is no guardrail '{unknown[0]}'.", hint=f"This gateway knows: {', '.join(self.names)}."
            )
        return Plan(tuple(self._known[name] for name in dict.fromkeys(names)), self._places)
