"""Objectives on the command line: listed, shown, exported, forecast; dashboards written."""

from __future__ import annotations

import json
import time
from pathlib import Path

import msgspec
import pytest
import yaml

from tests.cli.shop import Shop
from tests.cli.test_watching import running_server
from tidemill.cli.slo import forecast_lines, status_lines
from tidemill.loop.project import open_project
from tidemill.loop.slos import shown
from tidemill.monitoring import Slo, SloState, advance
from tidemill.monitoring.forecast import History, forecast
from tidemill.telemetry import Batch, Span, open_span_store

HOUR_NS = 3600 * 10**9


@pytest.fixture
def watched(shop: Shop) -> Shop:
    shop.change("slos", to={"shop-up": {"indicator": "availability", "endpoint": "shop", "objective": 0.9}})
    return shop


def write_requests(shop: Shop, count: int, *, every_ns: int, bad: int = 0) -> None:
    now_ns = time.time_ns()
    with open_project(shop.folder) as opened:
        store = open_span_store(opened.places.spans, opened.settings.scope)
        first = Span(
            trace_id="",
            span_id="",
            project=opened.settings.project,
            tenant=opened.settings.tenant,
            name="chat",
            operation="chat",
            started_at_ns=0,
            ended_at_ns=0,
            endpoint="shop",
            arm="control",
            input_tokens=10,
            cost_usd=0.01,
        )
        spans = [
            msgspec.structs.replace(
                first,
                trace_id=f"{place + 1:032x}",
                span_id=f"{place + 1:016x}",
                started_at_ns=now_ns - (count - place) * every_ns,
                ended_at_ns=now_ns - (count - place) * every_ns + 10**9,
                status="error" if place >= count - bad else "ok",
            )
            for place in range(count)
        ]
        store.commit(Batch(spans), {})
        store.close()


def test_without_objectives_it_says_how_to_get_one(shop: Shop) -> None:
    for command in ("list", "status"):
        assert "Add one under 'slos:'" in shop.ok("slo", command)
        assert shop.json("slo", command) == []
    assert "no objective 'x'" in shop.refused("slo", "status", "x")
    assert "no traffic yet" in shop.ok("slo", "forecast")


def test_objectives_are_listed_and_their_mistakes_refused(watched: Shop) -> None:
    assert "availability for 0.9 of the events of shop" in watched.ok("slo", "list")
    (one,) = watched.json("slo", "list")
    assert Slo.from_json(one).name == "shop-up"
    assert "no events yet" in watched.ok("slo", "status")
    watched.change("slos", "fast", to={"indicator": "total_time"})
    assert "needs a threshold" in watched.refused("slo", "list")


def test_status_comes_from_the_control_plane_and_is_remembered_when_it_is_gone(watched: Shop) -> None:
    write_requests(watched, 200, every_ns=60 * 10**9, bad=30)
    with open_project(watched.folder) as opened:
        port = opened.settings.server.port
    with running_server(watched, port):
        limit_s = time.monotonic() + 60
        while not (state := watched.json("slo", "status")[0])["alarms"]["page"]["firing"]:
            assert time.monotonic() < limit_s
            time.sleep(0.2)
        assert state["budget"]["bad"] == 30
        assert "ON" in watched.ok("slo", "status", "shop-up")
        assert [one["endpoint"] for one in watched.json("slo", "forecast")] == ["shop"]
        kept = watched.folder / ".tidemill" / "monitoring.json"
        while not kept.exists():
            assert time.monotonic() < limit_s
            time.sleep(0.2)
    (after,) = watched.json("slo", "status")
    assert after["budget"]["bad"] == 30
    assert "page    ON" in watched.ok("slo", "status")


def test_objectives_are_exported(watched: Shop) -> None:
    rules = yaml.safe_load(watched.ok("slo", "export", "--to", "prometheus"))
    assert rules["groups"][0]["name"] == "tidemill-slo-shop-up"
    assert yaml.safe_load(watched.ok("slo", "export", "shop-up", "--to", "sloth"))["service"] == "shop"
    kinds = [one["kind"] for one in yaml.safe_load_all(watched.ok("slo", "export", "--to", "openslo"))]
    assert watched.json("slo", "export", "--to", "prometheus") == rules
    assert kinds == ["Service", "AlertNotificationTarget", "SLO", *["AlertPolicy"] * 3]


def test_a_forecast_is_drawn_or_its_lack_explained(shop: Shop) -> None:
    write_requests(shop, 50, every_ns=HOUR_NS // 2)
    assert "not enough data" in shop.ok("slo", "forecast")
    write_requests(shop, 600, every_ns=HOUR_NS // 4)
    shop.change("limits", "pace", to={"scope": "endpoint", "unit": "requests", "amount": 1, "window_s": 3600})
    (one,) = shop.json("slo", "forecast", "shop", "--days", "3")
    requests = one["forecasts"][0]
    assert requests["known"]
    assert len(requests["points"]) == 72
    assert [crossing["limit"] for crossing in requests["crossings"]] == ["pace"]
    text = shop.ok("slo", "forecast", "--days", "3")
    assert "requests, the highest hour of each day (requests/s)" in text
    assert "reaches pace" in text


def test_pictures() -> None:
    slo = Slo(name="up", indicator="availability", objective=0.99)
    state = SloState.start(slo)
    day = 86_400.0
    advance(slo, state, [(100 * day + second * 60, second % 50 == 0) for second in range(2000)])
    lines = status_lines(shown(slo, state, 101.5 * day))
    assert lines[0] == "up: availability for 0.99 of the events"
    assert any("% left, 40 of 2000 events bad, 20 allowed" in line for line in lines)
    assert any(line.startswith("  ticket  ") for line in lines)
    totals = [10.0 + hour % 24 for hour in range(240)]
    found = forecast("requests", "requests/h", History(first_s=0, totals=totals, requests=sum(totals)), hours=48)
    assert any("possible" in line for line in forecast_lines(found.as_json()))


def test_dashboards_are_written(watched: Shop, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "monitoring"
    names = [Path(one).name for one in watched.json("dashboards", "export", str(folder))]
    assert sorted(names) == sorted(file.name for file in folder.iterdir())
    assert json.loads((folder / "tidemill-overview.json").read_text())["title"] == "Tidemill: overview"
    assert "TidemillSloShopUp" in (folder / "tidemill-slos.yml").read_text()
    assert "wrote" in watched.ok("dashboards", "export", str(folder))
