"""Writes docs/reference/providers.md from the tables of fields of the provider dialects. Run: make docs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tidemill.models.providers.fields import FieldTable

HEAD = """# Providers

Generated from the tables of `tidemill.models.providers` by `make docs`.

A target names the dialect of its provider. Requests, answers, errors and streams are translated between OpenAI's chat
format and the provider's; evaluation and judges use the same translation as the gateway.

| dialect | speaks | operations | base URL, for example |
|---|---|---|---|
| `openai` | any server with OpenAI's API; bytes pass unchanged | all | `https://api.openai.com/v1` |
| `azure` | Azure OpenAI | all but moderation | `https://NAME.openai.azure.com` |
| `anthropic` | Anthropic's Messages API | chat, counting tokens | `https://api.anthropic.com/v1` |
| `gemini` | Google's Gemini API | chat, embeddings | `https://generativelanguage.googleapis.com/v1beta` |
| `bedrock` | Amazon Bedrock's Converse | chat | `https://bedrock-runtime.REGION.amazonaws.com` |
| `mistral` | Mistral's API | chat, embeddings | `https://api.mistral.ai/v1` |
| `ollama` | Ollama's `/v1` | chat, completions, embeddings, responses | `http://127.0.0.1:11434/v1` |
| `vllm` | vLLM's server | chat, completions, embeddings, responses, transcription | `http://127.0.0.1:8000/v1` |

## What happens to a field

- A field with a place at the provider is put there. A field without one is an error of status 400 with the code
  `unsupported_field` that names it. Nothing is dropped in silence.
- A field that is `null`, or has the value that asks for nothing (`n: 1`, `logprobs: false`, `tool_choice: "auto"`),
  counts as left out.
- A field that OpenAI does not know is passed on by `openai`, `azure`, `mistral`, `ollama` and `vllm`, whose servers may
  know it, and refused by the dialects that translate, unless their table lists it.
- `user` is the gateway's own as well (sessions, traces): where a provider has no place for it, it is not sent.
- The option `leave_out` of a target lists fields that you choose not to send there, with their path inside others:
  `leave_out: "temperature, messages.name"`.

## Options of a target

They stand in the project file under `models.NAME.options`, as texts.

| dialect | option | meaning |
|---|---|---|
| all | `leave_out` | fields not to send, by commas; at `anthropic`, `gemini` and `bedrock` also those inside others, with their path |
| all | `tls_ca` | file with the certificates that the server's may be signed by, in place of the system's |
| all | `tls_certificate`, `tls_key` | files with the certificate, and its key, that the gateway shows to the server |
| `openai` | `stream_usage` | `off`: a stream's usage is not asked for where the client did not; tokens are then counted here |
| `azure` | `api_version` | a dated version, e.g. `2024-10-21`; without it the base URL ends in `/openai/v1` |
| `azure` | `deployment` | the deployment's name; the target's model when left out |
| `azure` | `auth` | `api-key` (default) or `bearer`, for a token of Entra ID |
| `anthropic` | `max_tokens` | where the request names none; 4096 when left out |
| `anthropic` | `thinking` | `adaptive` (default), or `budget` for models that take a number of thinking tokens |
| `anthropic` | `api_version`, `beta` | the headers `anthropic-version` (2023-06-01) and `anthropic-beta` |
| `bedrock` | `region` | where the host does not tell it |

The files of `tls_…` are whole paths, in PEM, readable by the gateway's workers; the key may stand in the certificate's
file. A file that is replaced holds for the next connection.

A target that needs several of them:

<!-- file: tidemill.yaml -->
```yaml
project: desk
models:
  inside:
    url: https://models.example.internal/v1
    options:
      tls_ca: /etc/desk/ca.pem
      tls_certificate: /etc/desk/gateway.pem
      tls_key: /etc/desk/gateway.key
      stream_usage: "off"
      leave_out: "user, seed"
releases:
  desk:
    model: inside
endpoints:
  helpdesk:
    release: desk
```

```python
from pathlib import Path

from tidemill.kernel.settings import load_settings

options = load_settings(Path()).models["inside"].options
assert options["stream_usage"] == "off" and options["leave_out"] == "user, seed"
```

## Messages

| in OpenAI's format | `anthropic` | `mistral` |
|---|---|---|
| system and developer messages | joined into `system`, in order | `system` messages |
| text | text block | as it is |
| image as a data URL | base64 image: JPEG, PNG, GIF, WebP | as it is |
| image as another URL | URL image | as it is |
| file as a data URL | document block, PDF only | as it is |
| `tool_calls` | `tool_use` blocks; in an id, letters the API does not allow become `_` | as they are |
| tool messages | `tool_result` blocks; neighbours become one user turn | as they are |
| `reasoning_details` | `thinking` and `redacted_thinking` blocks, unchanged | `thinking` chunks |
| `prompt_cache_breakpoint` of a part | `cache_control`; `ttl` `30m` is `1h` | passed on |
| `name` of a message, audio | refused | passed on |

