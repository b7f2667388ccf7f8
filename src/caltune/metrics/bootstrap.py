"""Resampling of questions, or of groups of them, and the intervals it gives."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from caltune.errors import InputError
from caltune.metrics.resamples import resamples
from caltune.types import FloatArray

# How often each of N questions occurs in each of D resamples, (D, N), to D values, or (D, metrics).
Statistic = Callable[[FloatArray], FloatArray]
_CHUNK = 100_000  # weights held at once: as many as a cache holds
_FEW_BINS = 32  # a product for each is faster than one sum over all, up to so many
_MOST_WORK = 10**8  # questions × resamples that are drawn without being asked for


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with the ends of its interval; all three are nan where the value is undefined."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        """A plain dict; a number that is not finite becomes None, since JSON has no word for it.

        >>> Interval(0.5, 0.25, float("nan")).to_json()
        {'value': 0.5, 'low': 0.25, 'high': None}
        """
        return {name: finite_or_none(getattr(self, name)) for name in ("value", "low", "high")}


def bootstrap(
    statistic: Statistic, size: int, *, draws: int = 1000, seed: int = 0, groups: Sequence[str] | None = None
) -> FloatArray:
    """The statistic in `draws` resamples of `size` questions with replacement: (draws,), or (draws, metrics).

    The same `size`, `draws` and `seed` give the same resamples whatever the statistic, which makes comparisons paired.
    Time and memory grow with draws × size; memory is bounded by working in chunks.

    Questions that come in groups (one passage, one subject) and whose answers go wrong together need `groups` (N,):
    whole groups are drawn, and the weights of a resample scaled to the sum N. Intervals are then for new groups, mostly
    wider, and want some 30 groups or more. Davison and Hinkley 1997, section 3.8.

    Raises `InputError` for no questions, fewer than one draw, fewer than two groups or `groups` of another length.

    A single question can only be resampled as itself; of two groups, one alone or both:

    >>> bootstrap(lambda counts: counts @ np.array([0.7]), 1, draws=3).tolist()
    [0.7, 0.7, 0.7]
    >>> means = bootstrap(mean_statistic(np.array([1.0, 1.0, 4.0])), 3, draws=50, groups=["a", "a", "b"])
    >>> sorted(set(means.tolist()))
    [1.0, 2.0, 4.0]
    """
    if groups is None:
        return np.concatenate([statistic(counts) for counts in resamples(size, draws, seed)])
    if len(groups) != size:
        raise InputError(f"groups must name one group a question, got {len(groups)} for {size} questions")
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        raise InputError(f"resampling groups needs at least two, got {len(names)}")
    held = np.bincount(group)
    chunk = max(1, _CHUNK // size)
    return np.concatenate(
        [
            statistic(drawn[rows][:, group] * (size / (drawn[rows] @ held))[:, None])
            for drawn in resamples(len(names), draws, seed)
            for rows in (slice(start, start + chunk) for start in range(0, len(drawn), chunk))
        ]
    )


def default_draws(size: int) -> int:
    """How many resamples of so many questions: 1,000, and from 100,000 questions on fewer, 200 at the least.

    The end of an interval from 200 is off by a tenth of its length or so, which is little where the interval is short.

    >>> default_draws(2000), default_draws(200_000)
    (1000, 500)
    """
    return max(200, min(1000, _MOST_WORK // max(size, 1)))


def percentile_interval(value: float, replicates: FloatArray, level: float = 0.95) -> Interval:
    """The interval between the (1 − level) / 2 and (1 + level) / 2 quantiles of the `replicates` (D,) of a `value`.

    nan replicates (a resample with nothing wrong has no AUROC) are left out; a nan value keeps a nan interval.
    For calibration errors use `basic_interval`. Efron and Tibshirani 1993, chapter 13.

    >>> percentile_interval(2.0, np.array([1.0, 2.0, 3.0, np.nan]), level=0.5)
    Interval(value=2.0, low=1.5, high=2.5)
    """
    defined = replicates[~np.isnan(replicates)]
    if math.isnan(value) or not len(defined):
        return Interval(value, math.nan, math.nan)
    if np.isinf(defined).any():  # interpolating between infinities gives nan
        low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    else:
        low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def basic_interval(value: float, replicates: FloatArray, level: float = 0.95) -> Interval:
    """The interval of a calibration error, a number that chance pushes up from a floor of 0.

    [2 v − q_high, 2 v − q_low] for the quantiles q of `percentile_interval`, cut at 0 and widened to hold v.
    Noise adds to an ECE, and resampling adds it once more. Where a model was calibrated or nearly so, percentile
    intervals held the true ECE in 0 to 41 % of simulations and sometimes not even the value; these in 56 to 91 %. One
    that excludes 0 is still no proof: compare with the noise floor. Davison and Hinkley 1997, section 5.2.

    >>> basic_interval(2.0, np.array([2.0, 3.0, 4.0]), level=0.5)
    Interval(value=2.0, low=0.5, high=2.0)
    """
    around = percentile_interval(value, replicates, level)
    if math.isnan(around.low):
        return around
    return Interval(value, max(0.0, 2 * value - around.high), max(value, 2 * value - around.low))


def jackknife(statistic: Statistic, size: int) -> FloatArray:
    """The statistic without question i, for each i: (N,), or (N, metrics).

    The others get the weight N / (N − 1), as statistics expect weights that sum to N. Time grows with N².

    Raises `InputError` for fewer than two questions.

    >>> jackknife(mean_statistic(np.array([1.0, 2.0, 6.0])), 3).tolist()
    [4.0, 3.5, 1.5]
    """
    if size < 2:
        raise InputError(f"the jackknife needs at least two questions, got {size}")
    chunk = max(1, _CHUNK // size)
    parts = []
    for start in range(0, size, chunk):
        rows = np.arange(start, min(start + chunk, size))
        weights = np.full((len(rows), size), size / (size - 1))
        weights[np.arange(len(rows)), rows] = 0.0
        parts.append(statistic(weights))
    return np.concatenate(parts)


def bca_interval(value: float, replicates: FloatArray, jackknifed: FloatArray, level: float = 0.95) -> Interval:
    """`percentile_interval` at quantiles moved for bias and skew; needs the `jackknife` (N,) of the same statistic.

    Ends at Φ(z₀ + (z₀ + z) / (1 − a (z₀ + z))), z = Φ⁻¹((1 ∓ level) / 2), where z₀ = Φ⁻¹(share of replicates below the
    value, ties half) and a = Σ d³ / (6 (Σ d²)^1.5), d = mean(jackknifed) − jackknifed. Good for means, proper scores
    and AUROC, above all in small or skewed data. Not for calibration errors: chance and resampling both add to those,
    so z₀ runs away. Where all replicates lie on one side of the value z₀ is held at half a draw. nan replicates are
    left out; nan where the value is nan, without replicates, or where the jackknife is not finite.

    Efron 1987, section 6; Efron and Tibshirani 1993, section 14.3.

    A symmetric case moves nothing:

    >>> bca_interval(2.0, np.array([1.0, 2.0, 3.0]), np.array([1.5, 2.5]), level=0.5)
    Interval(value=2.0, low=1.5, high=2.5)
    """
    defined = replicates[~np.isnan(replicates)]
    if math.isnan(value) or not len(defined) or not np.isfinite(jackknifed).all():
        return Interval(value, math.nan, math.nan)
    away = jackknifed.mean() - jackknifed
    scale = float(np.square(away).sum()) ** 1.5
    acceleration = float((away**3).sum()) / (6 * scale) if scale > 0 else 0.0
    below = (np.count_nonzero(defined < value) + np.count_nonzero(defined <= value)) / 2 / len(defined)
    normal = NormalDist()
    bias = normal.inv_cdf(min(max(below, 0.5 / len(defined)), 1 - 0.5 / len(defined)))
    ends = []
    for share in ((1 - level) / 2, (1 + level) / 2):
        moved = bias + normal.inv_cdf(share)
        room = 1 - acceleration * moved
        # A strong skew can pass the pole of the formula: the end is then the last replicate.
        end = normal.cdf(bias + moved / room) if room > 0 else float(share > 0.5)
        ends.append(float(np.quantile(defined, end, method="nearest" if np.isinf(defined).any() else "linear")))
    return Interval(value, ends[0], ends[1])


def mean_statistic(values: FloatArray) -> Statistic:
    """The mean over resampled questions of `values` (N,).

    >>> mean_statistic(np.array([1.0, 4.0, np.inf]))(np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])).tolist()
    [2.0, inf]
    """
    infinite = np.isinf(values)
    finite = np.where(infinite, 0.0, values)

    def statistic(counts: FloatArray) -> FloatArray:
        mean: FloatArray = counts @ finite / len(values)
        if infinite.any():  # 0 times infinity would be nan
            mean[counts[:, infinite].any(axis=1)] = np.inf
        return mean

    return statistic


def binned_sums(index: NDArray[np.intp], values: FloatArray, bins: int) -> FloatArray:
    """Sum each row of `values` (D, N) by bin: (D, bins). `index` is (N,), or (D, N) where rows have bins of their own.

    >>> binned_sums(np.array([0, 1, 1]), np.array([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]]), 2).tolist()
    [[1.0, 5.0], [0.0, 1.0]]
    """
    rows = len(values)
    flat = index + np.arange(0, rows * bins, bins)[:, None]
    sums: FloatArray = np.bincount(flat.ravel(), values.ravel(), rows * bins).astype(np.float64, copy=False)
    return sums.reshape(rows, bins)


def sums_by_bin(index: NDArray[np.intp], bins: int, *values: FloatArray) -> Callable[[FloatArray], list[FloatArray]]:
    """From counts (D, N) to the sums (D, bins) of counts × each of the `values` (N,), in bins that stay the same.

    As `binned_sums`, and faster: questions are put in the order of their bins once.

    >>> sums = sums_by_bin(np.array([2, 0, 2]), 3, np.array([1.0, 2.0, 3.0]))
    >>> sums(np.array([[1.0, 1.0, 1.0], [2.0, 0.0, 1.0]]))[0].tolist()
    [[2.0, 0.0, 4.0], [0.0, 0.0, 5.0]]
    """
    order = np.argsort(index, kind="stable")
    present, first = np.unique(index[order], return_index=True)  # of two equal starts reduceat would sum nothing right
    ordered = [value[order] for value in values]
    few = len(present) <= _FEW_BINS
    parts = [slice(*ends) for ends in itertools.pairwise([*first.tolist(), len(index)])] if few else []

    def sums(counts: FloatArray) -> list[FloatArray]:
        counts = np.take(counts, order, axis=1)
        found = [np.zeros((len(counts), bins)) for _ in ordered]
        for sum_of, value in zip(found, ordered, strict=True):
            for place, part in zip(present, parts, strict=False):
                sum_of[:, place] = counts[:, part] @ value[part]
            if not few:
                sum_of[:, present] = np.add.reduceat(counts * value, first, axis=1)
        return found

    return sums


def finite_or_none(value: float) -> float | None:
    """The number, or None for nan and infinities."""
    return value if math.isfinite(value) else None
