"""Binned calibration error of confidences, and what chance alone would make of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from caltune.errors import InputError
from caltune.metrics.bootstrap import Statistic, binned_sums, sums_by_bin
from caltune.types import FloatArray, Predictions

Binning = Literal["width", "mass"]
_CHUNK = 100_000  # random numbers held at once while simulating
_PIECE = 2**14  # predictions binned at once: so few stay in the cache


@dataclass(frozen=True, slots=True)
class ReliabilityBins:
    """M confidence bins: `edges` (M+1,), `count` (M,), mean `confidence` (M,) and `accuracy` (M,), nan where empty.

    Bin m holds edges[m] < confidence <= edges[m + 1]; confidence 0 is in the first bin.
    """

    edges: FloatArray
    count: NDArray[np.int64]
    confidence: FloatArray
    accuracy: FloatArray


def width_index(values: FloatArray, bins: int) -> NDArray[np.intp]:
    """The right-closed equal-width bin of each value in [0, 1]: m / bins < value <= (m + 1) / bins, and 0 in the first.

    Exact at the edges, where value * bins alone is not: 0.7 * 10 is 7.000000000000001 in floating point.

    >>> width_index(np.array([0.0, 0.1, 0.3, 0.7, 0.71, 1.0]), 10).tolist()
    [0, 0, 2, 6, 7, 9]
    """
    _require_bins(bins)
    lower = np.arange(bins + 1) / bins
    lower[0] = -1.0  # keeps 0 in the first bin
    index: NDArray[np.intp] = (values * bins).astype(np.intp)
    index -= values <= lower[index]
    return index


def reliability_bins(predictions: Predictions, bins: int = 15, binning: Binning = "width") -> ReliabilityBins:
    """Count, mean confidence and accuracy of answers grouped by confidence; calibrated means the two agree in each bin.

    `binning="width"` cuts [0, 1] into equal widths. `binning="mass"` puts about N / M answers in each bin: upper edge m
    is the smallest confidence that at least m N / M answers do not exceed. Equal confidences are never split: a value
    held by many answers makes one large bin and leaves the bins after it empty.

    Raises `InputError` for fewer than one bin or an unknown binning.

    >>> two = Predictions(ids=("a", "b", "c"), confidence=[0.6, 0.8, 0.3], correct=[1, 0, 0])
    >>> found = reliability_bins(two, bins=2)
    >>> found.count.tolist(), found.confidence.round(2).tolist(), found.accuracy.tolist()
    ([1, 2], [0.3, 0.7], [0.0, 0.5])
    """
    edges, index = _assign(predictions.confidence, bins, binning)
    count = np.bincount(index, minlength=bins)
    size = np.where(count, count, np.nan)
    return ReliabilityBins(
        edges=edges,
        count=count,
        confidence=np.bincount(index, predictions.confidence, bins) / size,
        accuracy=np.bincount(index, predictions.correct, bins) / size,
    )


def ece(predictions: Predictions, bins: int = 15, binning: Binning = "width") -> float:
    """Expected calibration error: how far confidence is from accuracy, averaged over bins; lower is better, in [0, 1].

    ECE = Σ_m (n_m / N) |accuracy_m − confidence_m|, with the bins of `reliability_bins`. nan for no predictions.
    It cannot see errors that cancel inside a bin, nor whether confidence tells right from wrong: a constant confidence
    equal to the accuracy scores 0. Compare it with `noise_floor`, never with 0.

    Raises `InputError` for fewer than one bin or an unknown binning.

    Naeini, Cooper, Hauskrecht 2015; Guo, Pleiss, Sun, Weinberger 2017, eq. 3.

    Two answers in (0.8, 1] with mean confidence 0.9 and accuracy 0.5, one in (0.2, 0.4] at 0.4 and right:
    2/3 · 0.4 + 1/3 · 0.6 = 0.4667.

    >>> some = Predictions(ids=("a", "b", "c"), confidence=[0.85, 0.95, 0.4], correct=[1, 0, 1])
    >>> round(ece(some, bins=5), 4)
    0.4667
    """
    _require_bins(bins)
    if binning != "width":
        gaps = _gaps(_assign(predictions.confidence, bins, binning)[1], predictions, slice(None), bins)
    else:
        gaps = np.zeros(bins)
        for start in range(0, len(predictions), _PIECE):
            piece = slice(start, start + _PIECE)
            gaps += _gaps(width_index(predictions.confidence[piece], bins), predictions, piece, bins)
    return float(np.abs(gaps).sum() / len(predictions)) if len(predictions) else float("nan")


def _gaps(index: NDArray[np.intp], predictions: Predictions, piece: slice, bins: int) -> FloatArray:
    gaps = np.bincount(index, predictions.correct[piece] - predictions.confidence[piece], bins)
    return gaps.astype(np.float64, copy=False)


def ece_statistic(predictions: Predictions, bins: int = 15, binning: Binning = "width") -> Statistic:
    """`ece` of resampled questions, for `bootstrap`; equal-mass bins are cut anew in every resample.

    >>> some = Predictions(ids=("a", "b", "c"), confidence=[0.85, 0.95, 0.4], correct=[1, 0, 1])
    >>> ece_statistic(some, bins=5)(np.array([[1.0, 1.0, 1.0], [2.0, 0.0, 1.0]])).round(4).tolist()
    [0.4667, 0.3]
    """
    total = len(predictions)
    gap = predictions.correct - predictions.confidence
    _, index = _assign(predictions.confidence, bins, binning)
    if binning == "width":
        sums = sums_by_bin(index, bins, gap)
        return lambda counts: np.abs(sums(counts)[0]).sum(axis=1) / total

    order = np.argsort(predictions.confidence, kind="stable")
    gap = gap[order]
    first = first_of_ties(predictions.confidence[order])

    def statistic(counts: FloatArray) -> FloatArray:
        counts = np.take(counts, order, axis=1)
        below = np.cumsum(counts, axis=1) - counts
        # An answer with L answers strictly below it lies above the edges m N / M <= L, hence in bin floor(L M / N).
        # Only an answer that was not drawn can have all N below it.
        resampled = np.minimum((below[:, first] * bins / total).astype(np.intp), bins - 1)
        result: FloatArray = np.abs(binned_sums(resampled, counts * gap, bins)).sum(axis=1) / total
        return result

    return statistic


def noise_floor(
    predictions: Predictions, bins: int = 15, binning: Binning = "width", draws: int = 1000, seed: int = 0
) -> float:
    """The mean ECE that a perfectly calibrated model with these confidences would score by chance; it falls with N.

    Each draw makes every answer right with probability equal to its confidence and takes the ECE of that. An ECE near
    this number shows no miscalibration. nan for no predictions; 0 when every confidence is 0 or 1.

    Raises `InputError` for fewer than one bin, an unknown binning or fewer than one draw.

    One answer at 0.5 is off by 0.5, whether right or wrong:

    >>> noise_floor(Predictions(ids=("a",), confidence=[0.5], correct=[1]))
    0.5
    """
    if not len(predictions):
        return float("nan")
    _, index = _assign(predictions.confidence, bins, binning)
    expected = np.bincount(index, predictions.confidence, bins)
    errors = [
        np.abs(right - expected).sum(axis=1) / len(predictions)
        for right in _calibrated_sums(predictions.confidence, index, bins, draws, seed)
    ]
    return float(np.concatenate(errors).mean())


def chance_band(
    predictions: Predictions,
    bins: int = 15,
    binning: Binning = "width",
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[FloatArray, FloatArray]:
    """Per bin, the accuracies (low (M,), high (M,)) within which a calibrated model falls with probability `level`.

    The number right in a bin of a calibrated model is Poisson-binomial with the confidences in it; its (1 − level) / 2
    quantiles on both sides are taken from `draws` simulations and hold at least `level`. nan where a bin is empty.
    The band is for each bin by itself: of 20 bins of a calibrated model one is expected outside a 95 % band.

    Raises `InputError` for fewer than one bin, an unknown binning, fewer than one draw or a level outside (0, 1).

    >>> sure = Predictions(ids=("a", "b"), confidence=[1.0, 0.5], correct=[1, 1])
    >>> [side.tolist() for side in chance_band(sure, bins=2)]
    [[0.0, 1.0], [1.0, 1.0]]
    """
    if not 0 < level < 1:
        raise InputError(f"level must lie between 0 and 1, got {level}")
    _, index = _assign(predictions.confidence, bins, binning)
    count = np.bincount(index, minlength=bins)
    right = np.concatenate(list(_calibrated_sums(predictions.confidence, index, bins, draws, seed)))
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(right, tails, axis=0, method="inverted_cdf") / np.where(count, count, np.nan)
    return low, high


def first_of_ties(ascending: FloatArray) -> NDArray[np.intp]:
    """For each position of a sorted array, the first position that holds the same value.

    >>> first_of_ties(np.array([0.1, 0.2, 0.2, 0.3])).tolist()
    [0, 1, 1, 3]
    """
    start = np.arange(len(ascending))
    start[1:][ascending[1:] == ascending[:-1]] = 0
    return np.maximum.accumulate(start) if len(start) else start


def assign_bins(confidence: FloatArray, bins: int, binning: Binning) -> NDArray[np.intp]:
    """The bin of each confidence (N,), as in `reliability_bins`: (N,), from 0 to bins − 1.

    Raises `InputError` for fewer than one bin or an unknown binning.

    >>> assign_bins(np.array([0.1, 0.2, 0.9]), 2, "mass").tolist()
    [0, 0, 1]
    """
    return _assign(confidence, bins, binning)[1]


def _assign(confidence: FloatArray, bins: int, binning: Binning) -> tuple[FloatArray, NDArray[np.intp]]:
    _require_bins(bins)
    edges = np.arange(bins + 1) / bins
    if binning == "width":
        return edges, width_index(confidence, bins)
    if binning != "mass":
        raise InputError(f"binning must be 'width' or 'mass', got {binning!r}")
    if len(confidence):
        rank = -(-len(confidence) * np.arange(1, bins) // bins)  # ceil(m N / M) in whole numbers
        edges[1:-1] = np.sort(confidence)[rank - 1]
    return edges, np.searchsorted(edges[1:-1], confidence, side="left")


def _calibrated_sums(
    confidence: FloatArray, index: NDArray[np.intp], bins: int, draws: int, seed: int
) -> Iterator[FloatArray]:
    """How many answers of each bin are right, (some draws, M), when each is right with its own confidence."""
    if draws < 1:
        raise InputError(f"draws must be at least 1, got {draws}")
    generator = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // max(1, len(confidence)))
    for start in range(0, draws, chunk):
        size = (min(chunk, draws - start), len(confidence))
        yield binned_sums(index, (generator.random(size) < confidence).astype(np.float64), bins)


def _require_bins(bins: int) -> None:
    if bins < 1:
        raise InputError(f"bins must be at least 1, got {bins}")
