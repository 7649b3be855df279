"""Cache keys: what a step's outputs depend on, as one digest."""

from __future__ import annotations

import inspect
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

from tidemill.kernel import Digest, canonical_json, digest_bytes, digest_json

if TYPE_CHECKING:
    from tidemill.ledger import Ledger
    from tidemill.pipelines.flow import Step


def code_digest(step: Step) -> Digest:
    """Digest of the source of the step's function and of its declared helpers."""
    sources = [
        f"{one.__module__}.{one.__qualname__}\n{inspect.getsource(one)}" for one in (step.function, *step.helpers)
    ]
    return digest_json([*sources, step.version])


def environment_digest(step: Step) -> Digest:
    """Digest of the Python version and of the versions of the libraries that the step names."""
    versions = {name: metadata.version(name) for name in step.libraries}
    return digest_json({"python": ".".join(platform.python_version_tuple()[:2]), "libraries": versions})


def step_key(step: Step, inputs: Mapping[str, Digest]) -> Digest:
    """The cache key: equal keys mean that a finished run's outputs may be reused."""
    name = f"{step.function.__module__}.{step.function.__qualname__}"
    parts = {"function": name, "code": code_digest(step), "environment": environment_digest(step)}
    return digest_json({**parts, "params": dict(step.params), "inputs": dict(inputs)})


def explain_miss(step: Step, inputs: Mapping[str, Digest], ledger: Ledger) -> str:
    """Say why a step has to run again, compared with its newest finished run.

    Returns:
        e.g. ``params.top_k changed 3 -> 5; input documents changed``, or ``never ran``.
    """
    earlier = next((run for run in ledger.runs.list(step=step.name) if run.status == "ok"), None)
    if earlier is None:
        return "never ran"
    if earlier.key == step_key(step, inputs):
        return "nothing changed"
    reasons = [f"params.{text}" for text in _differences(earlier.params, step.params)]
    reasons += [
        f"input {name} changed"
        for name in sorted({*inputs, *earlier.inputs})
        if inputs.get(name) != earlier.inputs.get(name)
    ]
    if earlier.code_digest != code_digest(step):
        reasons.append("code changed")
    if earlier.environment_digest != environment_digest(step):
        reasons.append("environment changed")
    return "; ".join(reasons) or "its key is computed differently"


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    texts = []
    for name in sorted({*before, *after}):
        old, new = (digest_bytes(canonical_json(side.get(name))) for side in (before, after))
        if old != new:
            texts.append(f"{name} changed {before.get(name)!r} -> {after.get(name)!r}")
    return texts
