"""``keys``: who may call the gateway."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidemill.cli.output import HERE, JsonOption, ProjectOption, print_json, print_table, project_at, say
from tidemill.cli.views import actor, moment
from tidemill.kernel import Priority, SystemClock

if TYPE_CHECKING:
    from tidemill.ledger import ApiKeyRecord

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="API keys of the gateway. The store keeps their digests alone.\n\nExample: tidemill keys issue website",
)


@app.command()
def issue(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    team: Annotated[str | None, typer.Option(help="Team whose limits count too.")] = None,
    endpoint: Annotated[list[str] | None, typer.Option(help="An endpoint it may call; repeat. Default: all.")] = None,
    operation: Annotated[list[str] | None, typer.Option(help="e.g. chat; repeat. Default: all.")] = None,
    expires_in_days: Annotated[float | None, typer.Option(min=0.0, help="Not honoured after so many days.")] = None,
    priority: Annotated[Priority | None, typer.Option(help="Who is let in first under load.")] = None,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Make a key and show it, this once. Clients send it as their api_key.

    Example: tidemill keys issue website --team web --endpoint helpdesk --expires-in-days 90
    """
    from tidemill.ledger import KeyTerms
    from tidemill.safety import issue_key

    expires_at = None
    if expires_in_days is not None:
        expires_at = SystemClock().now() + timedelta(days=expires_in_days)
    terms = KeyTerms(
        team=team,
        endpoints=tuple(endpoint or ()),
        operations=tuple(operation or ()),
        expires_at=expires_at,
        priority=priority.value if priority is not None else None,
    )
    with project_at(project) as opened:
        key = issue_key(opened.ledger, name, terms)
    if as_json:
        print_json({"name": name, "key": key})
        return
    say(key)
    say(f"This is the key '{name}'. Keep it: it is shown once and stored nowhere.")


@app.command()
def rotate(
    name: Annotated[str, typer.Argument(help="Name of the key.")],
    reason: Annotated[str, typer.Option(help="Why; kept in the audit chain.")],
    overlap_s: Annotated[float, typer.Option(min=0.0, help="How long the old key is honoured still.")] = 3600.0,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Make a second key of a name and let the first run out. Both share the name's limits.

    Example: tidemill keys rotate website --reason "yearly" --overlap-s 86400
    """
    from tidemill.safety import rotate_key

    with project_at(project) as opened:
        key, decision = rotate_key(opened.ledger, name, overlap_s=overlap_s, actor=actor(), reason=reason)
    if as_json:
        print_json({"name": name, "key": key, "decision": decision.decision_id})
        return
    say(key)
    say(f"This is the new key '{name}', shown once. The old one ends in {overlap_s:g} s.")


@app.command("list")
def list_keys(project: ProjectOption = HERE, as_json: JsonOption = False) -> None:
    """List the keys, revoked and expired ones too.

    Example: tidemill keys list
    """
    with project_at(project) as opened:
        found = opened.ledger.api_keys.list()
    if as_json:
        print_json([_key_json(one) for one in found])
        return
    rows = [
        (
            one.name,
            one.prefix + "…" if one.prefix else "-",
            one.team or "-",
            ", ".join((*one.endpoints, *one.operations)) or "all",
            moment(one.created_at),
            moment(one.expires_at),
            moment(one.revoked_at),
        )
        for one in found
    ]
    empty = "There is no key yet. Make one: tidemill keys issue NAME"
    print_table(("key", "begins", "team", "may", "issued at", "expires at", "revoked at"), rows, empty=empty)


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


def _key_json(one: ApiKeyRecord) -> dict[str, Any]:
    return {
        "name": one.name,
        "prefix": one.prefix,
        "tenant": one.tenant,
        "team": one.team,
        "endpoints": list(one.endpoints),
        "operations": list(one.operations),
        "priority": one.priority,
        "created_at": one.created_at.isoformat(),
        "expires_at": one.expires_at and one.expires_at.isoformat(),
        "revoked_at": one.revoked_at and one.revoked_at.isoformat(),
    }
