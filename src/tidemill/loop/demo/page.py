"""The demo's page: one HTML file with everything in it, that opens without a network and runs no script."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from tidemill.loop.demo import wording
from tidemill.loop.demo.ancestry import Branch, ancestry, branches
from tidemill.loop.demo.plots import (
    Bar,
    Dot,
    Line,
    Mark,
    Threshold,
    dot_plot,
    layered_graph,
    log_chart,
    quantile_bars,
    safe,
)

Result = Mapping[str, Any]

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_SECTIONS: Final = (
    ("releases", "Releases"),
    ("rollouts", "Rollouts"),
    ("speed", "Latency and cost"),
    ("lineage", "One answer, followed back"),
    ("timings", "Timings"),
    ("next", "What to type next"),
)
_ORDER: Final = ("recall@5", "recall@1", "mrr", "citation_correct", "token_f1", "groundedness", "exact")
_FIRST_MEASURE: Final = 3  # the series before it are the releases' own
_AVERAGE: Final = 6
_QUANTILES: Final = ("p50_s", "p95_s", "p99_s")


def write_page(path: Path, result: Result) -> None:
    """Write the result as one HTML file: no script, nothing loaded, all that others wrote escaped.

    Args:
        path: the file; its folder is made when missing.
        result: what ``result_of`` returns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page_of(result), encoding="utf-8")


def page_of(result: Result) -> str:
    """The page as text. See ``write_page``."""
    style = (files("tidemill.loop.demo") / "page.css").read_text(encoding="utf-8")
    title = safe(f"Tidemill demo: {result['endpoint']}")
    parts = (_releases, _rollouts, _speed, _lineage, _timings, _next)
    sections = "\n".join(
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{safe(heading)}</h2>\n'
        f"{part(result)}\n</section>"
        for (name, heading), part in zip(_SECTIONS, parts, strict=True)
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"{_header(result)}\n<main>\n{sections}\n</main>\n{_footer(result)}\n</body>\n</html>\n"
    )


def _header(result: Result) -> str:
    links = "".join(f'<a href="#{name}">{safe(heading)}</a>' for name, heading in _SECTIONS)
    counts = result["counts"]
    facts = [(f"{counts[name]:,}", name) for name in ("documents", "passages", "questions") if name in counts]
    facts.append((str(sum(int(one["users"]["sessions"]) for one in result["releases"])), "users' sessions"))
    if "total" in result["timings"]:
        facts.append((wording.duration(result["timings"]["total"]), "for one turn of the loop"))
    shown = "".join(f"<li><b>{safe(value)}</b>{safe(name)}</li>" for value, name in facts)
    return (
        f"<header><h1>One turn of the loop</h1>"
        f'<p class="lead">Tidemill demo, run {safe(result["run"])}, endpoint <code>{safe(result["endpoint"])}</code>'
        f'{_day(result)}</p><nav aria-label="Sections">{links}</nav>'
        f'<div class="outcome"><p>{safe(" ".join(wording.outcome(result)))}</p></div>'
        f'<ul class="facts">{shown}</ul></header>'
    )


def _day(result: Result) -> str:
    if not result["timeline"]:
        return ""
    at = str(result["timeline"][0]["at"])
    return f', <time datetime="{safe(at)}">{safe(at[:10])}</time>'


def _releases(result: Result) -> str:
    cards = "\n".join(_card(one, place) for place, one in enumerate(result["releases"], 1))
    return (
        f'<div class="cards">{cards}</div>\n{_gates(result)}\n<h3>Scores, with 95 % intervals</h3>'
        '<p class="sub">Scored on questions that were held out, unless a panel says all. The bar is where the true '
        "value may be; point at a lane for the numbers.</p>"
        f'<div class="panels">{_panels(result)}</div>\n{_score_table(result)}'
    )


def _card(release: Mapping[str, Any], place: int) -> str:
    users = release["users"]
    content = int(users["content"])
    said = (
        f"{content} of {users['sessions']} users content ({wording.share(content / users['sessions'])})"
        if users["sessions"]
        else "no user met it"
    )
    return (
        f'<article class="card r{place}"><h3><span>{safe(wording.short(release))}</span>'
        f"{_badge(str(release['decision']))}</h3>"
        f"<p>{safe(wording.about(release))}<br><code>{safe(release['ref'])}</code></p>"
        f"<p>{safe(release['reason'])}</p>"
        f'<p class="quiet">{safe(said)}</p>{_gate(release)}</article>'
    )


