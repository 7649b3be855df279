from __future__ import annotations

from tidemill.kernel import ApiKey, CacheMode, Limit, LimitScope, LimitUnit, Priority, RoutePolicy
from tidemill.kernel.settings import EndpointSettings, parse_settings
from tidemill.loop.policies import limits_of, route_policy


def test_an_endpoint_without_words_has_the_policy_without_words() -> None:
    """The defaults stand in two places: the project file's sections and the snapshot's values."""
    assert route_policy(EndpointSettings(release="desk").model_dump(mode="json")) == RoutePolicy()
    assert route_policy({}) == RoutePolicy()


def test_an_endpoint_says_what_differs() -> None:
    settings = parse_settings(
        {
            "project": "shop",
            "endpoints": {
                "desk": {
                    "release": "desk",
                    "timeouts": {"first_token_s": 2},
                    "cache": {"mode": "exact", "ttl_s": 60},
                    "caps": {"in_flight": 8},
                    "guardrails": ["pii"],
                    "priority": "batch",
                }
            },
        }
    )
    policy = route_policy(settings.endpoints["desk"].model_dump(mode="json"))
    assert (policy.timeouts.first_token_s, policy.timeouts.connect_s) == (2, 5)
    assert (policy.cache.mode, policy.cache.ttl_s) == (CacheMode.EXACT, 60)
    assert policy.caps.in_flight == 8
    assert policy.guardrails == ("pii",)
    assert policy.priority is Priority.BATCH


def test_a_star_is_a_limit_for_each() -> None:
    settings = parse_settings(
        {
            "project": "shop",
            "limits": {
                "each-key": {"scope": "key", "unit": "requests", "amount": 60, "window_s": 60},
                "web": {"scope": "team", "subject": "web", "unit": "usd", "amount": 5, "window_s": 86400},
                "all": {"scope": "tenant", "unit": "tokens", "amount": 1e6, "window_s": 3600},
            },
        }
    )
    keys = [ApiKey("1", "ann", "default", team="web"), ApiKey("2", "bob", "default"), ApiKey("3", "bob", "default")]
    found = limits_of(settings.limits, tenant="default", keys=keys, endpoints={"desk"})
    assert [(one.limit_id, one.subject) for one in found] == [
        ("each-key/ann/requests/60s", "ann"),
        ("each-key/bob/requests/60s", "bob"),
        ("web/web/usd/86400s", "web"),
        ("all/default/tokens/3600s", "default"),
    ]
    assert found[2] == Limit(
        limit_id="web/web/usd/86400s",
        scope=LimitScope.TEAM,
        subject="web",
        unit=LimitUnit.USD,
        amount=5,
        window_s=86400,
        tenant="default",
    )
