"""What a span says, out of attributes, numbered attributes and events: input, output, and the passages it retrieved."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tidemill.telemetry.aliases import AliasTable
from tidemill.telemetry.otlp.messages import (
    Message,
    answer_of,
    decoded,
    indexed_message,
    json_text,
    messages_of,
    system_message,
    tool_call,
)
from tidemill.telemetry.otlp.plans import Plan, first
from tidemill.telemetry.records import Reference


@dataclass(slots=True)
class Said:
    """The content of a span.

    Args:
        input, output: text, or JSON text.
        finish_reasons: as the answer's messages tell them.
        references: passages that were retrieved.
    """

    input: str = ""
    output: str = ""
    finish_reasons: list[str] = field(default_factory=list)
    references: list[Reference] = field(default_factory=list)


def read_content(table: AliasTable, plan: Plan, attributes: Mapping[str, Any]) -> Said:
    """Put together what a span's attributes say.

    Numbered messages come before one text that holds them all, for OpenInference sends the raw request beside them.
    """
    said = Said()
    numbered = _numbered(plan, attributes) if plan.indexed else {}
    names = plan.content
    asked = _messages(table, numbered.get("input"))
    if asked is None and "input" in names:
        asked, said.input = _read(first(attributes, names["input"]))
    if "system" in names:
        system = system_message(first(attributes, names["system"]))
        if system is not None:
            asked = [system, *(asked or ([{"role": "user", "content": said.input}] if said.input else []))]
    if asked:
        said.input = json_text(asked)
    answers = _messages(table, numbered.get("output"))
    if answers is None and "output" in names:
        answers, said.output = _read(first(attributes, names["output"]))
    if "output_calls" in names:
        answers = _with_calls(answers, said.output, decoded(first(attributes, names["output_calls"])))
    if answers:
        said.output, said.finish_reasons = answer_of(answers)
    if "documents" in numbered or "documents" in names:
        _read_documents(table, said, numbered.get("documents"), first(attributes, names.get("documents", ())))
    return said


def _read(value: Any) -> tuple[list[Message] | None, str]:
    """The messages of a value, or its text."""
    if value is None:
        return None, ""
    found = decoded(value)
    if not isinstance(found, str):
        messages = messages_of(found)
        if messages is not None:
            return messages, ""
        if (
            isinstance(found, dict)
            and isinstance(text := found.get("prompt"), str)
            and found.keys() <= {"prompt", "system"}
        ):
            system = system_message(found.get("system"))
            return [*([system] if system else []), {"role": "user", "content": text}], ""
    return None, value if isinstance(value, str) else json_text(value)


def _numbered(plan: Plan, attributes: Mapping[str, Any]) -> dict[str, dict[int, dict[str, Any]]]:
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for group, number, rest, name in plan.indexed:
        found.setdefault(group, {}).setdefault(number, {})[rest] = attributes[name]
    return found


def _messages(table: AliasTable, numbered: Mapping[int, Mapping[str, Any]] | None) -> list[Message] | None:
    if not numbered:
        return None
    return [indexed_message(numbered[number], table.parts) for number in sorted(numbered)]


def _with_calls(answers: list[Message] | None, text: str, calls: Any) -> list[Message]:
    """Vercel tells the text and the tool calls of an answer apart."""
    message: Message = {"role": "assistant"}
    if text:
        message["content"] = text
    if isinstance(calls, list):
        message["tool_calls"] = [
            tool_call(one.get("toolCallId"), one.get("toolName"), one.get("args", one.get("input")))
            for one in calls
            if isinstance(one, dict)
        ]
    return [*(answers or []), message]


def _read_documents(
    table: AliasTable, said: Said, numbered: Mapping[int, Mapping[str, Any]] | None, given: Any
) -> None:
    documents: list[Mapping[str, Any]] = []
    if numbered:
        documents = [
            {table.parts.get(rest, rest).removeprefix("document_"): value for rest, value in numbered[place].items()}
            for place in sorted(numbered)
        ]
    else:
        listed = decoded(given)
        if isinstance(listed, dict):
            listed = listed.get("documents", [listed])
        documents = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    said.references += [reference_of(one, rank) for rank, one in enumerate(documents, 1)]
    if not said.output and any(one.get("content") for one in documents):
        said.output = json_text(
            [{key: one[key] for key in ("id", "content", "score") if key in one} for one in documents]
        )


def reference_of(document: Mapping[str, Any], rank: int) -> Reference:
    """A retrieved document. One without an id is named by its content's hash."""
    name = document.get("id")
    if not isinstance(name, str) or not name:
        text = json_text(document.get("content", "")) if name is None or name == "" else json_text(name)
        name = text if name else "blake2b:" + hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    score = document.get("score")
    scored = float(score) if isinstance(score, int | float) and not isinstance(score, bool) else None
    return Reference("passage", name, "retrieved", rank, scored)


def sent_references(value: Any) -> Sequence[Reference]:
    """What ``tidemill.references`` holds; nothing of what is none."""
    listed = decoded(value)
    found: list[Reference] = []
    for one in listed if isinstance(listed, list) else ():
        try:
            found.append(msgspec.convert([one.get(name) for name in Reference.__struct_fields__], Reference))
        except (msgspec.ValidationError, AttributeError):
            continue
    return found
