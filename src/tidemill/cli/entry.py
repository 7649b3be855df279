"""The entry: which commands there are, and what becomes of errors.

Exit codes: 0 done or PASS, 1 FAIL or a bug (with traceback), 2 the caller's mistake, 4 INSUFFICIENT, 130 interrupted.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib import import_module
from inspect import cleandoc
from typing import Any, Final, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from tidemill import __version__
from tidemill.kernel import UserError

#: name -> (module, attribute, first line of help, panel)
COMMANDS: Final[dict[str, tuple[str, str, str, str]]] = {
    "demo": ("demo", "demo", "Run the whole life cycle on this machine, offline, in a few minutes.", "Begin"),
    "init": ("begin", "init", "Write a working example project.", "Begin"),
    "apply": ("begin", "apply", "Show what the project file would change, and change it.", "Begin"),
    "up": ("run", "up", "Run everything: gateway, control plane, model server, releases.", "Run"),
    "status": ("run", "status", "Show what runs, what answers and what is being rolled out.", "Run"),
    "server": ("run", "server", "Run the control plane alone.", "Run"),
    "gateway": ("run", "gateway", "Run one gateway worker alone.", "Run"),
    "runtime": ("run", "runtime", "Run the local model server alone.", "Run"),
    "models": ("models", "app", "Models of the catalogue: list, pull, show.", "Make"),
    "data": ("data", "app", "Data sets: build, from-traces, list, show, rows.", "Make"),
    "index": ("index", "app", "Search indexes: build, list, search.", "Make"),
    "prompt": ("prompt", "app", "Prompts: list, show, diff, label.", "Make"),
    "eval": ("evaluate", "app", "Evaluations: run, list, show.", "Prove"),
    "gate": ("evaluate", "gate", "Compare two evaluation reports: PASS, FAIL or INSUFFICIENT.", "Prove"),
    "release": ("release", "app", "Releases: create, list, show.", "Deploy"),
    "rollout": (
        "rollout",
        "app",
        "Rollouts: start, list, show, explain, promote, roll-back, hold, resume, cancel, override.",
        "Deploy",
    ),
    "router": ("router", "app", "Routers of releases: show, train.", "Deploy"),
    "keys": ("keys", "app", "API keys of the gateway: issue, rotate, list, revoke.", "Deploy"),
    "limits": ("limits", "limits", "Show what is spent of each rate limit and budget.", "Deploy"),
    "monitor": ("observe", "monitor_app", "Monitors and their alarms.", "Watch"),
    "slo": ("slo", "slo_app", "Objectives: list, status, export, forecast.", "Watch"),
    "dashboards": ("slo", "dashboards_app", "Dashboards and rules for Grafana and Prometheus: export.", "Watch"),
    "trace": (
        "tracing",
        "trace_app",
        "Traces: list, show, tail, sessions, stats, compare, summary, export, kept, erase.",
        "Watch",
    ),
    "lineage": ("observe", "lineage", "Follow an answer, artifact or document up and down.", "Watch"),
    "audit": ("store", "audit_app", "The audit chain: verify, list.", "Keep"),
    "doctor": ("store", "doctor", "Check the store and mend what can be mended.", "Keep"),
    "gc": ("store", "gc", "Remove blobs that nothing refers to.", "Keep"),
    "backup": ("store", "backup", "Write a consistent copy of the store, also while it is in use.", "Keep"),
    "restore": ("store", "restore", "Restore a backup into an empty store.", "Keep"),
    "settings": ("begin", "settings", "Print the JSON Schema of the project file.", "Keep"),
}


class _Deferred(TyperCommand):
    """A command known by name and help; its module is imported when it is called."""

    def __init__(self, name: str) -> None:
        module, attribute, text, panel = COMMANDS[name]
        super().__init__(name, help=text, rich_help_panel=panel)
        self._place = (module, attribute)

    def load(self) -> TyperCommand | TyperGroup:
        """The real command."""
        module, attribute = self._place
        target = getattr(import_module(f"tidemill.cli.{module}"), attribute)
        if not isinstance(target, typer.Typer):
            one = typer.Typer(add_completion=False, rich_markup_mode="rich")
            one.command(name=self.name)(target)
            target = one
        command = typer.main.get_command(target)
        command.name = self.name
        _unfold(command)
        return command  # type: ignore[return-value]  # Typer builds nothing but these two

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Hand over to the real command."""
        return self.load().make_context(info_name, args, parent, **extra)


def _unfold(command: Any) -> None:
    """Let the terminal, and not the source, break the lines of a paragraph."""
    for one in (command, *getattr(command, "commands", {}).values()):
        if one.help:
            one.help = re.sub(r"(?<!\n)\n(?!\n)", " ", cleandoc(one.help))


class _Root(TyperGroup):
    """The group of all commands."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the signature of the library
        """The names, in the order of a project's life."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - the signature of the library
        """The command of that name, not yet imported."""
        return _Deferred(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - the signature of the library
        """The commands by panel, each with its line of help."""
        for panel in dict.fromkeys(panel for *_, panel in COMMANDS.values()):
            with formatter.section(panel):
                formatter.write_dl([(name, text) for name, (_, _, text, of) in COMMANDS.items() if of == panel])


# Plain text at the root: Rich costs more CPU to import than everything else that --help does.
app = typer.Typer(cls=_Root, add_completion=False, no_args_is_help=True, rich_markup_mode=None)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """LLMOps in one package: the whole life cycle of an LLM application, and the loop closed.

    New here? Type: tidemill demo
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and leave with its exit code. A user's mistake is a sentence, a bug a traceback."""
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code."""
    group = typer.main.get_command(app)
    group.commands = {name: _Deferred(name) for name in COMMANDS}  # type: ignore[attr-defined]  # for suggestions
    try:
        result = group.main(arguments, prog_name="tidemill", standalone_mode=False)
    except UserError as error:
        print(f"tidemill: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("tidemill: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        shown = getattr(error, "show", None)
        if shown is None:
            if type(error).__name__ == "Abort":
                return 130
            raise
        shown()
        return int(getattr(error, "exit_code", 2))
    return result if isinstance(result, int) else 0
