"""Dashboards and rules load without edits: Grafana's own types read them, and every query asks for what there is."""

import inspect
import json
import re

import jsonschema
import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.models.dashboard import Dashboard
from tests.monitoring.test_export import RULE_FILE

from tidemill.cli.monitoring_files import monitoring_files
from tidemill.gateway import gauges
from tidemill.gateway.metrics import Metrics
from tidemill.kernel.settings import parse_settings
from tidemill.loop.slos import slo_of
from tidemill.monitoring.dashboards import alert_rules, endpoint, overview
from tidemill.server.metrics import families

GENERATIONS = ("new", "old", "both")
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}


def gateway_names():
    metrics = Metrics("w")
    metrics.request("e", "control", 200, "ok", 0.1)
    metrics.event("failover")
    counted = {re.split(r"[{ ]", line)[0] for line in metrics.render(epoch=1).decode().splitlines() if line[0] != "#"}
    read = re.findall(r"# TYPE \{_PREFIX\}(\w+)", inspect.getsource(gauges))  # they need targets and limits that live
    assert read
    return counted | {f"tidemill_gateway_{name}" for name in read}


def shown(generation):
    """Every series name, and the labels of those of the control plane."""
    found = {
        family.name + suffix: {*family.labels, *({"le"} if suffix == "_bucket" else ())}
        for family in families(generation)
        for suffix in SUFFIXES[family.kind]
    }
    return found, gateway_names()


def selectors(expression):
    """Names and label matchers of every vector that a query reads."""
    found = []

    def visit(node):
        if isinstance(node, promql_parser.VectorSelector):
            found.append((node.name, {matcher.name for matcher in node.matchers.matchers}))
        for part in ("expr", "lhs", "rhs", "vector_selector", "vs"):
            below = getattr(node, part, None)
            if isinstance(below, promql_parser.Expr):
                visit(below)
        for below in getattr(node, "args", None) or ():
            visit(below)

    visit(promql_parser.parse(expression))
    return found


def queries(dashboard):
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m").replace("$endpoint", "e")


def check(expression, generation):
    own, gateway = shown(generation)
    read = selectors(expression)
    assert read, expression
    for name, labels in read:
        assert name in own or name in gateway, f"{name} is no metric: {expression}"
        if name in own:
            assert labels <= own[name], f"{name} has no {labels - own[name]}"


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("dashboard", [overview, endpoint])
def test_every_query_parses_and_asks_for_what_there_is(dashboard, generation):
    asked = list(queries(dashboard(generation)))
    assert len(asked) > 10
    for _, expression in asked:
        check(expression, generation)


@pytest.mark.parametrize("dashboard", [overview, endpoint])
def test_grafanas_own_types_read_it_and_lose_nothing(dashboard):
    document = json.loads(json.dumps(dashboard()))
    read = Dashboard.from_json(document)
    assert read.uid == document["uid"]
    assert read.panels is not None
    back = json.loads(json.dumps(read.to_json(), default=lambda value: value.to_json()))
    assert {name for name in document if name not in back} == set()
    for before, after in zip(document["panels"], back["panels"], strict=True):
        assert after["title"] == before["title"]
        assert after["gridPos"] == before["gridPos"]
        assert [one["expr"] for one in after.get("targets", ())] == [one["expr"] for one in before.get("targets", ())]


@pytest.mark.parametrize("dashboard", [overview, endpoint])
def test_panels_have_their_own_numbers_and_places(dashboard):
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert all(
        target["datasource"]["uid"] == "${datasource}" for panel in panels for target in panel.get("targets", ())
    )


def test_alert_rules_parse_and_ask_for_what_there_is():
    document = alert_rules()
    jsonschema.validate(document, RULE_FILE)
    for rule in document["groups"][0]["rules"]:
        check(rule["expr"], "new")


def test_files_say_where_the_processes_listen_and_what_was_promised():
    document = {
        "project": "shop",
        "server": {"port": 9001},
        "slos": {"up": {"indicator": "availability", "endpoint": "shop"}},
        "telemetry": {"metric_names": "old"},
    }
    settings = parse_settings(document)
    slos = [slo_of(name, one) for name, one in settings.slos.items()]
    made = monitoring_files(settings, token_file="/x/token", slos=slos)
    scrape = yaml.safe_load(made["prometheus.yml"])["scrape_configs"][0]
    assert scrape["static_configs"][0]["targets"] == ["127.0.0.1:9001"]
    assert scrape["authorization"]["credentials_file"] == "/x/token"
    assert "TidemillSloUp" in made["tidemill-slos.yml"]
    assert "gen_ai_server_time_to_first_token_seconds" in made["tidemill-overview.json"]
