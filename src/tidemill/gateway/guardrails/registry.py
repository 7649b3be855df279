"""Guardrails by name: what a route's names mean in this worker."""

from __future__ import annotations

from collections.abc import Mapping

from tidemill.gateway.guardrails.execution import Places, Plan
from tidemill.gateway.guardrails.guardrail import Guardrail
from tidemill.gateway.guardrails.text import built_in_guardrails
from tidemill.kernel import NotFound


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