def _badge(decision: str) -> str:
    sign, word = wording.DECISIONS.get(decision, ("?", decision))
    name = decision if decision in wording.DECISIONS else "held"
    return f'<span class="badge {name}"><span aria-hidden="true">{sign}</span> {safe(word)}</span>'


def _gate(release: Mapping[str, Any]) -> str:
    gate = release.get("gate")
    if not gate:
        return '<p class="quiet">No gate: there was nothing to compare it with.</p>'
    return f'<p class="quiet">Gate on held-out questions: {_verdict(gate["value"])}</p>'


def _gates(result: Result) -> str:
    parts = []
    for one in result["releases"]:
        gate = one.get("gate")
        if not gate:
            continue
        rows = [_gate_row(rule) for rule in wording.gate_rules(one)]
        headers = ("measure", "must be", "before", "now", "difference (95 %)", "p", "verdict")
        table = _table(f"Gate of {wording.short(one)}", headers, rows) if rows else ""
        parts.append(
            f"<details><summary>The gate of {safe(wording.short(one))}: {_verdict(gate['value'])}</summary>"
            f"<p>{safe(gate['reason'])}</p>{table}</details>"
        )
    return "\n".join(parts)


def _gate_row(rule: Mapping[str, Any]) -> list[str]:
    verdict = rule["verdict"]
    seen = verdict.get("evidence") or {}
    must = "better" if rule["kind"] == "superior" else f"no worse than −{rule['margin']:g}"
    interval = seen.get("interval")
    difference = f"{_number(seen.get('delta'), '+.3f')}" + (
        f" ({interval['low']:+.3f} to {interval['high']:+.3f})" if interval else ""
    )
    return [
        f'<span title="{safe(verdict["reason"])}">{safe(wording.metric_title(str(rule["metric"])))}</span>',
        safe(must),
        _number(seen.get("baseline_mean")),
        _number(seen.get("candidate_mean")),
        safe(difference.replace("-", "−")),
        _number(seen.get("p"), ".2g"),
        _verdict(verdict["value"]),
    ]


def _verdict(value: object) -> str:
    word = str(value)
    name = word.lower() if word.lower() in ("pass", "fail", "insufficient") else "quiet"
    return f'<b class="{name}">{safe(word)}</b>'


def _metrics(result: Result) -> list[str]:
    """All metrics, the telling ones first."""
    found = dict.fromkeys(name for one in result["releases"] for name in one["scores"])
    place = {name: number for number, name in enumerate(_ORDER)}
    return sorted(found, key=lambda name: place.get(name, len(place)))


def _panels(result: Result) -> str:
    panels = []
    for name in _metrics(result):
        dots = [
            Dot(
                label=wording.short(one),
                value=one["scores"][name],
                low=one["intervals"][name][0],
                high=one["intervals"][name][1],
                note=f"{one['n'][name]} questions",
                series=place,
            )
            for place, one in enumerate(result["releases"])
            if name in one["scores"]
        ]
        counts = sorted({str(one["n"][name]) for one in result["releases"] if name in one["scores"]})
        note = f"{wording.metric_meaning(name)}; {' or '.join(counts)} questions"
        panels.append(_panel(wording.metric_title(name), note, dots))
    users = [(place, one) for place, one in enumerate(result["releases"]) if one["users"].get("interval")]
    if users:
        dots = [
            Dot(
                label=wording.short(one),
                value=one["users"]["content"] / one["users"]["sessions"],
                low=one["users"]["interval"][0],
                high=one["users"]["interval"][1],
                note=f"{one['users']['sessions']} sessions",
                series=place,
            )
            for place, one in users
        ]
        panels.insert(
            0, _panel("Users content", "feedback sent through the gateway, by the release that answered", dots)
        )
    return "\n".join(panels)


def _panel(title: str, note: str, dots: Sequence[Dot]) -> str:
    return _figure(title, note, dot_plot(dots, title=title))


