"""Scores from programs: what a user, a judge or a check thinks of an answer."""

from __future__ import annotations

import json
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from tidemill.kernel import InvalidInput, NotFound, Unavailable, UserError, fresh_id
from tidemill.kernel.trace_ids import parse_span_id, parse_trace_id
from tidemill.tm.sending import Destination, scores_destination
from tidemill.tm.spans import Handle

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanContext

Source = Literal["user", "scorer", "judge", "person"]
_PATIENCE_S: Final = 30.0
_FAMILIES: Final[dict[int, type[UserError]]] = {404: NotFound}


def score(  # noqa: PLR0913 - what a score says
    trace: Handle | Span | SpanContext | str,
    name: str,
    value: float | bool | str | None = None,
    *,
    label: str | None = None,
    comment: str | None = None,
    correction: str | None = None,
    span: str | None = None,
    source: Source = "user",
    score_id: str | None = None,
) -> str:
    """Score a trace; stored when this returns.

    Sends one request and waits for its answer: in a coroutine, call it in a thread. The trace need not have arrived.

    Args:
        trace: an open span, OpenTelemetry's own, or a trace id in any usual form (the gateway's
            ``x-tidemill-trace-id``, a ``traceparent``, a UUID, …).
        name: what is scored: ``feedback``, ``groundedness``, …
        value: a number, ``True`` or ``False``; a text is taken as the label.
        label: a word besides, or in place of, the number.
        comment: free text, masked before it is stored.
        correction: what would have been right; masked likewise.
        span: span id, where the score is of one span; of an open span it is taken only when named here.
        source: who scored.
        score_id: names the score: sent again, it is the same score. Made when not given.

    Returns:
        The score's id.

    Raises:
        InvalidInput: an id that is none, a score that says nothing, or one that is refused.
        Unavailable: nobody answers where scores go.
        NotFound: nothing is configured, and there is no project file here.
    """
    if isinstance(value, str):
        value, label = None, value if label is None else label
    if all(part is None for part in (value, label, comment, correction)):
        raise InvalidInput(f"The score '{name}' says nothing: give a value, label, comment or correction.")
    to = scores_destination()
    body: dict[str, Any] = {
        "trace_id": _trace_id(trace),
        "name": name,
        "value": None if value is None else float(value),
        "label": label,
        "comment": comment,
        "correction": correction,
        "span_id": None if span is None else parse_span_id(span),
    }
    if not to.is_gateway:  # a gateway takes what users say, and names scores itself
        body |= {"source": source, "score_id": score_id or fresh_id("score")}
    elif source != "user" or score_id is not None:
        raise InvalidInput("A gateway takes scores of users alone, and names them itself.")
    path = "/v1/feedback" if to.is_gateway else "/api/v1/scores"
    answer = _post(to, path, {key: one for key, one in body.items() if one is not None})
    return str(answer["score_id"])


def _trace_id(trace: Handle | Span | SpanContext | str) -> str:
    if isinstance(trace, str):
        return parse_trace_id(trace)
    if isinstance(trace, Handle):
        found = trace.trace_id
    else:
        context_of: Any = getattr(trace, "get_span_context", lambda: trace)
        found = f"{context_of().trace_id:032x}"
    if not found.strip("0"):
        raise InvalidInput("This span is not recorded, so it cannot be scored.", hint="Call tm.configure() first.")
    return found


def _post(to: Destination, path: str, body: dict[str, Any]) -> Any:
    token = to.token()
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    request = Request(to.url + path, json.dumps(body).encode(), headers)  # noqa: S310 - http or https, checked
    opener = build_opener(ProxyHandler({})) if to.is_local else build_opener()
    try:
        with opener.open(request, timeout=_PATIENCE_S) as answer:
            return json.load(answer)
    except HTTPError as error:
        with error:
            raise _refusal(to, error) from None
    except TimeoutError:
        raise Unavailable(f"{to.url} took no score within {_PATIENCE_S:.0f} seconds; it may have come.") from None
    except (OSError, HTTPException, ValueError):  # not there, gone in the middle, or something else on the port
        raise Unavailable(f"Nobody takes scores at {to.url}.", hint="Start it: tidemill up") from None


def _refusal(to: Destination, error: HTTPError) -> UserError:
    try:
        problem = json.load(error)["error"]
        message, hint = str(problem["message"]), problem.get("hint")
    except (OSError, HTTPException, ValueError, KeyError, TypeError, AttributeError):
        message, hint = f"{to.url} answered {error.code} to a score.", None
    default = Unavailable if error.code >= 500 or error.code == 429 else InvalidInput
    return _FAMILIES.get(error.code, default)(message, hint=hint)
