"""From a span as it came to a span as it is kept: columns by the alias table, content masked, hashed or left out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tidemill.telemetry.aliases import AliasTable, alias_table
from tidemill.telemetry.masking import Mask, masked_entry, masked_json, masked_value
from tidemill.telemetry.otlp.content import Said, read_content, sent_references
from tidemill.telemetry.otlp.costs import PriceBook, PriceOf, call_cost_usd
from tidemill.telemetry.otlp.events import Evaluation, Told, merged_attributes, read_events, score_id_of
from tidemill.telemetry.otlp.fields import ID_CHARS, Fields, Usage
from tidemill.telemetry.otlp.messages import answer_of, json_text
from tidemill.telemetry.otlp.plans import Plan, Plans, first
from tidemill.telemetry.otlp.policy import PLAIN_PREFIXES, CapturePolicy, cut_text, shortened
from tidemill.telemetry.otlp.wire import Attributes, Group, RawSpan
from tidemill.telemetry.records import AttributeValue, Capture, Content, Score, Span
from tidemill.telemetry.sealing import hashed

PLAIN_CHARS: Final = 256
"""A longer text is content, not an attribute that spans are found by."""
_PLAIN_MOST: Final = 128
_NAME_CHARS: Final = 512
_MOST_NAMES: Final = 4096
_NO_TOLD: Final = Told()
_NOT_TEXT: Final = frozenset(("at_ns", "trace_id", "span_id"))
_ESCAPES: Final = ("\\u", "\\/")


@dataclass(slots=True)
class Mapped:
    """What groups became: ``late`` is content apart from its span; ``counts`` tells what could not be believed."""

    spans: list[Span] = field(default_factory=list)
    contents: dict[tuple[str, str], Content] = field(default_factory=dict)
    late: list[tuple[tuple[str, str], Content]] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Keys of hashes: ``user`` of persons, ``content`` of content and of sessions that are e-mail addresses."""

    user: bytes
    content: bytes


@dataclass(slots=True)
class Origin:
    """What all records of a group share: their program, its policy, and its description as an object
    and as text, and whether there is nothing in it to be masked.
    """

    service: str | None
    capture: Capture
    detail: dict[str, Any]
    text: str
    clean: bool


