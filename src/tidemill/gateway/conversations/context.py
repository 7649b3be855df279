"""What happens to a prompt that is longer than the model's window: which messages go, and how the rest is put together.

Pure: messages in, messages out; the summary of what goes is asked for by the caller (see ``summaries``).

Rules. A *turn* begins with a user message and runs to the next one. Whole turns go first, the oldest first. If the
last turn alone is too long, its oldest *steps* go, its user message stays; a step is one message, or an assistant
message with tool calls and the results that follow it. System messages never go, nor does the last step.

The estimate, where the target names no tokenizer: a message counts a quarter of its JSON's bytes, rounded up; an image,
audio or file part counts 1,000 tokens whatever its size. Tools and response format count a quarter of their bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from tidemill.gateway.answers import Refusal
from tidemill.kernel import Overflow

Message = dict[str, Any]

BYTES_PER_TOKEN: Final = 4
MEDIA_TOKENS: Final = 1000
_MEDIA: Final = frozenset(("image_url", "input_audio", "file"))
_MEDIA_SIGNS: Final = (b'"image_url"', b'"input_audio"', b'"file"')
_FIXED_FIELDS: Final = ("tools", "functions", "response_format")
_ALWAYS_KEPT: Final = frozenset(("system", "developer"))
_SUMMARY_MARK: Final = "Summary of the conversation so far:"

_encode: Final = msgspec.json.encode
_decode: Final = msgspec.json.decode


@dataclass(frozen=True, slots=True)
class Window:
    """How long a prompt may be, and what to do with a longer one.

    Args:
        context_tokens: the model's window, prompt and answer together.
        reply_tokens: of it, kept free for the answer.
        overflow: the policy.
        count: tokens of a message's JSON by the target's tokenizer; ``None`` estimates.
    """

    context_tokens: int
    reply_tokens: int
    overflow: Overflow
    count: Callable[[bytes], int] | None = None

    @property
    def prompt_tokens(self) -> int:
        """The longest prompt."""
        return max(self.context_tokens - self.reply_tokens, 0)


@dataclass(frozen=True, slots=True)
class Cut:
    """Which messages go.

    Args:
        until: messages before this index go,
        pinned: but those at these indexes, which are below ``until``, stay.
    """

    until: int
    pinned: tuple[int, ...] = ()

    def kept(self, messages: Sequence[Message]) -> list[Message]:
        """What stays, in order."""
        return [*(messages[index] for index in self.pinned), *messages[self.until :]]

    def dropped(self, messages: Sequence[Message]) -> list[Message]:
        """What goes, in order."""
        pinned = set(self.pinned)
        return [message for index, message in enumerate(messages[: self.until]) if index not in pinned]


def window_of(
    context_tokens: int | None,
    overflow: Overflow,
    request: Mapping[str, Any],
    *,
    count: Callable[[bytes], int] | None = None,
) -> Window | None:
    """The window for one request; ``None`` where nothing is to be done.

    Args:
        context_tokens: of the target; ``None`` is unknown.
        overflow: the endpoint's policy.
        request: the decoded chat request, for how long its answer may become.
        count: see ``Window``.
    """
    if context_tokens is None or overflow is Overflow.PASS:
        return None
    asked = request.get("max_completion_tokens") or request.get("max_tokens")
    # An answer of no stated length gets a quarter of the window: enough to say something, not so much that every
    # second prompt has to be cut.
    reply = asked if isinstance(asked, int) else context_tokens // 4
    return Window(context_tokens, reply, overflow, count)


def count_message(message: Message, count: Callable[[bytes], int] | None = None) -> int:
    """Tokens of one message, by the rules above."""
    content = message.get("content")
    media = 0
    if isinstance(content, list):
        text = [part for part in content if not (isinstance(part, dict) and part.get("type") in _MEDIA)]
        media = len(content) - len(text)
        if media:
            message = {**message, "content": text}
    data = _encode(message)
    return media * MEDIA_TOKENS + (count(data) if count is not None else -(-len(data) // BYTES_PER_TOKEN))


def count_fixed(request: Mapping[str, Any], count: Callable[[bytes], int] | None = None) -> int:
    """Tokens of what a request says besides its messages."""
    total = 0
    for name in _FIXED_FIELDS:
        value = request.get(name)
        if value:
            data = _encode(value)
            total += count(data) if count is not None else -(-len(data) // BYTES_PER_TOKEN)
    return total


def surely_fits(body: bytes, window: Window) -> bool:
    """Whether a chat request's bytes need no second look: the common case, told without decoding them."""
    if window.count is not None or len(body) > window.prompt_tokens * BYTES_PER_TOKEN:
        return False
    return not any(sign in body for sign in _MEDIA_SIGNS)


def plan_cut(messages: Sequence[Message], tokens: Sequence[int], budget: int) -> Cut | None:
    """Choose what goes: the least that makes the rest fit.

    Args:
        messages: of a chat request.
        tokens: of each message.
        budget: what the messages that stay may count together.

    Returns:
        ``Cut(0)`` if all fit; ``None`` if nothing that may go is enough.
    """
    total = sum(tokens)
    if total <= budget:
        return Cut(0)
    pinned: list[int] = []
    place = 0
    for until, opener in _edges(messages):
        for index in range(place, until):
            if messages[index].get("role") in _ALWAYS_KEPT:
                pinned.append(index)
            else:
                total -= tokens[index]
        place = until
        held = tokens[opener] if opener is not None else 0
        if total + held <= budget:
            return Cut(until, tuple(sorted([*pinned, opener]) if opener is not None else pinned))
    return None


def _edges(messages: Sequence[Message]) -> list[tuple[int, int | None]]:
    """Where a cut may be, in order: before a turn; before a step of the last one, whose opening message then stays."""
    starts = [index for index, message in enumerate(messages) if message.get("role") == "user"]
    if not starts:
        return []
    last = starts[-1]
    edges: list[tuple[int, int | None]] = [(start, None) for start in starts]
    steps = _steps(messages, last + 1)
    # The first step begins right after the user message, so a cut before it takes nothing away.
    edges += [(step, last) for step in steps[1:]]
    return edges


def _steps(messages: Sequence[Message], begin: int) -> list[int]:
    """Indexes from ``begin`` at which a step begins; the results of a tool call belong to the call's step."""
    return [index for index in range(begin, len(messages)) if messages[index].get("role") not in {"tool", "function"}]


def with_summary(messages: Sequence[Message], summary: str) -> list[Message]:
    """Put a summary in front of the first user message.

    Not into a system message: a summary is made of what users and models said, and must not gain a system message's
    authority; and not as a message of its own, for some models demand that user and assistant alternate.
    """
    found = list(messages)
    text = f"{_SUMMARY_MARK}\n{summary}\n\n"
    for index, message in enumerate(found):
        if message.get("role") == "user":
            content = message.get("content")
            merged = (
                [{"type": "text", "text": text}, *content] if isinstance(content, list) else f"{text}{content or ''}"
            )
            found[index] = {**message, "content": merged}
            return found
    return [*found, {"role": "user", "content": text.rstrip()}]


def too_long(counted: int, window: Window) -> Refusal:
    """The refusal of a prompt that does not fit."""
    text = (
        f"This prompt has about {counted} tokens; the model's window takes {window.context_tokens}, of which "
        f"{window.reply_tokens} are kept for the answer. Shorten the messages, ask for a shorter answer, or choose an "
        "endpoint with a larger window."
    )
    return Refusal(400, text, "context_length_exceeded", param="messages")