def _score_table(result: Result) -> str:
    rows = []
    for name in _metrics(result):
        cells = [safe(name)]
        for one in result["releases"]:
            low, high = one["intervals"].get(name, (None, None))
            cells.append(
                f'{one["scores"][name]:.3f} <span class="quiet">({low:.3f} to {high:.3f}, n {one["n"][name]})</span>'
                if name in one["scores"]
                else "not measured"
            )
        rows.append(cells)
    headers = ["measure", *(wording.short(one) for one in result["releases"])]
    return f"<details><summary>The same as a table</summary>{_table('Scores', headers, rows)}</details>"


def _rollouts(result: Result) -> str:
    place = {str(one["ref"]): number for number, one in enumerate(result["releases"], 1)}
    names = wording.names(result)
    events = "\n".join(_event(row, place, names) for row in result["timeline"])
    charts = "\n".join(_evidence(result, one) for one in result["evidence"])
    return (
        "<p>Every step of a rollout is a decision in the ledger, with who and why. A canary shares live sessions with "
        "the release before it; what users and traces say moves it on or back.</p>"
        f'<ol class="timeline">{events}</ol>\n'
        "<h3>The evidence, session by session</h3>"
        "<p>An e-value is what a bet against a claim has grown to. If the claim were true, it would ever reach 10 with "
        "a chance of at most 1 in 10, however often one looks. Promotion needs every measure shown to be no worse than "
        "its margin allows; one average over the measures, shown worse, rolls back.</p>\n"
        f"{charts or '<p>No rollout had to be decided.</p>'}"
    )


def _event(row: Mapping[str, Any], place: Mapping[str, int], names: Mapping[str, str]) -> str:
    release, event = str(row["release"]), str(row["event"])
    sessions = (row.get("evidence") or {}).get("sessions") or {}
    seen = f" after {sum(sessions.values())} sessions" if sessions else ""
    word = wording.EVENTS.get(event, event.replace("_", " "))
    return (
        f'<li class="r{place.get(release, 1)}"><time datetime="{safe(row["at"])}">{safe(_clock(str(row["at"])))}</time>'
        f'<span class="chip">{safe(names.get(release, release))}</span>'
        f"<div><b>{safe(word)}</b>{safe(seen)} "
        f'<span class="quiet">by {safe(row["actor"])}</span><br>'
        f'<span class="why">{safe(row["reason"])}</span></div></li>'
    )


def _clock(at: str) -> str:
    try:
        return f"{datetime.fromisoformat(at):%H:%M:%S}"
    except ValueError:
        return at


def _evidence(result: Result, evidence: Mapping[str, Any]) -> str:
    release = next((one for one in result["releases"] if one["ref"] == evidence["release"]), None)
    name = wording.short(release) if release else str(evidence["release"])
    decision = str(release["decision"]) if release else ""
    heading = f"<h3>{safe(name[:1].upper() + name[1:])} {_badge(decision) if decision else ''}</h3>"
    path = evidence["path"]
    if not path:
        why = f": {release['reason']}" if release else ""
        return f"{heading}<p>No session reached its canary{safe(why)}.</p>"
    last = float(path[-1]["seq"])
    up = _chart_lines(path, "e_not_inferior")
    down = [*_chart_lines(path, "e_inferior"), _average(path)]
    promoted = Mark(last, "promoted") if decision == "promoted" else None
    back = Mark(last, "rolled back") if decision == "rolled_back" else None
    promote_at = Threshold(float(evidence["promote_at"]), f"promote at {evidence['promote_at']:g}")
    back_at = Threshold(float(evidence["roll_back_at"]), f"roll back at {evidence['roll_back_at']:g}")
    margins = ", ".join(f"{wording.metric_title(one)} {value:g}" for one, value in evidence["margins"].items())
    axis = "sessions with feedback or timed out"
    charts = (
        _figure(
            "Shown to be no worse",
            f"promotion needs every line to have reached the threshold; margins: {margins}",
            log_chart(up, title=f"{name}, shown to be no worse", x_label=axis, thresholds=(promote_at,), mark=promoted),
        ),
        _figure(
            "Shown to be worse",
            "the average line decides",
            log_chart(down, title=f"{name}, shown to be worse", x_label=axis, thresholds=(back_at,), mark=back),
        ),
    )
    figures = _arm_table(wording.decided(result, release)) if release else ""
    return f'{heading}<div class="pair">{"".join(charts)}</div>{figures}'


