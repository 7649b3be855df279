"""What was made, from what, by which run, who decided; and the rows of data set versions.

The values are light to import; what opens a database is loaded when first named.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from tidemill.ledger.records import (
    UNCHECKED,
    ApiKeyRecord,
    ArtifactVersion,
    AuditEntry,
    AuditHead,
    AuditReport,
    Decision,
    KeyTerms,
    Lease,
    LineageGraph,
    LineageNode,
    MetricPoint,
    Observation,
    Run,
    RunStatus,
    S3Options,
    Unchecked,
    artifact_digest,
)

if TYPE_CHECKING:
    from tidemill.ledger.backups import BackupReport, RestoreReport, backup, restore
    from tidemill.ledger.blobs import Blobs
    from tidemill.ledger.dataset_files import Row
    from tidemill.ledger.datasets import Datasets
    from tidemill.ledger.garbage import GarbageReport, collect_garbage
    from tidemill.ledger.health import Finding, doctor
    from tidemill.ledger.ledger import Ledger, open_ledger
    from tidemill.ledger.schema import downgrade, upgrade

_LATER: Final = {
    "BackupReport": "backups",
    "Blobs": "blobs",
    "Datasets": "datasets",
    "Finding": "health",
    "GarbageReport": "garbage",
    "RestoreReport": "backups",
    "Row": "dataset_files",
    "backup": "backups",
    "collect_garbage": "garbage",
    "doctor": "health",
    "restore": "backups",
    "Ledger": "ledger",
    "open_ledger": "ledger",
    "upgrade": "schema",
    "downgrade": "schema",
}

__all__ = [
    "UNCHECKED",
    "ApiKeyRecord",
    "ArtifactVersion",
    "AuditEntry",
    "AuditHead",
    "AuditReport",
    "BackupReport",
    "Blobs",
    "Datasets",
    "Decision",
    "Finding",
    "GarbageReport",
    "KeyTerms",
    "Lease",
    "Ledger",
    "LineageGraph",
    "LineageNode",
    "MetricPoint",
    "Observation",
    "RestoreReport",
    "Row",
    "Run",
    "RunStatus",
    "S3Options",
    "Unchecked",
    "artifact_digest",
    "backup",
    "collect_garbage",
    "doctor",
    "downgrade",
    "open_ledger",
    "restore",
    "upgrade",
]


def __getattr__(name: str) -> Any:
    """Load what needs a database library when it is first named."""
    if name not in _LATER:
        raise AttributeError(f"module 'tidemill.ledger' has no attribute '{name}'")
    return getattr(import_module(f"tidemill.ledger.{_LATER[name]}"), name)
