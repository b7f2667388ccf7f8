"""Numbers that say how good probabilities are, each with its uncertainty. numpy only."""

from caltune.metrics.answers import (
    ANSWER_DIRECTIONS,
    answer_brier_per_question,
    answer_nll_per_question,
    compare_answers,
    summarise_answers,
)
from caltune.metrics.bootstrap import (
    Interval,
    Statistic,
    basic_interval,
    bca_interval,
    bootstrap,
    jackknife,
    mean_statistic,
    percentile_interval,
)
from caltune.metrics.calibrated import CalibrationTest, calibration_test
from caltune.metrics.classwise import classwise_ece, classwise_ece_statistic
from caltune.metrics.collapse import Collapse, collapse
from caltune.metrics.corrected import corrected_ece
from caltune.metrics.debiased import rms_ece, squared_ece
from caltune.metrics.decomposition import BrierSplit, brier_split
from caltune.metrics.discrimination import auroc, auroc_statistic, risk_coverage
from caltune.metrics.ece import ReliabilityBins, chance_band, ece, ece_statistic, noise_floor, reliability_bins
from caltune.metrics.local import LocalCalibration, local_calibration
from caltune.metrics.maximum import mce, mce_statistic
from caltune.metrics.overconfidence import over_and_under, overconfidence
from caltune.metrics.paired import Comparison, Difference, compare
from caltune.metrics.planning import detectable_difference, discordance_variance, holm, questions_needed
from caltune.metrics.proper import (
    accuracy,
    accuracy_interval,
    brier,
    brier_per_question,
    mean_confidence,
    nll,
    nll_per_question,
)
from caltune.metrics.ranking import Gap, Pair, Ranking, rank, rank_answers
from caltune.metrics.selective import aurc, aurc_statistic, risk_at_coverage
from caltune.metrics.smooth import smooth_ece, smooth_ece_statistic
from caltune.metrics.strata import Stratum, group_calibration, option_calibration, poisson_binomial
from caltune.metrics.summary import DIRECTIONS, Summary, summarise
from caltune.metrics.target import target_calibration_error, target_calibration_error_per_question

__all__ = [
    "ANSWER_DIRECTIONS",
    "DIRECTIONS",
    "BrierSplit",
    "CalibrationTest",
    "Collapse",
    "Comparison",
    "Difference",
    "Gap",
    "Interval",
    "LocalCalibration",
    "Pair",
    "Ranking",
    "ReliabilityBins",
    "Statistic",
    "Stratum",
    "Summary",
    "accuracy",
    "accuracy_interval",
    "answer_brier_per_question",
    "answer_nll_per_question",
    "aurc",
    "aurc_statistic",
    "auroc",
    "auroc_statistic",
    "basic_interval",
    "bca_interval",
    "bootstrap",
    "brier",
    "brier_per_question",
    "brier_split",
    "calibration_test",
    "chance_band",
    "classwise_ece",
    "classwise_ece_statistic",
    "collapse",
    "compare",
    "compare_answers",
    "corrected_ece",
    "detectable_difference",
    "discordance_variance",
    "ece",
    "ece_statistic",
    "group_calibration",
    "holm",
    "jackknife",
    "local_calibration",
    "mce",
    "mce_statistic",
    "mean_confidence",
    "mean_statistic",
    "nll",
    "nll_per_question",
    "noise_floor",
    "option_calibration",
    "over_and_under",
    "overconfidence",
    "percentile_interval",
    "poisson_binomial",
    "questions_needed",
    "rank",
    "rank_answers",
    "reliability_bins",
    "risk_at_coverage",
    "risk_coverage",
    "rms_ece",
    "smooth_ece",
    "smooth_ece_statistic",
    "squared_ece",
    "summarise",
    "summarise_answers",
    "target_calibration_error",
    "target_calibration_error_per_question",
]
