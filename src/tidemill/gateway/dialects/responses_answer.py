"""From a chat's answer to a Response object: output items, status, usage.

Source: OpenAI's API reference, The response object, 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tidemill.gateway.dialects.responses_fields import ENCRYPTED_REASONING
from tidemill.gateway.dialects.responses_items import Item, close_thoughts

#: finish reason of a chat -> why the response is incomplete
_INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}
_CODES: Final = frozenset(
    ("server_error", "rate_limit_exceeded", "invalid_prompt")
)  # a response's error knows few words


def blank_response(request: Mapping[str, Any], response_id: str, created_at: float, *, store: bool) -> dict[str, Any]:
    """The Response object of a request, before there is an answer.

    Args:
        request: the decoded body; what it asked for is told back.
        response_id: its id.
        created_at: seconds since 1970.
        store: whether it will be kept.
    """
    reasoning = request.get("reasoning") or {}
    text = request.get("text") or {}
    conversation = conversation_id(request)
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(created_at),
        "status": "in_progress",
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": request.get("instructions"),
        "max_output_tokens": request.get("max_output_tokens"),
        "max_tool_calls": request.get("max_tool_calls"),
        "metadata": request.get("metadata") or {},
        "model": request.get("model"),
        "output": [],
        "parallel_tool_calls": request.get("parallel_tool_calls") is not False,
        "previous_response_id": request.get("previous_response_id"),
        "conversation": {"id": conversation} if conversation else None,
        "prompt_cache_key": request.get("prompt_cache_key"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "safety_identifier": request.get("safety_identifier"),
        "service_tier": request.get("service_tier") or "auto",
        "store": store,
        "temperature": request.get("temperature"),
        "text": {**text, "format": text.get("format") or {"type": "text"}},
        "tool_choice": request.get("tool_choice") or "auto",
        "tools": request.get("tools") or [],
        "top_logprobs": request.get("top_logprobs") or 0,
        "top_p": request.get("top_p"),
        "truncation": request.get("truncation") or "disabled",
        "usage": None,
        "user": request.get("user"),
    }


def conversation_id(request: Mapping[str, Any]) -> str | None:
    """The conversation a request names, by its id or as an object with one."""
    named = request.get("conversation")
    found = named.get("id") if isinstance(named, dict) else named
    return found if isinstance(found, str) else None


def settle(response: dict[str, Any], finish_reason: str | None, usage: Any, *, now_s: float) -> None:
    """Give a response the status and the usage of an answer that has ended.

    Args:
        response: with its output; the last item of an incomplete response is incomplete too.
        finish_reason: of the chat's first choice.
        usage: of the chat; ``None`` stays unknown.
        now_s: seconds since 1970.
    """
    reason = _INCOMPLETE.get(finish_reason or "")
    if reason is None:
        response["status"] = "completed"
        response["completed_at"] = int(now_s)
    else:
        response["status"] = "incomplete"
        response["incomplete_details"] = {"reason": reason}
        if response["output"]:
            response["output"][-1]["status"] = "incomplete"
    response["usage"] = usage_of(usage)


def fail(response: dict[str, Any], error: Any) -> None:
    """Give a response the status of a stream that broke off."""
    code, message = error_words(error)
    response["status"] = "failed"
    response["error"] = {"code": code if code in _CODES else "server_error", "message": message}


def error_words(error: Any) -> tuple[str | None, str]:
    """Code and message of an OpenAI error object."""
    if not isinstance(error, dict):
        return None, str(error)
    code = error.get("code") or error.get("type")
    return str(code) if code is not None else None, str(error.get("message") or "The answer broke off.")


def usage_of(usage: Any) -> dict[str, Any] | None:
    """A chat's usage in the words of a response."""
    if not isinstance(usage, dict):
        return None
    asked, said = usage.get("prompt_tokens_details") or {}, usage.get("completion_tokens_details") or {}
    prompt, completion = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    return {
        "input_tokens": prompt,
        "input_tokens_details": {
            "cached_tokens": asked.get("cached_tokens") or 0,
            "cache_write_tokens": asked.get("cache_write_tokens") or 0,
        },
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": said.get("reasoning_tokens") or 0},
        "total_tokens": usage.get("total_tokens") or prompt + completion,
    }


