"""What a client-side dialect is, and which path speaks which."""

from __future__ import annotations

from importlib import import_module
from typing import Final, Protocol, cast

from tidemill.models.providers import StreamTranslator

__all__ = ["ClientDialect", "StreamTranslator", "client_dialect"]

# path -> module below this package, and its class; one instance serves one request
_PATHS: Final[dict[bytes, tuple[str, str]]] = {
    b"/v1/messages": ("messages", "MessagesDialect"),
    b"/v1/messages/count_tokens": ("count_tokens", "CountTokensDialect"),
}


class ClientDialect(Protocol):
    """A client that speaks another format than OpenAI's chat completions. One instance serves one request."""

    def request(self, body: bytes) -> bytes:
        """Translate the client's request to a pivot chat request.

        Raises:
            Refusal: the body cannot be read, or asks for what the pivot cannot say; the error names the field.
        """
        ...

    def answer(self, body: bytes) -> bytes:
        """Translate a whole successful pivot answer to the client's format."""
        ...

    def error(self, status: int, body: bytes) -> bytes:
        """Translate OpenAI's error JSON to the client's error format; the status stays."""
        ...

    def stream(self) -> StreamTranslator:
        """Begin to translate a pivot stream; an error event inside it is translated too."""
        ...


def client_dialect(path: bytes) -> ClientDialect | None:
    """A new dialect for a request to this path; ``None`` where bytes are the pivot's already.

    Args:
        path: the request's path without its query.
    """
    where = _PATHS.get(path)
    if where is None:
        return None
    module = import_module(f"tidemill.gateway.dialects.{where[0]}")
    return cast(ClientDialect, getattr(module, where[1])())
