"""What workers remember of the traces they answered, and what feedback is told of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.conftest import KEY, OTHER_KEY, RunningGateway, snapshot_of, target
from tidemill.gateway.known_traces import SLOTS, KnownTraces
from tidemill.gateway.testing import ScriptedUpstream
from tidemill.kernel import Route

Start = Callable[..., RunningGateway]
TRACES = st.integers(0, (1 << 128) - 1).map(lambda number: f"{number:032x}")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("known") / "traces.tbl"


@given(noted=TRACES, other=TRACES)
def test_a_trace_is_known_to_its_tenant_in_every_worker(path: Path, noted: str, other: str) -> None:
    one, neighbour = KnownTraces(path), KnownTraces(path)
    one.remember("acme", [noted])
    assert neighbour.knows("acme", noted)
    assert not neighbour.knows("globex", noted)
    assert neighbour.knows("acme", other) == (other == noted) or other != noted  # earlier examples are remembered too


def test_it_is_bounded_and_forgets_what_is_overwritten(tmp_path: Path) -> None:
    known = KnownTraces(tmp_path / "traces.tbl")
    traces = [f"{number << 64 | number:032x}" for number in range(1, SLOTS + 2)]
    known.remember("acme", traces)
    assert (tmp_path / "traces.tbl").stat().st_size == SLOTS * 8
    assert [known.knows("acme", trace) for trace in traces[:2]] == [False, True]
    assert known.knows("acme", traces[-1])
    assert (tmp_path / "traces.tbl").stat().st_mode & 0o777 == 0o600


def test_feedback_is_told_whether_its_trace_is_known(start: Start, upstream: ScriptedUpstream) -> None:
    routes = [Route(endpoint="desk", tenant=tenant, releases=(target(upstream.url),)) for tenant in ("default", "acme")]
    gateway = start()
    gateway.route(snapshot_of(*routes))

    def score(key: str, trace_id: str) -> dict[str, Any]:
        with openai.OpenAI(base_url=gateway.url, api_key=key, max_retries=0) as client:
            return client.post("/feedback", body={"trace_id": trace_id, "value": 1}, cast_to=dict[str, Any])

    with openai.OpenAI(base_url=gateway.url, api_key=KEY, max_retries=0) as client:
        answer = client.chat.completions.with_raw_response.create(model="desk", messages=[])
    trace_id = answer.headers["x-tidemill-trace-id"]
    known = score(KEY, trace_id)
    assert known == {"score_id": known["score_id"], "trace_id": trace_id, "trace": "known"}
    for told in (score(OTHER_KEY, trace_id), score(KEY, "ab" * 16)):  # nobody learns of another tenant's traces
        assert told["trace"] == "unknown"
        assert "does not remember" in told["message"]
    assert gateway.gateway.metrics.count("feedback_unknown_trace") == 2
    assert len(gateway.records().scores) == 3