class SpanMapper:
    """Maps spans of one scope. Not thread-safe.

    Args:
        project, tenant: whose spans they are.
        keys: of hashes.
        policy: what is kept of content.
        mask: takes personal data out of a text.
        suspect: ``False`` only of texts that ``mask`` leaves alone, and so do all their parts; ``None`` masks all.
        price_of: our price table; costs that senders tell hold where it has none.
    """

    def __init__(
        self,
        project: str,
        tenant: str,
        *,
        keys: Keys,
        policy: CapturePolicy,
        mask: Mask,
        suspect: Callable[[str], bool] | None = None,
        price_of: PriceOf | None = None,
    ) -> None:
        self._project = project
        self._tenant = tenant
        self._keys = keys
        self._policy = policy
        self._suspect: Callable[[str], bool] = suspect or bool
        self.mask: Mask = lambda text: mask(text) if self._suspect(text) else text
        self._book = PriceBook(price_of)
        self.table: AliasTable = alias_table()
        self._plans = Plans(self.table)
        self.plan = self._plans.plan
        self._clean_names: dict[tuple[str, ...], bool] = {}
        self._users: dict[str, str] = {}

    def add(self, group: Group, places: Iterable[RawSpan], into: Mapped) -> None:
        """Map spans of a group.

        Args:
            group: where they came from.
            places: the ones that were not refused.
            into: takes what they become.
        """
        origin = self.origin(group)
        for raw in places:
            span, content, evaluations = self._one(raw, origin, into.counts)
            into.spans.append(span)
            if content is not None:
                into.contents.setdefault((span.trace_id, span.span_id), content)
            if evaluations:
                into.scores += self.scores(raw.trace_id, raw.span_id, evaluations, origin.capture)

    def origin(self, group: Group) -> Origin:
        """What the spans and logs of a group share: its program's name, policy and description."""
        service = group.resource.get("service.name")
        service = service[:ID_CHARS] if isinstance(service, str) and service else None
        detail: dict[str, Any] = {}
        resource = {name: value for name, value in group.resource.items() if name != "service.name"}
        if resource:
            detail["resource"] = resource
        if group.scope:
            detail["scope"] = group.scope
        text = json_text(detail) if detail else ""
        clean = not self._suspect(text) and not any(escape in text for escape in _ESCAPES)
        return Origin(service, self._policy.of_service(service), detail, text, clean)

    def scores(self, trace_id: str, span_id: str, evaluations: Iterable[Evaluation], capture: Capture) -> list[Score]:
        """Evaluations as scores; their explanations are content."""
        return [
            Score(
                score_id=score_id_of(trace_id, span_id, one),
                trace_id=trace_id,
                span_id=span_id,
                name=self.mask(one.name)[:ID_CHARS],
                source="scorer",
                at_ns=one.at_ns,
                project=self._project,
                tenant=self._tenant,
                value=one.value,
                label=self.mask(one.label)[:ID_CHARS] if one.label is not None else None,
                comment=self._text(one.comment) if one.comment is not None and capture == "masked" else None,
            )
            for one in evaluations
        ]

    def content(
        self, said: Said, detail: Mapping[str, Any], capture: Capture, mask: Mask | None, text: str = ""
    ) -> Content | None:
        """Content as it is kept; ``None`` where nothing is. ``text`` is the detail where it is known as text."""
        if capture == "none" or not (said.input or said.output or detail):
            return None
        if capture == "hashed":
            key = self._keys.content
            return Content(
                hashed(said.input, key) if said.input else "", hashed(said.output, key) if said.output else ""
            )
        most = self._policy.bytes_most
        return Content(
            cut_text(_masked(said.input, mask, most), most),
            cut_text(_masked(said.output, mask, most), most),
            text if text and len(text) <= most else self._detail(detail, mask, most),
        )

    def mask_for(self, texts: Sequence[str], names: tuple[str, ...]) -> Mask | None:
        """What these texts must be masked with: ``None`` where there is provably nothing to mask."""
        joined = "\n".join(texts)
        clean = not self._suspect(joined) and not any(escape in joined for escape in _ESCAPES) and self._clean(names)
        return None if clean else self.mask

    def _clean(self, names: tuple[str, ...]) -> bool:
        known = self._clean_names.get(names)
        if known is None:
            if len(self._clean_names) >= _MOST_NAMES:
                self._clean_names.clear()
            known = self._clean_names[names] = not self._suspect("\n".join(names))
        return known

    def _text(self, text: str) -> str:
        most = self._policy.bytes_most
        return cut_text(self.mask(shortened(text, most)), most)

    def _detail(self, detail: Mapping[str, Any], mask: Mask | None, most: int) -> str:
        if not detail:
            return ""
        kept = detail if mask is None else _masked_detail(detail, mask)
        text = json_text(kept)
        return text if len(text) <= most else json_text(_cut_leaves(kept, most))

    def _one(self, raw: RawSpan, origin: Origin, counts: Counter[str]) -> tuple[Span, Content | None, list[Evaluation]]:
        told = read_events(self.table, raw.events) if raw.events else _NO_TOLD
        attributes = merged_attributes(raw.attributes, told.attributes)
        names = tuple(attributes)
        plan = self.plan(names)
        mask = self.mask_for(_texts(raw, attributes), names) if origin.clean else self.mask
        said = read_content(self.table, plan, attributes)
        if told is not _NO_TOLD:
            _add_told(said, told)
        plain, rest = self._rest(plan, attributes, origin.capture, mask)
        reader = Fields(plan, attributes, counts)
        operation = self._operation(plan, attributes, reader)
        span = self._span(raw, origin, operation, reader, plain, said, told, mask)
        detail, text = origin.detail, origin.text if mask is None else ""
        if rest or told.kept or raw.links or raw.message:
            detail, text = _described(origin, raw, told, rest), ""
        if raw.dropped:
            counts["dropped_fields"] += raw.dropped
        content = self.content(said, detail, origin.capture, mask, text)
        return span, content, told.evaluations

    def _operation(self, plan: Plan, attributes: Attributes, reader: Fields) -> str:
        named = reader.text("operation")
        if named:
            return named.lower()[:64]
        for name, values in plan.operations:
            found = values.get(str(attributes[name]))
            if found is not None:
                return found
        # A model with tokens is a call, whatever it is called.
        return "chat" if reader.has("input_tokens") or reader.has("output_tokens") else "span"

    def _span(
        self,
        raw: RawSpan,
        origin: Origin,
        operation: str,
        reader: Fields,
        plain: dict[str, AttributeValue],
        said: Said,
        told: Told,
        mask: Mask | None,
    ) -> Span:
        text = reader.text
        provider, asked, answered = text("provider"), text("request_model"), text("response_model")
        usage, cost_usd = self._usage(operation, provider, (answered, asked), raw.started_at_ns, reader, plain)
        session = text("session_id")
        release = text("release")
        parent = raw.parent_span_id
        failed = raw.status == 2
        error_type = text("error_type") or (told.error_type if failed else None)
        name = raw.name[:_NAME_CHARS] or operation
        references = said.references
        if reader.has("references"):
            references = [*references, *sent_references(reader.value("references"))]
        return Span(
            raw.trace_id,
            raw.span_id,
            self._project,
            self._tenant,
            mask(name) if mask is not None else name,
            operation,
            raw.started_at_ns,
            raw.ended_at_ns,
            parent or None,
            "error" if failed else "cancelled" if text("status") == "cancelled" else "ok",
            error_type,
            reader.http_status(),
            text("endpoint"),
            release,
            release,
            None,
            self._session(session, mask) if session is not None else None,
            self._user(reader),
            provider,
            asked,
            answered,
            usage[0],
            usage[1],
            cost_usd,
            reader.first_chunk_s(raw.started_at_ns),
            reader.reasons() or tuple(said.finish_reasons),
            reader.flag("stream"),
            None,
            plain,
            tuple(references),
            reader.prompt(),
            origin.service,
            usage[2],
            usage[3],
        )

    def _usage(
        self,
        operation: str,
        provider: str | None,
        models: tuple[str | None, ...],
        at_ns: int,
        reader: Fields,
        plain: dict[str, AttributeValue],
    ) -> tuple[Usage, float | None]:
        """Tokens and cost of a call; of another operation they stay attributes, for a call below it has them too."""
        usage, sent = reader.usage(), reader.sent_cost_usd()
        if sent is not None:
            plain["tidemill.sent_cost_usd"] = sent
        if operation not in self.table.calls:
            plain |= {name: one for name, one in zip(_USAGE_NAMES, usage, strict=True) if one is not None}
            return _NO_USAGE, None
        read, written, cached, reasoned = usage
        if read is not None or written is not None:
            prices = self._book.prices(provider, models, at_ns)
            if prices is not None:
                return usage, call_cost_usd(prices, read or 0, written or 0, cached or 0, reasoned or 0)
        return usage, sent

    def _session(self, session: str, mask: Mask | None) -> str:
        if len(session) > ID_CHARS or ("@" in session and mask is not None and mask(session) != session):
            return hashed(session, self._keys.content)
        return session

    def _user(self, reader: Fields) -> str | None:
        user = reader.text("user")
        if user is None:
            return None
        found = self._users.get(user)
        if found is None:
            if len(self._users) >= _MOST_NAMES:
                self._users.clear()
            data = user.encode("utf-8", "replace")
            found = self._users[user] = hashlib.blake2b(data, key=self._keys.user, digest_size=16).hexdigest()
        return found

    def _rest(
        self, plan: Plan, attributes: Attributes, capture: Capture, mask: Mask | None
    ) -> tuple[dict[str, AttributeValue], Attributes]:
        """What has no column: plain values that spans are found by, and all else."""
        plain: dict[str, AttributeValue] = {}
        rest: Attributes = {}
        for name, kept in (*plan.rest, *_outvoted(plan, attributes)):
            value = attributes[name]
            if isinstance(value, str):
                if capture != "masked" and not kept.startswith(PLAIN_PREFIXES):
                    continue
                if len(value) <= PLAIN_CHARS and len(plain) < _PLAIN_MOST:
                    plain[_key(kept, mask)] = masked_entry(kept, value, mask) if mask is not None else value
                    continue
            elif isinstance(value, int | float) and len(plain) < _PLAIN_MOST:
                plain[_key(kept, mask)] = masked_value(value, mask) if mask is not None else value
                continue
            if value is not None:
                rest[kept] = value
        return plain, rest


