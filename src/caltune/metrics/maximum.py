"""The largest calibration error of any bin."""

from __future__ import annotations

import numpy as np

from caltune.metrics.bootstrap import Statistic, sums_by_bin
from caltune.metrics.ece import Binning, assign_bins
from caltune.types import FloatArray, Predictions


def mce(predictions: Predictions, bins: int = 15, binning: Binning = "width") -> float:
    """Maximum calibration error: the gap of accuracy and confidence in the worst bin; lower is better, in [0, 1].

    MCE = max_m |accuracy_m − confidence_m| over the bins that are not empty. A bin with one answer counts like one with
    a thousand, so it is mostly noise where bins are thin: with equal-width bins prefer it for display. nan for no
    predictions.

    Raises `InputError` for fewer than one bin or an unknown binning.

    Naeini, Cooper, Hauskrecht 2015; Guo, Pleiss, Sun, Weinberger 2017, eq. 5.

    Bins (0.8, 1]: |0.5 − 0.9| = 0.4; (0.2, 0.4]: |1 − 0.4| = 0.6.

    >>> mce(Predictions(ids=("a", "b", "c"), confidence=[0.85, 0.95, 0.4], correct=[1, 0, 1]), bins=5)
    0.6
    """
    index = assign_bins(predictions.confidence, bins, binning)
    if not len(predictions):
        return float("nan")
    gaps = np.bincount(index, predictions.correct - predictions.confidence, bins)
    return float((np.abs(gaps) / np.maximum(np.bincount(index, minlength=bins), 1)).max())


def mce_statistic(predictions: Predictions, bins: int = 15) -> Statistic:
    """`mce` of resampled questions with equal-width bins, for `bootstrap`.

    >>> some = Predictions(ids=("a", "b", "c"), confidence=[0.85, 0.95, 0.4], correct=[1, 0, 1])
    >>> mce_statistic(some, bins=5)(np.array([[1.0, 1.0, 1.0], [3.0, 0.0, 0.0]])).round(4).tolist()
    [0.6, 0.15]
    """
    index = assign_bins(predictions.confidence, bins, "width")
    sums = sums_by_bin(index, bins, np.ones(len(predictions)), predictions.correct - predictions.confidence)

    def statistic(counts: FloatArray) -> FloatArray:
        size, gaps = sums(counts)
        result: FloatArray = (np.abs(gaps) / np.where(size > 0, size, 1.0)).max(axis=1)
        return result

    return statistic
