"""Reads the fields of one span: the first believable value among the names that the alias table gives a field."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any, Final

from tidemill.telemetry.otlp.messages import decoded
from tidemill.telemetry.otlp.plans import Plan, first
from tidemill.telemetry.otlp.wire import Attributes

ID_CHARS: Final = 256
Usage = tuple[int | None, int | None, int | None, int | None]
"""Tokens: input, output, and of these those from a cache and those spent on reasoning."""
_FIRST_CHUNK: Final = {"time_to_first_chunk_s", "time_to_first_chunk_ms", "first_chunk_at"}
_TOKENS_MOST: Final = 10**12


class Fields:
    """Reads one span's fields. A value that cannot be believed counts as missing, and is counted.

    ``value`` gives a field as it came, ``None`` where there is none.
    """

    __slots__ = ("_counts", "_given", "value")

    def __init__(self, plan: Plan, attributes: Attributes, counts: Counter[str]) -> None:
        given = {column: attributes[name] for column, name in plan.single}
        for column, names in plan.contested:
            given[column] = first(attributes, names)
        self._given = given
        self.value = given.get
        self._counts = counts

    def has(self, name: str) -> bool:
        """Whether a name of this field is there."""
        return name in self._given

    def text(self, name: str) -> str | None:
        """The field as text, cut to ``ID_CHARS`` but for ids."""
        value = self.value(name)
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            if isinstance(value, list | dict):
                return None
            value = str(value)
        return value[:ID_CHARS] if name not in ("session_id", "user") else value

    def flag(self, name: str) -> bool:
        """The field as a flag; ``False`` where it is missing."""
        return self.value(name) in (True, "true", "True")

    def count(self, name: str) -> int | None:
        """The field as a whole number from 0 to a million millions."""
        return self._believed(self.value(name))

    def _believed(self, value: Any) -> int | None:
        if value is None or value == "":
            return None
        if type(value) is int and 0 <= value <= _TOKENS_MOST:
            return value
        try:
            number = int(value)
        except (ValueError, TypeError, OverflowError):
            number = -1
        if not 0 <= number <= _TOKENS_MOST or isinstance(value, bool):
            self._counts["implausible_counts"] += 1
            return None
        return number

    def usage(self) -> Usage:
        """Tokens: input, output, and of these those from a cache and those spent on reasoning."""
        read, written = self.count("input_tokens"), self.count("output_tokens")
        cached, reasoned = self.count("cached_input_tokens"), self.count("reasoning_output_tokens")
        told = decoded(self.value("usage_json")) if "usage_json" in self._given else None
        if isinstance(told, dict):
            read = self._believed(told.get("input", told.get("prompt_tokens"))) if read is None else read
            written = self._believed(told.get("output", told.get("completion_tokens"))) if written is None else written
            cached = self._believed(told.get("input_cached_tokens")) if cached is None else cached
        return read, written, cached, reasoned

    def sent_cost_usd(self) -> float | None:
        """What the sender says that the call cost."""
        value = self.value("sent_cost_usd")
        if value is None:
            if "cost_json" not in self._given:
                return None
            told = decoded(self.value("cost_json"))
            value = told.get("total") if isinstance(told, dict) else None
        number = _number(value)
        return number if number is not None and 0 <= number < 1e9 else None

    def http_status(self) -> int | None:
        """The status of an HTTP answer."""
        number = self.count("http_status") if "http_status" in self._given else None
        return number if number is not None and 100 <= number < 1000 else None

    def reasons(self) -> tuple[str, ...]:
        """Why the answers ended."""
        value = self.value("finish_reasons")
        if value is None:
            return ()
        value = decoded(value)
        if isinstance(value, str):
            return (value[:ID_CHARS],)
        return tuple(one[:ID_CHARS] for one in value[:16] if isinstance(one, str)) if isinstance(value, list) else ()

    def first_chunk_s(self, started_at_ns: int) -> float | None:
        """Seconds from the start to the first chunk."""
        if not _FIRST_CHUNK & self._given.keys():
            return None
        seconds = _number(self.value("time_to_first_chunk_s"))
        if seconds is None and (milliseconds := _number(self.value("time_to_first_chunk_ms"))) is not None:
            seconds = milliseconds / 1e3
        if seconds is None and self.has("first_chunk_at"):
            seconds = _since(self.value("first_chunk_at"), started_at_ns)
        return seconds if seconds is not None and 0 <= seconds < 1e6 else None

    def prompt(self) -> str | None:
        """The prompt as ``name@version``."""
        whole = self.text("prompt")
        if whole is not None:
            return whole
        name, version = self.text("prompt_name"), self.text("prompt_version")
        return f"{name}@{version}" if name and version else name


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _since(value: Any, started_at_ns: int) -> float | None:
    """Seconds from the start to a time in ISO 8601, which Langfuse writes as a JSON string."""
    try:
        return datetime.fromisoformat(str(value).strip('"')).timestamp() - started_at_ns / 1e9
    except (ValueError, OverflowError):
        return None
