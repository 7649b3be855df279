"""What may be concluded from data, and with which error rate. Pure functions and small additive states.

Everything that may be looked at continuously (canaries, shadows, monitors) rests on betting: an e-value is the wealth
of a bettor who cannot grow rich in expectation while the null hypothesis holds, so wealth 20 refutes it at error rate
1/20, whenever one happens to look. Everything that is looked at once (evaluation gates) rests on paired tests that
hold for every sample size. What a judge says is corrected by people's labels before anything is concluded from it.
"""

from tidemill.evidence.agreement import Agreement, cohen_kappa, krippendorff_alpha
from tidemill.evidence.betting import LAMBDAS, BlockBetting, EProcess, average_e, merge
from tidemill.evidence.burn import ODDS_MULTIPLES, BurnDetector
from tidemill.evidence.detector import RateDetector
from tidemill.evidence.intervals import Interval, confidence_sequence, mean_interval, wilson_interval
from tidemill.evidence.judge import (
    JudgeCalibration,
    JudgedMean,
    JudgedShare,
    prediction_powered_mean,
    rogan_gladen,
)
from tidemill.evidence.judge_bets import JudgedProcess
from tidemill.evidence.multiplicity import benjamini_hochberg, e_bh, holm
from tidemill.evidence.paired import (
    compare_paired,
    mcnemar_exact,
    minimal_detectable_effect,
    paired_bootstrap,
    paired_permutation,
    sign_test,
)
from tidemill.evidence.planning import (
    design_effect,
    paired_power,
    required_pairs,
    required_pairs_mean,
    required_per_arm,
    required_per_arm_mean,
    sign_test_power,
    unpaired_power,
)
from tidemill.evidence.quantiles import quantile_interval, quantile_sequence
from tidemill.evidence.ratio import RatioGuard

__all__ = [
    "LAMBDAS",
    "ODDS_MULTIPLES",
    "Agreement",
    "BlockBetting",
    "BurnDetector",
    "EProcess",
    "Interval",
    "JudgeCalibration",
    "JudgedMean",
    "JudgedProcess",
    "JudgedShare",
    "RateDetector",
    "RatioGuard",
    "average_e",
    "benjamini_hochberg",
    "cohen_kappa",
    "compare_paired",
    "confidence_sequence",
    "design_effect",
    "e_bh",
    "holm",
    "krippendorff_alpha",
    "mcnemar_exact",
    "mean_interval",
    "merge",
    "minimal_detectable_effect",
    "paired_bootstrap",
    "paired_permutation",
    "paired_power",
    "prediction_powered_mean",
    "quantile_interval",
    "quantile_sequence",
    "required_pairs",
    "required_pairs_mean",
    "required_per_arm",
    "required_per_arm_mean",
    "rogan_gladen",
    "sign_test",
    "sign_test_power",
    "unpaired_power",
    "wilson_interval",
]
