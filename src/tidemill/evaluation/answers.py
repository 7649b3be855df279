"""What a system under evaluation returned for one case."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_ABSTAINS: Final = re.compile(
    r"\b(?:do not|don't|cannot|can't|could not|couldn't) (?:know|answer|say|find|tell|have (?:an|the|enough))\b"
    r"|\bno (?:answer|information)\b|\bunanswerable\b|\bnot (?:enough|sufficient) (?:information|context)\b"
    r"|\b(?:is|are) not (?:answered|mentioned|covered|contained|described|stated|found|provided|in)\b"
    r".{0,40}\b(?:documents?|context|passages?|texts?|sources?)\b"
    r"|\b(?:documents?|context|passages?|texts?|sources?) (?:do|does) not\b"
)


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage that the answer was given.

    Args:
        source: URI of the document it was cut from.
        text: what stood in it.
    """

    source: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer with what it rests on and what it cost.

    Args:
        text: the answer itself.
        passages: what was retrieved for it, best first.
        citations: source URIs the answer names, in their order.
        latency_s: seconds from question to complete answer.
        input_tokens, output_tokens: as the model counted them.
        cost_usd: what it cost.
        error: why there is no answer; the case is then unmeasured, never wrong.
    """

    text: str = ""
    passages: tuple[Passage, ...] = ()
    citations: tuple[str, ...] = ()
    latency_s: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The answer as a plain JSON object."""
        return {
            "text": self.text,
            "passages": [{"source": passage.source, "text": passage.text} for passage in self.passages],
            "citations": list(self.citations),
            "latency_s": self.latency_s,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cost_usd": self.cost_usd,
            "error": self.error,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Answer:
        """Read back what ``as_json`` wrote."""
        fields = dict(value)
        fields["passages"] = tuple(Passage(**passage) for passage in fields["passages"])
        fields["citations"] = tuple(fields["citations"])
        return cls(**fields)


def abstained(text: str) -> bool:
    """Whether an answer says that it has none: nothing at all, or a phrase like "I don't know".

    A fixed list of English phrases; an answer that hedges in other words counts as an answer.
    """
    plain = " ".join(text.lower().replace("\u2019", "'").split())
    return not plain or bool(_ABSTAINS.search(plain))
