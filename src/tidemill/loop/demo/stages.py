"""The story of the demo, stage by stage. What is done is in the ledger, so a killed demo goes on from there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from tidemill.evaluation import Case, CaseSet, load_cases
from tidemill.kernel import Digest, Outcome, ReleaseParts, Unavailable, Verdict
from tidemill.loop.demo.build import demo_flow
from tidemill.loop.demo.plan import CHAT_MODEL, EMBEDDING_MODEL, PLAIN_PROMPT, DemoPlan, chosen_prompt, desk_name
from tidemill.loop.demo.proving import Proof, hold_against, prove
from tidemill.loop.demo.traffic import Users, Visit
from tidemill.models import pull
from tidemill.pipelines import FlowResult, StepEvent, run_flow
from tidemill.prompts import Prompt, choose_examples, publish_prompt
from tidemill.releases import (
    Rollout,
    RolloutEvent,
    RolloutPolicy,
    RolloutState,
    apply_event,
    create_release,
    list_rollouts,
    live_release,
    load_rollout,
    open_rollout,
)

if TYPE_CHECKING:
    from tidemill.ledger import ArtifactVersion, Ledger
    from tidemill.loop.project import Project

ACTOR: Final = "demo"
_EVALUATION_TRIES: Final = 5
_GATE_EVENTS: Final = {
    Outcome.PASS: RolloutEvent.GATE_PASSED,
    Outcome.FAIL: RolloutEvent.GATE_FAILED,
    Outcome.INSUFFICIENT: RolloutEvent.GATE_INSUFFICIENT,
}


class Narrator(Protocol):
    """Tells a person what is going on."""

    def stage(self, title: str) -> None:
        """A new stage begins."""
        ...

    def progress(self, share: float, note: str) -> None:
        """The stage has come so far, in [0, 1]."""
        ...

    def line(self, text: str) -> None:
        """A result worth a line."""
        ...


@dataclass(slots=True, kw_only=True)
class Told:
    """One release of the story, with all that was found out about it."""

    release: ArtifactVersion
    title: str
    proof: Proof
    rollout: Rollout
    gate: Verdict | None = None
    visits: list[Visit] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Story:
    """What happened, for the page at the end."""

    endpoint: str
    run: int
    told: list[Told] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    cached_steps: tuple[str, ...] = ()
    ran_steps: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    policy: RolloutPolicy | None = None


class Stages:
    """Tells the story once.

    Args:
        project: the demo's opened project.
        plan: sizes.
        narrator: told what happens.
        run: number of this telling; it names the endpoint.
        docs: the user's own documents, if given.
        revive: brings the processes back when they do not answer.
        api_key: a key of the gateway.
    """

    def __init__(
        self,
        project: Project,
        plan: DemoPlan,
        narrator: Narrator,
        *,
        run: int,
        docs: Path | None,
        revive: Callable[[], None],
        api_key: str,
    ) -> None:
        settings = project.settings
        self._project = project
        self._ledger: Ledger = project.ledger
        self._plan = plan
        self._narrator = narrator
        self._docs = docs
        self._revive = revive
        self.story = Story(endpoint=endpoint_name(run, docs), run=run)
        self._users = Users(
            project.ledger,
            base_url=f"http://{settings.gateway.host}:{settings.gateway.port}/v1",
            api_key=api_key,
            endpoint=self.story.endpoint,
            noise=plan.feedback_noise,
            revive=revive,
        )

    def tell(self) -> Story:
        """All stages in order."""
        with self._stage("build", "Data set, indexes, prompts"):
            built = self._build()
        cases = self._cases(built)
        model = self._ledger.artifacts.get(f"model/{CHAT_MODEL}").digest
        first = self._release(
            1, model, built.outputs["bm25-index"]["index"], PLAIN_PROMPT, self._plan.first_retrieval()
        )
        second_prompt = self._second_prompt(cases, built)
        hybrid, poisoned = built.outputs["hybrid-index"]["index"], built.outputs["poisoned-index"]["index"]
        second = self._release(2, model, hybrid, second_prompt, self._plan.second_retrieval())
        third = self._release(3, model, poisoned, second_prompt, self._plan.second_retrieval())
        self._first(first, cases)
        self._next(second, cases, "release 2: hybrid search, chosen examples", self._plan.policy, override=False)
        quick = replace(self._plan.policy, shadow_requests=0)
        self._next(third, cases, "release 3: an index poisoned on purpose", quick, override=True)
        return self.story

    def _build(self) -> FlowResult:
        embedder = pull(
            self._ledger, self._project.catalogue().get(EMBEDDING_MODEL), cache_dir=self._project.places.cache
        )
        flow = demo_flow(self._plan, docs=self._docs, embedder=embedder.digest)
        done = 0

        def told(event: StepEvent) -> None:
            nonlocal done
            done += event.state in ("ok", "cached")
            self._narrator.progress((done + event.share * (event.state == "progress")) / len(flow.steps), event.step)
            if event.state in ("ok", "cached"):
                took = f"{event.seconds:.1f} s" if event.state == "ok" else "unchanged, from the cache"
                self._narrator.line(f"{event.step}: {took}")

        result = run_flow(flow, self._ledger, on_event=told)
        self.story.cached_steps, self.story.ran_steps = result.cached, result.ran
        return result

    def _cases(self, built: FlowResult) -> CaseSet:
        cases = load_cases(self._ledger, self._ref(built.outputs["questions"]["cases"]))
        dataset = self._ledger.artifacts.by_digest(built.outputs["documents"]["dataset"])
        documents = self._ledger.datasets.count(dataset)
        passages = int(self._ledger.artifacts.by_digest(built.outputs["hybrid-index"]["index"]).content["passages"])
        self.story.counts = {"documents": documents, "passages": passages, "questions": len(cases)}
        self._narrator.line(f"{documents} documents, {passages} passages, {len(cases)} questions")
        return cases

    def _ref(self, digest: Digest) -> str:
        return str(self._ledger.artifacts.by_digest(digest).ref)

    def _second_prompt(self, cases: CaseSet, built: FlowResult) -> Prompt:
        """Worked examples chosen from the dev split, each with the passage that answers it."""
        from tidemill.retrieval import load_index

        index = load_index(self._ledger, self._ledger.artifacts.by_digest(built.outputs["bm25-index"]["index"]))
        fitting: dict[str, tuple[str, str, str]] = {}
        for case in cases.select(split="dev").cases:
            hits = index.search(case.question, top_k=1, mode="bm25") if case.answerable and case.answers else ()
            for hit in hits:
                answer = next((one for one in case.answers if one.lower() in hit.text.lower()), None)
                if hit.source in case.documents and answer is not None and len(hit.text) < 420:
                    fitting[case.question] = (case.question, f"{hit.title}\n{hit.text}", answer)
        values = [case.as_value() for case in cases.cases if case.question in fitting]
        chosen = choose_examples(values, self._plan.examples, seed=3)
        return chosen_prompt(tuple(fitting[str(one["question"])] for one in chosen))

    def _release(
        self, number: int, model: Digest, index: Digest, prompt: Prompt, retrieval: Mapping[str, object]
    ) -> ArtifactVersion:
        parts = ReleaseParts(
            model=model,
            prompt=publish_prompt(self._ledger, prompt).digest,
            index=index,
            decoding=self._plan.decoding,
            retrieval=dict(retrieval),
        )
        return create_release(self._ledger, desk_name(self._docs), parts, note=f"demo release {number}")

    def _prove(self, release: ArtifactVersion, cases: CaseSet, number: int) -> Proof:
        proof: Proof | None = None
        for _ in range(_EVALUATION_TRIES):
            self._revive()
            try:
                proof = prove(
                    self._project,
                    release,
                    cases,
                    answered=self._plan.answered,
                    name=f"demo-release-{number}",
                    concurrency=self._plan.concurrency,
                    on_progress=self._narrator.progress,
                )
            except Unavailable as error:  # not one question was answered: the model server is away
                self._narrator.line(error.message)
                time.sleep(1.0)
                continue
            if proof.complete:
                break  # else a process died meanwhile: what was answered is kept, the rest is asked again
        if proof is None:
            raise Unavailable("The model server does not answer.", hint="Look into its log: .tidemill/logs/runtime.log")
        metrics = proof.heldout.metrics
        parts = [f"{name} {one.mean:.2f} [{one.low:.2f}, {one.high:.2f}]" for name, one in metrics.items() if one.n]
        self._narrator.line("held out: " + ", ".join(parts))
        return proof

    def _first(self, release: ArtifactVersion, cases: CaseSet) -> None:
        with self._stage("evaluate 1", "Evaluate release 1: BM25 and a plain prompt"):
            proof = self._prove(release, cases, 1)
        with self._stage("traffic 1", "Deploy release 1; users ask through the official openai client"):
            rollout = self._rollout_of(release)
            if rollout is None:
                rollout = open_rollout(self._ledger, self.story.endpoint, release, None, self._plan.policy, ACTOR)
            visits = self._ask(cases, "first", self._plan.first_sessions, lambda: False)
        told = Told(release=release, title="release 1: BM25, plain prompt", proof=proof, rollout=rollout, visits=visits)
        self.story.told.append(told)

    def _next(
        self, release: ArtifactVersion, cases: CaseSet, title: str, policy: RolloutPolicy, *, override: bool
    ) -> None:
        number = len(self.story.told) + 1
        with self._stage(f"evaluate {number}", f"Evaluate {title}"):
            proof = self._prove(release, cases, number)
        verdict = hold_against(proof, self.story.told[0].proof if number == 2 else self._live_proof())
        self._narrator.line(f"gate: {verdict.value} - {verdict.reason}")
        rollout = self._rollout_of(release)
        if rollout is None:
            live = live_release(self._ledger, self.story.endpoint)
            rollout = open_rollout(self._ledger, self.story.endpoint, release, live, policy, ACTOR)
        if rollout.state is RolloutState.DRAFT:
            rollout = apply_event(self._ledger, rollout, _GATE_EVENTS[Outcome(str(verdict.value))], verdict, ACTOR)
        if override and rollout.state in (RolloutState.GATED_OUT, RolloutState.HELD) and len(rollout.history) == 2:
            flag = Verdict("gate_overridden", "the demo lets it past the gate to show the canary at work")
            rollout = apply_event(self._ledger, rollout, RolloutEvent.GATE_OVERRIDDEN, flag, ACTOR)
            self._narrator.line("let past the gate by a flag, to show the canary at work")
        with self._stage(f"rollout {number}", f"Roll out release {number}: shadow, canary, decision"):
            visits = self._roll_out(rollout, cases, f"release{number}") if rollout.active else []
            rollout = load_rollout(self._ledger, rollout.rollout_id)
            decided = next(one for one in reversed(rollout.history) if one.kind != "rollout.settled")
            self._narrator.line(f"{rollout.state}: {decided.verdict.reason}")
        self.story.told.append(
            Told(release=release, title=title, proof=proof, rollout=rollout, gate=verdict, visits=visits)
        )

    def _live_proof(self) -> Proof:
        live = live_release(self._ledger, self.story.endpoint)
        assert live is not None
        return next(told.proof for told in self.story.told if told.release.digest == live.digest)

    def _roll_out(self, rollout: Rollout, cases: CaseSet, stage: str) -> list[Visit]:
        looked_s, ended = 0.0, False

        def enough() -> bool:
            nonlocal looked_s, ended
            if not ended and time.monotonic() - looked_s > 0.3:
                looked_s = time.monotonic()
                ended = not load_rollout(self._ledger, rollout.rollout_id).active
            return ended

        self._await_phase(rollout)
        visits = self._ask(cases, stage, self._plan.most_sessions, enough)
        limit_s = time.monotonic() + self._plan.policy.label_timeout_s + 10.0
        while not enough() and time.monotonic() < limit_s:
            time.sleep(0.2)
        left = load_rollout(self._ledger, rollout.rollout_id)
        if left.active:
            reason = Verdict("hold", f"undecided when the demo's {len(visits)} sessions were over")
            apply_event(self._ledger, left, RolloutEvent.HOLD, reason, ACTOR)
        return visits

    def _await_phase(self, rollout: Rollout) -> None:
        """Wait until the candidate is ready, so that no session is spent before it takes part."""
        limit_s = time.monotonic() + 30.0
        while load_rollout(self._ledger, rollout.rollout_id).state is RolloutState.GATED:
            if time.monotonic() > limit_s:
                self._revive()
                limit_s = time.monotonic() + 30.0
            time.sleep(0.1)

    def _ask(self, cases: CaseSet, stage: str, sessions: int, enough: Callable[[], bool]) -> list[Visit]:
        asked = self._in_turn(cases, stage)
        count = content = 0

        def told(visit: Visit) -> None:
            nonlocal count, content
            count, content = count + 1, content + int(visit.content)
            self._narrator.progress(count / sessions, f"{count} sessions, {content} content")

        self._revive()
        return self._users.visit_all(
            asked,
            stage=f"{self.story.endpoint}-{stage}",
            sessions=sessions,
            concurrency=self._plan.concurrency,
            enough=enough,
            on_visit=told,
        )

    def _in_turn(self, cases: CaseSet, stage: str) -> Sequence[Case]:
        """The cases in an order of this stage's own, with every kind of question evenly spread."""
        order = cases.sample(len(cases)).cases
        step = next(size for size in (7, 11, 13, 17) if len(order) % size) + len(stage)
        while _common(step, len(order)) != 1:
            step += 1
        return [order[place * step % len(order)] for place in range(len(order))]

    def _rollout_of(self, release: ArtifactVersion) -> Rollout | None:
        found = [
            one for one in list_rollouts(self._ledger, self.story.endpoint) if one.candidate.digest == release.digest
        ]
        return found[-1] if found else None

    @contextmanager
    def _stage(self, key: str, title: str) -> Iterator[None]:
        self._narrator.stage(title)
        begun_s = time.monotonic()
        yield
        self.story.timings[key] = round(time.monotonic() - begun_s, 2)


def endpoint_name(run: int, docs: Path | None) -> str:
    """The endpoint of a telling: ``python-help``, then ``python-help-2`` and so on."""
    return desk_name(docs) if run == 1 else f"{desk_name(docs)}-{run}"


def _common(left: int, right: int) -> int:
    from math import gcd

    return gcd(left, right)
