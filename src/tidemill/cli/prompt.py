"""``prompt``: versions of prompts and their labels."""

from __future__ import annotations

from typing import Annotated

import typer

from tidemill.cli.output import HERE, JsonOption, ProjectOption, print_json, project_at, say
from tidemill.cli.views import actor, find_version, labels_text, list_versions, moment, version_json
from tidemill.kernel import ArtifactKind

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Prompts: immutable versions of message templates, and labels on them.\n\n"
    "Prompts are written in the project file and brought here by: tidemill apply\n\n"
    "Example: tidemill prompt list",
)
RefArgument = Annotated[str, typer.Argument(help="Prompt: NAME, NAME@7, prompt/NAME@label or a digest.")]


@app.command("list")
def list_prompts(project: ProjectOption = HERE, as_json: JsonOption = False) -> None:
    """List the prompts, each in its newest version.

    Example: tidemill prompt list
    """
    with project_at(project) as opened:
        list_versions(
            opened.ledger,
            ArtifactKind.PROMPT,
            {
                "messages": lambda one: len(one.content["messages"]),
                "examples": lambda one: len(one.content.get("examples") or ()),
            },
            as_json=as_json,
            empty="There is no prompt yet. Bring those of the project file here: tidemill apply",
        )


@app.command()
def show(ref: RefArgument, project: ProjectOption = HERE, as_json: JsonOption = False) -> None:
    """Show a prompt: its messages, examples and options.

    Example: tidemill prompt show answer@production
    """
    from tidemill.prompts import Prompt

    with project_at(project) as opened:
        version = find_version(opened.ledger, ref, ArtifactKind.PROMPT)
        labels = opened.ledger.artifacts.labels(ArtifactKind.PROMPT, version.name)
    if as_json:
        print_json(version_json(version) | {"labels": labels})
        return
    prompt = Prompt.from_json(version.name, version.content)
    say(f"{version.ref}  {version.digest}")
    say(f"made at {moment(version.created_at)}, labels {labels_text(labels)}")
    say(f"variables: {', '.join(sorted(prompt.variables)) or 'none'}")
    for message in prompt.messages:
        say(f"\n[{message.role}]\n{message.content}")
    for number, example in enumerate(prompt.examples, 1):
        say(f"\n[example {number}]\nquestion: {example.question}\ncontext: {example.context}\nanswer: {example.answer}")
    for key, value in sorted(prompt.config.items()):
        say(f"\n{key} = {value!r}")


@app.command()
def diff(
    old: RefArgument,
    new: RefArgument,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Show what changed between two prompts, as a unified diff.

    Example: tidemill prompt diff answer@1 answer@2
    """
    from tidemill.prompts import Prompt
    from tidemill.prompts import diff as diff_prompts

    with project_at(project) as opened:
        found = [find_version(opened.ledger, ref, ArtifactKind.PROMPT) for ref in (old, new)]
    first, second = (Prompt.from_json(str(one.name), one.content) for one in found)
    lines = diff_prompts(first, second)
    if as_json:
        print_json({"old": str(found[0].ref), "new": str(found[1].ref), "diff": lines})
        return
    say(lines or f"{found[0].ref} and {found[1].ref} say the same.")


@app.command()
def label(
    ref: RefArgument,
    label_name: Annotated[str, typer.Argument(metavar="LABEL", help="The label to point at that version.")],
    reason: Annotated[str, typer.Option(help="Why; kept in the audit chain.")],
    expected: Annotated[
        int | None, typer.Option(help="Refuse unless the label points at this version now; 0: at none.")
    ] = None,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Point a label at a version. The move is a decision with who and why; of two at once, one is refused.

    Example: tidemill prompt label answer@3 production --reason "shorter answers" --expected 2
    """
    with project_at(project) as opened:
        version = find_version(opened.ledger, ref, ArtifactKind.PROMPT)
        now = opened.ledger.artifacts.labels(ArtifactKind.PROMPT, version.name).get(label_name)
        decision = opened.ledger.artifacts.move_label(
            ArtifactKind.PROMPT,
            version.name,
            label_name,
            version.version,
            expected=now if expected is None else (expected or None),
            actor=actor(),
            reason=reason,
        )
    if as_json:
        print_json({"ref": str(version.ref), "label": label_name, "was": now, "decision": decision.decision_id})
        return
    say(
        f"prompt/{version.name}@{label_name} points at version {version.version}" + (f", before {now}." if now else ".")
    )
