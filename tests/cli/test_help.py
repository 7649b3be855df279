from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any

import pytest

from tidemill.cli.entry import COMMANDS, _Deferred, run

#: Commands that run until they are stopped, or print a document in one format.
NO_JSON = {("up",), ("server",), ("gateway",), ("runtime",), ("settings",)}


def paths() -> Iterator[tuple[str, ...]]:
    for name in COMMANDS:
        yield (name,)
        command: Any = _Deferred(name).load()
        yield from ((name, below) for below in getattr(command, "commands", ()))


def help_of(path: tuple[str, ...]) -> str:
    out = io.StringIO()
    with redirect_stdout(out):
        assert run([*path, "--help"]) == 0
    return out.getvalue()


GROUPS = {path[0] for path in paths() if len(path) > 1}


@pytest.mark.parametrize("path", list(paths()), ids=" ".join)
def test_every_command_explains_itself_with_an_example(path: tuple[str, ...]) -> None:
    text = help_of(path)
    assert "Example: tidemill " + path[0] in " ".join(text.split())
    if (len(path) == 1 and path[0] in GROUPS) or path in NO_JSON:
        return
    assert "--json" in text
    assert "--project" in text or path[0] in ("init", "demo")


def test_the_list_of_commands_says_what_each_group_has() -> None:
    for name in GROUPS:
        listed = COMMANDS[name][2].lower()
        command: Any = _Deferred(name).load()
        if ":" in listed:
            missing = [below for below in command.commands if below not in listed]
            assert not missing, f"the line of '{name}' does not name {missing}"
