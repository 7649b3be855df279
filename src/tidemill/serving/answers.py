"""What an application answers with, and the pure steps between a search and an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, get_args

from tidemill.kernel import InvalidInput
from tidemill.retrieval import Fusion, Hit, Mode, estimate_tokens, terms
from tidemill.telemetry import Span

# A passage is cited when it holds this share of the answer's words, and nearly as many as the best one does.
_SUPPORT: Final = 0.3
_NEARLY: Final = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalOptions:
    """How a release searches and how much of what it finds the model sees.

    Args:
        mode: ``None`` searches as the index was built.
        top_k: passages found at most.
        max_context_tokens: budget of the context, in estimated tokens.
        dense_weight, fusion: how hybrid search adds its two scores.
        spelling: read unknown words as the nearest known ones; ``None`` does so in hybrid mode.
        min_score: the release abstains when the best passage's cosine (dense, hybrid) or BM25 lies below.
    """

    mode: Mode | None = None
    top_k: int = 3
    max_context_tokens: int = 250
    dense_weight: float = 0.5
    fusion: Fusion = "bounded"
    spelling: bool | None = None
    min_score: float | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RetrievalOptions:
        """Read a release's ``retrieval`` part.

        Raises:
            InvalidInput: an option that does not exist, or a value it cannot have.
        """
        try:
            options = cls(**value)
        except TypeError as error:
            raise InvalidInput(f"the release's retrieval options: {error}") from error
        if options.mode is not None and options.mode not in get_args(Mode):
            raise InvalidInput(f"'{options.mode}' is no search mode; there are {', '.join(get_args(Mode))}")
        if options.fusion not in get_args(Fusion):
            raise InvalidInput(f"'{options.fusion}' is no fusion; there are {', '.join(get_args(Fusion))}")
        if options.top_k < 1 or options.max_context_tokens < 1:
            raise InvalidInput("the release's retrieval options: top_k and max_context_tokens are at least 1")
        return options


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that were read and written, summed over the calls of one answer."""

    input_tokens: int = 0
    output_tokens: int = 0

    @classmethod
    def from_openai(cls, value: Mapping[str, Any] | None) -> Usage:
        """Read a chat completion's ``usage``; a server that reports none counts nothing."""
        usage = value or {}
        return cls(int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))

    def as_openai(self) -> dict[str, int]:
        """The counts as a chat completion's ``usage``."""
        total = self.input_tokens + self.output_tokens
        return {"prompt_tokens": self.input_tokens, "completion_tokens": self.output_tokens, "total_tokens": total}


@dataclass(frozen=True, slots=True, kw_only=True)
class AppAnswer:
    """One answer with all it rests on.

    Args:
        text: what the user reads.
        release: digest of the release that answered.
        trace_id: the trace it belongs to.
        model: the model name that was asked.
        hits: passages found, best first.
        context: the text the model was shown, made of ``hits``.
        cited: the passages whose words the answer uses.
        usage: tokens read and written.
        finish_reason: the model's, or ``stop`` when it was not asked.
        abstained: the release gave its ``no_answer`` text without asking the model.
        spans: the spans of this answer, the outermost last.
        timings: seconds by name: ``embed_s``, ``search_s``, ``first_text_s``, ``generate_s``, ``total_s``.
    """

    text: str
    release: str
    trace_id: str
    model: str
    hits: tuple[Hit, ...] = ()
    context: str = ""
    cited: tuple[Hit, ...] = ()
    usage: Usage = field(default_factory=Usage)
    finish_reason: str = "stop"
    abstained: bool = False
    spans: tuple[Span, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)

    @property
    def citations(self) -> list[str]:
        """Source URIs of the cited passages, best first, none twice."""
        return list(dict.fromkeys(hit.source for hit in self.cited))

    def extension(self) -> dict[str, Any]:
        """What Tidemill adds to a chat completion, under ``tidemill``."""
        passages = [
            {
                "passage_id": hit.passage_id,
                "document_id": hit.document_id,
                "source": hit.source,
                "title": hit.title,
                "score": hit.score,
                "rank": hit.rank,
            }
            for hit in self.hits
        ]
        return {"passages": passages, "citations": self.citations, "release": self.release}


def question_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """The text of the last user message.

    Raises:
        InvalidInput: there is none, or it holds something else than text.
    """
    for message in reversed(messages):
        if message.get("role") == "user":
            text = _text(message.get("content"))
            if text.strip():
                return text.strip()
            break
    raise InvalidInput("messages: the last user message holds no text; send one with the question")


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, Mapping)]
        if len(parts) == len(content) and all(part.get("type") == "text" for part in parts):
            return "\n".join(str(part.get("text", "")) for part in parts)
    raise InvalidInput("messages: content must be text, or a list of text parts; this release reads nothing else")


def build_context(hits: Sequence[Hit], max_tokens: int) -> tuple[str, tuple[Hit, ...]]:
    """Lay passages one under the other until the budget is full.

    Args:
        hits: passages, best first. One that does not fit is left out and the next is tried; if not even the best
            fits, it is cut at a word.
        max_tokens: the budget, in estimated tokens.

    Returns:
        The context, passages under their titles and divided by empty lines, and the hits that stand in it.
    """
    blocks: list[str] = []
    used: list[Hit] = []
    left = max_tokens
    for hit in hits:
        block = f"{hit.title}\n{hit.text}" if hit.title else hit.text
        size = estimate_tokens(block) + (2 if blocks else 0)
        if size > left and blocks:
            continue
        blocks.append(block if size <= left else _cut(block, left))
        used.append(hit)
        left -= size
        if left <= 0:
            break
    return "\n\n".join(blocks), tuple(used)


def _cut(text: str, max_tokens: int) -> str:
    """The longest beginning of whole words that fits."""
    ends = [at for at, sign in enumerate(text) if sign.isspace()]
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high) // 2
        if estimate_tokens(text[: ends[middle]]) <= max_tokens:
            low = middle + 1
        else:
            high = middle
    return text[: ends[low - 1]].rstrip() if low else text[: max_tokens * 3]


def cite(answer: str, used: Sequence[Hit]) -> tuple[Hit, ...]:
    """Say which passages an answer rests on: those that hold its words.

    Args:
        answer: the answer's text.
        used: passages the model saw, best first.

    Returns:
        Passages in their order; the best one when no passage holds enough of the answer. None for no passages.
    """
    words = set(terms(answer))
    shares = [len(words.intersection(terms(f"{hit.title} {hit.text}"))) / max(1, len(words)) for hit in used]
    best = max(shares, default=0.0)
    if best < _SUPPORT:
        return tuple(used[:1])
    return tuple(hit for hit, share in zip(used, shares, strict=True) if share >= _NEARLY * best)


def clean(text: str, max_lines: int | None) -> str:
    """Strip an answer and keep its first lines.

    Cleaning a longer beginning of the same text only ever adds to the result, so a stream can be cleaned as it grows.

    Args:
        text: what the model wrote (so far).
        max_lines: lines kept, counted from the first that is not empty; ``None`` keeps all.
    """
    stripped = text.strip()
    return stripped if max_lines is None else "\n".join(stripped.split("\n")[:max_lines]).rstrip()
