"""What a release is made of. One digest over the parts decides whether two releases are the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tidemill.kernel.digests import Digest, digest_json


@dataclass(frozen=True, slots=True)
class Decoding:
    """How the model is sampled. ``seed`` makes an answer repeatable on the same runtime."""

    max_tokens: int = 24
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReleaseParts:
    """The exact versions that answer requests, each by content digest.

    Args:
        model: digest of the model artifact.
        prompt: digest of the prompt artifact, if the release has one.
        index: digest of the index artifact, if the release retrieves.
        adapter, policy: digests of an adapter and of a guardrail policy, if any.
        decoding: how the model is sampled.
        retrieval: options of the search (``mode``, ``top_k``, ``dense_weight``, ``max_context_tokens``).
        tools: JSON tool definitions offered to the model.
        router: how a release with several models chooses: ``models`` (digests, after ``model``) and the fields of
            ``ChoicePolicy``.
    """

    model: Digest
    prompt: Digest | None = None
    index: Digest | None = None
    adapter: Digest | None = None
    policy: Digest | None = None
    decoding: Decoding = field(default_factory=Decoding)
    retrieval: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Mapping[str, Any], ...] = ()
    router: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The parts as a plain JSON object, every field present."""
        decoding = self.decoding
        return {
            "model": self.model,
            "prompt": self.prompt,
            "index": self.index,
            "adapter": self.adapter,
            "policy": self.policy,
            "decoding": {
                "max_tokens": decoding.max_tokens,
                "temperature": decoding.temperature,
                "top_p": decoding.top_p,
                "seed": decoding.seed,
                "stop": list(decoding.stop),
            },
            "retrieval": dict(self.retrieval),
            "tools": [dict(tool) for tool in self.tools],
            "router": dict(self.router),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ReleaseParts:
        """Read back what ``as_json`` wrote."""
        decoding = dict(value["decoding"])
        decoding["stop"] = tuple(decoding["stop"])
        parts = {name: value[name] for name in ("model", "prompt", "index", "adapter", "policy", "retrieval", "router")}
        return cls(**parts, tools=tuple(value["tools"]), decoding=Decoding(**decoding))

    @property
    def digest(self) -> Digest:
        """The release digest: equal parts, equal digest."""
        return digest_json(self.as_json())

    def artifacts(self) -> dict[str, Digest]:
        """The artifacts the release is made of, by role."""
        roles = {"model": self.model, "prompt": self.prompt, "index": self.index}
        roles |= {"adapter": self.adapter, "policy": self.policy}
        roles |= {f"model_{number}": Digest(one) for number, one in enumerate(self.router.get("models", ()), 2)}
        return {role: digest for role, digest in roles.items() if digest is not None}
