"""Prompts in the ledger: immutable versions under a name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidemill.kernel import ArtifactKind, ArtifactRef, Digest, InvalidInput, RunId, parse_digest
from tidemill.prompts.prompt import Prompt

if TYPE_CHECKING:
    from tidemill.ledger import ArtifactVersion, Ledger


def publish_prompt(ledger: Ledger, prompt: Prompt, *, made_by: RunId | None = None) -> ArtifactVersion:
    """Publish a prompt as the next version of its name.

    A prompt that is published already keeps its version. Labels are moved with ``ledger.artifacts.move_label``.

    Args:
        ledger: where to.
        prompt: the prompt.
        made_by: the run that made it, if one did.
    """
    return ledger.artifacts.publish(ArtifactKind.PROMPT, prompt.name, prompt.as_json(), made_by=made_by)


def load_prompt(ledger: Ledger, ref: ArtifactRef | Digest | str) -> Prompt:
    """Load a prompt by reference (``prompt/answer@production``) or by digest.

    Raises:
        NotFound: there is no such prompt.
        InvalidInput: the reference names something else than a prompt.
    """
    if isinstance(ref, str) and ref.startswith("sha256:"):
        version = ledger.artifacts.by_digest(parse_digest(ref))
    else:
        version = ledger.artifacts.get(ref)
    if version.kind is not ArtifactKind.PROMPT:
        raise InvalidInput(f"'{ref}' is a {version.kind}, not a prompt")
    return Prompt.from_json(version.name, version.content)
