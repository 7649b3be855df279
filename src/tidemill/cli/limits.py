"""``limits``: how much of each rate limit and budget is spent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tidemill.cli.output import HERE, JsonOption, ProjectOption, print_json, print_table, project_at

if TYPE_CHECKING:
    from tidemill.ledger.accounts import Standing


def limits(project: ProjectOption = HERE, as_json: JsonOption = False) -> None:
    """Show each limit of the project file: what is spent in its window, what is lent to workers, what is left.

    Example: tidemill limits --json
    """
    import time

    from tidemill.ledger.accounts import open_lease_store
    from tidemill.loop.policies import limits_of
    from tidemill.safety import routing_keys
    from tidemill.server.children import limits_url

    with project_at(project) as opened:
        settings = opened.settings
        keys = routing_keys(opened.ledger, now_s=time.time())
        found = limits_of(settings.limits, tenant=settings.tenant, keys=keys, endpoints=settings.endpoints.keys())
        standing: list[Standing] = []
        url = limits_url(settings)
        if url is not None:
            store = open_lease_store(url, settings.scope)
            try:
                standing = store.standing(found)
            finally:
                store.close()
    if as_json:
        print_json([_json(one) for one in standing])
        return
    rows = [
        (
            one.limit.limit_id,
            f"{one.amount:g} {one.limit.unit.value.removesuffix('s') if one.amount == 1 else one.limit.unit.value}",
            _short(one.spent),
            _short(one.leased),
            _short(one.available),
        )
        for one in standing
    ]
    empty = "The project file sets no limit. Add one under limits: in tidemill.yaml"
    print_table(("limit", "amount", "spent", "leased", "available"), rows, empty=empty)


def _json(one: Standing) -> dict[str, Any]:
    limit = one.limit
    return {
        "limit": limit.limit_id,
        "scope": limit.scope.value,
        "subject": limit.subject,
        "unit": limit.unit.value,
        "window_s": limit.window_s,
        "amount": one.amount,
        "spent": one.spent,
        "leased": one.leased,
        "available": one.available,
    }


def _short(value: float) -> str:
    return f"{value:.6g}"
