"""Stored spans in the order of their ingestion, read once for all who follow them, and the places they reached.

Whoever follows keeps the sequence number it has seen. Monitors, objectives and metrics stand at the same place nearly
always, so a batch read for one is handed to the others.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from tidemill.kernel import Arm
from tidemill.telemetry import ENTRY_ATTRIBUTE, SpanQuery, SpanStore, StoredSpan
from tidemill.telemetry.records import Span

_log = logging.getLogger(__name__)

_BATCH: Final = 5000
_FORMAT: Final = 1


class SpanFeed:
    """Batches of stored spans, without content and references.

    Args:
        store: where they are.
        batch: most spans in one batch.
    """

    def __init__(self, store: SpanStore, *, batch: int = _BATCH) -> None:
        self._store = store
        self._batch = batch
        self._last: tuple[int, Sequence[StoredSpan]] | None = None

    def after(self, seq: int) -> Iterator[Sequence[StoredSpan]]:
        """All batches after a place, in the order of ingestion, until there are no more."""
        while True:
            found = self._read(seq)
            if not found:
                return
            yield found
            seq = found[-1].ingest_seq

    def since(self, since_ns: int) -> Iterator[Sequence[StoredSpan]]:
        """All batches of spans that began since a time, in the order of ingestion."""
        seq = 0
        while True:
            query = SpanQuery(after_seq=seq, since_ns=since_ns, limit=self._batch, with_references=False)
            found = self._store.spans(query)
            if not found:
                return
            yield found
            seq = found[-1].ingest_seq

    def _read(self, seq: int) -> Sequence[StoredSpan]:
        last = self._last
        if last is not None and last[0] == seq:
            return last[1]
        found = self._store.spans(SpanQuery(after_seq=seq, limit=self._batch, with_references=False))
        if found:
            self._last = (seq, found)
        return found


def is_request(span: Span) -> bool:
    """Whether a span stands for a whole request that somebody waited for: a copy for a shadow does not."""
    if span.arm == Arm.SHADOW.value:
        return False
    return span.parent_span_id is None or bool(span.attributes.get(ENTRY_ATTRIBUTE))


def load_state(path: Path | None, *, identity: str) -> Mapping[str, Any]:
    """What ``state_document`` wrote; nothing where there is none, or where it belongs to another span store.

    Args:
        path: the file; ``None`` for none.
        identity: names the span store, so that places reached in one are never taken for places in another.
    """
    if path is None:
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _log.warning("the state %s cannot be read, so it is made anew from the stored spans: %s", path, error)
        return {}
    if not isinstance(document, dict) or (document.get("format"), document.get("store")) != (_FORMAT, identity):
        return {}
    return document


def state_file(state: Path) -> Path:
    """Where the places reached are kept, in a project's state folder."""
    return state / "monitoring.json"


def kept_anywhere(state: Path) -> Mapping[str, Any]:
    """What was kept last in a project's state folder, whichever span store it belongs to; for looking, not going on."""
    try:
        document = json.loads(state_file(state).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) and document.get("format") == _FORMAT else {}


def state_document(states: Mapping[str, Any], *, identity: str) -> dict[str, Any]:
    """A state file's content: the states by name, and the span store they belong to."""
    return {"format": _FORMAT, "store": identity, **states}


def store_identity(path: Path, url: str | None = None) -> str:
    """A name for a span store: another one after it was removed, put back from a backup, or moved elsewhere.

    Args:
        path: of the embedded store.
        url: of a server that keeps spans instead.
    """
    if url is not None:
        return f"url:{sha256(url.encode()).hexdigest()[:16]}"  # a URL may hold a password
    try:
        found = path.stat()
    except FileNotFoundError:
        return "none"
    return f"{found.st_dev}:{found.st_ino}"
