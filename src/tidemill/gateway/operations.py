"""What clients may ask for: the paths, what each is called, and where it leads upstream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Operation:
    """One of the endpoints' operations.

    Args:
        name: OpenTelemetry's GenAI operation name where it has one; the word of keys' scopes and provider dialects.
        path: of the upstream, after its base URL.
        says_text: whether the answer's choices hold text, so that its first piece of content can be told.
        counted: whether its usage is in tokens, which are counted here when the provider tells none.
        form: whether the request is a multipart form, not JSON.
        scope: the word of keys' scopes, where it is another operation's.
    """

    name: str
    path: str
    says_text: bool = False
    counted: bool = False
    form: bool = False
    scope: str | None = None


CHAT: Final = Operation("chat", "/chat/completions", says_text=True, counted=True)

OPERATIONS: Final = {
    b"/v1/chat/completions": CHAT,
    b"/v1/completions": Operation("text_completion", "/completions", says_text=True, counted=True),
    b"/v1/embeddings": Operation("embeddings", "/embeddings", counted=True),
    b"/v1/moderations": Operation("moderation", "/moderations"),
    b"/v1/audio/transcriptions": Operation("transcription", "/audio/transcriptions", form=True),
    b"/v1/audio/speech": Operation("speech", "/audio/speech"),
}
"""By path; each takes POST. All of them may be asked again after a failure: none changes anything upstream."""

RESPONSES: Final = b"/v1/responses"
"""OpenAI's newer API, with a memory."""

COUNT_TOKENS: Final = Operation("count_tokens", "/messages/count_tokens", scope=CHAT.name)
"""How many tokens a prompt has: asked of a provider that tells it, else estimated here."""

MESSAGES: Final = b"/v1/messages"
"""Anthropic's API; errors of all paths below it are in its shape."""

TRANSLATED: Final = {MESSAGES: CHAT, b"/v1/messages/count_tokens": COUNT_TOKENS, RESPONSES: CHAT}
"""Paths whose clients speak a dialect of their own, and the operation it is translated to."""
