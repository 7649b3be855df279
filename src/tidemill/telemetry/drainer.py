"""Brings segments into the span store: reads, masks, commits rows and offsets together, removes what is drained.

It holds no state that matters: killed at any moment and started again, it goes on from the offsets in the store, and
what it stores twice is recognised there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tidemill.kernel import Clock, InvalidInput, SystemClock
from tidemill.telemetry.frames import End, SegmentHeader
from tidemill.telemetry.masking import masked_content, masked_score, masked_span
from tidemill.telemetry.reading import (
    Corrupt,
    Finished,
    Record,
    hold_if_abandoned,
    inspect_segment,
    read_header,
    read_segment,
)
from tidemill.telemetry.receipts import Received
from tidemill.telemetry.records import Content, Score, Span, interrupted_span
from tidemill.telemetry.sealing import destroy_secret, shared_secret
from tidemill.telemetry.segments import HASH_KEY_NAME, KEY_SUFFIX, SEGMENT_SUFFIX
from tidemill.telemetry.store import Batch, CommitReport, SetAside, SpanStore

if TYPE_CHECKING:
    from tidemill.telemetry.otlp.decoding import Decoder

_MAX_BATCH_CHARS: Final = 64 << 20
"""A batch is committed early when its texts reach this size, so that memory stays bounded."""
_ORPHAN_AGE_S: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainReport:
    """What one call did.

    Args:
        records: records read, of every kind.
        spans, scores: new ones stored.
        conflicts: records that differ from the one stored first under the same ids.
        interrupted: placeholders stored for calls that a dead writer left open.
        rejected: records of received requests that were refused, and requests that could not be decoded.
        implausible: values that were not believed, by kind; their spans are kept.
        corrupt: stretches of a segment that could not be read.
        torn_bytes: bytes of last records that their writers never completed, and so never acknowledged.
        content_lost: spans whose content could not be decrypted any more.
        files_removed: segments that were drained and removed, with their keys.
        more: the limit was reached; call again.
        problems: segments that were left alone, and why.
    """

    records: int = 0
    spans: int = 0
    scores: int = 0
    conflicts: int = 0
    interrupted: int = 0
    rejected: int = 0
    implausible: Mapping[str, int] = field(default_factory=dict)
    corrupt: int = 0
    torn_bytes: int = 0
    content_lost: int = 0
    files_removed: int = 0
    more: bool = False
    problems: tuple[str, ...] = ()


@dataclass(slots=True)
class _Segment:
    """A segment on its way: where reading stands, and whether nobody writes it any more."""

    path: Path
    header: SegmentHeader
    first: int
    at: int
    abandoned: bool

    @property
    def name(self) -> str:
        """What its offset is stored under; the id makes it unique where file numbers begin again."""
        return f"{self.header.writer}/{self.path.name}#{self.header.segment_id}"


@dataclass(slots=True)
class _Gathered:
    """Records of one batch, masked, and how far they reach."""

    spans: list[Span] = field(default_factory=list)
    raw: list[Span] = field(default_factory=list)
    contents: dict[tuple[str, str], Content] = field(default_factory=dict)
    late: list[tuple[tuple[str, str], Content]] = field(default_factory=list)
    rejected: list[SetAside] = field(default_factory=list)
    implausible: Counter[str] = field(default_factory=Counter)
    seen: set[tuple[str, str]] = field(default_factory=set)
    scores: list[Score] = field(default_factory=list)
    offsets: dict[str, int] = field(default_factory=dict)
    records: int = 0
    corrupt: int = 0
    torn_bytes: int = 0
    content_lost: int = 0
    chars: int = 0


class Drainer:
    """Drains the segments of one scope into its store. One drainer at a time may work on a store.

    Args:
        segments: the folder that holds one folder for each writer.
        store: where records go.
        mask: takes personal data out of a text; applied to all content, comments, corrections and text attributes
            before anything is stored.
        clock: where the time comes from.
        settle: given the spans of each batch as they were written, placeholders included, before the batch is
            committed. What it raises leaves the batch to the next call, so it sees every span at least once. Spans
            that other programs sent are not among them: nobody settles by what they say.
        decoder: reads what other programs sent; ``None`` leaves such segments alone.
        refused: takes what receivers have refused since it was last asked; it is set aside with the next batch.
    """

    def __init__(
        self,
        segments: Path,
        store: SpanStore,
        *,
        mask: Callable[[str], str],
        clock: Clock | None = None,
        settle: Callable[[Sequence[Span]], None] | None = None,
        decoder: Decoder | None = None,
        refused: Callable[[], Sequence[SetAside]] | None = None,
    ) -> None:
        self._segments = segments
        self._store = store
        self._mask = mask
        self._clock = clock or SystemClock()
        self._settle = settle
        self._decoder = decoder
        self._refused = refused
        self._pending: list[SetAside] = []
        self._offsets: dict[str, int] | None = None
        self._headers: dict[Path, tuple[int, SegmentHeader, int]] = {}
        self._gone: list[str] = []
        self._served = Path()
        segments.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._session_key = shared_secret(segments / HASH_KEY_NAME)

    def drain_once(self, limit: int = 5000) -> DrainReport:
        """Bring up to ``limit`` records into the store in one transaction.

        A segment that its writer has let go of and that is stored to its end is removed with its key; intents still
        open in it become ``interrupted`` spans first. A segment with damage keeps its bytes under the name
        ``<segment id>.corrupt``, without its key. A segment that is being written is only read.

        Returns:
            What was done; ``more`` says whether to call again at once.
        """
        if self._offsets is None:
            self._offsets = self._store.offsets()
        gathered = _Gathered()
        problems: list[str] = []
        ended: list[tuple[_Segment, bool]] = []
        with ExitStack() as locks:
            for segment in self._work(locks, problems):
                if self._read(segment, gathered, limit, problems) and segment.abandoned:
                    ended.append((segment, self._leave_behind(segment, gathered, problems)))
                if _full(gathered, limit):
                    break
            report = self._commit(gathered)
            for segment, corrupt in ended:
                self._remove(segment, damaged=corrupt)
        self._sweep()
        return DrainReport(
            records=gathered.records,
            spans=report.spans,
            scores=report.scores,
            conflicts=report.conflicts,
            interrupted=report.interrupted,
            rejected=len(gathered.rejected),
            implausible=dict(gathered.implausible),
            corrupt=gathered.corrupt,
            torn_bytes=gathered.torn_bytes,
            content_lost=gathered.content_lost,
            files_removed=len(ended),
            more=_full(gathered, limit),
            problems=tuple(problems),
        )

    def _work(self, locks: ExitStack, problems: list[str]) -> Iterator[_Segment]:
        """Segments of the store's scope that have something new or can be removed, oldest first for each writer."""
        assert self._offsets is not None
        scope = self._store.scope
        paths = sorted(self._segments.glob(f"*/*{SEGMENT_SUFFIX}"))
        # A full batch stops the round; the next one begins behind the last segment served, so none starves.
        paths.sort(key=lambda path: path <= self._served)
        for path in paths:
            self._served = path
            try:
                header, first = self._header(path)
                if (header.project, header.tenant) != (scope.project, scope.tenant):
                    continue
                abandoned = locks.enter_context(hold_if_abandoned(path))
                segment = _Segment(path, header, first, 0, abandoned)
                segment.at = self._offsets.get(segment.name, first)
                if abandoned or path.stat().st_size > segment.at:
                    yield segment
            except FileNotFoundError:
                continue
            except InvalidInput as error:
                problems.append(error.message)

    def _header(self, path: Path) -> tuple[SegmentHeader, int]:
        inode = path.stat().st_ino
        known = self._headers.get(path)
        if known is None or known[0] != inode:
            known = (inode, *read_header(path))
            self._headers[path] = known
        return known[1], known[2]

    def waiting_bytes(self) -> int:
        """Bytes in segments that are not stored yet. Any thread may ask."""
        offsets = self._offsets or {}
        waiting = 0
        for path, (_, header, first) in list(self._headers.items()):
            with suppress(FileNotFoundError):
                name = f"{header.writer}/{path.name}#{header.segment_id}"
                waiting += max(0, path.stat().st_size - offsets.get(name, first))
        return waiting

    def _read(self, segment: _Segment, gathered: _Gathered, limit: int, problems: list[str]) -> bool:
        """Read on until the batch is full or the segment's end; whether that end was reached."""
        private = segment.header.capture == "masked"
        for record, after in read_segment(segment.path, segment.at):
            if isinstance(record, Received):
                if self._decoder is None:
                    problems.append(f"{segment.path} holds what other programs sent, and nothing here decodes it")
                    return False
                self._take_received(record, gathered, self._decoder)
            else:
                self._take(record, gathered, private=private)
            if isinstance(record, Corrupt):
                problems.append(f"{segment.path}: bytes {record.start} to {record.end} are lost: {record.reason}")
            segment.at = after
            gathered.offsets[segment.name] = after
            if _full(gathered, limit):
                return False
        return True

    def _take(self, record: Record, gathered: _Gathered, *, private: bool) -> None:
        if not isinstance(record, End):
            gathered.records += 1
        if isinstance(record, Finished):
            if record.span.service is None:
                gathered.raw.append(record.span)
            span = masked_span(record.span, self._mask, self._session_key)
            gathered.spans.append(span)
            gathered.content_lost += record.content_lost
            key = (span.trace_id, span.span_id)
            # Of two records of one span the store keeps the first, so its content must be the first one's too.
            first = key not in gathered.seen
            gathered.seen.add(key)
            if first and record.content is not None:
                content = masked_content(record.content, self._mask) if private else record.content
                gathered.contents[key] = content
                gathered.chars += len(content.input) + len(content.output)
        elif isinstance(record, Score):
            gathered.scores.append(masked_score(record, self._mask))
        elif isinstance(record, Corrupt):
            gathered.corrupt += 1

    def _take_received(self, received: Received, gathered: _Gathered, decoder: Decoder) -> None:
        """Decode a request; it counts as many records as were acknowledged, so that batches stay bounded."""
        decoded = decoder.decode(received)
        gathered.records += max(1, received.receipt.records)
        gathered.content_lost += received.body is None
        gathered.spans += decoded.spans
        for key, content in decoded.contents.items():
            if key not in gathered.seen:
                gathered.contents[key] = content
                gathered.chars += len(content.input) + len(content.output) + len(content.detail)
        gathered.seen.update((span.trace_id, span.span_id) for span in decoded.spans)
        gathered.late += decoded.late
        gathered.scores += decoded.scores
        gathered.rejected += decoded.rejected
        gathered.implausible += decoded.counts

    def _leave_behind(self, segment: _Segment, gathered: _Gathered, problems: list[str]) -> bool:
        """Write placeholders for the calls a dead writer left open; whether the segment is damaged."""
        remains = inspect_segment(segment.path)
        gathered.torn_bytes += 0 if remains.damaged_tail else remains.torn_bytes
        if remains.damaged_tail:
            gathered.corrupt += 1
            problems.append(f"{segment.path}: its last {remains.torn_bytes} bytes are lost: the checksum does not fit")
        scope = self._store.scope
        for intent in remains.open_intents:
            placeholder = interrupted_span(intent, project=scope.project, tenant=scope.tenant)
            gathered.raw.append(placeholder)
            gathered.spans.append(masked_span(placeholder, self._mask, self._session_key))
        return remains.corrupt > 0 or remains.damaged_tail

    def _commit(self, gathered: _Gathered) -> CommitReport:
        if self._refused is not None:
            self._pending += self._refused()
        gathered.rejected += self._pending
        if not (gathered.offsets or gathered.spans or gathered.rejected or self._gone):
            return CommitReport()
        assert self._offsets is not None
        if self._settle is not None and gathered.raw:
            self._settle(gathered.raw)
        batch = Batch(
            gathered.spans, gathered.contents, gathered.scores, rejected=gathered.rejected, late=gathered.late
        )
        report = self._store.commit(batch, gathered.offsets, forget=self._gone)
        self._pending = []
        self._offsets |= gathered.offsets
        for name in self._gone:
            self._offsets.pop(name, None)
        self._gone = []
        return report

    def _remove(self, segment: _Segment, *, damaged: bool) -> None:
        """Destroy the key, then the segment. Its offset is forgotten with the next commit, when it is surely gone."""
        destroy_secret(segment.path.with_suffix(KEY_SUFFIX))
        with suppress(FileNotFoundError):
            if damaged:
                segment.path.rename(segment.path.with_name(f"{segment.header.segment_id}.corrupt"))
            else:
                segment.path.unlink()
        self._headers.pop(segment.path, None)
        self._gone.append(segment.name)

    def _sweep(self) -> None:
        """Remove keys and drafts of writers that died while they made a segment."""
        before_s = self._clock.now().timestamp() - _ORPHAN_AGE_S
        for path in self._segments.glob("*/*"):
            if path.suffix not in (KEY_SUFFIX, ".tmp"):
                continue
            with suppress(FileNotFoundError):
                if path.stat().st_mtime > before_s:
                    continue
                if path.suffix == ".tmp":
                    path.unlink()  # not overwritten: it may be a second name of a living segment
                elif not path.with_suffix(SEGMENT_SUFFIX).exists():
                    destroy_secret(path)


def _full(gathered: _Gathered, limit: int) -> bool:
    return gathered.records >= limit or gathered.chars >= _MAX_BATCH_CHARS
