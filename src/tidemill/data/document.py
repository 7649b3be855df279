"""The document: one readable text and where it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tidemill.kernel import RowId


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One text from one source.

    Args:
        title: what a list of search results shows.
        text: the plain text; never HTML.
        source: URI of where it came from, e.g. ``python:topics/assert`` or ``file:docs/a.md``.
        media_type: what the source was before it became plain text.
    """

    title: str
    text: str
    source: str
    media_type: str = "text/plain"

    @property
    def row_id(self) -> RowId:
        """The stable row id: equal source and text, equal id in every version of every data set."""
        return RowId("doc_" + hashlib.sha256(f"{self.source}\0{self.text}".encode()).hexdigest()[:24])

    def as_value(self) -> dict[str, str]:
        """The value of the document's data set row."""
        return {"title": self.title, "text": self.text, "source": self.source, "media_type": self.media_type}

    @classmethod
    def from_value(cls, value: Mapping[str, Any]) -> Document:
        """Read back what ``as_value`` wrote."""
        return cls(**{name: value[name] for name in ("title", "text", "source", "media_type")})
