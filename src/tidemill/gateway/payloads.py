"""The few fields the gateway reads out of requests and answers; everything else stays the bytes it was.

Requests are decoded shallowly (messages stay raw). Answers are decoded once, after they are complete: a stream's
events are joined into one JSON array and decoded in one call.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from tidemill.gateway.answers import Refusal
from tidemill.gateway.reading import Request
from tidemill.gateway.usage import UsageObject
from tidemill.telemetry.records import Reference

_NO_RAW: Final = msgspec.Raw(b"")


class AskedOptions(msgspec.Struct, gc=False):
    """``stream_options`` of a request."""

    include_usage: bool | None = None


class Asked(msgspec.Struct, gc=False):
    """What the gateway reads of a request's body."""

    model: str
    stream: bool | None = None
    user: str | None = None
    n: Annotated[int, msgspec.Meta(ge=1)] | None = None
    best_of: Annotated[int, msgspec.Meta(ge=1)] | None = None
    temperature: float | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None
    stream_options: AskedOptions | msgspec.UnsetType | None = msgspec.UNSET
    messages: msgspec.Raw = _NO_RAW
    prompt: msgspec.Raw = _NO_RAW
    input: msgspec.Raw = _NO_RAW
    tools: msgspec.Raw = _NO_RAW

    def input_text(self) -> str:
        """Messages, prompt or input as JSON text, for the trace."""
        return bytes(self.messages or self.prompt or self.input).decode("utf-8", "replace")

    @property
    def output_tokens_most(self) -> int | None:
        """What the request itself allows for one answer; of two bounds the larger, for a provider may know only one."""
        if self.max_completion_tokens is None or self.max_tokens is None:
            return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return max(self.max_tokens, self.max_completion_tokens)

    @property
    def answers_most(self) -> int:
        """How many answers a provider may write, and charge, for this request."""
        return max(self.n or 1, self.best_of or 1) * (_prompts(self.prompt) if self.prompt else 1)


class _Message(msgspec.Struct, gc=False):
    content: Any = None
    tool_calls: Any = None
    refusal: str | None = None


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    message: _Message | None = None
    delta: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Passage(msgspec.Struct, gc=False):
    passage_id: str = ""
    source: str = ""
    rank: int | None = None
    score: float | None = None


class _Extension(msgspec.Struct, gc=False):
    passages: list[_Passage] = []
    citations: list[str] = []


class _Answer(msgspec.Struct, gc=False):
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: UsageObject | None = None
    tidemill: _Extension | None = None
    error: msgspec.Raw = _NO_RAW


class Heard(msgspec.Struct, gc=False):
    """What an answer said.

    Args:
        text: of the first choice; JSON where it is not plain text.
        usage: what the provider counted.
        error: the answer's own error as JSON; empty without one.
        broken: a part could not be read.
        finished: the answer reached its own end (``[DONE]``, a finish reason, or a whole JSON body).
    """

    text: str = ""
    model: str | None = None
    usage: UsageObject | None = None
    finish_reasons: tuple[str, ...] = ()
    references: tuple[Reference, ...] = ()
    error: bytes = b""
    broken: bool = False
    finished: bool = False


_asked: Final = msgspec.json.Decoder(Asked)
_answer: Final = msgspec.json.Decoder(_Answer)
_events: Final = msgspec.json.Decoder(list[_Answer])
_parts: Final = msgspec.json.Decoder(list[msgspec.Raw])
_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode: Final = msgspec.json.encode


def read_request(body: bytes) -> Asked:
    """Read a request body.

    Raises:
        Refusal: 400 with what is wrong: no JSON object, no model, or a field of the wrong type.
    """
    try:
        return _asked.decode(body)
    except RecursionError:
        raise Refusal(400, "The request body is nested too deeply.", "invalid_json") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if b'"model"' not in body and isinstance(error, msgspec.ValidationError):
            text = "The request names no model. Set 'model' to one of the endpoints that GET /v1/models lists."
            raise Refusal(400, text, "missing_model", param="model") from None
        raise Refusal(400, f"The request body cannot be read: {error}.", "invalid_json") from None


def _prompts(prompt: bytes) -> int:
    """How many prompts a completion's ``prompt`` holds: a text or its tokens are one, a list of either is several."""
    if not bytes(prompt).startswith(b"["):
        return 1
    parts = _parts.decode(prompt)
    return len(parts) if parts and bytes(parts[0])[:1] in {b'"', b"["} else 1


def asked_by_form(request: Request) -> Asked:
    """Read the fields of a form that the gateway needs; its files stay unread.

    Raises:
        Refusal: 400 or 415: no form, a malformed one, or no model.
    """
    from tidemill.gateway.uploads import read_form

    form = read_form(request.content_type, request.body)
    model = form.text("model")
    if model is None:
        text = "The form names no model. Set 'model' to one of the endpoints that GET /v1/models lists."
        raise Refusal(400, text, "missing_model", param="model")
    return Asked(model, (form.text("stream") or "").strip().lower() == "true")


