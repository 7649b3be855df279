"""``up``, ``status`` and the parts alone."""

from __future__ import annotations

import logging
import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidemill.cli.output import HERE, JsonOption, ProjectOption, print_json, progress_bar, project_at, say

if TYPE_CHECKING:
    from tidemill.loop.project import Project
    from tidemill.server.children import ModelFiles


def up(
    project: ProjectOption = HERE,
    ready_within_s: Annotated[float, typer.Option(help="Give up when something is not ready by then.")] = 60.0,
) -> None:
    """Run everything of a project until Ctrl-C: gateway, control plane, model server, one process per release.

    Applies the project file first. What dies is started again.

    Example: tidemill up
    """
    import getpass

    from tidemill.loop.apply import apply
    from tidemill.loop.project import find_project
    from tidemill.server import children
    from tidemill.server.supervisor import InstanceLock, Supervisor, check_port, listening_socket

    with ExitStack() as held:
        with project_at(project) as opened:
            settings, places = opened.settings, opened.places
            held.callback(InstanceLock(places.run).release)
            children.check_guardrails(settings, places)
            apply(settings, opened.ledger, actor=getpass.getuser())
            files = _model_files(opened)
        check_port(settings.server.host, settings.server.port, "server")
        if settings.runtime.enabled:
            check_port(settings.runtime.host, settings.runtime.port, "runtime")
        listener = held.enter_context(listening_socket(settings.gateway.host, settings.gateway.port, "gateway"))
        fixed = [children.server_child(settings, find_project(project))]
        fixed += children.gateway_children(settings, places, listener.fileno())
        runtime = children.runtime_child(settings, files)
        if runtime is not None:
            fixed.insert(0, runtime)
        supervisor = Supervisor(
            places.run, places.logs, fixed, lambda: children.serving_children(settings, places), on_change=say
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: supervisor.stop())

        def ready(seconds: float) -> None:
            say(f"ready after {seconds:.1f} s: gateway {settings.gateway.base_url}")

        supervisor.run(ready_within_s=ready_within_s, on_ready=ready)
        say("stopped")


def status(project: ProjectOption = HERE, as_json: JsonOption = False) -> None:
    """Show what runs, which release answers each endpoint and what is being rolled out.

    Example: tidemill status --json
    """
    from tidemill.kernel import Unavailable
    from tidemill.kernel.settings import STATE_FOLDER, load_settings
    from tidemill.server.client import ControlClient
    from tidemill.server.supervisor import read_state

    settings = load_settings(_project_file(project))
    run_folder = settings.folder / STATE_FOLDER / "run"
    state = read_state(run_folder)
    found: dict[str, Any] = {
        "project": settings.project,
        "running": state is not None,
        "processes": {},
        "control": None,
    }
    if state is not None:
        found["processes"] = state["children"]
        client = ControlClient(f"http://{settings.server.host}:{settings.server.port}", run_folder / "token")
        try:
            found["control"] = client.get("/api/v1/status")
        except Unavailable as error:
            found["problem"] = error.message
    found["gateway"] = settings.gateway.base_url
    if as_json:
        print_json(found)
        return
    _show_status(found)


def server(project: ProjectOption = HERE) -> None:
    """Run the control plane alone: REST API, drainer, rollouts, monitors.

    Example: tidemill server
    """
    from tidemill.server.process import run_server

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    run_server(_project_file(project))


