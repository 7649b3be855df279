"""The demo's result in words: what the page and the terminal say alike. Nothing here is escaped yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

Result = Mapping[str, Any]

DECISIONS: Final[Mapping[str, tuple[str, str]]] = {
    "promoted": ("✓", "promoted"),
    "rolled_back": ("↩", "rolled back"),
    "held": ("‖", "held"),
    "gated_out": ("✕", "gated out"),
}
"""A sign and a word for each decision, so that colour is not the only signal."""

EVENTS: Final[Mapping[str, str]] = {
    "open": "rollout opened",
    "gate_passed": "gate passed",
    "gate_failed": "gate failed",
    "gate_insufficient": "gate: not enough evidence",
    "gate_overridden": "let past the gate",
    "shadow_started": "shadow begins",
    "shadow_passed": "shadow passed",
    "shadow_failed": "shadow failed",
    "canary_step": "canary gets its share",
    "promote": "promoted",
    "roll_back": "rolled back",
    "hold": "held",
    "cancel": "cancelled",
    "resume": "resumed",
}

_METRICS: Final[Mapping[str, tuple[str, str]]] = {
    "recall@1": ("Right document first", "share of questions whose first hit is a document that answers"),
    "recall@5": ("Right document in the first five", "share of questions with such a document among five hits"),
    "mrr": ("Rank of the right document", "mean of 1/rank: 1 is always first, 0 never found"),
    "token_f1": ("Words of the expected answer", "token F1: overlap of the answer with the expected one"),
    "exact": ("Exactly the expected answer", "share of answers that equal the expected one"),
    "citation_correct": ("Cites the right document", "share of answers that show a document that answers"),
    "groundedness": ("Answer stands in the text", "share of the answer's words found in the passages shown"),
    "success": ("user content", ""),
    "ok": ("no error", ""),
    "latency_ok": ("fast enough", ""),
}


def metric_title(name: str) -> str:
    """What a metric is called for people."""
    bare, _, rest = name.partition(" ")
    title = _METRICS.get(bare, (bare, ""))[0]
    return f"{title}, all questions" if rest == "(all)" else title


def metric_meaning(name: str) -> str:
    """What a metric measures."""
    return _METRICS.get(name.partition(" ")[0], ("", ""))[1]


def short(release: Mapping[str, Any]) -> str:
    """``release 2`` of a release's title."""
    return str(release["title"]).partition(":")[0]


def about(release: Mapping[str, Any]) -> str:
    """What is special about a release, from its title."""
    return str(release["title"]).partition(":")[2].strip()


def names(result: Result) -> dict[str, str]:
    """Short names by reference."""
    return {str(one["ref"]): short(one) for one in result["releases"]}


def share(value: float) -> str:
    """A share in per cent."""
    return f"{100 * value:.0f} %"


def points(value: float) -> str:
    """A difference of shares, in points."""
    return f"{100 * value:+.0f}".replace("-", "−")


def duration(seconds: float) -> str:
    """A duration for people: ``840 ms``, ``4.8 s``, ``4 min 43 s``."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def dollars(value: float | None) -> str:
    """A small sum of money."""
    if value is None:
        return "not known"
    return f"{value:.2f} USD" if value == 0 or value >= 1 else f"{value:.2g} USD"


def serving(result: Result) -> Mapping[str, Any] | None:
    """The release that answers at the end: the last one promoted."""
    promoted = [one for one in result["releases"] if one["decision"] == "promoted"]
    return promoted[-1] if promoted else None


def outcome(result: Result) -> list[str]:
    """The outcome in a few sentences: which release serves now, and why."""
    live = serving(result)
    if live is None:
        return [f"No release serves {result['endpoint']}: none was promoted."]
    sentences = [f"{_capital(short(live))} ({about(live)}) now answers {result['endpoint']}."]
    sentences += [sentence for one in result["releases"][1:] for sentence in _fate(result, one)]
    return sentences


def decided(result: Result, release: Mapping[str, Any]) -> Mapping[str, Any]:
    """The figures of a rollout's last event: sessions and metrics by arm; empty when it saw no session."""
    rows = [row for row in result["timeline"] if row["release"] == release["ref"]]
    return dict(rows[-1].get("evidence") or {}) if rows else {}


