"""Client-side dialects: clients that speak another format than OpenAI's chat completions."""

from __future__ import annotations

from tidemill.gateway.dialects.client import ClientDialect, StreamTranslator, client_dialect

__all__ = ["ClientDialect", "StreamTranslator", "client_dialect"]
