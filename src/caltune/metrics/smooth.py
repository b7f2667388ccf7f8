"""Calibration error without bins: residuals smoothed by a kernel whose width the data choose."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from caltune.metrics.bootstrap import Statistic, sums_by_bin
from caltune.types import FloatArray, Predictions

GRID = 256  # steps in [0, 1]; widths below 2 or 3 steps are blurred by the grid
_CLOSE = 2.0**-16  # how far apart width and error may stay
_MOST_STEPS = 40


def smooth_ece(predictions: Predictions) -> float:
    """Smooth calibration error: |accuracy − confidence| after smoothing over confidence; lower is better, in [0, 1].

    smECE_σ = ∫₀¹ |(1/N) Σ_i (c_i − a_i) K_σ(t, c_i)| dt with the Gaussian kernel reflected at 0 and 1,
    K_σ(t, c) = Σ_k φ_σ(t − c + 2k) + φ_σ(t + c + 2k). The result is smECE_σ at the σ for which smECE_σ = σ.
    It has no bin edges to jump over, and like ECE it cannot see whether confidence tells right from wrong, and is above
    0 by chance. nan for no predictions. Computed on a grid of 257 points; good to about 0.001.

    Błasiok and Nakkiran 2023 (arXiv 2309.12236).

    Errors of one sign do not cancel, whatever the width: always wrong at 0.75 gives 0.75.

    >>> round(smooth_ece(Predictions(ids=("a", "b"), confidence=[0.7, 0.8], correct=[0, 0])), 4)
    0.75
    """
    if not len(predictions):
        return float("nan")
    return float(smooth_ece_statistic(predictions)(np.ones((1, len(predictions))))[0])


def smooth_ece_statistic(predictions: Predictions) -> Statistic:
    """`smooth_ece` of resampled questions, for `bootstrap`; the width is chosen anew in every resample.

    >>> some = Predictions(ids=("a", "b"), confidence=[0.7, 0.8], correct=[0, 0])
    >>> smooth_ece_statistic(some)(np.array([[2.0, 0.0], [0.0, 2.0]])).round(4).tolist()
    [0.7, 0.8]
    """
    residual = (predictions.confidence - predictions.correct) / max(1, len(predictions))
    left = np.minimum((predictions.confidence * GRID).astype(np.intp), GRID - 1)
    share = predictions.confidence * GRID - left  # of the residual, for the grid point on the right
    exponent = -0.5 * np.square(np.pi * np.arange(GRID + 1))
    ends = np.ones(GRID + 1)
    ends[[0, -1]] = 0.5

    sums = sums_by_bin(left, GRID + 1, residual * (1 - share), residual * share)

    def statistic(counts: FloatArray) -> FloatArray:
        mass, to_the_right = sums(counts)
        mass[:, 1:] += to_the_right[:, :-1]
        mass /= ends  # what sits on an end meets its own reflection there
        # Reflecting makes an even periodic function: a Gaussian damps its cosine series.
        spectrum = np.fft.rfft(np.concatenate([mass, mass[:, -2:0:-1]], axis=1), axis=1).real

        def error(rows: NDArray[np.intp], width: FloatArray) -> FloatArray:
            damped = np.exp(np.square(width)[:, None] * exponent) * spectrum[rows]
            smoothed = np.fft.irfft(damped, 2 * GRID, axis=1)[:, : GRID + 1]
            result: FloatArray = np.abs(smoothed) @ ends
            return result

        # From a width of 0 to ∞ the error falls from `high` to `low`. It meets the width once, between a width and its
        # error, whichever these are: each step narrows both ends, and secants find the place.
        low, high = np.abs(mass @ ends), np.abs(mass) @ ends
        found: FloatArray = low.copy()
        rows = np.flatnonzero(high - low > _CLOSE)
        width, low, high = low[rows], low[rows], high[rows]
        before, gap_before = width, np.zeros(len(rows))
        for step in range(_MOST_STEPS):
            if not len(rows):
                break
            found[rows] = error(rows, width)
            gap = found[rows] - width
            low = np.maximum(low, np.minimum(width, found[rows]))
            high = np.minimum(high, np.maximum(width, found[rows]))
            following = (low + high) / 2
            if step % 4:  # else halving, so that the ends must meet
                with np.errstate(divide="ignore", invalid="ignore"):
                    secant = width - gap * (width - before) / (gap - gap_before)
                following = np.where((low < secant) & (secant < high), secant, following)
            left_over = np.abs(gap) > _CLOSE
            rows, low, high = rows[left_over], low[left_over], high[left_over]
            before, gap_before, width = width[left_over], gap[left_over], following[left_over]
        return found

    return statistic
