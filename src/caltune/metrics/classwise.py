"""Calibration of every option's probability, not only of the chosen one."""

from __future__ import annotations

import numpy as np

from caltune.metrics.bootstrap import Statistic, sums_by_bin
from caltune.metrics.ece import width_index
from caltune.types import FloatArray, OptionLogits


def classwise_ece(scores: OptionLogits, bins: int = 15) -> float:
    """How far each option's probability is from how often that option is right; lower is better, in [0, 1].

    (1/K) Σ_k Σ_m (n_km / N_k) |frequency_km − mean probability_km|, equal-width bins m of p_k, right-closed. Option k
    is counted over the N_k questions that have it (a finite logit, or the right answer); one that no question has is
    left out of K.
    nan for no questions. For shuffled multiple choice the classes are positions A, B, C, …

    Raises `InputError` when a label is unknown or there is less than one bin.

    Kull et al. 2019, classwise-ECE; as used by CFT (Xiao et al. 2025).

    Both options at 0.5, the first always right: both are off by 0.5.

    >>> classwise_ece(OptionLogits(ids=("a", "b"), logits=[[0.0, 0.0], [1.0, 1.0]], labels=[0, 0]))
    0.5
    """
    if not len(scores):
        return float("nan")
    return float(classwise_ece_statistic(scores, bins)(np.ones((1, len(scores))))[0])


def classwise_ece_statistic(scores: OptionLogits, bins: int = 15) -> Statistic:
    """`classwise_ece` of resampled questions, for `bootstrap`.

    >>> scores = OptionLogits(ids=("a", "b"), logits=[[0.0, 0.0], [1.0, 1.0]], labels=[0, 1])
    >>> classwise_ece_statistic(scores)(np.array([[1.0, 1.0], [2.0, 0.0]])).tolist()
    [0.0, 0.5]
    """
    scores.require_labels()
    probabilities = scores.probabilities()
    has = np.isfinite(scores.logits)
    has[np.arange(len(scores)), scores.labels] = True  # also where it was ruled out
    options = np.flatnonzero(has.any(axis=0))
    rows = [np.flatnonzero(has[:, k]) for k in options]
    gaps = [(scores.labels[i] == k) - probabilities[i, k] for k, i in zip(options, rows, strict=True)]
    bin_of = [width_index(probabilities[i, k], bins) for k, i in zip(options, rows, strict=True)]
    sums = [sums_by_bin(index, bins, gap) for index, gap in zip(bin_of, gaps, strict=True)]

    def statistic(counts: FloatArray) -> FloatArray:
        total = np.zeros(len(counts))
        present = np.zeros(len(counts))
        for i, sums_of in zip(rows, sums, strict=True):
            kept = counts if len(i) == counts.shape[1] else np.take(counts, i, axis=1)
            size = kept.sum(axis=1)
            total += np.abs(sums_of(kept)[0]).sum(axis=1) / np.maximum(size, 1)
            present += size > 0
        return total / present

    return statistic
