"""Servers on real sockets that speak the providers' formats and check what they get, as the providers do.

What Bedrock checks is checked by botocore, AWS's own library: the signature, and the body against the service's model.
"""

from __future__ import annotations

import calendar
import json
import re
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import botocore.session
import botocore.validate

AWS = {
    "aws_access_key_id": "AKIDEXAMPLE",
    "aws_secret_access_key": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
    "aws_session_token": "session/token==",
}
REGION = "eu-central-1"
KEY = "key-of-the-target"


class Refused(Exception):
    """The server's answer to a request that is not as it must be."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(status, body)
        self.status, self.body = status, body


@dataclass
class Reply:
    """One scripted answer: a body, or the pieces of a stream."""

    pieces: Sequence[bytes]
    status: int = 200
    content_type: str = "application/json"
    broken_off: bool = False
    """Whether the connection ends before the answer does."""


@dataclass
class Seen:
    """What a server was sent and found to be right."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


@dataclass
class Server:
    url: str
    replies: list[Reply]
    seen: list[Seen] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)


Check = Callable[[BaseHTTPRequestHandler, bytes], None]


@contextmanager
def serving(check: Check, *replies: Reply, base_path: str = "") -> Iterator[Server]:
    """A server that answers the replies in turn, and refuses what its check refuses."""
    server = Server("", list(replies))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            try:
                check(self, body)
            except Refused as refusal:
                server.refused.append(refusal)
                self._send(Reply([json.dumps(refusal.body).encode()], refusal.status))
                return
            server.seen.append(Seen(self.path, dict(self.headers.items()), json.loads(body)))
            self._send(server.replies.pop(0))

        def _send(self, reply: Reply) -> None:
            self.send_response(reply.status)
            self.send_header("content-type", reply.content_type)
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for piece in reply.pieces:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                self.wfile.flush()
            if reply.broken_off:
                self.close_connection = True
            else:
                self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    server.url = f"http://127.0.0.1:{httpd.server_address[1]}{base_path}"
    try:
        yield server
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


# --- Bedrock


def frame(headers: Mapping[str, str], payload: bytes) -> bytes:
    """A message of the AWS event stream with text headers."""
    block = b"".join(
        struct.pack(">B", len(name.encode()))
        + name.encode()
        + struct.pack(">BH", 7, len(value.encode()))
        + value.encode()
        for name, value in headers.items()
    )
    prelude = struct.pack(">II", 16 + len(block) + len(payload), len(block))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + block + payload
    return message + struct.pack(">I", zlib.crc32(message))


def event(kind: str, payload: Mapping[str, Any], message_type: str = "event") -> bytes:
    """An event, or an exception, of ConverseStream."""
    headers = {f":{message_type}-type": kind, ":content-type": "application/json", ":message-type": message_type}
    return frame(headers, json.dumps(payload, ensure_ascii=False).encode())


def bedrock_stream(*events: tuple[str, Mapping[str, Any]], **rest: Any) -> Reply:
    pieces = [event(kind, payload) for kind, payload in events]
    return Reply(pieces, content_type="application/vnd.amazon.eventstream", **rest)


@cache
def _service() -> Any:
    return botocore.session.get_session().get_service_model("bedrock-runtime")


def converse_shape() -> Any:
    return _service().operation_model("Converse").input_shape


def check_converse(model_id: str, body: Mapping[str, Any]) -> None:
    """Hold a body against botocore's model of Converse: unknown names, missing ones, wrong types and lengths."""
    shape = converse_shape()
    report = botocore.validate.ParamValidator().validate({"modelId": model_id, **body}, shape)
    if report.has_errors():
        raise Refused(400, {"message": report.generate_report()})


def check_bedrock(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    found = re.fullmatch(r"/model/([^/]+)/converse(-stream)?", handler.path)
    if found is None:
        raise Refused(404, {"message": f"no such path: {handler.path}"})
    authorization = handler.headers.get("authorization", "")
    if authorization.startswith("Bearer "):
        if authorization != f"Bearer {KEY}":
            raise Refused(403, {"message": "Authentication failed: invalid API Key"})
    else:
        _check_signature(handler, body, authorization)
    check_converse(unquote(found[1]), json.loads(body))


def _check_signature(handler: BaseHTTPRequestHandler, body: bytes, authorization: str) -> None:
    pattern = r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8}/[^,]+), SignedHeaders=([^,]+), Signature=([0-9a-f]{64})"
    found = re.fullmatch(pattern, authorization)
    if found is None:
        raise Refused(403, {"message": "Missing Authentication Token"})
    access_key_id, scope, names, signature = found.groups()
    moment = handler.headers["x-amz-date"]
    if abs(calendar.timegm(time.strptime(moment, "%Y%m%dT%H%M%SZ")) - time.time()) > 300:
        raise Refused(403, {"message": "Signature expired"})
    signed = names.split(";")
    present = {"host", *(name.lower() for name in handler.headers if name.lower().startswith("x-amz-"))}
    if not present <= set(signed) or access_key_id != AWS["aws_access_key_id"]:
        raise Refused(403, {"message": "The security token included in the request is invalid."})
    expected = aws_signature(handler.path, {name: handler.headers[name] for name in signed}, body, scope)
    if signature != expected:
        raise Refused(
            403, {"message": "The request signature we calculated does not match the signature you provided."}
        )


