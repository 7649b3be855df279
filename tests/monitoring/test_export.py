"""Objectives in other tools' words: every query parses, every document is what the format's documentation asks for."""

import re

import jsonschema
import promql_parser
import pytest
import yaml

from tidemill.monitoring import Slo
from tidemill.monitoring.export import CLASSIC, openslo, prometheus_rules, sloth

SLOS = [
    Slo(name="shop-errors", indicator="availability", endpoint="shop", objective=0.999),
    Slo(name="fast", indicator="first_token_time", objective=0.95, threshold=0.5, window_days=7),
    Slo(name="a" * 60, indicator="groundedness", objective=0.9, threshold=0.7, window_days=1.5),
]
TEXT = {"type": "string", "minLength": 1}
LABELS = {"type": "object", "additionalProperties": TEXT}
DURATION = r"^[1-9][0-9]*(s|m|h|d|w)$"


def closed(required, **properties):
    """An object with these keys and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name in required.split()],
        "additionalProperties": False,
    }


def listed(of, least=1):
    return {"type": "array", "items": of, "minItems": least}


# prometheus.io/docs/prometheus/latest/configuration/recording_rules and alerting_rules
RECORDING = closed("record expr", record={"pattern": "^[a-zA-Z_:][a-zA-Z0-9_:]*$"}, expr=TEXT, labels=LABELS)
ALERTING = closed(
    "alert expr",
    **{"alert": TEXT, "expr": TEXT, "for": {"pattern": DURATION.replace("[1-9][0-9]*", "[0-9]+")}},
    labels=LABELS,
    annotations=LABELS,
)
RULE_FILE = closed(
    "groups", groups=listed(closed("name rules", name=TEXT, rules=listed({"oneOf": [RECORDING, ALERTING]})))
)

# pkg.go.dev/github.com/slok/sloth/pkg/prometheus/api/v1
SLOTH_ALERT = closed("", disable={"type": "boolean"}, labels=LABELS, annotations=LABELS)
SLOTH = closed(
    "version service slos",
    version={"const": "prometheus/v1"},
    service=TEXT,
    labels=LABELS,
    slos=listed(
        closed(
            "name objective sli alerting",
            name=TEXT,
            objective={"type": "number", "exclusiveMinimum": 0, "maximum": 100},
            description=TEXT,
            labels=LABELS,
            sli=closed("events", events=closed("error_query total_query", error_query=TEXT, total_query=TEXT)),
            alerting=closed(
                "name",
                name=TEXT,
                labels=LABELS,
                annotations=LABELS,
                page_alert=SLOTH_ALERT,
                ticket_alert=SLOTH_ALERT,
            ),
        )
    ),
)

# github.com/OpenSLO/OpenSLO, specification of apiVersion openslo/v1
NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
METADATA = closed("name", name=NAME, displayName=TEXT)
DESCRIBED = {"type": "string", "maxLength": 1050}
METRIC = closed("metricSource", metricSource=closed("type spec", type=TEXT, spec=closed("query", query=TEXT)))
SPECS = {
    "Service": closed("", description=DESCRIBED),
    "AlertNotificationTarget": closed("target", description=DESCRIBED, target=TEXT),
    "SLO": closed(
        "service indicator timeWindow budgetingMethod objectives",
        description=DESCRIBED,
        service=NAME,
        indicator=closed(
            "metadata spec",
            metadata=METADATA,
            spec=closed(
                "ratioMetric",
                ratioMetric=closed("counter bad total", counter={"type": "boolean"}, bad=METRIC, total=METRIC),
            ),
        ),
        timeWindow={
            **listed(closed("duration isRolling", duration={"pattern": DURATION}, isRolling={"type": "boolean"})),
            "maxItems": 1,
        },
        budgetingMethod={"enum": ["Occurrences", "Timeslices", "RatioTimeslices"]},
        objectives=listed(
            closed(
                "target",
                displayName=TEXT,
                target={"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
            )
        ),
        alertPolicies=listed(closed("alertPolicyRef", alertPolicyRef=NAME)),
    ),
    "AlertPolicy": closed(
        "conditions notificationTargets",
        alertWhenNoData={"type": "boolean"},
        alertWhenResolved={"type": "boolean"},
        alertWhenBreaching={"type": "boolean"},
        conditions={
            **listed(
                closed(
                    "kind metadata spec",
                    kind={"const": "AlertCondition"},
                    metadata=METADATA,
                    spec=closed(
                        "severity condition",
                        severity=TEXT,
                        condition=closed(
                            "kind op threshold lookbackWindow alertAfter",
                            kind={"const": "burnrate"},
                            op={"enum": ["lte", "gte", "lt", "gt"]},
                            threshold={"type": "number"},
                            lookbackWindow={"pattern": DURATION},
                            alertAfter={"pattern": DURATION},
                        ),
                    ),
                )
            ),
            "maxItems": 1,
        },
        notificationTargets=listed(closed("targetRef", targetRef=NAME)),
    ),
}
OPENSLO = {
    "oneOf": [
        closed(
            "apiVersion kind metadata spec",
            apiVersion={"const": "openslo/v1"},
            kind={"const": kind},
            metadata=METADATA,
            spec=spec,
        )
        for kind, spec in SPECS.items()
    ]
}


def through_yaml(document):
    return yaml.safe_load(yaml.safe_dump(document))


def test_prometheus_rules_are_a_rule_file_and_every_expression_parses():
    document = through_yaml(prometheus_rules(SLOS, service="shop"))
    jsonschema.validate(document, RULE_FILE)
    rules = [rule for group in document["groups"] for rule in group["rules"]]
    for rule in rules:
        promql_parser.parse(rule["expr"])
    recorded = {rule["record"] for rule in rules if "record" in rule}
    used = {name for rule in rules if "alert" in rule for name in re.findall(r"slo:\w+:\w+", rule["expr"])}
    assert used == recorded
    assert len({group["name"] for group in document["groups"]}) == len(SLOS)


def test_the_classic_rules_have_the_classic_figures():
    assert [(one.severity, one.long, one.short, one.factor) for one in CLASSIC] == [
        ("page", "1h", "5m", 14.4),
        ("page", "6h", "30m", 6.0),
        ("ticket", "3d", "6h", 1.0),
    ]
    hours = {"1h": 1, "6h": 6, "3d": 72}
    assert [one.factor * hours[one.long] / 720 for one in CLASSIC] == pytest.approx([one.budget for one in CLASSIC])
    alerts = [rule for rule in prometheus_rules(SLOS[:1], service="shop")["groups"][0]["rules"] if "alert" in rule]
    assert [rule["labels"]["severity"] for rule in alerts] == ["page", "ticket"]
    assert "> 14.4 * 0.001" in alerts[0]["expr"]


def test_sloth_takes_it():
    document = through_yaml(sloth(SLOS, service="shop"))
    jsonschema.validate(document, SLOTH)
    for slo in document["slos"]:
        for query in slo["sli"]["events"].values():
            assert "{{.window}}" in query
            promql_parser.parse(query.replace("{{.window}}", "5m"))
    assert [slo["objective"] for slo in document["slos"]] == [99.9, 95.0, 90.0]


def test_openslo_takes_it_and_its_references_lead_somewhere():
    documents = [through_yaml(document) for document in openslo(SLOS, service="shop")]
    for document in documents:
        jsonschema.validate(document, OPENSLO)
    names = [(document["kind"], document["metadata"]["name"]) for document in documents]
    assert len(names) == len(set(names))
    for document in documents:
        if document["kind"] == "SLO":
            spec = document["spec"]
            assert ("Service", spec["service"]) in names
            assert all(("AlertPolicy", one["alertPolicyRef"]) in names for one in spec["alertPolicies"])
            for metric in ("bad", "total"):
                promql_parser.parse(spec["indicator"]["spec"]["ratioMetric"][metric]["metricSource"]["spec"]["query"])
    windows = [document["spec"]["timeWindow"][0]["duration"] for document in documents if document["kind"] == "SLO"]
    assert windows == ["28d", "7d", "36h"]
