"""Provider dialects: OpenAI's chat format to each provider's own and back, as pure functions over bytes."""

from __future__ import annotations

from tidemill.models.providers.dialect import (
    OPERATIONS,
    Credentials,
    Dialect,
    Place,
    ProviderRequest,
    StreamTranslator,
    UnsupportedField,
    UnsupportedOperation,
)
from tidemill.models.providers.registry import DIALECTS, PASS_THROUGH, dialect

__all__ = [
    "DIALECTS",
    "OPERATIONS",
    "PASS_THROUGH",
    "Credentials",
    "Dialect",
    "Place",
    "ProviderRequest",
    "StreamTranslator",
    "UnsupportedField",
    "UnsupportedOperation",
    "dialect",
]
