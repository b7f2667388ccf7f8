"""ECE without what chance adds, with an interval that holds near 0 too."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from caltune.errors import InputError
from caltune.metrics.bootstrap import Interval
from caltune.metrics.ece import Binning, assign_bins
from caltune.types import FloatArray, Predictions

_CLEAR = 2.0  # standard errors from which on a gap is taken for one
_HALVINGS = 14  # ends are found to 2^-14
_ROUNDING = 1e-9  # of sums that ought to be equal


def corrected_ece(
    predictions: Predictions,
    bins: int = 15,
    binning: Binning = "width",
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """ECE as it would be without noise, and its interval; lower is better, in [0, 1]. 0 is common where calibrated.

    A test turned into an interval. With accuracies p_m = c_m + s u_m, cut to [0, 1], beside the mean confidences c_m of
    the bins, the true ECE is θ = Σ_m w_m |p_m − c_m|. The number right in a bin is drawn from Binomial(n_m, p_m), which
    makes a distribution of the ECE T for each θ in a direction u, however few are wrong. `low` is the highest θ for
    which P(T ≥ what was seen) ≤ (1 − level) / 2, 0 where none is; `high` the highest for which P(T ≤ what was seen) is
    at least that. Noise adds to T most where the error sits in few bins, and least where all gaps are as many standard
    errors σ_m long (it adds w_m σ_m g(|p_m − c_m| / σ_m) with g convex), so both ends are the outermost of two
    directions: the gaps that were seen where they are above 2 σ_m (else the one that comes nearest), and gaps
    proportional to σ_m on the sides that were seen. `value` is the θ whose median is T, in the direction of all gaps.

    Where the side seen is luck, as with every answer right at 0.9999, the true gap may lie on the other. So `high` is
    not below the one for which Σ_m w_m |gap_m| with signs, + on the sides seen at 2 σ_m and else on those with more
    room, is at most what was seen: for one bin Clopper and Pearson's. And a T that a calibrated model would mostly
    exceed is raised to that model's median for `high`: Cowan et al. 2011 (arXiv 1105.3166).

    benchmarks/coverage.py tells how often the interval holds the truth; it is wider than it need be in between. All nan
    for no predictions.

    Raises `InputError` for fewer than one bin or draw, an unknown binning or a level outside (0, 1).

    The construction is ours; Sun et al. 2024 (arXiv 2408.08998) invert a test for the squared error in this way.

    Sure and right 30 times: nothing is off, but an accuracy of 0.025^(1/30) = 0.884 would show that too.

    >>> found = corrected_ece(Predictions(tuple(map(str, range(30))), [1.0] * 30, [1] * 30))
    >>> found.value, found.low, round(found.high, 2)
    (0.0, 0.0, 0.12)
    """
    if not 0 < level < 1:
        raise InputError(f"level must lie between 0 and 1, got {level}")
    if draws < 1:
        raise InputError(f"draws must be at least 1, got {draws}")
    index = assign_bins(predictions.confidence, bins, binning)
    if not len(predictions):
        return Interval(math.nan, math.nan, math.nan)
    _, cell, size = np.unique(index, return_inverse=True, return_counts=True)
    right = np.bincount(cell, predictions.correct).astype(np.float64)
    claimed = np.bincount(cell, predictions.confidence)
    says, gap, weight = np.minimum(claimed / size, 1.0), (right - claimed) / size, size / size.sum()
    rate = (right + 2) / (size + 4)  # plain accuracy has no variance at 0 and 1
    error = np.sqrt(np.maximum(rate * (1 - rate), says * (1 - says)) / size)
    clear = np.abs(gap) / error
    roomier = np.where(says > 0.5, -1.0, 1.0)
    side = np.where(clear >= _CLEAR, np.sign(gap), roomier)
    few = np.where(clear >= min(_CLEAR, clear.max()), gap, 0.0)
    alike = error * np.where(gap, np.sign(gap), roomier)

    def ece_of(right: FloatArray) -> FloatArray:
        return np.asarray(np.abs(right - claimed).sum(axis=-1) / size.sum())

    def sum_of(right: FloatArray) -> FloatArray:
        return np.asarray((right - claimed) @ side / size.sum())

    def simulate(accuracy: FloatArray) -> FloatArray:
        return np.random.default_rng(seed).binomial(size, accuracy, size=(draws, len(size))).astype(np.float64)

    def solve(direction: FloatArray, holds: Callable[[FloatArray], np.bool_]) -> float:
        """The highest true ECE in a direction whose draws hold, 0 where none do."""
        direction = direction if direction.any() else alike
        direction = direction / (weight @ np.abs(direction))

        def moved(scale: float) -> FloatArray:
            return np.clip(says + scale * direction, 0.0, 1.0)

        scale = _highest(lambda scale: bool(holds(simulate(moved(scale)))))
        return float(weight @ np.abs(moved(scale) - says))

    tail = (1 - level) / 2
    seen, summed = float(ece_of(right)) - _ROUNDING, float(sum_of(right)) + _ROUNDING
    least = max(seen, float(np.median(ece_of(simulate(says))))) + 2 * _ROUNDING
    low = min(solve(each, lambda drawn: np.mean(ece_of(drawn) >= seen) <= tail) for each in (few, alike))
    high = max(
        *(solve(each, lambda drawn: np.mean(ece_of(drawn) <= least) >= tail) for each in (few, alike)),
        solve(error * side, lambda drawn: np.mean(sum_of(drawn) <= summed) >= tail),
    )
    value = solve(gap, lambda drawn: np.mean(ece_of(drawn) >= seen) <= 0.5)
    return Interval(min(max(value, low), high), low, high)


def _highest(holds: Callable[[float], bool]) -> float:
    """The highest number in [0, 1] up to which a condition holds, 0 where it does nowhere."""
    low, high = 0.0, 1.0
    if not holds(low):
        return low
    if holds(high):
        return high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
