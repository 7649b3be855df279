"""What several commands show alike: artifact versions, moments, the progress of a flow."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tidemill.cli.output import print_json, print_table, progress_bar
from tidemill.kernel import ArtifactKind, InvalidInput, parse_ref

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tidemill.ledger import ArtifactVersion, Ledger
    from tidemill.loop.project import Project
    from tidemill.pipelines import Flow, FlowResult, StepEvent


def actor() -> str:
    """Who decides: the user's name on this machine."""
    return getpass.getuser()


def moment(at: datetime | None) -> str:
    """A time for people, in UTC."""
    return "-" if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def find_version(ledger: Ledger, text: str, *kinds: ArtifactKind) -> ArtifactVersion:
    """The version that a person names: ``kind/name@version``, ``name@version``, ``name`` or a bare digest.

    Args:
        ledger: where it is.
        text: what was typed; without a kind the first of ``kinds`` is meant.
        kinds: the kinds that will do.

    Raises:
        NotFound: there is none.
        InvalidInput: no reference, or one to something of another kind.
    """
    if text.startswith("sha256:"):
        from tidemill.kernel import parse_digest

        found = ledger.artifacts.by_digest(parse_digest(text))
    else:
        named = text if "/" in text.split("@", 1)[0] else f"{kinds[0]}/{text}"
        found = ledger.artifacts.get(parse_ref(named))
    if found.kind not in kinds:
        wanted = " or ".join(kind.value for kind in kinds)
        raise InvalidInput(
            f"'{text}' is a {found.kind}, not a {wanted}.", hint=f"List them: tidemill {_LISTS[kinds[0]]}"
        )
    return found


_LISTS = {
    ArtifactKind.DATASET: "data list",
    ArtifactKind.INDEX: "index list",
    ArtifactKind.MODEL: "models list",
    ArtifactKind.PROMPT: "prompt list",
    ArtifactKind.RELEASE: "release list",
    ArtifactKind.REPORT: "eval list",
}


def version_json(version: ArtifactVersion) -> dict[str, Any]:
    """A version as a plain JSON object."""
    return {
        "ref": str(version.ref),
        "digest": version.digest,
        "created_at": version.created_at.isoformat(),
        "made_by": version.made_by,
        "content": dict(version.content),
        "blobs": dict(version.blobs),
    }


def list_versions(
    ledger: Ledger,
    kind: ArtifactKind,
    columns: Mapping[str, Callable[[ArtifactVersion], object]],
    *,
    as_json: bool,
    empty: str,
) -> None:
    """Print the newest version of every name of a kind.

    Args:
        ledger: where they are.
        kind: which kind.
        columns: heading -> what stands under it, besides reference, labels and time.
        as_json: print JSON instead.
        empty: said when there is none, with what to type next.
    """
    found = ledger.artifacts.list(kind)
    labels = {one.name: ledger.artifacts.labels(kind, one.name) for one in found}
    if as_json:
        print_json([version_json(one) | {"labels": labels[one.name]} for one in found])
        return
    rows = [
        (one.ref, labels_text(labels[one.name]), *(column(one) for column in columns.values()), moment(one.created_at))
        for one in found
    ]
    print_table((kind.value, "labels", *columns, "made at"), rows, empty=empty)


def labels_text(labels: Mapping[str, int]) -> str:
    """Labels with the versions they point at."""
    return ", ".join(f"{label}={version}" for label, version in sorted(labels.items())) or "-"


def run_with_bar(flow: Flow, project: Project, *, quiet: bool) -> FlowResult:
    """Run a flow with one progress bar a step."""
    from tidemill.pipelines import StepState, run_flow

    with progress_bar(quiet=quiet) as bar:
        tasks = {step.name: bar.add_task(step.name, total=1.0) for step in flow.steps}

        def show(event: StepEvent) -> None:
            done = event.state in (StepState.CACHED, StepState.OK)
            bar.update(tasks[event.step], completed=1.0 if done else event.share)

        return run_flow(flow, project.ledger, on_event=show)