| in OpenAI's format | `gemini` | `bedrock` |
|---|---|---|
| system and developer messages | joined into `systemInstruction` | joined into `system` |
| text | `text` part | `text` block |
| image as a data URL | `inlineData` | `image` block: PNG, JPEG, GIF, WebP |
| image as another URL | `fileData` | `s3://` only |
| file as a data URL, audio | `inlineData` | `document` block, `audio` block |
| `tool_calls` | `functionCall` parts | `toolUse` blocks |
| tool messages | `functionResponse` parts of one content | `toolResult` blocks of one user turn |
| `reasoning_details` | refused | `reasoningContent` blocks, unchanged |
| `prompt_cache_breakpoint` of a part | refused | `cachePoint` block; `ttl` `30m` is `1h` |
| `name` of a message | refused | refused |

Gemini's thought signatures stand in `extra_content.google.thought_signature` of a tool call or message, as in Google's
own OpenAI layer. A tool call without one, as after a failover, goes to Gemini 3 with the mark Google has for it.

Reasoning that the provider shows comes back as `reasoning_content`, and what must be sent back unchanged (text with its
signature, or sealed data) as `reasoning_details`. A dialect takes back only reasoning of its own provider.

## Ends, usage and errors

| Anthropic's `stop_reason` | `finish_reason` |
|---|---|
| `end_turn`, `stop_sequence`, `pause_turn` | `stop` |
| `max_tokens`, `model_context_window_exceeded` | `length` |
| `tool_use` | `tool_calls` |
| `refusal` | `content_filter`, with `message.refusal` |

Tokens read from the provider's cache stand in `usage.prompt_tokens_details.cached_tokens`, tokens written to it in
`cache_write_tokens`, hidden reasoning in `completion_tokens_details.reasoning_tokens`; `prompt_tokens` counts all of
the input. A stream tells its usage in an event of its own when the request asked for it
(`stream_options.include_usage`), else on the chunk with the finish reason. A stream that ends before the provider's own
last event never gets `[DONE]`.

Errors keep the provider's message and status, in OpenAI's shape; its own error word stands in `code`. Two statuses
change: Anthropic's 529 (overloaded) becomes 503, Mistral's 422 becomes 400.

## Clients of the Messages API

`POST /v1/messages` takes Anthropic's format and works with every dialect. What changes on the way:

- `thinking` becomes `reasoning_effort` (`adaptive`: `high` unless `output_config.effort` says another; a budget: by its
  share of `max_tokens`; `disabled`: `none`); `display: omitted` is honoured in the answer.
- `cache_control` becomes `prompt_cache_breakpoint`; one on a tool or a tool call moves to the next part of the prompt.
- A result with `is_error` begins with the word `Error`.
- The headers `anthropic-version` and `anthropic-beta` are not passed on: a target's options say them.
- Tools that Anthropic runs itself, files by id, and citations are refused by name. Unknown fields are passed on.

## Fields of a chat request
"""


def provider_pages(docs: Path) -> dict[Path, str]:
    """The page with its text."""
    from tidemill.models.providers import anthropic, azure, bedrock, compatible, gemini, mistral
    from tidemill.models.providers.fields import CHAT_FIELDS

    translating = [anthropic.FIELDS, gemini.FIELDS, bedrock.FIELDS]
    close = [azure.FIELDS, mistral.FIELDS, compatible.OLLAMA_FIELDS, compatible.VLLM_FIELDS]
    lines = [HEAD, "| field | `anthropic` | `gemini` | `bedrock` |", "|---|---|---|---|"]
    own = sorted({name for table in translating for name in table.served} - set(CHAT_FIELDS))
    lines += [_row(name, [_cell(table, name) for table in translating]) for name in (*CHAT_FIELDS, *own)]
    lines += ["", "Servers close to OpenAI's; fields that are not listed are passed on by all of them:", ""]
    lines += ["| field | `azure` | `mistral` | `ollama` | `vllm` |", "|---|---|---|---|---|"]
    for name in CHAT_FIELDS:
        cells = [_cell(table, name) for table in close]
        if name != "model" and set(cells) != {"passed on"}:
            lines.append(_row(name, cells))
    return {docs / "reference" / "providers.md": "\n".join(lines) + "\n"}


def _row(name: str, cells: list[str]) -> str:
    return f"| `{name}` | " + " | ".join(cells) + " |"


def _cell(table: FieldTable, name: str) -> str:
    return table.served.get(name) or "refused: " + table.refused.get(name, "not known there")
