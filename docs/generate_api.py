"""Reference pages of what other programs read: the REST API and the records of telemetry."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

REFERENCE = Path(__file__).resolve().parent / "reference"

_API = """\
# REST API

The control plane's API, at `server.host:server.port` (127.0.0.1:8400). Generated from its OpenAPI description by
`make docs`; the running server gives the description itself at `/openapi.json`.

It answers programs of this machine: requests with an `Origin` header or a foreign `Host` get 403. Every path but
`/health` wants `Authorization: Bearer TOKEN`; the token stands in `.tidemill/run/token`, which only its owner can read.

An error is `{"error": {"message": …, "hint": …}}` with status 400 (a mistake of the caller), 401, 403, 404, 409
(somebody moved it first) or 503. FastAPI itself answers 422 to a parameter of the wrong kind.

"""

_GATEWAY = """\
## The gateway's own API

Clients talk to the gateway, at `gateway.host:gateway.port` (127.0.0.1:8410), with a key of `tidemill keys issue`.

| path | |
|---|---|
| `POST /v1/chat/completions` | as OpenAI's; `model` is an endpoint; streaming too |
| `POST /v1/responses` | as OpenAI's, with `previous_response_id` and `conversation`; [what is kept](../explanation/conversations.md) |
| `/v1/responses/{id}`, `/v1/conversations` and below | what was kept: read, add, delete |
| `POST /v1/completions`, `/v1/embeddings`, `/v1/moderations`, `/v1/audio/transcriptions`, `/v1/audio/speech` | as OpenAI's |
| `POST /v1/messages` | as Anthropic's; the key may come as `x-api-key` |
| `POST /v1/messages/count_tokens` | the provider's count where the release's targets are all Anthropic's; else an estimate, which `"tidemill": {"estimated": true}` marks |
| `GET /v1/models`, `GET /v1/models/{endpoint}` | the endpoints |
| `POST /v1/feedback` | a score on an answer |
| `GET /health` | 200 when there is a valid routing snapshot, else 503 with the reason; no key |
| `GET /metrics` | Prometheus text; no key |

Request headers: `x-tidemill-session` names the caller's session, `traceparent` joins a trace. Answer headers:
`x-tidemill-trace-id`, `x-tidemill-release`. A release with an index adds a `tidemill` object to the answer, and to
the last chunk of a stream: `{"passages": [{"passage_id", "document_id", "source", "title", "score", "rank"}],
"citations": [source], "release": digest}`.

Feedback is `{"trace_id": …, "name": "feedback", "value": 1, "label": …, "comment": …, "correction": …}`, all but
`trace_id` optional, with at least one of the last four; `span_id` names one answer of a trace. It is kept before it is
acknowledged: `{"score_id", "trace_id", "trace"}`. `trace` is `known` if the workers of this host answered that trace for
this tenant; they remember about the last 100,000, whichever of them answered. It is `unknown`, with a `message`, for a
mistaken id, and as well for an old answer or another host's, so such feedback is kept all the same, and counted as
`feedback_unknown_trace` in the metrics. Whether a trace exists for good is the span store's to say, once both are
drained: `tidemill trace show ID`. Another tenant's trace is `unknown` like any other.
"""

_TELEMETRY = """\
# Telemetry records

What is kept of every request. Names follow OpenTelemetry's GenAI conventions where those have one. Generated from
`tidemill.telemetry.records` by `make docs`. How records lie in files before they are stored: [the segment
log](segment-log.md).

A request has one span of its own, whose `operation` is what was asked. Each attempt beside the one that decided, a retry's
or a hedge's, has a span with `operation` `attempt` below it: its target, when, why it came to nothing (`error_type`,
`hedge_lost` for the slower of two), and what it may cost. They are no requests: counts, errors and percentiles leave them
out, and their cost is a part of the request's.

"""


def api_pages() -> dict[Path, str]:
    """Every file of this module with its text."""
    return {REFERENCE / "rest-api.md": rest_page(), REFERENCE / "telemetry.md": telemetry_page()}


def rest_page() -> str:
    """The REST API, from the application's own OpenAPI description."""
    from tidemill.kernel.settings import parse_settings
    from tidemill.server.api import create_app

    # Routes are made from the application alone; nothing is asked of the control plane before a request comes.
    settings = parse_settings({"project": "docs", "telemetry": {"otlp": {"enabled": False}}})  # it has a page of its own
    project = SimpleNamespace(ledger=None, settings=settings)
    absent: Any = SimpleNamespace(project=project, store=None)
    description = create_app(absent, token="").openapi()
    lines = [_API]
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            lines += [f"## {method.upper()} {path}", "", operation["summary"] + ".", ""]
            lines += list(_inputs(description, operation))
    return "\n".join(lines) + "\n" + _GATEWAY


def _inputs(description: Mapping[str, Any], operation: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        (
            one["name"],
            one["in"],
            one.get("required", False),
            _type(description, one["schema"]),
            one["schema"].get("default"),
        )
        for one in operation.get("parameters", ())
    ]
    body = operation.get("requestBody")
    if body is not None:
        schema = _follow(description, body["content"]["application/json"]["schema"])
        required = schema.get("required", ())
        rows += [
            (
                name,
                "body",
                name in required,
                f"{_type(description, value)}. {value.get('description', '')}".strip(),
                None,
            )
            for name, value in schema["properties"].items()
        ]
    if rows:
        yield from ("| name | in | needed | what |", "|---|---|---|---|")
        for name, place, needed, what, default in rows:
            more = f", default {default}" if default not in (None, []) else ""
            yield f"| `{name}` | {place} | {'yes' if needed else 'no'} | {what}{more} |"
        yield ""


def _type(description: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    schema = _follow(description, schema)
    if "anyOf" in schema:
        return " or ".join(_type(description, one) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"])
    if schema.get("type") == "array":
        return "repeated: " + _type(description, schema["items"])
    return str(schema.get("type", "value"))


def _follow(description: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" not in schema:
        return schema
    found: Mapping[str, Any] = description["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return found


def telemetry_page() -> str:
    """The fields of every record, from their definitions and docstrings."""
    from tidemill.telemetry import records

    lines = [_TELEMETRY]
    for record in (records.Span, records.Reference, records.Content, records.Score, records.Intent):
        text = inspect.cleandoc(record.__doc__ or "")
        about, _, arguments = text.partition("Args:")
        described = _described(arguments)
        lines += [
            f"## {record.__name__}",
            "",
            about.strip().split("\n\n")[0].replace("``", "`"),  # what follows is for those who make records
            "",
            "| field | type | meaning |",
            "|---|---|---|",
        ]
        for name, kind in record.__annotations__.items():
            lines.append(f"| `{name}` | `{kind.replace('|', chr(92) + '|')}` | {described.get(name, '')} |")
        lines.append("")
    lines += [
        "`status` is `ok`; `error`; `cancelled`: the client left; `truncated`: the upstream broke off; or",
        "`interrupted`: the process died, and only its intent was known.",
    ]
    return "\n".join(lines) + "\n"


def _described(arguments: str) -> dict[str, str]:
    """Field -> meaning, out of a docstring's ``Args``; several names may share one meaning."""
    found = {}
    for entry in re.split(r"\n(?=    \S)", arguments):
        names, _, text = entry.strip().partition(":")
        for name in names.split(","):
            found[name.strip()] = " ".join(text.split()).replace("``", "`").replace("|", "\\|")
    return found
