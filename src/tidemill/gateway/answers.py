"""Bytes of the gateway's own answers: status lines, and errors in the shape OpenAI's clients know."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

import msgspec

_STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}

# The `type` OpenAI gives errors of a status; clients choose their exception class by the status itself.
_TYPES: Final[dict[int, str]] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class Refusal(Exception):
    """A request that the gateway answers itself, with an error.

    Args:
        status: HTTP status.
        message: what is wrong, where, and how to mend it.
        code: short machine-readable word, as in OpenAI's errors.
        param: the request field that is at fault.
        close: whether the connection must end, because what follows on it cannot be trusted.
        retry_after_s: when to try again; the ``retry-after`` header says it in whole seconds.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        param: str | None = None,
        close: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.close = close
        self.retry_after_s = retry_after_s

    def body(self) -> bytes:
        """The error as OpenAI's JSON object."""
        return error_body(self.status, self.message, self.code, self.param)


def error_body(status: int, message: str, code: str | None = None, param: str | None = None) -> bytes:
    """Write ``{"error": {message, type, param, code}}``."""
    kind = _TYPES.get(status) or ("invalid_request_error" if status < 500 else "server_error")
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def status_line(status: int) -> bytes:
    """The first line of an HTTP/1.1 answer, with its line end."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d Status\r\n" % status


def full_answer(
    status: int,
    body: bytes,
    *,
    content_type: bytes = b"application/json",
    headers: bytes = b"",
    keep_alive: bool = True,
) -> bytes:
    """A whole answer with its length.

    Args:
        status: HTTP status.
        body: the bytes after the head.
        content_type: media type of ``body``.
        headers: further header lines, each with its line end.
        keep_alive: ``False`` announces that the connection ends.
    """
    return b"%bcontent-type: %b\r\ncontent-length: %d\r\n%b%b\r\n%b" % (
        status_line(status),
        content_type,
        len(body),
        headers,
        b"" if keep_alive else b"connection: close\r\n",
        body,
    )
