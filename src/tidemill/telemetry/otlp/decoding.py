"""From a received request to what is stored: read, refuse, map. Never raises for what a sender sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from tidemill.kernel import InvalidInput
from tidemill.telemetry.masking import Mask, masked_value
from tidemill.telemetry.otlp.logs import add_logs
from tidemill.telemetry.otlp.mapping import Mapped, SpanMapper
from tidemill.telemetry.otlp.messages import json_text
from tidemill.telemetry.otlp.packing import unpack
from tidemill.telemetry.otlp.points import Points
from tidemill.telemetry.otlp.refusal import log_refusal, refusals
from tidemill.telemetry.otlp.wire import Encoding, Group, RawLog, RawSpan, Signal, read_groups
from tidemill.telemetry.receipts import Receipt, Received
from tidemill.telemetry.store import SetAside

_SAMPLES: Final = 5
"""Refused records of one reason in one request that are described; the rest is counted."""
_SAMPLE_CHARS: Final = 2000


@dataclass(slots=True)
class Survey:
    """What a request holds, as far as its sender is told.

    Args:
        groups: read.
        refused: how many records by reason.
        places: of each group, which of its spans or logs are refused, and why.
        counts: of each group its spans, log records or data points, the refused ones included.
    """

    groups: list[Group]
    refused: Counter[str] = field(default_factory=Counter)
    places: list[Mapping[int, str]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    @property
    def records(self) -> int:
        """Records in all, the refused ones included."""
        return sum(self.counts)

    @property
    def accepted(self) -> int:
        """Records that are kept."""
        return self.records - sum(self.refused.values())

    def only(self, wanted: Sequence[bool]) -> Survey:
        """The groups that are wanted."""
        kept = [place for place, one in enumerate(wanted) if one]
        return Survey(
            [self.groups[place] for place in kept],
            places=[self.places[place] for place in kept],
            counts=[self.counts[place] for place in kept],
        )


def survey(signal: Signal, encoding: Encoding, body: bytes, received_ns: int, *, bare: bool = False) -> Survey:
    """Read a request and see which of its records are refused.

    Args:
        signal: which of OTLP's requests it is.
        encoding: how it is written.
        body: unpacked.
        received_ns: when it came, nanoseconds since 1970.
        bare: whether to leave out what no refusal depends on; the result cannot be decoded then.

    Raises:
        InvalidInput: nothing of it can be read.
    """
    found = Survey(read_groups(signal, encoding, body, bare=bare))
    for group in found.groups:
        found.counts.append(len(group.spans) + len(group.logs) + len(group.points) + len(group.broken))
        found.refused["unreadable"] += len(group.broken)
        if signal == "traces":
            places: Mapping[int, str] = refusals(group.spans, received_ns)
        else:
            reasons = ((place, log_refusal(log, received_ns)) for place, log in enumerate(group.logs))
            places = {place: reason for place, reason in reasons if reason is not None}
        found.refused.update(places.values())
        found.places.append(places)
    found.refused += Counter()  # without zeros
    return found


@dataclass(slots=True)
class Decoded(Mapped):
    """What a request became, and what of it was refused."""

    rejected: list[SetAside] = field(default_factory=list)


class Decoder:
    """Decodes received requests of one scope. Not thread-safe.

    Args:
        mapper: maps spans and logs.
        bytes_most: no request is unpacked beyond.
        points: takes the data points of metrics; ``None`` drops them.
    """

    def __init__(self, mapper: SpanMapper, *, bytes_most: int, points: Points | None = None) -> None:
        self._mapper = mapper
        self._bytes_most = bytes_most
        self._points = points

    def decode(self, received: Received) -> Decoded:
        """Decode a request out of a segment; what cannot be decoded any more is refused as a whole."""
        receipt = received.receipt
        if received.body is None:
            return self._lost(receipt, "content_lost", "its content key is gone, or its bytes were altered")
        try:
            body = unpack(received.body, receipt.packed, self._bytes_most)
            signal, encoding = cast("Signal", receipt.signal), cast("Encoding", receipt.encoding)
            return self.decode_survey(survey(signal, encoding, body, receipt.received_ns), receipt.received_ns)
        except InvalidInput as error:
            return self._lost(receipt, f"wrong_{receipt.encoding}", error.message)
        except Exception as error:  # noqa: BLE001 - our fault; one request must not stop all others from being stored
            return self._lost(receipt, "undecodable", f"{type(error).__name__}: {error}")

    def decode_survey(self, found: Survey, received_ns: int) -> Decoded:
        """Decode what ``survey`` read."""
        into = Decoded()
        for group, places in zip(found.groups, found.places, strict=True):
            spans: Iterable[RawSpan] = group.spans
            logs: Iterable[RawLog] = group.logs
            if places:
                spans = [one for place, one in enumerate(group.spans) if place not in places]
                logs = [one for place, one in enumerate(group.logs) if place not in places]
                self._refuse(group, places, received_ns, into)
            if group.spans:
                self._mapper.add(group, spans, into)
            if group.logs:
                add_logs(self._mapper, group, logs, into)
            if group.points and self._points is not None:
                self._points.add(group)
            into.rejected += [
                SetAside(reason="unreadable", at_ns=received_ns, source=_service(group), detail=why)
                for why in group.broken
            ]
        return into

    def _refuse(self, group: Group, places: Mapping[int, str], received_ns: int, into: Decoded) -> None:
        origin = self._mapper.origin(group)
        described: Counter[str] = Counter()
        for place, reason in places.items():
            record: RawSpan | RawLog = group.spans[place] if group.spans else group.logs[place]
            described[reason] += 1
            sample = described[reason] <= _SAMPLES and origin.capture == "masked"
            into.rejected.append(
                SetAside(
                    reason=reason,
                    at_ns=received_ns,
                    trace_id=record.trace_id[:64] or None,
                    span_id=record.span_id[:64] or None,
                    source=origin.service,
                    detail=_described(record, self._mapper.mask) if sample else "",
                )
            )

    @staticmethod
    def _lost(receipt: Receipt, reason: str, why: str) -> Decoded:
        into = Decoded()
        rejected = SetAside(reason=reason, at_ns=receipt.received_ns, source="otlp", detail=why[:_SAMPLE_CHARS])
        into.rejected = [rejected] * max(1, receipt.records)
        return into


def _service(group: Group) -> str | None:
    service = group.resource.get("service.name")
    return service[:256] if isinstance(service, str) else None


def _described(record: RawSpan | RawLog, mask: Mask) -> str:
    plain: dict[str, Any] = record._asdict()
    attributes = {str(name)[:256]: _short(value) for name, value in list(record.attributes.items())[:20]}
    plain |= {"attributes": masked_value(attributes, mask)}
    for name in ("name", "message", "event"):
        if plain.get(name):
            plain[name] = mask(str(plain[name])[:256])
    for name in ("events", "links", "body"):
        plain.pop(name, None)
    return json_text(plain)[:_SAMPLE_CHARS]


def _short(value: Any) -> Any:
    text = value if isinstance(value, str) else json_text(value)
    return text[:256] if isinstance(value, str) else (value if len(text) <= 256 else text[:256])