def _chart_lines(path: Sequence[Mapping[str, Any]], key: str) -> list[Line]:
    return [
        Line(
            wording.metric_title(name),
            [(0.0, 1.0), *((float(one["seq"]), float(one[key][name])) for one in path)],
            _FIRST_MEASURE + number,
        )
        for number, name in enumerate(sorted(path[-1][key], reverse=True))
    ]


def _average(path: Sequence[Mapping[str, Any]]) -> Line:
    points = [(0.0, 1.0), *((float(one["seq"]), float(one["average_e_inferior"])) for one in path)]
    return Line("average", points, _AVERAGE)


def _arm_table(seen: Mapping[str, Any]) -> str:
    rows = []
    for name, one in (seen.get("metrics") or {}).items():
        interval = one.get("interval")
        between = f" ({interval['low']:+.2f} to {interval['high']:+.2f})" if interval else ""
        rows.append(
            [
                safe(wording.metric_title(name)),
                f'{_number(one.get("canary_mean"))} <span class="quiet">of {safe(one.get("canaries", 0))}</span>',
                f'{_number(one.get("control_mean"))} <span class="quiet">of {safe(one.get("controls", 0))}</span>',
                safe((_number(one.get("delta"), "+.2f") + between).replace("-", "−")),
                _number(one.get("e_not_inferior"), ".3g"),
                _number(one.get("e_inferior"), ".3g"),
            ]
        )
    headers = ("measure", "canary", "live release", "difference (95 %, at every look)", "e: no worse", "e: worse")
    if not rows:
        return ""
    return f"<details><summary>Figures of the decision</summary>{_table('Figures', headers, rows)}</details>"


def _speed(result: Result) -> str:
    names = wording.names(result)
    order = {str(one["ref"]): place for place, one in enumerate(result["releases"])}
    traffic = sorted(result["latency"], key=lambda row: (order.get(str(row["release"]), 99), str(row["arm"])))
    if not traffic:
        return "<p>No request was traced.</p>"
    bars, rows, tokens_each = [], [], []
    for row in traffic:
        label = f"{names.get(str(row['release']), str(row['release']))}, {row['arm'] or 'alone'}"
        marks = [(name[:-2], float(row[name])) for name in _QUANTILES if row.get(name) is not None]
        first = [("first chunk p50", float(row["ttfc_p50_s"]))] if row.get("ttfc_p50_s") is not None else []
        series = order.get(str(row["release"]), 0)
        bars.append(Bar(label, marks, first, series))
        read, wrote = (int(row.get(name) or 0) / max(1, row["requests"]) for name in ("input_tokens", "output_tokens"))
        tokens_each.append(Bar(label, [("read", read), ("read and written", read + wrote)], series=series))
        cost = row.get("cost_usd")
        each = f" ({wording.dollars(1000 * cost / row['requests'])})" if cost and row["requests"] else ""
        times = [_seconds(row.get(name)) for name in (*_QUANTILES, "ttfc_p50_s")]
        tokens = [f"{row.get(name) or 0:,}" for name in ("input_tokens", "output_tokens")]
        counts = [safe(row["requests"]), safe(row["errors"])]
        rows.append([safe(label), *counts, *times, *tokens, safe(wording.dollars(cost) + each)])
    headers = (
        "release, arm",
        "requests",
        "errors",
        "p50",
        "p95",
        "p99",
        "first chunk",
        "tokens in",
        "out",
        "cost (of 1000)",
    )
    note = "bars end at p50, p95 and p99; the diamond is when half of the streams had their first chunk"
    chart = _figure("Seconds to the whole answer", note, quantile_bars(bars, title="Latency", unit="s"))
    words = _figure(
        "Tokens of a request", "read, then written", quantile_bars(tokens_each, title="Tokens of a request", unit="")
    )
    return (
        f'<div class="pair">{chart}{words}</div>{_table("Latency and cost by release", headers, rows)}'
        f'<p class="sub">{safe(wording.price_note(result))}</p>'
    )


