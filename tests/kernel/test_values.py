from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError

import pytest

from tidemill.kernel import (
    Decoding,
    Digest,
    FakeClock,
    MissingExtra,
    Outcome,
    ReleaseParts,
    Verdict,
    fresh_id,
    fresh_span_id,
    fresh_trace_id,
)


def test_ids_sort_by_time_and_differ() -> None:
    ids = [fresh_id("run") for _ in range(2000)]
    assert len(set(ids)) == 2000
    assert [one[:14] for one in ids] == sorted(one[:14] for one in ids)
    assert len(fresh_trace_id()) == 32
    assert len(fresh_span_id()) == 16


def test_verdict_is_immutable_and_reads_back() -> None:
    verdict = Verdict(Outcome.PASS, "shown", {"n": 3})
    assert Verdict.from_json(verdict.as_json()).as_json() == {"value": "PASS", "reason": "shown", "evidence": {"n": 3}}
    with pytest.raises(FrozenInstanceError):
        verdict.value = True  # type: ignore[misc]
    with pytest.raises(TypeError):
        verdict.evidence["n"] = 4  # type: ignore[index]


def test_exit_codes() -> None:
    assert [outcome.exit_code for outcome in Outcome] == [0, 1, 4]


def test_release_digest_depends_on_every_part() -> None:
    parts = ReleaseParts(model=Digest("sha256:1"), decoding=Decoding(stop=("\n",)))
    assert ReleaseParts.from_json(parts.as_json()) == parts
    changed = [
        ReleaseParts(model=Digest("sha256:2"), decoding=parts.decoding),
        ReleaseParts(model=parts.model, prompt=Digest("sha256:1"), decoding=parts.decoding),
        ReleaseParts(model=parts.model, decoding=Decoding(max_tokens=25, stop=("\n",))),
        ReleaseParts(model=parts.model, decoding=parts.decoding, retrieval={"top_k": 2}),
    ]
    assert len({parts.digest, *(other.digest for other in changed)}) == 5


def test_missing_extra_names_the_command() -> None:
    error = MissingExtra("PostgreSQL", "postgres")
    assert "pip install 'tidemill[postgres]'" in str(error)
    assert error.exit_code == 2


def test_fake_clock_moves_only_when_told() -> None:
    clock = FakeClock()
    before = clock.now()
    clock.advance(90)
    assert (clock.now() - before).total_seconds() == clock.monotonic_s() == 90
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1)


def test_verdict_travels_between_processes() -> None:
    verdict = Verdict(0.5, "x", {"n": 1})
    assert pickle.loads(pickle.dumps(verdict)) == verdict