def _key(name: str, mask: Mask | None) -> str:
    return mask(name) if mask is not None else name


_NO_USAGE: Final[Usage] = (None, None, None, None)
_USAGE_NAMES: Final = (
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.reasoning.output_tokens",
)


def _outvoted(plan: Plan, attributes: Attributes) -> list[tuple[str, str]]:
    """Names whose field has another value from a better name: that other value is no secret, so it is kept."""
    found: list[tuple[str, str]] = []
    for column, names in plan.contested:
        if column not in ("user", "request_model"):
            best = first(attributes, names)
            found += [(name, name) for name in names if attributes[name] != best and attributes[name] is not None]
    return found


def _texts(raw: RawSpan, attributes: Attributes) -> list[str]:
    """All texts of a span, those inside lists and events as JSON."""
    found = [raw.name, raw.message]
    for value in attributes.values():
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, list | dict):
            found.append(json_text(value))
        elif isinstance(value, int) and abs(value) >= 10_000_000:
            found.append(str(value))
    if raw.events:
        found.append(json_text(raw.events))
    if raw.links:
        found.append(json_text([link.attributes for link in raw.links]))
    return found


def _add_told(said: Said, told: Told) -> None:
    """Add what events said. Attributes of the span come first: events beside them say the same again."""
    if told.asked and not said.input:
        said.input = json_text(told.asked)
    if told.answered and not said.output:
        said.output, reasons = answer_of(told.answered)
        said.finish_reasons = said.finish_reasons or reasons
    said.references += told.references


