"""What differs between DuckDB's SQL and ClickHouse's."""

from __future__ import annotations

from typing import Any

from tidemill.telemetry.spans.fields import Kind


class DuckDBDialect:
    """DuckDB: attributes are JSON text; values are bound as ``$p0``."""

    def placeholder(self, name: str, value: Any) -> str:  # noqa: ARG002 - DuckDB takes a value's own type
        """See ``Dialect.placeholder``."""
        return f"${name}"

    def attribute_key(self, name: str) -> str:
        """A JSON pointer [RFC 6901]."""
        return "/" + name.replace("~", "~0").replace("/", "~1")

    def attribute(self, name: str, kind: Kind) -> str:
        """See ``Dialect.attribute``."""
        if kind == "any":
            return f"json_extract(s.attributes, {name})::VARCHAR"
        known = f"json_type(s.attributes, {name})"
        text = f"json_extract_string(s.attributes, {name})"
        if kind == "text":
            return f"(CASE WHEN {known} = 'VARCHAR' THEN {text} END)"
        if kind == "flag":
            return f"(CASE WHEN {known} = 'BOOLEAN' THEN {text} = 'true' END)"
        return f"(CASE WHEN {known} IN ('BIGINT', 'UBIGINT', 'DOUBLE') THEN TRY_CAST({text} AS DOUBLE) END)"

    def quantile(self, share: float, of: str) -> str:
        """See ``Dialect.quantile``."""
        return f"quantile_cont({of}, {share})"

    def step(self, of: str, step_ns: str) -> str:
        """See ``Dialect.step``."""
        return f"({of} // {step_ns} * {step_ns})"

    def contains(self, text: str, part: str) -> str:
        """See ``Dialect.contains``."""
        return f"contains({text}, {part})"

    def matches(self, text: str, pattern: str) -> str:
        """See ``Dialect.matches``."""
        return f"regexp_matches({text}, {pattern})"


class ClickHouseDialect:
    """ClickHouse: attributes are JSON text; values are bound as ``{p0:String}``."""

    def placeholder(self, name: str, value: Any) -> str:
        """See ``Dialect.placeholder``."""
        return f"{{{name}:{clickhouse_type(value)}}}"

    def attribute_key(self, name: str) -> str:
        """The name as it is."""
        return name

    def attribute(self, name: str, kind: Kind) -> str:
        """See ``Dialect.attribute``."""
        of = f"assumeNotNull(s.attributes), {name}"
        known = f"JSONType({of})"
        if kind == "any":
            return f"nullIf(JSONExtractRaw({of}), '')"
        if kind == "text":
            return f"if({known} = 'String', JSONExtractString({of}), NULL)"
        if kind == "flag":
            return f"if({known} = 'Bool', JSONExtractBool({of}), NULL)"
        return f"if({known} IN ('Int64', 'UInt64', 'Double'), JSONExtractFloat({of}), NULL)"

    def quantile(self, share: float, of: str) -> str:
        """See ``Dialect.quantile``."""
        return f"quantileExactInclusiveOrNull({share})({of})"

    def step(self, of: str, step_ns: str) -> str:
        """See ``Dialect.step``."""
        return f"(intDiv({of}, {step_ns}) * {step_ns})"

    def contains(self, text: str, part: str) -> str:
        """See ``Dialect.contains``."""
        return f"(position({text}, {part}) > 0)"

    def matches(self, text: str, pattern: str) -> str:
        """See ``Dialect.matches``."""
        return f"match({text}, {pattern})"


def clickhouse_type(value: Any) -> str:
    """The ClickHouse type a value is bound as."""
    if isinstance(value, bool):
        return "Bool"
    if isinstance(value, int):
        return "Int64"
    if isinstance(value, float):
        return "Float64"
    if isinstance(value, list):
        return f"Array({clickhouse_type(value[0]) if value else 'String'})"
    return "String"