def rewritten_form(request: Request, body: bytes, model: str) -> bytes:
    """A form with another model; all other bytes stay."""
    from tidemill.gateway.uploads import read_form

    return read_form(request.content_type, body).with_text("model", model)


def rewritten(body: bytes, *, model: str | None = None, drop_stream: bool = False) -> bytes:
    """The body with another model, or asked for in one piece; all other fields keep their bytes.

    Args:
        body: a JSON object that ``read_request`` has accepted.
        model: the name to put in, if any.
        drop_stream: ask for a whole answer instead of a stream.
    """
    fields = _fields.decode(body)
    if model is not None:
        fields["model"] = msgspec.Raw(_encode(model))
    if drop_stream:
        fields["stream"] = msgspec.Raw(b"false")
        fields.pop("stream_options", None)
    return _encode(fields)


def with_fields(body: bytes, fields: bytes) -> bytes:
    """The body with further fields at its beginning; nothing else is read or changed.

    Args:
        body: a JSON object with at least one field, which has none of these.
        fields: ``"name":value`` pairs, separated by commas.
    """
    at = body.index(b"{") + 1
    return b"%b%b,%b" % (body[:at], fields, body[at:])


def hear_body(body: bytes) -> Heard:
    """Read a whole JSON answer."""
    try:
        answer = _answer.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Heard(text=body.decode("utf-8", "replace"), broken=True)
    choices = answer.choices
    if choices and len(choices) == 1 and not answer.error:
        message = choices[0].message
        if message is not None and message.tool_calls is None and type(message.content) is str:
            return Heard(  # the common answer, without the detours of the others
                text=message.content,
                model=answer.model,
                usage=answer.usage,
                finish_reasons=(choices[0].finish_reason,) if choices[0].finish_reason else (),
                references=_references(answer.tidemill) if answer.tidemill is not None else (),
                finished=True,
            )
    heard = _gather([answer])
    heard.finished = True
    return heard


def hear_stream(raw: bytes) -> Heard:
    """Read the events of a finished stream.

    The common form, nothing but ``data:`` lines with JSON, is decoded in one call; anything else line by line.
    """
    finished = False
    body = raw.strip()
    if body.endswith(b"data: [DONE]"):
        finished = True
        body = body[:-12].rstrip()
    if not body.startswith(b"data: "):
        return _hear_lines(raw)
    try:
        # Inside JSON a line feed is always escaped, so this separator only occurs between events.
        answers = _events.decode(b"[" + body[6:].replace(b"\n\ndata: ", b",") + b"]")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _hear_lines(raw)
    heard = _gather(answers)
    heard.finished = finished or bool(heard.finish_reasons)
    return heard


def _hear_lines(raw: bytes) -> Heard:
    answers: list[_Answer] = []
    broken = finished = False
    for line in raw.splitlines():
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            finished = True
            continue
        try:
            answers.append(_answer.decode(data))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            broken = True
    heard = _gather(answers)
    heard.broken = broken
    heard.finished = finished or bool(heard.finish_reasons)
    return heard


def _gather(answers: list[_Answer]) -> Heard:
    texts: list[str] = []
    tools: list[Any] = []
    reasons: dict[int, str] = {}
    heard = Heard()
    for answer in answers:
        for choice in answer.choices or ():
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
            if choice.index == 0:
                _say(choice, texts, tools)
        heard.model = answer.model or heard.model
        if answer.usage is not None:
            heard.usage = answer.usage
        if answer.tidemill is not None:
            heard.references = _references(answer.tidemill)
        if answer.error and bytes(answer.error) != b"null":
            heard.error = bytes(answer.error)
    heard.text = "".join(texts)
    if tools:
        heard.text = _encode({"content": heard.text, "tool_calls": tools}).decode()
    heard.finish_reasons = tuple(reasons.values())
    return heard


def _say(choice: _Choice, texts: list[str], tools: list[Any]) -> None:
    message = choice.delta or choice.message
    if message is None:
        if choice.text:
            texts.append(choice.text)
        return
    content = message.content or message.refusal
    if content:
        texts.append(content if isinstance(content, str) else _encode(content).decode())
    if message.tool_calls:
        tools.extend(message.tool_calls if isinstance(message.tool_calls, list) else [message.tool_calls])


def _references(extension: _Extension) -> tuple[Reference, ...]:
    cited = set(extension.citations)
    found: list[Reference] = []
    for passage in extension.passages:
        if not passage.passage_id:
            continue
        found.append(Reference("passage", passage.passage_id, "retrieved", passage.rank, passage.score))
        if passage.source in cited:
            found.append(Reference("passage", passage.passage_id, "cited", passage.rank, passage.score))
    return tuple(found)
