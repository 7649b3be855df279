"""What is kept of what other programs send: by service, and how much of a long text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tidemill.telemetry.records import Capture

_MARGIN_CHARS: Final = 4096
"""Of a text that is too long so much more is masked than is kept, for a cut may leave half of a secret unrecognised."""

PLAIN_PREFIXES: Final = (
    *("gen_ai.request.", "gen_ai.response.", "gen_ai.usage.", "gen_ai.output.type", "gen_ai.agent."),
    *("gen_ai.tool.name", "gen_ai.tool.type", "gen_ai.data_source.id", "gen_ai.workflow.name", "error."),
    *("http.request.method", "http.response.status_code", "server.", "deployment.environment", "service."),
    *("rpc.", "db.system", "tidemill."),
)  # fmt: skip
"""Text attributes that say nothing of content: all that ``hashed`` and ``none`` keep of those."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturePolicy:
    """What is kept of content.

    Args:
        default: for services that are not named.
        of: by ``service.name``.
        bytes_most: a text that is longer in UTF-8 is cut.
    """

    default: Capture = "masked"
    of: Mapping[str, Capture] = field(default_factory=dict)
    bytes_most: int = 256 << 10

    def of_service(self, service: str | None) -> Capture:
        """What is kept of a service's content."""
        return self.of.get(service, self.default) if service is not None else self.default


def cut_text(text: str, bytes_most: int) -> str:
    """A text of at most so many bytes of UTF-8, with a mark behind what is left of a longer one.

    The mark is ``…[cut: KEPT of ALL bytes]``; it counts among what is kept, not among the bytes allowed.
    """
    if len(text) * 4 <= bytes_most:
        return text
    data = text.encode("utf-8", "replace")
    if len(data) <= bytes_most:
        return text
    kept = data[:bytes_most].decode("utf-8", "ignore")
    return f"{kept}…[cut: {len(kept.encode())} of {len(data)} bytes]"


def shortened(text: str, bytes_most: int) -> str:
    """A long text before it is masked, so that masking costs no more than what may be kept of it."""
    most = bytes_most + _MARGIN_CHARS
    return text if len(text) <= most else text[:most]
