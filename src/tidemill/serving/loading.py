"""A release out of the ledger: its parts loaded and fitted together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidemill.kernel import ArtifactKind, Digest, InvalidInput, NotFound, ReleaseParts
from tidemill.prompts import load_prompt
from tidemill.retrieval import load_index
from tidemill.serving.application import LoadedRelease

if TYPE_CHECKING:
    from tidemill.ledger import ArtifactVersion, Ledger


def load_release(ledger: Ledger, digest: Digest) -> LoadedRelease:
    """Load the release with a digest: that of the release artifact, or that of its parts.

    Args:
        ledger: where it lies.
        digest: how it is called in answers and traces from here on.

    Raises:
        NotFound: there is no such release, or a part of it is gone.
        InvalidInput: its parts do not fit together.
    """
    parts = ReleaseParts.from_json(_version(ledger, digest).content)
    prompt = None if parts.prompt is None else load_prompt(ledger, parts.prompt)
    index = None if parts.index is None else load_index(ledger, ledger.artifacts.by_digest(parts.index))
    return LoadedRelease(digest=digest, parts=parts, prompt=prompt, index=index)


def _version(ledger: Ledger, digest: Digest) -> ArtifactVersion:
    try:
        version = ledger.artifacts.by_digest(digest)
    except NotFound:
        for newest in ledger.artifacts.list(ArtifactKind.RELEASE):
            for version in ledger.artifacts.versions(ArtifactKind.RELEASE, newest.name):
                if ReleaseParts.from_json(version.content).digest == digest:
                    return version
        raise
    if version.kind is not ArtifactKind.RELEASE:
        raise InvalidInput(f"{version.ref} is a {version.kind}, not a release")
    return version
