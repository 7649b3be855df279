"""What the demo does and how much of it: sizes chosen for two cores and six minutes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tidemill.kernel import Decoding
from tidemill.kernel.settings import IndexSettings
from tidemill.prompts import Message, Prompt
from tidemill.releases import RolloutPolicy

CHAT_MODEL: Final = "smollm2-135m-instruct"
EMBEDDING_MODEL: Final = "all-minilm-l6-v2"
NO_ANSWER: Final = "I do not know."

PLAIN_PROMPT: Final = Prompt(
    name="demo-plain",
    messages=(
        Message("system", "You are a helpful assistant."),
        Message("user", "{{context}}\n\n{{question}}"),
    ),
    config={"no_answer": NO_ANSWER, "max_lines": 1},
)


def chosen_prompt(examples: tuple[tuple[str, str, str], ...]) -> Prompt:
    """The second release's prompt: short answers, shown by worked examples.

    Args:
        examples: (question, context, answer) triples, chosen from the dev split.
    """
    from tidemill.prompts import Example

    return Prompt(
        name="demo-examples",
        messages=(
            Message("system", "Answer the question with a few words copied from the text."),
            Message("user", "Text: {{context}}\nQuestion: {{question}}"),
        ),
        examples=tuple(Example(question=q, context=c, answer=a) for q, c, a in examples),
        config={"no_answer": NO_ANSWER, "max_lines": 1},
    )


def desk_name(docs: Path | None) -> str:
    """What the demo's application is called: its releases and, in its first telling, its endpoint."""
    return "python-help" if docs is None else "docs-help"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPlan:
    """Sizes of one demo.

    Args:
        answered: held-out questions that each release answers in evaluation; retrieval is scored on all.
        first_sessions: sessions that the first release answers alone.
        most_sessions: sessions after which an undecided rollout is given up.
        concurrency: users asking at the same time.
        passage_tokens: length of a passage.
        examples: worked examples in the second prompt.
        feedback_noise: share of users who judge wrongly.
        policy: what the rollouts must show.
    """

    answered: int = 40
    first_sessions: int = 16
    most_sessions: int = 220
    concurrency: int = 6
    passage_tokens: int = 110
    examples: int = 2
    feedback_noise: float = 0.03
    decoding: Decoding = field(default_factory=lambda: Decoding(max_tokens=16, temperature=0.0, seed=7))
    policy: RolloutPolicy = field(
        default_factory=lambda: RolloutPolicy(
            margins={"success": 0.2, "ok": 0.2, "latency_ok": 0.2},
            alpha_promote=0.1,
            alpha_rollback=0.1,
            ramp=(0.5,),
            min_sessions=10,
            max_sessions=110,
            label_timeout_s=20.0,
            shadow_requests=24,
            shadow_margin=0.25,
            latency_slo_s=30.0,
        )
    )

    def bm25_index(self) -> IndexSettings:
        """The first release's index."""
        return IndexSettings(dataset="documents", mode="bm25", passage_tokens=self.passage_tokens)

    def hybrid_index(self) -> IndexSettings:
        """The second release's index."""
        return IndexSettings(dataset="documents", mode="hybrid", passage_tokens=self.passage_tokens)

    def first_retrieval(self) -> dict[str, object]:
        """How the first release searches."""
        return {"mode": "bm25", "top_k": 1, "max_context_tokens": 140}

    def second_retrieval(self) -> dict[str, object]:
        """How the second release searches: shows three sources, of which the best fits the model's context."""
        return {"mode": "hybrid", "top_k": 3, "max_context_tokens": 140, "dense_weight": 0.7, "min_score": 0.3}
