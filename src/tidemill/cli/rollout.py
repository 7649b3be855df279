"""``rollout``: how an endpoint's traffic moves from one release to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidemill.cli.evaluate import MinimumOption, RuleOption, judge, show_verdict
from tidemill.cli.output import HERE, JsonOption, ProjectOption, print_json, print_table, project_at, say
from tidemill.cli.views import actor, find_version, moment
from tidemill.kernel import ArtifactKind, InvalidInput, NotFound, Outcome, Verdict

if TYPE_CHECKING:
    from pathlib import Path

    from tidemill.ledger import ArtifactVersion, Ledger
    from tidemill.releases import Rollout, RolloutPolicy

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Rollouts: gate, shadow, canary, then promoted or rolled back on evidence.\n\n"
    "Example: tidemill rollout start helpdesk helpdesk@2 --gate helpdesk@2 helpdesk@1",
)
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Rollout id, as list shows it.")]
ReasonOption = Annotated[str, typer.Option(help="Why; kept in the audit chain.")]


@app.command()
def start(
    endpoint: Annotated[str, typer.Argument(help="Endpoint of the project file.")],
    release: Annotated[str, typer.Argument(help="Release it shall move to: NAME, NAME@7 or release/NAME@label.")],
    gate: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="CANDIDATE BASELINE", help="Reports of the new and of the live release to compare."),
    ] = None,
    rule: RuleOption = None,
    minimum: MinimumOption = 30,
    override: Annotated[str | None, typer.Option(metavar="REASON", help="Let it past the gate without proof.")] = None,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Begin to move an endpoint to a release, under the policy of the applied project file.

    An endpoint's first release goes live at once. Every later one must pass the gate, or be let past it by a reason
    that stands in its history for ever. Exit code: 0 under way, 1 gated out, 4 held for want of evidence.

    Example: tidemill rollout start helpdesk helpdesk@1

    Example: tidemill rollout start helpdesk helpdesk@2 --gate helpdesk@2 helpdesk@1 --rule mrr:superior
    """
    from tidemill.releases import RolloutEvent, apply_event, live_release, open_rollout

    with project_at(project) as opened:
        ledger = opened.ledger
        policy = _policy(ledger, endpoint)
        candidate = find_version(ledger, release, ArtifactKind.RELEASE)
        live = live_release(ledger, endpoint)
        event, verdict = None, None
        if live is not None and live.digest != candidate.digest:
            if (gate is None) == (override is None):
                raise InvalidInput(
                    f"'{endpoint}' serves {live.ref}: {candidate.ref} must pass a gate before it gets traffic.",
                    hint="Give either --gate CANDIDATE_REPORT BASELINE_REPORT or --override REASON",
                )
            if gate is not None:
                _check_subjects(ledger, gate, candidate, live)
                verdict = judge(ledger, *gate, rule or (), minimum=minimum)
                event = _GATE_EVENTS[Outcome(str(verdict.value))]
            else:
                event, verdict = RolloutEvent.GATE_OVERRIDDEN.value, Verdict("gate_overridden", str(override))
        rollout = open_rollout(ledger, endpoint, candidate, live, policy, actor())
        if event is not None and verdict is not None:
            rollout = apply_event(ledger, rollout, RolloutEvent(event), verdict, actor())
    if as_json:
        print_json(_json(rollout))
    else:
        if gate is not None and verdict is not None:
            show_verdict(verdict)
        say(f"{rollout.rollout_id}: '{endpoint}' to {candidate.ref} is {rollout.state}.")
        say(f"Follow it: tidemill rollout explain {rollout.rollout_id}")
    raise typer.Exit(Outcome(str(verdict.value)).exit_code if gate is not None and verdict is not None else 0)


