"""What a provider dialect is: OpenAI's bytes to a provider's and back, without IO.

The pivot format is OpenAI's chat-completions JSON: requests, answers, chunks of a stream, errors. A dialect turns a
pivot request into the provider's request and the provider's answer, stream or error into pivot bytes. It holds no
connection and no clock, so the gateway, evaluation and judges use the same code over their own clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from tidemill.kernel import InvalidInput

OPERATIONS: Final = frozenset(
    {"chat", "text_completion", "embeddings", "moderation", "transcription", "speech", "responses", "count_tokens"}
)
"""What a target can be asked for: operations of OpenAI's API, and Anthropic's count of a chat request's tokens."""


class UnsupportedField(InvalidInput):
    """A request field, or a value of it, that the provider has no place for.

    Args:
        field: the field, with a path where it is inside another: ``messages.content.input_audio``.
        provider: the dialect's name.
        reason: why, or what to use instead; a clause without a full stop.
    """

    def __init__(self, field: str, provider: str, reason: str = "") -> None:
        because = f": {reason}" if reason else ""
        super().__init__(f"The provider '{provider}' cannot serve '{field}'{because}.", hint="Leave the field out.")
        self.field = field
        self.provider = provider
        self.reason = reason


class UnsupportedOperation(InvalidInput):
    """An operation that the provider does not offer.

    Args:
        operation: one of ``OPERATIONS``.
        provider: the dialect's name.
    """

    def __init__(self, operation: str, provider: str) -> None:
        super().__init__(
            f"The provider '{provider}' does not serve the operation '{operation}'.",
            hint="Route this operation to another target.",
        )
        self.operation = operation
        self.provider = provider


@dataclass(frozen=True, slots=True)
class Credentials:
    """Secrets of one target. They never show in ``repr``.

    Args:
        api_key: the provider's key.
        extra: further secrets by name, e.g. ``aws_access_key_id``.
    """

    api_key: str | None = field(default=None, repr=False)
    extra: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a target stands.

    Args:
        base_path: path of the base URL without its last slash, e.g. ``/v1``; may be empty.
        host: host of the base URL, with its port where it is not the scheme's own.
        model: the model's name at the provider; it replaces the request's ``model``.
        options: what the dialect needs besides: ``api_version``, ``region``, ``deployment``, ``max_tokens``.
    """

    base_path: str
    host: str
    model: str
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProviderRequest:
    """A request as the provider wants it.

    Args:
        path: begins with the place's ``base_path``; with its query.
        headers: names in lower case, authorisation included; neither ``host`` nor ``content-length``.
        body: the bytes to send.
    """

    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


class StreamTranslator(Protocol):
    """One stream, translated as it comes. An instance belongs to one answer."""

    def feed(self, data: bytes) -> bytes:
        r"""Translate further bytes of the source; any split of them gives the same events.

        Returns:
            whole events (``data: {...}\n\n``), or nothing while none is complete. An error that the source reports
            inside its stream becomes an event with an ``error`` object.

        Raises:
            InvalidInput: the bytes are not what the source's format allows; the stream is then lost.
        """
        ...

    def finish(self) -> bytes:
        r"""Say that the source's stream has ended cleanly.

        Returns:
            what is still due, ``data: [DONE]\n\n`` included; without ``[DONE]`` when the source ended before its own
            last event, or reported an error.
        """
        ...


class Dialect(Protocol):
    """How to speak to one kind of provider.

    Guarantees of a translating dialect: each field of the request is served, mapped or refused by name; a field with
    the value ``null``, or with the value that asks for nothing (``n: 1``), counts as absent.
    """

    @property
    def name(self) -> str:
        """The word in a target's ``dialect``."""
        ...

    @property
    def operations(self) -> frozenset[str]:
        """What it can be asked for, out of ``OPERATIONS``."""
        ...

    @property
    def stream_type(self) -> bytes:
        """The content type that marks an answer as a stream."""
        ...

    def request(
        self, operation: str, body: bytes, place: Place, credentials: Credentials, *, now_s: float
    ) -> ProviderRequest:
        """Translate a pivot request.

        Args:
            operation: one of ``operations``.
            body: the pivot request's JSON.
            place: where the target stands.
            credentials: the target's secrets.
            now_s: Unix time, for signatures.

        Raises:
            UnsupportedField: the provider has no place for a field.
            InvalidInput: the body is not a request of this operation.
        """
        ...

    def answer(self, operation: str, body: bytes, *, model: str, now_s: float = 0.0) -> bytes:
        """Translate the provider's whole successful answer to pivot JSON.

        Args:
            operation: what was asked for.
            body: the provider's JSON.
            model: named in the answer where the provider names none.
            now_s: Unix time for ``created`` where the provider tells none.

        Raises:
            InvalidInput: the body is not an answer of this provider.
        """
        ...

    def error(self, status: int, body: bytes) -> tuple[int, bytes]:
        """Translate an answer with an error status: the status for the client, and OpenAI's error JSON.

        Never raises: what cannot be read becomes the message.
        """
        ...

    def stream(self, operation: str, request_body: bytes, *, model: str, now_s: float = 0.0) -> StreamTranslator:
        """Begin to translate a streamed answer.

        Args:
            operation: what was asked for.
            request_body: the pivot request, which decides e.g. how usage is sent.
            model: named in the chunks where the provider names none.
            now_s: Unix time for ``created`` where the provider tells none.
        """
        ...
