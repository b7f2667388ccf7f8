"""Calibration error without bins: residuals smoothed by a kernel whose width the data choose."""

from __future__ import annotations

import numpy as np

from caltune.metrics.bootstrap import Statistic, binned_sums
from caltune.types import FloatArray, Predictions

GRID = 256  # steps in [0, 1]; widths below 2 or 3 steps are blurred by the grid
_HALVINGS = 14  # the width is found to 2^-14


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
    frequency = np.pi * np.arange(GRID + 1)
    ends = np.ones(GRID + 1)
    ends[[0, -1]] = 0.5

    def statistic(counts: FloatArray) -> FloatArray:
        mass = binned_sums(left, counts * (residual * (1 - share)), GRID + 1)
        mass += binned_sums(left + 1, counts * (residual * share), GRID + 1)
        mass /= ends  # what sits on an end meets its own reflection there
        # Reflecting makes an even periodic function: a Gaussian damps its cosine series.
        spectrum = np.fft.rfft(np.concatenate([mass, mass[:, -2:0:-1]], axis=1), axis=1).real

        def error(width: FloatArray) -> FloatArray:
            damped = spectrum * np.exp(-0.5 * np.square(width[:, None] * frequency))
            smoothed = np.fft.irfft(damped, 2 * GRID, axis=1)[:, : GRID + 1]
            result: FloatArray = np.abs(smoothed) @ ends
            return result

        # The error falls and the width grows, so they meet once.
        width = np.full(len(counts), 0.5)
        for halving in range(2, _HALVINGS + 2):
            width += np.where(error(width) > width, 1.0, -1.0) * 0.5**halving
        return error(width)

    return statistic