@app.command("list")
def list_(
    endpoint: Annotated[str | None, typer.Option(help="Only those of this endpoint.")] = None,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """List the rollouts, oldest first.

    Example: tidemill rollout list --endpoint helpdesk
    """
    from tidemill.releases import list_rollouts

    with project_at(project) as opened:
        found = list_rollouts(opened.ledger, endpoint)
    if as_json:
        print_json([_json(one) for one in found])
        return
    rows = [
        (
            one.rollout_id,
            one.endpoint,
            one.baseline.ref if one.baseline else None,
            one.candidate.ref,
            one.state,
            f"{one.share:.0%}",
            moment(one.history[0].at),
        )
        for one in found
    ]
    empty = "There is no rollout yet. Begin one: tidemill rollout start ENDPOINT RELEASE"
    print_table(("rollout", "endpoint", "from", "to", "state", "share", "opened at"), rows, empty=empty)


@app.command()
def show(rollout_id: IdArgument, project: ProjectOption = HERE, as_json: JsonOption = False) -> None:
    """Show a rollout: releases, state, share of sessions, and what may happen next.

    Example: tidemill rollout show rol_01j8
    """
    from tidemill.releases import legal_events, load_rollout

    with project_at(project) as opened:
        one = load_rollout(opened.ledger, rollout_id)
        sessions = len(opened.ledger.observations.read(one.rollout_id))
    if as_json:
        print_json(_json(one) | {"policy": one.policy.as_json(), "sessions": sessions})
        return
    say(f"{one.rollout_id}: '{one.endpoint}' is {one.state}")
    say(f"  from      {one.baseline.ref if one.baseline else 'nothing'}")
    say(f"  to        {one.candidate.ref}, {one.share:.0%} of new sessions")
    say(f"  sessions  {sessions}")
    say(f"  opened    {moment(one.history[0].at)} by {one.history[0].actor}")
    say(f"  last      {one.last.kind.removeprefix('rollout.')} by {one.last.actor}: {one.last.verdict.reason}")
    say(f"  may       {', '.join(legal_events(one.position)) or 'do nothing more: this state is final'}")


@app.command()
def explain(rollout_id: IdArgument, project: ProjectOption = HERE, as_json: JsonOption = False) -> None:
    """Tell a rollout's story: each decision with who, when, why and the evidence it rests on.

    Example: tidemill rollout explain rol_01j8
    """
    from tidemill.releases import RolloutState, assess_rollout, load_rollout
    from tidemill.releases import explain as tell

    with project_at(project) as opened:
        one = load_rollout(opened.ledger, rollout_id)
        now = assess_rollout(opened.ledger, one) if one.state is RolloutState.CANARY else None
    if as_json:
        print_json(_json(one) | {"story": tell(one), "now": now and now.as_json()})
        return
    for line in tell(one):
        say(line)
    if now is not None:
        say(f"now: {now.value}: {now.reason}")


@app.command()
def promote(
    rollout_id: IdArgument, reason: ReasonOption, project: ProjectOption = HERE, as_json: JsonOption = False
) -> None:
    """Promote a canary by hand, before its evidence is complete.

    Example: tidemill rollout promote rol_01j8 --reason "the fix is urgent"
    """
    _move(project, rollout_id, "promote", reason, as_json=as_json)


@app.command("roll-back")
def roll_back(
    rollout_id: IdArgument, reason: ReasonOption, project: ProjectOption = HERE, as_json: JsonOption = False
) -> None:
    """Take a release back by hand, also after it was promoted.

    Example: tidemill rollout roll-back rol_01j8 --reason "customers complain about the tone"
    """
    _move(project, rollout_id, "roll_back", reason, as_json=as_json)


@app.command()
def hold(
    rollout_id: IdArgument, reason: ReasonOption, project: ProjectOption = HERE, as_json: JsonOption = False
) -> None:
    """Hold a rollout: the candidate gets no more traffic until it is resumed.

    Example: tidemill rollout hold rol_01j8 --reason "wait for Monday"
    """
    _move(project, rollout_id, "hold", reason, as_json=as_json)


@app.command()
def resume(
    rollout_id: IdArgument, reason: ReasonOption, project: ProjectOption = HERE, as_json: JsonOption = False
) -> None:
    """Resume a held rollout where it was held.

    Example: tidemill rollout resume rol_01j8 --reason "Monday"
    """
    _move(project, rollout_id, "resume", reason, as_json=as_json)


@app.command()
def cancel(
    rollout_id: IdArgument, reason: ReasonOption, project: ProjectOption = HERE, as_json: JsonOption = False
) -> None:
    """Cancel a rollout: the endpoint stays with the release it serves.

    Example: tidemill rollout cancel rol_01j8 --reason "superseded by helpdesk@4"
    """
    _move(project, rollout_id, "cancel", reason, as_json=as_json)


@app.command()
def override(
    rollout_id: IdArgument, reason: ReasonOption, project: ProjectOption = HERE, as_json: JsonOption = False
) -> None:
    """Let a rollout past its gate that was gated out, or held for want of evidence.

    Example: tidemill rollout override rol_01j8 --reason "the cases were wrong, see ticket 12"
    """
    _move(project, rollout_id, "gate_overridden", reason, as_json=as_json)


_GATE_EVENTS = {
    Outcome.PASS: "gate_passed",
    Outcome.FAIL: "gate_failed",
    Outcome.INSUFFICIENT: "gate_insufficient",
}


def _move(project: Path, rollout_id: str, event: str, reason: str, *, as_json: bool) -> None:
    from tidemill.releases import RolloutEvent, apply_event, load_rollout

    if not reason.strip():
        raise InvalidInput("A decision needs a reason.", hint='Say why: --reason "…"')
    with project_at(project) as opened:
        before = load_rollout(opened.ledger, rollout_id)
        after = apply_event(opened.ledger, before, RolloutEvent(event), Verdict(event, reason), actor())
    if as_json:
        print_json(_json(after))
        return
    say(f"{after.rollout_id}: '{after.endpoint}' to {after.candidate.ref} was {before.state} and is {after.state}.")


def _policy(ledger: Ledger, endpoint: str) -> RolloutPolicy:
    from tidemill.kernel.settings import EndpointSettings
    from tidemill.loop.apply import APPLIED, applied
    from tidemill.loop.rollouts import rollout_policy

    found = {one.name: one for one in applied(ledger, ArtifactKind.ENDPOINT)}
    if endpoint not in found:
        raise NotFound(
            f"There is no {APPLIED} endpoint '{endpoint}'; there is: {', '.join(sorted(found)) or 'none'}.",
            hint="Add it under 'endpoints:' in tidemill.yaml, then: tidemill apply",
        )
    return rollout_policy(EndpointSettings.model_validate(dict(found[endpoint].content)).rollout)


def _check_subjects(ledger: Ledger, refs: tuple[str, str], candidate: ArtifactVersion, live: ArtifactVersion) -> None:
    """A gate on reports of other releases would prove nothing about these."""
    for ref, release in zip(refs, (candidate, live), strict=True):
        report = find_version(ledger, ref, ArtifactKind.REPORT)
        if report.content["subject"] != release.digest:
            about = ledger.artifacts.named_by([report.content["subject"]])
            named = ", ".join(str(one.ref) for one in about.values()) or report.content["subject"]
            raise InvalidInput(
                f"{report.ref} is about {named}, not about {release.ref}.",
                hint=f"Evaluate it: tidemill eval run {release.ref} CASES",
            )


def _json(rollout: Rollout) -> dict[str, Any]:
    from tidemill.server.api import rollout_json

    return rollout_json(rollout)
