"""The prompt as a value: message templates, worked examples, and what an application does around them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tidemill.kernel import InvalidInput, check_name
from tidemill.models.templates import render as render_text
from tidemill.models.templates import template_variables

ROLES: Final = ("system", "user", "assistant", "developer")
_EXAMPLES: Final = "examples"


@dataclass(frozen=True, slots=True)
class Message:
    """One message template: a role, and a text with ``{{name}}`` tags."""

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InvalidInput(f"a prompt message has the role '{self.role}'; the roles are {', '.join(ROLES)}")


@dataclass(frozen=True, slots=True)
class Example:
    """A worked example for the model: a question, the context it was given, and the answer it should have made."""

    question: str
    answer: str
    context: str = ""

    def as_json(self) -> dict[str, str]:
        """The example as a plain JSON object."""
        return {"question": self.question, "context": self.context, "answer": self.answer}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What a release says to its model.

    Args:
        name: how the prompt is called in the ledger.
        messages: templates in order; the last one is the user's turn.
        examples: shown to the model as earlier turns, or wherever a template has a ``{{#examples}}`` section.
        config: options the application reads, e.g. ``no_answer`` (what is said when nothing was found) and
            ``max_lines`` (how many lines of the model's answer are kept).

    Raises:
        InvalidInput: no messages, an unknown role, a malformed template, or a last message that is not the user's.
    """

    name: str
    messages: tuple[Message, ...]
    examples: tuple[Example, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name, "prompt")
        if not self.messages or self.messages[-1].role != "user":
            raise InvalidInput(f"prompt '{self.name}': the last message must be the user's turn (role: user)")
        for message in self.messages:
            template_variables(message.content)

    @property
    def variables(self) -> frozenset[str]:
        """The names a caller of ``render`` must supply."""
        names = frozenset[str]().union(*(template_variables(message.content) for message in self.messages))
        return names - {_EXAMPLES}

    def as_json(self) -> dict[str, Any]:
        """The prompt as a plain JSON object, without its name: equal prompts are equal whatever they are called."""
        return {
            "messages": [{"role": message.role, "content": message.content} for message in self.messages],
            "variables": sorted(self.variables),
            "examples": [example.as_json() for example in self.examples],
            "config": dict(self.config),
        }

    @classmethod
    def from_json(cls, name: str, value: Mapping[str, Any]) -> Prompt:
        """Read a prompt from the ledger or a project file.

        Args:
            name: how it is called.
            value: ``messages`` and, if wanted, ``examples`` and ``config``; ``variables`` is worked out anew.

        Raises:
            InvalidInput: a key that does not exist, one that is missing, or what ``Prompt`` refuses.
        """
        unknown = set(value) - {"messages", "variables", "examples", "config"}
        if unknown or "messages" not in value:
            wrong = f"unknown {', '.join(sorted(unknown))}" if unknown else "messages are missing"
            raise InvalidInput(f"prompt '{name}': {wrong}; a prompt has messages, examples and config")
        try:
            messages = tuple(Message(**message) for message in value["messages"])
            examples = tuple(Example(**example) for example in value.get("examples") or ())
        except TypeError as error:
            raise InvalidInput(f"prompt '{name}': {error}") from error
        return cls(name=name, messages=messages, examples=examples, config=dict(value.get("config") or {}))


def render(prompt: Prompt, variables: Mapping[str, Any]) -> list[dict[str, str]]:
    """Make the chat messages of one question.

    Values are put in once and never read as templates, so no text of a user or a document opens a tag. Examples stand
    where a template says ``{{#examples}}``; if none does, each becomes a user and an assistant turn before the last
    message, made with that message's own template.

    Args:
        prompt: the prompt.
        variables: values by name, at least ``prompt.variables``.

    Returns:
        Messages with ``role`` and ``content``, as a chat completion takes them.

    Raises:
        InvalidInput: a variable the templates use has no value.
    """
    examples = [example.as_json() for example in prompt.examples]
    values = {**variables, _EXAMPLES: examples}
    rendered = [{"role": message.role, "content": render_text(message.content, values)} for message in prompt.messages]
    if any(_EXAMPLES in template_variables(message.content) for message in prompt.messages):
        return rendered
    last = prompt.messages[-1].content
    turns = []
    for example in examples:
        turns.append({"role": "user", "content": render_text(last, {**values, **example})})
        turns.append({"role": "assistant", "content": example["answer"]})
    return [*rendered[:-1], *turns, rendered[-1]]


def diff(old: Prompt, new: Prompt) -> str:
    """What changed between two prompts, as a unified diff a person reads; empty when nothing did."""
    lines = difflib.unified_diff(_lines(old), _lines(new), old.name, new.name, lineterm="", n=2)
    return "\n".join(lines)


def _lines(prompt: Prompt) -> list[str]:
    lines = []
    for message in prompt.messages:
        lines += [f"[{message.role}]", *message.content.splitlines()]
    for number, example in enumerate(prompt.examples, 1):
        lines += [f"[example {number}]", f"question: {example.question}", f"context: {example.context}"]
        lines.append(f"answer: {example.answer}")
    lines += [f"{key} = {prompt.config[key]!r}" for key in sorted(prompt.config)]
    return lines
