"""``keys``: who may call the gateway."""

from __future__ import annotations

from typing import Annotated

import typer

from tidemill.cli.output import HERE, JsonOption, ProjectOption, print_json, print_table, project_at, say
from tidemill.cli.views import actor, moment

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="API keys of the gateway. The store keeps their digests alone.\n\nExample: tidemill keys issue website",
)


@app.command()
def issue(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Make a key and show it, this once. Clients send it as their api_key.

    Example: tidemill keys issue website
    """
    from tidemill.safety import issue_key

    with project_at(project) as opened:
        key = issue_key(opened.ledger, name)
    if as_json:
        print_json({"name": name, "key": key})
        return
    say(key)
    say(f"This is the key '{name}'. Keep it: it is shown once and stored nowhere.")


@app.command("list")
def list_keys(project: ProjectOption = HERE, as_json: JsonOption = False) -> None:
    """List the keys, revoked ones too.

    Example: tidemill keys list
    """
    with project_at(project) as opened:
        found = opened.ledger.api_keys.list()
    if as_json:
        print_json(
            [
                {
                    "name": one.name,
                    "tenant": one.tenant,
                    "created_at": one.created_at.isoformat(),
                    "revoked_at": one.revoked_at and one.revoked_at.isoformat(),
                }
                for one in found
            ]
        )
        return
    rows = [(one.name, one.tenant, moment(one.created_at), moment(one.revoked_at)) for one in found]
    empty = "There is no key yet. Make one: tidemill keys issue NAME"
    print_table(("key", "tenant", "issued at", "revoked at"), rows, empty=empty)


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Name of the key.")],
    reason: Annotated[str, typer.Option(help="Why; kept in the audit chain.")],
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Shut a key out. The gateway refuses it as soon as the control plane has told it, within a second.

    Example: tidemill keys revoke website --reason "it was in a log"
    """
    with project_at(project) as opened:
        decision = opened.ledger.api_keys.revoke(name, actor=actor(), reason=reason)
    if as_json:
        print_json({"name": name, "decision": decision.decision_id, "at": decision.at.isoformat()})
        return
    say(f"'{name}' is revoked.")
