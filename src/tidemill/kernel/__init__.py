"""The values everyone exchanges: ids, digests, verdicts, errors, settings, clock, references, routing.

A name enters only if two packages exchange it. No IO but ``settings``, which alone reads the project file and the
environment; import it as ``tidemill.kernel.settings`` so that this package stays light.
"""

from tidemill.kernel.clock import Clock, FakeClock, SystemClock
from tidemill.kernel.digests import (
    Digest,
    canonical_json,
    digest_bytes,
    digest_file,
    digest_json,
    digest_stream,
    parse_digest,
)
from tidemill.kernel.errors import (
    Conflict,
    Fault,
    InvalidInput,
    MissingExtra,
    NotFound,
    SettingsError,
    Unavailable,
    UserError,
)
from tidemill.kernel.ids import (
    ArtifactId,
    CaseId,
    DecisionId,
    RolloutId,
    RowId,
    RunId,
    SessionId,
    SpanId,
    TraceId,
    fresh_id,
    fresh_span_id,
    fresh_trace_id,
)
from tidemill.kernel.refs import ArtifactKind, ArtifactRef, parse_ref
from tidemill.kernel.release import Decoding, ReleaseParts
from tidemill.kernel.routing import ApiKey, Arm, Route, RoutingSnapshot, Target, assign, key_digest
from tidemill.kernel.scope import Scope, check_name
from tidemill.kernel.verdict import Outcome, Verdict

__all__ = [
    "ApiKey",
    "Arm",
    "ArtifactId",
    "ArtifactKind",
    "ArtifactRef",
    "CaseId",
    "Clock",
    "Conflict",
    "DecisionId",
    "Decoding",
    "Digest",
    "FakeClock",
    "Fault",
    "InvalidInput",
    "MissingExtra",
    "NotFound",
    "Outcome",
    "ReleaseParts",
    "RolloutId",
    "Route",
    "RoutingSnapshot",
    "RowId",
    "RunId",
    "Scope",
    "SessionId",
    "SettingsError",
    "SpanId",
    "SystemClock",
    "Target",
    "TraceId",
    "Unavailable",
    "UserError",
    "Verdict",
    "assign",
    "canonical_json",
    "check_name",
    "digest_bytes",
    "digest_file",
    "digest_json",
    "digest_stream",
    "fresh_id",
    "fresh_span_id",
    "fresh_trace_id",
    "key_digest",
    "parse_digest",
    "parse_ref",
]
