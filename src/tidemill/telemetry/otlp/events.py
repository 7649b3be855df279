"""What span events and log records tell: messages, requests, evaluations, passages; the rest is kept as it came."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from tidemill.telemetry.aliases import AliasTable
from tidemill.telemetry.otlp.content import reference_of
from tidemill.telemetry.otlp.messages import Message, decoded, messages_of
from tidemill.telemetry.otlp.plans import first
from tidemill.telemetry.otlp.wire import Attributes, RawEvent
from tidemill.telemetry.records import Reference

_ROLES: Final = {"system": "system", "user": "user", "assistant": "assistant", "tool": "tool", "choice": "assistant"}


class Evaluation(NamedTuple):
    """An evaluation's result; ``value`` or ``label`` is there."""

    name: str
    value: float | None
    label: str | None
    comment: str | None
    at_ns: int


@dataclass(slots=True)
class Told:
    """What events told.

    Args:
        asked, answered: messages.
        attributes: of events that stand for attributes of the span.
        kept: events that the table does not know, as JSON objects.
        error_type: an exception's type.
    """

    asked: list[Message] = field(default_factory=list)
    answered: list[Message] = field(default_factory=list)
    attributes: Attributes = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)
    references: list[Reference] = field(default_factory=list)
    kept: list[dict[str, Any]] = field(default_factory=list)
    error_type: str | None = None


def read_events(table: AliasTable, events: Iterable[RawEvent]) -> Told:
    """Sort events out by the table; messages in the order of their times."""
    told = Told()
    for event in sorted(events, key=lambda one: one.at_ns):
        match table.events.get(event.name):
            case "input":
                told.asked.append(_message(event))
            case "output":
                told.answered.append(_message(event))
            case "attributes":
                told.attributes |= event.attributes
            case "score":
                evaluation = _evaluation(table, event)
                if evaluation is not None:
                    told.evaluations.append(evaluation)
                else:
                    told.kept.append(_kept(event))
            case "document":
                document = {key.rpartition(".")[2]: value for key, value in event.attributes.items()}
                told.references.append(reference_of(document, len(told.references) + 1))
            case "exception":
                kind = event.attributes.get("exception.type")
                told.error_type = kind if isinstance(kind, str) else told.error_type
                told.kept.append(_kept(event))
            case _:
                told.kept.append(_kept(event))
    return told


def _kept(event: RawEvent) -> dict[str, Any]:
    found: dict[str, Any] = {"name": event.name, "at_ns": event.at_ns}
    if event.attributes:
        found["attributes"] = event.attributes
    return found


def _message(event: RawEvent) -> Message:
    """One message out of an event's attributes; OpenTelemetry's choices hold it under ``message``."""
    fields = {key.removeprefix("gen_ai.event."): decoded(value) for key, value in event.attributes.items()}
    inner = fields.get("message")
    role = _ROLES.get(event.name.split(".")[1] if event.name.count(".") > 1 else "choice", "user")
    message: Message = {"role": role}
    content = fields.get("content", fields.get("gen_ai.prompt", fields.get("gen_ai.completion")))
    if isinstance(content, dict) and isinstance(content.get("role"), str):
        message |= content
    elif content is not None:
        message["content"] = content
    if isinstance(inner, dict):
        message |= inner
    elif isinstance(inner, str):
        message["content"] = inner
    for name in ("role", "tool_calls", "finish_reason", "name"):
        if fields.get(name):
            message[name] = fields[name]
    if fields.get("id"):
        message["tool_call_id"] = fields["id"]
    found = messages_of([message])
    return found[0] if found else message


def _evaluation(table: AliasTable, event: RawEvent) -> Evaluation | None:
    given = {name: first(event.attributes, names) for name, names in table.scores.items()}
    value, label, comment = given["value"], given["label"], given["comment"]
    number = float(value) if isinstance(value, int | float) else None
    label = label if isinstance(label, str) else None
    if number is None and label is None:
        return None
    name = given["name"]
    return Evaluation(
        name if isinstance(name, str) and name else "evaluation",
        number,
        label,
        comment if isinstance(comment, str) else None,
        event.at_ns,
    )


def score_id_of(trace_id: str, span_id: str, evaluation: Evaluation) -> str:
    """The id of an evaluation's score: the same event sent again is the same score."""
    said = (trace_id, span_id, evaluation.name, evaluation.value, evaluation.label, evaluation.at_ns)
    return "otlp_" + hashlib.blake2b(repr(said).encode("utf-8", "replace"), digest_size=12).hexdigest()


def merged_attributes(attributes: Attributes, told: Mapping[str, Any]) -> Attributes:
    """The span's own attributes before what its events tell."""
    return {**told, **attributes} if told else attributes
