"""What stands behind a worker besides upstreams: stores of limits, cached answers and conversations, an embedder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from tidemill.kernel import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderOptions:
    """An OpenAI-compatible ``/v1/embeddings``, for semantic caches.

    Args:
        url: base URL up to and including the version.
        model: the model name it expects.
        api_key_ref: secret reference of its key.
    """

    url: str
    model: str
    api_key_ref: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationOptions:
    """Where ``/v1/responses`` keeps its turns.

    Args:
        url: of the store: ``sqlite:////…``, ``postgresql…`` or ``redis://…``.
        retention_s: a conversation is deleted so long after its newest turn.
        bytes_most: a larger turn is not kept.
        depth_most: turns a history may have.
        key_ref: secret reference of 64 hexadecimal digits, the same on all hosts; ``None`` for a key file of the host.
    """

    url: str
    retention_s: float = 2_592_000.0
    bytes_most: int = 4 << 20
    depth_most: int = 500
    key_ref: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardrailOptions:
    """Where further guardrails come from.

    Args:
        factory: ``module:function``; called without arguments it gives guardrails by name.
        folder: where modules are looked for besides those that are installed.
    """

    factory: str
    folder: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BackingOptions:
    """Everything behind one worker. The supervisor hands it over as JSON; nothing of it is loaded until it is used.

    Args:
        limits_url: of the store of leases, the ledger's or ``redis://…``; ``None`` where nothing is limited.
        limits_unavailable: what happens to limited requests while that store cannot be reached.
        cache_bytes: memory of the worker's answer cache.
        cache_url: ``redis://…`` of a cache that workers share.
        embeddings: for semantic caches.
        conversations: for ``/v1/responses``; ``None`` keeps nothing.
        guardrails: those that are not built in; loaded when the worker starts.
    """

    limits_url: str | None = None
    limits_unavailable: Literal["refuse", "allow"] = "refuse"
    cache_bytes: int = 32 << 20
    cache_url: str | None = None
    embeddings: EmbedderOptions | None = None
    conversations: ConversationOptions | None = None
    guardrails: GuardrailOptions | None = None

    def encode(self) -> str:
        """Write it as JSON."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def decode(cls, text: str) -> BackingOptions:
        """Read what ``encode`` wrote.

        Raises:
            InvalidInput: it is something else.
        """
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.DecodeError as error:
            raise InvalidInput(f"what stands behind the worker cannot be read: {error}") from error
