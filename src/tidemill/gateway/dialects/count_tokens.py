"""Clients of Anthropic's API that ask how many tokens a prompt has, before they send it.

Format: Anthropic's API reference, ``POST /v1/messages/count_tokens``, as its Python library 2.12 types it (2026-11).
Where the target's provider has no such endpoint the gateway estimates, by the rules that also decide when a window
overflows (``conversations.context``), and marks the answer: ``"tidemill": {"estimated": true}``.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from tidemill.gateway.answers import Refusal
from tidemill.gateway.conversations.context import count_fixed, count_message
from tidemill.gateway.dialects.messages import translate_request
from tidemill.gateway.dialects.messages_answers import MessagesStream, write_error
from tidemill.kernel import InvalidInput
from tidemill.models.providers.pivot import read_object

_FIELDS: Final = frozenset(
    (
        "cache_control",
        "messages",
        "model",
        "output_config",
        "speed",
        "system",
        "thinking",
        "tool_choice",
        "tools",
    )
)
_REPLY_TOKENS: Final = 4096  # a count foresees no answer; its length only decides what share thinking is of it


class CountTokensDialect:
    """One request for a count; see ``ClientDialect``. Its answer is the same on both sides."""

    __slots__ = ()

    def request(self, body: bytes) -> bytes:
        """The pivot request whose prompt is to be counted; see ``ClientDialect.request``."""
        try:
            asked = read_object(body, "The request body")
        except InvalidInput as error:
            raise Refusal(400, error.message, "invalid_request") from None
        for name, value in asked.items():
            if name not in _FIELDS and value is not None:
                text = f"'{name}' cannot be served: a count has no place for it."
                raise Refusal(400, text, "unsupported_field", param=name)
        if not isinstance(asked.get("model"), str):
            text = "The request names no model. Set 'model' to one of the endpoints that GET /v1/models lists."
            raise Refusal(400, text, "missing_model", param="model")
        wanted = translate_request({**asked, "max_tokens": _REPLY_TOKENS})
        del wanted["max_completion_tokens"]
        return msgspec.json.encode(wanted)

    def answer(self, body: bytes) -> bytes:
        """A provider's count is passed on; see ``ClientDialect.answer``."""
        return body

    def error(self, status: int, body: bytes) -> bytes:
        """Translate an error; see ``ClientDialect.error``."""
        return write_error(status, body)

    def stream(self) -> MessagesStream:
        """A count is never streamed; the protocol's method all the same."""
        return MessagesStream(hides_thoughts=False)


def estimate(body: bytes) -> bytes:
    """The answer to a request for a count where no provider counts, marked as an estimate.

    Args:
        body: what ``CountTokensDialect.request`` gave.
    """
    asked: dict[str, Any] = msgspec.json.decode(body)
    tokens = count_fixed(asked) + sum(count_message(message) for message in asked["messages"])
    return msgspec.json.encode({"input_tokens": tokens, "tidemill": {"estimated": True}})