def _lineage(result: Result) -> str:
    lineage = result.get("lineage") or {}
    found = ancestry(lineage)
    if not found.nodes:
        return "<p>No answer could be followed: none was traced.</p>"
    said = (
        f"<blockquote><p><b>Asked:</b> <bdi>{safe(lineage.get('question', ''))}</bdi></p>"
        f"<p><b>Answered:</b> <bdi>{safe(lineage.get('answer', ''))}</bdi></p></blockquote>"
    )
    graph = layered_graph(found.nodes, found.edges, title="Lineage of one answer")
    cited = [(node.label, lineage["rows"][node.key]) for node in found.nodes if _is_cited_passage(node.key, lineage)]
    texts = "".join(
        f"<details><summary>Cited passage {number} of {len(cited)}: {safe(label)}</summary>"
        f'<blockquote><p class="passage"><bdi>{safe(row["text"])}</bdi></p></blockquote></details>'
        for number, (label, row) in enumerate(cited, 1)
    )
    return (
        f"{said}{texts}<p>From the answer on the left to what it came from on the right. The way of the cited text "
        "stands out; large parts are one box; point at a box for its full name.</p>"
        f'<figure><div class="scroll" tabindex="0" role="region" aria-label="Lineage graph">{graph}</div></figure>'
        f"<h3>The same as a tree</h3>{_tree(branches(found))}"
    )


def _is_cited_passage(key: str, lineage: Mapping[str, Any]) -> bool:
    cited = {str(edge["parent"]) for edge in lineage.get("edges", ()) if edge["role"] == "cited"}
    return key in cited and key in (lineage.get("rows") or {})


def _tree(lines: Sequence[Branch]) -> str:
    parts, depth = ['<ul class="tree">'], -1
    for line in lines:
        parts.append("</li>" if line.depth == depth else "")
        parts.append("<ul>" if line.depth > depth >= 0 else "")
        parts.append("</li></ul>" * (depth - line.depth) + "</li>" if line.depth < depth else "")
        name = ' class="cited"' if line.node.strong else ""
        role = f' <span class="role">{safe(line.role)}</span>' if line.role else ""
        above = ' <span class="role">(see above)</span>' if line.again else ""
        parts.append(f"<li><span{name}>{safe(line.node.kind)} <bdi>{safe(line.node.label)}</bdi></span>{role}{above}")
        depth = line.depth
    return "".join(parts) + "</li></ul>" * (depth + 1)


def _timings(result: Result) -> str:
    timings = {name: float(value) for name, value in result["timings"].items()}
    stages = {name: value for name, value in timings.items() if name not in ("total", "loop")}
    bars = [Bar(name, [("took", value)], series=1) for name, value in stages.items()]
    steps = result["steps"]
    cached = (
        f"{len(steps['cached'])} from the cache: {', '.join(steps['cached'])}" if steps["cached"] else "none cached"
    )
    ran = f"{len(steps['ran'])} run: {', '.join(steps['ran'])}" if steps["ran"] else "none run"
    total = ", ".join(f"{name} {wording.duration(timings[name])}" for name in ("total", "loop") if name in timings)
    chart = _figure("Seconds by stage", total, quantile_bars(bars, title="Stages", unit="s")) if bars else ""
    return f'<div class="pair">{chart}</div><p class="sub">Steps: {safe(ran)}; {safe(cached)}.</p>'


def _next(result: Result) -> str:
    listed = "".join(
        f"<dt><code>{safe(command)}</code></dt><dd>{safe(why)}</dd>"
        for command, why in wording.commands(result, kept=False)
    )
    return (
        f'<dl class="next">{listed}</dl><p>While it runs (after <code>tidemill up</code>, or a demo with '
        f"<code>--keep</code>), any OpenAI client can ask it:</p>"
        f'<pre tabindex="0"><code>{safe(wording.client_snippet(result))}</code></pre>'
    )


def _footer(result: Result) -> str:
    audit = result["audit"]
    state = "intact" if audit["ok"] else f"broken at entry {audit['first_bad_seq']}"
    return (
        f"<footer>Audit chain: {safe(audit['entries'])} decisions, {safe(state)} ({safe(audit['reason'])}). "
        f"Project folder: <code>{safe(result['project'])}</code></footer>"
    )


def _figure(title: str, note: str, svg: str) -> str:
    return f"<figure><figcaption><b>{safe(title)}</b><span>{safe(note)}</span></figcaption>{svg}</figure>"


def _table(label: str, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already, which scrolls on its own where the page is narrow."""
    head = "".join(f'<th scope="col">{safe(header)}</th>' for header in headers)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{safe(label)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _number(value: float | None, spec: str = ".3f") -> str:
    return "n/a" if value is None else f"{value:{spec}}"


def _seconds(value: float | None) -> str:
    return "n/a" if value is None else safe(wording.duration(value))
