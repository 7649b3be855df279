"""What a guardrail is: the interface by which checks, ours or another package's, act on live traffic.

A guardrail has up to four stages, and says which of them it has:

    before     sees the request before anything is spent; may block it or rewrite it
    parallel   sees the request while the upstream already works; its verdict must come before the first byte leaves
    stream     sees the text of a streamed answer before the client does, a stretch at a time; may block or edit it
    after      sees a whole answer; may block it or rewrite it

A stage returns its ruling, or an awaitable of one. What is quick and pure returns it outright and costs no task; what
asks a model awaits. A verdict of ``True`` passes and ``False`` blocks; anything else is a fault of the guardrail.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple, Protocol, TypeAlias

from tidemill.gateway.guardrails.pivot import PivotAnswer, PivotRequest
from tidemill.kernel import Verdict


class Stage(StrEnum):
    """When a guardrail is asked."""

    BEFORE = "before"
    PARALLEL = "parallel"
    STREAM = "stream"
    AFTER = "after"


class OnError(StrEnum):
    """What happens when a guardrail fails, or gives no verdict in time."""

    BLOCK = "block"
    PASS = "pass"


class OnBlock(StrEnum):
    """What a client gets in place of what was blocked.

    ``error`` is status 400 with code ``content_filter``; ``refusal`` a successful answer that refuses, with the finish
    reason ``content_filter``. A stream that has begun ends with an error event either way.
    """

    ERROR = "error"
    REFUSAL = "refusal"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardrailPolicy:
    """How a guardrail is run.

    Args:
        timeout_s: of one ruling that is awaited, its wait for a place included.
        on_error: what happens without a ruling.
        on_block: what the client gets instead.
        message: what it is told; ``None`` takes a sentence with the guardrail's name.
        hold_chars: of a stream, so much text is held back behind what is released; nothing longer is recognised
            before a part of it has left.
        step_chars: of a stream, so much new text is waited for before it is looked at.
        whole_sentences: of a stream, text is released up to the end of a sentence only.
    """

    timeout_s: float = 2.0
    on_error: OnError = OnError.BLOCK
    on_block: OnBlock = OnBlock.ERROR
    message: str | None = None
    hold_chars: int = 160
    step_chars: int = 40
    whole_sentences: bool = False


class Edit(NamedTuple):
    """A stretch of a passage that leaves as another text; offsets count in ``Passage.text``."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of a streamed text that is to be ruled on.

    Args:
        text: what is new, with what stood before it and has already left, for context.
        released: so many characters at the beginning of ``text`` have left and cannot be called back.
        final: no more text will come.
        place: which of the answer's texts: choice, then field, e.g. ``(0, "content")``.
    """

    text: str
    released: int = 0
    final: bool = True
    place: tuple[int | str, ...] = (0, "content")


@dataclass(frozen=True, slots=True)
class Ruling:
    """A guardrail's decision.

    Args:
        verdict: ``True`` passes, ``False`` blocks. Its evidence goes into the trace, so it names kinds and places and
            never repeats the text.
        body: before and after: the request or answer to go on with, where it was rewritten.
        edits: on a stream: what leaves otherwise than it came, in order and apart.
    """

    verdict: Verdict
    body: bytes | None = None
    edits: tuple[Edit, ...] = field(default=())


RulingOrLater: TypeAlias = Ruling | Awaitable[Ruling]

PASSED: Final = Ruling(Verdict(True, "Nothing to object."))


class Guardrail(Protocol):
    """A check that acts on live traffic. Only the methods of its ``stages`` are ever called."""

    @property
    def name(self) -> str:
        """How routes, spans and errors call it: lower-case words with ``-`` between."""
        ...

    @property
    def stages(self) -> frozenset[Stage]:
        """When it is asked."""
        ...

    @property
    def policy(self) -> GuardrailPolicy:
        """How it is run."""
        ...

    @property
    def fingerprint(self) -> str:
        """Names all that its rulings depend on; answers kept under another fingerprint are not given again."""
        ...

    def before(self, request: PivotRequest) -> RulingOrLater:
        """Rule on a request before anything is spent on it."""
        ...

    def parallel(self, request: PivotRequest) -> RulingOrLater:
        """Rule on a request while the upstream works on it; it cannot be rewritten any more."""
        ...

    def on_stream(self, passage: Passage) -> RulingOrLater:
        """Rule on a stretch of a streamed answer."""
        ...

    def after(self, answer: PivotAnswer) -> RulingOrLater:
        """Rule on a whole answer."""
        ...
