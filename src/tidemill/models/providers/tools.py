"""Reading the tools of a pivot request: what every provider with function calling needs of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tidemill.kernel import InvalidInput
from tidemill.models.providers.dialect import UnsupportedField
from tidemill.models.providers.fields import check_keys
from tidemill.models.providers.messages import CACHE_MARKS
from tidemill.models.providers.pivot import arguments_of, read_list

_MODES: Final = frozenset({"auto", "none", "required"})
_TOOL_KEYS: Final = frozenset({"type", "function"})
_CALL_KEYS: Final = frozenset({"type", "id", "function", "index"})
_FUNCTION_KEYS: Final = frozenset({"name", "description", "parameters", "strict"})


@dataclass(frozen=True, slots=True)
class FunctionTool:
    """One function that the model may call.

    Args:
        name: the function's.
        description: what for; may be empty.
        parameters: JSON Schema of its arguments.
        strict: whether the arguments must follow the schema exactly.
        cached: whether the caller marked the prompt up to here for the provider's cache (``CACHE_MARKS``).
    """

    name: str
    description: str
    parameters: dict[str, Any]
    strict: bool
    cached: bool


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether the model may, must or must not call functions.

    Args:
        mode: ``auto``, ``none`` or ``required``.
        names: the only functions allowed; empty for all of them.
    """

    mode: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """One earlier call in an assistant message.

    Args:
        identity: pairs it with its result.
        name: the function's.
        arguments: as an object.
        extra: the call's ``extra_content``, what its provider wants back unchanged.
    """

    identity: str
    name: str
    arguments: dict[str, Any]
    extra: Any


def read_calls(
    message: Mapping[str, Any], provider: str, leave_out: frozenset[str], *, extra: bool = False
) -> list[FunctionCall]:
    """The ``tool_calls`` of an assistant message.

    Args:
        message: the message.
        provider: the dialect's name.
        leave_out: paths of fields to pass over.
        extra: whether the provider reads ``extra_content``.

    Raises:
        UnsupportedField: a call of something else than a function, or a field without a place.
        InvalidInput: a call of another shape.
    """
    known = _CALL_KEYS | ({"extra_content"} if extra else frozenset())
    calls = []
    for call in read_list(message.get("tool_calls") or [], "messages.tool_calls"):
        if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
            raise InvalidInput("Each of 'messages.tool_calls' must be an object with a 'function'.")
        if call.get("type", "function") != "function":
            raise UnsupportedField("messages.tool_calls", provider, "only calls of functions are served")
        check_keys(call, known, "messages.tool_calls", provider, leave_out)
        name = str(call["function"].get("name") or "")
        calls.append(FunctionCall(str(call.get("id") or ""), name, arguments_of(call), call.get("extra_content")))
    return calls


def read_tools(value: Any, provider: str, leave_out: frozenset[str], *, marks: bool = False) -> list[FunctionTool]:
    """The functions of a request's ``tools``.

    Args:
        value: the field's value.
        provider: the dialect's name.
        leave_out: paths of fields to pass over.
        marks: whether the provider's cache is steered by marks on tools.

    Raises:
        UnsupportedField: a tool that is no function.
        InvalidInput: a tool of another shape.
    """
    known = _TOOL_KEYS | (CACHE_MARKS if marks else frozenset())
    return [_function(tool, provider, known, leave_out) for tool in read_list(value, "tools")]


def _function(tool: Any, provider: str, known: frozenset[str], leave_out: frozenset[str]) -> FunctionTool:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if not isinstance(kind, str):
        raise InvalidInput("Each of 'tools' must be an object with a 'type'.")
    if kind != "function":
        raise UnsupportedField(f"tools.{kind}", provider, "it calls functions only")
    function = tool.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidInput("A tool of type 'function' must have a 'function' with a 'name'.")
    check_keys(tool, known, "tools", provider, leave_out)
    check_keys(function, _FUNCTION_KEYS, "tools.function", provider, leave_out)
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(parameters, dict):
        raise InvalidInput(f"The 'parameters' of the function '{function['name']}' must be a JSON Schema object.")
    return FunctionTool(
        name=function["name"],
        description=str(function.get("description") or ""),
        parameters=parameters,
        strict=function.get("strict") is True and "tools.function.strict" not in leave_out,
        cached=any(tool.get(mark) for mark in CACHE_MARKS),
    )


def read_tool_choice(value: Any, provider: str) -> ToolChoice:
    """A request's ``tool_choice``.

    Raises:
        UnsupportedField: it names something else than functions.
        InvalidInput: it has another shape.
    """
    if isinstance(value, str) and value in _MODES:
        return ToolChoice(value)
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "function":
        return ToolChoice("required", (_name(value, provider),))
    if kind == "allowed_tools":
        allowed = value.get("allowed_tools")
        mode = allowed.get("mode") if isinstance(allowed, dict) else None
        if mode not in ("auto", "required"):
            raise InvalidInput("'tool_choice.allowed_tools' must have a 'mode', auto or required.")
        names: Sequence[Any] = read_list(allowed.get("tools"), "tool_choice.allowed_tools.tools")
        return ToolChoice(mode, tuple(_name(tool, provider) for tool in names))
    if isinstance(kind, str):
        raise UnsupportedField(f"tool_choice.{kind}", provider, "it calls functions only")
    raise InvalidInput("'tool_choice' must be auto, none, required, or an object that names a function.")


def _name(tool: Any, provider: str) -> str:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if kind != "function":
        raise UnsupportedField(f"tool_choice.{kind}", provider, "it calls functions only")
    function = tool.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise InvalidInput("A function in 'tool_choice' must have a 'name'.")
    return name
