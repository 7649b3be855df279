"""What follows stored spans: /metrics, objectives over REST, and a restart that counts nothing twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import msgspec
import pytest
import uvicorn
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.server.desk import BEGUN_NS, Desk, first_live, open_desk
from tidemill.kernel import InvalidInput
from tidemill.server.api import create_app
from tidemill.server.metrics import families
from tidemill.server.spanmetrics import MOST_SETS, OTHER, BoundedValues, SpanMetrics
from tidemill.server.supervisor import free_port, listening_socket
from tidemill.telemetry import Batch, Span, StoredSpan

TOKEN = "the-local-token"


def write_project(folder: Path, **more: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "project": "desk",
        "server": {"port": free_port()},
        "gateway": {"port": free_port()},
        "runtime": {"enabled": False},
        "slos": {
            "up": {"indicator": "availability", "endpoint": "desk", "objective": 0.9},
            "quick": {"indicator": "total_time", "objective": 0.95, "threshold": 2.0},
        },
        **more,
    }
    (folder / "tidemill.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return folder


def span(number: int, **changes: object) -> Span:
    made = Span(
        trace_id=f"{number:032x}",
        span_id=f"{number:016x}",
        project="desk",
        tenant="default",
        name="chat desk",
        operation="chat",
        started_at_ns=BEGUN_NS + number,
        ended_at_ns=BEGUN_NS + number + 300_000_000,
        endpoint="desk",
        arm="control",
        provider="openai",
        request_model="m",
        input_tokens=100,
        output_tokens=11,
        time_to_first_chunk_s=0.1,
        stream=True,
        cost_usd=0.5,
    )
    return msgspec.structs.replace(made, **changes)


@dataclass
class Api:
    url: str

    def get(self, path: str) -> httpx2.Response:
        return httpx2.get(self.url + path, headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False)

    def samples(self) -> dict[tuple[str, ...], float]:
        """Value by name and label values."""
        answer = self.get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain")
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }


def serving(desk: Desk) -> Iterator[Api]:
    listener = listening_socket("127.0.0.1", 0, "server")
    server = uvicorn.Server(uvicorn.Config(create_app(desk.control, token=TOKEN), log_level="critical", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield Api(f"http://127.0.0.1:{listener.getsockname()[1]}")
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(write_project(tmp_path / "desk")) as opened:
        yield opened


@pytest.fixture
def api(desk: Desk) -> Iterator[Api]:
    yield from serving(desk)


def test_metrics_count_what_was_stored(desk: Desk, api: Api) -> None:
    first_live(desk.project)
    spans = [span(number) for number in range(1, 9)]
    spans.append(span(9, status="error", error_type="upstream_timeout", http_status=504))
    spans.append(span(10, parent_span_id=f"{1:016x}", trace_id=f"{1:032x}"))
    for one in spans:
        desk.writer.finished(one)
    desk.control.drain()
    desk.control.watching.tick()
    found = api.samples()
    duration = "gen_ai_client_operation_duration_seconds"
    assert found[f"{duration}_count", "desk", "", "chat", "openai", "m"] == 9
    assert found[f"{duration}_count", "desk", "upstream_timeout", "chat", "openai", "m"] == 1
    assert found[f"{duration}_bucket", "desk", "", "chat", "openai", "m", "0.16"] == 0
    assert found[f"{duration}_bucket", "desk", "", "chat", "openai", "m", "0.32"] == 9
    assert found["gen_ai_client_token_usage_sum", "desk", "chat", "openai", "m", "input"] == 1000
    assert found["tidemill_requests_total", "desk", "", "ok"] == 8
    assert found["tidemill_requests_total", "desk", "", "error"] == 1
    assert found["tidemill_cost_usd_total", "desk", "m"] == 5
    assert found["tidemill_slo_events_total", "up"] == 9
    assert found["tidemill_slo_bad_events_total", "up"] == 1
    assert found["tidemill_slo_budget_left_ratio", "up"] == pytest.approx(1 - 1 / 0.9)
    assert found["tidemill_slo_alarm", "page", "up"] == 0
    assert found["tidemill_drained_records_total",] == 10
    assert found["tidemill_drain_backlog_bytes",] == 0
    assert found["tidemill_store_bytes", "hot"] > 0


def test_every_family_that_is_shown_is_described_and_the_reverse(api: Api) -> None:
    shown = {family.name for family in text_string_to_metric_families(api.get("/metrics").text)}
    assert shown == {one.name.removesuffix("_total") for one in families("new")}


def test_a_backlog_is_seen_until_it_is_stored(desk: Desk, api: Api) -> None:
    desk.writer.finished(span(1))
    desk.control.drain()
    desk.writer.finished(span(2))
    before = api.samples()["tidemill_drain_backlog_bytes",]
    desk.control.drain()
    assert before > 0
    assert api.samples()["tidemill_drain_backlog_bytes",] == 0


def test_objectives_are_told_over_rest(desk: Desk, api: Api) -> None:
    for number in range(1, 101):
        desk.writer.finished(span(number, status="error", http_status=500))
    desk.control.drain()
    desk.control.watching.tick()
    up, quick = api.get("/api/v1/slos").json()
    assert (up["slo"]["name"], up["budget"]["bad"], up["alarms"]["page"]["firing"]) == ("up", 100, True)
    assert quick["events"] == 0
    assert api.get("/api/v1/slos/up").json() == api.get("/api/v1/slos").json()[0]
    missing = api.get("/api/v1/slos/none")
    assert missing.status_code == 404
    assert "There is no objective 'none'" in missing.json()["error"]["message"]
    assert api.get("/api/v1/forwarding").json() == []


def test_a_forecast_says_that_it_knows_too_little(desk: Desk, api: Api) -> None:
    hour_ns = 3600 * 10**9
    old = [span(number, started_at_ns=BEGUN_NS - number * hour_ns, ended_at_ns=BEGUN_NS) for number in range(2, 30)]
    desk.control.store.commit(Batch(old), {})
    (one,) = api.get("/api/v1/forecast?endpoint=desk").json()
    assert [part["measure"] for part in one["forecasts"]] == ["requests", "tokens", "cost", "calls at once"]
    assert all(not part["known"] and "not enough data" in part["reason"] for part in one["forecasts"])
    assert api.get("/api/v1/forecast?days=0").status_code == 422


def test_a_restart_counts_nothing_twice_and_forgets_nothing(tmp_path: Path) -> None:
    folder = write_project(tmp_path / "desk")
    with open_desk(folder) as first:
        for number in range(1, 51):
            first.writer.finished(span(number, status="error" if number > 40 else "ok"))
        first.control.drain()
        first.control.watching.tick()
        before = first.control.watching.slos.states()
        first.control.watching.save()
    with open_desk(folder) as again:
        again.control.watching.tick()
        after = again.control.watching.slos.states()
        assert [one["events"] for one in after] == [one["events"] for one in before] == [50, 40]
        assert [one["alarms"] for one in after] == [one["alarms"] for one in before]
        assert again.control.watching.spans.spans == 0  # counters begin anew; what was counted is not counted again


def test_an_objective_that_makes_no_sense_stops_the_start(tmp_path: Path) -> None:
    wrong = {"slos": {"quick": {"indicator": "total_time"}}}
    with pytest.raises(InvalidInput, match="needs a threshold"), open_desk(write_project(tmp_path / "desk", **wrong)):
        pass


@pytest.mark.parametrize(
    ("names", "there", "not_there"),
    [
        ("new", "gen_ai_provider_name", "gen_ai_server_time_to_first_token_seconds"),
        ("old", "gen_ai_server_time_to_first_token_seconds", "gen_ai_provider_name"),
        ("both", "gen_ai_server_time_to_first_token_seconds", "nothing"),
    ],
)
def test_generations_of_names(names: str, there: str, not_there: str) -> None:
    from prometheus_client import CollectorRegistry, generate_latest

    metrics = SpanMetrics(names, endpoints=("desk",))  # type: ignore[arg-type]
    metrics.take([StoredSpan(span(1), None, 1)])
    registry = CollectorRegistry()
    registry.register(metrics)  # type: ignore[arg-type]
    text = generate_latest(registry).decode()
    assert there in text
    assert not_there not in text
    assert "gen_ai_client_operation_duration_seconds_count{" in text


def test_labels_are_bounded() -> None:
    values = BoundedValues(("kept",), most=3)
    assert [values.of(value) for value in ("a", "b", "c", "kept", "a", None)] == ["a", "b", OTHER, "kept", "a", ""]
    metrics = SpanMetrics("new", endpoints=("desk",))
    strange = [
        StoredSpan(
            span(
                number,
                request_model=f"m{number}",
                provider=f"p{number % 97}",
                error_type=f"e{number % 89}",
                status="error",
                endpoint=f"e{number}",
            ),
            None,
            number,
        )
        for number in range(1, 9000)
    ]
    metrics.take(strange)
    sizes = [len(family.samples) for family in metrics.collect()]
    assert max(sizes) <= (MOST_SETS + 1) * 17
