"""What a text contains, as pure functions from text to ``Verdict``.

A check is written here once and serves cleaning, live traffic and evaluation alike.
"""

from tidemill.checks.credentials import check_secrets, find_secrets
from tidemill.checks.findings import Finding, mask
from tidemill.checks.overlap import NearDuplicate, NearDuplicates, jaccard, overlap, shingles, words
from tidemill.checks.pii import check_pii, find_pii
from tidemill.checks.prescan import may_hold_findings
from tidemill.checks.quality import QualityRules, check_language, check_quality, detect_language

__all__ = [
    "Finding",
    "NearDuplicate",
    "NearDuplicates",
    "QualityRules",
    "check_language",
    "check_pii",
    "check_quality",
    "check_secrets",
    "detect_language",
    "find_pii",
    "find_secrets",
    "jaccard",
    "mask",
    "may_hold_findings",
    "overlap",
    "shingles",
    "words",
]