def gateway(project: ProjectOption = HERE) -> None:
    """Run one gateway worker alone, on the routing snapshot that the control plane wrote last.

    Example: tidemill gateway
    """
    from tidemill.gateway.worker import WorkerOptions, run_worker
    from tidemill.kernel.settings import load_settings
    from tidemill.loop.project import Places, prepare_places
    from tidemill.server.children import gateway_backing
    from tidemill.server.supervisor import listening_socket

    settings = load_settings(_project_file(project))
    places = Places(settings.state)
    prepare_places(places)
    listener = listening_socket(settings.gateway.host, settings.gateway.port, "gateway")
    options = WorkerOptions(
        project=settings.project,
        tenant=settings.tenant,
        snapshot_path=places.routing,
        segments_folder=places.segments,
        state_folder=places.state / "gateway",
        capture=settings.gateway.capture,
        allowed_origins=frozenset(settings.gateway.allowed_origins),
        allowed_hosts=frozenset(settings.gateway.allowed_hosts),
        backing=gateway_backing(settings, places),
        tls_certificate=_file(settings.folder, settings.gateway.tls_certificate),
        tls_key=_file(settings.folder, settings.gateway.tls_key),
    )
    run_worker(options, listener=listener, ready=lambda port: say(f"gateway ready on port {port}"))


def runtime(project: ProjectOption = HERE) -> None:
    """Run the local model server alone.

    Example: tidemill runtime
    """
    import sys

    from tidemill.kernel import NotFound
    from tidemill.server.children import runtime_child

    with project_at(project) as opened:
        child = runtime_child(opened.settings, _model_files(opened))
    if child is None:
        raise NotFound("The project serves no model here.", hint="Name one under runtime.chat in tidemill.yaml")
    os.execv(sys.executable, [sys.executable, "-m", child.module, *child.arguments])  # noqa: S606 - our own module


def _project_file(project: Path) -> Path:
    """The project file in or above a folder, without opening the ledger."""
    from tidemill.kernel import NotFound
    from tidemill.kernel.settings import PROJECT_FILE

    start = project.resolve()
    if start.is_file():
        return start
    for folder in (start, *start.parents):
        if (folder / PROJECT_FILE).is_file():
            return folder / PROJECT_FILE
    raise NotFound(f"There is no {PROJECT_FILE} in {start} or above it.", hint="Write one with: tidemill init")


def _file(folder: Path, name: str | None) -> Path | None:
    return None if name is None else folder / name


def _model_files(opened: Project) -> ModelFiles:
    """Weights of the models that the local model server should run; pulled when they are not there yet."""
    from tidemill.models import model_files, pull
    from tidemill.server.children import ModelFiles

    runtime_settings = opened.settings.runtime
    if not runtime_settings.enabled:
        return ModelFiles()
    found: dict[str, Any] = {}
    catalogue = opened.catalogue()
    with progress_bar(quiet=False) as bar:
        for role, name in (("chat", runtime_settings.chat), ("embedding", runtime_settings.embedding)):
            if name is None or not catalogue.get(name).has_weights:
                continue
            task = bar.add_task(name, total=1.0)

            def tell(share: float, note: str, task: Any = task, name: str = name) -> None:
                bar.update(task, completed=share, description=f"{name}: {note}")

            version = pull(opened.ledger, catalogue.get(name), cache_dir=opened.places.cache, progress=tell)
            bar.update(task, completed=1.0)
            files = model_files(opened.ledger, version)
            found[role] = (name, files["weights"]) if role == "chat" else (name, files["weights"], files["tokenizer"])
    return ModelFiles(**found)


def _show_status(found: dict[str, Any]) -> None:
    from tidemill.cli.output import print_table

    if not found["running"]:
        say(f"{found['project']} is not running. Start it: tidemill up")
        return
    say(f"{found['project']} is running; clients use {found['gateway']}")
    rows = [(name, one["pid"], one["restarts"]) for name, one in found["processes"].items()]
    print_table(("process", "pid", "restarts"), rows)
    control = found["control"]
    if control is None:
        say(found.get("problem", "The control plane does not answer."))
        return
    endpoints = [(one["endpoint"], one["control"], "yes" if one["ready"] else "no") for one in control["endpoints"]]
    print_table(("endpoint", "release", "ready"), endpoints, empty="No endpoint serves a release yet.")
    rollouts = [(one["rollout"], one["endpoint"], one["to"], one["state"]) for one in control["rollouts"]]
    print_table(("rollout", "endpoint", "to", "state"), rollouts, empty="No rollout is under way.")
