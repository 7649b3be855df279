"""Writes the parts of docs/ that come from the code. Run: make docs

``pages()`` is pure; a test fails when a file does not hold what it says.
"""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

DOCS = Path(__file__).resolve().parent
_COLUMNS = 100


def pages() -> dict[Path, str]:
    """Every generated file with its text."""
    from tidemill.kernel.settings import settings_schema
    from tidemill.releases.rules import rollouts_page

    schema = settings_schema()
    return {
        DOCS / "reference" / "commands.md": commands_page(),
        DOCS / "reference" / "settings.md": settings_page(schema),
        DOCS / "reference" / "tidemill.schema.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n",
        DOCS / "explanation" / "rollouts.md": rollouts_page(),
        **_beside("generate_api").api_pages(),
        **_beside("generate_monitoring").monitoring_pages(DOCS),
        **_beside("generate_providers").provider_pages(DOCS),
    }


def _beside(name: str) -> ModuleType:
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands_page() -> str:
    """The reference of the command line, from the commands' own help."""
    from tidemill.cli.entry import COMMANDS, _Deferred

    lines = [
        "# Commands",
        "",
        "Generated from `tidemill COMMAND --help` by `make docs`.",
        "",
        "Exit codes: 0 done or PASS, 1 FAIL (or a bug, with a traceback), 2 a mistake of the caller, 4 INSUFFICIENT,",
        "130 interrupted. With `--json`, standard output holds one JSON document and nothing else.",
        "",
    ]
    panel = ""
    with _plain_help():
        for name, (_, _, _, its_panel) in COMMANDS.items():
            if its_panel != panel:
                panel = its_panel
                lines += [f"## {panel}", ""]
            command: Any = _Deferred(name).load()
            lines += _section("###", name)
            for below in getattr(command, "commands", ()):
                lines += _section("####", name, below)
    return "\n".join(lines).rstrip() + "\n"


def settings_page(schema: Mapping[str, Any]) -> str:
    """The reference of the project file, from its JSON Schema."""
    lines = [
        "# Settings",
        "",
        "Every key of `tidemill.yaml`, generated from its JSON Schema (`tidemill.schema.json`, also printed by",
        "`tidemill settings`) by `make docs`.",
        "",
        "An environment variable `TIDEMILL_SECTION__KEY` wins over the file: `TIDEMILL_GATEWAY__PORT=9000`. Unknown",
        "keys are refused with the nearest known one. Secrets are references, `env:NAME` or `file:PATH`, never values.",
        "",
    ]
    for title, about, section in _sections(schema, schema, "", ""):
        lines += [f"## {title or 'The file'}", "", *([about, ""] if about else [])]
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        required = section.get("required", ())
        for key, value in section["properties"].items():
            default = "required" if key in required else _default(schema, section, key)
            lines.append(f"| `{key}` | {_type(schema, value)} | {default} | {described(schema, value)} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _section(heading: str, *path: str) -> list[str]:
    from tidemill.cli.entry import run

    out = io.StringIO()
    with redirect_stdout(out):
        code = run([*path, "--help"])
    assert code == 0, path
    text = "\n".join(line.rstrip() for line in out.getvalue().strip("\n").splitlines()).strip("\n")
    return [f"{heading} tidemill {' '.join(path)}", "", "```text", text, "```", ""]


@contextmanager
def _plain_help() -> Iterator[None]:
    """Help as a terminal of a fixed width without colour would show it."""
    from typer import rich_utils

    before = rich_utils.MAX_WIDTH, rich_utils.COLOR_SYSTEM, rich_utils.FORCE_TERMINAL
    rich_utils.MAX_WIDTH, rich_utils.COLOR_SYSTEM, rich_utils.FORCE_TERMINAL = _COLUMNS, None, False
    try:
        yield
    finally:
        rich_utils.MAX_WIDTH, rich_utils.COLOR_SYSTEM, rich_utils.FORCE_TERMINAL = before


def _sections(
    schema: Mapping[str, Any], section: Mapping[str, Any], path: str, about: str
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(path, description, section) of every section, depth first."""
    yield path, about, section
    for key, value in section["properties"].items():
        below = _section_below(schema, value)
        if below is not None:
            place = f"{path}.{key}".lstrip(".") + (".NAME" if _by_name(value) else "")
            yield from _sections(schema, below, place, str(below.get("description") or described(schema, value)))


def described(schema: Mapping[str, Any], value: Mapping[str, Any]) -> str:
    """What a key means; where the schema leaves it out, the section that the key holds says the same."""
    below = _section_below(schema, value) or {}
    return str(value.get("description") or below.get("description", ""))


def _by_name(value: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What stands under the names of a key that maps names to values."""
    for one in (value.get("additionalProperties"), *value.get("patternProperties", {}).values()):
        if isinstance(one, Mapping):
            return one
    return None


def _section_below(schema: Mapping[str, Any], value: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The section that a key holds: itself, optional, under names, or in a list."""
    choices = [value, *value.get("anyOf", ()), *value.get("allOf", ())]
    choices += [one for one in (_by_name(value), value.get("items")) if isinstance(one, Mapping)]
    for choice in choices:
        if "$ref" in choice:
            found: Mapping[str, Any] = schema["$defs"][choice["$ref"].rpartition("/")[2]]
            if "properties" in found:
                return found
    return None


def _type(schema: Mapping[str, Any], value: Mapping[str, Any]) -> str:
    if "anyOf" in value:
        kinds = [_type(schema, one) for one in value["anyOf"]]
        return " or ".join("empty" if kind == "null" else kind for kind in kinds)
    below = _section_below(schema, value)
    if "$ref" in value and below is None:
        value = schema["$defs"][value["$ref"].rpartition("/")[2]]
    if "const" in value or "enum" in value:
        return ", ".join(f"`{one}`" for one in value.get("enum", [value.get("const")]))
    if value.get("type") == "array":
        return "list of sections" if below else f"list of {_type(schema, value.get('items', {}))}s"
    inner = _by_name(value)
    if inner is not None:
        return "sections by name" if below else f"{_type(schema, inner)} by name"
    plain = "section" if below else "name" if "pattern" in value else str(value.get("type", "value"))
    return plain + _range(value)


def _range(value: Mapping[str, Any]) -> str:
    signs = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
    limits = [f"{sign} {value[key]:g}" for key, sign in signs if key in value]
    return f", {', '.join(limits)}" if limits else ""


def _default(schema: Mapping[str, Any], section: Mapping[str, Any], key: str) -> str:
    """The default as the settings have it: a schema does not say what a function makes."""
    from tidemill.kernel import settings, settings_gateway, settings_telemetry

    if _section_below(schema, section["properties"][key]) is not None:
        return ""
    place = next(p for p in (settings, settings_gateway, settings_telemetry) if hasattr(p, section["title"]))
    default = getattr(place, section["title"]).model_fields[key].get_default(call_default_factory=True)
    default = str(default) if isinstance(default, date) else default
    return "empty" if default in (None, (), [], {}) else f"`{json.dumps(default, ensure_ascii=False)}`"


def main() -> None:
    """Write what is not current."""
    for path, text in pages().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(DOCS.parent)}")


if __name__ == "__main__":
    main()
