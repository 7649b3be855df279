"""Tables of request fields: how a translating dialect serves each, or why it refuses it.

The documentation's table is printed from them, and a test holds each against the list of OpenAI's own fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tidemill.models.providers.dialect import Place, UnsupportedField

CHAT_FIELDS: Final = (
    "model", "messages", "stream", "stream_options",
    "max_completion_tokens", "max_tokens", "temperature", "top_p", "stop", "seed", "n",
    "frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs",
    "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call",
    "response_format", "reasoning_effort", "verbosity", "modalities", "audio", "prediction", "web_search_options",
    "user", "safety_identifier", "metadata", "store", "service_tier", "moderation",
    "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
)  # fmt: skip
"""The fields of OpenAI's chat request (Create chat completion, API reference, 2026-11)."""

# A field with this value asks for nothing, so no provider has to serve it.
_NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "modalities": (["text"],),
    "metadata": ({},),
    "store": (False,),
    "service_tier": ("auto",),
    "tool_choice": ("auto",),
    "parallel_tool_calls": (True,),
    "tools": ([],),
    "functions": ([],),
    "stop": ([],),
    "verbosity": ("medium",),
    "response_format": ({"type": "text"},),
}


_EMPTY: Final[tuple[Any, ...]] = (None, "", [], {}, False)
_NOTHING: Final[frozenset[str]] = frozenset()


def left_out(place: Place) -> frozenset[str]:
    """The fields that the operator chose not to send to this target: its option ``leave_out``.

    Args:
        place: ``options["leave_out"]`` lists fields by commas, those inside others with their path
            (``temperature, messages.name``).
    """
    listed = place.options.get("leave_out")
    return frozenset(name.strip() for name in listed.split(",")) if listed else _NOTHING


def asks_for_nothing(name: str, value: Any) -> bool:
    """Whether a field has the value that it has when it is left out."""
    return value is None or (name in _NEUTRAL and value in _NEUTRAL[name])


@dataclass(frozen=True, slots=True)
class FieldTable:
    """The request fields one dialect knows.

    Args:
        provider: the dialect's name.
        served: field -> what it becomes at the provider, in the words of the provider's reference.
        refused: field -> why it cannot be served; a clause without a full stop.
    """

    provider: str
    served: Mapping[str, str]
    refused: Mapping[str, str]

    def wanted(self, request: Mapping[str, Any], leave_out: frozenset[str] = _NOTHING) -> dict[str, Any]:
        """The fields of a request that ask for something, each of which the provider can serve.

        Args:
            request: the decoded pivot request.
            leave_out: fields to pass over, of ``left_out``.

        Raises:
            UnsupportedField: the first field that the table refuses or does not know.
        """
        found = {}
        for name, value in request.items():
            if name in leave_out or asks_for_nothing(name, value):
                continue
            if name not in self.served:
                raise UnsupportedField(name, self.provider, self.refused.get(name, "the field is not known"))
            found[name] = value
        return found


def check_keys(
    found: Mapping[str, Any], known: frozenset[str], where: str, provider: str, leave_out: frozenset[str] = _NOTHING
) -> None:
    """Refuse what an object inside the request says beyond the known keys; an empty value says nothing.

    Args:
        found: the object, e.g. one message.
        known: the keys that are served.
        where: its path, e.g. ``messages``.
        provider: the dialect's name.
        leave_out: paths to pass over, of ``left_out``.

    Raises:
        UnsupportedField: the first other key.
    """
    for key, value in found.items():
        if key not in known and value not in _EMPTY and f"{where}.{key}" not in leave_out:
            raise UnsupportedField(f"{where}.{key}", provider, "the field has no place there")
