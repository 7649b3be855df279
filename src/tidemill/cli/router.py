"""``router``: which of a release's models answers what, and learning which requests are easy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidemill.cli.output import HERE, JsonOption, ProjectOption, print_json, print_table, project_at, say
from tidemill.cli.views import find_version
from tidemill.kernel import ArtifactKind, InvalidInput, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tidemill.loop.router_training import FittedRouter, ScoredRequest

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Routers: which of a release's models answers which requests.\n\nExample: tidemill router show helpdesk",
)


@app.command()
def show(
    release: Annotated[str, typer.Argument(help="Name of a release of the project file.")],
    ask: Annotated[str | None, typer.Option(metavar="TEXT", help="Say where this request would go first.")] = None,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Show a release's models and how one is chosen; for learned routing the weight of each feature.

    Example: tidemill router show helpdesk --ask "Prove that the square root of 2 is irrational."
    """
    from tidemill.loop.routers import router_of

    with project_at(project) as opened:
        router = router_of(opened.settings, release)
    found = router.as_json()
    if ask is not None:
        found["asked"] = router.first(ask)
    if as_json:
        print_json(found)
        return
    say(f"{release}: {found['choice']} of {', '.join(found['models'])}")
    for rule in found["rules"]:
        say(f"  {rule['model']} first where {rule['field']} matches {rule['pattern']}")
    if found["weights"]:
        say(f"  {found['models'][1]} first from a score of {found['threshold']:g}")
        weights = sorted(found["weights"].items(), key=lambda one: -abs(one[1]))
        print_table(("feature", "weight"), weights)
    if ask is not None:
        model, score = found["asked"]["model"], found["asked"]["score"]
        where = f"It goes to {model} first" if model is not None else f"{found['choice']} does not look at the request"
        say(where + (f"; its score is {score:.3f}." if score is not None else "."))


@app.command()
def train(
    file: Annotated[
        Path | None, typer.Option(help="Scored requests as JSON lines: input or messages, small, large.")
    ] = None,
    endpoint: Annotated[str | None, typer.Option(help="Or learn from the traces of this endpoint.")] = None,
    large: Annotated[
        str | None, typer.Option(help="With --endpoint: release of the large model, NAME@7 or a digest.")
    ] = None,
    score: Annotated[str, typer.Option(help="With --endpoint: name of the score that both answers have.")] = "quality",
    max_loss: Annotated[
        float, typer.Option(min=0, max=1, help="How far the mean score may fall below the large model's.")
    ] = 0.02,
    alpha: Annotated[float, typer.Option(min=1e-6, max=0.5, help="Chance that it falls further.")] = 0.05,
    project: ProjectOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Learn which requests the small model may answer, and print what goes into the project file.

    Both models must have answered the same requests, and each answer needs a score from 0 to 1: from a file, or from
    traces of an endpoint whose rollout ran one model in the shadow of the other. Exit code: 0 PASS, 4 INSUFFICIENT.

    Example: tidemill router train --file scored.jsonl --max-loss 0.05

    Example: tidemill router train --endpoint helpdesk --large big@2 --score quality
    """
    from tidemill.loop.router_training import fit_router, read_scored

    if (file is None) == (endpoint is None):
        raise InvalidInput("Give either --file or --endpoint.", hint="tidemill router train --help")
    scored = read_scored(file) if file is not None else _from_traces(project, str(endpoint), large, score)
    fitted = fit_router(scored, max_loss=max_loss, alpha=alpha)
    if as_json:
        print_json(_fitted_json(fitted, len(scored)))
    else:
        _say_fitted(fitted, len(scored))
    raise typer.Exit(Outcome(str(fitted.verdict.value)).exit_code)


def _from_traces(project: Path, endpoint: str, large: str | None, score: str) -> list[ScoredRequest]:
    from tidemill.cli.traces import telemetry_of
    from tidemill.loop.asking import FollowQuestion
    from tidemill.loop.routers import traced_pairs

    if large is None:
        raise InvalidInput("Name the large model's release: --large NAME@7.", hint="tidemill release list")
    with project_at(project) as opened, telemetry_of(opened) as telemetry:
        digest = find_version(opened.ledger, large, ArtifactKind.RELEASE).digest
        question = FollowQuestion(endpoint=endpoint, status="ok", spans=True, content=True)
        spans = _all("spans", lambda place: telemetry.spans(question.model_copy(update={"after_seq": place})))
        scores = _all("scores", lambda place: telemetry.scores(names=[score], after_seq=place))
        return traced_pairs(spans, scores, large=digest)


def _all(name: str, page_after: Callable[[int], Any]) -> Iterator[Any]:
    """Everything of a list that is told in pages."""
    place, more = 0, True
    while more:
        page = page_after(place)
        yield from page[name]
        place, more = page["after_seq"], page["more"]


def _written(fitted: FittedRouter) -> dict[str, Any]:
    learned = fitted.learned
    return {"weights": [round(one, 4) for one in learned.weights], "threshold": round(learned.threshold, 4)}


def _fitted_json(fitted: FittedRouter, requests: int) -> dict[str, Any]:
    return {
        "requests": requests,
        "verdict": fitted.verdict.as_json(),
        "saved": fitted.saved,
        "share_large": fitted.share_large,
        "quality": {"routed": fitted.quality, "small": fitted.quality_small, "large": fitted.quality_large},
        "cost_usd": {"routed": fitted.cost_usd, "small": fitted.cost_small_usd, "large": fitted.cost_large_usd},
        "loss": fitted.loss.as_json(),
        "over_random": fitted.over_random.as_json(),
        "beats_random": fitted.beats_random,
        "learned": _written(fitted),
    }


def _say_fitted(fitted: FittedRouter, requests: int) -> None:
    say(f"{fitted.verdict.value}: {fitted.verdict.reason}")
    rows = [
        ("small model", fitted.quality_small, fitted.cost_small_usd),
        ("routed", fitted.quality, fitted.cost_usd),
        ("large model", fitted.quality_large, fitted.cost_large_usd),
    ]
    print_table((f"of {requests} requests, a third unseen", "mean score", "USD a request"), rows)
    over = fitted.over_random
    better = "better than" if fitted.beats_random else "not shown to be better than"
    say(f"It is {better} a random mix of the same cost: {over.mean:+.3f} ({over.low:+.3f} to {over.high:+.3f}).")
    if fitted.verdict.value == Outcome.PASS:
        written = _written(fitted)
        say("In tidemill.yaml, under the release's router (the release's own model is the small one):")
        say(f"  choice: learned\n  learned:\n    threshold: {written['threshold']}\n    weights: {written['weights']}")
