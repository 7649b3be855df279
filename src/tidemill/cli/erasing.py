"""``trace kept`` and ``trace erase``: what telemetry is there, and forgetting some of it."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidemill.cli.output import HERE, JsonOption, ProjectOption, plain, print_json, print_table, project_at, say
from tidemill.kernel import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

_PATIENCE_S = 3600.0
"""An erasure writes the hot tier anew, so it takes time in proportion to it."""
_STDIN = "-"


def kept(project: ProjectOption = HERE, as_json: JsonOption = False) -> None:
    """Show how many spans and bytes are kept in which tier, and how long they stay.

    Example: tidemill trace kept
    """
    from tidemill.cli.traces import control_of, stored_spans
    from tidemill.loop.kept import kept_json

    with project_at(project) as opened:
        client = control_of(opened)
        if client is not None:
            found = client.get("/api/v1/telemetry")
        else:
            with stored_spans(opened) as store:
                found = kept_json(store, opened.settings.telemetry.retention) | {"last_turn": None}
    if as_json:
        print_json(found)
        return
    rows = [(tier, *(f"{one[name]:,}" for name in _FIGURES if name in one)) for tier, one in found["tiers"].items()]
    print_table(("tier", *(name for name in _FIGURES if name in found["tiers"]["hot"])), rows)
    for line in _retention_lines(found):
        say(line)


_FIGURES = ("spans", "partitions", "bytes")


def erase(
    *,
    user: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="A person as programs name them (user.id); repeat it; - reads ids from stdin."),
    ] = None,
    trace: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A trace, in any usual form; repeat it.")
    ] = None,
    before: Annotated[
        str | None, typer.Option(metavar="DATE", help="Traces that began before: 2026-11-24, 90d, yesterday.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; kept in the audit chain, so it names nobody.")] = "By request.",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Forget persons, traces, or everything before a time, in every tier; it cannot be undone.

    All traces in which a person appears go whole, with what was said, references and scores.

    Example: tidemill trace erase --user ada@example.com

    Example: tidemill trace erase --before 90d --yes
    """
    from pydantic import ValidationError

    from tidemill.cli.traces import control_of, stored_spans
    from tidemill.cli.views import actor
    from tidemill.loop.erasing import ErasureBody, carry_out, order_of

    users = _users(user or [])
    if sum((bool(users), bool(trace), before is not None)) != 1:
        raise InvalidInput("Say what to erase: --user, --trace or --before, one of them.")
    try:
        body = ErasureBody(users=users, trace_ids=trace or [], before=before, actor=actor(), reason=reason)
    except ValidationError as error:  # says which limit; what was given must not be shown
        first = error.errors()[0]
        raise InvalidInput(f"The {first['loc'][0]} cannot be used: {first['msg']}.") from None
    with project_at(project) as opened:
        order = order_of(body, opened.places, now_ns=time.time_ns())
        if not yes:
            _ask(_what(body))
        client = control_of(opened)
        if client is not None:
            done = client.post("/api/v1/erasures", body.model_dump(), patience_s=_PATIENCE_S)
        else:
            with stored_spans(opened) as store:
                done = carry_out(order, opened.ledger, store)
    if as_json:
        print_json(done)
        return
    say(f"Erased {done['traces']:,} traces with {done['spans']:,} spans and {done['scores']:,} scores.")
    if not done["traces"] and users:
        say("No span names them: an id must be written as the program sent it.")
    say(f"In the audit chain: tidemill audit list --subject {done['erasure']}")


def _users(given: list[str]) -> list[str]:
    found = [one for one in given if one != _STDIN]
    if _STDIN in given:
        found += [line for line in sys.stdin.read().splitlines() if line]
        if not found:
            raise InvalidInput("Standard input names nobody: write one id a line.")
    return found


def _what(body: Any) -> str:
    if body.before is not None:
        return f"all traces that began before {plain(body.before)}"
    many, noun = (len(body.users), "person") if body.users else (len(body.trace_ids), "trace")
    return f"all that is kept of {many} {noun}{'' if many == 1 else 's'}"


def _ask(what: str) -> None:
    if not sys.stdin.isatty():
        raise InvalidInput(f"Nobody is there to confirm that {what} shall be erased.", hint="Add --yes")
    typer.confirm(f"Erase {what}? It cannot be undone.", abort=True)


def _retention_lines(found: Mapping[str, Any]) -> list[str]:
    retention, turn = found["retention"], found["last_turn"]
    lines = [
        f"{found['spans']:,} spans. Days older than {retention['hot_days']:g} days become partitions in "
        f"{plain(retention['cold'] or 'the state folder')}; "
        + ("nothing is deleted by age." if retention["days"] is None else f"deleted after {retention['days']:g} days.")
    ]
    if turn is None:
        lines.append("The control plane does not run: nothing moves and nothing is deleted meanwhile.")
    elif turn["error"] is not None:
        lines.append(f"The last turn, {turn['at']}, failed and is tried again: {plain(turn['error'])}")
    elif turn["at"] is not None:
        lines.append(f"Last turn: {turn['at']}, {turn['took_s']:g} s.")
    return lines
