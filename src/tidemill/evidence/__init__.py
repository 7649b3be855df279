"""What may be concluded from data, and with which error rate. Pure functions and small additive states.

Everything that may be looked at continuously (canaries, shadows, monitors) rests on betting: an e-value is the wealth
of a bettor who cannot grow rich in expectation while the null hypothesis holds, so wealth 20 refutes it at error rate
1/20, whenever one happens to look. Everything that is looked at once (evaluation gates) rests on paired tests that
hold for every sample size.
"""

from tidemill.evidence.betting import LAMBDAS, BlockBetting, EProcess, average_e, merge
from tidemill.evidence.burn import ODDS_MULTIPLES, BurnDetector
from tidemill.evidence.detector import RateDetector
from tidemill.evidence.intervals import Interval, confidence_sequence, mean_interval, wilson_interval
from tidemill.evidence.paired import (
    compare_paired,
    mcnemar_exact,
    minimal_detectable_effect,
    paired_bootstrap,
    paired_permutation,
    sign_test,
)
from tidemill.evidence.ratio import RatioGuard

__all__ = [
    "LAMBDAS",
    "ODDS_MULTIPLES",
    "BlockBetting",
    "BurnDetector",
    "EProcess",
    "Interval",
    "RateDetector",
    "RatioGuard",
    "average_e",
    "compare_paired",
    "confidence_sequence",
    "mcnemar_exact",
    "mean_interval",
    "merge",
    "minimal_detectable_effect",
    "paired_bootstrap",
    "paired_permutation",
    "sign_test",
    "wilson_interval",
]