def _described(origin: Origin, raw: RawSpan, told: Told, rest: Attributes) -> dict[str, Any]:
    detail = dict(origin.detail)
    if rest:
        detail["attributes"] = rest
    if told.kept:
        detail["events"] = told.kept
    if raw.links:
        detail["links"] = [
            {
                "trace_id": link.trace_id,
                "span_id": link.span_id,
                **({"attributes": link.attributes} if link.attributes else {}),
            }
            for link in raw.links
        ]
    if raw.message:
        detail["message"] = raw.message
    return detail


def _masked_detail(detail: Mapping[str, Any], mask: Mask) -> dict[str, Any]:
    """All of a description masked but ids and times, whose digits are nobody's number."""
    found: dict[str, Any] = {}
    for part, value in detail.items():
        if part in ("events", "links"):
            found[part] = [
                {key: one[key] if key in _NOT_TEXT else masked_value(one[key], mask) for key in one} for one in value
            ]
        else:
            found[part] = masked_value(value, mask)
    return found


def _masked(text: str, mask: Mask | None, most: int) -> str:
    if mask is None or not text:
        return text
    if text[:1] in ("[", "{", '"'):
        return masked_json(text, mask)
    return mask(shortened(text, most))


def _cut_leaves(value: Any, most: int) -> Any:
    """A value whose texts are cut so that one of them cannot take all the room, and whose lists end in time."""
    if isinstance(value, str):
        return cut_text(value, most)
    if isinstance(value, dict):
        return {key: _cut_leaves(one, most) for key, one in value.items()}
    if isinstance(value, list) and len(value) > ID_CHARS:
        return cut_text(json_text(value), most)
    return [_cut_leaves(one, most) for one in value] if isinstance(value, list) else value
