"""The demo's result as JSON: releases with scores and intervals, the timeline, latency and cost, lineage, timings."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from tidemill.evidence import mean_interval
from tidemill.kernel import RowId, UserError
from tidemill.releases import RolloutState, assess_path

if TYPE_CHECKING:
    from tidemill.loop.demo.stages import Story, Told
    from tidemill.loop.project import Project

_DRAIN_WITHIN_S: Final = 15.0
_EXCERPT_CHARACTERS: Final = 600
_TELLING_WORDS: Final = 5
_DECISIONS: Final = {
    RolloutState.PROMOTED: "promoted",
    RolloutState.ROLLED_BACK: "rolled_back",
    RolloutState.GATED_OUT: "gated_out",
}


def result_of(project: Project, story: Story, ask: Callable[[str], Any]) -> dict[str, Any]:
    """Put the story together.

    Args:
        project: the demo's project.
        story: what happened.
        ask: asks the control plane for a path.
    """
    ledger = project.ledger
    gateway = project.settings.gateway
    return {
        "project": str(project.settings.folder),
        "endpoint": story.endpoint,
        "run": story.run,
        "base_url": f"http://{gateway.host}:{gateway.port}/v1",
        "counts": story.counts,
        "steps": {"cached": list(story.cached_steps), "ran": list(story.ran_steps)},
        "releases": [_release(story, told) for told in story.told],
        "timeline": _timeline(story),
        "evidence": [_evidence(project, told) for told in story.told[1:]],
        "latency": _latency(story, ask),
        "price": _price(project),
        "lineage": _lineage(project, story, ask),
        "audit": asdict(ledger.audit.verify()) | {"head": None},
        "timings": story.timings,
    }


def _release(story: Story, told: Told) -> dict[str, Any]:
    metrics = dict(told.proof.heldout.metrics) | {
        f"{name} (all)": one for name, one in told.proof.everything.metrics.items() if name in ("recall@1", "recall@5")
    }
    measured = {name: one for name, one in metrics.items() if one.n}
    met = [visit for one in story.told for visit in one.visits if visit.release == told.release.digest]
    content = [visit.content for visit in met]
    return {
        "ref": str(told.release.ref),
        "digest": told.release.digest,
        "title": told.title,
        "decision": _DECISIONS.get(told.rollout.state, "held"),
        "reason": told.rollout.history[-1].verdict.reason
        if told.rollout.history[-1].kind != "rollout.settled"
        else told.rollout.history[-2].verdict.reason,
        "gate": told.gate.as_json() if told.gate is not None else None,
        "scores": {name: one.mean for name, one in measured.items()},
        "intervals": {name: [one.low, one.high] for name, one in measured.items()},
        "n": {name: one.n for name, one in measured.items()},
        "users": _users(content),
    }


def _users(content: list[float]) -> dict[str, Any]:
    """How many users were content, with a 95 % interval of the share."""
    interval = mean_interval(content) if content else None
    return {
        "sessions": len(content),
        "content": sum(content),
        "interval": [interval.low, interval.high] if interval is not None else None,
    }


def _timeline(story: Story) -> list[dict[str, Any]]:
    rows = []
    for told in story.told:
        for decision in told.rollout.history:
            if decision.kind == "rollout.settled":
                continue
            verdict = decision.verdict
            rows.append(
                {
                    "at": decision.at.isoformat(),
                    "release": str(told.release.ref),
                    "event": decision.kind.removeprefix("rollout."),
                    "actor": decision.actor,
                    "reason": verdict.reason,
                    "evidence": _brief(dict(verdict.evidence)),
                }
            )
    return sorted(rows, key=lambda row: str(row["at"]))


def _brief(evidence: dict[str, Any]) -> dict[str, Any]:
    """The figures of a decision without its long lists."""
    return {
        name: value for name, value in evidence.items() if name in ("sessions", "metrics", "pairs", "delta", "rule")
    }


def _evidence(project: Project, told: Told) -> dict[str, Any]:
    """The e-values after every session, replayed from the stored sequence."""
    observations = project.ledger.observations.read(told.rollout.rollout_id)
    policy = told.rollout.policy
    points = [
        {
            "seq": point.seq,
            "e_not_inferior": dict(point.e_not_inferior),
            "e_inferior": dict(point.e_inferior),
            "average_e_inferior": point.average_e_inferior,
        }
        for point in assess_path(policy, observations)
    ]
    return {
        "release": str(told.release.ref),
        "rollout": told.rollout.rollout_id,
        "promote_at": 1 / policy.alpha_promote,
        "roll_back_at": 1 / policy.alpha_rollback,
        "margins": dict(policy.margins),
        "sessions": len(observations),
        "path": points,
    }


def _latency(story: Story, ask: Callable[[str], Any]) -> list[dict[str, Any]]:
    names = {told.release.digest: str(told.release.ref) for told in story.told}
    rows = ask("/api/v1/summary?group_by=release&group_by=endpoint&group_by=arm")
    return [
        {"release": names[row["group"]["release"]], "arm": row["group"]["arm"]}
        | {name: value for name, value in row.items() if name != "group"}
        for row in rows
        if row["group"]["endpoint"] == story.endpoint and row["group"]["release"] in names
    ]


def _price(project: Project) -> dict[str, float]:
    """What a million tokens of the chat model cost."""
    runtime = project.settings.runtime
    return {"input_usd_per_mtok": runtime.input_usd_per_mtok, "output_usd_per_mtok": runtime.output_usd_per_mtok}


def _lineage(project: Project, story: Story, ask: Callable[[str], Any]) -> dict[str, Any]:
    """One answer followed back: of the best release the newest that the user liked and that says a few words."""
    best = next(
        (told for told in story.told if told.rollout.state is RolloutState.PROMOTED and told.gate), story.told[0]
    )
    visits = [visit for told in story.told for visit in told.visits if visit.release == best.release.digest]
    liked = [visit for visit in visits if visit.content and visit.sources] or visits
    if not liked:
        return {}
    visit = next((one for one in reversed(liked) if len(one.answer.split()) >= _TELLING_WORDS), liked[-1])
    limit_s = time.monotonic() + _DRAIN_WITHIN_S
    while True:
        try:
            tree = ask("/api/v1/lineage/" + quote(f"trace:{visit.trace_id}"))
            break
        except UserError:
            if time.monotonic() > limit_s:
                return {}
            time.sleep(0.2)
    return {"question": visit.question, "answer": visit.answer, "sources": list(visit.sources), **tree} | {
        "rows": _excerpts(project, tree)
    }


def _excerpts(project: Project, tree: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Title and beginning of each passage and document of a lineage, by row id."""
    ledger = project.ledger
    found = {}
    for row_id in (RowId(node["id"]) for node in tree["nodes"] if node["kind"] == "row"):
        for version in ledger.lineage.versions_holding(row_id)[:1]:
            for row in ledger.datasets.rows(version, [row_id]):
                title, text = str(row.value.get("title", "")), str(row.value.get("text", ""))
                found[str(row_id)] = {
                    "title": title,
                    "text": text[:_EXCERPT_CHARACTERS],
                    "held_by": str(version.ref),
                }
    return found
