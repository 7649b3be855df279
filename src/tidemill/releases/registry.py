"""Releases as artifacts, and which one an endpoint serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tidemill.kernel import ArtifactKind, ReleaseParts, RunId, Verdict
from tidemill.ledger import ArtifactVersion

if TYPE_CHECKING:
    from tidemill.ledger import Ledger

PRODUCTION: Final = "production"


def create_release(
    ledger: Ledger, name: str, parts: ReleaseParts, *, made_by: RunId | None = None, note: str = ""
) -> ArtifactVersion:
    """Make a release of exact parts. The same parts under the same name are the same version.

    Args:
        ledger: where it is kept.
        name: the release's name, usually the application's.
        parts: what answers requests, each by digest.
        made_by: the run that made it.
        note: why it was made; kept as a decision on the version.

    Returns:
        The artifact of kind ``release``; its ``digest`` is the digest that spans and rollouts carry.

    Raises:
        NotFound: a part is not in the ledger.
        InvalidInput: a name that cannot name an artifact.
    """
    digests = parts.artifacts().values()
    for digest in digests:
        ledger.artifacts.by_digest(digest)
    version = ledger.artifacts.publish(ArtifactKind.RELEASE, name, parts.as_json(), made_by=made_by, parents=digests)
    if note:
        noted = [decision.verdict.reason for decision in ledger.decisions.list(subject=str(version.ref))]
        if note not in noted:
            ledger.decisions.record("release.note", str(version.ref), Verdict("note", note), actor=made_by or "release")
    return version


def live_release(ledger: Ledger, endpoint: str) -> ArtifactVersion | None:
    """The release an endpoint serves: what ``endpoint/NAME@production`` names; ``None`` before the first."""
    current = ledger.artifacts.labels(ArtifactKind.ENDPOINT, endpoint).get(PRODUCTION)
    if current is None:
        return None
    content = ledger.artifacts.get(f"endpoint/{endpoint}@{current}").content
    return ledger.artifacts.get(content["release_ref"])