def gate_rules(release: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rules of a release's gate, each with its verdict."""
    return list(((release.get("gate") or {}).get("evidence") or {}).get("rules") or ())


def price_note(result: Result) -> str:
    """What the cost stands for."""
    price = result.get("price") or {}
    read, wrote = price.get("input_usd_per_mtok", 0.0), price.get("output_usd_per_mtok", 0.0)
    if not read and not wrote:
        return (
            "The model runs on this machine and has no price per token, so requests cost nothing here; give it one "
            "under models in tidemill.yaml (input_usd_per_mtok, output_usd_per_mtok) and the gateway counts it."
        )
    return (
        f"At {read:g} USD for a million tokens read and {wrote:g} USD for a million written: what two rented cores at "
        "0.08 USD an hour cost while they read 300 or write 150 tokens a second."
    )


def commands(result: Result, *, kept: bool) -> list[tuple[str, str]]:
    """What to type next, each with what it shows; the first starts the processes again when they were stopped."""
    at = f"-p {_quoted(str(result['project']))}"
    found = [(f"tidemill status {at}", "what runs, and which release answers")]
    for one in result["evidence"]:
        if one["sessions"]:
            name = names(result).get(str(one["release"]), str(one["release"]))
            found.append((f"tidemill rollout explain {one['rollout']} {at}", f"why {name} ended so"))
    trace = (result.get("lineage") or {}).get("ref")
    if trace:
        found.append((f"tidemill trace show {trace} {at}", "that answer, its spans, its feedback"))
        found.append((f"tidemill lineage {trace} {at}", "what it was made from"))
    found += [
        (f"tidemill trace summary {at}", "latency, errors, tokens and cost"),
        (f"tidemill rollout list {at}", "all rollouts"),
        (f"tidemill audit verify {at}", "recompute the chain of all decisions"),
        (f"tidemill demo --folder {_quoted(str(result['project']))}", "once more; unchanged steps come from the cache"),
        ("tidemill demo --docs DIR --folder OTHER", "the same over your own documents"),
    ]
    start = (f"tidemill up {at}", "start gateway, control plane, model server and releases again")
    return found if kept else [start, *found]


def client_snippet(result: Result) -> str:
    """Six lines of Python that ask the demo's gateway through the official client."""
    key = f"{result['project']}/.tidemill/run/demo-key"
    return "\n".join(
        (
            "from openai import OpenAI",
            "",
            f"client = OpenAI(base_url={str(result['base_url'])!r}, api_key=open({key!r}).read())",
            f'question = {{"role": "user", "content": {_question(result)!r}}}',
            f"answer = client.chat.completions.create(model={str(result['endpoint'])!r}, messages=[question])",
            "print(answer.choices[0].message.content)",
        )
    )


def gateway_place(result: Result) -> str:
    """Host and port of the gateway."""
    return urlsplit(str(result["base_url"])).netloc


def _question(result: Result) -> str:
    return str((result.get("lineage") or {}).get("question") or "How do I read a file line by line?")


def _fate(result: Result, release: Mapping[str, Any]) -> list[str]:
    """One release's way through gate and canary, in one or two sentences."""
    name, decision = f"{_capital(short(release))} ({about(release)})", str(release["decision"])
    if release is serving(result):
        name = "It"  # the sentence before has named it
    found = []
    rule = next((one for one in gate_rules(release) if one["metric"] == "recall@5"), None)
    figures = ((rule or {}).get("verdict") or {}).get("evidence") or {}
    gate = str((release.get("gate") or {}).get("value", "")).upper()
    if figures.get("interval"):
        low, high = figures["interval"]["low"], figures["interval"]["high"]
        passed = {"PASS": "passed the gate", "FAIL": "failed the gate"}.get(gate, "was not decided by the gate")
        found.append(
            f"{name} {passed}: on {figures['n']} held-out questions the document that answers is "
            f"among the first five in {share(figures['candidate_mean'])}, with the release before it in "
            f"{share(figures['baseline_mean'])} (difference {points(figures['delta'])} points, 95 % interval "
            f"{points(low)} to {points(high)})."
        )
    seen = decided(result, release)
    metric = (seen.get("metrics") or {}).get("success") or {}
    sessions = sum((seen.get("sessions") or {}).values())
    subject = "It" if found else name
    past = f"{subject} was let past the gate on purpose and" if _overridden(result, release) else subject
    if metric.get("canary_mean") is not None and metric.get("control_mean") is not None and sessions:
        word = DECISIONS.get(decision, ("", decision))[1]
        found.append(
            f"{past} was {word} after {sessions} sessions shared with the live release: its users were content in "
            f"{share(metric['canary_mean'])}, those of the other in {share(metric['control_mean'])}."
        )
    else:
        word = DECISIONS.get(decision, ("", decision))[1]
        found.append(f"{subject} was {word}: {_ended(str(release['reason']))}")
    return found


def _overridden(result: Result, release: Mapping[str, Any]) -> bool:
    return any(row["release"] == release["ref"] and row["event"] == "gate_overridden" for row in result["timeline"])


def _ended(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else text + "."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _quoted(text: str) -> str:
    from shlex import quote

    return quote(text)