def output_items(choice: Mapping[str, Any], stamp: str) -> list[Item]:
    """The output of a whole answer: the thought, the message, the calls.

    Args:
        choice: the chat's first choice.
        stamp: part of the items' ids.
    """
    message = choice.get("message") or {}
    items: list[Item] = []
    thought = message.get("reasoning_content") or message.get("reasoning")
    details = message.get("reasoning_details")
    if thought or details:
        items.append(reasoning_item(f"rs_{stamp}_0", thought if isinstance(thought, str) else "", details))
    content = _content(message, choice.get("logprobs"))
    calls = message.get("tool_calls") or []
    if content or not calls:
        items.append(message_item(f"msg_{stamp}_{len(items)}", content))
    for call in calls:
        items.append(call_item(call, f"{stamp}_{len(items)}"))
    return items


def _content(message: Mapping[str, Any], logprobs: Any) -> list[dict[str, Any]]:
    said = message.get("content")
    parts: list[dict[str, Any]] = []
    if isinstance(said, list):
        said = "".join(str(part.get("text") or "") for part in said if isinstance(part, dict))
    if said:
        parts.append(text_part(str(said), logprobs_of(logprobs), annotations_of(message.get("annotations"))))
    if message.get("refusal"):
        parts.append({"type": "refusal", "refusal": message["refusal"]})
    return parts


def logprobs_of(logprobs: Any) -> list[dict[str, Any]]:
    """A chat's log probabilities; where a chat may say ``null``, a response has an empty list."""
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    return [
        {**token, "bytes": token.get("bytes") or [], "top_logprobs": [_one_of_top(one) for one in _top(token)]}
        for token in tokens or ()
        if isinstance(token, dict)
    ]


def _top(token: Mapping[str, Any]) -> list[Any]:
    top = token.get("top_logprobs")
    return top if isinstance(top, list) else []


def _one_of_top(one: Any) -> Any:
    return {**one, "bytes": one.get("bytes") or []} if isinstance(one, dict) else one


def annotations_of(annotations: Any) -> list[dict[str, Any]]:
    """A chat's annotations, whose fields stand one level deeper than a response's."""
    found = []
    for annotation in annotations if isinstance(annotations, list) else []:
        if isinstance(annotation, dict):
            kind = annotation.get("type")
            inner = annotation.get(kind) if isinstance(kind, str) else None
            found.append({"type": kind, **(inner if isinstance(inner, dict) else annotation)})
    return found


def text_part(text: str, logprobs: list[Any], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    """An ``output_text`` part."""
    return {"type": "output_text", "text": text, "annotations": annotations, "logprobs": logprobs}


def message_item(item_id: str, content: list[dict[str, Any]], status: str = "completed") -> Item:
    """An assistant's message."""
    return {"id": item_id, "type": "message", "role": "assistant", "status": status, "content": content}


def reasoning_item(item_id: str, text: str, details: Any, status: str = "completed") -> Item:
    """A thought: what a reader may see of it, and what goes back to the provider."""
    content = [{"type": "reasoning_text", "text": text}] if text else []
    item: Item = {"id": item_id, "type": "reasoning", "summary": [], "content": content, "status": status}
    if details:
        item["encrypted_content"] = close_thoughts(details)
    return item


def call_item(call: Mapping[str, Any], number: str, status: str = "completed") -> Item:
    """A call of a function or of a custom tool."""
    call_id = call.get("id") or f"call_{number}"
    if call.get("type") == "custom":
        named = call.get("custom") or {}
        said = {"type": "custom_tool_call", "input": named.get("input") or ""}
        return {"id": f"ctc_{number}", **said, "call_id": call_id, "name": named.get("name") or "", "status": status}
    named = call.get("function") or {}
    arguments = named.get("arguments") or ""
    said = {"type": "function_call", "arguments": arguments}
    return {"id": f"fc_{number}", **said, "call_id": call_id, "name": named.get("name") or "", "status": status}


def shown(response: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
    """The response as the client sees it: encrypted reasoning only where it was asked for."""
    if ENCRYPTED_REASONING in (request.get("include") or ()):
        return dict(response)
    output = [
        {name: value for name, value in item.items() if name != "encrypted_content"}
        if item.get("type") == "reasoning"
        else item
        for item in response["output"]
    ]
    return {**response, "output": output}