def aws_signature(path: str, headers: Mapping[str, str], body: bytes, scope: str) -> str:
    """The signature as botocore computes it."""
    _, region, service, _ = scope.split("/")
    secrets = botocore.credentials.Credentials(AWS["aws_access_key_id"], AWS["aws_secret_access_key"])
    auth = botocore.auth.SigV4Auth(secrets, service, region)
    url = f"http://{headers['host']}{path}"
    request = botocore.awsrequest.AWSRequest("POST", url, headers=dict(headers), data=body)
    request.context["timestamp"] = headers["x-amz-date"]
    text = auth.string_to_sign(request, auth.canonical_request(request))
    assert scope in text
    return str(auth.signature(text, request))


# --- Gemini

_PART = {
    "text": str,
    "thought": bool,
    "thoughtSignature": str,
    "inlineData": {"mimeType": str, "data": str},
    "fileData": {"mimeType": str, "fileUri": str},
    "functionCall": {"id": str, "name": str, "args": dict},
    "functionResponse": {"id": str, "name": str, "response": dict},
    "mediaResolution": {"level": str},
}
_CONTENT = {"role": str, "parts": [_PART]}
_GENERATE = {
    "contents": [_CONTENT],
    "systemInstruction": _CONTENT,
    "tools": [{"functionDeclarations": [{"name": str, "description": str, "parametersJsonSchema": dict}]}],
    "toolConfig": {"functionCallingConfig": {"mode": str, "allowedFunctionNames": [str]}},
    "safetySettings": [{"category": str, "threshold": str}],
    "cachedContent": str,
    "labels": dict,
    "serviceTier": str,
    "store": bool,
    "generationConfig": {
        "stopSequences": [str],
        "responseMimeType": str,
        "responseJsonSchema": dict,
        "candidateCount": int,
        "maxOutputTokens": int,
        "temperature": (int, float),
        "topP": (int, float),
        "topK": int,
        "seed": int,
        "presencePenalty": (int, float),
        "frequencyPenalty": (int, float),
        "responseLogprobs": bool,
        "logprobs": int,
        "thinkingConfig": {"includeThoughts": bool, "thinkingBudget": int, "thinkingLevel": str},
    },
}
_EMBED = {
    "model": str,
    "content": _CONTENT,
    "taskType": str,
    "title": str,
    "outputDimensionality": int,
}
#: method -> the fields its body may have, with their types
GEMINI_BODIES: Mapping[str, Any] = {
    "generateContent": _GENERATE,
    "streamGenerateContent?alt=sse": _GENERATE,
    "embedContent": _EMBED,
    "batchEmbedContents": {"requests": [_EMBED]},
}


def check_gemini(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    if handler.headers.get("x-goog-api-key") != KEY:
        details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}]
        raise _google(400, "API key not valid. Please pass a valid API key.", "INVALID_ARGUMENT", details)
    found = re.fullmatch(r"/v1beta/models/([a-z0-9.-]+):([a-zA-Z]+(?:\?alt=sse)?)", handler.path)
    if found is None or found[2] not in GEMINI_BODIES:
        raise _google(404, f"no such method: {handler.path}", "NOT_FOUND")
    check_fields(json.loads(body), GEMINI_BODIES[found[2]], "")


def check_fields(value: Any, known: Any, where: str) -> None:
    """Refuse unknown names and wrong types, as Google's servers do."""
    if isinstance(known, dict):
        if not isinstance(value, dict):
            raise _google(400, f"Invalid value at '{where}'", "INVALID_ARGUMENT")
        for name, one in value.items():
            if name not in known:
                message = f"Invalid JSON payload received. Unknown name \"{name}\" at '{where}': Cannot find field."
                raise _google(400, message, "INVALID_ARGUMENT")
            check_fields(one, known[name], f"{where}.{name}")
    elif isinstance(known, list):
        for number, one in enumerate(value):
            check_fields(one, known[0], f"{where}[{number}]")
    elif not isinstance(value, known):
        raise _google(400, f"Invalid value at '{where}'", "INVALID_ARGUMENT")


def _google(status: int, message: str, word: str, details: Sequence[Mapping[str, str]] = ()) -> Refused:
    return Refused(status, {"error": {"code": status, "message": message, "status": word, "details": list(details)}})


def sse(*events: Mapping[str, Any], **rest: Any) -> Reply:
    """A stream of server-sent events without names, as Gemini sends it."""
    pieces = [f"data: {json.dumps(one, ensure_ascii=False)}\r\n\r\n".encode() for one in events]
    return Reply(pieces, content_type="text/event-stream", **rest)


# --- Anthropic and Azure


def check_anthropic(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    request = json.loads(body)
    if handler.headers.get("x-api-key") != KEY:
        raise _anthropic(401, "authentication_error", "invalid x-api-key")
    if handler.path != "/v1/messages" or "anthropic-version" not in handler.headers:
        raise _anthropic(404, "not_found_error", f"no such path: {handler.path}")
    if not isinstance(request.get("max_tokens"), int) or not all(
        message["role"] in ("user", "assistant") for message in request["messages"]
    ):
        raise _anthropic(400, "invalid_request_error", "max_tokens: Field required")


def _anthropic(status: int, kind: str, message: str) -> Refused:
    return Refused(status, {"type": "error", "error": {"type": kind, "message": message}})


def check_azure(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    json.loads(body)
    if handler.headers.get("api-key") != KEY:
        raise Refused(401, {"error": {"code": "401", "message": "Access denied due to invalid subscription key."}})
    if handler.path != "/openai/deployments/chat-1/chat/completions?api-version=2024-10-21":
        raise Refused(404, {"error": {"code": "404", "message": "Resource not found"}})
