"""The example project that ``tidemill init`` writes: a help desk over a folder of documents."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tidemill.kernel import Conflict, check_name
from tidemill.kernel.settings import PROJECT_FILE

_PROJECT: Final = """\
# A Tidemill project. Every key is described by: tidemill settings
# Any key can be overridden by the environment: TIDEMILL_GATEWAY__PORT=9000
version: 1
project: {name}

# tidemill data build {name}
datasets:
  {name}:
    source: folder      # or 'python' for Python's own language reference
    path: documents

# tidemill index build {name}
indexes:
  {name}:
    dataset: {name}
    mode: hybrid        # bm25, dense or hybrid
    passage_tokens: 120

prompts:
  answer:
    messages:
      - role: system
        content: Answer the question from the context in one short sentence.
      - role: user
        content: |-
          Context: {{{{context}}}}
          Question: {{{{question}}}}
    no_answer: I do not know.

# tidemill release create {name}
releases:
  {name}:
    model: smollm2-135m-instruct
    prompt: answer
    index: {name}
    decoding: {{max_tokens: 32}}
    retrieval: {{top_k: 1}}

# What clients call: model="{name}" at http://127.0.0.1:8410/v1
endpoints:
  {name}:
    release: {name}
    rollout:
      canary_share: 0.5
      min_sessions: 20

monitors:
  {name}-errors:
    endpoint: {name}
    signal: errors
    objective: 0.99
"""

_DOCUMENTS: Final = {
    "opening-hours.md": """\
# Opening hours

The workshop is open from Tuesday to Saturday, nine in the morning to six in the evening. On Mondays and on public
holidays it is closed. In August it closes at four.
""",
    "repairs.md": """\
# Repairs

A flat tyre is mended while you wait and costs 12 euros. A brake service takes two days and costs 45 euros. For an
electric bicycle bring the key of the battery; without it the battery cannot be taken out.
""",
    "returns.md": """\
# Returns

New goods can be returned within 30 days with the receipt. Used goods cannot be returned but carry a warranty of one
year on the frame. Helmets that were worn are not taken back.
""",
}


def write_example(folder: Path, name: str) -> list[Path]:
    """Write a project file and three documents.

    Args:
        folder: where; made when missing.
        name: name of the project and of what is in it.

    Raises:
        InvalidInput: the name cannot name a project.
        Conflict: there is a project file already; nothing was written.
    """
    check_name(name, "project")
    file = folder / PROJECT_FILE
    if file.exists():
        raise Conflict(f"There is a project file already: {file}.", hint="Use another folder: tidemill init FOLDER")
    documents = folder / "documents"
    documents.mkdir(parents=True, exist_ok=True)
    written = []
    for title, text in _DOCUMENTS.items():
        if not (documents / title).exists():
            (documents / title).write_text(text, encoding="utf-8")
            written.append(documents / title)
    file.write_text(_PROJECT.format(name=name), encoding="utf-8")
    return [file, *written]
