"""Maps fitted on some questions that make the probabilities on others better calibrated. numpy only."""

from caltune.recalibrate.ace import AdaptiveEnsemble, fit_adaptive_ensemble
from caltune.recalibrate.balcal import BalCAL, fit_balcal
from caltune.recalibrate.beta import Beta, fit_beta
from caltune.recalibrate.conformal import ConformalCalibration, NumericForecasts, fit_conformal, pool_spread
from caltune.recalibrate.dece import fit_dece_temperature
from caltune.recalibrate.histogram import Histogram, fit_histogram
from caltune.recalibrate.isotonic import Isotonic, fit_isotonic
from caltune.recalibrate.lore import LoRe, fit_lore
from caltune.recalibrate.matrix import Matrix, fit_matrix
from caltune.recalibrate.platt import Platt, fit_platt
from caltune.recalibrate.pool import Pool, fit_pool
from caltune.recalibrate.selective import SelectiveScaling, fit_selective
from caltune.recalibrate.shift import density_ratio, effective_size, fit_weighted_temperature
from caltune.recalibrate.temperature import Temperature, fit_temperature
from caltune.recalibrate.top_label import TopLabel, fit_top_label
from caltune.recalibrate.transcal import estimate_accuracy, fit_transcal
from caltune.recalibrate.umnn import MonotoneNetwork, fit_umnn
from caltune.recalibrate.vector import Vector, fit_vector

__all__ = [
    "AdaptiveEnsemble",
    "BalCAL",
    "Beta",
    "ConformalCalibration",
    "Histogram",
    "Isotonic",
    "LoRe",
    "Matrix",
    "MonotoneNetwork",
    "NumericForecasts",
    "Platt",
    "Pool",
    "SelectiveScaling",
    "Temperature",
    "TopLabel",
    "Vector",
    "density_ratio",
    "effective_size",
    "estimate_accuracy",
    "fit_adaptive_ensemble",
    "fit_balcal",
    "fit_beta",
    "fit_conformal",
    "fit_dece_temperature",
    "fit_histogram",
    "fit_isotonic",
    "fit_lore",
    "fit_matrix",
    "fit_platt",
    "fit_pool",
    "fit_selective",
    "fit_temperature",
    "fit_top_label",
    "fit_transcal",
    "fit_umnn",
    "fit_vector",
    "fit_weighted_temperature",
    "pool_spread",
]
